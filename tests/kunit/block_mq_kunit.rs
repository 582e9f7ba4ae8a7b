// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of `kernel::block::mq`: who owns a request, and what becomes of it.
//!
//! A driver without a device: [`State`] tells it what to do with the next request, and the tests
//! play the device that completes what is in flight.

use kernel::{
    block::mq::{
        gen_disk::GenDiskBuilder,
        CommandId,
        DriverOp,
        EndIo,
        Executed,
        IdleRequest,
        InFlight,
        Op,
        Operations,
        OwnedRequest,
        QueueLimits,
        QueueMaps,
        QueueType,
        Request,
        RequestQueue,
        Started,
        Status,
        TagSet,
        TagSetOptions,
        TimedOut,
        TimeoutAction, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    task::kthread::Thread,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// Returns from the test with an error, and says where, if the condition does not hold.
///
/// Unlike a KUnit assertion it unwinds: threads end before what they borrow.
macro_rules! check {
    ($cond:expr) => {
        if !$cond {
            pr_err!("line {}: {}\n", line!(), stringify!($cond));
            return Err(EINVAL);
        }
    };
}

#[path = "block_mq/batch.rs"]
mod batch;

module! {
    type: BlockMqKunit,
    name: "block_mq_kunit",
    authors: ["The physdma authors"],
    description: "KUnit suite of kernel::block::mq",
    license: "GPL v2",
}

struct BlockMqKunit;

impl kernel::Module for BlockMqKunit {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(BlockMqKunit)
    }
}

/// What the driver does with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Mode {
    /// Start it, claim it, answer `input + 1` and end it with [`Status::OK`].
    Answer,
    /// Start it, claim it, and let [`Operations::complete`] end it.
    Complete,
    /// Start it and leave it in flight.
    Hold,
    /// Refuse it with [`Status::RESOURCE`] as often as `refusals` says, then as [`Mode::Answer`].
    Resource,
    /// Refuse it with [`Status::MEDIUM`].
    Refuse,
    /// Refuse it, without saying why.
    RefuseOk,
    /// Start it, leave it in flight and return an error.
    ErrorAfterStart,
    /// Start it and drop it.
    Drop,
    /// Start it, claim it and requeue it once, then as [`Mode::Answer`].
    Requeue,
}

/// What the driver is told, and what it tells.
struct State {
    mode: Atomic<u32>,
    /// How many requests [`Mode::Resource`] and [`Mode::Requeue`] still send back.
    refusals: Atomic<u32>,
    /// Calls of `queue_rq`.
    dispatched: Atomic<u32>,
    /// Calls of `complete`.
    completed: Atomic<u32>,
    /// Calls of `timeout`.
    timeouts: Atomic<u32>,
    /// The last request that was left in flight: `1 << 32 | tag << 16 | generation`, or 0.
    held: Atomic<u64>,
    /// How many request data may still be made.
    data_left: Atomic<i32>,
    /// Request data that exist.
    data_alive: Atomic<i32>,
    /// Hardware queue data that exist.
    hw_alive: Atomic<i32>,
    /// Bytes read by others than the tests, such as the partition scan.
    bytes_read: Atomic<u64>,
    /// Requests whose memory did not add up, or that should fail fast.
    odd: Atomic<u32>,
    /// Queue maps that were accepted although they should not.
    bad_maps: Atomic<u32>,
    /// Calls of `map_queues`.
    maps: Atomic<u32>,
}

impl State {
    fn new(mode: Mode) -> Result<Arc<Self>> {
        Ok(Arc::new(
            State {
                mode: Atomic::new(mode as u32),
                refusals: Atomic::new(0),
                dispatched: Atomic::new(0),
                completed: Atomic::new(0),
                timeouts: Atomic::new(0),
                held: Atomic::new(0),
                data_left: Atomic::new(i32::MAX),
                data_alive: Atomic::new(0),
                hw_alive: Atomic::new(0),
                bytes_read: Atomic::new(0),
                odd: Atomic::new(0),
                bad_maps: Atomic::new(0),
                maps: Atomic::new(0),
            },
            GFP_KERNEL,
        )?)
    }

    fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u32, Release);
    }

    fn is(&self, mode: Mode) -> bool {
        self.mode.load(Acquire) == mode as u32
    }

    /// Notes that `id` is left in flight.
    fn hold(&self, id: CommandId) {
        let id = u64::from(id.tag) << 16 | u64::from(id.generation);

        self.held.store(1 << 32 | id, Release);
    }

    /// Takes the last request that was left in flight.
    fn held(&self) -> Option<CommandId> {
        let id = self.held.xchg(0, Acquire);

        (id != 0).then_some(CommandId {
            tag: (id >> 16) as u16,
            generation: id as u16,
        })
    }

    /// Waits until a request is left in flight.
    fn wait_held(&self) -> Result<CommandId> {
        for _ in 0..10_000 {
            if let Some(id) = self.held() {
                return Ok(id);
            }
            fsleep(Delta::from_millis(1));
        }
        Err(ETIMEDOUT)
    }

    /// Decrements `refusals`. Returns whether it was not zero.
    fn refuse(&self) -> bool {
        let left = self.refusals.load(Relaxed);

        left != 0 && self.refusals.cmpxchg(left, left - 1, Relaxed).is_ok()
    }

    fn check_memory(&self, rq: &Request) {
        let mut bytes = 0;

        for (_, len) in rq.bvecs() {
            if len == 0 {
                self.odd.fetch_add(1, Relaxed);
            }
            bytes += len;
        }
        if bytes != rq.bytes() || bytes != rq.sectors() * 512 {
            self.odd.fetch_add(1, Relaxed);
        }
        self.bytes_read.fetch_add(u64::from(bytes), Relaxed);
    }
}

/// Request data that is counted.
struct Data {
    state: Arc<State>,
    input: u32,
    output: u32,
    status: Status,
}

impl Data {
    fn new(state: &Arc<State>) -> Result<Self> {
        if state.data_left.fetch_sub(1, Relaxed) <= 0 {
            return Err(ENOMEM);
        }
        state.data_alive.fetch_add(1, Relaxed);
        Ok(Self {
            state: state.clone(),
            input: 0,
            output: 0,
            status: Status::OK,
        })
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        self.state.data_alive.fetch_sub(1, Relaxed);
    }
}

/// Data of a hardware queue that is counted.
struct Hw {
    state: Arc<State>,
    in_flight: Arc<InFlight<Driver>>,
}

impl Drop for Hw {
    fn drop(&mut self) {
        self.state.hw_alive.fetch_sub(1, Relaxed);
    }
}

impl Hw {
    /// What a device does.
    fn answer(&self, id: CommandId) {
        if let Some(mut rq) = self.in_flight.claim(id) {
            let data = rq.data_mut();

            data.output = data.input + 1;
            let status = data.status;
            rq.end(status);
        }
    }
}

struct Driver;

/// Set in a request's flags by its first time-out.
const TIMED_OUT_ONCE: u32 = 1;

#[vtable]
impl Operations for Driver {
    type RequestData = Data;
    type QueueData = Arc<State>;
    type HwData = Hw;
    type TagSetData = Arc<State>;

    fn new_request_data(state: &Arc<State>) -> impl Init<Data, Error> {
        Data::new(state)
    }

    fn init_hctx(
        state: &Arc<State>,
        _hctx_idx: u32,
        in_flight: &Arc<InFlight<Self>>,
    ) -> Result<Hw> {
        state.hw_alive.fetch_add(1, Relaxed);
        Ok(Hw {
            state: state.clone(),
            in_flight: in_flight.clone(),
        })
    }

    fn queue_rq<'a>(
        hw: &Hw,
        state: &Arc<State>,
        rq: IdleRequest<'a, Self>,
        _is_last: bool,
    ) -> Result<Started<'a>, Status> {
        let id = rq.id();

        state.dispatched.fetch_add(1, Relaxed);

        if rq.op() != Op::DrvIn && rq.op() != Op::DrvOut {
            state.check_memory(&rq);
            if rq.is_failfast() {
                state.odd.fetch_add(1, Relaxed);
            }
            let (rq, started) = rq.start_owned();
            rq.end(Status::OK);
            return Ok(started);
        }

        if state.is(Mode::Refuse) {
            return Err(Status::MEDIUM);
        }
        if state.is(Mode::RefuseOk) {
            return Err(Status::OK);
        }
        if state.is(Mode::Resource) && state.refuse() {
            return Err(ENOMEM.into());
        }
        if state.is(Mode::Drop) {
            let (_, started) = rq.start_owned();
            return Ok(started);
        }

        let started = rq.start();

        if state.is(Mode::Hold) {
            state.hold(id);
        } else if state.is(Mode::ErrorAfterStart) {
            state.hold(id);
            return Err(Status::IOERR);
        } else if state.is(Mode::Complete) {
            if let Some(rq) = hw.in_flight.claim(id) {
                rq.complete();
            }
        } else if state.is(Mode::Requeue) && state.refuse() {
            state.hold(id);
            if let Some(rq) = hw.in_flight.claim(id) {
                rq.requeue();
            }
        } else {
            hw.answer(id);
        }
        Ok(started)
    }

    fn commit_rqs(_hw: &Hw, _state: &Arc<State>) {}

    fn complete(mut rq: OwnedRequest<Self>) {
        let data = rq.data_mut();

        data.output = data.input + 2;
        data.state.completed.fetch_add(1, Relaxed);
        rq.end(Status::OK);
    }

    fn timeout(_hw: &Hw, state: &Arc<State>, rq: TimedOut<'_, Self>) -> TimeoutAction {
        state.timeouts.fetch_add(1, Relaxed);

        if rq.flags().load(Relaxed) & TIMED_OUT_ONCE == 0 {
            rq.flags().store(TIMED_OUT_ONCE, Relaxed);
            return TimeoutAction::ResetTimer;
        }
        if let Some(rq) = rq.claim() {
            rq.end(Status::TIMEOUT);
        }
        TimeoutAction::Done
    }

    fn map_queues(state: &Arc<State>, maps: &mut QueueMaps<'_>) {
        let nr = maps.nr_hw_queues();
        let bad = [
            maps.map(QueueType::Default, 0, 0),
            maps.map(QueueType::Default, nr + 1, 0),
            maps.map(QueueType::Default, 1, nr),
            maps.map(QueueType::Default, 2, u32::MAX),
            maps.map(QueueType::Poll, 1, 0),
        ];
        let bad = bad.iter().filter(|map| map.is_ok()).count();

        state.bad_maps.fetch_add(bad as u32, Relaxed);
        state.maps.fetch_add(1, Relaxed);
        if maps.map(QueueType::Default, nr, 0).is_err() {
            state.bad_maps.fetch_add(1, Relaxed);
        }
    }
}

fn tag_set(state: &Arc<State>, options: TagSetOptions) -> Result<Arc<TagSet<Driver>>> {
    Arc::pin_init(TagSet::new(options, state.clone()), GFP_KERNEL)
}

fn limits() -> Result<QueueLimits> {
    QueueLimits::new()
        .logical_block_size(512)?
        .physical_block_size(512)
}

fn queue(state: &Arc<State>, queue_depth: u32) -> Result<RequestQueue<Driver>> {
    let options = TagSetOptions {
        queue_depth,
        ..Default::default()
    };

    RequestQueue::new(tag_set(state, options)?, limits()?, state.clone())
}

/// Executes one request, and returns how it ended.
fn execute(queue: &RequestQueue<Driver>, input: u32, status: Status) -> Result<(Status, u32)> {
    execute_within(queue, input, status, 0)
}

/// Like [`execute`], with a time-out in milliseconds.
fn execute_within(
    queue: &RequestQueue<Driver>,
    input: u32,
    status: Status,
    timeout: u32,
) -> Result<(Status, u32)> {
    let mut rq = queue.alloc(DriverOp::In)?;
    let data = rq.data_mut();

    data.input = input;
    data.output = 0;
    data.status = status;
    let rq = rq.execute(timeout);
    Ok((rq.status(), rq.data().output))
}

/// What was heard of a request that nobody waits for.
struct Heard {
    times: Atomic<u32>,
    /// How it ended, as an index of [`STATUSES`].
    status: Atomic<u32>,
    output: Atomic<u32>,
}

impl Heard {
    /// Waits until it was heard of.
    fn wait(&self) -> Result<(Status, u32)> {
        wait_for(|| self.times.load(Acquire) != 0)?;
        let status = STATUSES.get(self.status.load(Relaxed) as usize).copied();
        Ok((status.ok_or(EIO)?, self.output.load(Relaxed)))
    }
}

impl EndIo<Driver> for Heard {
    type Kept = Arc<Self>;

    fn end_io(kept: Arc<Self>, mut rq: Executed<'_, Driver>) {
        let status = STATUSES.iter().position(|&s| s == rq.status());

        kept.output.store(rq.data_mut().output, Relaxed);
        kept.status
            .store(status.map_or(OTHER, |index| index as u32), Relaxed);
        kept.times.fetch_add(1, Release);
    }
}

/// Executes one request, and waits for nothing.
fn begin(queue: &RequestQueue<Driver>, input: u32, timeout: u32) -> Result<Arc<Heard>> {
    let heard = Arc::new(
        Heard {
            times: Atomic::new(0),
            status: Atomic::new(0),
            output: Atomic::new(0),
        },
        GFP_KERNEL,
    )?;
    let mut rq = queue.alloc(DriverOp::Out)?;
    let data = rq.data_mut();

    data.input = input;
    data.output = 0;
    data.status = Status::OK;
    rq.execute_nowait::<Heard>(timeout, heard.clone());
    Ok(heard)
}

/// A thread that executes one request.
struct Submitter<'a> {
    done: Arc<Atomic<u32>>,
    _thread: Thread<'a>,
}

/// What [`Submitter`] leaves when the request ended with a status that none of the tests uses.
const OTHER: u32 = 99;
const STATUSES: [Status; 6] = [
    Status::OK,
    Status::IOERR,
    Status::MEDIUM,
    Status::TIMEOUT,
    Status::OFFLINE,
    Status::TARGET,
];

impl<'a> Submitter<'a> {
    fn new(queue: &'a RequestQueue<Driver>) -> Result<Self> {
        let done = Arc::new(Atomic::new(0u32), GFP_KERNEL)?;
        let result = done.clone();
        // SAFETY: The thread is dropped with the submitter, which no test forgets.
        let thread = unsafe {
            Thread::spawn(c"block_mq_kunit", move |_| {
                let index = match execute(queue, 1, Status::OK) {
                    Ok((status, _)) => STATUSES.iter().position(|s| *s == status),
                    Err(_) => None,
                };

                result.store(index.map_or(OTHER, |index| index as u32 + 1), Release);
            })?
        };

        Ok(Self {
            done,
            _thread: thread,
        })
    }

    fn is_done(&self) -> bool {
        self.done.load(Acquire) != 0
    }

    /// Waits for the request to end.
    fn status(&self) -> Result<Status> {
        wait_for(|| self.is_done())?;
        STATUSES
            .get(self.done.load(Acquire) as usize - 1)
            .copied()
            .ok_or(EIO)
    }
}

/// Waits up to 10 seconds for `cond`.
fn wait_for(cond: impl Fn() -> bool) -> Result {
    for _ in 0..10_000 {
        if cond() {
            return Ok(());
        }
        fsleep(Delta::from_millis(1));
    }
    Err(ETIMEDOUT)
}

fn table(queue: &RequestQueue<Driver>) -> Result<Arc<InFlight<Driver>>> {
    queue.tag_set().in_flight(0).ok_or(EINVAL)
}

#[kunit_tests(block_mq)]
mod tests {
    use super::*;

    #[test]
    fn status_is_delivered() -> Result {
        let state = State::new(Mode::Answer)?;
        let queue = queue(&state, 4)?;

        for status in STATUSES {
            check!(execute(&queue, 41, status)? == (status, 42));
        }
        check!(Status::from(EIO) == Status::IOERR);
        check!(Status::from(ENOMEM) == Status::RESOURCE);
        check!(Status::MEDIUM.to_result() == Err(ENODATA));
        check!(Status::OK.to_result() == Ok(()));
        Ok(())
    }

    #[test]
    fn complete_is_called() -> Result {
        let state = State::new(Mode::Complete)?;
        let queue = queue(&state, 4)?;

        check!(execute(&queue, 40, Status::OK)? == (Status::OK, 42));
        check!(state.completed.load(Relaxed) == 1);
        Ok(())
    }

    #[test]
    fn claimed_exactly_once() -> Result {
        let state = State::new(Mode::Hold)?;
        let queue = queue(&state, 1)?;
        let table = table(&queue)?;
        let submitter = Submitter::new(&queue)?;
        let id = state.wait_held()?;

        let tag = id.tag;
        let generation = id.generation;
        let other = |tag: u16, generation: u16| table.claim(CommandId { tag, generation });

        check!(other(tag, generation.wrapping_add(1)).is_none());
        check!(other(tag, generation.wrapping_sub(1)).is_none());
        check!(other(tag + 1, generation).is_none());
        check!(other(u16::MAX, generation).is_none());

        let Some(rq) = table.claim(id) else {
            return Err(EINVAL);
        };
        check!(table.claim(id).is_none());
        check!(!submitter.is_done());
        rq.end(Status::TARGET);
        check!(table.claim(id).is_none());
        check!(submitter.status()? == Status::TARGET);
        Ok(())
    }

    #[test]
    fn stale_generation_is_refused() -> Result {
        let state = State::new(Mode::Hold)?;
        let queue = queue(&state, 1)?;
        let table = table(&queue)?;
        let first = Submitter::new(&queue)?;
        let old = state.wait_held()?;

        drop(table.claim(old));
        check!(first.status()? == Status::IOERR);

        let second = Submitter::new(&queue)?;
        let new = state.wait_held()?;

        // A depth of one: it is the same tag.
        check!(old.tag == new.tag);
        check!(old.generation != new.generation);
        check!(table.claim(old).is_none());
        check!(!second.is_done());
        let Some(rq) = table.claim(new) else {
            return Err(EINVAL);
        };
        rq.end(Status::OK);
        check!(second.status()? == Status::OK);
        Ok(())
    }

    #[test]
    fn generation_wraps() -> Result {
        let state = State::new(Mode::Hold)?;
        let options = TagSetOptions {
            queue_depth: 1,
            generation_bits: 1,
            ..Default::default()
        };
        let queue = RequestQueue::new(tag_set(&state, options)?, limits()?, state.clone())?;
        let table = table(&queue)?;
        let mut last = None;

        for _ in 0..5 {
            let submitter = Submitter::new(&queue)?;
            let id = state.wait_held()?;

            check!(id.generation <= 1);
            check!(last != Some(id.generation));
            last = Some(id.generation);
            let Some(rq) = table.claim(id) else {
                return Err(EINVAL);
            };
            rq.end(Status::OK);
            check!(submitter.status()? == Status::OK);
        }
        Ok(())
    }

    #[test]
    fn racing_claims_have_one_winner() -> Result {
        const ROUNDS: u32 = 100;

        let state = State::new(Mode::Hold)?;
        let queue = queue(&state, 1)?;
        let table = table(&queue)?;
        let target = Atomic::new(0u64);
        let won = Atomic::new(0u32);
        let claimer = || {
            let (table, target, won) = (&table, &target, &won);

            // SAFETY: The threads are dropped at the end of the test.
            unsafe {
                Thread::spawn(c"block_mq_claim", move |stop| {
                    while !stop.should_stop() {
                        let id = target.load(Acquire);

                        if id == 0 {
                            fsleep(Delta::from_micros(10));
                        } else if let Some(rq) = table.claim(CommandId {
                            tag: (id >> 16) as u16,
                            generation: id as u16,
                        }) {
                            won.fetch_add(1, Relaxed);
                            rq.end(Status::OK);
                        }
                    }
                })
            }
        };
        let _claimers = [claimer()?, claimer()?];

        for _ in 0..ROUNDS {
            let submitter = Submitter::new(&queue)?;
            let id = state.wait_held()?;

            target.store(
                1 << 32 | u64::from(id.tag) << 16 | u64::from(id.generation),
                Release,
            );
            check!(submitter.status()? == Status::OK);
            target.store(0, Release);
        }
        check!(won.load(Relaxed) == ROUNDS);
        check!(state.dispatched.load(Relaxed) == ROUNDS);
        Ok(())
    }

    #[test]
    fn refusal_for_want_of_resources_is_retried() -> Result {
        let state = State::new(Mode::Resource)?;
        let queue = queue(&state, 4)?;

        state.refusals.store(3, Relaxed);
        check!(execute(&queue, 1, Status::OK)? == (Status::OK, 2));
        check!(state.dispatched.load(Relaxed) == 4);
        Ok(())
    }

    #[test]
    fn refusal_fails() -> Result {
        let state = State::new(Mode::Refuse)?;
        let queue = queue(&state, 4)?;

        check!(execute(&queue, 1, Status::OK)? == (Status::MEDIUM, 0));
        state.set_mode(Mode::RefuseOk);
        check!(execute(&queue, 1, Status::OK)? == (Status::IOERR, 0));
        // The tag is good for another request.
        state.set_mode(Mode::Answer);
        check!(execute(&queue, 1, Status::OK)? == (Status::OK, 2));
        Ok(())
    }

    #[test]
    fn error_after_start_is_survived() -> Result {
        let state = State::new(Mode::ErrorAfterStart)?;
        let queue = queue(&state, 4)?;
        let table = table(&queue)?;
        let submitter = Submitter::new(&queue)?;
        let id = state.wait_held()?;

        fsleep(Delta::from_millis(20));
        check!(!submitter.is_done());
        let Some(rq) = table.claim(id) else {
            return Err(EINVAL);
        };
        rq.end(Status::TARGET);
        check!(submitter.status()? == Status::TARGET);
        Ok(())
    }

    #[test]
    fn dropped_request_fails() -> Result {
        let state = State::new(Mode::Drop)?;
        let queue = queue(&state, 4)?;

        check!(execute(&queue, 1, Status::OK)? == (Status::IOERR, 0));
        Ok(())
    }

    #[test]
    fn requeued_request_comes_back() -> Result {
        let state = State::new(Mode::Requeue)?;
        let queue = queue(&state, 4)?;

        state.refusals.store(1, Relaxed);
        check!(execute(&queue, 1, Status::OK)? == (Status::OK, 2));
        check!(state.dispatched.load(Relaxed) == 2);
        check!(table(&queue)?.claim(state.wait_held()?).is_none());
        Ok(())
    }

    #[test]
    fn nobody_waits() -> Result {
        let state = State::new(Mode::Hold)?;
        let queue = queue(&state, 4)?;
        let table = table(&queue)?;
        let mut under_way = KVec::new();

        for input in 0..3 {
            let heard = begin(&queue, input, 0)?;
            under_way.push((heard, state.wait_held()?), GFP_KERNEL)?;
        }
        // They end in another order, each on its own.
        for ended in [1, 2, 0] {
            let (heard, id) = &under_way[ended];
            check!(heard.times.load(Relaxed) == 0);
            table.claim(*id).ok_or(EINVAL)?.end(Status::TARGET);
            check!(heard.wait()? == (Status::TARGET, 0));
            check!(table.claim(*id).is_none());
        }
        // All tags are free, and what was kept was given back, once.
        state.set_mode(Mode::Complete);
        for _ in 0..8 {
            check!(begin(&queue, 40, 0)?.wait()? == (Status::OK, 42));
        }
        for (heard, _) in under_way {
            check!(heard.times.load(Relaxed) == 1);
            check!(Arc::into_unique_or_drop(heard).is_some());
        }
        Ok(())
    }

    #[test]
    fn nobody_waits_and_it_fails() -> Result {
        let state = State::new(Mode::Refuse)?;
        let queue = queue(&state, 1)?;

        check!(begin(&queue, 1, 0)?.wait()? == (Status::MEDIUM, 0));
        state.set_mode(Mode::Drop);
        check!(begin(&queue, 1, 0)?.wait()? == (Status::IOERR, 0));
        state.set_mode(Mode::Hold);
        check!(begin(&queue, 1, 100)?.wait()? == (Status::TIMEOUT, 0));
        state.set_mode(Mode::Requeue);
        state.refusals.store(2, Relaxed);
        check!(begin(&queue, 1, 0)?.wait()? == (Status::OK, 2));
        Ok(())
    }

    #[test]
    fn the_queue_waits_for_what_nobody_waits_for() -> Result {
        let state = State::new(Mode::Hold)?;
        let queue = queue(&state, 2)?;
        let table = table(&queue)?;
        let heard = begin(&queue, 1, 0)?;
        let id = state.wait_held()?;
        let early = Atomic::new(1u32);
        let watched = (heard.clone(), &early);
        // SAFETY: The thread is dropped at the end of the test.
        let _device = unsafe {
            Thread::spawn(c"block_mq_device", move |_| {
                fsleep(Delta::from_millis(50));
                watched.1.store(watched.0.times.load(Relaxed), Relaxed);
                if let Some(rq) = table.claim(id) {
                    rq.end(Status::OK);
                }
            })
        }?;

        drop(queue);
        check!(heard.times.load(Acquire) == 1);
        check!(early.load(Relaxed) == 0);
        check!(state.data_alive.load(Relaxed) == 0);
        Ok(())
    }

    #[test]
    fn timeout_is_handled() -> Result {
        let state = State::new(Mode::Hold)?;
        let queue = queue(&state, 4)?;

        check!(execute_within(&queue, 1, Status::OK, 100)? == (Status::TIMEOUT, 0));
        check!(state.timeouts.load(Relaxed) == 2);
        check!(table(&queue)?.claim(state.wait_held()?).is_none());
        Ok(())
    }

    #[test]
    fn quiesced_queue_does_not_dispatch() -> Result {
        let state = State::new(Mode::Answer)?;
        let queue = queue(&state, 4)?;

        let submitter;
        {
            let outer = queue.tag_set().quiesce();
            let inner = queue.tag_set().quiesce();

            // Dropped after both, so that a failed check does not make it wait for ever.
            submitter = Submitter::new(&queue)?;
            fsleep(Delta::from_millis(50));
            check!(state.dispatched.load(Relaxed) == 0);
            drop(outer);
            fsleep(Delta::from_millis(50));
            check!(state.dispatched.load(Relaxed) == 0);
            drop(inner);
        }
        check!(submitter.status()? == Status::OK);
        check!(state.dispatched.load(Relaxed) == 1);
        Ok(())
    }

    #[test]
    fn claim_all_takes_all() -> Result {
        let state = State::new(Mode::Hold)?;
        let queue = queue(&state, 4)?;
        let table = table(&queue)?;
        let submitters = [
            Submitter::new(&queue)?,
            Submitter::new(&queue)?,
            Submitter::new(&queue)?,
        ];
        let mut taken = 0;

        wait_for(|| state.dispatched.load(Relaxed) == 3)?;
        // The last one may still be in `queue_rq()`.
        let quiesced = queue.tag_set().quiesce();
        table.claim_all(|rq| {
            taken += 1;
            rq.end(Status::OFFLINE);
        });
        drop(quiesced);
        check!(taken == 3);
        for submitter in &submitters {
            check!(submitter.status()? == Status::OFFLINE);
        }
        table.claim_all(|_| taken += 1);
        check!(taken == 3);
        Ok(())
    }

    #[test]
    fn table_outlives_tag_set() -> Result {
        let state = State::new(Mode::Answer)?;
        let queue = queue(&state, 2)?;
        let table = table(&queue)?;

        check!(execute(&queue, 1, Status::OK)? == (Status::OK, 2));
        drop(queue);
        for tag in 0..3 {
            for generation in 0..3 {
                check!(table.claim(CommandId { tag, generation }).is_none());
            }
        }
        table.claim_all(drop);
        Ok(())
    }

    #[test]
    fn everything_made_is_dropped() -> Result {
        let state = State::new(Mode::Answer)?;

        {
            let options = TagSetOptions {
                nr_hw_queues: 2,
                queue_depth: 8,
                ..Default::default()
            };
            let tag_set = tag_set(&state, options)?;
            let hw_queues = tag_set.nr_hw_queues() as i32;

            check!(state.data_alive.load(Relaxed) == 8 * hw_queues);

            let first = RequestQueue::new(tag_set.clone(), limits()?, state.clone())?;
            let second = RequestQueue::new(tag_set.clone(), limits()?, state.clone())?;

            // Each hardware queue has a flush request.
            check!(state.data_alive.load(Relaxed) == 10 * hw_queues);
            check!(state.hw_alive.load(Relaxed) == 2 * hw_queues);
            check!(execute(&first, 1, Status::OK)? == (Status::OK, 2));
            check!(execute(&second, 1, Status::OK)? == (Status::OK, 2));
        }
        check!(state.data_alive.load(Relaxed) == 0);
        check!(state.hw_alive.load(Relaxed) == 0);
        Ok(())
    }

    #[test]
    fn failure_half_way_is_undone() -> Result {
        let state = State::new(Mode::Answer)?;

        for made in 0..6 {
            let options = TagSetOptions {
                queue_depth: 6,
                ..Default::default()
            };

            // Only one attempt: the block layer halves the depth when it fails.
            state.data_left.store(made, Relaxed);
            let tag_set = tag_set(&state, options);
            if let Ok(tag_set) = tag_set {
                check!(tag_set.queue_depth() < 6);
            }
            check!(state.data_alive.load(Relaxed) == 0);
        }

        state.data_left.store(4, Relaxed);
        // There is none left for the flush request.
        check!(queue(&state, 4).is_err());
        check!(state.data_alive.load(Relaxed) == 0);
        check!(state.hw_alive.load(Relaxed) == 0);
        Ok(())
    }

    #[test]
    fn bad_options_are_refused() -> Result {
        let state = State::new(Mode::Answer)?;
        let good = TagSetOptions::default();
        let bad = [
            TagSetOptions {
                nr_hw_queues: 0,
                ..good
            },
            TagSetOptions {
                queue_depth: 0,
                ..good
            },
            TagSetOptions {
                queue_depth: 10_241,
                ..good
            },
            TagSetOptions { nr_maps: 4, ..good },
            TagSetOptions {
                generation_bits: 17,
                ..good
            },
        ];

        for options in bad {
            check!(tag_set(&state, options).err() == Some(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn queue_maps_are_checked() -> Result {
        let state = State::new(Mode::Answer)?;
        let options = TagSetOptions {
            nr_hw_queues: 2,
            ..Default::default()
        };
        let tag_set = tag_set(&state, options)?;

        check!(state.maps.load(Relaxed) == 1);
        check!(state.bad_maps.load(Relaxed) == 0);
        check!(tag_set.in_flight(tag_set.nr_hw_queues() - 1).is_some());
        check!(tag_set.in_flight(2).is_none());
        Ok(())
    }

    #[test]
    fn queues_share_tags() -> Result {
        let state = State::new(Mode::Hold)?;
        let options = TagSetOptions {
            queue_depth: 2,
            ..Default::default()
        };
        let tag_set = tag_set(&state, options)?;
        let first = RequestQueue::new(tag_set.clone(), limits()?, state.clone())?;
        let second = RequestQueue::new(tag_set.clone(), limits()?, state.clone())?;
        let table = table(&first)?;

        let one = Submitter::new(&first)?;
        let one_id = state.wait_held()?;
        let two = Submitter::new(&second)?;
        let two_id = state.wait_held()?;

        check!(one_id.tag != two_id.tag);
        for (id, submitter, status) in [
            (two_id, &two, Status::MEDIUM),
            (one_id, &one, Status::TARGET),
        ] {
            let Some(rq) = table.claim(id) else {
                return Err(EINVAL);
            };
            rq.end(status);
            check!(submitter.status()? == status);
        }
        Ok(())
    }

    #[test]
    fn disk_lives_and_dies() -> Result {
        let state = State::new(Mode::Answer)?;

        {
            let tag_set = tag_set(&state, TagSetOptions::default())?;
            let disk = GenDiskBuilder::new()
                .limits(limits()?)
                .capacity_sectors(64)
                .build(fmt!("bmqkunit"), tag_set, state.clone())?;

            // The partition table was looked for.
            check!(state.bytes_read.load(Relaxed) >= 512);
            check!(state.odd.load(Relaxed) == 0);

            // The request after it is not kept waiting.
            check!(disk.with_frozen(|| disk.with_frozen(|| 7)) == 7);

            let mut rq = disk.alloc(DriverOp::Out)?;
            check!(rq.is_failfast());
            rq.data_mut().input = 7;
            let rq = rq.execute(0);
            check!(rq.op() == Op::DrvOut);
            check!(rq.status() == Status::OK && rq.data().output == 8);
            drop(rq);

            disk.mark_dead();
            check!(disk.alloc(DriverOp::In).err() == Some(ENODEV));
        }
        check!(state.data_alive.load(Relaxed) == 0);
        check!(state.hw_alive.load(Relaxed) == 0);
        Ok(())
    }
}
