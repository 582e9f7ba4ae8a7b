// SPDX-License-Identifier: GPL-2.0

//! A controller in use: how its queues and disks come and go.

use crate::{
    admin::Admin,
    block::{
        Disk,
        Ops,
        Tags,
        CLIENT_LIMITS, //
    },
    chardev::{
        CharDev,
        Sessions, //
    },
    counters::Counters,
    ctrl::{
        Controller,
        State, //
    },
    identify::{
        self,
        Namespace,
        Unusable,
        CTRL_PAGE_SIZE,
        NVM_COMMAND_SET, //
    },
    memory::{
        Memory,
        Opened, //
    },
    queue::Queue,
    recovery::Recovery,
    regs::{
        Regs,
        CSS_ALL, //
    },
    shadow::Shadow, //
};
use core::mem;
use kernel::{
    block::mq::{
        Status,
        TagSet,
        TagSetOptions, //
    },
    device::{
        Bound,
        Device, //
    },
    fmt,
    new_mutex,
    physdma::Client,
    prelude::*,
    str::CString,
    sync::{
        rcu::synchronize_rcu,
        Arc,
        Mutex, //
    },
    time::{
        Instant,
        Monotonic,
        Msecs, //
    },
    types::ScopeGuard, //
};

/// The most entries of an I/O queue.
const MAX_ENTRIES: u32 = 1024;

/// The most namespaces of a controller that become disks.
const MAX_NAMESPACES: usize = 1024;

/// The most namespaces of a controller of which a line says why they are skipped.
const MAX_SKIPPED_SAID: u32 = 8;

/// How often a controller may be reset while it is asked for its namespaces.
const MAX_RESETS: u32 = 5;

/// What the driver is told about how to use a controller.
#[derive(Clone, Copy)]
pub(crate) struct Config {
    /// The number in the names of its disks.
    pub(crate) instance: u32,
    /// The most I/O queues.
    pub(crate) io_queues: u32,
    /// When a request of a disk is considered lost, in milliseconds.
    pub(crate) io_timeout: Msecs,
    /// When an admin command is, in milliseconds.
    pub(crate) admin_timeout: Msecs,
    /// Use neither SGL descriptors nor doorbells in memory, even if it can.
    pub(crate) plain: bool,
}

/// The device's interrupts.
pub(crate) trait Interrupts<'a, R: Regs> {
    /// The number of vectors, at least one.
    fn vectors(&self) -> u32;

    /// Has [`Queue::process`] called when the vector of `queue` interrupts, until `self` is
    /// dropped.
    fn attach(&mut self, queue: Arc<Queue<'a, R>>) -> Result;
}

/// A controller with its queues and disks.
#[pin_data]
pub(crate) struct Nvme<'a, R: Regs> {
    /// The registers and the state; the queues have it too.
    pub(crate) ctrl: Arc<Controller<'a, R>>,
    admin: Pin<KBox<Admin<'a, R>>>,
    queues: KVec<Arc<Queue<'a, R>>>,
    tags: Arc<TagSet<Ops<'a, R>>>,
    identity: identify::Controller,
    /// The most bytes of a request.
    max_transfer: u32,
    memory: Memory,
    config: Config,
    #[pin]
    disks: Mutex<KVec<Arc<Disk<'a, R>>>>,
}

impl<'a, R: Regs + 'a> Nvme<'a, R> {
    /// Brings the controller up, as far as it can serve requests, and opens its memory to other
    /// devices. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENODEV`, `EIO`, `ETIMEDOUT`, `ENOMEM`: what the controller does wrong was logged.
    ///
    /// # Safety
    ///
    /// The result must not be forgotten: it must be dropped before `'a` ends.
    unsafe fn new(
        dev: &'a Device<Bound>,
        regs: R,
        irqs: &mut impl Interrupts<'a, R>,
        config: Config,
    ) -> Result<(Arc<Self>, Opened<R>)> {
        let client = Client::new(dev, CLIENT_LIMITS)?.into_devres()?;
        let ctrl = Controller::new(dev, regs)?;
        // Whoever used it before may have left it running.
        ctrl.disable()?;

        // SAFETY: It is not forgotten unless the result is.
        let admin = unsafe { Admin::new(ctrl.clone(), client, config.admin_timeout) }?;
        irqs.attach(admin.queue.clone())?;
        // From here on the device writes to memory, which must end before the memory is freed.
        let enabled = ScopeGuard::new_with_data(ctrl.clone(), |ctrl| {
            Memory::disable(&ctrl);
            // What can be said about an error was said.
            let _ = ctrl.disable();
        });
        ctrl.enable(&admin.queue.rings())?;
        admin.queue.set_enabled(true);

        let mut memory = Memory::new(&ctrl);
        let opened = memory.open(&ctrl);
        let identity = admin.identify_controller()?;
        let max_transfer = identity
            .max_transfer
            .min(u32::try_from(client.max_bytes()).unwrap_or(u32::MAX) & !(CTRL_PAGE_SIZE - 1));
        // One vector is for the admin queue, unless there is but one.
        let vectors = irqs.vectors();
        let wanted = config
            .io_queues
            .min(vectors.saturating_sub(1))
            .min(ctrl.caps.max_qid.into())
            .min(memory.max_qid(ctrl.caps.stride).into())
            .max(1);
        // CAST: At most `max_qid`.
        let granted = admin.set_queues(wanted as u16)?;
        let entries = ctrl.caps.max_entries.min(MAX_ENTRIES);

        let mut queues = KVec::new();
        let mut shared = KVec::new();
        for qid in 1..=granted {
            let vector = if vectors == 1 { 0 } else { qid.into() };
            let queue = Queue::new(ctrl.clone(), qid, vector, entries, max_transfer)?;

            irqs.attach(queue.clone())?;
            queues.push(queue.clone(), GFP_KERNEL)?;
            shared.push(queue, GFP_KERNEL)?;
        }
        let first = queues.first().ok_or(ENODEV)?;
        let options = TagSetOptions {
            nr_hw_queues: granted.into(),
            queue_depth: first.tags(),
            timeout: config.io_timeout,
            generation_bits: first.generation_bits(),
            ..Default::default()
        };
        // SAFETY: It is not forgotten unless the result is.
        let tags = unsafe {
            TagSet::new_scoped(
                options,
                Tags {
                    queues: shared,
                    client,
                    mixes: memory.mixes,
                    sgls: identity.sgls && !config.plain,
                },
            )
        };
        let tags = Arc::pin_init(tags, GFP_KERNEL)?;
        // Where there are less CPUs than queues, the rest is not used.
        for (i, queue) in (0..tags.nr_hw_queues()).zip(&queues) {
            queue.set_in_flight(tags.in_flight(i).ok_or(EINVAL)?)?;
            admin.create_queue(queue)?;
        }
        if identity.doorbell_buffers && !config.plain {
            ctrl.shadow
                .populate(Shadow::new(dev, granted, ctrl.caps.stride)?);
            admin.set_shadow()?;
        }
        for (_, queue) in (0..tags.nr_hw_queues()).zip(&queues) {
            queue.set_enabled(true);
        }
        ctrl.set_state(State::Live);
        dev_info!(
            dev,
            "{} (serial {}, firmware {}): {} I/O queues of {} entries, {} KiB a command\n",
            identity.model(),
            identity.serial(),
            identity.firmware(),
            tags.nr_hw_queues(),
            entries,
            max_transfer >> 10
        );

        let nvme = Arc::pin_init(
            pin_init!(Self {
                ctrl,
                admin,
                queues,
                tags,
                identity,
                max_transfer,
                memory,
                config,
                disks <- new_mutex!(KVec::new()),
            }),
            GFP_KERNEL,
        )?;
        enabled.dismiss();
        Ok((nvme, opened))
    }

    /// The active namespaces, as the controller lists them, but for what is beyond
    /// [`MAX_NAMESPACES`]. Sleeps.
    ///
    /// # Errors
    ///
    /// Those of the command, and `ENOMEM`.
    fn listed_namespaces(&self) -> Result<KVec<u32>> {
        let mut list = KVec::new();

        loop {
            let (before, last) = (list.len(), list.last().copied().unwrap_or(0));

            self.admin.active_namespaces(last, &mut list)?;
            let full = list.len() - before == identify::LIST_LEN;
            if list.len() > MAX_NAMESPACES {
                self.warn_of_many();
                list.truncate(MAX_NAMESPACES);
                return Ok(list);
            }
            if !full {
                return Ok(list);
            }
        }
    }

    /// All namespaces that there may be, but for what is beyond [`MAX_NAMESPACES`].
    fn possible_namespaces(&self) -> Result<KVec<u32>> {
        let mut list = KVec::new();

        for nsid in 1..=self.identity.namespaces {
            if list.len() == MAX_NAMESPACES {
                self.warn_of_many();
                break;
            }
            list.push(nsid, GFP_KERNEL)?;
        }
        Ok(list)
    }

    fn warn_of_many(&self) {
        dev_warn!(
            self.ctrl.dev,
            "only the first {} namespaces become disks\n",
            MAX_NAMESPACES
        );
    }

    /// Makes a disk of every namespace that can be one. Sleeps.
    ///
    /// A namespace that cannot is skipped, after one line that says why. Where the controller does
    /// not list its namespaces, all that there may be are tried, as in C. What was asked while the
    /// controller was reset is asked again; if it does not answer, the namespaces that are left are
    /// skipped.
    ///
    /// # Errors
    ///
    /// - `ETIMEDOUT`: the controller does not say what namespaces there are.
    /// - `EAGAIN`: it was reset all the time.
    /// - `ENODEV`: it is dead.
    /// - `EINTR`: there is a signal.
    /// - `ENOMEM`.
    fn add_disks(&self) -> Result {
        let mut resets = 0;
        let (list, listed) = match self.ask(&mut resets, || self.listed_namespaces()) {
            Err(e) if e == EIO => (self.possible_namespaces()?, false),
            list => (list?, true),
        };
        let mut skipped = 0;
        let mut skip = |why: fmt::Arguments<'_>| {
            skipped += 1;
            if skipped <= MAX_SKIPPED_SAID {
                dev_warn!(self.ctrl.dev, "{}\n", why);
            }
        };

        if list.is_empty() {
            dev_warn!(self.ctrl.dev, "there is no active namespace\n");
        }
        for &nsid in &list {
            if nsid > self.identity.namespaces {
                skip(fmt!(
                    "namespace {} of {} is skipped",
                    nsid,
                    self.identity.namespaces
                ));
                continue;
            }
            let added = match self.ask(&mut resets, || self.identify(nsid)) {
                Ok(Ok(ns)) => self.add_disk(nsid, ns),
                Ok(Err(Unusable::Empty)) if !listed => continue,
                Ok(Err(e)) => {
                    skip(fmt!("namespace {} is skipped: {:?}", nsid, e));
                    continue;
                }
                Err(e) if e == ETIMEDOUT || e == EAGAIN => {
                    dev_err!(
                        self.ctrl.dev,
                        "the namespaces from {} on are skipped: {:?}\n",
                        nsid,
                        e
                    );
                    break;
                }
                Err(e) if e == ENODEV || e == EINTR => return Err(e),
                Err(e) => Err(e),
            };
            if let Err(e) = added {
                skip(fmt!("namespace {}: no disk: {:?}", nsid, e));
            }
        }
        if skipped > MAX_SKIPPED_SAID {
            dev_warn!(self.ctrl.dev, "{} namespaces are skipped\n", skipped);
        }
        Ok(())
    }

    /// What `question` returns, which is put again if the controller was reset meanwhile; not
    /// without end: `resets` counts. Sleeps.
    ///
    /// # Errors
    ///
    /// Those of `question`, and those of [`Controller::settle()`].
    pub(crate) fn ask<T>(&self, resets: &mut u32, question: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            match question() {
                Err(e) if e == EAGAIN && *resets < MAX_RESETS => {
                    *resets += 1;
                    self.ctrl.settle()?;
                }
                answer => return answer,
            }
        }
    }

    /// What the controller says of a namespace, or why it cannot be a disk.
    pub(crate) fn identify(&self, nsid: u32) -> Result<Result<Namespace, Unusable>> {
        if self.ctrl.caps.css == CSS_ALL {
            let set = self.admin.command_set(nsid)?;

            if set != Some(NVM_COMMAND_SET) {
                return Ok(Err(Unusable::CommandSet(set)));
            }
        }
        self.admin.identify_namespace(nsid)
    }

    /// Makes a disk of a namespace.
    fn add_disk(&self, nsid: u32, ns: Namespace) -> Result {
        let disk = Disk::new(
            &self.ctrl,
            self.tags.clone(),
            fmt!("rnvme{}n{}", self.config.instance, nsid),
            nsid,
            ns,
            self.max_transfer,
            self.identity.write_cache,
        )?;

        // Under the lock, so that whoever gives the controller up finds the disk, or was before.
        let mut disks = self.disks.lock();
        if self.ctrl.state() == State::Dead {
            disk.disk.mark_dead();
        }
        disks.push(Arc::new(disk, GFP_KERNEL)?, GFP_KERNEL)?;
        Ok(())
    }

    /// Runs `f` with the disk of namespace `nsid`.
    #[allow(dead_code, reason = "used by the suite that plays a controller")]
    pub(crate) fn with_disk<T>(&self, nsid: u32, f: impl FnOnce(&Disk<'a, R>) -> T) -> Option<T> {
        self.disks
            .lock()
            .iter()
            .find(|d| d.nsid == nsid)
            .map(|d| f(d))
    }

    /// I/O queue `qid`.
    #[allow(dead_code, reason = "used by the suite that plays a controller")]
    pub(crate) fn queue(&self, qid: u16) -> Option<&Queue<'a, R>> {
        self.queues.iter().find(|q| q.qid() == qid).map(|q| &**q)
    }

    /// The most bytes of a request.
    #[allow(dead_code, reason = "used by the suite that plays a controller")]
    pub(crate) fn max_transfer(&self) -> u32 {
        self.max_transfer
    }

    /// Removes the disks: what was written to them is written out, if it can be. Sleeps.
    fn remove_disks(&self) {
        let disks = mem::take(&mut *self.disks.lock());

        drop(disks);
    }

    /// Asks the controller to abort a command. Sleeps.
    ///
    /// Called by the recovery thread.
    pub(crate) fn abort(&self, qid: u16, cid: u16) {
        // The time-out of the command comes again, whatever becomes of this one.
        let _ = self.admin.abort(qid, cid);
    }

    /// Resets the controller, and has all that was not answered sent again. Sleeps.
    ///
    /// Called by the recovery thread.
    pub(crate) fn reset(&self) {
        if self.ctrl.state() != State::Live {
            return self.ctrl.inbox.forget();
        }
        self.ctrl.set_state(State::Starting);
        self.stop_queues();
        // A controller that cannot be disabled is cut off, and given up.
        let disabled = self.ctrl.disable();
        self.drain(true);
        self.ctrl.inbox.forget();

        match disabled.and_then(|()| self.restart()) {
            Ok(()) => {
                self.ctrl.set_state(State::Live);
                dev_info!(self.ctrl.dev, "the controller was reset\n");
            }
            Err(e) => self.die(e),
        }
    }

    /// Brings the controller up again, with the queues that it had.
    fn restart(&self) -> Result {
        if let Some(shadow) = self.ctrl.shadow.as_ref() {
            // It has forgotten where they are.
            shadow.clear();
        }
        self.ctrl.enable(&self.admin.queue.rings())?;
        self.admin.queue.set_enabled(true);
        self.memory.restart(&self.ctrl);

        // CAST: It was granted as a `u16`.
        let wanted = self.tags.nr_hw_queues() as u16;
        if self.admin.set_queues(wanted)? < wanted {
            dev_err!(
                self.ctrl.dev,
                "the controller has less queues than before\n"
            );
            return Err(EIO);
        }
        for queue in self.used_queues() {
            self.admin.create_queue(queue)?;
        }
        self.admin.set_shadow()?;
        for queue in self.used_queues() {
            queue.set_enabled(true);
        }
        Ok(())
    }

    /// Has nobody wait for an answer of a controller that is gone. Sleeps.
    fn cancel_admin(&self) {
        let queue = &self.admin.queue;

        queue.set_enabled(false);
        synchronize_rcu();
        if let Ok(table) = queue.in_flight() {
            table.claim_all(|rq| Ops::give_up(rq, false, Status::IOERR));
        }
    }

    /// Gives the controller up: what it was asked fails, and so does what comes. Sleeps.
    ///
    /// Called by the recovery thread, or when it has ended.
    #[cold]
    fn die(&self, e: Error) {
        if self.ctrl.state() == State::Dead {
            return;
        }
        dev_err!(self.ctrl.dev, "the controller is dead: {:?}\n", e);
        self.ctrl.set_state(State::Dead);
        self.stop_queues();
        let _ = self.ctrl.disable();
        self.drain(false);
        for disk in self.disks.lock().iter() {
            disk.disk.mark_dead();
        }
    }

    /// Says what the controller did.
    fn report(&self) {
        let mut counters = Counters::default();

        for queue in &self.queues {
            counters += queue.counters();
        }
        dev_info!(self.ctrl.dev, "counters: {}\n", counters);
    }

    /// The queues that have a hardware context.
    fn used_queues(&self) -> impl Iterator<Item = &Arc<Queue<'a, R>>> {
        self.queues.iter().take(self.tags.nr_hw_queues() as usize)
    }

    /// Lets nobody submit any more. Sleeps until nobody does.
    fn stop_queues(&self) {
        self.admin.queue.set_enabled(false);
        for queue in &self.queues {
            queue.set_enabled(false);
        }
        synchronize_rcu();
    }

    /// Has the controller forget its I/O queues, before it is shut down. Sleeps.
    ///
    /// A controller that refuses, or that does not answer in the time of one admin command, is shut
    /// down all the same.
    fn delete_queues(&self) {
        if self.ctrl.state() != State::Live || !self.ctrl.status().takes_commands() {
            return;
        }
        let start = Instant::<Monotonic>::now();
        let left = || {
            let elapsed = Msecs::try_from(start.elapsed().as_millis()).unwrap_or(Msecs::MAX);

            match self.config.admin_timeout.saturating_sub(elapsed) {
                0 => Err(ETIMEDOUT),
                left => Ok(left),
            }
        };
        let delete = || -> Result {
            for queue in self.used_queues() {
                self.admin.delete_sq(queue, left()?)?;
            }
            for queue in self.used_queues() {
                self.admin.delete_cq(queue, left()?)?;
            }
            Ok(())
        };

        if let Err(e) = delete() {
            dev_warn!(
                self.ctrl.dev,
                "the controller does not delete its queues: {:?}\n",
                e
            );
        }
    }

    /// Takes back what the device did not answer; it was disabled, and nobody submits.
    fn drain(&self, retry: bool) {
        self.admin
            .queue
            .drain(|rq| Ops::give_up(rq, false, Status::IOERR));
        for queue in &self.queues {
            queue.drain(|rq| Ops::give_up(rq, retry, Status::IOERR));
        }
    }
}

/// A controller that the driver has bound to.
///
/// Dropping it removes the disks, and shuts the controller down.
pub(crate) struct Attached<'a, R: Regs, I> {
    /// The controller.
    pub(crate) nvme: Arc<Nvme<'a, R>>,
    recovery: Option<Recovery<'a, R>>,
    /// What programs get to the disks by.
    file: Option<CharDev<'a>>,
    /// Open to other devices.
    opened: Option<Opened<R>>,
    /// Dropped after the controller was shut down.
    _irqs: I,
}

impl<'a, R: Regs + 'a, I: Interrupts<'a, R>> Attached<'a, R, I> {
    /// Brings a controller up and shows its disks. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENODEV`, `EIO`, `ETIMEDOUT`, `ENOMEM`: what the controller does wrong was logged.
    ///
    /// # Safety
    ///
    /// The result must not be forgotten: it must be dropped before `'a` ends.
    pub(crate) unsafe fn new(
        dev: &'a Device<Bound>,
        regs: R,
        mut irqs: I,
        config: Config,
    ) -> Result<Self> {
        // SAFETY: It is not forgotten unless the result is.
        let (nvme, opened) = unsafe { Nvme::new(dev, regs, &mut irqs, config) }?;
        let mut this = Self {
            nvme: nvme.clone(),
            recovery: None,
            file: None,
            opened: Some(opened),
            _irqs: irqs,
        };

        // SAFETY: It is not forgotten unless the result is.
        this.recovery = Some(unsafe { Recovery::new(nvme) }?);
        this.nvme.add_disks()?;
        Ok(this)
    }

    /// Makes the file `name`, by which programs get to the disks. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or another error of `misc_register()`.
    #[allow(dead_code, reason = "not used by the suite that plays a controller")]
    pub(crate) fn open_to_programs(&mut self, name: CString) -> Result {
        let mut disks = KVec::new();
        for disk in self.nvme.disks.lock().iter() {
            disks.push(disk.clone(), GFP_KERNEL)?;
        }
        // SAFETY: It is not forgotten unless `self` is.
        let sessions = unsafe { Sessions::new(disks, self.nvme.tags.data().client) }?;
        // SAFETY: As above.
        self.file = Some(unsafe { CharDev::new(name, self.nvme.ctrl.dev, sessions) }?);
        Ok(())
    }
}

impl<'a, R: Regs + 'a, I> Drop for Attached<'a, R, I> {
    fn drop(&mut self) {
        let status = self.nvme.ctrl.status();

        // Nobody will answer what is in flight: it need not be waited for until it is late.
        if status.is_gone() {
            if let Some(recovery) = self.recovery.take() {
                recovery.stop(|| self.nvme.cancel_admin());
                self.nvme.die(ENODEV);
            }
        } else if !status.takes_commands() {
            // It was reset by somebody else, or has failed: what is in flight is sent again, or
            // fails.
            self.nvme.ctrl.inbox.reset();
        }
        // Recovery has to go on until nobody waits for a request. Programs have the disks too.
        self.file = None;
        self.nvme.remove_disks();
        // No request of the driver's own has the memory any more. Those of others complete while
        // what they read is still there: a controller that is shut down may forget it.
        self.opened = None;
        self.recovery = None;

        self.nvme.delete_queues();
        self.nvme.stop_queues();
        self.nvme.ctrl.shut_down(self.nvme.identity.shutdown_ms);
        Memory::disable(&self.nvme.ctrl);
        self.nvme.ctrl.regs.isolate();
        self.nvme.drain(false);
        self.nvme.report();
    }
}
