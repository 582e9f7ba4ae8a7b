// SPDX-License-Identifier: GPL-2.0

//! The controller's registers, and how they are reached.
//!
//! NVM Express Base Specification 2.0, section 3.1. 64-bit registers are accessed as two halves,
//! as not every controller takes them at once.

use kernel::{
    io::{
        register,
        Io,
        IoBackend,
        IoCapable,
        Region, //
    },
    prelude::*, //
};

/// Where the doorbells begin, and the least size of the register BAR.
pub(crate) const DOORBELLS: usize = 0x1000;

register! {
    /// Controller capabilities, lower half.
    pub(crate) CAP_LO(u32) @ 0x00 {
        /// The longest time that a change of [`CSTS`] may take, in units of 500 ms.
        31:24 to;
        /// Queues must be physically contiguous.
        16:16 cqr => bool;
        /// Entries in the longest I/O queue, less one.
        15:0 mqes;
    }

    /// Controller capabilities, upper half.
    pub(crate) CAP_HI(u32) @ 0x04 {
        /// [`CRTO`] tells how long it takes until the media are ready, too.
        27:27 crwms => bool;
        /// There is a controller memory buffer that has to be enabled.
        25:25 cmbs => bool;
        /// There is a persistent memory region.
        24:24 pmrs => bool;
        /// Smallest memory page: two to the power of (12 + this).
        19:16 mpsmin;
        /// No I/O command set is supported.
        12:12 css_admin_only => bool;
        /// I/O command sets are found by their identifiers.
        11:11 css_iocs => bool;
        /// The NVM command set is supported.
        5:5 css_nvm => bool;
        /// Distance of neighbouring doorbells: two to the power of (2 + this) bytes.
        3:0 dstrd;
    }

    /// Version.
    pub(crate) VS(u32) @ 0x08 {
        /// Major.
        31:16 mjr;
        /// Minor.
        15:8 mnr;
    }

    /// Controller configuration.
    pub(crate) CC(u32) @ 0x14 {
        /// Completion queue entry size: two to the power of this.
        23:20 iocqes;
        /// Submission queue entry size: two to the power of this.
        19:16 iosqes;
        /// Shutdown notification.
        15:14 shn;
        /// Memory page size: two to the power of (12 + this).
        10:7 mps;
        /// The I/O command set.
        6:4 css;
        /// Enable.
        0:0 en => bool;
    }

    /// Controller status.
    pub(crate) CSTS(u32) @ 0x1c {
        /// Shutdown status.
        3:2 shst;
        /// The controller has failed for good.
        1:1 cfs => bool;
        /// Ready.
        0:0 rdy => bool;
    }

    /// Lengths of the admin queues, less one.
    pub(crate) AQA(u32) @ 0x24 {
        /// Completion queue.
        27:16 acqs;
        /// Submission queue.
        11:0 asqs;
    }

    /// Address of the admin submission queue, lower half.
    pub(crate) ASQ_LO(u32) @ 0x28 {
        31:0 value;
    }

    /// Address of the admin submission queue, upper half.
    pub(crate) ASQ_HI(u32) @ 0x2c {
        31:0 value;
    }

    /// Address of the admin completion queue, lower half.
    pub(crate) ACQ_LO(u32) @ 0x30 {
        31:0 value;
    }

    /// Address of the admin completion queue, upper half.
    pub(crate) ACQ_HI(u32) @ 0x34 {
        31:0 value;
    }

    /// Where the controller memory buffer is.
    pub(crate) CMBLOC(u32) @ 0x38 {
        /// Where in the BAR, in units of [`CMBSZ`].
        31:12 ofst;
        /// The data of a command may be in it in part.
        7:7 cdmmms => bool;
        /// The BAR.
        2:0 bir;
    }

    /// How large the controller memory buffer is, and what for.
    pub(crate) CMBSZ(u32) @ 0x3c {
        /// Units.
        31:12 sz;
        /// A unit is two to the power of (12 + 4 * this) bytes.
        11:8 szu;
        /// Data to be written may be there.
        4:4 wds => bool;
        /// Data may be read to there.
        3:3 rds => bool;
    }

    /// Controller memory buffer memory space control, lower half.
    pub(crate) CMBMSC_LO(u32) @ 0x50 {
        /// The address by which commands mean the buffer, in units of 4 KiB.
        31:12 cba;
        /// Commands may mean it.
        1:1 cmse => bool;
        /// [`CMBLOC`] and [`CMBSZ`] tell.
        0:0 cre => bool;
    }

    /// Controller memory buffer memory space control, upper half.
    pub(crate) CMBMSC_HI(u32) @ 0x54 {
        31:0 cba;
    }

    /// Status of the controller memory buffer.
    pub(crate) CMBSTS(u32) @ 0x58 {
        /// Its address is invalid.
        0:0 cbai => bool;
    }

    /// Controller ready timeouts.
    pub(crate) CRTO(u32) @ 0x68 {
        /// The longest time from enabling the controller until its media are ready, in units of
        /// 500 ms.
        15:0 crwmt;
    }

    /// What the persistent memory region can do.
    pub(crate) PMRCAP(u32) @ 0xe00 {
        /// Commands may mean it.
        24:24 cmss => bool;
        /// How long a change of [`PMRSTS`] may take, in units of `pmrtu`.
        23:16 pmrto;
        /// 500 ms, or a minute.
        9:8 pmrtu;
        /// The BAR, all of which it is.
        7:5 bir;
        /// Data to be written may be there.
        4:4 wds => bool;
        /// Data may be read to there.
        3:3 rds => bool;
    }

    /// Persistent memory region control.
    pub(crate) PMRCTL(u32) @ 0xe04 {
        /// Enable.
        0:0 en => bool;
    }

    /// Status of the persistent memory region.
    pub(crate) PMRSTS(u32) @ 0xe08 {
        /// The address by which commands mean it is invalid.
        12:12 cbai => bool;
        /// What happened to it; 0 if all is well.
        11:9 hsts;
        /// Not ready.
        8:8 nrdy => bool;
        /// Errors.
        7:0 err;
    }

    /// Persistent memory region memory space control, lower half.
    pub(crate) PMRMSC_LO(u32) @ 0xe14 {
        /// The address by which commands mean the region, in units of 4 KiB.
        31:12 cba;
        /// Commands may mean it.
        1:1 cmse => bool;
    }

    /// Persistent memory region memory space control, upper half.
    pub(crate) PMRMSC_HI(u32) @ 0xe18 {
        31:0 cba;
    }
}

/// [`CC`]`.shn`: the disk is about to lose power in an orderly way.
pub(crate) const SHN_NORMAL: u32 = 1;
/// [`CSTS`]`.shst`: the disk has done what it had to.
pub(crate) const SHST_COMPLETE: u32 = 2;
/// The most of [`CRTO`]`.crwmt` that is believed: 5 minutes, in units of 500 ms.
const MAX_READY: u32 = 600;
/// [`CC`]`.css`: all command sets that the controller has.
pub(crate) const CSS_ALL: u32 = 6;

impl CSTS {
    /// Whether the registers cannot be read: the device was removed, or its memory space is off.
    pub(crate) fn is_gone(self) -> bool {
        self.into_raw() == u32::MAX
    }

    /// Whether the controller takes commands, as far as it can be seen.
    pub(crate) fn takes_commands(self) -> bool {
        !self.is_gone() && self.rdy() && !self.cfs()
    }
}

/// What the driver needs from the bus: registers, and a hold on interrupts and DMA.
///
/// The PCI bus is one implementation; another one plays a controller that lies.
pub(crate) trait Regs: Send + Sync {
    /// How registers are read and written.
    type Backend: IoCapable<u32>;

    /// The registers.
    fn io(&self) -> <Self::Backend as IoBackend>::View<'_, Region<DOORBELLS>>;

    /// Keeps an interrupt from being handled until it is dropped.
    type IrqOff<'r>
    where
        Self: 'r;

    /// Keeps interrupt `vector` from being handled, and waits until it is not. Sleeps.
    fn irq_off(&self, vector: u32) -> Self::IrqOff<'_>;

    /// Keeps the device from accessing memory, until the driver is bound to it again.
    fn isolate(&self);

    /// Where `bar` is, if there is one and it is memory.
    fn bar(&self, bar: u32) -> Option<Bar>;

    /// Memory of the device that is open to other devices until this is dropped.
    type Opened;

    /// Opens `len` bytes from `start` on of `bar` to other devices. May sleep.
    ///
    /// # Errors
    ///
    /// Were logged.
    fn open(&self, bar: u32, start: u64, len: u64) -> Result<Self::Opened>;
}

/// A BAR that is memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    /// Its address on the bus.
    pub(crate) address: u64,
    /// Its length in bytes.
    pub(crate) len: u64,
}

/// The bytes that the registers take up when the doorbells are `stride` bytes apart and the last
/// queue is `qid`.
pub(crate) const fn bar_len(qid: u16, stride: usize) -> usize {
    doorbell(qid, stride, true) + size_of::<u32>()
}

/// The highest queue whose doorbells, `stride` bytes apart, are within `len` bytes of registers;
/// there is room for one at least.
pub(crate) fn max_qid(len: usize, stride: usize) -> u16 {
    let pairs = len.saturating_sub(DOORBELLS).checked_div(2 * stride);

    u16::try_from(pairs.unwrap_or(0).saturating_sub(1)).unwrap_or(u16::MAX)
}

/// The offset of a queue's doorbell.
pub(crate) const fn doorbell(qid: u16, stride: usize, completion: bool) -> usize {
    DOORBELLS + (2 * qid as usize + completion as usize) * stride
}

/// What [`CAP_LO`] and [`CAP_HI`] say, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capabilities {
    /// Entries in the longest I/O queue: 2 to 65536.
    pub(crate) max_entries: u32,
    /// Bytes between doorbells.
    pub(crate) stride: usize,
    /// The longest time that disabling may take, in milliseconds.
    pub(crate) timeout_ms: i64,
    /// The longest time that enabling may take, in milliseconds.
    pub(crate) ready_ms: i64,
    /// What to write to [`CC`]`.css`.
    pub(crate) css: u32,
    /// The highest queue id whose doorbells are in the BAR.
    pub(crate) max_qid: u16,
    /// There is a controller memory buffer that has to be enabled.
    pub(crate) cmbs: bool,
    /// There is a persistent memory region.
    pub(crate) pmrs: bool,
}

/// Why a controller cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// All ones are read: nobody answers.
    Gone,
    /// It wants memory pages larger than 4 KiB; its smallest are two to the power of this.
    PageSize(u32),
    /// It has no command set for block I/O.
    CommandSet,
    /// An I/O queue of one entry can hold nothing.
    QueueSize,
    /// The BAR has no room for the doorbells of an I/O queue.
    BarSize(usize),
}

impl From<Unusable> for Error {
    fn from(_: Unusable) -> Self {
        ENODEV
    }
}

impl Capabilities {
    /// Reads the capabilities, and checks that the driver can work with them.
    pub(crate) fn read<R: Regs>(regs: &R) -> Result<Self, Unusable> {
        let io = regs.io();
        let lo = io.read(CAP_LO);
        let hi = io.read(CAP_HI);

        if io.read(CSTS).is_gone() {
            return Err(Unusable::Gone);
        }
        if hi.mpsmin() != 0 {
            return Err(Unusable::PageSize(12 + u32::from(hi.mpsmin())));
        }
        // With the NVM command set alone, namespaces of other sets would look like those of that
        // one.
        let css = if hi.css_iocs() && (hi.css_nvm() || !hi.css_admin_only()) {
            CSS_ALL
        } else if hi.css_nvm() {
            0
        } else {
            return Err(Unusable::CommandSet);
        };
        if lo.mqes() == 0 {
            return Err(Unusable::QueueSize);
        }
        let stride = 4usize << u32::from(hi.dstrd());
        if io.size() < bar_len(1, stride) {
            return Err(Unusable::BarSize(io.size()));
        }
        // As in C, not less than the other time, whatever the controller says; but the longest time
        // that it can say is 9 hours.
        let ready = match hi.crwms() {
            true => u32::from(io.read(CRTO).crwmt()).min(MAX_READY),
            false => 0,
        };
        // One more, as the controller may have begun a unit just now.
        let ms = |units: u32| (i64::from(units) + 1) * 500;

        Ok(Self {
            max_entries: u32::from(lo.mqes()) + 1,
            stride,
            timeout_ms: ms(lo.to().into()),
            ready_ms: ms(ready.max(lo.to().into())),
            css,
            max_qid: max_qid(io.size(), stride),
            cmbs: hi.cmbs(),
            pmrs: hi.pmrs(),
        })
    }
}
