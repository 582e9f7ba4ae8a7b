// SPDX-License-Identifier: GPL-2.0

//! Doorbells in memory: a controller that looks there gets all commands, and registers are written
//! when it asks for them.

use crate::{
    fake::Script,
    lies::with, //
};
use kernel::prelude::*;

/// How many commands are sent, one after the other.
const TIMES: u32 = 40;

/// What registers were written for them, and how often the controller was told of the buffers.
fn rings(script: Script) -> Result<(u32, u32)> {
    let (before, counts) = with(script, |fake, driver| {
        let driver = driver?;
        let before = fake.counts();

        for _ in 0..TIMES {
            driver.flush()?;
        }
        Ok(before)
    })?;

    assert_eq!(counts.flushes - before.flushes, TIMES);
    assert_eq!(counts.wrongs, 0);
    Ok((counts.rings - before.rings, counts.buffers))
}

#[kunit_tests(rnvme_doorbells)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_at_memory_is_left_alone() -> Result {
        let (rings, buffers) = rings(Script {
            shadow: Some(0),
            ..Script::default()
        })?;

        assert!(rings <= 1);
        assert_eq!(buffers, 1);
        Ok(())
    }

    #[test]
    fn who_sleeps_is_woken() -> Result {
        let (rings, _) = rings(Script {
            shadow: Some(0),
            sleepy: true,
            ..Script::default()
        })?;

        // It may have looked before it went to sleep.
        assert!(rings >= TIMES / 2);
        Ok(())
    }

    #[test]
    fn who_cannot_is_not_asked() -> Result {
        assert_eq!(rings(Script::default())?, (TIMES, 0));
        Ok(())
    }

    #[test]
    fn who_will_not_is_rung() -> Result {
        const INVALID_FIELD: u16 = 1 << 14 | 0x002;
        let refused = Script {
            shadow: Some(INVALID_FIELD),
            ..Script::default()
        };

        assert_eq!(rings(refused)?, (TIMES, 1));
        Ok(())
    }
}
