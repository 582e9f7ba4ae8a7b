// SPDX-License-Identifier: GPL-2.0

//! What the CPU does to bytes that are anybody's: RAM's, a provider's, or both in one source.

use super::{
    bound::{
        at,
        check,
        check_eq,
        on_bed,
        Bed,
        PART, //
    },
    memory::{
        place,
        scattered, //
    }, //
};
use kernel::{
    page::PAGE_SIZE,
    physdma::{
        copy_from,
        copy_to,
        equals,
        zero,
        Mixed,
        Part,
        PhysBvec,
        Raw, //
    },
    prelude::*, //
};

const PAGE: u32 = PAGE_SIZE as u32;

/// More of a provider's memory than is mapped at once.
const LARGE: u32 = 0x1_8010;

fn mixed<'r>(parts: &'r [Part<'r>]) -> Result<Mixed<'r>> {
    // SAFETY: Nothing is mapped for a device; the pages are ours, and there as long as the parts.
    unsafe { Mixed::new(parts) }
}

/// Bytes that differ from place to place, with a period that no size is a multiple of.
fn pattern(len: usize) -> Result<KVec<u8>> {
    let mut buf = KVec::with_capacity(len, GFP_KERNEL)?;
    for at in 0..len {
        // CAST: The remainder has few bits.
        buf.push(1 + (at % 251) as u8, GFP_KERNEL)?;
    }
    Ok(buf)
}

/// Any part of RAM and two providers' memory.
fn round_trip(bed: Bed<'_>) -> Result {
    let pages = scattered(2)?;
    let ram = [place(&pages[0])?, place(&pages[1])?];
    let (near, far) = (
        [at(&bed.up, 0x0ff0, LARGE)?],
        [at(&bed.refused, 0x7ffd, 5)?, at(&bed.refused, 0x100, 1)?],
    );
    let parts = [
        Part::Ram(&ram[..1]),
        Part::Provider(&near),
        Part::Provider(&far),
        Part::Ram(&ram[1..]),
    ];
    let border = PAGE_SIZE + LARGE as usize;
    let bytes = border + 6 + PAGE_SIZE;
    let data = pattern(bytes)?;
    let mut buf = KVec::from_elem(0u8, bytes, GFP_KERNEL)?;
    let source = || mixed(&parts);

    zero(source()?, 0, bytes)?;
    copy_from(source()?, 0, &mut buf)?;
    check!(buf.iter().all(|&byte| byte == 0));

    // At, before and behind each border.
    for (offset, len) in [
        (0, bytes),
        (0, 1),
        (bytes - 1, 1),
        (PAGE_SIZE - 1, 2),
        (PAGE_SIZE, LARGE as usize),
        (border - 3, 4),
        (border + 4, 3),
        (border - 1, 0x200),
        (PAGE_SIZE + 0xffff, 2),
        (bytes, 0),
    ] {
        let data = &data[offset..offset + len];
        zero(source()?, 0, bytes)?;
        copy_to(source()?, offset, data)?;
        check!(equals(source()?, offset, data)?);

        // That much and no more was written.
        copy_from(source()?, 0, &mut buf)?;
        check!(buf[offset..offset + len] == *data);
        let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        check!(is_zero(&buf[..offset]) && is_zero(&buf[offset + len..]));

        buf.clear();
        buf.resize(bytes, 0xee, GFP_KERNEL)?;
        copy_from(source()?, offset, &mut buf[..len])?;
        check!(buf[..len] == *data);
        check!(buf[len..].iter().all(|&byte| byte == 0xee));
    }

    // One piece of two providers.
    let across = at(&bed.down, PART - 3, 3)?
        .join(at(&bed.own, 0, 5)?)
        .ok_or(EINVAL)?;
    let across = [across];
    copy_to(Raw::new(&across)?, 0, &data[..8])?;
    check!(equals(Raw::new(&across)?, 0, &data[..8])?);
    copy_from(Raw::new(&across)?, 2, &mut buf[..4])?;
    check!(buf[..4] == data[2..6]);

    // It is where it should be.
    copy_to(source()?, 0, &data)?;
    let mut five = [0; 5];
    bed.refused
        .provider()
        .window(0x7ffd, 5)?
        .read(0, &mut five)?;
    check_eq!(five[..], data[border..border + 5]);
    let mut two = [0; 2];
    bed.up
        .provider()
        .window(0xff0 + 0xffff, 2)?
        .read(0, &mut two)?;
    check_eq!(two[..], data[PAGE_SIZE + 0xffff..PAGE_SIZE + 0x1_0001]);

    // Zeros in part.
    zero(source()?, PAGE_SIZE - 1, 2)?;
    copy_from(source()?, PAGE_SIZE - 2, &mut five)?;
    check_eq!(five[1..3], [0, 0]);
    check!(five[0] != 0 && five[3] != 0);
    Ok(())
}

/// Any byte that differs is seen.
fn differences(bed: Bed<'_>) -> Result {
    let pages = scattered(1)?;
    let ram = [place(&pages[0])?];
    let near = [at(&bed.up, 0x40, 0x400)?];
    let parts = [Part::Ram(&ram), Part::Provider(&near)];
    let mut data = pattern(PAGE_SIZE + 0x400)?;
    copy_to(mixed(&parts)?, 0, &data)?;
    for at in [
        0,
        127,
        128,
        PAGE_SIZE - 1,
        PAGE_SIZE,
        PAGE_SIZE + 127,
        PAGE_SIZE + 128,
        PAGE_SIZE + 0x3ff,
    ] {
        data[at] ^= 0x80;
        check!(!equals(mixed(&parts)?, 0, &data)?);
        data[at] ^= 0x80;
        check!(equals(mixed(&parts)?, 0, &data)?);
        check!(equals(mixed(&parts)?, at, &data[at..])?);
        check!(equals(mixed(&parts)?, 0, &data[..at])?);
    }
    Ok(())
}

fn errors(bed: Bed<'_>) -> Result {
    let pages = scattered(1)?;
    let ram = [place(&pages[0])?];
    let near = [at(&bed.up, 0, PAGE)?];
    let parts = [Part::Ram(&ram), Part::Provider(&near)];
    let bytes = 2 * PAGE_SIZE;
    let mut buf = [0; 4];

    for offset in [bytes - 3, bytes, usize::MAX - 3, usize::MAX] {
        check_eq!(copy_from(mixed(&parts)?, offset, &mut buf), Err(EINVAL));
        check_eq!(copy_to(mixed(&parts)?, offset, &buf), Err(EINVAL));
        check_eq!(zero(mixed(&parts)?, offset, 4), Err(EINVAL));
        check_eq!(equals(mixed(&parts)?, offset, &buf), Err(EINVAL));
    }
    check_eq!(zero(mixed(&parts)?, 1, usize::MAX), Err(EINVAL));

    // What is neither: RAM that is not said to be, memory of nobody, and no memory at all.
    let unknown = PhysBvec::new(bed.refused.provider().range().last() + 1, 16).ok_or(EINVAL)?;
    let nowhere = PhysBvec::new(1 << 45, 16).ok_or(EINVAL)?;
    let unknowns = [unknown];
    let nowheres = [nowhere];
    for parts in [
        [Part::Provider(&ram)],
        [Part::Provider(&unknowns)],
        [Part::Ram(&unknowns)],
        [Part::Ram(&nowheres)],
    ] {
        check_eq!(copy_from(mixed(&parts)?, 0, &mut buf), Err(EFAULT));
        check_eq!(copy_to(mixed(&parts)?, 0, &buf), Err(EFAULT));
        check_eq!(zero(mixed(&parts)?, 0, 4), Err(EFAULT));
        check_eq!(equals(mixed(&parts)?, 0, &buf), Err(EFAULT));
    }
    check_eq!(copy_from(Raw::new(&ram)?, 0, &mut buf), Err(EFAULT));
    copy_from(Raw::new(&near)?, 0, &mut buf)?;

    // A part that is not looked at may be anything; one that is ends it.
    let across = [near[0], unknown];
    let source = || Raw::new(&across);
    check_eq!(copy_from(source()?, PAGE_SIZE - 4, &mut buf), Ok(()));
    check_eq!(copy_from(source()?, PAGE_SIZE - 3, &mut buf), Err(EFAULT));
    Ok(())
}

#[kunit_tests(physdma_access)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_any_memory() -> Result {
        on_bed(round_trip)
    }

    #[test]
    fn every_difference_counts() -> Result {
        on_bed(differences)
    }

    #[test]
    fn what_cannot_be_touched() -> Result {
        on_bed(errors)
    }
}
