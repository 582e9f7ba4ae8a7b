// SPDX-License-Identifier: GPL-2.0

//! KUnit suites of `kernel::pci::p2pdma`: what the kernel says of real devices.
//!
//! `pci_p2pdma` knows the machine that it runs in: SSDs, shared memory and more, most of them below
//! root ports of their own. `pci_p2pdma_pairs` runs in any machine and logs the verdict for each
//! pair of devices, for scenarios with other topologies.

use kernel::{
    device::{
        Bound,
        Core,
        Device, //
    },
    faux,
    pci::{
        self,
        p2pdma::{
            verdict,
            AcsRedirect,
            MapType,
            Supported,
            Unsupported, //
        },
        Address, //
    },
    prelude::*,
    sync::aref::ARef, //
};

module! {
    type: PciP2pdmaKunit,
    name: "pci_p2pdma_kunit",
    authors: ["The physdma authors"],
    description: "KUnit suites of kernel::pci::p2pdma",
    license: "GPL v2",
}

struct PciP2pdmaKunit;

impl kernel::Module for PciP2pdmaKunit {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: Called exactly once.
        unsafe { FOUND.init() };
        Ok(Self)
    }
}

kernel::sync::global_lock! {
    // SAFETY: Initialized in module initializer before first use.
    unsafe(uninit) static FOUND: Mutex<KVec<ARef<pci::Device>>> = KVec::new();
}

/// A driver that notes the devices that it is offered, and never binds.
struct Finder;

const IVSHMEM: u32 = 0x1110;

kernel::pci_device_table!(
    PCI_TABLE,
    (),
    [
        (
            pci::DeviceId::from_class(pci::Class::STORAGE_EXPRESS.as_raw(), 0xff_ffff),
            ()
        ),
        (
            pci::DeviceId::from_id(pci::Vendor::REDHAT_QUMRANET, IVSHMEM),
            ()
        ),
        (
            pci::DeviceId::from_id(pci::Vendor::from_raw(0x1234), 0x11e8),
            ()
        ),
    ]
);

impl pci::Driver for Finder {
    type IdInfo = ();
    type Data<'bound> = ();
    const ID_TABLE: pci::IdTable<()> = &PCI_TABLE;

    fn probe<'bound>(
        dev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound ()>,
    ) -> impl PinInit<(), Error> + 'bound {
        let kept = FOUND.lock().push(dev.into(), GFP_KERNEL);
        Err::<(), _>(kept.err().map_or(ENODEV, Error::from))
    }
}

/// All devices of the machine that have no driver and that [`Finder`] knows.
fn devices() -> Result<KVec<ARef<pci::Device>>> {
    let driver = KBox::pin_init(
        kernel::driver::Registration::<pci::Adapter<Finder>>::new(
            c"pci_p2pdma_kunit",
            kernel::module::this_module::<PciP2pdmaKunit>(),
        ),
        GFP_KERNEL,
    )?;
    drop(driver);
    let found = core::mem::replace(&mut *FOUND.lock(), KVec::new());
    if found.is_empty() {
        pr_err!("there is no PCI device to test with\n");
        return Err(ENODEV);
    }
    Ok(found)
}

/// The device with this bus and function.
fn device(bus: u8, function: u8) -> Result<ARef<pci::Device>> {
    let address = Address::new(0, bus, 0, function).ok_or(EINVAL)?;
    devices()?
        .into_iter()
        .find(|dev| dev.address() == address)
        .ok_or_else(|| {
            pr_err!("there is no device {address} to test with\n");
            ENODEV
        })
}

fn between(provider: &pci::Device, client: &pci::Device) -> pci::p2pdma::Verdict {
    verdict(provider, client.as_ref())
}

fn as_device(faux: &faux::Registration) -> &Device {
    let faux: &faux::Device<Bound> = faux.as_ref();
    let dev: &Device<Bound> = faux.as_ref();
    dev
}

const fn reached(map_type: MapType, distance: u32) -> Supported {
    Supported {
        map_type,
        distance,
        acs_redirect: None,
    }
}

#[kunit_tests(pci_p2pdma)]
mod tests {
    use super::*;
    use kernel::io::resource::Flags;

    #[test]
    fn own_memory() -> Result {
        for dev in devices()? {
            // A function may itself redirect what is meant for another of the same device; none of
            // these does.
            assert_eq!(between(&dev, &dev), Ok(reached(MapType::BusAddress, 0)));
        }
        Ok(())
    }

    #[test]
    fn two_root_ports() -> Result {
        let (a, b) = (device(1, 0)?, device(2, 0)?);
        // There is nothing common below the host bridge, so no port matters though all redirect.
        assert_eq!(between(&a, &b), Ok(reached(MapType::HostBridge, 4)));
        assert_eq!(between(&b, &a), Ok(reached(MapType::HostBridge, 4)));
        Ok(())
    }

    #[test]
    fn two_functions_below_a_port_that_redirects() -> Result {
        let (a, b) = (device(3, 0)?, device(3, 1)?);
        for verdict in [between(&a, &b), between(&b, &a)] {
            if !cfg!(CONFIG_INTEL_IOMMU) {
                // Nobody has told the port to redirect.
                assert_eq!(verdict, Ok(reached(MapType::BusAddress, 2)));
                continue;
            }
            let Ok(Supported {
                map_type,
                distance,
                acs_redirect: Some(AcsRedirect { port, ports }),
            }) = verdict
            else {
                pr_err!("no port is named in {verdict:?}\n");
                return Err(EINVAL);
            };
            assert_eq!(map_type, MapType::HostBridge);
            assert_eq!(distance, 2);
            assert_eq!(ports, 1);
            // It is a port of the root bus.
            assert_eq!((port.domain(), port.bus(), port.function()), (0, 0, 0));
        }
        Ok(())
    }

    #[test]
    fn client_that_is_not_pci() -> Result {
        let dev = device(1, 0)?;
        let faux = faux::Registration::new(c"pci_p2pdma_kunit", None)?;
        assert_eq!(verdict(&dev, as_device(&faux)), Err(Unsupported::NotPci));

        // A child does no DMA by itself.
        let child = faux::Registration::new(c"pci_p2pdma_child", Some((*dev).as_ref()))?;
        assert_eq!(verdict(&dev, as_device(&child)), Err(Unsupported::NotPci));
        Ok(())
    }

    #[test]
    fn bars() -> Result {
        let dev = device(3, 0)?;
        assert_eq!(
            (dev.vendor_id(), dev.device_id()),
            (pci::Vendor::REDHAT_QUMRANET, 0x1110)
        );
        assert!(dev.has_mappable_bars());
        let bar = dev.resource(2)?;
        assert!(bar.flags().contains(Flags::IORESOURCE_MEM));
        assert_eq!(bar.start(), dev.resource_start(2)?);
        assert_eq!(bar.size(), dev.resource_len(2)?);
        assert_eq!(bar.size(), 16 << 20);
        // On x86 the bus has the addresses of the memory.
        assert_eq!(dev.bus_address(2)?, bar.start());
        assert_eq!(dev.resource(100).err(), Some(EINVAL));
        assert_eq!(dev.bus_address(100).err(), Some(EINVAL));
        Ok(())
    }
}

#[kunit_tests(pci_p2pdma_pairs)]
mod pairs {
    use super::*;

    #[test]
    fn every_pair() -> Result {
        let devices = devices()?;
        for provider in &devices {
            for client in &devices {
                let (from, to) = (client.address(), provider.address());
                match between(provider, client) {
                    Ok(Supported {
                        map_type,
                        distance,
                        acs_redirect: None,
                    }) => {
                        pr_info!("verdict: {from} reaches {to}: {map_type:?}, distance {distance}\n")
                    }
                    Ok(Supported {
                        map_type,
                        distance,
                        acs_redirect: Some(redirect),
                    }) => pr_info!(
                        "verdict: {from} reaches {to}: {map_type:?}, distance {distance}, {redirect}\n"
                    ),
                    Err(reason) => pr_info!("verdict: {from} does not reach {to}: {reason}\n"),
                }
                // Whoever has both ways open or closed has them alike.
                assert_eq!(
                    between(provider, client)
                        .map(|supported| supported.distance)
                        .ok(),
                    between(client, provider)
                        .map(|supported| supported.distance)
                        .ok()
                );
            }
        }
        Ok(())
    }
}
