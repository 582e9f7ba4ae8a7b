// SPDX-License-Identifier: GPL-2.0

//! Revocation: what it waits for, what everybody is told meanwhile, and what is left afterwards.

use super::{
    bound::{
        at,
        check,
        check_eq,
        client,
        follow,
        open,
        with_memory,
        PART,
        UP, //
    },
    recorder::{
        map,
        Gate,
        Recorder,
        LIMITS, //
    }, //
};
use kernel::{
    device::Bound,
    pci,
    physdma::{
        copy_from,
        failures,
        nearest_provider,
        provider_of,
        BarRange,
        Hold,
        Mapping,
        Mixed,
        Part,
        Path,
        PhysBvec,
        Raw,
        Refused,
        Registration,
        Route,
        Source, //
    },
    prelude::*,
    sync::{
        atomic::Relaxed,
        rcu,
        Arc, //
    },
    task::kthread::Thread,
    time::{
        delay::{
            fsleep,
            udelay, //
        },
        Delta, //
    }, //
};

/// Longer than a revocation takes that has nothing to wait for but grace periods.
const LONG: Delta = Delta::from_millis(100);

/// A thread that revokes.
pub(crate) struct Revoking<'a> {
    gate: Arc<Gate>,
    _hold: Hold,
    _thread: Thread<'a>,
}

impl<'a> Revoking<'a> {
    /// Revokes `range` in a thread. Dropping the result waits until that has ended.
    ///
    /// # Safety
    ///
    /// The result is not forgotten.
    pub(crate) unsafe fn begin(range: Registration<'a>) -> Result<Self> {
        let gate = Gate::new()?;
        let hold = range.provider().hold(gate.clone())?;
        let ended = gate.clone();
        // SAFETY: By the safety requirements.
        let thread = unsafe {
            Thread::spawn(c"physdma_revoke", move |_| {
                drop(range);
                ended.ended.store(true, Relaxed);
            })
        }?;
        Ok(Self {
            gate,
            _hold: hold,
            _thread: thread,
        })
    }

    /// Waits until the holders have been told: waiting for requests is all that is left.
    fn begins(&self) -> Result {
        for _ in 0..10_000 {
            if self.gate.told.load(Relaxed) {
                return Ok(());
            }
            fsleep(Delta::from_micros(200));
        }
        Err(ETIMEDOUT)
    }

    /// Whether it waits for as long as it would take if it did not.
    pub(crate) fn is_waiting(&self) -> Result<bool> {
        self.begins()?;
        fsleep(LONG);
        Ok(!self.has_ended())
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.gate.ended.load(Relaxed)
    }

    /// Waits until it has ended; not long.
    pub(crate) fn ends(&self) -> bool {
        for _ in 0..10_000 {
            if self.has_ended() {
                return true;
            }
            fsleep(Delta::from_micros(200));
        }
        false
    }
}

/// How a client reaches the ranges of [`in_flight`], by their numbers.
fn script(memory: &BarRange) -> Result<(Route, u32), Refused> {
    let route = match memory.start() / PART % 3 {
        0 => Route::Bus { offset: UP },
        1 => Route::Internal { bar: 2, offset: UP },
        _ => Route::HostBridge,
    };
    Ok((route, 1))
}

/// The number of ranges that are revoked at the same time.
const AT_ONCE: u64 = 12;

/// Maps in each of the ways that there are, has the memory revoked, and looks that it is kept until
/// it is not mapped any more.
fn in_flight(dev: &pci::Device<Bound>) -> Result {
    let mut recorders = KVec::new();
    for _ in 0..AT_ONCE {
        recorders.push(Recorder::new(), GFP_KERNEL)?;
    }
    let mut clients = KVec::new();
    for recorder in &recorders {
        follow(recorder, script)?;
        clients.push(recorder.client(LIMITS)?, GFP_KERNEL)?;
    }
    // In that order, so that a check that fails ends the mappings before the threads.
    let mut revoking = KVec::new();
    let mut slots = KVec::new();
    let mut lists = KVec::new();

    for (number, client) in (0..AT_ONCE).zip(&clients) {
        let range = open(dev, number * PART, PART)?;
        let list = [at(&range, 0, 0x1000)?, at(&range, 0x3000, 0x1000)?];
        // One piece, or two, which are another way.
        let count = 1 + (number / 3 % 2) as usize;
        let mut slot = Mapping::default();
        let (_, path) = map(client, &mut slot, Raw::new(&list[..count])?)?;
        check_eq!(
            path,
            match (number % 3, count) {
                (0, _) => Path::Bus,
                (1, _) => Path::Internal,
                (_, 1) => Path::Single,
                _ => Path::Iova,
            }
        );
        slots.push(slot, GFP_KERNEL)?;
        lists.push(list, GFP_KERNEL)?;
        // SAFETY: It is dropped at the end of this function.
        revoking.push(unsafe { Revoking::begin(range) }?, GFP_KERNEL)?;
    }
    for revoking in &revoking {
        revoking.begins()?;
    }
    fsleep(LONG);

    for (number, slot) in slots.iter_mut().enumerate() {
        // Nobody gets it any more.
        let (client, list) = (&clients[number], &lists[number]);
        let other = &clients[(number + 1) % clients.len()];
        for client in [client, other] {
            let error = map(client, &mut Mapping::default(), Raw::new(list)?).err();
            check_eq!(error, Some(ENODEV));
        }
        check!(!revoking[number].has_ended());
        slot.unmap();
    }
    for (number, revoking) in revoking.iter().enumerate() {
        check!(revoking.ends());
        check!(recorders[number].clean());
        // It is nobody's.
        let list = &lists[number];
        let error = map(&clients[number], &mut Mapping::default(), Raw::new(list)?).err();
        check_eq!(error, Some(EFAULT));
    }
    Ok(())
}

/// How often ranges are revoked: enough that what happens rarely happens; less where each takes
/// long.
const REVOCATIONS: u64 = if cfg!(CONFIG_KASAN) { 100 } else { 1000 };

fn rounds(dev: &pci::Device<Bound>) -> Result {
    let rounds = REVOCATIONS.div_ceil(AT_ONCE);
    for round in 0..rounds {
        in_flight(dev).inspect_err(|_| pr_err!("in round {round}\n"))?;
    }
    let revocations = rounds * AT_ONCE;
    pr_info!("physdma: revoked {revocations} times with a mapping in flight\n");
    Ok(())
}

/// With nothing in flight.
fn idle(dev: &pci::Device<Bound>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let range = open(dev, 0, PART)?;
    let provider = range.provider();
    let list = [at(&range, 0, 0x1000)?];
    let mut slot = Mapping::default();
    check!(client.route(&provider).is_ok());
    map(&client, &mut slot, Raw::new(&list)?)?;
    slot.unmap();
    drop(range);

    check!(provider.is_revoked());
    check_eq!(client.route(&provider), Err(Refused::Revoked));
    check_eq!(
        map(&client, &mut slot, Raw::new(&list)?).err(),
        Some(EFAULT)
    );
    // What was a provider's is not taken for RAM.
    let parts = [Part::Provider(&list)];
    // SAFETY: There is no RAM.
    let source = unsafe { Mixed::new(&parts) }?;
    check_eq!(map(&client, &mut slot, source).err(), Some(EFAULT));
    check!(provider_of(list[0])?.is_none());
    check!(recorder.called(&[]));

    // A client that comes later.
    let late = recorder.client(LIMITS)?;
    check_eq!(late.route(&provider), Err(Refused::Revoked));

    // The object is there as long as anybody has it.
    let kept = provider.clone();
    drop(provider);
    check_eq!(kept.range().start(), 0);
    Ok(())
}

/// What an operator is told: of each client of each provider, and of all that failed.
fn traffic(dev: &pci::Device<Bound>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let _other = recorder.client(LIMITS)?;
    let range = open(dev, 0, PART)?;
    let refuses = open(dev, 5 * PART, PART)?;
    let list = [at(&range, 0, 0x1000)?];
    let no_way = [at(&refuses, 0, 0x1000)?];
    // Clients are counted in the order in which they came.
    let told = |range: &Registration<'_>| -> Result<KVec<_>> {
        let mut list = KVec::new();
        let mut result = Ok(());
        range.provider().for_each_client(|traffic| {
            let counts = (traffic.mapped, traffic.in_flight, traffic.refused);
            let row = (traffic.route.is_ok(), counts);
            result = result.and(list.push(row, GFP_KERNEL));
        });
        result?;
        Ok(list)
    };
    let failed = |wanted: Error| {
        let mut all = failures();
        all.find_map(|(errno, times)| (errno == Some(wanted)).then_some(times))
    };
    let before = [EINVAL, EFAULT, ENODEV].map(failed);
    let mut slot = Mapping::default();
    let mut second = Mapping::default();

    map(&client, &mut slot, Raw::new(&list)?)?;
    map(&client, &mut second, Raw::new(&list)?)?;
    second.unmap();
    for _ in 0..3 {
        let error = map(&client, &mut second, Raw::new(&no_way)?).err();
        check_eq!(error, Some(EINVAL));
    }
    check_eq!(told(&range)?[..], [(true, (2, 1, 0)), (true, (0, 0, 0))]);
    check_eq!(
        told(&refuses)?[..],
        [(false, (0, 0, 3)), (false, (0, 0, 0))]
    );
    slot.unmap();
    check_eq!(told(&range)?[0], (true, (2, 0, 0)));

    let nobodys = PhysBvec::new(0x1000, 1).ok_or(EINVAL)?;
    let error = map(&client, &mut slot, Raw::new(&[nobodys])?).err();
    check_eq!(error, Some(EFAULT));
    let added = [3, 1, 0];
    for (number, errno) in [EINVAL, EFAULT, ENODEV].into_iter().enumerate() {
        check_eq!(
            failed(errno),
            before[number].map(|before| before + added[number])
        );
    }
    Ok(())
}

/// What everybody is told while a revocation waits.
fn meanwhile(dev: &pci::Device<Bound>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let leaver = recorder.client(LIMITS)?;
    let range = open(dev, 0, PART)?;
    let other = open(dev, 2 * PART, PART)?;
    let provider = range.provider();
    let list = [at(&range, 0, 0x1000)?];
    let both = [at(&other, 0, 0x1000)?, list[0]];
    let late = Gate::new()?;
    let kept = provider.hold(late.clone())?;
    let revoking;
    let mut slot = Mapping::default();

    map(&client, &mut slot, Raw::new(&list)?)?;
    {
        let mut left = Mapping::default();
        map(&leaver, &mut left, Raw::new(&list)?)?;
    }
    // SAFETY: It is dropped at the end of this function.
    revoking = unsafe { Revoking::begin(range) }?;
    check!(revoking.is_waiting()?);

    // It was told before anybody was waited for.
    check!(late.told.load(Relaxed));
    drop(kept);

    // Those who are there, whatever way it comes to them.
    let mut second = Mapping::default();
    for list in [&list[..], &both] {
        check_eq!(
            map(&client, &mut second, Raw::new(list)?).err(),
            Some(ENODEV)
        );
        check_eq!(
            map(&leaver, &mut second, Raw::new(list)?).err(),
            Some(ENODEV)
        );
    }
    check_eq!(client.route(&provider), Err(Refused::Revoked));
    check_eq!(provider.alloc(1).err(), Some(ENODEV));
    check_eq!(provider.window(0, 1).err(), Some(ENODEV));
    check_eq!(provider.hold(late.clone()).err(), Some(ENODEV));
    check_eq!(
        copy_from(Raw::new(&list)?, 0, &mut [0u8; 4]).err(),
        Some(ENODEV)
    );

    // It is nobody else's as long as a device has it.
    check!(provider_of(list[0])?.is_some_and(|found| found.is_revoked()));
    check_eq!(open(dev, 0, PART).err(), Some(EBUSY));
    check_eq!(open(dev, PART - 1, 1).err(), Some(EBUSY));

    // Who comes.
    let comer = recorder.client(LIMITS)?;
    check_eq!(comer.route(&provider), Err(Refused::Revoked));
    check_eq!(
        map(&comer, &mut Mapping::default(), Raw::new(&list)?).err(),
        Some(ENODEV)
    );
    // Who goes, and who comes in its place.
    drop(second);
    drop(leaver);
    drop(comer);
    let comer = recorder.client(LIMITS)?;
    check_eq!(comer.route(&provider), Err(Refused::Revoked));
    check!(comer.route(&other.provider()).is_ok());
    check!(!revoking.has_ended());

    slot.unmap();
    check!(revoking.ends());
    let again = open(dev, 0, PART)?;
    check!(client.route(&again.provider()).is_ok());
    check!(comer.route(&again.provider()).is_ok());
    check_eq!(client.route(&provider), Err(Refused::Revoked));
    check!(map(&comer, &mut Mapping::default(), Raw::new(&both)?).is_ok());
    Ok(())
}

/// Who found the memory without a lock may look at it to the end.
fn readers(dev: &pci::Device<Bound>) -> Result {
    let range = open(dev, 0, PART)?;
    // With the last one the kernel is patched, which takes long.
    let _other = open(dev, 2 * PART, PART)?;
    let piece = at(&range, 0, 1)?;
    let _weak = range.provider();
    // SAFETY: It is dropped at the end of this function.
    let revoking = unsafe { Revoking::begin(range) }?;
    let mut looks = 0;
    loop {
        let guard = rcu::read_lock();
        if provider_of(piece)?.is_none() {
            break;
        }
        // Longer than it takes from being erased to the end, if nobody is waited for.
        for _ in 0..20 {
            udelay(Delta::from_millis(5));
        }
        check!(!revoking.has_ended());
        drop(guard);
        looks += 1;
    }
    check!(looks > 0);
    check!(revoking.ends());
    Ok(())
}

/// A CPU's mapping counts as one.
fn window_in_flight(dev: &pci::Device<Bound>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let range = open(dev, 0, PART)?;
    let revoking;
    let window = range.provider().window(0x100, 0x10)?;
    check!(nearest_provider(&[&client]).is_some());
    // SAFETY: It is dropped at the end of this function.
    revoking = unsafe { Revoking::begin(range) }?;
    check!(revoking.is_waiting()?);
    // Nobody is told to go there any more.
    check!(nearest_provider(&[&client]).is_none());
    // It is there still.
    window.write(0, b"kept")?;
    let mut buf = [0; 4];
    window.read(0, &mut buf)?;
    check_eq!(&buf, b"kept");
    check!(!revoking.has_ended());
    drop(window);
    check!(revoking.ends());
    Ok(())
}

/// Each of several mappings counts, of each client, and of each provider of a request.
fn all_in_flight(dev: &pci::Device<Bound>) -> Result {
    let recorder = Recorder::new();
    let (one, two) = (client(&recorder, LIMITS)?, recorder.client(LIMITS)?);
    let ranges = [open(dev, 0, PART)?, open(dev, PART, PART)?];
    let list = [at(&ranges[0], 0, 0x1000)?, at(&ranges[1], 0, 0x1000)?];
    let [first, second] = ranges;
    let (revoking, also);
    let (mut both, mut again, mut other) = Default::default();

    map(&one, &mut both, Raw::new(&list)?)?;
    map(&one, &mut again, Raw::new(&list[..1])?)?;
    map(&two, &mut other, Raw::new(&list[..1])?)?;
    // SAFETY: It is dropped at the end of this function.
    revoking = unsafe { Revoking::begin(first) }?;
    // SAFETY: As above.
    also = unsafe { Revoking::begin(second) }?;
    check!(revoking.is_waiting()? && also.is_waiting()?);

    again.unmap();
    fsleep(LONG);
    check!(!revoking.has_ended() && !also.has_ended());
    both.unmap();
    check!(also.ends());
    fsleep(LONG);
    check!(!revoking.has_ended());
    other.unmap();
    check!(revoking.ends());
    Ok(())
}

/// A request that has begun to be told to the device is one in flight: piece by piece, too.
fn while_segments_are_asked_for(dev: &pci::Device<Bound>) -> Result {
    let recorder = Recorder::new();
    let client = client(&recorder, LIMITS)?;
    let ranges = [open(dev, 0, PART)?, open(dev, PART, PART)?];
    let list = [at(&ranges[0], 0, 0x1000)?, at(&ranges[1], 0, 0x1000)?];
    let [first, _second] = ranges;
    let revoking;
    let mut slot = Mapping::default();

    let source = Raw::new(&list)?;
    check_eq!(source.bytes(), 0x2000);
    let mut segments = client.map(&mut slot, source, kernel::dma::DataDirection::ToDevice)?;
    // SAFETY: It is dropped at the end of this function.
    revoking = unsafe { Revoking::begin(first) }?;
    check!(revoking.is_waiting()?);
    // It was taken before, so it is there to the end.
    check!(segments.next()?.is_some());
    check!(segments.next()?.is_some());
    check!(segments.next()?.is_none());
    check!(!revoking.has_ended());
    slot.unmap();
    check!(revoking.ends());
    Ok(())
}

#[kunit_tests(physdma_revoke)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_flight() -> Result {
        with_memory(idle)
    }

    #[test]
    fn what_an_operator_is_told() -> Result {
        with_memory(traffic)
    }

    #[test]
    fn what_others_get_meanwhile() -> Result {
        with_memory(meanwhile)
    }

    #[test]
    fn readers_are_waited_for() -> Result {
        with_memory(readers)
    }

    #[test]
    fn window_is_waited_for() -> Result {
        with_memory(window_in_flight)
    }

    #[test]
    fn each_mapping_is_waited_for() -> Result {
        with_memory(all_in_flight)
    }

    #[test]
    fn request_is_kept_to_its_end() -> Result {
        with_memory(while_segments_are_asked_for)
    }

    #[test]
    fn thousand_times_in_flight() -> Result {
        with_memory(rounds)
    }
}
