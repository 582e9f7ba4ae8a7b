// SPDX-License-Identifier: GPL-2.0

//! Each allocation of each call fails in turn, on kernels that can make it: `ENOMEM`, and nothing
//! is left behind. That nothing leaks, kmemleak says at the end.
//!
//! The kernel must have been told to fail allocations that may wait, too: `ignore-gfp-wait` of
//! failslab, in debugfs.

use super::{
    bound::{
        check,
        client,
        open,
        row,
        with_memory,
        PART, //
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
        Client,
        Limits,
        Mapping,
        Raw, //
    },
    prelude::*, //
};

/// While it lives, one allocation of this task fails.
struct Failing;

impl Failing {
    /// The `nth` from now on.
    fn nth(nth: u32) -> Self {
        Self::set(nth);
        Self
    }

    /// Whether it has not come yet.
    fn is_to_come(&self) -> bool {
        // SAFETY: It is this task's own, which nobody else looks at.
        unsafe { (*current!().as_ptr()).fail_nth != 0 }
    }

    fn set(nth: u32) {
        // SAFETY: As above.
        unsafe { (*current!().as_ptr()).fail_nth = nth }
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        Self::set(0);
    }
}

/// Calls `f` again and again, until no allocation of it is left that has not failed.
fn each_fails(what: &str, mut f: impl FnMut() -> Result) -> Result {
    each_fails_with(what, || Ok(()), |()| f())
}

/// The same, with what `prepare` made for each call: its own allocations do not fail.
fn each_fails_with<T>(
    what: &str,
    prepare: impl Fn() -> Result<T>,
    mut f: impl FnMut(&T) -> Result,
) -> Result {
    let mut missed = 0;

    for nth in 1..1000 {
        let prepared = prepare()?;
        let failing = Failing::nth(nth);
        let result = f(&prepared);
        let is_to_come = failing.is_to_come();
        drop(failing);

        if is_to_come {
            pr_info!(
                "physdma: {what}: {missed} of {} allocations are missed\n",
                nth - 1
            );
            result?;
            check!(missed > 0);
            return Ok(());
        }
        match result {
            // It could do without.
            Ok(()) => (),
            Err(e) if e == ENOMEM => missed += 1,
            Err(e) => {
                pr_err!("{what}: {e:?} when allocation {nth} fails\n");
                return Err(EPROTO);
            }
        }
    }
    pr_err!("{what}: there is no end of allocations\n");
    Err(EPROTO)
}

fn clients(dev: &pci::Device<Bound>) -> Result {
    let _range = open(dev, 0, PART)?;

    each_fails("Client::new", || {
        Client::new(dev.as_ref(), LIMITS).map(|_| ())
    })?;
    // What the device has got is dropped when it is unbound.
    each_fails("Client::into_devres", || {
        Client::new(dev.as_ref(), LIMITS)?.into_devres().map(|_| ())
    })
}

fn registrations(dev: &pci::Device<Bound>) -> Result {
    let recorder = Recorder::new();
    let _client = client(&recorder, LIMITS)?;

    each_fails("Registration::new", || open(dev, 0, PART).map(|_| ()))?;
    // It was undone each time.
    open(dev, 0, PART)?;
    Ok(())
}

fn providers(dev: &pci::Device<Bound>) -> Result {
    // The list of holders and the pool are made by the first one.
    each_fails_with(
        "Provider::hold",
        || Ok((open(dev, PART, PART)?, Gate::new()?)),
        |(range, gate)| range.provider().hold(gate.clone()).map(|_| ()),
    )?;
    each_fails_with(
        "Provider::alloc",
        || open(dev, PART, PART),
        |range| range.provider().alloc(0x1000).map(|_| ()),
    )?;

    let range = open(dev, 0, PART)?;
    let provider = range.provider();
    each_fails("Provider::window", || {
        provider.window(0, 0x2000).map(|_| ())
    })
}

/// More providers in a range of IOVA space than a buffer has room for.
fn mappings(dev: &pci::Device<Bound>) -> Result {
    let recorder = Recorder::new();
    let limits = Limits {
        max_segments: 1,
        ..LIMITS
    };
    let client = client(&recorder, limits)?;
    let (_ranges, list) = row(dev, 8)?;

    recorder.reserve(4096)?;
    let mut slot = Mapping::default();
    each_fails("Client::map", || {
        let result = map(&client, &mut slot, Raw::new(&list)?).map(|_| ());

        slot.unmap();
        result
    })?;
    check!(recorder.clean());
    Ok(())
}

#[kunit_tests(physdma_nomem)]
mod tests {
    use super::*;

    #[test]
    fn clients_miss_memory() -> Result {
        with_memory(clients)
    }

    #[test]
    fn registrations_miss_memory() -> Result {
        with_memory(registrations)
    }

    #[test]
    fn providers_miss_memory() -> Result {
        with_memory(providers)
    }

    #[test]
    fn mappings_miss_memory() -> Result {
        with_memory(mappings)
    }
}
