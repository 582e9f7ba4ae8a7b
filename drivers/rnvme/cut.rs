// SPDX-License-Identifier: GPL-2.0

//! Where a list of pieces of memory is cut, so that each part of it can be the data of one command.
//!
//! The block layer does so for its own requests. What it cannot know of is the controller's own
//! memory, which may not be mixed with other memory in one command unless the controller says so.
//!
//! No kernel types here: the same source is compiled on the host for its tests.
//!
//! NVM Express Base Specification 2.0, sections 4.1.1 and 8.5.

use super::prp::PAGE;

/// What memory is to the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// RAM.
    Ram,
    /// Another device's.
    Provider,
    /// Its own, in this BAR.
    Own(u8),
}

/// A piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its physical address.
    pub(crate) at: u64,
    /// Its length in bytes, at least one.
    pub(crate) len: u32,
    /// What it is to the controller.
    pub(crate) kind: Kind,
}

/// What a command takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The most bytes. A multiple of `block`.
    pub(crate) max_bytes: u32,
    /// The length of a block in bytes.
    pub(crate) block: u32,
    /// The controller's own memory may be mixed with other memory.
    pub(crate) mixes: bool,
}

/// Why memory cannot be the data of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Uncuttable {
    /// A command would begin with this address, which is no multiple of four.
    Misaligned(u64),
    /// A command would have to end after so many bytes, which are no whole blocks.
    Blocks(u32),
}

/// How many bytes of `pieces` the next command moves: as many as it can. None only at the end.
pub(crate) fn next(
    pieces: impl IntoIterator<Item = Piece>,
    rules: &Rules,
) -> Result<u32, Uncuttable> {
    let mut bytes = 0;
    let mut last: Option<Piece> = None;

    for piece in pieces {
        if let Some(last) = last {
            let end = last.at.wrapping_add(last.len.into());
            let joined = end == piece.at && last.kind == piece.kind;
            let own = |piece: Piece| match piece.kind {
                Kind::Own(bar) => Some(bar),
                _ => None,
            };

            // Within the data, entries are whole pages.
            if !joined && (end | piece.at) % PAGE != 0 {
                break;
            }
            if !rules.mixes && own(last) != own(piece) {
                break;
            }
        } else if piece.at % 4 != 0 {
            return Err(Uncuttable::Misaligned(piece.at));
        }
        if piece.len >= rules.max_bytes - bytes {
            return Ok(rules.max_bytes);
        }
        bytes += piece.len;
        last = Some(piece);
    }
    if bytes % rules.block != 0 {
        return Err(Uncuttable::Blocks(bytes));
    }
    Ok(bytes)
}
