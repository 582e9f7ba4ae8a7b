// SPDX-License-Identifier: GPL-2.0

//! The side of the benchmark that calls kernel::physdma, for `bench.c` and `lookup.c`.

use core::{
    hint::black_box,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    block::mq::Request,
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    io::PhysAddr,
    page::{
        Page,
        PAGE_SIZE, //
    },
    pci,
    physdma::{
        provider_of,
        Client,
        Limits,
        Mapping,
        PhysBvec,
        Premapped,
        PremappedSlice,
        Raw,
        Registration,
        ReqBvecs,
        Source, //
    },
    prelude::*,
    sync::Arc, //
};

/// A client, and the place where a request's private data would hold its mapping.
pub struct Layer {
    // Declared, and thus dropped, before the client that it borrows.
    mapping: Mapping<'static>,
    client: Arc<Client<'static>>,
}

/// Makes a client of `dev`. Returns null on failure.
///
/// # Safety
///
/// `dev` is bound until `bench_layer_free` was called.
#[no_mangle]
pub unsafe extern "C" fn bench_layer_new(
    dev: *mut bindings::device,
    max_segments: u16,
) -> *mut Layer {
    // SAFETY: By the safety requirements.
    let dev: &'static Device<Bound> = unsafe { Device::from_raw(dev) };
    let limits = Limits {
        max_segment_bytes: u32::MAX,
        boundary_mask: u64::MAX,
        max_segments,
    };
    let layer = || -> Result<KBox<Layer>> {
        Ok(KBox::new(
            Layer {
                mapping: Mapping::default(),
                client: Arc::new(Client::new(dev, limits)?, GFP_KERNEL)?,
            },
            GFP_KERNEL,
        )?)
    };
    layer().map_or(core::ptr::null_mut(), KBox::into_raw)
}

/// The same client again, for another request. Returns null on failure.
///
/// # Safety
///
/// `layer` comes from `bench_layer_new`.
#[no_mangle]
pub unsafe extern "C" fn bench_layer_twin(layer: *mut Layer) -> *mut Layer {
    let twin = Layer {
        mapping: Mapping::default(),
        // SAFETY: By the safety requirements.
        client: unsafe { (*layer).client.clone() },
    };
    KBox::new(twin, GFP_KERNEL).map_or(core::ptr::null_mut(), KBox::into_raw)
}

/// Undoes `bench_layer_new` or `bench_layer_twin`.
///
/// # Safety
///
/// `layer` comes from there and is not used any more.
#[no_mangle]
pub unsafe extern "C" fn bench_layer_free(layer: *mut Layer) {
    // SAFETY: By the safety requirements.
    drop(unsafe { KBox::from_raw(layer) });
}

/// Maps `source` and walks its segments, as a driver does: one piece has a way of its own. Returns
/// their bytes, 0 on failure.
///
/// # Safety
///
/// `layer` comes from `bench_layer_new`; `count` is valid for writes.
#[inline(always)]
unsafe fn map(layer: *mut Layer, source: impl Source, count: *mut c_uint) -> usize {
    // SAFETY: By the safety requirements; the client lives as long as the layer, in which the
    // mapping that borrows it is dropped first.
    let (mapping, client) = unsafe {
        (
            &mut (*layer).mapping,
            &*core::ptr::from_ref::<Client<'static>>(&(*layer).client),
        )
    };
    let (segments, bytes) = match client.map_one(mapping, &source, DataDirection::FromDevice) {
        Ok(Some(only)) => (1, only.len as usize),
        Ok(None) => map_pieces(client, mapping, source),
        Err(_) => (0, 0),
    };
    // SAFETY: By the safety requirements.
    unsafe { *count = segments };
    bytes
}

/// Maps what is not known to be one piece. Returns how many segments it has, and their bytes.
#[inline(never)]
fn map_pieces<'c>(
    client: &'c Client<'c>,
    mapping: &mut Mapping<'c>,
    mut source: impl Source,
) -> (c_uint, usize) {
    let (mut count, mut bytes) = (0, 0);
    if let Ok(mut segments) = client.map(mapping, &mut source, DataDirection::FromDevice) {
        while let Ok(Some(segment)) = segments.next() {
            bytes += segment.len as usize;
            count += 1;
        }
    }
    (count, bytes)
}

/// Maps `rq` and walks its segments. Returns their bytes, 0 on failure.
///
/// # Safety
///
/// `layer` comes from `bench_layer_new`, and `bench_layer_unmap` is called before `rq` is freed;
/// `count` is valid for writes.
#[no_mangle]
pub unsafe extern "C" fn bench_layer_map(
    layer: *mut Layer,
    rq: *mut bindings::request,
    count: *mut c_uint,
) -> usize {
    // SAFETY: By the safety requirements.
    unsafe {
        let source = ReqBvecs::new(Request::from_raw(NonNull::new_unchecked(rq)));
        map(layer, source, count)
    }
}

/// The same for a list of pieces of which no page is known.
///
/// # Safety
///
/// As for `bench_layer_map`; `list` has `nr` pieces, none of them empty.
#[no_mangle]
pub unsafe extern "C" fn bench_layer_map_list(
    layer: *mut Layer,
    list: *const PhysBvec,
    nr: c_uint,
    count: *mut c_uint,
) -> usize {
    // SAFETY: By the safety requirements.
    let list = unsafe { core::slice::from_raw_parts(list, nr as usize) };
    match Raw::new(list) {
        // SAFETY: By the safety requirements.
        Ok(source) => unsafe { map(layer, source, count) },
        Err(_) => 0,
    }
}

/// Unmaps what `bench_layer_map` mapped.
///
/// # Safety
///
/// `layer` comes from `bench_layer_new`.
#[no_mangle]
pub unsafe extern "C" fn bench_layer_unmap(layer: *mut Layer) {
    // SAFETY: By the safety requirements.
    unsafe { (*layer).mapping.unmap() };
}

/// Bytes of what is kept for a request.
#[no_mangle]
pub extern "C" fn bench_layer_state() -> usize {
    size_of::<Mapping<'static>>()
}

/// A buffer that is mapped once, and the place where a request's private data would hold a slice.
pub struct Buffer {
    // Declared, and thus dropped, before the buffer.
    slice: Option<PremappedSlice<'static>>,
    premapped: Premapped<'static>,
}

/// Pages of which no two in a row are neighbours, as `scatter()` has them.
fn scattered(count: usize) -> Result<KVec<Page>> {
    let (mut pages, mut unfit) = (KVec::<Page>::new(), KVec::new());

    while pages.len() < count {
        let page = Page::alloc_page(GFP_KERNEL)?;
        match pages.last() {
            Some(last) if last.phys() + PAGE_SIZE as PhysAddr == page.phys() => {
                unfit.push(page, GFP_KERNEL)?
            }
            _ => pages.push(page, GFP_KERNEL)?,
        }
    }
    Ok(pages)
}

/// Maps `pages` scattered pages of RAM for many uses, or the memory of a provider from `phys` on.
/// Returns null on failure.
///
/// # Safety
///
/// `layer` comes from `bench_layer_new`, and is not freed before the buffer.
#[no_mangle]
pub unsafe extern "C" fn bench_buffer_new(
    layer: *mut Layer,
    phys: PhysAddr,
    pages: c_uint,
) -> *mut Buffer {
    // SAFETY: By the safety requirements; the client is dropped after the buffer.
    let client = unsafe { &*core::ptr::from_ref::<Client<'static>>(&(*layer).client) };
    let buffer = || -> Result<KBox<Buffer>> {
        let bytes = pages.checked_mul(0x1000).ok_or(EINVAL)?;
        let piece = PhysBvec::new(phys, bytes).ok_or(EINVAL)?;
        let premapped = if phys == 0 {
            client.premap(scattered(pages as usize)?, DataDirection::FromDevice)?
        } else {
            let provider = provider_of(piece)?.ok_or(ENODEV)?;
            // It is asked for from its first byte on.
            client.premap_provider(&provider, 0, bytes.into(), DataDirection::FromDevice)?
        };
        let slice = None;
        Ok(KBox::new(Buffer { slice, premapped }, GFP_KERNEL)?)
    };
    buffer().map_or(core::ptr::null_mut(), KBox::into_raw)
}

/// Undoes `bench_buffer_new`.
///
/// # Safety
///
/// `buffer` comes from there and is not used any more.
#[no_mangle]
pub unsafe extern "C" fn bench_buffer_free(buffer: *mut Buffer) {
    // SAFETY: By the safety requirements.
    drop(unsafe { KBox::from_raw(buffer) });
}

/// Does `times` times what a request of `len` bytes costs a driver: takes a slice into its private
/// data, has its first segment, and drops it. Returns the sum of the lengths.
///
/// # Safety
///
/// `buffer` comes from `bench_buffer_new`.
#[no_mangle]
pub unsafe extern "C" fn bench_buffer_use(buffer: *mut Buffer, len: u32, times: c_uint) -> u64 {
    // SAFETY: By the safety requirements.
    let buffer = unsafe { &mut *buffer };
    let mut sum = 0;
    for _ in 0..times {
        let buffer = black_box(&mut *buffer);
        let (offset, len) = (black_box(0), black_box(len));
        let Ok(slice) = buffer
            .premapped
            .slice(offset, len, DataDirection::FromDevice)
        else {
            return 0;
        };
        let slice = buffer.slice.insert(slice);
        if let Ok(Some(segment)) = slice.segments().next() {
            sum += u64::from(segment.len) + (black_box(segment.dma) & 1);
        }
        let buffer = black_box(&mut *buffer);
        buffer.slice = None;
    }
    sum
}

/// The same loop, but nothing is done with the buffer.
///
/// # Safety
///
/// `buffer` comes from `bench_buffer_new`.
#[no_mangle]
pub unsafe extern "C" fn bench_buffer_idle(buffer: *mut Buffer, len: u32, times: c_uint) -> u64 {
    // SAFETY: By the safety requirements.
    let buffer = unsafe { &mut *buffer };
    let mut sum = 0;
    for _ in 0..times {
        let buffer = black_box(&mut *buffer);
        let (offset, len) = (black_box(0u64), black_box(len));
        sum += u64::from(len) + (black_box(offset) & 1);
        black_box(&mut *buffer);
    }
    sum
}

/// Ranges of a device's memory that are registered.
pub struct Ranges {
    dev: &'static pci::Device<Bound>,
    list: KVec<Registration<'static>>,
}

/// Room for ranges of `pdev`. Returns null on failure.
///
/// # Safety
///
/// `pdev` is bound until `bench_ranges_free` was called.
#[no_mangle]
pub unsafe extern "C" fn bench_ranges_new(pdev: *mut bindings::pci_dev) -> *mut Ranges {
    let ranges = Ranges {
        // SAFETY: By the safety requirements.
        dev: unsafe { &*pdev.cast() },
        list: KVec::new(),
    };
    KBox::new(ranges, GFP_KERNEL).map_or(core::ptr::null_mut(), KBox::into_raw)
}

/// Registers one more range. Returns 0 or an errno.
///
/// # Safety
///
/// `ranges` comes from `bench_ranges_new`.
#[no_mangle]
pub unsafe extern "C" fn bench_ranges_add(
    ranges: *mut Ranges,
    bar: c_int,
    start: u64,
    len: u64,
) -> c_int {
    // SAFETY: By the safety requirements.
    let ranges = unsafe { &mut *ranges };
    let mut add = || -> Result {
        let range = Registration::new(ranges.dev, u32::try_from(bar)?, start, len)?;
        Ok(ranges.list.push(range, GFP_KERNEL)?)
    };
    add().map_or_else(Error::to_errno, |()| 0)
}

/// Takes all ranges back.
///
/// # Safety
///
/// `ranges` comes from `bench_ranges_new` and is not used any more.
#[no_mangle]
pub unsafe extern "C" fn bench_ranges_free(ranges: *mut Ranges) {
    // SAFETY: By the safety requirements.
    let mut ranges = unsafe { KBox::from_raw(ranges) };
    // The device finds what came last first.
    while ranges.list.pop().is_some() {}
}

/// Calls `f` with the first byte of one of `nr` places, `times` times, in no order. Returns how
/// often that was true.
#[inline(always)]
fn walk(base: PhysAddr, stride: u32, nr: u32, times: u32, f: impl Fn(PhysBvec) -> bool) -> u32 {
    let mut found = 0;
    for i in 0..times {
        let number = i.wrapping_mul(0x9e37_79b1) & (nr - 1);
        let at = base + PhysAddr::from(number) * PhysAddr::from(stride);
        if let Some(piece) = PhysBvec::new(black_box(at), 1) {
            found += u32::from(f(piece));
        }
    }
    found
}

/// Looks addresses up: the layer's answer to "whose memory is it?". `nr` is a power of two.
#[no_mangle]
pub extern "C" fn bench_look_up(base: PhysAddr, stride: u32, nr: u32, times: u32) -> u32 {
    walk(base, stride, nr, times, |piece| {
        !matches!(provider_of(piece), Ok(None))
    })
}

/// The same loop without the look-up: whether it is one certain place.
#[no_mangle]
pub extern "C" fn bench_look_at(base: PhysAddr, stride: u32, nr: u32, times: u32) -> u32 {
    walk(base, stride, nr, times, |piece| piece.phys() == base)
}
