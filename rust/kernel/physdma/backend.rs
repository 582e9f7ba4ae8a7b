// SPDX-License-Identifier: GPL-2.0

//! The calls into the kernel's DMA API that the layer is made of: [`Backend`], and the real one,
//! [`Dma`].
//!
//! A test passes a backend that records what is called, or that fails where it is told to.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use super::PhysBvec;
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::{
        DataDirection,
        DmaAddress, //
    },
    error::to_result,
    io::PhysAddr,
    prelude::*, //
};

/// A range of IOVA space: the C `struct dma_iova_state`.
///
/// What it means is known to the [`Backend`] that allocated it alone.
///
/// # Examples
///
/// ```
/// use kernel::physdma::Iova;
///
/// let iova = Iova::new(0x1_0000, 0x2000);
/// assert_eq!(iova.addr(), 0x1_0000);
/// assert_eq!(iova.size(), 0x2000);
/// ```
#[derive(Clone, Copy)]
pub struct Iova(bindings::dma_iova_state);

impl Iova {
    /// A range of `size` bytes at the DMA address `addr`, for backends that are not [`Dma`].
    pub const fn new(addr: DmaAddress, size: usize) -> Self {
        Self(bindings::dma_iova_state {
            addr,
            __size: size as u64,
        })
    }

    /// The DMA address of the first byte.
    #[inline]
    pub fn addr(&self) -> DmaAddress {
        self.0.addr
    }

    /// The length of the range in bytes: `dma_iova_size()`.
    #[inline]
    pub fn size(&self) -> usize {
        // The highest bit says that bounce buffers are in use. CAST: It came from a `usize`.
        (self.0.__size << 1 >> 1) as usize
    }
}

/// A piece of memory, as C takes many of them: `struct phys_vec`.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{PhysBvec, PhysVec};
///
/// let piece = PhysVec::from(PhysBvec::new(0x1000, 0x200).ok_or(EINVAL)?);
/// assert_eq!(piece.phys(), 0x1000);
/// assert_eq!(piece.len(), 0x200);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct PhysVec(bindings::phys_vec);

impl PhysVec {
    /// The physical address of its first byte.
    #[inline]
    pub fn phys(&self) -> PhysAddr {
        self.0.paddr
    }

    /// Its length in bytes, which is not zero.
    #[inline]
    #[expect(clippy::len_without_is_empty)] // It never is.
    pub fn len(&self) -> usize {
        self.0.len
    }
}

impl From<PhysBvec> for PhysVec {
    #[inline]
    fn from(piece: PhysBvec) -> Self {
        Self(bindings::phys_vec {
            paddr: piece.phys(),
            len: piece.len() as usize,
        })
    }
}

/// What kind of memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// RAM: kept coherent, and bounced where the device cannot reach it.
    Ram,
    /// RAM that the device uses itself, as long as it is mapped: it is refused where it would have
    /// to be bounced, or looked after by the CPU. `DMA_ATTR_REQUIRE_COHERENT`.
    RamInPlace,
    /// A provider's memory: neither. `DMA_ATTR_MMIO`; and as no cache of the CPU has it, any number
    /// of mappings may overlap: `DMA_ATTR_DEBUGGING_IGNORE_CACHELINES`.
    Mmio,
}

impl Memory {
    #[inline]
    const fn attrs(self) -> c_ulong {
        match self {
            Self::Ram => 0,
            Self::RamInPlace => bindings::DMA_ATTR_REQUIRE_COHERENT as c_ulong,
            Self::Mmio => {
                (bindings::DMA_ATTR_MMIO | bindings::DMA_ATTR_DEBUGGING_IGNORE_CACHELINES)
                    as c_ulong
            }
        }
    }
}

/// How memory becomes visible to a device.
///
/// [`Dma`] calls the kernel; [`IovaSpace`] and [`Client`] are generic over this trait so that a
/// test can see each call and fail it.
///
/// All methods may be called in atomic context.
///
/// # Examples
///
/// ```
/// use kernel::physdma::Backend;
///
/// /// Whether pieces that end or begin at `addr` may be joined.
/// fn fits(backend: impl Backend, addr: u64) -> bool {
///     let boundary = backend.merge_boundary();
///     boundary != 0 && addr & boundary == 0
/// }
/// ```
///
/// [`IovaSpace`]: super::IovaSpace
/// [`Client`]: super::Client
pub trait Backend: Copy {
    /// The IOMMU's smallest page less one, or 0 where pieces of memory cannot be joined:
    /// `dma_get_merge_boundary()`.
    fn merge_boundary(self) -> u64;

    /// The most bytes that one mapping may have; 0 for a device that cannot do DMA:
    /// `dma_max_mapping_size()`.
    fn max_mapping_size(self) -> usize;

    /// Allocates IOVA space for `size` bytes of which the first are at `phys`:
    /// `dma_iova_try_alloc()`.
    ///
    /// [`None`] where the device is not behind an IOMMU that the DMA API runs, or when the space
    /// is used up.
    fn try_alloc(self, phys: PhysAddr, size: usize) -> Option<Iova>;

    /// Links `len` bytes at `phys` into the range at `offset`: `dma_iova_link()`.
    ///
    /// # Errors
    ///
    /// What the IOMMU driver returns, usually `ENOMEM`.
    ///
    /// # Safety
    ///
    /// - `iova` was returned by `try_alloc` of this backend and has not been destroyed.
    /// - Everything in front of `offset` is linked, and nothing behind it.
    /// - Only the first piece starts off the IOMMU's granule, and only the last ends off it.
    /// - The memory is of kind `memory`, and stays until `destroy`.
    unsafe fn link(
        self,
        iova: &mut Iova,
        phys: PhysAddr,
        offset: usize,
        len: usize,
        dir: DataDirection,
        memory: Memory,
    ) -> Result;

    /// Links all of `pieces` one behind the other: `dma_iova_link_vec()`. `linked` is how many bytes
    /// of the range are linked, before and, whether it fails or not, after.
    ///
    /// # Errors
    ///
    /// Those of `link`.
    ///
    /// # Safety
    ///
    /// As for `link` of each piece in turn.
    #[inline]
    unsafe fn link_vec(
        self,
        iova: &mut Iova,
        pieces: &[PhysVec],
        linked: &mut usize,
        dir: DataDirection,
        memory: Memory,
    ) -> Result {
        for piece in pieces {
            // SAFETY: By the safety requirements; so many are linked.
            unsafe { self.link(iova, piece.phys(), *linked, piece.len(), dir, memory) }?;
            *linked += piece.len();
        }
        Ok(())
    }

    /// Makes the first `len` bytes of the range visible to the device: `dma_iova_sync()`.
    ///
    /// # Errors
    ///
    /// What the IOMMU driver returns.
    ///
    /// # Safety
    ///
    /// `iova` was returned by `try_alloc` of this backend, has not been destroyed, and its first
    /// `len` bytes are linked.
    unsafe fn sync(self, iova: &mut Iova, len: usize) -> Result;

    /// Unlinks the first `linked` bytes and frees the range: `dma_iova_destroy()`.
    ///
    /// # Safety
    ///
    /// - `iova` was returned by `try_alloc` of this backend, has not been destroyed, and exactly
    ///   its first `linked` bytes are linked, with direction `dir`.
    /// - All of them are of kind `memory`; or some are, the others are [`Memory::Mmio`], and the
    ///   device is coherent.
    unsafe fn destroy(self, iova: &mut Iova, linked: usize, dir: DataDirection, memory: Memory);

    /// Maps one piece of memory by itself: `dma_map_phys()`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: `DMA_MAPPING_ERROR`, for whichever reason. The kernel tells no more.
    ///
    /// # Safety
    ///
    /// The memory is of kind `memory`, and stays until `unmap_phys`.
    unsafe fn map_phys(
        self,
        phys: PhysAddr,
        len: usize,
        dir: DataDirection,
        memory: Memory,
    ) -> Result<DmaAddress>;

    /// Undoes `map_phys`: `dma_unmap_phys()`.
    ///
    /// # Safety
    ///
    /// `dma` was returned by `map_phys` of this backend for the same `len`, `dir` and `memory`, and
    /// has not been unmapped since.
    unsafe fn unmap_phys(self, dma: DmaAddress, len: usize, dir: DataDirection, memory: Memory);

    /// Whether what `map_phys` has mapped must be unmapped: `dma_need_unmap()`.
    ///
    /// The answer for a mapping is known after it was made only: the first bounced one changes it.
    fn need_unmap(self) -> bool;

    /// Whether the device sees what the CPU wrote, and the CPU what the device wrote, without
    /// anybody's help: `dev_is_dma_coherent()`.
    fn coherent(self) -> bool;

    /// The device, where there is one from which a driver can be unbound.
    #[inline]
    fn bound_device(&self) -> Option<&Device<Bound>> {
        None
    }
}

/// Like `to_result()`, but what is done for each piece of a request does not call it.
#[inline]
fn check(ret: c_int) -> Result {
    if ret == 0 {
        return Ok(());
    }
    to_result(ret)
}

/// The kernel's DMA API, for one device.
#[derive(Clone, Copy)]
pub struct Dma<'a>(&'a Device<Bound>);

impl<'a> Dma<'a> {
    /// The DMA API for `dev`.
    #[inline]
    pub const fn new(dev: &'a Device<Bound>) -> Self {
        Self(dev)
    }

    /// The device.
    #[inline]
    pub const fn device(self) -> &'a Device<Bound> {
        self.0
    }
}

impl Backend for Dma<'_> {
    #[inline]
    fn merge_boundary(self) -> u64 {
        // SAFETY: The type invariant of `Device` guarantees a valid pointer.
        // CAST: `c_ulong` has at most 64 bits.
        unsafe { bindings::dma_get_merge_boundary(self.0.as_raw()) as u64 }
    }

    #[inline]
    fn max_mapping_size(self) -> usize {
        // SAFETY: The type invariant of `Device` guarantees a valid pointer.
        unsafe { bindings::dma_max_mapping_size(self.0.as_raw()) }
    }

    #[inline]
    fn try_alloc(self, phys: PhysAddr, size: usize) -> Option<Iova> {
        let mut iova = Iova::new(0, 0);
        // SAFETY: The device is bound, and `iova` is valid for writes.
        let done =
            unsafe { bindings::dma_iova_try_alloc(self.0.as_raw(), &mut iova.0, phys, size) };
        done.then_some(iova)
    }

    #[inline]
    unsafe fn link(
        self,
        iova: &mut Iova,
        phys: PhysAddr,
        offset: usize,
        len: usize,
        dir: DataDirection,
        memory: Memory,
    ) -> Result {
        // SAFETY: By the safety requirements the range was allocated for this bound device, and
        // pieces are linked one behind the other.
        check(unsafe {
            bindings::dma_iova_link(
                self.0.as_raw(),
                &mut iova.0,
                phys,
                offset,
                len,
                dir.into(),
                memory.attrs(),
            )
        })
    }

    #[inline]
    unsafe fn link_vec(
        self,
        iova: &mut Iova,
        pieces: &[PhysVec],
        linked: &mut usize,
        dir: DataDirection,
        memory: Memory,
    ) -> Result {
        let count = c_uint::try_from(pieces.len())?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: As in `link`; a `PhysVec` is a `struct phys_vec`, and there are so many.
        check(unsafe {
            bindings::dma_iova_link_vec(
                self.0.as_raw(),
                &mut iova.0,
                pieces.as_ptr().cast(),
                count,
                *linked,
                dir.into(),
                memory.attrs(),
            )
        })?;
        *linked += pieces.iter().map(PhysVec::len).sum::<usize>();
        Ok(())
    }

    #[inline]
    unsafe fn sync(self, iova: &mut Iova, len: usize) -> Result {
        // SAFETY: By the safety requirements the range was allocated for this bound device, and
        // `len` bytes of it are linked.
        check(unsafe { bindings::dma_iova_sync(self.0.as_raw(), &mut iova.0, 0, len) })
    }

    #[inline]
    unsafe fn destroy(self, iova: &mut Iova, linked: usize, dir: DataDirection, memory: Memory) {
        // SAFETY: By the safety requirements the range was allocated for this bound device, and
        // `linked` bytes of it are linked in direction `dir`.
        unsafe {
            bindings::dma_iova_destroy(
                self.0.as_raw(),
                &mut iova.0,
                linked,
                dir.into(),
                memory.attrs(),
            )
        }
    }

    #[inline]
    unsafe fn map_phys(
        self,
        phys: PhysAddr,
        len: usize,
        dir: DataDirection,
        memory: Memory,
    ) -> Result<DmaAddress> {
        // SAFETY: The device is bound; the memory is of this kind by the safety requirements.
        let dma = unsafe {
            bindings::dma_map_phys(self.0.as_raw(), phys, len, dir.into(), memory.attrs())
        };
        // SAFETY: `dma` comes from `dma_map_phys()` for this device.
        check(unsafe { bindings::dma_mapping_error(self.0.as_raw(), dma) })?;
        Ok(dma)
    }

    #[inline]
    unsafe fn unmap_phys(self, dma: DmaAddress, len: usize, dir: DataDirection, memory: Memory) {
        // SAFETY: By the safety requirements this undoes one `map_phys` of the same device.
        unsafe { bindings::dma_unmap_phys(self.0.as_raw(), dma, len, dir.into(), memory.attrs()) }
    }

    #[inline]
    fn need_unmap(self) -> bool {
        // SAFETY: The type invariant of `Device` guarantees a valid pointer.
        unsafe { bindings::dma_need_unmap(self.0.as_raw()) }
    }

    #[inline]
    fn coherent(self) -> bool {
        // SAFETY: The type invariant of `Device` guarantees a valid pointer.
        unsafe { bindings::dev_is_dma_coherent(self.0.as_raw()) }
    }

    #[inline]
    fn bound_device(&self) -> Option<&Device<Bound>> {
        Some(self.0)
    }
}
