// SPDX-License-Identifier: GPL-2.0

//! Maps memory once for many uses: [`Client::premap`] and [`Client::premap_provider`].
//!
//! Nothing is mapped here that would have to be copied or that caches have to be looked after for:
//! such RAM is refused, and a driver uses [`Client::map`] for each request.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use super::{
    attachment::Live,
    backend::{
        Backend,
        Memory, //
    },
    bvec::wide,
    client::Client,
    failures,
    iova::IovaSpace,
    plan::Grid,
    premapped::{
        Kept,
        Layout,
        Premapped, //
    },
    provider::Provider,
    registry,
    route::Route,
    segment::{
        Origin,
        Path, //
    },
    source::private,
    Miss,
    Pages,
    PhysBvec,
    Source, //
};
#[cfg(CONFIG_MMU)]
use super::{
    Pinned,
    PinnedBvecs, //
};
use crate::{
    dma::{
        DataDirection,
        DmaAddress, //
    },
    io::PhysAddr,
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        rcu,
        Arc, //
    }, //
};
use core::iter;

/// RAM that belongs to whoever has a value of this type, until it is dropped.
///
/// Implemented by [`Pinned`] memory, by a [`KVec`] of [`Page`]s, and by an [`Arc`] of either, with
/// which more than one client can have it. Of [`Pinned`] memory all must be RAM.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma::DataDirection,
///     iov::{IovIterDest, P2pPages},
///     physdma::{Client, OwnedRam, Pinned, Premapped},
///     sync::Arc,
///     uaccess::UserPtr, //
/// };
///
/// /// Has two devices write to the memory of a program from now on.
/// fn share<'c>(
///     clients: [&'c Client<'c>; 2],
///     to: UserPtr,
///     len: usize,
/// ) -> Result<[Premapped<'c>; 2]> {
///     let mut iov = IovIterDest::from_user(to, len)?;
///     let pinned = Pinned::from_device(&mut iov, len, P2pPages::Refuse)?;
///     assert!(pinned.allows(DataDirection::Bidirectional));
///
///     // It is unpinned when both are done with it.
///     let pinned = Arc::new(pinned, GFP_KERNEL)?;
///     Ok([
///         clients[0].premap(pinned.clone(), DataDirection::FromDevice)?,
///         clients[1].premap(pinned, DataDirection::FromDevice)?,
///     ])
/// }
/// ```
pub trait OwnedRam: private::Sealed + Send + 'static {
    /// What the pieces come from.
    type Source<'m>: Source
    where
        Self: 'm;

    /// Whether a device may be let do this with it.
    fn allows(&self, dir: DataDirection) -> bool;

    /// The memory.
    ///
    /// # Errors
    ///
    /// Those of the source.
    ///
    /// # Safety
    ///
    /// `self` is not dropped before what is mapped from the source has been unmapped. Nothing is
    /// mapped that is not allowed.
    unsafe fn source(&self) -> Result<Self::Source<'_>>;
}

#[cfg(CONFIG_MMU)]
impl private::Sealed for Pinned {}

#[cfg(CONFIG_MMU)]
impl OwnedRam for Pinned {
    type Source<'m> = PinnedBvecs<'m>;

    fn allows(&self, dir: DataDirection) -> bool {
        // What was pinned for a device to write may be read too.
        self.direction() == DataDirection::FromDevice || dir == DataDirection::ToDevice
    }

    unsafe fn source(&self) -> Result<PinnedBvecs<'_>> {
        // SAFETY: By the safety requirements.
        Ok(unsafe { self.bvecs() })
    }
}

impl private::Sealed for KVec<Page> {}

impl OwnedRam for KVec<Page> {
    type Source<'m> = Pages<'m>;

    fn allows(&self, _dir: DataDirection) -> bool {
        true
    }

    unsafe fn source(&self) -> Result<Pages<'_>> {
        let bytes = self.len().checked_mul(PAGE_SIZE).ok_or(EOVERFLOW)?;
        // SAFETY: By the safety requirements. What is in a `Page` can be looked at with `unsafe`
        // only.
        unsafe { Pages::new(self, 0, bytes) }
    }
}

impl<M: OwnedRam + Sync> private::Sealed for Arc<M> {}

impl<M: OwnedRam + Sync> OwnedRam for Arc<M> {
    type Source<'m> = M::Source<'m>;

    fn allows(&self, dir: DataDirection) -> bool {
        M::allows(self, dir)
    }

    unsafe fn source(&self) -> Result<M::Source<'_>> {
        // SAFETY: By the safety requirements.
        unsafe { M::source(self) }
    }
}

/// Pieces that were mapped one by one, and must be unmapped.
struct Singles<B: Backend> {
    backend: B,
    list: KVVec<(DmaAddress, usize)>,
    dir: DataDirection,
    memory: Memory,
}

impl<B: Backend> Singles<B> {
    fn new(backend: B, dir: DataDirection, memory: Memory) -> Self {
        Self {
            backend,
            list: KVVec::new(),
            dir,
            memory,
        }
    }

    /// Maps a piece.
    ///
    /// # Safety
    ///
    /// It is of kind `memory`, and stays until `self` has been dropped.
    unsafe fn map(&mut self, phys: PhysAddr, len: usize) -> Result<DmaAddress> {
        self.list.reserve(1, GFP_KERNEL)?;
        // SAFETY: By the safety requirements.
        let dma = unsafe { self.backend.map_phys(phys, len, self.dir, self.memory) }?;
        if self.backend.need_unmap() {
            self.list.push((dma, len), GFP_KERNEL)?;
        }
        Ok(dma)
    }
}

impl<B: Backend> Drop for Singles<B> {
    fn drop(&mut self) {
        for &(dma, len) in &self.list {
            // SAFETY: It was mapped so, and is unmapped once.
            unsafe { self.backend.unmap_phys(dma, len, self.dir, self.memory) };
        }
    }
}

/// Forgets how long `mapped` is valid.
///
/// # Safety
///
/// What is returned is dropped before `'b` ends.
unsafe fn outlive<'b>(mapped: KBox<dyn Send + 'b>) -> KBox<dyn Send> {
    // SAFETY: The types differ in a lifetime, of which the caller takes care.
    unsafe { core::mem::transmute::<KBox<dyn Send + 'b>, KBox<dyn Send>>(mapped) }
}

impl<'c, B: Backend + Send + 'c> Client<'_, B> {
    /// Maps RAM for many uses. Sleeps.
    ///
    /// The device may do with it what `dir` says; what a slice is for is said when it is taken.
    ///
    /// Where an IOMMU is in use all of it becomes one range, or is one piece. Else there is a table
    /// with the address of each part, which are as large as the memory allows.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the memory is empty, or `dir` is none; or it is not in whole pages but where it
    ///   begins and ends.
    /// - `EACCES`: it was pinned for a device to read, and `dir` is another.
    /// - `EREMOTEIO`: a part of it is memory of a PCI device. [`Client::premap_provider`] is for
    ///   that.
    /// - `EFAULT`: no device can reach a part of it.
    /// - `EOPNOTSUPP`: the device is not coherent. The log has it.
    /// - `EPERM`: the memory would have to be bounced. The log has it.
    /// - `ENOMEM`: also where there is no IOVA space or page table to be had.
    ///
    /// The memory has been dropped then.
    pub fn premap<M: OwnedRam>(&'c self, memory: M, dir: DataDirection) -> Result<Premapped<'c>> {
        if dir == DataDirection::None {
            return Err(EINVAL);
        }
        if !memory.allows(dir) {
            return Err(EACCES);
        }
        // Declared, and thus dropped, before what keeps the memory.
        let memory = KBox::new(memory, GFP_KERNEL)?;
        let result = {
            // SAFETY: What is mapped owns the memory below, and is dropped before it; or it is
            // dropped here. `dir` is allowed.
            let mut source = unsafe { memory.source() }?;
            self.map_ram(&mut source, dir)
                .map(|(mapped, layout)| (mapped, layout, source.bytes() as u64))
        };
        let (mapped, layout, len) = result.map_err(failures::count)?;
        let kept = Kept {
            // SAFETY: It is dropped before the client and its backend: the client waits for what is
            // a dependent of it.
            _mapped: unsafe { outlive(mapped) },
            _live: None,
            _memory: Some(memory),
            _dependent: self.dependents.add(),
        };
        Premapped::new(kept, layout, self.limits, len, dir)
    }

    /// Maps `len` bytes at `offset` of a provider's memory for many uses. Sleeps.
    ///
    /// What it costs does not depend on `len`, but for the page tables of an IOMMU on the way.
    ///
    /// Revocation of the memory ends it: no more slices can be taken from the first step on, and
    /// those in flight are waited for.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: it is empty, or reaches beyond the end of the memory; `dir` is none; or there is
    ///   no route, for the reason that [`Client::route`] gives and the log has.
    /// - `EFAULT`: the provider is a C driver that hands its memory out by the page.
    /// - `ENODEV`: the memory is being revoked.
    /// - `ENOMEM`: no IOVA space or page table could be had.
    pub fn premap_provider(
        &'c self,
        provider: &Provider,
        offset: u64,
        len: u64,
        dir: DataDirection,
    ) -> Result<Premapped<'c>> {
        self.map_provider(provider, offset, len, dir)
            .map_err(failures::count)
    }

    fn map_provider(
        &'c self,
        provider: &Provider,
        offset: u64,
        len: u64,
        dir: DataDirection,
    ) -> Result<Premapped<'c>> {
        let range = provider.range();
        let size = wide(range.last() - range.first()) + 1;
        if len == 0 || len > size || offset > size - len || dir == DataDirection::None {
            return Err(EINVAL);
        }
        if provider.has_pages() {
            return Err(EFAULT);
        }
        let attachment = self.attachment(provider).ok_or(ENODEV)?;
        let (route, _) = attachment.route.inspect_err(|_| attachment.refuse(range))?;
        let live = Live::new(&attachment, &rcu::read_lock()).ok_or(ENODEV)?;

        // CAST: It lies within the range.
        let phys = range.first() + offset as PhysAddr;
        let mut mapped = Singles::new(self.backend, dir, Memory::Mmio);
        // CAST: The route has seen that it fits the device's DMA mask.
        let address = |bus_offset: u64| wide(phys).wrapping_add(bus_offset) as DmaAddress;
        let layout = match route {
            Route::HostBridge => {
                let bytes = usize::try_from(len)?;
                // SAFETY: It is a provider's memory, which `live` keeps until it is unmapped.
                let dma = unsafe { mapped.map(phys, bytes) }?;
                Layout::linear(dma, Origin::Mapped, Path::Single)
            }
            Route::Bus { offset } => Layout::linear(address(offset), Origin::Bus, Path::Bus),
            Route::Internal {
                bar,
                offset: bus_offset,
            } => {
                let offset = range.start() + offset;
                let origin = Origin::Internal { bar, offset };
                Layout::linear(address(bus_offset), origin, Path::Internal)
            }
        };
        let kept = Kept {
            // SAFETY: As in `premap`.
            _mapped: unsafe { outlive(KBox::new(mapped, GFP_KERNEL)?) },
            _live: Some(live),
            _memory: None,
            _dependent: self.dependents.add(),
        };
        Premapped::new(kept, layout, self.limits, len, dir)?.hold(provider)
    }

    /// Maps all of `source`.
    fn map_ram(
        &self,
        source: &mut impl Source,
        dir: DataDirection,
    ) -> Result<(KBox<dyn Send + 'c>, Layout)> {
        let backend = self.backend;
        let memory = Memory::RamInPlace;
        if !self.coherent {
            self.warn("is not coherent");
            return Err(EOPNOTSUPP);
        }

        let mut grid = Grid::default();
        let mut first = None;
        let mut count = 0;
        while let Some(piece) = source.next() {
            if source.miss() != Miss::Ram || Self::is_owned(piece) {
                return Err(EREMOTEIO);
            }
            first.get_or_insert(piece);
            grid.add(piece.len());
            count += 1;
        }
        let first = first.ok_or(EINVAL)?;
        let bytes = source.bytes();
        source.rewind();

        let boundary = self.merge_boundary;
        // A single piece that is no whole number of pages is bounced for devices that are not
        // trusted, and only this path says that it was refused for that.
        let is_odd = wide(first.phys() | first.end()) & boundary != 0;
        if (count > 1 || is_odd) && boundary != 0 && source.gaps() & boundary == 0 {
            if let Some(mut space) = IovaSpace::try_alloc(backend, first.phys(), bytes, dir) {
                let pieces = iter::from_fn(|| source.next());
                // SAFETY: It is RAM, which stays until this is unmapped.
                unsafe { space.link_all(pieces, memory) }.inspect_err(|e| self.refused(*e))?;
                let space = space.sync()?;
                let layout = Layout::linear(space.addr(), Origin::Mapped, Path::Iova);
                return Ok((KBox::new(space, GFP_KERNEL)?, layout));
            }
        }

        let mut mapped = Singles::new(backend, dir, memory);
        let mut units = KVVec::new();
        if count > 1 && !grid.finish(PAGE_SIZE as u64) {
            return Err(EINVAL);
        }
        let mut base = 0;
        while let Some(piece) = source.next() {
            // SAFETY: As above.
            let dma = unsafe { mapped.map(piece.phys(), piece.len() as usize) }
                // Without an IOMMU nothing else can fail.
                .map_err(|e| if boundary == 0 { EPERM } else { e })
                .inspect_err(|e| self.refused(*e))?;
            if count == 1 {
                base = dma;
                break;
            }
            for start in grid.starts(piece.len()) {
                units.push(dma.wrapping_add(start as DmaAddress), GFP_KERNEL)?;
            }
        }
        let path = if count == 1 {
            Path::Single
        } else {
            Path::Direct
        };
        let mut layout = Layout::linear(base, Origin::Mapped, path);
        layout.units = units;
        layout.grid = grid;
        Ok((KBox::new(mapped, GFP_KERNEL)?, layout))
    }

    /// Whether a part of `piece`, of a source that vouches for RAM, is a provider's.
    fn is_owned(piece: PhysBvec) -> bool {
        let (owner, len) = registry::owner_of(piece);
        owner.is_some() || len != piece.len()
    }

    /// Says why RAM was refused, if it was.
    fn refused(&self, error: Error) {
        if error == EPERM {
            self.warn("can use such memory through bounce buffers only");
        }
    }

    #[cold]
    fn warn(&self, why: &str) {
        if let Some(dev) = self.backend.bound_device() {
            dev_warn!(dev, "cannot have RAM mapped for many uses: it {}\n", why);
        }
    }
}
