// SPDX-License-Identifier: GPL-2.0

//! What has been mapped for a request, and how it is undone: [`Mapping`].

use super::{
    attachment::{
        Attachment,
        Live, //
    },
    backend::{
        Backend,
        Dma,
        Memory, //
    },
    iova::{
        IovaSpace,
        Synced, //
    },
    trace, //
};
use crate::{
    dma::{
        DataDirection,
        DmaAddress, //
    },
    mempool::{
        Mempool,
        MempoolVec, //
    },
    prelude::*, //
};

/// What has been mapped for a request, and how it is undone.
///
/// Lives where the request's private data live; starts out, and is again after
/// [`unmap()`](Self::unmap), empty.
///
/// # Examples
///
/// ```
/// use kernel::physdma::Mapping;
///
/// /// A driver's own data beside each request.
/// #[derive(Default)]
/// struct RequestData<'a> {
///     mapping: Mapping<'a>,
/// }
///
/// let mut data = RequestData::default();
/// assert!(size_of_val(&data) <= 64);
/// // When the device is done. Once more does nothing.
/// data.mapping.unmap();
/// data.mapping.unmap();
/// assert_eq!(data.mapping.spilled(), 0);
/// ```
pub struct Mapping<'c, B: Backend = Dma<'c>> {
    pub(super) state: State<B>,
    /// The memory of one provider, the commonest case.
    live: Option<Live>,
    notes: Option<MempoolVec<'c, Note>>,
}

pub(super) enum State<B: Backend> {
    /// Nothing to undo.
    Idle,
    /// The device has bus addresses: nothing to undo, but a provider's memory is kept.
    Noted,
    /// One piece, mapped by itself.
    Single {
        backend: B,
        dma: DmaAddress,
        len: u32,
        dir: DataDirection,
        memory: Memory,
    },
    /// All that the DMA API maps in one range of IOVA space.
    Iova(IovaSpace<B, Synced>),
    /// Several pieces, each mapped by itself; `notes` has those that must be unmapped.
    Spilled { backend: B, dir: DataDirection },
}

/// What else must be remembered.
pub(super) enum Note {
    /// A piece that was mapped by itself.
    Piece {
        dma: DmaAddress,
        len: u32,
        memory: Memory,
    },
    /// What keeps a provider's memory.
    Live(Live),
    /// The same for what is more than a buffer has room for.
    More(KBox<KVec<Live>>),
}

impl Note {
    /// Whether it keeps the memory of `attachment`'s provider.
    fn keeps(&self, attachment: &Attachment) -> bool {
        match self {
            Self::Piece { .. } => false,
            Self::Live(live) => live.is_of(attachment),
            Self::More(list) => list.iter().any(|live| live.is_of(attachment)),
        }
    }
}

/// Where the notes of requests are, if there are any.
pub(super) struct Spill {
    pool: Mempool<Note>,
    /// How many providers are noted each by itself.
    room: usize,
}

impl Spill {
    /// For requests of at most `max_segments` segments. May sleep.
    pub(super) fn new(max_segments: u16) -> Result<Self> {
        let room = u32::from(max_segments);
        Ok(Self {
            // A request uses one buffer at most. With one in reserve there is always a request
            // that can go on, and its buffer comes back when it completes.
            //
            // Each segment is a piece, and the first one that is too many is noted too. As many
            // providers have room beside them; more are behind one note.
            pool: Mempool::new(1, 2 * room + 2)?,
            room: usize::from(max_segments),
        })
    }
}

// A request's private data are allocated for each tag of each queue.
const _: () = assert!(size_of::<Mapping<'static>>() <= 64);

impl<B: Backend> Default for Mapping<'_, B> {
    fn default() -> Self {
        Self {
            state: State::Idle,
            live: None,
            notes: None,
        }
    }
}

impl<'c, B: Backend> Mapping<'c, B> {
    /// Takes the memory away from the device.
    ///
    /// The device must have stopped using it. After this the CPU sees what the device wrote. Does
    /// not sleep, and may be called in hard interrupt context.
    #[inline]
    pub fn unmap(&mut self) {
        if !matches!(self.state, State::Idle) {
            self.undo();
        }
    }

    /// Whether nothing is mapped.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    fn undo(&mut self) {
        trace::unmap(self);
        // What most requests are: nothing is to be done when that is unmapped.
        if self.live.is_none() && self.notes.is_none() {
            if let State::Single {
                backend,
                dma,
                len,
                dir,
                memory,
            } = self.state
            {
                self.state = State::Idle;
                // SAFETY: This is what `Client::map_alone` mapped, and it was forgotten.
                unsafe { backend.unmap_phys(dma, len as usize, dir, memory) };
                return;
            }
        }
        self.undo_all();
    }

    #[inline(never)] // It needs more registers.
    fn undo_all(&mut self) {
        match &self.state {
            State::Idle | State::Noted => (),
            // Dropped below.
            State::Iova(_) => (),
            State::Single {
                backend,
                dma,
                len,
                dir,
                memory,
                // SAFETY: This is what `Client::map_alone` mapped, and it is forgotten below.
            } => unsafe { backend.unmap_phys(*dma, *len as usize, *dir, *memory) },
            State::Spilled { backend, dir } => {
                for note in self.notes() {
                    if let Note::Piece { dma, len, memory } = *note {
                        // SAFETY: This is what `Segments::map_piece` mapped, and it is forgotten
                        // below.
                        unsafe { backend.unmap_phys(dma, len as usize, *dir, memory) };
                    }
                }
            }
        }
        self.state = State::Idle;
        // Last: providers' memory is kept until no device has an address of it.
        if self.live.is_some() || self.notes.is_some() {
            self.live = None;
            self.notes = None;
        }
    }

    /// How many pieces had to be remembered one by one.
    #[inline]
    pub fn spilled(&self) -> usize {
        let pieces = self.notes().iter();
        pieces.filter(|n| matches!(n, Note::Piece { .. })).count()
    }

    /// Keeps the memory of a provider until all is unmapped; nothing is mapped yet.
    #[inline]
    pub(super) fn keep_first(&mut self, live: Live) {
        self.state = State::Noted;
        self.live = Some(live);
    }

    /// Keeps the memory of one more provider until all is unmapped.
    pub(super) fn keep(&mut self, live: Live, spill: &'c Spill) -> Result {
        if self.live.is_none() {
            self.live = Some(live);
            return Ok(());
        }
        if self.notes().len() < spill.room {
            return self.note(Note::Live(live), spill);
        }
        self.keep_more(live, spill)
    }

    /// The same where there are more of them than segments: providers' memory that one range of
    /// IOVA space holds.
    #[cold]
    fn keep_more(&mut self, live: Live, spill: &'c Spill) -> Result {
        if !matches!(self.notes().last(), Some(Note::More(_))) {
            let list = KBox::new(KVec::new(), GFP_ATOMIC)?;
            self.note(Note::More(list), spill)?;
        }
        match self.notes.as_deref_mut().and_then(|notes| notes.last_mut()) {
            Some(Note::More(list)) => Ok(list.push(live, GFP_ATOMIC)?),
            _ => Err(EINVAL),
        }
    }

    pub(super) fn note(&mut self, note: Note, spill: &'c Spill) -> Result {
        let notes = match &mut self.notes {
            Some(notes) => notes,
            None => self.notes.insert(spill.pool.alloc(GFP_ATOMIC)?),
        };
        // More pieces than segments: see `Spill::new`.
        notes.push(note).map_err(|_| EINVAL)
    }

    fn notes(&self) -> &[Note] {
        self.notes.as_deref().unwrap_or_default()
    }

    /// Whether the memory of `attachment`'s provider is kept already.
    pub(super) fn keeps(&self, attachment: &Attachment) -> bool {
        self.live
            .as_ref()
            .is_some_and(|live| live.is_of(attachment))
            || self.notes().iter().any(|note| note.keeps(attachment))
    }
}

impl<B: Backend> Drop for Mapping<'_, B> {
    fn drop(&mut self) {
        self.unmap();
    }
}
