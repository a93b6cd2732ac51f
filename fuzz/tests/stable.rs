//! Runs every target on stable: seeds, mutations of them and noise, two seconds each (`FUZZ_SECONDS` for
//! more), in parallel on all processors, from a fixed random seed (`FUZZ_SEED` for another).

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_fuzz::{TARGETS, Target};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};

/// Bytes with a meaning in the parsers' grammars.
const SPICE: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b",",
    b":",
    b"\n",
    b"\0",
    b"/",
    b"..",
    b"%",
    b"-",
    b"1e999",
    b"null",
    b"\xff\xfe",
    b"$patch",
    b"\\u0000",
    b"(",
    b"!",
    b"&x",
    b"*x",
    b"~1",
];

fn mutated(random: &mut SmallRng, target: &Target) -> Vec<u8> {
    let mut bytes = target.seeds.choose(random).map(|s| s.to_vec()).unwrap_or_default();
    for _ in 0..random.random_range(0..8) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] = random.random(),
            1 if at < bytes.len() => drop(bytes.drain(at..(at + random.random_range(1..9)).min(bytes.len()))),
            2 => {
                drop(bytes.splice(at..at, SPICE.choose(random).copied().unwrap_or_default().iter().copied()))
            }
            3 => {
                let from = random.random_range(0..=at);
                let piece = bytes[from..at].to_vec();
                if bytes.len() + piece.len() < 1 << 16 {
                    drop(bytes.splice(at..at, piece));
                }
            }
            4 => bytes.truncate(at),
            _ => drop(bytes.splice(
                at..at,
                (0..random.random_range(0..16)).map(|_| random.random()).collect::<Vec<u8>>(),
            )),
        }
    }
    bytes
}

fn fuzz(target: &Target, seed: u64, time: Duration) -> Result<usize, String> {
    let mut random = SmallRng::seed_from_u64(seed);
    let begun = Instant::now();
    let mut count = 0;
    let first = target.seeds.iter().map(|s| s.to_vec());
    for input in first.chain(std::iter::repeat_with(|| mutated(&mut random, target))) {
        if count >= target.seeds.len() && begun.elapsed() > time {
            break;
        }
        let one = Instant::now();
        catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).map_err(|_| {
            format!("{}: panics on {:?} (seed {seed})", target.name, String::from_utf8_lossy(&input))
        })?;
        if one.elapsed() > Duration::from_secs(5) {
            return Err(format!(
                "{}: took {:?} on {:?}",
                target.name,
                one.elapsed(),
                String::from_utf8_lossy(&input)
            ));
        }
        count += 1;
    }
    Ok(count)
}

#[test]
fn no_target_finds_anything() {
    let seconds: f64 = std::env::var("FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let seed: u64 = std::env::var("FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_260_101);
    let (next, problems) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let one_after_the_other = || {
        while let Some(target) = TARGETS.get(next.fetch_add(1, Ordering::Relaxed)) {
            match fuzz(target, seed, Duration::from_secs_f64(seconds)) {
                Ok(count) => println!("{}: {count} inputs", target.name),
                Err(e) => problems.lock().unwrap().push(e),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(one_after_the_other);
        }
    });
    let problems = problems.into_inner().unwrap();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn names_are_unique_and_every_target_has_a_wrapper() {
    let mut names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TARGETS.len());
    for name in names {
        let path = format!("{}/fuzz_targets/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        assert!(std::path::Path::new(&path).exists(), "{path} is missing");
    }
}
