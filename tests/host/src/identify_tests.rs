// SPDX-License-Identifier: GPL-2.0

//! No Identify answer is believed that cannot be true.

use crate::rnvme::identify::*;

fn controller() -> Page {
    let mut p = [0; PAGE_LEN];
    p[512] = 0x66;
    p[513] = 0x44;
    p
}

#[test]
fn mdts() {
    for (mdts, max) in [
        (0, MAX_TRANSFER),
        (1, 8192),
        (5, 128 << 10),
        (10, 4 << 20),
        (11, MAX_TRANSFER),
        (19, MAX_TRANSFER),
        (20, MAX_TRANSFER),
        (32, MAX_TRANSFER),
        (255, MAX_TRANSFER),
    ] {
        let mut p = controller();
        p[77] = mdts;
        assert_eq!(Controller::parse(&p).unwrap().max_transfer, max, "{mdts}");
    }
}

#[test]
fn garbage() {
    assert!(Controller::parse(&[0; PAGE_LEN]).is_err());
    assert!(Controller::parse(&[0xff; PAGE_LEN]).is_err());
    assert_eq!(Namespace::parse(&[0; PAGE_LEN]), Err(Unusable::Empty));
    assert!(Namespace::parse(&[0xff; PAGE_LEN]).is_err());
    let mut p = controller();
    p[4..24].copy_from_slice(b"ABC\x1b[31m            ");
    assert_eq!(Controller::parse(&p).unwrap().serial(), "ABC");
}

#[test]
fn command_sets() {
    let list = |bytes: &[u8]| {
        let mut p = [0; PAGE_LEN];
        p[..bytes.len()].copy_from_slice(bytes);
        command_set(&p)
    };
    let uuid = [&[3, 16, 0, 0][..], &[0xaa; 16]].concat();

    assert_eq!(list(&[]), None);
    assert_eq!(list(&uuid), None);
    assert_eq!(list(&[4, 1, 0, 0, 0]), Some(NVM_COMMAND_SET));
    assert_eq!(list(&[4, 1, 0, 0, 2, 3, 16]), Some(2));
    assert_eq!(list(&[&uuid[..], &[4, 1, 0, 0, 2]].concat()), Some(2));
    // What ends the list, or cannot be in it.
    assert_eq!(list(&[0, 1, 0, 0, 0, 4, 1, 0, 0, 2]), None);
    assert_eq!(list(&[4, 0, 0, 0, 4, 1, 0, 0, 2]), None);
    assert_eq!(command_set(&[0xff; PAGE_LEN]), None);
    // One that does not end within the page, whatever its length.
    for len in 1..=255 {
        let mut p = [0; PAGE_LEN];
        let mut at = 0;
        while at + 4 <= PAGE_LEN {
            (p[at], p[at + 1]) = (1, len);
            at += 4 + usize::from(len);
        }
        assert_eq!(command_set(&p), None);
    }
}

#[test]
fn doorbell_buffers() {
    let mut p = [0; PAGE_LEN];
    (p[512], p[513]) = (0x66, 0x44);
    for (bytes, can) in [([0xff, 0xfe], false), ([0, 1], true)] {
        p[256..258].copy_from_slice(&bytes);
        assert_eq!(Controller::parse(&p).map(|c| c.doorbell_buffers), Ok(can));
    }
}

#[test]
fn scatter_gather_lists() {
    let mut p = [0; PAGE_LEN];
    (p[512], p[513]) = (0x66, 0x44);
    for (byte, sgls) in [
        (0, false),
        (1, true),
        (2, true),
        (3, false),
        (4, false),
        (6, true),
    ] {
        // The bits above say what else there is.
        p[536] = byte;
        assert_eq!(Controller::parse(&p).map(|c| c.sgls), Ok(sgls));
    }
}

#[test]
fn namespaces() {
    let mut p = [0; PAGE_LEN];
    p[0] = 8;
    for shift in 0..=255 {
        p[130] = shift;
        assert_eq!(
            Namespace::parse(&p),
            match shift {
                9..=12 => Ok(Namespace {
                    blocks: 8,
                    lba_shift: shift.into(),
                    read_only: false
                }),
                _ => Err(Unusable::BlockSize(shift)),
            }
        );
    }
    p[130] = 9;
    p[26] = 1;
    assert_eq!(Namespace::parse(&p), Err(Unusable::Format(1)));
    // A format of those that not all namespaces may have.
    p[82] = 1;
    p[134] = 12;
    assert_eq!(Namespace::parse(&p).map(|ns| ns.lba_shift), Ok(12));
    (p[25], p[82], p[26]) = (255, 255, 0x6f);
    p[128 + 4 * 63 + 2] = 10;
    assert_eq!(Namespace::parse(&p).map(|ns| ns.lba_shift), Ok(10));
    (p[25], p[82], p[26]) = (0, 0, 0);
    for (nsattr, read_only) in [(0xfe, false), (1, true)] {
        p[99] = nsattr;
        assert_eq!(Namespace::parse(&p).map(|ns| ns.read_only), Ok(read_only));
    }
    p[128] = 8;
    assert_eq!(Namespace::parse(&p), Err(Unusable::Metadata(8)));
    p[128] = 0;
    p[..8].fill(0xff);
    assert_eq!(Namespace::parse(&p), Err(Unusable::TooLong(u64::MAX)));
}

#[test]
fn active_list() {
    let list = |ids: &[u32]| {
        let mut p = [0; PAGE_LEN];
        for (i, id) in ids.iter().enumerate() {
            p[i * 4..i * 4 + 4].copy_from_slice(&id.to_le_bytes());
        }
        p
    };
    let got = |ids: &[u32], after| active_namespaces(&list(ids), after).collect::<Vec<_>>();
    assert_eq!(got(&[1, 2, 7], 0), [1, 2, 7]);
    assert_eq!(got(&[], 0), []);
    assert_eq!(got(&[1, 1, 1], 0), [1]);
    assert_eq!(got(&[5, 3, 9], 0), [5]);
    assert_eq!(got(&[5, 6], 5), []);
}
