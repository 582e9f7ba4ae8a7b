// SPDX-License-Identifier: GPL-2.0

//! All of the pure logic against a model that knows nothing but numbers without end, from any
//! numbers that it is given: random ones in the tests, a fuzzer's in fuzz.rs.
//!
//! Compiled beside the logic, once for each width of an address.

use super::{
    bvec::{Cursor, Limits, Merge, PhysBvec},
    plan::{Grid, Kind, Plan},
    PhysAddr,
};
use crate::numbers::Numbers;

/// Where a piece starts, and where it ends.
type Span = (u128, u128);

fn span(piece: PhysBvec) -> Span {
    let first = u128::from(piece.phys());
    (first, first + u128::from(piece.len()))
}

/// Small numbers mostly, for they meet; but large ones as well.
fn len(from: &mut impl Numbers) -> u32 {
    match from.below(8) {
        0 => u32::MAX - from.below(4) as u32,
        1 => from.below(1 << 32) as u32,
        2 => 0x1000 << from.below(4),
        _ => from.below(20) as u32,
    }
}

fn addr(from: &mut impl Numbers, before: PhysAddr) -> PhysAddr {
    match from.below(8) {
        0 => PhysAddr::MAX - from.below(32) as PhysAddr,
        1 => from.below(u64::from(u32::MAX)) as PhysAddr,
        2 => (from.below(256) << 12) as PhysAddr,
        _ => before,
    }
}

fn pieces(from: &mut impl Numbers) -> Vec<PhysBvec> {
    let mut list: Vec<PhysBvec> = Vec::new();
    for _ in 0..from.below(12) {
        let before = list.last().map_or(0, |last| last.end());
        let (phys, len) = (addr(from, before), len(from));
        let fits = u128::from(phys) + u128::from(len) <= u128::from(PhysAddr::MAX) + 1;
        let piece = PhysBvec::new(phys, len);
        assert_eq!(piece.is_some(), len > 0 && fits);
        if let Some(piece) = piece {
            let (first, end) = span(piece);
            assert_eq!((piece.phys(), piece.len()), (phys, len));
            assert_eq!(u128::from(piece.last()), end - 1);
            assert_eq!(piece.end(), piece.last().wrapping_add(1));
            assert!(first < end);
            list.push(piece);
        }
    }
    list
}

fn limits(from: &mut impl Numbers) -> Limits {
    Limits {
        max_segment_bytes: len(from),
        boundary_mask: u64::MAX >> from.below(64),
        max_segments: 1,
    }
}

/// The most bytes that fit at `at`.
fn room(limits: &Limits, at: u64) -> u128 {
    let boundary = u128::from(limits.boundary_mask) + 1;
    let most = u128::from(limits.max_segment_bytes.max(1));
    most.min(boundary - u128::from(at) % boundary)
}

fn check_pairs(from: &mut impl Numbers, list: &[PhysBvec]) {
    for pair in list.windows(2) {
        let (a, b) = (span(pair[0]), span(pair[1]));
        let joins = a.1 == b.0 && b.1 - a.0 <= u128::from(u32::MAX);
        assert_eq!(pair[0].join(pair[1]).map(span), joins.then_some((a.0, b.1)));
    }
    for &piece in list {
        let at = len(from);
        let (first, end) = span(piece);
        let cut = end.min(first + u128::from(at.max(1)));
        let (head, tail) = piece.split(at);
        assert_eq!(span(head), (first, cut));
        assert_eq!(tail.map(span), (cut < end).then_some((cut, end)));
    }
}

fn check_merge(list: &[PhysBvec]) {
    let mut model: Vec<Span> = Vec::new();
    for &piece in list {
        let (first, end) = span(piece);
        match model.last_mut() {
            Some(last) if last.1 == first && end - last.0 <= u128::from(u32::MAX) => {
                last.1 = end;
            }
            _ => model.push((first, end)),
        }
    }
    let merged: Vec<Span> = Merge::new(list.iter().copied()).map(span).collect();
    assert_eq!(merged, model);
}

fn check_cursor(from: &mut impl Numbers, list: &[PhysBvec]) {
    let mut model: std::collections::VecDeque<Span> = list.iter().copied().map(span).collect();
    let mut cursor = Cursor::new(list.iter().copied());
    // Takes at most so many bytes of the first.
    let take = |model: &mut std::collections::VecDeque<Span>, most: u128| {
        let (first, end) = *model.front()?;
        let cut = end.min(first + most);
        model.pop_front();
        if cut < end {
            model.push_front((cut, end));
        }
        Some((first, cut))
    };
    for _ in 0..24 {
        assert_eq!(cursor.head().map(span), model.front().copied());
        match from.below(3) {
            0 => {
                let max = len(from);
                let taken = cursor.take(max).map(span);
                assert_eq!(taken, take(&mut model, max.max(1).into()));
            }
            1 => {
                let limits = limits(from);
                // CAST: A `PhysAddr` has no more bits.
                let at = cursor.head().map_or(0, |head| u64::from(head.phys()));
                let most = room(&limits, at);
                assert_eq!(u128::from(limits.room(at)), most);
                let taken = cursor.take_segment(&limits).map(span);
                assert_eq!(taken, take(&mut model, most));
            }
            _ => {
                let bits = 1 + from.below(36);
                let bytes = from.below(1 << bits) as usize;
                let mut left = bytes as u128;
                while left > 0 {
                    match take(&mut model, left) {
                        Some((first, end)) => left -= end - first,
                        None => break,
                    }
                }
                assert_eq!(cursor.advance(bytes) as u128, bytes as u128 - left);
            }
        }
    }
}

fn check_plan(from: &mut impl Numbers, list: &[PhysBvec]) {
    let granule: u64 = [0, 0x1000, 0x10, 1 << 16][from.below(4) as usize];
    let coherent = from.below(2) == 0;
    let mut plan = Plan::default();
    // What is linked, as the rules of the range have it: it starts where the first piece
    // does in its granule, all others start on one, at an end that is on one.
    let mut linked: Option<(u128, u128)> = None;
    let (mut count, mut fits, mut ram, mut others) = (0, true, false, false);
    for &piece in list {
        let kind = [Kind::Ram, Kind::HostBridge, Kind::Bus, Kind::Internal][from.below(4) as usize];
        plan.add(piece, kind);
        if !kind.is_mapped() {
            continue;
        }
        let (first, end) = span(piece);
        let size = u128::from(granule.max(1));
        let (start, bytes) = linked.unwrap_or((first % size, 0));
        if bytes > 0 {
            fits &= first % size == 0 && (start + bytes) % size == 0;
        }
        linked = Some((start, bytes + end - first));
        count += 1;
        ram |= kind == Kind::Ram;
        others |= kind == Kind::HostBridge;
    }
    let shared = count > 1 && granule > 0 && fits && (coherent || !(ram && others));
    let bytes = linked.map_or(0, |(_, bytes)| bytes);
    assert_eq!(
        plan.shared(granule.saturating_sub(1), coherent),
        shared.then_some(bytes as usize)
    );
}

/// Each byte of a buffer is where its piece is, though nobody looks for the piece.
fn check_grid(from: &mut impl Numbers) {
    let page = 0x1000 << from.below(4);
    let mut lens = vec![1 + from.below(3 * page)];
    for _ in 0..from.below(5) {
        lens.push(page * (1 + from.below(6)));
    }
    lens.push(1 + from.below(3 * page));

    let mut grid = Grid::default();
    for &len in &lens {
        grid.add(len as u32);
    }
    let inner = &lens[1..lens.len() - 1];
    assert!(inner.is_empty() || grid.finish(page));
    assert!(grid.finish(1));
    let unit = grid.unit();
    assert_eq!(unit, 1 << unit.trailing_zeros());
    // No larger one would do.
    assert!(inner.iter().all(|len| len % unit == 0));
    match inner {
        [] => assert!(unit >= lens[0].max(lens[1])),
        _ => assert!(inner.iter().any(|len| len % (2 * unit) != 0)),
    }

    // Pieces that are nowhere near each other.
    let place = |number: usize| ((number as u64) << 40) + 0x123;
    let mut table = Vec::new();
    for (number, &len) in lens.iter().enumerate() {
        table.extend(
            grid.starts(len as u32)
                .map(|start| place(number).wrapping_add(start)),
        );
    }
    let mut begin = 0;
    for (number, &len) in lens.iter().enumerate() {
        for within in [0, len - 1, from.below(len), from.below(len)] {
            let (index, at) = grid.find(begin + within);
            assert!(at < unit);
            assert_eq!(table[index].wrapping_add(at), place(number) + within);
        }
        begin += len;
    }
    assert_eq!(grid.find(begin - 1).0, table.len() - 1);
}

/// Panics where the logic does not do what the model does.
pub fn check(from: &mut impl Numbers) {
    let list = pieces(from);
    check_pairs(from, &list);
    check_merge(&list);
    check_cursor(from, &list);
    check_plan(from, &list);
    check_grid(from);
}
