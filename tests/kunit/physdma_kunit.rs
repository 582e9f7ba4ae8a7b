// SPDX-License-Identifier: GPL-2.0

//! KUnit suites of kernel::physdma.

use kernel::prelude::*;

#[path = "physdma/access.rs"]
mod access;
#[path = "physdma/bound.rs"]
mod bound;
// All of it is about IOVA space.
#[cfg(CONFIG_IOMMU_DMA)]
#[path = "physdma/device.rs"]
mod device;
#[path = "physdma/going.rs"]
mod going;
#[path = "physdma/iova.rs"]
mod iova;
#[path = "physdma/map.rs"]
mod map;
#[path = "physdma/memory.rs"]
mod memory;
#[path = "physdma/mixed.rs"]
mod mixed;
#[cfg(CONFIG_MMU)]
#[path = "physdma/mmap.rs"]
mod mmap;
#[cfg(CONFIG_FAILSLAB)]
#[path = "physdma/nomem.rs"]
mod nomem;
#[path = "physdma/one.rs"]
mod one;
#[path = "physdma/pinned.rs"]
mod pinned;
#[cfg(CONFIG_PHYSDMA_PAGES_KUNIT_TEST)]
#[path = "physdma/pinned_p2p.rs"]
mod pinned_p2p;
#[path = "physdma/premap.rs"]
mod premap;
#[path = "physdma/recorder.rs"]
mod recorder;
#[path = "physdma/registry.rs"]
mod registry;
#[path = "physdma/revoke.rs"]
mod revoke;
#[path = "physdma/route.rs"]
mod route;
#[path = "physdma/source.rs"]
mod source;

module! {
    type: PhysdmaKunit,
    name: "physdma_kunit",
    authors: ["The physdma authors"],
    description: "KUnit suites of kernel::physdma",
    license: "GPL v2",
}

struct PhysdmaKunit;

impl kernel::Module for PhysdmaKunit {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: Called exactly once; the tests run afterwards.
        unsafe { bound::init() };
        #[cfg(CONFIG_MMU)]
        // SAFETY: As above.
        unsafe { mmap::init() }?;
        #[cfg(CONFIG_PHYSDMA_PAGES_KUNIT_TEST)]
        pinned_p2p::init()?;
        Ok(Self)
    }
}

impl Drop for PhysdmaKunit {
    fn drop(&mut self) {
        #[cfg(CONFIG_MMU)]
        mmap::exit();
        #[cfg(CONFIG_PHYSDMA_PAGES_KUNIT_TEST)]
        pinned_p2p::exit();
    }
}
