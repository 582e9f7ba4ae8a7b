// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of rnvme: the driver's own sources, against a controller that lies.

use kernel::prelude::*;

#[path = "../../drivers/rnvme/abi.rs"]
mod abi;
#[path = "../../drivers/rnvme/admin.rs"]
mod admin;
#[path = "../../drivers/rnvme/api.rs"]
mod api;
#[path = "../../drivers/rnvme/block.rs"]
mod block;
#[path = "../../drivers/rnvme/buffers.rs"]
mod buffers;
#[path = "../../drivers/rnvme/chardev.rs"]
mod chardev;
#[path = "../../drivers/rnvme/command.rs"]
mod command;
#[path = "../../drivers/rnvme/counters.rs"]
mod counters;
#[path = "../../drivers/rnvme/ctrl.rs"]
mod ctrl;
#[path = "../../drivers/rnvme/cut.rs"]
mod cut;
#[path = "../../drivers/rnvme/data.rs"]
mod data;
#[path = "rnvme/doorbells.rs"]
mod doorbells;
#[path = "rnvme/fake.rs"]
mod fake;
#[path = "../../drivers/rnvme/identify.rs"]
mod identify;
#[path = "rnvme/layout.rs"]
mod layout;
#[path = "rnvme/lies.rs"]
mod lies;
#[path = "../../drivers/rnvme/memory.rs"]
mod memory;
#[path = "rnvme/mixed.rs"]
mod mixed;
#[path = "rnvme/namespaces.rs"]
mod namespaces;
#[path = "../../drivers/rnvme/nvme.rs"]
mod nvme;
#[path = "../../drivers/rnvme/premapped.rs"]
mod premapped;
#[path = "rnvme/programs.rs"]
mod programs;
#[path = "../../drivers/rnvme/prp.rs"]
mod prp;
#[path = "../../drivers/rnvme/queue.rs"]
mod queue;
#[path = "../../drivers/rnvme/recovery.rs"]
mod recovery;
#[path = "rnvme/registers.rs"]
mod registers;
#[path = "../../drivers/rnvme/regs.rs"]
mod regs;
#[path = "rnvme/resets.rs"]
mod resets;
#[path = "../../drivers/rnvme/sgl.rs"]
mod sgl;
#[path = "../../drivers/rnvme/shadow.rs"]
mod shadow;

module! {
    type: RnvmeKunit,
    name: "rnvme_kunit",
    authors: ["The physdma authors"],
    description: "KUnit suite of rnvme",
    license: "GPL v2",
}

struct RnvmeKunit;

impl kernel::Module for RnvmeKunit {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
