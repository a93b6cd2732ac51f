//! All levels of a server: their seats, and the order in which their requests start.
//!
//! A turn of the server's event loop starts no more than a few requests. Most are answered within one
//! poll, so that seats alone would never be scarce, and requests would be served in the order in which
//! their connections are polled. With turns, those that arrive together wait for each other in their
//! queues, where flows are served fairly. A request that waits for a disk or a webhook does not delay
//! the next turn.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{
    CATCH_ALL,
    borrow::{Bounds, Wish, divide},
    config::Config,
    demand::PERIOD,
    level::{Held, Level},
    queues::Arrived,
};

/// Time that a request may wait for its client before its seats are taken back.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Time after a change of flows for which turns keep them apart.
const CONTESTED: Duration = Duration::from_secs(1);
/// Interval of looks at requests that wait for their clients.
const LOOK: Duration = Duration::from_millis(250);

/// Reason for a rejection, as the metric names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    ConcurrencyLimit,
    QueueFull,
    TimeOut,
    Cancelled,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Reason::ConcurrencyLimit => "concurrency-limit",
            Reason::QueueFull => "queue-full",
            Reason::TimeOut => "time-out",
            Reason::Cancelled => "cancelled",
        }
    }
}

/// Fate of a request that has arrived.
#[derive(Debug)]
pub(super) enum Entered {
    Running(u64),
    /// Told by the channel when it starts.
    Waiting(u64, oneshot::Receiver<()>),
    /// Rejected, with the seconds after which to try again.
    Rejected(u64),
}

/// The levels of a server.
#[derive(Debug)]
pub(super) struct Levels {
    /// Number of seats of the server.
    total: usize,
    /// Number of requests that one turn starts.
    turn: usize,
    /// Number of them that this turn may still start.
    left: usize,
    /// True while a task begins turns.
    pub(super) turning: bool,
    /// Number of the configuration in force.
    applied: u64,
    pub(super) all: Vec<Level>,
    /// Place of the level that is asked first.
    first: usize,
    /// The connection of the last request, if it has one request at a time.
    source: Option<usize>,
    /// Flow of the last limited request, as a hash.
    flow: u64,
    /// Time until which requests of several flows are expected.
    contested: Duration,
    last_id: u64,
    adjusted: Duration,
    looked: Duration,
    /// Fraction of its target that each level gets.
    pub(super) fraction: f64,
    /// Number of each user's requests whose seats were taken back.
    stuck: HashMap<Box<str>, usize>,
}

impl Levels {
    /// Returns levels that share `total` seats, of which `turn` are given at a time.
    pub(super) fn new(total: usize, turn: usize) -> Self {
        Levels {
            total,
            turn,
            left: turn,
            turning: false,
            applied: 0,
            all: Vec::new(),
            first: 0,
            source: None,
            flow: 0,
            contested: Duration::ZERO,
            last_id: 0,
            adjusted: Duration::ZERO,
            looked: Duration::ZERO,
            fraction: 0.0,
            stuck: HashMap::new(),
        }
    }

    /// Puts a configuration in force, unless a newer one is.
    pub(super) fn apply(&mut self, now: Duration, config: &Config) {
        if config.number <= self.applied {
            return;
        }
        self.applied = config.number;
        for level in &mut self.all {
            level.quiescing = !config.levels.contains_key(&level.name);
        }
        self.all.retain(|level| !level.quiescing || !level.queues.is_idle());
        let mut new = Vec::new();
        for (name, plan) in &config.levels {
            if let Some(level) = self.find(name) {
                level.plan = *plan;
                level.queues.configure(now, plan.discipline);
            } else {
                new.push(name.clone());
                self.all.push(Level::new(name.clone(), *plan, now));
            }
        }
        self.all.sort_by(|a, b| a.name.cmp(&b.name));
        let sum = self.all.iter().map(|level| level.plan.shares.shares).sum();
        for level in &mut self.all {
            level.bounds = Bounds::of(level.plan.shares, self.total, sum);
            if new.contains(&level.name) {
                level.queues.set_limit(now, level.bounds.first());
            }
        }
        self.adjust(now);
    }

    /// Returns a level by name.
    pub(super) fn find(&mut self, name: &str) -> Option<&mut Level> {
        self.all.iter_mut().find(|level| *level.name == *name)
    }

    /// Divides the seats by the levels' demand since the last time.
    fn adjust(&mut self, now: Duration) {
        self.adjusted = now;
        let mut left = self.all.iter().map(|level| level.bounds.nominal).sum::<usize>() as f64;
        let mut wishes = Vec::new();
        for level in &mut self.all {
            let demand = level.demand.end(now);
            let [nominal, lower, upper] =
                [level.bounds.nominal, level.bounds.lower, level.bounds.upper].map(|n| n as f64);
            if level.is_exempt() {
                let limit = lower.max(demand.highest);
                left -= limit;
                level.target = limit;
                level.queues.set_limit(now, whole(limit));
            } else {
                // A level in need gets no less than its nominal limit.
                let lower = lower.max(demand.highest.min(nominal));
                level.target = demand.smoothed.max(lower);
                wishes.push(Wish { lower, upper, target: level.target });
            }
        }
        let needed: f64 = wishes.iter().map(|wish| wish.lower).sum();
        let limited = || self.all.iter().filter(|level| !level.is_exempt());
        let least: f64 = limited().map(|level| level.bounds.lower as f64).sum();
        let given: Vec<f64> = if left <= needed {
            // Exempt requests use so much that not all needs are met.
            self.fraction = 0.0;
            let part = if needed > least { ((left - least) / (needed - least)).clamp(0.0, 1.0) } else { 0.0 };
            let lowers = limited().map(|level| level.bounds.lower as f64);
            lowers.zip(&wishes).map(|(lower, wish)| lower + part * (wish.lower - lower)).collect()
        } else {
            let (given, fraction) = divide(left, &wishes);
            self.fraction = fraction;
            given
        };
        let limited = self.all.iter_mut().filter(|level| !level.is_exempt());
        for (level, seats) in limited.zip(given) {
            level.queues.set_limit(now, whole(seats));
        }
        self.start(now);
    }

    /// Does what is due: adjusts limits, takes unused seats back, starts requests.
    pub(super) fn tick(&mut self, now: Duration) {
        if now.saturating_sub(self.adjusted) >= PERIOD {
            self.adjust(now);
        }
        if now.saturating_sub(self.looked) >= LOOK {
            self.looked = now;
            let mut users = Vec::new();
            for level in &mut self.all {
                users.extend(level.unseat(now, PATIENCE));
            }
            if !users.is_empty() {
                users.into_iter().for_each(|user| *self.stuck.entry(user).or_default() += 1);
                self.start(now);
            }
        }
    }

    /// Notes the connection of a request that enters. One that is alone, request after request, delays
    /// no other, and needs no turns; neither does a flow that has been alone for a while.
    pub(super) fn come_from(&mut self, now: Duration, source: Option<usize>, flow: u64) {
        if flow != self.flow {
            self.flow = flow;
            self.contested = now + CONTESTED;
        }
        let alone = (source.is_some() && source == self.source) || now >= self.contested;
        if alone && self.all.iter().all(|level| level.queues.waiting() == 0) {
            self.left = self.turn;
        }
        self.source = source;
    }

    /// Takes a request in. `held` gets its number of seats here, `seats` of the most that one request
    /// may have.
    pub(super) fn enter(
        &mut self,
        now: Duration,
        mut held: Held,
        hash: impl FnOnce() -> u64,
        most_stuck: usize,
        seats: impl FnOnce(usize) -> usize,
    ) -> (Arc<str>, Entered) {
        self.tick(now);
        let name = held.schema.level.clone();
        let stuck = self.stuck.get(&held.user).is_some_and(|stuck| *stuck >= most_stuck);
        let may_start = self.left > 0;
        self.last_id += 1;
        let id = self.last_id;
        // A level may have gone since the request was classified.
        let place = self.all.iter().position(|level| level.name == name);
        let place = place.or_else(|| self.all.iter().position(|level| *level.name == *CATCH_ALL));
        let Some(level) = place.and_then(|place| self.all.get_mut(place)) else {
            return (name, Entered::Rejected(1));
        };
        let name = level.name.clone();
        held.seats = seats(level.widest());
        let schema = held.schema.clone();
        schema.metrics.seats.observe(held.seats as f64);
        let arrived = match stuck && !level.is_exempt() {
            true => Arrived::NoSeats,
            false => level.queues.arrive(now, id, held.seats, hash, may_start),
        };
        let reason = match arrived {
            Arrived::Starts => {
                level.requests.insert(id, held);
                level.begin(id, now);
                level.measure(now);
                return (name, Entered::Running(id));
            }
            Arrived::Waits => {
                level.requests.insert(id, held);
                level.measure(now);
                self.start(now);
                let waiting = self.find(&name).filter(|level| level.queues.is_waiting(id));
                let Some(held) = waiting.and_then(|level| level.requests.get_mut(&id)) else {
                    return (name, Entered::Running(id));
                };
                let (sender, receiver) = oneshot::channel();
                held.waiter = Some(sender);
                return (name, Entered::Waiting(id, receiver));
            }
            Arrived::NoSeats => Reason::ConcurrencyLimit,
            Arrived::QueueFull => Reason::QueueFull,
        };
        level.counts.rejected += 1;
        schema.metrics.reject(reason.name());
        (name, Entered::Rejected(level.retry.reject(now)))
    }

    /// Starts requests of all levels in turn, as many as this turn may start.
    pub(super) fn start(&mut self, now: Duration) {
        let mut idle = 0;
        while self.left > 0 && idle < self.all.len() {
            self.first = (self.first + 1) % self.all.len();
            if self.all[self.first].start(now) {
                self.left -= 1;
                idle = 0;
            } else {
                idle += 1;
            }
        }
    }

    /// Returns true if requests wait for nothing but the next turn.
    pub(super) fn wants_turn(&self) -> bool {
        self.left == 0 && self.all.iter().any(|level| level.queues.has_next())
    }

    /// Begins a turn.
    pub(super) fn begin_turn(&mut self, now: Duration) {
        self.left = self.turn;
        self.tick(now);
        self.start(now);
    }

    /// Forgets a request that has ended, or left. Starts others in its place.
    pub(super) fn free(&mut self, now: Duration, name: &str, id: u64) {
        let Some(level) = self.find(name) else { return };
        let Some(held) = level.requests.remove(&id) else { return };
        let had_seat = level.queues.is_running(id);
        if level.queues.remove(now, id) {
            reject_waiting(level, &held, now, Reason::Cancelled);
        } else if let Some(started) = held.started {
            let metrics = &held.schema.metrics;
            let of = if held.verb == "watch" { &metrics.watched } else { &metrics.executed };
            of.observe(now.saturating_sub(started).as_secs_f64());
        }
        level.measure(now);
        let is_over = level.quiescing && level.queues.is_idle();
        if is_over {
            self.all.retain(|level| !level.quiescing || !level.queues.is_idle());
        }
        if !had_seat
            && held.started.is_some()
            && let Some(stuck) = self.stuck.get_mut(&held.user)
        {
            *stuck -= 1;
            if *stuck == 0 {
                self.stuck.remove(&held.user);
            }
        }
        self.start(now);
    }

    /// Gives up a request that has waited too long. Returns the seconds after which to try again;
    /// `None` if it has started meanwhile.
    pub(super) fn give_up(&mut self, now: Duration, name: &str, id: u64) -> Option<u64> {
        let level = self.find(name)?;
        if !level.queues.is_waiting(id) {
            return None;
        }
        level.queues.remove(now, id);
        let held = level.requests.remove(&id)?;
        reject_waiting(level, &held, now, Reason::TimeOut);
        level.measure(now);
        let again = level.retry.reject(now);
        self.start(now);
        Some(again)
    }
}

fn reject_waiting(level: &mut Level, held: &Held, now: Duration, reason: Reason) {
    level.counts.rejected += 1;
    match reason {
        Reason::TimeOut => level.counts.timed_out += 1,
        _ => level.counts.cancelled += 1,
    }
    let metrics = &held.schema.metrics;
    metrics.reject(reason.name());
    metrics.waited_in_vain.observe(now.saturating_sub(held.arrived).as_secs_f64());
}

/// Rounds a number of seats.
fn whole(seats: f64) -> usize {
    seats.round().max(0.0) as usize
}

#[cfg(test)]
mod tests;
