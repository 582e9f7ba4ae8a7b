// SPDX-License-Identifier: GPL-2.0

//! Whose memory a physical address is: the registry of all providers.
//!
//! It is read for every piece of memory that may not be RAM, and written when a driver binds or
//! goes. Readers take no lock and store nothing: the ranges are in a maple tree in RCU mode, behind
//! a static key that is off while there is no provider, and behind the span of all ranges.
//!
//! Every client is known here too, so that its route to every provider is found out when either of
//! the two appears, where it is allowed to take time, and not when a request is on its way.
//!
//! C header: [`include/linux/maple_tree.h`](srctree/include/linux/maple_tree.h)

use super::{
    attachment::{
        Attached,
        Live, //
    },
    provider::{
        Inner,
        Provider, //
    },
    route::{
        BarRange,
        Route,
        Topology, //
    },
    trace,
    PhysBvec, //
};
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    error::to_result,
    io::PhysAddr,
    jump_label::{
        static_branch_unlikely,
        StaticKeyFalse, //
    },
    maple_tree::{
        InsertErrorKind,
        MapleTreeRcu, //
    },
    new_mutex,
    pci,
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
        SetOnce, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    }, //
};
use core::mem::ManuallyDrop;

/// On while there is a provider.
#[no_mangle]
pub(super) static physdma_providers: StaticKeyFalse = StaticKeyFalse::new();

/// Made when the first provider or client appears; never goes.
static REGISTRY: SetOnce<Pin<KBox<Registry>>> = SetOnce::new();

/// Each time that revocation has waited this long in vain, it says for whom.
const PATIENCE_MS: u32 = 10_000;

/// The span of all ranges: no provider has memory outside. Changed with the members locked.
static SPAN_FIRST: Atomic<usize> = Atomic::new(usize::MAX);
static SPAN_LAST: Atomic<usize> = Atomic::new(0);

#[pin_data]
struct Registry {
    #[pin]
    ranges: MapleTreeRcu<Arc<Inner>>,
    #[pin]
    members: Mutex<Members>,
}

struct Members {
    /// All that are in the tree.
    providers: KVec<Arc<Inner>>,
    /// By their numbers.
    clients: KVec<Slot>,
}

enum Slot {
    Free,
    Client(Arc<dyn Topology>),
    /// It gets no more attachments, but still has some.
    Leaving(Arc<dyn Topology>),
}

impl Members {
    /// One more range, from `first` to `last`.
    fn widen_span(&self, first: usize, last: usize) {
        SPAN_FIRST.store(SPAN_FIRST.load(Relaxed).min(first), Relaxed);
        SPAN_LAST.store(SPAN_LAST.load(Relaxed).max(last), Relaxed);
    }

    /// Sets the span of all ranges.
    fn set_span(&self) {
        let (mut first, mut last) = (usize::MAX, 0);
        for inner in &self.providers {
            if let Some((from, to)) = index(&inner.range) {
                first = first.min(from);
                last = last.max(to);
            }
        }
        SPAN_FIRST.store(first, Relaxed);
        SPAN_LAST.store(last, Relaxed);
    }
}

/// Where a range is in the tree; [`None`] where addresses do not fit an index.
fn index(range: &BarRange) -> Option<(usize, usize)> {
    Some((
        usize::try_from(range.first).ok()?,
        usize::try_from(range.last).ok()?,
    ))
}

fn registry() -> Result<&'static Registry> {
    if let Some(registry) = REGISTRY.as_ref() {
        return Ok(registry);
    }
    let new = KBox::pin_init(
        try_pin_init!(Registry {
            ranges <- MapleTreeRcu::new(),
            members <- new_mutex!(Members {
                providers: KVec::new(),
                clients: KVec::new(),
            }),
        }),
        GFP_KERNEL,
    )?;
    // Somebody else may have been faster, and not be done yet.
    let _ = REGISTRY.populate(new);
    loop {
        if let Some(registry) = REGISTRY.as_ref() {
            return Ok(registry);
        }
        fsleep(Delta::from_micros(10));
    }
}

/// Whether there is any provider.
#[inline]
pub(super) fn any() -> bool {
    static_branch_unlikely!(physdma_providers)
}

/// Whether a part of `piece` may be a provider's. May be called in any context.
#[inline]
pub(super) fn may_own(piece: PhysBvec) -> bool {
    // Where an address does not fit, nothing can be registered.
    any()
        && usize::try_from(piece.last()).is_ok_and(|last| last >= SPAN_FIRST.load(Relaxed))
        && usize::try_from(piece.phys()).is_ok_and(|first| first <= SPAN_LAST.load(Relaxed))
}

/// Whose memory `piece` begins with, and how many of its bytes are; never none.
///
/// [`None`]: no provider's. May be called in any context.
#[inline]
pub(super) fn find(piece: PhysBvec, guard: &rcu::Guard) -> (Option<ArcBorrow<'_, Inner>>, u32) {
    if !may_own(piece) {
        return (None, piece.len());
    }
    search(piece, guard)
}

#[inline]
fn search(piece: PhysBvec, guard: &rcu::Guard) -> (Option<ArcBorrow<'_, Inner>>, u32) {
    let (Some(registry), Ok(first)) = (REGISTRY.as_ref(), usize::try_from(piece.phys())) else {
        // Nothing can be registered there.
        return (None, piece.len());
    };
    match registry.ranges.load(first, guard) {
        Some(inner) => {
            // CAST: At most the length of the piece.
            let len = (inner.range.last.min(piece.last()) - piece.phys()) as u32 + 1;
            (Some(inner), len)
        }
        None => (None, before_next(registry, piece, guard)),
    }
}

/// How many bytes of `piece`, the first of which is nobody's, lie before a range.
#[cold]
fn before_next(registry: &Registry, piece: PhysBvec, guard: &rcu::Guard) -> u32 {
    let (Ok(first), Ok(last)) = (usize::try_from(piece.phys()), usize::try_from(piece.last()))
    else {
        return piece.len();
    };
    match registry.ranges.iter(first..=last, guard).next() {
        // CAST: At most the length of the piece. The range came just now if it begins there.
        Some((_, inner)) if piece.phys() < inner.range.first => {
            (inner.range.first - piece.phys()) as u32
        }
        _ => piece.len(),
    }
}

/// Like [`find`], for whoever wants to keep the provider, and is allowed to sleep.
pub(super) fn owner_of(piece: PhysBvec) -> (Option<Provider>, u32) {
    let guard = rcu::read_lock();
    let (owner, len) = find(piece, &guard);
    (owner.map(|inner| Provider(inner.into())), len)
}

/// Keeps the memory of the provider that has `phys` from being revoked, for a bio. Returns the
/// range. May be called in any context.
///
/// # Errors
///
/// - `EFAULT`: it is no provider's, or one's that hands its memory out by its pages.
/// - `ENODEV`: it is being revoked.
pub(super) fn keep_for_io(phys: PhysAddr) -> Result<(PhysAddr, PhysAddr)> {
    let byte = PhysBvec::new(phys, 1).ok_or(EFAULT)?;
    let guard = rcu::read_lock();
    match find(byte, &guard) {
        (Some(inner), _) if !inner.has_pages => {
            Live::new(&inner.bios, &guard).ok_or(ENODEV)?.forget();
            Ok((inner.range.first, inner.range.last))
        }
        _ => Err(EFAULT),
    }
}

/// The bio has ended. May be called in any context.
///
/// # Safety
///
/// [`keep_for_io`] returned the range that `phys` is in, and this is called once for that.
pub(super) unsafe fn let_go(phys: PhysAddr) {
    let guard = rcu::read_lock();
    // The range is there as long as it is kept.
    if let Some((Some(inner), _)) = PhysBvec::new(phys, 1).map(|byte| find(byte, &guard)) {
        // SAFETY: By the safety requirements.
        drop(unsafe { Live::recover(&inner.bios) });
    }
}

/// How client number `id` reaches the memory at `phys`, and whose it is, as C knows it. May be
/// called in any context.
///
/// # Errors
///
/// - `EFAULT`: it is no provider's.
/// - `ENODEV`: the client came when the memory was being revoked.
/// - `EINVAL`: there is no route.
///
/// # Safety
///
/// The client does not go meanwhile.
pub(super) unsafe fn way_to(
    id: usize,
    phys: PhysAddr,
) -> Result<(Route, *mut bindings::p2pdma_provider)> {
    let byte = PhysBvec::new(phys, 1).ok_or(EFAULT)?;
    let guard = rcu::read_lock();
    let (Some(inner), _) = find(byte, &guard) else {
        return Err(EFAULT);
    };
    // SAFETY: By the safety requirements.
    let attachment = unsafe { Inner::attachment(inner, id, &guard) }.ok_or(ENODEV)?;
    match attachment.route {
        Ok((route, _)) => {
            attachment.pass();
            Ok((route, core::ptr::from_ref(&inner.p2p.0).cast_mut()))
        }
        Err(refused) => {
            attachment.refuse(&inner.range);
            Err(refused.into())
        }
    }
}

/// The provider to which all of `piece` belongs; [`None`] if it is no provider's memory.
///
/// May be called in any context; what it returns is dropped where it is allowed to sleep.
///
/// # Errors
///
/// `EFAULT`: a part of it only is a provider's.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{provider_of, PhysBvec};
///
/// // The first page is no PCI device's.
/// let piece = PhysBvec::new(0, 0x1000).ok_or(EINVAL)?;
/// assert!(provider_of(piece)?.is_none());
/// # Ok::<(), Error>(())
/// ```
#[inline]
pub fn provider_of(piece: PhysBvec) -> Result<Option<Provider>> {
    // What there is usually, which costs a no-op or a few instructions.
    if !may_own(piece) {
        return Ok(None);
    }
    whole_owner_of(piece)
}

fn whole_owner_of(piece: PhysBvec) -> Result<Option<Provider>> {
    let guard = rcu::read_lock();
    match find(piece, &guard) {
        // Before there is a reference: dropping the last one sleeps.
        (_, len) if len != piece.len() => Err(EFAULT),
        (owner, _) => Ok(owner.map(|inner| Provider(inner.into()))),
    }
}

/// All providers, those that are being revoked included. May sleep.
///
/// # Errors
///
/// `ENOMEM`.
///
/// # Examples
///
/// ```
/// use kernel::physdma::providers;
///
/// for provider in providers()? {
///     let range = provider.range();
///     pr_debug!("{:#x}-{:#x}\n", range.first(), range.last());
/// }
/// # Ok::<(), Error>(())
/// ```
pub fn providers() -> Result<KVec<Provider>> {
    let mut list = KVec::new();
    if let Some(registry) = REGISTRY.as_ref() {
        for inner in &registry.members.lock().providers {
            list.push(Provider(inner.clone()), GFP_KERNEL)?;
        }
    }
    Ok(list)
}

/// The provider with the smallest sum of hops from the members `ids`. May sleep.
pub(super) fn nearest(ids: impl ExactSizeIterator<Item = usize> + Clone) -> Option<Provider> {
    if ids.len() == 0 {
        return None;
    }
    let members = REGISTRY.as_ref()?.members.lock();
    let mut nearest = None;
    for inner in &members.providers {
        let Some(hops) = inner.hops(ids.clone()) else {
            continue;
        };
        if nearest.is_none_or(|(least, _)| hops < least) {
            nearest = Some((hops, inner));
        }
    }
    nearest.map(|(_, inner)| Provider(inner.clone()))
}

/// Enters a range. Its clients know their routes when this returns. May sleep.
fn enter(range: BarRange, has_pages: bool) -> Result<Arc<Inner>> {
    let (first, last) = index(&range).ok_or(EOVERFLOW)?;
    let registry = registry()?;
    let inner = Inner::new(range, has_pages)?;

    let mut members = registry.members.lock();
    members.providers.reserve(1, GFP_KERNEL)?;
    for (id, slot) in members.clients.iter().enumerate() {
        if let Slot::Client(client) = slot {
            inner.attach(id, client.clone())?;
        }
    }
    registry
        .ranges
        .insert_range(first..=last, inner.clone(), GFP_KERNEL)
        .map_err(|e| match e.cause {
            InsertErrorKind::Occupied => EBUSY,
            InsertErrorKind::AllocError(_) => ENOMEM,
            InsertErrorKind::InvalidRequest => EINVAL,
        })?;
    members.providers.push(inner.clone(), GFP_KERNEL)?;
    members.widen_span(first, last);
    drop(members);

    physdma_providers.inc();
    trace::register(&inner.range, inner.has_pages);
    Ok(inner)
}

/// Opens `len` bytes from `start` on of BAR `bar` of `dev` to other devices. May sleep.
///
/// See [`Registration::new`].
pub(super) fn register(
    dev: &pci::Device<Bound>,
    bar: u32,
    start: u64,
    len: u64,
    has_pages: bool,
) -> Result<Arc<Inner>> {
    BarRange::new(dev, bar, start, len)
        .and_then(|range| enter(range, has_pages))
        .inspect_err(|e| {
            dev_err!(
                dev,
                "cannot open {:#x} bytes at {:#x} of BAR {} to other devices: {:?}\n",
                len,
                start,
                bar,
                e
            );
        })
}

/// The first step of [`revoke()`]: from here on new mappings get `ENODEV`, and the range stays
/// taken. Returns how many clients there can be. Sleeps.
pub(super) fn kill(inner: &Inner) -> usize {
    let Some(registry) = REGISTRY.as_ref() else {
        return 0;
    };
    let members = registry.members.lock();
    inner.kill(members.clients.len());
    members.clients.len()
}

/// Says whom revocation waits for.
#[cold]
fn warn_waiting(inner: &Inner, who: &CStr) {
    dev_warn!(
        inner.range.dev,
        "memory {:#x}-{:#x} is revoked, but waits for {}\n",
        inner.range.first,
        inner.range.last,
        who
    );
}

/// Waits until nothing is in flight on `attached`, which has been killed. Says now and then for
/// whom: the client, or where that is not a device, `who`. Sleeps.
fn wait_for(inner: &Inner, attached: &Attached, who: &CStr) {
    while !attached.wait_timeout(msecs_to_jiffies(PATIENCE_MS)) {
        warn_waiting(inner, attached.client.device().map_or(who, Device::name));
    }
}

/// The same for bios, which do not say what disk they are on their way to: where their drivers keep
/// a mapping, as Rust drivers do, the devices are among those that have the memory mapped, of which
/// there are at most `clients`.
fn wait_for_bios(inner: &Inner, clients: usize) {
    while !inner.bios.wait_timeout(msecs_to_jiffies(PATIENCE_MS)) {
        warn_waiting(inner, c"a bio");
        for attached in (0..clients).filter_map(|id| inner.attachment_of(Some(id))) {
            let traffic = attached.traffic();
            if let (Some(device), true) = (traffic.client, traffic.in_flight > 0) {
                warn_waiting(inner, device.name());
            }
        }
    }
}

/// Takes a range away from everybody. After it returns no device has an address of it. Sleeps.
pub(super) fn revoke(inner: &Arc<Inner>) {
    let Some(registry) = REGISTRY.as_ref() else {
        return;
    };

    trace::revoke(&inner.range, inner.has_pages);
    let clients = kill(inner);
    inner.tell_holders();

    wait_for(inner, &inner.cpu, c"the CPU");
    wait_for_bios(inner, clients);
    for id in 0..clients {
        // A client that leaves is found until it has nothing mapped any more.
        let Some(attachment) = inner.attachment_of(Some(id)) else {
            continue;
        };
        wait_for(inner, &attachment, c"a client");
        // A device that is in the list, and cannot go while it is locked, is bound.
        let members = registry.members.lock();
        match members.clients.get(id) {
            Some(Slot::Client(client) | Slot::Leaving(client))
                if Arc::ptr_eq(client, &attachment.client) =>
            {
                attachment.flush()
            }
            // It flushed when it left.
            _ => (),
        }
    }

    // No fault maps it for a program any more.
    #[cfg(CONFIG_MMU)]
    inner.unmap_programs();

    let erased = {
        let mut members = registry.members.lock();
        if let Some(at) = members.providers.iter().position(|p| Arc::ptr_eq(p, inner)) {
            let _ = members.providers.remove(at);
        }
        members.set_span();
        index(&inner.range).and_then(|(first, _)| registry.ranges.erase(first))
    };
    physdma_providers.dec();
    // Waits for whoever looks at it still.
    drop(erased);

    // Whoever keeps the object does not keep its clients. None comes any more, and those who go do
    // not find it.
    for id in 0..clients {
        drop(inner.detach(id));
    }
    trace::revoked(&inner.range, inner.has_pages);
}

/// A device that has routes to all providers.
///
/// Dropping it takes the routes away; nothing must be mapped by way of it any more. Sleeps.
pub(super) struct Member {
    id: usize,
}

impl Member {
    /// Makes a device a member. It knows its routes when this returns. May sleep.
    pub(super) fn new(topology: Arc<dyn Topology>) -> Result<Self> {
        let registry = registry()?;
        let mut members = registry.members.lock();

        let free = |slot: &Slot| matches!(slot, Slot::Free);
        let id = match members.clients.iter().position(free) {
            Some(id) => id,
            None => {
                members.clients.push(Slot::Free, GFP_KERNEL)?;
                members.clients.len() - 1
            }
        };
        for inner in &members.providers {
            if let Err(e) = inner.attach(id, topology.clone()) {
                // Nobody has used them.
                for inner in &members.providers {
                    drop(inner.detach(id));
                }
                return Err(e);
            }
        }
        members.clients[id] = Slot::Client(topology);
        Ok(Self { id })
    }

    /// The member's number, unique among those that live.
    pub(super) fn id(&self) -> usize {
        self.id
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let Some(registry) = REGISTRY.as_ref() else {
            return;
        };
        if let Some(slot) = registry.members.lock().clients.get_mut(self.id) {
            if let Slot::Client(client) = slot {
                *slot = Slot::Leaving(client.clone());
            }
        }
        loop {
            let next = {
                let members = registry.members.lock();
                members.providers.iter().find_map(|p| {
                    let attachment = p.attachment_of(Some(self.id))?;
                    Some((p.clone(), attachment))
                })
            };
            let Some((inner, attachment)) = next else {
                break;
            };
            attachment.kill();
            while !attachment.wait_timeout(msecs_to_jiffies(PATIENCE_MS)) {
                if let Some(client) = attachment.client.device() {
                    dev_warn!(client, "goes, but has memory of a provider mapped\n");
                }
            }
            // Whoever revokes the memory later does not find it any more.
            attachment.flush();
            // Not before: whoever revokes the memory waits for what it finds.
            let detached = {
                let _members = registry.members.lock();
                inner.detach(self.id)
            };
            drop(detached);
        }
        if let Some(slot) = registry.members.lock().clients.get_mut(self.id) {
            *slot = Slot::Free;
        }
    }
}

/// The memory of a PCI device, open to the DMA of other devices until this is dropped.
///
/// Dropping it *revokes* the memory: new mappings fail with `ENODEV`, all [`Holder`]s are told, and
/// it waits until every request that has the memory mapped has completed, and every CPU mapping is
/// gone. Whom it waits for long it names in the log. After that no device has an address of the
/// range. A driver that maps its own memory drains its queues before, or it waits for itself. May
/// sleep, and must not be called with a lock held that a client's recovery needs.
///
/// Whoever finds the memory may write to it, by a device or by the CPU: it must hold nothing that
/// the driver trusts.
///
/// It belongs into the driver's data, where it is dropped in the order that the driver wants. One
/// that is forgotten is revoked with the device's resources, after the driver was unbound.
///
/// [`Holder`]: super::Holder
///
/// # Examples
///
/// ```
/// use kernel::{device::Bound, pci, physdma::Registration};
///
/// /// What a driver keeps while it is bound.
/// struct Data<'a> {
///     memory: Registration<'a>,
/// }
///
/// /// Opens all of BAR 2 to other devices.
/// fn open(dev: &pci::Device<Bound>) -> Result<Data<'_>> {
///     let size = dev.resource_len(2)?;
///     let memory = Registration::new(dev, 2, 0, size)?;
///     dev_dbg!(dev, "open from {:#x} on\n", memory.provider().range().first());
///     Ok(Data { memory })
/// }
/// ```
///
/// # Invariants
///
/// `dev` has an action [`Registration::revoke`] with `inner`, and a reference to it.
pub struct Registration<'a> {
    /// The reference is the action's, so that nothing is lost with a registration that is.
    inner: ManuallyDrop<Arc<Inner>>,
    dev: &'a pci::Device<Bound>,
}

impl<'a> Registration<'a> {
    /// Opens `len` bytes from `start` on of BAR `bar` of `dev`. May sleep.
    ///
    /// What it costs does not depend on `len`.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: that BAR is not one of memory; the range is empty, wraps, or is not within the
    ///   BAR; or it overlaps System RAM.
    /// - `EBUSY`: it overlaps a range that is registered, or whose revocation has not ended.
    /// - `EOPNOTSUPP`: the kernel knows that the device's BARs cannot be mapped.
    /// - `EOVERFLOW`: the physical addresses do not fit a `usize`.
    /// - `ENOMEM`.
    pub fn new(dev: &'a pci::Device<Bound>, bar: u32, start: u64, len: u64) -> Result<Self> {
        register(dev, bar, start, len, false).and_then(|inner| Self::bind(dev, inner))
    }

    /// Leaves it to the device to revoke `inner`, if nobody else does.
    fn bind(dev: &'a pci::Device<Bound>, inner: Arc<Inner>) -> Result<Self> {
        let device: &Device = dev.as_ref();
        let inner = Arc::into_raw(inner);

        // SAFETY: `dev` is bound; the action gets the reference that it wants, once: at once where
        // this fails.
        to_result(unsafe {
            bindings::devm_add_action_or_reset(
                device.as_raw(),
                Some(Self::revoke),
                inner.cast_mut().cast(),
            )
        })?;
        Ok(Self {
            // SAFETY: It comes from `into_raw`. The action has the reference for as long as the
            // device is bound, which is `'a`, or until `drop` releases it; it is not given back
            // here.
            inner: ManuallyDrop::new(unsafe { Arc::from_raw(inner) }),
            // INVARIANT: Just added.
            dev,
        })
    }

    /// Revokes what `inner` is.
    ///
    /// # Safety
    ///
    /// `inner` comes from `Arc::into_raw`, and is not used any more.
    unsafe extern "C" fn revoke(inner: *mut c_void) {
        // SAFETY: By the safety requirements.
        revoke(&unsafe { Arc::from_raw(inner.cast::<Inner>()) });
    }

    /// A weak reference.
    pub fn provider(&self) -> Provider {
        Provider(Arc::clone(&self.inner))
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let device: &Device = self.dev.as_ref();
        let data = Arc::as_ptr(&self.inner).cast_mut().cast();

        // SAFETY: By the type invariants the device, which is bound, has this action.
        unsafe { bindings::devm_release_action(device.as_raw(), Some(Self::revoke), data) };
    }
}
