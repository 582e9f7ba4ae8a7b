// SPDX-License-Identifier: GPL-2.0

//! Whose memory an address is, on a real BAR: registration and look-up, each errno and both ends;
//! and what a provider has to give: pieces, allocations, windows, and word of its end.

use super::{
    bound::{
        check,
        check_eq,
        client,
        follow,
        open,
        with,
        with_memory,
        Testdev,
        PART, //
    },
    recorder::{
        map,
        Recorder,
        LIMITS, //
    }, //
};
use kernel::{
    bindings,
    device::Bound,
    error::from_err_ptr,
    io::resource::Flags,
    page::PAGE_SIZE,
    pci,
    physdma::{
        copy_from,
        copy_to,
        nearest_provider,
        provider_of,
        providers,
        Client,
        Holder,
        Mapping,
        Mixed,
        Part,
        PhysBvec,
        Provider,
        Raw,
        Refused,
        Registration,
        Route, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::{
        Instant,
        Monotonic, //
    }, //
};

const BAR: u32 = 2;

fn piece(phys: u64, len: u32) -> Result<PhysBvec> {
    PhysBvec::new(phys, len).ok_or(EINVAL)
}

/// Whether all of `piece` belongs to `range`.
fn is_of(piece: PhysBvec, range: &Registration<'_>) -> Result<bool> {
    let first = range.provider().range().first();
    Ok(provider_of(piece)?.is_some_and(|found| found.range().first() == first))
}

fn whole_bar(dev: &pci::Device<Bound>) -> Result {
    let (start, len) = (dev.resource_start(BAR)?, dev.resource_len(BAR)?);
    let all = open(dev, 0, len)?;
    let provider = all.provider();

    let range = provider.range();
    check_eq!(range.first(), start);
    check_eq!(range.last(), start + len - 1);
    check_eq!(u32::from(range.bar()), BAR);
    check_eq!(range.start(), 0);
    check_eq!(range.device().address(), dev.address());
    check!(!provider.is_revoked());

    // Both ends, and beyond them.
    check!(is_of(piece(start, 1)?, &all)?);
    check!(is_of(piece(start + len - 1, 1)?, &all)?);
    // CAST: 16 MiB.
    check!(is_of(piece(start, len as u32)?, &all)?);
    check!(provider_of(piece(start - 1, 1)?)?.is_none());
    check!(provider_of(piece(start + len, 1)?)?.is_none());

    // Across them.
    check_eq!(provider_of(piece(start - 1, 2)?).err(), Some(EFAULT));
    check_eq!(provider_of(piece(start + len - 1, 2)?).err(), Some(EFAULT));
    let around = piece(start - 1, len as u32 + 2)?;
    check_eq!(provider_of(around).err(), Some(EFAULT));

    // When it has gone nobody knows it, and it can come back.
    drop(all);
    check!(provider.is_revoked());
    check!(provider_of(piece(start, 1)?)?.is_none());
    check!(provider_of(around)?.is_none());
    let again = open(dev, 0, len)?;
    check!(is_of(piece(start, 1)?, &again)?);
    check!(provider.is_revoked() && !again.provider().is_revoked());
    Ok(())
}

fn parts(dev: &pci::Device<Bound>) -> Result {
    let start = dev.resource_start(BAR)?;
    // Neighbours, and a gap behind them; not in order, and not of whole pages.
    let third = open(dev, 3 * PART, 0x123)?;
    let first = open(dev, PART, PART)?;
    let second = open(dev, 2 * PART, PART - 1)?;

    let border = start + 2 * PART;
    check!(is_of(piece(border - 1, 1)?, &first)?);
    check!(is_of(piece(border, 1)?, &second)?);
    check_eq!(provider_of(piece(border - 1, 2)?).err(), Some(EFAULT));
    check!(provider_of(piece(start + 3 * PART - 1, 1)?)?.is_none());
    check_eq!(
        provider_of(piece(start + 3 * PART - 1, 2)?).err(),
        Some(EFAULT)
    );
    check!(is_of(piece(start + 3 * PART + 0x122, 1)?, &third)?);
    check!(provider_of(piece(start + 3 * PART + 0x123, 1)?)?.is_none());
    check!(provider_of(piece(start + PART - 1, 1)?)?.is_none());
    check_eq!(second.provider().range().start(), 2 * PART);

    // The span of all shrinks and the others stay.
    drop(first);
    check!(provider_of(piece(border - 1, 1)?)?.is_none());
    check!(is_of(piece(border, 1)?, &second)?);
    check!(is_of(piece(start + 3 * PART, 1)?, &third)?);
    drop(third);
    check!(provider_of(piece(start + 3 * PART, 1)?)?.is_none());
    check!(is_of(piece(border, 1)?, &second)?);
    Ok(())
}

fn not_a_range(dev: &pci::Device<Bound>) -> Result {
    let len = dev.resource_len(BAR)?;
    for (bar, start, len) in [
        // Not there at all, or not on this device.
        (1, 0, 1),
        (5, 0, 1),
        (6, 0, 1),
        (100, 0, 1),
        (u32::MAX, 0, 1),
        // Empty.
        (BAR, 0, 0),
        (BAR, len, 0),
        // Beyond the end.
        (BAR, 0, len + 1),
        (BAR, len, 1),
        (BAR, len - 1, 2),
        (BAR, 0, u64::MAX),
        // Wraps.
        (BAR, u64::MAX, 1),
        (BAR, u64::MAX, 2),
        (BAR, PART, u64::MAX),
        (BAR, 1, u64::MAX),
    ] {
        let result = Registration::new(dev, bar, start, len);
        check_eq!(result.err(), Some(EINVAL));
    }
    Ok(())
}

fn not_memory(dev: &pci::Device<Bound>) -> Result {
    for bar in 0..6 {
        let len = dev.resource_len(bar)?;
        if len == 0 {
            continue;
        }
        let is_memory = dev.resource(bar)?.flags().contains(Flags::IORESOURCE_MEM);
        let result = Registration::new(dev, bar, 0, len);
        check_eq!(result.err(), (!is_memory).then_some(EINVAL));
    }
    // It has one of each kind.
    check!(dev.resource(0)?.flags().contains(Flags::IORESOURCE_MEM));
    check!(!dev.resource(1)?.flags().contains(Flags::IORESOURCE_MEM));
    Ok(())
}

fn overlaps(dev: &pci::Device<Bound>) -> Result {
    let taken = open(dev, PART, PART)?;
    for (start, len) in [
        (PART, PART),
        (PART, 1),
        (2 * PART - 1, 1),
        (PART - 1, 2),
        (2 * PART - 1, 2),
        (PART + 0x100, 0x100),
        (0, 3 * PART),
        (0, dev.resource_len(BAR)?),
    ] {
        check_eq!(open(dev, start, len).err(), Some(EBUSY));
    }
    // What was refused left nothing behind.
    let start = dev.resource_start(BAR)?;
    check!(provider_of(piece(start + PART - 1, 1)?)?.is_none());
    check!(provider_of(piece(start + 2 * PART, 1)?)?.is_none());
    let _before = open(dev, 0, PART)?;
    let _behind = open(dev, 2 * PART, PART)?;
    check!(is_of(piece(start + PART, PART as u32)?, &taken)?);
    Ok(())
}

fn pieces_of_a_provider(dev: &pci::Device<Bound>) -> Result {
    let start = dev.resource_start(BAR)? + PART;
    let range = open(dev, PART, PART)?;
    let provider = range.provider();
    // CAST: 1 MiB.
    let len = PART as u32;
    check_eq!(provider.bvec(0, len), piece(start, len));
    check_eq!(provider.bvec(PART - 1, 1), piece(start + PART - 1, 1));
    for (offset, len) in [
        (0, 0),
        (PART, 0),
        (0, len + 1),
        (1, len),
        (PART, 1),
        (u64::MAX, 1),
        (u64::MAX - start, 2),
        (0, u32::MAX),
    ] {
        check_eq!(provider.bvec(offset, len), Err(EINVAL));
    }
    // The object is there still when the memory is not.
    drop(range);
    check_eq!(provider.bvec(0, 1), piece(start, 1));
    Ok(())
}

fn allocations(dev: &pci::Device<Bound>) -> Result {
    let start = dev.resource_start(BAR)?;
    let page = PAGE_SIZE as u64;
    // Not all of the last page.
    let range = open(dev, 0, 8 * page + 0x800)?;
    let provider = range.provider();

    check_eq!(provider.alloc(0).err(), Some(EINVAL));
    check_eq!(
        provider.alloc(8 * PAGE_SIZE as u32 + 0x801).err(),
        Some(EINVAL)
    );
    check_eq!(
        provider.alloc(8 * PAGE_SIZE as u32 + 0x800).err(),
        Some(ENOMEM)
    );

    // All of it in one, and after that again: it comes back.
    for _ in 0..2 {
        let all = provider.alloc(8 * PAGE_SIZE as u32)?;
        check_eq!(all.bvec(), piece(start, 8 * PAGE_SIZE as u32)?);
        check_eq!(provider.alloc(1).err(), Some(ENOMEM));
    }
    // Single bytes take a page each, and none twice.
    for _ in 0..2 {
        let mut list = KVec::new();
        for _ in 0..8 {
            let one = provider.alloc(1)?;
            check_eq!(one.bvec().len(), 1);
            check_eq!(one.bvec().phys() % page, start % page);
            check!(!list
                .iter()
                .any(|other: &kernel::physdma::Allocation| other.bvec() == one.bvec()));
            list.push(one, GFP_KERNEL)?;
        }
        check_eq!(provider.alloc(1).err(), Some(ENOMEM));
        // A hole of one page is filled with that, and nothing else.
        let hole = list.remove(3).map_err(|_| EINVAL)?.bvec();
        check_eq!(provider.alloc(PAGE_SIZE as u32 + 1).err(), Some(ENOMEM));
        check_eq!(provider.alloc(PAGE_SIZE as u32)?.bvec().phys(), hole.phys());
    }

    // Who has some of it has it after the end, but gets no more.
    let kept = provider.alloc(1)?;
    drop(range);
    check_eq!(provider.alloc(1).err(), Some(ENODEV));
    check!(kept.provider().is_revoked());
    drop(kept);

    // Nobody asks: there is nothing to make an allocator for.
    let small = open(dev, 0, page - 1)?;
    check_eq!(small.provider().alloc(1).err(), Some(EINVAL));
    Ok(())
}

/// Pages are those of physical memory, wherever the range starts and ends.
fn allocations_of_an_unaligned_range(dev: &pci::Device<Bound>) -> Result {
    let page = PAGE_SIZE as u64;
    let first = dev.resource_start(BAR)? + page;
    let range = open(dev, 0x800, 4 * page)?;
    let provider = range.provider();
    // CAST: Some pages.
    check_eq!(provider.alloc(4 * page as u32).err(), Some(ENOMEM));
    for _ in 0..2 {
        let all = provider.alloc(3 * page as u32)?;
        check_eq!(all.bvec(), piece(first, 3 * page as u32)?);
        check_eq!(provider.alloc(1).err(), Some(ENOMEM));
    }
    let one = provider.alloc(1)?;
    let two = provider.alloc(1)?;
    check_eq!(one.bvec(), piece(first, 1)?);
    check_eq!(two.bvec(), piece(first + page, 1)?);
    drop(one);
    check_eq!(provider.alloc(page as u32)?.bvec().phys(), first);

    // A page, but no whole one; and just one.
    let none = open(dev, PART + 0x800, page + 0x7ff)?;
    check_eq!(none.provider().alloc(1).err(), Some(EINVAL));
    let none = open(dev, 2 * PART + 1, page - 1)?;
    check_eq!(none.provider().alloc(1).err(), Some(EINVAL));
    let just = open(dev, 3 * PART + 0x800, page + 0x800)?;
    check_eq!(just.provider().alloc(1)?.bvec().phys(), first + 3 * PART);
    Ok(())
}

/// Memory that a C driver made pages for is that driver's to hand out.
fn no_allocations_of_pages(dev: &pci::Device<Bound>) -> Result {
    let raw = core::ptr::from_ref(dev).cast_mut().cast();
    // SAFETY: The device is bound until it is unregistered.
    let registered = unsafe { bindings::physdma_register_pages(raw, 2, 0, PART) };
    from_err_ptr(registered)?;
    let result = (|| {
        let found = provider_of(piece(dev.resource_start(BAR)?, 1)?)?.ok_or(ENXIO)?;
        check!(found.has_pages());
        check_eq!(found.alloc(1).err(), Some(EOPNOTSUPP));
        // Nor does an address say that it was handed out.
        check_eq!(found.window(0, 1).err(), Some(EOPNOTSUPP));
        let list = [found.bvec(0, 16)?];
        let mut buf = [0; 16];
        check_eq!(copy_from(Raw::new(&list)?, 0, &mut buf), Err(EFAULT));
        check_eq!(copy_to(Raw::new(&list)?, 0, &buf), Err(EFAULT));
        let recorder = Recorder::new();
        let client = client(&recorder, LIMITS)?;
        let error = map(&client, &mut Mapping::default(), Raw::new(&list)?).err();
        check_eq!(error, Some(EFAULT));
        // Who vouches for it has the pages.
        let parts = [Part::Ram(&list)];
        // SAFETY: Nothing is done to it.
        let source = unsafe { Mixed::new(&parts) }?;
        check!(map(&client, &mut Mapping::default(), source).is_ok());
        // But not for what stands beside it.
        let parts = [Part::Ram(&list), Part::Provider(&list)];
        // SAFETY: As above.
        let source = unsafe { Mixed::new(&parts) }?;
        let error = map(&client, &mut Mapping::default(), source).err();
        check_eq!(error, Some(EFAULT));
        Ok(())
    })();
    // SAFETY: It was registered, and is not used any more.
    unsafe { bindings::physdma_unregister(registered) };
    result?;
    check!(!open(dev, 0, PART)?.provider().has_pages());
    Ok(())
}

fn windows(dev: &pci::Device<Bound>) -> Result {
    let range = open(dev, 2 * PART, PART)?;
    let provider = range.provider();
    let mut buf = [0u8; 8];

    for (offset, len) in [(0, 0), (PART, 1), (1, PART as u32), (u64::MAX, 1)] {
        check_eq!(provider.window(offset, len).err(), Some(EINVAL));
    }
    {
        // Across a page's end, and not from the start of one.
        let window = provider.window(0xffd, 8)?;
        check_eq!(window.len(), 8);
        window.write(0, b"physdma!")?;
        window.read(0, &mut buf)?;
        check_eq!(&buf, b"physdma!");
        window.fill(1, 2, b'-')?;
        window.write(7, b"?")?;
        window.write(8, b"")?;
        window.read(8, &mut [])?;

        // Another mapping sees the same memory.
        let other = provider.window(0, 0x2000)?;
        other.read(0xffd, &mut buf)?;
        check_eq!(&buf, b"p--sdma?");

        // Nothing beyond the end, and nothing of it is written.
        check_eq!(window.write(1, &[0; 8]), Err(EINVAL));
        check_eq!(window.write(9, b""), Err(EINVAL));
        check_eq!(window.write(usize::MAX, &[0; 2]), Err(EINVAL));
        check_eq!(window.read(7, &mut [0; 2]), Err(EINVAL));
        check_eq!(window.read(usize::MAX, &mut [0; 2]), Err(EINVAL));
        check_eq!(window.fill(0, 9, 0), Err(EINVAL));
        check_eq!(window.fill(1, usize::MAX, 0), Err(EINVAL));
        other.read(0xffd, &mut buf)?;
        check_eq!(&buf, b"p--sdma?");
    }
    // The memory is the device's: a new registration of it finds what was written.
    drop(range);
    check_eq!(provider.window(0, 1).err(), Some(ENODEV));
    let again = open(dev, 2 * PART + 0xffd, 8)?;
    again.provider().window(0, 8)?.read(0, &mut buf)?;
    check_eq!(&buf, b"p--sdma?");
    Ok(())
}

/// Counts how often it is told, and looks at the provider then.
struct Told {
    times: Atomic<i32>,
    revoked: Atomic<i32>,
    provider: Provider,
}

impl Told {
    fn new(provider: &Provider) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                times: Atomic::new(0),
                revoked: Atomic::new(0),
                provider: provider.clone(),
            },
            GFP_KERNEL,
        )?)
    }

    fn times(&self) -> i32 {
        self.times.load(Relaxed)
    }
}

impl Holder for Told {
    fn name(&self) -> &CStr {
        c"told"
    }

    fn revoke(&self) {
        self.times.add(1, Relaxed);
        // No lock is held that these need.
        if self.provider.is_revoked() && self.provider.alloc(1).err() == Some(ENODEV) {
            self.revoked.add(1, Relaxed);
        }
    }
}

fn holders(dev: &pci::Device<Bound>) -> Result {
    let range = open(dev, 0, PART)?;
    let provider = range.provider();
    let (one, two, gone) = (
        Told::new(&provider)?,
        Told::new(&provider)?,
        Told::new(&provider)?,
    );

    let first = provider.hold(one.clone())?;
    check!(first.provider().range().first() == provider.range().first());
    let _second = provider.hold(two.clone())?;
    let early = provider.hold(gone.clone())?;
    // One of several of the same holder.
    let twice = provider.hold(two.clone())?;
    let listed = || -> Result<usize> {
        let (mut count, mut alike) = (0, true);
        provider.for_each_holder(|name| {
            count += 1;
            alike &= name == c"told";
        });
        check!(alike);
        Ok(count)
    };
    check_eq!(listed()?, 4);
    drop(early);
    drop(twice);
    check_eq!(listed()?, 2);
    check_eq!((one.times(), two.times(), gone.times()), (0, 0, 0));

    drop(range);
    check_eq!((one.times(), two.times(), gone.times()), (1, 1, 0));
    check_eq!(one.revoked.load(Relaxed), 1);
    check_eq!(listed()?, 0);

    // Late.
    drop(first);
    check_eq!(provider.hold(gone.clone()).err(), Some(ENODEV));
    check_eq!((one.times(), gone.times()), (1, 0));
    Ok(())
}

/// All providers, in the order in which they came.
fn all(dev: &pci::Device<Bound>) -> Result {
    let listed = || -> Result<KVec<u64>> {
        let mut list = KVec::new();
        for provider in providers()? {
            check_eq!(provider.range().device().address(), dev.address());
            list.push(provider.range().start() / PART, GFP_KERNEL)?;
        }
        Ok(list)
    };
    check_eq!(listed()?[..], []);
    let first = open(dev, 3 * PART, PART)?;
    let _second = open(dev, 0, PART)?;
    let _third = open(dev, 5 * PART, PART)?;
    check_eq!(listed()?[..], [3, 0, 5]);
    drop(first);
    check_eq!(listed()?[..], [0, 5]);
    Ok(())
}

/// What an operator is told of the CPU.
fn cpu_traffic(dev: &pci::Device<Bound>) -> Result {
    let range = open(dev, 0, PART)?;
    let provider = range.provider();
    let traffic = || {
        let traffic = provider.cpu_traffic();
        (traffic.mapped, traffic.in_flight, traffic.refused)
    };
    check!(provider.cpu_traffic().client.is_none());
    check_eq!(provider.cpu_traffic().route, Ok((Route::HostBridge, 0)));
    check_eq!(traffic(), (0, 0, 0));
    let window = provider.window(0, 8)?;
    let other = provider.window(0, 8)?;
    check_eq!(traffic(), (2, 2, 0));
    drop(window);
    check_eq!(traffic(), (2, 1, 0));
    drop(other);
    check_eq!(traffic(), (2, 0, 0));
    Ok(())
}

/// The shortest time that `f` takes, in nanoseconds.
fn shortest<T>(mut f: impl FnMut() -> Result<T>) -> Result<i64> {
    let mut least = i64::MAX;
    for _ in 0..20 {
        let start = Instant::<Monotonic>::now();
        let made = f()?;
        least = least.min(start.elapsed().as_nanos());
        drop(made);
    }
    Ok(least)
}

fn cost(dev: &pci::Device<Bound>) -> Result {
    let (start, len) = (dev.resource_start(BAR)?, dev.resource_len(BAR)?);
    let mut times = [(0, 0); 2];
    for (size, (look_up, register)) in [PAGE_SIZE as u64, len].into_iter().zip(&mut times) {
        *register = shortest(|| open(dev, 0, size))?;
        let _range = open(dev, 0, size)?;
        let last = piece(start + size - 1, 1)?;
        *look_up = shortest(|| {
            for _ in 0..1000 {
                check!(provider_of(last)?.is_some());
            }
            Ok(())
        })?;
    }
    let [small, large] = times;
    pr_info!(
        "physdma: 1000 look-ups in a page {} ns, in 16 MiB {} ns\n",
        small.0,
        large.0
    );
    pr_info!(
        "physdma: registration of a page {} ns, of 16 MiB {} ns\n",
        small.1,
        large.1
    );
    // Emulated machines are not good clocks; the sizes differ by 4096.
    check!(large.0 < 4 * small.0);
    check!(large.1 < 4 * small.1);
    Ok(())
}

/// Hops by the place in the BAR; the second knows nothing of what is behind 2 MiB.
fn near(memory: &kernel::physdma::BarRange) -> core::result::Result<(Route, u32), Refused> {
    Ok((Route::HostBridge, 4 + (memory.start() / PART) as u32))
}

fn far(memory: &kernel::physdma::BarRange) -> core::result::Result<(Route, u32), Refused> {
    match memory.start() / PART {
        // One more than what it is less for the other.
        number @ 0..2 => Ok((Route::HostBridge, 20 - 2 * number as u32)),
        _ => Err(Refused::Bounce),
    }
}

fn nearest(dev: &pci::Device<Bound>) -> Result {
    let (one, two) = (Recorder::new(), Recorder::new());
    follow(&one, near)?;
    follow(&two, far)?;
    let one = one.client(LIMITS)?;
    let two = two.client(LIMITS)?;
    let found = |clients: &[&Client<'_, &Recorder>]| {
        nearest_provider(clients).map(|found| found.range().start() / PART)
    };
    check_eq!(found(&[&one]), None);

    let zero = open(dev, 0, PART)?;
    let _first = open(dev, PART, PART)?;
    let _second = open(dev, 2 * PART, PART)?;
    check_eq!(found(&[]), None);
    check_eq!(found(&[&one]), Some(0));
    // The sum counts.
    check_eq!(found(&[&one, &two]), Some(1));
    check_eq!(found(&[&two, &one]), Some(1));
    check_eq!(found(&[&two]), Some(1));
    // 3 * 4 + 20 and 3 * 5 + 18 are not the same, 2 * 4 + 20 and 2 * 5 + 18 are: the first.
    check_eq!(found(&[&one, &one, &one, &two]), Some(0));
    check_eq!(found(&[&one, &one, &two]), Some(0));

    drop(zero);
    check_eq!(found(&[&one]), Some(1));
    // What is first is what has been there longest.
    let _zero = open(dev, 0, PART)?;
    check_eq!(found(&[&one, &one, &two]), Some(1));
    drop(_first);
    drop(_zero);
    // One of them does not reach it.
    check_eq!(found(&[&one]), Some(2));
    check_eq!(found(&[&one, &two]), None);
    Ok(())
}

#[kunit_tests(physdma_registry)]
mod tests {
    use super::*;

    #[test]
    fn whole_bar_and_back() -> Result {
        with_memory(whole_bar)
    }

    #[test]
    fn parts_of_a_bar() -> Result {
        with_memory(parts)
    }

    #[test]
    fn what_is_no_range() -> Result {
        with_memory(not_a_range)
    }

    #[test]
    fn bars_that_are_not_memory() -> Result {
        with::<Testdev>(not_memory)
    }

    #[test]
    fn taken_ranges() -> Result {
        with_memory(overlaps)
    }

    #[test]
    fn pieces_keep_to_their_range() -> Result {
        with_memory(pieces_of_a_provider)
    }

    #[test]
    fn allocations_are_pages_of_the_range() -> Result {
        with_memory(allocations)
    }

    #[test]
    fn allocations_are_whole_pages() -> Result {
        with_memory(allocations_of_an_unaligned_range)
    }

    #[test]
    fn pages_are_handed_out_by_their_driver() -> Result {
        with_memory(no_allocations_of_pages)
    }

    #[test]
    fn list_of_all() -> Result {
        with_memory(all)
    }

    #[test]
    fn windows_are_counted() -> Result {
        with_memory(cpu_traffic)
    }

    #[test]
    fn windows_keep_to_their_part() -> Result {
        with_memory(windows)
    }

    #[test]
    fn a_forgotten_range_ends_with_the_binding() -> Result {
        with_memory(|dev| {
            core::mem::forget(open(dev, 0, PART)?);
            check_eq!(open(dev, 0, PART).err(), Some(EBUSY));
            Ok(())
        })?;
        with_memory(|dev| open(dev, 0, PART).map(drop))
    }

    #[test]
    fn holders_are_told_once() -> Result {
        with_memory(holders)
    }

    #[test]
    fn cost_does_not_grow_with_the_range() -> Result {
        with_memory(cost)
    }

    #[test]
    fn nearest_for_all_clients() -> Result {
        with_memory(nearest)
    }
}
