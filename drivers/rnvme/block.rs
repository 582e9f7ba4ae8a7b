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
    prp::Fault,
    queue::Queue,
    recovery,
    regs::Regs, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    block::{
        mq::{
            gen_disk::{
                GenDisk,
                GenDiskBuilder, //
            },
            CommandId,
            EndBatch,
            IdleRequest,
            InFlight,
            Op,
            Operations,
            OwnedRequest,
            QueueBatch,
            QueueLimits,
            QueueMaps,
            QueueType,
            Request,
            Started,
            Status,
            TagSet,
            TimedOut,
            TimeoutAction, //
        },
        SECTOR_SHIFT, //
    },
    dma::DataDirection,
    fmt,
    physdma::{
        Client,
        Limits,
        Mapping,
        Mixed,
        Part,
        PhysReqBvecs,
        PremappedSlice,
        ReqBvecs,
        Segment, //
    },
    prelude::*,
    sync::Arc, //
};

/// How often a command is sent before its request fails, less one.
const MAX_RETRIES: u8 = 5;

/// The most segments of a request.
const MAX_SEGMENTS: u16 = (MAX_TRANSFER / CTRL_PAGE_SIZE) as u16 + 1;

/// What the driver's PRP lists can say to the device; an SGL descriptor says no less.
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
    pub(crate) mapping: Mapping<'a>,
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
    /// A command may say where its data are by an SGL descriptor.
    pub(crate) sgls: bool,
}

/// What a hardware context has.
pub(crate) struct Hw<'a, R: Regs> {
    pub(crate) queue: Arc<Queue<'a, R>>,
    pub(crate) client: &'a Client<'a>,
    pub(crate) mixes: bool,
    pub(crate) sgls: bool,
}

/// What a request is about.
pub(crate) struct Target {
    /// The namespace; 0 for commands to the controller.
    pub(crate) nsid: u32,
    /// A block is two to the power of this bytes.
    pub(crate) lba_shift: u32,
}

/// A request of which [`Ops::prepare`] has made what it can.
enum Quick {
    /// It is ready to be sent.
    Command(Command, Moved),
    /// It is not; its data were mapped to this segment, if to any.
    Slow(Option<Segment>),
}

/// The driver, as the block layer calls it: for disks and for the admin queue.
pub(crate) struct Ops<'a, R: Regs>(PhantomData<fn(&'a R) -> &'a R>);

impl<'a, R: Regs + 'a> Ops<'a, R> {
    /// Sends the device the command that `rq` is, and tells it if `is_last`.
    #[inline]
    fn queue<'r>(
        hw: &Hw<'a, R>,
        target: &Target,
        mut rq: IdleRequest<'r, Self>,
        is_last: bool,
    ) -> Result<Started<'r>, Status> {
        let id = rq.id();

        match Self::prepare(hw, target, &mut rq) {
            Ok(Quick::Command(command, moved)) => {
                Ok(Self::send(&hw.queue, rq, id, command, Some(moved), is_last))
            }
            Ok(Quick::Slow(only)) => Self::queue_other(hw, target, rq, id, only, is_last),
            Err(status) => Err(Self::refused(rq, status)),
        }
    }

    /// The rest of [`Self::queue`], for what is not prepared so quickly.
    #[inline(never)]
    fn queue_other<'r>(
        hw: &Hw<'a, R>,
        target: &Target,
        mut rq: IdleRequest<'r, Self>,
        id: CommandId,
        only: Option<Segment>,
        is_last: bool,
    ) -> Result<Started<'r>, Status> {
        match Self::command(hw, target, &mut rq, id.tag, only) {
            Ok((command, moved)) => Ok(Self::send(&hw.queue, rq, id, command, moved, is_last)),
            Err(status) => Err(Self::refused(rq, status)),
        }
    }

    /// Starts `rq`, and sends `command`.
    #[inline(always)]
    fn send<'r>(
        queue: &Queue<'a, R>,
        rq: IdleRequest<'r, Self>,
        id: CommandId,
        command: Command,
        moved: Option<Moved>,
        is_last: bool,
    ) -> Started<'r> {
        let command = command.encode(queue.cid(id));
        let started = rq.start();

        queue.submit(command, moved, is_last);
        started
    }

    /// What becomes of a request that could not be sent.
    #[cold]
    fn refused(mut rq: IdleRequest<'_, Self>, status: Status) -> Status {
        let data = rq.data_mut();

        data.mapping.unmap();
        if !matches!(status, Status::RESOURCE | Status::DEV_RESOURCE) {
            // It ends here, and the next request with this tag has all its tries.
            data.retries = 0;
        }
        status
    }

    /// Ends a request that the device has answered, or has [`Operations::complete`] called if it
    /// failed.
    #[inline]
    pub(crate) fn answered(
        mut rq: OwnedRequest<Self>,
        status: CommandStatus,
        result: u32,
        batch: &mut EndBatch<Self>,
    ) {
        let data = rq.data_mut();

        data.status = status;
        data.result = result;
        if !status.is_ok() {
            return rq.complete();
        }
        data.mapping.unmap();
        data.retries = 0;
        batch.complete(rq);
    }

    /// Builds the command that `rq` is, if its data are one piece of memory, and the command has
    /// room to say where: what most requests are.
    #[inline(always)]
    fn prepare(
        hw: &Hw<'a, R>,
        target: &Target,
        rq: &mut IdleRequest<'_, Self>,
    ) -> Result<Quick, Status> {
        if !hw.queue.is_enabled() {
            return Err(hw.queue.refusal());
        }
        let Some((opcode, dir)) = Self::moves(rq.op()) else {
            return Ok(Quick::Slow(None));
        };
        let command = Self::read_write(target, rq, opcode)?;
        let bytes = rq.sectors() << SECTOR_SHIFT;
        let (rq, data) = rq.split();
        let mapped = if let Some(source) = PhysReqBvecs::new(rq) {
            // What is taken out of the result here leaves that of the usual case in registers.
            Self::map_phys(hw, data, &source, dir).map_err(|e| hw.mapping_failed(e))?
        } else {
            // SAFETY: A request that was mapped is unmapped before it is ended: when it is answered,
            // by `give_up()`, or by `refused()`. The device writes to one that reads, by `dir`.
            let source = unsafe { ReqBvecs::new(rq) };
            let mapped = hw.client.map_one(&mut data.mapping, &source, dir);
            mapped.map_err(|e| hw.mapping_failed(e))?
        };

        match mapped {
            Some(only) if only.len != bytes => {
                hw.malformed(Fault::Length);
                Err(Status::IOERR)
            }
            Some(only) => Ok(match hw.one_segment(only.dma, bytes) {
                Some(data) => Quick::Command(command.with_data(data), Moved::one(only)),
                None => Quick::Slow(Some(only)),
            }),
            None => Ok(Quick::Slow(None)),
        }
    }

    /// Maps memory of another device, which has no pages, if it is one piece.
    #[inline(never)]
    fn map_phys(
        hw: &Hw<'a, R>,
        data: &mut Iod<'a>,
        source: &PhysReqBvecs<'_>,
        dir: DataDirection,
    ) -> Result<Option<Segment>> {
        hw.client.map_one(&mut data.mapping, source, dir)
    }

    /// The command that `op` is, if it reads or writes blocks, and what the device does with memory.
    #[inline]
    fn moves(op: Op) -> Option<(u8, DataDirection)> {
        match op {
            Op::Read => Some((io::READ, DataDirection::FromDevice)),
            Op::Write => Some((io::WRITE, DataDirection::ToDevice)),
            _ => None,
        }
    }

    /// Builds the command that reads or writes the blocks of `rq`.
    #[inline]
    fn read_write(target: &Target, rq: &Request, opcode: u8) -> Result<Command, Status> {
        let shift = target.lba_shift - SECTOR_SHIFT;
        let lba = rq.sector() >> shift;
        let blocks = u16::try_from(rq.sectors() >> shift).map_err(|_| Status::IOERR)?;

        Ok(Command::rw(opcode, target.nsid, lba, blocks, rq.is_fua()))
    }

    /// Builds the command that `rq` is, whose data are `only`, if they were mapped already.
    fn command(
        hw: &Hw<'a, R>,
        target: &Target,
        rq: &mut IdleRequest<'_, Self>,
        tag: u16,
        only: Option<Segment>,
    ) -> Result<(Command, Option<Moved>), Status> {
        let Some((opcode, dir)) = Self::moves(rq.op()) else {
            return match rq.op() {
                Op::Flush => Ok((Command::flush(target.nsid), None)),
                Op::DrvIn => Self::own_command(hw, rq, tag, DataDirection::FromDevice),
                Op::DrvOut => Self::own_command(hw, rq, tag, DataDirection::ToDevice),
                _ => Err(Status::NOTSUPP),
            };
        };
        let command = Self::read_write(target, rq, opcode)?;
        let bytes = rq.sectors() << SECTOR_SHIFT;
        let (rq, data) = rq.split();
        let (data, moved) = if let Some(only) = only {
            hw.one(data, tag, only, bytes)?
        } else if let Some(source) = PhysReqBvecs::new(rq) {
            hw.pieces(data, tag, source, bytes, dir)?
        } else {
            // SAFETY: As in `prepare()`.
            let source = unsafe { ReqBvecs::new(rq) };
            hw.pieces(data, tag, source, bytes, dir)?
        };

        Ok((command.with_data(data), Some(moved)))
    }

    /// Builds the driver's own command that `rq` is, and maps the memory that it moves.
    fn own_command(
        hw: &Hw<'a, R>,
        rq: &mut IdleRequest<'_, Self>,
        tag: u16,
        dir: DataDirection,
    ) -> Result<(Command, Option<Moved>), Status> {
        let data = rq.data_mut();
        let command = data.command;
        let Some(carried) = data.carried else {
            return hw.premapped(data, tag, command);
        };

        // SAFETY: It has not ended, and is unmapped before it does.
        let source = unsafe { carried.source() }.map_err(|_| Status::INVAL)?;
        let (data, moved) = hw.pieces(data, tag, source, carried.bytes, dir)?;
        Ok((command.with_data(data), Some(moved)))
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
            sgls: tags.sgls,
        })
    }

    #[inline]
    fn queue_rq<'r>(
        hw: &Hw<'a, R>,
        target: &Target,
        rq: IdleRequest<'r, Self>,
        is_last: bool,
    ) -> Result<Started<'r>, Status> {
        Self::queue(hw, target, rq, is_last)
    }

    #[inline]
    fn queue_rqs(hw: &Hw<'a, R>, target: &Target, batch: &mut QueueBatch<'_, Self>) {
        batch.for_each(|rq| Self::queue(hw, target, rq, false));
        hw.queue.commit();
    }

    fn commit_rqs(hw: &Hw<'a, R>, _target: &Target) {
        hw.queue.commit();
    }

    fn complete(rq: OwnedRequest<Self>) {
        let status = rq.data().status;

        // Most that succeeded were ended in a batch.
        Self::give_up(rq, !status.is_ok() && status.may_retry(), status.to_blk());
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
