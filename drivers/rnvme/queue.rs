// SPDX-License-Identifier: GPL-2.0

//! A queue pair: the submission and completion rings, their doorbells, and what is in flight.
//!
//! NVM Express Base Specification 2.0, section 3.3.

use crate::{
    block::Ops,
    command::{
        CommandStatus,
        CompletionTail,
        RawCommand,
        RawCompletion, //
    },
    counters::{
        Counters,
        Moved, //
    },
    ctrl::{
        AdminRings,
        Controller,
        State, //
    },
    identify,
    prp::{
        self,
        Fault, //
    },
    regs::Regs, //
};
use core::mem;
use kernel::{
    block::mq::{
        CommandId,
        EndBatch,
        InFlight,
        OwnedRequest,
        Status as BlkStatus, //
    },
    dma::Coherent,
    io::{
        io_project,
        io_read,
        Io,
        SysMem, //
    },
    new_mutex,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        barrier::{
            dma_mb,
            Read, //
        },
        Arc,
        Mutex,
        SetOnce,
        SpinLock, //
    }, //
};

/// Entries of the short PRP list that each tag has for itself.
const SHORT: usize = 32;
/// Long PRP lists that the requests of a queue share: one bit each in [`Queue::free_lists`].
const LONG_LISTS: usize = u64::BITS as usize;

// A queue always has enough lists for a request, if no other has any.
const _: () = assert!(prp::lists(prp::max_entries(identify::MAX_TRANSFER)) <= LONG_LISTS);

/// The producer's side of the submission ring.
struct Submission {
    /// The slot of the next command.
    tail: u32,
    /// What the doorbell was rung with last.
    rung: u32,
    counters: Counters,
}

/// A submission queue and the completion queue that answers it.
///
/// The completion ring has one consumer: the interrupt handler, or who keeps it from running.
#[pin_data]
pub(crate) struct Queue<'a, R: Regs> {
    ctrl: Arc<Controller<'a, R>>,
    qid: u16,
    vector: u32,
    entries: u32,
    /// A command identifier is a tag of this many bits, and above it the tag's generation.
    tag_bits: u32,
    /// The submission ring. The device reads it.
    pub(crate) sq: Coherent<[RawCommand]>,
    /// The completion ring. The device writes it.
    pub(crate) cq: Coherent<[RawCompletion]>,
    /// A page for what commands of the driver's own move: the answers to Identify.
    pub(crate) page: Coherent<[u8]>,
    /// A short PRP list for each tag.
    short_lists: Coherent<[[u64; SHORT]]>,
    /// Long PRP lists for those requests that need them.
    long_lists: Coherent<[u64]>,
    /// The entries of each: as many as the longest request needs, or a page has.
    long_entries: usize,
    /// Which long lists nobody uses.
    free_lists: Atomic<u64>,
    #[pin]
    submission: SpinLock<Submission>,
    /// Who keeps the interrupt handler from running and takes its place: one at a time.
    #[pin]
    consumer: Mutex<()>,
    /// The slot of the next completion.
    head: Atomic<u32>,
    /// The phase that the next completion will have.
    phase: Atomic<bool>,
    enabled: Atomic<bool>,
    in_flight: SetOnce<Arc<InFlight<Ops<'a, R>>>>,
}

impl<'a, R: Regs> Queue<'a, R> {
    /// Allocates queue pair `qid` of `entries` entries, at least two, for requests that move at
    /// most `max_transfer` bytes. It is not the device's yet.
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINVAL`.
    pub(crate) fn new(
        ctrl: Arc<Controller<'a, R>>,
        qid: u16,
        vector: u32,
        entries: u32,
        max_transfer: u32,
    ) -> Result<Arc<Self>> {
        let dev = ctrl.dev;
        let len = entries as usize;
        let tags = entries.checked_sub(1).filter(|&n| n > 0).ok_or(EINVAL)?;
        let most = prp::max_entries(max_transfer);
        // A list does not go beyond a page.
        let long_entries = most.next_power_of_two().min(prp::ENTRIES);
        let (short, long) = match most {
            // The admin queue's commands have no list.
            0 => (1, 0),
            1..=SHORT => (tags as usize, 0),
            _ => (tags as usize, LONG_LISTS),
        };
        let free_lists = match long {
            0 => 0,
            _ => u64::MAX,
        };

        Arc::pin_init(
            try_pin_init!(Self {
                sq: Coherent::zeroed_slice(dev, len, GFP_KERNEL)?,
                cq: Coherent::zeroed_slice(dev, len, GFP_KERNEL)?,
                page: Coherent::zeroed_slice(dev, identify::PAGE_LEN, GFP_KERNEL)?,
                short_lists: Coherent::zeroed_slice(dev, short, GFP_KERNEL)?,
                long_lists: Coherent::zeroed_slice(dev, (long * long_entries).max(1), GFP_KERNEL)?,
                long_entries,
                free_lists: Atomic::new(free_lists),
                ctrl,
                qid,
                vector,
                entries,
                // No tag has all bits set, so that no identifier is 0xffff, which is reserved.
                tag_bits: u32::BITS - tags.leading_zeros(),
                submission <- new_spinlock!(Submission {
                    tail: 0,
                    rung: 0,
                    counters: Counters::default(),
                }),

                consumer <- new_mutex!(()),
                head: Atomic::new(0),
                phase: Atomic::new(true),
                enabled: Atomic::new(false),
                in_flight: SetOnce::new(),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// The controller that the queue is of.
    pub(crate) fn ctrl(&self) -> &Arc<Controller<'a, R>> {
        &self.ctrl
    }

    /// Its number; 0 is the admin queue.
    pub(crate) fn qid(&self) -> u16 {
        self.qid
    }

    /// The interrupt vector of its completions.
    pub(crate) fn vector(&self) -> u32 {
        self.vector
    }

    /// How many commands it can hold: one less than entries, as a full ring looks like an empty
    /// one.
    pub(crate) fn tags(&self) -> u32 {
        self.entries - 1
    }

    /// The bits that are left of a command identifier for the generation.
    pub(crate) fn generation_bits(&self) -> u32 {
        u16::BITS - self.tag_bits
    }

    /// Where the rings are, as the device sees it.
    pub(crate) fn rings(&self) -> AdminRings {
        AdminRings {
            entries: self.entries,
            sq: self.sq.dma_address(),
            cq: self.cq.dma_address(),
        }
    }

    /// Sets the table in which the requests are entered when they start.
    pub(crate) fn set_in_flight(&self, in_flight: Arc<InFlight<Ops<'a, R>>>) -> Result {
        match self.in_flight.populate(in_flight) {
            true => Ok(()),
            false => Err(EBUSY),
        }
    }

    /// The table in which its requests are entered.
    ///
    /// # Errors
    ///
    /// `ENXIO`: it was not set yet.
    pub(crate) fn in_flight(&self) -> Result<&InFlight<Ops<'a, R>>> {
        self.in_flight.as_ref().map(|x| &**x).ok_or(ENXIO)
    }

    /// The bytes of all long PRP lists.
    #[allow(dead_code, reason = "used by the suite that plays a controller")]
    pub(crate) fn long_list_bytes(&self) -> usize {
        self.long_lists.size()
    }

    /// What its requests add up to.
    pub(crate) fn counters(&self) -> Counters {
        self.submission.lock().counters
    }

    /// Whether commands may be submitted.
    #[inline]
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Relaxed)
    }

    /// Lets commands be submitted, or no more.
    ///
    /// Who disables it has to wait for an RCU grace period before nobody submits any more.
    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Release);
    }

    /// What a request is told while the queue is not enabled.
    #[cold]
    pub(crate) fn refusal(&self) -> BlkStatus {
        if self.qid == 0 || self.ctrl.state() == State::Dead {
            BlkStatus::IOERR
        } else {
            // It comes again, when the controller was reset.
            BlkStatus::RESOURCE
        }
    }

    /// The command identifier of a request.
    #[inline]
    pub(crate) fn cid(&self, id: CommandId) -> u16 {
        id.generation << self.tag_bits | id.tag
    }

    /// The request that a command identifier stands for, if it is one.
    #[inline]
    fn command_id(&self, cid: u16) -> CommandId {
        CommandId {
            tag: cid & ((1 << self.tag_bits) - 1),
            generation: cid >> self.tag_bits,
        }
    }

    /// Writes `command` into the submission ring, and tells the device if `ring`. `moved` is what
    /// is counted for it.
    ///
    /// There is room: a command has a tag, and there are less tags than entries.
    #[inline(always)] // The command stays in registers.
    pub(crate) fn submit(&self, command: RawCommand, moved: Option<Moved>, ring: bool) {
        let mut submission = self.submission.lock();

        // The tail is always within the ring.
        let _ = self.write_command(submission.tail, command);
        submission.counters.count(moved);
        submission.tail = self.next(submission.tail);
        // Without `ring` the doorbell waits, unless the ring is about to close.
        if ring || self.next(submission.tail) == submission.rung {
            self.ring_submission(&mut submission);
        }
    }

    /// Tells the device of all commands that it was not told of.
    pub(crate) fn commit(&self) {
        let mut submission = self.submission.lock();

        if submission.tail != submission.rung {
            self.ring_submission(&mut submission);
        }
    }

    #[inline]
    fn ring_submission(&self, submission: &mut Submission) {
        self.ctrl
            .ring(self.qid, false, submission.rung, submission.tail);
        submission.rung = submission.tail;
    }

    #[inline]
    fn write_command(&self, slot: u32, command: RawCommand) -> Result {
        io_project!(self.sq, [try: slot as usize]).copy_write(command);
        Ok(())
    }

    #[inline]
    fn next(&self, slot: u32) -> u32 {
        match slot + 1 {
            slot if slot == self.entries => 0,
            slot => slot,
        }
    }

    /// Handles what the device has answered. Returns whether there was anything.
    ///
    /// The caller is the only consumer of the ring.
    #[inline]
    pub(crate) fn process(&self) -> bool {
        let mut batch = EndBatch::new();
        let before = self.head.load(Relaxed);
        let mut head = before;
        let mut phase = self.phase.load(Relaxed);
        let mut found = false;

        // A device cannot have more answers than there are entries before it is told that some were
        // taken. One that pretends to must not keep the CPU here.
        for _ in 0..self.entries {
            // The head is always within the ring.
            match self.read_completion(head, phase) {
                Ok(Some((completion, tail))) => self.answer(&completion, tail, &mut batch),
                _ => break,
            }
            found = true;
            head = self.next(head);
            phase ^= head == 0;
        }

        if found {
            self.head.store(head, Relaxed);
            self.phase.store(phase, Relaxed);
            self.ctrl.ring(self.qid, true, before, head);
        }
        found
    }

    /// Handles what the device has answered while the interrupt handler is kept from running.
    /// Sleeps.
    pub(crate) fn poll(&self) {
        let _one = self.consumer.lock();
        let _off = self.ctrl.regs.irq_off(self.vector);

        self.process();
    }

    #[inline]
    fn read_completion(
        &self,
        slot: u32,
        phase: bool,
    ) -> Result<Option<(RawCompletion, CompletionTail)>> {
        let entry = io_project!(self.cq, [try: slot as usize]);
        let tail = CompletionTail(u32::from_le(io_read!(
            entry,
            [try: CompletionTail::INDEX]
        )));

        if tail.phase() != phase {
            return Ok(None);
        }
        // The phase is written last.
        dma_mb(Read);
        Ok(Some((entry.copy_read(), tail)))
    }

    /// Completes the request that `completion` answers, if there is one.
    #[inline]
    fn answer(
        &self,
        completion: &RawCompletion,
        tail: CompletionTail,
        batch: &mut EndBatch<Ops<'a, R>>,
    ) {
        let id = self.command_id(tail.cid());

        let Some(mut rq) = self.in_flight().ok().and_then(|table| table.claim(id)) else {
            if let Some(count) = self.ctrl.lie() {
                dev_err!(
                    self.ctrl.dev,
                    "queue {}: completion for command {:#x}, which is not outstanding (lie {})\n",
                    self.qid,
                    tail.cid(),
                    count
                );
            }
            return;
        };
        let sq_head = u32::from_le(completion[2]) & 0xffff;
        let mut status = tail.status();

        if sq_head >= self.entries {
            if let Some(count) = self.ctrl.lie() {
                dev_err!(
                    self.ctrl.dev,
                    "queue {}: command {:#x}: submission queue head {} of {} (lie {})\n",
                    self.qid,
                    tail.cid(),
                    sq_head,
                    self.entries,
                    count
                );
            }
            status = CommandStatus::INTERNAL;
        }
        self.give_lists(&mut rq.data_mut().lists);
        Ops::answered(rq, status, u32::from_le(completion[0]), batch);
    }

    /// Takes all requests that the device did not answer, and lets `each` decide.
    ///
    /// The device was disabled, and nobody submits. The rings are as new afterwards. Sleeps.
    pub(crate) fn drain(&self, mut each: impl FnMut(OwnedRequest<Ops<'a, R>>)) {
        let _one = self.consumer.lock();
        let _off = self.ctrl.regs.irq_off(self.vector);

        self.process();
        if let Ok(table) = self.in_flight() {
            table.claim_all(|mut rq| {
                self.give_lists(&mut rq.data_mut().lists);
                each(rq);
            });
        }
        {
            let mut submission = self.submission.lock();

            (submission.tail, submission.rung) = (0, 0);
        }
        self.head.store(0, Relaxed);
        self.phase.store(true, Relaxed);
        for slot in 0..self.entries {
            let _ = self.clear_completion(slot);
        }
    }

    fn clear_completion(&self, slot: u32) -> Result {
        io_project!(self.cq, [try: slot as usize]).copy_write(RawCompletion::default());
        Ok(())
    }

    /// Takes `n` long lists, one bit each.
    fn take_lists(&self, n: usize) -> Option<u64> {
        let mut free = self.free_lists.load(Relaxed);

        loop {
            let mut left = free;
            for _ in 0..n {
                if left == 0 {
                    return None;
                }
                left &= left - 1;
            }
            match self.free_lists.cmpxchg(free, left, Acquire) {
                Ok(_) => return Some(free ^ left),
                Err(now) => free = now,
            }
        }
    }

    /// Gives back the long lists of a request, if it has any.
    #[inline]
    pub(crate) fn give_lists(&self, lists: &mut u64) {
        let lists = mem::take(lists);

        if lists != 0 {
            // The bits are ours, so that they are clear there.
            self.free_lists.fetch_add(lists, Release);
        }
    }
}

/// The PRP lists of a request: its tag's short one, or long ones.
pub(crate) struct RequestLists<'q, 'a, R: Regs> {
    queue: &'q Queue<'a, R>,
    tag: u16,
    /// The long lists, as [`Iod::lists`](crate::block::Iod::lists).
    long: &'q mut u64,
    /// The one that was opened last.
    list: Option<SysMem<'q, [u64]>>,
}

impl<'q, 'a, R: Regs> RequestLists<'q, 'a, R> {
    /// The lists of the request with this tag, none yet. `long` becomes those that it takes.
    #[inline]
    pub(crate) fn new(queue: &'q Queue<'a, R>, tag: u16, long: &'q mut u64) -> Self {
        Self {
            queue,
            tag,
            long,
            list: None,
        }
    }

    /// Gives them back.
    pub(crate) fn give_back(self) {
        self.queue.give_lists(self.long);
    }

    /// The number of the request's `n`th long list.
    fn nth(&self, n: usize) -> usize {
        let mut lists = *self.long;

        for _ in 0..n {
            lists &= lists.wrapping_sub(1);
        }
        lists.trailing_zeros() as usize
    }

    /// Opens the request's `n`th list, and returns its address as the device sees it.
    fn open(&mut self, n: usize) -> Result<u64> {
        let queue = self.queue;
        let list = if *self.long == 0 {
            io_project!(queue.short_lists, [try: usize::from(self.tag)][try: ..])
        } else {
            let begin = self.nth(n) * queue.long_entries;
            io_project!(queue.long_lists, [try: begin..begin + queue.long_entries])
        };

        self.list = Some(list.as_sys_mem());
        Ok(list.dma_address())
    }

    #[inline(always)] // It is the loop.
    fn write_to(list: Option<SysMem<'q, [u64]>>, slot: usize, entry: u64) -> Result {
        io_project!(list.ok_or(EINVAL)?, [try: slot]).write_val(entry.to_le());
        Ok(())
    }
}

impl<R: Regs> prp::Lists for RequestLists<'_, '_, R> {
    #[inline]
    fn begin<E>(&mut self, entries: usize) -> Result<u64, Fault<E>> {
        if entries > SHORT {
            if !prp::fit(entries, self.queue.long_entries, LONG_LISTS) {
                return Err(Fault::TooLong);
            }
            let lists = self.queue.take_lists(prp::lists(entries));
            *self.long = lists.ok_or(Fault::NoLists)?;
        }
        self.open(0).map_err(|_| Fault::TooLong)
    }

    #[inline(always)] // It is the loop.
    fn write(&mut self, slot: usize, entry: u64) {
        // No list is longer than its entries.
        let _ = Self::write_to(self.list, slot, entry);
    }

    fn link<E>(&mut self, list: usize) -> Result<(), Fault<E>> {
        let full = self.list;

        self.open(list)
            .and_then(|next| Self::write_to(full, prp::ENTRIES - 1, next))
            .map_err(|_| Fault::TooLong)
    }
}
