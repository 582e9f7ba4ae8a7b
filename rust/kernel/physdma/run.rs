// SPDX-License-Identifier: GPL-2.0

//! What the pieces of a request are to a client, and what keeps them: [`Run`].

use super::{
    attachment::{
        Attached,
        Live, //
    },
    backend::{
        Backend,
        Memory, //
    },
    bvec::wide,
    client::Client,
    mapping::Mapping,
    plan::Kind,
    provider::Inner,
    registry,
    route::{
        BarRange,
        Route, //
    },
    segment::Origin,
    BvecKind,
    Miss,
    PhysBvec,
    Source, //
};
use crate::{
    dma::DmaAddress,
    io::PhysAddr,
    prelude::*,
    sync::{
        rcu,
        ArcBorrow, //
    }, //
};

/// A DMA address in as many bits as any has.
#[inline]
#[allow(clippy::unnecessary_cast, reason = "a `DmaAddress` may have 32 bits")]
pub(super) const fn wide_dma(dma: DmaAddress) -> u64 {
    dma as u64
}

/// Where the device finds `piece`, `offset` from its physical address.
#[inline]
pub(super) const fn bus_address(piece: PhysBvec, offset: u64) -> DmaAddress {
    // CAST: The route has seen that it fits the device's DMA mask.
    wide(piece.phys()).wrapping_add(offset) as DmaAddress
}

/// What the pieces of one run have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    Ram,
    HostBridge,
    /// `offset`: bus address less physical address, modulo 2^64.
    Bus {
        offset: u64,
    },
    /// `base`: the bus address of the BAR's first byte.
    Internal {
        offset: u64,
        bar: u8,
        base: u64,
    },
}

impl Run {
    #[inline]
    fn new(route: Route, memory: &BarRange) -> Self {
        match route {
            Route::HostBridge => Self::HostBridge,
            Route::Bus { offset } => Self::Bus { offset },
            Route::Internal { bar, offset } => Self::Internal {
                offset,
                bar,
                base: wide(memory.first)
                    .wrapping_add(offset)
                    .wrapping_sub(memory.start),
            },
        }
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Ram => Kind::Ram,
            Self::HostBridge => Kind::HostBridge,
            Self::Bus { .. } => Kind::Bus,
            Self::Internal { .. } => Kind::Internal,
        }
    }

    /// What a segment at `dma` is to the device.
    #[inline]
    pub(super) fn origin(self, dma: DmaAddress) -> Origin {
        match self {
            Self::Ram | Self::HostBridge => Origin::Mapped,
            Self::Bus { .. } => Origin::Bus,
            Self::Internal { bar, base, .. } => Origin::Internal {
                bar,
                offset: wide_dma(dma).wrapping_sub(base),
            },
        }
    }

    /// How the DMA API is asked to map it, where it is.
    #[inline]
    pub(super) fn memory(self) -> Memory {
        match self {
            Self::HostBridge => Memory::Mmio,
            _ => Memory::Ram,
        }
    }
}

/// A provider's memory, and how the client reaches it.
#[derive(Clone, Copy)]
pub(super) struct Hit {
    pub(super) first: PhysAddr,
    pub(super) last: PhysAddr,
    pub(super) run: Run,
}

impl Hit {
    /// Whether all of `piece` lies within.
    #[inline]
    pub(super) fn holds(&self, piece: PhysBvec) -> bool {
        piece.phys() >= self.first && piece.last() <= self.last
    }
}

/// A piece, and what it is.
pub(super) struct Classified<'g> {
    /// The memory that it is the first part of.
    pub(super) whole: PhysBvec,
    pub(super) piece: PhysBvec,
    pub(super) run: Run,
    /// The provider's memory that it was found in.
    pub(super) memory: Option<(PhysAddr, PhysAddr)>,
    /// Of whose memory it is; [`None`] if that is kept already.
    pub(super) attachment: Option<ArcBorrow<'g, Attached>>,
}

impl<'c, B: Backend> Client<'c, B> {
    /// Whether `piece`, of a source that vouches for RAM, may not be RAM.
    #[inline]
    pub(super) fn may_be_owned(piece: PhysBvec) -> bool {
        match piece.kind() {
            BvecKind::Ram => false,
            BvecKind::Unknown => registry::may_own(piece),
            BvecKind::Provider | BvecKind::Private => true,
        }
    }

    /// Finds out what `piece`, of a source like `S`, is, and keeps it. Returns how many bytes of it
    /// are of that kind, too.
    #[inline(never)]
    pub(super) fn find_run<S: Source>(
        &'c self,
        slot: &mut Mapping<'c, B>,
        piece: PhysBvec,
        miss: Miss,
    ) -> Result<(Run, u32)> {
        let guard = rcu::read_lock();
        let found = self.identify::<S>(piece, miss, &guard)?;
        if let Some(attachment) = found.attachment {
            self.keep(slot, attachment, &guard)?;
        }
        Ok((found.run, found.piece.len()))
    }

    /// Finds out what the first part of `whole`, of a source like `S`, is that is all of one kind.
    #[inline(always)]
    pub(super) fn identify<'g, S: Source>(
        &self,
        whole: PhysBvec,
        miss: Miss,
        guard: &'g rcu::Guard,
    ) -> Result<Classified<'g>> {
        let vouched = miss == Miss::Ram;
        let (owner, len) = match whole.kind() {
            BvecKind::Ram if vouched => (None, whole.len()),
            _ => registry::find(whole, guard),
        };
        let is_ram = vouched && matches!(whole.kind(), BvecKind::Ram | BvecKind::Unknown);
        let (run, memory, attachment) = match owner {
            None if is_ram => (Run::Ram, None, None),
            None => return Err(EFAULT),
            // Who has its pages was given it by its driver, which trusts what it has not given
            // away; an address says nothing of that.
            Some(owner) if owner.has_pages && !S::PAGES && !vouched => return Err(EFAULT),
            Some(owner) => {
                // SAFETY: The client is borrowed, so it does not go.
                let attachment = unsafe { Inner::attachment(owner, self.id, guard) }
                    // It came when the memory was being revoked already.
                    .ok_or(ENODEV)?;
                // What is vouched for says nothing of what follows, unless all of it is.
                let lasts = !owner.has_pages || S::PAGES || S::MISS == Miss::Ram;
                match attachment.route {
                    Ok((route, _)) => (
                        Run::new(route, &owner.range),
                        lasts.then_some((owner.range.first, owner.range.last)),
                        Some(attachment),
                    ),
                    Err(refused) => {
                        attachment.refuse(&owner.range);
                        return Err(refused.into());
                    }
                }
            }
        };
        Ok(Classified {
            whole,
            piece: whole.split(len).0,
            run,
            memory,
            attachment,
        })
    }

    /// Keeps a provider's memory until all is unmapped.
    #[inline]
    pub(super) fn keep(
        &'c self,
        slot: &mut Mapping<'c, B>,
        attachment: ArcBorrow<'_, Attached>,
        guard: &rcu::Guard,
    ) -> Result {
        if !slot.is_empty() {
            return self.keep_another(slot, attachment, guard);
        }
        slot.keep_first(Live::new(&attachment, guard).ok_or(ENODEV)?);
        Ok(())
    }

    /// The same where something is kept already.
    #[inline(never)]
    fn keep_another(
        &'c self,
        slot: &mut Mapping<'c, B>,
        attachment: ArcBorrow<'_, Attached>,
        guard: &rcu::Guard,
    ) -> Result {
        if slot.keeps(&attachment) {
            return Ok(());
        }
        let live = Live::new(&attachment, guard).ok_or(ENODEV)?;
        slot.keep(live, &self.spill)
    }
}
