// SPDX-License-Identifier: GPL-2.0

//! What a device finds when it follows PRP entries is the data, for every shape of them.

use crate::rnvme::prp::{self, Fault, Lists, ENTRIES, PAGE};

/// Lists as a device would find them: by address.
#[derive(Default)]
struct Memory {
    lists: Vec<[u64; ENTRIES]>,
    room: usize,
    opened: usize,
    /// The list that is not there, if it is not the first.
    lost: usize,
}

/// Where list `list` is.
fn address(list: usize) -> u64 {
    0xabc0_0000_0000 + list as u64 * 0x10_0000
}

impl Lists for Memory {
    fn begin<E>(&mut self, entries: usize) -> Result<u64, Fault<E>> {
        let n = prp::lists(entries);
        if n > self.room {
            return Err(Fault::NoLists);
        }
        self.lists = vec![[0; ENTRIES]; n];
        self.opened = 0;
        Ok(address(0))
    }
    fn write(&mut self, slot: usize, entry: u64) {
        self.lists[self.opened][slot] = entry;
    }
    fn link<E>(&mut self, list: usize) -> Result<(), Fault<E>> {
        if list == self.lost {
            return Err(Fault::TooLong);
        }
        self.lists[self.opened][ENTRIES - 1] = address(list);
        self.opened = list;
        Ok(())
    }
}

/// What a device does with the entries: the pieces of memory, in order.
fn walk(mem: &Memory, prp: [u64; 2], bytes: u32) -> Vec<(u64, u64)> {
    let mut left = u64::from(bytes);
    let mut out = vec![];
    let n = left.min(PAGE - prp[0] % PAGE);
    out.push((prp[0], n));
    left -= n;
    if left == 0 {
        assert_eq!(prp[1], 0);
        return out;
    }
    if left <= PAGE {
        assert_eq!(prp[1] % PAGE, 0);
        out.push((prp[1], left));
        return out;
    }
    let find = |a: u64| (0..mem.lists.len()).find(|&l| address(l) == a).unwrap();
    let (mut list, mut slot) = (find(prp[1]), 0);
    while left > 0 {
        if slot == ENTRIES - 1 && left > PAGE {
            (list, slot) = (find(mem.lists[list][slot]), 0);
        }
        let a = mem.lists[list][slot];
        assert_eq!(a % PAGE, 0);
        let n = left.min(PAGE);
        out.push((a, n));
        left -= n;
        slot += 1;
    }
    out
}

fn build(segs: &[(u64, u32)], bytes: u32, mem: &mut Memory) -> Result<[u64; 2], Fault<()>> {
    let mut it = segs.iter().copied();
    prp::build(|| Ok(it.next()), bytes, mem)
}

/// Checks that the device sees the bytes of `segs`.
fn check(segs: &[(u64, u32)]) {
    let bytes = segs.iter().map(|s| s.1).sum();
    let mut mem = Memory {
        room: 8,
        ..Default::default()
    };
    let prp = build(segs, bytes, &mut mem).unwrap();
    if let [(dma, len)] = *segs {
        // The short way says the same, where the command has room for it.
        let fits = (dma % PAGE + u64::from(len)).div_ceil(PAGE) <= 2;
        assert_eq!(prp::short(dma, len), fits.then_some(prp));
    }
    let mut got = walk(&mem, prp, bytes);
    got.reverse();
    for &(mut a, len) in segs {
        let mut len = u64::from(len);
        while len > 0 {
            let (b, n) = got.pop().unwrap();
            assert_eq!(a, b);
            assert!(n <= len);
            a += n;
            len -= n;
        }
    }
    assert!(got.is_empty());
}

#[test]
fn shapes() {
    check(&[(0x1000, 512)]);
    check(&[(0x1e00, 512)]);
    check(&[(0x1e00, 1024)]);
    check(&[(0x1000, 4096)]);
    check(&[(0x1000, 8192)]);
    check(&[(0x1004, 8192)]);
    check(&[(0x1e00, 512), (0x9000, 4096), (0x5000, 512)]);
    check(&[(0x1000, 4096), (0x9000, 4096), (0x5000, 4096)]);
    check(&[(0x1000, 4096), (0x9000, 0x20000), (0x5000, 12)]);
    for pages in [511, 512, 513, 514, 1022, 1023, 1024] {
        check(&[(0x10_0000, pages * 4096)]);
        check(&[(0x10_0e00, pages * 4096)]);
        check(&[(0x10_0e00, pages * 4096 - 512)]);
    }
}

#[test]
fn every_length_and_offset() {
    for offset in (0..4096).step_by(508) {
        for bytes in (512..40 * 4096).step_by(512) {
            check(&[(0x7000 + offset, bytes)]);
        }
    }
    for bytes in (500 * 4096..520 * 4096).step_by(512) {
        check(&[(0x7e00, bytes)]);
    }
}

#[test]
fn what_fits() {
    assert!(prp::fit(8, 8, 1));
    assert!(!prp::fit(9, 8, 64));
    assert!(prp::fit(ENTRIES, ENTRIES, 1));
    assert!(!prp::fit(ENTRIES + 1, ENTRIES, 1));
    assert!(!prp::fit(ENTRIES + 1, ENTRIES / 2, 64));
    assert!(prp::fit(64 * (ENTRIES - 1) + 1, ENTRIES, 64));
    assert!(!prp::fit(64 * (ENTRIES - 1) + 2, ENTRIES, 64));
}

#[test]
fn faults() {
    let mut mem = Memory {
        room: 8,
        ..Default::default()
    };
    let m = &mut mem;
    assert_eq!(build(&[(0x1002, 512)], 512, m), Err(Fault::Misaligned));
    assert_eq!(
        build(&[(0x1000, 512), (0x2000, 512)], 1024, m),
        Err(Fault::Misaligned)
    );
    assert_eq!(
        build(&[(0x1000, 4096), (0x2200, 512)], 4608, m),
        Err(Fault::Misaligned)
    );
    assert_eq!(
        build(&[(0x1000, 4096), (0x2000, 512), (0x4000, 8192)], 12800, m),
        Err(Fault::Misaligned)
    );
    assert_eq!(build(&[(0x1000, 4096)], 8192, m), Err(Fault::Length));
    assert_eq!(build(&[(0x1000, 8192)], 4096, m), Err(Fault::Length));
    assert_eq!(
        build(&[(0x1000, 4096), (0x4000, 8192)], 8192, m),
        Err(Fault::Length)
    );
    assert_eq!(
        build(&[(0x1000, 4096), (0x4000, 0)], 8192, m),
        Err(Fault::Length)
    );
    assert_eq!(build(&[(0x1000, 0)], 8192, m), Err(Fault::Length));
    assert_eq!(build(&[], 512, m), Err(Fault::Length));
    assert_eq!(build(&[(0, 512)], 0, m), Err(Fault::Length));
    assert_eq!(prp::short(0x1002, 512), None);
    assert_eq!(prp::short(0x1000, 0), None);
    m.room = 0;
    assert_eq!(build(&[(0x1000, 12288)], 12288, m), Err(Fault::NoLists));
    let m = &mut Memory {
        room: 2,
        lost: 1,
        ..Memory::default()
    };
    assert_eq!(build(&[(0x1000, 3 << 20)], 3 << 20, m), Err(Fault::TooLong));
    assert_eq!(
        prp::build(|| Err::<Option<(u64, u32)>, _>(7), 512, m),
        Err(Fault::Source(7))
    );
}

#[test]
fn one_descriptor() {
    use crate::rnvme::sgl;

    assert_eq!(
        sgl::data_block(0x1004, 0x12_3400),
        Some([0x1004, 0x12_3400])
    );
    assert_eq!(
        sgl::data_block(u64::MAX - 3, u32::MAX - 3),
        Some([u64::MAX - 3, 0xffff_fffc])
    );
    for (dma, len) in [(0x1002, 512), (0x1000, 511), (0x1000, 0)] {
        assert_eq!(sgl::data_block(dma, len), None);
    }
}

#[test]
fn list_counts() {
    assert_eq!(prp::lists(2), 1);
    assert_eq!(prp::lists(512), 1);
    assert_eq!(prp::lists(513), 2);
    assert_eq!(prp::lists(1023), 2);
    assert_eq!(prp::lists(1024), 3);
    assert_eq!(prp::lists(prp::max_entries(4 << 20)), 3);
}
