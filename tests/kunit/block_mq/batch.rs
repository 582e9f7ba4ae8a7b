// SPDX-License-Identifier: GPL-2.0

//! Requests in batches: [`QueueBatch`], which a driver is handed, and [`EndBatch`], by which it
//! ends them.

use super::{
    limits,
    wait_for, //
};
use kernel::{
    bindings,
    block::mq::{
        gen_disk::GenDiskBuilder,
        DriverOp,
        EndBatch,
        EndIo,
        Executed,
        IdleRequest,
        InFlight,
        Op,
        Operations,
        OwnedRequest,
        QueueBatch,
        QueueMaps,
        QueueType,
        RequestQueue,
        Started,
        Status,
        TagSet,
        TagSetOptions, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// What the driver does with a batch.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Mode {
    /// Start each request, and leave it in flight.
    Take,
    /// Nothing.
    Leave,
    /// The same as [`Mode::Take`], but for each second one there are no resources.
    Resource,
    /// The same, but each second one fails.
    Refuse,
}

/// What the driver is told, and what it and its requests tell.
struct State {
    mode: Atomic<u32>,
    /// Calls of `queue_rqs`.
    batches: Atomic<u32>,
    /// Requests that it was handed.
    batched: Atomic<u32>,
    /// Calls of `queue_rq`.
    single: Atomic<u32>,
    /// Bytes that the partition scan has read.
    bytes_read: Atomic<u64>,
    /// Requests that have ended well, and that have not.
    ended: Atomic<u32>,
    failed: Atomic<u32>,
}

impl State {
    fn new(mode: Mode) -> Result<Arc<Self>> {
        let state = State {
            mode: Atomic::new(mode as u32),
            batches: Atomic::new(0),
            batched: Atomic::new(0),
            single: Atomic::new(0),
            bytes_read: Atomic::new(0),
            ended: Atomic::new(0),
            failed: Atomic::new(0),
        };

        Ok(Arc::new(state, GFP_KERNEL)?)
    }

    /// Batches, requests in them, and requests that came alone.
    fn dispatched(&self) -> (u32, u32, u32) {
        (
            self.batches.load(Relaxed),
            self.batched.load(Relaxed),
            self.single.load(Relaxed),
        )
    }

    /// Requests that have ended well, and that have not.
    fn ended(&self) -> (u32, u32) {
        (self.ended.load(Relaxed), self.failed.load(Relaxed))
    }
}

impl EndIo<Driver> for State {
    type Kept = Arc<Self>;

    fn end_io(state: Arc<Self>, rq: Executed<'_, Driver>) {
        match rq.status() {
            Status::OK => state.ended.fetch_add(1, Relaxed),
            _ => state.failed.fetch_add(1, Relaxed),
        };
    }
}

struct Driver;

#[vtable]
impl Operations for Driver {
    type RequestData = ();
    type QueueData = Arc<State>;
    type HwData = ();
    type TagSetData = ();

    fn new_request_data(_tag_set: &()) -> impl Init<(), Error> {
        Ok(())
    }

    fn init_hctx(_tag_set: &(), _hctx_idx: u32, _in_flight: &Arc<InFlight<Self>>) -> Result {
        Ok(())
    }

    fn queue_rq<'a>(
        _hw: &(),
        state: &Arc<State>,
        rq: IdleRequest<'a, Self>,
        _is_last: bool,
    ) -> Result<Started<'a>, Status> {
        if rq.op() != Op::DrvIn {
            // Of a disk.
            let bytes = rq.bytes();
            let (rq, started) = rq.start_owned();
            EndBatch::new().complete(rq);
            state.bytes_read.fetch_add(bytes.into(), Relaxed);
            return Ok(started);
        }
        state.single.fetch_add(1, Relaxed);
        Ok(rq.start())
    }

    fn queue_rqs(_hw: &(), state: &Arc<State>, batch: &mut QueueBatch<'_, Self>) {
        let mode = state.mode.load(Relaxed);

        state.batches.fetch_add(1, Relaxed);
        if mode == Mode::Leave as u32 {
            return;
        }
        batch.for_each(|rq| {
            let second = state.batched.fetch_add(1, Relaxed) % 2 == 1;

            if second && mode == Mode::Resource as u32 {
                return Err(Status::RESOURCE);
            }
            if second && mode == Mode::Refuse as u32 {
                return Err(Status::MEDIUM);
            }
            Ok(rq.start())
        });
    }

    fn commit_rqs(_hw: &(), _state: &Arc<State>) {}

    fn complete(rq: OwnedRequest<Self>) {
        rq.end(Status::OK);
    }

    /// All CPUs have the first hardware queue.
    fn map_queues(_tag_set: &(), maps: &mut QueueMaps<'_>) {
        let _ = maps.map(QueueType::Default, 1, 0);
    }
}

fn tag_set_of(nr_hw_queues: u32) -> Result<Arc<TagSet<Driver>>> {
    let options = TagSetOptions {
        nr_hw_queues,
        queue_depth: 8,
        ..Default::default()
    };

    Arc::pin_init(TagSet::new(options, ()), GFP_KERNEL)
}

/// With a single hardware queue requests would end in a softirq, not in a batch.
fn tag_set() -> Result<Arc<TagSet<Driver>>> {
    let tag_set = tag_set_of(2)?;

    // There are no more queues than CPUs.
    if tag_set.nr_hw_queues() < 2 {
        pr_err!("these cases need two CPUs\n");
        return Err(ENODEV);
    }
    Ok(tag_set)
}

fn two_cpus() -> Result {
    tag_set().map(drop)
}

fn queue(tag_set: &Arc<TagSet<Driver>>, state: &Arc<State>) -> Result<RequestQueue<Driver>> {
    RequestQueue::new(tag_set.clone(), limits()?, state.clone())
}

/// Has the block layer collect the requests that `f` makes, and dispatch them at the end.
fn plugged<T>(f: impl FnOnce() -> T) -> T {
    let mut plug = pin_init::zeroed();

    // SAFETY: The plug is on the stack of this task, and taken out below.
    unsafe { bindings::blk_start_plug(&mut plug) };
    let result = f();
    // SAFETY: It was put in above.
    unsafe { bindings::blk_finish_plug(&mut plug) };
    result
}

/// Makes four requests at once, in turn of each of these queues.
fn four(queues: &[&RequestQueue<Driver>], state: &Arc<State>) -> Result {
    plugged(|| {
        for queue in queues.iter().cycle().take(4) {
            let rq = queue.alloc(DriverOp::In)?;
            rq.execute_nowait::<State>(0, state.clone());
        }
        Ok(())
    })
}

/// Plays a device that answers all that is in flight. Returns how many that were.
fn answer(queue: &RequestQueue<Driver>, state: &State) -> Result<u32> {
    let table = queue.tag_set().in_flight(0).ok_or(EINVAL)?;
    let before = state.ended();
    let mut batch = EndBatch::new();
    let mut taken = 0;

    table.claim_all(|rq| {
        taken += 1;
        batch.complete(rq);
    });
    // Not before the batch does.
    check!(state.ended() == before);
    drop(batch);
    Ok(taken)
}

#[kunit_tests(block_mq_batch)]
mod tests {
    use super::*;

    #[test]
    fn queued_and_ended_together() -> Result {
        let state = State::new(Mode::Take)?;
        let queue = queue(&tag_set()?, &state)?;

        four(&[&queue], &state)?;
        check!(state.dispatched() == (1, 4, 0));
        check!(answer(&queue, &state)? == 4);
        check!(state.ended() == (4, 0));
        // Their tags are free again.
        four(&[&queue], &state)?;
        four(&[&queue], &state)?;
        check!(answer(&queue, &state)? == 8);
        check!(state.ended() == (12, 0));
        Ok(())
    }

    #[test]
    fn what_is_left_comes_alone() -> Result {
        let state = State::new(Mode::Leave)?;
        let queue = queue(&tag_set()?, &state)?;

        four(&[&queue], &state)?;
        check!(state.dispatched() == (1, 0, 4));
        check!(answer(&queue, &state)? == 4);
        check!(state.ended() == (4, 0));
        Ok(())
    }

    #[test]
    fn what_lacks_resources_comes_alone() -> Result {
        let state = State::new(Mode::Resource)?;
        let queue = queue(&tag_set()?, &state)?;

        four(&[&queue], &state)?;
        check!(state.dispatched() == (1, 4, 2));
        check!(answer(&queue, &state)? == 4);
        check!(state.ended() == (4, 0));
        Ok(())
    }

    #[test]
    fn what_fails_ends() -> Result {
        let state = State::new(Mode::Refuse)?;
        let queue = queue(&tag_set()?, &state)?;

        four(&[&queue], &state)?;
        check!(state.dispatched() == (1, 4, 0));
        check!(state.ended() == (0, 2));
        check!(answer(&queue, &state)? == 2);
        check!(state.ended() == (2, 2));
        Ok(())
    }

    #[test]
    fn each_queue_has_its_batch() -> Result {
        let state = State::new(Mode::Take)?;
        let tag_set = tag_set()?;
        let first = queue(&tag_set, &state)?;
        let second = queue(&tag_set, &state)?;

        four(&[&first, &second], &state)?;
        check!(state.dispatched() == (2, 4, 0));
        // The tag set is one, and so is the table.
        check!(answer(&first, &state)? == 4);
        check!(state.ended() == (4, 0));
        Ok(())
    }

    #[test]
    fn a_single_hardware_queue_has_no_batch() -> Result {
        two_cpus()?;
        let state = State::new(Mode::Take)?;
        let queue = queue(&tag_set_of(1)?, &state)?;
        let table = queue.tag_set().in_flight(0).ok_or(EINVAL)?;
        let mut batch = EndBatch::new();

        four(&[&queue], &state)?;
        table.claim_all(|rq| batch.complete(rq));
        // They are not in the batch.
        wait_for(|| state.ended() == (4, 0))?;
        drop(batch);
        check!(state.ended() == (4, 0));
        Ok(())
    }

    #[test]
    fn nothing_to_end() -> Result {
        drop(EndBatch::<Driver>::default());
        Ok(())
    }

    #[test]
    fn disk_that_is_read() -> Result {
        let state = State::new(Mode::Take)?;
        let disk = GenDiskBuilder::new()
            .limits(limits()?)
            .capacity_sectors(64)
            .build(fmt!("bmqbatch"), tag_set()?, state.clone())?;

        // The partition table was looked for, which waits for each read.
        wait_for(|| state.bytes_read.load(Relaxed) >= 512)?;
        drop(disk);
        Ok(())
    }
}
