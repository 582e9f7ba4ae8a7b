// SPDX-License-Identifier: GPL-2.0

//! Memory of user space, pinned while a device uses it: [`Pinned`].
//!
//! It may be ordinary memory, persistent memory, or memory of a PCI device that a program has
//! mapped, and any mixture of these. For what has a page of a PCI device the registry must say
//! whose it is; the rest is RAM.
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)

use super::{
    backend::{
        Backend,
        Dma, //
    },
    bvec::wide,
    client::Client,
    map::Segments,
    mapping::Mapping,
    source::{
        kind_of,
        private,
        reachable,
        Source, //
    },
    BvecKind,
    Miss,
    PhysBvec, //
};
use crate::{
    dma::DataDirection,
    io::PhysAddr,
    iov::{
        IovIterDest,
        IovIterSource,
        P2pPages,
        PinnedPages, //
    },
    page::{
        PageKind,
        PAGE_MASK, //
    },
    prelude::*,
    uaccess::UserPtr, //
};

/// Memory of user space that stays where it is, for a device to read or to write.
///
/// It is unpinned on drop, which may sleep, and marked as dirty then if it was for a device to
/// write. User space can go on reading and writing it, and can unmap it.
///
/// A driver that keeps the memory until a transfer has ended passes it to a [`PinnedMapping`].
///
/// # Invariants
///
/// `parts` are not empty. All of the pages can be reached by other devices.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma::DataDirection,
///     iov::{IovIterDest, IovIterSource, P2pPages},
///     physdma::{Client, Pinned, PinnedMapping},
///     uaccess::UserPtr, //
/// };
///
/// /// Has the device write to the memory of a program.
/// fn receive(client: &Client<'_>, to: UserPtr, len: usize) -> Result {
///     let mut iov = IovIterDest::from_user(to, len)?;
///     let pinned = Pinned::from_device(&mut iov, len, P2pPages::Allow)?;
///
///     let mut transfer = PinnedMapping::new(pinned);
///     let mut segments = transfer.map(client)?;
///     while let Some(segment) = segments.next()? {
///         // Write `segment.dma` and `segment.len` into the device's descriptor.
///         pr_debug!("{:#x} {}\n", segment.dma, segment.len);
///     }
///     // Start the device, and wait until it is done. Then all is unmapped, and unpinned:
///     drop(transfer);
///     Ok(())
/// }
///
/// /// Has the device read the memory of a program.
/// fn send(client: &Client<'_>, from: UserPtr, len: usize) -> Result {
///     let mut iov = IovIterSource::from_user(from, len)?;
///     let mut transfer =
///         PinnedMapping::new(Pinned::to_device(&mut iov, len, P2pPages::Refuse)?);
///     assert_eq!(transfer.memory().direction(), DataDirection::ToDevice);
///     // As above.
///     drop(transfer.map(client)?);
///     Ok(())
/// }
///
/// // A kernel thread, such as the one that this runs in, has no user memory.
/// let mut iov = IovIterDest::from_user(UserPtr::from_addr(0x1000), 512)?;
/// let pinned = Pinned::from_device(&mut iov, 512, P2pPages::Allow);
/// assert_eq!(pinned.err(), Some(EFAULT));
/// # Ok::<(), Error>(())
/// ```
pub struct Pinned {
    parts: KVec<PinnedPages>,
    bytes: usize,
    gaps: u64,
    /// All of it is ordinary memory.
    ordinary: bool,
    dir: DataDirection,
}

impl Pinned {
    /// Pins memory at the beginning of `iov`, at most `max_bytes` bytes, for a device to read.
    ///
    /// `iov` is advanced past what was pinned. Sleeps.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `iov` is empty, or `max_bytes` is zero.
    /// - `EFAULT`: there is no memory that may be used like this; or no other device can reach it,
    ///   which the log has.
    /// - `EREMOTEIO`: it is memory of a PCI device, and `p2p` refuses that.
    /// - `EOPNOTSUPP`: `iov` is not of user memory.
    /// - `ENOMEM`.
    ///
    /// Nothing is pinned then, but `iov` may have been advanced.
    pub fn to_device(iov: &mut IovIterSource<'_>, max_bytes: usize, p2p: P2pPages) -> Result<Self> {
        let bytes = iov.len().min(max_bytes);
        Self::new(DataDirection::ToDevice, bytes, |left| {
            iov.pin(left, u32::MAX, p2p)
        })
    }

    /// Pins memory at the beginning of `iov`, at most `max_bytes` bytes, for a device to write.
    ///
    /// See [`Pinned::to_device`].
    ///
    /// # Errors
    ///
    /// The same.
    pub fn from_device(iov: &mut IovIterDest<'_>, max_bytes: usize, p2p: P2pPages) -> Result<Self> {
        let bytes = iov.len().min(max_bytes);
        Self::new(DataDirection::FromDevice, bytes, |left| {
            iov.pin(left, u32::MAX, p2p)
        })
    }

    /// Pins `len` bytes of the current process's memory from `ptr` on, for a device to read and to
    /// write, for as long as the program wants: see [`PinnedPages::long_term`]. Sleeps.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `len` is zero.
    /// - `EFAULT`: there is no memory that may be used like this; or no other device can reach it,
    ///   which the log has.
    /// - `ENOMEM`: also where the process may not lock so much.
    pub fn long_term(ptr: UserPtr, len: usize) -> Result<Self> {
        let address = ptr.as_const_ptr() as usize;

        Self::new(DataDirection::FromDevice, len, |left| {
            PinnedPages::long_term(UserPtr::from_addr(address.wrapping_add(len - left)), left)
        })
    }

    fn new(
        dir: DataDirection,
        bytes: usize,
        mut pin: impl FnMut(usize) -> Result<PinnedPages>,
    ) -> Result<Self> {
        let mut parts = KVec::new();
        // Within a part, neighbours meet at a page's end and the next one's start.
        let mut gaps = PAGE_MASK as u64;
        let mut ordinary = true;
        let mut left = bytes;
        let mut end: Option<PhysAddr> = None;

        if bytes == 0 {
            return Err(EINVAL);
        }
        while left > 0 {
            let part = pin(left)?;
            left = left.saturating_sub(part.len());

            for (index, (page, offset, len)) in part.pieces().enumerate() {
                reachable(&page)?;
                ordinary &= page.kind() == PageKind::Ordinary;
                let phys = page.phys() + offset as PhysAddr;
                if let (0, Some(end)) = (index, end) {
                    gaps |= wide(end | phys);
                }
                end = Some(phys + len as PhysAddr);
            }
            parts.push(part, GFP_KERNEL)?;
        }

        // INVARIANT: `bytes` was not zero, so there is a part; each page was just looked at.
        Ok(Self {
            parts,
            bytes,
            gaps,
            ordinary,
            dir,
        })
    }

    /// Its length in bytes, which is not zero.
    #[expect(clippy::len_without_is_empty)] // It never is.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// What a device may do: read it ([`DataDirection::ToDevice`]), or write it.
    pub fn direction(&self) -> DataDirection {
        self.dir
    }

    /// The memory as a source. [`PinnedMapping`] does the same without conditions.
    ///
    /// # Safety
    ///
    /// - `self` is not dropped before what is mapped from the source has been unmapped.
    /// - It is mapped in no other than [its direction](Self::direction), and the CPU writes to it
    ///   only if a device may.
    pub unsafe fn bvecs(&self) -> PinnedBvecs<'_> {
        PinnedBvecs::new(self)
    }
}

/// The pieces of [`Pinned`] memory, made by [`Pinned::bvecs`].
///
/// # Examples
///
/// ```
/// use kernel::physdma::{copy_from, Pinned};
///
/// /// Whether a program has passed a request that begins with our letters.
/// fn is_ours(pinned: &Pinned) -> Result<bool> {
///     let mut letters = [0; 4];
///     // SAFETY: Nothing is mapped.
///     copy_from(unsafe { pinned.bvecs() }, 0, &mut letters)?;
///     Ok(letters == *b"phys")
/// }
/// ```
pub struct PinnedBvecs<'p> {
    memory: &'p Pinned,
    pieces: PieceIter<'p>,
    ahead: Option<(PhysBvec, Miss)>,
    /// Of what was returned last.
    miss: Miss,
}

/// The pieces page by page, and what each is that no provider owns.
struct PieceIter<'p> {
    parts: core::slice::Iter<'p, PinnedPages>,
    part: Option<&'p PinnedPages>,
    /// The next one in `part`.
    index: usize,
    ordinary: bool,
}

impl Iterator for PieceIter<'_> {
    type Item = (PhysBvec, Miss);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((page, offset, len)) = self.part.and_then(|part| part.piece(self.index)) {
                self.index += 1;
                let kind = if self.ordinary {
                    BvecKind::Ram
                } else {
                    kind_of(&page)
                };
                let miss = match kind {
                    BvecKind::Ram => Miss::Ram,
                    _ => Miss::Refuse,
                };
                // CAST: `len` is at most `PAGE_SIZE`.
                let piece = PhysBvec::new(page.phys() + offset as PhysAddr, len as u32)?;
                return Some((piece.with_kind(kind), miss));
            }
            self.part = Some(self.parts.next()?);
            self.index = 0;
        }
    }
}

impl<'p> PinnedBvecs<'p> {
    fn new(memory: &'p Pinned) -> Self {
        let mut pieces = PieceIter {
            parts: memory.parts.iter(),
            part: None,
            index: 0,
            ordinary: memory.ordinary,
        };
        Self {
            memory,
            ahead: pieces.next(),
            pieces,
            miss: Miss::Refuse,
        }
    }
}

impl private::Sealed for PinnedBvecs<'_> {}

impl Source for PinnedBvecs<'_> {
    const MISS: Miss = Miss::Refuse;
    const PAGES: bool = true;

    fn is_uniform(&self) -> bool {
        self.memory.ordinary
    }

    fn bytes(&self) -> usize {
        self.memory.bytes
    }

    fn gaps(&self) -> u64 {
        self.memory.gaps
    }

    fn next(&mut self) -> Option<PhysBvec> {
        let (mut merged, miss) = self.ahead.take()?;
        self.miss = miss;
        loop {
            self.ahead = self.pieces.next();
            match self.ahead.filter(|next| next.1 == miss) {
                Some((next, _)) if merged.join(next).is_some() => {
                    merged = merged.join(next)?;
                }
                _ => return Some(merged),
            }
        }
    }

    fn miss(&self) -> Miss {
        // Before the first piece nothing is asked but whether all are RAM.
        if self.memory.ordinary {
            Miss::Ram
        } else {
            self.miss
        }
    }

    fn rewind(&mut self) {
        *self = Self::new(self.memory);
    }
}

/// [`Pinned`] memory, and what of it has been mapped: unmapped before it is unpinned.
///
/// Dropping it may sleep. [`unmap()`](Self::unmap) does not, and may be called in hard interrupt
/// context. The device must have stopped using the memory before either.
///
/// # Examples
///
/// See [`Pinned`].
pub struct PinnedMapping<'c, B: Backend = Dma<'c>> {
    // Dropped in this order. If it is forgotten, both stay.
    mapping: Mapping<'c, B>,
    memory: Pinned,
}

impl<'c, B: Backend> PinnedMapping<'c, B> {
    /// Takes the memory. Nothing is mapped yet.
    pub fn new(memory: Pinned) -> Self {
        Self {
            mapping: Mapping::default(),
            memory,
        }
    }

    /// The memory.
    pub fn memory(&self) -> &Pinned {
        &self.memory
    }

    /// Maps the memory for a device. If it was mapped, it is unmapped first.
    ///
    /// May be called in atomic context.
    ///
    /// # Errors
    ///
    /// See [`Client::map`].
    pub fn map(
        &mut self,
        client: &'c Client<'c, B>,
    ) -> Result<Segments<'_, 'c, PinnedBvecs<'_>, B>> {
        let dir = self.memory.direction();
        // SAFETY: `self.mapping` is unmapped before `self.memory` is dropped, in this direction.
        let source = unsafe { self.memory.bvecs() };
        client.map(&mut self.mapping, source, dir)
    }

    /// Takes the memory away from the device: see [`Mapping::unmap`].
    pub fn unmap(&mut self) {
        self.mapping.unmap();
    }
}
