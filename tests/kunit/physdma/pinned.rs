// SPDX-License-Identifier: GPL-2.0

//! Memory of user space as a source: ordinary memory, memory of a PCI device, and both; and which
//! kinds of pages can be sources at all.

use super::{
    bound::{
        check,
        check_eq,
        with,
        Testdev, //
    },
    memory::pieces,
    recorder::{
        Recorder,
        LIMITS, //
    }, //
};
use kernel::{
    bindings,
    error::to_result,
    iov::{
        IovIterDest,
        IovIterSource,
        P2pPages, //
    },
    page::PAGE_SIZE,
    physdma::{
        copy_to,
        equals,
        Client,
        Miss,
        Origin,
        Path,
        PhysBvec,
        Pinned,
        PinnedMapping,
        Source, //
    },
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

pub(crate) const READ: usize = 1;
pub(crate) const WRITE: usize = 2;

const PRIVATE: usize = 2;
const ANONYMOUS: usize = 0x20;

/// Memory of a user space that only this test's thread has.
pub(crate) struct User {
    pub(crate) addr: usize,
    len: usize,
}

impl User {
    /// Ordinary memory of `pages` pages.
    pub(crate) fn new(pages: usize, prot: usize) -> Result<Self> {
        // SAFETY: This is the thread of a test.
        to_result(unsafe { bindings::kunit_attach_mm() })?;
        let len = pages * PAGE_SIZE;
        let addr = Self::mmap(core::ptr::null_mut(), 0, len, prot, PRIVATE | ANONYMOUS)?;
        Ok(Self { addr, len })
    }

    pub(crate) fn mmap(
        file: *mut bindings::file,
        addr: usize,
        len: usize,
        prot: usize,
        flags: usize,
    ) -> Result<usize> {
        // SAFETY: The thread has an `mm`. The file is null, or we have a reference.
        let addr = unsafe { bindings::vm_mmap(file, addr, len, prot, flags, 0) };
        // Errors are the last page. CAST: An errno is small.
        if addr > usize::MAX - PAGE_SIZE {
            return Err(Error::from_errno(addr as c_int));
        }
        Ok(addr)
    }

    fn at(&self, offset: usize) -> UserPtr {
        UserPtr::from_addr(self.addr + offset)
    }

    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Result {
        let mut writer = UserSlice::new(self.at(offset), data.len()).writer();
        writer.write_slice(data)
    }

    pub(crate) fn read(&self, offset: usize, len: usize) -> Result<KVec<u8>> {
        let mut data = KVec::new();
        UserSlice::new(self.at(offset), len).read_all(&mut data, GFP_KERNEL)?;
        Ok(data)
    }

    pub(crate) fn pin_to_device(&self, offset: usize, len: usize, p2p: P2pPages) -> Result<Pinned> {
        Pinned::to_device(
            &mut IovIterSource::from_user(self.at(offset), len)?,
            usize::MAX,
            p2p,
        )
    }

    pub(crate) fn pin_from_device(
        &self,
        offset: usize,
        len: usize,
        p2p: P2pPages,
    ) -> Result<Pinned> {
        Pinned::from_device(
            &mut IovIterDest::from_user(self.at(offset), len)?,
            usize::MAX,
            p2p,
        )
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // SAFETY: The thread has an `mm`, of which this is a part.
        unsafe { bindings::vm_munmap(self.addr, self.len) };
    }
}

/// The memory as a source that is not mapped for any device, or unmapped before it is dropped.
pub(crate) fn bvecs(pinned: &Pinned) -> kernel::physdma::PinnedBvecs<'_> {
    // SAFETY: Mappings are dropped first in all tests, and none is of another direction.
    unsafe { pinned.bvecs() }
}

pub(crate) fn pattern(len: usize) -> Result<KVec<u8>> {
    let mut data = KVec::with_capacity(len, GFP_KERNEL)?;
    for i in 0..len {
        // CAST: The remainder has few bits.
        data.push(1 + (i % 251) as u8, GFP_KERNEL)?;
    }
    Ok(data)
}

/// How many references there are to the page that `piece` begins in.
pub(crate) fn references(piece: PhysBvec) -> i32 {
    // SAFETY: The memory has pages.
    let page = unsafe { bindings::physdma_page_of(piece.phys()) };
    // SAFETY: The page is there as long as the user space is; nobody else counts meanwhile.
    unsafe { (*page)._refcount.counter }
}

/// Whether what is in the page that `piece` begins in would be kept if the page were taken away.
fn is_dirty(piece: PhysBvec) -> bool {
    // SAFETY: The memory has pages.
    let page = unsafe { bindings::physdma_page_of(piece.phys()) };
    // SAFETY: The page is there as long as the user space is.
    let flags = unsafe { (*page).flags.f };
    flags & (1 << bindings::pageflags_PG_dirty) != 0
}

pub(crate) fn first(source: impl Source) -> Result<PhysBvec> {
    pieces(source)?.first().copied().ok_or(EINVAL)
}

fn any_part() -> Result {
    let user = User::new(5, READ | WRITE)?;
    let data = pattern(5 * PAGE_SIZE)?;
    user.write(0, &data)?;

    for (offset, len) in [
        (0, 1),
        (0, 5 * PAGE_SIZE),
        (0x123, 0x77),
        (0x123, 3 * PAGE_SIZE + 0x50),
        (PAGE_SIZE - 1, 2),
        (5 * PAGE_SIZE - 1, 1),
    ] {
        let pinned = user.pin_to_device(offset, len, P2pPages::Refuse)?;
        check_eq!(pinned.len(), len);
        let mut source = bvecs(&pinned);
        check_eq!(source.bytes(), len);
        check_eq!(source.gaps() & 0xfff, 0);
        check!(source.is_uniform());
        for _ in 0..2 {
            let mut bytes = 0;
            while let Some(piece) = source.next() {
                let at = if bytes == 0 { offset % PAGE_SIZE } else { 0 };
                check_eq!(piece.phys() as usize % PAGE_SIZE, at);
                check_eq!(source.miss(), Miss::Ram);
                bytes += piece.len() as usize;
            }
            check_eq!(bytes, len);
            source.rewind();
        }
        check!(equals(source, 0, &data[offset..offset + len])?);
    }

    // No more than one wants, and the rest after that.
    let mut iov = IovIterSource::from_user(user.at(0x10), 0x2000)?;
    let pinned = Pinned::to_device(&mut iov, 0x1800, P2pPages::Refuse)?;
    check_eq!((pinned.len(), iov.len()), (0x1800, 0x800));
    let pinned = Pinned::to_device(&mut iov, 0x1800, P2pPages::Refuse)?;
    check_eq!((pinned.len(), iov.len()), (0x800, 0));
    check!(equals(bvecs(&pinned), 0, &data[0x1810..0x2010])?);
    Ok(())
}

fn written() -> Result {
    let user = User::new(3, READ | WRITE)?;
    let data = pattern(2 * PAGE_SIZE)?;
    let pinned = user.pin_from_device(0x800, 2 * PAGE_SIZE, P2pPages::Refuse)?;
    copy_to(bvecs(&pinned), 0, &data)?;
    drop(pinned);
    check!(user.read(0x800, 2 * PAGE_SIZE)?[..] == data[..]);
    check!(user.read(0, 0x800)?.iter().all(|&byte| byte == 0));
    check!(user.read(0x2800, 0x800)?.iter().all(|&byte| byte == 0));
    Ok(())
}

/// What a device has written must not be lost.
fn dirtied() -> Result {
    let user = User::new(1, READ | WRITE)?;
    user.write(0, b"here")?;
    let pinned = user.pin_to_device(0, 16, P2pPages::Refuse)?;
    let piece = first(bvecs(&pinned))?;
    drop(pinned);
    check!(!is_dirty(piece));

    let pinned = user.pin_from_device(0, 16, P2pPages::Refuse)?;
    check_eq!(first(bvecs(&pinned))?.phys(), piece.phys());
    drop(pinned);
    check!(is_dirty(piece));
    Ok(())
}

/// Pages are kept as long as they are pinned, and no longer.
fn counted() -> Result {
    let user = User::new(2, READ | WRITE)?;
    let pinned = user.pin_from_device(0, 2 * PAGE_SIZE, P2pPages::Refuse)?;
    let piece = first(bvecs(&pinned))?;
    let once = references(piece);
    let again = user.pin_to_device(0x10, 0x20, P2pPages::Allow)?;
    check_eq!(first(bvecs(&again))?.phys(), piece.phys() + 0x10);
    let twice = references(piece);
    check!(twice > once);
    drop(again);
    check_eq!(references(piece), once);

    // What was pinned before an error is not any more.
    let past = user.pin_to_device(0, 3 * PAGE_SIZE, P2pPages::Refuse);
    check_eq!(past.err(), Some(EFAULT));
    check_eq!(references(piece), once);

    // It stays when user space has unmapped it.
    drop(user);
    check!(references(piece) > 0 && references(piece) < once);
    copy_to(bvecs(&pinned), 0, b"here")?;
    check!(equals(bvecs(&pinned), 0, b"here")?);
    Ok(())
}

fn errors() -> Result {
    let user = User::new(1, READ)?;
    let refuse = P2pPages::Refuse;
    check!(user.pin_to_device(0, PAGE_SIZE, refuse).is_ok());
    // What a program cannot write no device writes for it.
    check_eq!(
        user.pin_from_device(0, PAGE_SIZE, refuse).err(),
        Some(EFAULT)
    );
    check_eq!(user.pin_to_device(PAGE_SIZE, 1, refuse).err(), Some(EFAULT));
    check_eq!(user.pin_to_device(0, 0, refuse).err(), Some(EINVAL));
    check_eq!(user.pin_from_device(0, 0, refuse).err(), Some(EINVAL));
    let mut iov = IovIterSource::from_user(user.at(0), 16)?;
    let nothing = Pinned::to_device(&mut iov, 0, refuse);
    check_eq!(nothing.err(), Some(EINVAL));
    check_eq!(iov.len(), 16);
    Ok(())
}

/// Several buffers are one source; where they meet there are gaps.
fn several_buffers() -> Result {
    let user = User::new(4, READ | WRITE)?;
    let data = pattern(4 * PAGE_SIZE)?;
    user.write(0, &data)?;
    let buffers = [(0x100, PAGE_SIZE), (0x2200, 0x40), (0x3000, PAGE_SIZE)];
    let vecs = buffers.map(|(offset, len)| bindings::iovec {
        iov_base: (user.addr + offset) as *mut c_void,
        iov_len: len,
    });
    let bytes: usize = buffers.iter().map(|buffer| buffer.1).sum();
    let mut iter = core::mem::MaybeUninit::uninit();
    // SAFETY: The list outlives the IO vector; what is in it is checked when it is used.
    unsafe {
        bindings::iov_iter_init(
            iter.as_mut_ptr(),
            bindings::ITER_SOURCE,
            vecs.as_ptr(),
            vecs.len(),
            bytes,
        )
    };
    // SAFETY: It was just made, of user memory, for reading.
    let iov = unsafe { IovIterSource::from_raw(iter.as_mut_ptr()) };
    let pinned = Pinned::to_device(iov, usize::MAX, P2pPages::Refuse)?;
    check_eq!(pinned.len(), bytes);
    check_eq!(bvecs(&pinned).gaps() & 0xfff, 0x100 | 0x200 | 0x240);
    let mut at = 0;
    for (offset, len) in buffers {
        check!(equals(bvecs(&pinned), at, &data[offset..offset + len])?);
        at += len;
    }

    // So they cannot be one range.
    let recorder = Recorder::new();
    let client = recorder.client(LIMITS)?;
    let mut mapping = PinnedMapping::new(pinned);
    check_eq!(mapping.map(&client)?.path(), Path::Direct);
    Ok(())
}

/// What is mapped is unmapped before it is unpinned.
fn owned() -> Result {
    let user = User::new(8, READ | WRITE)?;
    // What has not been written to yet is no page of its own.
    user.write(0, &pattern(8 * PAGE_SIZE)?)?;
    let recorder = Recorder::new();
    let client = recorder.client(LIMITS)?;
    for write in [false, true] {
        let (offset, len) = (0x800, 6 * PAGE_SIZE);
        let pinned = if write {
            user.pin_from_device(offset, len, P2pPages::Allow)?
        } else {
            user.pin_to_device(offset, len, P2pPages::Allow)?
        };
        let piece = first(bvecs(&pinned))?;
        let pinned_once = references(piece);
        let mut mapping = PinnedMapping::new(pinned);
        for _ in 0..2 {
            let mut segments = mapping.map(&client)?;
            let mut bytes = 0;
            while let Some(segment) = segments.next()? {
                check_eq!(segment.origin, Origin::Mapped);
                bytes += segment.len as usize;
            }
            check_eq!((bytes, segments.count()), (len, 1));
        }
        check!(!recorder.clean());
        check_eq!(mapping.memory().len(), len);
        mapping.unmap();
        check!(recorder.clean());
        check_eq!(references(piece), pinned_once);
        mapping.map(&client)?;
        drop(mapping);
        check!(recorder.clean());
        check!(references(piece) < pinned_once);
    }
    Ok(())
}

/// With the kernel's own page tables.
fn on_a_device() -> Result {
    let user = User::new(16, READ | WRITE)?;
    with::<Testdev>(|dev| {
        let client = Client::new(dev.as_ref(), LIMITS)?;
        let pinned = user.pin_from_device(0x200, 15 * PAGE_SIZE, P2pPages::Allow)?;
        let mut mapping = PinnedMapping::new(pinned);
        let mut segments = mapping.map(&client)?;
        let mut bytes = 0;
        while let Some(segment) = segments.next()? {
            if bytes == 0 {
                check_eq!(segment.dma & 0xfff, 0x200);
            }
            bytes += segment.len as usize;
        }
        check_eq!(bytes, 15 * PAGE_SIZE);
        // An IOMMU makes it one segment.
        check!(segments.count() == 1 || !cfg!(CONFIG_IOMMU_DMA));
        Ok(())
    })
}

#[kunit_tests(physdma_pinned)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_a_buffer() -> Result {
        any_part()
    }

    #[test]
    fn what_is_written_is_there() -> Result {
        written()
    }

    #[test]
    fn what_is_written_is_not_lost() -> Result {
        dirtied()
    }

    #[test]
    fn pinned_as_long_as_it_is_there() -> Result {
        counted()
    }

    #[test]
    fn what_cannot_be_pinned() -> Result {
        errors()
    }

    #[test]
    fn several_buffers_are_one_source() -> Result {
        several_buffers()
    }

    #[test]
    fn unmapped_before_it_is_unpinned() -> Result {
        owned()
    }

    #[test]
    fn mapped_for_a_device() -> Result {
        on_a_device()
    }
}
