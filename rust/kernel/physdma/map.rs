// SPDX-License-Identifier: GPL-2.0

//! One call that makes memory visible to a device, whatever it is made of: [`Client::map`].
//!
//! The way of a request:
//!
//! - memory that is one piece is mapped by itself (`dma_map_phys()`), which is cheapest everywhere;
//! - several pieces become one range of IOVA space where the device is behind an IOMMU and the
//!   pieces fit its granule ([`IovaSpace`]);
//! - else each piece is mapped by itself, when the driver comes to it, and remembered if it will
//!   have to be unmapped.
//!
//! The driver turns the [`Segments`] straight into its own descriptors: there is no scatterlist
//! and no array in between. What must be undone lives in a [`Mapping`], which the driver keeps in
//! the request's private data.

use super::{
    backend::{
        Backend,
        Dma, //
    },
    IovaSpace,
    Limits,
    Miss,
    PhysBvec,
    Source,
    Synced, //
};
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
    mempool::{
        Mempool,
        MempoolVec, //
    },
    prelude::*, //
};
use core::marker::PhantomData;

/// A device that does DMA, and what it can take.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::{Bound, Device},
///     dma::DataDirection,
///     physdma::{Client, Limits, Mapping, Virt},
/// };
///
/// /// Has the device read `buf`.
/// fn send(dev: &Device<Bound>, buf: &[u8]) -> Result {
///     let client = Client::new(
///         dev,
///         Limits {
///             max_segment_bytes: 0x1_0000,
///             boundary_mask: u64::MAX,
///             max_segments: 32,
///         },
///     )?;
///     let mut mapping = Mapping::default();
///
///     // SAFETY: `buf` is borrowed until the end of this function, which unmaps it.
///     let source = unsafe { Virt::new(buf) }?;
///     let mut segments = client.map(&mut mapping, source, DataDirection::ToDevice)?;
///     while let Some(segment) = segments.next()? {
///         // Write `segment.dma` and `segment.len` into the device's descriptor.
///         dev_dbg!(dev, "{:#x} {}\n", segment.dma, segment.len);
///     }
///
///     // Start the device, and wait until it is done. Then:
///     mapping.unmap();
///     Ok(())
/// }
/// ```
pub struct Client<'a, B: Backend = Dma<'a>> {
    backend: B,
    limits: Limits,
    /// These two do not change while a driver is bound.
    merge_boundary: u64,
    max_bytes: usize,
    spill: Mempool<Piece>,
    _dev: PhantomData<&'a Device<Bound>>,
}

/// A piece that was mapped by itself.
#[derive(Clone, Copy)]
struct Piece {
    dma: DmaAddress,
    len: u32,
}

impl<'a> Client<'a> {
    /// Makes `dev` a client, with the `limits` of its descriptors.
    ///
    /// The DMA mask must have been set. May sleep.
    ///
    /// # Errors
    ///
    /// See [`Client::with_backend`].
    pub fn new(dev: &'a Device<Bound>, limits: Limits) -> Result<Self> {
        Self::with_backend(Dma::new(dev), limits).inspect_err(|e| {
            dev_err!(dev, "cannot be a DMA client: {:?}\n", e);
        })
    }

    /// Hands the client over to the device, which drops it after the driver was unbound.
    ///
    /// A [`Mapping`] borrows its client. Request data that carries mappings can live in the
    /// driver's own data together with everything else this way, without borrowing from a
    /// neighbour.
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn into_devres(self) -> Result<&'a Self> {
        /// Drops a client.
        ///
        /// # Safety
        ///
        /// `client` comes from `KBox::into_raw` and is not used any more.
        unsafe extern "C" fn release(client: *mut c_void) {
            // SAFETY: By the safety requirements.
            drop(unsafe { KBox::from_raw(client.cast::<Client<'_>>()) });
        }

        let dev = self.backend.device();
        let client = KBox::into_raw(KBox::new(self, GFP_KERNEL)?);

        // SAFETY: `dev` is bound; `release` gets the client that it wants, once.
        to_result(unsafe {
            bindings::devm_add_action_or_reset(dev.as_raw(), Some(release), client.cast())
        })?;

        // SAFETY: The device's resources are released after the driver's data was dropped, when
        // nothing is left that lives for `'a`. Nobody has the client mutably.
        Ok(unsafe { &*client })
    }
}

impl<'a, B: Backend> Client<'a, B> {
    /// Like [`Client::new`], on top of any [`Backend`].
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the limits allow no segment.
    /// - `EIO`: the device cannot do DMA.
    /// - `ENOMEM`.
    pub fn with_backend(backend: B, limits: Limits) -> Result<Self> {
        if limits.max_segments == 0 {
            return Err(EINVAL);
        }
        let max_bytes = backend.max_mapping_size();
        if max_bytes == 0 {
            return Err(EIO);
        }
        Ok(Self {
            backend,
            limits,
            merge_boundary: backend.merge_boundary(),
            max_bytes,
            // A request uses one buffer at most. With one in reserve there is always a request
            // that can go on, and its buffer comes back when it completes.
            spill: Mempool::new(1, limits.max_segments.into())?,
            _dev: PhantomData,
        })
    }

    /// The most bytes that can be mapped at once.
    #[inline]
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Maps the memory that `source` describes, and returns the segments to tell the device.
    ///
    /// `slot` keeps what will have to be undone. If something is mapped there still, it is
    /// unmapped first.
    ///
    /// May be called in atomic context. Nothing is allocated unless the memory is more than one
    /// piece, cannot become one range, and must be unmapped piece by piece.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the source is empty, or longer than [`Client::max_bytes`].
    /// - `EFAULT`: nobody knows what kind of memory it is: a [`Raw`](super::Raw) list, and no
    ///   provider owns the address.
    /// - `ENOMEM`: no IOVA space, page table or bounce buffer could be had. The request can be
    ///   tried again when others have completed.
    ///
    /// Nothing is mapped then.
    #[inline]
    pub fn map<'m, 'c, S: Source>(
        &'c self,
        slot: &'m mut Mapping<'c, B>,
        source: S,
        dir: DataDirection,
    ) -> Result<Segments<'m, 'c, S, B>> {
        slot.unmap();

        if S::MISS == Miss::Refuse {
            return Err(EFAULT);
        }
        let bytes = source.bytes();
        if bytes > self.max_bytes {
            return Err(EINVAL);
        }
        let only = source.only();

        let mut segments = Segments {
            slot,
            client: self,
            source,
            ahead: None,
            dma: 0,
            left: 0,
            count: 0,
            dir,
            path: Path::Direct,
        };
        if let Some(piece) = only {
            segments.map_single(piece)?;
            return Ok(segments);
        }

        let first = segments.source.next().ok_or(EINVAL)?;
        if first.len() as usize == bytes {
            segments.map_single(first)?;
        } else if self.merge_boundary == 0
            || segments.source.gaps() & self.merge_boundary != 0
            || !segments.link(first, bytes)?
        {
            segments.ahead = Some(first);
        }
        Ok(segments)
    }
}

/// What has been mapped for a request, and how it is undone.
///
/// Lives where the request's private data live; starts out, and is again after
/// [`unmap()`](Self::unmap), empty.
pub struct Mapping<'c, B: Backend = Dma<'c>>(State<'c, B>);

enum State<'c, B: Backend> {
    /// Nothing to undo.
    Idle,
    /// One piece, mapped by itself.
    Single {
        backend: B,
        dma: DmaAddress,
        len: u32,
        dir: DataDirection,
    },
    /// All pieces in one range of IOVA space.
    Iova(IovaSpace<B, Synced>),
    /// Several pieces, each mapped by itself, that must be unmapped.
    Spilled {
        backend: B,
        pieces: MempoolVec<'c, Piece>,
        dir: DataDirection,
    },
}

// A request's private data are allocated for each tag of each queue.
const _: () = assert!(size_of::<Mapping<'static>>() <= 64);

impl<B: Backend> Default for Mapping<'_, B> {
    fn default() -> Self {
        Self(State::Idle)
    }
}

impl<B: Backend> Mapping<'_, B> {
    /// Takes the memory away from the device.
    ///
    /// The device must have stopped using it. After this the CPU sees what the device wrote. Does
    /// not sleep, and may be called in hard interrupt context.
    #[inline]
    pub fn unmap(&mut self) {
        if !matches!(self.0, State::Idle) {
            self.undo();
        }
    }

    fn undo(&mut self) {
        match &self.0 {
            State::Idle => (),
            // Dropped below.
            State::Iova(_) => (),
            State::Single {
                backend,
                dma,
                len,
                dir,
                // SAFETY: This is what `Segments::map_single` mapped, and it is forgotten below.
            } => unsafe { backend.unmap_phys(*dma, *len as usize, *dir) },
            State::Spilled {
                backend,
                pieces,
                dir,
            } => {
                for piece in pieces.iter() {
                    // SAFETY: This is what `Segments::map_next` mapped, and it is forgotten below.
                    unsafe { backend.unmap_phys(piece.dma, piece.len as usize, *dir) };
                }
            }
        }
        self.0 = State::Idle;
    }

    /// How many pieces had to be remembered one by one.
    #[inline]
    pub fn spilled(&self) -> usize {
        match &self.0 {
            State::Spilled { pieces, .. } => pieces.len(),
            _ => 0,
        }
    }
}

impl<B: Backend> Drop for Mapping<'_, B> {
    fn drop(&mut self) {
        self.unmap();
    }
}

/// How the memory of a request was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// It was one piece.
    Single,
    /// Several pieces became one range of IOVA space.
    Iova,
    /// Several pieces, each mapped by itself.
    Direct,
}

/// A piece of a request as the device is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where the device finds it.
    pub dma: DmaAddress,
    /// Its length in bytes.
    pub len: u32,
}

/// The segments of a request that is being mapped.
///
/// Where pieces are mapped one by one, that happens when [`next()`](Self::next) comes to them.
pub struct Segments<'m, 'c, S: Source, B: Backend = Dma<'c>> {
    slot: &'m mut Mapping<'c, B>,
    client: &'c Client<'c, B>,
    source: S,
    /// Taken from the source, but not mapped yet.
    ahead: Option<PhysBvec>,
    /// Mapped, but not returned yet.
    dma: DmaAddress,
    left: usize,
    count: u16,
    dir: DataDirection,
    path: Path,
}

impl<S: Source, B: Backend> Segments<'_, '_, S, B> {
    /// The next segment, within the client's limits; [`None`] at the end.
    ///
    /// May be called in atomic context.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the request has more segments than the client can take.
    /// - `ENOMEM`: as with [`Client::map`].
    ///
    /// Nothing is mapped any more then.
    #[inline]
    #[expect(clippy::should_implement_trait)] // An error ends it, and must not be overlooked.
    pub fn next(&mut self) -> Result<Option<Segment>> {
        if self.left == 0 && !self.map_next()? {
            return Ok(None);
        }
        if self.count == self.client.limits.max_segments {
            return Err(self.undo(EINVAL));
        }

        // CAST: At most `room`, which is a `u32`.
        let len = self.left.min(self.client.limits.room(self.dma) as usize) as u32;
        let segment = Segment { dma: self.dma, len };

        self.count += 1;
        self.left -= len as usize;
        // The end of a range may be the end of the address space.
        self.dma = self.dma.wrapping_add(len.into());
        Ok(Some(segment))
    }

    /// How many segments have been returned.
    #[inline]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// How the request was mapped.
    #[inline]
    pub fn path(&self) -> Path {
        self.path
    }

    /// Maps the only piece there is.
    #[inline]
    fn map_single(&mut self, piece: PhysBvec) -> Result {
        let backend = self.client.backend;
        let len = piece.len();

        // SAFETY: Who made the source has promised that it is RAM which stays allocated until
        // `self.slot` is unmapped.
        self.dma = unsafe { backend.map_phys(piece.phys(), len as usize, self.dir) }?;
        self.left = len as usize;
        self.path = Path::Single;
        self.slot.0 = State::Single {
            backend,
            dma: self.dma,
            len,
            dir: self.dir,
        };
        Ok(())
    }

    /// Makes `first` and the rest of the source one range of IOVA space.
    ///
    /// Returns `false`, with the source untouched, where there is no IOVA space.
    fn link(&mut self, first: PhysBvec, bytes: usize) -> Result<bool> {
        let backend = self.client.backend;
        let Some(mut space) = IovaSpace::try_alloc(backend, first.phys(), bytes, self.dir) else {
            return Ok(false);
        };

        let mut piece = Some(first);
        while let Some(next) = piece {
            // SAFETY: Who made the source has promised that it is RAM which stays allocated until
            // `self.slot` is unmapped.
            unsafe { space.link(next) }?;
            piece = self.source.next();
        }

        let space = space.sync()?;
        self.dma = space.addr();
        self.left = space.len();
        self.path = Path::Iova;
        self.slot.0 = State::Iova(space);
        Ok(true)
    }

    /// Maps the next piece by itself. Returns `false` at the end of the source.
    #[inline]
    fn map_next(&mut self) -> Result<bool> {
        // Elsewhere all was mapped at once.
        if self.path != Path::Direct {
            return Ok(false);
        }
        let Some(piece) = self.ahead.take().or_else(|| self.source.next()) else {
            return Ok(false);
        };
        let backend = self.client.backend;
        let len = piece.len();

        // SAFETY: Who made the source has promised that it is RAM which stays allocated until
        // `self.slot` is unmapped.
        let dma = unsafe { backend.map_phys(piece.phys(), len as usize, self.dir) }
            .map_err(|e| self.undo(e))?;
        if backend.need_unmap() {
            if let Err(e) = self.remember(Piece { dma, len }) {
                // SAFETY: It was just mapped, and nobody has been told.
                unsafe { backend.unmap_phys(dma, len as usize, self.dir) };
                return Err(self.undo(e));
            }
        }
        self.dma = dma;
        self.left = len as usize;
        Ok(true)
    }

    fn remember(&mut self, piece: Piece) -> Result {
        if let State::Idle = self.slot.0 {
            self.slot.0 = State::Spilled {
                backend: self.client.backend,
                pieces: self.client.spill.alloc(GFP_ATOMIC)?,
                dir: self.dir,
            };
        }
        match &mut self.slot.0 {
            // Each piece is one segment or more, so a full vector means too many of them.
            State::Spilled { pieces, .. } => pieces.push(piece).map_err(|_| EINVAL),
            _ => Err(EINVAL),
        }
    }

    /// Unmaps all, so that an error leaves nothing behind and no further segment follows.
    #[cold]
    fn undo(&mut self, error: Error) -> Error {
        self.slot.unmap();
        self.left = 0;
        self.ahead = None;
        while self.source.next().is_some() {}
        error
    }
}
