// SPDX-License-Identifier: GPL-2.0

//! The side of the benchmark that calls kernel::physdma, for `bench.c`.

use core::ptr::NonNull;
use kernel::{
    bindings,
    block::mq::Request,
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    physdma::{
        Client,
        Limits,
        Mapping,
        ReqBvecs, //
    },
    prelude::*, //
};

/// A client, and the place where a request's private data would hold its mapping.
pub struct Layer {
    // Declared, and thus dropped, before the client that it borrows.
    mapping: Mapping<'static>,
    client: KBox<Client<'static>>,
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
                client: KBox::new(Client::new(dev, limits)?, GFP_KERNEL)?,
            },
            GFP_KERNEL,
        )?)
    };
    layer().map_or(core::ptr::null_mut(), KBox::into_raw)
}

/// Undoes `bench_layer_new`.
///
/// # Safety
///
/// `layer` comes from there and is not used any more.
#[no_mangle]
pub unsafe extern "C" fn bench_layer_free(layer: *mut Layer) {
    // SAFETY: By the safety requirements.
    drop(unsafe { KBox::from_raw(layer) });
}

/// Maps `rq` and walks its segments. Returns their bytes, 0 on failure.
///
/// # Safety
///
/// `layer` comes from `bench_layer_new`, and `bench_layer_unmap` is called before `rq` is freed.
#[no_mangle]
pub unsafe extern "C" fn bench_layer_map(
    layer: *mut Layer,
    rq: *mut bindings::request,
    count: *mut c_uint,
) -> usize {
    // SAFETY: By the safety requirements; the client lives as long as the layer, in which the
    // mapping that borrows it is dropped first.
    let (mapping, client) = unsafe {
        (
            &mut (*layer).mapping,
            &*core::ptr::from_ref::<Client<'static>>(&(*layer).client),
        )
    };
    // SAFETY: By the safety requirements.
    let mut source = unsafe { ReqBvecs::new(Request::from_raw(NonNull::new_unchecked(rq))) };

    let Ok(mut segments) = client.map(mapping, &mut source, DataDirection::FromDevice) else {
        return 0;
    };
    let mut bytes = 0;
    let mut segs = 0;
    while let Ok(Some(segment)) = segments.next() {
        bytes += segment.len as usize;
        segs += 1;
    }
    // SAFETY: `count` is valid for writes.
    unsafe { *count = segs };
    bytes
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
