// SPDX-License-Identifier: GPL-2.0

//! The controller as its queues see it: registers, and the state that it is in.

use crate::{
    command::{
        CQES,
        SQES, //
    },
    recovery::Inbox,
    regs::{
        self,
        Capabilities,
        Regs, //
    },
    shadow::Shadow, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    io::{
        poll::read_poll_timeout,
        Io, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        SetOnce, //
    },
    time::Delta, //
};

/// What a controller may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum State {
    /// It is brought up or reset: only the thread that does so talks to it.
    Starting,
    /// It serves requests.
    Live,
    /// It is given up: requests fail.
    Dead,
}

/// Counts what is logged ever more rarely.
pub(crate) struct Rarely(Atomic<u32>);

impl Rarely {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Counts one more. Returns how many there were if that is to be logged: if it is a power of
    /// two.
    pub(crate) fn count(&self) -> Option<u32> {
        let count = self.0.fetch_add(1, Relaxed).wrapping_add(1);

        count.is_power_of_two().then_some(count)
    }
}

/// A controller's registers and state.
///
/// Who may change what: one thread at a time brings the controller up, resets it and shuts it
/// down: first that which probes the device, then the recovery thread, and last that which
/// unbinds the driver. Everybody else asks, through [`Inbox`].
#[pin_data]
pub(crate) struct Controller<'a, R> {
    /// The device, for DMA and for the log.
    pub(crate) dev: &'a Device<Bound>,
    /// Its registers, and the rest of it as the bus sees it.
    pub(crate) regs: R,
    /// What the registers say that never changes.
    pub(crate) caps: Capabilities,
    state: Atomic<u32>,
    /// The doorbells in memory, if it looks at such.
    pub(crate) shadow: SetOnce<Shadow>,
    /// How often the controller said what cannot be.
    lies: Rarely,
    /// How often the memory of a request could not be mapped.
    pub(crate) unmapped: Rarely,
    /// What the recovery thread is to do.
    #[pin]
    pub(crate) inbox: Inbox,
}

/// The memory of the admin queues.
pub(crate) struct AdminRings {
    /// Entries in each.
    pub(crate) entries: u32,
    /// Address of the submission queue, as the device sees it.
    pub(crate) sq: u64,
    /// Address of the completion queue, as the device sees it.
    pub(crate) cq: u64,
}

impl<'a, R: Regs> Controller<'a, R> {
    /// Looks at the registers of a device. May sleep.
    ///
    /// # Errors
    ///
    /// `ENODEV`: there is no controller that the driver can use.
    pub(crate) fn new(dev: &'a Device<Bound>, regs: R) -> Result<Arc<Self>> {
        let caps = Capabilities::read(&regs)
            .inspect_err(|e| dev_err!(dev, "the controller cannot be used: {:?}\n", e))?;

        Arc::pin_init(
            pin_init!(Self {
                dev,
                regs,
                caps,
                state: Atomic::new(State::Starting as u32),
                shadow: SetOnce::new(),
                lies: Rarely::new(),
                unmapped: Rarely::new(),
                inbox <- Inbox::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// What the controller may be used for now; somebody may change it at once.
    pub(crate) fn state(&self) -> State {
        match self.state.load(Acquire) {
            x if x == State::Starting as u32 => State::Starting,
            x if x == State::Live as u32 => State::Live,
            _ => State::Dead,
        }
    }

    /// Changes what the controller may be used for. Who may, is said above. Sleeps.
    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state as u32, Release);
        self.inbox.wake();
    }

    /// Waits while the controller is reset. Sleeps.
    ///
    /// # Errors
    ///
    /// - `ENODEV`: it is dead.
    /// - `EINTR`: there is a signal.
    pub(crate) fn settle(&self) -> Result {
        self.inbox.wait_until(|| self.state() != State::Starting)?;
        match self.state() {
            State::Dead => Err(ENODEV),
            _ => Ok(()),
        }
    }

    /// What the controller says of itself.
    pub(crate) fn status(&self) -> regs::CSTS {
        self.regs.io().read(regs::CSTS)
    }

    /// Counts something that the controller said and that cannot be, as [`Rarely::count`].
    pub(crate) fn lie(&self) -> Option<u32> {
        self.lies.count()
    }

    /// How often it did.
    #[allow(dead_code, reason = "used by the suite that plays a controller")]
    pub(crate) fn lies(&self) -> u32 {
        self.lies.0.load(Relaxed)
    }

    /// Sets a doorbell of queue `qid`, which was `old`, to `value`.
    #[inline]
    pub(crate) fn ring(&self, qid: u16, completion: bool, old: u32, value: u32) {
        let offset = regs::doorbell(qid, self.caps.stride, completion);

        if qid != 0 {
            if let Some(shadow) = self.shadow.as_ref() {
                if shadow.ring(offset, old, value) {
                    return;
                }
            }
        }
        // It was seen to be within the BAR when the queue was made.
        let _ = self.regs.io().try_write32(value, offset);
    }

    /// Waits until `done` says so of the status; at most `ms` milliseconds.
    fn wait(&self, ms: i64, done: impl Fn(regs::CSTS) -> bool) -> Result {
        read_poll_timeout(
            || match self.status() {
                csts if csts.is_gone() => Err(ENODEV),
                csts => Ok(csts),
            },
            |&csts| done(csts),
            Delta::from_millis(1),
            Delta::from_millis(ms),
        )
        .map(|_| ())
    }

    /// Enables the controller, with `admin` as its first queues. Sleeps.
    ///
    /// # Errors
    ///
    /// - `ENODEV`: nobody answers.
    /// - `EIO`: the controller says that it has failed.
    /// - `ETIMEDOUT`: it did not become ready in the time that it claims to need.
    pub(crate) fn enable(&self, admin: &AdminRings) -> Result {
        let io = self.regs.io();
        let size = admin.entries.wrapping_sub(1);
        // CAST: Each half in its own register.
        let halves = |address: u64| (address as u32, (address >> 32) as u32);
        let (sq, cq) = (halves(admin.sq), halves(admin.cq));

        io.write_reg(
            regs::AQA::zeroed()
                .try_with_asqs(size)?
                .try_with_acqs(size)?,
        );
        io.write_reg(regs::ASQ_LO::from(sq.0));
        io.write_reg(regs::ASQ_HI::from(sq.1));
        io.write_reg(regs::ACQ_LO::from(cq.0));
        io.write_reg(regs::ACQ_HI::from(cq.1));
        io.write_reg(
            regs::CC::zeroed()
                .with_const_iosqes::<SQES>()
                .with_const_iocqes::<CQES>()
                .try_with_css(self.caps.css)?
                .with_en(true),
        );

        self.wait(self.caps.ready_ms, |csts| csts.rdy() || csts.cfs())
            .and_then(|()| match self.status() {
                csts if csts.cfs() => Err(EIO),
                _ => Ok(()),
            })
            .inspect_err(|&e| {
                dev_err!(
                    self.dev,
                    "the controller does not become ready: status {:#x}, {:?}\n",
                    self.status().into_raw(),
                    e
                )
            })
    }

    /// Disables the controller: it forgets its queues, and leaves memory alone. Sleeps.
    ///
    /// # Errors
    ///
    /// - `ENODEV`: nobody answers, so that there is nothing to disable.
    /// - `ETIMEDOUT`: it is still ready after the time that it claims to need. It was cut off from
    ///   memory, and is of no use any more.
    pub(crate) fn disable(&self) -> Result {
        let io = self.regs.io();

        io.write_reg(io.read(regs::CC).with_en(false).with_const_shn::<0>());
        self.wait(self.caps.timeout_ms, |csts| !csts.rdy())
            .inspect_err(|&e| {
                // It may go on to write to memory that is given back now.
                self.regs.isolate();
                // Where there is nobody, who wanted something of it will say so.
                if e != ENODEV {
                    dev_err!(
                        self.dev,
                        "the controller cannot be disabled: status {:#x}, {:?}\n",
                        self.status().into_raw(),
                        e
                    );
                }
            })
    }

    /// Tells the controller that its power may go, waits at most `ms` milliseconds until it is
    /// prepared, and disables it. Sleeps.
    ///
    /// One that takes no commands is not told, as in C: it would not answer.
    pub(crate) fn shut_down(&self, ms: i64) {
        let io = self.regs.io();
        let status = self.status();

        if self.state() == State::Dead || status.is_gone() {
            return;
        }
        if status.takes_commands() {
            io.write_reg(io.read(regs::CC).with_const_shn::<{ regs::SHN_NORMAL }>());
            if self
                .wait(ms, |csts| u32::from(csts.shst()) == regs::SHST_COMPLETE)
                .is_err()
            {
                dev_warn!(
                    self.dev,
                    "the controller does not shut down: status {:#x}\n",
                    self.status().into_raw()
                );
            }
        }
        // What can be said about an error was said.
        let _ = self.disable();
    }
}
