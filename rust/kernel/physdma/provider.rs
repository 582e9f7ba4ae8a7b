// SPDX-License-Identifier: GPL-2.0

//! A range of a PCI device's memory that other devices may do DMA to: [`Provider`].
//!
//! There are two kinds of reference, because hardware goes when it likes and software does not:
//!
//! - A *weak* one, [`Provider`], keeps the object. A buffer, an open file, a dma-buf has it. It says
//!   nothing about whether the memory is still there; [`Provider::hold`] has its owner told when it
//!   goes.
//! - A *live* one keeps the memory. A request has it from map to unmap, and so does a CPU mapping.
//!   Revocation waits for all of them.
//!
//! C header: [`include/linux/percpu-refcount.h`](srctree/include/linux/percpu-refcount.h)

use super::{
    route::{
        BarRange,
        Refused,
        Route,
        Topology, //
    },
    PhysBvec, //
};
use crate::{
    bindings,
    device::Device,
    io::PhysAddr,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        percpu_ref::PercpuRef,
        rcu,
        Arc,
        Mutex,
        SetOnce, //
    },
    xarray::{
        AllocKind,
        XArray, //
    }, //
};
use core::ptr::NonNull;

/// One client and one provider: the route between them, and what is in flight on it.
///
/// # Invariants
///
/// It is dropped when no [`Live`] refers to it any more: `live` has died.
#[pin_data]
pub(super) struct Attachment {
    pub(super) client: Arc<dyn Topology>,
    /// The route, and its length in hops.
    pub(super) route: Result<(Route, u32), Refused>,
    #[pin]
    live: PercpuRef,
}

impl Attachment {
    fn new(client: Arc<dyn Topology>, range: &BarRange) -> Result<Arc<Self>> {
        let route = client.route(range);
        Arc::pin_init(
            try_pin_init!(Self {
                client,
                route,
                live <- PercpuRef::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes a live reference, unless the memory has been revoked.
    #[inline]
    pub(super) fn try_live(&self, guard: &rcu::Guard) -> Option<Live> {
        // INVARIANT: The reference is the new object's.
        self.live
            .try_get_live_rcu(guard)
            .then(|| Live(NonNull::from(self)))
    }

    /// Lets nobody take a reference any more.
    pub(super) fn kill(&self) {
        self.live.kill();
    }

    /// Waits until the last reference is gone, for at most `jiffies`. Returns whether it is.
    pub(super) fn wait(&self, jiffies: crate::time::Jiffies) -> bool {
        self.live.wait_timeout(jiffies)
    }
}

/// A provider's memory stays while this lives.
///
/// Dropping it does not sleep and may be done in hard interrupt context.
///
/// # Invariants
///
/// Owns one reference of the attachment's `live`, and so the attachment is valid.
pub struct Live(NonNull<Attachment>);

// SAFETY: A reference count may be given back on any CPU, by any thread.
unsafe impl Send for Live {}

// SAFETY: A shared reference allows nothing.
unsafe impl Sync for Live {}

impl Drop for Live {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants the attachment is valid and one reference is ours.
        unsafe { self.0.as_ref().live.put() }
    }
}
