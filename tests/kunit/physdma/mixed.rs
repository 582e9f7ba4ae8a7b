// SPDX-License-Identifier: GPL-2.0

//! `Client::map()` of providers' memory, alone and mixed with RAM: each call and its order, the
//! segments, and that nothing is left behind, whichever call fails.

use super::{
    bound::{
        at,
        check,
        check_eq,
        client,
        follow,
        on_bed,
        open,
        row,
        with_memory,
        Bed,
        DOWN,
        NO_ROUTE,
        PART,
        UP, //
    },
    memory::{
        place,
        scattered, //
    },
    recorder::{
        map,
        Call,
        Gate,
        Recorder,
        BASE,
        FAULT,
        LIMITS, //
    }, //
};
use kernel::{
    dma::{
        DataDirection::FromDevice,
        DmaAddress, //
    },
    page::{
        Page,
        PAGE_SIZE, //
    },
    physdma::{
        Limits,
        Mapping,
        Memory,
        Mixed,
        Origin,
        Part,
        Path,
        PhysBvec,
        Raw,
        Route,
        Segment,
        Source,
        Traffic, //
    },
    prelude::*,
    sync::atomic::{
        AtomicFlag,
        Relaxed, //
    },
    task::kthread::Thread,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

const PAGE: u32 = PAGE_SIZE as u32;

/// The memory of `parts`; pages are declared before mappings in all tests.
fn mixed<'r>(parts: &'r [Part<'r>]) -> Result<Mixed<'r>> {
    // SAFETY: Pages are freed after mappings, and nobody looks into them.
    unsafe { Mixed::new(parts) }
}

fn places(pages: &[Page]) -> Result<KVec<PhysBvec>> {
    let mut list = KVec::new();
    for page in pages {
        list.push(place(page)?, GFP_KERNEL)?;
    }
    Ok(list)
}

const fn mapped(dma: DmaAddress, len: u32) -> Segment {
    Segment {
        dma,
        len,
        origin: Origin::Mapped,
    }
}

fn bus(piece: PhysBvec, offset: u64) -> Segment {
    Segment {
        dma: piece.phys().wrapping_add(offset),
        len: piece.len(),
        origin: Origin::Bus,
    }
}

/// A piece of [`Bed::own`].
fn own(piece: PhysBvec, bed: &Bed<'_>) -> Segment {
    let range = bed.own.provider();
    Segment {
        dma: piece.phys() + UP,
        len: piece.len(),
        origin: Origin::Internal {
            bar: 2,
            offset: 2 * PART + (piece.phys() - range.range().first()),
        },
    }
}

fn link(piece: PhysBvec, offset: usize) -> Call {
    Call::Link {
        phys: piece.phys(),
        offset,
        len: piece.len() as usize,
    }
}

fn map_phys(piece: PhysBvec) -> Call {
    Call::MapPhys {
        phys: piece.phys(),
        len: piece.len() as usize,
    }
}

fn unmap_phys(piece: PhysBvec) -> Call {
    Call::UnmapPhys {
        dma: BASE + piece.phys(),
        len: piece.len() as usize,
    }
}

/// Revokes ranges while `slot` is there still, which must not keep them.
fn revoked_at_once<T>(ranges: impl Send, slot: T) -> Result {
    let ended = AtomicFlag::new(false);
    // SAFETY: It is dropped below.
    let thread = unsafe {
        Thread::spawn(c"physdma_revoke", |_| {
            drop(ranges);
            ended.store(true, Relaxed);
        })
    }?;
    // Two minutes: to revoke many takes long on a kernel with all its checks.
    for _ in 0..12_000 {
        if ended.load(Relaxed) {
            break;
        }
        fsleep(Delta::from_millis(10));
    }
    let at_once = ended.load(Relaxed);
    // What is kept wrongly ends here, and so does the thread.
    drop(slot);
    drop(thread);
    check!(at_once);
    Ok(())
}

/// Memory by its bus address is not mapped, and what the device is told is that address.
fn bus_address(bed: Bed<'_>) -> Result {
    for (range, offset) in [(&bed.up, UP), (&bed.down, DOWN)] {
        let recorder = Recorder::new();
        let client = client(&recorder, LIMITS)?;
        let list = [at(range, 0x200, 0x600)?, at(range, 0x3000, 0x1000)?];
        let mut slot = Mapping::default();

        check_eq!(client.route(&range.provider()), Ok(Route::Bus { offset }));
        let (segments, path) = map(&client, &mut slot, Raw::new(&list)?)?;
        check_eq!(path, Path::Bus);
        check_eq!(segments[..], [bus(list[0], offset), bus(list[1], offset)]);
        slot.unmap();
        check!(recorder.called(&[]));
    }
    Ok(())
}

/// The device's own memory has its place in the BAR, too.
fn own_memory(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let list = [at(&bed.own, 0x123, 0x77)?, at(&bed.own, PART - 1, 1)?];
    let mut slot = Mapping::default();

    let (segments, path) = map(&client, &mut slot, Raw::new(&list)?)?;
    check_eq!(path, Path::Internal);
    check_eq!(segments[..], [own(list[0], &bed), own(list[1], &bed)]);
    check_eq!(
        segments[1].origin,
        Origin::Internal {
            bar: 2,
            offset: 3 * PART - 1,
        }
    );
    slot.unmap();
    check!(recorder.called(&[]));
    Ok(())
}

/// One piece behind the host bridge is mapped by itself, as what it is.
fn bridge_single(bed: Bed<'_>) -> Result {
    for recorder in [Recorder::new(), Recorder::direct()] {
        let client = client(&recorder, LIMITS)?;
        let piece = at(&bed.bridge, 0x10, 0x2345)?;
        let list = [piece];
        let mut slot = Mapping::default();

        let (segments, path) = map(&client, &mut slot, Raw::new(&list)?)?;
        check_eq!(path, Path::Single);
        check_eq!(segments[..], [mapped(BASE + piece.phys(), 0x2345)]);
        check_eq!(recorder.memories()[..], [Memory::Mmio]);
        slot.unmap();
        // What memory it is is compared when it is unmapped.
        check!(recorder.called(&[map_phys(piece), unmap_phys(piece)]));
        check!(recorder.clean());
    }
    Ok(())
}

/// Several pieces behind the host bridge share a range, of two providers too.
fn bridge_range(bed: Bed<'_>) -> Result {
    for coherent in [true, false] {
        let recorder = Recorder::new();
        recorder.coherent.set(coherent);
        let client = client(&recorder, LIMITS)?;
        let list = [
            at(&bed.bridge, 0x1800, 0x800)?,
            at(&bed.second_bridge, 0, PAGE)?,
            at(&bed.bridge, 0x5000, 0x123)?,
        ];
        let mut slot = Mapping::default();

        let (segments, path) = map(&client, &mut slot, Raw::new(&list)?)?;
        check_eq!(path, Path::Iova);
        check_eq!(segments[..], [mapped(BASE + 0x800, 0x1923)]);
        check_eq!(recorder.memories()[..], [Memory::Mmio; 3]);
        slot.unmap();
        check!(recorder.called(&[
            Call::TryAlloc {
                phys: list[0].phys(),
                size: 0x1923,
            },
            link(list[0], 0),
            link(list[1], 0x800),
            link(list[2], 0x1800),
            Call::Sync { len: 0x1923 },
            Call::Destroy { linked: 0x1923 },
        ]));
        check!(recorder.clean());
    }
    Ok(())
}

/// All kinds in one request: what is mapped shares one range, and the rest stands between, in data
/// order.
fn all_kinds(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let pages = scattered(3)?;
    let ram = places(&pages)?;
    let near = at(&bed.down, 0x200, 0x600)?;
    let bridge = at(&bed.bridge, 0x1000, 2 * PAGE)?;
    let internal = at(&bed.own, 0x123, 0x77)?;
    let tail = at(&bed.second_bridge, 0, 0x800)?;
    let mut slot = Mapping::default();

    let (bridge_list, own_list, tail_list) = ([bridge], [internal], [tail]);
    let (near_list, none) = ([near], []);
    let parts = [
        Part::Ram(&none),
        Part::Ram(&ram[..1]),
        Part::Provider(&near_list),
        Part::Provider(&bridge_list),
        Part::Provider(&none),
        Part::Provider(&own_list),
        Part::Ram(&ram[1..]),
        Part::Provider(&tail_list),
    ];
    let (segments, path) = map(&client, &mut slot, mixed(&parts)?)?;
    check_eq!(path, Path::Mixed);
    check_eq!(
        segments[..],
        [
            mapped(BASE, PAGE),
            bus(near, DOWN),
            mapped(BASE + 0x1000, 0x2000),
            own(internal, &bed),
            mapped(BASE + 0x3000, 0x2800),
        ]
    );
    check_eq!(
        recorder.memories()[..],
        [
            Memory::Ram,
            Memory::Mmio,
            Memory::Ram,
            Memory::Ram,
            Memory::Mmio
        ]
    );
    check_eq!(slot.spilled(), 0);
    slot.unmap();
    check!(recorder.called(&[
        Call::TryAlloc {
            phys: ram[0].phys(),
            size: 0x5800,
        },
        link(ram[0], 0),
        link(bridge, 0x1000),
        link(ram[1], 0x3000),
        link(ram[2], 0x4000),
        link(tail, 0x5000),
        Call::Sync { len: 0x5800 },
        Call::Destroy { linked: 0x5800 },
    ]));
    check!(recorder.clean());
    Ok(())
}

/// RAM and host-bridge memory in turn are one segment.
fn one_segment(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let limits = Limits {
        max_segments: 1,
        ..LIMITS
    };
    let client = client(&recorder, limits)?;
    let pages = scattered(2)?;
    let ram = places(&pages)?;
    let bridge = [at(&bed.bridge, 0x3000, PAGE)?];
    let mut slot = Mapping::default();

    let parts = [
        Part::Ram(&ram[..1]),
        Part::Provider(&bridge),
        Part::Ram(&ram[1..]),
    ];
    let (segments, _) = map(&client, &mut slot, mixed(&parts)?)?;
    check_eq!(segments[..], [mapped(BASE, 3 * PAGE)]);
    slot.unmap();
    check!(recorder.clean());
    Ok(())
}

/// Neighbours in one list that are of two providers.
fn neighbours(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let mut slot = Mapping::default();

    // Two that are reached alike are one piece; the other two end where they end.
    let alike = PhysBvec::new(at(&bed.bridge, PART - 0x100, 0x100)?.phys(), 0x200).ok_or(EINVAL)?;
    let (segments, path) = map(&client, &mut slot, Raw::new(&[alike])?)?;
    check_eq!(path, Path::Single);
    check_eq!(segments[..], [mapped(BASE + alike.phys(), 0x200)]);

    let ends = [at(&bed.up, PART - 0x100, 0x100)?, at(&bed.down, 0, 0x80)?];
    let across = ends[0].join(ends[1]).ok_or(EINVAL)?;
    let (segments, path) = map(&client, &mut slot, Raw::new(&[across])?)?;
    check_eq!(path, Path::Mixed);
    check_eq!(segments[..], [bus(ends[0], UP), bus(ends[1], DOWN)]);

    // The same behind a piece of another kind.
    let list = [at(&bed.own, 0, 0x10)?, across];
    let (segments, _) = map(&client, &mut slot, Raw::new(&list)?)?;
    check_eq!(
        segments[..],
        [own(list[0], &bed), bus(ends[0], UP), bus(ends[1], DOWN)]
    );
    slot.unmap();
    check!(recorder.clean());
    Ok(())
}

/// Pieces that are neighbours on the bus, but not in one list, or not of one provider, are one
/// segment also where the request has other memory.
fn neighbours_on_the_bus() -> Result {
    with_memory(|dev| {
        let (first, second) = (open(dev, 0, PART)?, open(dev, PART, PART)?);
        let recorder = Recorder::new();
        follow(&recorder, |_| Ok((Route::Bus { offset: UP }, 2)))?;
        let client = recorder.client(LIMITS)?;
        let pages = scattered(1)?;
        let ram = places(&pages)?;
        let mut slot = Mapping::default();

        let (a, b) = ([at(&first, PART - 0x100, 0x100)?], [at(&second, 0, 0x80)?]);
        let c = [at(&second, 0x80, 0x80)?];
        let parts = [
            Part::Provider(&a),
            Part::Provider(&b),
            Part::Provider(&c),
            Part::Ram(&ram),
        ];
        let (segments, _) = map(&client, &mut slot, mixed(&parts)?)?;
        let all = a[0].join(b[0]).and_then(|ab| ab.join(c[0])).ok_or(EINVAL)?;
        check_eq!(
            segments[..],
            [bus(all, UP), mapped(BASE + ram[0].phys(), PAGE)]
        );
        slot.unmap();
        check!(recorder.clean());
        Ok(())
    })
}

/// What cannot share a range is mapped piece by piece, and remembered; `calls` come first.
fn by_itself(bed: &Bed<'_>, recorder: &Recorder, len: u32, calls: usize) -> Result {
    let client = client(recorder, LIMITS)?;
    let pages = scattered(2)?;
    let ram = places(&pages)?;
    let near = [at(&bed.up, 0, 0x100)?];
    let bridge = [at(&bed.bridge, 0x3000, len)?];
    let mut slot = Mapping::default();

    let parts = [
        Part::Ram(&ram[..1]),
        Part::Provider(&near),
        Part::Provider(&bridge),
        Part::Ram(&ram[1..]),
    ];
    let (segments, path) = map(&client, &mut slot, mixed(&parts)?)?;
    check_eq!(path, Path::Mixed);
    check_eq!(
        segments[..],
        [
            mapped(BASE + ram[0].phys(), PAGE),
            bus(near[0], UP),
            mapped(BASE + bridge[0].phys(), len),
            mapped(BASE + ram[1].phys(), PAGE),
        ]
    );
    check_eq!(
        recorder.memories()[..],
        [Memory::Ram, Memory::Mmio, Memory::Ram]
    );
    check_eq!(slot.spilled(), 3);
    slot.unmap();
    check_eq!(recorder.count(|_| true), 6 + calls);
    check_eq!(recorder.count(|c| *c == unmap_phys(bridge[0])), 1);
    check!(recorder.clean());
    Ok(())
}

fn not_coherent(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    recorder.coherent.set(false);
    by_itself(&bed, &recorder, PAGE, 0)?;

    // RAM alone can share a range, whatever stands between.
    let recorder = Recorder::new();
    recorder.coherent.set(false);
    let client = client(&recorder, LIMITS)?;
    let pages = scattered(2)?;
    let ram = places(&pages)?;
    let near = [at(&bed.up, 0, 0x100)?];
    let mut slot = Mapping::default();
    let parts = [
        Part::Ram(&ram[..1]),
        Part::Provider(&near),
        Part::Ram(&ram[1..]),
    ];
    let (segments, _) = map(&client, &mut slot, mixed(&parts)?)?;
    check_eq!(
        segments[..],
        [
            mapped(BASE, PAGE),
            bus(near[0], UP),
            mapped(BASE + 0x1000, PAGE)
        ]
    );
    slot.unmap();
    check!(recorder.clean());
    Ok(())
}

fn off_the_granule(bed: Bed<'_>) -> Result {
    by_itself(&bed, &Recorder::new(), 0x800, 0)
}

fn no_iova_space(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    recorder.has_iova.set(false);
    // It was asked for.
    by_itself(&bed, &recorder, PAGE, 1)
}

/// Without an IOMMU nothing is remembered, but the memory is kept.
fn nothing_to_undo(bed: Bed<'_>) -> Result {
    let recorder = Recorder::direct();
    let client = client(&recorder, LIMITS)?;
    let pages = scattered(2)?;
    let ram = places(&pages)?;
    let bridge = [at(&bed.bridge, 0x3000, 0x800)?];
    let near = [at(&bed.up, 0, 0x100)?];
    let mut slot = Mapping::default();

    let parts = [
        Part::Ram(&ram),
        Part::Provider(&near),
        Part::Provider(&bridge),
    ];
    let (segments, _) = map(&client, &mut slot, mixed(&parts)?)?;
    check_eq!(segments.len(), 4);
    check_eq!(slot.spilled(), 0);
    slot.unmap();
    check_eq!(
        recorder.count(|c| matches!(c, Call::UnmapPhys { .. } | Call::Destroy { .. })),
        0
    );
    revoked_at_once(bed.bridge, slot)
}

/// Limits cut what is not mapped, too.
fn limits_cut(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let limits = Limits {
        max_segment_bytes: 0xc00,
        boundary_mask: 0xfff,
        max_segments: 7,
    };
    let client = client(&recorder, limits)?;
    let pages = scattered(1)?;
    let ram = places(&pages)?;
    let near = [at(&bed.up, 0xe00, 0xe80)?];
    let internal = [at(&bed.own, 0xfff, 2)?];
    let mut slot = Mapping::default();

    let parts = [
        Part::Provider(&near),
        Part::Ram(&ram),
        Part::Provider(&internal),
    ];
    let (segments, _) = map(&client, &mut slot, mixed(&parts)?)?;
    let [near, internal] = [near[0], internal[0]];
    let (near_head, rest) = near.split(0x200);
    let (near_mid, near_tail) = rest.ok_or(EINVAL)?.split(0xc00);
    let (own_head, own_tail) = internal.split(1);
    let base = BASE + ram[0].phys();
    check_eq!(
        segments[..],
        [
            bus(near_head, UP),
            bus(near_mid, UP),
            bus(near_tail.ok_or(EINVAL)?, UP),
            mapped(base, 0xc00),
            mapped(base + 0xc00, 0x400),
            own(own_head, &bed),
            own(own_tail.ok_or(EINVAL)?, &bed),
        ]
    );

    // One segment more is too many, and nothing is left behind.
    let more = [at(&bed.up, 0, 1)?];
    let parts = [
        Part::Provider(&more),
        Part::Provider(&more),
        parts[0],
        parts[1],
        parts[2],
    ];
    let mut segments = client.map(&mut slot, mixed(&parts)?, FromDevice)?;
    for _ in 0..7 {
        check!(segments.next()?.is_some());
    }
    check_eq!(segments.next(), Err(EINVAL));
    check_eq!(segments.next(), Ok(None));
    check_eq!(segments.count(), 7);
    check!(recorder.clean());
    revoked_at_once(bed.up, slot)
}

/// Fails each call in turn. Everything is undone then, and no memory is kept.
fn each_call_fails(setup: impl Fn(&Recorder), calls: usize) -> Result {
    let pages = scattered(2)?;
    let ram = places(&pages)?;
    for good in 0..=calls {
        on_bed(|bed| {
            let bridge = [at(&bed.bridge, 0x3000, PAGE)?];
            let second = [at(&bed.second_bridge, 0x3000, PAGE)?];
            let near = [at(&bed.up, 0, 0x100)?];
            let parts = [
                Part::Provider(&bridge),
                Part::Ram(&ram[..1]),
                Part::Provider(&near),
                Part::Provider(&second),
                Part::Ram(&ram[1..]),
            ];
            let recorder = Recorder::new();
            setup(&recorder);
            recorder.fail_after(good);
            let client = client(&recorder, LIMITS)?;
            let mut slot = Mapping::default();

            let result = map(&client, &mut slot, mixed(&parts)?);
            if good < calls {
                check_eq!(result.err(), Some(FAULT));
            } else {
                check!(result.is_ok());
                check!(!recorder.clean());
                slot.unmap();
            }
            check!(recorder.clean());
            check_eq!(slot.spilled(), 0);
            // What failed is there still, but keeps nothing.
            revoked_at_once((bed.bridge, bed.second_bridge, bed.up), slot)
        })?;
    }
    Ok(())
}

fn no_space(recorder: &Recorder) {
    recorder.has_iova.set(false);
}

/// Who has the memory of several providers keeps each once.
fn each_provider_once(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    // There is room for two notes; a provider more than the first is one.
    let limits = Limits {
        max_segments: 1,
        ..LIMITS
    };
    let client = client(&recorder, limits)?;
    let mut list = KVec::new();
    for number in 0..32 {
        let range = if number % 2 == 0 {
            &bed.bridge
        } else {
            &bed.second_bridge
        };
        list.push(at(range, number * 2 * u64::from(PAGE), PAGE)?, GFP_KERNEL)?;
    }
    let mut slot = Mapping::default();
    let (segments, _) = map(&client, &mut slot, Raw::new(&list)?)?;
    check_eq!(segments[..], [mapped(BASE, 32 * PAGE)]);
    slot.unmap();
    check!(recorder.clean());
    revoked_at_once((bed.bridge, bed.second_bridge), slot)
}

/// The memory of any number of providers is one segment, and all of it is kept until it is
/// unmapped.
fn many_providers(count: u64, max_segments: u16, shared: bool) -> Result {
    with_memory(|dev| {
        let recorder = Recorder::new();
        recorder.has_iova.set(shared);
        let limits = Limits {
            max_segments,
            ..LIMITS
        };
        let client = client(&recorder, limits)?;
        let (ranges, list) = row(dev, count)?;
        let mut slot = Mapping::default();
        let result = map(&client, &mut slot, Raw::new(&list)?);
        if shared || count <= u64::from(max_segments) {
            let bytes = if shared { count as u32 * PAGE } else { PAGE };
            check_eq!(result?.0[0].len, bytes);
            // Each of them, as long as it is mapped.
            let all_have = |wanted: u64| {
                ranges.iter().all(|range| {
                    let mut in_flight = 0;
                    let count = |traffic: Traffic<'_>| in_flight += traffic.in_flight;
                    range.provider().for_each_client(count);
                    in_flight == wanted
                })
            };
            check!(all_have(1));
            slot.unmap();
            check!(all_have(0));
        } else {
            check_eq!(result.err(), Some(EINVAL));
        }
        check!(recorder.clean());
        revoked_at_once(ranges, slot)
    })
}

/// What nobody has registered is not mapped, unless it is said to be RAM.
fn misses(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let pages = scattered(1)?;
    let ram = places(&pages)?;
    let near = at(&bed.up, 0, 0x100)?;
    let last = bed.refused.provider().range().last();
    let mut slot = Mapping::default();

    let beyond = PhysBvec::new(last - 0xff, 0x200).ok_or(EINVAL)?;
    for list in [
        &[ram[0]][..],
        &[near, ram[0]],
        &[PhysBvec::new(last + 1, 1).ok_or(EINVAL)?],
    ] {
        check_eq!(map(&client, &mut slot, Raw::new(list)?).err(), Some(EFAULT));
        let parts = [Part::Provider(list)];
        check_eq!(map(&client, &mut slot, mixed(&parts)?).err(), Some(EFAULT));
    }
    // It begins in a range.
    check!(map(&client, &mut slot, Raw::new(&[beyond])?).is_err());
    // It would end in one.
    drop(bed.up);
    let list = [at(&bed.down, 0, 0x100)?];
    let before = PhysBvec::new(list[0].phys() - 0x100, 0x200).ok_or(EINVAL)?;
    check_eq!(
        map(&client, &mut slot, Raw::new(&[before])?).err(),
        Some(EFAULT)
    );
    check!(recorder.called(&[]));

    // The way it was said.
    let parts = [Part::Provider(&list), Part::Ram(&ram)];
    let (segments, _) = map(&client, &mut slot, mixed(&parts)?)?;
    check_eq!(segments.len(), 2);
    slot.unmap();
    check!(recorder.clean());
    Ok(())
}

/// Memory without a route is refused, whatever else there is in the request.
fn refused(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let mut slot = Mapping::default();
    check_eq!(client.route(&bed.refused.provider()), Err(NO_ROUTE));

    let list = [at(&bed.up, 0, 0x100)?, at(&bed.refused, 0, 0x100)?];
    // The last one finds out when it has the first already.
    for list in [&list[1..], &list[..]] {
        check_eq!(map(&client, &mut slot, Raw::new(list)?).err(), Some(EINVAL));
    }
    check!(recorder.called(&[]));
    revoked_at_once((bed.up, bed.refused), slot)
}

/// A mapping that ends, if only because call number `fault` fails, takes the memory away from the
/// device before the memory goes.
fn ends_in_order(
    bed: Bed<'_>,
    setup: impl Fn(&Recorder),
    fault: Option<usize>,
    ram: &[PhysBvec],
) -> Result {
    let recorder = Recorder::new();
    setup(&recorder);
    let gate = Gate::new()?;
    recorder.gate.replace(Some(gate.clone()));
    recorder.fail_after(fault.unwrap_or(usize::MAX));
    let client = client(&recorder, LIMITS)?;
    let list = [
        at(&bed.bridge, 0x3000, PAGE)?,
        at(&bed.bridge, 0x6000, PAGE)?,
    ];
    let parts = [Part::Provider(&list), Part::Ram(ram)];

    let Bed { bridge, .. } = bed;
    let _hold = bridge.provider().hold(gate.clone())?;
    // SAFETY: It is dropped at the end of this function.
    let thread = unsafe {
        Thread::spawn(c"physdma_revoke", |stop| {
            while !gate.mapping.load(Relaxed) && !stop.should_stop() {
                fsleep(Delta::from_millis(1));
            }
            drop(bridge);
            gate.ended.store(true, Relaxed);
        })
    }?;
    let mut slot = Mapping::default();
    let result = map(&client, &mut slot, mixed(&parts)?);
    check_eq!(result.err(), fault.map(|_| FAULT));
    slot.unmap();
    check!(recorder.clean());
    drop(slot);
    drop(thread);
    check!(gate.ended.load(Relaxed));
    Ok(())
}

/// All ways to map and fail: see [`ends_in_order`].
fn all_end_in_order(setup: impl Fn(&Recorder), faults: &[Option<usize>]) -> Result {
    let pages = scattered(1)?;
    let ram = places(&pages)?;
    for &fault in faults {
        for ram in [&[], &ram[..]] {
            on_bed(|bed| ends_in_order(bed, &setup, fault, ram))?;
        }
    }
    Ok(())
}

/// What has been told of a request that ends early.
fn not_asked_for(bed: Bed<'_>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let list = [at(&bed.up, 0, 0x100)?, at(&bed.bridge, 0, 0x100)?];
    let mut slot = Mapping::default();
    {
        let mut segments = client.map(&mut slot, Raw::new(&list)?, FromDevice)?;
        check!(segments.next()?.is_some());
    }
    slot.unmap();
    check!(recorder.clean());
    revoked_at_once((bed.up, bed.bridge), slot)
}

/// What a source says of itself.
fn mixed_source(bed: Bed<'_>) -> Result {
    let pages = scattered(2)?;
    let ram = places(&pages)?;
    let near = [at(&bed.up, 0x100, 0x100)?, at(&bed.up, 0x200, 0x100)?];
    let parts = [Part::Provider(&near), Part::Ram(&ram)];
    let mut source = mixed(&parts)?;
    check_eq!(source.bytes(), 0x2200);
    check!(source.gaps() & 0xfff == 0x300);
    for _ in 0..2 {
        check_eq!(source.next(), near[0].join(near[1]));
        check_eq!(source.miss(), kernel::physdma::Miss::Refuse);
        check_eq!(source.next(), Some(ram[0]));
        check_eq!(source.miss(), kernel::physdma::Miss::Ram);
        check_eq!(source.next(), Some(ram[1]));
        check_eq!(source.next(), None);
        source.rewind();
    }
    // Neighbours in two parts are two pieces, and not one range where they meet within a page.
    let (head, rest) = ram[0].split(0x100);
    let (head, rest) = ([head], [rest.ok_or(EINVAL)?]);
    let parts = [Part::Ram(&head), Part::Ram(&rest)];
    check!(mixed(&parts)?.gaps() & 0xfff == 0x100);
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let mut slot = Mapping::default();
    check_eq!(map(&client, &mut slot, mixed(&parts)?)?.0.len(), 2);
    slot.unmap();
    check!(recorder.clean());
    check_eq!(mixed(&[]).err(), Some(EINVAL));
    check_eq!(mixed(&[Part::Ram(&[])]).err(), Some(EINVAL));
    Ok(())
}

#[kunit_tests(physdma_mixed)]
mod tests {
    use super::*;

    #[test]
    fn by_bus_address() -> Result {
        on_bed(bus_address)
    }

    #[test]
    fn own_memory_has_its_place() -> Result {
        on_bed(own_memory)
    }

    #[test]
    fn one_piece_through_the_host_bridge() -> Result {
        on_bed(bridge_single)
    }

    #[test]
    fn pieces_through_the_host_bridge_are_one_range() -> Result {
        on_bed(bridge_range)
    }

    #[test]
    fn all_kinds_in_data_order() -> Result {
        on_bed(all_kinds)
    }

    #[test]
    fn ram_and_host_bridge_are_one_segment() -> Result {
        on_bed(one_segment)
    }

    #[test]
    fn neighbours_of_two_providers() -> Result {
        on_bed(neighbours)
    }

    #[test]
    fn neighbours_on_the_bus_are_one_segment() -> Result {
        neighbours_on_the_bus()
    }

    #[test]
    fn not_coherent_is_not_shared() -> Result {
        on_bed(not_coherent)
    }

    #[test]
    fn off_the_granule_is_direct() -> Result {
        on_bed(off_the_granule)
    }

    #[test]
    fn without_iova_space_is_direct() -> Result {
        on_bed(no_iova_space)
    }

    #[test]
    fn without_an_iommu_nothing_is_remembered() -> Result {
        on_bed(nothing_to_undo)
    }

    #[test]
    fn limits_cut_everything() -> Result {
        on_bed(limits_cut)
    }

    #[test]
    fn each_call_of_a_shared_range_fails() -> Result {
        // Four links and the sync.
        each_call_fails(|_| (), 5)
    }

    #[test]
    fn each_mapping_of_a_mixed_piece_fails() -> Result {
        each_call_fails(no_space, 4)
    }

    #[test]
    fn several_providers_are_kept_once() -> Result {
        on_bed(each_provider_once)
    }

    #[test]
    fn as_many_providers_as_there_are() -> Result {
        for count in 1..9 {
            many_providers(count, 1, true)?;
            many_providers(count, 3, true)?;
            many_providers(count, 3, false)?;
        }
        many_providers(48, 1, true)?;
        many_providers(100, 16, true)
    }

    #[test]
    fn unknown_memory_is_refused() -> Result {
        on_bed(misses)
    }

    #[test]
    fn no_route_is_refused() -> Result {
        on_bed(refused)
    }

    #[test]
    fn memory_is_kept_until_a_range_is_gone() -> Result {
        // Unmapped; the first link, the second and the sync fail.
        all_end_in_order(|_| (), &[None, Some(0), Some(1), Some(2)])
    }

    #[test]
    fn memory_is_kept_until_pieces_are_gone() -> Result {
        all_end_in_order(no_space, &[None, Some(1)])
    }

    #[test]
    fn segments_not_asked_for() -> Result {
        on_bed(not_asked_for)
    }

    #[test]
    fn mixed_as_a_source() -> Result {
        on_bed(mixed_source)
    }
}
