// SPDX-License-Identifier: GPL-2.0

//! Physical Region Pages: how a command says where its data are.
//!
//! A command holds two entries. The first is an address; it may have an offset in its page. If the
//! data go on, the second is the address of the next page or, if there are more pages than that,
//! of a list of page addresses. A list lies within one page; if it is full, its last entry is the
//! address of the next list.
//!
//! No kernel types here: the same source is compiled on the host for its tests.
//!
//! NVM Express Base Specification 2.0, section 4.1.1.

/// Bytes that an entry covers, and bytes of a full list.
pub(crate) const PAGE: u64 = 4096;
/// Entries of a full list.
pub(crate) const ENTRIES: usize = PAGE as usize / size_of::<u64>();

/// Memory for the lists of one request.
pub(crate) trait Lists {
    /// Gets memory for `entries` entries: a list that holds them, or as many full ones as
    /// [`lists()`] says. Opens the first, and returns its address as the device sees it.
    fn begin<E>(&mut self, entries: usize) -> Result<u64, Fault<E>>;

    /// Writes `entry`, a value in the CPU's byte order, into `slot` of the list that was opened
    /// last.
    fn write(&mut self, slot: usize, entry: u64);

    /// Opens list `list`, the address of which becomes the last entry of the one before.
    fn link<E>(&mut self, list: usize) -> Result<(), Fault<E>>;
}

/// Why there are no entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault<E> {
    /// The next segment could not be had.
    Source(E),
    /// There is no memory for lists just now.
    NoLists,
    /// There is never memory for so many entries.
    TooLong,
    /// A segment begins or ends within a page where it must not, or the first one not on a
    /// multiple of four bytes.
    Misaligned,
    /// The segments are not as long together as they should be.
    Length,
}

/// How many lists `entries` entries need when there is more than one.
pub(crate) const fn lists(entries: usize) -> usize {
    match entries {
        0..=ENTRIES => 1,
        // Each but the last gives one entry to the address of the next.
        _ => (entries - 1).div_ceil(ENTRIES - 1),
    }
}

/// Whether `most` lists that have room for `room` entries each can hold `entries`.
#[inline]
pub(crate) const fn fit(entries: usize, room: usize, most: usize) -> bool {
    // All but the last are full.
    (entries <= room || room >= ENTRIES) && lists(entries) <= most
}

/// The most list entries that `bytes` bytes of data can need.
pub(crate) const fn max_entries(bytes: u32) -> usize {
    bytes as usize / PAGE as usize
}

/// The entries of a command whose data are all in the segment of `len` bytes at `dma`, which lies
/// in two pages at most. [`None`]: it does not, or cannot be said by entries.
#[inline]
pub(crate) fn short(dma: u64, len: u32) -> Option<[u64; 2]> {
    let end = dma % PAGE + u64::from(len);

    if dma % 4 != 0 || len == 0 || end > 2 * PAGE {
        return None;
    }
    let second = (dma | (PAGE - 1)).wrapping_add(1);
    Some([dma, if end > PAGE { second } else { 0 }])
}

/// Builds the entries for `bytes` bytes of data in the segments that `next` returns, of which each
/// is an address and a length, and returns those that go into the command.
#[inline]
pub(crate) fn build<E>(
    mut next: impl FnMut() -> Result<Option<(u64, u32)>, E>,
    bytes: u32,
    lists: &mut impl Lists,
) -> Result<[u64; 2], Fault<E>> {
    let mut segment = || match next() {
        Ok(Some(segment)) => Ok(segment),
        Ok(None) => Err(Fault::Length),
        Err(e) => Err(Fault::Source(e)),
    };
    let (first, len) = segment()?;
    let offset = first % PAGE;

    if bytes == 0 || len == 0 {
        return Err(Fault::Length);
    }
    if offset % 4 != 0 {
        return Err(Fault::Misaligned);
    }

    // Bytes of the current segment, and of the data, that no entry covers yet.
    let in_page = PAGE - offset;
    let (mut rest, mut left) = (u64::from(len), u64::from(bytes));

    if rest > left {
        return Err(Fault::Length);
    }
    let covered = rest.min(in_page);
    if covered < in_page && covered < left {
        return Err(Fault::Misaligned);
    }
    let mut dma = first.wrapping_add(covered);
    rest -= covered;
    left -= covered;

    let entries = left.div_ceil(PAGE) as usize;
    let listed = entries > 1;
    let (mut second, mut list, mut slot) = (0, 0, 0);
    if listed {
        second = lists.begin(entries)?;
    }
    loop {
        // Where the data go on, a segment ends with a page.
        if rest % PAGE != 0 && rest < left {
            return Err(Fault::Misaligned);
        }
        left -= rest;
        while rest != 0 {
            if listed {
                // The last entry of a full list, unless it is the last of all, leads to the next.
                if slot == ENTRIES - 1 && (left != 0 || rest > PAGE) {
                    list += 1;
                    lists.link(list)?;
                    slot = 0;
                }
                lists.write(slot, dma);
                slot += 1;
            } else {
                second = dma;
            }
            dma = dma.wrapping_add(PAGE);
            rest = rest.saturating_sub(PAGE);
        }
        if left == 0 {
            return Ok([first, second]);
        }

        let (next, len) = segment()?;
        (dma, rest) = (next, len.into());
        if dma % PAGE != 0 {
            return Err(Fault::Misaligned);
        }
        if rest == 0 || rest > left {
            return Err(Fault::Length);
        }
    }
}
