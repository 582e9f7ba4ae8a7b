// SPDX-License-Identifier: GPL-2.0

//! The file of a controller, `/dev/rnvme0` and so on: what `include/uapi/linux/rnvme.h` describes.
//!
//! Programs may have it open longer than the controller is there. What an open file does is done by
//! a [`Session`], which has its buffers and belongs to the controller: it is lent to the file.

#[cfg(CONFIG_IO_URING)]
use crate::api::Ended;
use crate::{
    abi::{
        self,
        Io,
        Memory,
        RawBuf,
        RawBufId,
        RawIo, //
    },
    api::Way,
    block::Disk,
    buffers::Buffers,
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
        PremappedSlice, //
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

/// What an open file does with a controller.
pub(crate) trait Session: Send + Sync {
    /// Registers a buffer, and has `tell` tell its number. Sleeps.
    ///
    /// # Errors
    ///
    /// Those of `RNVME_IOC_BUF_REGISTER`, and of `tell`.
    fn register(&self, memory: Memory, tell: &mut dyn FnMut(u32) -> Result) -> Result;

    /// Lets go of a buffer. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOENT`: there is no such buffer.
    fn unregister(&self, id: u32) -> Result;

    /// Moves data. Sleeps until that is done.
    ///
    /// # Errors
    ///
    /// Those of `RNVME_IOC_IO`.
    fn transfer(&self, io: &Io) -> Result;

    /// Begins to move data, as a command asks for that it ends.
    #[cfg(CONFIG_IO_URING)]
    fn issue<'c>(&self, io: &Io, cmd: IoUringCmd<'c>) -> Issued<'c>;
}

type LentSession = ForLt!(for<'a> Arc<dyn Session + 'a>);

/// What opens a file of a controller.
pub(crate) trait Opener: Send + Sync {
    /// Makes a session, which stays until it is closed, or until the controller goes. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn open(&self) -> Result<Borrower<LentSession>>;

    /// Ends a session. Waits for who is using it, but for nothing else. Sleeps.
    fn close(&self, session: &Borrower<LentSession>);
}

type LentOpener = ForLt!(for<'a> Arc<dyn Opener + 'a>);

/// The disks of a controller.
pub(crate) struct Disks<'a, R: Regs> {
    list: KVec<Arc<Disk<'a, R>>>,
    client: &'a Client<'a>,
}

/// One open file, of a controller that is there.
#[pin_data]
struct Opened<'a, R: Regs> {
    disks: Arc<Disks<'a, R>>,
    #[pin]
    buffers: Buffers<'a>,
}

/// All that are open.
#[pin_data]
pub(crate) struct Sessions<'a, R: Regs> {
    disks: Arc<Disks<'a, R>>,
    #[pin]
    list: Mutex<KVec<Lender<'a, LentSession>>>,
}

impl<'a, R: Regs + 'a> Sessions<'a, R> {
    /// Of files by which programs get to these disks.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The result must not be forgotten: it must be dropped before `'a` ends.
    pub(crate) unsafe fn new(
        list: KVec<Arc<Disk<'a, R>>>,
        client: &'a Client<'a>,
    ) -> Result<Arc<Self>> {
        let disks = Arc::new(Disks { list, client }, GFP_KERNEL)?;

        Arc::pin_init(
            pin_init!(Self {
                disks,
                list <- new_mutex!(KVec::new()),
            }),
            GFP_KERNEL,
        )
    }
}

impl<'a, R: Regs + 'a> Opener for Sessions<'a, R> {
    fn open(&self) -> Result<Borrower<LentSession>> {
        let opened = Arc::pin_init(
            pin_init!(Opened {
                disks: self.disks.clone(),
                buffers <- Buffers::new(self.disks.client),
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: It is not forgotten unless `self` is.
        let lender = unsafe { Lender::<'a, LentSession>::new(opened) }?;
        let borrower = lender.borrower();

        self.list.lock().push(lender, GFP_KERNEL)?;
        Ok(borrower)
    }

    fn close(&self, session: &Borrower<LentSession>) {
        let closed = {
            let mut list = self.list.lock();
            let at = list.iter().position(|lender| lender.lends_to(session));

            at.and_then(|at| list.remove(at).ok())
        };
        // It waits: not with the lock held.
        drop(closed);
    }
}

impl<'a, R: Regs + 'a> Opened<'a, R> {
    /// The disk that `io` is about.
    fn disk(&self, io: &Io) -> Result<&Disk<'a, R>> {
        let found = self.disks.list.iter().find(|disk| disk.nsid == io.nsid);
        let disk = found.ok_or(ENXIO)?;

        disk.check(io.way, io.lba, io.bytes)?;
        Ok(disk)
    }

    /// `bytes` bytes of the buffer, `at` bytes into what is to be moved.
    fn slice(&self, io: &Io, at: u32, bytes: u32) -> Result<PremappedSlice<'a>> {
        let offset = io.offset.checked_add(at.into()).ok_or(ERANGE)?;
        let slice = self.buffers.slice(io.id, offset, bytes, io.way)?;

        // What commands must begin with.
        match slice.segments().next()? {
            Some(first) if first.dma % 4 == 0 => Ok(slice),
            _ => Err(EINVAL),
        }
    }

    /// A slice for each of several commands.
    fn slices(&self, disk: &Disk<'a, R>, io: &Io) -> Result<KVec<PremappedSlice<'a>>> {
        let mut slices = KVec::new();
        let mut at = 0;

        // Beyond the end is beyond it, whatever there is before.
        drop(self.slice(io, 0, io.bytes)?);
        while at < io.bytes {
            let bytes = disk.most().min(io.bytes - at);

            slices.push(self.slice(io, at, bytes)?, GFP_KERNEL)?;
            at += bytes;
        }
        Ok(slices)
    }
}

impl<'a, R: Regs + 'a> Session for Opened<'a, R> {
    fn register(&self, memory: Memory, tell: &mut dyn FnMut(u32) -> Result) -> Result {
        self.buffers.register(memory, tell)
    }

    fn unregister(&self, id: u32) -> Result {
        self.buffers.unregister(id)
    }

    fn transfer(&self, io: &Io) -> Result {
        let disk = self.disk(io)?;

        if io.bytes <= disk.most() {
            disk.move_slice(io, self.slice(io, 0, io.bytes)?)
        } else {
            disk.move_slices(io, self.slices(disk, io)?)
        }
    }

    #[cfg(CONFIG_IO_URING)]
    fn issue<'c>(&self, io: &Io, cmd: IoUringCmd<'c>) -> Issued<'c> {
        let disk = match self.disk(io) {
            Ok(disk) => disk,
            Err(e) => return cmd.done(Err(e)),
        };

        if io.bytes <= disk.most() {
            let prepared = self.slice(io, 0, io.bytes).and_then(|slice| {
                let rq = match cmd.may_sleep() {
                    true => disk.disk.alloc(io.way.op())?,
                    false => disk.disk.try_alloc(io.way.op())?,
                };
                Ok((rq, slice))
            });
            let (rq, slice) = match prepared {
                Ok(prepared) => prepared,
                Err(e) => return cmd.done(Err(e)),
            };
            let (queued, issued) = cmd.queue(());

            disk.start_slice(rq, io, slice, queued);
            return issued;
        }

        let slices = match self.slices(disk, io) {
            // There are no tags to be had for several commands without waiting.
            Ok(_) if !cmd.may_sleep() => return cmd.done(Err(EAGAIN)),
            Ok(slices) => slices,
            Err(e) => return cmd.done(Err(e)),
        };
        let (queued, issued) = cmd.queue(());

        disk.start_slices(io, slices, queued);
        issued
    }
}

#[cfg(CONFIG_IO_URING)]
impl Ended for QueuedCmd<()> {
    fn ended(self, result: Result) {
        self.complete(result.map(|()| 0));
    }
}

/// An open file.
pub(crate) struct OpenFile {
    opener: Borrower<LentOpener>,
    session: Borrower<LentSession>,
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
    /// What is to be moved, by a file that is open for that.
    fn io(file: &File, raw: &RawIo) -> Result<Io> {
        let io = raw.io()?;

        opened_for(io.way, file)?;
        Ok(io)
    }

    /// Does `f` as long as the controller is there.
    fn with<T>(&self, f: impl FnOnce(&dyn Session) -> Result<T>) -> Result<T> {
        self.session.with(|session| f(&**session)).ok_or(ENODEV)?
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // Where the controller has gone, so has the session.
        let _ = self.opener.with(|opener| opener.close(&self.session));
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
    type RegistrationData = Borrower<LentOpener>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        allowed()?;
        let opener = misc.data().clone();
        let session = opener.with(|opener| opener.open()).ok_or(ENODEV)??;

        Ok(KBox::new(Self { opener, session }, GFP_KERNEL)?)
    }

    fn ioctl(this: &Self, file: &File, cmd: u32, arg: usize) -> Result<isize> {
        allowed()?;
        match cmd {
            abi::BUF_REGISTER => {
                let mut buf = read::<RawBuf>(arg)?;
                let memory = buf.memory()?;

                this.with(|session| {
                    session.register(memory, &mut |id| {
                        buf.0.id = id;
                        UserSlice::new(UserPtr::from_addr(arg), size_of::<RawBuf>())
                            .writer()
                            .write(&buf)
                    })
                })?;
            }
            abi::BUF_UNREGISTER => {
                let id = read::<RawBufId>(arg)?.id()?;

                this.with(|session| session.unregister(id))?;
            }
            abi::IO => {
                let io = Self::io(file, &read(arg)?)?;

                this.with(|session| session.transfer(&io))?;
            }
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    #[cfg(CONFIG_IO_URING)]
    fn uring_cmd<'c>(this: &Self, file: &File, cmd: IoUringCmd<'c>) -> Issued<'c> {
        let prepare = || {
            allowed()?;
            if cmd.op() != abi::IO {
                return Err(EOPNOTSUPP);
            }
            let io = Self::io(file, &cmd.read()?)?;
            Ok((io, this.session.borrow().ok_or(ENODEV)?))
        };

        match prepare() {
            Ok((io, session)) => session.with(|session| session.issue(&io, cmd)),
            Err(e) => cmd.done(Err(e)),
        }
    }
}

/// The file of a controller, for programs to open. Dropping it waits for what programs are doing,
/// and lets go of all that they have registered: what is under way keeps its memory until it has
/// ended. Sleeps.
pub(crate) struct CharDev<'a> {
    /// Dropped first, so that nobody opens it any more.
    _misc: Pin<KBox<MiscDeviceRegistration<OpenFile>>>,
    _opener: Lender<'a, LentOpener>,
}

impl<'a> CharDev<'a> {
    /// Makes the file `name`, which is opened by `opener`. Sleeps.
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
        opener: Arc<dyn Opener + 'a>,
    ) -> Result<Self> {
        // SAFETY: It is not forgotten unless the result is.
        let opener = unsafe { Lender::<'a, LentOpener>::new(opener) }?;
        let misc = MiscDeviceRegistration::register_one(name, Some(dev), opener.borrower());

        Ok(Self {
            _misc: KBox::pin_init(misc, GFP_KERNEL)?,
            _opener: opener,
        })
    }
}
