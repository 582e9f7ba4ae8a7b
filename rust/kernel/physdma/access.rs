// SPDX-License-Identifier: GPL-2.0

//! What a CPU does to memory that may be anybody's: copy, fill, compare.
//!
//! Most users of `bv_page` only want to touch bytes. RAM is mapped with `kmap_local_page()`, a
//! provider's memory with a [`Window`] and the `_io` copies. Which it is says the same look-up as
//! for DMA; what is neither is `EFAULT`. No call here hands out a mapping of an unchecked address.
//!
//! All of them may sleep.
//!
//! C header: [`include/linux/highmem.h`](srctree/include/linux/highmem.h)

use super::{
    bvec::wide,
    registry,
    window::Window,
    Miss,
    PhysBvec,
    Source, //
};
use crate::{
    bindings,
    page::{
        PAGE_MASK,
        PAGE_SIZE, //
    },
    prelude::*, //
};
use core::ptr::NonNull;

/// The most of a provider's memory that is mapped at once, in bytes.
const WINDOW: usize = 0x1_0000;

/// A part of a source that the CPU has mapped.
enum Chunk<'a> {
    /// RAM; not a slice, as a device may be writing it.
    Ram(*mut u8, usize),
    /// All of a provider's memory in the window.
    Io(&'a Window),
}

impl Chunk<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Ram(_, len) => *len,
            Self::Io(window) => window.len(),
        }
    }

    /// Copies to `buf` what is at `offset`. The two must fit the chunk.
    fn read(&self, offset: usize, buf: &mut [u8]) -> Result {
        match self {
            Self::Ram(_, len) if offset.checked_add(buf.len()).is_none_or(|end| end > *len) => {
                Err(EINVAL)
            }
            // SAFETY: `with_chunks` passes mapped memory of that length; just checked.
            Self::Ram(at, _) => unsafe {
                core::ptr::copy_nonoverlapping(at.add(offset), buf.as_mut_ptr(), buf.len());
                Ok(())
            },
            Self::Io(window) => window.read(offset, buf),
        }
    }

    /// Copies `buf` to the chunk, which must be as long.
    fn write(&self, buf: &[u8]) -> Result {
        match self {
            Self::Ram(_, len) if buf.len() != *len => Err(EINVAL),
            // SAFETY: As in `read`; who made the source has promised that it may be written.
            Self::Ram(at, _) => unsafe {
                core::ptr::copy_nonoverlapping(buf.as_ptr(), *at, buf.len());
                Ok(())
            },
            Self::Io(window) => window.write(0, buf),
        }
    }

    fn fill(&self, value: u8) -> Result {
        match self {
            // SAFETY: As in `write`.
            Self::Ram(at, len) => unsafe {
                at.write_bytes(value, *len);
                Ok(())
            },
            Self::Io(window) => window.fill(0, window.len(), value),
        }
    }
}

/// Calls `f` for each mapped part of the `len` bytes from `offset` on of `source`, with its place
/// behind `offset`.
fn with_chunks<S: Source>(
    mut source: S,
    offset: usize,
    len: usize,
    mut f: impl FnMut(usize, Chunk<'_>) -> Result,
) -> Result {
    if offset
        .checked_add(len)
        .is_none_or(|end| end > source.bytes())
    {
        return Err(EINVAL);
    }
    let mut skip = offset;
    let mut done = 0;
    let mut ahead = None;
    while done < len {
        let piece: PhysBvec = ahead.take().or_else(|| source.next()).ok_or(EINVAL)?;
        if skip > 0 {
            let (head, rest) = piece.split(u32::try_from(skip).unwrap_or(u32::MAX));
            skip -= head.len() as usize;
            ahead = rest;
            continue;
        }

        let (owner, alike) = registry::owner_of(piece);
        // CAST: At most `WINDOW`.
        let most = alike.min((len - done).min(WINDOW) as u32);
        let (head, rest) = match owner {
            Some(_) => piece.split(most),
            // CAST: A page's size has few bits.
            None => piece.split(most.min((PAGE_SIZE - in_page(piece)) as u32)),
        };
        ahead = rest;
        match owner {
            // As in `map()`.
            Some(provider) if provider.has_pages() && !S::PAGES && source.miss() != Miss::Ram => {
                return Err(EFAULT)
            }
            Some(provider) => {
                let offset = wide(head.phys() - provider.range().first());
                let window = provider.window_of_any(offset, head.len())?;
                f(done, Chunk::Io(&window))?;
            }
            None if source.miss() == Miss::Ram => {
                // SAFETY: The helper looks whether there is a page.
                let page = unsafe { bindings::physdma_kmap(head.phys()) };
                let page = NonNull::new(page).ok_or(EFAULT)?;
                let result = f(done, Chunk::Ram(page.as_ptr().cast(), head.len() as usize));
                // SAFETY: It is what was mapped last.
                unsafe { bindings::kunmap_local(page.as_ptr()) };
                result?;
            }
            None => return Err(EFAULT),
        }
        done += head.len() as usize;
    }
    Ok(())
}

/// Where in its page a piece starts.
fn in_page(piece: PhysBvec) -> usize {
    // CAST: Only the bits within a page are looked at.
    piece.phys() as usize & !PAGE_MASK
}

/// Copies to `buf` what `source` has from byte `offset` on.
///
/// # Errors
///
/// - `EINVAL`: the source is shorter.
/// - `EFAULT`: a part of it is neither RAM nor a provider's memory; or it is memory with pages, but
///   the source has its address only.
/// - `ENODEV`: the provider's memory is being revoked.
/// - `ENOMEM`.
///
/// A part may have been copied then.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{copy_from, copy_to, PhysBvec, Raw, Virt};
///
/// let mut memory = KVec::from_elem(0u8, 100, GFP_KERNEL)?;
/// let whole = &raw mut memory[..];
/// // SAFETY: It outlives the source, and no reference is used meanwhile.
/// let place = || unsafe { Virt::new(whole) };
///
/// copy_to(place()?, 3, b"physical")?;
/// let mut buf = [0; 4];
/// copy_from(place()?, 7, &mut buf)?;
/// assert_eq!(&buf, b"ical");
///
/// // Nobody says what is at an address that has no provider.
/// let list = [PhysBvec::new(0x1000, 16).ok_or(EINVAL)?];
/// assert_eq!(copy_from(Raw::new(&list)?, 0, &mut buf), Err(EFAULT));
/// # Ok::<(), Error>(())
/// ```
pub fn copy_from(source: impl Source, offset: usize, buf: &mut [u8]) -> Result {
    with_chunks(source, offset, buf.len(), |at, chunk| {
        chunk.read(0, &mut buf[at..at + chunk.len()])
    })
}

/// Copies `buf` to `source`, from its byte `offset` on.
///
/// # Errors
///
/// As with [`copy_from`].
///
/// # Examples
///
/// See [`copy_from`].
pub fn copy_to(source: impl Source, offset: usize, buf: &[u8]) -> Result {
    with_chunks(source, offset, buf.len(), |at, chunk| {
        chunk.write(&buf[at..at + chunk.len()])
    })
}

/// Sets `len` bytes of `source` to zero, from its byte `offset` on.
///
/// # Errors
///
/// As with [`copy_from`].
///
/// # Examples
///
/// ```
/// use kernel::physdma::{equals, zero, Virt};
///
/// let mut memory = KVec::from_elem(0xffu8, 100, GFP_KERNEL)?;
/// let buf = &raw mut memory[..];
/// // SAFETY: It outlives the source, and no reference is used meanwhile.
/// let place = || unsafe { Virt::new(buf) };
///
/// zero(place()?, 1, 3)?;
/// assert!(equals(place()?, 0, &[0xff, 0, 0, 0, 0xff])?);
/// assert!(!equals(place()?, 0, &[0xff, 0, 0, 1])?);
/// assert_eq!(zero(place()?, 98, 3), Err(EINVAL));
/// # Ok::<(), Error>(())
/// ```
pub fn zero(source: impl Source, offset: usize, len: usize) -> Result {
    with_chunks(source, offset, len, |_, chunk| chunk.fill(0))
}

/// Whether `source` has the bytes of `buf` from its byte `offset` on.
///
/// # Errors
///
/// As with [`copy_from`].
///
/// # Examples
///
/// See [`zero`].
pub fn equals(source: impl Source, offset: usize, buf: &[u8]) -> Result<bool> {
    let mut same = true;
    let mut copy = [0; 128];
    with_chunks(source, offset, buf.len(), |at, chunk| {
        for from in (0..chunk.len()).step_by(copy.len()) {
            let part = &mut copy[..(chunk.len() - from).min(128)];
            chunk.read(from, part)?;
            same &= *part == buf[at + from..at + from + part.len()];
        }
        Ok(())
    })?;
    Ok(same)
}
