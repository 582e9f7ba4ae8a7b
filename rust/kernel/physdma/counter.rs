// SPDX-License-Identifier: GPL-2.0

//! What is counted on the I/O path: [`Counter`], which each CPU counts for itself.
//!
//! C header: [`include/linux/percpu.h`](srctree/include/linux/percpu.h)

use crate::{
    bindings,
    prelude::*, //
};
use core::ptr::NonNull;

/// A number that is counted up often, on all CPUs, and read rarely.
///
/// # Invariants
///
/// It owns per-CPU memory for a `u64`, from `alloc_percpu()`.
pub(super) struct Counter(NonNull<u64>);

// SAFETY: Per-CPU memory may be used from any thread.
unsafe impl Send for Counter {}

// SAFETY: Each CPU changes its own part, in one instruction or with interrupts off.
unsafe impl Sync for Counter {}

impl Counter {
    /// A counter at zero. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new() -> Result<Self> {
        // SAFETY: No requirements.
        let counter = unsafe { bindings::physdma_counter_alloc() };
        // INVARIANT: Just allocated.
        Ok(Self(NonNull::new(counter).ok_or(ENOMEM)?))
    }

    /// Counts one more. May be called in any context.
    #[inline]
    pub(super) fn inc(&self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::physdma_counter_inc(self.0.as_ptr()) }
    }

    /// What has been counted.
    pub(super) fn sum(&self) -> u64 {
        // SAFETY: By the type invariants.
        unsafe { bindings::physdma_counter_sum(self.0.as_ptr()) }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; nobody counts any more.
        unsafe { bindings::physdma_counter_free(self.0.as_ptr()) }
    }
}
