// SPDX-License-Identifier: GPL-2.0

//! How the pieces of a request that is not all of one kind are mapped: [`Plan`]; and how the pieces
//! of a buffer are found without a search: [`Grid`].
//!
//! Pure logic, compiled on the host too.

use super::{
    bvec::wide,
    PhysBvec, //
};

/// What a piece of memory is to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// RAM.
    Ram,
    /// A provider's memory, reached through the host bridge.
    HostBridge,
    /// A provider's memory, reached by its bus address.
    Bus,
    /// The device's own memory.
    Internal,
}

impl Kind {
    /// Whether the DMA API gives it an address.
    #[inline]
    pub(super) const fn is_mapped(self) -> bool {
        matches!(self, Self::Ram | Self::HostBridge)
    }
}

/// Sums up the pieces of a request in data order, and says whether those that the DMA API maps can
/// share one range of IOVA space.
///
/// What stands between them and has a bus address takes no part: the range goes on behind it.
#[derive(Default)]
pub(super) struct Plan {
    bytes: usize,
    pieces: usize,
    /// All address bits in which two neighbours in the range do not fit together.
    gaps: u64,
    last: Option<PhysBvec>,
    ram: bool,
    provider: bool,
}

impl Plan {
    /// Adds the next piece of the request.
    #[inline]
    pub(super) fn add(&mut self, piece: PhysBvec, kind: Kind) {
        match kind {
            Kind::Bus | Kind::Internal => return,
            Kind::Ram => self.ram = true,
            Kind::HostBridge => self.provider = true,
        }
        if let Some(last) = self.last.replace(piece) {
            // Linked one by one, they meet on the IOMMU's granule even if they are neighbours.
            self.gaps |= wide(last.end()) | wide(piece.phys());
        }
        // The caller has seen that the sum of all pieces fits.
        self.bytes = self.bytes.saturating_add(piece.len() as usize);
        self.pieces += 1;
    }

    /// The length of the one range that holds all that is mapped, if there is more than one piece
    /// and one range can.
    ///
    /// `merge_boundary` is the IOMMU's smallest page less one, or 0 without an IOMMU. A device that
    /// is not `coherent` cannot have RAM and a provider's memory in one range: they are undone
    /// differently.
    #[inline]
    pub(super) fn shared(&self, merge_boundary: u64, coherent: bool) -> Option<usize> {
        let fits = merge_boundary != 0 && self.gaps & merge_boundary == 0;
        let alike = coherent || !(self.ram && self.provider);
        (self.pieces > 1 && fits && alike).then_some(self.bytes)
    }
}

/// Cuts a buffer that is made of pieces into units of one size, so that each unit lies in one piece:
/// the largest power of two that the pieces allow.
///
/// # Invariants
///
/// `shift` is less than 64, and `skip` less than a unit.
#[derive(Default)]
pub(super) struct Grid {
    shift: u32,
    /// How much of the first unit lies before the buffer.
    skip: u64,
    /// Before it is finished: the lengths of the first and of the last piece, and all bits of the
    /// lengths of the others.
    first: u32,
    last: u32,
    inner: u32,
    /// Where the next piece begins, when the starts are asked for.
    at: u64,
}

impl Grid {
    /// Adds the next piece, which is not empty.
    pub(super) fn add(&mut self, len: u32) {
        if self.first == 0 {
            self.first = len;
            return;
        }
        self.inner |= self.last;
        self.last = len;
    }

    /// Chooses the unit. Returns whether it is at least `least` bytes, a power of two.
    pub(super) fn finish(&mut self, least: u64) -> bool {
        let unit = if self.inner != 0 {
            1 << self.inner.trailing_zeros()
        } else {
            u64::from(self.first.max(self.last)).next_power_of_two()
        };
        // INVARIANT: Both are at most 32 bits; and a remainder is less than what it is of.
        self.shift = unit.trailing_zeros();
        self.skip = unit.wrapping_sub(self.first.into()) & (unit - 1);
        self.at = self.skip;
        unit >= least
    }

    /// The size of a unit in bytes.
    #[inline]
    pub(super) const fn unit(&self) -> u64 {
        1 << self.shift
    }

    /// Which unit the byte at `at` of the buffer is in, and where in it.
    #[inline]
    pub(super) const fn find(&self, at: u64) -> (usize, u64) {
        let at = at + self.skip;
        // CAST: There are not more units than fit a table.
        ((at >> self.shift) as usize, at & (self.unit() - 1))
    }

    /// Where the units of the next piece, of `len` bytes, begin: relative to the piece's first byte,
    /// modulo 2^64. The first unit of a buffer may begin before its first piece does.
    pub(super) fn starts(&mut self, len: u32) -> impl Iterator<Item = u64> {
        let (at, unit) = (self.at, self.unit());
        self.at = at + u64::from(len);
        let before = at & (unit - 1);
        let mut next = 0;
        core::iter::from_fn(move || {
            if next >= before + u64::from(len) {
                return None;
            }
            let start = next.wrapping_sub(before);
            next += unit;
            Some(start)
        })
    }
}
