// SPDX-License-Identifier: GPL-2.0

//! The controller's own memory, which is open to other devices: its controller memory buffer (CMB)
//! and its persistent memory region (PMR).
//!
//! A command means it by its bus address, as other devices do: this is what the controller is told.
//!
//! NVM Express Base Specification 2.0, sections 3.1.3.11 to 3.1.3.15, 8.5 and 8.14.

use crate::{
    ctrl::Controller,
    regs::{
        self,
        Regs, //
    }, //
};
use kernel::{
    io::{
        poll::read_poll_timeout,
        Io, //
    },
    prelude::*,
    time::Delta, //
};

/// How long a persistent memory region is waited for, in milliseconds, if it claims to need longer:
/// up to 4 hours. Meanwhile there is no disk.
const MAX_PMR_MS: i64 = 5_000;

/// Why memory that the controller claims to have is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unusable {
    /// It has no bytes.
    Empty,
    /// Units of two to the power of (12 + 4 * this) bytes.
    Unit(u32),
    /// Commands cannot both read and write it.
    Direction,
    /// Commands cannot mean it at all.
    NoCommands,
    /// There is no such BAR.
    Bar(u32),
    /// It goes beyond the end of its BAR.
    Beyond,
    /// The registers are there.
    Registers,
    /// It does not begin on a multiple of 4 KiB.
    Misaligned,
    /// The controller refuses its address.
    Address,
    /// It does not become ready in the time that it claims to need.
    NotReady,
    /// It is not as it should be: its status.
    Sick(u32),
}

/// Memory of the controller.
#[derive(Clone, Copy, Debug)]
struct Range {
    bar: u32,
    /// Where in the BAR, in bytes.
    start: u64,
    /// In bytes.
    len: u64,
    /// Its address on the bus.
    address: u64,
}

impl Range {
    /// `len` bytes from `start` on of `bar`; all of it, if `len` is not given.
    fn new<R: Regs>(
        ctrl: &Controller<'_, R>,
        bar: u32,
        start: u64,
        len: Option<u64>,
    ) -> Result<Self, Unusable> {
        // Of the doorbells, as many are used as are below it, see `Memory::max_qid()`.
        let registers = regs::bar_len(1, ctrl.caps.stride) as u64;
        let found = ctrl.regs.bar(bar).ok_or(Unusable::Bar(bar))?;
        let len = len.unwrap_or(found.len);
        let address = found.address.wrapping_add(start);

        if len == 0 {
            return Err(Unusable::Empty);
        }
        // Both come from 20 bits that were shifted by 36 at most.
        if start + len > found.len {
            return Err(Unusable::Beyond);
        }
        if bar == 0 && start < registers {
            return Err(Unusable::Registers);
        }
        if address % 4096 != 0 {
            return Err(Unusable::Misaligned);
        }
        Ok(Self {
            bar,
            start,
            len,
            address,
        })
    }

    /// The halves of its bus address; of the lower one what is in units of 4 KiB.
    fn halves(&self) -> (u32, u32) {
        // CAST: Each half in its own register.
        ((self.address as u32) >> 12, (self.address >> 32) as u32)
    }
}

/// What memory the controller has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    cmb: Option<Range>,
    pmr: Option<Range>,
    /// The data of a command may be in the controller's memory in part.
    pub(crate) mixes: bool,
}

/// The controller's memory that is open to other devices.
pub(crate) struct Opened<R: Regs> {
    _cmb: Option<R::Opened>,
    _pmr: Option<R::Opened>,
}

impl Memory {
    /// Finds out what memory the controller has, and enables it. Sleeps.
    ///
    /// What cannot be used is not there, after one line that says why.
    pub(crate) fn new<R: Regs>(ctrl: &Controller<'_, R>) -> Self {
        let mut this = Self::default();
        let found = this.find_cmb(ctrl);

        match found.and_then(|cmb| this.enable_cmb(ctrl, cmb).map(|()| cmb)) {
            Ok(cmb) => this.cmb = cmb,
            Err(e) => {
                Self::complain(ctrl, "controller memory buffer", e);
                Self::disable_cmb(ctrl);
            }
        }
        let found = Self::find_pmr(ctrl);
        match found.and_then(|pmr| Self::enable_pmr(ctrl, pmr).map(|()| pmr)) {
            Ok(pmr) => this.pmr = pmr,
            Err(e) => {
                Self::complain(ctrl, "persistent memory region", e);
                Self::disable_pmr(ctrl);
            }
        }
        this
    }

    /// The highest queue whose doorbells, `stride` bytes apart, are below it.
    pub(crate) fn max_qid(&self, stride: usize) -> u16 {
        [self.cmb, self.pmr]
            .iter()
            .flatten()
            .filter(|range| range.bar == 0)
            // CAST: It is mapped with the registers.
            .map(|range| regs::max_qid(range.start as usize, stride))
            .min()
            .unwrap_or(u16::MAX)
    }

    /// Has commands mean it no more, whatever is at its address later.
    pub(crate) fn disable<R: Regs>(ctrl: &Controller<'_, R>) {
        Self::disable_cmb(ctrl);
        Self::disable_pmr(ctrl);
    }

    /// Enables it again, after the controller was reset. Sleeps.
    ///
    /// It stays open meanwhile: that other devices reach it does not depend on the controller's
    /// state.
    pub(crate) fn restart<R: Regs>(&self, ctrl: &Controller<'_, R>) {
        if let Err(e) = self.enable_cmb(ctrl, self.cmb) {
            Self::complain(ctrl, "controller memory buffer", e);
        }
        if let Err(e) = Self::enable_pmr(ctrl, self.pmr) {
            Self::complain(ctrl, "persistent memory region", e);
        }
    }

    /// Opens it to other devices, until the result is dropped. May sleep.
    ///
    /// What cannot be opened is disabled, after one line that says why.
    pub(crate) fn open<R: Regs>(&mut self, ctrl: &Controller<'_, R>) -> Opened<R> {
        let open = |what, range: Option<Range>| {
            let range = range?;
            let opened = ctrl.regs.open(range.bar, range.start, range.len).ok()?;

            dev_info!(
                ctrl.dev,
                "{}: {} KiB at {:#x} of BAR {}\n",
                what,
                range.len >> 10,
                range.start,
                range.bar
            );
            Some(opened)
        };

        let opened = Opened {
            _cmb: open("controller memory buffer", self.cmb),
            _pmr: open("persistent memory region", self.pmr),
        };

        if opened._cmb.is_none() && self.cmb.take().is_some() {
            Self::disable_cmb(ctrl);
        }
        if opened._pmr.is_none() && self.pmr.take().is_some() {
            Self::disable_pmr(ctrl);
        }
        opened
    }

    #[cold]
    fn complain<R: Regs>(ctrl: &Controller<'_, R>, what: &str, e: Unusable) {
        dev_err!(ctrl.dev, "the {} is not used: {:?}\n", what, e);
    }

    /// What the registers say of the controller memory buffer.
    fn find_cmb<R: Regs>(&mut self, ctrl: &Controller<'_, R>) -> Result<Option<Range>, Unusable> {
        // Two to the power of (12 + 4 * 6) bytes are 64 GiB; what is more is reserved.
        const MAX_UNIT: u32 = 6;
        let io = ctrl.regs.io();

        if ctrl.caps.cmbs {
            io.write_reg(regs::CMBMSC_LO::zeroed().with_cre(true));
        }
        let size = io.read(regs::CMBSZ);
        let location = io.read(regs::CMBLOC);
        if u32::from(size.sz()) == 0 {
            return match ctrl.caps.cmbs {
                true => Err(Unusable::Empty),
                // As in controllers that are too old to have the register.
                false => Ok(None),
            };
        }
        let unit = u32::from(size.szu());
        if unit > MAX_UNIT {
            return Err(Unusable::Unit(unit));
        }
        // Other devices use it both ways, and so does the driver.
        if !size.rds() || !size.wds() {
            return Err(Unusable::Direction);
        }
        let bytes = |units: u32| u64::from(units) << (12 + 4 * unit);

        self.mixes = location.cdmmms();
        Range::new(
            ctrl,
            location.bir().into(),
            bytes(location.ofst().into()),
            Some(bytes(size.sz().into())),
        )
        .map(Some)
    }

    /// Tells the controller by which address commands mean its memory buffer.
    fn enable_cmb<R: Regs>(
        &self,
        ctrl: &Controller<'_, R>,
        cmb: Option<Range>,
    ) -> Result<(), Unusable> {
        let io = ctrl.regs.io();

        let Some(cmb) = cmb.filter(|_| ctrl.caps.cmbs) else {
            return Ok(());
        };
        let (lo, hi) = cmb.halves();
        // The lower half last: it enables.
        io.write_reg(regs::CMBMSC_HI::from(hi));
        io.write_reg(
            regs::CMBMSC_LO::zeroed()
                .try_with_cba(lo)
                .map_err(|_| Unusable::Address)?
                .with_cmse(true)
                .with_cre(true),
        );
        if io.read(regs::CMBSTS).cbai() {
            return Err(Unusable::Address);
        }
        Ok(())
    }

    /// Has commands mean the memory buffer no more.
    fn disable_cmb<R: Regs>(ctrl: &Controller<'_, R>) {
        if ctrl.caps.cmbs {
            ctrl.regs.io().write_reg(regs::CMBMSC_LO::zeroed());
        }
    }

    /// Has commands mean the persistent memory region no more.
    fn disable_pmr<R: Regs>(ctrl: &Controller<'_, R>) {
        if ctrl.caps.pmrs {
            ctrl.regs.io().write_reg(regs::PMRMSC_LO::zeroed());
            ctrl.regs.io().write_reg(regs::PMRCTL::zeroed());
        }
    }

    /// What the registers say of the persistent memory region.
    fn find_pmr<R: Regs>(ctrl: &Controller<'_, R>) -> Result<Option<Range>, Unusable> {
        if !ctrl.caps.pmrs {
            return Ok(None);
        }
        let caps = ctrl.regs.io().read(regs::PMRCAP);

        if !caps.rds() || !caps.wds() {
            return Err(Unusable::Direction);
        }
        // A command that names its bus address would have the controller go out and come in again.
        if !caps.cmss() {
            return Err(Unusable::NoCommands);
        }
        Range::new(ctrl, caps.bir().into(), 0, None).map(Some)
    }

    /// Enables the persistent memory region, and waits until it is ready. Sleeps.
    fn enable_pmr<R: Regs>(ctrl: &Controller<'_, R>, pmr: Option<Range>) -> Result<(), Unusable> {
        let io = ctrl.regs.io();
        let caps = io.read(regs::PMRCAP);

        let Some(pmr) = pmr else {
            return Ok(());
        };
        let unit_ms: i64 = if u32::from(caps.pmrtu()) == 0 {
            500
        } else {
            60_000
        };
        io.write_reg(regs::PMRCTL::zeroed().with_en(true));
        let wait_ms = unit_ms * (i64::from(u32::from(caps.pmrto())) + 1);
        let status = read_poll_timeout(
            || match io.read(regs::PMRSTS) {
                // The device is gone.
                status if status.into_raw() == u32::MAX => Err(ENODEV),
                status => Ok(status),
            },
            |status| !status.nrdy(),
            Delta::from_millis(1),
            Delta::from_millis(wait_ms.min(MAX_PMR_MS)),
        )
        .map_err(|_| Unusable::NotReady)?;
        if u32::from(status.err()) != 0 || u32::from(status.hsts()) != 0 {
            return Err(Unusable::Sick(status.into_raw()));
        }

        let (lo, hi) = pmr.halves();
        io.write_reg(regs::PMRMSC_HI::from(hi));
        io.write_reg(
            regs::PMRMSC_LO::zeroed()
                .try_with_cba(lo)
                .map_err(|_| Unusable::Address)?
                .with_cmse(true),
        );
        if io.read(regs::PMRSTS).cbai() {
            return Err(Unusable::Address);
        }
        Ok(())
    }
}
