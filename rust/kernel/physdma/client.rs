// SPDX-License-Identifier: GPL-2.0

//! A device that does DMA: [`Client`].

use super::{
    attachment::Attached,
    backend::{
        Backend,
        Dma, //
    },
    dependents::Dependents,
    mapping::Spill,
    provider::Provider,
    registry::{
        self,
        Member, //
    },
    route::{
        Reach,
        Refused,
        Route,
        Topology, //
    },
    Limits, //
};
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    error::to_result,
    io::PhysAddr,
    prelude::*,
    sync::Arc, //
};
use core::marker::PhantomData;

/// A device that does DMA, and what it can take.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::{Bound, Device},
///     dma::DataDirection,
///     physdma::{Client, Limits, Mapping, Virt},
/// };
///
/// /// Has the device read `buf`.
/// fn send(dev: &Device<Bound>, buf: &[u8]) -> Result {
///     let client = Client::new(
///         dev,
///         Limits {
///             max_segment_bytes: 0x1_0000,
///             boundary_mask: u64::MAX,
///             max_segments: 32,
///         },
///     )?;
///     let mut mapping = Mapping::default();
///
///     // SAFETY: `buf` is borrowed until the end of this function, which unmaps it.
///     let source = unsafe { Virt::new(buf) }?;
///     let mut segments = client.map(&mut mapping, source, DataDirection::ToDevice)?;
///     while let Some(segment) = segments.next()? {
///         // Write `segment.dma` and `segment.len` into the device's descriptor.
///         dev_dbg!(dev, "{:#x} {}\n", segment.dma, segment.len);
///     }
///
///     // Start the device, and wait until it is done. Then:
///     mapping.unmap();
///     Ok(())
/// }
/// ```
pub struct Client<'a, B: Backend = Dma<'a>> {
    pub(super) backend: B,
    pub(super) limits: Limits,
    /// These do not change while a driver is bound.
    pub(super) merge_boundary: u64,
    pub(super) max_bytes: usize,
    /// The most bytes of a piece that can be mapped at once, and are one segment wherever it is.
    pub(super) max_whole: usize,
    pub(super) coherent: bool,
    pub(super) spill: Spill,
    /// What has been mapped for longer than a request, and the registry.
    pub(super) dependents: Dependents,
    /// Its number there.
    pub(super) id: usize,
    _dev: PhantomData<&'a Device<Bound>>,
}

impl<'a> Client<'a> {
    /// Makes `dev` a client, with the `limits` of its descriptors.
    ///
    /// The DMA mask must have been set. May sleep.
    ///
    /// # Errors
    ///
    /// See [`Client::with_backend`].
    pub fn new(dev: &'a Device<Bound>, limits: Limits) -> Result<Self> {
        let new = || {
            // SAFETY: It goes with the backend of its device.
            let reach = Arc::new(unsafe { Reach::new(dev) }, GFP_KERNEL)?;
            // SAFETY: It asks the kernel.
            unsafe { Self::with_backend(Dma::new(dev), reach, limits) }
        };
        new().inspect_err(|e| dev_err!(dev, "cannot be a DMA client: {:?}\n", e))
    }

    /// Hands the client over to the device, which drops it after the driver was unbound.
    ///
    /// A [`Mapping`] borrows its client. Request data that carries mappings can live in the
    /// driver's own data together with everything else this way, without borrowing from a
    /// neighbour.
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     device::{Bound, Device},
    ///     physdma::{Client, Limits, Mapping},
    /// };
    ///
    /// /// What a driver keeps: the mapping borrows the client, but not from a neighbour.
    /// struct Data<'a> {
    ///     client: &'a Client<'a>,
    ///     mapping: Mapping<'a>,
    /// }
    ///
    /// fn probe<'a>(dev: &'a Device<Bound>, limits: Limits) -> Result<Data<'a>> {
    ///     Ok(Data {
    ///         client: Client::new(dev, limits)?.into_devres()?,
    ///         mapping: Mapping::default(),
    ///     })
    /// }
    ///
    /// /// Whether a buffer can be mapped in one go.
    /// fn fits(data: &Data<'_>, bytes: usize) -> bool {
    ///     bytes <= data.client.max_bytes()
    /// }
    /// ```
    pub fn into_devres(self) -> Result<&'a Self> {
        /// Drops a client.
        ///
        /// # Safety
        ///
        /// `client` comes from `KBox::into_raw` and is not used any more.
        unsafe extern "C" fn release(client: *mut c_void) {
            // SAFETY: By the safety requirements.
            drop(unsafe { KBox::from_raw(client.cast::<Client<'_>>()) });
        }

        let dev = self.backend.device();
        let client = KBox::into_raw(KBox::new(self, GFP_KERNEL)?);

        // SAFETY: `dev` is bound; `release` gets the client that it wants, once.
        to_result(unsafe {
            bindings::devm_add_action_or_reset(dev.as_raw(), Some(release), client.cast())
        })?;

        // SAFETY: The device's resources are released after the driver's data was dropped, when
        // nothing is left that lives for `'a`. Nobody has the client mutably.
        Ok(unsafe { &*client })
    }
}

impl<'a, B: Backend> Client<'a, B> {
    /// Like [`Client::new`], on top of any [`Backend`], for a device that reaches the memory of
    /// others as `topology` says.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the limits allow no segment.
    /// - `EIO`: the device cannot do DMA.
    /// - `ENOMEM`.
    ///
    /// # Safety
    ///
    /// No device is told of an address; or the device reaches memory by the routes of `topology`,
    /// and cannot reach it any more by what was unmapped when [`Topology::flush`] returns.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     device::{Bound, Device},
    ///     pci::p2pdma::Unsupported,
    ///     physdma::{BarRange, Client, Dma, Limits, Refused, Route, Topology},
    ///     sync::Arc,
    /// };
    ///
    /// /// What a device reaches that is to have RAM only.
    /// struct NoPeers;
    ///
    /// impl Topology for NoPeers {
    ///     fn device(&self) -> Option<&Device> {
    ///         None
    ///     }
    ///
    ///     fn route(&self, _memory: &BarRange) -> Result<(Route, u32), Refused> {
    ///         Err(Refused::Topology(Unsupported::NotPci))
    ///     }
    /// }
    ///
    /// /// A client for RAM, and nothing else.
    /// fn for_ram(dev: &Device<Bound>, limits: Limits) -> Result<Client<'_>> {
    ///     let topology = Arc::new(NoPeers, GFP_KERNEL)?;
    ///     // SAFETY: There is no route.
    ///     unsafe { Client::with_backend(Dma::new(dev), topology, limits) }
    /// }
    /// ```
    pub unsafe fn with_backend(
        backend: B,
        topology: Arc<dyn Topology>,
        limits: Limits,
    ) -> Result<Self> {
        if limits.max_segments == 0 {
            return Err(EINVAL);
        }
        let max_bytes = backend.max_mapping_size();
        if max_bytes == 0 {
            return Err(EIO);
        }
        let member = Member::new(topology)?;
        let id = member.id();
        Ok(Self {
            backend,
            limits,
            merge_boundary: backend.merge_boundary(),
            max_bytes,
            max_whole: max_bytes.min(limits.whole() as usize),
            spill: Spill::new(limits.max_segments)?,
            coherent: backend.coherent(),
            dependents: Dependents::new(&backend, member)?,
            id,
            _dev: PhantomData,
        })
    }

    /// What there is between the client and `provider`; [`None`], if its memory is going: it may
    /// have the attachment still of who had this number before. May sleep.
    pub(super) fn attachment(&self, provider: &Provider) -> Option<Arc<Attached>> {
        if provider.is_revoked() {
            return None;
        }
        provider.0.attachment_of(Some(self.id))
    }

    /// The most bytes that can be mapped at once.
    #[inline]
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// How the device reaches `provider`.
    ///
    /// The route was found out when the later of the two appeared. May sleep.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn route(&self, provider: &Provider) -> Result<Route, Refused> {
        match self.attachment(provider) {
            Some(attachment) => attachment.route.map(|(route, _)| route),
            None => Err(Refused::Revoked),
        }
    }

    /// How the device reaches the memory at `phys`, and whose it is, for C code that maps it by
    /// itself.
    ///
    /// May be called in atomic context.
    ///
    /// # Errors
    ///
    /// - `EFAULT`: it is no provider's.
    /// - `ENODEV`: the client came when the memory was being revoked.
    /// - `EINVAL`: there is no route.
    #[inline]
    pub(super) fn way_to(&self, phys: PhysAddr) -> Result<(Route, *mut bindings::p2pdma_provider)> {
        // SAFETY: The client is borrowed.
        unsafe { registry::way_to(self.id, phys) }
    }
}

impl<B: Backend> Drop for Client<'_, B> {
    /// Waits until all is unmapped that was mapped for longer than a request. Sleeps.
    fn drop(&mut self) {
        self.dependents.leave(&self.backend);
    }
}

/// The provider that is nearest to all of `clients`: to which each of them has a route, and whose
/// distances from them, in hops, have the smallest sum. Of several, the one that has been there
/// longest; [`None`] if there is none, or no client. May sleep.
///
/// Corresponds to C's `pci_p2pmem_find_many()`.
///
/// # Examples
///
/// ```
/// use kernel::physdma::{nearest_provider, Allocation, Client};
///
/// /// A page to move data from one device to the other.
/// fn between(from: &Client<'_>, to: &Client<'_>) -> Result<Allocation> {
///     nearest_provider(&[from, to]).ok_or(ENODEV)?.alloc(0x1000)
/// }
/// ```
pub fn nearest_provider<B: Backend>(clients: &[&Client<'_, B>]) -> Option<Provider> {
    registry::nearest(clients.iter().map(|client| client.id))
}
