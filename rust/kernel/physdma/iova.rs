// SPDX-License-Identifier: GPL-2.0

//! The two-step IOVA API with its rules in the types: [`IovaSpace`].
//!
//! An IOMMU lets scattered memory appear to a device as one range of addresses. The kernel's API
//! for it allocates the range first, then links memory into it piece by piece, then makes all of
//! it visible at once, so that the IOMMU's caches are touched once and not once a piece. It has
//! rules that nothing checks: link in order, without gaps, start and end on the IOMMU's granule
//! but at the very ends, do not hand out an address before the sync, unlink what was linked and
//! nothing else. Here they cannot be broken:
//!
//! - the object owns the offset, so a piece can go to the next place only;
//! - an address is to be had from [`IovaSpace<B, Synced>`] alone, which only
//!   [`sync()`](IovaSpace::sync) makes;
//! - dropping the object in any state undoes exactly what was done.
//!
//! Where the device is not behind an IOMMU there is no object: see [`IovaSpace::try_alloc`].
//!
//! C source: [`drivers/iommu/dma-iommu.c`](srctree/drivers/iommu/dma-iommu.c)

use super::{
    backend::{
        Backend,
        Iova,
        Memory,
        PhysVec, //
    },
    PhysBvec, //
};
use crate::{
    dma::{
        DataDirection,
        DmaAddress, //
    },
    io::PhysAddr,
    prelude::*, //
};
use core::{
    mem::{
        ManuallyDrop,
        MaybeUninit, //
    },
    slice, //
};

mod private {
    pub trait Sealed {}

    impl Sealed for super::Linking {}
    impl Sealed for super::Synced {}
}

/// The state of an [`IovaSpace`]: [`Linking`] or [`Synced`].
///
/// # Examples
///
/// ```
/// use kernel::physdma::{Backend, IovaSpace, State};
///
/// /// Takes away from the device what it has been given so far.
/// fn give_up<B: Backend, S: State>(space: IovaSpace<B, S>) {
///     drop(space);
/// }
/// ```
pub trait State: private::Sealed {}

/// Memory is being linked; the device must not be told about it yet. [`IovaSpace`] has an example.
pub struct Linking {
    /// The IOMMU's smallest page less one.
    granule: u32,
}

/// All that is linked is visible to the device. [`IovaSpace`] has an example.
pub struct Synced(());

impl Linking {
    #[inline]
    fn granule(&self) -> DmaAddress {
        self.granule.into()
    }
}

/// How many pieces are linked at once: what little stack there is.
const BATCH: usize = 32;

/// Pieces that will be linked together.
///
/// # Invariants
///
/// The first `count` elements of `pieces` are initialised.
struct Batch<'b> {
    // Not a part of it, or all of it would be zeroed with what is behind it.
    pieces: &'b mut [MaybeUninit<PhysVec>; BATCH],
    count: usize,
    /// Of all of them.
    bytes: usize,
}

impl<'b> Batch<'b> {
    #[inline]
    fn new(pieces: &'b mut [MaybeUninit<PhysVec>; BATCH]) -> Self {
        // INVARIANT: There are none.
        Self {
            pieces,
            count: 0,
            bytes: 0,
        }
    }

    #[inline]
    fn clear(&mut self) {
        // INVARIANT: As in `new`.
        self.count = 0;
        self.bytes = 0;
    }

    /// Returns whether there was room.
    #[inline]
    fn push(&mut self, piece: PhysBvec) -> bool {
        let Some(slot) = self.pieces.get_mut(self.count) else {
            return false;
        };
        slot.write(piece.into());
        // INVARIANT: One more has been written.
        self.count += 1;
        self.bytes += piece.len() as usize;
        true
    }

    #[inline]
    fn pieces(&self) -> &[PhysVec] {
        // SAFETY: By the type invariants so many are there and initialised. `MaybeUninit` has the
        // layout of what it may hold.
        unsafe { slice::from_raw_parts(self.pieces.as_ptr().cast(), self.count) }
    }
}

impl State for Linking {}
impl State for Synced {}

/// A range of IOVA space and the memory that is linked into it.
///
/// # Invariants
///
/// - `iova` was allocated by `backend` and has not been destroyed.
/// - Exactly its first `linked` bytes are linked, in direction `dir`, and that is at most its size.
/// - All that is linked is of kind `memory`; or `memory` is RAM, some of it is a provider's memory,
///   and the device is coherent.
/// - In state [`Synced`], `linked > 0` and the linked bytes are visible to the device.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::{Bound, Device},
///     dma::DataDirection,
///     physdma::{Dma, IovaSpace, Memory, PhysBvec},
/// };
///
/// /// Makes two pages one DMA range, if the device is behind an IOMMU.
/// ///
/// /// # Safety
/// ///
/// /// Both are RAM, and stay allocated until the returned range has been dropped.
/// unsafe fn join<'a>(
///     dev: &'a Device<Bound>,
///     pages: [PhysBvec; 2],
/// ) -> Result<Option<IovaSpace<Dma<'a>, kernel::physdma::Synced>>> {
///     let size = pages[0].len() as usize + pages[1].len() as usize;
///     let Some(mut space) =
///         IovaSpace::try_alloc(Dma::new(dev), pages[0].phys(), size, DataDirection::ToDevice)
///     else {
///         return Ok(None);
///     };
///     for page in pages {
///         // SAFETY: By the safety requirements of this function.
///         unsafe { space.link(page, Memory::Ram) }?;
///     }
///     let space = space.sync()?;
///     dev_dbg!(dev, "{} bytes at {:#x}\n", space.len(), space.addr());
///     Ok(Some(space))
/// }
/// ```
pub struct IovaSpace<B: Backend, S: State> {
    backend: B,
    iova: Iova,
    linked: usize,
    dir: DataDirection,
    memory: Memory,
    state: S,
}

impl<B: Backend> IovaSpace<B, Linking> {
    /// Allocates IOVA space for `size` bytes of memory of which the first are at `first`.
    ///
    /// The address of the first byte decides where in an IOMMU page the range starts, so it must
    /// be the memory that is linked first.
    ///
    /// Returns [`None`] where there is no such thing as IOVA space for the device (no IOMMU, or
    /// one in passthrough mode), where it is used up, and for a `size` of zero. The caller then
    /// maps piece by piece: [`Backend::map_phys`].
    ///
    /// May be called in atomic context.
    #[inline]
    pub fn try_alloc(backend: B, first: PhysAddr, size: usize, dir: DataDirection) -> Option<Self> {
        if size == 0 {
            return None;
        }
        let granule = u32::try_from(backend.merge_boundary()).ok()?;
        let iova = backend.try_alloc(first, size)?;
        // INVARIANT: Just allocated, with nothing linked.
        Some(Self {
            backend,
            iova,
            linked: 0,
            dir,
            // Until something else is linked.
            memory: Memory::Mmio,
            state: Linking { granule },
        })
    }

    /// Links `piece` behind what is linked already.
    ///
    /// The device does not see it before [`Self::sync`]. May be called in atomic context.
    ///
    /// # Errors
    ///
    /// - `EOPNOTSUPP`: RAM and a provider's memory are mixed, and the device is not coherent; or
    ///   [`Memory::RamInPlace`] is mixed with anything else.
    /// - `EINVAL`: the piece is longer than what is left of the range; or it is the first and does
    ///   not start where in its granule [`Self::try_alloc`] was told; or it is not the first and
    ///   does not start on the IOMMU's granule, or what is linked already does not end on it.
    /// - What the IOMMU driver returns, usually `ENOMEM`.
    ///
    /// Nothing has changed then, and the next piece may be tried.
    ///
    /// # Safety
    ///
    /// The memory is of kind `memory`, and stays until this range, in whichever state, has been
    /// dropped: RAM stays allocated, a provider's memory is not revoked.
    #[inline]
    pub unsafe fn link(&mut self, piece: PhysBvec, memory: Memory) -> Result {
        self.check_kind(memory)?;
        self.check_place(self.linked, piece)?;
        let len = piece.len() as usize;

        // SAFETY: By the type invariants the range is allocated and linked up to `self.linked`;
        // the granule has just been checked; what the memory is, our own safety requirements say.
        unsafe {
            self.backend.link(
                &mut self.iova,
                piece.phys(),
                self.linked,
                len,
                self.dir,
                memory,
            )
        }?;
        // INVARIANT: `len` more bytes are linked, and there was room for them.
        self.linked += len;
        self.set_kind(memory);
        Ok(())
    }

    /// Links all of `pieces` one behind the other, behind what is linked already.
    ///
    /// The same as [`Self::link`] for each, but the IOMMU's page table is walked once for many of
    /// them. May be called in atomic context.
    ///
    /// # Errors
    ///
    /// Those of [`Self::link`]. Pieces before the one that failed may have been linked then.
    ///
    /// # Safety
    ///
    /// As for [`Self::link`], of all pieces.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::physdma::{Backend, IovaSpace, Linking, Memory, PhysBvec};
    ///
    /// /// Adds a list of pages.
    /// ///
    /// /// # Safety
    /// ///
    /// /// They are RAM, and stay allocated until `space` has been dropped.
    /// unsafe fn add<B: Backend>(
    ///     space: &mut IovaSpace<B, Linking>,
    ///     pages: &[PhysBvec],
    /// ) -> Result {
    ///     // SAFETY: By the safety requirements of this function.
    ///     unsafe { space.link_all(pages.iter().copied(), Memory::Ram) }
    /// }
    /// ```
    #[inline]
    pub unsafe fn link_all(
        &mut self,
        pieces: impl Iterator<Item = PhysBvec>,
        memory: Memory,
    ) -> Result {
        let mut room = [MaybeUninit::uninit(); BATCH];
        let mut batch = Batch::new(&mut room);

        self.check_kind(memory)?;
        for piece in pieces {
            self.check_place(self.linked + batch.bytes, piece)?;
            if !batch.push(piece) {
                // SAFETY: The places of all that is in the batch have been checked; the rest our
                // own safety requirements say.
                unsafe { self.link_batch(&batch, memory) }?;
                batch.clear();
                batch.push(piece);
            }
        }
        // SAFETY: As above.
        unsafe { self.link_batch(&batch, memory) }
    }

    /// Links what is in `batch`.
    ///
    /// # Safety
    ///
    /// As for [`Self::link_all`]; and each piece has been found to fit its place, and its kind what
    /// is linked already.
    #[inline]
    unsafe fn link_batch(&mut self, batch: &Batch<'_>, memory: Memory) -> Result {
        let mut linked = self.linked;

        // SAFETY: By the type invariants the range is allocated and linked up to `self.linked`;
        // the rest the safety requirements say.
        let result = unsafe {
            self.backend.link_vec(
                &mut self.iova,
                batch.pieces(),
                &mut linked,
                self.dir,
                memory,
            )
        };
        if linked > self.linked {
            // INVARIANT: So many bytes are linked, and there was room for them.
            self.linked = linked;
            self.set_kind(memory);
        }
        result
    }

    /// Whether memory of this kind may be linked behind what is linked already.
    ///
    /// Kinds are undone differently: RAM and a provider's memory where caches have to be looked
    /// after, and what may be bounced and what may not everywhere.
    #[inline]
    fn check_kind(&self, memory: Memory) -> Result {
        if self.linked > 0 && memory != self.memory {
            let in_place = [memory, self.memory].contains(&Memory::RamInPlace);
            if in_place || !self.backend.coherent() {
                return Err(EOPNOTSUPP);
            }
        }
        Ok(())
    }

    /// Remembers that memory of this kind was linked, which was found to be allowed.
    #[inline]
    fn set_kind(&mut self, memory: Memory) {
        // INVARIANT: If it is another kind than what was linked before, the device is coherent.
        if memory != Memory::Mmio {
            self.memory = memory;
        }
    }

    /// Whether `piece` may be linked when `at` bytes are linked.
    #[inline]
    fn check_place(&self, at: usize, piece: PhysBvec) -> Result {
        // The range starts where the first piece does in its granule, so a place in it tells where
        // the piece in front ends in its own.
        let place = self.iova.addr().wrapping_add(at as DmaAddress) & self.state.granule();
        // CAST: The granule has 32 bits.
        let offset = piece.phys() as DmaAddress & self.state.granule();

        if piece.len() as usize > self.iova.size() - at || offset != place || at > 0 && place != 0 {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Makes what is linked visible to the device.
    ///
    /// May be called in atomic context.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: nothing is linked.
    /// - What the IOMMU driver returns.
    ///
    /// The range has been unlinked and freed then.
    #[inline]
    pub fn sync(mut self) -> Result<IovaSpace<B, Synced>> {
        if self.linked == 0 {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariants `self.linked` bytes are linked.
        unsafe { self.backend.sync(&mut self.iova, self.linked) }?;

        let this = ManuallyDrop::new(self);
        // INVARIANT: Something is linked, and it was just synced. `this` is not dropped, so there
        // is still one owner.
        Ok(IovaSpace {
            backend: this.backend,
            iova: this.iova,
            linked: this.linked,
            dir: this.dir,
            memory: this.memory,
            state: Synced(()),
        })
    }
}

impl<B: Backend> IovaSpace<B, Synced> {
    /// The DMA address of the first byte of the range.
    #[inline]
    pub fn addr(&self) -> DmaAddress {
        self.iova.addr()
    }

    /// The length of the range in bytes: the sum of all pieces that were linked; never zero.
    #[inline]
    #[expect(clippy::len_without_is_empty)] // It never is.
    pub fn len(&self) -> usize {
        self.linked
    }
}

impl<B: Backend, S: State> Drop for IovaSpace<B, S> {
    /// Takes the memory away from the device and frees the range, with one invalidation.
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants exactly `self.linked` bytes are linked in `self.dir`, and
        // are what `self.memory` says.
        unsafe {
            self.backend
                .destroy(&mut self.iova, self.linked, self.dir, self.memory)
        }
    }
}
