// SPDX-License-Identifier: GPL-2.0

//! What a device is told of a request's memory: [`Segment`].

use crate::dma::DmaAddress;

/// How the memory of a request was mapped.
///
/// # Examples
///
/// ```
/// use kernel::physdma::Path;
///
/// /// Whether there is one address for all of it.
/// fn is_one_range(path: Path) -> bool {
///     matches!(path, Path::Single | Path::Iova)
/// }
///
/// assert!(is_one_range(Path::Iova));
/// assert!(!is_one_range(Path::Direct));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// It was one piece.
    Single,
    /// Several pieces became one range of IOVA space.
    Iova,
    /// Several pieces, each mapped by itself.
    Direct,
    /// All of it has bus addresses.
    Bus,
    /// All of it is the device's own memory.
    Internal,
    /// It is not all of one kind.
    Mixed,
}

/// A piece of a request as the device is told of it.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{Origin, Segment};
///
/// /// The value of a descriptor: the device finds its own memory by the place in its BAR.
/// fn descriptor(segment: Segment) -> u64 {
///     match segment.origin {
///         Origin::Internal { offset, .. } => offset,
///         Origin::Mapped | Origin::Bus => segment.dma,
///     }
/// }
///
/// let (bar, offset) = (2, 0x40);
/// let origin = Origin::Internal { bar, offset };
/// assert_eq!(descriptor(Segment { dma: 0xf000_0040, len: 512, origin }), 0x40);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where the device finds it.
    pub dma: DmaAddress,
    /// Its length in bytes.
    pub len: u32,
    /// What it is.
    pub origin: Origin,
}

/// What a segment is to the device.
///
/// # Examples
///
/// See [`Segment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// RAM, or a provider's memory behind the host bridge: the DMA API gave it an address.
    Mapped,
    /// A provider's memory below the same switch.
    Bus,
    /// The device's own memory.
    Internal {
        /// The number of the BAR.
        bar: u8,
        /// Where in the BAR, in bytes.
        offset: u64,
    },
}
