// SPDX-License-Identifier: GPL-2.0

//! Pieces, cursors, merging and limits against a model that looks at every byte.

use super::random::Random;

/// The tests, for one width of physical addresses.
macro_rules! tests {
    ($width:ident, $size:literal) => {
        mod $width {
            use super::Random;
            use crate::$width::{
                bvec::{BvecKind, Cursor, Limits, Merge, PhysBvec},
                PhysAddr,
            };

            const NONE: Limits = Limits {
                max_segment_bytes: u32::MAX,
                boundary_mask: u64::MAX,
                max_segments: u16::MAX,
            };

            fn piece(phys: PhysAddr, len: u32) -> PhysBvec {
                PhysBvec::new(phys, len).unwrap()
            }

            /// The address of every byte of `pieces`.
            fn bytes(pieces: &[PhysBvec]) -> Vec<PhysAddr> {
                pieces
                    .iter()
                    .flat_map(|piece| piece.phys()..=piece.last())
                    .collect()
            }

            /// Up to 12 short pieces, many of which are neighbours.
            fn random_pieces(random: &mut Random) -> Vec<PhysBvec> {
                let mut at = random.below(64) as PhysAddr;
                (0..random.below(13))
                    .map(|_| {
                        let len = 1 + random.below(20) as u32;
                        let piece = piece(at, len);
                        at = match random.below(3) {
                            0 => random.below(256) as PhysAddr,
                            _ => piece.end(),
                        };
                        piece
                    })
                    .collect()
            }

            #[test]
            fn size() {
                let kind = if BvecKind::STORED { 4 } else { 0 };
                assert_eq!(size_of::<PhysBvec>(), $size + kind);
                assert_eq!(align_of::<PhysBvec>(), 4);
                assert_eq!(BvecKind::STORED, cfg!(CONFIG_PHYSDMA_BVEC_KIND));
            }

            #[test]
            fn kinds() {
                const KINDS: [BvecKind; 4] = [
                    BvecKind::Unknown,
                    BvecKind::Ram,
                    BvecKind::Provider,
                    BvecKind::Private,
                ];
                let kept = |kind| {
                    if BvecKind::STORED {
                        kind
                    } else {
                        BvecKind::Unknown
                    }
                };
                let plain = piece(0x1000, 0x100);
                assert_eq!(plain.kind(), BvecKind::Unknown);
                for kind in KINDS {
                    let this = plain.with_kind(kind);
                    assert_eq!(this.kind(), kept(kind));
                    // It is the same memory.
                    assert_eq!(this, plain);
                    let (head, tail) = this.split(0x40);
                    let tail = tail.unwrap();
                    assert_eq!((head.kind(), tail.kind()), (kept(kind), kept(kind)));
                    assert_eq!(head.join(tail).unwrap().kind(), kept(kind));
                    for other in KINDS {
                        let joins = head.join(tail.with_kind(other)).is_some();
                        assert_eq!(joins, kept(kind) == kept(other));
                        let list = [head, tail.with_kind(other)];
                        let merged = Merge::new(list.into_iter()).count();
                        assert_eq!(merged, if joins { 1 } else { 2 });
                    }
                    let mut cursor = Cursor::new([this].into_iter());
                    assert_eq!(cursor.take(1).unwrap().kind(), kept(kind));
                    assert_eq!(cursor.head().unwrap().kind(), kept(kind));
                }
            }

            #[test]
            fn ends_of_the_address_space() {
                assert!(PhysBvec::new(0, 0).is_none());
                assert!(PhysBvec::new(PhysAddr::MAX, 0).is_none());
                assert!(PhysBvec::new(PhysAddr::MAX, 2).is_none());
                assert!(PhysBvec::new(PhysAddr::MAX - 0xffe, 0x1000).is_none());
                let last = piece(PhysAddr::MAX - 0xfff, 0x1000);
                assert_eq!(last.last(), PhysAddr::MAX);
                assert_eq!(last.end(), 0);
                // Nothing follows the end, also not what starts at zero.
                assert!(last.join(piece(0, 1)).is_none());
                assert_eq!(
                    piece(PhysAddr::MAX, 1).split(1),
                    (piece(PhysAddr::MAX, 1), None)
                );
            }

            #[test]
            fn join_keeps_to_32_bits() {
                let long = piece(0, u32::MAX - 1);
                let one = piece(PhysAddr::from(u32::MAX - 1), 1);
                let two = PhysBvec::new(PhysAddr::from(u32::MAX - 1), 2).unwrap();
                assert_eq!(long.join(one).unwrap().len(), u32::MAX);
                assert!(long.join(two).is_none());
            }

            #[test]
            fn split_and_join() {
                let mut random = Random::new(1);
                for _ in 0..100_000 {
                    let whole = piece(
                        random.below(1 << 20) as PhysAddr,
                        1 + random.below(99) as u32,
                    );
                    let at = random.below(120) as u32;
                    let (head, tail) = whole.split(at);
                    assert!(head.len() <= at.max(1));
                    match tail {
                        Some(tail) => assert_eq!(head.join(tail), Some(whole)),
                        None => assert_eq!(head, whole),
                    }
                    assert!(tail.is_some() || at >= whole.len() || whole.len() == 1);
                }
            }

            #[test]
            fn merge_loses_no_byte_and_merges_all() {
                let mut random = Random::new(2);
                for _ in 0..100_000 {
                    let pieces = random_pieces(&mut random);
                    let merged: Vec<_> = Merge::new(pieces.iter().copied()).collect();
                    assert_eq!(bytes(&merged), bytes(&pieces));
                    for pair in merged.windows(2) {
                        assert!(pair[0].join(pair[1]).is_none());
                    }
                }
            }

            #[test]
            fn cursor_takes_every_byte_once() {
                let mut random = Random::new(3);
                for _ in 0..100_000 {
                    let pieces = random_pieces(&mut random);
                    let all = bytes(&pieces);
                    let mut cursor = Cursor::new(pieces.iter().copied());
                    let mut at = 0;
                    loop {
                        if random.below(4) == 0 {
                            let skip = random.below(40) as usize;
                            let moved = cursor.advance(skip);
                            assert_eq!(moved, skip.min(all.len() - at));
                            at += moved;
                        }
                        let max = random.below(12) as u32;
                        let head = cursor.head();
                        let Some(taken) = cursor.take(max) else {
                            break;
                        };
                        assert_eq!(taken.len(), max.max(1).min(head.unwrap().len()));
                        let end = at + taken.len() as usize;
                        assert_eq!(bytes(&[taken]), all[at..end]);
                        at = end;
                    }
                    assert_eq!(at, all.len());
                    assert!(cursor.head().is_none());
                    assert_eq!(cursor.advance(1), 0);
                }
            }

            #[test]
            fn room_is_what_fits() {
                let mut random = Random::new(4);
                for _ in 0..200_000 {
                    let limits = Limits {
                        max_segment_bytes: random.below(70) as u32,
                        boundary_mask: (1 << random.below(8)) - 1,
                        max_segments: 1,
                    };
                    let addr = random.below(1 << 12);
                    let room = limits.room(addr);
                    let fits = |len: u32| {
                        let last = addr + u64::from(len) - 1;
                        len <= limits.max_segment_bytes.max(1)
                            && addr & !limits.boundary_mask == last & !limits.boundary_mask
                    };
                    assert!(fits(room));
                    assert!(!fits(room + 1));
                }
                assert_eq!(NONE.room(0), u32::MAX);
                assert_eq!(NONE.room(u64::MAX), 1);
            }

            #[test]
            fn segments_keep_to_the_limits() {
                let mut random = Random::new(5);
                for _ in 0..50_000 {
                    let pieces = random_pieces(&mut random);
                    let limits = Limits {
                        max_segment_bytes: 1 + random.below(30) as u32,
                        boundary_mask: (1 << random.below(7)) - 1,
                        max_segments: 1,
                    };
                    let mut cursor = Cursor::new(Merge::new(pieces.iter().copied()));
                    let mut taken = Vec::new();
                    while let Some(segment) = cursor.take_segment(&limits) {
                        assert!(segment.len() <= limits.room(segment.phys().into()));
                        taken.push(segment);
                    }
                    assert_eq!(bytes(&taken), bytes(&pieces));
                }
            }
        }
    };
}

tests!(wide, 12);
tests!(narrow, 8);
