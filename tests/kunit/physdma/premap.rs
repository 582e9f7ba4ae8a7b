// SPDX-License-Identifier: GPL-2.0

//! Buffers that are mapped once: where a device finds each part of them, and how long they stay.

use super::{
    bound::{
        check,
        check_eq,
        client,
        follow,
        on_bed,
        open,
        with,
        with_memory,
        Bed,
        Testdev,
        DOWN,
        PART,
        UP, //
    },
    memory::{
        pieces,
        place,
        scattered,
        source, //
    },
    pinned::{
        bvecs,
        first,
        pattern,
        references,
        User,
        READ,
        WRITE, //
    },
    recorder::{
        map,
        Call,
        Recorder,
        BASE,
        FAULT,
        LIMITS, //
    },
    revoke::Revoking, //
};
use kernel::{
    device::Bound,
    dma::{
        DataDirection,
        DataDirection::{
            Bidirectional,
            FromDevice,
            ToDevice, //
        }, //
    },
    interrupt::local_interrupt_disable,
    iov::P2pPages,
    page::{
        Page,
        PAGE_SIZE, //
    },
    pci,
    physdma::{
        Client,
        Limits,
        Mapping,
        Memory,
        Origin,
        Path,
        PhysBvec,
        Premapped,
        PremappedSlice,
        Registration,
        Route,
        Segment, //
    },
    prelude::*,
    sync::Arc,
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    }, //
};

/// Longer than it takes to undo what nobody uses.
const LONG: Delta = Delta::from_millis(60);

type Rec<'r> = &'r Recorder;

/// All segments of a slice.
fn all(slice: &PremappedSlice<'_>) -> Result<KVec<Segment>> {
    let mut list = KVec::new();
    let mut segments = slice.segments();
    while let Some(segment) = segments.next()? {
        list.push(segment, GFP_KERNEL)?;
        check_eq!(usize::from(segments.count()), list.len());
    }
    check!(segments.next()?.is_none());
    Ok(list)
}

/// All segments of a part of a buffer.
fn part(premapped: &Premapped<'_>, offset: u64, len: u32) -> Result<KVec<Segment>> {
    all(&premapped.slice(offset, len, premapped.direction())?)
}

/// `count` pages in a row, as the allocator has them.
fn pages(count: usize) -> Result<KVec<Page>> {
    let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;
    for _ in 0..count {
        pages.push(Page::alloc_page(GFP_KERNEL)?, GFP_KERNEL)?;
    }
    Ok(pages)
}

fn mapped(dma: u64, len: u32) -> Segment {
    Segment {
        dma,
        len,
        origin: Origin::Mapped,
    }
}

/// Behind an IOMMU all is one range, which is unmapped when the buffer goes.
fn one_range() -> Result {
    let recorder = Recorder::new();
    let pages = scattered(3)?;
    let place = pieces(source(&pages, 0, 3 * PAGE_SIZE)?)?;
    let client: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
    let premapped = client.premap(pages, FromDevice)?;
    check_eq!(premapped.path(), Path::Iova);
    check_eq!(premapped.len(), 0x3000);
    check_eq!(premapped.direction(), FromDevice);
    check!(premapped.provider().is_none());
    for (offset, len) in [
        (0, 0x3000),
        (0, 1),
        (0x2fff, 1),
        (0x123, 0x2000),
        (0x1000, 0x1000),
    ] {
        let list = part(&premapped, offset, len)?;
        check_eq!(list[..], [mapped(BASE + offset, len)]);
    }
    let link = |i: usize| Call::Link {
        phys: place[i].phys(),
        offset: i * PAGE_SIZE,
        len: PAGE_SIZE,
    };
    let (phys, size) = (place[0].phys(), 3 * PAGE_SIZE);
    let mapping = [
        Call::TryAlloc { phys, size },
        link(0),
        link(1),
        link(2),
        Call::Sync { len: size },
    ];
    // Slices call nothing.
    check!(recorder.called(&mapping));
    check!(recorder.memories().iter().all(|&m| m == Memory::RamInPlace));

    drop(premapped);
    check!(recorder.undone(1));
    check_eq!(
        recorder.count(|call| *call == Call::Destroy { linked: size }),
        1
    );
    check!(recorder.clean());
    Ok(())
}

/// What is one piece is mapped by itself.
fn one_piece() -> Result {
    let recorder = Recorder::new();
    let pages = pages(1)?;
    let phys = place(&pages[0])?.phys();
    let client: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
    let premapped = client.premap(pages, ToDevice)?;
    check_eq!(premapped.path(), Path::Single);
    check_eq!(
        part(&premapped, 0x10, 0x20)?[..],
        [mapped(BASE + phys + 0x10, 0x20)]
    );
    check!(recorder.called(&[Call::MapPhys {
        phys,
        len: PAGE_SIZE
    }]));
    drop(premapped);
    check!(recorder.undone(1));
    check!(recorder.clean());
    Ok(())
}

/// Some numbers without order.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (self.0 >> 33) % end
    }
}

/// What a device without an IOMMU must be told of `len` bytes at `offset` of `place`.
fn model(place: &[PhysBvec], offset: u64, len: u32) -> Result<KVec<Segment>> {
    let (mut skip, mut left) = (offset, len);
    let mut list = KVec::new();
    for piece in place {
        let len = u64::from(piece.len());
        if skip >= len {
            skip -= len;
            continue;
        }
        // CAST: At most what is left.
        let take = u64::from(left).min(len - skip) as u32;
        list.push(mapped(BASE + piece.phys() + skip, take), GFP_KERNEL)?;
        skip = 0;
        left -= take;
        if left == 0 {
            break;
        }
    }
    Ok(list)
}

/// Without an IOMMU any part is where its pages are, as few segments as there can be.
fn any_part() -> Result {
    let mut numbers = Numbers(1);
    for remember in [false, true] {
        for (in_a_row, apart) in [(0, 5), (64, 0), (16, 16), (40, 1)] {
            let recorder = Recorder::direct();
            recorder
                .need_unmap_from
                .set(if remember { 0 } else { usize::MAX });
            let mut list = scattered(apart)?;
            for page in pages(in_a_row)? {
                list.push(page, GFP_KERNEL)?;
            }
            let bytes = list.len() * PAGE_SIZE;
            let place = pieces(source(&list, 0, bytes)?)?;
            let client: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
            let premapped = client.premap(list, Bidirectional)?;
            check_eq!(premapped.path() == Path::Single, place.len() == 1);
            for _ in 0..500 {
                let offset = numbers.below(bytes as u64);
                // CAST: The buffer is small.
                let len = 1 + numbers.below(bytes as u64 - offset) as u32;
                let result = part(&premapped, offset, len);
                check_eq!(result?[..], model(&place, offset, len)?[..]);
            }
            let maps = recorder.count(|call| matches!(call, Call::MapPhys { .. }));
            check_eq!(maps, place.len());
            drop(premapped);
            drop(client);
            let unmaps = recorder.count(|call| matches!(call, Call::UnmapPhys { .. }));
            check_eq!(unmaps, if remember { maps } else { 0 });
            check!(!remember || recorder.clean());
        }
    }
    Ok(())
}

/// Memory of user space that begins and ends anywhere.
fn unaligned() -> Result {
    let user = User::new(9, READ | WRITE)?;
    user.write(0, &pattern(9 * PAGE_SIZE)?)?;
    let mut numbers = Numbers(2);
    for (offset, len) in [
        (0x123, 8 * PAGE_SIZE),
        (0xfff, 2),
        (0x800, 0x801),
        (0, 9 * PAGE_SIZE),
    ] {
        let pinned = user.pin_from_device(offset, len, P2pPages::Refuse)?;
        let place = pieces(bvecs(&pinned))?;
        let recorder = Recorder::direct();
        let client: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
        let premapped = client.premap(pinned, Bidirectional)?;
        for _ in 0..200 {
            let at = numbers.below(len as u64);
            // CAST: The buffer is small.
            let bytes = 1 + numbers.below(len as u64 - at) as u32;
            check_eq!(
                part(&premapped, at, bytes)?[..],
                model(&place, at, bytes)?[..]
            );
        }
    }
    Ok(())
}

/// A buffer keeps to the limits as a mapping does.
fn limits() -> Result {
    let limits = [
        (0x800, u64::MAX, 64),
        (u32::MAX, 0x7ff, 64),
        (0x1400, 0xffff, 64),
        (u32::MAX, 0xfff, 5),
        (0, u64::MAX, 64),
    ];
    for (max_segment_bytes, boundary_mask, max_segments) in limits {
        let limits = Limits {
            max_segment_bytes,
            boundary_mask,
            max_segments,
        };
        for direct in [false, true] {
            let make = || {
                if direct {
                    Recorder::direct()
                } else {
                    Recorder::new()
                }
            };
            let (recorder, other) = (make(), make());
            let mapping: Client<'_, Rec<'_>> = other.client(limits)?;
            let client: Client<'_, Rec<'_>> = recorder.client(limits)?;
            let memory = Arc::new(scattered(4)?, GFP_KERNEL)?;
            let premapped = client.premap(memory.clone(), FromDevice)?;
            for len in [0x30, 0x1000, 0x1800, 0x4000] {
                if !direct && len <= PAGE_SIZE {
                    // One piece is no range for whoever maps nothing else.
                    continue;
                }
                let mut slot = Mapping::default();
                let theirs = map(&mapping, &mut slot, source(&memory, 0, len)?);
                // CAST: It is small.
                let ours = part(&premapped, 0, len as u32);
                match (ours, theirs) {
                    (Ok(ours), Ok((theirs, _))) => check_eq!(ours[..], theirs[..]),
                    (ours, theirs) => {
                        check_eq!(ours.err(), Some(EINVAL));
                        check_eq!(theirs.err(), Some(EINVAL));
                    }
                }
            }
        }
    }
    Ok(())
}

/// A part that is not there, or not for that.
fn wrong_parts() -> Result {
    let recorder = Recorder::new();
    let client: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
    let premapped = client.premap(pages(2)?, ToDevice)?;
    for (offset, len, dir, error) in [
        (0, 0, ToDevice, EINVAL),
        (0x2000, 0, ToDevice, EINVAL),
        (0, 0x2001, ToDevice, EFAULT),
        (0x1fff, 2, ToDevice, EFAULT),
        (0x2000, 1, ToDevice, EFAULT),
        (u64::MAX, 1, ToDevice, EFAULT),
        (u64::MAX - 0xfff, 0x1000, ToDevice, EFAULT),
        (0, u32::MAX, ToDevice, EFAULT),
        (0, 1, FromDevice, EFAULT),
        (0, 1, Bidirectional, EFAULT),
    ] {
        check_eq!(premapped.slice(offset, len, dir).err(), Some(error));
    }
    check!(premapped.slice(0x1fff, 1, ToDevice).is_ok());
    // Like any two, they would be undone at the same time.
    check!(premapped.unmap(msecs_to_jiffies(10_000)));
    let both = client.premap(pages(1)?, Bidirectional)?;
    check!(both.slice(0, 1, ToDevice).is_ok() && both.slice(0, 1, FromDevice).is_ok());
    Ok(())
}

/// What cannot be mapped for long at all.
fn refused() -> Result {
    let recorder = Recorder::new();
    let client: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
    let none = client.premap(pages(2)?, DataDirection::None);
    check_eq!(none.err(), Some(EINVAL));
    check_eq!(client.premap(KVec::new(), ToDevice).err(), Some(EINVAL));

    // What was pinned for a device to read.
    let user = User::new(1, READ | WRITE)?;
    user.write(0, b"data")?;
    for (dir, ok) in [
        (ToDevice, true),
        (FromDevice, false),
        (Bidirectional, false),
    ] {
        let pinned = user.pin_to_device(0, PAGE_SIZE, P2pPages::Refuse)?;
        let result = client.premap(pinned, dir);
        check_eq!(result.err(), if ok { None } else { Some(EACCES) });
    }
    drop(client);
    check!(recorder.clean());

    // A device that needs help to see what the CPU wrote.
    let recorder = Recorder::new();
    recorder.coherent.set(false);
    let client: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
    check_eq!(client.premap(pages(2)?, ToDevice).err(), Some(EOPNOTSUPP));
    check!(recorder.called(&[]));

    // One that cannot reach the memory itself.
    let recorder = Recorder::direct();
    recorder.fail_after(0);
    let client: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
    check_eq!(client.premap(pages(1)?, ToDevice).err(), Some(EPERM));
    Ok(())
}

/// Each call fails once.
fn failures() -> Result {
    for (direct, calls) in [(false, 4), (true, 3)] {
        for good in 0..=calls {
            let recorder = if direct {
                Recorder::direct()
            } else {
                Recorder::new()
            };
            // Each piece is to be unmapped.
            recorder.need_unmap_from.set(0);
            recorder.fail_after(good);
            let memory = Arc::new(scattered(3)?, GFP_KERNEL)?;
            let client: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
            let result = client.premap(memory.clone(), FromDevice);
            match (good == calls, direct) {
                (true, _) => check!(result.is_ok()),
                (false, false) => check_eq!(result.as_ref().err(), Some(&FAULT)),
                (false, true) => check_eq!(result.as_ref().err(), Some(&EPERM)),
            }
            drop(result);
            drop(client);
            check!(recorder.clean());
            // Nobody else has the memory any more.
            check!(Arc::into_unique_or_drop(memory).is_some());
        }
    }
    Ok(())
}

/// What is in use stays mapped, and stays, when the buffer is dropped.
fn dropped_in_use() -> Result {
    let user = User::new(4, READ | WRITE)?;
    user.write(0, &pattern(4 * PAGE_SIZE)?)?;
    let recorder = Recorder::new();
    let client: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
    let pinned = user.pin_from_device(0, 4 * PAGE_SIZE, P2pPages::Refuse)?;
    let piece = first(bvecs(&pinned))?;
    let once = references(piece);
    let premapped = client.premap(pinned, Bidirectional)?;
    let slice = premapped.slice(0x1000, 0x1000, FromDevice)?;
    let other = premapped.slice(0x1000, 0x2000, ToDevice)?;
    drop(premapped);
    fsleep(LONG);
    check_eq!((recorder.undone_now(), references(piece)), (0, once));
    check_eq!(all(&slice)?.len(), 1);
    drop(other);
    fsleep(LONG);
    check_eq!((recorder.undone_now(), references(piece)), (0, once));

    // In an interrupt handler.
    let off = local_interrupt_disable();
    drop(slice);
    drop(off);
    check!(recorder.undone(1));
    drop(client);
    check!(recorder.clean());
    check!(references(piece) < once);
    Ok(())
}

/// A client waits for what is undone later.
fn client_goes() -> Result {
    for _ in 0..20 {
        let recorder = Recorder::new();
        let memory = Arc::new(scattered(2)?, GFP_KERNEL)?;
        let one: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
        let premapped = one.premap(memory.clone(), FromDevice)?;
        let slice = premapped.slice(0, 1, FromDevice)?;
        drop(premapped);
        drop(slice);
        drop(one);
        check_eq!(recorder.undone_now(), 1);
        check!(recorder.clean());
        check!(Arc::into_unique_or_drop(memory).is_some());
    }
    Ok(())
}

/// The memory of a provider, by each route.
fn routes(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let start = |range: &Registration<'_>| range.provider().range().first();
    let premap = |range: &Registration<'_>| {
        client.premap_provider(&range.provider(), 0x3000, 0x2_0000, Bidirectional)
    };
    let segment = |premapped: &Premapped<'_>| -> Result<Segment> {
        let list = part(premapped, 0x1_0010, 0x1000)?;
        check_eq!(list.len(), 1);
        Ok(list[0])
    };
    for (range, offset, path) in [
        (&bed.up, UP, Path::Bus),
        (&bed.down, DOWN, Path::Bus),
        (&bed.own, UP, Path::Internal),
    ] {
        let premapped = premap(range)?;
        check_eq!(premapped.path(), path);
        let phys = start(range) + 0x1_3010;
        check_eq!(
            segment(&premapped)?,
            Segment {
                dma: phys.wrapping_add(offset),
                len: 0x1000,
                origin: match path {
                    Path::Internal => Origin::Internal {
                        bar: 2,
                        offset: 2 * PART + 0x1_3010,
                    },
                    _ => Origin::Bus,
                },
            }
        );
    }
    check!(recorder.called(&[]));

    let premapped = premap(&bed.bridge)?;
    check_eq!(premapped.path(), Path::Single);
    let owner = premapped
        .provider()
        .map(|provider| provider.range().first());
    check_eq!(owner, Some(start(&bed.bridge)));
    let (phys, len) = (start(&bed.bridge) + 0x3000, 0x2_0000);
    check_eq!(segment(&premapped)?, mapped(BASE + phys + 0x1_0010, 0x1000));
    check!(recorder.called(&[Call::MapPhys { phys, len }]));
    check_eq!(recorder.memories()[..], [Memory::Mmio]);
    drop(premapped);
    check!(recorder.undone(1));
    check!(recorder.clean());

    check_eq!(premap(&bed.refused).err(), Some(EINVAL));
    let provider = bed.bridge.provider();
    for (offset, len) in [
        (0, 0),
        (PART, 1),
        (0, PART + 1),
        (PART - 1, 2),
        (u64::MAX, 2),
    ] {
        let result = client.premap_provider(&provider, offset, len, ToDevice);
        check_eq!(result.err(), Some(EINVAL));
    }
    let none = client.premap_provider(&provider, 0, 1, DataDirection::None);
    check_eq!(none.err(), Some(EINVAL));
    recorder.fail_after(0);
    check_eq!(premap(&bed.bridge).err(), Some(FAULT));
    drop(client);
    check!(recorder.clean());
    Ok(())
}

/// Much more memory than a piece can have.
fn large(dev: &pci::Device<Bound>) -> Result {
    const GIB: u64 = 1 << 30;
    for bus in [false, true] {
        let recorder = Recorder::new();
        if bus {
            follow(&recorder, |_| Ok((Route::Bus { offset: UP }, 2)))?;
        } else {
            follow(&recorder, |_| Ok((Route::HostBridge, 2)))?;
        }
        let range = Registration::new(dev, 2, 0, 16 * GIB)?;
        let first = range.provider().range().first();
        let base = first + if bus { UP } else { BASE };
        let client: Client<'_, Rec<'_>> = recorder.client(LIMITS)?;
        let premapped =
            client.premap_provider(&range.provider(), 0x1000, 16 * GIB - 0x1000, Bidirectional)?;
        check_eq!(premapped.len(), 16 * GIB - 0x1000);
        for (offset, len) in [
            (0, 0x1000),
            (4 * GIB - 0x1800, 0x1000),
            (15 * GIB + 7, 0x1000_0000),
            (3 * GIB, u32::MAX),
            (16 * GIB - 0x1001, 1),
        ] {
            let list = part(&premapped, offset, len)?;
            check_eq!(list.len(), 1);
            check_eq!((list[0].dma, list[0].len), (base + 0x1000 + offset, len));
        }
        let past = premapped.slice(16 * GIB - 0x1000, 1, ToDevice);
        check_eq!(past.err(), Some(EFAULT));
        if !bus {
            check!(recorder.called(&[Call::MapPhys {
                phys: first + 0x1000,
                len: (16 * GIB - 0x1000) as usize,
            }]));
        }
        drop(premapped);
        drop(client);
        check!(recorder.clean());
    }
    Ok(())
}

/// The number of the range that is reached through the host bridge.
const BRIDGE: u64 = 3;

/// Nothing is in flight when the memory goes.
fn revoked_idle(dev: &pci::Device<Bound>) -> Result {
    let recorders = [Recorder::new(), Recorder::new()];
    let clients = [
        client(&recorders[0], LIMITS)?,
        client(&recorders[1], LIMITS)?,
    ];
    let range = open(dev, BRIDGE * PART, PART)?;
    let provider = range.provider();
    let buffers = [
        clients[0].premap_provider(&provider, 0, PART, ToDevice)?,
        clients[1].premap_provider(&provider, 0x1000, 0x1000, ToDevice)?,
    ];
    let mut holders = 0;
    provider.for_each_holder(|name| holders += usize::from(name == c"premapped buffer"));
    check_eq!(holders, 2);
    drop(range);
    for (recorder, premapped) in recorders.iter().zip(&buffers) {
        // It has been unmapped before that was over.
        check_eq!(recorder.undone_now(), 1);
        check!(recorder.clean());
        check_eq!(premapped.slice(0, 1, ToDevice).err(), Some(ENODEV));
    }
    let late = clients[0].premap_provider(&provider, 0, PART, ToDevice);
    check_eq!(late.err(), Some(ENODEV));
    Ok(())
}

/// Something is in flight when the memory goes; `dropped`: of a buffer that is not there any more.
fn revoked_in_use(dev: &pci::Device<Bound>, dropped: bool) -> Result {
    // A buffer that has a bus address has nothing to undo, and is waited for all the same.
    for number in [0, BRIDGE] {
        let recorder = Recorder::new();
        let client = client(&recorder, LIMITS)?;
        let range = open(dev, number * PART, PART)?;
        let provider = range.provider();
        // So that a check that fails ends the slices first.
        let revoking;
        let mut premapped = Some(client.premap_provider(&provider, 0, PART, FromDevice)?);
        let idle = client.premap_provider(&provider, 0, PART, FromDevice)?;
        let slice = match &premapped {
            Some(premapped) => premapped.slice(0x1000, 0x1000, FromDevice)?,
            None => return Err(EINVAL),
        };
        if dropped {
            premapped = None;
        }
        // SAFETY: It is dropped at the end of this function.
        revoking = unsafe { Revoking::begin(range) }?;
        check!(revoking.is_waiting()?);
        check_eq!(idle.slice(0, 1, FromDevice).err(), Some(ENODEV));
        if let Some(premapped) = &premapped {
            check_eq!(premapped.slice(0, 1, FromDevice).err(), Some(ENODEV));
        }
        let maps = if number == BRIDGE { 2 } else { 0 };
        // The one that nobody uses is gone.
        check!(recorder.undone(maps / 2));
        check_eq!(part_of(&slice)?.len, 0x1000);
        check!(!revoking.has_ended());
        let off = local_interrupt_disable();
        drop(slice);
        drop(off);
        check!(revoking.ends());
        check_eq!(recorder.undone_now(), maps);
        check!(recorder.clean());
    }
    Ok(())
}

fn part_of(slice: &PremappedSlice<'_>) -> Result<Segment> {
    slice.segments().next()?.ok_or(EINVAL)
}

/// With the kernel's own page tables.
fn on_a_device(dev: &pci::Device<Bound>) -> Result {
    let user = User::new(8, READ | WRITE)?;
    let client = Client::new(dev.as_ref(), LIMITS)?;
    let pinned = user.pin_from_device(0x200, 7 * PAGE_SIZE, P2pPages::Refuse)?;
    let premapped = client.premap(pinned, Bidirectional)?;
    let list = part(&premapped, 0x10, 0x3000)?;
    // An IOMMU makes it one segment.
    check!(list.len() == 1 || !cfg!(CONFIG_IOMMU_DMA));
    check_eq!(list[0].dma & 0xfff, 0x210);
    let slice = premapped.slice(0, 1, FromDevice)?;
    drop(premapped);
    drop(slice);
    Ok(())
}

/// Four times as much of a provider's memory as the device, with 32 address bits, has room for; a
/// quarter of that at a time. What is lost would run out.
fn four_times(memory: &pci::Device<Bound>, dev: &pci::Device<Bound>) -> Result {
    let size = 16 << 20;
    let range = open(memory, 0, size)?;
    let provider = range.provider();
    let mut maps = 0;
    for _ in 0..16 {
        let client = Client::new(dev.as_ref(), LIMITS)?;
        let mut list = KVec::new();
        for _ in 0..(1 << 30) / size {
            let premapped = client.premap_provider(&provider, 0, size, Bidirectional)?;
            check_eq!(premapped.path(), Path::Single);
            check_eq!(part(&premapped, size - 0x1000, 0x1000)?.len(), 1);
            list.push(premapped, GFP_KERNEL)?;
        }
        maps += list.len();
    }
    pr_info!("physdma: mapped 16 MiB of a provider's memory {maps} times for long\n");
    Ok(())
}

/// Nothing stays mapped behind a client that goes, and the device does not go before.
fn many_times(dev: &pci::Device<Bound>) -> Result {
    let memory = Arc::new(pages(8)?, GFP_KERNEL)?;
    for _ in 0..30 {
        let client = Client::new(dev.as_ref(), LIMITS)?;
        let premapped = client.premap(memory.clone(), FromDevice)?;
        let slice = premapped.slice(0, 0x1000, FromDevice)?;
        drop(premapped);
        drop(slice);
    }
    check!(Arc::into_unique_or_drop(memory).is_some());
    Ok(())
}

#[kunit_tests(physdma_premap)]
mod tests {
    use super::*;

    #[test]
    fn one_range_behind_an_iommu() -> Result {
        one_range()
    }

    #[test]
    fn one_piece_is_mapped_by_itself() -> Result {
        one_piece()
    }

    #[test]
    fn any_part_without_an_iommu() -> Result {
        any_part()
    }

    #[test]
    fn memory_of_user_space() -> Result {
        unaligned()
    }

    #[test]
    fn limits_of_the_client() -> Result {
        limits()
    }

    #[test]
    fn parts_that_are_not_there() -> Result {
        wrong_parts()
    }

    #[test]
    fn memory_that_is_refused() -> Result {
        refused()
    }

    #[test]
    fn each_call_fails() -> Result {
        failures()
    }

    #[test]
    fn dropped_while_in_use() -> Result {
        dropped_in_use()
    }

    #[test]
    fn client_waits_for_what_is_undone() -> Result {
        client_goes()
    }

    #[test]
    fn memory_of_providers() -> Result {
        on_bed(routes)
    }

    #[test]
    fn sixteen_gibibytes() -> Result {
        with::<Testdev>(large)
    }

    #[test]
    fn revoked_with_nothing_in_flight() -> Result {
        with_memory(revoked_idle)
    }

    #[test]
    fn revoked_while_in_use() -> Result {
        with_memory(|dev| revoked_in_use(dev, false))
    }

    #[test]
    fn revoked_when_dropped_while_in_use() -> Result {
        with_memory(|dev| revoked_in_use(dev, true))
    }

    #[test]
    fn mapped_for_a_device() -> Result {
        with::<Testdev>(on_a_device)
    }

    // All of it is about IOVA space.
    #[cfg(all(CONFIG_IOMMU_DMA, CONFIG_PCI_P2PDMA))]
    #[test]
    fn four_times_the_space() -> Result {
        with_memory(|memory| with::<Testdev>(|dev| four_times(memory, dev)))
    }

    #[test]
    fn clients_that_come_and_go() -> Result {
        with::<Testdev>(many_times)
    }
}
