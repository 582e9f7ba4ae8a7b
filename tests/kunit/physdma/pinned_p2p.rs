// SPDX-License-Identifier: GPL-2.0

//! Memory of a PCI device that user space has mapped, as a source; and which kinds of pages can be
//! sources at all.

use super::{
    bound::{
        check,
        check_eq,
        follow,
        with_memory, //
    },
    memory::{
        pieces,
        source, //
    },
    pinned::{
        bvecs,
        first,
        pattern,
        User,
        READ,
        WRITE, //
    },
    recorder::{
        Recorder,
        BASE,   //
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
    iov::P2pPages,
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
        Mapping,
        Memory,
        Miss,
        Origin,
        Path,
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
    }, //
};

const SHARED: usize = 1;
const FIXED: usize = 0x10;

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

/// Has memory of a PCI device in the place of page `at`.
fn replace(user: &User, at: usize, dev: &pci::Device<Bound>) -> Result {
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
    let place = user.addr + at * PAGE_SIZE;
    let result = User::mmap(file, place, PAGE_SIZE, READ | WRITE, SHARED | FIXED);
    // SAFETY: It is what was opened.
    unsafe { bindings::filp_close(file, core::ptr::null_mut()) };
    check_eq!(result?, place);
    Ok(())
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
        replace(&user, 1, dev)?;
        let data = pattern(4 * PAGE_SIZE)?;
        user.write(0, &data)?;
        let (offset, len) = (0x100, 3 * PAGE_SIZE);

        let refused = user.pin_to_device(offset, len, P2pPages::Refuse);
        check_eq!(refused.err(), Some(EREMOTEIO));
        let pinned = user.pin_to_device(offset, len, P2pPages::Allow)?;
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
        let client = recorder.client(LIMITS)?;
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
        let client = recorder.client(LIMITS)?;
        let pinned = user.pin_from_device(PAGE_SIZE, PAGE_SIZE, P2pPages::Allow)?;
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

        // It is not mapped for long by its pages, and nor can its owner's memory be that has some.
        let dir = pinned.direction();
        check_eq!(client.premap(pinned, dir).err(), Some(EREMOTEIO));
        let premapped = client.premap_provider(&owner, 0, 0x1000, dir);
        check_eq!(premapped.err(), Some(EFAULT));
        check!(recorder.called(&[]));
        Ok(())
    })
}

/// A page of each kind, made of one of a PCI device.
fn kinds() -> Result {
    with_memory(|dev| {
        add_pages(dev)?;
        let user = User::new(1, READ | WRITE)?;
        replace(&user, 0, dev)?;
        let pinned = user.pin_to_device(0, PAGE_SIZE, P2pPages::Allow)?;
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

#[kunit_tests(physdma_pinned_p2p)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_pci_device() -> Result {
        of_a_device()
    }

    #[test]
    fn each_kind_of_page() -> Result {
        kinds()
    }
}
