// SPDX-License-Identifier: GPL-2.0

//! That a client's device stays bound while anybody depends on that: [`Dependents`].

use super::{
    backend::Backend,
    registry::Member, //
};
use crate::{
    bindings,
    device::Device,
    error::to_result,
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            AtomicFlag,
            Full,
            Relaxed, //
        },
        Arc,
        Completion,
        Mutex, //
    },
    time::msecs_to_jiffies, //
};

/// Each time that a client has waited this long in vain, the log says so.
const PATIENCE_MS: u32 = 10_000;

#[pin_data]
struct Inner {
    /// Who is there, and one for the client until it goes.
    count: Atomic<usize>,
    closed: AtomicFlag,
    #[pin]
    none: Completion,
    /// Until the client goes.
    #[pin]
    member: Mutex<Option<Member>>,
    /// For messages.
    device: Option<ARef<Device>>,
}

impl Inner {
    // For all backends: what lockdep knows of the lock must be in one place.
    fn new(member: Member, device: Option<ARef<Device>>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                count: Atomic::new(1),
                closed: AtomicFlag::new(false),
                none <- Completion::new(),
                member <- new_mutex!(Some(member)),
                device,
            }),
            GFP_KERNEL,
        )
    }

    fn put(&self) {
        if self.count.fetch_sub(1, Full) == 1 {
            self.none.complete_all();
        }
    }

    /// Waits until nobody is there, and leaves the registry. Sleeps.
    fn leave(&self) {
        if !self.closed.xchg(true, Relaxed) {
            self.put();
        }
        while !self
            .none
            .wait_for_completion_timeout(msecs_to_jiffies(PATIENCE_MS))
        {
            if let Some(device) = &self.device {
                dev_warn!(device, "goes, but has buffers mapped that are in use\n");
            }
        }
        let member = self.member.lock().take();
        // It waits, too.
        drop(member);
    }

    /// Called before the device is unbound.
    ///
    /// # Safety
    ///
    /// `inner` comes from `Arc::into_raw`, and is not used any more.
    unsafe extern "C" fn unbind(inner: *mut c_void) {
        // SAFETY: By the safety requirements.
        unsafe { Arc::from_raw(inner.cast::<Self>()) }.leave();
    }
}

/// Has the device of a client stay bound as long as the registry knows it, and until all is unmapped
/// that was mapped for longer than a request.
///
/// The client ends both when it goes; if it is forgotten, the device does when it is unbound.
pub(super) struct Dependents(Arc<Inner>);

impl Dependents {
    /// Nobody is there but the `member` that the client of `backend` is. May sleep.
    pub(super) fn new(backend: &impl Backend, member: Member) -> Result<Self> {
        let device = backend.bound_device();
        let inner = Inner::new(member, device.map(|dev| (&**dev).into()))?;
        if let Some(dev) = device {
            let data = Arc::into_raw(inner.clone()).cast_mut().cast();
            // SAFETY: `dev` is bound; the action gets the reference that it wants, once: at once
            // where this fails.
            to_result(unsafe {
                bindings::devm_add_action_or_reset(dev.as_raw(), Some(Inner::unbind), data)
            })?;
        }
        Ok(Self(inner))
    }

    /// Somebody who must be waited for.
    pub(super) fn add(&self) -> Dependent {
        self.0.count.fetch_add(1, Relaxed);
        Dependent(self.0.clone())
    }

    /// Waits until nobody is there, when the client of `backend` goes. Sleeps.
    pub(super) fn leave(&self, backend: &impl Backend) {
        self.0.leave();
        if let Some(dev) = backend.bound_device() {
            let data = Arc::as_ptr(&self.0).cast_mut().cast();
            // SAFETY: `dev` is bound.
            let ret = unsafe {
                bindings::devm_remove_action_nowarn(dev.as_raw(), Some(Inner::unbind), data)
            };
            // Where the device is just being unbound, it has the action still, and its reference.
            if ret == 0 {
                // SAFETY: It was the action's, which is not called any more.
                drop(unsafe { Arc::from_raw(data.cast::<Inner>()) });
            }
        }
    }
}

/// Somebody who uses the device of a client until it is dropped.
pub(super) struct Dependent(Arc<Inner>);

impl Drop for Dependent {
    fn drop(&mut self) {
        self.0.put();
    }
}
