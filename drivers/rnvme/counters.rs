// SPDX-License-Identifier: GPL-2.0

//! What a controller did, for the line that is logged when it goes.

use core::ops::AddAssign;
use kernel::{
    fmt,
    physdma::{
        Origin,
        Path,
        Segment, //
    }, //
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
    /// Pieces had to be remembered one by one.
    pub(crate) spilled: bool,
}

impl Moved {
    /// A request that is one segment.
    #[inline]
    pub(crate) fn one(segment: Segment) -> Self {
        Self {
            bytes: segment.len,
            segments: 1,
            path: match segment.origin {
                Origin::Mapped => Path::Single,
                Origin::Bus => Path::Bus,
                Origin::Internal { .. } => Path::Internal,
            },
            spilled: false,
        }
    }
}

/// What the requests of a queue, or of all queues, add up to.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counters {
    /// Those that move no data.
    empty: u64,
    bytes: u64,
    segments: u64,
    /// Those that were mapped by each [`Path`].
    paths: [u64; PATHS.len()],
    spilled: u64,
}

/// What each [`Path`] is called.
const PATHS: [&str; 6] = [
    "single",
    "iova_ranges",
    "piecewise",
    "bus",
    "internal",
    "mixed",
];

/// The place of `path` in [`PATHS`].
#[inline]
const fn place(path: Path) -> usize {
    match path {
        Path::Single => 0,
        Path::Iova => 1,
        Path::Direct => 2,
        Path::Bus => 3,
        Path::Internal => 4,
        Path::Mixed => 5,
    }
}

impl Counters {
    /// Counts a request. It is under a lock that the request takes anyway.
    // What wraps after centuries need not be checked for each request.
    #[inline]
    pub(crate) fn count(&mut self, moved: Option<Moved>) {
        let Some(moved) = moved else {
            self.empty = self.empty.wrapping_add(1);
            return;
        };
        self.bytes = self.bytes.wrapping_add(moved.bytes.into());
        self.segments = self.segments.wrapping_add(moved.segments.into());
        let path = &mut self.paths[place(moved.path)];
        *path = path.wrapping_add(1);
        if moved.spilled {
            self.spilled = self.spilled.wrapping_add(1);
        }
    }

    fn requests(&self) -> u64 {
        self.paths
            .iter()
            .fold(self.empty, |sum, path| sum.wrapping_add(*path))
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.empty = self.empty.wrapping_add(other.empty);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.segments = self.segments.wrapping_add(other.segments);
        for (path, other) in self.paths.iter_mut().zip(other.paths) {
            *path = path.wrapping_add(other);
        }
        self.spilled = self.spilled.wrapping_add(other.spilled);
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "requests={} bytes={} segments={}",
            self.requests(),
            self.bytes,
            self.segments
        )?;
        for (name, path) in PATHS.iter().zip(self.paths) {
            write!(f, " {name}={path}")?;
        }
        write!(f, " spilled={}", self.spilled)
    }
}
