use proptest::prelude::*;

use super::{super::thresholds::Amount, *};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn threshold(signal: Signal, value: i64, grace: u64, reclaim: i64) -> Threshold {
    Threshold {
        signal,
        value: Amount::Fixed(Quantity::from_units(value)),
        grace_period: Duration::from_secs(grace),
        minimum_reclaim: (reclaim > 0).then(|| Amount::Fixed(Quantity::from_units(reclaim))),
    }
}

fn eviction(thresholds: Vec<Threshold>, transition: u64) -> Eviction {
    let pressure_transition_period = Duration::from_secs(transition);
    Eviction { thresholds, hard: 0, max_pod_grace_period: 0, pressure_transition_period }
}

fn seen(pairs: &[(Signal, i64)]) -> Observations {
    pairs
        .iter()
        .map(|(signal, available)| (*signal, Observation { available: *available, capacity: 1000 }))
        .collect()
}

/// The conditions, and the signals to act on, with a look every ten seconds.
fn rounds(eviction: &Eviction, signal: Signal, available: &[i64]) -> Vec<(bool, bool)> {
    let mut state = State::default();
    let mut now = 0;
    let mut look = |available: &i64| {
        now += 10;
        let round = state.observe(at(now), eviction, &seen(&[(signal, *available)]));
        (!round.conditions.is_empty(), !round.starved.is_empty())
    };
    available.iter().map(&mut look).collect()
}

#[test]
fn a_hard_threshold_acts_at_once_and_its_condition_stays() {
    let eviction = eviction(vec![threshold(Signal::MemoryAvailable, 100, 0, 0)], 20);
    assert_eq!(
        rounds(&eviction, Signal::MemoryAvailable, &[100, 99, 100, 100, 100, 50]),
        [(false, false), (true, true), (true, false), (false, false), (false, false), (true, true)]
    );
    // A signal that cannot be read is not below.
    assert_eq!(rounds(&eviction, Signal::PidAvailable, &[0]), [(false, false)]);
}

#[test]
fn a_soft_threshold_acts_after_its_grace_period() {
    let eviction = eviction(vec![threshold(Signal::PidAvailable, 100, 20, 0)], 0);
    let have = rounds(&eviction, Signal::PidAvailable, &[99, 99, 100, 99, 99, 99, 99]);
    let want = [true, true, false, true, true, true, true];
    assert_eq!(have.iter().map(|(condition, _)| *condition).collect::<Vec<_>>(), want);
    assert_eq!(
        have.iter().map(|(_, act)| *act).collect::<Vec<_>>(),
        [false, false, false, false, false, true, true]
    );
}

#[test]
fn a_threshold_stays_met_until_its_minimum_reclaim_is_free() {
    let eviction = eviction(vec![threshold(Signal::NodeFsAvailable, 100, 0, 50)], 0);
    let have = rounds(&eviction, Signal::NodeFsAvailable, &[120, 99, 120, 149, 150, 120]);
    assert_eq!(have.iter().map(|(_, act)| *act).collect::<Vec<_>>(), [false, true, true, true, false, false]);
    assert!(!is_satisfied(&eviction, &seen(&[(Signal::NodeFsAvailable, 120)])));
    assert!(is_satisfied(&eviction, &seen(&[(Signal::NodeFsAvailable, 150)])));
}

#[test]
fn memory_comes_first_and_amounts_are_told() {
    let all = vec![
        threshold(Signal::NodeFsAvailable, 100, 0, 0),
        threshold(Signal::PidAvailable, 100, 0, 0),
        threshold(Signal::MemoryAvailable, 2048, 0, 0),
    ];
    let eviction = eviction(all, 0);
    let low = [(Signal::NodeFsAvailable, 1), (Signal::PidAvailable, 2), (Signal::MemoryAvailable, 1024)];
    let round = State::default().observe(at(0), &eviction, &seen(&low));
    let told: Vec<String> = round
        .starved
        .iter()
        .map(|met| format!("{}<{}: {}", met.threshold.signal, met.quantity, met.available))
        .collect();
    assert_eq!(told, ["memory.available<2048: 1Ki", "nodefs.available<100: 1", "pid.available<100: 2"]);
    assert_eq!(round.conditions, [Condition::Memory, Condition::Disk, Condition::Pid]);
}

proptest! {
    /// Laws of the rounds against the history of what was available.
    #[test]
    fn laws(
        looks in prop::collection::vec((0_i64..6, 1_i64..40), 1..30),
        value in 1_i64..5, grace in 0_u64..60, reclaim in 0_i64..3, transition in 0_u64..90,
    ) {
        let signal = Signal::ImageFsInodesFree;
        let eviction = eviction(vec![threshold(signal, value, grace, reclaim)], transition);
        let mut state = State::default();
        let mut now = 0;
        let mut history: Vec<(i64, i64)> = Vec::new();
        let mut acted = false;
        for (available, pause) in looks {
            now += pause;
            history.push((now, available));
            let round = state.observe(at(now), &eviction, &seen(&[(signal, available)]));
            let pressed = !round.conditions.is_empty();
            // Less than the threshold asks for is pressure, at once and for the transition period.
            let recent = history
                .iter()
                .any(|(then, seen)| *seen < value && (*then == now || now - then < transition as i64));
            prop_assert!(!recent || pressed);
            // Enough for the transition period is none.
            let enough_since = history.iter().rev().take_while(|(_, seen)| *seen >= value + reclaim).last();
            let calm = enough_since.is_some_and(|(then, _)| now - then >= transition as i64);
            prop_assert!(!calm || !pressed || history.len() == 1);
            // Nothing is done while the threshold and its minimum reclaim are satisfied.
            prop_assert!(round.starved.is_empty() || available < value + reclaim);
            // Nothing is done before the threshold was met for the grace period.
            let acts = !round.starved.is_empty();
            if acts && !acted {
                let met_for = history.iter().rev().take_while(|(_, seen)| *seen < value).last();
                prop_assert!(met_for.is_some_and(|(then, _)| now - then >= grace as i64));
            }
            prop_assert!(!acts || pressed);
            acted = acts;
        }
    }
}
