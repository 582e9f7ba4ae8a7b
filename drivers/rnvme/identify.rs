// SPDX-License-Identifier: GPL-2.0

//! What Identify answers, read with suspicion.
//!
//! Nothing that a controller says is believed before it has been compared with what can be true.
//! No kernel types here: the same source is compiled on the host for its tests.
//!
//! NVM Express Base Specification 2.0, section 5.17; NVM Command Set Specification 1.0, section
//! 4.1.5.

/// The length of every Identify answer, in bytes.
pub(crate) const PAGE_LEN: usize = 4096;

/// The smallest memory page of NVMe, the only one that the driver uses, in bytes.
pub(crate) const CTRL_PAGE_SIZE: u32 = 4096;

/// The most bytes that one command moves, whatever the controller could do.
pub(crate) const MAX_TRANSFER: u32 = 4 << 20;

/// The most namespaces of an answer to Identify Active Namespaces.
pub(crate) const LIST_LEN: usize = PAGE_LEN / size_of::<u32>();

/// The NVM command set, as [`command_set()`] says it.
pub(crate) const NVM_COMMAND_SET: u8 = 0;

/// The answer to Identify, copied out of the memory that the controller can write.
pub(crate) type Page = [u8; PAGE_LEN];

/// The `N` bytes from `AT` on.
fn field<const AT: usize, const N: usize>(page: &Page) -> [u8; N] {
    const { assert!(AT + N <= PAGE_LEN) };
    let mut bytes = [0; N];

    bytes.copy_from_slice(&page[AT..AT + N]);
    bytes
}

/// Identify Controller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Controller {
    serial: [u8; 20],
    model: [u8; 40],
    firmware: [u8; 8],
    /// The most bytes that one command may move. A multiple of [`CTRL_PAGE_SIZE`].
    pub(crate) max_transfer: u32,
    /// How long a shutdown may take, in milliseconds.
    pub(crate) shutdown_ms: i64,
    /// The highest namespace identifier.
    pub(crate) namespaces: u32,
    /// There is a volatile write cache.
    pub(crate) write_cache: bool,
    /// A command may say where its data are by an SGL descriptor.
    pub(crate) sgls: bool,
    /// It looks for doorbells in memory.
    pub(crate) doorbell_buffers: bool,
}

/// The controller's queue entries are not of the sizes that the specification demands: it does not
/// know what an Identify answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrongEntrySize {
    /// Smallest (lower half) and largest (upper half) submission queue entry.
    pub(crate) sqes: u8,
    /// The same of completion queue entries.
    pub(crate) cqes: u8,
}

impl Controller {
    /// Reads `page`, with memory pages of 4 KiB as the unit of its maximum data transfer size.
    pub(crate) fn parse(page: &Page) -> Result<Self, WrongEntrySize> {
        const SHUTDOWN_MIN_MS: i64 = 5_000;
        const SHUTDOWN_MAX_MS: i64 = 60_000;

        let [mdts] = field::<77, 1>(page);
        let rtd3e_us = u32::from_le_bytes(field::<88, 4>(page));
        let [sqes, cqes] = field::<512, 2>(page);
        let oacs = u16::from_le_bytes(field::<256, 2>(page));
        let [vwc] = field::<525, 1>(page);
        // One and two are yes; zero is no, and three is reserved.
        let sgls = u32::from_le_bytes(field::<536, 4>(page)) & 0b11;
        let holds = |sizes: u8, log2: u8| (sizes & 0xf..=sizes >> 4).contains(&log2);

        if !holds(sqes, 6) || !holds(cqes, 4) {
            return Err(WrongEntrySize { sqes, cqes });
        }

        Ok(Self {
            serial: field::<4, 20>(page),
            model: field::<24, 40>(page),
            firmware: field::<64, 8>(page),
            max_transfer: match mdts {
                0 => MAX_TRANSFER,
                _ => CTRL_PAGE_SIZE
                    .checked_shl(mdts.into())
                    .filter(|bytes| bytes >> mdts == CTRL_PAGE_SIZE)
                    .map_or(MAX_TRANSFER, |bytes| bytes.min(MAX_TRANSFER)),
            },
            shutdown_ms: (i64::from(rtd3e_us) / 1000).clamp(SHUTDOWN_MIN_MS, SHUTDOWN_MAX_MS),
            namespaces: u32::from_le_bytes(field::<516, 4>(page)),
            write_cache: vwc & 1 != 0,
            sgls: matches!(sgls, 1 | 2),
            doorbell_buffers: oacs & 1 << 8 != 0,
        })
    }

    /// The serial number, as far as it can be printed.
    pub(crate) fn serial(&self) -> &str {
        text(&self.serial)
    }

    /// The model, as far as it can be printed.
    pub(crate) fn model(&self) -> &str {
        text(&self.model)
    }

    /// The firmware revision, as far as it can be printed.
    pub(crate) fn firmware(&self) -> &str {
        text(&self.firmware)
    }
}

/// A text field up to its padding, or to the first byte that is no printable ASCII character.
fn text(bytes: &[u8]) -> &str {
    let len = bytes
        .iter()
        .position(|b| !matches!(b, b' '..=b'~'))
        .unwrap_or(bytes.len());

    core::str::from_utf8(&bytes[..len]).map_or("", |s| s.trim_end_matches(' '))
}

/// Identify Namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Namespace {
    /// Its length in blocks.
    pub(crate) blocks: u64,
    /// A block is two to the power of this bytes: 9 to 12.
    pub(crate) lba_shift: u32,
    /// It cannot be written to.
    pub(crate) read_only: bool,
}

/// Why a namespace cannot be a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// It has no blocks.
    Empty,
    /// Its format is not among those that it lists.
    Format(u8),
    /// Its blocks are two to the power of this bytes.
    BlockSize(u8),
    /// It has this many bytes of metadata with each block.
    Metadata(u16),
    /// It claims 2^63 bytes or more.
    TooLong(u64),
    /// It is of this I/O command set, or does not say of which.
    CommandSet(Option<u8>),
}

impl Namespace {
    /// Reads `page`.
    pub(crate) fn parse(page: &Page) -> Result<Self, Unusable> {
        let blocks = u64::from_le_bytes(field::<0, 8>(page));
        let [nlbaf, flbas] = field::<25, 2>(page);
        let [nulbaf] = field::<82, 1>(page);
        let [nsattr] = field::<99, 1>(page);
        let formats: [u8; 256] = field::<128, 256>(page);
        let index = flbas & 0xf | flbas >> 1 & 0x30;

        if blocks == 0 {
            return Err(Unusable::Empty);
        }
        // After the formats that all namespaces may have come those that only some may have.
        if u16::from(index) > u16::from(nlbaf) + u16::from(nulbaf) {
            return Err(Unusable::Format(index));
        }
        let at = usize::from(index) * 4;
        let [ms_lo, ms_hi, lbads] = [formats[at], formats[at + 1], formats[at + 2]];
        if !(9..=12).contains(&lbads) {
            return Err(Unusable::BlockSize(lbads));
        }
        let metadata = u16::from_le_bytes([ms_lo, ms_hi]);
        if metadata != 0 {
            return Err(Unusable::Metadata(metadata));
        }
        if blocks >> (63 - lbads) != 0 {
            return Err(Unusable::TooLong(blocks));
        }

        Ok(Self {
            blocks,
            lba_shift: lbads.into(),
            read_only: nsattr & 1 != 0,
        })
    }

    /// Its length in sectors of 512 bytes.
    pub(crate) fn sectors(&self) -> u64 {
        self.blocks << (self.lba_shift - 9)
    }
}

/// The I/O command set of a namespace, as its Namespace Identification Descriptors say.
///
/// NVM Express Base Specification 2.0, section 5.17.2.3.
pub(crate) fn command_set(page: &Page) -> Option<u8> {
    const CSI: u8 = 4;
    let mut rest = &page[..];

    while let &[kind, len, _, _, ref more @ ..] = rest {
        // The list ends with zeroes.
        if kind == 0 || len == 0 {
            return None;
        }
        let (value, after) = more.split_at_checked(len.into())?;
        if kind == CSI {
            return value.first().copied();
        }
        rest = after;
    }
    None
}

/// The namespace identifiers of an answer to Identify Active Namespaces: those that rise from
/// `after`, up to the first that is zero or does not.
pub(crate) fn active_namespaces(page: &Page, after: u32) -> impl Iterator<Item = u32> + '_ {
    let mut last = after;

    page.chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .take_while(move |&nsid| {
            let rises = nsid > last;
            last = nsid;
            rises
        })
}
