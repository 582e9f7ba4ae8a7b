// SPDX-License-Identifier: GPL-2.0

//! The pure logic of physdma on the host: the same source files as in the kernel, tested against
//! models that are too slow or too simple for it.

/// Where physical addresses have 64 bits.
#[path = "../../../rust/kernel/physdma"]
pub mod wide {
    pub type PhysAddr = u64;

    pub mod bvec;
    #[cfg(test)]
    #[path = "../../../tests/host/src/model.rs"]
    pub mod model;
    #[cfg(test)]
    mod plan;

    pub use self::bvec::PhysBvec;
}

/// Where physical addresses have 32 bits.
#[path = "../../../rust/kernel/physdma"]
pub mod narrow {
    pub type PhysAddr = u32;

    pub mod bvec;
    #[cfg(test)]
    #[path = "../../../tests/host/src/model.rs"]
    pub mod model;
    #[cfg(test)]
    mod plan;

    pub use self::bvec::PhysBvec;
}

/// rnvme's; it uses less of them than the tests do.
#[path = "../../../drivers/rnvme"]
#[allow(dead_code)]
mod rnvme {
    pub(crate) mod cut;
    pub(crate) mod identify;
    pub(crate) mod prp;
    pub(crate) mod sgl;
}

#[cfg(test)]
mod bvec_tests;
#[cfg(test)]
mod cut_tests;
#[cfg(test)]
mod identify_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod numbers;
#[cfg(test)]
mod prp_tests;
#[cfg(test)]
mod random;
