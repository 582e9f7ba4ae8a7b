// SPDX-License-Identifier: GPL-2.0

//! `Client::map()`: which way memory takes, each call and its order, each way to fail, and that
//! everything is undone.

use kernel::prelude::*;

#[kunit_tests(physdma_map)]
mod tests {
    use super::super::{
        memory::{
            pieces,
            place,
            scattered,
            source, //
        },
        recorder::{
            map,
            Call,
            Recorder,
            BASE,
            FAULT,
            LIMITS, //
        },
    };
    use kernel::{
        dma::DataDirection::{
            FromDevice,
            ToDevice, //
        },
        page::PAGE_SIZE,
        physdma::{
            Limits,
            Mapping,
            Origin,
            Path,
            PhysBvec,
            Raw,
            Segment, //
        },
        prelude::*, //
    };

    #[test]
    fn one_piece_is_mapped_by_itself() -> Result {
        let recorder = Recorder::new();
        let client = recorder.client(LIMITS)?;
        let pages = scattered(1)?;
        let phys = place(&pages[0])?.phys() + 0x200;
        let mut slot = Mapping::default();

        let (list, path) = map(&client, &mut slot, source(&pages, 0x200, 0x400)?)?;
        assert_eq!(path, Path::Single);
        assert_eq!(
            list[..],
            [Segment {
                dma: BASE + phys,
                len: 0x400,
                origin: Origin::Mapped,
            }]
        );
        slot.unmap();
        assert!(recorder.called(&[
            Call::MapPhys { phys, len: 0x400 },
            Call::UnmapPhys {
                dma: BASE + phys,
                len: 0x400
            },
        ]));
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn scattered_pages_are_one_segment_behind_an_iommu() -> Result {
        let recorder = Recorder::new();
        let client = recorder.client(LIMITS)?;
        let pages = scattered(32)?;
        let mut slot = Mapping::default();

        // The first page from its middle, the last one up to its middle.
        let bytes = 31 * PAGE_SIZE;
        let (list, path) = map(&client, &mut slot, source(&pages, 0x800, bytes)?)?;
        assert_eq!(path, Path::Iova);
        assert_eq!(
            list[..],
            [Segment {
                dma: BASE + 0x800,
                len: bytes as u32,
                origin: Origin::Mapped,
            }]
        );
        assert_eq!(recorder.count(|call| matches!(call, Call::Link { .. })), 32);
        assert_eq!(recorder.count(|call| *call == Call::Sync { len: bytes }), 1);
        slot.unmap();
        assert_eq!(
            recorder.count(|call| *call == Call::Destroy { linked: bytes }),
            1
        );
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn the_direction_is_kept() -> Result {
        for iova in [true, false] {
            let recorder = Recorder::new();
            recorder.has_iova.set(iova);
            let client = recorder.client(LIMITS)?;
            let pages = scattered(2)?;
            for (count, dir) in [
                (1, ToDevice),
                (2, ToDevice),
                (1, FromDevice),
                (2, FromDevice),
            ] {
                let mut slot = Mapping::default();
                let mut segments =
                    client.map(&mut slot, source(&pages, 0, count * PAGE_SIZE)?, dir)?;
                while segments.next()?.is_some() {}
                drop(slot);
                assert!(recorder.clean());
            }
        }
        Ok(())
    }

    #[test]
    fn gaps_are_mapped_piece_by_piece() -> Result {
        let recorder = Recorder::new();
        // An IOMMU with pages so large that ours leave gaps in them.
        recorder.granule.set(0xffff);
        let client = recorder.client(LIMITS)?;
        let pages = scattered(3)?;
        let mut slot = Mapping::default();

        let (list, path) = map(&client, &mut slot, source(&pages, 0, 3 * PAGE_SIZE)?)?;
        assert_eq!(path, Path::Direct);
        assert_eq!(list.len(), 3);
        assert_eq!(slot.spilled(), 3);
        for (segment, page) in list.iter().zip(pages.iter()) {
            assert_eq!(segment.dma, BASE + place(page)?.phys());
            assert_eq!(segment.len as usize, PAGE_SIZE);
        }
        slot.unmap();
        assert!(recorder.clean());
        assert_eq!(
            recorder.count(|call| matches!(call, Call::UnmapPhys { .. })),
            3
        );
        assert_eq!(
            recorder.count(|call| matches!(call, Call::TryAlloc { .. })),
            0
        );
        Ok(())
    }

    #[test]
    fn no_iova_space_falls_back_to_pieces() -> Result {
        let recorder = Recorder::new();
        recorder.has_iova.set(false);
        let client = recorder.client(LIMITS)?;
        let pages = scattered(4)?;
        let mut slot = Mapping::default();

        let (list, path) = map(&client, &mut slot, source(&pages, 0, 4 * PAGE_SIZE)?)?;
        assert_eq!(path, Path::Direct);
        assert_eq!(list.len(), 4);
        drop(slot);
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn nothing_is_remembered_that_needs_no_unmap() -> Result {
        let recorder = Recorder::direct();
        let client = recorder.client(LIMITS)?;
        let pages = scattered(5)?;
        let mut slot = Mapping::default();

        let (list, path) = map(&client, &mut slot, source(&pages, 0, 5 * PAGE_SIZE)?)?;
        assert_eq!((list.len(), path), (5, Path::Direct));
        assert_eq!(slot.spilled(), 0);
        slot.unmap();
        assert_eq!(
            recorder.count(|call| matches!(call, Call::UnmapPhys { .. })),
            0
        );
        Ok(())
    }

    #[test]
    fn the_first_bounce_changes_what_is_remembered() -> Result {
        let recorder = Recorder::direct();
        recorder.need_unmap_from.set(2);
        let client = recorder.client(LIMITS)?;
        let pages = scattered(5)?;
        let mut slot = Mapping::default();

        let (list, _) = map(&client, &mut slot, source(&pages, 0, 5 * PAGE_SIZE)?)?;
        assert_eq!(slot.spilled(), 3);
        slot.unmap();
        for segment in &list[2..] {
            let call = Call::UnmapPhys {
                dma: segment.dma,
                len: segment.len as usize,
            };
            assert_eq!(recorder.count(|other| *other == call), 1);
        }
        assert_eq!(
            recorder.count(|call| matches!(call, Call::UnmapPhys { .. })),
            3
        );
        Ok(())
    }

    #[test]
    fn neighbours_are_merged() -> Result {
        // Four pages in a row, by their order or by a fresh try.
        let recorder = Recorder::new();
        let client = recorder.client(LIMITS)?;
        let buf = KVec::<u8>::from_elem(0, 4 * PAGE_SIZE, GFP_KERNEL)?;
        let mut slot = Mapping::default();

        // SAFETY: `buf` is declared before `slot`, and nobody looks into it.
        let source = unsafe { kernel::physdma::Virt::new(&buf[..]) }?;
        let (list, path) = map(&client, &mut slot, source)?;
        assert_eq!((list.len(), path), (1, Path::Single));
        assert_eq!(list[0].len as usize, 4 * PAGE_SIZE);
        drop(slot);
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn segments_keep_to_the_limits() -> Result {
        let recorder = Recorder::new();
        let limits = Limits {
            max_segment_bytes: 0x1800,
            boundary_mask: 0x1fff,
            max_segments: 64,
        };
        let client = recorder.client(limits)?;
        let pages = scattered(8)?;
        let mut slot = Mapping::default();

        let bytes = 8 * PAGE_SIZE - 0x400;
        let (list, path) = map(&client, &mut slot, source(&pages, 0x400, bytes)?)?;
        assert_eq!(path, Path::Iova);
        let mut next = BASE + 0x400;
        for segment in &list {
            assert_eq!(segment.dma, next);
            assert!(segment.len <= limits.max_segment_bytes);
            let last = segment.dma + u64::from(segment.len) - 1;
            assert_eq!(
                segment.dma & !limits.boundary_mask,
                last & !limits.boundary_mask
            );
            next = last + 1;
        }
        assert_eq!(next, BASE + 0x400 + bytes as u64);
        drop(slot);
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn too_many_segments() -> Result {
        for iova in [true, false] {
            let recorder = Recorder::new();
            recorder.has_iova.set(iova);
            let limits = Limits {
                max_segment_bytes: 0x1000,
                max_segments: 3,
                ..LIMITS
            };
            let client = recorder.client(limits)?;
            let pages = scattered(4)?;
            let mut slot = Mapping::default();

            map(&client, &mut slot, source(&pages, 0, 3 * PAGE_SIZE)?)?;
            let error = map(&client, &mut slot, source(&pages, 0, 4 * PAGE_SIZE)?).err();
            assert_eq!(error, Some(EINVAL));
            assert!(recorder.clean());
        }
        Ok(())
    }

    /// Fails the first call, the second, and so on, until none fails; what was done must have been
    /// undone each time.
    fn fail_everywhere(recorder: impl Fn() -> Recorder, calls: usize) -> Result {
        let pages = scattered(6)?;
        for good in 0..=calls {
            let recorder = recorder();
            recorder.fail_after(good);
            let client = recorder.client(LIMITS)?;
            let mut slot = Mapping::default();

            let result = map(&client, &mut slot, source(&pages, 0x100, 5 * PAGE_SIZE)?);
            if good < calls {
                assert_eq!(result.err(), Some(FAULT));
                assert!(recorder.clean());
            } else {
                assert!(result.is_ok());
                assert!(!recorder.clean());
            }
            drop(slot);
            assert!(recorder.clean());
        }
        Ok(())
    }

    #[test]
    fn each_call_of_a_range_fails() -> Result {
        // Six links and the sync.
        fail_everywhere(Recorder::new, 7)
    }

    #[test]
    fn each_mapping_of_a_piece_fails() -> Result {
        let no_space = || {
            let recorder = Recorder::new();
            recorder.has_iova.set(false);
            recorder
        };
        fail_everywhere(no_space, 6)
    }

    #[test]
    fn the_only_mapping_fails() -> Result {
        let recorder = Recorder::new();
        recorder.fail_after(0);
        let client = recorder.client(LIMITS)?;
        let pages = scattered(1)?;
        let mut slot = Mapping::default();
        assert_eq!(
            map(&client, &mut slot, source(&pages, 0, 1)?).err(),
            Some(FAULT)
        );
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn segments_not_asked_for_are_undone_too() -> Result {
        for iova in [true, false] {
            let recorder = Recorder::new();
            recorder.has_iova.set(iova);
            let client = recorder.client(LIMITS)?;
            let pages = scattered(4)?;
            let mut slot = Mapping::default();

            let mut segments =
                client.map(&mut slot, source(&pages, 0, 4 * PAGE_SIZE)?, FromDevice)?;
            assert!(segments.next()?.is_some());
            assert!(!recorder.clean());
            drop(slot);
            assert!(recorder.clean());
        }
        Ok(())
    }

    #[test]
    fn a_slot_in_use_is_unmapped_first() -> Result {
        let recorder = Recorder::new();
        let client = recorder.client(LIMITS)?;
        let pages = scattered(2)?;
        let mut slot = Mapping::default();

        map(&client, &mut slot, source(&pages, 0, 2 * PAGE_SIZE)?)?;
        map(&client, &mut slot, source(&pages, 0, 2 * PAGE_SIZE)?)?;
        assert_eq!(
            recorder.count(|call| matches!(call, Call::Destroy { .. })),
            1
        );
        // Also when the new one is refused.
        let list = [PhysBvec::new(0x1000, 0x1000).ok_or(EINVAL)?];
        assert_eq!(
            map(&client, &mut slot, Raw::new(&list)?).err(),
            Some(EFAULT)
        );
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn unmap_twice_is_once() -> Result {
        let recorder = Recorder::new();
        let client = recorder.client(LIMITS)?;
        let pages = scattered(1)?;
        let mut slot = Mapping::default();
        map(&client, &mut slot, source(&pages, 0, PAGE_SIZE)?)?;
        slot.unmap();
        slot.unmap();
        drop(slot);
        assert_eq!(
            recorder.count(|call| matches!(call, Call::UnmapPhys { .. })),
            1
        );
        Ok(())
    }

    #[test]
    fn unknown_memory_is_refused() -> Result {
        let recorder = Recorder::new();
        let client = recorder.client(LIMITS)?;
        let list = [PhysBvec::new(0x1000, 0x1000).ok_or(EINVAL)?];
        let mut slot = Mapping::default();
        assert_eq!(
            map(&client, &mut slot, Raw::new(&list)?).err(),
            Some(EFAULT)
        );
        assert!(recorder.called(&[]));
        Ok(())
    }

    #[test]
    fn nobody_may_use_it() -> Result {
        let recorder = Recorder::new();
        let client = recorder.client(LIMITS)?;
        let pages = scattered(1)?;
        let mut slot = Mapping::default();
        // C stops the machine.
        let nothing = client.map(
            &mut slot,
            source(&pages, 0, PAGE_SIZE)?,
            kernel::dma::DataDirection::None,
        );
        assert_eq!(nothing.err(), Some(EINVAL));
        assert!(recorder.called(&[]));
        Ok(())
    }

    #[test]
    fn longer_than_a_mapping_may_be() -> Result {
        let recorder = Recorder::new();
        recorder.max_bytes.set(PAGE_SIZE);
        let client = recorder.client(LIMITS)?;
        assert_eq!(client.max_bytes(), PAGE_SIZE);
        let pages = scattered(2)?;
        let mut slot = Mapping::default();
        map(&client, &mut slot, source(&pages, 1, PAGE_SIZE)?)?;
        let error = map(&client, &mut slot, source(&pages, 0, PAGE_SIZE + 1)?).err();
        assert_eq!(error, Some(EINVAL));
        assert!(recorder.clean());
        Ok(())
    }

    #[test]
    fn clients_that_cannot_be() {
        let recorder = Recorder::new();
        let limits = Limits {
            max_segments: 0,
            ..LIMITS
        };
        assert_eq!(recorder.client(limits).err(), Some(EINVAL));
        recorder.max_bytes.set(0);
        assert_eq!(recorder.client(LIMITS).err(), Some(EIO));
    }

    #[test]
    fn state_of_a_request_is_small() -> Result {
        let size = size_of::<Mapping<'_>>();
        pr_info!("physdma: bytes of state per request: {size}\n");
        assert!(size <= 64);

        // The pieces a source yields are those that were put in.
        let pages = scattered(3)?;
        assert_eq!(pieces(source(&pages, 0, 3 * PAGE_SIZE)?)?.len(), 3);
        Ok(())
    }
}
