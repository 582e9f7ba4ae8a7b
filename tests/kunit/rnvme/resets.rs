// SPDX-License-Identifier: GPL-2.0

//! A controller that does not answer, and what it is asked meanwhile.

use crate::{
    ctrl::State,
    fake::{
        Answer,
        Fake,
        Script,
        PATIENT, //
    },
    lies::{
        answers,
        impatient,
        with,
        IMPATIENT, //
    },
    recovery::{
        Inbox,
        Task, //
    }, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Release, //
    },
    task::kthread::Thread,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// Longer than a test may take, in milliseconds.
const NEVER: u32 = 3_600_000;

/// Waits until `done`, half a minute at most.
fn wait_for(done: impl Fn() -> bool) -> Result {
    for _ in 0..30_000 {
        if done() {
            return Ok(());
        }
        fsleep(Delta::from_millis(1));
    }
    Err(ETIME)
}

/// Waits until the controller was enabled `times` times.
fn wait_for_enabled(fake: &Fake, times: u32) -> Result {
    wait_for(|| fake.counts().enabled == times)
}

#[kunit_tests(rnvme_resets)]
mod tests {
    use super::*;

    #[test]
    fn told_of_its_buffers_again() -> Result {
        let script = Script {
            shadow: Some(0),
            ..impatient()
        };
        let ((), counts) = with(script, |fake, driver| {
            let driver = driver?;
            driver.flush()?;
            fake.script(|script| {
                script.list = [1, 2, 0, 0];
                script.silent = (2, 1);
            });
            assert_eq!(driver.nvme.identify(2).err(), Some(ETIMEDOUT));
            wait_for_enabled(fake, 2)?;
            // The queues begin anew, and so does what is in the buffers.
            for _ in 0..4 {
                driver.flush()?;
            }
            Ok(())
        })?;

        assert_eq!((counts.enabled, counts.buffers), (2, 2));
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn an_admin_command_is_late() -> Result {
        let ((), counts) = with(impatient(), |fake, driver| {
            let driver = driver?;
            fake.script(|script| {
                script.list = [1, 2, 0, 0];
                script.silent = (2, 1);
            });
            // Disk 1 is in use.
            assert_eq!(driver.nvme.identify(2).err(), Some(ETIMEDOUT));
            wait_for_enabled(fake, 2)?;
            driver.flush()?;
            assert_eq!(driver.nvme.ctrl.state(), State::Live);
            assert!(matches!(driver.nvme.identify(2), Ok(Ok(_))));
            Ok(())
        })?;

        assert_eq!(counts.enabled, 2);
        // It is disabled by who enables it again.
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn a_namespace_is_late_when_another_is_a_disk() -> Result {
        let script = Script {
            list: [1, 2, 3, 0],
            silent: (2, 1),
            ..impatient()
        };
        let ((), counts) = with(script, |fake, driver| {
            let driver = driver?;
            assert_eq!(driver.disks(), 1);
            wait_for_enabled(fake, 2)?;
            driver.flush()
        })?;

        assert_eq!(counts.silences, 1);
        assert_eq!(counts.enabled, 2);
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn asked_again_after_a_reset() -> Result {
        let script = Script {
            timeouts: (IMPATIENT.0, PATIENT.1),
            ..Script::default()
        };
        let ((), counts) = with(script, |fake, driver| {
            let driver = driver?;
            let flushed = Atomic::new(0u32);
            let (done, flushing) = (&flushed, &driver);

            fake.script(|script| {
                script.list = [1, 2, 0, 0];
                script.silent = (2, 1);
                script.answers = answers(&[Answer::Never]).answers;
            });
            // SAFETY: The thread is dropped before what it borrows.
            let _thread = unsafe {
                Thread::spawn(c"rnvme_flush", move |_| {
                    let result = flushing.flush();
                    done.store(1 + u32::from(result.is_err()), Release);
                })
            }?;
            let mut resets = 0;
            let found = driver.nvme.ask(&mut resets, || driver.nvme.identify(2));
            assert!(matches!(found, Ok(Ok(_))));
            assert_eq!(resets, 1);
            wait_for(|| flushed.load(Acquire) != 0)?;
            assert_eq!(flushed.load(Acquire), 1);
            Ok(())
        })?;

        assert_eq!(counts.silences, 1);
        assert_eq!(counts.enabled, 2);
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn nobody_waits_for_an_abort() -> Result {
        let script = Script {
            silent_aborts: true,
            timeouts: (IMPATIENT.0, NEVER),
            ..Script::default()
        };
        let ((), counts) = with(script, |fake, driver| {
            let driver = driver?;
            fake.script(|script| script.answers = answers(&[Answer::Never]).answers);
            driver.flush()?;
            assert_eq!(driver.nvme.ctrl.state(), State::Live);
            Ok(())
        })?;

        assert_eq!(counts.aborts, 1);
        assert_eq!(counts.enabled, 2);
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn aborts_in_their_order() -> Result {
        let inbox = KBox::pin_init(Inbox::new(), GFP_KERNEL)?;

        for cid in 0..16 {
            assert!(inbox.abort(1, cid));
        }
        assert!(!inbox.abort(1, 16));
        for cid in 0..8 {
            assert_eq!(inbox.wait(), Task::Abort { qid: 1, cid });
        }
        assert!(inbox.abort(2, 16));
        for cid in 8..16 {
            assert_eq!(inbox.wait(), Task::Abort { qid: 1, cid });
        }
        assert_eq!(inbox.wait(), Task::Abort { qid: 2, cid: 16 });
        // What comes first.
        assert!(inbox.abort(1, 1));
        assert!(inbox.reset());
        assert!(!inbox.reset());
        assert_eq!(inbox.wait(), Task::Reset);
        inbox.forget();
        assert!(inbox.reset());
        Ok(())
    }

    #[test]
    fn unbound_after_a_reset_beside_the_driver() -> Result {
        let script = Script {
            timeouts: (NEVER, NEVER),
            ..Script::default()
        };
        let ((), counts) = with(script, |fake, driver| {
            let driver = driver?;
            fake.script(|script| script.answers = answers(&[Answer::Never]).answers);
            let heard = driver.begin(KVec::from_elem(0u8, 4096, GFP_KERNEL)?)?;
            wait_for(|| fake.counts().writes == 1)?;
            fake.lose_all();
            drop(driver);
            // It was sent again.
            heard.result()
        })?;

        assert_eq!(counts.writes, 2);
        assert_eq!(counts.enabled, 2);
        assert_eq!(counts.shutdowns, 1);
        assert_eq!(counts.wrongs, 0);
        Ok(())
    }

    #[test]
    fn pulled_out_with_a_request_in_flight() -> Result {
        let script = Script {
            timeouts: (NEVER, NEVER),
            ..Script::default()
        };
        let ((), counts) = with(script, |fake, driver| {
            let driver = driver?;
            fake.script(|script| script.answers = answers(&[Answer::Never]).answers);
            let heard = driver.begin(KVec::from_elem(0u8, 4096, GFP_KERNEL)?)?;
            wait_for(|| fake.counts().writes == 1)?;
            fake.script(|script| script.gone = true);
            // It does not wait until the request is late.
            drop(driver);
            assert_eq!(heard.result(), Err(EIO));
            Ok(())
        })?;

        assert_eq!(counts.writes, 1);
        assert_eq!(counts.unheard, 0);
        Ok(())
    }
}
