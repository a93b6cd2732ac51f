//! Delta debugging: finds a minimal set of faults that still makes a run fail.

#![expect(clippy::disallowed_methods, reason = "the search for a smaller failure ends after real seconds")]

use std::time::{Duration, Instant};

/// Limits of the search: number of runs, and wall-clock time.
const TRIES: usize = 80;
const TIME: Duration = Duration::from_secs(60);

/// Minimizes `all` while `fails` returns true: removes halves first, then smaller parts (Zeller's ddmin).
/// Returns the last failing set. `fails(all)` is assumed to be true.
pub(crate) fn smallest<T: Clone>(all: Vec<T>, fails: &mut dyn FnMut(&[T]) -> bool) -> Vec<T> {
    let (mut tries, begun) = (0, Instant::now());
    let mut still = |set: &[T]| {
        tries += 1;
        (tries <= TRIES && begun.elapsed() < TIME).then(|| fails(set))
    };
    if all.is_empty() || still(&[]) == Some(true) {
        return Vec::new();
    }
    let (mut set, mut parts) = (all, 2);
    while set.len() > 1 {
        let size = set.len().div_ceil(parts);
        let chunks: Vec<Vec<T>> = set.chunks(size).map(<[T]>::to_vec).collect();
        let without = |at: usize| -> Vec<T> {
            chunks.iter().enumerate().filter(|(i, _)| *i != at).flat_map(|(_, c)| c.clone()).collect()
        };
        let mut next = None;
        for (at, chunk) in chunks.iter().enumerate() {
            for candidate in [chunk.clone(), without(at)] {
                if candidate.len() == set.len() || candidate.is_empty() {
                    continue;
                }
                match still(&candidate) {
                    None => return set,
                    Some(true) if next.is_none() => next = Some(candidate),
                    Some(_) => {}
                }
                if next.is_some() {
                    break;
                }
            }
            if next.is_some() {
                break;
            }
        }
        match next {
            Some(smaller) => {
                set = smaller;
                parts = 2;
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(set.len()),
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_is_taken_away() {
        let all: Vec<u32> = (0..40).collect();
        let smallest_of =
            |needed: &'static [u32]| smallest(all.clone(), &mut |set| needed.iter().all(|n| set.contains(n)));
        assert_eq!(smallest_of(&[]), Vec::<u32>::new());
        assert_eq!(smallest_of(&[7]), [7]);
        assert_eq!(smallest_of(&[3, 31]), [3, 31]);
        let mut tries = 0;
        smallest(all.clone(), &mut |set| {
            tries += 1;
            set.len() == 40
        });
        assert!(tries <= TRIES);
    }
}
