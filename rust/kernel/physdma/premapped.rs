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
//! [`Client`]: super::Client
//! [`OwnedRam`]: super::OwnedRam

use super::{
    attachment::Live,
    dependents::Dependent,
    failures,
    plan::Grid,
    provider::{
        Hold,
        Holder,
        Provider, //
    },
    run::wide_dma,
    segment::{
        Origin,
        Path,
        Segment, //
    },
    Limits, //
};
use crate::{
    dma::{
        DataDirection,
        DmaAddress, //
    },
    new_mutex,
    prelude::*,
    sync::{
        percpu_ref::Notified,
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

/// Where the device finds the bytes of a buffer.
pub(super) struct Layout {
    /// Of the first byte, if `units` is empty: then all follow.
    base: DmaAddress,
    /// Of the first byte of each unit of `grid`.
    pub(super) units: KVVec<DmaAddress>,
    pub(super) grid: Grid,
    /// What the first byte is.
    origin: Origin,
    path: Path,
}

impl Layout {
    pub(super) fn linear(base: DmaAddress, origin: Origin, path: Path) -> Self {
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
        // It has never been in a queue. A queue whose work may take long: page tables are undone,
        // pages unpinned.
        let _ = workqueue::system_long().enqueue(self.reaper.clone());
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

/// What is kept for a buffer until its last slice has gone. Dropped in this order.
pub(super) struct Kept {
    /// Dropping it unmaps.
    pub(super) _mapped: KBox<dyn Send>,
    /// For a provider's memory.
    pub(super) _live: Option<Live>,
    /// For RAM.
    pub(super) _memory: Option<KBox<dyn Send>>,
    pub(super) _dependent: Dependent,
}

/// All that there is until the last slice has gone. Dropped in this order.
struct All {
    _kept: Kept,
    /// It is there as long as slices are.
    _buffer: Arc<PercpuRef<Buffer>>,
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
    pub(super) fn new(
        kept: Kept,
        layout: Layout,
        limits: Limits,
        len: u64,
        dir: DataDirection,
    ) -> Result<Self> {
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
        *reaper.all.lock() = Some(All {
            _kept: kept,
            _buffer: buffer.clone(),
        });
        Ok(Self {
            hold: None,
            buffer,
            _client: PhantomData,
        })
    }

    /// Ends it when the memory of `provider`, which it is, goes.
    pub(super) fn hold(mut self, provider: &Provider) -> Result<Self> {
        self.hold = Some(provider.hold(self.buffer.clone())?);
        Ok(self)
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
