// SPDX-License-Identifier: GPL-2.0

//! A range of a PCI device's memory that other devices may do DMA to: [`Provider`].
//!
//! There are two kinds of reference, because hardware goes when it likes and software does not:
//!
//! - A *weak* one, [`Provider`], keeps the object. A buffer, an open file, a dma-buf has it. It
//!   says nothing about whether the memory is still there; [`Provider::hold`] has its owner told
//!   when it goes.
//! - A *live* one, [`Live`], keeps the memory. A request has it from map to unmap, and so does a
//!   mapping for the CPU. Revocation waits for all of them. (A mapping for a program has none: it
//!   is taken away.)
//!
//! C source: [`drivers/pci/p2pdma.c`](srctree/drivers/pci/p2pdma.c)

use super::{
    attachment::{
        Attached,
        Attachment,
        Cpu,
        Live,
        Traffic, //
    },
    pool::Pool,
    route::{
        BarRange,
        Topology, //
    },
    table::RcuTable,
    BvecKind,
    PhysBvec, //
};
use crate::{
    bindings,
    io::PhysAddr,
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        atomic::Atomic,
        rcu,
        Arc,
        ArcBorrow,
        CondVar,
        Mutex, //
    }, //
};

/// Someone who keeps a weak reference for long, and wants to know when the memory goes.
///
/// # Examples
///
/// ```
/// use kernel::{
///     new_mutex,
///     physdma::{Hold, Holder, Provider, Window},
///     sync::{Arc, Mutex},
/// };
///
/// /// Keeps a part of the memory mapped for the CPU.
/// #[pin_data]
/// struct Console {
///     #[pin]
///     window: Mutex<Option<Window>>,
/// }
///
/// impl Holder for Console {
///     fn name(&self) -> &CStr {
///         c"console"
///     }
///
///     fn revoke(&self) {
///         *self.window.lock() = None;
///     }
/// }
///
/// fn open(provider: &Provider) -> Result<(Arc<Console>, Hold)> {
///     let console = Arc::pin_init(
///         pin_init!(Console { window <- new_mutex!(None) }),
///         GFP_KERNEL,
///     )?;
///     // From here on it is told when the memory goes; after that there is no window any more.
///     let hold = provider.hold(console.clone())?;
///     *console.window.lock() = Some(provider.window(0, 0x1000)?);
///     Ok((console, hold))
/// }
///
/// /// Who else is told.
/// fn show(hold: &Hold) {
///     hold.provider().for_each_holder(|name| pr_debug!("{name:?}\n"));
/// }
/// ```
pub trait Holder: Send + Sync {
    /// Who it is, for messages. Called with a lock held: it must not ask the provider anything.
    fn name(&self) -> &CStr;

    /// The memory is being revoked: let go of every [`Live`] reference, and map it no more.
    ///
    /// Called once, when no new mapping can be made any more. May sleep, but must not wait for
    /// whoever revokes.
    fn revoke(&self);
}

#[pin_data]
pub(super) struct Inner {
    pub(super) range: BarRange,
    /// Whether the memory has a `struct page` for each of its pages.
    pub(super) has_pages: bool,
    /// Whether a program has ever mapped it.
    pub(super) is_mapped: Atomic<bool>,
    pub(super) cpu: Arc<Attached>,
    /// Bios that have been submitted.
    pub(super) bios: Arc<Attached>,
    /// The same, as C knows it.
    pub(super) p2p: P2p,
    /// By the number of the client. Changed under the registry's lock, as long as it is there.
    #[pin]
    attachments: RcuTable<Attached>,
    #[pin]
    state: Mutex<State>,
    /// When a holder has been told.
    #[pin]
    told: CondVar,
}

/// What `blk-mq-dma.c` makes bus addresses by.
pub(super) struct P2p(pub(super) bindings::p2pdma_provider);

// SAFETY: It is read, and nothing else.
unsafe impl Send for P2p {}
// SAFETY: As above.
unsafe impl Sync for P2p {}

struct State {
    revoked: bool,
    holders: KVec<Arc<dyn Holder>>,
    /// Who is being told, and by which task.
    telling: Option<(*const (), *mut bindings::task_struct)>,
    pool: Option<Arc<Pool>>,
}

// SAFETY: The pointers are compared, and nothing else.
unsafe impl Send for State {}

impl Inner {
    pub(super) fn new(range: BarRange, has_pages: bool) -> Result<Arc<Self>> {
        let cpu = Attachment::new(Arc::new(Cpu, GFP_KERNEL)?, &range)?;
        let bios = Attachment::new(Arc::new(Cpu, GFP_KERNEL)?, &range)?;
        let p2p = P2p(bindings::p2pdma_provider {
            owner: range.dev.as_ref().as_raw(),
            bus_offset: range.bus_offset,
        });
        Arc::pin_init(
            try_pin_init!(Self {
                range,
                has_pages,
                is_mapped: Atomic::new(false),
                cpu,
                bios,
                p2p,
                attachments <- RcuTable::new(),
                state <- new_mutex!(State {
                    revoked: false,
                    holders: KVec::new(),
                    telling: None,
                    pool: None,
                }),
                told <- new_condvar!(),
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
        self.attachments
            .store(id, Attachment::new(client, &self.range)?)
    }

    /// Client number `id` is going, or the provider is: nothing is mapped any more. The registry's
    /// lock is held, or the provider is not in the registry any more.
    ///
    /// Dropping what is returned waits: without the lock, unless a client could not be made.
    pub(super) fn detach(&self, id: usize) -> Option<Arc<Attached>> {
        self.attachments.remove(id)
    }

    /// The attachment of client number `id`, for that client.
    ///
    /// # Safety
    ///
    /// It is that client's number, which does not go while `guard` lives.
    #[inline]
    pub(super) unsafe fn attachment<'g>(
        this: ArcBorrow<'g, Self>,
        id: usize,
        guard: &'g rcu::Guard,
    ) -> Option<ArcBorrow<'g, Attached>> {
        // SAFETY: `this` is borrowed for as long.
        let this = unsafe { &*core::ptr::from_ref(&*this) };
        // SAFETY: What was stored and removed of the number was so before there was the client,
        // with the registry locked, or before the provider could be found; or the provider could
        // not be found any more then. It is removed when the client goes, which it does not by the
        // safety requirements; or a grace period after the provider was revoked.
        unsafe { this.attachments.load(id, guard) }
    }

    /// The attachment of client number `id`; number [`None`] is the CPU.
    pub(super) fn attachment_of(&self, id: Option<usize>) -> Option<Arc<Attached>> {
        match id {
            None => Some(self.cpu.clone()),
            Some(id) => self.attachments.get(id),
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
        self.bios.kill();
        for id in 0..clients {
            if let Some(attachment) = self.attachment_of(Some(id)) {
                attachment.kill();
            }
        }
    }

    /// The second step: tells all holders.
    pub(super) fn tell_holders(&self) {
        loop {
            let holder = {
                let mut state = self.state.lock();
                // One at a time, also where two are revoking.
                while state.telling.is_some() {
                    self.told.wait(&mut state);
                }
                let Some(holder) = state.holders.pop() else {
                    return;
                };
                state.telling = Some((Arc::as_ptr(&holder).cast(), current!().as_ptr()));
                holder
            };
            // Not under the lock: a holder may look at the provider.
            holder.revoke();
            drop(holder);
            self.state.lock().telling = None;
            self.told.notify_all();
        }
    }
}

/// A range of a PCI device's memory: a weak reference.
///
/// Keeps the object, not the hardware: see the [module's documentation](self). Dropping the last
/// one may sleep.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{PhysBvec, Provider};
///
/// /// The last page of the memory, as long as it is there.
/// fn last_page(provider: &Provider) -> Result<PhysBvec> {
///     if provider.is_revoked() {
///         return Err(ENODEV);
///     }
///     let range = provider.range();
///     let bytes = range.last() - range.first() + 1;
///     provider.bvec(bytes.checked_sub(0x1000).ok_or(EINVAL)?.into(), 0x1000)
/// }
/// ```
#[derive(Clone)]
pub struct Provider(pub(super) Arc<Inner>);

impl Provider {
    /// What memory it is.
    pub fn range(&self) -> &BarRange {
        &self.0.range
    }

    /// Whether it has gone, or is going. May sleep.
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

    /// A part of the memory that nobody else gets from here, from the start of a page on. May
    /// sleep.
    ///
    /// Nobody gets another part of the same page. Where the range does not start and end with a
    /// page, what there is of the first and the last one is not handed out.
    ///
    /// Who has it, has it until it is dropped; that the memory itself is still there only a mapping
    /// can tell.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `bytes` is zero or larger than the range; or there is no whole page in the
    ///   range.
    /// - `ENODEV`: the memory has gone.
    /// - `EOPNOTSUPP`: a C driver registered it, which hands it out by itself:
    ///   `pci_alloc_p2pmem()`.
    /// - `ENOMEM`: no part of that size is left.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::physdma::{Allocation, Provider};
    ///
    /// /// A queue in the memory, zeroed.
    /// fn queue(provider: &Provider) -> Result<Allocation> {
    ///     let queue = provider.alloc(0x1000)?;
    ///     let offset = queue.bvec().phys() - provider.range().first();
    ///     queue.provider().window(offset.into(), 0x1000)?.fill(0, 0x1000, 0)?;
    ///     Ok(queue)
    /// }
    ///
    /// /// Whether that can be tried: memory with pages is handed out by its driver.
    /// fn gives(provider: &Provider) -> bool {
    ///     !provider.has_pages() && !provider.is_revoked()
    /// }
    /// ```
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
                    let pool = Arc::new(Pool::new(&self.0.range)?, GFP_KERNEL)?;
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

    /// Calls `f` with the name of everyone who is to be told when the memory goes, whoever came
    /// first first. May sleep.
    ///
    /// None of them goes meanwhile: a lock is held, so that `f` must call nothing of this layer that
    /// may sleep.
    pub fn for_each_holder(&self, mut f: impl FnMut(&CStr)) {
        for holder in &self.0.state.lock().holders {
            f(holder.name());
        }
    }

    /// What the CPU has mapped.
    pub fn cpu_traffic(&self) -> Traffic<'_> {
        self.0.cpu.traffic()
    }

    /// What bios that are on their way have.
    pub fn bio_traffic(&self) -> Traffic<'_> {
        self.0.bios.traffic()
    }

    /// Calls `f` with what there is between the memory and each client, whether it was ever used
    /// or not. May sleep.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::physdma::Provider;
    ///
    /// /// How many requests have the memory now.
    /// fn in_flight(provider: &Provider) -> u64 {
    ///     let mut sum = provider.cpu_traffic().in_flight;
    ///     provider.for_each_client(|traffic| sum += traffic.in_flight);
    ///     sum
    /// }
    /// ```
    pub fn for_each_client(&self, mut f: impl FnMut(Traffic<'_>)) {
        for id in 0..self.0.attachments.room() {
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

/// Says that a [`Holder`] wants to be told, until it is dropped. From [`Provider::hold`].
///
/// Where the holder is just being told, dropping it waits until that is done. A holder that drops
/// it while it is told waits for nothing. May sleep.
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
        let inner = &self.provider.0;
        let mut state = inner.state.lock();
        let us = Arc::as_ptr(&self.holder).cast::<()>();
        while state
            .telling
            .is_some_and(|(who, by)| who == us && by != current!().as_ptr())
        {
            inner.told.wait(&mut state);
        }
        let ours = |other: &Arc<dyn Holder>| Arc::ptr_eq(other, &self.holder);
        if let Some(at) = state.holders.iter().position(ours) {
            // It keeps the order of the others, which says who came first.
            let _ = state.holders.remove(at);
        }
    }
}

/// A part of a provider's memory, from [`Provider::alloc`], which has an example. Given back when
/// it is dropped. Dropping it may sleep.
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
