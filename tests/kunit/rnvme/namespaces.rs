// SPDX-License-Identifier: GPL-2.0

//! What a controller says of its namespaces, and what becomes of it.

use crate::{
    api::Way,
    fake::Script,
    lies::with, //
};
use kernel::prelude::*;

#[kunit_tests(rnvme_namespaces)]
mod tests {
    use super::*;

    #[test]
    fn write_protected() -> Result {
        for (nsattr, expected) in [(0, false), (1, true), (0xfe, false)] {
            let script = Script {
                nsattr,
                ..Script::default()
            };
            let (read_only, _) = with(script, |_, driver| {
                driver?
                    .nvme
                    .with_disk(1, |disk| disk.disk.is_read_only())
                    .ok_or(ENXIO)
            })?;
            assert_eq!(read_only, expected);
        }
        Ok(())
    }

    #[test]
    fn formats_that_not_all_may_have() -> Result {
        for (formats, flbas, expected) in [
            ((0, 0), 1, 0),
            ((0, 1), 1, 1),
            ((15, 4), 0x23, 1),
            ((15, 3), 0x22, 1),
            ((15, 3), 0x23, 0),
            ((255, 255), 0x6f, 1),
        ] {
            let script = Script {
                formats,
                flbas,
                ..Script::default()
            };
            let (disks, _) = with(script, |_, driver| Ok(driver?.disks()))?;
            assert_eq!(disks, expected);
        }
        Ok(())
    }

    #[test]
    fn no_longer_lists_than_needed() -> Result {
        for (mdts, bytes) in [
            // A short list is enough for 32 pages.
            (1, 8),
            (5, 8),
            (6, 64 * 64 * 8),
            (9, 64 * 4096),
            (0, 64 * 4096),
        ] {
            let script = Script {
                mdts,
                ..Script::default()
            };
            let buf = KVec::from_elem(0u8, 512 << 10, GFP_KERNEL)?;
            let (lists, counts) = with(script, |_, driver| {
                let driver = driver?;
                let queue = driver.nvme.queue(1).ok_or(ENXIO)?;
                driver.transfer(Way::Write, &buf)?;
                Ok(queue.long_list_bytes())
            })?;

            assert_eq!(lists, bytes);
            assert_eq!(counts.blocks, 1024);
            assert_eq!(counts.wrongs, 0);
        }
        Ok(())
    }
}
