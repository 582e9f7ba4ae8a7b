// SPDX-License-Identifier: GPL-2.0

//! Scatter Gather Lists: the other way in which a command says where its data are.
//!
//! Of them only the shortest is used: one descriptor, in the command itself, for data that are one
//! segment. The device need not read a list then, however long the segment is.
//!
//! No kernel types here: the same source is compiled on the host for its tests.
//!
//! NVM Express Base Specification 2.0, section 4.1.2.

/// In a command's flags: it has a descriptor, and not PRP entries. `PSDT`, with metadata that lie in
/// one piece, if there are any.
pub(crate) const FLAG: u8 = 0b01 << 6;

/// The descriptor of `len` bytes at `dma`: a data block. [`None`]: it cannot be said.
///
/// Both are multiples of four, as some devices demand.
#[inline]
pub(crate) fn data_block(dma: u64, len: u32) -> Option<[u64; 2]> {
    // The type is in the last byte, and zero.
    (len != 0 && dma % 4 == 0 && len % 4 == 0).then_some([dma, u64::from(len)])
}
