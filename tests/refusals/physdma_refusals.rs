// SPDX-License-Identifier: GPL-2.0

//! Clients that reach no memory, for reasons that no machine of the tests gives.
//!
//! - `physdma_faux` is a real client that is not a PCI device.
//! - `physdma_apart` says that it is below another host bridge than the memory, and that such a
//!   bridge is on the kernel's list for devices that are both below it. Only some of Intel's are,
//!   which QEMU does not have.
//!
//! The BARs of the device that the parameter `hidden` names, as bus times 256 and function, are
//! said not to be for others, as a quirk says of real ones.
//!
//! Of the provider whose memory is at the physical address that the parameter `kept` gives, the
//! first page is mapped for the CPU: what an operator sees of that, no driver of ours has.

use kernel::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::DmaMask,
    faux,
    new_mutex,
    pci::{
        p2pdma::{
            HostBridge,
            Unsupported, //
        },
        Vendor, //
    },
    physdma::{
        provider_of,
        BarRange,
        Client,
        Dma,
        Hold,
        Holder,
        Limits,
        PhysBvec,
        Refused,
        Route,
        Topology,
        Window, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        Mutex, //
    }, //
};

module! {
    type: Refusals,
    name: "physdma_refusals",
    authors: ["The physdma authors"],
    description: "Clients that reach no memory",
    license: "GPL",
    params: {
        hidden: u16 {
            default: 0,
            description: "Bus * 256 + device * 8 + function of the device whose BARs are hidden",
        },
        kept: u64 {
            default: 0,
            description: "Physical address of memory to be mapped for the CPU",
        },
    },
}

const LIMITS: Limits = Limits {
    max_segment_bytes: u32::MAX,
    boundary_mask: u64::MAX,
    max_segments: 1,
};

/// The host bridge of a Xeon, which is on the kernel's list for devices below it.
const BRIDGE: HostBridge = HostBridge {
    vendor: Vendor::INTEL,
    device: 0x2f00,
};

/// A device that is below another host bridge than any memory.
struct Apart(ARef<Device>);

impl Topology for Apart {
    fn device(&self) -> Option<&Device> {
        Some(&self.0)
    }

    fn route(&self, _memory: &BarRange) -> Result<(Route, u32), Refused> {
        Err(Refused::Topology(Unsupported::TwoHostBridges(Some(BRIDGE))))
    }
}

/// A device whose BARs are hidden, until this is dropped.
struct Hidden(*mut bindings::pci_dev);

// SAFETY: It is a reference to a device, which may be put anywhere.
unsafe impl Send for Hidden {}
// SAFETY: Nobody does anything with a reference to it.
unsafe impl Sync for Hidden {}

impl Hidden {
    fn new(at: u16) -> Result<Self> {
        // SAFETY: Any numbers will do.
        let pdev = unsafe {
            bindings::pci_get_domain_bus_and_slot(0, u32::from(at >> 8), u32::from(at & 0xff))
        };
        if pdev.is_null() {
            return Err(ENODEV);
        }
        // SAFETY: The device is there, and the test does nothing else with it meanwhile.
        unsafe { (*pdev).set_non_mappable_bars(1) };
        Ok(Self(pdev))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // SAFETY: As in `new()`; no device of the tests has had the bit set.
        unsafe { (*self.0).set_non_mappable_bars(0) };
        // SAFETY: The reference is that of `new()`, and ends here.
        unsafe { bindings::pci_dev_put(self.0) };
    }
}

/// Memory that is mapped for the CPU until it goes.
#[pin_data]
struct Keeper {
    #[pin]
    window: Mutex<Option<Window>>,
}

impl Holder for Keeper {
    fn name(&self) -> &CStr {
        c"physdma_refusals"
    }

    fn revoke(&self) {
        *self.window.lock() = None;
    }
}

fn keep(phys: u64) -> Result<(Arc<Keeper>, Hold)> {
    let piece = PhysBvec::new(phys, 1).ok_or(EINVAL)?;
    let provider = provider_of(piece)?.ok_or(ENODEV)?;
    let keeper = Arc::pin_init(pin_init!(Keeper { window <- new_mutex!(None) }), GFP_KERNEL)?;
    // Who takes the memory away meanwhile waits here, and finds the window.
    let mut window = keeper.window.lock();
    let hold = provider.hold(keeper.clone())?;
    *window = Some(provider.window(0, 0x1000)?);
    drop(window);
    Ok((keeper, hold))
}

// Clients are dropped before their devices.
struct Refusals {
    kept: Option<(Arc<Keeper>, Hold)>,
    _faux: Client<'static>,
    _apart: Client<'static>,
    _devices: [faux::Registration; 2],
    _hidden: Option<Hidden>,
}

fn device(name: &CStr) -> Result<(faux::Registration, &'static Device<Bound>)> {
    let mut device = faux::Registration::new(name, None)?;
    device.set_dma_mask(DmaMask::new::<64>())?;
    let dev: &faux::Device<Bound> = device.as_ref();
    let dev: &Device<Bound> = dev.as_ref();
    // SAFETY: It is used by a client, which is dropped before the device.
    let dev = unsafe { &*core::ptr::from_ref(dev) };
    Ok((device, dev))
}

impl kernel::Module for Refusals {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let hidden = match module_parameters::hidden.value() {
            0 => None,
            at => Some(Hidden::new(at)?),
        };
        let kept = match module_parameters::kept.value() {
            0 => None,
            phys => Some(keep(phys)?),
        };
        let (faux, dev) = device(c"physdma_faux")?;
        let not_pci = Client::new(dev, LIMITS)?;
        let (other, dev) = device(c"physdma_apart")?;
        let there: &Device = dev;
        let topology = Arc::new(Apart(there.into()), GFP_KERNEL)?;
        // SAFETY: There is no route.
        let apart = unsafe { Client::with_backend(Dma::new(dev), topology, LIMITS) }?;

        Ok(Self {
            kept,
            _faux: not_pci,
            _apart: apart,
            _devices: [faux, other],
            _hidden: hidden,
        })
    }
}

impl Drop for Refusals {
    fn drop(&mut self) {
        if let Some((keeper, _)) = &self.kept {
            keeper.revoke();
        }
    }
}
