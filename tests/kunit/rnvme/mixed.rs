// SPDX-License-Identifier: GPL-2.0

//! Commands whose data are in the controller's own memory in part.
//!
//! The controller is played behind a real PCI device, of which the memory is really its own: an SSD
//! with a memory buffer, which is not told anything. Without it the suite fails.

use crate::{
    api::Way,
    block::Carried,
    command::{
        io,
        Command, //
    },
    fake::{
        Fake,
        Script, //
    },
    lies::{
        attach,
        pieces,
        Driver, //
    }, //
};
use kernel::{
    block::mq::{
        DriverOp,
        Status, //
    },
    device::{
        Bound,
        Core,
        Device, //
    },
    dma::{
        Device as _,
        DmaMask, //
    },
    pci,
    physdma::{
        Part,
        Registration, //
    },
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// How long each part is, in bytes.
const LEN: u32 = 4096;

/// The bit of the register that says that commands may mix.
const CDMMMS: u32 = 1 << 7;

/// What came of it: an errno, or 0.
static RESULT: Atomic<i32> = Atomic::new(NOT_RUN);
const NOT_RUN: i32 = 1;

/// Returns from the test with an error, and says where, if the condition does not hold.
///
/// A KUnit assertion would end the thread that binds the device.
macro_rules! check {
    ($cond:expr) => {
        if !$cond {
            pr_err!("line {}: {}\n", line!(), stringify!($cond));
            return Err(EPROTO);
        }
    };
}

/// Sends one command that writes all of `parts`, of `LEN` bytes each, however they are mixed.
fn command(driver: &Driver<'_>, parts: &[Part<'_>]) -> Result<Status> {
    command_of(driver, parts, LEN * u32::try_from(parts.len())?)
}

/// The same for `bytes` bytes all together.
fn command_of(driver: &Driver<'_>, parts: &[Part<'_>], bytes: u32) -> Result<Status> {
    driver
        .nvme
        .with_disk(1, |disk| {
            let mut rq = disk.disk.alloc(DriverOp::Out)?;
            let data = rq.data_mut();

            data.command = Command::rw(io::WRITE, 1, 0, (bytes >> 9) as u16, false);
            // SAFETY: The request ends before this returns.
            data.carried = Some(unsafe { Carried::new(parts, bytes) });
            let mut done = rq.execute(0);
            done.data_mut().carried = None;
            Ok(done.status())
        })
        .ok_or(ENXIO)?
}

fn run(dev: &pci::Device<Core<'_>>) -> Result {
    dev.enable_device_mem()?;
    // SAFETY: Nothing was mapped for the device.
    unsafe { dev.dma_set_mask_and_coherent(DmaMask::new::<64>()) }?;

    // Nobody uses them, but the queues are spread as they are.
    let _vectors =
        dev.alloc_irq_vectors(3, 3, pci::IrqTypes::default().with(pci::IrqType::MsiX))?;

    let memory = Registration::new(dev, 2, 0, 2 * u64::from(LEN))?;
    let own = [memory.provider().bvec(0, LEN)?];
    // Of another range, which goes before it is used.
    let gone = [Registration::new(dev, 2, 1 << 20, LEN.into())?
        .provider()
        .bvec(0, LEN)?];
    let buf = KVec::from_elem(0u8, LEN as usize, GFP_KERNEL)?;
    let ram = pieces(&buf)?;
    let (own, ram) = (Part::Provider(&own), Part::Ram(&ram));
    let dev: &Device<Bound> = dev.as_ref();

    for mixes in [false, true] {
        let mut script = Script::default();
        script.cmbloc |= if mixes { CDMMMS } else { 0 };
        let fake = Fake::new(script)?;
        let driver = attach(dev, &fake)?;

        check!(command(&driver, &[own])? == Status::OK);
        check!(command(&driver, &[ram])? == Status::OK);
        check!(fake.counts().writes == 2);
        let expected = if mixes { Status::OK } else { Status::INVAL };
        check!(command(&driver, &[own, ram])? == expected);
        check!(command(&driver, &[ram, own])? == expected);
        check!(command(&driver, &[ram, own, ram])? == expected);
        // Each is in the log's count. To ask is to count, too.
        let next = if mixes { 1 } else { 4 };
        check!(driver.nvme.ctrl.unmapped.count() == Some(next));
        check!(command(&driver, &[Part::Provider(&gone)])? == Status::IOERR);
        // What is refused does not reach the controller.
        let sent = fake.counts().writes;
        check!(sent == if mixes { 5 } else { 2 });

        // Who keeps to it cuts there, and only there.
        let list = [own, ram, ram, own];
        let moved = driver.nvme.with_disk(1, |disk| {
            // SAFETY: The buffer is there, and the controller moves no data.
            unsafe { disk.transfer(Way::Write, 0, &list) }
        });
        check!(moved == Some(Ok(())));
        check!(fake.counts().writes - sent == if mixes { 1 } else { 3 });
        check!(fake.counts().wrongs == 0);
    }
    descriptors(dev)
}

/// Data that are one segment in many pages are said by a descriptor, if the controller takes one.
fn descriptors(dev: &Device<Bound>) -> Result {
    const BYTES: u32 = 16 * LEN;
    let buf = KVec::from_elem(0u8, 2 * BYTES as usize, GFP_KERNEL)?;
    let whole = pieces(&buf)?;
    let (first, _) = whole[0].split(BYTES);
    // A gap between the two.
    let (second, _) = whole[0].split(BYTES + LEN).1.ok_or(EINVAL)?.split(LEN);

    for sgls in [false, true] {
        let fake = Fake::new(Script {
            sgls,
            ..Script::default()
        })?;
        let driver = attach(dev, &fake)?;
        let used = |expected: u32| fake.counts().sgls == if sgls { expected } else { 0 };

        check!(command_of(&driver, &[Part::Ram(&[first])], BYTES)? == Status::OK);
        check!(used(1));
        // Two pages are two entries. Behind an IOMMU, which there is if there can be one, what is
        // apart is one segment, too.
        let (two, _) = first.split(2 * LEN);
        check!(command_of(&driver, &[Part::Ram(&[two])], 2 * LEN)? == Status::OK);
        check!(command_of(&driver, &[Part::Ram(&[first, second])], BYTES + LEN)? == Status::OK);
        check!(used(if cfg!(CONFIG_IOMMU_DMA) { 2 } else { 1 }));
        check!(fake.counts().wrongs == 0);
        check!(fake.counts().writes == 3);
    }
    Ok(())
}

struct Own;

kernel::pci_device_table!(
    PCI_TABLE,
    <Own as pci::Driver>::IdInfo,
    [(
        pci::DeviceId::from_class(pci::Class::STORAGE_EXPRESS.as_raw(), 0xff_ffff),
        ()
    )]
);

impl pci::Driver for Own {
    type IdInfo = ();
    type Data<'bound> = ();
    const ID_TABLE: pci::IdTable<()> = &PCI_TABLE;

    fn probe<'bound>(
        dev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound ()>,
    ) -> impl PinInit<(), Error> + 'bound {
        if dev.resource_len(2)? == 0 {
            return Err(ENODEV);
        }
        RESULT.store(run(dev).map_or_else(Error::to_errno, |()| 0), Relaxed);
        Ok::<_, Error>(())
    }
}

#[kunit_tests(rnvme_mixed)]
mod tests {
    use super::*;

    #[test]
    fn mixed_commands_are_refused() -> Result {
        RESULT.store(NOT_RUN, Relaxed);
        let driver = KBox::pin_init(
            kernel::driver::Registration::<pci::Adapter<Own>>::new(
                c"rnvme_kunit_own",
                kernel::module::this_module::<crate::RnvmeKunit>(),
            ),
            GFP_KERNEL,
        )?;
        drop(driver);
        match RESULT.load(Relaxed) {
            0 => Ok(()),
            NOT_RUN => Err(ENODEV),
            errno => Err(Error::from_errno(errno)),
        }
    }
}
