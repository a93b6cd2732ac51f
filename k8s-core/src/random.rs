//! Randomness: the only place that names, uids and jitter come from.
//!
//! On a thread that was given a seed ([`seeded`]), everything follows from it; elsewhere it is the thread's own generator. A test that runs a whole
//! cluster on one thread so gets the same names, addresses and delays from the same seed.

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

/// While it lives, randomness on this thread follows from a seed.
#[derive(Debug)]
pub struct Seeded {
    before: Option<StdRng>,
    /// It belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl Drop for Seeded {
    fn drop(&mut self) {
        let before = self.before.take();
        // A thread that ends has no source any more.
        let _ = SOURCE.try_with(|source| *source.borrow_mut() = before);
    }
}

/// Lets randomness on this thread follow from a seed until what is returned is dropped.
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

/// A number in a range.
pub fn range<T: SampleUniform>(range: impl SampleRange<T>) -> T {
    with(|rng| rng.random_range(range))
}

/// Any number: a seed for something else.
#[must_use]
pub fn number() -> u64 {
    with(|rng| rng.next_u64())
}

/// A random (version 4) uuid.
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
