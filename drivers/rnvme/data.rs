// SPDX-License-Identifier: GPL-2.0

//! Where the data of a request are: mapped for the controller, and said to it by the entries or the
//! descriptor of a command.
//!
//! What was mapped when an error is returned is unmapped by whoever refuses the request.

use crate::{
    block::{
        Hw,
        Iod, //
    },
    command::{
        Command,
        DataPointer, //
    },
    counters::Moved,
    prp::{
        self,
        Fault, //
    },
    queue::RequestLists,
    regs::Regs,
    sgl, //
};
use kernel::{
    block::mq::Status,
    dma::DataDirection,
    physdma::{
        Origin,
        Segment,
        Source, //
    },
    prelude::*, //
};

impl<'a, R: Regs> Hw<'a, R> {
    /// Says where the only segment of a request is, if the command has room for that.
    #[inline]
    pub(crate) fn one_segment(&self, dma: u64, len: u32) -> Option<DataPointer> {
        if let Some(entries) = prp::short(dma, len) {
            return Some(DataPointer::Prp(entries));
        }
        // More pages would be a list, which the device has to read.
        let descriptor = self.sgls.then(|| sgl::data_block(dma, len)).flatten();
        descriptor.map(DataPointer::Sgl)
    }

    /// Says where the `bytes` bytes of the segments that `next` returns are, in lists if need be.
    #[inline]
    fn place(
        &self,
        lists: &mut u64,
        tag: u16,
        bytes: u32,
        mut next: impl FnMut() -> Result<Option<(u64, u32)>>,
    ) -> Result<DataPointer, Status> {
        let first = next();

        if let Ok(Some((dma, len))) = first {
            if len == bytes {
                if let Some(data) = self.one_segment(dma, len) {
                    return Ok(data);
                }
            }
        }
        let mut first = Some(first);
        let next = || first.take().unwrap_or_else(&mut next);
        let mut lists = RequestLists::new(&self.queue, tag, lists);

        match prp::build(next, bytes, &mut lists) {
            Ok(entries) => Ok(DataPointer::Prp(entries)),
            Err(fault) => {
                lists.give_back();
                Err(self.no_prp(fault))
            }
        }
    }

    /// What a request is told whose memory could not be said to the device.
    #[cold]
    fn no_prp(&self, fault: Fault<Error>) -> Status {
        match fault {
            // A request that completes gives its lists back.
            Fault::NoLists => Status::RESOURCE,
            Fault::Source(e) => self.mapping_failed(e),
            Fault::TooLong | Fault::Misaligned | Fault::Length => {
                self.malformed(fault);
                Status::IOERR
            }
        }
    }

    /// Says where the only segment of a request is.
    pub(crate) fn one(
        &self,
        data: &mut Iod<'a>,
        tag: u16,
        only: Segment,
        bytes: u32,
    ) -> Result<(DataPointer, Moved), Status> {
        let mut segment = Some((only.dma, only.len));
        let pointer = self.place(&mut data.lists, tag, bytes, || Ok(segment.take()))?;

        Ok((pointer, Moved::one(only)))
    }

    /// Maps the `bytes` bytes of `source`, which are not known to be one piece, and says where they
    /// are.
    pub(crate) fn pieces<S: Source>(
        &self,
        data: &mut Iod<'a>,
        tag: u16,
        mut source: S,
        bytes: u32,
        dir: DataDirection,
    ) -> Result<(DataPointer, Moved), Status> {
        let mut segments = self
            .client
            .map(&mut data.mapping, &mut source, dir)
            .map_err(|e| self.mapping_failed(e))?;
        let (mut own, mut others) = (false, false);
        let next = || {
            let segment = segments.next()?;
            if !S::UNIFORM && !self.mixes {
                match segment.map(|segment| segment.origin) {
                    Some(Origin::Internal { .. }) => own = true,
                    Some(_) => others = true,
                    None => (),
                }
                // The device would refuse it too, or should.
                if own && others {
                    return Err(EXDEV);
                }
            }
            Ok(segment.map(|segment| (segment.dma, segment.len)))
        };

        let pointer = self.place(&mut data.lists, tag, bytes, next)?;
        let (path, segments) = (segments.path(), segments.count());

        Ok((
            pointer,
            Moved {
                bytes,
                segments,
                path,
                spilled: data.mapping.spilled() != 0,
            },
        ))
    }

    /// What a request is told whose memory could not be mapped.
    #[cold]
    pub(crate) fn mapping_failed(&self, e: Error) -> Status {
        let (why, status) = match e {
            ENOMEM | EAGAIN => return Status::RESOURCE,
            // Memory of a device that this one does not reach; why, is in the log. Or more segments
            // than the queue's limits allow.
            EINVAL => return Status::INVAL,
            EXDEV => ("its memory is this controller's and others'", Status::INVAL),
            ENODEV => ("its memory is being taken away", Status::OFFLINE),
            EFAULT => ("its memory is no provider's any more", Status::IOERR),
            _ => ("the kernel does not map its memory", Status::IOERR),
        };
        let ctrl = self.queue.ctrl();

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
    pub(crate) fn malformed(&self, fault: Fault<Error>) {
        dev_err!(
            self.queue.ctrl().dev,
            "a request does not keep to the limits: {:?}\n",
            fault
        );
    }

    /// Has `command` say where the memory is that was mapped before, if there is any.
    pub(crate) fn premapped(
        &self,
        data: &mut Iod<'a>,
        tag: u16,
        command: Command,
    ) -> Result<(Command, Option<Moved>), Status> {
        let Some(slice) = &data.premapped else {
            return Ok((command, None));
        };
        let mut segments = slice.segments();
        let next = || Ok(segments.next()?.map(|segment| (segment.dma, segment.len)));
        let data = self.place(&mut data.lists, tag, slice.len(), next)?;
        let moved = Moved {
            bytes: slice.len(),
            segments: segments.count(),
            path: segments.path(),
            spilled: false,
        };
        Ok((command.with_data(data), Some(moved)))
    }
}
