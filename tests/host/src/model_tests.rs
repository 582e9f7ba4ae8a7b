// SPDX-License-Identifier: GPL-2.0

//! The model with random numbers.

use super::{narrow, numbers::Numbers, random::Random, wide};

impl Numbers for Random {
    fn below(&mut self, n: u64) -> u64 {
        Random::below(self, n)
    }
}

#[test]
fn wide_does_what_the_model_does() {
    let mut random = Random::new(6);
    for _ in 0..300_000 {
        wide::model::check(&mut random);
    }
}

#[test]
fn narrow_does_what_the_model_does() {
    let mut random = Random::new(7);
    for _ in 0..300_000 {
        narrow::model::check(&mut random);
    }
}
