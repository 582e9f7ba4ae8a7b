// SPDX-License-Identifier: GPL-2.0

//! Memory that programs have registered, by its number: the [`Buffers`] of each open file.
//!
//! It is mapped for the controller when it is registered, and unmapped when nobody needs it any
//! more.

use crate::{
    abi::Memory,
    api::Way, //
};
use kernel::{
    dma::DataDirection,
    new_mutex,
    pci,
    physdma::{
        providers,
        Client,
        Pinned,
        Premapped,
        PremappedSlice,
        Provider, //
    },
    prelude::*,
    security::{
        locked_down,
        Lockdown, //
    },
    sync::Mutex,
    time::msecs_to_jiffies,
    uaccess::UserPtr,
    uapi,
    xarray::{
        AllocKind,
        XArray, //
    }, //
};

/// How long who unregisters a buffer waits for I/O that is using it, in milliseconds.
const UNREGISTER_MS: u32 = 1000;

/// The provider that has `bytes` bytes from `offset` on of a BAR, and where they are in its memory.
///
/// # Errors
///
/// - `ENXIO`: there is none; or it is a C driver, which hands out its memory by the page.
/// - `ENOMEM`.
fn find(address: pci::Address, bar: u8, offset: u64, bytes: u64) -> Result<(Provider, u64)> {
    for provider in &providers()? {
        let range = provider.range();

        if range.device().address() != address || range.bar() != bar || provider.has_pages() {
            continue;
        }
        let Some(offset) = offset.checked_sub(range.start()) else {
            continue;
        };
        let last = offset.checked_add(bytes - 1);
        if last.is_some_and(|last| provider.bvec(last, 1).is_ok()) {
            return Ok((provider.clone(), offset));
        }
    }
    Err(ENXIO)
}

/// Maps `memory` for `client`. Sleeps.
///
/// # Errors
///
/// Those of `RNVME_IOC_BUF_REGISTER`.
fn map<'a>(client: &'a Client<'a>, memory: Memory) -> Result<Premapped<'a>> {
    match memory {
        Memory::Provider {
            address,
            bar,
            offset,
            bytes,
        } => {
            locked_down(Lockdown::PciAccess)?;
            let (provider, offset) = find(address, bar, offset, bytes)?;
            client
                .premap_provider(&provider, offset, bytes, DataDirection::Bidirectional)
                .map_err(|e| {
                    // The layer has counted it, and the log has why since the first time.
                    if e == EINVAL && client.route(&provider).is_err() {
                        EHOSTUNREACH
                    } else {
                        e
                    }
                })
        }
        Memory::User { address, bytes } => {
            let address = usize::try_from(address).map_err(|_| EFAULT)?;
            let bytes = usize::try_from(bytes).map_err(|_| EFAULT)?;
            Pinned::long_term(UserPtr::from_addr(address), bytes)
                .and_then(|pinned| client.premap(pinned, DataDirection::Bidirectional))
                .map_err(|e| match e {
                    // That would say that the program may not.
                    e if e == EPERM => EOPNOTSUPP,
                    // Memory of another device, with pages.
                    e if e == EREMOTEIO => EFAULT,
                    e => e,
                })
        }
    }
}

/// A buffer that has a number.
struct Entry<'a> {
    premapped: Premapped<'a>,
    /// Whether the program knows the number. As long as it does not, nobody can use it.
    is_told: bool,
}

/// The buffers of an open file. Dropping them does not wait for the device.
#[pin_data]
pub(crate) struct Buffers<'a> {
    client: &'a Client<'a>,
    /// From 1 on. Looked at under its own lock only, for a moment.
    #[pin]
    list: XArray<KBox<Entry<'a>>>,
    /// Held by whoever looks for a number.
    #[pin]
    numbering: Mutex<()>,
}

impl<'a> Buffers<'a> {
    pub(crate) fn new(client: &'a Client<'a>) -> impl PinInit<Self> {
        pin_init!(Self {
            client,
            list <- XArray::new(AllocKind::Alloc1),
            numbering <- new_mutex!(()),
        })
    }

    /// Registers `memory`, and has `tell` tell its number. Sleeps.
    ///
    /// # Errors
    ///
    /// Those of `RNVME_IOC_BUF_REGISTER`, and of `tell`.
    pub(crate) fn register(&self, memory: Memory, tell: &mut dyn FnMut(u32) -> Result) -> Result {
        self.add(map(self.client, memory)?, tell)
    }

    /// Gives a buffer a number. Sleeps.
    ///
    /// # Errors
    ///
    /// - `ENOSPC`: there are too many.
    /// - `ENOMEM`.
    /// - Those of `tell`.
    pub(crate) fn add(
        &self,
        premapped: Premapped<'a>,
        tell: &mut dyn FnMut(u32) -> Result,
    ) -> Result {
        let is_told = false;
        let id = self.number(KBox::new(Entry { premapped, is_told }, GFP_KERNEL)?)?;

        // It may take long, and fail.
        let told = tell(id);
        let untold = {
            let mut list = self.list.lock();

            match (&told, list.get_mut(id as usize)) {
                (Ok(()), Some(entry)) => {
                    entry.is_told = true;
                    None
                }
                _ => list.remove(id as usize),
            }
        };
        drop(untold);
        told
    }

    fn number(&self, entry: KBox<Entry<'a>>) -> Result<u32> {
        let _numbering = self.numbering.lock();
        let id = (1..=uapi::RNVME_MAX_BUFS)
            .find(|&id| self.list.lock().get(id as usize).is_none())
            .ok_or(ENOSPC)?;

        // It was free, and others who look for one wait.
        let stored = self.list.lock().store(id as usize, entry, GFP_KERNEL);
        stored.map_err(|e| e.error)?;
        Ok(id)
    }

    /// Removes buffer number `id`. Waits until RAM has been let go of, unless it is used for long.
    /// Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOENT`: there is none.
    pub(crate) fn unregister(&self, id: u32) -> Result {
        let entry = {
            let mut list = self.list.lock();

            match list.get(id as usize) {
                Some(entry) if entry.is_told => list.remove(id as usize),
                _ => None,
            }
        };
        // Dropping it may sleep, which is not for when the lock is held.
        let premapped = KBox::into_inner(entry.ok_or(ENOENT)?).premapped;

        // A program that registers the next one may lock as much again.
        if premapped.provider().is_none() {
            premapped.unmap(msecs_to_jiffies(UNREGISTER_MS));
        }
        Ok(())
    }

    /// A part of buffer number `id`, for one command.
    ///
    /// # Errors
    ///
    /// - `ENOENT`: there is no such buffer.
    /// - `ERANGE`: it has no such part.
    /// - `ENODEV`: its memory has gone.
    pub(crate) fn slice(
        &self,
        id: u32,
        offset: u64,
        bytes: u32,
        way: Way,
    ) -> Result<PremappedSlice<'a>> {
        let dir = match way {
            Way::Read => DataDirection::FromDevice,
            Way::Write => DataDirection::ToDevice,
        };
        let list = self.list.lock();
        let entry = list.get(id as usize).filter(|entry| entry.is_told);

        match entry.ok_or(ENOENT)?.premapped.slice(offset, bytes, dir) {
            // A program would think that it has passed a wrong address.
            Err(e) if e == EFAULT => Err(ERANGE),
            slice => slice,
        }
    }
}
