// SPDX-License-Identifier: GPL-2.0

//! Memory that is cut into commands: each can be one, all of it is moved, and no two of them could
//! have been one.

use super::random::Random;
use crate::rnvme::{
    cut::{self, Kind, Piece, Rules, Uncuttable},
    prp::PAGE,
};

const RULES: Rules = Rules {
    max_bytes: 0x8000,
    block: 512,
    mixes: false,
};

fn piece(kind: Kind, at: u64, len: u32) -> Piece {
    Piece { at, len, kind }
}

/// Cuts off the first `bytes` bytes of `pieces`.
fn split(pieces: &mut Vec<Piece>, mut bytes: u32) -> Vec<Piece> {
    let mut taken = vec![];
    while bytes > 0 {
        let first = &mut pieces[0];
        let len = first.len.min(bytes);
        taken.push(Piece { len, ..*first });
        bytes -= len;
        first.at += u64::from(len);
        first.len -= len;
        if first.len == 0 {
            pieces.remove(0);
        }
    }
    taken
}

fn cut_all(mut pieces: Vec<Piece>, rules: &Rules) -> Result<Vec<Vec<Piece>>, Uncuttable> {
    let mut commands = vec![];
    while !pieces.is_empty() {
        let bytes = cut::next(pieces.iter().copied(), rules)?;
        assert!(bytes > 0);
        commands.push(split(&mut pieces, bytes));
    }
    Ok(commands)
}

/// Whether `pieces` can be the data of one command, byte by byte.
fn possible(pieces: &[Piece], rules: &Rules) -> bool {
    let bytes: u32 = pieces.iter().map(|p| p.len).sum();
    let own = |p: &Piece| matches!(p.kind, Kind::Own(_)).then_some(p.kind);
    bytes <= rules.max_bytes
        && bytes % rules.block == 0
        && pieces[0].at % 4 == 0
        && (rules.mixes || pieces.iter().all(|p| own(p) == own(&pieces[0])))
        && pieces.windows(2).all(|p| {
            let end = p[0].at + u64::from(p[0].len);
            end % PAGE == 0 && p[1].at % PAGE == 0 || end == p[1].at && p[0].kind == p[1].kind
        })
}

#[test]
fn kinds() {
    let mixed = vec![
        piece(Kind::Ram, 0x1000, 0x1000),
        piece(Kind::Provider, 0x10_0000, 0x1000),
        piece(Kind::Own(2), 0x20_0000, 0x2000),
        piece(Kind::Own(4), 0x30_0000, 0x1000),
        piece(Kind::Ram, 0x4000, 0x1000),
    ];
    let lens = |rules: &Rules| -> Vec<usize> {
        cut_all(mixed.clone(), rules)
            .unwrap()
            .iter()
            .map(|command| command.len())
            .collect()
    };
    assert_eq!(lens(&RULES), [2, 1, 1, 1]);
    assert_eq!(
        lens(&Rules {
            mixes: true,
            ..RULES
        }),
        [5]
    );
}

#[test]
fn refusals() {
    let refused = |pieces: &[Piece]| cut_all(pieces.to_vec(), &RULES).err();
    assert_eq!(
        refused(&[piece(Kind::Ram, 0x1002, 512)]),
        Some(Uncuttable::Misaligned(0x1002))
    );
    assert_eq!(
        refused(&[piece(Kind::Ram, 0x1000, 100)]),
        Some(Uncuttable::Blocks(100))
    );
    // A cut is needed where no block ends: for the memory's kind, and for its place.
    assert_eq!(
        refused(&[
            piece(Kind::Ram, 0x1000, 256),
            piece(Kind::Own(2), 0x2000, 256)
        ]),
        Some(Uncuttable::Blocks(256))
    );
    assert_eq!(
        refused(&[piece(Kind::Ram, 0x1000, 256), piece(Kind::Ram, 0x2000, 256)]),
        Some(Uncuttable::Blocks(256))
    );
}

#[test]
fn random() {
    let mut random = Random::new(7);
    let (mut cut, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let rules = Rules {
            max_bytes: 0x1000 << random.below(4),
            block: 512 << random.below(4),
            mixes: random.below(2) == 0,
        };
        let mut at = 0;
        let pieces: Vec<Piece> = (0..1 + random.below(8))
            .map(|_| {
                let kind = match random.below(3) {
                    0 => Kind::Ram,
                    1 => Kind::Provider,
                    _ => Kind::Own(2 + 2 * random.below(2) as u8),
                };
                at = match random.below(4) {
                    0 => at,
                    1 => random.below(64) * 512,
                    _ => random.below(64) * PAGE,
                };
                let len = match random.below(3) {
                    0 => 512 * (1 + random.below(20) as u32),
                    _ => 4096 * (1 + random.below(8) as u32),
                };
                let piece = piece(kind, at, len);
                at += u64::from(len);
                piece
            })
            .collect();
        let Ok(commands) = cut_all(pieces.clone(), &rules) else {
            refused += 1;
            continue;
        };
        cut += 1;
        assert!(commands.iter().all(|command| possible(command, &rules)));
        let bytes = |pieces: &[Piece]| -> Vec<(Kind, u64)> {
            pieces
                .iter()
                .flat_map(|p| (0..p.len / 4).map(|i| (p.kind, p.at + u64::from(i * 4))))
                .collect()
        };
        assert_eq!(bytes(&commands.concat()), bytes(&pieces));
        for two in commands.windows(2) {
            // One more block would have been too much, unless it was full.
            let full: u32 = two[0].iter().map(|p| p.len).sum();
            assert!(
                full == rules.max_bytes
                    || !possible(
                        &two.concat(),
                        &Rules {
                            max_bytes: u32::MAX,
                            ..rules
                        }
                    )
            );
        }
    }
    assert!(cut > 1_000 && refused > 1_000, "{cut} {refused}");
}
