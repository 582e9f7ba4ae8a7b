// SPDX-License-Identifier: GPL-2.0

//! Several who go at the same time: a provider, a client of it, a holder of it.

use super::{
    bound::{
        self,
        at,
        check,
        client,
        open,
        script,
        with_memory,
        Edu,
        PART, //
    },
    recorder::{
        map,
        Recorder,
        LIMITS, //
    }, //
};
use core::mem::transmute;
use kernel::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    pci,
    physdma::{
        providers,
        BarRange,
        Client,
        Holder,
        Mapping,
        Provider,
        Raw,
        Refused,
        Registration,
        Route,
        Topology, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            Relaxed, //
        },
        Arc, //
    },
    task::kthread::Thread,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// Longer than anything here takes that has nothing to wait for but grace periods.
const LONG: Delta = Delta::from_millis(100);

fn flag() -> Result<Arc<AtomicFlag>> {
    Ok(Arc::new(AtomicFlag::new(false), GFP_KERNEL)?)
}

/// Whether `flag` is set before long.
fn comes(flag: &AtomicFlag) -> bool {
    for _ in 0..10_000 {
        if flag.load(Relaxed) {
            return true;
        }
        fsleep(Delta::from_micros(200));
    }
    false
}

/// What a thread drops. Dropping a client does not use what it records by.
struct Dropped<T>(T);

// SAFETY: The other threads do not use it any more.
unsafe impl<T> Send for Dropped<T> {}

impl<T> Dropped<T> {
    fn drop_it(self) {}
}

/// Drops `what` in a thread, which then sets the flag.
///
/// # Safety
///
/// The result is not forgotten.
unsafe fn drop_in_thread<'a, T: 'a>(what: T) -> Result<(Arc<AtomicFlag>, Thread<'a>)> {
    let what = Dropped(what);
    let dropped = flag()?;
    let ended = dropped.clone();
    // SAFETY: By the safety requirements.
    let thread = unsafe {
        Thread::spawn(c"physdma_going", move |_| {
            what.drop_it();
            ended.store(true, Relaxed);
        })
    }?;
    Ok((dropped, thread))
}

/// The mapping of a client that goes is waited for by whoever revokes the memory, too.
fn client_goes(dev: &pci::Device<Bound>) -> Result {
    let recorder = Recorder::new();
    let (going, revoking);
    let leaver = KBox::new(client(&recorder, LIMITS)?, GFP_KERNEL)?;
    let range = open(dev, 0, PART)?;
    let list = [at(&range, 0, 0x1000)?];
    // SAFETY: The client waits, before it goes, until nothing is mapped any more.
    let borrowed: &Client<'_, _> = unsafe { &*core::ptr::from_ref(&*leaver) };
    let mut slot = Mapping::default();

    map(borrowed, &mut slot, Raw::new(&list)?)?;
    // SAFETY: It is dropped at the end of this function.
    going = unsafe { drop_in_thread(leaver) }?;
    fsleep(LONG);
    // SAFETY: As above.
    revoking = unsafe { drop_in_thread(range) }?;
    fsleep(LONG);
    let waited = !going.0.load(Relaxed) && !revoking.0.load(Relaxed);
    slot.unmap();
    check!(waited);
    check!(comes(&going.0) && comes(&revoking.0));
    Ok(())
}

/// Takes its time when it is told.
struct Slow {
    begun: AtomicFlag,
    may_end: AtomicFlag,
    ended: AtomicFlag,
}

impl Holder for Slow {
    fn name(&self) -> &CStr {
        c"slow"
    }

    fn revoke(&self) {
        self.begun.store(true, Relaxed);
        comes(&self.may_end);
        self.ended.store(true, Relaxed);
    }
}

/// Who does not hold any more is not called any more.
fn holder_goes(dev: &pci::Device<Bound>) -> Result {
    let slow = Arc::new(
        Slow {
            begun: AtomicFlag::new(false),
            may_end: AtomicFlag::new(false),
            ended: AtomicFlag::new(false),
        },
        GFP_KERNEL,
    )?;
    let range = open(dev, 0, PART)?;
    let hold = range.provider().hold(slow.clone())?;
    // SAFETY: Both are dropped at the end of this function.
    let revoking = unsafe { drop_in_thread(range) }?;
    check!(comes(&slow.begun));
    // SAFETY: As above.
    let letting_go = unsafe { drop_in_thread(hold) }?;
    fsleep(LONG);
    let waited = !letting_go.0.load(Relaxed);
    slow.may_end.store(true, Relaxed);
    check!(waited);
    check!(comes(&letting_go.0) && slow.ended.load(Relaxed));
    check!(comes(&revoking.0));
    Ok(())
}

/// Counts how often it was asked to forget what is unmapped.
struct Counts(Atomic<u32>);

impl Topology for Counts {
    fn device(&self) -> Option<&Device> {
        None
    }

    fn route(&self, memory: &BarRange) -> Result<(Route, u32), Refused> {
        script(memory)
    }

    fn flush(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// An IOMMU that unmaps lazily has forgotten the memory when it is revoked; none is asked that did
/// not take part.
fn iommu_forgets(dev: &pci::Device<Bound>) -> Result {
    let counts = Arc::new(Counts(Atomic::new(0)), GFP_KERNEL)?;
    let recorder = Recorder::new();
    *recorder.topology.borrow_mut() = Some(counts.clone());
    let client = recorder.client(LIMITS)?;
    // Through the host bridge; by a bus address; its own; not at all.
    for (part, wanted) in [(3, 1), (0, 1), (2, 1), (5, 1), (4, 2)] {
        let range: Registration<'_> = open(dev, part * PART, PART)?;
        drop(range);
        check!(counts.0.load(Relaxed) == wanted);
    }
    // And when the client leaves: whoever revokes the memory later does not find it any more.
    let _range: Registration<'_> = open(dev, 3 * PART, PART)?;
    drop(client);
    check!(counts.0.load(Relaxed) == 3);
    Ok(())
}

/// A client that was forgotten is none any more when its device is not bound. This one is found
/// again later, so that its memory is not lost.
fn client_forgotten(dev: &pci::Device<Bound>) -> Result {
    let clients = |provider: &Provider| {
        let mut count = 0;
        provider.for_each_client(|_| count += 1);
        count
    };
    let early = open(dev, 0, PART)?;
    let mut forgotten = None;

    bound::with::<Edu>(|edu| {
        let client = Client::new(edu.as_ref(), LIMITS)?;
        // SAFETY: The device itself stays; until that is unbound this is as good as forgotten, and
        // then it is only dropped.
        forgotten = Some(unsafe { transmute::<Client<'_>, Client<'static>>(client) });
        check!(clients(&early.provider()) == 1);
        Ok(())
    })?;
    check!(clients(&early.provider()) == 0);
    drop(forgotten);
    let late = open(dev, PART, PART)?;
    check!(clients(&late.provider()) == 0);
    Ok(())
}

/// Is told that memory goes.
struct Told(Atomic<u32>);

impl Holder for Told {
    fn name(&self) -> &CStr {
        c"told"
    }

    fn revoke(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// A C driver that begins to take its memory away has all holders told at once: before it goes on
/// it may wait for what they have.
fn c_driver_goes(dev: &pci::Device<Bound>) -> Result {
    let told = Arc::new(Told(Atomic::new(0)), GFP_KERNEL)?;
    // It is transparent.
    let pdev = core::ptr::from_ref(dev).cast_mut().cast();
    // SAFETY: The device is bound until the end of this function, which gives the reference back.
    let raw = unsafe { bindings::physdma_register(pdev, 2, 0, PART) };
    let result = (|| {
        let provider = providers()?.pop().ok_or(ENXIO)?;
        let hold = provider.hold(told.clone())?;
        check!(told.0.load(Relaxed) == 0);
        // SAFETY: It is a reference, or an errno.
        unsafe { bindings::physdma_revoke(raw) };
        check!(told.0.load(Relaxed) == 1);
        check!(provider.hold(told.clone()).err() == Some(ENODEV));
        Ok(hold)
    })();
    // SAFETY: As above; it is not used any more.
    unsafe { bindings::physdma_unregister(raw) };
    // Who was told is not told again.
    check!(told.0.load(Relaxed) == 1);
    result.map(drop)
}

/// Clients of one provider at a time, more than it has room for at first.
const CROWD: usize = 20;

/// Many clients come and go while another one maps: where a provider finds them grows under whoever
/// looks there.
fn crowd(dev: &pci::Device<Bound>) -> Result {
    let range = open(dev, 0, PART)?;
    let list = [at(&range, 0, 0x1000)?];
    let (ready, end, failed) = (flag()?, flag()?, flag()?);
    let one_maps = || -> Result {
        let recorder = Recorder::new();
        let client = client(&recorder, LIMITS)?;
        let mut slot = Mapping::default();

        while !end.load(Relaxed) {
            map(&client, &mut slot, Raw::new(&list)?)?;
            slot.unmap();
            ready.store(true, Relaxed);
            fsleep(Delta::from_micros(1));
        }
        Ok(())
    };
    // SAFETY: It is dropped at the end of this function.
    let mapping = unsafe {
        Thread::spawn(c"physdma_crowd", |_| {
            failed.store(one_maps().is_err(), Relaxed);
        })
    }?;
    let others = || -> Result {
        let recorder = Recorder::new();

        check!(comes(&ready));
        for part in 1..4 {
            let mut clients = KVec::new();
            for _ in 0..CROWD {
                clients.push(client(&recorder, LIMITS)?, GFP_KERNEL)?;
            }
            let mut slots = KVec::new();
            for client in &clients {
                let mut slot = Mapping::default();
                map(client, &mut slot, Raw::new(&list)?)?;
                slots.push(slot, GFP_KERNEL)?;
            }
            let (mut count, mut busy) = (0, 0);
            range.provider().for_each_client(|traffic| {
                count += 1;
                busy += usize::from(traffic.in_flight == 1);
            });
            // The other one may have it mapped just now.
            check!(count == CROWD + 1 && busy >= CROWD);
            // All are clients of memory that comes later, too.
            let late = open(dev, part * PART, PART)?;
            let mut count = 0;
            late.provider().for_each_client(|_| count += 1);
            check!(count == CROWD + 1);
        }
        Ok(())
    };
    let result = others();
    end.store(true, Relaxed);
    drop(mapping);
    check!(!failed.load(Relaxed));
    result
}

#[kunit_tests(physdma_going)]
mod tests {
    use super::*;

    #[test]
    fn many_clients_come_and_go_while_one_maps() -> Result {
        with_memory(crowd)
    }

    #[test]
    fn client_that_goes_is_waited_for() -> Result {
        with_memory(client_goes)
    }

    #[test]
    fn holder_that_goes_waits_until_it_was_told() -> Result {
        with_memory(holder_goes)
    }

    #[test]
    fn client_that_is_forgotten_ends_with_the_binding() -> Result {
        with_memory(client_forgotten)
    }

    #[test]
    fn holder_is_told_by_c_drivers() -> Result {
        with_memory(c_driver_goes)
    }

    #[test]
    fn lazy_iommu_is_flushed() -> Result {
        with_memory(iommu_forgets)
    }
}
