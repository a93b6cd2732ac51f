//! One priority level at work.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{
    borrow::Bounds,
    config::Plan,
    demand::Demand,
    metrics::LevelNumbers,
    queues::{Discipline, Queues},
    retry::RetryAfter,
    schemas::Schema,
    seat::Idle,
    seats,
};

/// A request of a level.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) schema: Arc<Schema>,
    pub(super) user: Box<str>,
    pub(super) verb: &'static str,
    pub(super) path: Box<str>,
    pub(super) seats: usize,
    pub(super) arrived: Duration,
    pub(super) started: Option<Duration>,
    pub(super) idle: Arc<Idle>,
    /// Told when it starts.
    pub(super) waiter: Option<oneshot::Sender<()>>,
}

/// Numbers of requests so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) dispatched: u64,
    pub(super) rejected: u64,
    pub(super) timed_out: u64,
    pub(super) cancelled: u64,
}

/// A level: its queues, its bounds and its requests.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) name: Arc<str>,
    pub(super) plan: Plan,
    pub(super) bounds: Bounds,
    pub(super) queues: Queues,
    pub(super) demand: Demand,
    /// Number of seats that it was meant to get at the last adjustment.
    pub(super) target: f64,
    pub(super) retry: RetryAfter,
    pub(super) requests: BTreeMap<u64, Held>,
    pub(super) counts: Counts,
    /// True if it is configured no longer, and goes when its requests have ended.
    pub(super) quiescing: bool,
}

impl Level {
    pub(super) fn new(name: Arc<str>, plan: Plan, now: Duration) -> Self {
        Level {
            name,
            plan,
            bounds: Bounds::default(),
            queues: Queues::new(now, plan.discipline, 0),
            demand: Demand::new(now),
            target: 0.0,
            retry: RetryAfter::new(now),
            requests: BTreeMap::new(),
            counts: Counts::default(),
            quiescing: false,
        }
    }

    pub(super) fn is_exempt(&self) -> bool {
        self.plan.discipline == Discipline::Exempt
    }

    /// Returns the most seats of one request.
    pub(super) fn widest(&self) -> usize {
        let hand = match self.plan.discipline {
            Discipline::Queue(queuing) => Some(queuing.hand),
            Discipline::Exempt | Discipline::Reject => None,
        };
        seats::widest(self.bounds.nominal, hand)
    }

    /// Notes the current demand.
    pub(super) fn measure(&mut self, now: Duration) {
        self.demand.set(now, self.queues.demand());
    }

    /// Notes that a request has started, and tells it.
    pub(super) fn begin(&mut self, id: u64, now: Duration) {
        let Some(held) = self.requests.get_mut(&id) else { return };
        held.started = Some(now);
        self.counts.dispatched += 1;
        let metrics = &held.schema.metrics;
        metrics.dispatched.inc();
        if self.plan.discipline != Discipline::Exempt {
            metrics.waited.observe(now.saturating_sub(held.arrived).as_secs_f64());
        }
        // One that has gone meanwhile gives its seat back itself.
        let _ = held.waiter.take().map(|waiter| waiter.send(()));
    }

    /// Starts the next request, if there is one with seats.
    pub(super) fn start(&mut self, now: Duration) -> bool {
        let Some(id) = self.queues.next(now) else { return false };
        self.begin(id, now);
        true
    }

    /// Takes the seats of requests back that have waited for their clients for `patience`. Returns
    /// their users.
    pub(super) fn unseat(&mut self, now: Duration, patience: Duration) -> Vec<Box<str>> {
        if self.is_exempt() || self.queues.demand() < self.queues.limit() {
            return Vec::new();
        }
        let mut users = Vec::new();
        for (id, held) in &self.requests {
            if held.idle.time(now) >= patience && self.queues.unseat(now, *id) {
                users.push(held.user.clone());
            }
        }
        self.measure(now);
        users
    }

    pub(super) fn numbers(&self) -> LevelNumbers {
        let demand = self.demand.last();
        let Bounds { nominal, lower, upper } = self.bounds;
        let [nominal, lower, upper, limit] = [nominal, lower, upper, self.queues.limit()].map(|n| n as f64);
        let mut schemas: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
        for (id, held) in &self.requests {
            let numbers = schemas.entry(&held.schema.name).or_default();
            if self.queues.is_waiting(*id) {
                numbers[0] += 1;
                numbers[1] += held.seats;
            } else if self.queues.is_running(*id) {
                numbers[2] += 1;
                numbers[3] += held.seats;
            }
        }
        LevelNumbers {
            level: self.name.to_string(),
            numbers: [
                nominal,
                lower,
                upper,
                limit,
                demand.highest,
                demand.average,
                demand.deviation,
                demand.smoothed,
                self.target,
            ],
            schemas: schemas.into_iter().map(|(name, numbers)| (name.to_owned(), numbers)).collect(),
        }
    }
}
