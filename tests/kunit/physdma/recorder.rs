// SPDX-License-Identifier: GPL-2.0

//! A backend that records what the layer calls, fails where it is told to, and knows at any time
//! what has not been undone.

use core::cell::{
    Cell,
    RefCell, //
};
use kernel::{
    device::Device,
    dma::{
        DataDirection,
        DataDirection::FromDevice,
        DmaAddress, //
    },
    io::PhysAddr,
    physdma::{
        Backend,
        BarRange,
        Client,
        Holder,
        Iova,
        Limits,
        Mapping,
        Memory,
        Path,
        PhysVec,
        Refused,
        Route,
        Segment,
        Source,
        Topology, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            AtomicFlag,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    time::{
        delay::{
            fsleep,
            udelay, //
        },
        Delta, //
    }, //
};

/// What was called, in the words of the DMA API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    TryAlloc {
        phys: PhysAddr,
        size: usize,
    },
    Link {
        phys: PhysAddr,
        offset: usize,
        len: usize,
    },
    Sync {
        len: usize,
    },
    Destroy {
        linked: usize,
    },
    MapPhys {
        phys: PhysAddr,
        len: usize,
    },
    UnmapPhys {
        dma: DmaAddress,
        len: usize,
    },
}

/// The errno with which the recorder fails a call, unless told otherwise.
pub(crate) const FAULT: Error = ENOSPC;

/// A device that can take about anything.
pub(crate) const LIMITS: Limits = Limits {
    max_segment_bytes: u32::MAX,
    boundary_mask: u64::MAX,
    max_segments: 64,
};

/// Where IOVA space starts, and how far single mappings are moved.
pub(crate) const BASE: DmaAddress = 0x1_0000_0000;

/// Maps `source` and returns all segments, and the way it took.
pub(crate) fn map<'c, 'r>(
    client: &'c Client<'c, &'r Recorder>,
    slot: &mut Mapping<'c, &'r Recorder>,
    source: impl Source,
) -> Result<(KVec<Segment>, Path)> {
    let mut list = KVec::new();
    let mut segments = client.map(slot, source, FromDevice)?;
    while let Some(segment) = segments.next()? {
        list.push(segment, GFP_KERNEL)?;
    }
    Ok((list, segments.path()))
}

/// Lets a revocation begin when the first memory is mapped, and looks when it ends.
///
/// It is the holder that is told of the revocation.
pub(crate) struct Gate {
    /// Memory is being mapped.
    pub(crate) mapping: AtomicFlag,
    /// The revocation has begun.
    pub(crate) told: AtomicFlag,
    /// The revocation has ended.
    pub(crate) ended: AtomicFlag,
}

impl Gate {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                mapping: AtomicFlag::new(false),
                told: AtomicFlag::new(false),
                ended: AtomicFlag::new(false),
            },
            GFP_KERNEL,
        )?)
    }

    /// Waits until the revocation has begun. RCU may be read-locked.
    fn begin(&self) {
        self.mapping.store(true, Relaxed);
        for _ in 0..100_000 {
            if self.told.load(Relaxed) {
                return;
            }
            udelay(Delta::from_micros(20));
        }
        pr_err!("nobody revokes\n");
    }

    /// Whether the revocation has not ended, though it had time to.
    fn waits(&self) -> bool {
        fsleep(Delta::from_millis(30));
        self.told.load(Relaxed) && !self.ended.load(Relaxed)
    }
}

impl Holder for Gate {
    fn name(&self) -> &CStr {
        c"gate"
    }

    fn revoke(&self) {
        self.told.store(true, Relaxed);
    }
}

pub(crate) struct Recorder {
    calls: RefCell<KVec<Call>>,
    /// What is mapped by itself at the moment.
    mapped: RefCell<KVec<(DmaAddress, usize, DataDirection, Memory)>>,
    /// How much of the IOVA range is linked, if there is one.
    linked: Cell<Option<usize>>,
    /// In which direction.
    dir: Cell<Option<DataDirection>>,
    /// Whether some of what is linked is RAM.
    ram: Cell<bool>,
    /// What each call that maps was told of the memory.
    memories: RefCell<KVec<Memory>>,
    /// Something was undone that had not been done.
    broken: Cell<bool>,
    /// How many calls that can fail will work.
    good: Cell<usize>,
    /// With which errno those fail that do not.
    pub(crate) fault: Cell<Error>,
    /// How much was undone.
    undone: Atomic<usize>,
    pub(crate) granule: Cell<u64>,
    pub(crate) has_iova: Cell<bool>,
    pub(crate) max_bytes: Cell<usize>,
    pub(crate) coherent: Cell<bool>,
    /// How it reaches the memory of others.
    pub(crate) topology: RefCell<Option<Arc<dyn Topology>>>,
    /// What happens while memory is mapped, and what may not happen before it is not.
    pub(crate) gate: RefCell<Option<Arc<Gate>>>,
    /// From which mapping on the answer to "need unmap?" is yes.
    pub(crate) need_unmap_from: Cell<usize>,
    /// How many pieces each batch had that was linked at once.
    batches: RefCell<KVec<usize>>,
}

// SAFETY: What is undone later than a test asks for is undone by one other thread, and the test
// looks at the recorder when it has waited for that.
unsafe impl Sync for Recorder {}

impl Recorder {
    /// A device behind an IOMMU with 4 KiB pages.
    pub(crate) fn new() -> Self {
        Self {
            calls: RefCell::new(KVec::new()),
            mapped: RefCell::new(KVec::new()),
            linked: Cell::new(None),
            dir: Cell::new(None),
            ram: Cell::new(false),
            memories: RefCell::new(KVec::new()),
            broken: Cell::new(false),
            good: Cell::new(usize::MAX),
            fault: Cell::new(FAULT),
            undone: Atomic::new(0),
            granule: Cell::new(0xfff),
            has_iova: Cell::new(true),
            max_bytes: Cell::new(usize::MAX),
            coherent: Cell::new(true),
            topology: RefCell::new(None),
            gate: RefCell::new(None),
            need_unmap_from: Cell::new(0),
            batches: RefCell::new(KVec::new()),
        }
    }

    /// A client of it, which reaches what `topology` says.
    pub(crate) fn client(&self, limits: Limits) -> Result<Client<'_, &Self>> {
        let topology = match &*self.topology.borrow() {
            Some(topology) => topology.clone(),
            None => Arc::new(Nowhere, GFP_KERNEL)?,
        };
        // SAFETY: No device is told of anything.
        unsafe { Client::with_backend(self, topology, limits) }
    }

    /// A device without an IOMMU, where nothing bounces.
    pub(crate) fn direct() -> Self {
        let this = Self::new();
        this.granule.set(0);
        this.has_iova.set(false);
        this.need_unmap_from.set(usize::MAX);
        this
    }

    /// Makes room for `calls` calls, so that none of them needs memory.
    #[cfg(CONFIG_FAILSLAB)]
    pub(crate) fn reserve(&self, calls: usize) -> Result {
        self.calls.borrow_mut().reserve(calls, GFP_KERNEL)?;
        self.mapped.borrow_mut().reserve(calls, GFP_KERNEL)?;
        self.memories.borrow_mut().reserve(calls, GFP_KERNEL)?;
        Ok(())
    }

    /// Lets `good` calls that can fail work, and fails all others.
    pub(crate) fn fail_after(&self, good: usize) {
        self.good.set(good);
    }

    /// Whether everything was undone, and nothing else.
    pub(crate) fn clean(&self) -> bool {
        !self.broken.get() && self.linked.get().is_none() && self.mapped.borrow().is_empty()
    }

    /// Waits until this often something was undone, not long. May sleep.
    pub(crate) fn undone(&self, times: usize) -> bool {
        for _ in 0..10_000 {
            if self.undone.load(Acquire) == times {
                return true;
            }
            fsleep(Delta::from_micros(200));
        }
        pr_err!("undone {} times\n", self.undone.load(Acquire));
        false
    }

    /// How often something was undone.
    pub(crate) fn undone_now(&self) -> usize {
        self.undone.load(Acquire)
    }

    /// Whether these were the calls, in this order.
    pub(crate) fn called(&self, calls: &[Call]) -> bool {
        let same = self.calls.borrow()[..] == *calls;
        if !same {
            pr_err!("called {:?}, wanted {:?}\n", self.calls.borrow(), calls);
        }
        same
    }

    /// How many calls were made.
    pub(crate) fn count(&self, which: impl Fn(&Call) -> bool) -> usize {
        self.calls
            .borrow()
            .iter()
            .filter(|call| which(call))
            .count()
    }

    fn note(&self, call: Call) {
        if self.calls.borrow_mut().push(call, GFP_KERNEL).is_err() {
            self.broken.set(true);
        }
    }

    /// What the calls that map were told of the memory, in order.
    pub(crate) fn memories(&self) -> core::cell::Ref<'_, KVec<Memory>> {
        self.memories.borrow()
    }

    /// How many pieces were linked at once, each time.
    pub(crate) fn batches(&self) -> core::cell::Ref<'_, KVec<usize>> {
        self.batches.borrow()
    }

    fn kinds(&self, memory: Memory) -> Result {
        self.memories.borrow_mut().push(memory, GFP_KERNEL)?;
        Ok(())
    }

    fn begin(&self) {
        if let Some(gate) = &*self.gate.borrow() {
            gate.begin();
        }
    }

    /// Memory that is mapped must not be revoked.
    fn ends(&self) {
        let revoked = self.gate.borrow().as_ref().is_some_and(|g| !g.waits());
        if revoked {
            pr_err!("memory was revoked that is mapped\n");
            self.broken.set(true);
        }
    }

    fn fault(&self) -> Result {
        let left = self.good.get().checked_sub(1).ok_or(self.fault.get())?;
        self.good.set(left);
        Ok(())
    }
}

impl Backend for &Recorder {
    fn merge_boundary(self) -> u64 {
        self.granule.get()
    }

    fn max_mapping_size(self) -> usize {
        self.max_bytes.get()
    }

    fn try_alloc(self, phys: PhysAddr, size: usize) -> Option<Iova> {
        self.note(Call::TryAlloc { phys, size });
        if !self.has_iova.get() {
            return None;
        }
        if self.linked.replace(Some(0)).is_some() {
            self.broken.set(true);
        }
        Some(Iova::new(BASE + (phys & self.granule.get()), size))
    }

    unsafe fn link(
        self,
        _iova: &mut Iova,
        phys: PhysAddr,
        offset: usize,
        len: usize,
        dir: DataDirection,
        memory: Memory,
    ) -> Result {
        self.note(Call::Link { phys, offset, len });
        self.begin();
        self.kinds(memory)?;
        self.fault()?;
        if self.linked.get() != Some(offset)
            || self.dir.replace(Some(dir)).is_some_and(|prev| prev != dir)
        {
            self.broken.set(true);
        }
        self.linked.set(Some(offset + len));
        self.ram.set(self.ram.get() || memory != Memory::Mmio);
        Ok(())
    }

    unsafe fn link_vec(
        self,
        iova: &mut Iova,
        pieces: &[PhysVec],
        linked: &mut usize,
        dir: DataDirection,
        memory: Memory,
    ) -> Result {
        self.batches.borrow_mut().push(pieces.len(), GFP_KERNEL)?;
        for piece in pieces {
            // SAFETY: Nothing is done with memory.
            unsafe { self.link(iova, piece.phys(), *linked, piece.len(), dir, memory) }?;
            *linked += piece.len();
        }
        Ok(())
    }

    unsafe fn sync(self, _iova: &mut Iova, len: usize) -> Result {
        self.note(Call::Sync { len });
        if self.linked.get() != Some(len) {
            self.broken.set(true);
        }
        self.fault()
    }

    unsafe fn destroy(self, _iova: &mut Iova, linked: usize, dir: DataDirection, memory: Memory) {
        self.note(Call::Destroy { linked });
        self.ends();
        // What was linked last may be the other kind where the device is coherent.
        let ram = self.ram.take();
        if linked > 0 && (memory != Memory::Mmio) != ram {
            self.broken.set(true);
        }
        if self.linked.take() != Some(linked) || self.dir.take().is_some_and(|prev| prev != dir) {
            self.broken.set(true);
        }
        self.undone.fetch_add(1, Release);
    }

    unsafe fn map_phys(
        self,
        phys: PhysAddr,
        len: usize,
        dir: DataDirection,
        memory: Memory,
    ) -> Result<DmaAddress> {
        self.note(Call::MapPhys { phys, len });
        self.begin();
        self.kinds(memory)?;
        self.fault()?;
        let dma = BASE + phys;
        self.mapped
            .borrow_mut()
            .push((dma, len, dir, memory), GFP_KERNEL)?;
        Ok(dma)
    }

    unsafe fn unmap_phys(self, dma: DmaAddress, len: usize, dir: DataDirection, memory: Memory) {
        self.note(Call::UnmapPhys { dma, len });
        self.ends();
        let mut mapped = self.mapped.borrow_mut();
        match mapped
            .iter()
            .position(|&piece| piece == (dma, len, dir, memory))
        {
            Some(i) => drop(mapped.remove(i)),
            None => self.broken.set(true),
        }
        drop(mapped);
        self.undone.fetch_add(1, Release);
    }

    fn need_unmap(self) -> bool {
        let mapped = self.count(|call| matches!(call, Call::MapPhys { .. }));
        mapped > self.need_unmap_from.get()
    }

    fn coherent(self) -> bool {
        self.coherent.get()
    }
}

/// A device that reaches no other.
struct Nowhere;

impl Topology for Nowhere {
    fn device(&self) -> Option<&Device> {
        None
    }

    fn route(&self, _memory: &BarRange) -> Result<(Route, u32), Refused> {
        Err(Refused::Bounce)
    }
}
