// SPDX-License-Identifier: GPL-2.0

//! By which tests have the driver do what kernel code can: I/O to a list of physical addresses.
//!
//! A line that is written to `rnvme/io` in debugfs is one transfer:
//!
//! ```text
//! <controller> <namespace> read|write <block> <part>...
//! ```
//!
//! with parts `ram:<offset>:<bytes>`, of a buffer that all controllers share, and
//! `mem:<physical address>:<bytes>`, a provider's memory. The write fails as the transfer does, or
//! with `EINTR` if there is a signal: the transfer goes on then.

use crate::{
    api::Way,
    nvme::Nvme,
    regs::Regs, //
};
use core::mem;
use kernel::{
    debugfs,
    new_condvar,
    new_mutex,
    physdma::{
        Part,
        PhysBvec,
        Source,
        Virt, //
    },
    prelude::*,
    str::{
        parse_int::ParseInt,
        BStr, //
    },
    sync::{
        global_lock,
        Arc,
        CondVar,
        Mutex, //
    },
    task::kthread::Thread,
    uaccess::UserSliceReader, //
};

/// Bytes of the buffer that `ram:` parts are of.
const RAM: usize = 1 << 20;

/// The longest line in bytes.
const LINE: usize = 4096;

global_lock! {
    // SAFETY: Initialised when the module is.
    unsafe(uninit) static SHARED: Mutex<Option<Arc<Shared>>> = None;
}

/// What the file and the controllers share.
#[pin_data]
struct Shared {
    ram: KVec<u8>,
    #[pin]
    jobs: Mutex<Jobs>,
    #[pin]
    changed: CondVar,
}

struct Jobs {
    /// The controllers that there are.
    controllers: KVec<u32>,
    next: Next,
}

/// What is to be done: one thing at a time, whose the buffer is.
enum Next {
    Nothing,
    Asked(Job),
    Running,
    /// Nobody waits for it any more.
    Abandoned,
    Done(Result),
}

struct Job {
    controller: u32,
    nsid: u32,
    way: Way,
    lba: u64,
    /// Pieces, and whether each is RAM.
    pieces: KVec<(bool, PhysBvec)>,
}

fn number<T: ParseInt>(text: &str) -> Result<T> {
    T::from_str(BStr::from_bytes(text.as_bytes()))
}

impl Job {
    fn parse(line: &str, ram: &[u8]) -> Result<Self> {
        let mut words = line.split_ascii_whitespace();
        let mut word = || words.next().ok_or(EINVAL);
        let controller = number::<u32>(word()?)?;
        let nsid = number::<u32>(word()?)?;
        let way = match word()? {
            "read" => Way::Read,
            "write" => Way::Write,
            _ => return Err(EINVAL),
        };
        let lba = number::<u64>(word()?)?;
        let mut pieces = KVec::new();

        for part in words {
            let mut fields = part.split(':');
            let mut field = || fields.next().ok_or(EINVAL);
            let kind = field()?;
            let at = field()?;
            let len = number::<u32>(field()?)?;

            match kind {
                "ram" => {
                    let at = number::<usize>(at)?;
                    let end = at.checked_add(len as usize).ok_or(EINVAL)?;
                    let ram = ram.get(at..end).ok_or(EINVAL)?;
                    // SAFETY: It is walked, but not mapped.
                    let mut source = unsafe { Virt::new(ram) }?;
                    while let Some(piece) = source.next() {
                        pieces.push((true, piece), GFP_KERNEL)?;
                    }
                }
                "mem" => {
                    let piece = PhysBvec::new(number(at)?, len).ok_or(EINVAL)?;
                    pieces.push((false, piece), GFP_KERNEL)?;
                }
                _ => return Err(EINVAL),
            }
        }
        Ok(Self {
            controller,
            nsid,
            way,
            lba,
            pieces,
        })
    }

    fn execute<'a, R: Regs + 'a>(&self, nvme: &Nvme<'a, R>) -> Result {
        let mut all = KVec::new();
        for (_, piece) in &self.pieces {
            all.push([*piece], GFP_KERNEL)?;
        }
        let mut parts = KVec::new();
        for ((is_ram, _), piece) in self.pieces.iter().zip(&all) {
            parts.push(
                match is_ram {
                    true => Part::Ram(piece),
                    false => Part::Provider(piece),
                },
                GFP_KERNEL,
            )?;
        }
        nvme.with_disk(self.nsid, |disk| {
            // SAFETY: RAM is of the buffer, which is there until the module goes, and one job at a
            // time is running.
            unsafe { disk.transfer(self.way, self.lba, &parts) }
        })
        .ok_or(ENXIO)?
    }
}

/// What is written to the file.
fn write(shared: &Arc<Shared>, reader: &mut UserSliceReader) -> Result {
    let mut line = KVec::new();
    if reader.len() > LINE {
        return Err(E2BIG);
    }
    reader.clone_reader().read_all(&mut line, GFP_KERNEL)?;
    reader.skip(line.len())?;
    let line = core::str::from_utf8(&line).map_err(|_| EINVAL)?;

    let mut jobs = shared.jobs.lock();
    while !matches!(jobs.next, Next::Nothing) {
        if shared.changed.wait_interruptible(&mut jobs) {
            return Err(EINTR);
        }
    }
    jobs.next = Next::Asked(Job::parse(line, &shared.ram)?);
    shared.changed.notify_all();

    let result = loop {
        match &jobs.next {
            Next::Asked(job) if !jobs.controllers.contains(&job.controller) => break Err(ENODEV),
            Next::Done(result) => break *result,
            _ => (),
        }
        if shared.changed.wait_interruptible(&mut jobs) {
            if matches!(jobs.next, Next::Running) {
                jobs.next = Next::Abandoned;
                return Err(EINTR);
            }
            break Err(EINTR);
        }
    };
    jobs.next = Next::Nothing;
    shared.changed.notify_all();
    result
}

/// Before all else.
pub(crate) fn init() {
    // SAFETY: The module is initialised once.
    unsafe { SHARED.init() };
}

/// The file, and the directory that it is in.
#[pin_data(PinnedDrop)]
pub(crate) struct File {
    #[pin]
    _file: debugfs::File<Arc<Shared>>,
    _dir: debugfs::Dir,
}

#[pinned_drop]
impl PinnedDrop for File {
    fn drop(self: Pin<&mut Self>) {
        // What is static is not dropped.
        let shared = SHARED.lock().take();

        drop(shared);
    }
}

/// Makes the file, before the first controller comes. It must be dropped after the last has gone.
pub(crate) fn file() -> impl PinInit<File, Error> {
    pin_init::pin_init_scope(|| {
        let ram = KVec::from_elem(0, RAM, GFP_KERNEL)?;
        let shared = Arc::pin_init(
            pin_init!(Shared {
                ram,
                jobs <- new_mutex!(Jobs {
                    controllers: KVec::new(),
                    next: Next::Nothing,
                }),
                changed <- new_condvar!(),
            }),
            GFP_KERNEL,
        )?;
        let dir = debugfs::Dir::new(c"rnvme");

        *SHARED.lock() = Some(shared.clone());
        Ok(try_pin_init!(File {
            _file <- dir.write_callback_file(c"io", shared, &write),
            _dir: dir.clone(),
        }))
    })
}

/// Does what is asked of one controller, until it is dropped.
pub(crate) struct Injector<'a> {
    instance: u32,
    shared: Arc<Shared>,
    _thread: Thread<'a>,
}

impl<'a> Injector<'a> {
    /// Starts for controller number `instance`. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINTR`.
    ///
    /// # Safety
    ///
    /// The result must not be forgotten: it must be dropped before `'a` ends.
    pub(crate) unsafe fn new<R: Regs + 'a>(instance: u32, nvme: Arc<Nvme<'a, R>>) -> Result<Self> {
        let shared = SHARED.lock().clone().ok_or(ENODEV)?;
        let theirs = shared.clone();

        shared.add(instance)?;
        // SAFETY: The thread is not forgotten unless the result is.
        let thread = unsafe {
            Thread::spawn(c"rnvme_inject", move |_stop| {
                while let Some(job) = theirs.take(instance) {
                    // Without the lock: others come and go meanwhile.
                    let result = job.execute(&nvme);
                    theirs.done(result);
                }
            })
        }
        .inspect_err(|_| shared.remove(instance))?;

        Ok(Self {
            instance,
            shared,
            _thread: thread,
        })
    }
}

impl Shared {
    fn add(&self, controller: u32) -> Result {
        Ok(self.jobs.lock().controllers.push(controller, GFP_KERNEL)?)
    }

    fn remove(&self, controller: u32) {
        self.jobs
            .lock()
            .controllers
            .retain(|&mut c| c != controller);
        self.changed.notify_all();
    }

    /// Waits until the controller is asked something. [`None`]: it was removed.
    fn take(&self, controller: u32) -> Option<Job> {
        let mut jobs = self.jobs.lock();

        loop {
            if !jobs.controllers.contains(&controller) {
                return None;
            }
            if matches!(&jobs.next, Next::Asked(job) if job.controller == controller) {
                if let Next::Asked(job) = mem::replace(&mut jobs.next, Next::Running) {
                    return Some(job);
                }
            }
            let _ = self.changed.wait_interruptible(&mut jobs);
        }
    }

    /// Tells what came of it.
    fn done(&self, result: Result) {
        let mut jobs = self.jobs.lock();

        jobs.next = match jobs.next {
            Next::Abandoned => Next::Nothing,
            _ => Next::Done(result),
        };
        self.changed.notify_all();
    }
}

impl Drop for Injector<'_> {
    fn drop(&mut self) {
        // The thread ends.
        self.shared.remove(self.instance);
    }
}
