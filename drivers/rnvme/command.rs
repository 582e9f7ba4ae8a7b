// SPDX-License-Identifier: GPL-2.0

//! Commands and completions as they stand in the queues.
//!
//! NVM Express Base Specification 2.0, sections 3.3.3, 5 and 7; NVM Command Set Specification 1.0,
//! section 3.

use crate::sgl;
use kernel::block::mq::Status as BlkStatus;

/// A submission queue entry as it lies in memory: 64 bytes, little endian.
pub(crate) type RawCommand = [u64; 8];

/// A completion queue entry as it lies in memory: 16 bytes, little endian.
pub(crate) type RawCompletion = [u32; 4];

const _: () = assert!(size_of::<RawCommand>() == 64);
const _: () = assert!(size_of::<RawCompletion>() == 16);

/// Two to the power of this is the size of a submission queue entry.
pub(crate) const SQES: u32 = size_of::<RawCommand>().ilog2();
/// Two to the power of this is the size of a completion queue entry.
pub(crate) const CQES: u32 = size_of::<RawCompletion>().ilog2();

/// Operation codes of the admin queue.
pub(crate) mod admin {
    /// Delete I/O Submission Queue.
    pub(crate) const DELETE_SQ: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub(crate) const CREATE_SQ: u8 = 0x01;
    /// Delete I/O Completion Queue.
    pub(crate) const DELETE_CQ: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub(crate) const CREATE_CQ: u8 = 0x05;
    /// Identify.
    pub(crate) const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub(crate) const ABORT: u8 = 0x08;
    /// Set Features.
    pub(crate) const SET_FEATURES: u8 = 0x09;
    /// Doorbell Buffer Config.
    pub(crate) const DOORBELL_BUFFERS: u8 = 0x7c;
}

/// Operation codes of the NVM command set.
pub(crate) mod io {
    /// Flush.
    pub(crate) const FLUSH: u8 = 0x00;
    /// Write.
    pub(crate) const WRITE: u8 = 0x01;
    /// Read.
    pub(crate) const READ: u8 = 0x02;
}

/// What Identify asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cns {
    /// A namespace.
    Namespace = 0x00,
    /// The controller.
    Controller = 0x01,
    /// The active namespaces with an identifier greater than the given one.
    ActiveNamespaces = 0x02,
    /// What identifies a namespace, its command set among it.
    Descriptors = 0x03,
}

/// Where the data of a command are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataPointer {
    /// Its PRP entries.
    Prp([u64; 2]),
    /// Its SGL descriptor.
    Sgl([u64; 2]),
}

/// A command, without its identifier.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Command {
    opcode: u8,
    flags: u8,
    nsid: u32,
    data: [u64; 2],
    /// Command dwords 10 to 12.
    cdw: [u32; 3],
}

impl Command {
    /// Begins a command for a namespace; 0 where it is for none.
    #[inline]
    fn new(opcode: u8, nsid: u32) -> Self {
        Self {
            opcode,
            nsid,
            ..Self::default()
        }
    }

    /// Sets where the data are.
    #[inline]
    pub(crate) fn with_data(mut self, data: DataPointer) -> Self {
        match data {
            DataPointer::Prp(entries) => self.data = entries,
            DataPointer::Sgl(descriptor) => {
                self.data = descriptor;
                self.flags = sgl::FLAG;
            }
        }
        self
    }

    /// Read or write `blocks` blocks, at least one, from `lba` on. With `fua` the answer to a write
    /// waits until the data are on non-volatile media.
    #[inline]
    pub(crate) fn rw(opcode: u8, nsid: u32, lba: u64, blocks: u16, fua: bool) -> Self {
        let mut this = Self::new(opcode, nsid);

        // CAST: Each half in its own dword.
        this.cdw[0] = lba as u32;
        this.cdw[1] = (lba >> 32) as u32;
        this.cdw[2] = u32::from(blocks.wrapping_sub(1)) | u32::from(fua) << 30;
        this
    }

    /// Put what the volatile write cache holds on non-volatile media.
    #[inline]
    pub(crate) fn flush(nsid: u32) -> Self {
        Self::new(io::FLUSH, nsid)
    }

    /// Identify, with the answer in the 4 KiB at `dma`.
    pub(crate) fn identify(cns: Cns, nsid: u32, dma: u64) -> Self {
        let mut this = Self::new(admin::IDENTIFY, nsid).with_data(DataPointer::Prp([dma, 0]));

        this.cdw[0] = cns as u32;
        this
    }

    /// Ask for `queues` I/O queue pairs, at least one. The answer is [`queues_granted()`].
    pub(crate) fn set_queues(queues: u16) -> Self {
        const NUMBER_OF_QUEUES: u32 = 0x07;
        let mut this = Self::new(admin::SET_FEATURES, 0);
        let n = u32::from(queues.wrapping_sub(1));

        this.cdw[0] = NUMBER_OF_QUEUES;
        this.cdw[1] = n << 16 | n;
        this
    }

    /// Look for doorbells in the first buffer, and say in the second up to where.
    pub(crate) fn doorbell_buffers(addresses: [u64; 2]) -> Self {
        Self::new(admin::DOORBELL_BUFFERS, 0).with_data(DataPointer::Prp(addresses))
    }

    /// Make the completion queue `qid` of `entries` entries at `dma`, that interrupts by `vector`.
    pub(crate) fn create_cq(qid: u16, entries: u32, dma: u64, vector: u16) -> Self {
        const CONTIGUOUS: u32 = 1 << 0;
        const INTERRUPTS: u32 = 1 << 1;
        let mut this = Self::new(admin::CREATE_CQ, 0).with_data(DataPointer::Prp([dma, 0]));

        this.cdw[0] = entries.wrapping_sub(1) << 16 | u32::from(qid);
        this.cdw[1] = u32::from(vector) << 16 | INTERRUPTS | CONTIGUOUS;
        this
    }

    /// Make the submission queue `qid` of `entries` entries at `dma`, answered in the completion
    /// queue of the same number.
    pub(crate) fn create_sq(qid: u16, entries: u32, dma: u64) -> Self {
        const CONTIGUOUS: u32 = 1 << 0;
        let mut this = Self::new(admin::CREATE_SQ, 0).with_data(DataPointer::Prp([dma, 0]));

        this.cdw[0] = entries.wrapping_sub(1) << 16 | u32::from(qid);
        this.cdw[1] = u32::from(qid) << 16 | CONTIGUOUS;
        this
    }

    /// Delete the submission queue `qid`.
    pub(crate) fn delete_sq(qid: u16) -> Self {
        let mut this = Self::new(admin::DELETE_SQ, 0);

        this.cdw[0] = qid.into();
        this
    }

    /// Delete the completion queue `qid`, the submission queue of which was deleted.
    pub(crate) fn delete_cq(qid: u16) -> Self {
        let mut this = Self::new(admin::DELETE_CQ, 0);

        this.cdw[0] = qid.into();
        this
    }

    /// Abort the command `cid` of queue `qid`.
    pub(crate) fn abort(qid: u16, cid: u16) -> Self {
        let mut this = Self::new(admin::ABORT, 0);

        this.cdw[0] = u32::from(cid) << 16 | u32::from(qid);
        this
    }

    /// The entry for the submission queue.
    #[inline]
    pub(crate) fn encode(&self, cid: u16) -> RawCommand {
        let pair = |lo: u32, hi: u32| u64::from(hi) << 32 | u64::from(lo);

        [
            pair(
                u32::from(cid) << 16 | u32::from(self.flags) << 8 | u32::from(self.opcode),
                self.nsid,
            ),
            0,
            0,
            self.data[0],
            self.data[1],
            pair(self.cdw[0], self.cdw[1]),
            pair(self.cdw[2], 0),
            0,
        ]
        .map(u64::to_le)
    }
}

/// How many I/O queue pairs the answer to [`Command::set_queues`] grants.
pub(crate) fn queues_granted(result: u32) -> u32 {
    (result & 0xffff).min(result >> 16) + 1
}

/// The last double word of a completion, which the controller writes last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompletionTail(pub(crate) u32);

impl CompletionTail {
    /// Which double word of the entry it is.
    pub(crate) const INDEX: usize = 3;

    /// Toggles with each pass through the queue: tells a new entry from an old one.
    #[inline]
    pub(crate) fn phase(self) -> bool {
        self.0 & 1 << 16 != 0
    }

    /// The command that is answered.
    #[inline]
    pub(crate) fn cid(self) -> u16 {
        // CAST: The lower half.
        self.0 as u16
    }

    /// How it ended.
    #[inline]
    pub(crate) fn status(self) -> CommandStatus {
        // CAST: The upper half, less the phase.
        CommandStatus((self.0 >> 17) as u16)
    }
}

/// How a command ended, as the controller says: the status field of a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandStatus(pub(crate) u16);

impl CommandStatus {
    const DNR: u16 = 1 << 14;

    /// Internal error, not to be retried: what the driver says itself where there is no answer, or
    /// none that can be true.
    pub(crate) const INTERNAL: Self = Self(Self::DNR | 0x006);

    /// There is no answer yet: no status of a controller has this bit.
    pub(crate) const UNANSWERED: Self = Self(1 << 15 | Self::INTERNAL.0);

    /// The command did what it should.
    #[inline]
    pub(crate) fn is_ok(self) -> bool {
        self.code() == 0
    }

    /// Whether the same command may succeed when it is sent again.
    pub(crate) fn may_retry(self) -> bool {
        self.0 & Self::DNR == 0
    }

    /// Status code type and status code.
    #[inline]
    fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    /// What the block layer understands of it; the same as the C driver tells it.
    pub(crate) fn to_blk(self) -> BlkStatus {
        match self.code() {
            0x000 => BlkStatus::OK,
            // Capacity exceeded.
            0x081 => BlkStatus::NOSPC,
            // LBA out of range; command interrupted; namespace not ready.
            0x080 | 0x021 | 0x082 => BlkStatus::TARGET,
            // Conflicting attributes; invalid operation code, field or namespace.
            0x180 | 0x001 | 0x002 | 0x00b => BlkStatus::NOTSUPP,
            // Write fault, unrecovered read error, compare failure, access denied, deallocated or
            // unwritten block; write to what is read only.
            0x280 | 0x281 | 0x285..=0x287 | 0x182 => BlkStatus::MEDIUM,
            // Guard, application tag or reference tag check; invalid protection information.
            0x282..=0x284 | 0x181 => BlkStatus::PROTECTION,
            // Reservation conflict.
            0x083 => BlkStatus::RESV_CONFLICT,
            // Host path error.
            0x370 => BlkStatus::TRANSPORT,
            _ => BlkStatus::IOERR,
        }
    }
}
