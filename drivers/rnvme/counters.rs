// SPDX-License-Identifier: GPL-2.0

//! What a controller did, for the line that is logged when it goes.

use core::ops::AddAssign;
use kernel::{
    fmt,
    physdma::Path, //
};

/// How the data of one request were mapped.
#[derive(Clone, Copy)]
pub(crate) struct Moved {
    /// The length of the data.
    pub(crate) bytes: u32,
    /// In how many pieces the device was told where they are.
    pub(crate) segments: u16,
    /// By which way they were mapped.
    pub(crate) path: Path,
    /// Pieces that had to be remembered one by one.
    pub(crate) spilled: u16,
}

/// What the requests of a queue, or of all queues, add up to.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counters {
    requests: u64,
    bytes: u64,
    segments: u64,
    single: u64,
    iova_ranges: u64,
    piecewise: u64,
    bus: u64,
    internal: u64,
    mixed: u64,
    spilled: u64,
}

impl Counters {
    /// Counts a request. It is under a lock that the request takes anyway.
    #[inline]
    pub(crate) fn count(&mut self, moved: Option<Moved>) {
        self.requests += 1;
        let Some(moved) = moved else {
            return;
        };
        self.bytes += u64::from(moved.bytes);
        self.segments += u64::from(moved.segments);
        match moved.path {
            Path::Single => self.single += 1,
            Path::Iova => self.iova_ranges += 1,
            Path::Direct => self.piecewise += 1,
            Path::Bus => self.bus += 1,
            Path::Internal => self.internal += 1,
            Path::Mixed => self.mixed += 1,
        }
        self.spilled += u64::from(moved.spilled != 0);
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.segments += other.segments;
        self.single += other.single;
        self.iova_ranges += other.iova_ranges;
        self.piecewise += other.piecewise;
        self.bus += other.bus;
        self.internal += other.internal;
        self.mixed += other.mixed;
        self.spilled += other.spilled;
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "requests={} bytes={} segments={} single={} iova_ranges={} piecewise={} bus={} \
             internal={} mixed={} spilled={}",
            self.requests,
            self.bytes,
            self.segments,
            self.single,
            self.iova_ranges,
            self.piecewise,
            self.bus,
            self.internal,
            self.mixed,
            self.spilled
        )
    }
}
