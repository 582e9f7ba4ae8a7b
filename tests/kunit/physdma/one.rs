// SPDX-License-Identifier: GPL-2.0

//! `Client::map_one()`: what is one piece is mapped as `Client::map()` maps it, and the rest not at
//! all.

use super::{
    bound::{
        at,
        check,
        check_eq,
        client,
        on_bed,
        Bed,
        PART, //
    },
    memory::{
        place,
        scattered, //
    },
    recorder::{
        map,
        Recorder,
        BASE,
        FAULT,
        LIMITS, //
    }, //
};
use kernel::{
    dma::DataDirection::{
        FromDevice,
        None as NoDirection, //
    },
    physdma::{
        Limits,
        Mapping,
        Memory,
        Mixed,
        Origin,
        Part,
        PhysBvec,
        Raw,
        Source, //
    },
    prelude::*, //
};

/// Each kind of provider's memory, and that it is kept.
fn as_map_does(bed: Bed<'_>) -> Result {
    for recorder in [Recorder::new(), Recorder::direct()] {
        let client = client(&recorder, LIMITS)?;

        for range in [&bed.up, &bed.down, &bed.own, &bed.bridge] {
            let list = [at(range, 0x123, 0x4321)?];
            let source = Raw::new(&list)?;
            let mut slot = Mapping::default();

            let (segments, _) = map(&client, &mut slot, Raw::new(&list)?)?;
            slot.unmap();
            let only = client.map_one(&mut slot, &source, FromDevice)?;
            check_eq!(only, Some(segments[0]));
            check_eq!(segments.len(), 1);
            // What was there is unmapped first.
            check_eq!(client.map_one(&mut slot, &source, FromDevice)?, only);
            slot.unmap();
            check!(recorder.clean());
        }
        check!(!recorder.memories().is_empty());
        check!(recorder.memories().iter().all(|m| *m == Memory::Mmio));
    }
    Ok(())
}

/// What is not known to be one piece, or may be cut, is left to `Client::map()`.
fn left_alone(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let small = Limits {
        max_segment_bytes: 0xfff,
        ..LIMITS
    };
    let bounded = Limits {
        boundary_mask: 0xffff_ffff,
        ..LIMITS
    };
    let none = Limits {
        max_segment_bytes: 0,
        ..LIMITS
    };
    let one = [at(&bed.bridge, 0, 0x1000)?];
    let two = [one[0], at(&bed.bridge, 0x3000, 0x1000)?];
    // It goes on where the range ends.
    let last = at(&bed.up, PART - 0x1000, 0x1000)?;
    let long = [PhysBvec::new(last.phys(), 0x2000).ok_or(EINVAL)?];

    for limits in [small, bounded, none] {
        let client = client(&recorder, limits)?;
        let mut slot = Mapping::default();
        check_eq!(
            client.map_one(&mut slot, &Raw::new(&one)?, FromDevice),
            Ok(None)
        );
    }
    let client = client(&recorder, LIMITS)?;
    let mut slot = Mapping::default();
    for list in [&two[..], &long] {
        check_eq!(
            client.map_one(&mut slot, &Raw::new(list)?, FromDevice),
            Ok(None)
        );
    }
    let parts = [Part::Provider(&one)];
    // SAFETY: There is no RAM in it.
    let mixed = unsafe { Mixed::new(&parts) }?;
    check_eq!(client.map_one(&mut slot, &mixed, FromDevice), Ok(None));
    check!(recorder.called(&[]));
    // And nothing is kept: all of the bed is revoked when it is dropped.
    drop(bed);
    drop(slot);
    Ok(())
}

/// Neither maps more than can be mapped at once.
fn longest(bed: Bed<'_>) -> Result {
    const MAX: u32 = 0x1000;
    for recorder in [Recorder::new(), Recorder::direct()] {
        recorder.max_bytes.set(MAX as usize);
        let client = client(&recorder, LIMITS)?;
        let mut slot = Mapping::default();

        let list = [at(&bed.bridge, 0, MAX + 1)?];
        check_eq!(
            client.map_one(&mut slot, &Raw::new(&list)?, FromDevice),
            Ok(None)
        );
        check_eq!(
            map(&client, &mut slot, Raw::new(&list)?).err(),
            Some(EINVAL)
        );
        check!(recorder.called(&[]));

        let list = [at(&bed.bridge, 0, MAX)?];
        let only = client.map_one(&mut slot, &Raw::new(&list)?, FromDevice)?;
        check_eq!(only.map(|segment| segment.len), Some(MAX));
        let (segments, _) = map(&client, &mut slot, Raw::new(&list)?)?;
        check_eq!(segments.first(), only.as_ref());
        slot.unmap();
        check!(recorder.clean());
    }
    Ok(())
}

/// Why `Client::map()` would fail.
fn same_errors(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let pages = scattered(1)?;
    let (ram, no_way) = ([place(&pages[0])?], [at(&bed.refused, 0, 0x1000)?]);
    let good = [at(&bed.bridge, 0, 0x1000)?];
    let mut slot = Mapping::default();

    for (list, dir, error) in [
        (&good, NoDirection, EINVAL),
        (&ram, FromDevice, EFAULT),
        (&no_way, FromDevice, EINVAL),
    ] {
        let source = Raw::new(list)?;
        check_eq!(source.only(), Some(list[0]));
        check_eq!(client.map_one(&mut slot, &source, dir), Err(error));
    }
    check!(recorder.called(&[]));
    recorder.fail_after(0);
    // What the DMA API says, and what one did not expect of it, each of which is counted.
    for error in [ENOMEM, FAULT] {
        recorder.fault.set(error);
        check_eq!(
            client.map_one(&mut slot, &Raw::new(&good)?, FromDevice),
            Err(error)
        );
    }
    recorder.fail_after(usize::MAX);
    check!(recorder.clean());
    // Neither is anything kept.
    drop(bed);
    drop(slot);
    Ok(())
}

/// Where in a range it is makes no difference.
fn anywhere(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let mut slot = Mapping::default();
    let first = at(&bed.bridge, 0, 0x1000)?;
    let (_, second) = at(&bed.bridge, 0, 0x2000)?.split(0x1000);
    let second = second.ok_or(EINVAL)?;

    for piece in [first, second] {
        let only = client.map_one(&mut slot, &Raw::new(&[piece])?, FromDevice)?;
        let only = only.ok_or(EINVAL)?;
        check_eq!(only.dma, BASE + piece.phys());
        check_eq!((only.len, only.origin), (0x1000, Origin::Mapped));
    }
    Ok(())
}

#[kunit_tests(physdma_one)]
mod tests {
    use super::*;

    #[test]
    fn what_map_does() -> Result {
        on_bed(as_map_does)
    }

    #[test]
    fn what_it_leaves_to_map() -> Result {
        on_bed(left_alone)
    }

    #[test]
    fn no_more_than_can_be_mapped() -> Result {
        on_bed(longest)
    }

    #[test]
    fn each_error() -> Result {
        on_bed(same_errors)
    }

    #[test]
    fn any_part_of_a_range() -> Result {
        on_bed(anywhere)
    }
}
