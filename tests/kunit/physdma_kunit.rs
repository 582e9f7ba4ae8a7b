// SPDX-License-Identifier: GPL-2.0

//! KUnit suites of kernel::physdma.

use kernel::prelude::*;

#[path = "physdma/device.rs"]
mod device;
#[path = "physdma/iova.rs"]
mod iova;
#[path = "physdma/map.rs"]
mod map;
#[path = "physdma/memory.rs"]
mod memory;
#[path = "physdma/recorder.rs"]
mod recorder;
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
        Ok(Self)
    }
}
