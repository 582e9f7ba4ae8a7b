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
//! `mem:<physical address>:<bytes>`, a provider's memory. The write fails as the transfer does.

use crate::{
    api::Way,
    nvme::Nvme,
    regs::Regs, //
};
use core::mem;
use kernel::{
    debugfs,
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
        Arc, //
    },
    task::kthread::Thread,
    time::{
        delay::fsleep,
        Delta, //
    },
    uaccess::UserSliceReader, //
};

/// Bytes of the buffer that `ram:` parts are of.
const RAM: usize = 1 << 20;

/// The longest line in bytes.
const LINE: usize = 4096;

/// How often everybody looks whether there is something to do, in milliseconds.
const PERIOD: i64 = 1;

global_lock! {
    // SAFETY: Initialised when the module is.
    unsafe(uninit) static JOBS: Mutex<Jobs> = Jobs {
        controllers: KVec::new(),
        ram: KVec::new(),
        next: Next::Nothing,
    };
}

struct Jobs {
    /// The controllers that there are.
    controllers: KVec<u32>,
    /// Made when the first controller comes.
    ram: KVec<u8>,
    next: Next,
}

/// What is to be done: one thing at a time, whose the buffer is.
enum Next {
    Nothing,
    Asked(Job),
    Running,
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
fn write(_: &(), reader: &mut UserSliceReader) -> Result {
    let mut line = KVec::new();
    if reader.len() > LINE {
        return Err(E2BIG);
    }
    reader.clone_reader().read_all(&mut line, GFP_KERNEL)?;
    reader.skip(line.len())?;
    let line = core::str::from_utf8(&line).map_err(|_| EINVAL)?;

    loop {
        let mut jobs = JOBS.lock();
        if matches!(jobs.next, Next::Nothing) {
            jobs.next = Next::Asked(Job::parse(line, &jobs.ram)?);
            break;
        }
        drop(jobs);
        fsleep(Delta::from_millis(PERIOD));
    }
    loop {
        {
            let mut jobs = JOBS.lock();
            let result = match &jobs.next {
                Next::Asked(job) if !jobs.controllers.contains(&job.controller) => {
                    Some(Err(ENODEV))
                }
                Next::Done(result) => Some(*result),
                _ => None,
            };
            if let Some(result) = result {
                jobs.next = Next::Nothing;
                return result;
            }
        }
        fsleep(Delta::from_millis(PERIOD));
    }
}

/// Before all else.
pub(crate) fn init() {
    // SAFETY: The module is initialised once.
    unsafe { JOBS.init() };
}

/// The file, and the directory that it is in.
#[pin_data(PinnedDrop)]
pub(crate) struct File {
    #[pin]
    _file: debugfs::File<()>,
    _dir: debugfs::Dir,
}

#[pinned_drop]
impl PinnedDrop for File {
    fn drop(self: Pin<&mut Self>) {
        let mut jobs = JOBS.lock();

        // The driver has gone: nobody has the buffer, nor does what is asked.
        jobs.controllers = KVec::new();
        jobs.ram = KVec::new();
    }
}

/// Makes the file.
pub(crate) fn file() -> impl PinInit<File, Error> {
    let dir = debugfs::Dir::new(c"rnvme");

    try_pin_init!(File {
        _file <- dir.write_callback_file(c"io", (), &write),
        _dir: dir.clone(),
    })
}

/// Does what is asked of one controller, until it is dropped.
pub(crate) struct Injector<'a> {
    instance: u32,
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
        {
            let mut jobs = JOBS.lock();

            if jobs.ram.is_empty() {
                jobs.ram = KVec::from_elem(0, RAM, GFP_KERNEL)?;
            }
            jobs.controllers.push(instance, GFP_KERNEL)?;
        }
        // SAFETY: The thread is not forgotten unless the result is.
        let thread = unsafe {
            Thread::spawn(c"rnvme_inject", move |stop| {
                while !stop.should_stop() {
                    // Without the lock: others come and go meanwhile.
                    if let Some(job) = Self::take(instance) {
                        let result = job.execute(&nvme);

                        JOBS.lock().next = Next::Done(result);
                    }
                    fsleep(Delta::from_millis(PERIOD));
                }
            })
        }?;

        Ok(Self {
            instance,
            _thread: thread,
        })
    }

    /// What the controller is asked, if it is.
    fn take(instance: u32) -> Option<Job> {
        let mut jobs = JOBS.lock();

        if !matches!(&jobs.next, Next::Asked(job) if job.controller == instance) {
            return None;
        }
        match mem::replace(&mut jobs.next, Next::Running) {
            Next::Asked(job) => Some(job),
            _ => None,
        }
    }
}

impl Drop for Injector<'_> {
    fn drop(&mut self) {
        JOBS.lock().controllers.retain(|&mut c| c != self.instance);
    }
}
