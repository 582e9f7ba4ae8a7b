// SPDX-License-Identifier: GPL-2.0

//! One call that makes memory visible to a device, whatever it is made of: [`Client::map`].
//!
//! The way of a request:
//!
//! - it is looked up whose memory it is, if that is not known, and how the device reaches it;
//! - what has a bus address to the device is addressed by it, and not mapped at all;
//! - memory that is one piece is mapped by itself (`dma_map_phys()`), which is cheapest everywhere;
//! - several pieces become one range of IOVA space where the device is behind an IOMMU and the
//!   pieces fit its granule ([`IovaSpace`]);
//! - else each piece is mapped by itself when the driver comes to it (but the first at once, where
//!   all are of one kind), and remembered if it will have to be unmapped.
//!
//! The driver turns the [`Segments`] straight into its own descriptors: there is no scatterlist
//! and no array in between. What must be undone lives in a [`Mapping`], which the driver keeps in
//! the request's private data.

use super::{
    backend::{
        Backend,
        Dma,
        Memory, //
    },
    client::Client,
    failures,
    iova::{
        IovaSpace,
        Linking,
        Synced, //
    },
    mapping::{
        Mapping,
        Note,
        State, //
    },
    plan::{
        Kind,
        Plan, //
    },
    registry,
    run::{
        bus_address,
        wide_dma,
        Classified,
        Hit,
        Run, //
    },
    segment::{
        Path,
        Segment, //
    },
    trace,
    Miss,
    PhysBvec,
    Source, //
};
use crate::{
    dma::{
        DataDirection,
        DmaAddress, //
    },
    prelude::*,
    sync::rcu, //
};
use core::iter;

impl<'a, B: Backend> Client<'a, B> {
    /// Maps the memory that `source` describes, and returns the segments to tell the device.
    ///
    /// `slot` keeps what will have to be undone. If something is mapped there still, it is
    /// unmapped first.
    ///
    /// May be called in atomic context. Nothing is allocated unless the memory is more than one
    /// piece, cannot become one range, and must be unmapped piece by piece; or belongs to more than
    /// one provider. What is allocated comes from a reserve then, unless the memory belongs to more
    /// providers than `Limits::max_segments`.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the source is empty, or longer than [`Client::max_bytes`]; `dir` is
    ///   [`DataDirection::None`]; or the device has no route to a provider, for the reason that
    ///   [`Client::route`] gives and the log has.
    /// - `EFAULT`: nobody knows what kind of memory it is: a [`Raw`](super::Raw) list, and no
    ///   provider owns the address, or one who hands it out by its pages.
    /// - `ENODEV`: the provider's memory is being revoked.
    /// - `EPERM`: a provider's memory would have to be bounced.
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

        let mut segments = Segments {
            slot,
            client: self,
            source,
            ahead: None,
            taken: false,
            hit: None,
            dma: 0,
            left: 0,
            count: 0,
            dir,
            path: Path::Direct,
            run: Run::Ram,
            range: 0,
        };
        segments.map_all().map_err(failures::count)?;
        trace::map(
            self.backend.bound_device(),
            segments.slot,
            || segments.source.bytes(),
            dir,
            segments.path,
        );
        Ok(segments)
    }
}

/// The segments of a request that is being mapped.
///
/// Where pieces are mapped one by one, that happens when [`next()`](Self::next) comes to them; with
/// the first it has happened, where all are of one kind.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{Segment, Segments, Source};
///
/// /// Fills the descriptors of a device.
/// fn fill(mut segments: Segments<'_, '_, impl Source>, list: &mut KVec<Segment>) -> Result {
///     while let Some(segment) = segments.next()? {
///         list.push(segment, GFP_ATOMIC)?;
///     }
///     pr_debug!("{} segments, {:?}\n", segments.count(), segments.path());
///     Ok(())
/// }
/// ```
pub struct Segments<'m, 'c, S: Source, B: Backend = Dma<'c>> {
    slot: &'m mut Mapping<'c, B>,
    client: &'c Client<'c, B>,
    source: S,
    /// Taken from the source, but not mapped yet.
    ahead: Option<PhysBvec>,
    /// There is nothing more to take.
    taken: bool,
    /// The memory that was found last, which is kept: what lies within need not be looked up.
    hit: Option<Hit>,
    /// Mapped, but not returned yet.
    dma: DmaAddress,
    left: usize,
    count: u16,
    dir: DataDirection,
    path: Path,
    /// What there is at `dma`.
    run: Run,
    /// Where the range of IOVA space goes on, in a request that is not all of one kind.
    range: DmaAddress,
}

impl<'c, S: Source, B: Backend> Segments<'_, 'c, S, B> {
    /// The next segment, within the client's limits; [`None`] at the end.
    ///
    /// May be called in atomic context.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the request has more segments than the client can take.
    /// - `ENOMEM`, `EPERM`: as with [`Client::map`].
    ///
    /// Nothing is mapped any more then.
    #[inline]
    #[expect(clippy::should_implement_trait)] // An error ends it, and must not be overlooked.
    pub fn next(&mut self) -> Result<Option<Segment>> {
        if self.left == 0 && !self.map_next().map_err(failures::count)? {
            return Ok(None);
        }
        if self.count == self.client.limits.max_segments {
            return Err(failures::count(self.undo(EINVAL)));
        }

        // CAST: At most `room`, which is a `u32`.
        let len = self
            .left
            .min(self.client.limits.room(wide_dma(self.dma)) as usize) as u32;
        let segment = Segment {
            dma: self.dma,
            len,
            origin: self.run.origin(self.dma),
        };

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

    /// Maps all that can be mapped at once.
    #[inline]
    fn map_all(&mut self) -> Result {
        // The usual case.
        let max = self.client.max_bytes;
        if let Some(one) = self
            .client
            .map_only(self.slot, &self.source, self.dir, max)?
        {
            self.dma = one.dma;
            self.left = one.len as usize;
            self.taken = true;
            self.path = one.path();
            self.run = one.run;
            return Ok(());
        }
        let bytes = self.source.bytes();
        if bytes > self.client.max_bytes || self.dir == DataDirection::None {
            return Err(EINVAL);
        }
        // Known when it is compiled, nothing else is compiled for the source.
        if S::UNIFORM || self.source.is_uniform() || S::MISS == Miss::Ram && !registry::any() {
            return self.map_uniform(bytes);
        }
        self.map_any(bytes)
    }

    /// Maps memory that is all of the kind of its first piece.
    #[inline]
    fn map_uniform(&mut self, bytes: usize) -> Result {
        let first = self.source.next().ok_or(EINVAL)?;
        if (S::UNIFORM || self.source.is_uniform()) && Client::<B>::may_be_owned(first) {
            let (run, len) = self.client.find_run::<S>(self.slot, first, Miss::Ram)?;
            if len != first.len() {
                // The source says that all is alike, but a provider's range begins or ends in it.
                return Err(self.undo(EFAULT));
            }
            self.run = run;
        }
        self.map_alike(first, bytes)
    }

    /// Maps `first`, and all that follows: memory of one kind, `bytes` bytes of it.
    #[inline]
    fn map_alike(&mut self, first: PhysBvec, bytes: usize) -> Result {
        if !self.run.kind().is_mapped() {
            self.path = match self.run.kind() {
                Kind::Internal => Path::Internal,
                _ => Path::Bus,
            };
            self.address(first);
            return Ok(());
        }
        if first.len() as usize >= bytes {
            return self.map_single(first);
        }
        let boundary = self.client.merge_boundary;
        if boundary == 0 || self.source.gaps() & boundary != 0 || !self.link(first, bytes)? {
            return self.map_piece(first);
        }
        Ok(())
    }

    /// Maps the only piece there is.
    #[inline]
    fn map_single(&mut self, piece: PhysBvec) -> Result {
        // SAFETY: Nothing has been mapped yet; it is of our source, and was looked up.
        let one = unsafe { self.client.map_alone(self.slot, piece, self.run, self.dir) }?;
        self.dma = one.dma;
        self.left = piece.len() as usize;
        self.path = Path::Single;
        Ok(())
    }

    /// Makes `first` and the rest of the source one range of IOVA space.
    ///
    /// Returns `false`, with the source untouched, where there is no IOVA space.
    fn link(&mut self, first: PhysBvec, bytes: usize) -> Result<bool> {
        let backend = self.client.backend;
        let Some(space) = IovaSpace::try_alloc(backend, first.phys(), bytes, self.dir) else {
            return Ok(false);
        };
        // The range is gone when this fails, and only then a provider's memory may go.
        let space = self
            .link_all(space, first)
            .inspect_err(|_| self.slot.unmap())?;
        self.dma = space.addr();
        self.left = space.len();
        self.path = Path::Iova;
        self.slot.state = State::Iova(space);
        Ok(true)
    }

    #[inline]
    fn link_all(
        &mut self,
        mut space: IovaSpace<B, Linking>,
        first: PhysBvec,
    ) -> Result<IovaSpace<B, Synced>> {
        let memory = self.run.memory();
        let mut next = Some(first);
        let pieces = iter::from_fn(|| {
            let piece = next?;
            next = self.source.next();
            Some(piece)
        });
        // SAFETY: As in `Client::map_alone`.
        unsafe { space.link_all(pieces, memory) }?;
        space.sync()
    }

    /// Maps the next piece by itself. Returns `false` at the end of the source.
    #[inline]
    fn map_next(&mut self) -> Result<bool> {
        if self.taken {
            return Ok(false);
        }
        match self.path {
            // All was mapped at once.
            Path::Single | Path::Iova => Ok(false),
            Path::Direct | Path::Bus | Path::Internal => {
                let Some(piece) = self.source.next() else {
                    return Ok(false);
                };
                if self.path == Path::Direct {
                    self.map_piece(piece)?;
                } else {
                    self.address(piece);
                }
                Ok(true)
            }
            Path::Mixed if S::UNIFORM => Ok(false),
            Path::Mixed => self.map_next_mixed(),
        }
    }

    /// Maps `piece` by itself.
    #[inline(always)] // It is the loop where nothing can be joined.
    fn map_piece(&mut self, piece: PhysBvec) -> Result {
        let backend = self.client.backend;
        let len = piece.len();
        let memory = self.run.memory();

        // SAFETY: As in `Client::map_alone`.
        let dma = unsafe { backend.map_phys(piece.phys(), len as usize, self.dir, memory) }
            .map_err(|e| self.undo(e))?;
        // A provider's memory is undone too where an IOMMU is in use, which RAM tells.
        if backend.need_unmap() {
            if let Err(e) = self.remember(dma, len, memory) {
                // SAFETY: It was just mapped, and nobody has been told.
                unsafe { backend.unmap_phys(dma, len as usize, self.dir, memory) };
                return Err(self.undo(e));
            }
        }
        self.dma = dma;
        self.left = len as usize;
        Ok(())
    }

    fn remember(&mut self, dma: DmaAddress, len: u32, memory: Memory) -> Result {
        let client = self.client;
        self.slot
            .note(Note::Piece { dma, len, memory }, &client.spill)?;
        self.slot.state = State::Spilled {
            backend: client.backend,
            dir: self.dir,
        };
        Ok(())
    }

    /// Gives the device the bus address of `piece`.
    #[inline]
    fn address(&mut self, piece: PhysBvec) {
        if let Run::Bus { offset } | Run::Internal { offset, .. } = self.run {
            self.dma = bus_address(piece, offset);
            self.left = piece.len() as usize;
        }
    }

    /// Finds out what each piece is, keeps what is a provider's, and maps it as that demands.
    #[inline(never)]
    fn map_any(&mut self, bytes: usize) -> Result {
        let mut plan = Plan::default();
        let mut first = None;
        let mut alike = true;

        loop {
            let guard = rcu::read_lock();
            let next = match self.classify(&guard) {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(e) => return Err(self.undo(e)),
            };
            if let Some(attachment) = next.attachment {
                if let Err(e) = self.client.keep(self.slot, attachment, &guard) {
                    return Err(self.undo(e));
                }
            }
            plan.add(next.piece, next.run.kind());
            let is_first = first.is_none();
            alike &= *first.get_or_insert(next.run) == next.run;
            let within = |hit: Hit| self.source.lies_within(hit.first, hit.last);
            if is_first && self.hit.is_some_and(within) {
                // The usual case. There is no plan to make.
                break;
            }
            self.skip_known(&mut plan);
        }
        let first = first.ok_or(EINVAL)?;
        self.source.rewind();
        self.ahead = None;

        if alike {
            self.run = first;
            let first = self.source.next().ok_or(EINVAL)?;
            return self.map_alike(first, bytes);
        }

        self.path = Path::Mixed;
        if let Some(bytes) = plan.shared(self.client.merge_boundary, self.client.coherent) {
            self.link_mixed(bytes).map_err(|e| self.undo(e))?;
            self.source.rewind();
            self.ahead = None;
        }
        Ok(())
    }

    /// Takes all pieces that follow in the memory that was found last: more of the same.
    #[inline]
    fn skip_known(&mut self, plan: &mut Plan) {
        let Some(hit) = self.hit else {
            return;
        };
        while let Some(piece) = self.ahead.take().or_else(|| self.source.next()) {
            if !hit.holds(piece) {
                self.ahead = Some(piece);
                return;
            }
            plan.add(piece, hit.run.kind());
        }
    }

    /// Takes the next piece that is all of one kind.
    #[inline]
    fn classify<'g>(&mut self, guard: &'g rcu::Guard) -> Result<Option<Classified<'g>>> {
        let Some(whole) = self.ahead.take().or_else(|| self.source.next()) else {
            return Ok(None);
        };
        if let Some(hit) = self.hit {
            if hit.holds(whole) {
                return Ok(Some(Classified {
                    whole,
                    piece: whole,
                    run: hit.run,
                    memory: None,
                    attachment: None,
                }));
            }
        }
        let found = self
            .client
            .identify::<S>(whole, self.source.miss(), guard)?;
        self.ahead = whole.split(found.piece.len()).1;
        if let Some((first, last)) = found.memory {
            let run = found.run;
            self.hit = Some(Hit { first, last, run });
        }
        Ok(Some(found))
    }

    /// Makes all that has to be mapped one range of `bytes` bytes, if there is IOVA space.
    fn link_mixed(&mut self, bytes: usize) -> Result {
        let backend = self.client.backend;
        let mut space: Option<IovaSpace<B, Linking>> = None;

        while let Some((piece, run)) = self.next_run()? {
            if !run.kind().is_mapped() {
                continue;
            }
            let space = match &mut space {
                Some(space) => space,
                None => match IovaSpace::try_alloc(backend, piece.phys(), bytes, self.dir) {
                    Some(new) => space.insert(new),
                    None => return Ok(()),
                },
            };
            // SAFETY: As in `Client::map_alone`.
            unsafe { space.link(piece, run.memory()) }?;
        }

        if let Some(space) = space {
            let space = space.sync()?;
            self.range = space.addr();
            self.slot.state = State::Iova(space);
        }
        Ok(())
    }

    /// Goes on to the next run of a request that is not all of one kind.
    #[cold]
    fn map_next_mixed(&mut self) -> Result<bool> {
        let linked = matches!(self.slot.state, State::Iova(_));
        let Some((piece, run)) = self.next_run().map_err(|e| self.undo(e))? else {
            return Ok(false);
        };
        self.run = run;
        if !run.kind().is_mapped() {
            self.address(piece);
        } else if linked {
            self.dma = self.range;
            self.left = piece.len() as usize;
        } else {
            return self.map_piece(piece).map(|()| true);
        }

        // What follows without a gap is one segment.
        loop {
            let guard = rcu::read_lock();
            match self.classify(&guard).map_err(|e| self.undo(e))? {
                Some(next) if self.goes_on(&next) => self.left += next.piece.len() as usize,
                Some(next) => {
                    self.ahead = Some(next.whole);
                    break;
                }
                None => break,
            }
        }
        if run.kind().is_mapped() {
            self.range = self.range.wrapping_add(self.left as DmaAddress);
        }
        Ok(true)
    }

    /// Whether `next` is where the device finds the end of what is at `dma`.
    fn goes_on(&self, next: &Classified<'_>) -> bool {
        match self.run {
            // In the range.
            Run::Ram | Run::HostBridge => next.run.kind().is_mapped(),
            Run::Bus { offset } | Run::Internal { offset, .. } => {
                let end = self.dma.wrapping_add(self.left as DmaAddress);
                next.run == self.run && bus_address(next.piece, offset) == end
            }
        }
    }

    /// Takes the next piece that is all of one kind. What is a provider's is kept already, so it
    /// need not be looked at under RCU any longer.
    fn next_run(&mut self) -> Result<Option<(PhysBvec, Run)>> {
        let guard = rcu::read_lock();
        let next = self.classify(&guard)?;
        Ok(next.map(|next| (next.piece, next.run)))
    }

    /// Unmaps all, so that an error leaves nothing behind and no further segment follows.
    #[inline(always)]
    fn undo(&mut self, error: Error) -> Error {
        self.slot.unmap();
        self.left = 0;
        self.taken = true;
        error
    }
}
