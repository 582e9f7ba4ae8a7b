// SPDX-License-Identifier: GPL-2.0

//! Doorbells in memory, beside those in the registers.
//!
//! An emulated controller takes long for each write to a register, and may look at memory instead:
//! it is told of two buffers, one for the doorbells and one by which it says, for each, up to where
//! it will look by itself. The register need only be written where that is passed. Those of the
//! admin queue always are.
//!
//! NVM Express Base Specification 2.0, section 5.8 and annex B.5.

use crate::{
    identify::CTRL_PAGE_SIZE,
    regs, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::Coherent,
    io::{
        io_project,
        io_read,
        Io, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        barrier::{
            dma_mb,
            mb,
            Full,
            Write, //
        }, //
    }, //
};

/// The buffers.
pub(crate) struct Shadow {
    doorbells: Coherent<[u32]>,
    /// For each of them the value up to which the controller needs no register written.
    events: Coherent<[u32]>,
    /// The controller has been told of them, since it was reset last.
    in_use: Atomic<bool>,
}

/// Whether a doorbell that goes from `old` to `value` passes `event`.
#[inline]
const fn passes(event: u32, old: u32, value: u32) -> bool {
    // CAST: Queues have at most 65536 entries: the numbers have 16 bits.
    (value.wrapping_sub(event).wrapping_sub(1) as u16) < (value.wrapping_sub(old) as u16)
}

impl Shadow {
    /// Buffers for queues up to `qid`, whose doorbells are `stride` bytes apart. Nobody is told of
    /// them. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(dev: &Device<Bound>, qid: u16, stride: usize) -> Result<Self> {
        let bytes = regs::bar_len(qid, stride) - regs::DOORBELLS;
        let len = bytes.next_multiple_of(CTRL_PAGE_SIZE as usize) / size_of::<u32>();

        Ok(Self {
            doorbells: Coherent::zeroed_slice(dev, len, GFP_KERNEL)?,
            events: Coherent::zeroed_slice(dev, len, GFP_KERNEL)?,
            in_use: Atomic::new(false),
        })
    }

    /// Where the doorbells and the events are, as the device sees it.
    pub(crate) fn addresses(&self) -> [u64; 2] {
        [self.doorbells.dma_address(), self.events.dma_address()]
    }

    /// Forgets all: the controller is reset, and its queues are empty.
    pub(crate) fn clear(&self) {
        self.in_use.store(false, Release);
        for index in 0..self.doorbells.size() / size_of::<u32>() {
            let _ = Self::set(&self.doorbells, index, 0);
            let _ = Self::set(&self.events, index, 0);
        }
    }

    /// The controller has been told of the buffers.
    pub(crate) fn begin(&self) {
        self.in_use.store(true, Release);
    }

    /// Sets the doorbell at `offset` of the registers, which was `old`, to `value`. Returns whether
    /// that is enough: the register need not be written.
    #[inline]
    pub(crate) fn ring(&self, offset: usize, old: u32, value: u32) -> bool {
        let index = (offset - regs::DOORBELLS) / size_of::<u32>();

        self.in_use.load(Acquire) && self.try_ring(index, old, value) == Ok(false)
    }

    #[inline]
    fn try_ring(&self, index: usize, old: u32, value: u32) -> Result<bool> {
        // The entries of the queue are seen before they are announced.
        dma_mb(Write);
        Self::set(&self.doorbells, index, value)?;
        // And that before it is known whether the controller looks there.
        mb(Full);
        let event = u32::from_le(io_read!(self.events, [try: index]));
        Ok(passes(event, old, value))
    }

    #[inline]
    fn set(buffer: &Coherent<[u32]>, index: usize, value: u32) -> Result {
        io_project!(buffer, [try: index]).write_val(value.to_le());
        Ok(())
    }

    /// What the doorbell at `offset` of the registers is.
    #[allow(dead_code, reason = "used by the suite that plays a controller")]
    pub(crate) fn doorbell(&self, offset: usize) -> Result<u32> {
        let index = (offset - regs::DOORBELLS) / size_of::<u32>();

        Ok(u32::from_le(io_read!(self.doorbells, [try: index])))
    }

    /// Asks for the register to be written when that doorbell passes `value`.
    #[allow(dead_code, reason = "used by the suite that plays a controller")]
    pub(crate) fn set_event(&self, offset: usize, value: u32) -> Result {
        Self::set(
            &self.events,
            (offset - regs::DOORBELLS) / size_of::<u32>(),
            value,
        )
    }
}
