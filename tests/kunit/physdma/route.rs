// SPDX-License-Identifier: GPL-2.0

//! How real devices reach a real BAR behind a strict IOMMU, and how it is said why they do not.
//!
//! `physdma_reach` runs in any machine and logs the route of each client to each provider, for
//! scenarios with other machines.

use super::{
    bound::{
        at,
        check,
        check_eq,
        client,
        follow,
        open,
        with_all,
        with_memory,
        Edu,
        Memory,
        NO_ROUTE,
        PART,
        ROUTED,
        TRANSLATED, //
    },
    memory::{
        place,
        scattered, //
    },
    recorder::{
        map,
        Recorder,
        LIMITS, //
    }, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection::ToDevice,
    faux,
    pci::{
        self,
        p2pdma::{
            AcsRedirect,
            HostBridge,
            Unsupported, //
        },
        Address,
        Vendor, //
    },
    physdma::{
        BarRange,
        Client,
        Mapping,
        Mixed,
        Part,
        Path,
        Raw,
        Reach,
        Refused,
        Route,
        Topology, //
    },
    prelude::*,
    str::CString, //
};

/// What is said of each refusal, and its errno.
fn reasons() -> Result {
    let port = Address::new(0, 0, 1, 0).ok_or(EINVAL)?;
    let host_bridge = Some(HostBridge {
        vendor: Vendor::INTEL,
        device: 0x29c0,
    });
    let redirect = AcsRedirect { port, ports: 2 };
    for (refused, errno, line) in [
        (Refused::Revoked, ENODEV, "the provider is gone"),
        (
            Refused::Bounce,
            EINVAL,
            "all its DMA is bounced through RAM: boot without swiotlb=force, or with an IOMMU",
        ),
        (
            Refused::Mask {
                last: 0xfe0f_ffff,
                mask: 0xfff_ffff,
            },
            EINVAL,
            "it cannot address 0xfe0fffff: its DMA mask is 0xfffffff",
        ),
        (
            Refused::Topology(Unsupported::Disabled),
            EINVAL,
            "the kernel is built without CONFIG_PCI_P2PDMA",
        ),
        (
            Refused::Topology(Unsupported::NonMappableBars),
            EINVAL,
            "other devices cannot access the provider's BARs",
        ),
        (
            Refused::Topology(Unsupported::NotPci),
            EINVAL,
            "the client is not a PCI device",
        ),
        (
            Refused::Topology(Unsupported::HostBridge(host_bridge)),
            EINVAL,
            "host bridge 8086:29c0 is not on the kernel's list: put both devices below one PCIe \
             switch",
        ),
        (
            Refused::Topology(Unsupported::TwoHostBridges(None)),
            EINVAL,
            "the host bridge is on the kernel's list only for devices that are both below it: \
             move one",
        ),
        (
            Refused::Topology(Unsupported::AcsRedirect {
                redirect,
                host_bridge,
            }),
            EINVAL,
            "ACS redirect at 0000:00:01.0, the first of 2 ports, and host bridge 8086:29c0 is \
             not on the kernel's list: boot with pci=disable_acs_redir=0000:00:01.0; and the \
             other ports",
        ),
    ] {
        check_eq!(Error::from(refused), errno);
        let said = CString::try_from_fmt(fmt!("{refused}"))?;
        check_eq!(said.to_str().map_err(|_| EINVAL)?, line);
    }
    Ok(())
}

/// A device itself reaches its memory, wherever that is.
fn internal(dev: &pci::Device<Bound>) -> Result {
    let range = open(dev, PART, PART)?;
    // SAFETY: It is dropped before the device is unbound.
    let reach = unsafe { Reach::new(dev.as_ref()) };
    check!(reach.device().is_some());
    check_eq!(
        reach.route(range.provider().range()),
        Ok((Route::Internal { bar: 2, offset: 0 }, 0))
    );
    let client = Client::new(dev.as_ref(), LIMITS)?;
    check_eq!(
        client.route(&range.provider()),
        Ok(Route::Internal { bar: 2, offset: 0 })
    );
    Ok(())
}

/// The host bridge of this machine is on the kernel's list. The IOMMU gives addresses that the
/// device can send, though it could not send those of the memory.
fn host_bridge(dev: &pci::Device<Bound>) -> Result {
    if !TRANSLATED || !ROUTED {
        pr_info!("there is no IOMMU, or no route, to try that with\n");
        return Ok(());
    }
    let range = open(dev, 0, PART)?;
    let provider = range.provider();
    check!(provider.range().first() > (1 << 28));
    with_all::<Edu>(|clients| {
        // One is at the root, the other beside the memory, below a port that redirects.
        check_eq!(clients.len(), 2);
        for dev in clients {
            // SAFETY: As above.
            let (route, hops) = unsafe { Reach::new(dev.as_ref()) }
                .route(provider.range())
                .map_err(Error::from)?;
            check_eq!(route, Route::HostBridge);
            check_eq!(hops, if dev.address().bus() == 0 { 3 } else { 2 });
        }
        Ok(())
    })
}

/// What has no PCI function reaches nothing.
fn not_pci(dev: &pci::Device<Bound>) -> Result {
    let range = open(dev, 0, PART)?;
    let faux = faux::Registration::new(c"physdma_kunit", None)?;
    let faux: &faux::Device<Bound> = faux.as_ref();
    let faux: &Device<Bound> = faux.as_ref();
    // SAFETY: As above.
    let reach = unsafe { Reach::new(faux) };
    check_eq!(
        reach.route(range.provider().range()),
        Err(Refused::Topology(if ROUTED {
            Unsupported::NotPci
        } else {
            Unsupported::Disabled
        }))
    );
    Ok(())
}

/// Both who comes first and who comes later know their routes; and that they have none any more.
fn comes_and_goes(dev: &pci::Device<Bound>) -> Result {
    if !TRANSLATED || !ROUTED {
        pr_info!("there is no IOMMU, or no route, to try that with\n");
        return Ok(());
    }
    with_all::<Edu>(|clients| {
        let edu: &Device<Bound> = clients.first().ok_or(ENODEV)?.as_ref();
        let before = Client::new(edu, LIMITS)?;
        let range = open(dev, 0, PART)?;
        let provider = range.provider();
        let after = Client::new(edu, LIMITS)?;
        for client in [&before, &after] {
            check_eq!(client.route(&provider), Ok(Route::HostBridge));
        }
        drop(range);
        for client in [&before, &after] {
            check_eq!(client.route(&provider), Err(Refused::Revoked));
        }
        let range = open(dev, 0, PART)?;
        check_eq!(before.route(&range.provider()), Ok(Route::HostBridge));
        check_eq!(before.route(&provider), Err(Refused::Revoked));
        Ok(())
    })
}

/// The kernel's own IOMMU code takes RAM and another device's memory into one range.
fn one_range(dev: &pci::Device<Bound>) -> Result {
    if !TRANSLATED || !ROUTED {
        pr_info!("there is no IOMMU, or no route, to try that with\n");
        return Ok(());
    }
    with_all::<Edu>(|clients| {
        let range = open(dev, 0, PART)?;
        let client = Client::new(clients.first().ok_or(ENODEV)?.as_ref(), LIMITS)?;
        let pages = scattered(2)?;
        let ram = [place(&pages[0])?, place(&pages[1])?];
        let memory = [at(&range, 0x1000, 0x1000)?, at(&range, 0x8000, 0x1000)?];
        let mut slot = Mapping::default();

        let parts = [
            Part::Ram(&ram[..1]),
            Part::Provider(&memory),
            Part::Ram(&ram[1..]),
        ];
        for _ in 0..3 {
            // SAFETY: The pages are freed after the mapping.
            let source = unsafe { Mixed::new(&parts) }?;
            let mut segments = client.map(&mut slot, source, ToDevice)?;
            check_eq!(segments.path(), Path::Mixed);
            let segment = segments.next()?.ok_or(EINVAL)?;
            check_eq!(segment.len, 0x4000);
            // What it can address has 28 bits.
            check!(segment.dma + 0x4000 <= 1 << 28);
            check!(segments.next()?.is_none());

            let mut segments = client.map(&mut slot, Raw::new(&memory)?, ToDevice)?;
            check_eq!(segments.path(), Path::Iova);
            check_eq!(segments.next()?.map(|s| s.len), Some(0x2000));
            let mut segments = client.map(&mut slot, Raw::new(&memory[..1])?, ToDevice)?;
            check_eq!(segments.path(), Path::Single);
            check_eq!(segments.next()?.map(|s| s.len), Some(0x1000));
        }
        Ok(())
    })
}

/// Every reason why not comes through to who asks, and to who maps.
fn refused(dev: &pci::Device<Bound>) -> Result {
    let range = open(dev, 5 * PART, PART)?;
    let list = [at(&range, 0, 1)?];
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    check_eq!(client.route(&range.provider()), Err(NO_ROUTE));

    let bounce = |_: &BarRange| Err(Refused::Bounce);
    let mask = |memory: &BarRange| {
        Err(Refused::Mask {
            last: memory.last(),
            mask: 0xff,
        })
    };
    let scripts: [fn(&BarRange) -> _; 2] = [bounce, mask];
    for script in scripts {
        let wanted = script(range.provider().range()).err().ok_or(EINVAL)?;
        follow(&recorder, script)?;
        let client = recorder.client(LIMITS)?;
        let mut slot = Mapping::default();
        check_eq!(client.route(&range.provider()), Err(wanted));
        for _ in 0..2 {
            check_eq!(
                map(&client, &mut slot, Raw::new(&list)?).err(),
                Some(EINVAL)
            );
        }
    }
    check!(recorder.called(&[]));
    Ok(())
}

#[kunit_tests(physdma_route)]
mod tests {
    use super::*;

    #[test]
    fn reasons_say_what_to_do() -> Result {
        reasons()
    }

    #[test]
    fn own_memory_is_internal() -> Result {
        with_memory(internal)
    }

    #[test]
    fn through_the_host_bridge() -> Result {
        with_memory(host_bridge)
    }

    #[test]
    fn client_that_is_not_pci() -> Result {
        with_memory(not_pci)
    }

    #[test]
    fn routes_come_and_go() -> Result {
        with_memory(comes_and_goes)
    }

    #[test]
    fn ram_and_host_bridge_are_one_range() -> Result {
        with_memory(one_range)
    }

    #[test]
    fn refusals_come_through() -> Result {
        with_memory(refused)
    }
}

#[kunit_tests(physdma_reach)]
mod reach {
    use super::*;

    /// Logs how each of `clients` reaches each of `providers`.
    fn log(providers: &[&pci::Device<Bound>], clients: &[&pci::Device<Bound>]) -> Result {
        for provider in providers {
            let range = open(provider, 0, PART)?;
            for client in clients {
                let (from, to) = (client.address(), provider.address());
                // SAFETY: It is dropped before the device is unbound.
                let reach = unsafe { Reach::new(client.as_ref()) };
                match reach.route(range.provider().range()) {
                    Ok((route, hops)) => {
                        pr_info!("route: {from} reaches {to}: {route:?}, {hops} hops\n")
                    }
                    Err(why) => pr_info!("route: {from} does not reach {to}: {why}\n"),
                }
            }
        }
        Ok(())
    }

    #[test]
    fn every_pair() -> Result {
        with_all::<Memory>(|memory| {
            log(memory, memory)?;
            with_all::<Edu>(|clients| log(memory, clients))
        })
    }
}
