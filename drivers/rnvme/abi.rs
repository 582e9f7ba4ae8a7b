// SPDX-License-Identifier: GPL-2.0

//! What programs ask for: the structures of `include/uapi/linux/rnvme.h`, looked at.

use crate::api::Way;
use kernel::{
    ioctl::{
        _IOW,
        _IOWR, //
    },
    pci,
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uapi, //
};

const LETTER: u32 = 'N' as u32;

/// `RNVME_IOC_BUF_REGISTER`
pub(crate) const BUF_REGISTER: u32 = _IOWR::<RawBuf>(LETTER, 0xa0);
/// `RNVME_IOC_BUF_UNREGISTER`
pub(crate) const BUF_UNREGISTER: u32 = _IOW::<RawBufId>(LETTER, 0xa1);
/// `RNVME_IOC_IO` and `RNVME_URING_CMD_IO`
pub(crate) const IO: u32 = _IOW::<RawIo>(LETTER, 0xa2);

/// A [`uapi::rnvme_buf`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct RawBuf(pub(crate) uapi::rnvme_buf);

/// A [`uapi::rnvme_buf_id`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct RawBufId(pub(crate) uapi::rnvme_buf_id);

/// A [`uapi::rnvme_io`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct RawIo(pub(crate) uapi::rnvme_io);

// The layout is the same for programs of 32 bits: each field is where it would be without padding.
const _: () = assert!(size_of::<RawBuf>() == 4 * 3 + 4 + 8 * 2 + 4 * 2 + 8 * 2);
const _: () = assert!(size_of::<RawBufId>() == 4 * 2);
const _: () = assert!(size_of::<RawIo>() == 4 * 2 + 8 * 2 + 4 + 2 * 2 + 8 * 2);

// SAFETY: Integers only, so that any bytes are one.
unsafe impl FromBytes for RawBuf {}
// SAFETY: As above.
unsafe impl FromBytes for RawBufId {}
// SAFETY: As above.
unsafe impl FromBytes for RawIo {}
// SAFETY: Integers only and, by its size, no padding between them.
unsafe impl AsBytes for RawBuf {}

/// Memory that is to be a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// A part of a BAR.
    Provider {
        address: pci::Address,
        bar: u8,
        /// In the BAR, in bytes.
        offset: u64,
        bytes: u64,
    },
    /// The program's.
    User { address: u64, bytes: u64 },
}

impl RawBuf {
    /// What memory it is.
    ///
    /// # Errors
    ///
    /// `EINVAL`: what the header does not allow.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let raw = &self.0;

        if raw.flags != 0
            || raw.reserved1 != 0
            || raw.id != 0
            || raw.reserved2 != 0
            || raw.reserved3 != [0; 2]
            || raw.length == 0
            || raw.offset.checked_add(raw.length).is_none()
        {
            return Err(EINVAL);
        }
        match raw.kind {
            uapi::RNVME_BUF_PROVIDER => Ok(Memory::Provider {
                address: pci::Address::new(raw.domain, raw.bus, raw.devfn >> 3, raw.devfn & 7)
                    .ok_or(EINVAL)?,
                bar: raw.bar,
                offset: raw.offset,
                bytes: raw.length,
            }),
            uapi::RNVME_BUF_USER
                if (raw.domain, raw.bus, raw.devfn, raw.bar) == (0, 0, 0, 0)
                    && raw.length <= uapi::RNVME_MAX_USER_BYTES.into() =>
            {
                Ok(Memory::User {
                    address: raw.offset,
                    bytes: raw.length,
                })
            }
            _ => Err(EINVAL),
        }
    }
}

impl RawBufId {
    /// The buffer's number.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the reserved field is not zero.
    pub(crate) fn id(&self) -> Result<u32> {
        match self.0.reserved {
            0 => Ok(self.0.id),
            _ => Err(EINVAL),
        }
    }
}

/// Data to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Io {
    pub(crate) id: u32,
    pub(crate) nsid: u32,
    /// In the buffer, in bytes.
    pub(crate) offset: u64,
    pub(crate) lba: u64,
    pub(crate) bytes: u32,
    pub(crate) way: Way,
}

impl RawIo {
    /// What is to be moved.
    ///
    /// # Errors
    ///
    /// `EINVAL`: what the header does not allow, whatever the disk.
    pub(crate) fn io(&self) -> Result<Io> {
        let raw = &self.0;

        if raw.flags != 0
            || raw.reserved != [0; 2]
            || raw.length == 0
            || raw.length > uapi::RNVME_MAX_IO_BYTES
        {
            return Err(EINVAL);
        }
        Ok(Io {
            id: raw.id,
            nsid: raw.nsid,
            offset: raw.offset,
            lba: raw.lba,
            bytes: raw.length,
            way: match raw.op.into() {
                uapi::RNVME_OP_READ => Way::Read,
                uapi::RNVME_OP_WRITE => Way::Write,
                _ => return Err(EINVAL),
            },
        })
    }
}
