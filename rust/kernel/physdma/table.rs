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

/// How many numbers a table has room for at first.
const FIRST: usize = 8;

/// One for each number: null, or a reference.
type Slots<T> = KVec<Atomic<*mut T>>;

/// References by number. To find one takes a few loads and no lock.
///
/// # Invariants
///
/// - `slots` is null or points to the last of `all`. What is in `all` stays there, and is not
///   moved, until the table is dropped.
/// - Each slot of the last is null or comes from `Arc::into_raw`, and owns that reference. It
///   changes while `all` is locked.
/// - The slots of the others are what they were when the next came; what they point to may have
///   gone since.
#[pin_data(PinnedDrop)]
pub(super) struct RcuTable<T: Send + Sync> {
    slots: Atomic<*mut Slots<T>>,
    /// Who looks at one may do so still when there is the next, which is at least twice as long.
    #[pin]
    all: Mutex<KVec<KBox<Slots<T>>>>,
    _owns: PhantomData<Arc<T>>,
}

impl<T: Send + Sync> RcuTable<T> {
    /// An empty table.
    pub(super) fn new() -> impl PinInit<Self> {
        // INVARIANT: There are no slots.
        pin_init!(Self {
            slots: Atomic::new(ptr::null_mut()),
            all <- new_mutex!(KVec::new()),
            _owns: PhantomData,
        })
    }

    /// Reference number `id`.
    ///
    /// May be called in any context.
    ///
    /// # Safety
    ///
    /// - The caller is ordered after all that was stored and removed of that number before `guard`.
    /// - It is not removed while `guard` lives, or what was removed is dropped a grace period
    ///   later.
    #[inline]
    pub(super) unsafe fn load<'g>(
        &'g self,
        id: usize,
        _guard: &'g rcu::Guard,
    ) -> Option<ArcBorrow<'g, T>> {
        let slots = self.slots.load(Acquire);
        if slots.is_null() {
            return None;
        }
        // SAFETY: By the type invariants it is there as long as the table is.
        let value = unsafe { &*slots }.get(id)?.load(Acquire);
        if value.is_null() {
            return None;
        }
        // SAFETY: By the safety requirements the slots are those that were the last when the number
        // was stored or removed, or later ones: by the type invariants the value comes from
        // `Arc::into_raw`. It stays as long as the guard lives, and what is shared is not changed.
        Some(unsafe { ArcBorrow::from_raw(value) })
    }

    /// Reference number `id`, for whoever keeps it. May sleep.
    pub(super) fn get(&self, id: usize) -> Option<Arc<T>> {
        let all = self.all.lock();
        let value = all.last()?.get(id)?.load(Relaxed);
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
    /// `EBUSY`: there is one already. `ENOMEM`. The reference is dropped when the table is not
    /// locked any more.
    pub(super) fn store(&self, id: usize, value: Arc<T>) -> Result {
        let mut all = self.all.lock();
        if all.last().is_none_or(|slots| id >= slots.len()) {
            self.grow(&mut all, id)?;
        }
        let slot = all.last().and_then(|slots| slots.get(id)).ok_or(ENOMEM)?;
        if !slot.load(Relaxed).is_null() {
            return Err(EBUSY);
        }
        // INVARIANT: It comes from `Arc::into_raw`, and is the slot's now.
        slot.store(Arc::into_raw(value).cast_mut(), Release);
        Ok(())
    }

    /// Makes room for number `id`.
    fn grow(&self, all: &mut KVec<KBox<Slots<T>>>, id: usize) -> Result {
        let room = id.checked_add(1).and_then(usize::checked_next_power_of_two);
        let room = room.ok_or(ENOMEM)?.max(FIRST);
        let mut slots = Slots::with_capacity(room, GFP_KERNEL)?;

        for n in 0..room {
            let value = all
                .last()
                .and_then(|few| few.get(n))
                .map_or(ptr::null_mut(), |slot| slot.load(Relaxed));
            slots.push(Atomic::new(value), GFP_KERNEL)?;
        }
        let mut slots = KBox::new(slots, GFP_KERNEL)?;
        let last: *mut Slots<T> = &mut *slots;

        all.push(slots, GFP_KERNEL)?;
        // INVARIANT: It is the last, and the references are its own now.
        self.slots.store(last, Release);
        Ok(())
    }

    /// Takes reference number `id` out. May sleep.
    ///
    /// Readers may have it still: what they rely on is said at [`Self::load`].
    pub(super) fn remove(&self, id: usize) -> Option<Arc<T>> {
        let all = self.all.lock();
        let value = all.last()?.get(id)?.xchg(ptr::null_mut(), Full);
        if value.is_null() {
            return None;
        }
        // SAFETY: By the type invariants it comes from `Arc::into_raw`, and the slot's reference is
        // ours now.
        Some(unsafe { Arc::from_raw(value) })
    }

    /// How many numbers there is room for: all references have less than this. May sleep.
    pub(super) fn room(&self) -> usize {
        self.all.lock().last().map_or(0, |slots| slots.len())
    }
}

#[pinned_drop]
impl<T: Send + Sync> PinnedDrop for RcuTable<T> {
    fn drop(self: Pin<&mut Self>) {
        for id in 0..self.room() {
            drop(self.remove(id));
        }
    }
}
