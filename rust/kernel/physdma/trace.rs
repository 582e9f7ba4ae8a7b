// SPDX-License-Identifier: GPL-2.0

//! Tracepoints: what the layer does, while somebody looks.
//!
//! While nobody does each is an instruction that does nothing.
//!
//! C header: [`include/trace/events/physdma.h`](srctree/include/trace/events/physdma.h)

use super::{
    bvec::wide,
    route::{
        BarRange,
        Refused, //
    },
    segment::Path, //
};
#[cfg(CONFIG_TRACEPOINTS)]
use crate::jump_label::static_branch_unlikely;
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    fmt::Write,
    prelude::*,
    str::NullTerminatedFormatter,
    tracepoint::declare_trace, //
};
use core::ptr;

/// Room for the reason why there is no route.
const REASON: usize = 192;

declare_trace! {
    /// # Safety
    ///
    /// `dev` is a device.
    unsafe fn physdma_map(
        dev: *mut bindings::device,
        mapping: *mut c_void,
        bytes: u64,
        dir: u32,
        path: u32,
    );

    /// # Safety
    ///
    /// None.
    unsafe fn physdma_unmap(mapping: *mut c_void);

    /// # Safety
    ///
    /// `client` is a device or null, `provider` is a device, `reason` a string.
    unsafe fn physdma_refuse(
        client: *mut bindings::device,
        provider: *mut bindings::device,
        reason: *const c_char,
    );

    /// # Safety
    ///
    /// `dev` is a device.
    unsafe fn physdma_register(
        dev: *mut bindings::device,
        bar: u32,
        first: u64,
        last: u64,
        pages: bool,
    );

    /// # Safety
    ///
    /// `dev` is a device.
    unsafe fn physdma_revoke(
        dev: *mut bindings::device,
        bar: u32,
        first: u64,
        last: u64,
        pages: bool,
    );

    /// # Safety
    ///
    /// `dev` is a device.
    unsafe fn physdma_revoked(
        dev: *mut bindings::device,
        bar: u32,
        first: u64,
        last: u64,
        pages: bool,
    );
}

/// The memory of a request was mapped: all `bytes` of it. `mapping` is where that is kept.
#[inline(always)]
pub(super) fn map<M>(
    client: Option<&Device<Bound>>,
    mapping: &M,
    bytes: impl FnOnce() -> usize,
    dir: DataDirection,
    path: Path,
) {
    #[cfg(CONFIG_TRACEPOINTS)]
    // SAFETY: It is the static key of a tracepoint.
    let wanted = unsafe {
        static_branch_unlikely!(
            bindings::__tracepoint_physdma_map,
            bindings::tracepoint,
            key
        )
    };
    #[cfg(not(CONFIG_TRACEPOINTS))]
    let wanted = false;

    if wanted {
        let client = client.map_or(ptr::null_mut(), |dev| dev.as_raw());
        if !client.is_null() {
            // SAFETY: It is a device.
            unsafe {
                physdma_map(
                    client,
                    ptr::from_ref(mapping).cast_mut().cast(),
                    bytes() as u64,
                    // CAST: One of four.
                    dir as u32,
                    code(path),
                )
            }
        }
    }
}

/// As `show_physdma_path()` of the header has it.
fn code(path: Path) -> u32 {
    match path {
        Path::Single => 0,
        Path::Iova => 1,
        Path::Direct => 2,
        Path::Bus => 3,
        Path::Internal => 4,
        Path::Mixed => 5,
    }
}

/// What is kept in `mapping` will be undone.
#[inline(always)]
pub(super) fn unmap<M>(mapping: &M) {
    // SAFETY: It is an address only.
    unsafe { physdma_unmap(ptr::from_ref(mapping).cast_mut().cast()) };
}

/// A request was refused, for there is no route from `client` to `memory`.
#[cold]
pub(super) fn refuse(client: Option<&Device>, memory: &BarRange, refused: Refused) {
    #[cfg(CONFIG_TRACEPOINTS)]
    // SAFETY: It is the static key of a tracepoint.
    let wanted = unsafe {
        static_branch_unlikely!(
            bindings::__tracepoint_physdma_refuse,
            bindings::tracepoint,
            key
        )
    };
    #[cfg(not(CONFIG_TRACEPOINTS))]
    let wanted = false;

    if !wanted {
        return;
    }
    let mut reason = [0u8; REASON];

    if let Some(mut f) = NullTerminatedFormatter::new(&mut reason) {
        // What does not fit is cut off.
        let _ = f.write_fmt(fmt!("{refused}"));
    }
    let provider: &Device = memory.dev.as_ref();
    // SAFETY: Both are devices, or one is null; a zero is behind the text.
    unsafe {
        physdma_refuse(
            client.map_or(ptr::null_mut(), Device::as_raw),
            provider.as_raw(),
            reason.as_ptr().cast(),
        )
    };
}

/// A tracepoint of a range.
type Event = unsafe fn(*mut bindings::device, u32, u64, u64, bool);

fn range(event: Event, range: &BarRange, pages: bool) {
    let dev: &Device = range.dev.as_ref();

    // SAFETY: It is a device.
    unsafe {
        event(
            dev.as_raw(),
            range.bar().into(),
            wide(range.first),
            wide(range.last),
            pages,
        )
    };
}

/// `memory` is open to other devices.
pub(super) fn register(memory: &BarRange, pages: bool) {
    range(physdma_register, memory, pages);
}

/// `memory` will be taken from all.
pub(super) fn revoke(memory: &BarRange, pages: bool) {
    range(physdma_revoke, memory, pages);
}

/// Nobody has `memory` any more.
pub(super) fn revoked(memory: &BarRange, pages: bool) {
    range(physdma_revoked, memory, pages);
}
