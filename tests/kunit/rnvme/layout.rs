// SPDX-License-Identifier: GPL-2.0

//! What the device reads and writes, byte by byte, and the PRP entries of a few shapes.

use crate::{
    command::{
        self,
        Cns,
        Command,
        CompletionTail,
        DataPointer, //
    },
    prp::{
        self,
        Fault,
        Lists, //
    }, //
};
use kernel::prelude::*;

/// Lists that are only counted.
#[derive(Default)]
struct Counted {
    entries: usize,
    written: usize,
}

impl Lists for Counted {
    fn begin<E>(&mut self, entries: usize) -> Result<u64, prp::Fault<E>> {
        self.entries = entries;
        Ok(0x10_0000)
    }

    fn write(&mut self, _slot: usize, _entry: u64) {
        self.written += 1;
    }

    fn link<E>(&mut self, _list: usize) -> Result<(), prp::Fault<E>> {
        self.written += 1;
        Ok(())
    }
}

/// The entries of one segment, and how many there are in lists.
fn one(dma: u64, bytes: u32) -> ([u64; 2], usize, usize) {
    let mut lists = Counted::default();
    let mut segment = Some((dma, bytes));
    let prp = prp::build(|| Ok::<_, Error>(segment.take()), bytes, &mut lists);

    (prp.unwrap_or_default(), lists.entries, lists.written)
}

/// Command dword `n` of an entry.
fn dword(entry: &command::RawCommand, n: usize) -> u32 {
    (u64::from_le(entry[n / 2]) >> (n % 2 * 32)) as u32
}

#[kunit_tests(rnvme_layout)]
mod tests {
    use super::*;

    #[test]
    fn read_and_write() {
        let entry = Command::rw(command::io::WRITE, 7, 0x1_2345_6789, 8, true)
            .with_data(DataPointer::Prp([0xaaaa_0000, 0xbbbb_0000]))
            .encode(0x4321);

        assert_eq!(dword(&entry, 0), 0x4321_0001);
        assert_eq!(dword(&entry, 1), 7);
        assert_eq!(u64::from_le(entry[3]), 0xaaaa_0000);
        assert_eq!(u64::from_le(entry[4]), 0xbbbb_0000);
        assert_eq!(dword(&entry, 10), 0x2345_6789);
        assert_eq!(dword(&entry, 11), 1);
        assert_eq!(dword(&entry, 12), 1 << 30 | 7);
    }

    #[test]
    fn one_descriptor() {
        let entry = Command::rw(command::io::READ, 7, 0, 256, false)
            .with_data(DataPointer::Sgl([0xaaaa_0200, 0x2_0000]))
            .encode(0x4321);

        // PSDT is one: metadata, if there were any, would be one piece.
        assert_eq!(dword(&entry, 0), 0x4321_4002);
        assert_eq!(u64::from_le(entry[3]), 0xaaaa_0200);
        assert_eq!(u64::from_le(entry[4]), 0x2_0000);
    }

    #[test]
    fn admin() {
        let entry = Command::create_cq(3, 1024, 0x5000, 4).encode(1);
        assert_eq!(dword(&entry, 0), 0x0001_0005);
        assert_eq!(u64::from_le(entry[3]), 0x5000);
        assert_eq!(dword(&entry, 10), 0x03ff_0003);
        assert_eq!(dword(&entry, 11), 0x0004_0003);

        let entry = Command::create_sq(3, 1024, 0x6000).encode(1);
        assert_eq!(dword(&entry, 0), 0x0001_0001);
        assert_eq!(dword(&entry, 10), 0x03ff_0003);
        assert_eq!(dword(&entry, 11), 0x0003_0001);

        let entry = Command::delete_sq(3).encode(1);
        assert_eq!(dword(&entry, 0), 0x0001_0000);
        assert_eq!(dword(&entry, 10), 3);

        let entry = Command::delete_cq(3).encode(1);
        assert_eq!(dword(&entry, 0), 0x0001_0004);
        assert_eq!(dword(&entry, 10), 3);

        let entry = Command::identify(Cns::ActiveNamespaces, 9, 0x7000).encode(1);
        assert_eq!(dword(&entry, 0), 0x0001_0006);
        assert_eq!(dword(&entry, 1), 9);
        assert_eq!(dword(&entry, 10), 2);

        let entry = Command::set_queues(2).encode(1);
        assert_eq!(dword(&entry, 10), 7);
        assert_eq!(dword(&entry, 11), 0x0001_0001);
        assert_eq!(command::queues_granted(0x0007_0003), 4);

        let entry = Command::abort(2, 0xbeef).encode(1);
        assert_eq!(dword(&entry, 10), 0xbeef_0002);
    }

    #[test]
    fn completion() {
        let tail = CompletionTail(0x4281 << 17 | 1 << 16 | 0x1234);

        assert_eq!(tail.cid(), 0x1234);
        assert!(tail.phase());
        assert_eq!(tail.status().0, 0x4281);
        assert!(!tail.status().is_ok());
        assert!(!tail.status().may_retry());
    }

    #[test]
    fn prp_entries() {
        assert_eq!(one(0x1e00, 512), ([0x1e00, 0], 0, 0));
        assert_eq!(one(0x1e00, 1024), ([0x1e00, 0x2000], 0, 0));
        assert_eq!(one(0x1000, 8192), ([0x1000, 0x2000], 0, 0));
        assert_eq!(one(0x1000, 12288), ([0x1000, 0x10_0000], 2, 2));
        // 513 entries: the first list ends in the address of the second.
        assert_eq!(one(0x1000, 514 * 4096), ([0x1000, 0x10_0000], 513, 514));
    }

    #[test]
    fn prp_faults() {
        let mut lists = Counted::default();
        let mut two = [(0x1000, 512), (0x3000, 512)].into_iter();

        assert_eq!(
            prp::build(|| Ok::<_, Error>(two.next()), 1024, &mut lists),
            Err(Fault::Misaligned)
        );
        assert_eq!(
            prp::build(|| Ok::<_, Error>(None), 512, &mut lists),
            Err(Fault::Length)
        );
        assert_eq!(
            prp::build(|| Err(ENOMEM), 512, &mut lists),
            Err(Fault::Source(ENOMEM))
        );
    }
}
