// SPDX-License-Identifier: GPL-2.0

//! Tracepoints: what the layer does, while somebody looks.
//!
//! While nobody does each is an instruction that does nothing.
//!
//! C header: [`include/trace/events/physdma.h`](srctree/include/trace/events/physdma.h)

use super::{
    route::{
        BarRange,
        Refused, //
    },
    segment::Path, //
};
#[cfg(CONFIG_TRACEPOINTS)]
use crate::jump_label::static_branch_unlikely;
use crate::{
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    prelude::*, //
};
use core::ptr;

/// Whether somebody looks at a tracepoint.
macro_rules! is_watched {
    ($key:ident) => {{
        #[cfg(CONFIG_TRACEPOINTS)]
        // SAFETY: It is the static key of a tracepoint.
        let is_watched = unsafe {
            static_branch_unlikely!($crate::bindings::$key, $crate::bindings::tracepoint, key)
        };
        #[cfg(not(CONFIG_TRACEPOINTS))]
        let is_watched = false;
        is_watched
    }};
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
    if is_watched!(__tracepoint_physdma_map) {
        if let Some(client) = client {
            tell::map(client, ptr::from_ref(mapping).cast(), bytes(), dir, path);
        }
    }
}

/// What is kept in `mapping` will be undone.
#[inline(always)]
pub(super) fn unmap<M>(mapping: &M) {
    if is_watched!(__tracepoint_physdma_unmap) {
        tell::unmap(ptr::from_ref(mapping).cast());
    }
}

/// A request was refused, for there is no route from `client` to `memory`.
#[cold]
pub(super) fn refuse(client: Option<&Device>, memory: &BarRange, refused: Refused) {
    if is_watched!(__tracepoint_physdma_refuse) {
        tell::refuse(client, memory, refused);
    }
}

/// `memory` is open to other devices.
pub(super) fn register(memory: &BarRange, pages: bool) {
    if is_watched!(__tracepoint_physdma_register) {
        tell::register(memory, pages);
    }
}

/// `memory` will be taken from all.
pub(super) fn revoke(memory: &BarRange, pages: bool) {
    if is_watched!(__tracepoint_physdma_revoke) {
        tell::revoke(memory, pages);
    }
}

/// Nobody has `memory` any more.
pub(super) fn revoked(memory: &BarRange, pages: bool) {
    if is_watched!(__tracepoint_physdma_revoked) {
        tell::revoked(memory, pages);
    }
}

/// The tracepoints. None of this is generic, so that modules call it here.
#[cfg(CONFIG_TRACEPOINTS)]
mod tell {
    use super::super::bvec::wide;
    use super::*;
    use crate::{
        bindings,
        fmt::Write,
        str::NullTerminatedFormatter, //
    };

    /// Room for the reason why there is no route.
    const REASON: usize = 192;

    #[cold]
    pub(super) fn map(
        client: &Device,
        mapping: *const c_void,
        bytes: usize,
        dir: DataDirection,
        path: Path,
    ) {
        let path = match path {
            Path::Single => bindings::physdma_path_PHYSDMA_PATH_SINGLE,
            Path::Iova => bindings::physdma_path_PHYSDMA_PATH_IOVA,
            Path::Direct => bindings::physdma_path_PHYSDMA_PATH_DIRECT,
            Path::Bus => bindings::physdma_path_PHYSDMA_PATH_BUS,
            Path::Internal => bindings::physdma_path_PHYSDMA_PATH_INTERNAL,
            Path::Mixed => bindings::physdma_path_PHYSDMA_PATH_MIXED,
        };
        // SAFETY: It is a device; the rest are numbers. CAST: One of four.
        unsafe {
            bindings::rust_do_trace_physdma_map(
                client.as_raw(),
                mapping.cast_mut(),
                bytes as u64,
                dir as u32,
                path,
            )
        };
    }

    #[cold]
    pub(super) fn unmap(mapping: *const c_void) {
        // SAFETY: It is a number.
        unsafe { bindings::rust_do_trace_physdma_unmap(mapping.cast_mut()) };
    }

    #[cold]
    pub(super) fn refuse(client: Option<&Device>, memory: &BarRange, refused: Refused) {
        let mut reason = [0u8; REASON];

        if let Some(mut f) = NullTerminatedFormatter::new(&mut reason) {
            // What does not fit is cut off.
            let _ = f.write_fmt(fmt!("{refused}"));
        }
        let provider: &Device = memory.dev.as_ref();
        // SAFETY: Both are devices, or one is null; a zero is behind the text.
        unsafe {
            bindings::rust_do_trace_physdma_refuse(
                client.map_or(ptr::null_mut(), Device::as_raw),
                provider.as_raw(),
                reason.as_ptr().cast(),
            )
        };
    }

    /// A tracepoint of a range.
    type Event = unsafe extern "C" fn(*mut bindings::device, u32, u64, u64, bool);

    fn range(event: Event, memory: &BarRange, pages: bool) {
        let dev: &Device = memory.dev.as_ref();

        // SAFETY: It is a device; the rest are numbers.
        unsafe {
            event(
                dev.as_raw(),
                memory.bar().into(),
                wide(memory.first),
                wide(memory.last),
                pages,
            )
        };
    }

    pub(super) fn register(memory: &BarRange, pages: bool) {
        range(bindings::rust_do_trace_physdma_register, memory, pages);
    }

    pub(super) fn revoke(memory: &BarRange, pages: bool) {
        range(bindings::rust_do_trace_physdma_revoke, memory, pages);
    }

    pub(super) fn revoked(memory: &BarRange, pages: bool) {
        range(bindings::rust_do_trace_physdma_revoked, memory, pages);
    }
}

/// There are none.
#[cfg(not(CONFIG_TRACEPOINTS))]
mod tell {
    use super::*;

    pub(super) fn map(_: &Device, _: *const c_void, _: usize, _: DataDirection, _: Path) {}
    pub(super) fn unmap(_: *const c_void) {}
    pub(super) fn refuse(_: Option<&Device>, _: &BarRange, _: Refused) {}
    pub(super) fn register(_: &BarRange, _: bool) {}
    pub(super) fn revoke(_: &BarRange, _: bool) {}
    pub(super) fn revoked(_: &BarRange, _: bool) {}
}
