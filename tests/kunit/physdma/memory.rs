// SPDX-License-Identifier: GPL-2.0

//! Memory for the tests.

use kernel::{
    page::{
        Page,
        PAGE_SIZE, //
    },
    physdma::{
        Pages,
        PhysBvec,
        Source, //
    },
    prelude::*, //
};

/// The `bytes` bytes of `pages` from `offset` on, as a source.
///
/// The tests keep their pages until everything is unmapped.
pub(crate) fn source(pages: &[Page], offset: usize, bytes: usize) -> Result<Pages<'_>> {
    // SAFETY: Pages are declared before mappings in all tests, so they are freed after them, and
    // nobody looks at what is in them.
    unsafe { Pages::new(pages, offset, bytes) }
}

/// All pieces of `source`.
pub(crate) fn pieces(mut source: impl Source) -> Result<KVec<PhysBvec>> {
    let mut list = KVec::new();
    while let Some(piece) = source.next() {
        list.push(piece, GFP_KERNEL)?;
    }
    Ok(list)
}

/// Where in memory `page` is.
pub(crate) fn place(page: &Page) -> Result<PhysBvec> {
    source(core::slice::from_ref(page), 0, PAGE_SIZE)?
        .next()
        .ok_or(EINVAL)
}

/// `count` pages of which no two in a row are neighbours in memory.
pub(crate) fn scattered(count: usize) -> Result<KVec<Page>> {
    let mut pages = KVec::<Page>::with_capacity(count, GFP_KERNEL)?;
    // Held until the end, so that they are not offered again.
    let mut unfit = KVec::new();

    while pages.len() < count {
        let page = Page::alloc_page(GFP_KERNEL)?;
        let fits = match pages.last() {
            Some(last) => place(last)?.join(place(&page)?).is_none(),
            None => true,
        };
        if fits {
            pages.push(page, GFP_KERNEL)?;
        } else {
            unfit.push(page, GFP_KERNEL)?;
        }
    }
    Ok(pages)
}
