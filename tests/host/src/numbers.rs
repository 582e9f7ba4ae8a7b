// SPDX-License-Identifier: GPL-2.0

/// A source of numbers; zeros at its end.
pub trait Numbers {
    /// One of `0..n`.
    fn below(&mut self, n: u64) -> u64;
}
