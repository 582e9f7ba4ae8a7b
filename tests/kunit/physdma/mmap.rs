// SPDX-License-Identifier: GPL-2.0

//! A provider's memory for programs: what may be mapped, each errno, and what becomes of a mapping
//! when the memory goes.
//!
//! The program is the test itself, which has got an address space for it. Programs proper, and all
//! the ways by which they come by a mapping, are in the scenario `ivshmem`.

use super::bound::{
    check,
    check_eq,
    open,
    with_memory,
    PART, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    device::Bound,
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    page::PAGE_SIZE,
    pci,
    physdma::Provider,
    prelude::*, //
};

kernel::sync::global_lock! {
    // SAFETY: Initialized in module initializer before first use.
    unsafe(uninit) static SHOWN: Mutex<Shown> = Shown {
        provider: None,
        root: None,
    };
}

struct Shown {
    /// What the files map.
    provider: Option<Provider>,
    /// The root of the files that a program sees; a thread of the kernel sees none.
    root: Option<Opened>,
}

/// Makes the lock, and opens the root of the program that loads the module.
///
/// # Safety
///
/// Called exactly once, before any test.
pub(crate) unsafe fn init() -> Result {
    // SAFETY: By the safety requirements.
    unsafe { SHOWN.init() };
    // SAFETY: It is a string.
    let root = unsafe { bindings::filp_open(c"/".as_char_ptr(), 0, 0) };
    SHOWN.lock().root = Some(Opened::new(root)?);
    Ok(())
}

/// Closes the root. No test runs any more.
pub(crate) fn exit() {
    SHOWN.lock().root = None;
}

/// A file that maps what is in [`SHOWN`], as one of device memory or not.
struct View<const OF_DEVICE_MEMORY: bool>;

#[vtable]
impl<const OF_DEVICE_MEMORY: bool> MiscDevice for View<OF_DEVICE_MEMORY> {
    type Ptr = KBox<Self>;
    type RegistrationData = ();

    const MAPS_DEVICE_MEMORY: bool = OF_DEVICE_MEMORY;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        Ok(KBox::new(Self, GFP_KERNEL)?)
    }

    fn mmap(_this: &Self, _file: &File, vma: &VmaNew) -> Result {
        let provider = SHOWN.lock().provider.clone();
        provider.ok_or(ENXIO)?.mmap(vma)
    }
}

// `include/uapi/asm-generic/mman-common.h`, and `include/uapi/linux/mman.h`.
const PROT_READ_WRITE: usize = 0x1 | 0x2;
const MAP_SHARED: usize = 0x1;
const MAP_PRIVATE: usize = 0x2;

/// An open file.
struct Opened(NonNull<bindings::file>);

// SAFETY: A file may be used from any thread.
unsafe impl Send for Opened {}

impl Opened {
    fn new(file: *mut bindings::file) -> Result<Self> {
        Ok(Self(NonNull::new(from_err_ptr(file)?).ok_or(EINVAL)?))
    }

    /// Opens a file below the root.
    fn open(path: &CStr) -> Result<Self> {
        let shown = SHOWN.lock();
        let root = shown.root.as_ref().ok_or(ENOENT)?;
        // SAFETY: The root is open, and `path` is a string.
        Self::new(unsafe {
            bindings::file_open_root(
                &raw const (*root.0.as_ptr()).__bindgen_anon_1.f_path,
                path.as_char_ptr(),
                bindings::O_RDWR as c_int,
                0,
            )
        })
    }

    /// Maps `len` bytes from `offset` on.
    fn map(&self, offset: u64, len: u64, flags: usize) -> Result<Mapped> {
        // SAFETY: The test has an address space, which nobody else uses.
        let at = unsafe {
            bindings::vm_mmap(
                self.0.as_ptr(),
                0,
                len as usize,
                PROT_READ_WRITE,
                flags,
                offset as usize,
            )
        };
        // An errno has the place of the last addresses.
        from_err_ptr(at as *mut c_void)?;
        Ok(Mapped {
            at,
            len: len as usize,
        })
    }

    fn shared(&self, offset: u64, len: u64) -> Result<Mapped> {
        self.map(offset, len, MAP_SHARED)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: It was opened, and is closed once.
        unsafe { bindings::__fput_sync(self.0.as_ptr()) };
    }
}

/// What has been mapped.
struct Mapped {
    at: usize,
    len: usize,
}

impl Mapped {
    /// Copies to `buf` what is at `offset`, as a program would see it; `EFAULT` where that would
    /// get a signal.
    fn read(&self, offset: usize, buf: &mut [u8]) -> Result {
        // SAFETY: `buf` has that length; the other address may be any.
        let left = unsafe {
            bindings::_copy_from_user(
                buf.as_mut_ptr().cast(),
                (self.at + offset) as *const c_void,
                buf.len(),
            )
        };
        if left == 0 {
            Ok(())
        } else {
            Err(EFAULT)
        }
    }

    fn write(&self, offset: usize, buf: &[u8]) -> Result {
        // SAFETY: As above.
        let left = unsafe {
            bindings::_copy_to_user(
                (self.at + offset) as *mut c_void,
                buf.as_ptr().cast(),
                buf.len(),
            )
        };
        if left == 0 {
            Ok(())
        } else {
            Err(EFAULT)
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: It was mapped, and is unmapped once.
        unsafe { bindings::vm_munmap(self.at, self.len) };
    }
}

fn mappings(dev: &pci::Device<Bound>) -> Result {
    // SAFETY: A test runs in a thread of its own.
    to_result(unsafe { bindings::kunit_attach_mm() })?;
    let _files = KBox::pin_init(
        MiscDeviceRegistration::<View<true>>::register(MiscDeviceOptions {
            name: c"physdma_kunit_memory",
        }),
        GFP_KERNEL,
    )?;
    let _others = KBox::pin_init(
        MiscDeviceRegistration::<View<false>>::register(MiscDeviceOptions {
            name: c"physdma_kunit_plain",
        }),
        GFP_KERNEL,
    )?;
    let file = Opened::open(c"dev/physdma_kunit_memory")?;
    let plain = Opened::open(c"dev/physdma_kunit_plain")?;
    let page = PAGE_SIZE as u64;

    // Neither its start nor its end is that of a page.
    let range = open(dev, PART + 0x800, 4 * page)?;
    let provider = range.provider();
    SHOWN.lock().provider = Some(provider.clone());
    let first = dev.resource_start(2)? + PART + page;

    let mapped = file.shared(first, 3 * page)?;
    let untouched = file.shared(first, 3 * page)?;
    let mut buf = [0; 4];
    provider.window(0x800, 4)?.write(0, b"cpu!")?;
    mapped.read(0, &mut buf)?;
    check_eq!(&buf, b"cpu!");
    mapped.write(3 * PAGE_SIZE - 4, b"user")?;
    provider
        .window(0x800 + 3 * page - 4, 4)?
        .read(0, &mut buf)?;
    check_eq!(&buf, b"user");

    // A page of which a part only is the provider's, at either end, and what lies beyond.
    for (offset, len) in [
        (first - page, page),
        (first - page, 4 * page),
        (first + 3 * page, page),
        (first, 4 * page),
        (first - 16 * page, page),
        (first + 16 * page, page),
        (0, page),
    ] {
        check_eq!(file.shared(offset, len).err(), Some(EINVAL));
    }
    // What the program writes to a private copy would not reach the memory.
    check_eq!(file.map(first, page, MAP_PRIVATE).err(), Some(EINVAL));
    // Revocation would not find it.
    check_eq!(plain.shared(first, page).err(), Some(EINVAL));

    drop(range);
    check_eq!(file.shared(first, page).err(), Some(ENODEV));
    check_eq!(mapped.read(0, &mut buf), Err(EFAULT));
    check_eq!(untouched.read(0, &mut buf), Err(EFAULT));
    check_eq!(untouched.write(PAGE_SIZE, b"?"), Err(EFAULT));

    // It was of that provider.
    let again = open(dev, PART, PART)?;
    check_eq!(mapped.read(0, &mut buf), Err(EFAULT));
    check_eq!(file.shared(first, page).err(), Some(ENODEV));
    SHOWN.lock().provider = Some(again.provider());
    let mapped = file.shared(first, page)?;
    mapped.read(0, &mut buf)?;
    check_eq!(&buf, b"cpu!");
    check!(untouched.read(0, &mut buf).is_err());
    Ok(())
}

#[kunit_tests(physdma_mmap)]
mod tests {
    use super::*;

    #[test]
    fn programs_see_the_memory_while_it_is_there() -> Result {
        let result = with_memory(mappings);
        SHOWN.lock().provider = None;
        result
    }
}
