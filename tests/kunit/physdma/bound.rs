// SPDX-License-Identifier: GPL-2.0

//! Devices of the machine that are bound to a driver as long as a test uses them, and providers
//! made of real memory, which clients reach as a script says.
//!
//! A failed KUnit assertion ends the thread, and what the driver core or another thread waits for
//! would never happen. So where a device is bound a check that fails returns an error, and the
//! test asserts outside.

use super::recorder::Recorder;
use core::marker::PhantomData;
use kernel::{
    device::{
        Bound,
        Core,
        Device, //
    },
    dma::{
        Device as _,
        DmaMask, //
    },
    pci::{
        self,
        p2pdma::Unsupported, //
    },
    physdma::{
        BarRange,
        Client,
        Limits,
        PhysBvec,
        Refused,
        Registration,
        Route,
        Topology, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};

/// Fails the test, with a line that says where, unless `condition` holds.
macro_rules! check {
    ($condition:expr) => {
        if !$condition {
            pr_err!(
                "{}:{}: {} does not hold\n",
                file!(),
                line!(),
                stringify!($condition)
            );
            return Err(EPROTO);
        }
    };
}
pub(crate) use check;

/// Fails the test, with a line that says where and what, unless both are the same.
macro_rules! check_eq {
    ($left:expr, $right:expr) => {{
        let (left, right) = (&$left, &$right);
        if *left != *right {
            pr_err!(
                "{}:{}: {} is {:x?}, not {:x?}\n",
                file!(),
                line!(),
                stringify!($left),
                left,
                right
            );
            return Err(EPROTO);
        }
    }};
}
pub(crate) use check_eq;

/// Which devices a test wants.
pub(crate) trait Which: 'static {
    const TABLE: pci::IdTable<()>;
    /// The name of the driver that binds to them.
    const NAME: &'static CStr;
    /// What they can address.
    const MASK: DmaMask = DmaMask::new::<32>();
}

/// A BAR of plain memory.
pub(crate) struct Memory;

/// Whether an IOMMU gives devices the addresses that they use.
pub(crate) const TRANSLATED: bool = cfg!(CONFIG_IOMMU_DMA);

/// Whether real devices reach the memory of others.
pub(crate) const ROUTED: bool = cfg!(CONFIG_PCI_P2PDMA);

/// A device that could do DMA, but is not told to; it addresses 256 MiB only, or it would not be
/// bound where no IOMMU gives it such addresses.
pub(crate) struct Edu;

/// A device with BARs of both kinds.
pub(crate) struct Testdev;

kernel::pci_device_table!(
    MEMORY,
    (),
    [(
        pci::DeviceId::from_id(pci::Vendor::REDHAT_QUMRANET, 0x1110),
        ()
    )]
);

kernel::pci_device_table!(
    EDU,
    (),
    [(
        pci::DeviceId::from_id(pci::Vendor::from_raw(0x1234), 0x11e8),
        ()
    )]
);

kernel::pci_device_table!(
    TESTDEV,
    (),
    [(pci::DeviceId::from_id(pci::Vendor::REDHAT, 0x5), ())]
);

impl Which for Memory {
    const TABLE: pci::IdTable<()> = &MEMORY;
    const NAME: &'static CStr = c"physdma_kunit_memory";
}

impl Which for Edu {
    const TABLE: pci::IdTable<()> = &EDU;
    const NAME: &'static CStr = c"physdma_kunit_edu";
    const MASK: DmaMask = if TRANSLATED {
        DmaMask::new::<28>()
    } else {
        DmaMask::new::<32>()
    };
}

impl Which for Testdev {
    const TABLE: pci::IdTable<()> = &TESTDEV;
    const NAME: &'static CStr = c"physdma_kunit_testdev";
}

/// A driver that binds to all devices it is offered.
struct Driver<W>(PhantomData<W>);

kernel::sync::global_lock! {
    // SAFETY: Initialized in module initializer before first use.
    unsafe(uninit) static FOUND: Mutex<KVec<ARef<pci::Device>>> = KVec::new();
}

/// Makes the lock that keeps the devices.
///
/// # Safety
///
/// Called exactly once, before any test.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirements.
    unsafe { FOUND.init() };
}

impl<W: Which> pci::Driver for Driver<W> {
    type IdInfo = ();
    type Data<'bound> = ();
    const ID_TABLE: pci::IdTable<()> = W::TABLE;

    fn probe<'bound>(
        dev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound ()>,
    ) -> impl PinInit<(), Error> + 'bound {
        // SAFETY: Nothing is mapped for the device yet.
        unsafe { dev.dma_set_mask_and_coherent(W::MASK) }?;
        FOUND.lock().push(dev.into(), GFP_KERNEL)?;
        Ok::<_, Error>(())
    }
}

/// Calls `f` with the devices of one kind, all bound.
pub(crate) fn with_all<W: Which>(f: impl FnOnce(&[&pci::Device<Bound>]) -> Result) -> Result {
    let driver = KBox::pin_init(
        kernel::driver::Registration::<pci::Adapter<Driver<W>>>::new(
            W::NAME,
            kernel::module::this_module::<super::PhysdmaKunit>(),
        ),
        GFP_KERNEL,
    )?;
    let found = core::mem::replace(&mut *FOUND.lock(), KVec::new());
    let mut bound = KVec::new();
    for dev in &found {
        let dev: &Device = (**dev).as_ref();
        // SAFETY: The driver has bound it, and is there until the end of this function. Nobody
        // else in the machine unbinds it.
        let dev = unsafe { dev.as_bound() };
        bound.push(<&pci::Device<Bound>>::try_from(dev)?, GFP_KERNEL)?;
    }
    let result = f(&bound);
    drop(driver);
    result
}

/// Calls `f` with the first device of a kind, bound.
pub(crate) fn with<W: Which>(f: impl FnOnce(&pci::Device<Bound>) -> Result) -> Result {
    with_all::<W>(|devices| {
        let Some(dev) = devices.first() else {
            pr_err!("there is no device to test with\n");
            return Err(ENODEV);
        };
        f(dev)
    })
}

/// Calls `f` with a device whose BAR 2 has 16 MiB of memory.
pub(crate) fn with_memory(f: impl FnOnce(&pci::Device<Bound>) -> Result) -> Result {
    with::<Memory>(f)
}

/// Opens a part of BAR 2 to other devices.
pub(crate) fn open(dev: &pci::Device<Bound>, start: u64, len: u64) -> Result<Registration<'_>> {
    Registration::new(dev, 2, start, len)
}

/// `count` ranges of two pages in a row, behind those of a [`Bed`], and a page of each.
pub(crate) fn row(
    dev: &pci::Device<Bound>,
    count: u64,
) -> Result<(KVec<Registration<'_>>, KVec<PhysBvec>)> {
    let mut ranges = KVec::new();
    let mut list = KVec::new();

    for number in 0..count {
        let range = open(dev, 3 * PART + number * 0x2000, 0x2000)?;
        list.push(at(&range, 0x1000, 0x1000)?, GFP_KERNEL)?;
        ranges.push(range, GFP_KERNEL)?;
    }
    Ok((ranges, list))
}

/// The size of each range of a [`Bed`], in bytes.
pub(crate) const PART: u64 = 1 << 20;

/// Bus address less physical address of the first range of a [`Bed`].
pub(crate) const UP: u64 = 0x1_0000_0000;

/// The same for the second: buses may well number from somewhere further down.
pub(crate) const DOWN: u64 = 0u64.wrapping_sub(0x1000_0000);

/// Ranges of one BAR in a row, each of which a [`client`] reaches another way.
pub(crate) struct Bed<'a> {
    /// By a bus address that is [`UP`] from the physical one.
    pub(crate) up: Registration<'a>,
    /// By a bus address that is [`DOWN`] from the physical one.
    pub(crate) down: Registration<'a>,
    /// The client's own, on a bus that is [`UP`].
    pub(crate) own: Registration<'a>,
    /// Through the host bridge.
    pub(crate) bridge: Registration<'a>,
    /// The same.
    pub(crate) second_bridge: Registration<'a>,
    /// Not at all.
    pub(crate) refused: Registration<'a>,
}

pub(crate) const NO_ROUTE: Refused = Refused::Topology(Unsupported::NotPci);

/// How a client reaches the ranges of a [`Bed`], by their places in the BAR.
pub(crate) fn script(memory: &BarRange) -> Result<(Route, u32), Refused> {
    match memory.start() / PART {
        0 => Ok((Route::Bus { offset: UP }, 2)),
        1 => Ok((Route::Bus { offset: DOWN }, 4)),
        2 => Ok((Route::Internal { bar: 2, offset: UP }, 0)),
        3 => Ok((Route::HostBridge, 6)),
        4 => Ok((Route::HostBridge, 5)),
        _ => Err(NO_ROUTE),
    }
}

/// What reaches memory as a function says.
pub(crate) struct Script(pub(crate) fn(&BarRange) -> Result<(Route, u32), Refused>);

impl Topology for Script {
    fn device(&self) -> Option<&Device> {
        None
    }

    fn route(&self, memory: &BarRange) -> Result<(Route, u32), Refused> {
        (self.0)(memory)
    }
}

/// Has clients on `recorder` reach memory as `script` says.
pub(crate) fn follow(
    recorder: &Recorder,
    script: fn(&BarRange) -> Result<(Route, u32), Refused>,
) -> Result {
    *recorder.topology.borrow_mut() = Some(Arc::new(Script(script), GFP_KERNEL)?);
    Ok(())
}

/// A client that reaches the ranges of a [`Bed`].
pub(crate) fn client<'r>(
    recorder: &'r Recorder,
    limits: Limits,
) -> Result<Client<'r, &'r Recorder>> {
    follow(recorder, script)?;
    recorder.client(limits)
}

/// Calls `f` with a [`Bed`].
pub(crate) fn on_bed(f: impl FnOnce(Bed<'_>) -> Result) -> Result {
    with_memory(|dev| {
        let part = |number: u64| open(dev, number * PART, PART);
        f(Bed {
            up: part(0)?,
            down: part(1)?,
            own: part(2)?,
            bridge: part(3)?,
            second_bridge: part(4)?,
            refused: part(5)?,
        })
    })
}

/// `len` bytes at `offset` within a range.
pub(crate) fn at(range: &Registration<'_>, offset: u64, len: u32) -> Result<PhysBvec> {
    range.provider().bvec(offset, len)
}
