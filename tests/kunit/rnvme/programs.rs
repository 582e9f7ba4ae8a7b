// SPDX-License-Identifier: GPL-2.0

//! What programs ask for by the driver's files: how it is understood, the numbers of buffers, and
//! I/O to them.

use crate::{
    abi::{
        self,
        Io,
        Memory,
        RawBuf,
        RawBufId,
        RawIo, //
    },
    api::{
        Waiter,
        Way, //
    },
    buffers::Buffers,
    fake::Script,
    lies::with, //
};
use kernel::{
    dma::DataDirection,
    page::Page,
    pci,
    physdma::{
        Client,
        Premapped, //
    },
    prelude::*,
    uapi, //
};

/// The memory of a PCI device, as it may be asked for.
fn buf() -> uapi::rnvme_buf {
    uapi::rnvme_buf {
        kind: uapi::RNVME_BUF_PROVIDER,
        domain: 0x1_0000,
        bus: 0x3a,
        devfn: 0xff,
        bar: 2,
        offset: 0x1000,
        length: 0x2000,
        ..Zeroable::zeroed()
    }
}

/// Data that may be moved.
fn io() -> uapi::rnvme_io {
    uapi::rnvme_io {
        id: 7,
        nsid: 1,
        offset: 0x200,
        lba: 5,
        length: 0x1000,
        op: uapi::RNVME_OP_WRITE as u16,
        ..Zeroable::zeroed()
    }
}

/// What one write of the fake's first disk is that begins with block `lba`.
fn write(lba: u64, bytes: u32) -> Io {
    Io {
        id: 1,
        nsid: 1,
        offset: 0,
        lba,
        bytes,
        way: Way::Write,
    }
}

/// So many pages, mapped for `client`.
fn pages<'a>(client: &'a Client<'a>, count: usize, dir: DataDirection) -> Result<Premapped<'a>> {
    let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;
    for _ in 0..count {
        pages.push(Page::alloc_page(GFP_KERNEL)?, GFP_KERNEL)?;
    }
    client.premap(pages, dir)
}

#[kunit_tests(rnvme_programs)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() -> Result {
        assert_eq!(abi::BUF_REGISTER, 0xc038_4ea0);
        assert_eq!(abi::BUF_UNREGISTER, 0x4008_4ea1);
        assert_eq!(abi::IO, 0x4030_4ea2);
        Ok(())
    }

    #[test]
    fn memory_of_a_device() -> Result {
        let memory = RawBuf(buf()).memory()?;
        let expected = Memory::Provider {
            address: pci::Address::new(0x1_0000, 0x3a, 0x1f, 7).ok_or(EINVAL)?,
            bar: 2,
            offset: 0x1000,
            bytes: 0x2000,
        };
        assert_eq!(memory, expected);

        let wrong: [fn(&mut uapi::rnvme_buf); 9] = [
            |buf| buf.kind = 0,
            |buf| buf.kind = 3,
            |buf| buf.flags = 1,
            |buf| buf.reserved1 = 1,
            |buf| buf.reserved2 = 1,
            |buf| buf.reserved3[1] = 1,
            |buf| buf.id = 1,
            |buf| buf.length = 0,
            |buf| buf.offset = u64::MAX - 0x1fff,
        ];
        for change in wrong {
            let mut buf = buf();
            change(&mut buf);
            assert_eq!(RawBuf(buf).memory(), Err(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn memory_of_a_program() -> Result {
        let right = uapi::rnvme_buf {
            kind: uapi::RNVME_BUF_USER,
            offset: 0x7fff_0000_1234,
            length: 1 << 30,
            ..Zeroable::zeroed()
        };
        let memory = RawBuf(right).memory()?;
        let expected = Memory::User {
            address: 0x7fff_0000_1234,
            bytes: 1 << 30,
        };
        assert_eq!(memory, expected);

        let wrong: [fn(&mut uapi::rnvme_buf); 5] = [
            |buf| buf.length += 1,
            |buf| buf.domain = 1,
            |buf| buf.bus = 1,
            |buf| buf.devfn = 1,
            |buf| buf.bar = 1,
        ];
        for change in wrong {
            let mut buf = right;
            change(&mut buf);
            assert_eq!(RawBuf(buf).memory(), Err(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn data_to_be_moved() -> Result {
        let expected = Io {
            id: 7,
            nsid: 1,
            offset: 0x200,
            lba: 5,
            bytes: 0x1000,
            way: Way::Write,
        };
        assert_eq!(RawIo(io()).io()?, expected);

        let wrong: [fn(&mut uapi::rnvme_io); 8] = [
            |io| io.op = 0,
            |io| io.op = 3,
            |io| io.op = 0x101,
            |io| io.flags = 1,
            |io| io.reserved[0] = 1,
            |io| io.reserved[1] = 1,
            |io| io.length = 0,
            |io| io.length = uapi::RNVME_MAX_IO_BYTES + 512,
        ];
        for change in wrong {
            let mut io = io();
            change(&mut io);
            assert_eq!(RawIo(io).io(), Err(EINVAL));
        }
        let id = |reserved| RawBufId(uapi::rnvme_buf_id { id: 9, reserved }).id();
        assert_eq!((id(0), id(1)), (Ok(9), Err(EINVAL)));
        Ok(())
    }

    #[test]
    fn numbers_of_buffers() -> Result {
        with(Script::default(), |_, driver| {
            let driver = driver?;
            let client = driver.nvme.with_disk(1, |disk| disk.client).ok_or(ENXIO)?;
            let buffers = KBox::pin_init(Buffers::new(client), GFP_KERNEL)?;
            let two = || pages(client, 2, DataDirection::Bidirectional);
            let add = |buffer| {
                let mut number = 0;
                buffers.add(buffer, &mut |id| {
                    number = id;
                    Ok(())
                })?;
                Ok::<u32, Error>(number)
            };
            let length = |id| {
                buffers
                    .slice(id, 0, 512, Way::Read)
                    .map(|slice| slice.len())
            };

            assert_eq!(length(1), Err(ENOENT));
            for expected in 1..=3 {
                assert_eq!(add(two()?)?, expected);
            }
            // Numbers are used again, and never 0.
            buffers.unregister(2)?;
            assert_eq!(length(2), Err(ENOENT));
            assert_eq!(buffers.unregister(2), Err(ENOENT));
            assert_eq!(add(two()?)?, 2);
            for id in [0, 4, u32::MAX] {
                assert_eq!(length(id), Err(ENOENT));
                assert_eq!(buffers.unregister(id), Err(ENOENT));
            }

            let part = |offset, bytes| buffers.slice(1, offset, bytes, Way::Read).err();
            assert_eq!(part(0, 8192), None);
            assert_eq!(part(8191, 1), None);
            assert_eq!(part(0, 8193), Some(ERANGE));
            assert_eq!(part(8192, 1), Some(ERANGE));
            assert_eq!(part(u64::MAX, 1), Some(ERANGE));
            assert_eq!(part(u64::MAX, u32::MAX), Some(ERANGE));

            // A number that could not be told is not used.
            let mut told = 0;
            let untold = buffers.add(two()?, &mut |id| {
                told = id;
                // Nor can it be guessed.
                assert_eq!(length(id), Err(ENOENT));
                assert_eq!(buffers.unregister(id), Err(ENOENT));
                Err(EFAULT)
            });
            assert_eq!((untold, told), (Err(EFAULT), 4));
            assert_eq!(length(4), Err(ENOENT));

            // What is under way keeps its memory, not its number.
            let slice = buffers.slice(1, 0, 4096, Way::Write)?;
            buffers.unregister(1)?;
            assert_eq!(slice.len(), 4096);
            assert!(slice.segments().next()?.is_some());
            assert_eq!(add(two()?)?, 1);

            for expected in 4..=uapi::RNVME_MAX_BUFS {
                assert_eq!(add(two()?)?, expected);
            }
            assert_eq!(add(two()?).err(), Some(ENOSPC));
            Ok(())
        })?;
        Ok(())
    }

    #[test]
    fn nobody_has_opened_that() -> Result {
        with(Script::default(), |_, driver| {
            let driver = driver?;
            let client = driver.nvme.with_disk(1, |disk| disk.client).ok_or(ENXIO)?;
            let buffers = KBox::pin_init(Buffers::new(client), GFP_KERNEL)?;
            let nobody = RawBuf(buf()).memory()?;

            assert_eq!(buffers.register(nobody, &mut |_| Ok(())).err(), Some(ENXIO));
            // This thread is of no program.
            for address in [0x1000, u64::MAX - 0x1000] {
                let memory = Memory::User {
                    address,
                    bytes: 512,
                };
                assert_eq!(
                    buffers.register(memory, &mut |_| Ok(())).err(),
                    Some(EFAULT)
                );
            }
            Ok(())
        })?;
        Ok(())
    }

    #[test]
    fn what_a_disk_takes() -> Result {
        with(Script::default(), |_, driver| {
            let driver = driver?;
            let check = |lba, bytes| {
                driver
                    .nvme
                    .with_disk(1, |disk| disk.check(Way::Write, lba, bytes))
                    .ok_or(ENXIO)?
            };
            assert_eq!(check(0, 2048 * 512), Ok(()));
            assert_eq!(check(2047, 512), Ok(()));
            for (lba, bytes) in [(0, 2049 * 512), (2048, 512), (2047, 1024), (u64::MAX, 512)] {
                assert_eq!(check(lba, bytes), Err(ENOSPC));
            }
            for bytes in [0, 1, 511, 513] {
                assert_eq!(check(0, bytes), Err(EINVAL));
            }
            Ok(())
        })?;
        let script = Script {
            nsattr: 1,
            ..Script::default()
        };
        with(script, |_, driver| {
            let driver = driver?;
            let check = |way| {
                driver
                    .nvme
                    .with_disk(1, |disk| disk.check(way, 0, 512))
                    .ok_or(ENXIO)?
            };
            assert_eq!(check(Way::Write), Err(EROFS));
            assert_eq!(check(Way::Read), Ok(()));
            Ok(())
        })?;
        Ok(())
    }

    #[test]
    fn one_command_and_several() -> Result {
        let ((), counts) = with(Script::default(), |_, driver| {
            let driver = driver?;
            let client = driver.nvme.with_disk(1, |disk| disk.client).ok_or(ENXIO)?;
            let memory = pages(client, 96, DataDirection::ToDevice)?;
            let slice = |at: u32, bytes| memory.slice(at.into(), bytes, DataDirection::ToDevice);
            let most = driver.nvme.max_transfer();

            driver
                .nvme
                .with_disk(1, |disk| {
                    // By who waits.
                    disk.move_slice(&write(0, most), slice(0, most)?)?;
                    // By who is told.
                    let waiter = Waiter::new()?;
                    let io = write(0, 512);
                    let rq = disk.disk.try_alloc(io.way.op())?;
                    disk.start_slice(rq, &io, slice(4096, 512)?, waiter.clone());
                    waiter.wait()?;

                    let mut slices = KVec::new();
                    for at in [0, most, 2 * most] {
                        slices.push(slice(at, most)?, GFP_KERNEL)?;
                    }
                    disk.move_slices(&write(8, 3 * most), slices)
                })
                .ok_or(ENXIO)??;
            // Nobody has the memory any more.
            drop(memory);
            Ok(())
        })?;
        let most = 32 * 8;
        assert_eq!(counts.writes, 1 + 1 + 3);
        assert_eq!(counts.blocks, 4 * most + 1);
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn a_controller_that_says_no() -> Result {
        use crate::fake::Answer;

        let (result, _) = with(
            crate::lies::answers(&[Answer::Status(0x4080)]),
            |_, driver| {
                let driver = driver?;
                let client = driver.nvme.with_disk(1, |disk| disk.client).ok_or(ENXIO)?;
                let memory = pages(client, 1, DataDirection::ToDevice)?;
                let slice = memory.slice(0, 512, DataDirection::ToDevice)?;

                Ok(driver
                    .nvme
                    .with_disk(1, |disk| disk.move_slice(&write(0, 512), slice)))
            },
        )?;
        assert_eq!(result, Some(Err(EREMOTEIO)));
        Ok(())
    }
}
