// SPDX-License-Identifier: GPL-2.0

//! Commands to the controller itself, through its admin queue.

use crate::{
    block::{
        Ops,
        Tags,
        Target, //
    },
    command::{
        self,
        Cns,
        Command,
        CommandStatus, //
    },
    ctrl::Controller,
    identify::{
        self,
        Page, //
    },
    queue::Queue,
    regs::Regs, //
};
use kernel::{
    block::mq::{
        DriverOp,
        EndIo,
        Executed,
        QueueLimits,
        RequestQueue,
        Status,
        TagSet,
        TagSetOptions, //
    },
    io::Io,
    new_mutex,
    physdma::Client,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex, //
    },
    time::Msecs, //
};

/// Entries of the admin queues: for the commands that somebody waits for, and [`MAX_ABORTS`].
const ENTRIES: u32 = 32;

/// The most aborts that are not answered. Common controllers take as many.
const MAX_ABORTS: u32 = 4;

/// The controller's admin queue.
#[pin_data]
pub(crate) struct Admin<'a, R: Regs> {
    /// The rings, which commands go through as through any other queue's.
    pub(crate) queue: Arc<Queue<'a, R>>,
    requests: RequestQueue<Ops<'a, R>>,
    /// How many commands the controller refused.
    refused: Atomic<u32>,
    /// How many aborts are not answered.
    aborts: Arc<Atomic<u32>>,
    /// What Identify answered, where the device cannot change it any more.
    #[pin]
    answer: Mutex<KBox<Page>>,
}

/// An Abort, for which nobody waits.
struct Abort;

impl<'a, R: Regs + 'a> EndIo<Ops<'a, R>> for Abort {
    type Kept = Arc<Atomic<u32>>;

    fn end_io(aborts: Arc<Atomic<u32>>, rq: Executed<'_, Ops<'a, R>>) {
        // The tag is free before it does not count any more.
        drop(rq);
        aborts.fetch_sub(1, Release);
    }
}

impl<'a, R: Regs + 'a> Admin<'a, R> {
    /// Makes the admin queue of a controller. The device is not told yet.
    ///
    /// A command is given up when it was not answered for `timeout`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The result must not be forgotten: it must be dropped before `'a` ends.
    pub(crate) unsafe fn new(
        ctrl: Arc<Controller<'a, R>>,
        client: &'a Client<'a>,
        timeout: Msecs,
    ) -> Result<Pin<KBox<Self>>> {
        let queue = Queue::new(ctrl, 0, 0, ENTRIES, 0)?;
        let mut queues = KVec::new();

        queues.push(queue.clone(), GFP_KERNEL)?;
        let options = TagSetOptions {
            nr_hw_queues: 1,
            queue_depth: queue.tags(),
            timeout,
            generation_bits: queue.generation_bits(),
            ..Default::default()
        };
        // SAFETY: The tag set is not forgotten unless the result is.
        let tags = unsafe {
            TagSet::new_scoped(
                options,
                Tags {
                    queues,
                    client,
                    mixes: false,
                    sgls: false,
                },
            )
        };
        let tags = Arc::pin_init(tags, GFP_KERNEL)?;
        queue.set_in_flight(tags.in_flight(0).ok_or(EINVAL)?)?;

        let target = Target {
            nsid: 0,
            lba_shift: 9,
        };
        let requests = RequestQueue::new(tags, QueueLimits::new(), target)?;
        let answer = KBox::init(pin_init::init_zeroed::<Page>(), GFP_KERNEL)?;
        let aborts = Arc::new(Atomic::new(0), GFP_KERNEL)?;

        KBox::pin_init(
            pin_init!(Self {
                queue,
                requests,
                refused: Atomic::new(0),
                aborts,
                answer <- new_mutex!(answer),
            }),
            GFP_KERNEL,
        )
    }

    /// Sends `command`, and waits for the answer, of which the first double word is returned.
    ///
    /// Sleeps. If the controller refuses, or does not answer, a line says that `what` failed; not
    /// every time, if it happens ever again.
    ///
    /// # Errors
    ///
    /// - `ETIMEDOUT`: there was no answer. The controller is about to be reset; the caller has to
    ///   give it up if it brings it up.
    /// - `EIO`: the controller refused.
    /// - `EAGAIN`: the command was not sent, or was taken back, as the controller is being reset,
    ///   or is dead.
    fn execute(&self, what: &str, command: Command) -> Result<u32> {
        self.execute_within(what, command, 0)
    }

    /// Like [`Self::execute`], but gives up after `timeout`; 0 stands for that of the admin queue.
    fn execute_within(&self, what: &str, command: Command, timeout: Msecs) -> Result<u32> {
        let mut rq = self.requests.alloc(DriverOp::In)?;

        let data = rq.data_mut();
        data.command = command;
        data.status = CommandStatus::UNANSWERED;
        let done = rq.execute(timeout);

        match done.status() {
            Status::OK => Ok(done.data().result),
            Status::TIMEOUT => {
                dev_err!(self.queue.ctrl().dev, "{}: no answer\n", what);
                Err(ETIMEDOUT)
            }
            _ if done.data().status == CommandStatus::UNANSWERED => Err(EAGAIN),
            _ => {
                let count = self.refused.fetch_add(1, Relaxed).wrapping_add(1);

                if count.is_power_of_two() {
                    dev_err!(
                        self.queue.ctrl().dev,
                        "{} failed: status {:#x} ({} commands did)\n",
                        what,
                        done.data().status.0,
                        count
                    );
                }
                Err(EIO)
            }
        }
    }

    /// Has the controller identify what `cns` and `nsid` say, and lets `parse` read the answer.
    fn identify<T>(
        &self,
        what: &str,
        cns: Cns,
        nsid: u32,
        parse: impl FnOnce(&Page) -> T,
    ) -> Result<T> {
        let mut answer = self.answer.lock();
        let page = &self.queue.page;

        // What the controller does not write is not the answer to an earlier question.
        answer.fill(0);
        page.copy_from_slice(&answer[..]);
        self.execute(what, Command::identify(cns, nsid, page.dma_address()))?;
        page.copy_to_slice(&mut answer[..]);
        Ok(parse(&answer))
    }

    /// Identify Controller. Sleeps.
    ///
    /// # Errors
    ///
    /// As [`Self::execute`]; `EIO` if the answer makes no sense.
    pub(crate) fn identify_controller(&self) -> Result<identify::Controller> {
        self.identify("Identify Controller", Cns::Controller, 0, |page| {
            identify::Controller::parse(page)
        })?
        .map_err(|e| {
            dev_err!(
                self.queue.ctrl().dev,
                "Identify Controller makes no sense: {:?}\n",
                e
            );
            EIO
        })
    }

    /// Identify Namespace. Sleeps.
    ///
    /// # Errors
    ///
    /// As [`Self::execute`].
    pub(crate) fn identify_namespace(
        &self,
        nsid: u32,
    ) -> Result<Result<identify::Namespace, identify::Unusable>> {
        self.identify("Identify Namespace", Cns::Namespace, nsid, |page| {
            identify::Namespace::parse(page)
        })
    }

    /// The next active namespaces after `after`, appended to `list`. Sleeps.
    ///
    /// # Errors
    ///
    /// As [`Self::execute`]; `ENOMEM`.
    pub(crate) fn active_namespaces(&self, after: u32, list: &mut KVec<u32>) -> Result {
        self.identify(
            "Identify Active Namespaces",
            Cns::ActiveNamespaces,
            after,
            |page| {
                for nsid in identify::active_namespaces(page, after) {
                    list.push(nsid, GFP_KERNEL)?;
                }
                Ok(())
            },
        )?
    }

    /// The I/O command set of a namespace, if it says. Sleeps.
    ///
    /// # Errors
    ///
    /// As [`Self::execute`].
    pub(crate) fn command_set(&self, nsid: u32) -> Result<Option<u8>> {
        self.identify(
            "Identify Namespace Descriptors",
            Cns::Descriptors,
            nsid,
            identify::command_set,
        )
    }

    /// Asks for `wanted` I/O queue pairs, at least one, and returns how many there may be. Sleeps.
    ///
    /// # Errors
    ///
    /// As [`Self::execute`].
    pub(crate) fn set_queues(&self, wanted: u16) -> Result<u16> {
        let result = self.execute(
            "Set Features, Number of Queues",
            Command::set_queues(wanted),
        )?;

        // CAST: At most `wanted`.
        Ok(command::queues_granted(result).min(wanted.into()) as u16)
    }

    /// Makes `queue` a queue pair of the device. Sleeps.
    ///
    /// # Errors
    ///
    /// As [`Self::execute`].
    pub(crate) fn create_queue(&self, queue: &Queue<'a, R>) -> Result {
        let rings = queue.rings();
        // CAST: There are at most 2048 vectors.
        let vector = queue.vector() as u16;

        self.execute(
            "Create I/O Completion Queue",
            Command::create_cq(queue.qid(), rings.entries, rings.cq, vector),
        )?;
        self.execute(
            "Create I/O Submission Queue",
            Command::create_sq(queue.qid(), rings.entries, rings.sq),
        )
        .map(|_| ())
    }

    /// Has the device look for the doorbells of the I/O queues in memory, if it can: see [`Shadow`].
    /// Sleeps.
    ///
    /// The queues were made, and take no commands yet: one that was announced in a register before
    /// would not be found in memory.
    ///
    /// # Errors
    ///
    /// As [`Self::execute`], but for `EIO`: all goes on without.
    ///
    /// [`Shadow`]: crate::shadow::Shadow
    pub(crate) fn set_shadow(&self) -> Result {
        let Some(shadow) = self.queue.ctrl().shadow.as_ref() else {
            return Ok(());
        };

        shadow.clear();
        match self.execute(
            "Doorbell Buffer Config",
            Command::doorbell_buffers(shadow.addresses()),
        ) {
            Ok(_) => {
                shadow.begin();
                Ok(())
            }
            Err(e) if e == EIO => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Has the device forget the submission queue of `queue`, within `timeout`. Sleeps.
    ///
    /// # Errors
    ///
    /// As [`Self::execute`].
    pub(crate) fn delete_sq(&self, queue: &Queue<'a, R>, timeout: Msecs) -> Result {
        let command = Command::delete_sq(queue.qid());

        self.execute_within("Delete I/O Submission Queue", command, timeout)
            .map(|_| ())
    }

    /// Has the device forget the completion queue of `queue`, after its submission queue, within
    /// `timeout`. Sleeps.
    ///
    /// # Errors
    ///
    /// As [`Self::execute`].
    pub(crate) fn delete_cq(&self, queue: &Queue<'a, R>, timeout: Msecs) -> Result {
        let command = Command::delete_cq(queue.qid());

        self.execute_within("Delete I/O Completion Queue", command, timeout)
            .map(|_| ())
    }

    /// Asks for command `cid` of queue `qid` to be aborted, and does not wait for the answer.
    /// Sleeps.
    ///
    /// Called by one thread at a time.
    ///
    /// # Errors
    ///
    /// - `EBUSY`: too many are not answered yet.
    /// - `ENOMEM`.
    pub(crate) fn abort(&self, qid: u16, cid: u16) -> Result {
        if self.aborts.load(Acquire) >= MAX_ABORTS {
            return Err(EBUSY);
        }
        let mut rq = self.requests.alloc(DriverOp::In)?;

        let data = rq.data_mut();
        data.command = Command::abort(qid, cid);
        data.status = CommandStatus::UNANSWERED;
        self.aborts.fetch_add(1, Relaxed);
        rq.execute_nowait::<Abort>(0, self.aborts.clone());
        Ok(())
    }
}
