// SPDX-License-Identifier: GPL-2.0

//! Where memory comes from: [`Source`], and the sources.
//!
//! Twelve bytes carry no provenance, so the type of the source does. A source that is made of
//! pages knows that what no provider owns is RAM ([`Miss::Ram`]); a list of raw addresses does not
//! ([`Miss::Refuse`]), and is never taken for RAM by default: a transfer to the wrong place would
//! be reported as a success.

use super::{
    bvec::wide,
    BvecKind,
    Merge,
    PhysBvec, //
};
#[cfg(CONFIG_BLOCK)]
use crate::block::mq::{
    Bvecs,
    Request, //
};
#[cfg(CONFIG_BLOCK)]
use crate::page::BorrowedPage;
use crate::{
    bindings,
    do_once_lite,
    io::PhysAddr,
    page::{
        Page,
        PageKind,
        PAGE_MASK,
        PAGE_SIZE, //
    },
    prelude::*, //
};
#[cfg(CONFIG_BLOCK)]
use core::ptr::NonNull;

/// What memory is that no provider has registered.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{Miss, Raw, Source, Virt};
///
/// assert_eq!(<Raw<'_> as Source>::MISS, Miss::Refuse);
/// assert_eq!(<Virt as Source>::MISS, Miss::Ram);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// RAM.
    Ram,
    /// Unknown: it must not be mapped.
    Refuse,
}

pub(super) mod private {
    pub trait Sealed {}
}

/// Memory to be mapped for a device, in order, as [`PhysBvec`]s.
///
/// Implemented by [`ReqBvecs`], [`PhysReqBvecs`], [`Virt`], [`Pages`], [`PinnedBvecs`], [`Mixed`]
/// and [`Raw`].
///
/// [`PinnedBvecs`]: super::PinnedBvecs
///
/// # Examples
///
/// ```
/// use kernel::physdma::{PhysBvec, Source};
///
/// /// How many pieces there are.
/// fn count(mut source: impl Source) -> usize {
///     let mut count = 0;
///     while source.next().is_some() {
///         count += 1;
///     }
///     count
/// }
///
/// let list = [PhysBvec::new(0x1000, 16), PhysBvec::new(0x1010, 16), PhysBvec::new(0x4000, 1)];
/// let list = [list[0].ok_or(EINVAL)?, list[1].ok_or(EINVAL)?, list[2].ok_or(EINVAL)?];
/// // Neighbours are one.
/// assert_eq!(count(kernel::physdma::Raw::new(&list)?), 2);
/// # Ok::<(), Error>(())
/// ```
pub trait Source: private::Sealed {
    /// What a piece is that no provider has registered. Where it depends on the piece:
    /// [`Miss::Refuse`], and [`miss()`](Self::miss) says more.
    const MISS: Miss;

    /// Whether it is made of pages: who has those was given the memory. Where a piece is just an
    /// address, and nobody vouches for it, memory that a C driver hands out by its pages is
    /// refused.
    const PAGES: bool = false;

    /// Whether all pieces are of the kind of the first one: RAM, or of one provider. A source of
    /// which that is true vouches for RAM: [`MISS`](Self::MISS) is [`Miss::Ram`].
    const UNIFORM: bool = false;

    /// The same of these pieces, if it is not true of all sources of this type.
    #[inline]
    fn is_uniform(&self) -> bool {
        Self::UNIFORM
    }

    /// The length of all pieces in bytes.
    fn bytes(&self) -> usize;

    /// All address bits in which two neighbouring pieces do not fit together: where the one ends
    /// and the next one starts, or'ed. The pieces can be made one DMA range if none of these bits
    /// is in the merge boundary.
    fn gaps(&self) -> u64;

    /// The next piece, as long as neighbouring memory makes it.
    fn next(&mut self) -> Option<PhysBvec>;

    /// What the piece is that [`next()`](Self::next) returned last, if no provider has registered
    /// it.
    #[inline]
    fn miss(&self) -> Miss {
        Self::MISS
    }

    /// Starts again with the first piece.
    fn rewind(&mut self);

    /// All of the memory, if it can be known without walking it that it is one piece.
    #[inline]
    fn only(&self) -> Option<PhysBvec> {
        None
    }

    /// Whether all of the memory lies between `first` and `last`. Where that cannot be known
    /// cheaply: no.
    #[inline]
    fn lies_within(&self, _first: PhysAddr, _last: PhysAddr) -> bool {
        false
    }
}

impl<S: Source> private::Sealed for &mut S {}

/// A source may be lent, which saves moving it.
impl<S: Source> Source for &mut S {
    const MISS: Miss = S::MISS;
    const PAGES: bool = S::PAGES;
    const UNIFORM: bool = S::UNIFORM;

    #[inline]
    fn is_uniform(&self) -> bool {
        S::is_uniform(self)
    }

    #[inline]
    fn bytes(&self) -> usize {
        S::bytes(self)
    }

    #[inline]
    fn gaps(&self) -> u64 {
        S::gaps(self)
    }

    // What is not inlined is `S::next`, so that nobody sees where `self` is.
    #[inline(always)]
    fn next(&mut self) -> Option<PhysBvec> {
        S::next(self)
    }

    #[inline]
    fn miss(&self) -> Miss {
        S::miss(self)
    }

    #[inline(always)]
    fn rewind(&mut self) {
        S::rewind(self);
    }

    #[inline]
    fn only(&self) -> Option<PhysBvec> {
        S::only(self)
    }

    #[inline]
    fn lies_within(&self, first: PhysAddr, last: PhysAddr) -> bool {
        S::lies_within(self, first, last)
    }
}

/// What a page is for DMA: [`BvecKind::Ram`], [`BvecKind::Provider`], or what must not be mapped.
///
/// RAM is also what C treats as RAM: persistent memory, and what is coherent for CPUs and devices.
#[inline]
pub(super) fn kind_of(page: &Page) -> BvecKind {
    match page.kind() {
        PageKind::Ordinary | PageKind::FsDax | PageKind::Generic | PageKind::Coherent => {
            BvecKind::Ram
        }
        PageKind::PciP2pdma => BvecKind::Provider,
        PageKind::DevicePrivate | PageKind::Unknown => BvecKind::Private,
    }
}

/// What a page is for DMA, if it may be mapped.
///
/// # Errors
///
/// `EFAULT`: no other device can reach it, or it is not known whether one can. The log has it,
/// once.
#[inline]
pub(super) fn reachable(page: &Page) -> Result<BvecKind> {
    match kind_of(page) {
        BvecKind::Private => Err(unreachable(page.phys(), page.kind())),
        kind => Ok(kind),
    }
}

#[cold]
fn unreachable(phys: PhysAddr, kind: PageKind) -> Error {
    do_once_lite! {
        pr_warn!("physdma: no DMA to the page at {:#x}: its memory is {:?}\n", phys, kind)
    }
    EFAULT
}

/// A list of raw physical addresses, of which nothing is known but what the provider registry
/// says.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{PhysBvec, Raw, Source};
///
/// let list = [
///     PhysBvec::new(0x1000, 0x1000).ok_or(EINVAL)?,
///     PhysBvec::new(0x8000, 0x200).ok_or(EINVAL)?,
/// ];
/// let mut source = Raw::new(&list)?;
/// assert_eq!(source.bytes(), 0x1200);
/// assert_eq!(source.next(), Some(list[0]));
/// # Ok::<(), Error>(())
/// ```
pub struct Raw<'r> {
    list: &'r [PhysBvec],
    pieces: Merge<core::iter::Copied<core::slice::Iter<'r, PhysBvec>>>,
    bytes: usize,
    gaps: u64,
}

impl<'r> Raw<'r> {
    /// The pieces of `list`, in order.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the list is empty.
    /// - `EOVERFLOW`: the sum of the lengths does not fit a `usize`.
    pub fn new(list: &'r [PhysBvec]) -> Result<Self> {
        let (bytes, gaps) = measure(list.iter())?;
        Ok(Self {
            list,
            pieces: Merge::new(list.iter().copied()),
            bytes,
            gaps,
        })
    }
}

impl private::Sealed for Raw<'_> {}

impl Source for Raw<'_> {
    const MISS: Miss = Miss::Refuse;

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn gaps(&self) -> u64 {
        self.gaps
    }

    #[inline]
    fn next(&mut self) -> Option<PhysBvec> {
        self.pieces.next()
    }

    fn rewind(&mut self) {
        self.pieces = Merge::new(self.list.iter().copied());
    }

    #[inline]
    fn only(&self) -> Option<PhysBvec> {
        match self.list {
            [only] => Some(*only),
            _ => None,
        }
    }

    #[inline]
    fn lies_within(&self, first: PhysAddr, last: PhysAddr) -> bool {
        let within = |piece: &PhysBvec| piece.phys() >= first && piece.last() <= last;
        self.list.iter().all(within)
    }
}

/// Pieces of RAM and of providers' memory, mixed as one likes.
///
/// What is said to be a provider's memory is never taken for RAM, though the provider may have gone
/// meanwhile.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma::DataDirection,
///     physdma::{Client, Mapping, Mixed, Part, PhysBvec},
/// };
///
/// /// Has the device write a header to RAM, and the data behind it to another device's memory.
/// ///
/// /// # Safety
/// ///
/// /// `header` is RAM that stays allocated until `mapping` is unmapped.
/// unsafe fn map<'a>(
///     client: &'a Client<'a>,
///     header: PhysBvec,
///     data: PhysBvec,
///     mapping: &mut Mapping<'a>,
/// ) -> Result {
///     let parts = [Part::Ram(&[header]), Part::Provider(&[data])];
///     // SAFETY: By the safety requirements of this function.
///     let source = unsafe { Mixed::new(&parts) }?;
///     let mut segments = client.map(mapping, source, DataDirection::FromDevice)?;
///     while let Some(segment) = segments.next()? {
///         // Write `segment.dma` and `segment.len` into the device's descriptor.
///         pr_debug!("{:#x} {}\n", segment.dma, segment.len);
///     }
///     Ok(())
/// }
/// ```
pub struct Mixed<'r> {
    parts: &'r [Part<'r>],
    /// How many of them have been begun.
    begun: usize,
    pieces: Merge<core::iter::Copied<core::slice::Iter<'r, PhysBvec>>>,
    bytes: usize,
    gaps: u64,
}

/// A part of a [`Mixed`] source.
///
/// # Examples
///
/// See [`Mixed`].
#[derive(Clone, Copy)]
pub enum Part<'r> {
    /// RAM.
    Ram(&'r [PhysBvec]),
    /// Memory of providers.
    Provider(&'r [PhysBvec]),
}

impl<'r> Part<'r> {
    fn pieces(self) -> &'r [PhysBvec] {
        match self {
            Self::Ram(pieces) | Self::Provider(pieces) => pieces,
        }
    }
}

impl<'r> Mixed<'r> {
    /// The pieces of `parts`, in order.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: there is no piece.
    /// - `EOVERFLOW`: the sum of the lengths does not fit a `usize`.
    ///
    /// # Safety
    ///
    /// - What is said to be RAM is, and stays allocated until what is mapped from this source has
    ///   been unmapped.
    /// - Where the device or the CPU writes, that RAM may be written, and nobody else touches it
    ///   meanwhile.
    pub unsafe fn new(parts: &'r [Part<'r>]) -> Result<Self> {
        let (bytes, gaps) = measure_lists(parts.iter().map(|part| part.pieces().iter()))?;
        Ok(Self {
            parts,
            begun: 0,
            pieces: Merge::new([].iter().copied()),
            bytes,
            gaps,
        })
    }
}

impl private::Sealed for Mixed<'_> {}

impl Source for Mixed<'_> {
    const MISS: Miss = Miss::Refuse;

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn gaps(&self) -> u64 {
        self.gaps
    }

    fn next(&mut self) -> Option<PhysBvec> {
        loop {
            if let Some(piece) = self.pieces.next() {
                return Some(piece);
            }
            let part = self.parts.get(self.begun)?;
            self.begun += 1;
            self.pieces = Merge::new(part.pieces().iter().copied());
        }
    }

    fn miss(&self) -> Miss {
        match self.begun.checked_sub(1).and_then(|at| self.parts.get(at)) {
            Some(Part::Ram(_)) => Miss::Ram,
            _ => Miss::Refuse,
        }
    }

    fn rewind(&mut self) {
        self.begun = 0;
        self.pieces = Merge::new([].iter().copied());
    }
}

/// The sum of the lengths, and all address bits in which neighbours do not fit together.
fn measure<'r>(pieces: impl Iterator<Item = &'r PhysBvec>) -> Result<(usize, u64)> {
    measure_lists(core::iter::once(pieces))
}

/// The same of several lists: what is in two of them is never one piece.
fn measure_lists<'r>(
    lists: impl Iterator<Item = impl Iterator<Item = &'r PhysBvec>>,
) -> Result<(usize, u64)> {
    let mut bytes = 0usize;
    let mut gaps = 0u64;
    let mut prev: Option<PhysBvec> = None;

    for list in lists {
        let mut is_first = true;
        for &piece in list {
            bytes = bytes.checked_add(piece.len() as usize).ok_or(EOVERFLOW)?;
            if let Some(prev) = prev {
                if is_first || prev.join(piece).is_none() {
                    gaps |= wide(prev.end() | piece.phys());
                }
            }
            prev = Some(piece);
            is_first = false;
        }
    }
    if bytes == 0 {
        return Err(EINVAL);
    }
    Ok((bytes, gaps))
}

/// The memory of a block request that has pages: all bios, walked in place.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::mq::Request,
///     dma::DataDirection,
///     physdma::{Client, Mapping, ReqBvecs},
/// };
///
/// /// Maps the data that the device is to read.
/// ///
/// /// # Safety
/// ///
/// /// `mapping` is unmapped before the request is ended.
/// unsafe fn map<'a>(
///     client: &'a Client<'a>,
///     request: &Request,
///     mapping: &mut Mapping<'a>,
/// ) -> Result {
///     // SAFETY: By the safety requirements of this function; it is not written.
///     let source = unsafe { ReqBvecs::new(request) };
///     let mut segments = client.map(mapping, source, DataDirection::ToDevice)?;
///     while let Some(segment) = segments.next()? {
///         // Write `segment.dma` and `segment.len` into the device's descriptor.
///         pr_debug!("{:#x} {}\n", segment.dma, segment.len);
///     }
///     Ok(())
/// }
/// ```
#[cfg(CONFIG_BLOCK)]
pub struct ReqBvecs<'r> {
    request: &'r Request,
    /// Once the walk has begun.
    pieces: Option<Merge<ReqIter<'r>>>,
}

#[cfg(CONFIG_BLOCK)]
struct ReqIter<'r>(Bvecs<'r>);

#[cfg(CONFIG_BLOCK)]
impl Iterator for ReqIter<'_> {
    type Item = PhysBvec;

    #[inline]
    fn next(&mut self) -> Option<PhysBvec> {
        let (phys, len) = self.0.next()?;
        of_request(phys, len)
    }
}

/// A piece of the memory of a request that has pages.
///
/// What they are is looked at only where a piece has room to say it: memory of PCI devices is known
/// to the registry, and nobody puts pages into a bio that no other device can reach.
/// (`get_user_pages()` has them moved to RAM.)
#[cfg(CONFIG_BLOCK)]
#[inline]
fn of_request(phys: PhysAddr, len: u32) -> Option<PhysBvec> {
    let piece = PhysBvec::new(phys, len)?;
    if !BvecKind::STORED {
        return Some(piece);
    }
    // SAFETY: The memory of a request has pages.
    let page = NonNull::new(unsafe { bindings::physdma_page_of(phys) })?;
    // SAFETY: It is there until the request is ended.
    let page = unsafe { BorrowedPage::from_raw(page) };
    Some(piece.with_kind(kind_of(&page)))
}

#[cfg(CONFIG_BLOCK)]
impl<'r> ReqBvecs<'r> {
    /// The data of `request`; nothing, where its operation has none.
    ///
    /// # Safety
    ///
    /// - What is mapped from this source is unmapped before the request is ended: the memory is
    ///   given back then.
    /// - It is written, by the device or by the CPU, only if the request is one that reads.
    /// - It has pages: not [`Request::is_phys`].
    #[inline]
    pub unsafe fn new(request: &'r Request) -> Self {
        Self {
            request,
            pieces: None,
        }
    }
}

#[cfg(CONFIG_BLOCK)]
impl private::Sealed for ReqBvecs<'_> {}

#[cfg(CONFIG_BLOCK)]
impl Source for ReqBvecs<'_> {
    const MISS: Miss = Miss::Ram;
    const PAGES: bool = true;

    // The block layer puts nothing else into one request.
    const UNIFORM: bool = true;

    #[inline]
    fn bytes(&self) -> usize {
        // CAST: A request's length has 32 bits.
        self.request.bytes() as usize
    }

    #[inline]
    fn gaps(&self) -> u64 {
        self.request.phys_gap_mask() as u64
    }

    #[inline(always)] // It is the loop where nothing can be joined.
    fn next(&mut self) -> Option<PhysBvec> {
        let request = self.request;
        self.pieces
            .get_or_insert_with(|| Merge::new(ReqIter(request.bvecs())))
            .next()
    }

    #[inline]
    fn rewind(&mut self) {
        self.pieces = None;
    }

    #[inline]
    fn only(&self) -> Option<PhysBvec> {
        let (phys, len) = self.request.only_bvec()?;
        of_request(phys, len)
    }
}

/// The memory of a block request that has no pages: one whose [`Request::is_phys`] says so.
///
/// It is a provider's, or is refused.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::mq::Request,
///     dma::DataDirection,
///     physdma::{Client, Mapping, PhysReqBvecs},
/// };
///
/// /// Maps the memory of another device that the device is to read.
/// fn map<'a>(client: &'a Client<'a>, request: &Request, mapping: &mut Mapping<'a>) -> Result {
///     let source = PhysReqBvecs::new(request).ok_or(EINVAL)?;
///     let mut segments = client.map(mapping, source, DataDirection::ToDevice)?;
///     while let Some(segment) = segments.next()? {
///         // Write `segment.dma` and `segment.len` into the device's descriptor.
///         pr_debug!("{:#x} {}\n", segment.dma, segment.len);
///     }
///     Ok(())
/// }
/// ```
#[cfg(CONFIG_BLOCK)]
pub struct PhysReqBvecs<'r> {
    request: &'r Request,
    /// Begun when it is needed: most requests are one piece.
    pieces: Option<Merge<PhysReqIter<'r>>>,
}

#[cfg(CONFIG_BLOCK)]
struct PhysReqIter<'r>(Bvecs<'r>);

#[cfg(CONFIG_BLOCK)]
impl Iterator for PhysReqIter<'_> {
    type Item = PhysBvec;

    #[inline]
    fn next(&mut self) -> Option<PhysBvec> {
        let (phys, len) = self.0.next()?;
        of_provider(phys, len)
    }
}

#[cfg(CONFIG_BLOCK)]
#[inline]
fn of_provider(phys: PhysAddr, len: u32) -> Option<PhysBvec> {
    Some(PhysBvec::new(phys, len)?.with_kind(BvecKind::Provider))
}

#[cfg(CONFIG_BLOCK)]
impl<'r> PhysReqBvecs<'r> {
    /// The data of `request`; [`None`], if it has pages.
    #[inline]
    pub fn new(request: &'r Request) -> Option<Self> {
        request.is_phys().then_some(Self {
            request,
            pieces: None,
        })
    }
}

#[cfg(CONFIG_BLOCK)]
impl private::Sealed for PhysReqBvecs<'_> {}

#[cfg(CONFIG_BLOCK)]
impl Source for PhysReqBvecs<'_> {
    const MISS: Miss = Miss::Refuse;

    #[inline]
    fn bytes(&self) -> usize {
        // CAST: A request's length has 32 bits.
        self.request.bytes() as usize
    }

    #[inline]
    fn gaps(&self) -> u64 {
        self.request.phys_gap_mask() as u64
    }

    #[inline]
    fn next(&mut self) -> Option<PhysBvec> {
        let request = self.request;
        self.pieces
            .get_or_insert_with(|| Merge::new(PhysReqIter(request.bvecs())))
            .next()
    }

    #[inline]
    fn rewind(&mut self) {
        self.pieces = None;
    }

    #[inline]
    fn only(&self) -> Option<PhysBvec> {
        let (phys, len) = self.request.only_bvec()?;
        of_provider(phys, len)
    }
}

/// Whole pages, of which the first and the last may be used in part: RAM, or what is for DMA as RAM
/// is, or memory of one PCI device.
///
/// # Examples
///
/// ```
/// use kernel::{
///     page::{Page, PAGE_SIZE},
///     physdma::{Pages, Source}, //
/// };
///
/// let mut pages = KVec::new();
/// for _ in 0..3 {
///     pages.push(Page::alloc_page(GFP_KERNEL)?, GFP_KERNEL)?;
/// }
/// // SAFETY: Nothing is mapped.
/// let mut source = unsafe { Pages::new(&pages, 0x100, 2 * PAGE_SIZE) }?;
/// assert_eq!(source.bytes(), 2 * PAGE_SIZE);
/// assert_eq!(source.next().map(|piece| piece.phys()), Some(pages[0].phys() + 0x100));
///
/// // The pages must be there.
/// // SAFETY: As above.
/// assert_eq!(unsafe { Pages::new(&pages, 0x100, 3 * PAGE_SIZE) }.err(), Some(EINVAL));
/// # Ok::<(), Error>(())
/// ```
pub struct Pages<'p> {
    first: PageIter<'p>,
    pieces: Merge<PageIter<'p>>,
    bytes: usize,
    miss: Miss,
}

#[derive(Clone)]
struct PageIter<'p> {
    pages: core::slice::Iter<'p, Page>,
    offset: usize,
    left: usize,
    kind: BvecKind,
}

impl Iterator for PageIter<'_> {
    type Item = PhysBvec;

    fn next(&mut self) -> Option<PhysBvec> {
        if self.left == 0 {
            return None;
        }
        let page = self.pages.next()?;
        let len = self.left.min(PAGE_SIZE - self.offset);
        let phys = page.phys() + self.offset as PhysAddr;

        self.offset = 0;
        self.left -= len;
        // CAST: `len` is at most `PAGE_SIZE`.
        Some(PhysBvec::new(phys, len as u32)?.with_kind(self.kind))
    }
}

impl<'p> Pages<'p> {
    /// The `bytes` bytes from `offset` on of the memory that `pages` make up.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `bytes` is zero, `offset` is not within the first page, the pages are fewer than
    ///   that, or not all of them are RAM or of a PCI device.
    /// - `EFAULT`: no other device can reach a page (`MEMORY_DEVICE_PRIVATE`). The log has it.
    ///
    /// # Safety
    ///
    /// The pages stay allocated until what is mapped from this source has been unmapped. Where the
    /// device or the CPU writes to it, they may be written, and nobody else touches them meanwhile.
    pub unsafe fn new(pages: &'p [Page], offset: usize, bytes: usize) -> Result<Self> {
        let end = offset.checked_add(bytes).ok_or(EINVAL)?;
        if bytes == 0 || offset >= PAGE_SIZE || end.div_ceil(PAGE_SIZE) > pages.len() {
            return Err(EINVAL);
        }
        let pages = &pages[..end.div_ceil(PAGE_SIZE)];
        let kind = reachable(&pages[0])?;
        for page in &pages[1..] {
            if reachable(page)? != kind {
                return Err(EINVAL);
            }
        }
        let first = PageIter {
            pages: pages.iter(),
            offset,
            left: bytes,
            kind,
        };
        Ok(Self {
            pieces: Merge::new(first.clone()),
            first,
            bytes,
            miss: match kind {
                BvecKind::Ram => Miss::Ram,
                _ => Miss::Refuse,
            },
        })
    }
}

impl private::Sealed for Pages<'_> {}

impl Source for Pages<'_> {
    const MISS: Miss = Miss::Refuse;
    const PAGES: bool = true;

    fn is_uniform(&self) -> bool {
        // Pages of PCI devices may be of several.
        self.miss == Miss::Ram
    }

    fn miss(&self) -> Miss {
        self.miss
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn gaps(&self) -> u64 {
        // Neighbours meet at a page's end and the next one's start.
        PAGE_MASK as u64
    }

    fn next(&mut self) -> Option<PhysBvec> {
        self.pieces.next()
    }

    fn rewind(&mut self) {
        self.pieces = Merge::new(self.first.clone());
    }
}

/// Memory at a kernel virtual address that DMA may be done to: from `kmalloc()`, `vmalloc()` or the
/// page allocator, but not a stack, code or constants.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{Source, Virt};
///
/// let buf = KVec::from_elem(0u8, 512, GFP_KERNEL)?;
/// // SAFETY: Nothing is mapped.
/// let mut source = unsafe { Virt::new(&buf[..]) }?;
/// assert_eq!(source.bytes(), 512);
/// assert_eq!(source.next().map(|piece| piece.len()), Some(512));
///
/// let on_the_stack = [0u8; 16];
/// // SAFETY: As above.
/// assert_eq!(unsafe { Virt::new(&on_the_stack[..]) }.err(), Some(EFAULT));
/// # Ok::<(), Error>(())
/// ```
pub struct Virt {
    first: VirtIter,
    pieces: Merge<VirtIter>,
    bytes: usize,
}

#[derive(Clone)]
struct VirtIter {
    addr: *const u8,
    left: usize,
}

// SAFETY: The addresses are looked at, not what is there.
unsafe impl Send for VirtIter {}

impl Iterator for VirtIter {
    type Item = PhysBvec;

    fn next(&mut self) -> Option<PhysBvec> {
        if self.left == 0 {
            return None;
        }
        let len = self.left.min(PAGE_SIZE - (self.addr as usize & !PAGE_MASK));
        // SAFETY: `Virt::new` has seen that every page of the memory is RAM.
        let phys = unsafe { bindings::physdma_virt_to_phys(self.addr.cast()) };

        self.addr = self.addr.wrapping_add(len);
        self.left -= len;
        // CAST: `len` is at most `PAGE_SIZE`.
        Some(PhysBvec::new(phys, len as u32)?.with_kind(BvecKind::Ram))
    }
}

impl Virt {
    /// The memory that `buf` occupies.
    ///
    /// May sleep; walking the source does not, and may be done in any context.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the buffer is empty.
    /// - `EFAULT`: a part of it is not RAM, such as an I/O mapping, or is on the stack, which is
    ///   not for DMA.
    ///
    /// # Safety
    ///
    /// - The memory stays allocated until what is mapped from this source has been unmapped.
    /// - Where the device or the CPU writes, the memory may be written, and until that is over no
    ///   reference to it is used.
    pub unsafe fn new(buf: *const [u8]) -> Result<Self> {
        let (addr, len) = (buf.cast::<u8>(), buf.len());
        if len == 0 {
            return Err(EINVAL);
        }
        let start = addr as usize & PAGE_MASK;
        let end = (addr as usize).checked_add(len).ok_or(EFAULT)?;
        for page in (start..end).step_by(PAGE_SIZE) {
            // The first page's part that is the buffer's.
            let at = page.max(addr as usize) as *const c_void;
            // SAFETY: The helper looks at the address, not at the memory, and may be given any.
            if !unsafe { bindings::physdma_virt_is_ram(at) } {
                return Err(EFAULT);
            }
        }
        let first = VirtIter { addr, left: len };
        Ok(Self {
            pieces: Merge::new(first.clone()),
            first,
            bytes: len,
        })
    }
}

impl private::Sealed for Virt {}

impl Source for Virt {
    const MISS: Miss = Miss::Ram;

    // All of it is RAM.
    const UNIFORM: bool = true;

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn gaps(&self) -> u64 {
        // Neighbours meet at a page's end and the next one's start.
        PAGE_MASK as u64
    }

    fn next(&mut self) -> Option<PhysBvec> {
        self.pieces.next()
    }

    fn rewind(&mut self) {
        self.pieces = Merge::new(self.first.clone());
    }
}
