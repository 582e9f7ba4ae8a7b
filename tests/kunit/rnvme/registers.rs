// SPDX-License-Identifier: GPL-2.0

//! What the registers of a controller say, and what is made of it.

use crate::{
    fake::{
        Counts,
        Script, //
    },
    lies::with, //
};
use kernel::prelude::*;

/// Capability bits of the upper half: a controller memory buffer, a persistent memory region, and a
/// register that says when the media are ready.
const CMBS: u32 = 1 << 25;
const PMRS: u32 = 1 << 24;
const CRWMS: u32 = 1 << 27;

/// A buffer is for data both ways.
const DATA: u32 = 3 << 3;

/// What a controller with these capabilities has seen, while it works and in the end.
fn seen(cap: u32, change: impl FnOnce(&mut Script)) -> Result<(Counts, Counts)> {
    let mut script = Script::default();

    script.cap_hi |= cap;
    change(&mut script);
    let (counts, end) = with(script, |fake, driver| {
        let driver = driver?;
        driver.flush()?;
        Ok(fake.counts())
    })?;
    assert_eq!(end.wrongs, 0);
    assert_eq!(end.closed, end.opened);
    Ok((counts, end))
}

#[kunit_tests(rnvme_registers)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_region_that_takes_hours() -> Result {
        let (counts, _) = seen(PMRS, |script| {
            script.cmbsz = 0;
            // 256 minutes; never ready.
            script.pmrcap |= 1 << 8 | 255 << 16;
            script.pmrsts = 1 << 8;
        })?;

        assert_eq!(counts.opened, 0);
        Ok(())
    }

    #[test]
    fn a_memory_region_of_a_device_that_is_gone() -> Result {
        let (counts, _) = seen(PMRS, |script| {
            script.cmbsz = 0;
            script.pmrcap |= 255 << 16;
            script.pmrsts = u32::MAX;
        })?;

        assert_eq!(counts.opened, 0);
        // It is not asked again.
        assert_eq!(counts.pmrsts_reads, 1);
        Ok(())
    }

    #[test]
    fn time_until_it_is_ready() -> Result {
        for (cap, to, crto, ready_ms) in [
            (0, 3, 8, 2_000),
            (CRWMS, 3, 8, 4_500),
            // Not less than the other one, and not hours. The upper half is of something else.
            (CRWMS, 3, 2, 2_000),
            (CRWMS, 3, 0xffff, 300_500),
            (CRWMS, 3, 8 << 16, 2_000),
        ] {
            let mut script = Script {
                crto,
                ..Script::default()
            };
            script.cap_lo = script.cap_lo & !(0xff << 24) | to << 24;
            script.cap_hi |= cap;
            let (caps, _) = with(script, |_, driver| Ok(driver?.nvme.ctrl.caps))?;

            assert_eq!(caps.ready_ms, ready_ms);
            assert_eq!(caps.timeout_ms, 2_000);
        }
        Ok(())
    }

    #[test]
    fn a_memory_buffer_after_the_registers() -> Result {
        // In units of 64 KiB, below where the doorbells of 65536 queues would end.
        for (bar0, opened) in [(16 << 20, 1), (5 << 16, 1), (4 << 16, 0)] {
            let (counts, _) = seen(CMBS, |script| {
                script.bar0 = bar0;
                script.cmbsz = 4 << 12 | 1 << 8 | DATA;
                script.cmbloc = 1 << 12;
            })?;

            assert_eq!(counts.opened, opened);
            if opened != 0 {
                assert_eq!(counts.range, (0, 1 << 16, 4 << 16));
            }
        }
        Ok(())
    }

    #[test]
    fn doorbells_end_where_memory_begins() -> Result {
        // Doorbells are 1 KiB apart; pages of memory from the second one on.
        for (cmbsz, opened, queues) in [(4 << 12 | DATA, 1, 1), (0, 0, 2)] {
            let (counts, _) = seen(CMBS | 8, |script| {
                script.io_queues = 2;
                script.bar0 = 1 << 20;
                script.cmbsz = cmbsz;
                script.cmbloc = 2 << 12;
            })?;

            assert_eq!(counts.opened, opened);
            assert_eq!(counts.queues, queues);
        }
        Ok(())
    }

    #[test]
    fn memory_is_not_left_enabled() -> Result {
        // They stay as they are when the controller is disabled.
        let (counts, end) = seen(CMBS | PMRS, |script| script.keeps_memory = true)?;
        assert_eq!(counts.addresses, (0x12_3460_0000, 0x12_3550_0000));
        assert_eq!(end.addresses, (0, 0));

        let (counts, _) = seen(CMBS | PMRS, |script| script.not_opened = true)?;
        assert_eq!(counts.addresses, (0, 0));

        let (_, end) = {
            let mut script = Script {
                identify_status: 0x006,
                keeps_memory: true,
                ..Script::default()
            };
            script.cap_hi |= CMBS | PMRS;
            with(script, |_, driver| driver.err().ok_or(EINVAL))?
        };
        assert_eq!(end.opened, 2);
        assert_eq!(end.closed, 2);
        assert_eq!(end.addresses, (0, 0));
        Ok(())
    }
}
