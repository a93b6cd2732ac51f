//! The only source of randomness: names, uids, jitter.
//!
//! On a thread with a seed ([`seeded`]) everything is derived from it; other threads use their thread-local
//! generator. A test that runs a whole cluster on one thread gets the same names, addresses and delays from
//! the same seed.

#![expect(clippy::disallowed_methods, reason = "this module is the source of randomness")]

use std::{cell::RefCell, marker::PhantomData};

use rand::{
    Rng, RngCore, SeedableRng,
    distr::uniform::{SampleRange, SampleUniform},
    rngs::StdRng,
};
use uuid::Uuid;

thread_local! {
    static SOURCE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// Guard: while it exists, randomness on this thread is derived from a seed.
#[derive(Debug)]
pub struct Seeded {
    before: Option<StdRng>,
    /// Not `Send`: bound to its thread.
    thread: PhantomData<*const ()>,
}

impl Drop for Seeded {
    fn drop(&mut self) {
        let before = self.before.take();
        // A thread that is ending has no generator any more.
        let _ = SOURCE.try_with(|source| *source.borrow_mut() = before);
    }
}

/// Derives randomness on this thread from a seed until the returned guard is dropped.
///
/// ```
/// use k8s_core::random;
/// let draw = |seed| {
///     let _seeded = random::seeded(seed);
///     (random::uuid(), random::range(0..1000))
/// };
/// assert_eq!(draw(7), draw(7));
/// assert_ne!(draw(7), draw(8));
/// ```
#[must_use]
pub fn seeded(seed: u64) -> Seeded {
    let before = SOURCE.with(|source| source.replace(Some(StdRng::seed_from_u64(seed))));
    Seeded { before, thread: PhantomData }
}

fn with<T>(draw: impl FnOnce(&mut dyn RngCore) -> T) -> T {
    SOURCE.with(|source| match &mut *source.borrow_mut() {
        Some(seeded) => draw(seeded),
        None => draw(&mut rand::rng()),
    })
}

/// Returns a number in a range.
pub fn range<T: SampleUniform>(range: impl SampleRange<T>) -> T {
    with(|rng| rng.random_range(range))
}

/// Returns a random u64, for example as a seed.
#[must_use]
pub fn number() -> u64 {
    with(|rng| rng.next_u64())
}

/// Returns a random (version 4) uuid.
#[must_use]
pub fn uuid() -> Uuid {
    let mut bytes = [0; 16];
    with(|rng| rng.fill_bytes(&mut bytes));
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_and_ends_with_its_guard() {
        let draw = || (uuid(), range(0..1_000_000), number());
        let first = {
            let _seeded = seeded(7);
            draw()
        };
        let outer = seeded(8);
        let inner = seeded(7);
        assert_eq!(draw(), first);
        drop(inner);
        assert_ne!(draw(), first);
        drop(outer);
        assert_ne!(draw(), draw());
    }
}
