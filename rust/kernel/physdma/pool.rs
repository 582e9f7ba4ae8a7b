// SPDX-License-Identifier: GPL-2.0

//! Memory of a provider for whoever asks: [`Pool`] hands out pieces of a range.
//!
//! C header: [`include/linux/genalloc.h`](srctree/include/linux/genalloc.h)

use crate::{
    bindings,
    error::to_result,
    page::PAGE_SHIFT,
    prelude::*, //
};
use core::ptr::NonNull;

/// An allocator of a range of numbers: offsets in bytes within a provider's range.
///
/// Gives out whole pages. Its bitmap grows with the range (1 bit a page), so it is made when the
/// first piece is asked for.
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
const BASE: usize = 1 << PAGE_SHIFT;

impl Pool {
    /// An allocator for the offsets from 0 to `size`. May sleep.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: there is no whole page in the range.
    /// - `ENOMEM`.
    pub(super) fn new(size: usize) -> Result<Self> {
        let size = size >> PAGE_SHIFT << PAGE_SHIFT;
        if size == 0 || size.checked_add(BASE).is_none() {
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
                BASE,
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
