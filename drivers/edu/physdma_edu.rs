// SPDX-License-Identifier: GPL-2.0

//! Example of a driver that does DMA through kernel::physdma.
//!
//! QEMU's `edu` device has 4 KiB of memory of its own and copies between it and the memory that it
//! is given the address of. The driver has it fetch one buffer and write it to another, and
//! compares the two.
//!
//! QEMU must be run with `-device edu,dma_mask=0xffffffff`: without it the device drops the upper
//! four bits of an address.
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
        Io, //
    },
    pci,
    physdma::{
        Client,
        Limits,
        Mapping,
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
        // SAFETY: Nothing is mapped for the device yet.
        unsafe { dev.dma_set_mask_and_coherent(DmaMask::new::<32>()) }?;

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
        .inspect_err(|_| dev_err!(self.dev, "a transfer of {} bytes did not end\n", bytes))
    }

    /// Has the device fetch the bytes of `buf`.
    fn fetch(&self, buf: &[u8]) -> Result {
        let mut mapping = Mapping::default();
        // SAFETY: `mapping` is dropped at the end of this function, `buf` is borrowed longer.
        let source = unsafe { Virt::new(buf) }?;

        let mut segments = self
            .client
            .map(&mut mapping, source, DataDirection::ToDevice)?;
        while let Some(segment) = segments.next()? {
            self.copy(segment.dma, OWN_MEMORY, segment.len, false)?;
        }
        Ok(())
    }

    /// Has the device write what it has fetched to `buf`.
    fn store(&self, buf: &mut [u8]) -> Result {
        let mut mapping = Mapping::default();
        // SAFETY: `mapping` is dropped at the end of this function, `buf` is borrowed longer, and
        // nobody else can touch it.
        let source = unsafe { Virt::new(buf) }?;

        let mut segments = self
            .client
            .map(&mut mapping, source, DataDirection::FromDevice)?;
        while let Some(segment) = segments.next()? {
            self.copy(OWN_MEMORY, segment.dma, segment.len, true)?;
        }
        Ok(())
    }
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

        let mut sent = KVec::from_elem(0u8, OWN_BYTES, GFP_KERNEL)?;
        let mut received = KVec::from_elem(0u8, OWN_BYTES, GFP_KERNEL)?;
        for (i, byte) in sent.iter_mut().enumerate() {
            *byte = (i * 7 % 251) as u8;
        }

        edu.fetch(&sent)?;
        edu.store(&mut received)?;
        if received[..] != sent[..] {
            dev_err!(dev, "what came back is not what was sent\n");
            return Err(EIO);
        }
        dev_info!(dev, "{} bytes went there and back unchanged\n", OWN_BYTES);

        Ok(EduDriver { _edu: edu })
    }
}

kernel::module_pci_driver! {
    type: PhysdmaEdu,
    name: "physdma_edu",
    authors: ["The physdma authors"],
    description: "Example of a driver that uses kernel::physdma",
    license: "GPL v2",
}
