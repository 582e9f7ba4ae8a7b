// SPDX-License-Identifier: GPL-2.0

//! NVM Express block devices on the PCI bus.
//!
//! Every namespace of a controller is a disk, `rnvme0n1` and so on. A request goes this way:
//!
//! ```text
//! block.rs: request -> kernel::physdma: segments -> prp.rs: entries -> command.rs -> queue.rs
//! ```
//!
//! and its answer, from `queue.rs`, back to `block.rs`. What else there is: `regs.rs` the
//! registers, `ctrl.rs` the controller's states, `admin.rs` the commands to the controller itself,
//! with `identify.rs` its answers, `memory.rs` its own memory, `nvme.rs` how a controller comes and
//! goes, and `recovery.rs` what happens when it does not answer. `api.rs` is I/O for kernel code,
//! of which the memory is cut into commands by `cut.rs`. Programs do I/O to what `buffers.rs` has
//! mapped before, by `chardev.rs`, `abi.rs` and `premapped.rs`. This file is the PCI bus.
//!
//! At a shutdown of the machine the controller is not told that its power goes, and a reset that
//! the PCI core does, or a driver beside it, is found by late requests: Rust drivers on the PCI bus
//! are not told of either yet. What was flushed is safe; [`Attached`] tells a controller that is
//! unbound.
//!
//! Everything but this file is generic over [`Regs`](regs::Regs), so that a KUnit suite can play a
//! controller that lies.
//!
//! Specification: [NVM Express](https://nvmexpress.org/specifications/), Base 2.0.

mod abi;
mod admin;
#[cfg_attr(
    not(CONFIG_RNVME_INJECT),
    allow(
        dead_code,
        reason = "for kernel code; none but tests needs all of it yet"
    )
)]
mod api;
mod block;
mod buffers;
mod chardev;
mod command;
mod counters;
mod ctrl;
#[cfg_attr(not(CONFIG_RNVME_INJECT), allow(dead_code, reason = "as above"))]
mod cut;
mod data;
mod identify;
#[cfg(CONFIG_RNVME_INJECT)]
mod inject;
mod memory;
mod nvme;
mod premapped;
mod prp;
mod queue;
mod recovery;
mod regs;
mod sgl;
mod shadow;

use crate::{
    identify::CTRL_PAGE_SIZE,
    nvme::{
        Attached,
        Config,
        Interrupts, //
    },
    queue::Queue,
    regs::{
        Bar,
        Regs,
        DOORBELLS, //
    }, //
};
use kernel::{
    cpu,
    device::{
        self,
        Core, //
    },
    dma::{
        Device as _,
        DmaMask, //
    },
    driver,
    io::{
        resource::Flags,
        IoBase,
        Mmio,
        MmioBackend,
        Region, //
    },
    irq,
    pci,
    physdma::Registration,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SetOnce, //
    },
    InPlaceModule,
    ModuleMetadata, //
};

/// Admin commands that were not answered for so long are given up, in milliseconds.
const ADMIN_TIMEOUT: u32 = 60_000;

/// The longest time-out that the block layer takes, in milliseconds: 24 days.
const MAX_IO_TIMEOUT: u32 = i32::MAX as u32;

/// Which numbers of controllers are taken, one bit each.
static INSTANCES: [Atomic<u64>; 4] = [const { Atomic::new(0) }; 4];

/// The number of a controller, in the names of its disks. Free again when dropped.
struct Instance(u32);

impl Instance {
    fn new() -> Result<Self> {
        for (i, word) in (0..).zip(&INSTANCES) {
            let mut taken = word.load(Relaxed);

            while taken != u64::MAX {
                let bit = taken.trailing_ones();
                match word.cmpxchg(taken, taken | 1 << bit, Relaxed) {
                    Ok(_) => return Ok(Self(i * u64::BITS + bit)),
                    Err(now) => taken = now,
                }
            }
        }
        Err(ENOSPC)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(word) = INSTANCES.get((self.0 / u64::BITS) as usize) {
            word.fetch_sub(1 << (self.0 % u64::BITS), Relaxed);
        }
    }
}

/// The registers of a controller on the PCI bus, in BAR 0.
struct PciRegs<'a> {
    pdev: &'a pci::Device<device::Bound>,
    bar: pci::Bar<'a, DOORBELLS>,
    vectors: &'a pci::IrqVectorRegistration<'a>,
}

impl<'a> Regs for PciRegs<'a> {
    type Backend = MmioBackend;
    type IrqOff<'r>
        = Option<pci::IrqDisabled<'r>>
    where
        Self: 'r;

    #[inline]
    fn io(&self) -> Mmio<'_, Region<DOORBELLS>> {
        (&self.bar).as_view()
    }

    fn irq_off(&self, vector: u32) -> Option<pci::IrqDisabled<'_>> {
        // A queue's vector is one of those that there are.
        self.vectors.disable(vector as usize).ok()
    }

    fn isolate(&self) {
        self.pdev.clear_master();
    }

    fn bar(&self, bar: u32) -> Option<Bar> {
        let resource = self.pdev.resource(bar).ok()?;
        let len = self.pdev.resource_len(bar).ok()?;

        if len == 0 || !resource.flags().contains(Flags::IORESOURCE_MEM) {
            return None;
        }
        Some(Bar {
            address: self.pdev.bus_address(bar).ok()?,
            len,
        })
    }

    type Opened = Registration<'a>;

    fn open(&self, bar: u32, start: u64, len: u64) -> Result<Registration<'a>> {
        Registration::new(self.pdev, bar, start, len)
    }
}

/// Handles an interrupt of a controller: that of one queue, or of the admin queue and the only I/O
/// queue where there is but one vector.
struct Handler<'a> {
    queue: Arc<Queue<'a, PciRegs<'a>>>,
    other: SetOnce<Arc<Queue<'a, PciRegs<'a>>>>,
}

impl irq::Handler for Handler<'_> {
    fn handle(&self) -> irq::IrqReturn {
        let mut found = self.queue.process();

        if let Some(other) = self.other.as_ref() {
            found |= other.process();
        }
        if found {
            irq::IrqReturn::Handled
        } else {
            irq::IrqReturn::None
        }
    }
}

struct PciInterrupts<'a> {
    vectors: &'a pci::IrqVectorRegistration<'a>,
    handlers: KVec<Pin<KBox<irq::Registration<'a, Handler<'a>>>>>,
}

impl<'a> Interrupts<'a, PciRegs<'a>> for PciInterrupts<'a> {
    fn vectors(&self) -> u32 {
        // CAST: A device has at most 2048.
        self.vectors.len() as u32
    }

    fn attach(&mut self, queue: Arc<Queue<'a, PciRegs<'a>>>) -> Result {
        let vector = queue.vector() as usize;

        if let Some(handler) = self.handlers.get(vector) {
            return match handler.handler().other.populate(queue) {
                true => Ok(()),
                false => Err(EBUSY),
            };
        }
        let handler = Handler {
            queue,
            other: SetOnce::new(),
        };
        // SAFETY: The registration is dropped with `self`, which is not forgotten.
        let registration = unsafe {
            irq::Registration::new(
                self.vectors.index(vector)?.into(),
                irq::Flags::SHARED,
                c"rnvme",
                Ok::<_, Error>(handler),
            )
        };

        self.handlers
            .push(KBox::pin_init(registration, GFP_KERNEL)?, GFP_KERNEL)?;
        Ok(())
    }
}

struct Rnvme;

/// What the driver keeps for a device.
struct Bound<'a> {
    _attached: Attached<'a, PciRegs<'a>, PciInterrupts<'a>>,
    /// Dropped next: it may wait for a request, which nobody ends but the former.
    #[cfg(CONFIG_RNVME_INJECT)]
    _injector: inject::Injector<'a>,
    _instance: Instance,
}

impl Rnvme {
    fn attach<'a>(pdev: &'a pci::Device<Core<'_>>) -> Result<Bound<'a>> {
        pdev.enable_device_mem()?;
        pdev.set_master();
        // SAFETY: Nothing was allocated or mapped for the device yet.
        unsafe {
            pdev.dma_set_mask_and_coherent(DmaMask::new::<64>())
                .or_else(|_| pdev.dma_set_mask_and_coherent(DmaMask::new::<32>()))
        }
        .inspect_err(|_| dev_err!(pdev, "no DMA with 32 bits of address\n"))?;
        // What is bounced starts in its page where the request's own memory does, as PRPs want it.
        // SAFETY: As above.
        unsafe { pdev.dma_set_min_align_mask(CTRL_PAGE_SIZE - 1) };

        let bar = pdev
            .iomap_region_sized::<DOORBELLS>(0, c"rnvme")
            .inspect_err(|e| dev_err!(pdev, "no registers in BAR 0: {:?}\n", e))?;
        let cpus = cpu::nr_cpu_ids();
        let affinity = pci::IrqAffinity {
            pre_vectors: 1,
            ..Default::default()
        };
        let msi = pci::IrqTypes::default()
            .with(pci::IrqType::MsiX)
            .with(pci::IrqType::Msi);
        let vectors = pdev
            .alloc_irq_vectors_affinity(2, cpus.saturating_add(1), msi, affinity)
            .or_else(|_| pdev.alloc_irq_vectors(1, 1, pci::IrqTypes::all()))
            .inspect_err(|e| dev_err!(pdev, "no interrupts: {:?}\n", e))?
            .into_devres()?;

        let instance = Instance::new()?;
        let config = Config {
            instance: instance.0,
            io_queues: cpus,
            io_timeout: module_parameters::io_timeout
                .value()
                .saturating_mul(1000)
                .min(MAX_IO_TIMEOUT),
            admin_timeout: ADMIN_TIMEOUT,
            plain: module_parameters::plain.value() != 0,
        };
        let irqs = PciInterrupts {
            vectors,
            handlers: KVec::new(),
        };
        // SAFETY: The driver core drops it when the driver is unbound.
        let mut attached =
            unsafe { Attached::new(pdev.as_ref(), PciRegs { pdev, bar, vectors }, irqs, config) }?;
        attached.open_to_programs(CString::try_from_fmt(fmt!("rnvme{}", instance.0))?)?;

        Ok(Bound {
            // SAFETY: As above.
            #[cfg(CONFIG_RNVME_INJECT)]
            _injector: unsafe { inject::Injector::new(instance.0, attached.nvme.clone()) }?,
            _attached: attached,
            _instance: instance,
        })
    }
}

kernel::pci_device_table!(
    PCI_TABLE,
    <Rnvme as pci::Driver>::IdInfo,
    [(
        pci::DeviceId::from_class(pci::Class::STORAGE_EXPRESS.as_raw(), 0xff_ffff),
        ()
    )]
);

impl pci::Driver for Rnvme {
    type IdInfo = ();
    type Data<'bound> = Bound<'bound>;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Bound<'bound>, Error> + 'bound {
        Self::attach(pdev)
    }
}

/// The module: the driver, and what tests drive it by.
#[pin_data]
struct Module {
    /// Dropped first: its controllers use the file's memory.
    #[pin]
    _driver: driver::Registration<pci::Adapter<Rnvme>>,
    #[cfg(CONFIG_RNVME_INJECT)]
    #[pin]
    _file: inject::File,
}

impl InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        #[cfg(CONFIG_RNVME_INJECT)]
        inject::init();

        try_pin_init!(Self {
            #[cfg(CONFIG_RNVME_INJECT)]
            _file <- inject::file(),
            _driver <- driver::Registration::new(<Self as ModuleMetadata>::NAME, module),
        })
    }
}

module! {
    type: Module,
    name: "rnvme",
    authors: ["The physdma authors"],
    description: "NVM Express block devices, driver in Rust",
    license: "GPL v2",
    params: {
        io_timeout: u32 {
            default: 30,
            description: "Seconds after which a request is considered lost",
        },
        plain: u8 {
            default: 0,
            description: "1: no SGL descriptors, and no doorbells in memory",
        },
    },
}
