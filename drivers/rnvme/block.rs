// SPDX-License-Identifier: GPL-2.0

//! Requests of the block layer become commands, and namespaces become disks.

use crate::{
    api::Way,
    command::{
        io,
        Command,
        CommandStatus, //
    },
    counters::Moved,
    ctrl::{
        Controller,
        Rarely, //
    },
    cut::Rules,
    identify::{
        Namespace,
        CTRL_PAGE_SIZE,
        MAX_TRANSFER, //
    },
    prp::{
        self,
        Fault, //
    },
    queue::{
        Queue,
        RequestLists, //
    },
    recovery,
    regs::Regs, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    block::mq::{
        gen_disk::{
            GenDisk,
            GenDiskBuilder, //
        },
        IdleRequest,
        InFlight,
        Op,
        Operations,
        OwnedRequest,
        QueueLimits,
        QueueMaps,
        QueueType,
        Started,
        Status,
        TagSet,
        TimedOut,
        TimeoutAction, //
    },
    dma::DataDirection,
    fmt,
    physdma::{
        Client,
        Limits,
        Mapping,
        Mixed,
        Origin,
        Part,
        PhysReqBvecs,
        PremappedSlice,
        ReqBvecs,
        Source, //
    },
    prelude::*,
    sync::Arc, //
};

/// How often a command is sent before its request fails, less one.
const MAX_RETRIES: u8 = 5;

/// The most segments of a request.
const MAX_SEGMENTS: u16 = (MAX_TRANSFER / CTRL_PAGE_SIZE) as u16 + 1;

/// What the driver's PRP lists can say to the device.
pub(crate) const CLIENT_LIMITS: Limits = Limits {
    max_segment_bytes: u32::MAX,
    boundary_mask: u64::MAX,
    max_segments: MAX_SEGMENTS,
};

/// The memory that a request of the driver's own moves.
#[derive(Clone, Copy)]
pub(crate) struct Carried {
    parts: NonNull<[Part<'static>]>,
    /// The length of all parts.
    pub(crate) bytes: u32,
}

// SAFETY: Who has it may look at a list that nobody changes.
unsafe impl Send for Carried {}
// SAFETY: As above.
unsafe impl Sync for Carried {}

impl Carried {
    /// `bytes` bytes, which are those of `parts`.
    ///
    /// # Safety
    ///
    /// Until the request has ended, `parts` lives, and what it says to be RAM stays allocated.
    pub(crate) unsafe fn new(parts: &[Part<'_>], bytes: u32) -> Self {
        Self {
            // The lifetimes of the list end here: the caller answers for them.
            parts: NonNull::slice_from_raw_parts(NonNull::from_ref(parts).cast(), parts.len()),
            bytes,
        }
    }

    /// The memory.
    ///
    /// # Safety
    ///
    /// The request has not ended, and what is mapped from it is unmapped before it ends.
    unsafe fn source<'r>(self) -> Result<Mixed<'r>> {
        // SAFETY: By the safety requirements, and those of `new()`.
        unsafe { Mixed::new(self.parts.as_ref()) }
    }
}

/// What lies beside each request: `struct nvme_iod` in the C driver.
pub(crate) struct Iod<'a> {
    mapping: Mapping<'a>,
    /// The long PRP lists that the request has, one bit each.
    pub(crate) lists: u64,
    /// The driver's own command, where the request is one.
    pub(crate) command: Command,
    /// The memory that it moves.
    pub(crate) carried: Option<Carried>,
    /// That memory, if it has been mapped before.
    pub(crate) premapped: Option<PremappedSlice<'a>>,
    /// The first double word of the answer.
    pub(crate) result: u32,
    /// How the device says that the command ended.
    pub(crate) status: CommandStatus,
    retries: u8,
}

/// What all queues of a tag set need.
pub(crate) struct Tags<'a, R: Regs> {
    /// The queue of each hardware context.
    pub(crate) queues: KVec<Arc<Queue<'a, R>>>,
    /// Who maps memory for the device.
    pub(crate) client: &'a Client<'a>,
    /// The data of a command may be in the controller's own memory in part.
    pub(crate) mixes: bool,
}

/// What a hardware context has.
pub(crate) struct Hw<'a, R: Regs> {
    queue: Arc<Queue<'a, R>>,
    client: &'a Client<'a>,
    mixes: bool,
}

/// What a request is about.
pub(crate) struct Target {
    /// The namespace; 0 for commands to the controller.
    pub(crate) nsid: u32,
    /// A block is two to the power of this bytes.
    pub(crate) lba_shift: u32,
}

/// The driver, as the block layer calls it: for disks and for the admin queue.
pub(crate) struct Ops<'a, R: Regs>(PhantomData<fn(&'a R) -> &'a R>);

impl<'a, R: Regs + 'a> Ops<'a, R> {
    /// Builds the command that `rq` is.
    #[inline]
    fn command(
        hw: &Hw<'a, R>,
        target: &Target,
        rq: &mut IdleRequest<'_, Self>,
    ) -> Result<(Command, Option<Moved>), Status> {
        if !hw.queue.is_enabled() {
            return Err(hw.queue.refusal());
        }
        match rq.op() {
            Op::Read => Self::read_write(hw, target, rq, io::READ, DataDirection::FromDevice),
            Op::Write => Self::read_write(hw, target, rq, io::WRITE, DataDirection::ToDevice),
            Op::Flush => Ok((Command::flush(target.nsid), None)),
            Op::DrvIn => Self::own_command(hw, rq, DataDirection::FromDevice),
            Op::DrvOut => Self::own_command(hw, rq, DataDirection::ToDevice),
            _ => Err(Status::NOTSUPP),
        }
    }

    /// Builds the command that moves the data of `rq`, which the block layer has asked for.
    #[inline]
    fn read_write(
        hw: &Hw<'a, R>,
        target: &Target,
        rq: &mut IdleRequest<'_, Self>,
        opcode: u8,
        dir: DataDirection,
    ) -> Result<(Command, Option<Moved>), Status> {
        let bytes = rq.bytes();
        let tag = rq.id().tag;
        let lba = rq.sector() >> (target.lba_shift - 9);
        let blocks = u16::try_from(bytes >> target.lba_shift).map_err(|_| Status::IOERR)?;
        let (rq, data) = rq.split();
        let command = Command::rw(opcode, target.nsid, lba, blocks, rq.is_fua());

        // Memory of another device, which has no pages.
        if let Some(mut source) = PhysReqBvecs::new(rq) {
            return Self::map(hw, data, tag, &mut source, bytes, dir, command);
        }
        // SAFETY: A request that was mapped is unmapped, in `complete()` or by `give_up()`, before
        // it is ended; the device writes to one that reads, by `dir`.
        let mut source = unsafe { ReqBvecs::new(rq) };
        Self::map(hw, data, tag, &mut source, bytes, dir, command)
    }

    /// Builds the driver's own command that `rq` is, and maps the memory that it moves.
    fn own_command(
        hw: &Hw<'a, R>,
        rq: &mut IdleRequest<'_, Self>,
        dir: DataDirection,
    ) -> Result<(Command, Option<Moved>), Status> {
        let tag = rq.id().tag;
        let data = rq.data_mut();
        let command = data.command;
        let Some(carried) = data.carried else {
            return Self::premapped(hw, data, tag, command);
        };

        // SAFETY: It has not ended, and is unmapped before it does.
        let mut source = unsafe { carried.source() }.map_err(|_| Status::INVAL)?;
        Self::map(hw, data, tag, &mut source, carried.bytes, dir, command)
    }

    /// Has `command` say where the memory is that was mapped before, if there is any.
    fn premapped(
        hw: &Hw<'a, R>,
        data: &mut Iod<'a>,
        tag: u16,
        command: Command,
    ) -> Result<(Command, Option<Moved>), Status> {
        let Some(slice) = &data.premapped else {
            return Ok((command, None));
        };
        let mut segments = slice.segments();
        let mut lists = RequestLists::new(&hw.queue, tag, &mut data.lists);

        match prp::build(
            || Ok(segments.next()?.map(|segment| (segment.dma, segment.len))),
            slice.len(),
            &mut lists,
        ) {
            Ok(prp) => {
                let moved = Moved {
                    bytes: slice.len(),
                    segments: segments.count(),
                    path: segments.path(),
                    spilled: 0,
                };
                Ok((command.with_prp(prp), Some(moved)))
            }
            Err(fault) => {
                hw.queue.give_lists(data);
                Err(Self::no_prp(&hw.queue, fault))
            }
        }
    }

    /// What a request is told whose memory could not be said to the device.
    #[cold]
    fn no_prp(queue: &Queue<'a, R>, fault: Fault<Error>) -> Status {
        match fault {
            // A request that completes gives its lists back.
            Fault::NoLists => Status::RESOURCE,
            Fault::Source(e) => Self::mapping_failed(queue, e),
            Fault::Misaligned | Fault::Length => {
                Self::malformed(queue, fault);
                Status::IOERR
            }
        }
    }

    /// Maps the `bytes` bytes of `source`, and has `command` say where they are.
    #[inline]
    fn map<S: Source>(
        hw: &Hw<'a, R>,
        data: &mut Iod<'a>,
        tag: u16,
        source: &mut S,
        bytes: u32,
        dir: DataDirection,
        command: Command,
    ) -> Result<(Command, Option<Moved>), Status> {
        let mut segments = hw
            .client
            .map(&mut data.mapping, source, dir)
            .map_err(|e| Self::mapping_failed(&hw.queue, e))?;
        let mut lists = RequestLists::new(&hw.queue, tag, &mut data.lists);
        let (mut own, mut others) = (false, false);

        match prp::build(
            || {
                let segment = segments.next()?;
                if !S::UNIFORM && !hw.mixes {
                    match segment.map(|segment| segment.origin) {
                        Some(Origin::Internal { .. }) => own = true,
                        Some(_) => others = true,
                        None => (),
                    }
                    // The device would refuse it too, or should.
                    if own && others {
                        return Err(EINVAL);
                    }
                }
                Ok(segment.map(|segment| (segment.dma, segment.len)))
            },
            bytes,
            &mut lists,
        ) {
            Ok(prp) => {
                let (path, segments) = (segments.path(), segments.count());
                let moved = Moved {
                    bytes,
                    segments,
                    path,
                    // CAST: Not more than segments.
                    spilled: data.mapping.spilled() as u16,
                };
                Ok((command.with_prp(prp), Some(moved)))
            }
            Err(fault) => {
                hw.queue.give_lists(data);
                data.mapping.unmap();
                Err(Self::no_prp(&hw.queue, fault))
            }
        }
    }

    /// What a request is told whose memory could not be mapped.
    #[cold]
    fn mapping_failed(queue: &Queue<'a, R>, e: Error) -> Status {
        let (why, status) = match e {
            ENOMEM | EAGAIN => return Status::RESOURCE,
            // Memory of a device that this one does not reach; why, is in the log.
            EINVAL => return Status::INVAL,
            ENODEV => ("its memory is being taken away", Status::OFFLINE),
            EFAULT => ("its memory is no provider's any more", Status::IOERR),
            _ => ("the kernel does not map its memory", Status::IOERR),
        };
        let ctrl = queue.ctrl();

        if let Some(count) = ctrl.unmapped.count() {
            dev_err!(
                ctrl.dev,
                "a request cannot be mapped: {}: {:?} ({} so far)\n",
                why,
                e,
                count
            );
        }
        status
    }

    /// The block layer keeps to the limits that it was told, so that this does not happen.
    #[cold]
    fn malformed(queue: &Queue<'a, R>, fault: Fault<Error>) {
        dev_err!(
            queue.ctrl().dev,
            "a request does not keep to the limits: {:?}\n",
            fault
        );
    }

    /// Ends, or sends again, a request that the device will not answer any more.
    ///
    /// What should fail fast is not sent again, and with it the driver's own commands that move no
    /// data.
    pub(crate) fn give_up(mut rq: OwnedRequest<Self>, retry: bool, status: Status) {
        let failfast = rq.is_failfast();
        let data = rq.data_mut();
        let retry = retry && (!failfast || data.carried.is_some() || data.premapped.is_some());

        data.mapping.unmap();
        if retry && data.retries < MAX_RETRIES {
            data.retries += 1;
            rq.requeue();
        } else {
            data.retries = 0;
            rq.end(status);
        }
    }
}

#[vtable]
impl<'a, R: Regs + 'a> Operations for Ops<'a, R> {
    type RequestData = Iod<'a>;
    type QueueData = Target;
    type HwData = Hw<'a, R>;
    type TagSetData = Tags<'a, R>;

    fn new_request_data(_tags: &Tags<'a, R>) -> impl Init<Iod<'a>, Error> {
        Ok::<_, Error>(Iod {
            mapping: Mapping::default(),
            lists: 0,
            command: Command::default(),
            carried: None,
            premapped: None,
            result: 0,
            status: CommandStatus::default(),
            retries: 0,
        })
    }

    fn init_hctx(
        tags: &Tags<'a, R>,
        hctx_idx: u32,
        _in_flight: &Arc<InFlight<Self>>,
    ) -> Result<Hw<'a, R>> {
        let queue = tags.queues.get(hctx_idx as usize).ok_or(EINVAL)?;

        Ok(Hw {
            queue: queue.clone(),
            client: tags.client,
            mixes: tags.mixes,
        })
    }

    #[inline]
    fn queue_rq<'r>(
        hw: &Hw<'a, R>,
        target: &Target,
        mut rq: IdleRequest<'r, Self>,
        is_last: bool,
    ) -> Result<Started<'r>, Status> {
        let queue = &*hw.queue;
        let (command, moved) = Self::command(hw, target, &mut rq).inspect_err(|&status| {
            if status != Status::RESOURCE {
                // It ends here, and the next request with this tag has all its tries.
                rq.data_mut().retries = 0;
            }
        })?;
        let command = command.encode(queue.cid(rq.id()));
        let started = rq.start();

        queue.submit(command, moved, is_last);
        Ok(started)
    }

    fn commit_rqs(hw: &Hw<'a, R>, _target: &Target) {
        hw.queue.commit();
    }

    #[inline]
    fn complete(mut rq: OwnedRequest<Self>) {
        let data = rq.data_mut();
        let status = data.status;

        if !status.is_ok() {
            return Self::give_up(rq, status.may_retry(), status.to_blk());
        }
        data.mapping.unmap();
        data.retries = 0;
        rq.end(Status::OK);
    }

    fn timeout(hw: &Hw<'a, R>, _target: &Target, rq: TimedOut<'_, Self>) -> TimeoutAction {
        recovery::timed_out(&hw.queue, rq)
    }

    fn map_queues(tags: &Tags<'a, R>, maps: &mut QueueMaps<'_>) {
        let Some(first) = tags.queues.first() else {
            return;
        };
        let nr = maps.nr_hw_queues();

        // The queues were numbered before; the spread over the CPUs that is there serves as well.
        let _ = maps.map_irqs(QueueType::Default, nr, 0, first.ctrl().dev, first.vector());
    }
}

/// A namespace as user space sees it.
pub(crate) struct Disk<'a, R: Regs> {
    /// Its number, which commands name it by.
    pub(crate) nsid: u32,
    /// The block layer's disk.
    pub(crate) disk: GenDisk<Ops<'a, R>>,
    /// A block is two to the power of this bytes.
    pub(crate) lba_shift: u32,
    /// Who maps memory for the controller.
    pub(crate) client: &'a Client<'a>,
    /// What a command takes that is made of parts.
    pub(crate) rules: Rules,
    /// How often memory could not be cut so.
    pub(crate) uncut: Rarely,
    /// How many blocks it has.
    blocks: u64,
}

impl<'a, R: Regs + 'a> Disk<'a, R> {
    /// Makes a disk of namespace `nsid` and shows it. Sleeps: the partition table is read.
    ///
    /// `max_transfer` is the most bytes of a request, and `write_cache` says whether what was
    /// written must be flushed.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or another error of `device_add_disk()`.
    pub(crate) fn new(
        ctrl: &Controller<'a, R>,
        tags: Arc<TagSet<Ops<'a, R>>>,
        name: fmt::Arguments<'_>,
        nsid: u32,
        ns: Namespace,
        max_transfer: u32,
        write_cache: bool,
    ) -> Result<Self> {
        let block = 1 << ns.lba_shift;
        let rules = Rules {
            max_bytes: max_transfer,
            block,
            mixes: tags.data().mixes,
        };
        let client = tags.data().client;
        let limits = QueueLimits::new()
            .logical_block_size(block)?
            .physical_block_size(block)?
            .max_hw_sectors(max_transfer >> 9)
            .max_segments(MAX_SEGMENTS)
            .max_segment_size(u32::MAX)
            .virt_boundary_mask(CTRL_PAGE_SIZE as usize - 1)
            .dma_alignment(3)
            .write_cache(write_cache)
            .fua(write_cache)
            .pci_p2pdma(true)
            .phys(true);
        let target = Target {
            nsid,
            lba_shift: ns.lba_shift,
        };
        let disk = GenDiskBuilder::new()
            .limits(limits)
            .capacity_sectors(ns.sectors())
            .parent(ctrl.dev)
            .read_only(ns.read_only)
            .build(name, tags, target)?;

        Ok(Self {
            nsid,
            disk,
            lba_shift: ns.lba_shift,
            client,
            rules,
            uncut: Rarely::new(),
            blocks: ns.sectors() >> (ns.lba_shift - 9),
        })
    }

    /// Fails unless the `bytes` bytes from block `lba` on can be moved, so far as the disk goes.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: they are not whole blocks.
    /// - `EROFS`: it cannot be written to.
    /// - `ENOSPC`: it does not have all of these blocks.
    pub(crate) fn check(&self, way: Way, lba: u64, bytes: u32) -> Result {
        if bytes == 0 || bytes % self.rules.block != 0 {
            return Err(EINVAL);
        }
        if way == Way::Write && self.disk.is_read_only() {
            return Err(EROFS);
        }
        match lba.checked_add((bytes >> self.lba_shift).into()) {
            Some(end) if end <= self.blocks => Ok(()),
            _ => Err(ENOSPC),
        }
    }
}
