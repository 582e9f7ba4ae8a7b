// SPDX-License-Identifier: GPL-2.0

//! What happens when the controller does not answer.
//!
//! A request whose time-out expires for the first time is asked to be aborted. If the abort does
//! not bring it back either, or if the controller says that it failed, the controller is reset, and
//! what it did not answer is sent again. If the reset fails, the controller is dead: its requests
//! fail, and its disks are marked so.
//!
//! The handler of the time-out only asks. What it asks for is done by one thread, so that it cannot
//! happen twice at a time.
//!
//! An admin command has a thread that waits for it. When it is late, that thread is told so, and
//! the controller is reset; where it is just being brought up, who does that gives it up. The
//! command itself stays the controller's until then: all memory that it could write to is the
//! queue's.

use crate::{
    block::Ops,
    ctrl::State,
    nvme::Nvme,
    queue::Queue,
    regs::Regs, //
};
use core::mem;
use kernel::{
    block::mq::{
        Status,
        TimedOut,
        TimeoutAction, //
    },
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc,
        CondVar,
        Mutex, //
    },
    task::kthread::Thread, //
};

/// A request's flag: the controller was asked to abort it.
const ABORT_SENT: u32 = 1 << 0;

/// How many aborts may wait to be sent.
const MAX_ABORTS: usize = 16;

/// What the recovery thread is to do.
#[derive(Default)]
struct Tasks {
    /// Commands to be aborted, by queue and command identifier, the oldest first.
    aborts: [(u16, u16); MAX_ABORTS],
    nr_aborts: usize,
    reset: bool,
    stop: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Abort { qid: u16, cid: u16 },
    Reset,
    Stop,
}

/// How the recovery thread is told.
#[pin_data]
pub(crate) struct Inbox {
    #[pin]
    tasks: Mutex<Tasks>,
    #[pin]
    changed: CondVar,
}

impl Inbox {
    /// Nothing is to be done.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            tasks <- new_mutex!(Tasks::default()),
            changed <- new_condvar!(),
        })
    }

    /// Asks for the controller to be reset. Returns `false` if that was done already. Sleeps.
    pub(crate) fn reset(&self) -> bool {
        let asked = mem::replace(&mut self.tasks.lock().reset, true);

        self.changed.notify_all();
        !asked
    }

    /// Wakes those who wait for a change. Sleeps.
    pub(crate) fn wake(&self) {
        // Who has seen no change yet, waits by now.
        drop(self.tasks.lock());
        self.changed.notify_all();
    }

    /// Waits until `done`. Sleeps.
    ///
    /// # Errors
    ///
    /// `EINTR`: there is a signal.
    pub(crate) fn wait_until(&self, done: impl Fn() -> bool) -> Result {
        let mut tasks = self.tasks.lock();

        while !done() {
            if self.changed.wait_interruptible(&mut tasks) {
                return Err(EINTR);
            }
        }
        Ok(())
    }

    /// Forgets what was asked for: it was about requests that were all taken back. Sleeps.
    pub(crate) fn forget(&self) {
        let mut tasks = self.tasks.lock();

        tasks.reset = false;
        tasks.nr_aborts = 0;
    }

    /// Asks for a command to be aborted. Returns `false` if there are too many already. Sleeps.
    pub(crate) fn abort(&self, qid: u16, cid: u16) -> bool {
        let mut tasks = self.tasks.lock();
        let nr = tasks.nr_aborts;

        let Some(slot) = tasks.aborts.get_mut(nr) else {
            return false;
        };
        *slot = (qid, cid);
        tasks.nr_aborts += 1;
        drop(tasks);
        self.changed.notify_all();
        true
    }

    /// Waits for something to do.
    pub(crate) fn wait(&self) -> Task {
        let mut tasks = self.tasks.lock();

        loop {
            if tasks.stop {
                return Task::Stop;
            }
            if tasks.reset {
                // Until it is forgotten, nobody needs to ask again.
                return Task::Reset;
            }
            if let Some(left) = tasks.nr_aborts.checked_sub(1) {
                let [(qid, cid), ..] = tasks.aborts;

                tasks.aborts.rotate_left(1);
                tasks.nr_aborts = left;
                return Task::Abort { qid, cid };
            }
            let _ = self.changed.wait_interruptible(&mut tasks);
        }
    }
}

/// The thread that recovers a controller.
///
/// Dropping it waits for the thread, which ends what it does first.
pub(crate) struct Recovery<'a, R: Regs> {
    nvme: Arc<Nvme<'a, R>>,
    _thread: Thread<'a>,
}

impl<'a, R: Regs + 'a> Recovery<'a, R> {
    /// Starts the thread. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINTR`.
    ///
    /// # Safety
    ///
    /// The result must not be forgotten: it must be dropped before `'a` ends.
    pub(crate) unsafe fn new(nvme: Arc<Nvme<'a, R>>) -> Result<Self> {
        let recovered = nvme.clone();
        // SAFETY: The thread is not forgotten unless the result is.
        let thread = unsafe {
            Thread::spawn(c"rnvme_recovery", move |_stop| loop {
                match recovered.ctrl.inbox.wait() {
                    Task::Abort { qid, cid } => recovered.abort(qid, cid),
                    Task::Reset => recovered.reset(),
                    Task::Stop => return,
                }
            })
        }?;

        Ok(Self {
            nvme,
            _thread: thread,
        })
    }
}

impl<'a, R: Regs + 'a> Recovery<'a, R> {
    /// Ends the thread, and has it `hurry` in what it does just now. Sleeps.
    pub(crate) fn stop(self, hurry: impl FnOnce()) {
        self.ask_to_stop();
        hurry();
    }

    fn ask_to_stop(&self) {
        let inbox = &self.nvme.ctrl.inbox;

        inbox.tasks.lock().stop = true;
        inbox.changed.notify_all();
    }
}

impl<'a, R: Regs + 'a> Drop for Recovery<'a, R> {
    fn drop(&mut self) {
        self.ask_to_stop();
    }
}

/// What is to become of a request that was not answered in time.
pub(crate) fn timed_out<'a, R: Regs + 'a>(
    queue: &Queue<'a, R>,
    rq: TimedOut<'_, Ops<'a, R>>,
) -> TimeoutAction {
    let ctrl = queue.ctrl();
    let cid = queue.cid(rq.id());
    let csts = ctrl.status();

    // While the controller is reset, the ring is cleared.
    if !csts.is_gone() && queue.is_enabled() {
        queue.poll();
        if !rq.is_in_flight() {
            dev_warn!(
                ctrl.dev,
                "queue {}: command {:#x} was answered just before it timed out\n",
                queue.qid(),
                cid
            );
            return TimeoutAction::Done;
        }
    }

    if queue.qid() == 0 {
        // Whoever has it by now, such as a reset, tells who waits for it.
        let Some(rq) = rq.claim() else {
            return TimeoutAction::Done;
        };
        dev_err!(
            ctrl.dev,
            "admin command {:#x} timed out, giving it up: status {:#x}\n",
            cid,
            csts.into_raw()
        );
        // Not here: who brings the controller up may be at it.
        ctrl.inbox.reset();
        Ops::give_up(rq, false, Status::TIMEOUT);
        return TimeoutAction::Done;
    }

    match ctrl.state() {
        // The reset takes it.
        State::Starting => return TimeoutAction::ResetTimer,
        State::Live => (),
        State::Dead => {
            if let Some(mut rq) = rq.claim() {
                queue.give_lists(&mut rq.data_mut().lists);
                Ops::give_up(rq, false, Status::IOERR);
            }
            return TimeoutAction::Done;
        }
    }

    if !csts.takes_commands() || rq.flags().load(Relaxed) & ABORT_SENT != 0 {
        if ctrl.inbox.reset() {
            dev_warn!(
                ctrl.dev,
                "queue {}: command {:#x} timed out, resetting the controller: status {:#x}\n",
                queue.qid(),
                cid,
                csts.into_raw()
            );
        }
    } else if ctrl.inbox.abort(queue.qid(), cid) {
        dev_warn!(
            ctrl.dev,
            "queue {}: command {:#x} timed out, aborting it\n",
            queue.qid(),
            cid
        );
        rq.flags().store(ABORT_SENT, Relaxed);
    }
    // It comes back by its answer, or by the reset.
    TimeoutAction::ResetTimer
}
