// SPDX-License-Identifier: GPL-2.0

//! A provider's memory for the CPU: [`Window`].
//!
//! A range can have many GiB and an `ioremap()` costs page tables, so what is mapped is what is
//! asked for.
//!
//! C header: [`include/linux/io.h`](srctree/include/linux/io.h)

use super::{
    attachment::Live,
    provider::Provider, //
};
use crate::{
    bindings,
    prelude::*, //
};
use core::ptr::NonNull;

/// A part of a provider's memory that the CPU has mapped, uncached.
///
/// It keeps the memory: revocation waits for it. Who keeps one for long is a [`Holder`], and drops
/// it when told.
///
/// [`Holder`]: super::Holder
///
/// # Invariants
///
/// `addr` is an I/O mapping of `len` bytes of the memory that `_live` keeps.
///
/// # Examples
///
/// ```
/// use kernel::physdma::Provider;
///
/// /// Signs a page of the memory, and returns what was there.
/// fn sign(provider: &Provider, offset: u64) -> Result<[u8; 8]> {
///     let page = provider.window(offset, 0x1000)?;
///     let mut magic = [0; 8];
///     page.read(0, &mut magic)?;
///     page.fill(0, page.len(), 0)?;
///     page.write(0, b"physdma!")?;
///     Ok(magic)
/// }
/// ```
pub struct Window {
    addr: NonNull<c_void>,
    len: usize,
    // Dropped after the mapping is gone.
    _live: Live,
}

// SAFETY: An I/O mapping may be used from any thread.
unsafe impl Send for Window {}

// SAFETY: As above; what several threads do to device memory at once is the device's business.
unsafe impl Sync for Window {}

impl Provider {
    /// Maps `len` bytes from `offset` on for the CPU. May sleep.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: that is empty, or not within the range.
    /// - `EOPNOTSUPP`: a C driver registered it with pages, and may trust what is in it.
    /// - `ENODEV`: the memory is being revoked.
    /// - `ENOMEM`.
    pub fn window(&self, offset: u64, len: u32) -> Result<Window> {
        if self.has_pages() {
            return Err(EOPNOTSUPP);
        }
        self.window_of_any(offset, len)
    }

    /// The same, whoever registered the memory: for those to whom it was handed out.
    pub(super) fn window_of_any(&self, offset: u64, len: u32) -> Result<Window> {
        let memory = self.bvec(offset, len)?;
        let live = self.live_for_cpu()?;
        // SAFETY: It is memory of a PCI device, which is there as long as `live`.
        let addr = unsafe { bindings::ioremap(memory.phys(), len as usize) };
        // INVARIANT: Just mapped.
        Ok(Window {
            addr: NonNull::new(addr).ok_or(ENOMEM)?,
            len: len as usize,
            _live: live,
        })
    }
}

impl Window {
    /// How many bytes it has.
    #[expect(clippy::len_without_is_empty)] // It never is.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The address of `len` bytes at `offset`.
    fn at(&self, offset: usize, len: usize) -> Result<*mut c_void> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(EINVAL);
        }
        Ok(self.addr.as_ptr().wrapping_byte_add(offset))
    }

    /// Copies from the memory at `offset`, with `memcpy_fromio()`.
    ///
    /// # Errors
    ///
    /// `EINVAL`: that reaches beyond the window.
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> Result {
        let from = self.at(offset, buf.len())?;
        // SAFETY: By the type invariants as many bytes are mapped there.
        unsafe { bindings::memcpy_fromio(buf.as_mut_ptr().cast(), from, buf.len()) };
        Ok(())
    }

    /// Copies to the memory at `offset`, with `memcpy_toio()`.
    ///
    /// # Errors
    ///
    /// `EINVAL`: that reaches beyond the window.
    pub fn write(&self, offset: usize, buf: &[u8]) -> Result {
        let to = self.at(offset, buf.len())?;
        // SAFETY: By the type invariants as many bytes are mapped there.
        unsafe { bindings::memcpy_toio(to, buf.as_ptr().cast(), buf.len()) };
        Ok(())
    }

    /// Sets `len` bytes from `offset` on to `value`, with `memset_io()`.
    ///
    /// # Errors
    ///
    /// `EINVAL`: that reaches beyond the window.
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result {
        let to = self.at(offset, len)?;
        // SAFETY: By the type invariants as many bytes are mapped there.
        unsafe { bindings::physdma_memset_io(to, value.into(), len) };
        Ok(())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is what `ioremap()` returned.
        unsafe { bindings::iounmap(self.addr.as_ptr()) };
    }
}
