// SPDX-License-Identifier: GPL-2.0

//! DMA from physical addresses, without `struct page`.
//!
//! A driver that does DMA has memory that came to it in one of many ways, and a device that wants
//! addresses and lengths. This module is what lies between. Memory is a physical address and a
//! length, and nothing else:
//!
//! - [`PhysBvec`] is one piece of it, 12 bytes; [`Merge`], [`Cursor`] and [`Limits`] join, walk
//!   and cut pieces;
//! - a [`Source`] is where pieces come from, and knows what kind of memory they can be:
//!   [`ReqBvecs`], [`Pages`], [`Virt`], [`Mixed`], [`Raw`]; [`Pinned`] memory of user space;
//! - a [`Provider`] is memory of a PCI device that others may do DMA to; a [`Registration`] makes
//!   it one, and [`provider_of`] finds it by its physical address;
//! - a [`Route`] is how a device reaches a provider; [`Refused`] says why it does not;
//! - a [`Client`] is the device; [`Client::map`] makes a source visible to it, and returns the
//!   [`Segments`] that the driver turns into its own descriptors;
//! - a [`Mapping`] lives in the request's private data and knows what to undo;
//! - [`Premapped`] memory is mapped once and used many times; a request has a [`PremappedSlice`];
//! - an [`IovaSpace`] is the two-step IOVA API of the kernel, with its rules in the types;
//! - [`copy_from`] and its like, and a [`Window`], are for the CPU.
//!
//! One request goes this way, and never back:
//!
//! ```text
//! request -> pieces -> whose? -> how? -> (one range, or piece by piece) -> segments -> descriptors
//!                                                      \-> Mapping, in the request, unmapped at
//!                                                          completion
//! ```
//!
//! C headers: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h),
//! [`include/linux/blk-mq-dma.h`](srctree/include/linux/blk-mq-dma.h)

mod access;
mod attachment;
mod backend;
mod bvec;
mod c_api;
mod client;
mod counter;
mod dependents;
mod failures;
mod iova;
mod map;
mod mapping;
#[cfg(CONFIG_MMU)]
mod mmap;
mod one;
#[cfg(CONFIG_MMU)]
mod pinned;
mod plan;
mod pool;
mod premap;
mod premapped;
mod provider;
mod registry;
mod route;
mod run;
mod segment;
mod source;
mod table;
mod trace;
mod window;

pub use self::access::{
    copy_from,
    copy_to,
    equals,
    zero, //
};
pub use self::attachment::{
    Live,
    Traffic, //
};
pub use self::backend::{
    Backend,
    Dma,
    Iova,
    Memory,
    PhysVec, //
};
pub use self::bvec::{
    BvecKind,
    Cursor,
    Limits,
    Merge,
    PhysBvec, //
};
pub use self::client::{
    nearest_provider,
    Client, //
};
pub use self::failures::failures;
pub use self::iova::{
    IovaSpace,
    Linking,
    State,
    Synced, //
};
pub use self::map::Segments;
pub use self::mapping::Mapping;
#[cfg(CONFIG_MMU)]
pub use self::pinned::{
    Pinned,
    PinnedBvecs,
    PinnedMapping, //
};
pub use self::premap::OwnedRam;
pub use self::premapped::{
    Premapped,
    PremappedSegments,
    PremappedSlice, //
};
pub use self::provider::{
    Allocation,
    Hold,
    Holder,
    Provider, //
};
pub use self::registry::{
    provider_of,
    providers,
    Registration, //
};
pub use self::route::{
    BarRange,
    Reach,
    Refused,
    Route,
    Topology, //
};
pub use self::segment::{
    Origin,
    Path,
    Segment, //
};
pub use self::source::{
    Miss,
    Mixed,
    Pages,
    Part,
    Raw,
    Source,
    Virt, //
};
#[cfg(CONFIG_BLOCK)]
pub use self::source::{
    PhysReqBvecs,
    ReqBvecs, //
};
pub use self::window::Window;
use crate::io::PhysAddr;
