// SPDX-License-Identifier: GPL-2.0

//! Example of a driver that does DMA through kernel::physdma.
//!
//! QEMU's `edu` device has 4 KiB of memory of its own and copies between it and the memory that it
//! is given the address of. When the driver is bound it has the device fetch 4 KiB and write them
//! somewhere else:
//!
//! - from RAM to RAM, and compares the two, unless told otherwise;
//! - from, or to, the memory of another PCI device (a provider) at the physical addresses that the
//!   parameters `from` and `to` give. What is not a provider's memory there is refused.
//!
//! The device drops the upper bits of an address without a word. How many it keeps is what
//! `-device edu,dma_mask=` says, 28 by default; the driver must be told the same, in `dma_bits`.
//!
//! Device: [`docs/specs/edu.rst`](https://www.qemu.org/docs/master/specs/edu.html)

use kernel::{
    device::{
        Bound,
        Core, //
    },
    dma::{
        DataDirection,
        Device as _,
        DmaMask, //
    },
    io::{
        poll::read_poll_timeout,
        register,
        Io,
        PhysAddr, //
    },
    pci,
    physdma::{
        Client,
        Limits,
        Mapping,
        PhysBvec,
        Raw,
        Source,
        Virt, //
    },
    prelude::*,
    time::Delta, //
};

register! {
    /// What and which version the device is.
    ID(u32) @ 0x00 {
        /// Always 0xed.
        7:0 magic;
    }

    /// Where a transfer reads from, its low and its high half.
    SOURCE_LO(u32) @ 0x80 {
        31:0 addr;
    }
    SOURCE_HI(u32) @ 0x84 {
        31:0 addr;
    }

    /// Where a transfer writes to, its low and its high half.
    TARGET_LO(u32) @ 0x88 {
        31:0 addr;
    }
    TARGET_HI(u32) @ 0x8c {
        31:0 addr;
    }

    /// The length of a transfer, in bytes.
    COUNT(u32) @ 0x90 {
        31:0 bytes;
    }

    /// Starts a transfer.
    COMMAND(u32) @ 0x98 {
        /// Set to start; clear when done.
        0:0 run => bool;
        /// To memory, not from it.
        1:1 to_memory => bool;
    }
}

const REGISTERS: usize = 0xa0;

type Registers<'a> = pci::Bar<'a, REGISTERS>;

/// Where the device's own memory is in its address space, and its length in bytes.
const OWN_MEMORY: u64 = 0x40000;
const OWN_BYTES: usize = 4096;

/// What the device can take: a transfer is one segment, of at most its own memory's length.
const LIMITS: Limits = Limits {
    max_segment_bytes: OWN_BYTES as u32,
    boundary_mask: u64::MAX,
    max_segments: 1,
};

struct Edu<'a> {
    dev: &'a pci::Device<Bound>,
    registers: Registers<'a>,
    client: Client<'a>,
}

impl<'a> Edu<'a> {
    fn new(dev: &'a pci::Device<Core<'_>>) -> Result<Self> {
        dev.enable_device_mem()?;
        dev.set_master();
        let mask = DmaMask::try_new(module_parameters::dma_bits.value().into())?;
        // SAFETY: Nothing is mapped for the device yet.
        unsafe { dev.dma_set_mask_and_coherent(mask) }?;

        let registers = dev.iomap_region_sized::<REGISTERS>(0, c"physdma_edu")?;
        if u32::from((&registers).read(ID).magic()) != 0xed {
            dev_err!(dev, "not an edu device\n");
            return Err(ENODEV);
        }
        Ok(Self {
            dev,
            registers,
            client: Client::new(dev.as_ref(), LIMITS)?,
        })
    }

    /// Copies `bytes` bytes between bus addresses, and waits until it is done.
    fn copy(&self, source: u64, target: u64, bytes: u32, to_memory: bool) -> Result {
        let io = &self.registers;

        io.write_reg(SOURCE_LO::zeroed().with_addr(source as u32));
        io.write_reg(SOURCE_HI::zeroed().with_addr((source >> 32) as u32));
        io.write_reg(TARGET_LO::zeroed().with_addr(target as u32));
        io.write_reg(TARGET_HI::zeroed().with_addr((target >> 32) as u32));
        io.write_reg(COUNT::zeroed().with_bytes(bytes));
        io.write_reg(COMMAND::zeroed().with_run(true).with_to_memory(to_memory));

        // A transfer takes about a tenth of a second.
        read_poll_timeout(
            || Ok(io.read(COMMAND)),
            |command| !command.run(),
            Delta::from_millis(10),
            Delta::from_secs(10),
        )
        .map(|_| ())
        .inspect_err(|_| {
            // The memory is about to be unmapped, and must not be written to any more then.
            self.dev.clear_master();
            dev_err!(self.dev, "a transfer of {} bytes did not end\n", bytes);
        })
    }

    /// Has the device fetch what is at `source`. Nothing is mapped any more when this returns.
    fn fetch(&self, source: impl Source) -> Result {
        let mut mapping = Mapping::default();
        let mut segments = self
            .client
            .map(&mut mapping, source, DataDirection::ToDevice)?;
        while let Some(segment) = segments.next()? {
            dev_info!(
                self.dev,
                "reads from {:#x} ({:?})\n",
                segment.dma,
                segment.origin
            );
            self.copy(segment.dma, OWN_MEMORY, segment.len, false)?;
        }
        Ok(())
    }

    /// Has the device write what it has fetched to `target`. Nothing is mapped any more when this
    /// returns.
    fn store(&self, target: impl Source) -> Result {
        let mut mapping = Mapping::default();
        let mut segments = self
            .client
            .map(&mut mapping, target, DataDirection::FromDevice)?;
        while let Some(segment) = segments.next()? {
            dev_info!(
                self.dev,
                "writes to {:#x} ({:?})\n",
                segment.dma,
                segment.origin
            );
            self.copy(OWN_MEMORY, segment.dma, segment.len, true)?;
        }
        Ok(())
    }

    /// Copies from one buffer to another, by way of the device.
    fn ram_to_ram(&self) -> Result {
        let mut sent = KVec::from_elem(0u8, OWN_BYTES, GFP_KERNEL)?;
        let mut received = KVec::from_elem(0u8, OWN_BYTES, GFP_KERNEL)?;
        for (i, byte) in sent.iter_mut().enumerate() {
            *byte = (i * 7 % 251) as u8;
        }

        // SAFETY: `sent` lives longer than `fetch()` has it mapped.
        self.fetch(unsafe { Virt::new(&raw const sent[..]) }?)?;
        // SAFETY: `received` lives longer than `store()` has it mapped, and is not touched
        // meanwhile.
        self.store(unsafe { Virt::new(&raw mut received[..]) }?)?;

        if received != sent {
            dev_err!(self.dev, "what came back is not what was sent\n");
            return Err(EIO);
        }
        dev_info!(
            self.dev,
            "{} bytes went there and back unchanged\n",
            OWN_BYTES
        );
        Ok(())
    }
}

/// The memory of another device, at a physical address.
fn provider_memory(phys: u64) -> Result<[PhysBvec; 1]> {
    let phys = PhysAddr::try_from(phys)?;
    Ok([PhysBvec::new(phys, OWN_BYTES as u32).ok_or(EINVAL)?])
}

struct EduDriver<'a> {
    _edu: Edu<'a>,
}

kernel::pci_device_table!(
    PCI_TABLE,
    <PhysdmaEdu as pci::Driver>::IdInfo,
    [(
        pci::DeviceId::from_id(pci::Vendor::from_raw(0x1234), 0x11e8),
        ()
    )]
);

struct PhysdmaEdu;

impl pci::Driver for PhysdmaEdu {
    type IdInfo = ();
    type Data<'bound> = EduDriver<'bound>;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        dev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        let edu = Edu::new(dev)?;

        let from = module_parameters::from.value();
        let to = module_parameters::to.value();
        if (from, to) == (0, 0) {
            edu.ram_to_ram()?;
        }
        if from != 0 {
            edu.fetch(Raw::new(&provider_memory(from)?)?)?;
        }
        if to != 0 {
            edu.store(Raw::new(&provider_memory(to)?)?)?;
        }
        Ok(EduDriver { _edu: edu })
    }
}

kernel::module_pci_driver! {
    type: PhysdmaEdu,
    name: "physdma_edu",
    authors: ["The physdma authors"],
    description: "Example of a driver that uses kernel::physdma",
    license: "GPL v2",
    params: {
        dma_bits: u8 {
            default: 28,
            description: "Address bits that the device sends, as its dma_mask= says",
        },
        from: u64 {
            default: 0,
            description: "Physical address of another device's memory to fetch from",
        },
        to: u64 {
            default: 0,
            description: "Physical address of another device's memory to write to",
        },
    },
}
