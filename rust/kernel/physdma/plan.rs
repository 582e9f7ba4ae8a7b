// SPDX-License-Identifier: GPL-2.0

//! How the pieces of a request that is not all of one kind are mapped: [`Plan`].
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
