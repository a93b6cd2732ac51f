//! Laws of fair queuing, in virtual time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const QUEUING: Queuing = Queuing { queues: 64, hand: 6, length: 50 };

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A hash for each flow, whose hands differ.
fn hash(flow: u64) -> u64 {
    (flow + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A level whose requests take the time that they are given.
struct World {
    queues: Queues,
    now: Duration,
    next: u64,
    /// Flow and duration of each request.
    requests: BTreeMap<u64, (u64, Duration)>,
    /// Ends of running requests.
    ends: BTreeSet<(Duration, u64)>,
    started: Vec<u64>,
}

impl World {
    fn new(discipline: Discipline, limit: usize) -> Self {
        World {
            queues: Queues::new(Duration::ZERO, discipline, limit),
            now: Duration::ZERO,
            next: 0,
            requests: BTreeMap::new(),
            ends: BTreeSet::new(),
            started: Vec::new(),
        }
    }

    fn arrive(&mut self, flow: u64, seats: usize, duration: Duration) -> (u64, Arrived) {
        let id = self.next;
        self.next += 1;
        self.requests.insert(id, (flow, duration));
        let arrived = self.queues.arrive(self.now, id, seats, || hash(flow), true);
        if arrived == Arrived::Starts {
            self.begin(id);
        }
        self.start();
        (id, arrived)
    }

    fn begin(&mut self, id: u64) {
        self.started.push(id);
        self.ends.insert((self.now + self.requests[&id].1, id));
    }

    fn start(&mut self) {
        while let Some(id) = self.queues.next(self.now) {
            self.begin(id);
        }
    }

    /// Lets the next request end; returns it.
    fn end(&mut self) -> Option<u64> {
        let (at, id) = self.ends.pop_first()?;
        self.now = self.now.max(at);
        assert!(!self.queues.remove(self.now, id), "it was running");
        self.start();
        Some(id)
    }

    fn flow(&self, id: u64) -> u64 {
        self.requests[&id].0
    }
}

#[test]
fn a_level_without_queues_rejects_and_an_exempt_one_never_does() {
    let mut reject = World::new(Discipline::Reject, 2);
    let all: Vec<Arrived> = (0..3).map(|flow| reject.arrive(flow, 1, ms(5)).1).collect();
    assert_eq!(all, [Arrived::Starts, Arrived::Starts, Arrived::NoSeats]);
    reject.end();
    assert_eq!(reject.arrive(0, 1, ms(5)).1, Arrived::Starts);
    let mut exempt = World::new(Discipline::Exempt, 0);
    assert!((0..100).all(|_| exempt.arrive(0, 10, ms(5)).1 == Arrived::Starts));
    assert_eq!(exempt.queues.demand(), 1000);
}

#[test]
fn a_full_queue_rejects() {
    let mut world = World::new(Discipline::Queue(Queuing { queues: 8, hand: 2, length: 3 }), 1);
    let all: Vec<Arrived> = (0..9).map(|_| world.arrive(0, 1, ms(5)).1).collect();
    assert!(all[..7].iter().all(|arrived| *arrived == Arrived::Waits), "one runs, two queues of three");
    assert_eq!(all[7..], [Arrived::QueueFull; 2]);
    let other = (1..20).find(|flow| world.arrive(*flow, 1, ms(5)).1 == Arrived::Waits);
    assert!(other.is_some(), "a flow with another hand waits");
}

#[test]
fn a_wide_request_waits_for_its_seats_and_one_too_wide_runs_alone() {
    let mut world = World::new(Discipline::Queue(QUEUING), 4);
    let (narrow, _) = world.arrive(0, 1, ms(9));
    let (wide, _) = world.arrive(1, 4, ms(9));
    let (too_wide, _) = world.arrive(2, 10, ms(9));
    assert_eq!(world.started, [narrow]);
    world.end();
    assert_eq!(world.started, [narrow, wide]);
    world.end();
    assert_eq!(world.started, [narrow, wide, too_wide]);
    world.arrive(3, 1, ms(9));
    assert_eq!(world.started.len(), 3, "nothing beside it");
    world.end();
    assert_eq!(world.started.len(), 4);
}

#[test]
fn seats_that_are_taken_back_serve_others() {
    let mut world = World::new(Discipline::Queue(QUEUING), 1);
    let (stuck, _) = world.arrive(0, 1, ms(60_000));
    let (other, _) = world.arrive(1, 1, ms(5));
    world.now = ms(1000);
    assert!(world.queues.unseat(world.now, stuck) && !world.queues.unseat(world.now, stuck));
    world.start();
    assert_eq!(world.started, [stuck, other]);
    assert!(!world.queues.is_idle());
    while world.end().is_some() {}
    assert!(world.queues.is_idle());
    assert_eq!((world.queues.running_seats, world.queues.flows.len()), (0, 0));
}

#[test]
fn a_change_of_the_queues_loses_no_request() {
    let mut world = World::new(Discipline::Queue(QUEUING), 1);
    for flow in 0..40 {
        world.arrive(flow, 1, ms(5));
    }
    for discipline in [
        Discipline::Queue(Queuing { queues: 2, hand: 1, length: 50 }),
        Discipline::Reject,
        Discipline::Exempt,
    ] {
        world.queues.configure(world.now, discipline);
        world.end();
    }
    while world.end().is_some() {}
    assert_eq!(world.started.len(), 40);
    assert!(world.queues.queues.is_empty());
}

/// The law: a flow that has nothing waiting waits for no more than two requests from each queue of the
/// others, and as many as there are seats, however many they have. With one noisy flow, these are the
/// queues of its hand.
#[test]
fn a_flood_does_not_delay_another_flow() {
    for seats in [1, 3, 10] {
        let mut world = World::new(Discipline::Queue(QUEUING), seats);
        for _ in 0..300 {
            world.arrive(0, 1, ms(5));
        }
        let mut longest = 0;
        for round in 0..200 {
            let before = world.started.len();
            let (quiet, _) = world.arrive(1, 1, ms(5));
            while !world.started.contains(&quiet) {
                let ended = world.end().unwrap();
                if world.flow(ended) == 0 {
                    world.arrive(0, 1, ms(5));
                }
            }
            longest = longest.max(world.started.len() - 1 - before);
            // It thinks for a while, and the flood goes on.
            for _ in 0..round % 7 {
                let ended = world.end().unwrap();
                if world.flow(ended) == 0 {
                    world.arrive(0, 1, ms(5));
                }
            }
        }
        assert!(longest <= 2 * QUEUING.hand + seats, "{longest} requests of the flood, with {seats} seats");
    }
}

#[test]
fn flows_with_long_requests_get_no_more_time_than_those_with_short_ones() {
    let mut world = World::new(Discipline::Queue(Queuing { queues: 64, hand: 1, length: 50 }), 2);
    let durations = [ms(2), ms(20)];
    for _ in 0..20 {
        for flow in 0..2 {
            world.arrive(flow, 1, durations[flow as usize]);
        }
    }
    let mut time = [Duration::ZERO; 2];
    while world.now < ms(4000) {
        let flow = world.end().map(|id| world.flow(id)).unwrap();
        time[flow as usize] += durations[flow as usize];
        world.arrive(flow, 1, durations[flow as usize]);
    }
    let part = time[0].as_secs_f64() / (time[0] + time[1]).as_secs_f64();
    assert!((0.4..0.6).contains(&part), "{time:?}");
}

#[test]
fn a_flow_in_many_queues_gets_as_much_as_one_in_one_queue() {
    let mut world = World::new(Discipline::Queue(QUEUING), 1);
    for _ in 0..100 {
        world.arrive(0, 1, ms(5));
    }
    world.arrive(1, 1, ms(5));
    let mut served = [0; 2];
    for _ in 0..400 {
        let flow = world.end().map(|id| world.flow(id)).unwrap();
        served[usize::try_from(flow).unwrap()] += 1;
        world.arrive(flow, 1, ms(5));
    }
    assert!((150..=250).contains(&served[1]), "{served:?}");
}

proptest! {
    #[test]
    fn every_request_starts_within_the_seats(
        limit in 1usize..8,
        steps in prop::collection::vec((0u64..5, 1usize..4, 1u64..30, 0u8..5), 1..200),
    ) {
        let mut world = World::new(Discipline::Queue(QUEUING), limit);
        let mut expected = Vec::new();
        for (flow, seats, duration, what) in steps {
            match what {
                0 => drop(world.end()),
                1 => {
                    // The client of a waiting request leaves.
                    let waiting = expected.iter().copied().find(|id| world.queues.is_waiting(*id));
                    if let Some(id) = waiting {
                        prop_assert!(world.queues.remove(world.now, id));
                        expected.retain(|other| *other != id);
                        world.start();
                    }
                }
                _ => {
                    let (id, arrived) = world.arrive(flow, seats, ms(duration));
                    if arrived != Arrived::QueueFull {
                        expected.push(id);
                    }
                }
            }
            let q = &world.queues;
            prop_assert!(q.running_seats <= limit || q.running == 1);
            prop_assert_eq!(q.running, world.ends.len());
            let busy: usize = q.flows.values().flatten().map(|(_, requests)| requests).sum();
            prop_assert_eq!(busy, q.waiting + q.running);
            prop_assert_eq!(q.waiting, q.queues.iter().map(|queue| queue.waiting.len()).sum::<usize>());
            prop_assert!(!q.has_next(), "work is not left lying");
        }
        while world.end().is_some() {}
        let mut started = world.started.clone();
        started.sort_unstable();
        prop_assert_eq!(started, expected);
        prop_assert!(world.queues.is_idle());
        prop_assert_eq!((world.queues.waiting_seats, world.queues.running_seats), (0, 0));
    }

    /// With several noisy flows, the bound is two requests from each of their queues, and the seats.
    #[test]
    fn no_flood_starves_a_quiet_flow(
        seats in 1usize..12,
        floods in 1u64..6,
        each in 1usize..200,
        duration in 1u64..40,
    ) {
        let mut world = World::new(Discipline::Queue(QUEUING), seats);
        for flow in 0..floods {
            for _ in 0..each {
                world.arrive(flow, 1, ms(duration));
            }
        }
        for _ in 0..each.min(30) {
            let ended = world.end().unwrap();
            let flow = world.flow(ended);
            world.arrive(flow, 1, ms(duration));
        }
        let before = world.started.len();
        let (quiet, arrived) = world.arrive(floods, 1, ms(duration));
        prop_assert_eq!(arrived, Arrived::Waits);
        while !world.started.contains(&quiet) {
            let ended = world.end().unwrap();
            let flow = world.flow(ended);
            world.arrive(flow, 1, ms(duration));
        }
        let behind = world.started.len() - 1 - before;
        let most = 2 * QUEUING.hand * usize::try_from(floods).unwrap() + seats;
        prop_assert!(behind <= most, "{} requests of others, at most {}", behind, most);
    }
}
