// SPDX-License-Identifier: GPL-2.0

//! The layer for C: the functions of `include/linux/physdma.h`, where they are documented.
//!
//! - A `struct physdma_provider *` is a counted reference to an [`Inner`]. That of whoever
//!   registered it is also the duty to unregister it.
//! - A `struct physdma_client *` is an owned [`Client`].
//! - A `struct physdma_mapping` has room for a [`Slot`].
//!
//! Null and errnos in place of an object are told from it; what else C may pass is said of each
//! function.
//!
//! C header: [`include/linux/physdma.h`](srctree/include/linux/physdma.h)

use super::{
    provider::{
        Inner,
        Provider, //
    },
    registry,
    Client,
    Limits,
    Mapping,
    Miss,
    Mixed,
    Origin,
    Part,
    PhysBvec,
    Raw,
    Route,
    Source, //
};
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    error::from_err_ptr,
    fmt::Write,
    io::PhysAddr,
    macros::export,
    pci,
    prelude::*,
    str::Formatter,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};
use core::{
    mem::{
        offset_of,
        MaybeUninit, //
    },
    ptr::NonNull, //
};

/// A `struct physdma_mapping`.
///
/// # Invariants
///
/// If `made` is not zero, `mapping` is initialised.
#[repr(C)]
struct Slot {
    /// Zero in memory that is all zeroes, of which C makes an empty mapping.
    made: u64,
    mapping: MaybeUninit<Mapping<'static>>,
}

const _: () = assert!(
    size_of::<Slot>() <= size_of::<bindings::physdma_mapping>()
        && align_of::<Slot>() <= align_of::<bindings::physdma_mapping>()
);

impl Slot {
    /// The mapping, if there ever was one.
    #[inline]
    fn get(&mut self) -> Option<&mut Mapping<'static>> {
        // SAFETY: By the type invariants it is initialised then.
        (self.made != 0).then(|| unsafe { self.mapping.assume_init_mut() })
    }

    /// An empty mapping.
    ///
    /// # Errors
    ///
    /// `EBUSY`: something is mapped.
    #[inline]
    fn empty(&mut self) -> Result<&mut Mapping<'static>> {
        if self.made == 0 {
            self.mapping.write(Mapping::default());
            // INVARIANT: Just initialised.
            self.made = 1;
        }
        match self.get() {
            Some(mapping) if mapping.is_empty() => Ok(mapping),
            _ => Err(EBUSY),
        }
    }
}

// A `PhysBvec` is this with invariants.
const _: () = assert!(
    size_of::<PhysBvec>() == size_of::<bindings::physdma_bvec>()
        && align_of::<PhysBvec>() <= align_of::<bindings::physdma_bvec>()
        && offset_of!(bindings::physdma_bvec, len) == size_of::<PhysAddr>()
);

/// The list that C passes.
///
/// # Errors
///
/// `EINVAL`: there is none; or a piece is empty, or wraps.
///
/// # Safety
///
/// Unless it is null, there are `nr` pieces at `bvecs`, which do not change for `'a`.
#[inline]
unsafe fn pieces<'a>(bvecs: *const bindings::physdma_bvec, nr: c_uint) -> Result<&'a [PhysBvec]> {
    if bvecs.is_null() {
        return Err(EINVAL);
    }
    // SAFETY: By the safety requirements.
    let list = unsafe { core::slice::from_raw_parts(bvecs, nr as usize) };
    if list
        .iter()
        .any(|piece| PhysBvec::new(piece.phys, piece.len).is_none())
    {
        return Err(EINVAL);
    }
    // SAFETY: By the safety requirements; it has the same two fields, and the invariants were
    // checked just now.
    Ok(unsafe { core::slice::from_raw_parts(bvecs.cast::<PhysBvec>(), nr as usize) })
}

/// What C passes; [`None`] for null and for an errno.
#[inline]
fn given<T, U>(pointer: *mut T) -> Option<NonNull<U>> {
    NonNull::new(from_err_ptr(pointer).ok()?).map(NonNull::cast)
}

/// What C passed as a provider, borrowed.
///
/// # Safety
///
/// `provider` is null, an errno, or a reference that is kept for `'a`.
#[inline]
unsafe fn borrow<'a>(provider: *mut bindings::physdma_provider) -> Option<ArcBorrow<'a, Inner>> {
    // SAFETY: By the safety requirements it comes from `give`, and lives for `'a`.
    given::<_, Inner>(provider).map(|inner| unsafe { ArcBorrow::from_raw(inner.as_ptr()) })
}

/// What C passed as a provider, given back.
///
/// # Safety
///
/// `provider` is null, an errno, or a reference that is not used any more.
unsafe fn take(provider: *mut bindings::physdma_provider) -> Option<Arc<Inner>> {
    // SAFETY: By the safety requirements it comes from `give`, and is taken back once.
    given::<_, Inner>(provider).map(|inner| unsafe { Arc::from_raw(inner.as_ptr()) })
}

/// A reference for C, or an errno.
fn give(provider: Result<Arc<Inner>>) -> *mut bindings::physdma_provider {
    match provider {
        Ok(inner) => Arc::into_raw(inner).cast_mut().cast(),
        Err(e) => e.to_ptr(),
    }
}

/// Registers memory.
///
/// # Safety
///
/// `pdev` is null, an errno, or a device to which a driver is bound, and stays bound until the
/// range was revoked.
unsafe fn register(
    pdev: *mut bindings::pci_dev,
    bar: c_int,
    offset: u64,
    size: u64,
    has_pages: bool,
) -> Result<Arc<Inner>> {
    let dev = given::<_, pci::Device<Bound>>(pdev).ok_or(EINVAL)?;
    // SAFETY: By the safety requirements.
    let dev = unsafe { dev.as_ref() };
    registry::register(
        dev,
        u32::try_from(bar).map_err(|_| EINVAL)?,
        offset,
        size,
        has_pages,
    )
}

/// Opens memory of a PCI device.
///
/// # Safety
///
/// `pdev` is null, an errno, or a device to which a driver is bound, and stays bound until the
/// returned reference, if it is one, was given to [`physdma_unregister`].
#[export]
unsafe extern "C" fn physdma_register(
    pdev: *mut bindings::pci_dev,
    bar: c_int,
    offset: u64,
    size: u64,
) -> *mut bindings::physdma_provider {
    // SAFETY: By the safety requirements.
    give(unsafe { register(pdev, bar, offset, size, false) })
}

/// Enters memory of a PCI device that has pages.
///
/// # Safety
///
/// As for [`physdma_register`].
#[export]
unsafe extern "C" fn physdma_register_pages(
    pdev: *mut bindings::pci_dev,
    bar: c_int,
    offset: u64,
    size: u64,
) -> *mut bindings::physdma_provider {
    // SAFETY: By the safety requirements.
    give(unsafe { register(pdev, bar, offset, size, true) })
}

/// The first two steps of [`physdma_unregister`].
///
/// # Safety
///
/// `provider` is null, an errno, or a reference.
#[export]
unsafe extern "C" fn physdma_revoke(provider: *mut bindings::physdma_provider) {
    // SAFETY: By the safety requirements.
    if let Some(inner) = unsafe { borrow(provider) } {
        registry::kill(&inner);
        inner.tell_holders();
    }
}

/// Takes memory away from all devices.
///
/// # Safety
///
/// `provider` is null, an errno, or the reference that [`physdma_register`] or
/// [`physdma_register_pages`] returned, and is not used any more.
#[export]
unsafe extern "C" fn physdma_unregister(provider: *mut bindings::physdma_provider) {
    // SAFETY: By the safety requirements.
    if let Some(inner) = unsafe { take(provider) } {
        registry::revoke(&inner);
    }
}

/// Whose memory it is.
///
/// # Safety
///
/// None: it is unsafe because all functions are that C declares.
#[export]
unsafe extern "C" fn physdma_provider_of(
    phys: bindings::phys_addr_t,
    len: u32,
) -> *mut bindings::physdma_provider {
    match PhysBvec::new(phys, len)
        .ok_or(EINVAL)
        .and_then(registry::provider_of)
    {
        Ok(None) => core::ptr::null_mut(),
        Ok(Some(Provider(inner))) => give(Ok(inner)),
        Err(e) => give(Err(e)),
    }
}

/// Takes one more reference.
///
/// # Safety
///
/// `provider` is null, an errno, or a reference.
#[export]
unsafe extern "C" fn physdma_provider_get(
    provider: *mut bindings::physdma_provider,
) -> *mut bindings::physdma_provider {
    // SAFETY: By the safety requirements.
    if let Some(inner) = unsafe { borrow(provider) } {
        give(Ok(inner.into()));
    }
    provider
}

/// Gives a reference back.
///
/// # Safety
///
/// `provider` is null, an errno, or a reference that is not used any more, and not that of whoever
/// registered it.
#[export]
unsafe extern "C" fn physdma_provider_put(provider: *mut bindings::physdma_provider) {
    // SAFETY: By the safety requirements.
    drop(unsafe { take(provider) });
}

/// What memory it is.
///
/// # Safety
///
/// - `provider` is null, an errno, or a reference.
/// - `range` is null, or valid for writes.
#[export]
unsafe extern "C" fn physdma_provider_range(
    provider: *const bindings::physdma_provider,
    range: *mut bindings::physdma_range,
) {
    // SAFETY: By the safety requirements.
    if let (Some(inner), Some(to)) = unsafe { (borrow(provider.cast_mut()), range.as_mut()) } {
        let range = &inner.range;
        to.pdev = core::ptr::from_ref(range.device()).cast_mut().cast();
        to.first = range.first();
        to.last = range.last();
        to.offset = range.start();
        to.bar = range.bar();
    }
}

/// Makes a device a client.
///
/// # Safety
///
/// - `dev` is null, an errno, or a device to which a driver is bound, and stays bound until the
///   returned client, if it is one, was given to [`physdma_client_destroy`].
/// - `limits` is null, or valid for reads.
#[export]
unsafe extern "C" fn physdma_client_create(
    dev: *mut bindings::device,
    limits: *const bindings::physdma_limits,
) -> *mut bindings::physdma_client {
    let create = || -> Result<KBox<Client<'static>>> {
        let dev = given::<_, Device<Bound>>(dev).ok_or(EINVAL)?;
        // SAFETY: By the safety requirements.
        let limits = unsafe { limits.as_ref() }.ok_or(EINVAL)?;
        if limits.max_segment_bytes == 0 {
            return Err(EINVAL);
        }
        let limits = Limits {
            max_segment_bytes: limits.max_segment_bytes,
            boundary_mask: limits.boundary_mask,
            max_segments: limits.max_segments,
        };
        // SAFETY: By the safety requirements it is bound as long as there is the client.
        let dev = unsafe { &*dev.as_ptr() };
        Ok(KBox::new(Client::new(dev, limits)?, GFP_KERNEL)?)
    };
    match create() {
        Ok(client) => KBox::into_raw(client).cast(),
        Err(e) => e.to_ptr(),
    }
}

/// What C passed as a client.
///
/// # Safety
///
/// `client` is null, an errno, or not destroyed for `'a`.
#[inline]
unsafe fn client<'a>(client: *mut bindings::physdma_client) -> Option<&'a Client<'static>> {
    // SAFETY: By the safety requirements.
    given::<_, Client<'static>>(client).map(|client| unsafe { &*client.as_ptr() })
}

/// The device maps nothing more.
///
/// # Safety
///
/// `client` is null, an errno, or what [`physdma_client_create`] returned, and is not used any
/// more; all that it mapped has been unmapped.
#[export]
unsafe extern "C" fn physdma_client_destroy(client: *mut bindings::physdma_client) {
    if let Some(client) = given::<_, Client<'static>>(client) {
        // SAFETY: By the safety requirements it comes from `KBox::into_raw`, and nobody uses it.
        drop(unsafe { KBox::from_raw(client.as_ptr()) });
    }
}

/// How a client reaches memory.
///
/// # Safety
///
/// - `client` is null, an errno, or a client; `provider` is null, an errno, or a reference.
/// - `route` is null, or valid for writes.
/// - `why` is null, or `size` bytes there are valid for writes.
#[export]
unsafe extern "C" fn physdma_route(
    client: *mut bindings::physdma_client,
    provider: *mut bindings::physdma_provider,
    route: *mut bindings::physdma_route,
    why: *mut c_char,
    size: usize,
) -> c_int {
    let mut why = match size.checked_sub(1) {
        // The string's end is not written again.
        // SAFETY: By the safety requirements.
        Some(size) if !why.is_null() => unsafe {
            core::ptr::write_bytes(why, 0, size + 1);
            Formatter::new(core::slice::from_raw_parts_mut(why.cast(), size))
        },
        _ => Formatter::new(&mut []),
    };
    // SAFETY: By the safety requirements.
    let (client, inner, to) = unsafe { (self::client(client), borrow(provider), route.as_mut()) };
    let (Some(client), Some(inner), Some(to)) = (client, inner, to) else {
        return EINVAL.to_errno();
    };

    let (kind, bus_offset) = match client.route(&Provider(inner.into())) {
        Ok(Route::HostBridge) => (bindings::physdma_route_kind_PHYSDMA_ROUTE_HOST_BRIDGE, 0),
        Ok(Route::Bus { offset }) => (bindings::physdma_route_kind_PHYSDMA_ROUTE_BUS, offset),
        Ok(Route::Internal { offset, .. }) => {
            (bindings::physdma_route_kind_PHYSDMA_ROUTE_INTERNAL, offset)
        }
        Err(refused) => {
            // What does not fit is left out.
            let _ = why.write_fmt(fmt!("{refused}"));
            return Error::from(refused).to_errno();
        }
    };
    to.kind = kind;
    to.bus_offset = bus_offset;
    0
}

/// Maps what `source` describes, and passes the segments to `f`. Returns how many there were.
#[inline]
fn map<S: Source>(
    client: &'static Client<'static>,
    mapping: &mut Mapping<'static>,
    source: S,
    dir: DataDirection,
    mut f: impl FnMut(&bindings::physdma_segment) -> Result,
) -> Result<u16> {
    let mut segments = client.map(mapping, source, dir)?;
    while let Some(segment) = segments.next()? {
        let (origin, bar, bar_offset) = match segment.origin {
            Origin::Mapped => (bindings::physdma_origin_PHYSDMA_ORIGIN_MAPPED, 0, 0),
            Origin::Bus => (bindings::physdma_origin_PHYSDMA_ORIGIN_BUS, 0, 0),
            Origin::Internal { bar, offset } => (
                bindings::physdma_origin_PHYSDMA_ORIGIN_INTERNAL,
                bar,
                offset,
            ),
        };
        let segment = bindings::physdma_segment {
            dma: segment.dma,
            bar_offset,
            len: segment.len,
            origin,
            bar,
        };
        if let Err(e) = f(&segment) {
            mapping.unmap();
            return Err(e);
        }
    }
    Ok(segments.count())
}

/// Makes memory visible to a device.
///
/// # Safety
///
/// - `client` is null, an errno, or a client, and is not destroyed while something is mapped.
/// - `mapping` is null, all zeroes, or was passed here before and not written to since; it is not
///   used by anybody else at the same time.
/// - `bvecs` is null, or valid for reads of `nr` elements.
/// - With [`bindings::physdma_miss_PHYSDMA_MISS_RAM`], what no provider has registered is RAM,
///   which stays allocated until it is unmapped, and which the CPU leaves alone where the device
///   writes.
/// - `fn_` may be called with `data`.
#[export]
unsafe extern "C" fn physdma_map(
    client: *mut bindings::physdma_client,
    mapping: *mut bindings::physdma_mapping,
    bvecs: *const bindings::physdma_bvec,
    nr: c_uint,
    dir: bindings::dma_data_direction,
    miss: bindings::physdma_miss,
    fn_: bindings::physdma_segment_fn,
    data: *mut c_void,
) -> c_int {
    let map = || -> Result<u16> {
        // SAFETY: By the safety requirements it outlives what is mapped.
        let client = unsafe { self::client(client) }.ok_or(EINVAL)?;
        let f = fn_.ok_or(EINVAL)?;
        let f = |segment: &bindings::physdma_segment| {
            // SAFETY: By the safety requirements.
            match unsafe { f(segment, data) } {
                0 => Ok(()),
                errno if errno < 0 => Err(Error::from_errno(errno)),
                _ => Err(EINVAL),
            }
        };
        let dir = match dir {
            bindings::dma_data_direction::DMA_BIDIRECTIONAL => DataDirection::Bidirectional,
            bindings::dma_data_direction::DMA_TO_DEVICE => DataDirection::ToDevice,
            bindings::dma_data_direction::DMA_FROM_DEVICE => DataDirection::FromDevice,
            _ => return Err(EINVAL),
        };
        let miss = match miss {
            bindings::physdma_miss_PHYSDMA_MISS_REFUSE => Miss::Refuse,
            bindings::physdma_miss_PHYSDMA_MISS_RAM => Miss::Ram,
            _ => return Err(EINVAL),
        };
        // SAFETY: By the safety requirements.
        let list = unsafe { pieces(bvecs, nr) }?;
        // SAFETY: By the safety requirements it is null, or a `Slot` with its invariants: zeroes
        // are one, too.
        let slot = unsafe { mapping.cast::<Slot>().as_mut() }.ok_or(EINVAL)?;
        let mapping = slot.empty()?;

        match miss {
            Miss::Refuse => self::map(client, mapping, Raw::new(list)?, dir, f),
            Miss::Ram => {
                let parts = [Part::Ram(list)];
                // SAFETY: By the safety requirements.
                let source = unsafe { Mixed::new(&parts) }?;
                self::map(client, mapping, source, dir, f)
            }
        }
    };
    match map() {
        Ok(count) => count.into(),
        Err(e) => e.to_errno(),
    }
}

/// Takes memory away from a device.
///
/// # Safety
///
/// `mapping` is as for [`physdma_map`]. The device has stopped using what is mapped.
#[export]
unsafe extern "C" fn physdma_unmap(mapping: *mut bindings::physdma_mapping) {
    // SAFETY: By the safety requirements it is null, or a `Slot` with its invariants.
    let slot = unsafe { mapping.cast::<Slot>().as_mut() };
    if let Some(mapping) = slot.and_then(Slot::get) {
        mapping.unmap();
    }
}

/// Keeps memory of a provider from being revoked.
///
/// # Safety
///
/// `first` and `last` are null, or valid for writes.
#[export]
unsafe extern "C" fn physdma_live_get(
    phys: bindings::phys_addr_t,
    first: *mut bindings::phys_addr_t,
    last: *mut bindings::phys_addr_t,
) -> c_int {
    // SAFETY: By the safety requirements.
    let (Some(to_first), Some(to_last)) = (unsafe { first.as_mut() }, unsafe { last.as_mut() })
    else {
        return EINVAL.to_errno();
    };
    match registry::keep_for_io(phys) {
        Ok((first, last)) => {
            (*to_first, *to_last) = (first, last);
            0
        }
        Err(e) => e.to_errno(),
    }
}

/// Lets memory of a provider go.
///
/// # Safety
///
/// [`physdma_live_get`] returned 0 for `phys`, once for each time that this is called.
#[export]
unsafe extern "C" fn physdma_live_put(phys: bindings::phys_addr_t) {
    // SAFETY: By the safety requirements.
    unsafe { registry::let_go(phys) };
}

/// How a client is to map memory of a provider.
///
/// # Safety
///
/// - `client` is null, an errno, or a client.
/// - `state` is null, or valid for writes. The provider in it is there as long as what
///   [`physdma_live_get`] keeps, which is the memory at `phys`.
#[export]
unsafe extern "C" fn physdma_map_state(
    client: *mut bindings::physdma_client,
    phys: bindings::phys_addr_t,
    state: *mut bindings::pci_p2pdma_map_state,
) -> c_int {
    // SAFETY: By the safety requirements.
    let (client, to) = unsafe { (self::client(client), state.as_mut()) };
    let (Some(client), Some(to)) = (client, to) else {
        return EINVAL.to_errno();
    };
    match client.way_to(phys) {
        Ok((Route::HostBridge, provider)) => {
            to.map = bindings::pci_p2pdma_map_type_PCI_P2PDMA_MAP_THRU_HOST_BRIDGE;
            to.mem = provider;
        }
        Ok((Route::Bus { .. } | Route::Internal { .. }, provider)) => {
            to.map = bindings::pci_p2pdma_map_type_PCI_P2PDMA_MAP_BUS_ADDR;
            to.mem = provider;
        }
        Err(e) => return e.to_errno(),
    }
    0
}
