// SPDX-License-Identifier: GPL-2.0

//! Memory of a provider for whoever asks: [`Pool`] hands out pieces of a range.
//!
//! C header: [`include/linux/genalloc.h`](srctree/include/linux/genalloc.h)

use super::{
    bvec::wide,
    route::BarRange, //
};
use crate::{
    bindings,
    error::to_result,
    page::{
        PAGE_MASK,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};
use core::ptr::NonNull;

/// An allocator of a range of numbers: offsets in bytes within a provider's range.
///
/// Gives out whole pages, as they are in physical memory. Its bitmap grows with the range (1 bit a
/// page), so it is made when the first piece is asked for.
///
/// # Invariants
///
/// `pool` is a valid `struct gen_pool`, and owned.
pub(super) struct Pool {
    pool: NonNull<bindings::gen_pool>,
}

// SAFETY: A `gen_pool` is used from any thread; it has a lock of its own.
unsafe impl Send for Pool {}

// SAFETY: As above.
unsafe impl Sync for Pool {}

/// `gen_pool_alloc()` returns 0 for failure, so the numbers start further up.
const BASE: usize = PAGE_SIZE;

impl Pool {
    /// An allocator for `range`. May sleep.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: there is no whole page in the range.
    /// - `ENOMEM`.
    pub(super) fn new(range: &BarRange) -> Result<Self> {
        let len = usize::try_from(range.last - range.first)?.saturating_add(1);
        // What there is before the first page. CAST: It is less than a page.
        let head = (wide(range.first).wrapping_neg() & (PAGE_SIZE as u64 - 1)) as usize;
        let size = len.saturating_sub(head) & PAGE_MASK;
        if size == 0 || size.checked_add(BASE + head).is_none() {
            return Err(EINVAL);
        }
        // SAFETY: Any arguments are fine.
        // CAST: A page's size has few bits.
        let pool =
            unsafe { bindings::gen_pool_create(PAGE_SHIFT as c_int, bindings::NUMA_NO_NODE) };
        // INVARIANT: It was just created.
        let this = Self {
            pool: NonNull::new(pool).ok_or(ENOMEM)?,
        };
        // SAFETY: The pool is valid; the numbers are not dereferenced by it.
        to_result(unsafe {
            bindings::gen_pool_add_owner(
                this.pool.as_ptr(),
                BASE + head,
                0,
                size,
                bindings::NUMA_NO_NODE,
                core::ptr::null_mut(),
            )
        })?;
        Ok(this)
    }

    /// The offset of `bytes` bytes that nobody else has.
    pub(super) fn alloc(&self, bytes: usize) -> Option<usize> {
        // SAFETY: The pool is valid by the type invariants.
        match unsafe { bindings::gen_pool_alloc(self.pool.as_ptr(), bytes) } {
            0 => None,
            at => Some(at - BASE),
        }
    }

    /// Gives back what `alloc` returned.
    ///
    /// # Safety
    ///
    /// `offset` was returned by `alloc` of this pool for `bytes`, and not given back since.
    pub(super) unsafe fn free(&self, offset: usize, bytes: usize) {
        // SAFETY: By the safety requirements the range is allocated; C ends the kernel otherwise.
        unsafe { bindings::gen_pool_free(self.pool.as_ptr(), offset + BASE, bytes) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: The pool is valid by the type invariants. Each allocation keeps it alive, so
        // nothing is allocated any more: C ends the kernel otherwise.
        unsafe { bindings::gen_pool_destroy(self.pool.as_ptr()) }
    }
}
