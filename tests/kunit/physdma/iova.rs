// SPDX-License-Identifier: GPL-2.0

//! The two-step IOVA typestate: each call and its order, each way to fail, and what dropping it
//! undoes in each state.

use kernel::prelude::*;

#[kunit_tests(physdma_iova)]
mod tests {
    use super::super::recorder::{
        Call,
        Recorder,
        BASE,
        FAULT, //
    };
    use kernel::{
        dma::DataDirection::{
            FromDevice,
            ToDevice, //
        },
        physdma::{
            IovaSpace,
            Linking,
            Memory,
            PhysBvec, //
        },
        prelude::*, //
    };

    fn piece(phys: u64, len: u32) -> Result<PhysBvec> {
        PhysBvec::new(phys, len).ok_or(EINVAL)
    }

    fn alloc(
        recorder: &Recorder,
        first: u64,
        size: usize,
    ) -> Result<IovaSpace<&Recorder, Linking>> {
        IovaSpace::try_alloc(recorder, first, size, FromDevice).ok_or(ENODEV)
    }

    #[test]
    fn calls_in_order() -> Result {
        let recorder = Recorder::new();
        let mut space = alloc(&recorder, 0x5800, 0x2000)?;
        // SAFETY: The recorder touches no memory; here and below.
        unsafe {
            space.link(piece(0x5800, 0x800)?, Memory::Ram)?;
            space.link(piece(0x9000, 0x1000)?, Memory::Ram)?;
            space.link(piece(0x2000, 0x800)?, Memory::Ram)?;
        }
        let space = space.sync()?;
        assert_eq!(space.addr(), BASE + 0x800);
        assert_eq!(space.len(), 0x2000);
        drop(space);

        assert!(recorder.called(&[
            Call::TryAlloc {
                phys: 0x5800,
                size: 0x2000
            },
            Call::Link {
                phys: 0x5800,
                offset: 0,
                len: 0x800
            },
            Call::Link {
                phys: 0x9000,
                offset: 0x800,
                len: 0x1000
            },
            Call::Link {
                phys: 0x2000,
                offset: 0x1800,
                len: 0x800
            },
            Call::Sync { len: 0x2000 },
            Call::Destroy { linked: 0x2000 },
        ]));
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn none_without_iommu_or_size() {
        let recorder = Recorder::direct();
        assert!(IovaSpace::try_alloc(&recorder, 0x1000, 0x1000, ToDevice).is_none());

        let recorder = Recorder::new();
        assert!(IovaSpace::try_alloc(&recorder, 0x1000, 0, ToDevice).is_none());
        assert!(recorder.called(&[]));
    }

    #[test]
    fn drop_in_each_state() -> Result {
        // Allocated; one piece linked; two.
        for links in 0..3u32 {
            let recorder = Recorder::new();
            let mut space = alloc(&recorder, 0x1000, 0x3000)?;
            for i in 0..links {
                // SAFETY: As above.
                unsafe { space.link(piece(0x1000 + 0x2000 * u64::from(i), 0x1000)?, Memory::Ram) }?;
            }
            drop(space);
            let linked = links as usize * 0x1000;
            assert_eq!(recorder.count(|call| *call == Call::Destroy { linked }), 1);
            assert!(recorder.clean());
        }

        // Synced, with less linked than was allocated.
        let recorder = Recorder::new();
        let mut space = alloc(&recorder, 0x1000, 0x3000)?;
        // SAFETY: As above.
        unsafe { space.link(piece(0x1000, 0x1000)?, Memory::Ram) }?;
        let space = space.sync()?;
        assert_eq!(space.len(), 0x1000);
        drop(space);
        assert_eq!(
            recorder.count(|call| *call == Call::Destroy { linked: 0x1000 }),
            1
        );
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn link_fails() -> Result {
        for good in 0..3u32 {
            let recorder = Recorder::new();
            recorder.fail_after(good as usize);
            let mut space = alloc(&recorder, 0x1000, 0x4000)?;
            for i in 0..good {
                // SAFETY: As above.
                unsafe { space.link(piece(0x1000 + 0x2000 * u64::from(i), 0x1000)?, Memory::Ram) }?;
            }
            // SAFETY: As above.
            let failed = unsafe { space.link(piece(0x9000, 0x1000)?, Memory::Ram) };
            assert_eq!(failed, Err(FAULT));
            drop(space);
            let linked = good as usize * 0x1000;
            assert_eq!(recorder.count(|call| *call == Call::Destroy { linked }), 1);
            assert!(recorder.clean());
        }
        Ok(())
    }

    #[test]
    fn sync_fails() -> Result {
        let recorder = Recorder::new();
        recorder.fail_after(1);
        let mut space = alloc(&recorder, 0x1000, 0x1000)?;
        // SAFETY: As above.
        unsafe { space.link(piece(0x1000, 0x1000)?, Memory::Ram) }?;
        assert_eq!(space.sync().err(), Some(FAULT));
        assert_eq!(
            recorder.count(|call| *call == Call::Destroy { linked: 0x1000 }),
            1
        );
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn sync_of_nothing() -> Result {
        let recorder = Recorder::new();
        assert_eq!(alloc(&recorder, 0x1000, 0x1000)?.sync().err(), Some(EINVAL));
        assert!(recorder.called(&[
            Call::TryAlloc {
                phys: 0x1000,
                size: 0x1000
            },
            Call::Destroy { linked: 0 },
        ]));
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn too_long() -> Result {
        let recorder = Recorder::new();
        let mut space = alloc(&recorder, 0x1000, 0x1800)?;
        // SAFETY: As above.
        unsafe {
            assert_eq!(space.link(piece(0x1000, 0x2000)?, Memory::Ram), Err(EINVAL));
            space.link(piece(0x1000, 0x1000)?, Memory::Ram)?;
            assert_eq!(space.link(piece(0x5000, 0x1000)?, Memory::Ram), Err(EINVAL));
            // What is refused changes nothing.
            space.link(piece(0x5000, 0x800)?, Memory::Ram)?;
        }
        assert_eq!(space.sync()?.len(), 0x1800);
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn not_where_the_range_starts() -> Result {
        let recorder = Recorder::new();
        let mut space = alloc(&recorder, 0x1200, 0x4000)?;
        // SAFETY: As above.
        unsafe {
            assert_eq!(space.link(piece(0x1000, 0x1000)?, Memory::Ram), Err(EINVAL));
            space.link(piece(0x5200, 0xe00)?, Memory::Ram)?;
        }
        assert_eq!(space.sync()?.len(), 0xe00);
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn off_the_granule() -> Result {
        let recorder = Recorder::new();
        let mut space = alloc(&recorder, 0x1200, 0x4000)?;
        // SAFETY: As above.
        unsafe {
            // The first may start anywhere.
            space.link(piece(0x1200, 0xe00)?, Memory::Ram)?;
            // No other may.
            assert_eq!(space.link(piece(0x5200, 0xe00)?, Memory::Ram), Err(EINVAL));
            // One that ends off the granule can only be the last.
            space.link(piece(0x8000, 0x600)?, Memory::Ram)?;
            assert_eq!(space.link(piece(0x9000, 0x1000)?, Memory::Ram), Err(EINVAL));
        }
        assert_eq!(space.sync()?.len(), 0x1400);
        assert!(recorder.clean());
        Ok(())
    }

    /// So many pages of which no two are neighbours.
    fn pages(count: u64) -> impl Iterator<Item = PhysBvec> {
        (0..count).filter_map(|number| PhysBvec::new(0x1000 + 0x2000 * number, 0x1000))
    }

    #[test]
    fn many_at_once() -> Result {
        let recorder = Recorder::new();
        let mut space = alloc(&recorder, 0x1000, 70 * 0x1000)?;
        // SAFETY: As above.
        unsafe { space.link_all(pages(70), Memory::Ram) }?;
        assert_eq!(recorder.batches()[..], [32, 32, 6]);
        assert_eq!(space.sync()?.len(), 70 * 0x1000);
        for number in 0..70 {
            let link = Call::Link {
                phys: 0x1000 + 0x2000 * number,
                offset: number as usize * 0x1000,
                len: 0x1000,
            };
            assert_eq!(recorder.count(|call| *call == link), 1);
        }
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn none_at_once() -> Result {
        let recorder = Recorder::new();
        let mut space = alloc(&recorder, 0x1000, 0x1000)?;
        // SAFETY: As above.
        unsafe { space.link_all(pages(0), Memory::Ram) }?;
        assert_eq!(space.sync().err(), Some(EINVAL));
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn linking_many_fails() -> Result {
        // In the first batch, between two, in the second.
        for good in [0, 31, 32, 40] {
            let recorder = Recorder::new();
            recorder.fail_after(good);
            let mut space = alloc(&recorder, 0x1000, 70 * 0x1000)?;
            // SAFETY: As above.
            let failed = unsafe { space.link_all(pages(70), Memory::Ram) };
            assert_eq!(failed, Err(FAULT));
            drop(space);
            let linked = good * 0x1000;
            assert_eq!(recorder.count(|call| *call == Call::Destroy { linked }), 1);
            assert!(recorder.clean());
        }
        Ok(())
    }

    #[test]
    fn many_that_do_not_fit() -> Result {
        // An odd end that is not the last; an odd start that is not the first.
        for odd in [piece(0x1000, 0x800)?, piece(0x1800, 0x800)?] {
            let recorder = Recorder::new();
            let mut space = alloc(&recorder, 0x1000, 0x4000)?;
            let list = [piece(0x8000, 0x1000)?, odd, piece(0xa000, 0x1000)?];
            // SAFETY: As above.
            let failed = unsafe { space.link_all(list.into_iter(), Memory::Ram) };
            assert_eq!(failed, Err(EINVAL));
            drop(space);
            assert_eq!(recorder.count(|call| matches!(call, Call::Link { .. })), 0);
            assert!(recorder.clean());
        }

        // One more than there is room for, when others have been linked.
        let recorder = Recorder::new();
        let mut space = alloc(&recorder, 0x1000, 33 * 0x1000)?;
        // SAFETY: As above.
        let failed = unsafe { space.link_all(pages(34), Memory::Ram) };
        assert_eq!(failed, Err(EINVAL));
        drop(space);
        let linked = 32 * 0x1000;
        assert_eq!(recorder.count(|call| *call == Call::Destroy { linked }), 1);
        assert!(recorder.clean());
        Ok(())
    }
}
