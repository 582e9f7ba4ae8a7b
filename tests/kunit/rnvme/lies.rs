// SPDX-License-Identifier: GPL-2.0

//! What a controller can say that is not so. Each time: an error, or none, as it should be; nothing
//! leaks; the kernel lives.

use crate::{
    api::{
        Ended,
        Way, //
    },
    command::Command,
    ctrl::State,
    fake::{
        Answer,
        Counts,
        Fake,
        FakeIrqs,
        FakeRegs,
        Script, //
    },
    nvme::{
        Attached,
        Config, //
    }, //
};
use kernel::{
    block::mq::{
        DriverOp,
        Status, //
    },
    device::{
        Bound,
        Device, //
    },
    dma::DmaMask,
    faux,
    physdma::{
        Part,
        PhysBvec,
        Source,
        Virt, //
    },
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    task::kthread::Thread,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// Time-outs with a controller that does not answer something, in milliseconds. The block layer
/// looks once a second.
pub(crate) const IMPATIENT: (u32, u32) = (300, 300);

/// A number for a controller or a device that no other has, so that what a test that failed left
/// behind is in nobody's way; nor has a real disk.
fn number() -> u32 {
    static NEXT: Atomic<u32> = Atomic::new(1000);

    NEXT.fetch_add(1, Relaxed)
}

pub(crate) type Driver<'a> = Attached<'a, FakeRegs, FakeIrqs<'a>>;

pub(crate) fn attach<'a>(dev: &'a Device<Bound>, fake: &Arc<Fake>) -> Result<Driver<'a>> {
    let script = fake.told();
    let config = Config {
        instance: number(),
        io_queues: script.io_queues,
        io_timeout: script.timeouts.0,
        admin_timeout: script.timeouts.1,
        plain: false,
    };

    // SAFETY: No test forgets it.
    unsafe {
        Attached::new(
            dev,
            FakeRegs(fake.clone()),
            FakeIrqs::new(fake.clone())?,
            config,
        )
    }
}

/// Has the driver attach to a controller with this script, and runs `test` with what came of it.
pub(crate) fn with<T>(
    script: Script,
    test: impl FnOnce(&Fake, Result<Driver<'_>>) -> Result<T>,
) -> Result<(T, Counts)> {
    let name = CString::try_from_fmt(fmt!("rnvme_fake{}", number()))?;
    let mut device = faux::Registration::new(&name, None)?;
    device.set_dma_mask(DmaMask::new::<64>())?;
    let fake = Fake::new(script)?;
    let dev: &Device<Bound> = device.as_ref().as_ref();

    let attached = attach(dev, &fake);
    let result = test(&fake, attached);
    let counts = fake.counts();

    // Who has it still would have leaked.
    Arc::into_unique_or_drop(fake).ok_or(EBUSY)?;
    Ok((result?, counts))
}

/// The error with which the driver refuses a controller with this script.
fn refusal(script: Script) -> Result<Error> {
    Ok(with(script, |_, driver| driver.err().ok_or(EINVAL))?.0)
}

impl Driver<'_> {
    /// Sends a command of the driver's own to the first disk.
    pub(crate) fn own_command(&self) -> Result<Status> {
        self.nvme
            .with_disk(1, |disk| {
                let mut rq = disk.disk.alloc(DriverOp::In)?;
                rq.data_mut().command = Command::flush(1);
                Ok(rq.execute(0).status())
            })
            .ok_or(ENXIO)?
    }

    /// Moves `buf` to or from the first disk, as kernel code does.
    pub(crate) fn transfer(&self, way: Way, buf: &[u8]) -> Result {
        let pieces = pieces(buf)?;

        self.nvme
            // SAFETY: `buf` is borrowed, and the controller moves no data.
            .with_disk(1, |disk| unsafe {
                disk.transfer(way, 0, &[Part::Ram(&pieces)])
            })
            .ok_or(ENXIO)?
    }

    /// Starts to write `buf` to the first disk. Nobody waits; the result tells what is heard of it.
    pub(crate) fn begin(&self, buf: KVec<u8>) -> Result<Arc<Heard>> {
        let heard = Arc::new(
            Heard {
                times: Atomic::new(0),
                errno: Atomic::new(0),
            },
            GFP_KERNEL,
        )?;
        let pieces = pieces(&buf)?;
        let owner = Owner {
            heard: heard.clone(),
            _buf: buf,
        };

        self.nvme
            // SAFETY: The buffer is the owner's, and the controller moves no data.
            .with_disk(1, |disk| unsafe {
                disk.start(Way::Write, 0, &[Part::Ram(&pieces)], owner)
            })
            .ok_or(ENXIO)?;
        Ok(heard)
    }

    /// Has the block layer send a flush to the first disk.
    pub(crate) fn flush(&self) -> Result {
        self.nvme
            .with_disk(1, |disk| disk.disk.flush())
            .ok_or(ENXIO)?
    }

    pub(crate) fn disks(&self) -> usize {
        (1..=8)
            .filter(|&nsid| self.nvme.with_disk(nsid, |_| ()).is_some())
            .count()
    }
}

/// The memory that `buf` is.
pub(crate) fn pieces(buf: &[u8]) -> Result<KVec<PhysBvec>> {
    let mut pieces = KVec::new();
    // SAFETY: It is walked, but not mapped.
    let mut source = unsafe { Virt::new(buf) }?;

    while let Some(piece) = source.next() {
        pieces.push(piece, GFP_KERNEL)?;
    }
    Ok(pieces)
}

/// What was heard of a transfer.
pub(crate) struct Heard {
    times: Atomic<u32>,
    errno: Atomic<i32>,
}

impl Heard {
    /// Waits until something was heard.
    pub(crate) fn result(&self) -> Result {
        for _ in 0..10_000 {
            if self.times.load(Acquire) != 0 {
                return match self.errno.load(Relaxed) {
                    0 => Ok(()),
                    errno => Err(Error::from_errno(errno)),
                };
            }
            fsleep(Delta::from_millis(1));
        }
        Err(ETIME)
    }
}

/// Who keeps the memory of a transfer.
struct Owner {
    heard: Arc<Heard>,
    _buf: KVec<u8>,
}

impl Ended for Owner {
    fn ended(self, result: Result) {
        if let Err(e) = result {
            self.heard.errno.store(e.to_errno(), Relaxed);
        }
        self.heard.times.fetch_add(1, Release);
    }
}

/// A script with short time-outs.
pub(crate) fn impatient() -> Script {
    Script {
        timeouts: IMPATIENT,
        ..Script::default()
    }
}

/// A script whose next commands are answered like this, with short time-outs where they are not.
pub(crate) fn answers(first: &[Answer]) -> Script {
    let mut script = Script::default();

    for (to, from) in script.answers.iter_mut().zip(first) {
        *to = *from;
        if matches!(from, Answer::Never | Answer::WrongPhase) {
            script.timeouts = IMPATIENT;
        }
    }
    script
}

/// Sends one command of the driver's own that is answered like `answer`, and another one. Returns
/// their states, and the number of lies.
fn one(answer: Answer) -> Result<(Status, Status, u32)> {
    let ((first, second, lies), counts) = with(Script::default(), |fake, driver| {
        let driver = driver?;
        fake.script(|script| script.answers = answers(&[answer]).answers);
        let first = driver.own_command()?;
        let second = driver.own_command()?;
        Ok((first, second, driver.nvme.ctrl.lies()))
    })?;

    if counts.wrongs != 0 {
        return Err(EPROTO);
    }
    Ok((first, second, lies))
}

#[kunit_tests(rnvme_lies)]
mod tests {
    use super::*;

    #[test]
    fn honest() -> Result {
        let (disks, counts) = with(Script::default(), |_, driver| {
            let driver = driver?;
            assert_eq!(driver.own_command()?, Status::OK);
            driver.flush()?;
            assert_eq!(driver.nvme.ctrl.lies(), 0);
            Ok(driver.disks())
        })?;

        assert_eq!(disks, 1);
        assert_eq!(counts.enabled, 1);
        assert_eq!(counts.shutdowns, 1);
        // The submission queue and then the completion queue, or that would be wrong.
        assert_eq!(counts.deletions, 2);
        assert_eq!(counts.queues_at_shutdown, 0);
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn lists_of_memory() -> Result {
        let buf = KVec::from_elem(0u8, 160 << 10, GFP_KERNEL)?;
        let ((), counts) = with(Script::default(), |fake, driver| {
            let driver = driver?;
            // A command has 128 KiB at most.
            driver.transfer(Way::Write, &buf)?;
            // What the device says.
            assert_eq!(driver.transfer(Way::Read, &buf).err(), Some(ENODATA));
            // Not whole blocks; and nothing at all.
            assert_eq!(driver.transfer(Way::Write, &buf[..100]).err(), Some(EINVAL));
            let nothing = driver.nvme.with_disk(1, |disk| {
                // SAFETY: There is no memory.
                unsafe { disk.transfer(Way::Write, 0, &[]) }
            });
            assert_eq!(nothing, Some(Ok(())));
            // Nobody has registered the first page, so it is not a provider's.
            let page = [PhysBvec::new(0, 4096).ok_or(EINVAL)?];
            let unknown = driver.nvme.with_disk(1, |disk| {
                // SAFETY: None of it is said to be RAM.
                unsafe { disk.transfer(Way::Write, 0, &[Part::Provider(&page)]) }
            });
            assert_eq!(unknown, Some(Err(EFAULT)));
            assert_eq!(fake.counts().writes, 2);
            Ok(())
        })?;

        assert_eq!(counts.blocks, 320);
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn lists_of_memory_are_sent_again_after_a_reset() -> Result {
        let buf = KVec::from_elem(0u8, 4096, GFP_KERNEL)?;
        let ((), counts) = with(answers(&[Answer::Never]), |_, driver| {
            driver?.transfer(Way::Write, &buf)
        })?;

        assert_eq!(counts.enabled, 2);
        assert_eq!(counts.writes, 2);
        Ok(())
    }

    #[test]
    fn all_commands_of_a_list_are_under_way_at_a_time() -> Result {
        // Four commands.
        let buf = KVec::from_elem(0u8, 512 << 10, GFP_KERNEL)?;
        let ((), counts) = with(answers(&[Answer::Never; 4]), |_, driver| {
            driver?.transfer(Way::Write, &buf)
        })?;

        // They were lost together: one reset, and each was sent twice.
        assert_eq!(counts.enabled, 2);
        assert_eq!(counts.writes, 8);
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn nobody_waits() -> Result {
        let buf = |len| KVec::from_elem(0u8, len, GFP_KERNEL);
        // Of three commands the first and the last fail, and the latter does so first.
        let script = answers(&[
            Answer::Never,
            Answer::Normal,
            Answer::Status(0x4281),
            Answer::Normal,
        ]);
        let ((), counts) = with(script, |fake, driver| {
            let driver = driver?;
            let first = driver.begin(buf(384 << 10)?)?;
            let second = driver.begin(buf(4096)?)?;

            // The second overtakes.
            assert_eq!(second.result(), Ok(()));
            assert_eq!(first.times.load(Relaxed), 0);
            assert_eq!(first.result().err(), Some(ENODATA));
            // Not whole blocks; one command is good, and the rest is none.
            assert_eq!(driver.begin(buf(100)?)?.result().err(), Some(EINVAL));
            assert_eq!(
                driver.begin(buf((128 << 10) + 100)?)?.result().err(),
                Some(EINVAL)
            );
            for heard in [first, second] {
                assert_eq!(heard.times.load(Relaxed), 1);
            }
            assert_eq!(fake.counts().writes, 3 + 1 + 1 + 1);
            Ok(())
        })?;

        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn the_driver_goes_while_nobody_waits() -> Result {
        for answer in [Answer::Never, Answer::Normal] {
            let ((), counts) = with(answers(&[answer]), |_, driver| {
                let driver = driver?;
                let heard = driver.begin(KVec::from_elem(0u8, 4096, GFP_KERNEL)?)?;

                drop(driver);
                // Whoever has waited for the disk has waited for it.
                assert_eq!(heard.times.load(Relaxed), 1);
                assert_eq!(heard.errno.load(Relaxed), 0);
                Ok(())
            })?;
            assert_eq!(counts.wrongs, 0);
        }
        Ok(())
    }

    #[test]
    fn a_dead_controller_tells_those_who_do_not_wait() -> Result {
        let script = Script {
            dies_at_reset: true,
            ..answers(&[Answer::Never])
        };
        with(script, |_, driver| {
            let driver = driver?;
            let heard = driver.begin(KVec::from_elem(0u8, 4096, GFP_KERNEL)?)?;
            assert_eq!(heard.result().err(), Some(EIO));
            // There is no tag for it any more, when the disk was marked.
            for _ in 0..1000 {
                let heard = driver.begin(KVec::from_elem(0u8, 4096, GFP_KERNEL)?)?;
                match heard.result().err() {
                    Some(EIO) => fsleep(Delta::from_millis(1)),
                    e => {
                        assert_eq!(e, Some(ENODEV));
                        return Ok(());
                    }
                }
            }
            Err(ETIME)
        })?;
        Ok(())
    }

    /// The capability bit of a controller memory buffer, and that of a persistent memory region.
    const CMBS: u32 = 1 << 25;
    const PMRS: u32 = 1 << 24;

    /// What comes of a controller's memory with this script: the counts of a controller that works.
    fn memory(cap: u32, change: impl FnOnce(&mut Script)) -> Result<Counts> {
        let mut script = Script::default();

        script.cap_hi |= cap;
        change(&mut script);
        let (counts, end) = with(script, |fake, driver| {
            let driver = driver?;
            assert_eq!(driver.own_command()?, Status::OK);
            Ok(fake.counts())
        })?;
        assert_eq!(end.closed, end.opened);
        assert_eq!(end.open_at_shutdown, 0);
        assert_eq!(end.wrongs, 0);
        Ok(counts)
    }

    #[test]
    fn memory_buffer() -> Result {
        let counts = memory(CMBS, |_| ())?;
        assert_eq!(counts.opened, 1);
        assert_eq!(counts.range, (2, 1 << 20, 4 << 20));
        // Commands mean it by its address on the bus.
        assert_eq!(counts.addresses, (0x12_3460_0000, 0));

        // One of the time before it had to be enabled.
        let counts = memory(0, |_| ())?;
        assert_eq!(counts.opened, 1);
        assert_eq!(counts.addresses, (0, 0));

        // None.
        let counts = memory(0, |script| script.cmbsz = 0)?;
        assert_eq!(counts.opened, 0);
        Ok(())
    }

    #[test]
    fn memory_buffer_that_cannot_be() -> Result {
        const DATA: u32 = 3 << 3;
        let lies: [fn(&mut Script); 11] = [
            |s| s.cmbsz = 0,
            |s| s.cmbsz &= 0xfff,
            // 16 MiB, one MiB from the start of as many on.
            |s| s.cmbsz = 16 << 12 | 2 << 8 | DATA,
            |s| s.cmbsz = 0xf_ffff << 12 | 6 << 8 | DATA,
            |s| s.cmbloc = 0xf_ffff << 12 | 2,
            |s| s.cmbsz = 1 << 12 | 7 << 8 | DATA,
            |s| s.cmbsz &= !(1 << 3),
            |s| s.cmbsz &= !(1 << 4),
            |s| s.cmbloc = 1 << 12 | 1,
            // Where the registers are.
            |s| s.cmbloc = 0,
            |s| s.cmb_refused = true,
        ];

        for lie in lies {
            let counts = memory(CMBS, lie)?;
            assert_eq!(counts.opened, 0);
        }
        // Its BAR has no page of its own.
        assert_eq!(memory(CMBS, |script| script.bars += 0x800)?.opened, 0);
        // Nobody wants it.
        assert_eq!(memory(CMBS, |script| script.not_opened = true)?.opened, 0);
        Ok(())
    }

    #[test]
    fn persistent_memory_region() -> Result {
        let region = |change: fn(&mut Script)| {
            memory(PMRS, |script| {
                script.cmbsz = 0;
                change(script);
            })
        };
        let counts = region(|_| ())?;
        assert_eq!(counts.opened, 1);
        assert_eq!(counts.range, (4, 0, 16 << 20));
        assert_eq!(counts.addresses, (0, 0x12_3550_0000));

        let lies: [fn(&mut Script); 7] = [
            // Never ready; in error; not healthy; its address refused.
            |s| s.pmrsts = 1 << 8,
            |s| s.pmrsts = 1,
            |s| s.pmrsts = 1 << 9,
            |s| s.pmrsts = 1 << 12,
            // No such BAR; data one way only; not for commands.
            |s| s.pmrcap = 1 << 24 | 3 << 5 | 3 << 3,
            |s| s.pmrcap &= !(1 << 4),
            |s| s.pmrcap &= !(1 << 24),
        ];
        for lie in lies {
            assert_eq!(region(lie)?.opened, 0);
        }
        Ok(())
    }

    #[test]
    fn memory_is_enabled_again_after_a_reset() -> Result {
        let mut script = answers(&[Answer::Never]);

        script.cap_hi |= CMBS | PMRS;
        let ((), counts) = with(script, |fake, driver| {
            let driver = driver?;
            let before = fake.counts().addresses;
            assert_eq!(before, (0x12_3460_0000, 0x12_3550_0000));
            driver.flush()?;
            let after = fake.counts();
            assert_eq!(after.enabled, 2);
            assert_eq!(after.addresses, before);
            // It was open all the time.
            assert_eq!((after.opened, after.closed), (2, 0));
            Ok(())
        })?;
        assert_eq!(counts.closed, 2);
        assert_eq!(counts.open_at_shutdown, 0);
        Ok(())
    }

    #[test]
    fn queues_are_not_deleted() -> Result {
        // Refused in two ways, and not answered.
        for delete_status in [Some(0x4001), Some(0x10c), None] {
            let script = Script {
                delete_status,
                ..match delete_status {
                    Some(_) => Script::default(),
                    None => impatient(),
                }
            };
            let ((), counts) = with(script, |_, driver| driver.map(drop))?;

            // One time-out at most: the first command decides.
            assert_eq!(counts.deletions, 1);
            assert_eq!(counts.shutdowns, 1);
            assert_eq!(counts.wrongs, 0);
        }
        Ok(())
    }

    #[test]
    fn pulled_out_before_it_is_shut_down() -> Result {
        let ((), counts) = with(Script::default(), |fake, driver| {
            let driver = driver?;
            fake.script(|script| script.gone = true);
            drop(driver);
            Ok(())
        })?;

        // No command that nobody answers, and for which it would wait.
        assert_eq!(counts.unheard, 0);
        Ok(())
    }

    #[test]
    fn never_ready() -> Result {
        let script = Script {
            never_ready: true,
            ..Script::default()
        };
        assert_eq!(refusal(script)?, ETIMEDOUT);
        Ok(())
    }

    #[test]
    fn ready_although_disabled() -> Result {
        let script = Script {
            always_ready: true,
            ..Script::default()
        };
        let (error, counts) = with(script, |_, driver| driver.err().ok_or(EINVAL))?;

        assert_eq!(error, ETIMEDOUT);
        // Nobody knows what it still does.
        assert_eq!(counts.isolated, 1);
        assert_eq!(counts.enabled, 0);
        Ok(())
    }

    #[test]
    fn fatal_status() -> Result {
        let script = Script {
            fatal: true,
            ..Script::default()
        };
        assert_eq!(refusal(script)?, EIO);
        Ok(())
    }

    #[test]
    fn all_ones() -> Result {
        let script = Script {
            gone: true,
            ..Script::default()
        };
        assert_eq!(refusal(script)?, ENODEV);
        Ok(())
    }

    #[test]
    fn capabilities() -> Result {
        let honest = Script::default();
        for (cap_lo, cap_hi) in [
            // Queues of one entry.
            (honest.cap_lo & !0xffff, honest.cap_hi),
            // Memory pages of 8 KiB.
            (honest.cap_lo, honest.cap_hi | 1 << 16),
            // No command set.
            (honest.cap_lo, 0),
            // No command set but that of the admin queue.
            (honest.cap_lo, 1 << 12 | 1 << 11),
            // Doorbells 128 KiB apart, in a BAR of 4 KiB.
            (honest.cap_lo, honest.cap_hi | 15),
        ] {
            let script = Script {
                cap_lo,
                cap_hi,
                ..honest
            };
            assert_eq!(refusal(script)?, ENODEV);
        }
        Ok(())
    }

    #[test]
    fn identify_fails() -> Result {
        let script = Script {
            identify_status: 0x006,
            ..Script::default()
        };
        assert_eq!(refusal(script)?, EIO);
        Ok(())
    }

    #[test]
    fn admin_never_answers() -> Result {
        let script = Script {
            admin_answers: false,
            ..impatient()
        };
        assert_eq!(refusal(script)?, ETIMEDOUT);
        Ok(())
    }

    #[test]
    fn namespaces_that_are_no_disk() -> Result {
        let honest = Script::default();
        for (nsze, lbads) in [
            (0, 9),
            (2048, 0),
            (2048, 8),
            (2048, 13),
            (2048, 30),
            (2048, 255),
        ] {
            let script = Script {
                nsze,
                lbads,
                ..honest
            };
            let (disks, _) = with(script, |_, driver| Ok(driver?.disks()))?;
            assert_eq!(disks, 0);
        }
        let script = Script {
            nsze: u64::MAX,
            ..honest
        };
        let (disks, _) = with(script, |_, driver| Ok(driver?.disks()))?;
        assert_eq!(disks, 0);
        Ok(())
    }

    #[test]
    fn namespace_lists() -> Result {
        for (list, expected) in [
            ([0, 0, 0, 0], 0),
            ([1, 2, 0, 0], 2),
            // Neither rising nor unique.
            ([3, 2, 1, 0], 1),
            ([2, 2, 2, 2], 1),
            // Beyond the number of namespaces.
            ([1, 9, u32::MAX, 0], 1),
        ] {
            let script = Script {
                list,
                ..Script::default()
            };
            let (disks, _) = with(script, |_, driver| Ok(driver?.disks()))?;
            assert_eq!(disks, expected);
        }
        Ok(())
    }

    #[test]
    fn no_list_of_namespaces() -> Result {
        for namespaces in [8, u32::MAX] {
            let script = Script {
                list: [1, 3, 0, 0],
                namespaces,
                list_status: 0x4002,
                ..Script::default()
            };
            let (disks, _) = with(script, |_, driver| Ok(driver?.disks()))?;
            // Those that it does not list are not there.
            assert_eq!(disks, 2);
        }
        Ok(())
    }

    #[test]
    fn command_sets() -> Result {
        const ALL: u32 = 1 << 11;
        const NVM: u32 = 1 << 5;
        let sets = [Some(0), Some(2), None, Some(0)];

        for (cap_hi, expected) in [(NVM, 4), (ALL | NVM, 2), (ALL, 2), (ALL | NVM | 1 << 12, 2)] {
            let script = Script {
                cap_hi,
                list: [1, 2, 3, 4],
                command_sets: sets,
                ..Script::default()
            };
            let (disks, counts) = with(script, |_, driver| Ok(driver?.disks()))?;
            assert_eq!(disks, expected);
            assert_eq!(counts.wrongs, 0);
        }
        Ok(())
    }

    #[test]
    fn transfer_sizes() -> Result {
        for (mdts, bytes) in [(0, 4 << 20), (1, 8 << 10), (20, 4 << 20), (255, 4 << 20)] {
            let script = Script {
                mdts,
                ..Script::default()
            };
            let (max, _) = with(script, |_, driver| Ok(driver?.nvme.max_transfer()))?;
            assert_eq!(max, bytes);
        }
        Ok(())
    }

    #[test]
    fn status_is_passed_on() -> Result {
        for (status, expected) in [
            (0x4281, Status::MEDIUM),
            (0x4081, Status::NOSPC),
            (0x4001, Status::NOTSUPP),
            (0x4083, Status::RESV_CONFLICT),
            (0x4080, Status::TARGET),
            (0x4282, Status::PROTECTION),
            (0x4006, Status::IOERR),
        ] {
            assert_eq!(one(Answer::Status(status))?, (expected, Status::OK, 0));
        }
        Ok(())
    }

    #[test]
    fn what_may_be_retried() -> Result {
        const RETRIABLE: u16 = 0x006;

        // A command of the driver's own is failfast.
        for (answer, own, flushes, enabled) in [
            (Answer::Status(RETRIABLE), true, 1, 1),
            (Answer::Status(RETRIABLE), false, 2, 1),
            // What becomes of it is the reset's to say.
            (Answer::Never, true, 1, 2),
            (Answer::Never, false, 2, 2),
        ] {
            let (failed, counts) = with(impatient(), |fake, driver| {
                let driver = driver?;
                fake.script(|script| script.answers = answers(&[answer]).answers);
                Ok(match own {
                    true => driver.own_command()? == Status::IOERR,
                    false => driver.flush().is_err(),
                })
            })?;

            assert_eq!(failed, own);
            assert_eq!(counts.flushes, flushes);
            assert_eq!(counts.enabled, enabled);
            assert_eq!(counts.wrongs, 0);
        }
        Ok(())
    }

    #[test]
    fn completed_twice() -> Result {
        assert_eq!(one(Answer::Twice)?, (Status::OK, Status::OK, 1));
        Ok(())
    }

    #[test]
    fn completed_before_it_was_sent() -> Result {
        for cid in [0, 0x1234, u16::MAX] {
            let (first, second, lies) = one(Answer::AfterUnknown(cid))?;
            assert_eq!((first, second), (Status::OK, Status::OK));
            assert_eq!(lies, 1);
        }
        Ok(())
    }

    #[test]
    fn head_beyond_the_queue() -> Result {
        assert_eq!(one(Answer::WrongHead)?, (Status::IOERR, Status::OK, 1));
        Ok(())
    }

    #[test]
    fn answer_for_the_last_use_of_a_tag() -> Result {
        // With queues of two entries there is but one tag.
        let script = Script {
            cap_lo: Script::default().cap_lo & !0xffff | 1,
            ..Script::default()
        };
        let ((), counts) = with(script, |fake, driver| {
            let driver = driver?;
            fake.script(|script| {
                script.answers = answers(&[Answer::Normal, Answer::AfterStale]).answers
            });
            assert_eq!(driver.own_command()?, Status::OK);
            // The late answer says that it failed.
            assert_eq!(driver.own_command()?, Status::OK);
            assert_eq!(driver.nvme.ctrl.lies(), 1);
            Ok(())
        })?;
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn wrong_phase_then_abort() -> Result {
        let ((), counts) = with(impatient(), |fake, driver| {
            let driver = driver?;
            fake.script(|script| {
                script.answers = answers(&[Answer::WrongPhase]).answers;
                script.aborts = Some(0x007);
            });
            driver.flush()?;
            assert_eq!(driver.nvme.ctrl.state(), State::Live);
            Ok(())
        })?;

        assert_eq!(counts.aborts, 1);
        assert_eq!(counts.flushes, 2);
        assert_eq!(counts.enabled, 1);
        Ok(())
    }

    #[test]
    fn no_answer_then_reset() -> Result {
        let ((), counts) = with(impatient(), |fake, driver| {
            let driver = driver?;
            fake.script(|script| script.answers = answers(&[Answer::Never]).answers);
            driver.flush()?;
            assert_eq!(driver.nvme.ctrl.state(), State::Live);
            assert_eq!(driver.own_command()?, Status::OK);
            Ok(())
        })?;

        assert_eq!(counts.aborts, 1);
        assert_eq!(counts.enabled, 2);
        assert_eq!(counts.flushes, 3);
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn no_answer_to_the_abort_either() -> Result {
        let ((), counts) = with(impatient(), |fake, driver| {
            let driver = driver?;
            fake.script(|script| {
                script.answers = answers(&[Answer::Never]).answers;
                script.admin_answers = false;
            });
            // The controller is disabled because of the abort, and cannot be brought up.
            assert!(driver.flush().is_err());
            assert_eq!(driver.nvme.ctrl.state(), State::Dead);
            Ok(())
        })?;

        assert_eq!(counts.enabled, 2);
        Ok(())
    }

    #[test]
    fn reset_fails() -> Result {
        let ((), counts) = with(impatient(), |fake, driver| {
            let driver = driver?;
            fake.script(|script| {
                script.answers = answers(&[Answer::Never]).answers;
                script.dies_at_reset = true;
            });
            assert!(driver.flush().is_err());
            assert_eq!(driver.nvme.ctrl.state(), State::Dead);
            // Requests fail at once.
            assert!(driver.flush().is_err());
            Ok(())
        })?;

        assert_eq!(counts.enabled, 2);
        Ok(())
    }

    /// Interrupts are late, and two look for the answers meanwhile, as time-outs of two disks do.
    #[test]
    fn two_look_at_a_ring() -> Result {
        const ROUNDS: u32 = 3;
        const ANSWERS: u32 = 60;
        let script = Script {
            slow_irq_off: true,
            ..Script::default()
        };
        let (lies, counts) = with(script, |fake, driver| {
            let driver = driver?;
            let queue = driver.nvme.queue(1).ok_or(ENXIO)?;

            for _ in 0..ROUNDS {
                fake.script(|script| {
                    script.late_irqs = true;
                    script.unasked = ANSWERS;
                });
                while fake.unasked() != 0 {
                    fsleep(Delta::from_millis(1));
                }
                let done = Atomic::new(0u32);
                let poll = || {
                    let done = &done;

                    // SAFETY: The thread is dropped before what it borrows.
                    unsafe {
                        Thread::spawn(c"rnvme_poll", move |_| {
                            queue.poll();
                            done.fetch_add(1, Release);
                        })
                    }
                };
                let _threads = [poll()?, poll()?];

                while done.load(Acquire) != 2 {
                    fsleep(Delta::from_millis(1));
                }
                fake.script(|script| script.late_irqs = false);
            }
            Ok(driver.nvme.ctrl.lies())
        })?;

        // Each was seen once, by the only one who looked.
        assert_eq!(lies, ROUNDS * ANSWERS);
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn pulled_out() -> Result {
        with(impatient(), |fake, driver| {
            let driver = driver?;
            fake.script(|script| {
                script.answers = answers(&[Answer::Never]).answers;
                script.gone = true;
            });
            assert!(driver.flush().is_err());
            assert_eq!(driver.nvme.ctrl.state(), State::Dead);
            Ok(())
        })?;
        Ok(())
    }
}
