// SPDX-License-Identifier: GPL-2.0

//! A controller that a thread plays, and that lies as it is told to.
//!
//! It has registers, behind the same seam as those on the PCI bus, and takes commands from the
//! driver's queues. It moves no data but the answers to Identify.

use crate::{
    command::{
        admin,
        io,
        RawCommand, //
    },
    identify::Page,
    nvme::Interrupts,
    queue::Queue,
    regs::{
        self,
        Bar,
        Regs,
        DOORBELLS, //
    }, //
};
use kernel::{
    io::{
        io_project,
        Io,
        IoBackend,
        IoBase,
        IoCapable,
        Region, //
    },
    new_mutex,
    new_spinlock,
    prelude::*,
    ptr::KnownSize,
    sync::{
        Arc,
        Mutex,
        SpinLock, //
    },
    task::{
        kthread::Thread,
        Pid, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// The most queue pairs, the admin queues among them.
const QUEUES: usize = 3;
/// A BAR with registers, and doorbells four bytes apart, and no more.
const BAR_LEN: usize = DOORBELLS + QUEUES * 8;

/// How a command on an I/O queue is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// As it should be.
    Normal,
    /// Not at all.
    Never,
    /// Two times.
    Twice,
    /// With the phase of an entry that was there before.
    WrongPhase,
    /// With a submission queue head that is not in the queue.
    WrongHead,
    /// After an answer to a command identifier that is not outstanding.
    AfterUnknown(u16),
    /// After an error for the command that had the tag before.
    AfterStale,
    /// With an error.
    Status(u16),
}

/// What the controller is, and how it lies.
#[derive(Clone, Copy)]
pub(crate) struct Script {
    pub(crate) cap_lo: u32,
    pub(crate) cap_hi: u32,
    /// Never ready when enabled.
    pub(crate) never_ready: bool,
    /// Ready when disabled, too.
    pub(crate) always_ready: bool,
    /// Fails for good when enabled.
    pub(crate) fatal: bool,
    /// All ones in all registers: pulled out.
    pub(crate) gone: bool,
    pub(crate) mdts: u8,
    /// Takes SGL descriptors.
    pub(crate) sgls: bool,
    /// Looks for doorbells in memory, if Doorbell Buffer Config has this status and it is 0.
    pub(crate) shadow: Option<u16>,
    /// Asks for each doorbell in a register all the same.
    pub(crate) sleepy: bool,
    pub(crate) nsze: u64,
    pub(crate) lbads: u8,
    /// Formats that all namespaces may have, and that only some may have, less one all together.
    pub(crate) formats: (u8, u8),
    /// Which of them the namespaces have.
    pub(crate) flbas: u8,
    /// What they can: bit 0 is that they cannot be written to.
    pub(crate) nsattr: u8,
    /// The active namespaces that it claims to have.
    pub(crate) list: [u32; 4],
    /// The highest namespace identifier that it claims to have.
    pub(crate) namespaces: u32,
    /// The command sets of the first namespaces, where it has more than one.
    pub(crate) command_sets: [Option<u8>; 4],
    /// The status of Identify.
    pub(crate) identify_status: u16,
    /// The status of Identify Active Namespaces, if it is another.
    pub(crate) list_status: u16,
    /// The status with which queues are deleted; never, if there is none.
    pub(crate) delete_status: Option<u16>,
    /// Whether admin commands are answered.
    pub(crate) admin_answers: bool,
    /// How often Identify Namespace of this namespace is not answered.
    pub(crate) silent: (u32, u32),
    /// Aborts are not answered.
    pub(crate) silent_aborts: bool,
    /// Whether an abort brings back the command, with this status.
    pub(crate) aborts: Option<u16>,
    /// How the next commands on I/O queues are answered; then all are as they should be.
    pub(crate) answers: [Answer; 4],
    /// Never ready again after it was disabled.
    pub(crate) dies_at_reset: bool,
    /// Its interrupts come when this is over.
    pub(crate) late_irqs: bool,
    /// Whoever keeps an interrupt from being handled waits a little.
    pub(crate) slow_irq_off: bool,
    /// How many answers it gives yet, on the first I/O queue, to commands that nobody sent.
    pub(crate) unasked: u32,
    /// Its controller memory buffer, as the registers say it once they tell.
    pub(crate) cmbsz: u32,
    pub(crate) cmbloc: u32,
    /// It does not take the buffer's address.
    pub(crate) cmb_refused: bool,
    /// Its persistent memory region, and what becomes of it when it is enabled.
    pub(crate) pmrcap: u32,
    pub(crate) pmrsts: u32,
    /// Where its BAR 2 and 4 are.
    pub(crate) bars: u64,
    /// The length of its BAR 0.
    pub(crate) bar0: usize,
    /// Controller ready timeouts.
    pub(crate) crto: u32,
    /// Its memory means what it did when the controller is disabled, too.
    pub(crate) keeps_memory: bool,
    /// When the driver considers a disk's request, and an admin command, lost: in milliseconds.
    pub(crate) timeouts: (u32, u32),
    /// The I/O queues that the driver is told to use.
    pub(crate) io_queues: u32,
    /// Its memory cannot be opened.
    pub(crate) not_opened: bool,
}

/// Time-outs with a controller that answers: as long as those of real ones, as the machine may be
/// slow.
pub(crate) const PATIENT: (u32, u32) = (30_000, 60_000);

/// The length of BAR 2 and 4.
pub(crate) const MEMORY_LEN: u64 = 16 << 20;

impl Default for Script {
    fn default() -> Self {
        Self {
            // 64 entries; twice 500 ms at most.
            cap_lo: 1 << 24 | 1 << 16 | 63,
            // The NVM command set.
            cap_hi: 1 << 5,
            never_ready: false,
            always_ready: false,
            fatal: false,
            gone: false,
            mdts: 5,
            sgls: false,
            shadow: None,
            sleepy: false,
            nsze: 2048,
            lbads: 9,
            formats: (0, 0),
            flbas: 0,
            nsattr: 0,
            list: [1, 0, 0, 0],
            namespaces: 8,
            command_sets: [Some(0); 4],
            identify_status: 0,
            list_status: 0,
            delete_status: Some(0),
            admin_answers: true,
            silent: (0, 0),
            silent_aborts: false,
            aborts: None,
            answers: [Answer::Normal; 4],
            dies_at_reset: false,
            late_irqs: false,
            slow_irq_off: false,
            unasked: 0,
            // 4 units of 1 MiB, for data both ways, one unit from the start of BAR 2 on.
            cmbsz: 4 << 12 | 2 << 8 | 3 << 3,
            cmbloc: 1 << 12 | 2,
            cmb_refused: false,
            // BAR 4, for data both ways and commands.
            pmrcap: 1 << 24 | 4 << 5 | 3 << 3,
            pmrsts: 0,
            bars: 0x12_3450_0000,
            bar0: BAR_LEN,
            crto: 0,
            keeps_memory: false,
            timeouts: PATIENT,
            io_queues: 1,
            not_opened: false,
        }
    }
}

impl Script {
    /// Bytes between doorbells.
    fn stride(&self) -> usize {
        4 << (self.cap_hi & 0xf)
    }
}

/// A queue pair as the controller sees it.
#[derive(Clone, Copy, Default)]
struct Pair {
    /// There is a submission queue.
    created: bool,
    /// There is a completion queue.
    cq_created: bool,
    sq_head: u32,
    cq_tail: u32,
    /// The phase is that of the second, fourth, ... pass.
    odd: bool,
    /// The command that was answered last.
    last: u16,
}

/// The interrupt of a queue pair, as the interrupt controller sees it.
#[derive(Clone, Copy, Default)]
struct Line {
    /// How often it is kept from being handled, as `disable_irq()` counts.
    off: u32,
    /// It is being handled.
    handled: bool,
    /// It came while it was off.
    pending: bool,
    /// Who handles it, or keeps it off.
    task: Pid,
}

struct State {
    script: Script,
    /// Registers below the doorbells that keep what is written.
    cc: u32,
    csts: u32,
    aqa: u32,
    asq: [u32; 2],
    acq: [u32; 2],
    cmbmsc: [u32; 2],
    pmrctl: u32,
    pmrmsc: [u32; 2],
    doorbells: [u32; QUEUES * 2],
    pairs: [Pair; QUEUES],
    lines: [Line; QUEUES],
    /// A completion to be posted yet: queue, command and status.
    late: Option<(u16, u16, u16)>,
    /// It looks for doorbells in memory.
    shadowed: bool,
    /// Who disabled it when it was enabled.
    disabled_by: Option<Pid>,
    counts: Counts,
}

/// What the controller has seen.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    /// It was enabled.
    pub(crate) enabled: u32,
    /// It was told that its power goes.
    pub(crate) shutdowns: u32,
    /// I/O queues, submission and completion counted each, that it had when it was told so.
    pub(crate) queues_at_shutdown: u32,
    /// Commands to delete a queue.
    pub(crate) deletions: u32,
    /// Abort commands.
    pub(crate) aborts: u32,
    /// Identify Namespace commands that it did not answer.
    pub(crate) silences: u32,
    /// I/O queues that it was asked for.
    pub(crate) queues: u32,
    /// How often the driver looked at the status of the persistent memory region.
    pub(crate) pmrsts_reads: u32,
    /// Flush commands.
    pub(crate) flushes: u32,
    /// Write commands, and the blocks of all.
    pub(crate) writes: u32,
    pub(crate) blocks: u32,
    /// Those that have an SGL descriptor.
    pub(crate) sgls: u32,
    /// Doorbells of I/O submission queues, in registers.
    pub(crate) rings: u32,
    /// Doorbell Buffer Config commands.
    pub(crate) buffers: u32,
    /// It was cut off from memory.
    pub(crate) isolated: u32,
    /// Ranges of its memory that were opened to other devices.
    pub(crate) opened: u32,
    /// Those of them that were closed again.
    pub(crate) closed: u32,
    /// Those that were open when it was told that its power goes, or disabled for good.
    pub(crate) open_at_shutdown: u32,
    /// What was opened last: BAR, start and length.
    pub(crate) range: (u32, u64, u64),
    /// By which addresses commands mean its memory: buffer and region. 0: by none.
    pub(crate) addresses: (u64, u64),
    /// Commands that were sent to it when it had been pulled out.
    pub(crate) unheard: u32,
    /// The driver did something that a driver must not do.
    pub(crate) wrongs: u32,
}

/// The controller.
#[pin_data]
pub(crate) struct Fake {
    #[pin]
    state: SpinLock<State>,
}

impl Fake {
    pub(crate) fn new(script: Script) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock!(State {
                    script,
                    cc: 0,
                    csts: 0,
                    aqa: 0,
                    asq: [0; 2],
                    acq: [0; 2],
                    cmbmsc: [0; 2],
                    pmrctl: 0,
                    pmrmsc: [0; 2],
                    doorbells: [0; QUEUES * 2],
                    pairs: [Pair::default(); QUEUES],
                    lines: [Line::default(); QUEUES],
                    late: None,
                    shadowed: false,
                    disabled_by: None,
                    counts: Counts::default(),
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// Changes how it lies from now on.
    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.state.lock().script);
    }

    /// Is reset by somebody who does not tell the driver.
    pub(crate) fn lose_all(&self) {
        let mut state = self.state.lock();

        (state.cc, state.csts) = (0, 0);
        state.shadowed = false;
        state.pairs = [Pair::default(); QUEUES];
    }

    /// How it lies.
    pub(crate) fn told(&self) -> Script {
        self.state.lock().script
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    fn read(&self, offset: usize) -> u32 {
        let mut state = self.state.lock();

        if state.script.gone {
            return u32::MAX;
        }
        match offset {
            0x00 => state.script.cap_lo,
            0x04 => state.script.cap_hi,
            0x08 => 2 << 16,
            0x14 => state.cc,
            0x1c => state.csts,
            0x24 => state.aqa,
            // They tell when they are told to, or if they always did.
            0x38 if state.tells() => state.script.cmbloc,
            0x3c if state.tells() => state.script.cmbsz,
            0x58 => u32::from(state.script.cmb_refused),
            0x68 => state.script.crto,
            0xe00 => state.script.pmrcap,
            0xe08 if state.pmrctl == 1 => {
                state.counts.pmrsts_reads += 1;
                state.script.pmrsts
            }
            // Not ready.
            0xe08 => 1 << 8,
            _ => 0,
        }
    }

    fn write(&self, offset: usize, value: u32) {
        let mut state = self.state.lock();

        if state.script.gone {
            // Submission queues have the even ones.
            let doorbell = offset
                .checked_sub(DOORBELLS)
                .map(|at| at / state.script.stride());
            state.counts.unheard += u32::from(doorbell.is_some_and(|index| index % 2 == 0));
            return;
        }
        match offset {
            0x14 => state.configure(value),
            0x24 => state.aqa = value,
            0x28 => state.asq[0] = value,
            0x2c => state.asq[1] = value,
            0x30 => state.acq[0] = value,
            0x34 => state.acq[1] = value,
            0x50 => {
                state.cmbmsc[0] = value;
                state.counts.addresses.0 = match value & 2 {
                    0 => 0,
                    _ => u64::from(state.cmbmsc[1]) << 32 | u64::from(value & !0xfff),
                };
            }
            0x54 => state.cmbmsc[1] = value,
            0xe04 => state.pmrctl = value,
            0xe14 => {
                state.pmrmsc[0] = value;
                state.counts.addresses.1 = match value & 2 {
                    0 => 0,
                    _ => u64::from(state.pmrmsc[1]) << 32 | u64::from(value & !0xfff),
                };
            }
            0xe18 => state.pmrmsc[1] = value,
            _ => {
                let index = offset.wrapping_sub(DOORBELLS) / state.script.stride();
                if index % 2 != 0 {
                    state.consumed(index / 2);
                } else if index != 0 {
                    state.counts.rings += 1;
                }
                match state.doorbells.get_mut(index) {
                    Some(doorbell) => *doorbell = value,
                    None => state.counts.wrongs += 1,
                }
            }
        }
    }

    /// Takes the commands of `queue` that it was told of, and answers them. Sleeps.
    fn serve(&self, queue: &Queue<'_, FakeRegs>) {
        let qid = usize::from(queue.qid());

        loop {
            let slot = {
                let mut state = self.state.lock();
                let tail = match state.shadowed && qid != 0 {
                    true => state.shadow_tail(queue),
                    false => state.doorbells[qid * 2],
                };
                let pair = &mut state.pairs[qid];
                if !pair.created || pair.sq_head == tail {
                    return;
                }
                let slot = pair.sq_head;
                pair.sq_head = (slot + 1) % queue.rings().entries;
                slot
            };
            let Ok(raw) = Self::fetch(queue, slot) else {
                self.state.lock().counts.wrongs += 1;
                return;
            };
            self.execute(queue, raw);
        }
    }

    fn fetch(queue: &Queue<'_, FakeRegs>, slot: u32) -> Result<RawCommand> {
        Ok(io_project!(queue.sq, [try: slot as usize])
            .copy_read()
            .map(u64::from_le))
    }

    fn execute(&self, queue: &Queue<'_, FakeRegs>, raw: RawCommand) {
        let opcode = raw[0] as u8;
        let cid = (raw[0] >> 16) as u16;
        let (cdw10, cdw11) = (raw[5] as u32, (raw[5] >> 32) as u32);

        if queue.qid() != 0 {
            if opcode == io::FLUSH {
                self.state.lock().counts.flushes += 1;
            }
            if opcode == io::WRITE {
                let mut state = self.state.lock();

                state.counts.writes += 1;
                state.counts.blocks += 1 + (raw[6] & 0xffff) as u32;
                // A descriptor says how long the data are; the other flags are none of ours.
                let bytes = 512 * (1 + (raw[6] & 0xffff));
                let right = match raw[0] >> 8 & 0xff {
                    0 => raw[3] != 0,
                    0x40 => {
                        state.counts.sgls += 1;
                        state.script.sgls && raw[3] != 0 && raw[4] == bytes
                    }
                    _ => false,
                };
                if !right {
                    state.counts.wrongs += 1;
                }
            }
            // There are no data: what is read fails, and is not read again.
            const UNREADABLE: u16 = 1 << 14 | 0x281;
            return self.answer(queue, cid, if opcode == io::READ { UNREADABLE } else { 0 });
        }

        let script = self.state.lock().script;
        if !script.admin_answers {
            return;
        }
        let (status, result) = match opcode {
            admin::IDENTIFY => {
                if raw[3] != queue.page.dma_address() {
                    self.state.lock().counts.wrongs += 1;
                }
                let cns = cdw10 as u8;
                let nsid = (raw[0] >> 32) as u32;
                if cns == 0 && script.silent.0 == nsid && script.silent.1 != 0 {
                    let mut state = self.state.lock();
                    state.script.silent.1 -= 1;
                    state.counts.silences += 1;
                    return;
                }
                Self::identify(queue, &script, cns, nsid);
                match cns {
                    0x02 if script.list_status != 0 => (script.list_status, 0),
                    _ => (script.identify_status, 0),
                }
            }
            admin::SET_FEATURES => {
                self.state.lock().counts.queues = 1 + (cdw11 & 0xffff);
                (0, cdw11)
            }
            admin::CREATE_CQ | admin::CREATE_SQ => {
                (self.state.lock().create_queue(opcode, cdw10 as u16), 0)
            }
            admin::DELETE_CQ | admin::DELETE_SQ => {
                let mut state = self.state.lock();

                state.counts.deletions += 1;
                match script.delete_status {
                    Some(0) => (state.delete_queue(opcode, cdw10 as u16), 0),
                    Some(status) => (status, 0),
                    None => return,
                }
            }
            admin::DOORBELL_BUFFERS => {
                let mut state = self.state.lock();
                let told = queue.ctrl().shadow.as_ref().map(|s| s.addresses());

                // Nobody asks one that cannot.
                state.counts.wrongs += u32::from(script.shadow.is_none());
                state.counts.wrongs += u32::from(told != Some([raw[3], raw[4]]));
                state.counts.buffers += 1;
                state.shadowed = script.shadow == Some(0);
                (script.shadow.unwrap_or(1), 0)
            }
            admin::ABORT => {
                let mut state = self.state.lock();
                state.counts.aborts += 1;
                if script.silent_aborts {
                    return;
                }
                state.late = script
                    .aborts
                    .map(|status| (cdw10 as u16, (cdw10 >> 16) as u16, status));
                (0, u32::from(script.aborts.is_none()))
            }
            _ => (0x001, 0),
        };

        self.post(queue, cid, status, result, true, None);
    }

    /// Answers command `cid` of an I/O queue, as the script says.
    fn answer(&self, queue: &Queue<'_, FakeRegs>, cid: u16, status: u16) {
        let (how, last) = {
            let mut state = self.state.lock();
            let how = state.script.answers[0];
            if status == 0 {
                state.script.answers.rotate_left(1);
                state.script.answers[3] = Answer::Normal;
            }
            let pair = &mut state.pairs[usize::from(queue.qid())];
            let last = pair.last;
            pair.last = cid;
            (if status == 0 { how } else { Answer::Normal }, last)
        };
        let good = |cid, status| self.post(queue, cid, status, 0, true, None);

        match how {
            Answer::Normal => good(cid, status),
            Answer::Never => (),
            Answer::Twice => {
                good(cid, status);
                good(cid, status);
            }
            Answer::WrongPhase => self.post(queue, cid, status, 0, false, None),
            Answer::WrongHead => self.post(queue, cid, status, 0, true, Some(0xfff0)),
            Answer::AfterUnknown(other) => {
                good(other, status);
                good(cid, status);
            }
            Answer::AfterStale => {
                good(last, 0x281);
                good(cid, status);
            }
            Answer::Status(status) => good(cid, status),
        }
    }

    /// Posts the completion that is late, if there is one.
    fn post_late(&self, queues: &[Arc<Queue<'_, FakeRegs>>]) {
        let late = self.state.lock().late.take();

        if let Some((qid, cid, status)) = late {
            if let Some(queue) = queues.iter().find(|queue| queue.qid() == qid) {
                self.post(queue, cid, status, 0, true, None);
            }
        }
    }

    /// Posts the answers that nobody asked for, as far as there is room.
    fn post_unasked(&self, queues: &[Arc<Queue<'_, FakeRegs>>]) {
        let Some(queue) = queues.iter().find(|queue| queue.qid() == 1) else {
            return;
        };

        loop {
            {
                let mut state = self.state.lock();
                let next = (state.pairs[1].cq_tail + 1) % queue.rings().entries;
                if state.script.unasked == 0 || next == state.doorbells[3] {
                    return;
                }
                state.script.unasked -= 1;
            }
            // A command identifier that is never used.
            self.post(queue, u16::MAX, 0, 0, true, None);
        }
    }

    /// How many answers that nobody asks for are to come yet.
    pub(crate) fn unasked(&self) -> u32 {
        self.state.lock().script.unasked
    }

    /// Has the interrupt of `queue` handled, unless it is off.
    fn interrupt(&self, queue: &Queue<'_, FakeRegs>) {
        let line = usize::from(queue.qid());

        {
            let mut state = self.state.lock();
            let late = state.script.late_irqs;
            let line = &mut state.lines[line];
            line.pending = late || line.off != 0;
            if line.pending {
                return;
            }
            line.handled = true;
            line.task = current!().pid();
        }
        queue.process();
        self.state.lock().lines[line].handled = false;
    }

    /// Has those interrupts handled that came while they were off, and are not any more.
    fn interrupt_late(&self, queues: &[Arc<Queue<'_, FakeRegs>>]) {
        for queue in queues {
            if self.state.lock().lines[usize::from(queue.qid())].pending {
                self.interrupt(queue);
            }
        }
    }

    /// Writes a completion, and interrupts.
    fn post(
        &self,
        queue: &Queue<'_, FakeRegs>,
        cid: u16,
        status: u16,
        result: u32,
        phase: bool,
        head: Option<u32>,
    ) {
        let (slot, entry) = {
            let mut state = self.state.lock();
            let pair = &mut state.pairs[usize::from(queue.qid())];
            let phase = phase != pair.odd;
            let entry = [
                result,
                0,
                u32::from(queue.qid()) << 16 | head.unwrap_or(pair.sq_head),
                u32::from(status) << 17 | u32::from(phase) << 16 | u32::from(cid),
            ];
            let slot = pair.cq_tail;
            // What has the wrong phase was not posted.
            if phase != pair.odd {
                pair.cq_tail += 1;
                if pair.cq_tail == queue.rings().entries {
                    pair.cq_tail = 0;
                    pair.odd = !pair.odd;
                }
            }
            (slot, entry.map(u32::to_le))
        };

        if Self::write_completion(queue, slot, entry).is_err() {
            self.state.lock().counts.wrongs += 1;
        }
        self.interrupt(queue);
    }

    fn write_completion(queue: &Queue<'_, FakeRegs>, slot: u32, entry: [u32; 4]) -> Result {
        io_project!(queue.cq, [try: slot as usize]).copy_write(entry);
        Ok(())
    }

    fn identify(queue: &Queue<'_, FakeRegs>, script: &Script, cns: u8, nsid: u32) {
        let Ok(mut page) = KBox::init(pin_init::init_zeroed::<Page>(), GFP_KERNEL) else {
            return;
        };
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in page.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };

        match cns {
            // One that is not active is all zeroes.
            0x00 if !script.list.contains(&nsid) => (),
            0x00 => {
                // Only the format that they have is one.
                let index = usize::from(script.flbas & 0xf | script.flbas >> 1 & 0x30);

                put(0, &script.nsze.to_le_bytes());
                put(25, &[script.formats.0, script.flbas]);
                put(82, &[script.formats.1]);
                put(99, &[script.nsattr]);
                put(130 + 4 * index, &[script.lbads]);
            }
            0x01 => {
                put(4, b"FAKE                ");
                put(24, b"A controller that lies                  ");
                put(64, b"0       ");
                put(77, &[script.mdts]);
                put(512, &[0x66, 0x44]);
                put(516, &script.namespaces.to_le_bytes());
                put(256, &[0, u8::from(script.shadow.is_some())]);
                put(525, &[1]);
                put(536, &[u8::from(script.sgls)]);
            }
            0x03 => {
                // A UUID, and then the command set.
                put(0, &[3, 16]);
                if let Some(&Some(set)) = script.command_sets.get(nsid.wrapping_sub(1) as usize) {
                    put(20, &[4, 1, 0, 0, set]);
                }
            }
            _ => {
                for (i, id) in script.list.iter().enumerate() {
                    put(i * 4, &id.to_le_bytes());
                }
            }
        }
        queue.page.copy_from_slice(&page[..]);
    }
}

impl State {
    /// The driver says that it consumed what the completion queue `qid` held. It is the only one
    /// who does if it handles the interrupt of the queue, or if it alone keeps it off.
    fn consumed(&mut self, qid: usize) {
        let alone = self
            .lines
            .get(qid)
            .is_some_and(|line| line.task == current!().pid() && (line.handled || line.off == 1));

        self.counts.wrongs += u32::from(!alone);
    }

    /// The tail of the submission queue, as memory has it. It is asked for in the register too, if
    /// it is sleepy.
    fn shadow_tail(&mut self, queue: &Queue<'_, FakeRegs>) -> u32 {
        let offset = regs::doorbell(queue.qid(), self.script.stride(), false);
        let shadow = queue.ctrl().shadow.as_ref();
        let tail = shadow.and_then(|shadow| shadow.doorbell(offset).ok());

        if let (Some(shadow), Some(tail)) = (shadow, tail) {
            // What was answered last is what it waits behind; or nothing that will come.
            let event = match self.script.sleepy {
                true => tail,
                false => tail.wrapping_sub(2),
            };
            self.counts.wrongs += u32::from(shadow.set_event(offset, event).is_err());
        }
        tail.unwrap_or_else(|| {
            self.counts.wrongs += 1;
            0
        })
    }

    /// Creates a queue, and returns the status of the command.
    fn create_queue(&mut self, opcode: u8, qid: u16) -> u16 {
        const INVALID_CQ: u16 = 0x100;
        const INVALID_QID: u16 = 0x101;

        match self.pairs.get_mut(usize::from(qid)) {
            Some(pair) if opcode == admin::CREATE_CQ => pair.cq_created = true,
            Some(pair) if pair.cq_created => pair.created = true,
            Some(_) => return INVALID_CQ,
            None => return INVALID_QID,
        }
        0
    }

    /// Whether the registers say where the controller memory buffer is.
    fn tells(&self) -> bool {
        self.script.cap_hi & 1 << 25 == 0 || self.cmbmsc[0] & 1 != 0
    }

    /// Deletes a queue, and returns the status of the command.
    fn delete_queue(&mut self, opcode: u8, qid: u16) -> u16 {
        const INVALID_QID: u16 = 0x101;
        const INVALID_DELETION: u16 = 0x10c;

        match self.pairs.get_mut(usize::from(qid)).filter(|_| qid != 0) {
            Some(pair) if opcode == admin::DELETE_SQ && pair.created => pair.created = false,
            Some(pair) if opcode == admin::DELETE_CQ && pair.created => {
                self.counts.wrongs += 1;
                return INVALID_DELETION;
            }
            Some(pair) if opcode == admin::DELETE_CQ && pair.cq_created => pair.cq_created = false,
            _ => {
                self.counts.wrongs += 1;
                return INVALID_QID;
            }
        }
        0
    }

    /// The driver wrote the controller configuration.
    fn configure(&mut self, value: u32) {
        const EN: u32 = 1;
        const SHN: u32 = 3 << 14;
        const RDY: u32 = 1;
        const CFS: u32 = 2;
        const SHST_COMPLETE: u32 = 2 << 2;
        let (was, is) = (self.cc & EN != 0, value & EN != 0);

        self.cc = value;
        if value & SHN != 0 {
            self.counts.shutdowns += 1;
            self.counts.open_at_shutdown += self.counts.opened - self.counts.closed;
            for pair in self.pairs.iter().skip(1) {
                self.counts.queues_at_shutdown +=
                    u32::from(pair.created) + u32::from(pair.cq_created);
            }
            self.csts |= SHST_COMPLETE;
        }
        if is && !was {
            self.counts.enabled += 1;
            // Who resets it is one thread.
            if self.disabled_by.is_some_and(|pid| pid != current!().pid()) {
                self.counts.wrongs += 1;
            }
            self.csts = if self.script.fatal {
                CFS
            } else if self.script.never_ready {
                0
            } else {
                RDY
            };
            self.doorbells = [0; QUEUES * 2];
            self.pairs = [Pair::default(); QUEUES];
            self.pairs[0].created = self.csts & RDY != 0;
        }
        if !is {
            self.shadowed = false;
            self.pairs = [Pair::default(); QUEUES];
            if !self.script.keeps_memory {
                self.cmbmsc = [0; 2];
                self.pmrctl = 0;
                self.pmrmsc = [0; 2];
                self.counts.addresses = (0, 0);
            }
            if was {
                self.disabled_by = Some(current!().pid());
            }
            self.csts = if self.script.always_ready { RDY } else { 0 };
            if was && self.script.dies_at_reset {
                self.script.never_ready = true;
            }
        }
    }
}

/// The controller's registers as the driver has them.
pub(crate) struct FakeRegs(pub(crate) Arc<Fake>);

impl Regs for FakeRegs {
    type Backend = FakeBackend;
    type IrqOff<'r> = IrqOff<'r>;

    fn io(&self) -> FakeView<'_, Region<DOORBELLS>> {
        FakeView {
            fake: &self.0,
            ptr: Region::ptr_from_raw_parts_mut(
                core::ptr::null_mut(),
                self.0.state.lock().script.bar0,
            ),
        }
    }

    fn irq_off(&self, vector: u32) -> IrqOff<'_> {
        IrqOff::new(&self.0, vector as usize)
    }

    fn isolate(&self) {
        self.0.state.lock().counts.isolated += 1;
    }

    fn bar(&self, bar: u32) -> Option<Bar> {
        let Script { bars, bar0, .. } = self.0.state.lock().script;
        let (address, len) = match bar {
            0 => (0xf000_0000, bar0 as u64),
            2 => (bars, MEMORY_LEN),
            4 => (bars + MEMORY_LEN, MEMORY_LEN),
            _ => return None,
        };

        Some(Bar { address, len })
    }

    type Opened = Opened;

    fn open(&self, bar: u32, start: u64, len: u64) -> Result<Opened> {
        let mut state = self.0.state.lock();

        if state.script.not_opened {
            return Err(ENOMEM);
        }
        state.counts.opened += 1;
        state.counts.range = (bar, start, len);
        Ok(Opened(self.0.clone()))
    }
}

/// A range of the controller's memory that is open to other devices.
pub(crate) struct Opened(Arc<Fake>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.state.lock().counts.closed += 1;
    }
}

/// Keeps an interrupt from being handled, as `disable_irq()` does: whoever handles it has returned,
/// and it nests.
pub(crate) struct IrqOff<'r> {
    fake: &'r Fake,
    line: usize,
}

impl<'r> IrqOff<'r> {
    fn new(fake: &'r Fake, line: usize) -> Self {
        let slow = {
            let mut state = fake.state.lock();
            state.lines[line].off += 1;
            state.script.slow_irq_off
        };

        while fake.state.lock().lines[line].handled {
            fsleep(Delta::from_micros(10));
        }
        if slow {
            fsleep(Delta::from_millis(20));
        }
        fake.state.lock().lines[line].task = current!().pid();
        Self { fake, line }
    }
}

impl Drop for IrqOff<'_> {
    fn drop(&mut self) {
        self.fake.state.lock().lines[self.line].off -= 1;
    }
}

/// A part of the registers. The pointer is an offset.
pub(crate) struct FakeView<'a, T: ?Sized> {
    fake: &'a Fake,
    ptr: *mut T,
}

impl<T: ?Sized> Copy for FakeView<'_, T> {}
impl<T: ?Sized> Clone for FakeView<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<'a, T: ?Sized + KnownSize> IoBase<'a> for FakeView<'a, T> {
    type Backend = FakeBackend;
    type Target = T;

    fn as_view(self) -> Self {
        self
    }
}

/// Reads and writes the registers of a [`Fake`].
pub(crate) struct FakeBackend;

impl IoBackend for FakeBackend {
    type View<'a, T: ?Sized + KnownSize> = FakeView<'a, T>;

    fn as_ptr<'a, T: ?Sized + KnownSize>(view: FakeView<'a, T>) -> *mut T {
        view.ptr
    }

    unsafe fn project_view<'a, T: ?Sized + KnownSize, U: ?Sized + KnownSize>(
        view: Self::View<'a, T>,
        ptr: *mut U,
    ) -> Self::View<'a, U> {
        FakeView {
            fake: view.fake,
            ptr,
        }
    }
}

impl IoCapable<u32> for FakeBackend {
    fn io_read(view: FakeView<'_, u32>) -> u32 {
        view.fake.read(view.ptr.addr())
    }

    fn io_write(view: FakeView<'_, u32>, value: u32) {
        view.fake.write(view.ptr.addr(), value);
    }
}

type Queues<'a> = Mutex<KVec<Arc<Queue<'a, FakeRegs>>>>;

/// The thread that plays the controller, which is its interrupts as well.
pub(crate) struct FakeIrqs<'a> {
    /// Dropped first: the queues are used by the thread.
    _thread: Thread<'a>,
    queues: Arc<Queues<'a>>,
}

impl<'a> FakeIrqs<'a> {
    pub(crate) fn new(fake: Arc<Fake>) -> Result<Self> {
        let queues: Arc<Queues<'a>> = Arc::pin_init(new_mutex!(KVec::new()), GFP_KERNEL)?;
        let served = queues.clone();

        // SAFETY: It is dropped with `self`, which no test forgets.
        let thread = unsafe {
            Thread::spawn(c"rnvme_fake", move |stop| {
                while !stop.should_stop() {
                    let queues = served.lock();
                    for queue in queues.iter() {
                        fake.serve(queue);
                    }
                    fake.post_late(&queues);
                    fake.post_unasked(&queues);
                    fake.interrupt_late(&queues);
                    drop(queues);
                    fsleep(Delta::from_micros(200));
                }
            })
        }?;

        Ok(Self {
            _thread: thread,
            queues,
        })
    }
}

impl<'a> Interrupts<'a, FakeRegs> for FakeIrqs<'a> {
    fn vectors(&self) -> u32 {
        // CAST: A constant.
        QUEUES as u32
    }

    fn attach(&mut self, queue: Arc<Queue<'a, FakeRegs>>) -> Result {
        self.queues.lock().push(queue, GFP_KERNEL)?;
        Ok(())
    }
}
