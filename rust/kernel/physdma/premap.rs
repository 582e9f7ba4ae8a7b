// SPDX-License-Identifier: GPL-2.0

//! Buffers that are mapped once and used many times: [`Premapped`].
//!
//! To map memory for each request is what an IOMMU costs. A buffer that a program or a driver uses
//! again and again is mapped once for a [`Client`]; a request takes a [`PremappedSlice`] of it, and
//! what that costs depends neither on the IOMMU nor on the size of the buffer.
//!
//! Who owns what:
//!
//! - a [`Premapped`] owns the memory: it has what keeps RAM allocated ([`OwnedRam`]), and a weak
//!   reference to a provider. It borrows the client. Dropping it does not wait for the device;
//! - a [`PremappedSlice`] lives in a request's private data while the device uses it. As long as
//!   there is one the memory stays mapped and stays where it is, whatever becomes of the
//!   [`Premapped`];
//! - when the [`Premapped`] is gone, or a provider's memory is revoked, and the last slice is gone
//!   too, a work item unmaps the memory, and lets it go. Revocation waits for that, and so does the
//!   client, when it goes: see [`Holder`].
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
    dependents::Dependent,
    failures,
    iova::IovaSpace,
    map::wide_dma,
    plan::Grid,
    provider::{
        Hold,
        Holder,
        Provider, //
    },
    registry,
    route::Route,
    segment::{
        Origin,
        Path,
        Segment, //
    },
    source::private,
    Limits,
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
    new_mutex,
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        percpu_ref::Notified,
        rcu,
        Arc,
        Completion,
        Mutex,
        PercpuRef,
        PercpuRefGuard, //
    },
    time::Jiffies,
    workqueue::{
        self,
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};
use core::marker::PhantomData;

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

/// Where the device finds the bytes of a buffer.
struct Layout {
    /// Of the first byte, if `units` is empty: then all follow.
    base: DmaAddress,
    /// Of the first byte of each unit of `grid`.
    units: KVVec<DmaAddress>,
    grid: Grid,
    /// What the first byte is.
    origin: Origin,
    path: Path,
}

impl Layout {
    fn linear(base: DmaAddress, origin: Origin, path: Path) -> Self {
        Self {
            base,
            units: KVVec::new(),
            grid: Grid::default(),
            origin,
            path,
        }
    }

    #[inline]
    fn is_linear(&self) -> bool {
        self.units.is_empty()
    }

    /// Whether each part of all `len` bytes, as long as a `u32` can say, is one segment.
    fn is_one(&self, len: u64, limits: &Limits) -> bool {
        let window = |addr: u64| addr & !limits.boundary_mask;
        let first = wide_dma(self.base);

        self.is_linear()
            && len.min(u32::MAX.into()) <= limits.max_segment_bytes.into()
            && window(first) == window(first.saturating_add(len - 1))
    }

    /// Where the device finds the byte at `at`, and how many bytes follow it there, of `want` that
    /// are wanted; never none.
    #[inline]
    fn find(&self, at: u64, want: u32) -> (DmaAddress, u32) {
        if self.is_linear() {
            return (self.base.wrapping_add(at as DmaAddress), want);
        }
        self.find_unit(at, want)
    }

    fn find_unit(&self, at: u64, want: u32) -> (DmaAddress, u32) {
        let (mut unit, within) = self.grid.find(at);
        let size = self.grid.unit();
        let start = self.units.get(unit).copied().unwrap_or_default();
        let mut end = start.wrapping_add(size as DmaAddress);
        let mut len = size - within;
        while len < u64::from(want) {
            unit += 1;
            if self.units.get(unit).copied() != Some(end) {
                break;
            }
            end = end.wrapping_add(size as DmaAddress);
            len += size;
        }
        // CAST: At most `want`.
        (
            start.wrapping_add(within as DmaAddress),
            len.min(want.into()) as u32,
        )
    }
}

/// What a slice needs to know of its buffer, and what ends with the last slice.
struct Buffer {
    layout: Layout,
    /// Whether each slice is one segment.
    is_one: bool,
    limits: Limits,
    len: u64,
    dir: DataDirection,
    reaper: Arc<Reaper>,
}

impl Buffer {
    /// Where the segment at `at` is of a slice that may have several, of which it has had `count`
    /// and `left` bytes are left; and how long it is.
    // Not by reference: whoever has one segment only keeps all of this in registers.
    fn find(&self, at: u64, left: u32, count: u16) -> Result<(DmaAddress, u32)> {
        if count == self.limits.max_segments {
            return Err(failures::count(EINVAL));
        }
        let (dma, len) = self.layout.find(at, left);
        Ok((dma, len.min(self.limits.room(wide_dma(dma)))))
    }
}

impl Notified for Buffer {
    fn unreferenced(&self) {
        // It has never been in a queue.
        let _ = workqueue::system_unbound().enqueue(self.reaper.clone());
    }
}

/// The provider's memory goes. Revocation itself waits for what is mapped.
impl Holder for PercpuRef<Buffer> {
    fn name(&self) -> &CStr {
        c"premapped buffer"
    }

    fn revoke(&self) {
        self.kill();
    }
}

/// Undoes the mapping, where it is allowed to sleep.
#[pin_data]
struct Reaper {
    #[pin]
    work: Work<Reaper>,
    #[pin]
    all: Mutex<Option<All>>,
    /// There is nothing any more.
    #[pin]
    done: Completion,
}

impl_has_work! {
    impl HasWork<Self> for Reaper { self.work }
}

impl WorkItem for Reaper {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let all = this.all.lock().take();
        drop(all);
        this.done.complete_all();
    }
}

/// All that there is until the last slice has gone. Dropped in this order.
struct All {
    /// Dropping it unmaps.
    _mapped: KBox<dyn Send>,
    _live: Option<Live>,
    _memory: Option<KBox<dyn Send>>,
    _dependent: Dependent,
    /// It is there as long as slices are.
    _buffer: Option<Arc<PercpuRef<Buffer>>>,
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
        let premapped = Premapped::new(
            // SAFETY: `All` has it, and is dropped before the client and its backend: the client
            // waits for what is a dependent of it.
            unsafe { outlive(mapped) },
            None,
            Some(memory),
            self.dependents.add(),
            layout,
            self.limits,
            len,
            dir,
        )?;
        Ok(premapped)
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
        let mut premapped = Premapped::new(
            // SAFETY: As in `premap`.
            unsafe { outlive(KBox::new(mapped, GFP_KERNEL)?) },
            Some(live),
            None,
            self.dependents.add(),
            layout,
            self.limits,
            len,
            dir,
        )?;
        premapped.hold = Some(provider.hold(premapped.buffer.clone())?);
        Ok(premapped)
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
                while let Some(piece) = source.next() {
                    // SAFETY: It is RAM, which stays until this is unmapped.
                    unsafe { space.link(piece, memory) }.inspect_err(|e| self.refused(*e))?;
                }
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

/// Memory that is mapped for a client until this is dropped, or until it is revoked.
///
/// From [`Client::premap`] and [`Client::premap_provider`].
///
/// Dropping it does not wait for the device: slices that were taken stay good, and the memory stays
/// mapped until the last one has been dropped. May sleep.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma::DataDirection,
///     physdma::{Client, Premapped, PremappedSlice, Provider, Segment},
/// };
///
/// /// A driver's own data beside each request.
/// #[derive(Default)]
/// struct RequestData<'c> {
///     memory: Option<PremappedSlice<'c>>,
/// }
///
/// /// What a program registers, once: all of a provider's memory.
/// fn register<'c>(client: &'c Client<'c>, provider: &Provider) -> Result<Premapped<'c>> {
///     let range = provider.range();
///     let bytes = u64::from(range.last() - range.first()) + 1;
///     client.premap_provider(provider, 0, bytes, DataDirection::Bidirectional)
/// }
///
/// /// What a request does that reads a page of it, or writes one.
/// fn start<'c>(
///     buffer: &Premapped<'c>,
///     page: u64,
///     dir: DataDirection,
///     data: &mut RequestData<'c>,
///     descriptors: &mut KVec<Segment>,
/// ) -> Result {
///     let slice = data.memory.insert(buffer.slice(page * 0x1000, 0x1000, dir)?);
///     let mut segments = slice.segments();
///     while let Some(segment) = segments.next()? {
///         descriptors.push(segment, GFP_ATOMIC)?;
///     }
///     // Start the device.
///     Ok(())
/// }
///
/// /// What the device's interrupt handler does.
/// fn complete(data: &mut RequestData<'_>) {
///     data.memory = None;
/// }
/// ```
pub struct Premapped<'c> {
    /// A provider's memory may go.
    hold: Option<Hold>,
    buffer: Arc<PercpuRef<Buffer>>,
    _client: PhantomData<&'c ()>,
}

impl<'c> Premapped<'c> {
    #[expect(clippy::too_many_arguments)]
    fn new(
        mapped: KBox<dyn Send>,
        live: Option<Live>,
        memory: Option<KBox<dyn Send>>,
        dependent: Dependent,
        layout: Layout,
        limits: Limits,
        len: u64,
        dir: DataDirection,
    ) -> Result<Self> {
        let mut all = All {
            _mapped: mapped,
            _live: live,
            _memory: memory,
            _dependent: dependent,
            _buffer: None,
        };
        let reaper = Arc::pin_init(
            pin_init!(Reaper {
                work <- new_work!("Premapped"),
                all <- new_mutex!(None),
                done <- Completion::new(),
            }),
            GFP_KERNEL,
        )?;
        let buffer = Buffer {
            is_one: layout.is_one(len, &limits),
            layout,
            limits,
            len,
            dir,
            reaper: reaper.clone(),
        };
        let buffer = Arc::pin_init(PercpuRef::new_notified(buffer, GFP_KERNEL), GFP_KERNEL)?;
        all._buffer = Some(buffer.clone());
        *reaper.all.lock() = Some(all);
        Ok(Self {
            hold: None,
            buffer,
            _client: PhantomData,
        })
    }

    /// Takes a part of the memory for a request, which may do with it what `dir` says.
    ///
    /// May be called in any context. Nothing is allocated, and no lock is taken.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: it is empty.
    /// - `EFAULT`: it reaches beyond the end of the buffer; or the buffer is not for `dir`.
    /// - `ENODEV`: the memory is being revoked, or was.
    #[inline]
    pub fn slice(&self, offset: u64, len: u32, dir: DataDirection) -> Result<PremappedSlice<'c>> {
        let buffer: &Buffer = &self.buffer;
        if len == 0 {
            return Err(EINVAL);
        }
        if u64::from(len) > buffer.len || offset > buffer.len - u64::from(len) {
            return Err(EFAULT);
        }
        if dir != buffer.dir && buffer.dir != DataDirection::Bidirectional {
            return Err(EFAULT);
        }
        let live = self.buffer.try_get_live();
        Ok(PremappedSlice {
            buffer: live.ok_or(ENODEV)?,
            offset,
            len,
            _client: PhantomData,
        })
    }

    /// Like dropping it, but waits until the memory has been unmapped and let go of: for the slices
    /// that are in use, but at most for `timeout`. Returns whether it has. Sleeps.
    pub fn unmap(self, timeout: Jiffies) -> bool {
        let reaper = self.buffer.reaper.clone();
        drop(self);
        reaper.done.wait_for_completion_timeout(timeout)
    }

    /// Its length in bytes, which is not zero.
    #[expect(clippy::len_without_is_empty)] // It never is.
    #[inline]
    pub fn len(&self) -> u64 {
        self.buffer.len
    }

    /// Whose memory it is; [`None`] if it is RAM.
    #[inline]
    pub fn provider(&self) -> Option<&Provider> {
        self.hold.as_ref().map(Hold::provider)
    }

    /// What a device may do with it.
    #[inline]
    pub fn direction(&self) -> DataDirection {
        self.buffer.dir
    }

    /// How it was mapped.
    #[inline]
    pub fn path(&self) -> Path {
        self.buffer.layout.path
    }
}

impl Drop for Premapped<'_> {
    fn drop(&mut self) {
        self.buffer.kill();
    }
}

/// A part of [`Premapped`] memory that a request uses: from [`Premapped::slice`].
///
/// It lives in the request's private data until the device has stopped using the memory. Dropping
/// it does not sleep, and may be done in hard interrupt context. As long as it is forgotten
/// revocation waits, and so does the client when it goes.
///
/// # Examples
///
/// See [`Premapped`].
pub struct PremappedSlice<'c> {
    buffer: PercpuRefGuard<Buffer>,
    offset: u64,
    len: u32,
    _client: PhantomData<&'c ()>,
}

// A request's private data are allocated for each tag of each queue.
const _: () = assert!(size_of::<Option<PremappedSlice<'static>>>() <= 24);

impl PremappedSlice<'_> {
    /// Its length in bytes, which is not zero.
    #[expect(clippy::len_without_is_empty)] // It never is.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// How its buffer was mapped.
    #[inline]
    pub fn path(&self) -> Path {
        self.buffer.layout.path
    }

    /// The segments to tell the device.
    #[inline]
    pub fn segments(&self) -> PremappedSegments<'_> {
        PremappedSegments {
            buffer: &self.buffer,
            at: self.offset,
            left: self.len,
            count: 0,
        }
    }
}

/// The segments of a [`PremappedSlice`], like [`Segments`](super::Segments).
///
/// # Examples
///
/// ```
/// use kernel::physdma::PremappedSlice;
///
/// /// How many descriptors the device needs.
/// fn count(slice: &PremappedSlice<'_>) -> Result<u16> {
///     let mut segments = slice.segments();
///     while segments.next()?.is_some() {}
///     Ok(segments.count())
/// }
/// ```
pub struct PremappedSegments<'s> {
    buffer: &'s Buffer,
    at: u64,
    left: u32,
    count: u16,
}

impl PremappedSegments<'_> {
    /// The next segment, within the client's limits; [`None`] at the end.
    ///
    /// May be called in any context.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the slice has more segments than the client can take.
    #[inline]
    #[expect(clippy::should_implement_trait)] // An error ends it, and must not be overlooked.
    pub fn next(&mut self) -> Result<Option<Segment>> {
        if self.left == 0 {
            return Ok(None);
        }
        let layout = &self.buffer.layout;
        let (dma, len) = if self.buffer.is_one {
            (layout.base.wrapping_add(self.at as DmaAddress), self.left)
        } else {
            let found = self.buffer.find(self.at, self.left, self.count);
            found.inspect_err(|_| self.left = 0)?
        };
        let segment = Segment {
            dma,
            len,
            origin: match layout.origin {
                Origin::Internal { bar, offset } => Origin::Internal {
                    bar,
                    offset: offset.wrapping_add(self.at),
                },
                origin => origin,
            },
        };
        // Nothing wraps: they lie within the buffer.
        self.at = self.at.wrapping_add(u64::from(len));
        self.left = self.left.wrapping_sub(len);
        self.count = self.count.wrapping_add(1);
        Ok(Some(segment))
    }

    /// How many segments have been returned.
    #[inline]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// How the memory was mapped.
    #[inline]
    pub fn path(&self) -> Path {
        self.buffer.layout.path
    }
}
