// SPDX-License-Identifier: GPL-2.0

//! What there is between one client and one provider: the route, what has been counted, and what is
//! in flight.
//!
//! C header: [`include/linux/percpu-refcount.h`](srctree/include/linux/percpu-refcount.h)

use super::{
    counter::Counter,
    route::{
        BarRange,
        Refused,
        Route,
        Topology, //
    },
    trace, //
};
use crate::{
    device::Device,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        rcu,
        Arc,
        PercpuRef,
        PercpuRefGuard, //
    }, //
};

/// One client and one provider: the route between them.
pub(super) struct Attachment {
    pub(super) client: Arc<dyn Topology>,
    /// The route, and its length in hops.
    pub(super) route: Result<(Route, u32), Refused>,
    /// Requests, or buffers to be premapped, that were refused because there is no route.
    refused: Atomic<u64>,
    /// Live references that were taken, and that were given back.
    taken: Counter,
    given: Counter,
}

/// An [`Attachment`], and what is in flight on it.
pub(super) type Attached = PercpuRef<Attachment>;

impl Attachment {
    /// Has `client` find out how it reaches `range`. May sleep.
    pub(super) fn new(client: Arc<dyn Topology>, range: &BarRange) -> Result<Arc<Attached>> {
        let route = client.route(range);
        let attachment = Self {
            client,
            route,
            refused: Atomic::new(0),
            taken: Counter::new()?,
            given: Counter::new()?,
        };
        Arc::pin_init(PercpuRef::new(attachment, GFP_KERNEL), GFP_KERNEL)
    }

    /// Counts a request whose memory is kept by another live reference than one of this.
    #[inline]
    pub(super) fn pass(&self) {
        self.taken.inc();
        self.given.inc();
    }

    /// Counts what was refused; the first time, the log says why there is no route.
    #[cold]
    pub(super) fn refuse(&self, memory: &BarRange) {
        let Err(refused) = self.route else {
            return;
        };
        trace::refuse(self.client.device(), memory, refused);
        if self.refused.fetch_add(1, Relaxed) == 0 {
            match self.client.device() {
                Some(client) => dev_warn!(
                    client,
                    "no DMA to memory of {}: {}\n",
                    memory.dev.address(),
                    refused
                ),
                None => dev_warn!(memory.dev, "no DMA to its memory: {}\n", refused),
            }
        }
    }

    /// Waits until the client cannot reach the memory by what it has unmapped: in lazy mode an IOMMU
    /// forgets that later. The client is one still. May sleep.
    pub(super) fn flush(&self) {
        if let Ok((Route::HostBridge, _)) = self.route {
            self.client.flush();
        }
    }

    /// What there has been, for an operator.
    pub(super) fn traffic(&self) -> Traffic<'_> {
        let given = self.given.sum();
        let taken = self.taken.sum();
        Traffic {
            client: self.client.device(),
            route: self.route,
            mapped: taken,
            in_flight: taken.saturating_sub(given),
            refused: self.refused.load(Relaxed),
        }
    }
}

/// Keeps a provider's memory from being revoked.
///
/// Dropping it does not sleep, and may be done in hard interrupt context. As long as it is
/// forgotten revocation waits.
///
/// # Examples
///
/// A [`Mapping`](super::Mapping) and a [`Window`](super::Window) have one each; nobody else sees
/// it.
pub struct Live(PercpuRefGuard<Attachment>);

impl Live {
    /// Takes a live reference, unless the memory has been revoked.
    #[inline]
    pub(super) fn new(attached: &Attached, guard: &rcu::Guard) -> Option<Self> {
        let live = attached.try_get_live_rcu(guard)?;
        live.taken.inc();
        Some(Self(live))
    }

    /// Lets nobody drop it but [`Live::recover`].
    #[inline]
    pub(super) fn forget(self) {
        core::mem::forget(self);
    }

    /// A live reference that was forgotten.
    ///
    /// # Safety
    ///
    /// It is one of `attached`, and is recovered once.
    #[inline]
    pub(super) unsafe fn recover(attached: &Attached) -> Self {
        // SAFETY: By the safety requirements.
        Self(unsafe { attached.recover() })
    }

    /// Whether it is a reference of `attachment`.
    #[inline]
    pub(super) fn is_of(&self, attachment: &Attachment) -> bool {
        core::ptr::eq(&*self.0, attachment)
    }
}

impl Drop for Live {
    #[inline]
    fn drop(&mut self) {
        self.0.given.inc();
    }
}

/// What there is between a provider and a client, for an operator: from
/// [`Provider::for_each_client`] and [`Provider::cpu_traffic`].
///
/// # Examples
///
/// ```
/// use kernel::physdma::Traffic;
///
/// fn show(traffic: Traffic<'_>) {
///     match traffic.route {
///         Ok((route, hops)) => pr_debug!("{route:?}, {hops} hops, {} mapped\n", traffic.mapped),
///         Err(reason) => pr_debug!("refused {} times: {reason}\n", traffic.refused),
///     }
/// }
/// ```
///
/// [`Provider::for_each_client`]: super::Provider::for_each_client
/// [`Provider::cpu_traffic`]: super::Provider::cpu_traffic
pub struct Traffic<'a> {
    /// The client's device; [`None`] is the CPU, or a client that is not a device.
    pub client: Option<&'a Device>,
    /// The route and its length in hops, or why there is none.
    pub route: Result<(Route, u32), Refused>,
    /// Requests, or mappings for the CPU, that have had the memory.
    pub mapped: u64,
    /// Those of them that have it now. While it changes, this is about right.
    pub in_flight: u64,
    /// Requests, or buffers to be premapped, that were refused because there is no route.
    pub refused: u64,
}

/// The CPU, or a bio on its way to whatever device, as a client.
pub(super) struct Cpu;

impl Topology for Cpu {
    fn device(&self) -> Option<&Device> {
        None
    }

    fn route(&self, _memory: &BarRange) -> Result<(Route, u32), Refused> {
        Ok((Route::HostBridge, 0))
    }
}
