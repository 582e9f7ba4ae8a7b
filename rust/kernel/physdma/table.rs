// SPDX-License-Identifier: GPL-2.0

//! References by small numbers, which are looked up for each request: [`RcuTable`].
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use crate::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        rcu,
        Arc,
        ArcBorrow,
        Mutex, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr, //
};

/// What a table has room for at first.
const FIRST: usize = 8;

/// One for each number: null, or a reference.
type Slots<T> = KVec<Atomic<*mut T>>;

/// References by number. To find one takes a few loads and no lock, a sixth of what an XArray takes;
/// to make room for more takes a grace period.
///
/// # Invariants
///
/// - `slots` is null or comes from `KBox::into_raw`. It is replaced while `writer` is locked, and
///   freed a grace period later.
/// - Each slot is null or comes from `Arc::into_raw`, and owns that reference. It changes while
///   `writer` is locked.
#[pin_data(PinnedDrop)]
pub(super) struct RcuTable<T: Send + Sync> {
    slots: Atomic<*mut Slots<T>>,
    #[pin]
    writer: Mutex<()>,
    _owns: PhantomData<Arc<T>>,
}

impl<T: Send + Sync> RcuTable<T> {
    /// An empty table.
    pub(super) fn new() -> impl PinInit<Self> {
        // INVARIANT: There are no slots.
        pin_init!(Self {
            slots: Atomic::new(ptr::null_mut()),
            writer <- new_mutex!(()),
            _owns: PhantomData,
        })
    }

    /// # Safety
    ///
    /// `writer` is locked, or the caller is in an RCU read-side critical section, as long as what
    /// is returned is used.
    #[inline]
    unsafe fn slots<'a>(&self) -> &'a [Atomic<*mut T>] {
        let slots = self.slots.load(Acquire);
        if slots.is_null() {
            return &[];
        }
        // SAFETY: By the type invariants and the safety requirements it is not freed meanwhile.
        unsafe { &*slots }
    }

    /// Reference number `id`.
    ///
    /// May be called in any context.
    ///
    /// # Safety
    ///
    /// It is not removed while `guard` lives, or what was removed is dropped a grace period later.
    #[inline]
    pub(super) unsafe fn load<'g>(
        &'g self,
        id: usize,
        _guard: &'g rcu::Guard,
    ) -> Option<ArcBorrow<'g, T>> {
        // SAFETY: There is the guard.
        let value = unsafe { self.slots() }.get(id)?.load(Acquire);
        if value.is_null() {
            return None;
        }
        // SAFETY: By the type invariants it comes from `Arc::into_raw`. By the safety requirements
        // there is a reference as long as the guard lives, and nobody changes it: it is shared.
        Some(unsafe { ArcBorrow::from_raw(value) })
    }

    /// Reference number `id`, for whoever keeps it. May sleep.
    pub(super) fn get(&self, id: usize) -> Option<Arc<T>> {
        let _locked = self.writer.lock();
        // SAFETY: It is locked.
        let value = unsafe { self.slots() }.get(id)?.load(Relaxed);
        if value.is_null() {
            return None;
        }
        // SAFETY: By the type invariants it comes from `Arc::into_raw`, and is not removed while
        // the table is locked.
        Some(unsafe { ArcBorrow::from_raw(value) }.into())
    }

    /// Stores reference number `id`, which must be small: the table has a slot for each number up
    /// to it. May sleep.
    ///
    /// # Errors
    ///
    /// `EBUSY`: there is one already. `ENOMEM`.
    pub(super) fn store(&self, id: usize, value: Arc<T>) -> Result {
        let _locked = self.writer.lock();
        // SAFETY: It is locked.
        if id >= unsafe { self.slots() }.len() {
            self.grow(id)?;
        }
        // SAFETY: It is locked.
        let slot = unsafe { self.slots() }.get(id).ok_or(ENOMEM)?;
        if !slot.load(Relaxed).is_null() {
            return Err(EBUSY);
        }
        // INVARIANT: Just that. It is locked.
        slot.store(Arc::into_raw(value).cast_mut(), Release);
        Ok(())
    }

    /// Makes room for number `id`. The table is locked. Sleeps.
    fn grow(&self, id: usize) -> Result {
        // SAFETY: It is locked.
        let few = unsafe { self.slots() };
        let room = id.checked_add(1).and_then(usize::checked_next_power_of_two);
        let room = room.ok_or(ENOMEM)?.max(FIRST);
        let mut slots = Slots::with_capacity(room, GFP_KERNEL)?;

        for n in 0..room {
            let value = few
                .get(n)
                .map_or(ptr::null_mut(), |slot| slot.load(Relaxed));
            slots.push(Atomic::new(value), GFP_KERNEL)?;
        }
        let slots = KBox::new(slots, GFP_KERNEL)?;
        // INVARIANT: It is locked. The references are those of the new slots now, of which no one
        // changes before they are there; the old ones are freed without them.
        let old = self.slots.xchg(KBox::into_raw(slots), Full);

        if !old.is_null() {
            rcu::synchronize_rcu();
            // SAFETY: By the type invariants it comes from `KBox::into_raw`, and nobody looks at it
            // any more.
            drop(unsafe { KBox::from_raw(old) });
        }
        Ok(())
    }

    /// Takes reference number `id` out. May sleep.
    ///
    /// Readers may have it still: what they rely on is said at [`Self::load`].
    pub(super) fn remove(&self, id: usize) -> Option<Arc<T>> {
        let _locked = self.writer.lock();
        // SAFETY: It is locked.
        let value = unsafe { self.slots() }.get(id)?.xchg(ptr::null_mut(), Full);
        if value.is_null() {
            return None;
        }
        // SAFETY: By the type invariants it comes from `Arc::into_raw`, and the slot's reference is
        // ours now.
        Some(unsafe { Arc::from_raw(value) })
    }

    /// All references have numbers less than this. May sleep.
    pub(super) fn len(&self) -> usize {
        let _locked = self.writer.lock();
        // SAFETY: It is locked.
        unsafe { self.slots() }.len()
    }
}

#[pinned_drop]
impl<T: Send + Sync> PinnedDrop for RcuTable<T> {
    fn drop(self: Pin<&mut Self>) {
        for id in 0..self.len() {
            drop(self.remove(id));
        }
        let slots = self.slots.load(Relaxed);
        if !slots.is_null() {
            // SAFETY: By the type invariants it comes from `KBox::into_raw`. Nobody else has access
            // to what is dropped.
            drop(unsafe { KBox::from_raw(slots) });
        }
    }
}
