// SPDX-License-Identifier: GPL-2.0

//! KUnit suites of kernel::physdma.

use kernel::prelude::*;

module! {
    type: PhysdmaKunit,
    name: "physdma_kunit",
    authors: ["The physdma authors"],
    description: "KUnit suites of physdma",
    license: "GPL v2",
}

struct PhysdmaKunit;

impl kernel::Module for PhysdmaKunit {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(PhysdmaKunit)
    }
}
