// SPDX-License-Identifier: GPL-2.0

//! Memory that programs have registered, by its number: one [`Table`] for each open file.

use crate::abi::Memory;
use kernel::{
    iov::{
        IovIterDest,
        P2pPages, //
    },
    new_mutex,
    pci,
    physdma::{
        providers,
        Miss,
        PhysBvec,
        Pinned,
        Provider,
        Source, //
    },
    prelude::*,
    security::{
        locked_down,
        Lockdown, //
    },
    sync::{
        Arc,
        Mutex, //
    },
    uaccess::UserPtr,
    uapi,
    xarray::{
        AllocKind,
        XArray, //
    }, //
};

/// Memory that can be the data of commands. Dropping it may sleep.
pub(crate) enum Buffer {
    /// A provider's. It is not kept: it may go at any time.
    Provider {
        memory: Provider,
        /// In the provider's range, in bytes.
        offset: u64,
        bytes: u64,
    },
    /// The program's.
    User(User),
}

/// Memory of a program.
///
/// # Invariants
///
/// `pieces` is all of `memory`, in its order, and all of it is RAM.
pub(crate) struct User {
    pieces: KVVec<PhysBvec>,
    memory: Pinned,
}

/// A part of a buffer, for one transfer.
///
/// # Invariants
///
/// What is not a provider's is RAM, which stays as long as the buffer.
pub(crate) struct Slice {
    pub(crate) pieces: KVec<PhysBvec>,
    pub(crate) is_ram: bool,
}

impl Buffer {
    /// Makes a buffer of `memory`. Sleeps.
    ///
    /// # Errors
    ///
    /// - `ENXIO`: nobody has opened that memory.
    /// - `EPERM`: programs may not access PCI devices.
    /// - `EFAULT`: the program does not have that memory, may not write to it, or no device can
    ///   reach it.
    /// - `ENOMEM`.
    pub(crate) fn new(memory: Memory) -> Result<Self> {
        match memory {
            Memory::Provider {
                address,
                bar,
                offset,
                bytes,
            } => {
                locked_down(Lockdown::PciAccess)?;
                Self::of_provider(address, bar, offset, bytes)
            }
            Memory::User { address, bytes } => Ok(Self::User(User::new(
                usize::try_from(address).map_err(|_| EFAULT)?,
                usize::try_from(bytes).map_err(|_| EFAULT)?,
            )?)),
        }
    }

    fn of_provider(address: pci::Address, bar: u8, offset: u64, bytes: u64) -> Result<Self> {
        for memory in &providers()? {
            let range = memory.range();

            if range.device().address() != address || range.bar() != bar {
                continue;
            }
            // The range begins somewhere in the BAR.
            let length = u64::from(range.last() - range.first());
            match offset.checked_sub(range.start()) {
                // Less than its end, which need not have a number.
                Some(offset) if offset.checked_add(bytes - 1).is_some_and(|l| l <= length) => {
                    return Ok(Self::Provider {
                        memory: memory.clone(),
                        offset,
                        bytes,
                    });
                }
                _ => (),
            }
        }
        Err(ENXIO)
    }

    /// The part of it from `offset` on that is `bytes` long.
    ///
    /// # Errors
    ///
    /// - `ERANGE`: it has no such part.
    /// - `ENODEV`: its memory has gone.
    /// - `ENOMEM`.
    pub(crate) fn slice(&self, offset: u64, bytes: u32) -> Result<Slice> {
        let length = match self {
            Self::Provider { bytes, .. } => *bytes,
            Self::User(user) => user.memory.len() as u64,
        };
        let end = offset.checked_add(bytes.into()).ok_or(ERANGE)?;
        if end > length {
            return Err(ERANGE);
        }

        match self {
            Self::Provider {
                memory,
                offset: start,
                ..
            } => {
                if memory.is_revoked() {
                    return Err(ENODEV);
                }
                let mut pieces = KVec::with_capacity(1, GFP_KERNEL)?;
                pieces.push(memory.bvec(start + offset, bytes)?, GFP_KERNEL)?;
                Ok(Slice {
                    pieces,
                    is_ram: false,
                })
            }
            Self::User(user) => user.slice(offset, bytes),
        }
    }
}

impl User {
    fn new(address: usize, bytes: usize) -> Result<Self> {
        let mut iov = IovIterDest::from_user(UserPtr::from_addr(address), bytes)?;
        let memory = Pinned::from_device(&mut iov, bytes, P2pPages::Refuse)?;
        let mut pieces = KVVec::new();

        // It may be less: a system call would have moved so much.
        if memory.len() != bytes {
            return Err(EFAULT);
        }
        // SAFETY: Nothing is mapped before this is a `User`, and then of `Slice`s.
        let mut source = unsafe { memory.bvecs() };
        while let Some(piece) = source.next() {
            if source.miss() != Miss::Ram {
                return Err(EFAULT);
            }
            pieces.push(piece, GFP_KERNEL)?;
        }
        // INVARIANT: Just made so.
        Ok(Self { pieces, memory })
    }

    fn slice(&self, offset: u64, bytes: u32) -> Result<Slice> {
        let (mut skip, mut left) = (offset, bytes);
        let mut pieces = KVec::new();

        for &piece in &self.pieces {
            if left == 0 {
                break;
            }
            if skip >= piece.len().into() {
                skip -= u64::from(piece.len());
                continue;
            }
            let piece = match skip {
                0 => piece,
                // CAST: Less than its length, so that there is a rest.
                _ => piece.split(skip as u32).1.ok_or(ERANGE)?,
            };
            skip = 0;
            let (first, _) = piece.split(left);
            left -= first.len();
            pieces.push(first, GFP_KERNEL)?;
        }
        // INVARIANT: By the type invariants it is RAM, and pinned.
        Ok(Slice {
            pieces,
            is_ram: true,
        })
    }
}

/// The buffers of an open file.
#[pin_data]
pub(crate) struct Table {
    /// From 1 on. Looked at under its own lock only, for a moment.
    #[pin]
    buffers: XArray<Arc<Buffer>>,
    /// Held by whoever looks for a number.
    #[pin]
    numbering: Mutex<()>,
}

impl Table {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                buffers <- XArray::new(AllocKind::Alloc1),
                numbering <- new_mutex!(()),
            }),
            GFP_KERNEL,
        )
    }

    /// Enters a buffer, and returns its number. Sleeps.
    ///
    /// # Errors
    ///
    /// - `ENOSPC`: there are too many.
    /// - `ENOMEM`.
    pub(crate) fn add(&self, buffer: Buffer) -> Result<u32> {
        let buffer = Arc::new(buffer, GFP_KERNEL)?;
        let _numbering = self.numbering.lock();
        let id = (1..=uapi::RNVME_MAX_BUFS)
            .find(|&id| self.buffers.lock().get(id as usize).is_none())
            .ok_or(ENOSPC)?;

        // It was free, and others who look for one wait.
        let stored = self.buffers.lock().store(id as usize, buffer, GFP_KERNEL);
        stored.map(|_| id).map_err(|e| e.error)
    }

    /// Buffer number `id`.
    ///
    /// # Errors
    ///
    /// `ENOENT`: there is none.
    pub(crate) fn get(&self, id: u32) -> Result<Arc<Buffer>> {
        let buffers = self.buffers.lock();

        buffers.get(id as usize).map(Arc::from).ok_or(ENOENT)
    }

    /// Removes buffer number `id`. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOENT`: there is none.
    pub(crate) fn remove(&self, id: u32) -> Result {
        // It may be dropped, which sleeps: not with the lock held.
        let buffer = self.buffers.lock().remove(id as usize);

        buffer.map(drop).ok_or(ENOENT)
    }

    /// Removes all buffers. Sleeps.
    pub(crate) fn clear(&self) {
        for id in 1..=uapi::RNVME_MAX_BUFS {
            let _ = self.remove(id);
        }
    }
}
