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
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
        Arc,
        Mutex,
        SpinLock, //
    },
    task::kthread::Thread,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// The most queue pairs, the admin queues among them.
const QUEUES: usize = 3;
/// The BAR: registers, and doorbells four bytes apart.
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
    pub(crate) nsze: u64,
    pub(crate) lbads: u8,
    /// The active namespaces that it claims to have.
    pub(crate) list: [u32; 4],
    /// The status of Identify.
    pub(crate) identify_status: u16,
    /// Whether admin commands are answered.
    pub(crate) admin_answers: bool,
    /// Whether an abort brings back the command, with this status.
    pub(crate) aborts: Option<u16>,
    /// How the next commands on I/O queues are answered; then all are as they should be.
    pub(crate) answers: [Answer; 4],
    /// Never ready again after it was disabled.
    pub(crate) dies_at_reset: bool,
}

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
            nsze: 2048,
            lbads: 9,
            list: [1, 0, 0, 0],
            identify_status: 0,
            admin_answers: true,
            aborts: None,
            answers: [Answer::Normal; 4],
            dies_at_reset: false,
        }
    }
}

/// A queue pair as the controller sees it.
#[derive(Clone, Copy, Default)]
struct Pair {
    created: bool,
    sq_head: u32,
    cq_tail: u32,
    /// The phase is that of the second, fourth, ... pass.
    odd: bool,
    /// The command that was answered last.
    last: u16,
}

struct State {
    script: Script,
    /// Registers below the doorbells that keep what is written.
    cc: u32,
    csts: u32,
    aqa: u32,
    asq: [u32; 2],
    acq: [u32; 2],
    doorbells: [u32; QUEUES * 2],
    pairs: [Pair; QUEUES],
    /// A completion to be posted yet: queue, command and status.
    late: Option<(u16, u16, u16)>,
    counts: Counts,
}

/// What the controller has seen.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    /// It was enabled.
    pub(crate) enabled: u32,
    /// It was told that its power goes.
    pub(crate) shutdowns: u32,
    /// Abort commands.
    pub(crate) aborts: u32,
    /// Flush commands.
    pub(crate) flushes: u32,
    /// It was cut off from memory.
    pub(crate) isolated: u32,
    /// The driver did something that a driver must not do.
    pub(crate) wrongs: u32,
}

/// The controller.
#[pin_data]
pub(crate) struct Fake {
    #[pin]
    state: SpinLock<State>,
    /// Held where the completion queues are consumed: the interrupt is being handled, or is off.
    #[pin]
    irq: Mutex<()>,
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
                    doorbells: [0; QUEUES * 2],
                    pairs: [Pair::default(); QUEUES],
                    late: None,
                    counts: Counts::default(),
                }),
                irq <- new_mutex!(()),
            }),
            GFP_KERNEL,
        )
    }

    /// Changes how it lies from now on.
    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.state.lock().script);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    fn read(&self, offset: usize) -> u32 {
        let state = self.state.lock();

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
            _ => 0,
        }
    }

    fn write(&self, offset: usize, value: u32) {
        let mut state = self.state.lock();

        if state.script.gone {
            return;
        }
        match offset {
            0x14 => state.configure(value),
            0x24 => state.aqa = value,
            0x28 => state.asq[0] = value,
            0x2c => state.asq[1] = value,
            0x30 => state.acq[0] = value,
            0x34 => state.acq[1] = value,
            _ => {
                let index = offset.wrapping_sub(DOORBELLS) / 4;
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
                let tail = state.doorbells[qid * 2];
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
                Self::identify(queue, &script, cdw10 as u8);
                (script.identify_status, 0)
            }
            admin::SET_FEATURES => (0, cdw11),
            admin::CREATE_CQ => (0, 0),
            admin::CREATE_SQ => match self.state.lock().pairs.get_mut(cdw10 as u16 as usize) {
                Some(pair) => {
                    pair.created = true;
                    (0, 0)
                }
                None => (0x101, 0),
            },
            admin::ABORT => {
                let mut state = self.state.lock();
                state.counts.aborts += 1;
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
        let _irq = self.irq.lock();
        queue.process();
    }

    fn write_completion(queue: &Queue<'_, FakeRegs>, slot: u32, entry: [u32; 4]) -> Result {
        io_project!(queue.cq, [try: slot as usize]).copy_write(entry);
        Ok(())
    }

    fn identify(queue: &Queue<'_, FakeRegs>, script: &Script, cns: u8) {
        let Ok(mut page) = KBox::init(pin_init::init_zeroed::<Page>(), GFP_KERNEL) else {
            return;
        };
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in page.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };

        match cns {
            0x00 => {
                put(0, &script.nsze.to_le_bytes());
                put(130, &[script.lbads]);
            }
            0x01 => {
                put(4, b"FAKE                ");
                put(24, b"A controller that lies                  ");
                put(64, b"0       ");
                put(77, &[script.mdts]);
                put(512, &[0x66, 0x44]);
                put(516, &8u32.to_le_bytes());
                put(525, &[1]);
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
            self.csts |= SHST_COMPLETE;
        }
        if is && !was {
            self.counts.enabled += 1;
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
            self.pairs = [Pair::default(); QUEUES];
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
    type IrqOff<'r> = Guard<'r, (), MutexBackend>;

    fn io(&self) -> FakeView<'_, Region<DOORBELLS>> {
        FakeView {
            fake: &self.0,
            ptr: Region::ptr_from_raw_parts_mut(core::ptr::null_mut(), BAR_LEN),
        }
    }

    fn irq_off(&self, _vector: u32) -> Self::IrqOff<'_> {
        self.0.irq.lock()
    }

    fn isolate(&self) {
        self.0.state.lock().counts.isolated += 1;
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
