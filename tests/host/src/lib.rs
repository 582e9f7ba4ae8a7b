// SPDX-License-Identifier: GPL-2.0

//! The pure logic of physdma on the host: the same source files as in the kernel, tested against
//! models that are too slow or too simple for it.

/// Where physical addresses have 64 bits.
#[path = "../../../rust/kernel/physdma"]
pub mod wide {
    pub type PhysAddr = u64;

    pub mod bvec;
}

/// Where physical addresses have 32 bits.
#[path = "../../../rust/kernel/physdma"]
pub mod narrow {
    pub type PhysAddr = u32;

    pub mod bvec;
}

#[cfg(test)]
mod bvec_tests;
#[cfg(test)]
mod random;
