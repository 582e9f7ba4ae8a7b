// SPDX-License-Identifier: GPL-2.0

//! How often memory could not be mapped, for an operator.

use crate::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

/// What the layer itself fails with. Whatever else the DMA API may say is counted as one.
const ERRORS: [Error; 5] = [EINVAL, EFAULT, ENODEV, EPERM, ENOMEM];

static COUNTS: [Atomic<u64>; ERRORS.len() + 1] = [const { Atomic::new(0) }; ERRORS.len() + 1];

/// Counts `error`, and returns it.
#[cold]
pub(super) fn count(error: Error) -> Error {
    let at = ERRORS.iter().position(|known| *known == error);
    COUNTS[at.unwrap_or(ERRORS.len())].fetch_add(1, Relaxed);
    error
}

/// How often memory could not be mapped for a client since the kernel was booted, by errno; [`None`]
/// is any other than those listed.
///
/// What each errno means is said of [`Client::map`]. What there is no route for is counted for each
/// provider and client, too: [`Traffic::refused`].
///
/// May be called in any context.
///
/// [`Client::map`]: super::Client::map
/// [`Traffic::refused`]: super::Traffic::refused
///
/// # Examples
///
/// ```
/// use kernel::physdma::failures;
///
/// for (errno, times) in failures() {
///     pr_debug!("{errno:?}: {times}\n");
/// }
/// assert!(failures().any(|(errno, _)| errno == Some(EFAULT)));
/// ```
pub fn failures() -> impl Iterator<Item = (Option<Error>, u64)> {
    COUNTS
        .iter()
        .enumerate()
        .map(|(at, count)| (ERRORS.get(at).copied(), count.load(Relaxed)))
}
