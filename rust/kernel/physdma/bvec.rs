// SPDX-License-Identifier: GPL-2.0

//! Memory that is a physical address and a length: [`PhysBvec`], and how neighbours are merged
//! ([`Merge`]) and cut to what a device can take ([`Limits`]).
//!
//! Pure logic: nothing here touches the memory that it describes, calls the kernel or may sleep.
//! The same file is compiled on the host, where it is tested and fuzzed.

use super::PhysAddr;

/// A piece of memory that is nothing but a physical address and a length in bytes.
///
/// The page-less counterpart of the C `struct bio_vec`: 12 bytes where `phys_addr_t` has 64 bits,
/// 8 where it has 32. It says nothing about what kind of memory it is: that is known by the
/// [`Source`] it came from. With `CONFIG_PHYSDMA_BVEC_KIND` it says that too, in four bytes more:
/// see [`BvecKind`].
///
/// Two pieces are equal if they are the same memory, whatever is said of its kind.
///
/// [`Source`]: super::Source
///
/// # Invariants
///
/// - `len > 0`.
/// - `phys + (len - 1)` does not overflow.
///
/// # Examples
///
/// ```
/// use kernel::physdma::PhysBvec;
///
/// let piece = PhysBvec::new(0x1000, 0x200).ok_or(EINVAL)?;
/// assert_eq!(piece.phys(), 0x1000);
/// assert_eq!(piece.len(), 0x200);
/// assert_eq!(piece.last(), 0x11ff);
/// assert_eq!(piece.end(), 0x1200);
///
/// // Empty memory, and memory past the end of the address space, cannot be described.
/// assert!(PhysBvec::new(0x1000, 0).is_none());
/// assert!(PhysBvec::new(kernel::io::PhysAddr::MAX, 2).is_none());
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
pub struct PhysBvec {
    phys: PhysAddr,
    len: u32,
    /// A [`BvecKind`], or any other number that C left there.
    #[cfg(CONFIG_PHYSDMA_BVEC_KIND)]
    kind: u32,
}

// The whole point of the type: nothing but the two numbers, or three.
const _: () = assert!(
    size_of::<PhysBvec>()
        == size_of::<PhysAddr>() + size_of::<u32>() * (1 + BvecKind::STORED as usize)
);

/// What a [`PhysBvec`] itself says of its memory.
///
/// With `CONFIG_PHYSDMA_BVEC_KIND` those who know say so, and [`Client::map`] does not look up what
/// is known to be RAM. Without, it is always [`BvecKind::Unknown`].
///
/// It never makes memory RAM that the source does not vouch for: a piece outlives the memory that
/// it was made of.
///
/// [`Client::map`]: super::Client::map
///
/// # Examples
///
/// ```
/// use kernel::physdma::{BvecKind, PhysBvec, Source, Virt};
///
/// // Nobody knows what is at a mere address.
/// let piece = PhysBvec::new(0x1000, 0x200).ok_or(EINVAL)?;
/// assert_eq!(piece.kind(), BvecKind::Unknown);
///
/// let buf = KVec::from_elem(0u8, 16, GFP_KERNEL)?;
/// // SAFETY: Nothing is mapped.
/// let piece = unsafe { Virt::new(&buf[..]) }?.next().ok_or(EINVAL)?;
/// if BvecKind::STORED {
///     assert_eq!(piece.kind(), BvecKind::Ram);
/// }
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BvecKind {
    /// Not said: the registry knows if it is a provider's, and the source if it is RAM otherwise.
    Unknown = 0,
    /// RAM, or what is for DMA as RAM is.
    Ram = 1,
    /// A provider's.
    Provider = 2,
    /// Memory that no other device can reach.
    Private = 3,
}

impl BvecKind {
    /// Whether a [`PhysBvec`] has room for it: `CONFIG_PHYSDMA_BVEC_KIND`.
    pub const STORED: bool = cfg!(CONFIG_PHYSDMA_BVEC_KIND);
}

impl PartialEq for PhysBvec {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.phys() == other.phys() && self.len() == other.len()
    }
}

impl Eq for PhysBvec {}

#[expect(clippy::len_without_is_empty)] // It never is.
impl PhysBvec {
    /// Describes the `len` bytes from physical address `phys` on.
    ///
    /// Returns [`None`] when `len` is zero or the memory would wrap around the end of the address
    /// space. Callers that have to return an errno use `EINVAL`.
    #[inline]
    pub const fn new(phys: PhysAddr, len: u32) -> Option<Self> {
        if len == 0 || phys.checked_add((len - 1) as PhysAddr).is_none() {
            return None;
        }
        // INVARIANT: Both were just checked.
        Some(Self {
            phys,
            len,
            #[cfg(CONFIG_PHYSDMA_BVEC_KIND)]
            kind: BvecKind::Unknown as u32,
        })
    }

    /// The same memory, of which it is known what it is.
    #[inline]
    pub(crate) const fn with_kind(self, kind: BvecKind) -> Self {
        // INVARIANT: The memory is the same.
        #[cfg(CONFIG_PHYSDMA_BVEC_KIND)]
        let this = Self {
            kind: kind as u32,
            ..self
        };
        #[cfg(not(CONFIG_PHYSDMA_BVEC_KIND))]
        let (this, _) = (self, kind);
        this
    }

    /// What the piece says of its memory.
    #[inline]
    pub const fn kind(self) -> BvecKind {
        #[cfg(CONFIG_PHYSDMA_BVEC_KIND)]
        match self.kind {
            1 => return BvecKind::Ram,
            2 => return BvecKind::Provider,
            3 => return BvecKind::Private,
            _ => (),
        }
        BvecKind::Unknown
    }

    /// The physical address of the first byte.
    #[inline]
    pub const fn phys(self) -> PhysAddr {
        self.phys
    }

    /// The length in bytes; never zero.
    #[inline]
    pub const fn len(self) -> u32 {
        self.len
    }

    /// The physical address of the last byte.
    #[inline]
    pub const fn last(self) -> PhysAddr {
        // By the type invariants this does not wrap.
        self.phys.wrapping_add(self.len.wrapping_sub(1) as PhysAddr)
    }

    /// The physical address behind the last byte; zero when that is the end of the address space.
    #[inline]
    pub const fn end(self) -> PhysAddr {
        self.phys.wrapping_add(self.len as PhysAddr)
    }

    /// Cuts off the first `at` bytes: returns them and what is left.
    ///
    /// The rest is [`None`] when `at` is the whole length or more; the first part is everything
    /// then. `at` must not be zero: a zero is taken as one byte, so that a loop that cuts always
    /// comes to an end.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::physdma::PhysBvec;
    ///
    /// let piece = PhysBvec::new(0x1000, 0x300).ok_or(EINVAL)?;
    /// let (head, tail) = piece.split(0x100);
    /// assert_eq!(head, PhysBvec::new(0x1000, 0x100).ok_or(EINVAL)?);
    /// assert_eq!(tail, PhysBvec::new(0x1100, 0x200));
    /// assert_eq!(piece.split(0x300), (piece, None));
    /// # Ok::<(), Error>(())
    /// ```
    #[inline]
    pub const fn split(self, at: u32) -> (Self, Option<Self>) {
        let at = if at == 0 { 1 } else { at };
        if at >= self.len {
            return (self, None);
        }
        // INVARIANT: `0 < at < self.len`, so neither part is empty, and both lie within `self`.
        let (mut head, mut rest) = (self, self);
        head.len = at;
        rest.phys += at as PhysAddr;
        rest.len -= at;
        (head, Some(rest))
    }

    /// Joins `next` to the end of this piece.
    ///
    /// Returns [`None`] when `next` does not start where this piece ends, the sum of the lengths
    /// does not fit, or they say that they are of different kinds.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::physdma::PhysBvec;
    ///
    /// let piece = PhysBvec::new(0x1000, 0x300).ok_or(EINVAL)?;
    /// let next = PhysBvec::new(0x1300, 0x100).ok_or(EINVAL)?;
    /// assert_eq!(piece.join(next), PhysBvec::new(0x1000, 0x400));
    /// assert_eq!(next.join(piece), None);
    /// # Ok::<(), Error>(())
    /// ```
    #[inline]
    pub const fn join(self, next: Self) -> Option<Self> {
        // An end of zero is the end of the address space, where nothing can follow.
        if self.end() != next.phys || self.end() == 0 {
            return None;
        }
        if self.kind() as u32 != next.kind() as u32 {
            return None;
        }
        match self.len.checked_add(next.len) {
            // INVARIANT: The joined piece is not empty and ends where `next` ends.
            Some(len) => Some(Self { len, ..self }),
            None => None,
        }
    }
}

/// A physical address in as many bits as any has.
#[inline]
#[allow(clippy::unnecessary_cast, reason = "a `PhysAddr` may have 32 bits")]
pub(super) const fn wide(phys: PhysAddr) -> u64 {
    phys as u64
}

/// What a device can take in one DMA segment, and in one request.
///
/// # Examples
///
/// ```
/// use kernel::physdma::Limits;
///
/// // A device with 16-bit segment lengths whose segments may not cross a 64 KiB boundary.
/// let limits = Limits {
///     max_segment_bytes: 0xfff0,
///     boundary_mask: 0xffff,
///     max_segments: 32,
/// };
/// assert_eq!(limits.room(0x1_0000), 0xfff0);
/// assert_eq!(limits.room(0x1_f000), 0x1000);
/// assert_eq!(limits.whole(), 0);
///
/// let anywhere = Limits {
///     boundary_mask: u64::MAX,
///     ..limits
/// };
/// assert_eq!(anywhere.whole(), 0xfff0);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes that a segment may have. Zero is taken as one.
    pub max_segment_bytes: u32,
    /// A segment does not cross an address that has all the bits of this mask clear, as with
    /// `seg_boundary_mask` in the C `struct queue_limits`. All ones: no boundary.
    pub boundary_mask: u64,
    /// The most segments that a request may have.
    pub max_segments: u16,
}

impl Limits {
    /// The most bytes of a piece that is not cut, wherever it is; zero where that depends on the
    /// piece, as it does where there is a boundary.
    #[inline]
    pub const fn whole(&self) -> u32 {
        if self.boundary_mask == u64::MAX {
            self.max_segment_bytes
        } else {
            0
        }
    }

    /// The most bytes that a segment may have that starts at `addr`; never zero.
    #[inline]
    pub const fn room(&self, addr: u64) -> u32 {
        // One less than the distance to the boundary, so that "no boundary" does not overflow.
        let distance = self.boundary_mask - (addr & self.boundary_mask);
        let max = if self.max_segment_bytes == 0 {
            1
        } else {
            self.max_segment_bytes
        };
        if distance < (max - 1) as u64 {
            distance as u32 + 1
        } else {
            max
        }
    }
}

/// Joins neighbours: an iterator over the longest [`PhysBvec`]s that the pieces of another one
/// make up.
///
/// Nothing is copied and nothing allocated; one piece is looked at ahead.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{Merge, PhysBvec};
///
/// let pieces = [
///     PhysBvec::new(0x1000, 0x1000).ok_or(EINVAL)?,
///     PhysBvec::new(0x2000, 0x1000).ok_or(EINVAL)?,
///     PhysBvec::new(0x8000, 0x1000).ok_or(EINVAL)?,
/// ];
/// let mut merged = Merge::new(pieces.iter().copied());
/// assert_eq!(merged.next(), PhysBvec::new(0x1000, 0x2000));
/// assert_eq!(merged.next(), PhysBvec::new(0x8000, 0x1000));
/// assert_eq!(merged.next(), None);
/// # Ok::<(), Error>(())
/// ```
pub struct Merge<I> {
    pieces: I,
    ahead: Option<PhysBvec>,
}

impl<I: Iterator<Item = PhysBvec>> Merge<I> {
    /// Starts with the first of `pieces`.
    #[inline]
    pub fn new(mut pieces: I) -> Self {
        let ahead = pieces.next();
        Self { pieces, ahead }
    }
}

impl<I: Iterator<Item = PhysBvec>> Iterator for Merge<I> {
    type Item = PhysBvec;

    #[inline]
    fn next(&mut self) -> Option<PhysBvec> {
        let mut merged = self.ahead?;
        loop {
            self.ahead = self.pieces.next();
            match self.ahead.and_then(|next| merged.join(next)) {
                Some(longer) => merged = longer,
                None => return Some(merged),
            }
        }
    }
}

/// A place in a list of pieces from which any number of bytes can be taken.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{Cursor, Limits, PhysBvec};
///
/// let pieces = [
///     PhysBvec::new(0x1000, 0x1000).ok_or(EINVAL)?,
///     PhysBvec::new(0x8000, 0x1000).ok_or(EINVAL)?,
/// ];
/// let mut cursor = Cursor::new(pieces.iter().copied());
/// assert_eq!(cursor.take(0x400), PhysBvec::new(0x1000, 0x400));
/// // Goes on where it stopped, and never beyond the end of a piece.
/// assert_eq!(cursor.advance(0x800), 0x800);
/// assert_eq!(cursor.head(), PhysBvec::new(0x1c00, 0x400));
/// assert_eq!(cursor.take(0x4000), PhysBvec::new(0x1c00, 0x400));
/// // No longer than a device can take.
/// let limits = Limits {
///     max_segment_bytes: 0x600,
///     boundary_mask: 0xfff,
///     max_segments: 32,
/// };
/// assert_eq!(cursor.take_segment(&limits), PhysBvec::new(0x8000, 0x600));
/// assert_eq!(cursor.advance(0x8000), 0xa00);
/// assert_eq!(cursor.take(1), None);
/// # Ok::<(), Error>(())
/// ```
pub struct Cursor<I> {
    pieces: I,
    head: Option<PhysBvec>,
}

impl<I: Iterator<Item = PhysBvec>> Cursor<I> {
    /// A cursor at the first byte of the first of `pieces`.
    #[inline]
    pub fn new(mut pieces: I) -> Self {
        let head = pieces.next();
        Self { pieces, head }
    }

    /// What is left of the piece at the cursor; [`None`] at the end.
    #[inline]
    pub fn head(&self) -> Option<PhysBvec> {
        self.head
    }

    /// Takes at most `max` bytes of the piece at the cursor and moves on behind them.
    ///
    /// A `max` of zero is taken as one byte. Returns [`None`] at the end.
    #[inline]
    pub fn take(&mut self, max: u32) -> Option<PhysBvec> {
        let (taken, rest) = self.head?.split(max);
        self.head = match rest {
            Some(rest) => Some(rest),
            None => self.pieces.next(),
        };
        Some(taken)
    }

    /// Takes the next segment that `limits` allow: as much as possible of the piece at the cursor.
    #[inline]
    pub fn take_segment(&mut self, limits: &Limits) -> Option<PhysBvec> {
        let head = self.head?;
        self.take(limits.room(wide(head.phys())))
    }

    /// Moves `bytes` on, over as many pieces as it takes, and returns by how many it moved: fewer
    /// when the end came first.
    pub fn advance(&mut self, bytes: usize) -> usize {
        let mut left = bytes;
        while left > 0 {
            match self.take(u32::try_from(left).unwrap_or(u32::MAX)) {
                Some(taken) => left -= taken.len() as usize,
                None => break,
            }
        }
        bytes - left
    }
}
