// SPDX-License-Identifier: GPL-2.0

//! I/O whose memory is a list of physical addresses, for kernel code: no bio, no `struct page`.
//!
//! The memory may be RAM, other devices' and the controller's own, mixed as one likes. The block
//! layer does not see it, so that it is cut into commands here.

use crate::{
    block::{
        Carried,
        Disk,
        Ops, //
    },
    command::{
        io,
        Command,
        CommandStatus, //
    },
    cut::{
        self,
        Kind,
        Piece, //
    },
    regs::Regs, //
};
use core::slice;
use kernel::{
    block::mq::{
        DriverOp,
        EndIo,
        Executed, //
    },
    physdma::{
        provider_of,
        Client,
        Part,
        PhysBvec,
        Route, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Completion,
        UniqueArc, //
    }, //
};

/// Which way data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the disk into memory.
    Read,
    /// From memory to the disk.
    Write,
}

impl Way {
    /// What a request is that moves data so.
    pub(crate) fn op(self) -> DriverOp {
        match self {
            Self::Read => DriverOp::In,
            Self::Write => DriverOp::Out,
        }
    }

    /// The operation code of a command that does.
    pub(crate) fn opcode(self) -> u8 {
        match self {
            Self::Read => io::READ,
            Self::Write => io::WRITE,
        }
    }
}

/// What is to be moved, piece by piece.
struct List {
    pieces: KVec<(PhysBvec, Kind)>,
    /// How many pieces are done.
    done: usize,
}

/// What one command moves; kept until it has ended.
struct Moving<E: Ended> {
    /// Of the pieces, so that they are dropped first.
    parts: KVec<Part<'static>>,
    _pieces: KVec<PhysBvec>,
    transfer: Arc<Transfer<E>>,
}

/// What is told when a transfer has ended.
pub(crate) trait Ended: Send + Sync + 'static {
    /// Called once, when nothing of the transfer is under way any more.
    ///
    /// Called in any context but NMI: it must not sleep.
    fn ended(self, result: Result);
}

/// A transfer. It has ended when nobody has it any more.
pub(crate) struct Transfer<E: Ended> {
    ended: Option<E>,
    /// The first error, or 0.
    error: Atomic<i32>,
}

impl<E: Ended> Transfer<E> {
    /// A transfer of which `ended` is told the end, maybe by this already.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, of which `ended` was told.
    pub(crate) fn new(ended: E) -> Result<Arc<Self>> {
        let transfer = UniqueArc::new(
            Self {
                ended: None,
                error: Atomic::new(0),
            },
            GFP_KERNEL,
        );
        match transfer {
            Ok(mut transfer) => {
                transfer.ended = Some(ended);
                Ok(transfer.into())
            }
            Err(e) => {
                ended.ended(Err(ENOMEM));
                Err(e.into())
            }
        }
    }

    pub(crate) fn fail(&self, e: Error) {
        // Only the first one is told.
        let _ = self.error.cmpxchg(0, e.to_errno(), Relaxed);
    }

    pub(crate) fn result(&self) -> Result {
        match self.error.load(Relaxed) {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }
}

impl<E: Ended> Drop for Transfer<E> {
    fn drop(&mut self) {
        let result = self.result();

        if let Some(ended) = self.ended.take() {
            ended.ended(result);
        }
    }
}

impl<'a, R: Regs + 'a, E: Ended> EndIo<Ops<'a, R>> for Moving<E> {
    type Kept = KBox<Self>;

    fn end_io(kept: KBox<Self>, mut rq: Executed<'_, Ops<'a, R>>) {
        rq.data_mut().carried = None;
        if let Err(e) = rq.status().to_result() {
            kept.transfer.fail(e);
        }
        // The tag is free before the transfer has ended.
        drop(rq);
    }
}

/// Who waits for a transfer.
#[pin_data]
pub(crate) struct Waiter {
    #[pin]
    done: Completion,
    error: Atomic<i32>,
}

impl Waiter {
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                done <- Completion::new(),
                error: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    /// Waits for the end of the transfer that was told of this. Sleeps.
    pub(crate) fn wait(&self) -> Result {
        self.done.wait_for_completion();
        match self.error.load(Relaxed) {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }
}

impl Ended for Arc<Waiter> {
    fn ended(self, result: Result) {
        if let Err(e) = result {
            self.error.store(e.to_errno(), Relaxed);
        }
        self.done.complete_all();
    }
}

impl List {
    /// The pieces of `parts`, and what they are to `client`.
    fn new(client: &Client<'_>, parts: &[Part<'_>]) -> Result<Self> {
        let mut pieces = KVec::new();

        for part in parts {
            match *part {
                Part::Ram(ram) => {
                    for &piece in ram {
                        pieces.push((piece, Kind::Ram), GFP_KERNEL)?;
                    }
                }
                Part::Provider(memory) => {
                    for &piece in memory {
                        let provider = provider_of(piece)?.ok_or(EFAULT)?;
                        if provider.has_pages() {
                            return Err(EFAULT);
                        }
                        let kind = match client.route(&provider) {
                            Ok(Route::Internal { bar, .. }) => Kind::Own(bar),
                            // Where there is no route, it is refused when it is mapped.
                            _ => Kind::Provider,
                        };
                        pieces.push((piece, kind), GFP_KERNEL)?;
                    }
                }
            }
        }
        Ok(Self { pieces, done: 0 })
    }

    fn left(&self) -> &[(PhysBvec, Kind)] {
        self.pieces.get(self.done..).unwrap_or_default()
    }

    /// Takes the next `bytes` bytes, for a command of `transfer`.
    fn take<E: Ended>(
        &mut self,
        mut bytes: u32,
        transfer: &Arc<Transfer<E>>,
    ) -> Result<KBox<Moving<E>>> {
        let mut taken = KVec::new();
        // Behind how many pieces RAM, or memory that is not RAM, ends.
        let mut turns: KVec<(bool, usize)> = KVec::new();

        while bytes > 0 {
            let (piece, kind) = self.pieces.get_mut(self.done).ok_or(EINVAL)?;
            let is_ram = *kind == Kind::Ram;
            let (first, rest) = piece.split(bytes);

            bytes -= first.len();
            taken.push(first, GFP_KERNEL)?;
            match turns.last_mut() {
                Some((ram, end)) if *ram == is_ram => *end = taken.len(),
                _ => turns.push((is_ram, taken.len()), GFP_KERNEL)?,
            }
            match rest {
                Some(rest) => *piece = rest,
                None => self.done += 1,
            }
        }

        // SAFETY: The vector is not changed any more, nor freed before the parts: it goes where
        // they go, and nobody else gets at them.
        let pieces = unsafe { slice::from_raw_parts(taken.as_ptr(), taken.len()) };
        let mut parts = KVec::with_capacity(turns.len(), GFP_KERNEL)?;
        let mut from = 0;
        for &(is_ram, to) in &turns {
            let pieces = pieces.get(from..to).ok_or(EINVAL)?;

            parts.push(
                match is_ram {
                    true => Part::Ram(pieces),
                    false => Part::Provider(pieces),
                },
                GFP_KERNEL,
            )?;
            from = to;
        }
        let moving = Moving {
            parts,
            _pieces: taken,
            transfer: transfer.clone(),
        };
        Ok(KBox::new(moving, GFP_KERNEL)?)
    }
}

impl<'a, R: Regs + 'a> Disk<'a, R> {
    /// Moves the blocks from `lba` on between the disk and the memory that `parts` are, as many as
    /// fit. Sleeps until that is done.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the memory cannot be cut into commands, or the device cannot reach it; one line
    ///   says why.
    /// - `EFAULT`: what is said to be a provider's memory is not, or is handed out by its pages.
    /// - `ENODEV`: the memory is being revoked, or the disk is gone.
    /// - `ENOMEM`.
    /// - What the device says, as the block layer translates it.
    ///
    /// Some of the commands may have been executed then.
    ///
    /// # Safety
    ///
    /// What `parts` say to be RAM is, and nobody else uses it until this returns.
    pub(crate) unsafe fn transfer(&self, way: Way, lba: u64, parts: &[Part<'_>]) -> Result {
        let waiter = Waiter::new()?;

        // SAFETY: By the safety requirements; this returns when it has ended.
        unsafe { self.start(way, lba, parts, waiter.clone()) };
        waiter.wait()
    }

    /// Like [`Self::transfer`], but does not wait until it is done: `ended` is told, maybe before
    /// this returns, and of all errors too. Sleeps where there are more commands than tags.
    ///
    /// All commands are under way at the same time. The list itself is not needed any more when
    /// this returns. Whoever takes away the disk, or memory that is not RAM, waits.
    ///
    /// # Safety
    ///
    /// What `parts` say to be RAM is, and nobody else uses it until `ended` is told: what keeps it
    /// is in `ended`, or lives longer than the disk, but cannot be forgotten.
    pub(crate) unsafe fn start<E: Ended>(&self, way: Way, lba: u64, parts: &[Part<'_>], ended: E) {
        let Ok(transfer) = Transfer::new(ended) else {
            return;
        };

        // SAFETY: By the safety requirements of this function.
        if let Err(e) = unsafe { self.commands(way, lba, parts, &transfer) } {
            transfer.fail(e);
        }
    }

    /// Starts the commands of `transfer`.
    ///
    /// # Safety
    ///
    /// As with [`Self::start`].
    unsafe fn commands<E: Ended>(
        &self,
        way: Way,
        lba: u64,
        parts: &[Part<'_>],
        transfer: &Arc<Transfer<E>>,
    ) -> Result {
        let mut list = List::new(self.client, parts)?;
        let mut lba = lba;

        while !list.left().is_empty() {
            // The rest would be of no use.
            transfer.result()?;

            let bytes = cut::next(
                list.left().iter().map(|&(piece, kind)| Piece {
                    at: piece.phys(),
                    len: piece.len(),
                    kind,
                }),
                &self.rules,
            )
            .map_err(|e| {
                if let Some(count) = self.uncut.count() {
                    pr_err!(
                        "namespace {}: memory cannot be cut into commands: {:?} ({} so far)\n",
                        self.nsid,
                        e,
                        count
                    );
                }
                EINVAL
            })?;
            let moving = list.take(bytes, transfer)?;

            // SAFETY: By the safety requirements of this function: it is kept until it has ended,
            // and with it the transfer.
            unsafe { self.command(way, lba, moving, bytes) }?;
            lba = lba
                .checked_add((bytes >> self.lba_shift).into())
                .ok_or(EINVAL)?;
        }
        Ok(())
    }

    /// Starts one command, which moves all `bytes` bytes of `moving`.
    ///
    /// # Safety
    ///
    /// What it says to be RAM is, and nobody else uses it until it is dropped.
    unsafe fn command<E: Ended>(
        &self,
        way: Way,
        lba: u64,
        moving: KBox<Moving<E>>,
        bytes: u32,
    ) -> Result {
        let blocks = u16::try_from(bytes >> self.lba_shift)?;
        let mut rq = self.disk.alloc(way.op())?;

        let data = rq.data_mut();
        data.command = Command::rw(way.opcode(), self.nsid, lba, blocks, false);
        data.status = CommandStatus::INTERNAL;
        // SAFETY: The list is in a box that the request keeps until it has ended; the rest is as
        // the safety requirements say.
        data.carried = Some(unsafe { Carried::new(&moving.parts, bytes) });
        rq.execute_nowait::<Moving<E>>(0, moving);
        Ok(())
    }
}
