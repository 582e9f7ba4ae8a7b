// SPDX-License-Identifier: GPL-2.0

//! How a client reaches a provider's memory: a [`Route`], or why there is none: [`Refused`].
//!
//! Policy stays in the kernel's `pci_p2pdma_*()`: what is asked there is asked afresh, never from
//! its cache of verdicts, which is keyed by bus number and survives hot-plug. What the kernel does
//! not look at is looked at here: whether the device can address the memory at all, and whether
//! bounce buffers are forced upon it.
//!
//! C source: [`drivers/pci/p2pdma.c`](srctree/drivers/pci/p2pdma.c)

use super::bvec::wide;
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    fmt,
    io::{
        resource::Flags,
        PhysAddr, //
    },
    pci,
    prelude::*,
    sync::aref::ARef, //
};

/// How a client reaches a run of a provider's memory.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{Client, Provider, Refused, Route};
///
/// /// Whether data go there without a way through the root complex.
/// fn is_short(client: &Client<'_>, provider: &Provider) -> Result<bool, Refused> {
///     Ok(match client.route(provider)? {
///         Route::Bus { .. } | Route::Internal { .. } => true,
///         Route::HostBridge => false,
///     })
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Through the root complex: mapped like RAM, but as MMIO.
    HostBridge,
    /// By its address on the PCI bus, below one switch: `offset` more than the physical address,
    /// modulo 2^64. No IOMMU takes part, and nothing has to be undone.
    Bus {
        /// Bus address less physical address, modulo 2^64.
        offset: u64,
    },
    /// The provider is the client itself: by its address on the PCI bus, or as an offset within
    /// its own `bar`.
    Internal {
        /// The number of the BAR.
        bar: u8,
        /// Bus address less physical address, modulo 2^64.
        offset: u64,
    },
}

/// Why a client cannot reach a provider.
///
/// Shown, it is a line that tells a person what could be done about it.
///
/// # Examples
///
/// ```
/// use kernel::{physdma::Refused, str::CString};
///
/// let refused = Refused::Mask {
///     last: 0x1_0000_ffff,
///     mask: 0xffff_ffff,
/// };
/// assert_eq!(Error::from(refused), EINVAL);
/// assert_eq!(Error::from(Refused::Revoked), ENODEV);
///
/// let line = CString::try_from_fmt(fmt!("{refused}"))?;
/// assert_eq!(
///     line.to_bytes(),
///     b"it cannot address 0x10000ffff: its DMA mask is 0xffffffff"
/// );
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The kernel allows no transfer between the two.
    Topology(pci::p2pdma::Unsupported),
    /// The client cannot address the memory.
    Mask {
        /// The last address of the memory, as the client would have to send it.
        last: u64,
        /// The last address that the client can send.
        mask: u64,
    },
    /// All DMA of the client goes through bounce buffers, which exist for RAM only.
    Bounce,
    /// The provider's memory was revoked.
    Revoked,
}

impl From<Refused> for Error {
    /// `ENODEV` for memory that was revoked, `EINVAL` for all else, as the block layer has it.
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Revoked => ENODEV,
            Refused::Topology(_) | Refused::Mask { .. } | Refused::Bounce => EINVAL,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topology(why) => why.fmt(f),
            Self::Mask { last, mask } => {
                write!(f, "it cannot address {last:#x}: its DMA mask is {mask:#x}")
            }
            Self::Bounce => f.write_str(
                "all its DMA is bounced through RAM: boot without swiotlb=force, or with an IOMMU",
            ),
            Self::Revoked => f.write_str("the provider is gone"),
        }
    }
}

/// A range of a PCI device's memory: what a [`Provider`](super::Provider) is of.
///
/// # Examples
///
/// ```
/// use kernel::physdma::BarRange;
///
/// fn show(range: &BarRange) {
///     pr_info!(
///         "{}: BAR {} from {:#x} on: {:#x}-{:#x}\n",
///         range.device().address(),
///         range.bar(),
///         range.start(),
///         range.first(),
///         range.last()
///     );
/// }
/// ```
///
/// # Invariants
///
/// `first <= last`; both lie within BAR `bar` of `dev`, as its resource was when this was made.
pub struct BarRange {
    pub(super) dev: ARef<pci::Device>,
    pub(super) bar: u8,
    /// Where in the BAR it starts, in bytes.
    pub(super) start: u64,
    pub(super) first: PhysAddr,
    pub(super) last: PhysAddr,
    /// Bus address less physical address, modulo 2^64.
    pub(super) bus_offset: u64,
}

impl BarRange {
    /// `len` bytes from `start` on of BAR `bar` of `dev`.
    pub(super) fn new(dev: &pci::Device<Bound>, bar: u32, start: u64, len: u64) -> Result<Self> {
        if !dev.resource(bar)?.flags().contains(Flags::IORESOURCE_MEM) || len == 0 {
            return Err(EINVAL);
        }
        if !dev.has_mappable_bars() {
            return Err(EOPNOTSUPP);
        }
        let end = start.checked_add(len).ok_or(EINVAL)?;
        if end > wide(dev.resource_len(bar)?) {
            return Err(EINVAL);
        }
        let base = dev.resource_start(bar)?;
        if base == 0 {
            // The BAR has been given no address.
            return Err(EINVAL);
        }
        // They fit, as the BAR does.
        let first = base.checked_add(PhysAddr::try_from(start)?).ok_or(EINVAL)?;
        let last = first
            .checked_add(PhysAddr::try_from(len - 1)?)
            .ok_or(EINVAL)?;

        // SAFETY: It looks at the resource tree, and may be asked about anything.
        let overlap = unsafe {
            bindings::region_intersects(
                first,
                usize::try_from(len)?,
                bindings::IORESOURCE_SYSTEM_RAM as usize,
                bindings::IORES_DESC_NONE as usize,
            )
        };
        if overlap != bindings::REGION_DISJOINT as c_int {
            return Err(EINVAL);
        }
        // INVARIANT: Just checked.
        Ok(Self {
            dev: dev.into(),
            bar: u8::try_from(bar)?,
            start,
            first,
            last,
            bus_offset: wide(dev.bus_address(bar)?).wrapping_sub(wide(base)),
        })
    }

    /// The device.
    pub fn device(&self) -> &pci::Device {
        &self.dev
    }

    /// The number of the BAR.
    pub fn bar(&self) -> u8 {
        self.bar
    }

    /// Where in the BAR the range starts, in bytes.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The physical address of the first byte.
    pub fn first(&self) -> PhysAddr {
        self.first
    }

    /// The physical address of the last byte.
    pub fn last(&self) -> PhysAddr {
        self.last
    }
}

/// What is known of a client: how it reaches what.
///
/// [`Reach`] asks the kernel; a test can say what it likes.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::Device,
///     physdma::{BarRange, Refused, Route, Topology},
/// };
///
/// /// What is on a bus whose addresses are those of the CPU, and 4 GiB more.
/// struct Shifted;
///
/// impl Topology for Shifted {
///     fn device(&self) -> Option<&Device> {
///         None
///     }
///
///     fn route(&self, memory: &BarRange) -> Result<(Route, u32), Refused> {
///         if memory.bar() != 2 {
///             return Err(Refused::Bounce);
///         }
///         Ok((Route::Bus { offset: 1 << 32 }, 2))
///     }
/// }
///
/// assert!(Shifted.device().is_none());
/// ```
pub trait Topology: Send + Sync {
    /// The client's device, for messages.
    fn device(&self) -> Option<&Device>;

    /// How the client reaches `memory`, and over how many hops. May be called in atomic context.
    fn route(&self, memory: &BarRange) -> Result<(Route, u32), Refused>;

    /// Waits until what the client has unmapped cannot be reached by it any more. Called while the
    /// client is one, and so is [`route()`](Self::route); may sleep.
    fn flush(&self) {}
}

/// How a real device reaches memory.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::{Bound, Device},
///     physdma::{Provider, Reach, Refused, Route, Topology},
/// };
///
/// /// How `dev` would reach the memory, were it a client, and over how many hops.
/// fn ask(dev: &Device<Bound>, provider: &Provider) -> Result<(Route, u32), Refused> {
///     // SAFETY: It is dropped here.
///     unsafe { Reach::new(dev) }.route(provider.range())
/// }
/// ```
///
/// # Invariants
///
/// A driver is bound to `dev` while it is asked.
pub struct Reach {
    dev: ARef<Device>,
}

impl Reach {
    /// What `dev` reaches.
    ///
    /// # Safety
    ///
    /// The result is asked only while the driver is bound: by whoever has it, and by the registry as
    /// long as there is a [`Client`](super::Client) with it. That is dropped before, or has the
    /// backend [`Dma`](super::Dma) of `dev`, by which it leaves when the driver is unbound.
    pub unsafe fn new(dev: &Device<Bound>) -> Self {
        // INVARIANT: By the safety requirements.
        Self { dev: dev.into() }
    }
}

impl Topology for Reach {
    fn device(&self) -> Option<&Device> {
        Some(&self.dev)
    }

    fn route(&self, memory: &BarRange) -> Result<(Route, u32), Refused> {
        let provider: &Device = memory.dev.as_ref();
        let (route, hops) = if core::ptr::eq(provider.as_raw(), self.dev.as_raw()) {
            let route = Route::Internal {
                bar: memory.bar,
                offset: memory.bus_offset,
            };
            (route, 0)
        } else {
            let verdict =
                pci::p2pdma::verdict(&memory.dev, &self.dev).map_err(Refused::Topology)?;
            let route = match verdict.map_type {
                pci::p2pdma::MapType::BusAddress => Route::Bus {
                    offset: memory.bus_offset,
                },
                pci::p2pdma::MapType::HostBridge => Route::HostBridge,
            };
            (route, verdict.distance)
        };

        // An IOMMU gives addresses that fit, and bounces RAM only where it must.
        // SAFETY: `self.dev` is a valid device.
        let translated = unsafe { bindings::use_dma_iommu(self.dev.as_raw()) };
        let last = match route {
            Route::HostBridge if translated => return Ok((route, hops)),
            Route::HostBridge => {
                // SAFETY: As above.
                if unsafe { bindings::is_swiotlb_force_bounce(self.dev.as_raw()) } {
                    return Err(Refused::Bounce);
                }
                let (mut last, mut mask) = (0, 0);
                // SAFETY: As above.
                let reaches = unsafe {
                    bindings::physdma_reaches_mmio(
                        self.dev.as_raw(),
                        memory.last,
                        &mut last,
                        &mut mask,
                    )
                };
                if !reaches {
                    return Err(Refused::Mask { last, mask });
                }
                return Ok((route, hops));
            }
            Route::Bus { offset } => wide(memory.last).wrapping_add(offset),
            // The device may well decode more address bits of its own than it sends.
            Route::Internal { .. } => return Ok((route, hops)),
        };
        // SAFETY: As above.
        let mask = unsafe { bindings::dma_get_mask(self.dev.as_raw()) };
        if last > mask {
            return Err(Refused::Mask { last, mask });
        }
        Ok((route, hops))
    }

    fn flush(&self) {
        // SAFETY: By the type invariants a driver is bound to it.
        unsafe { bindings::physdma_flush_iotlb(self.dev.as_raw()) };
    }
}
