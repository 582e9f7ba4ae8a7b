// SPDX-License-Identifier: GPL-2.0

//! I/O to memory that was mapped before: nothing is allocated for what one command can move.

use crate::{
    abi::Io,
    api::{
        Ended,
        Transfer,
        Waiter, //
    },
    block::{
        Disk,
        Ops, //
    },
    command::{
        Command,
        CommandStatus, //
    },
    regs::Regs, //
};
use core::marker::PhantomData;
use kernel::{
    block::mq::{
        EndIo,
        Executed,
        Passthrough, //
    },
    physdma::PremappedSlice,
    prelude::*,
    sync::Arc,
    types::ForeignOwnable, //
};

/// The end of a command that is a transfer.
struct Whole<E>(PhantomData<E>);

impl<'a, R, E> EndIo<Ops<'a, R>> for Whole<E>
where
    R: Regs + 'a,
    E: Ended + ForeignOwnable,
{
    type Kept = E;

    fn end_io(kept: E, mut rq: Executed<'_, Ops<'a, R>>) {
        let result = rq.status().to_result();

        rq.data_mut().premapped = None;
        // The tag is free before the transfer has ended.
        drop(rq);
        kept.ended(result);
    }
}

/// The end of a command that is a part of a transfer.
struct PartOf<E>(PhantomData<E>);

impl<'a, R: Regs + 'a, E: Ended> EndIo<Ops<'a, R>> for PartOf<E> {
    type Kept = Arc<Transfer<E>>;

    fn end_io(kept: Arc<Transfer<E>>, mut rq: Executed<'_, Ops<'a, R>>) {
        rq.data_mut().premapped = None;
        if let Err(e) = rq.status().to_result() {
            kept.fail(e);
        }
        // As above.
        drop(rq);
    }
}

impl<'a, R: Regs + 'a> Disk<'a, R> {
    /// The most bytes of a command.
    pub(crate) fn most(&self) -> u32 {
        self.rules.max_bytes
    }

    /// Has `rq` move what `slice` is.
    fn fill(&self, rq: &mut Passthrough<'_, Ops<'a, R>>, io: &Io, slice: PremappedSlice<'a>) {
        // CAST: As many as a command can have.
        let blocks = (slice.len() >> self.lba_shift) as u16;
        let data = rq.data_mut();

        data.command = Command::rw(io.way.opcode(), self.nsid, io.lba, blocks, false);
        data.status = CommandStatus::INTERNAL;
        data.premapped = Some(slice);
    }

    /// Moves what `slice` is, by one command. Sleeps until that is done.
    ///
    /// # Errors
    ///
    /// - `ENODEV`: the disk is gone.
    /// - What the device says, as the block layer translates it.
    pub(crate) fn move_slice(&self, io: &Io, slice: PremappedSlice<'a>) -> Result {
        let mut rq = self.disk.alloc(io.way.op())?;
        self.fill(&mut rq, io, slice);

        let mut rq = rq.execute(0);
        rq.data_mut().premapped = None;
        rq.status().to_result()
    }

    /// Begins to move what `slice` is, by the command `rq`. `ended` is told when that is done.
    ///
    /// Does not sleep, but to allocate memory.
    #[cfg_attr(not(CONFIG_IO_URING), allow(dead_code))]
    pub(crate) fn start_slice<E: Ended + ForeignOwnable>(
        &self,
        mut rq: Passthrough<'_, Ops<'a, R>>,
        io: &Io,
        slice: PremappedSlice<'a>,
        ended: E,
    ) {
        self.fill(&mut rq, io, slice);
        rq.execute_nowait::<Whole<E>>(0, ended);
    }

    /// As [`Self::start_slice`] for several commands, with a slice for each. Sleeps.
    pub(crate) fn start_slices<E: Ended>(
        &self,
        io: &Io,
        slices: KVec<PremappedSlice<'a>>,
        ended: E,
    ) {
        let Ok(transfer) = Transfer::new(ended) else {
            return;
        };
        let mut io = *io;

        for slice in slices {
            // The rest would be of no use.
            let mut rq = match transfer
                .result()
                .and_then(|()| self.disk.alloc(io.way.op()))
            {
                Ok(rq) => rq,
                Err(e) => return transfer.fail(e),
            };
            let blocks = slice.len() >> self.lba_shift;

            self.fill(&mut rq, &io, slice);
            rq.execute_nowait::<PartOf<E>>(0, transfer.clone());
            io.lba += u64::from(blocks);
        }
    }

    /// Moves what `slices` are, by a command each. Sleeps until that is done.
    ///
    /// # Errors
    ///
    /// Those of [`Self::move_slice`], and `ENOMEM`.
    pub(crate) fn move_slices(&self, io: &Io, slices: KVec<PremappedSlice<'a>>) -> Result {
        let waiter = Waiter::new()?;

        self.start_slices(io, slices, waiter.clone());
        waiter.wait()
    }
}
