// SPDX-License-Identifier: GPL-2.0

//! NVMe PCI block driver.

use kernel::prelude::*;

module! {
    type: Rnvme,
    name: "rnvme",
    authors: ["The physdma authors"],
    description: "NVM Express block devices, driver in Rust",
    license: "GPL v2",
}

struct Rnvme;

impl kernel::Module for Rnvme {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Rnvme)
    }
}
