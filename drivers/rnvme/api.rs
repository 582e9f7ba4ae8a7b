// SPDX-License-Identifier: GPL-2.0

//! I/O whose memory is a list of physical addresses, for kernel code: no bio, no `struct page`.
//!
//! The memory may be RAM, other devices' and the controller's own, mixed as one likes. The block
//! layer does not see it, so that it is cut into commands here.

use crate::{
    block::{
        Carried,
        Disk, //
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
use kernel::{
    block::mq::DriverOp,
    physdma::{
        provider_of,
        Client,
        Part,
        PhysBvec,
        Route, //
    },
    prelude::*, //
};

/// Which way data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the disk into memory.
    Read,
    /// From memory to the disk.
    Write,
}

/// What is to be moved, piece by piece.
struct List {
    pieces: KVec<(PhysBvec, Kind)>,
    /// How many pieces are done.
    done: usize,
}

/// What one command moves.
struct Taken {
    pieces: KVec<PhysBvec>,
    /// Behind how many pieces RAM, or memory that is not RAM, ends.
    turns: KVec<(bool, usize)>,
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

    /// Takes the next `bytes` bytes.
    fn take(&mut self, mut bytes: u32) -> Result<Taken> {
        let mut taken = KVec::new();
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
        Ok(Taken {
            pieces: taken,
            turns,
        })
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
    /// - `EFAULT`: what is said to be a provider's memory is not.
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
        let mut list = List::new(self.client, parts)?;
        let mut lba = lba;

        while !list.left().is_empty() {
            let bytes = cut::next(
                list.left().iter().map(|&(piece, kind)| Piece {
                    at: piece.phys(),
                    len: piece.len(),
                    kind,
                }),
                &self.rules,
            )
            .map_err(|e| {
                pr_err!(
                    "namespace {}: memory cannot be cut into commands: {:?}\n",
                    self.nsid,
                    e
                );
                EINVAL
            })?;
            let Taken { pieces, turns } = list.take(bytes)?;
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

            // SAFETY: By the safety requirements of this function.
            unsafe { self.command(way, lba, &parts, bytes) }?;
            lba = lba
                .checked_add((bytes >> self.lba_shift).into())
                .ok_or(EINVAL)?;
        }
        Ok(())
    }

    /// Executes one command that moves all `bytes` bytes of `parts`.
    ///
    /// # Safety
    ///
    /// As with [`Self::transfer`].
    unsafe fn command(&self, way: Way, lba: u64, parts: &[Part<'_>], bytes: u32) -> Result {
        let (op, opcode) = match way {
            Way::Read => (DriverOp::In, io::READ),
            Way::Write => (DriverOp::Out, io::WRITE),
        };
        let blocks = u16::try_from(bytes >> self.lba_shift)?;
        let mut rq = self.disk.alloc(op)?;

        let data = rq.data_mut();
        data.command = Command::rw(opcode, self.nsid, lba, blocks, false);
        data.status = CommandStatus::INTERNAL;
        // SAFETY: The request has ended when this function returns.
        data.carried = Some(unsafe { Carried::new(parts, bytes) });
        let mut done = rq.execute(0);
        done.data_mut().carried = None;
        done.status().to_result()
    }
}
