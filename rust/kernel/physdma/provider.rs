// SPDX-License-Identifier: GPL-2.0

//! A range of a PCI device's memory that other devices may do DMA to: [`Provider`].
//!
//! There are two kinds of reference, because hardware goes when it likes and software does not:
//!
//! - A *weak* one, [`Provider`], keeps the object. A buffer, an open file, a dma-buf has it. It says
//!   nothing about whether the memory is still there; [`Provider::hold`] has its owner told when it
//!   goes.
//! - A *live* one, [`Live`], keeps the memory. A request has it from map to unmap, and so does a
//!   mapping for the CPU. Revocation waits for all of them. (A mapping for a program has none: it is
//!   taken away.)
//!
//! C header: [`include/linux/percpu-refcount.h`](srctree/include/linux/percpu-refcount.h)

use super::{
    counter::Counter,
    pool::Pool,
    route::{
        BarRange,
        Refused,
        Route,
        Topology, //
    },
    BvecKind,
    PhysBvec, //
};
use crate::{
    device::Device,
    io::PhysAddr,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        rcu,
        Arc,
        ArcBorrow,
        Mutex,
        PercpuRef,
        PercpuRefGuard, //
    },
    xarray::{
        AllocKind,
        XArray, //
    }, //
};

/// One client and one provider: the route between them.
pub(super) struct Attachment {
    pub(super) client: Arc<dyn Topology>,
    /// The route, and its length in hops.
    pub(super) route: Result<(Route, u32), Refused>,
    /// Requests that were refused because there is no route.
    refused: Atomic<u64>,
    /// Live references that were taken, and that were given back.
    taken: Counter,
    given: Counter,
}

/// An [`Attachment`], and what is in flight on it.
pub(super) type Attached = PercpuRef<Attachment>;

impl Attachment {
    fn new(client: Arc<dyn Topology>, range: &BarRange) -> Result<Arc<Attached>> {
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

    /// Counts a request that was refused; the first time, the log says why there is no route.
    #[cold]
    pub(super) fn refuse(&self, memory: &BarRange) {
        if let (Err(refused), 0) = (self.route, self.refused.fetch_add(1, Relaxed)) {
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
}

/// Keeps a provider's memory from being revoked.
///
/// Dropping it does not sleep, and may be done in hard interrupt context. As long as it is
/// forgotten revocation waits.
pub struct Live(PercpuRefGuard<Attachment>);

impl Live {
    /// Takes a live reference, unless the memory has been revoked.
    #[inline]
    pub(super) fn new(attached: &Attached, guard: &rcu::Guard) -> Option<Self> {
        let live = attached.try_get_live_rcu(guard)?;
        live.taken.inc();
        Some(Self(live))
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

/// What there is between a provider and a client, for an operator.
pub struct Traffic<'a> {
    /// The client's device; [`None`] is the CPU, or a client that is not a device.
    pub client: Option<&'a Device>,
    /// The route and its length in hops, or why there is none.
    pub route: Result<(Route, u32), Refused>,
    /// Requests, or mappings for the CPU, that have had the memory.
    pub mapped: u64,
    /// Those of them that have it now. While it changes, this is about right.
    pub in_flight: u64,
    /// Requests that were refused because there is no route.
    pub refused: u64,
}

impl Attachment {
    fn traffic(&self) -> Traffic<'_> {
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

/// Someone who keeps a weak reference for long, and wants to know when the memory goes.
pub trait Holder: Send + Sync {
    /// Who it is, for messages.
    fn name(&self) -> &CStr;

    /// The memory is being revoked: let go of every [`Live`] reference, and map it no more.
    ///
    /// Called once, when no new mapping can be made any more. May sleep, but must not wait for
    /// whoever revokes.
    fn revoke(&self);
}

/// The CPU, as a client.
struct Cpu;

impl Topology for Cpu {
    fn device(&self) -> Option<&Device> {
        None
    }

    fn route(&self, _memory: &BarRange) -> Result<(Route, u32), Refused> {
        Ok((Route::HostBridge, 0))
    }
}

#[pin_data]
pub(super) struct Inner {
    pub(super) range: BarRange,
    /// Whether the memory has a `struct page` for each of its pages.
    pub(super) has_pages: bool,
    /// Whether a program has ever mapped it.
    pub(super) is_mapped: Atomic<bool>,
    pub(super) cpu: Arc<Attached>,
    /// All clients have numbers less than this.
    clients: Atomic<usize>,
    /// By the number of the client. Changed under the registry's lock only.
    #[pin]
    attachments: XArray<Arc<Attached>>,
    #[pin]
    state: Mutex<State>,
}

struct State {
    revoked: bool,
    holders: KVec<Arc<dyn Holder>>,
    pool: Option<Arc<Pool>>,
}

impl Inner {
    pub(super) fn new(range: BarRange, has_pages: bool) -> Result<Arc<Self>> {
        let cpu = Attachment::new(Arc::new(Cpu, GFP_KERNEL)?, &range)?;
        Arc::pin_init(
            try_pin_init!(Self {
                range,
                has_pages,
                is_mapped: Atomic::new(false),
                cpu,
                clients: Atomic::new(0),
                attachments <- XArray::new(AllocKind::Alloc),
                state <- new_mutex!(State {
                    revoked: false,
                    holders: KVec::new(),
                    pool: None,
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// Makes `client` number `id` of this provider, which finds out about its route.
    ///
    /// The registry's lock is held. A provider that is being revoked takes no clients.
    pub(super) fn attach(&self, id: usize, client: Arc<dyn Topology>) -> Result {
        if self.state.lock().revoked {
            return Ok(());
        }
        let attachment = Attachment::new(client, &self.range)?;
        self.attachments.lock().store(id, attachment, GFP_KERNEL)?;
        self.clients
            .store(self.clients.load(Relaxed).max(id + 1), Relaxed);
        Ok(())
    }

    /// Client number `id` is going, and has mapped nothing any more. The registry's lock is held.
    pub(super) fn detach(&self, id: usize) -> Option<Arc<Attached>> {
        self.attachments.lock().remove(id)
    }

    /// The attachment of client number `id`, for that client.
    ///
    /// # Safety
    ///
    /// The client does not go while `guard` lives.
    #[inline]
    pub(super) unsafe fn attachment<'g>(
        this: ArcBorrow<'g, Self>,
        id: usize,
        guard: &'g rcu::Guard,
    ) -> Option<ArcBorrow<'g, Attached>> {
        // SAFETY: `this` is borrowed for as long.
        let this = unsafe { &*core::ptr::from_ref(&*this) };
        // SAFETY: It is removed when the client goes, which it does not by the safety requirements;
        // or a grace period after the provider was revoked.
        unsafe { this.attachments.load_rcu(id, guard) }
    }

    /// The attachment of client number `id`; number [`None`] is the CPU.
    pub(super) fn attachment_of(&self, id: Option<usize>) -> Option<Arc<Attached>> {
        match id {
            None => Some(self.cpu.clone()),
            Some(id) => self.attachments.lock().get(id).map(Arc::from),
        }
    }

    /// The sum of the hops from clients to the memory; [`None`] if one of them has no route, or the
    /// memory is going. The registry's lock is held.
    pub(super) fn hops(&self, mut clients: impl Iterator<Item = usize>) -> Option<u32> {
        if self.state.lock().revoked {
            return None;
        }
        clients.try_fold(0u32, |sum, id| {
            let (_, hops) = self.attachment_of(Some(id))?.route.ok()?;
            Some(sum.saturating_add(hops))
        })
    }

    /// The first step of a revocation: from here on nobody gets a live reference, and no client
    /// attaches. The registry's lock is held; there are fewer than `clients` of them.
    pub(super) fn kill(&self, clients: usize) {
        self.state.lock().revoked = true;
        self.cpu.kill();
        for id in 0..clients {
            if let Some(attachment) = self.attachment_of(Some(id)) {
                attachment.kill();
            }
        }
    }

    /// The second step: tells all holders.
    pub(super) fn tell_holders(&self) {
        loop {
            // Not under the lock: a holder may look at the provider.
            let next = self.state.lock().holders.pop();
            let Some(holder) = next else {
                return;
            };
            holder.revoke();
        }
    }
}

/// A range of a PCI device's memory: a weak reference.
///
/// Keeps the object, not the hardware: see the [module's documentation](self). Dropping the last one
/// may sleep.
#[derive(Clone)]
pub struct Provider(pub(super) Arc<Inner>);

impl Provider {
    /// What memory it is.
    pub fn range(&self) -> &BarRange {
        &self.0.range
    }

    /// Whether it has gone, or is going.
    pub fn is_revoked(&self) -> bool {
        self.0.state.lock().revoked
    }

    /// The memory at `offset` bytes within the range.
    ///
    /// # Errors
    ///
    /// `EINVAL`: it is empty, or reaches beyond the end of the range.
    pub fn bvec(&self, offset: u64, len: u32) -> Result<PhysBvec> {
        let first = PhysAddr::try_from(offset)
            .ok()
            .and_then(|offset| self.0.range.first.checked_add(offset))
            .ok_or(EINVAL)?;
        let piece = PhysBvec::new(first, len).ok_or(EINVAL)?;
        if piece.last() > self.0.range.last {
            return Err(EINVAL);
        }
        Ok(piece.with_kind(BvecKind::Provider))
    }

    /// Has `holder` told when the memory goes, for as long as the returned value lives. May sleep.
    ///
    /// # Errors
    ///
    /// - `ENODEV`: it has gone.
    /// - `ENOMEM`.
    pub fn hold(&self, holder: Arc<dyn Holder>) -> Result<Hold> {
        let mut state = self.0.state.lock();
        if state.revoked {
            return Err(ENODEV);
        }
        state.holders.push(holder.clone(), GFP_KERNEL)?;
        Ok(Hold {
            provider: self.clone(),
            holder,
        })
    }

    /// A part of the memory that nobody else gets from here, in whole pages. May sleep.
    ///
    /// Who has it, has it until it is dropped; that the memory itself is still there only a mapping
    /// can tell.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `bytes` is zero or larger than the range; or the range is less than a page.
    /// - `ENODEV`: the memory has gone.
    /// - `EOPNOTSUPP`: a C driver registered it, which hands it out by itself:
    ///   `pci_alloc_p2pmem()`.
    /// - `ENOMEM`: no part of that size is left.
    pub fn alloc(&self, bytes: u32) -> Result<Allocation> {
        if self.0.has_pages {
            return Err(EOPNOTSUPP);
        }
        self.bvec(0, bytes)?;
        let pool = {
            let mut state = self.0.state.lock();
            if state.revoked {
                return Err(ENODEV);
            }
            match &state.pool {
                Some(pool) => pool.clone(),
                None => {
                    let range = &self.0.range;
                    let size = usize::try_from(range.last - range.first)?.saturating_add(1);
                    let pool = Arc::new(Pool::new(size)?, GFP_KERNEL)?;
                    state.pool = Some(pool.clone());
                    pool
                }
            }
        };
        let offset = pool.alloc(bytes as usize).ok_or(ENOMEM)?;
        match self.bvec(offset as u64, bytes) {
            Ok(memory) => Ok(Allocation {
                provider: self.clone(),
                pool,
                offset,
                memory,
            }),
            Err(e) => {
                // SAFETY: It was just allocated.
                unsafe { pool.free(offset, bytes as usize) };
                Err(e)
            }
        }
    }

    /// Whether the memory has a `struct page` for each of its pages.
    pub fn has_pages(&self) -> bool {
        self.0.has_pages
    }

    /// Calls `f` with the name of everyone who is to be told when the memory goes. `f` must not
    /// use the provider.
    pub fn for_each_holder(&self, mut f: impl FnMut(&CStr)) {
        for holder in &self.0.state.lock().holders {
            f(holder.name());
        }
    }

    /// What the CPU has mapped.
    pub fn cpu_traffic(&self) -> (u64, u64) {
        let traffic = self.0.cpu.traffic();
        (traffic.mapped, traffic.in_flight)
    }

    /// Calls `f` with what there is between the memory and each client, whether it was ever used
    /// or not. May sleep.
    pub fn for_each_client(&self, mut f: impl FnMut(Traffic<'_>)) {
        for id in 0..self.0.clients.load(Relaxed) {
            if let Some(attachment) = self.0.attachment_of(Some(id)) {
                f(attachment.traffic());
            }
        }
    }

    /// Keeps the memory for the CPU.
    pub(super) fn live_for_cpu(&self) -> Result<Live> {
        Live::new(&self.0.cpu, &rcu::read_lock()).ok_or(ENODEV)
    }
}

/// Says that a [`Holder`] wants to be told.
pub struct Hold {
    provider: Provider,
    holder: Arc<dyn Holder>,
}

impl Hold {
    /// What is held.
    pub fn provider(&self) -> &Provider {
        &self.provider
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.provider.0.state.lock();
        let ours = |other: &Arc<dyn Holder>| Arc::ptr_eq(other, &self.holder);
        if let Some(at) = state.holders.iter().position(ours) {
            // It keeps the order of the others, which says who came first.
            let _ = state.holders.remove(at);
        }
    }
}

/// A part of a provider's memory, from [`Provider::alloc`].
pub struct Allocation {
    provider: Provider,
    pool: Arc<Pool>,
    offset: usize,
    memory: PhysBvec,
}

impl Allocation {
    /// Whose memory it is.
    pub fn provider(&self) -> &Provider {
        &self.provider
    }

    /// Where it is.
    pub fn bvec(&self) -> PhysBvec {
        self.memory
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: This is what `Provider::alloc` got from this pool; it is given back once.
        unsafe { self.pool.free(self.offset, self.memory.len() as usize) }
    }
}
