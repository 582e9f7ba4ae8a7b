// SPDX-License-Identifier: GPL-2.0

//! Example of a driver whose device's memory other devices do DMA to: a provider.
//!
//! QEMU's `ivshmem-plain` device is a BAR of plain memory and nothing else; the host sees it as a
//! file. The driver opens all of the BAR to other devices for as long as it is bound. None of it
//! has a `struct page`.
//!
//! Programs of root can look at the memory of all such devices through `/dev/physdma_ivshmem`: the
//! offset to give to `mmap()` is the physical address, of which the third line of the device's
//! `resource` file in sysfs says the first and the last.
//!
//! Device: [`docs/system/devices/ivshmem.rst`][1]
//!
//! [1]: https://www.qemu.org/docs/master/system/devices/ivshmem.html

use kernel::{
    device::Core,
    driver,
    fs::File,
    io::PhysAddr,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    page::PAGE_SHIFT,
    pci,
    physdma::{
        provider_of,
        PhysBvec,
        Registration, //
    },
    prelude::*,
    InPlaceModule,
    ModuleMetadata, //
};

/// Of vendor Red Hat, as whatever QEMU has invented.
const DEVICE: u32 = 0x1110;

/// The BAR that is the memory.
const BAR: u32 = 2;

/// A device: while this lives other devices do DMA to its memory.
struct Ivshmem<'a> {
    /// Dropping it takes the memory away from everybody, and waits until it is.
    _memory: Registration<'a>,
}

kernel::pci_device_table!(
    PCI_TABLE,
    <IvshmemDriver as pci::Driver>::IdInfo,
    [(
        pci::DeviceId::from_id(pci::Vendor::REDHAT_QUMRANET, DEVICE),
        ()
    )]
);

struct IvshmemDriver;

impl pci::Driver for IvshmemDriver {
    type IdInfo = ();
    type Data<'bound> = Ivshmem<'bound>;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        dev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        dev.enable_device_mem()?;

        let size = dev.resource_len(BAR)?;
        let memory = Registration::new(dev, BAR, 0, size)?;
        let provider = memory.provider();
        dev_info!(
            dev,
            "memory {:#x}-{:#x} is open to other devices\n",
            provider.range().first(),
            provider.range().last()
        );
        Ok(Ivshmem { _memory: memory })
    }
}

/// A program that has opened `/dev/physdma_ivshmem`. It keeps no device: which one is meant is
/// found out for each `mmap()`.
struct Viewer;

#[vtable]
impl MiscDevice for Viewer {
    type Ptr = KBox<Self>;
    type RegistrationData = ();

    const MAPS_DEVICE_MEMORY: bool = true;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        Ok(KBox::new(Self, GFP_KERNEL)?)
    }

    fn mmap(_this: &Self, _file: &File, vma: &VmaNew) -> Result {
        let first = PhysAddr::try_from(vma.pgoff())? << PAGE_SHIFT;
        let page = PhysBvec::new(first, 1).ok_or(EINVAL)?;
        let provider = provider_of(page)?.ok_or(ENXIO)?;

        // Other drivers may not like programs to see their memory.
        let dev = provider.range().device();
        if dev.vendor_id() != pci::Vendor::REDHAT_QUMRANET || u32::from(dev.device_id()) != DEVICE {
            return Err(ENXIO);
        }
        provider.mmap(vma)
    }
}

#[pin_data]
struct IvshmemModule {
    #[pin]
    _viewer: MiscDeviceRegistration<Viewer>,
    #[pin]
    _driver: driver::Registration<pci::Adapter<IvshmemDriver>>,
}

impl InPlaceModule for IvshmemModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _viewer <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: c"physdma_ivshmem",
            }),
            _driver <- driver::Registration::new(<Self as ModuleMetadata>::NAME, module),
        })
    }
}

module! {
    type: IvshmemModule,
    name: "physdma_ivshmem",
    authors: ["The physdma authors"],
    description: "Opens the memory of QEMU's ivshmem to other devices",
    license: "GPL v2",
}
