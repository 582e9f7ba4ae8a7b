// SPDX-License-Identifier: GPL-2.0

//! A provider's memory for programs: [`Provider::mmap`].
//!
//! Nothing is mapped when a program asks for it: each page is when it is touched, by a fault that
//! has the memory [`Live`] for that long. So revocation has to wait for no program: when no fault
//! can happen any more it takes all pages away, from every program that has them by then, be it
//! through `fork()` or `mremap()`. Whoever touches them after that gets a `SIGBUS`.
//!
//! All mappings of device memory are in one address space, that of `/dev/mem`, where an offset is
//! a physical address. That is what makes them easy to find; what a program has mapped of the same
//! memory by `/dev/mem`, or PCI's `resource` files in sysfs, is taken away with them.
//!
//! C source: [`kernel/resource.c`](srctree/kernel/resource.c), `revoke_iomem()`

use super::{
    attachment::Live,
    bvec::wide,
    provider::{
        Inner,
        Provider, //
    },
};
use crate::{
    bindings,
    mm::virt::{
        flags,
        VmaNew, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::Relaxed,
        rcu,
        Arc,
        ArcBorrow, //
    },
};
use core::mem;

/// Of an area whose private data is a reference to the provider, from `Arc::into_raw`.
static OPERATIONS: bindings::vm_operations_struct = bindings::vm_operations_struct {
    open: Some(open),
    close: Some(close),
    fault: Some(fault),
    ..pin_init::zeroed()
};

impl Provider {
    /// Lets a program map the memory, uncached: that at the physical address which is the offset
    /// that the program gave to `mmap()`.
    ///
    /// To be called last from a file's `mmap()`, when the driver has decided that the program may:
    /// a file's `mmap()` that fails after this keeps the provider's object for good.
    /// The mapping does not keep the memory: when it is revoked, or has been, whoever touches it
    /// gets a `SIGBUS`. It stays that of the provider: a later one of the same memory has to be
    /// mapped again.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: that is not within the range; or the mapping is private; or the file is not one
    ///   of a device that has said [`MAPS_DEVICE_MEMORY`]; or the area has been given memory
    ///   before.
    /// - `EOPNOTSUPP`: a C driver registered it with pages, and maps it by itself.
    /// - `ENODEV`: the memory has gone.
    ///
    /// [`MAPS_DEVICE_MEMORY`]: crate::miscdevice::MiscDevice::MAPS_DEVICE_MEMORY
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     io::PhysAddr,
    ///     mm::virt::VmaNew,
    ///     page::PAGE_SHIFT,
    ///     physdma::{provider_of, PhysBvec},
    /// };
    ///
    /// /// For a file's `mmap()`: any provider's memory.
    /// fn mmap(vma: &VmaNew) -> Result {
    ///     let first = PhysAddr::try_from(vma.pgoff())? << PAGE_SHIFT;
    ///     let page = PhysBvec::new(first, 1).ok_or(EINVAL)?;
    ///     provider_of(page)?.ok_or(ENXIO)?.mmap(vma)
    /// }
    /// ```
    pub fn mmap(&self, vma: &VmaNew) -> Result {
        let range = self.range();
        let first = wide(range.first());
        // CAST: Neither has more bits.
        let offset = (vma.pgoff() as u64) << PAGE_SHIFT;
        let last = offset + (vma.end() - vma.start() - 1) as u64;
        // A page is mapped as a whole.
        if offset < first || last > wide(range.last()) {
            return Err(EINVAL);
        }
        // The program's writes must reach the memory.
        if vma.flags() & (flags::SHARED | flags::MAYWRITE) == flags::MAYWRITE {
            return Err(EINVAL);
        }
        if self.has_pages() {
            return Err(EOPNOTSUPP);
        }
        if self.is_revoked() {
            return Err(ENODEV);
        }

        let raw = vma.as_ptr();
        // SAFETY: Nobody else has the area, by the type invariants of `VmaNew`.
        if core::ptr::eq(unsafe { (*raw).vm_ops }, &OPERATIONS) {
            return Err(EINVAL);
        }
        // SAFETY: The area is being made by a file's `mmap()`, so it has a file; and as there are
        // files the address space of device memory exists.
        if unsafe { (*(*raw).vm_file).f_mapping != bindings::iomem_get_mapping() } {
            return Err(EINVAL);
        }
        self.0.is_mapped.store(true, Relaxed);
        vma.set_io();
        vma.set_dontexpand();
        vma.set_dontdump();
        // SAFETY: Nobody else has the area, by the type invariants of `VmaNew`. It is not a
        // private mapping; that it is not `VM_MIXEDMAP` either looks `fault()`. The operations get
        // the private data that they want.
        unsafe {
            (*raw).__bindgen_anon_2.vm_flags |= flags::PFNMAP;
            (*raw).vm_page_prot = bindings::physdma_pgprot_noncached((*raw).vm_page_prot);
            (*raw).vm_private_data = Arc::into_raw(self.0.clone()).cast_mut().cast();
            (*raw).vm_ops = &OPERATIONS;
        }
        Ok(())
    }
}

impl Inner {
    /// Takes away all pages that programs have mapped. No fault may be able to map one.
    pub(super) fn unmap_programs(&self) {
        if self.is_mapped.load(Relaxed) {
            let (first, last) = (wide(self.range.first), wide(self.range.last));
            // SAFETY: Where something was mapped there are files, and so the address space of
            // device memory. CAST: Physical addresses have no sign bit.
            unsafe {
                bindings::unmap_mapping_range(
                    bindings::iomem_get_mapping(),
                    first as i64,
                    (last - first) as i64 + 1,
                    1,
                )
            };
        }
    }
}

/// The area is copied: `fork()`, `mremap()`, or a part of it is unmapped.
///
/// # Safety
///
/// `vma` is an area with [`OPERATIONS`].
unsafe extern "C" fn open(vma: *mut bindings::vm_area_struct) {
    // SAFETY: By the safety requirements the data are a reference to the provider, which is that
    // of the area it was copied from.
    let inner = unsafe { ArcBorrow::from_raw((*vma).vm_private_data.cast::<Inner>()) };
    mem::forget(Arc::from(inner));
}

/// # Safety
///
/// `vma` is an area with [`OPERATIONS`], and goes.
unsafe extern "C" fn close(vma: *mut bindings::vm_area_struct) {
    // SAFETY: By the safety requirements the area has a reference, and nobody uses it any more.
    drop(unsafe { Arc::from_raw((*vma).vm_private_data.cast::<Inner>()) });
}

/// # Safety
///
/// `vmf` describes a fault in an area with [`OPERATIONS`].
unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By the safety requirements; a fault holds its area.
    let (vma, address, page) = unsafe {
        let what = &(*vmf).__bindgen_anon_1;
        (what.vma, what.address, what.pgoff)
    };
    // SAFETY: As above.
    let inner = unsafe { ArcBorrow::from_raw((*vma).vm_private_data.cast::<Inner>()) };
    // SAFETY: As above.
    let mixed = unsafe { (*vma).__bindgen_anon_2.vm_flags } & flags::MIXEDMAP != 0;

    let live = Live::new(&inner.cpu, &rcu::read_lock());
    if live.is_none() || mixed {
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    }
    // SAFETY: The area is `VM_PFNMAP` and not private. The page is the provider's, as `mmap` has
    // seen that all of the area is and areas do not grow, and is there as long as `live`.
    let result = unsafe { bindings::vmf_insert_pfn(vma, address & !(PAGE_SIZE - 1), page) };
    drop(live);
    result
}
