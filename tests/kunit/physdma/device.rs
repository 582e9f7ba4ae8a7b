// SPDX-License-Identifier: GPL-2.0

//! The same on a real PCI device behind an IOMMU, with nothing faked: the kernel's own IOVA
//! allocator and page tables.
//!
//! The device is QEMU's pci-testdev, which does no DMA. That data arrives is shown by the scenarios
//! with real disks. Without an IOMMU, or without the device, the suite fails.
//!
//! Checks return errors: see [`super::bound`].

use super::{
    bound::{
        check,
        with,
        Testdev, //
    },
    memory::{
        scattered,
        source, //
    }, //
};
use core::cell::Cell;
use kernel::{
    device::Bound,
    dma::{
        DataDirection,
        DataDirection::FromDevice,
        DmaAddress, //
    },
    io::PhysAddr,
    page::PAGE_SIZE,
    pci,
    physdma::{
        Backend,
        Client,
        Dma,
        Iova,
        IovaSpace,
        Limits,
        Linking,
        Mapping,
        Memory,
        Path,
        PhysBvec,
        Reach,
        Source,
        Virt, //
    },
    prelude::*,
    sizes::{
        SZ_256M,
        SZ_4M, //
    },
    sync::Arc, //
};

const LIMITS: Limits = Limits {
    max_segment_bytes: u32::MAX,
    boundary_mask: u64::MAX,
    max_segments: 64,
};

/// The device has a DMA mask of 32 bits; this is four times what it can address.
const FOUR_TIMES: u64 = 4 << 32;

/// What a test does with the device. Returns an error where a check fails.
trait DeviceTest {
    fn run(dev: &pci::Device<Bound>) -> Result;
}

/// Runs a test on the device.
fn run<T: DeviceTest>() -> Result {
    with::<Testdev>(T::run)
}

/// The real backend, but after some calls that work those that can fail do, when the kernel has
/// done its part.
#[derive(Clone, Copy)]
struct Faulty<'a, 'g> {
    dma: Dma<'a>,
    good: &'g Cell<usize>,
}

impl Faulty<'_, '_> {
    fn fault(self) -> Result {
        let left = self.good.get().checked_sub(1).ok_or(ENOSPC)?;
        self.good.set(left);
        Ok(())
    }
}

impl Backend for Faulty<'_, '_> {
    fn merge_boundary(self) -> u64 {
        self.dma.merge_boundary()
    }

    fn max_mapping_size(self) -> usize {
        self.dma.max_mapping_size()
    }

    fn try_alloc(self, phys: PhysAddr, size: usize) -> Option<Iova> {
        self.dma.try_alloc(phys, size)
    }

    unsafe fn link(
        self,
        iova: &mut Iova,
        phys: PhysAddr,
        offset: usize,
        len: usize,
        dir: DataDirection,
        memory: Memory,
    ) -> Result {
        self.fault()?;
        // SAFETY: By the safety requirements of this function.
        unsafe { self.dma.link(iova, phys, offset, len, dir, memory) }
    }

    unsafe fn sync(self, iova: &mut Iova, len: usize) -> Result {
        // SAFETY: By the safety requirements of this function.
        unsafe { self.dma.sync(iova, len) }?;
        self.fault()
    }

    unsafe fn destroy(self, iova: &mut Iova, linked: usize, dir: DataDirection, memory: Memory) {
        // SAFETY: By the safety requirements of this function.
        unsafe { self.dma.destroy(iova, linked, dir, memory) }
    }

    unsafe fn map_phys(
        self,
        phys: PhysAddr,
        len: usize,
        dir: DataDirection,
        memory: Memory,
    ) -> Result<DmaAddress> {
        self.fault()?;
        // SAFETY: By the safety requirements of this function.
        unsafe { self.dma.map_phys(phys, len, dir, memory) }
    }

    unsafe fn unmap_phys(self, dma: DmaAddress, len: usize, dir: DataDirection, memory: Memory) {
        // SAFETY: By the safety requirements of this function.
        unsafe { self.dma.unmap_phys(dma, len, dir, memory) }
    }

    fn need_unmap(self) -> bool {
        self.dma.need_unmap()
    }

    fn coherent(self) -> bool {
        self.dma.coherent()
    }
}

/// Memory that is one piece, of 4 MiB.
fn one_piece() -> Result<KVec<u8>> {
    Ok(KVec::from_elem(0, SZ_4M, GFP_KERNEL)?)
}

/// The memory of `buf`, which outlives all mappings of the test.
fn virt(buf: &[u8]) -> Result<Virt> {
    // SAFETY: Buffers are declared before mappings, so they are freed after them; nobody looks
    // into them.
    unsafe { Virt::new(buf) }
}

fn first_piece(mut source: impl Source) -> Result<PhysBvec> {
    source.next().ok_or(EINVAL)
}

struct ScatteredPages;

impl DeviceTest for ScatteredPages {
    fn run(dev: &pci::Device<Bound>) -> Result {
        let client = Client::new(dev.as_ref(), LIMITS)?;
        let pages = scattered(32)?;
        let mut slot = Mapping::default();

        let bytes = 32 * PAGE_SIZE;
        let mut segments = client.map(&mut slot, source(&pages, 0, bytes)?, FromDevice)?;
        check!(segments.path() == Path::Iova);
        let segment = segments.next()?.ok_or(EINVAL)?;
        check!(segment.len as usize == bytes);
        check!(segment.dma + (bytes as u64) <= 1 << 32);
        check!(segments.next()?.is_none());
        pr_info!("physdma: 32 scattered pages are one segment of {bytes} bytes\n");
        Ok(())
    }
}

struct SinglePiece;

impl DeviceTest for SinglePiece {
    fn run(dev: &pci::Device<Bound>) -> Result {
        let client = Client::new(dev.as_ref(), LIMITS)?;
        let buf = one_piece()?;
        let mut rounds = 0;

        for _ in 0..FOUR_TIMES / SZ_4M as u64 {
            let mut slot = Mapping::default();
            let mut segments = client.map(&mut slot, virt(&buf)?, FromDevice)?;
            check!(segments.path() == Path::Single);
            check!(segments
                .next()?
                .is_some_and(|segment| segment.len as usize == SZ_4M));
            rounds += 1;
        }
        pr_info!("physdma: mapped 4 MiB {rounds} times in turn, one piece\n");
        Ok(())
    }
}

struct ManyPieces;

impl DeviceTest for ManyPieces {
    fn run(dev: &pci::Device<Bound>) -> Result {
        let client = Client::new(dev.as_ref(), LIMITS)?;
        let bufs = [one_piece()?, one_piece()?];
        let pieces = [first_piece(virt(&bufs[0])?)?, first_piece(virt(&bufs[1])?)?];
        let mut iovas = 0;

        for _ in 0..FOUR_TIMES / (2 * SZ_4M as u64) {
            let dma = Dma::new(dev.as_ref());
            let mut space =
                IovaSpace::try_alloc(dma, pieces[0].phys(), 2 * SZ_4M, FromDevice).ok_or(ENOSPC)?;
            // SAFETY: The buffers are freed after `space` is dropped.
            unsafe {
                space.link(pieces[0], Memory::Ram)?;
                space.link(pieces[1], Memory::Ram)?;
            }
            let space = space.sync()?;
            check!(space.len() == 2 * SZ_4M);
            iovas += 1;
        }
        pr_info!("physdma: IOVA ranges of 8 MiB allocated in turn: {iovas}\n");
        check!(iovas > 0);

        // The way of a request, with pages.
        let pages = scattered(16)?;
        let mut slot = Mapping::default();
        for _ in 0..64 {
            let segments = client.map(&mut slot, source(&pages, 0, 16 * PAGE_SIZE)?, FromDevice)?;
            check!(segments.path() == Path::Iova);
        }
        Ok(())
    }
}

struct DropInEachState;

impl DeviceTest for DropInEachState {
    fn run(dev: &pci::Device<Bound>) -> Result {
        let pages = scattered(2)?;
        let pieces = super::memory::pieces(source(&pages, 0, 2 * PAGE_SIZE)?)?;

        // Much more is allocated than is linked, so that what is lost runs out soon.
        let alloc = || -> Result<IovaSpace<Dma<'_>, Linking>> {
            let dma = Dma::new(dev.as_ref());
            IovaSpace::try_alloc(dma, pieces[0].phys(), SZ_256M, FromDevice).ok_or(ENOSPC)
        };
        for _ in 0..FOUR_TIMES / SZ_256M as u64 {
            for links in 0..=2 {
                for sync in [false, true] {
                    let mut space = alloc()?;
                    for piece in &pieces[..links] {
                        // SAFETY: The pages are freed after `space` is dropped.
                        unsafe { space.link(*piece, Memory::Ram) }?;
                    }
                    if sync {
                        check!(space.sync().is_ok() == (links > 0));
                    }
                }
            }
        }
        Ok(())
    }
}

struct FailEachStep;

impl DeviceTest for FailEachStep {
    fn run(dev: &pci::Device<Bound>) -> Result {
        let good = Cell::new(usize::MAX);
        let backend = Faulty {
            dma: Dma::new(dev.as_ref()),
            good: &good,
        };
        let pages = scattered(3)?;
        let pieces = super::memory::pieces(source(&pages, 0, 3 * PAGE_SIZE)?)?;

        // Each link, and the sync.
        for _ in 0..FOUR_TIMES / SZ_256M as u64 {
            for calls in 0..4 {
                good.set(calls);
                let link = || -> Result {
                    let mut space =
                        IovaSpace::try_alloc(backend, pieces[0].phys(), SZ_256M, FromDevice)
                            .ok_or(ENODEV)?;
                    for piece in &pieces {
                        // SAFETY: The pages are freed after `space` is dropped.
                        unsafe { space.link(*piece, Memory::Ram) }?;
                    }
                    space.sync().map(drop)
                };
                check!(link() == Err(ENOSPC));
            }
        }

        // A request with each of its calls failing, and one that works.
        // SAFETY: The client goes before the driver is unbound.
        let reach = Arc::new(unsafe { Reach::new(dev.as_ref()) }, GFP_KERNEL)?;
        // SAFETY: It asks the kernel.
        let client = unsafe { Client::with_backend(backend, reach, LIMITS) }?;
        let mut slot = Mapping::default();
        for calls in 0..4 {
            good.set(calls);
            let result = client.map(&mut slot, source(&pages, 0, 3 * PAGE_SIZE)?, FromDevice);
            check!(result.err() == Some(ENOSPC));
        }
        good.set(4);
        client.map(&mut slot, source(&pages, 0, 3 * PAGE_SIZE)?, FromDevice)?;
        Ok(())
    }
}

struct SpaceUsedUp;

impl DeviceTest for SpaceUsedUp {
    fn run(dev: &pci::Device<Bound>) -> Result {
        let client = Client::new(dev.as_ref(), LIMITS)?;
        let pages = scattered(2)?;
        let piece = first_piece(source(&pages, 0, PAGE_SIZE)?)?;
        let mut slot = Mapping::default();

        // Take all there is: in large ranges first, then in ever smaller ones.
        let mut taken = KVec::new();
        let mut size = SZ_256M;
        while size >= PAGE_SIZE {
            let dma = Dma::new(dev.as_ref());
            match IovaSpace::try_alloc(dma, piece.phys(), size, FromDevice) {
                Some(space) => taken.push(space, GFP_KERNEL)?,
                None => size /= 2,
            }
        }
        check!(taken.len() >= 8);

        let result = client.map(&mut slot, source(&pages, 0, 2 * PAGE_SIZE)?, FromDevice);
        // No range, so piece by piece, for which there is no room either.
        let error = match result {
            Ok(mut segments) => segments.next().err(),
            Err(e) => Some(e),
        };
        check!(error == Some(ENOMEM));

        taken.clear();
        let segments = client.map(&mut slot, source(&pages, 0, 2 * PAGE_SIZE)?, FromDevice)?;
        check!(segments.path() == Path::Iova);
        Ok(())
    }
}

struct OwnedByDevice;

impl DeviceTest for OwnedByDevice {
    fn run(dev: &pci::Device<Bound>) -> Result {
        let client = Client::new(dev.as_ref(), LIMITS)?.into_devres()?;
        let pages = scattered(2)?;
        let mut slot = Mapping::default();
        let mut segments = client.map(&mut slot, source(&pages, 0, 2 * PAGE_SIZE)?, FromDevice)?;
        check!(segments.next()?.is_some());
        Ok(())
    }
}

#[kunit_tests(physdma_device)]
mod tests {
    use super::*;

    #[test]
    fn scattered_pages_are_one_segment() -> Result {
        run::<ScatteredPages>()
    }

    #[test]
    fn four_times_the_space_in_single_pieces() -> Result {
        run::<SinglePiece>()
    }

    #[test]
    fn four_times_the_space_in_ranges() -> Result {
        run::<ManyPieces>()
    }

    #[test]
    fn dropped_in_each_state() -> Result {
        run::<DropInEachState>()
    }

    #[test]
    fn each_step_fails() -> Result {
        run::<FailEachStep>()
    }

    #[test]
    fn space_is_used_up_and_comes_back() -> Result {
        run::<SpaceUsedUp>()
    }

    #[test]
    fn client_is_dropped_with_the_driver() -> Result {
        run::<OwnedByDevice>()
    }
}
