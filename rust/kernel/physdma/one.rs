// SPDX-License-Identifier: GPL-2.0

//! Memory that is one piece, which that of most requests is: [`Client::map_one`].

use super::{
    backend::Backend,
    client::Client,
    failures,
    mapping::{
        Mapping,
        State, //
    },
    registry,
    run::{
        bus_address,
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
    prelude::*, //
};
use core::mem;

/// A piece that was mapped by itself, or need not be mapped.
pub(super) struct One {
    pub(super) dma: DmaAddress,
    pub(super) len: u32,
    pub(super) run: Run,
}

impl One {
    #[inline]
    pub(super) fn path(&self) -> Path {
        match self.run {
            Run::Ram | Run::HostBridge => Path::Single,
            Run::Bus { .. } => Path::Bus,
            Run::Internal { .. } => Path::Internal,
        }
    }
}

impl<'c, B: Backend> Client<'c, B> {
    /// Maps the memory that `source` describes as one segment, if it is one piece.
    ///
    /// It is the short way for what most requests of most drivers are, and does for them what
    /// [`Client::map`] does. Where it cannot be known at once that the memory is one piece, or all
    /// of one kind, or where the client's limits might cut it or not allow it at all, it returns
    /// [`None`] with nothing mapped: then [`Client::map`] is to be asked.
    ///
    /// May be called in atomic context. Nothing is allocated.
    ///
    /// # Errors
    ///
    /// Those of [`Client::map`]; nothing is mapped then.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     dma::DataDirection,
    ///     physdma::{Client, Mapping, Segment, Source},
    /// };
    ///
    /// /// Fills the descriptors of a device, the first of which lies in the command.
    /// fn fill<'c>(
    ///     client: &'c Client<'c>,
    ///     mapping: &mut Mapping<'c>,
    ///     source: impl Source,
    ///     list: &mut KVec<Segment>,
    /// ) -> Result<Segment> {
    ///     if let Some(only) = client.map_one(mapping, &source, DataDirection::ToDevice)? {
    ///         return Ok(only);
    ///     }
    ///     let mut segments = client.map(mapping, source, DataDirection::ToDevice)?;
    ///     let first = segments.next()?.ok_or(EINVAL)?;
    ///     while let Some(segment) = segments.next()? {
    ///         list.push(segment, GFP_ATOMIC)?;
    ///     }
    ///     Ok(first)
    /// }
    /// ```
    #[inline]
    pub fn map_one<S: Source>(
        &'c self,
        slot: &mut Mapping<'c, B>,
        source: &S,
        dir: DataDirection,
    ) -> Result<Option<Segment>> {
        slot.unmap();

        let Some(one) = self
            .map_only(slot, source, dir, self.max_whole)
            .map_err(failures::count)?
        else {
            slot.unmap();
            return Ok(None);
        };
        trace::map(
            self.backend.bound_device(),
            slot,
            || one.len as usize,
            dir,
            one.path(),
        );
        Ok(Some(Segment {
            dma: one.dma,
            len: one.len,
            origin: one.run.origin(one.dma),
        }))
    }

    /// Maps all of `source`, if it is one piece of at most `max` bytes, which is not more than can be
    /// mapped at once. [`None`]: it is not, or not all of one kind; what it begins with may be kept.
    /// Nothing is mapped in `slot`.
    #[inline(always)] // What it returns stays in registers.
    pub(super) fn map_only<S: Source>(
        &'c self,
        slot: &mut Mapping<'c, B>,
        source: &S,
        dir: DataDirection,
        max: usize,
    ) -> Result<Option<One>> {
        let Some(only) = source.only().filter(|only| only.len() as usize <= max) else {
            return Ok(None);
        };
        if dir == DataDirection::None {
            return Err(EINVAL);
        }
        // Known when it is compiled, for most sources.
        let uniform = S::UNIFORM || source.is_uniform();
        let mut run = Run::Ram;

        let look_up = if uniform {
            Self::may_be_owned(only)
        } else {
            S::MISS != Miss::Ram || registry::any()
        };

        if look_up {
            let miss = if uniform { Miss::Ram } else { source.miss() };
            let (found, len) = self.find_run::<S>(slot, only, miss)?;
            if len != only.len() {
                if uniform {
                    // The source says that all is alike, but a provider's range begins or ends in
                    // it.
                    slot.unmap();
                    return Err(EFAULT);
                }
                return Ok(None);
            }
            run = found;
        }
        match run {
            Run::Bus { offset } | Run::Internal { offset, .. } => Ok(Some(One {
                dma: bus_address(only, offset),
                len: only.len(),
                run,
            })),
            // SAFETY: It is all of `source`, and was looked up.
            Run::Ram | Run::HostBridge => unsafe { self.map_alone(slot, only, run, dir) }.map(Some),
        }
    }

    /// Has the DMA API map `piece`, all that there is.
    ///
    /// # Safety
    ///
    /// `slot` has nothing mapped. `piece` comes from a source, and is of the kind of `run`: a
    /// provider's memory that `slot` keeps; or RAM, for which who made the source has promised that
    /// it stays allocated until `slot` is unmapped.
    #[inline(always)] // As above.
    pub(super) unsafe fn map_alone(
        &'c self,
        slot: &mut Mapping<'c, B>,
        piece: PhysBvec,
        run: Run,
        dir: DataDirection,
    ) -> Result<One> {
        let backend = self.backend;
        let len = piece.len();
        let memory = run.memory();

        // SAFETY: By the safety requirements.
        let dma = unsafe { backend.map_phys(piece.phys(), len as usize, dir, memory) }
            .inspect_err(|_| slot.unmap())?;
        let state = State::Single {
            backend,
            dma,
            len,
            dir,
            memory,
        };
        // There is nothing in it that would have to be dropped, which need not be found out.
        mem::forget(mem::replace(&mut slot.state, state));
        Ok(One { dma, len, run })
    }
}
