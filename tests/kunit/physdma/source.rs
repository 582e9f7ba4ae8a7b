// SPDX-License-Identifier: GPL-2.0

//! Sources: what they yield, and what they refuse.

use kernel::prelude::*;

#[kunit_tests(physdma_source)]
mod tests {
    use super::super::memory::{
        pieces,
        place,
        scattered,
        source, //
    };
    use kernel::{
        page::PAGE_SIZE,
        physdma::{
            Miss,
            PhysBvec,
            Raw,
            Source,
            Virt, //
        },
        prelude::*, //
    };

    fn piece(phys: u64, len: u32) -> Result<PhysBvec> {
        PhysBvec::new(phys, len).ok_or(EINVAL)
    }

    #[test]
    fn raw_list() -> Result {
        let list = [
            piece(0x1000, 0x800)?,
            piece(0x1800, 0x800)?,
            piece(0x5000, 0x200)?,
        ];
        let raw = Raw::new(&list)?;
        assert_eq!(raw.bytes(), 0x1200);
        // The first two are one; what is left is the gap at a page's end.
        assert_eq!(raw.gaps(), 0x2000 | 0x5000);
        assert_eq!(
            pieces(raw)?[..],
            [piece(0x1000, 0x1000)?, piece(0x5000, 0x200)?]
        );

        let list = [piece(0x1000, 0x200)?, piece(0x5000, 0x200)?];
        assert_eq!(Raw::new(&list)?.gaps() & 0xfff, 0x200);
        assert_eq!(Raw::new(&[]).err(), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn what_a_miss_means() {
        assert_eq!(<Raw<'_> as Source>::MISS, Miss::Refuse);
        assert_eq!(<Virt as Source>::MISS, Miss::Ram);
    }

    #[test]
    fn pages_in_part() -> Result {
        let pages = scattered(3)?;
        let part = source(&pages, 0xf00, PAGE_SIZE + 0x300)?;
        assert_eq!(part.bytes(), PAGE_SIZE + 0x300);
        assert_eq!(part.gaps() & 0xfff, 0);
        let list = pieces(part)?;
        assert_eq!(
            list[..],
            [
                piece(place(&pages[0])?.phys() + 0xf00, 0x100)?,
                place(&pages[1])?,
                piece(place(&pages[2])?.phys(), 0x200)?,
            ]
        );
        Ok(())
    }

    #[test]
    fn pages_that_are_not_there() -> Result {
        let pages = scattered(2)?;
        assert!(source(&pages, 0, 2 * PAGE_SIZE).is_ok());
        assert_eq!(source(&pages, 0, 0).err(), Some(EINVAL));
        assert_eq!(source(&pages, 1, 2 * PAGE_SIZE).err(), Some(EINVAL));
        assert_eq!(source(&pages, PAGE_SIZE, 1).err(), Some(EINVAL));
        assert_eq!(source(&pages, 1, usize::MAX).err(), Some(EINVAL));
        Ok(())
    }

    /// The pieces of `buf`, which nobody maps.
    fn virt(buf: &[u8]) -> Result<KVec<PhysBvec>> {
        // SAFETY: Nothing is mapped.
        pieces(unsafe { Virt::new(buf) }?)
    }

    #[test]
    fn linear_memory_is_one_piece() -> Result {
        let buf = KVec::<u8>::from_elem(0, 4 * PAGE_SIZE, GFP_KERNEL)?;
        let list = virt(&buf[0x123..])?;
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].len() as usize, 4 * PAGE_SIZE - 0x123);
        assert_eq!(
            list[0].phys() & 0xfff,
            (buf.as_ptr() as u64 + 0x123) & 0xfff
        );
        Ok(())
    }

    #[test]
    fn vmalloc_memory_is_walked_by_page() -> Result {
        let buf = VVec::<u8>::from_elem(0, 16 * PAGE_SIZE, GFP_KERNEL)?;
        let list = virt(&buf[0x10..])?;
        let bytes: usize = list.iter().map(|piece| piece.len() as usize).sum();
        assert_eq!(bytes, 16 * PAGE_SIZE - 0x10);
        assert_eq!(list[0].phys() & 0xfff, 0x10);
        for piece in &list[1..] {
            assert_eq!(piece.phys() & 0xfff, 0);
        }
        Ok(())
    }

    #[test]
    fn stacks_are_refused() {
        let local = [7u8; 32];
        assert_eq!(virt(core::hint::black_box(&local)).err(), Some(EFAULT));
    }

    #[test]
    fn no_address_of_the_kernel_is_refused() {
        let nowhere = core::ptr::slice_from_raw_parts(0x1000 as *const u8, 16);
        // SAFETY: Nothing is mapped.
        assert_eq!(unsafe { Virt::new(nowhere) }.err(), Some(EFAULT));
    }

    #[test]
    fn no_memory_is_no_source() {
        assert_eq!(virt(&[]).err(), Some(EINVAL));
    }
}
