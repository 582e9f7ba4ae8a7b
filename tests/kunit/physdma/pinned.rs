// SPDX-License-Identifier: GPL-2.0

//! Memory of user space as a source: ordinary memory, memory of a PCI device, and both; and which
//! kinds of pages can be sources at all.

use super::{
    bound::{
        check,
        check_eq,
        follow,
        with,
        with_memory,
        Testdev, //
    },
    memory::{
        pieces,
        source, //
    },
    recorder::{
        Recorder,
        BASE,
        LIMITS, //
    }, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    device::Bound,
    error::{
        from_err_ptr,
        to_result, //
    },
    iov::{
        IovIterDest,
        IovIterSource,
        P2pPages, //
    },
    page::{
        BorrowedPage,
        PageKind,
        PAGE_SIZE, //
    },
    pci,
    physdma::{
        copy_from,
        copy_to,
        equals,
        provider_of,
        Client,
        Mapping,
        Memory,
        Miss,
        Origin,
        Path,
        PhysBvec,
        Pinned,
        PinnedMapping,
        Provider,
        Route,
        Segment,
        Source, //
    },
    prelude::*,
    str::CString,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

const READ: usize = 1;
const WRITE: usize = 2;

const SHARED: usize = 1;
const PRIVATE: usize = 2;
const FIXED: usize = 0x10;
const ANONYMOUS: usize = 0x20;

/// The open directory `/sys`, which the thread of a test does not see by itself.
static SYS: Atomic<*mut c_void> = Atomic::new(core::ptr::null_mut());

/// Opens what the tests need, in the program that loads the module.
pub(crate) fn init() -> Result {
    // SAFETY: It is a string.
    let sys = from_err_ptr(unsafe {
        bindings::filp_open(c"/sys".as_char_ptr(), bindings::O_DIRECTORY as c_int, 0)
    })?;
    SYS.store(sys.cast(), Relaxed);
    Ok(())
}

/// Closes it, after the tests.
pub(crate) fn exit() {
    let sys = SYS.load(Relaxed).cast();
    // SAFETY: It is what `init` opened.
    unsafe { bindings::filp_close(sys, core::ptr::null_mut()) };
}

/// Memory of a user space that only this test's thread has.
struct User {
    addr: usize,
    len: usize,
}

impl User {
    /// Ordinary memory of `pages` pages.
    fn new(pages: usize, prot: usize) -> Result<Self> {
        // SAFETY: This is the thread of a test.
        to_result(unsafe { bindings::kunit_attach_mm() })?;
        let len = pages * PAGE_SIZE;
        let addr = Self::mmap(core::ptr::null_mut(), 0, len, prot, PRIVATE | ANONYMOUS)?;
        Ok(Self { addr, len })
    }

    fn mmap(
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

    /// Has memory of a PCI device in the place of page `at`.
    fn replace(&self, at: usize, dev: &pci::Device<Bound>) -> Result {
        let path = CString::try_from_fmt(fmt!(
            "bus/pci/devices/{}/p2pmem/allocate",
            dev.as_ref().name()
        ))?;
        let sys = SYS.load(Relaxed).cast::<bindings::file>();
        // SAFETY: It is an open file until the module is unloaded; `path` is a string.
        let file = from_err_ptr(unsafe {
            bindings::file_open_root(
                &raw const (*sys).__bindgen_anon_1.f_path,
                path.as_char_ptr(),
                bindings::O_RDWR as c_int,
                0,
            )
        })?;
        let place = self.addr + at * PAGE_SIZE;
        let result = Self::mmap(file, place, PAGE_SIZE, READ | WRITE, SHARED | FIXED);
        // SAFETY: It is what was opened.
        unsafe { bindings::filp_close(file, core::ptr::null_mut()) };
        check_eq!(result?, place);
        Ok(())
    }

    fn at(&self, offset: usize) -> UserPtr {
        UserPtr::from_addr(self.addr + offset)
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result {
        let mut writer = UserSlice::new(self.at(offset), data.len()).writer();
        writer.write_slice(data)
    }

    fn read(&self, offset: usize, len: usize) -> Result<KVec<u8>> {
        let mut data = KVec::new();
        UserSlice::new(self.at(offset), len).read_all(&mut data, GFP_KERNEL)?;
        Ok(data)
    }

    fn to_device(&self, offset: usize, len: usize, p2p: P2pPages) -> Result<Pinned> {
        Pinned::to_device(
            &mut IovIterSource::from_user(self.at(offset), len)?,
            usize::MAX,
            p2p,
        )
    }

    fn from_device(&self, offset: usize, len: usize, p2p: P2pPages) -> Result<Pinned> {
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
fn bvecs(pinned: &Pinned) -> kernel::physdma::PinnedBvecs<'_> {
    // SAFETY: Mappings are dropped first in all tests, and none is of another direction.
    unsafe { pinned.bvecs() }
}

fn pattern(len: usize) -> Result<KVec<u8>> {
    let mut data = KVec::with_capacity(len, GFP_KERNEL)?;
    for i in 0..len {
        // CAST: The remainder has few bits.
        data.push(1 + (i % 251) as u8, GFP_KERNEL)?;
    }
    Ok(data)
}

/// How many references there are to the page that `piece` begins in.
fn references(piece: PhysBvec) -> i32 {
    // SAFETY: The memory has pages.
    let page = unsafe { bindings::physdma_page_of(piece.phys()) };
    // SAFETY: The page is there as long as the user space is; nobody else counts meanwhile.
    unsafe { (*page)._refcount.counter }
}

fn first(source: impl Source) -> Result<PhysBvec> {
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
        let pinned = user.to_device(offset, len, P2pPages::Refuse)?;
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
    let pinned = user.from_device(0x800, 2 * PAGE_SIZE, P2pPages::Refuse)?;
    copy_to(bvecs(&pinned), 0, &data)?;
    drop(pinned);
    check!(user.read(0x800, 2 * PAGE_SIZE)?[..] == data[..]);
    check!(user.read(0, 0x800)?.iter().all(|&byte| byte == 0));
    check!(user.read(0x2800, 0x800)?.iter().all(|&byte| byte == 0));
    Ok(())
}

/// Pages are kept as long as they are pinned, and no longer.
fn counted() -> Result {
    let user = User::new(2, READ | WRITE)?;
    let pinned = user.from_device(0, 2 * PAGE_SIZE, P2pPages::Refuse)?;
    let piece = first(bvecs(&pinned))?;
    let once = references(piece);
    let again = user.to_device(0x10, 0x20, P2pPages::Allow)?;
    check_eq!(first(bvecs(&again))?.phys(), piece.phys() + 0x10);
    let twice = references(piece);
    check!(twice > once);
    drop(again);
    check_eq!(references(piece), once);

    // What was pinned before an error is not any more.
    let past = user.to_device(0, 3 * PAGE_SIZE, P2pPages::Refuse);
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
    check!(user.to_device(0, PAGE_SIZE, refuse).is_ok());
    // What a program cannot write no device writes for it.
    check_eq!(user.from_device(0, PAGE_SIZE, refuse).err(), Some(EFAULT));
    check_eq!(user.to_device(PAGE_SIZE, 1, refuse).err(), Some(EFAULT));
    check_eq!(user.to_device(0, 0, refuse).err(), Some(EINVAL));
    check_eq!(user.from_device(0, 0, refuse).err(), Some(EINVAL));
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
    let client = Client::with_backend(&recorder, LIMITS)?;
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
    let client = Client::with_backend(&recorder, LIMITS)?;
    for write in [false, true] {
        let (offset, len) = (0x800, 6 * PAGE_SIZE);
        let pinned = if write {
            user.from_device(offset, len, P2pPages::Allow)?
        } else {
            user.to_device(offset, len, P2pPages::Allow)?
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
        let pinned = user.from_device(0x200, 15 * PAGE_SIZE, P2pPages::Allow)?;
        let mut mapping = PinnedMapping::new(pinned);
        let mut segments = mapping.map(&client)?;
        let segment = segments.next()?.ok_or(EINVAL)?;
        check_eq!(segment.len as usize, 15 * PAGE_SIZE);
        check_eq!(segment.dma & 0xfff, 0x200);
        check!(segments.next()?.is_none());
        Ok(())
    })
}

/// Adds pages to a part of a device's memory, as C drivers do. They go with the driver.
fn add_pages(dev: &pci::Device<Bound>) -> Result {
    // It is nothing else.
    let pdev = core::ptr::from_ref(dev).cast_mut().cast();
    // SAFETY: A driver is bound.
    to_result(unsafe { bindings::pci_p2pdma_add_resource(pdev, 2, 2 << 20, 4 << 20) })
}

/// Where the pages of [`add_pages`] are reached by bus addresses.
const UP: u64 = 0x1_0000_0000;

/// Memory of a device between ordinary memory, in one buffer of user space.
fn of_a_device() -> Result {
    with_memory(|dev| {
        add_pages(dev)?;
        let user = User::new(4, READ | WRITE)?;
        user.replace(1, dev)?;
        let data = pattern(4 * PAGE_SIZE)?;
        user.write(0, &data)?;
        let (offset, len) = (0x100, 3 * PAGE_SIZE);

        let refused = user.to_device(offset, len, P2pPages::Refuse);
        check_eq!(refused.err(), Some(EREMOTEIO));
        let pinned = user.to_device(offset, len, P2pPages::Allow)?;
        let list = pieces(bvecs(&pinned))?;
        let mut source = bvecs(&pinned);
        check!(!source.is_uniform());
        let mut misses = KVec::new();
        while source.next().is_some() {
            misses.push(source.miss(), GFP_KERNEL)?;
        }
        let theirs = misses.iter().position(|&miss| miss == Miss::Refuse);
        check_eq!(theirs, Some(1));
        let theirs = list[1];
        check_eq!(theirs.len() as usize, PAGE_SIZE);
        let owner: Provider = provider_of(theirs)?.ok_or(ENODEV)?;
        check!(owner.range().first() <= theirs.phys() && theirs.last() <= owner.range().last());

        // The CPU sees what the program wrote, and the other way round.
        check!(equals(bvecs(&pinned), 0, &data[offset..offset + len])?);
        copy_to(bvecs(&pinned), PAGE_SIZE, b"physical")?;
        check!(user.read(offset + PAGE_SIZE, 8)?[..] == *b"physical");
        let mut bytes = [0; 8];
        copy_from(bvecs(&pinned), PAGE_SIZE, &mut bytes)?;
        check_eq!(bytes, *b"physical");

        // Through the host bridge all of it is one segment.
        let recorder = Recorder::new();
        follow(&recorder, |_| Ok((Route::HostBridge, 3)))?;
        let client = Client::with_backend(&recorder, LIMITS)?;
        let mut mapping = PinnedMapping::new(pinned);
        let mut segments = mapping.map(&client)?;
        check_eq!(
            segments.next()?,
            Some(Segment {
                dma: BASE + offset as u64,
                len: len as u32,
                origin: Origin::Mapped,
            })
        );
        check!(segments.next()?.is_none());
        // Neighbours are one.
        let memories = recorder.memories();
        check_eq!(memories.iter().position(|&m| m == Memory::Mmio), Some(1));
        check_eq!(memories.iter().filter(|&&m| m == Memory::Mmio).count(), 1);
        drop(memories);
        mapping.unmap();
        check!(recorder.clean());
        drop(mapping);

        // By its bus address.
        let recorder = Recorder::new();
        follow(&recorder, |_| Ok((Route::Bus { offset: UP }, 3)))?;
        let client = Client::with_backend(&recorder, LIMITS)?;
        let pinned = user.from_device(PAGE_SIZE, PAGE_SIZE, P2pPages::Allow)?;
        let mut slot = Mapping::default();
        let mut segments = client.map(&mut slot, bvecs(&pinned), pinned.direction())?;
        check_eq!(segments.path(), Path::Bus);
        check_eq!(
            segments
                .next()?
                .map(|segment| (segment.dma, segment.origin)),
            Some((theirs.phys() + UP, Origin::Bus))
        );
        drop(slot);
        check!(recorder.called(&[]));
        Ok(())
    })
}

/// A page of each kind, made of one of a PCI device.
fn kinds() -> Result {
    with_memory(|dev| {
        add_pages(dev)?;
        let user = User::new(1, READ | WRITE)?;
        user.replace(0, dev)?;
        let pinned = user.to_device(0, PAGE_SIZE, P2pPages::Allow)?;
        let piece = first(bvecs(&pinned))?;
        // SAFETY: The memory has pages.
        let page = unsafe { bindings::physdma_page_of(piece.phys()) };
        // SAFETY: It is one of a device.
        let map = unsafe { bindings::page_pgmap(page) };

        for (kind, number, result) in [
            (PageKind::PciP2pdma, 5, Ok(Miss::Refuse)),
            (PageKind::Generic, 4, Ok(Miss::Ram)),
            (PageKind::FsDax, 3, Ok(Miss::Ram)),
            (PageKind::Coherent, 2, Ok(Miss::Ram)),
            (PageKind::DevicePrivate, 1, Err(EFAULT)),
            (PageKind::Unknown, 77, Err(EFAULT)),
        ] {
            // SAFETY: All zeros are a map of no memory.
            let mut fake: KBox<bindings::dev_pagemap> =
                KBox::new(unsafe { core::mem::zeroed() }, GFP_KERNEL)?;
            fake.type_ = number;
            // SAFETY: A page is a number of words; it is only looked at.
            let mut copy = unsafe { page.cast::<Copied>().read() };
            for word in &mut copy.0 {
                if *word == map as usize {
                    *word = &raw const *fake as usize;
                }
            }
            // SAFETY: It is not null, and outlives the page. Nothing but its flags and its map is
            // looked at.
            let page = unsafe { BorrowedPage::from_raw(NonNull::from(&mut copy).cast()) };
            check_eq!(page.kind(), kind);
            let source = source(core::slice::from_ref(&*page), 0, PAGE_SIZE);
            check_eq!(source.as_ref().map(Source::miss).map_err(|&e| e), result);
            check_eq!(
                source.is_ok_and(|source| source.is_uniform()),
                result == Ok(Miss::Ram)
            );
        }
        Ok(())
    })
}

/// A `struct page`.
#[repr(align(64))]
struct Copied([usize; size_of::<bindings::page>() / size_of::<usize>()]);

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

    #[test]
    fn memory_of_a_pci_device() -> Result {
        of_a_device()
    }

    #[test]
    fn each_kind_of_page() -> Result {
        kinds()
    }
}
