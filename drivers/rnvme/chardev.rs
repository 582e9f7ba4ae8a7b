// SPDX-License-Identifier: GPL-2.0

//! The file of a controller, `/dev/rnvme0` and so on: what `include/uapi/linux/rnvme.h` describes.
//!
//! Programs may have it open longer than the controller is there. What an open file has is its
//! [`Table`] of buffers and, lent to it, a [`Passage`] to the disks.

#[cfg(CONFIG_IO_URING)]
use crate::abi::RawIo;
use crate::{
    abi::{
        self,
        RawBuf,
        RawBufId,
        Transfer, //
    },
    api::{
        Ended,
        Way, //
    },
    block::Disk,
    buffers::{
        Buffer,
        Slice,
        Table, //
    },
    regs::Regs, //
};
#[cfg(CONFIG_IO_URING)]
use kernel::io_uring::{
    IoUringCmd,
    Issued,
    QueuedCmd, //
};
use kernel::{
    cred::{
        capable,
        Capability, //
    },
    device::{
        Bound,
        Device, //
    },
    fs::{
        file::flags,
        File, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    new_mutex,
    physdma::{
        Client,
        Part,
        Refused, //
    },
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Borrower,
        Lender,
        Mutex, //
    },
    transmute::FromBytes,
    types::ForLt,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// What open files do with a controller, as long as it is there.
pub(crate) trait Passage: Send + Sync {
    /// Fails unless the controller can reach the memory.
    ///
    /// # Errors
    ///
    /// - `EHOSTUNREACH`: it has no route.
    /// - `ENODEV`: the memory is going away.
    fn reaches(&self, buffer: &Buffer) -> Result;

    /// Moves data. Sleeps until that is done.
    ///
    /// # Errors
    ///
    /// Those of `RNVME_IOC_IO`.
    fn transfer(&self, io: &Transfer, buffer: &Buffer) -> Result;

    /// Begins to move data, as a command asks for that it ends.
    #[cfg(CONFIG_IO_URING)]
    fn issue<'c>(&self, io: &Transfer, buffer: Arc<Buffer>, cmd: IoUringCmd<'c>) -> Issued<'c>;
}

/// The way to the disks of a controller.
pub(crate) struct Disks<'a, R: Regs> {
    /// By their numbers.
    disks: KVec<Arc<Disk<'a, R>>>,
    client: &'a Client<'a>,
}

impl<'a, R: Regs + 'a> Disks<'a, R> {
    /// Sleeps.
    pub(crate) fn new(disks: KVec<Arc<Disk<'a, R>>>, client: &'a Client<'a>) -> Self {
        Self { disks, client }
    }

    /// The disk that `io` is about, and the memory.
    fn prepare(&self, io: &Transfer, buffer: &Buffer) -> Result<(&Disk<'a, R>, Slice)> {
        let disk = self.disks.iter().find(|d| d.nsid == io.nsid).ok_or(ENXIO)?;

        disk.check(io.way, io.lba, io.bytes)?;
        let slice = buffer.slice(io.offset, io.bytes)?;
        // What commands must begin with.
        if slice
            .pieces
            .first()
            .is_none_or(|piece| piece.phys() % 4 != 0)
        {
            return Err(EINVAL);
        }
        Ok((disk, slice))
    }
}

impl Slice {
    fn part(&self) -> Part<'_> {
        match self.is_ram {
            true => Part::Ram(&self.pieces),
            false => Part::Provider(&self.pieces),
        }
    }
}

impl<'a, R: Regs + 'a> Passage for Disks<'a, R> {
    fn reaches(&self, buffer: &Buffer) -> Result {
        let Buffer::Provider { memory, .. } = buffer else {
            return Ok(());
        };
        match self.client.route(memory) {
            Ok(_) => Ok(()),
            Err(Refused::Revoked) => Err(ENODEV),
            Err(_) => Err(EHOSTUNREACH),
        }
    }

    fn transfer(&self, io: &Transfer, buffer: &Buffer) -> Result {
        let (disk, slice) = self.prepare(io, buffer)?;

        // SAFETY: By the type invariants of `Slice`, and `buffer` lives longer. The program may use
        // its memory meanwhile, but the kernel does not.
        unsafe { disk.transfer(io.way, io.lba, &[slice.part()]) }
    }

    #[cfg(CONFIG_IO_URING)]
    fn issue<'c>(&self, io: &Transfer, buffer: Arc<Buffer>, cmd: IoUringCmd<'c>) -> Issued<'c> {
        let prepared = self.prepare(io, &buffer).and_then(|(disk, slice)| {
            let first = match cmd.may_sleep() {
                true => None,
                // There are no tags to be had for more commands without waiting.
                false if io.bytes > disk.rules.max_bytes => return Err(EAGAIN),
                false => Some(disk.disk.try_alloc(io.way.op())?),
            };
            Ok((disk, slice, first))
        });
        let (disk, slice, first) = match prepared {
            Ok(prepared) => prepared,
            Err(e) => return cmd.done(Err(e)),
        };
        let (queued, issued) = cmd.queue(buffer);

        // SAFETY: As above; the command has the buffer, and ends with the transfer.
        unsafe { disk.start_with(io.way, io.lba, &[slice.part()], first, queued) };
        issued
    }
}

#[cfg(CONFIG_IO_URING)]
impl Ended for QueuedCmd<Arc<Buffer>> {
    fn ended(self, result: Result) {
        self.complete(result.map(|()| 0));
    }
}

type Lent = ForLt!(for<'a> KBox<dyn Passage + 'a>);

/// What all open files of a controller know of.
#[pin_data]
pub(crate) struct Node {
    passage: Borrower<Lent>,
    /// The buffers of each.
    #[pin]
    tables: Mutex<KVec<Arc<Table>>>,
}

/// An open file.
pub(crate) struct OpenFile {
    node: Arc<Node>,
    table: Arc<Table>,
}

/// Fails unless the caller may.
fn allowed() -> Result {
    match capable(Capability::SysRawio) {
        true => Ok(()),
        false => Err(EPERM),
    }
}

/// Fails unless the file is open for that.
fn opened_for(way: Way, file: &File) -> Result {
    match (way, file.flags() & flags::O_ACCMODE) {
        (_, flags::O_RDWR) | (Way::Read, flags::O_RDONLY) | (Way::Write, flags::O_WRONLY) => Ok(()),
        _ => Err(EBADF),
    }
}

impl OpenFile {
    /// Registers a buffer.
    fn register(&self, passage: &dyn Passage, buf: &RawBuf) -> Result<u32> {
        let buffer = Buffer::new(buf.memory()?)?;

        passage.reaches(&buffer)?;
        self.table.add(buffer)
    }

    /// What is to be moved, by a file that is open for that.
    fn transfer(file: &File, io: &RawIo) -> Result<Transfer> {
        let io = io.transfer()?;

        opened_for(io.way, file)?;
        Ok(io)
    }

    /// Does `f` as long as the controller is there.
    fn with<T>(&self, f: impl FnOnce(&dyn Passage) -> Result<T>) -> Result<T> {
        self.node
            .passage
            .with(|passage| f(&**passage))
            .ok_or(ENODEV)?
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.node
            .tables
            .lock()
            .retain(|table| !Arc::ptr_eq(table, &self.table));
    }
}

/// What the ioctl with this argument is about.
fn read<T: FromBytes>(arg: usize) -> Result<T> {
    UserSlice::new(UserPtr::from_addr(arg), size_of::<T>())
        .reader()
        .read()
}

#[vtable]
impl MiscDevice for OpenFile {
    type Ptr = KBox<Self>;
    type RegistrationData = Arc<Node>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        allowed()?;
        let table = Table::new()?;
        let node = misc.data().clone();

        node.tables.lock().push(table.clone(), GFP_KERNEL)?;
        Ok(KBox::new(Self { node, table }, GFP_KERNEL)?)
    }

    fn ioctl(this: &Self, file: &File, cmd: u32, arg: usize) -> Result<isize> {
        allowed()?;
        match cmd {
            abi::BUF_REGISTER => {
                let mut buf = read::<RawBuf>(arg)?;

                buf.0.id = this.with(|passage| this.register(passage, &buf))?;
                UserSlice::new(UserPtr::from_addr(arg), size_of::<RawBuf>())
                    .writer()
                    .write(&buf)
                    // The program would never know the number.
                    .inspect_err(|_| drop(this.table.remove(buf.0.id)))?;
            }
            abi::BUF_UNREGISTER => {
                let id = read::<RawBufId>(arg)?.id()?;

                this.with(|_| this.table.remove(id))?;
            }
            abi::IO => {
                let io = Self::transfer(file, &read(arg)?)?;

                this.with(|passage| passage.transfer(&io, &*this.table.get(io.id)?))?;
            }
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    #[cfg(CONFIG_IO_URING)]
    fn uring_cmd<'c>(this: &Self, file: &File, cmd: IoUringCmd<'c>) -> Issued<'c> {
        let prepare = || -> Result<_> {
            allowed()?;
            if cmd.op() != abi::IO {
                return Err(EOPNOTSUPP);
            }
            let io = Self::transfer(file, &cmd.read()?)?;
            let buffer = this.table.get(io.id);
            Ok((io, buffer))
        };
        let (io, buffer) = match prepare() {
            Ok(prepared) => prepared,
            Err(e) => return cmd.done(Err(e)),
        };

        match (buffer, this.node.passage.borrow()) {
            (_, None) => cmd.done(Err(ENODEV)),
            (Err(e), _) => cmd.done(Err(e)),
            (Ok(buffer), Some(passage)) => passage.with(|passage| passage.issue(&io, buffer, cmd)),
        }
    }
}

/// The file of a controller, for programs to open. Dropping it waits for what programs do with the
/// controller, and lets go of all that they have registered. Sleeps.
pub(crate) struct CharDev<'a> {
    misc: Option<Pin<KBox<MiscDeviceRegistration<OpenFile>>>>,
    passage: Option<Lender<'a, Lent>>,
    node: Arc<Node>,
}

impl<'a> CharDev<'a> {
    /// Makes the file `name`, by which programs get to what `passage` leads to. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or another error of `misc_register()`.
    ///
    /// # Safety
    ///
    /// The result must not be forgotten: it must be dropped before `'a` ends.
    pub(crate) unsafe fn new(
        name: CString,
        dev: &Device<Bound>,
        passage: impl Passage + 'a,
    ) -> Result<Self> {
        let passage: KBox<dyn Passage + 'a> = KBox::new(passage, GFP_KERNEL)?;
        // SAFETY: It is not forgotten unless the result is.
        let passage = unsafe { Lender::<'a, Lent>::new(passage) }?;
        let borrower = passage.borrower();
        let node = Arc::pin_init(
            pin_init!(Node {
                passage: borrower,
                tables <- new_mutex!(KVec::new()),
            }),
            GFP_KERNEL,
        )?;
        let misc = MiscDeviceRegistration::register_one(name, Some(dev), node.clone());

        Ok(Self {
            misc: Some(KBox::pin_init(misc, GFP_KERNEL)?),
            passage: Some(passage),
            node,
        })
    }
}

impl Drop for CharDev<'_> {
    fn drop(&mut self) {
        // Nobody opens it any more.
        self.misc = None;
        // Nobody is using it any more, and nobody registers anything.
        self.passage = None;
        for table in self.node.tables.lock().iter() {
            table.clear();
        }
    }
}
