// SPDX-License-Identifier: GPL-2.0

//! The model with the numbers of a fuzzer (libFuzzer): see scripts/fuzz.sh.

#[allow(dead_code)]
#[path = "../../../rust/kernel/physdma"]
mod wide {
    pub type PhysAddr = u64;

    pub mod bvec;
    #[path = "../../../tests/host/src/model.rs"]
    pub mod model;
    mod plan;

    pub use self::bvec::PhysBvec;
}

#[allow(dead_code)]
#[path = "../../../rust/kernel/physdma"]
mod narrow {
    pub type PhysAddr = u32;

    pub mod bvec;
    #[path = "../../../tests/host/src/model.rs"]
    pub mod model;
    mod plan;

    pub use self::bvec::PhysBvec;
}

mod numbers;

/// As many bytes for each number as it can need.
struct Bytes<'a>(&'a [u8]);

impl numbers::Numbers for Bytes<'_> {
    fn below(&mut self, n: u64) -> u64 {
        let mut number = 0;
        let mut most = n - 1;
        while most > 0 {
            let Some((&byte, rest)) = self.0.split_first() else {
                break;
            };
            self.0 = rest;
            number = number << 8 | u64::from(byte);
            most >>= 8;
        }
        number % n
    }
}

/// What libFuzzer calls. The first bit of the first byte is the width of an address.
///
/// # Safety
///
/// `data` is valid for reads of `len` bytes.
#[no_mangle]
unsafe extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, len: usize) -> i32 {
    if len == 0 {
        return 0;
    }
    // SAFETY: By the safety requirements; it is not empty, so `data` is not null.
    let bytes = unsafe { core::slice::from_raw_parts(data, len) };
    let mut numbers = Bytes(&bytes[1..]);
    // A panic must not cross into C.
    let check = || match bytes[0] & 1 {
        0 => wide::model::check(&mut numbers),
        _ => narrow::model::check(&mut numbers),
    };
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err() {
        std::process::abort();
    }
    0
}
