//! API priority and fairness: which of the requests over sockets is worked on next.
//!
//! Flow: a request is classified by the stored flow schemas ([`config`], [`schemas`]): its schema names
//! its level, and its flow within it. A level has seats ([`borrow`], [`levels`]); without one, a
//! request waits in a queue of its flow ([`hand`], [`queues`]), or is rejected with 429 and
//! `Retry-After`. A request is as wide as the work that it makes ([`seats`]). Its [`Seat`] is held
//! until the last byte of its answer is taken; a watch leaves it after its initial events.
//!
//! Guarantees:
//! 1. A flow that has nothing waiting waits for no more than two requests from each queue of other
//!    flows, and as many as there are seats, however many they have; the property tests of [`queues`]
//!    state it.
//! 2. Requests that wait for their clients (for a body, or for an answer to be read) do not keep others out:
//!    after a second their seats are taken back. A user with many of those gets no further ones.
//!
//! Time passes with requests and scrapes: there is no task of its own but the one that begins turns
//! ([`levels`]), and that one ends with the last waiting request.
//!
//! As upstream, long-running requests that are no watches are not subject to it, and `exempt` is never full.
//! Not here: requests of the same process; seats that linger after a write for the watches of its object; the
//! bound of body bytes ([`crate::limits`]).

#![expect(
    clippy::disallowed_methods,
    reason = "durations of requests, and a task that ends with the last one"
)]

mod borrow;
mod config;
mod demand;
pub(crate) mod dump;
mod hand;
mod level;
mod levels;
mod metrics;
mod queues;
mod retry;
mod schemas;
mod seat;
pub(crate) mod seats;

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use k8s_store::Store;
use tokio::time::Instant;

use self::{
    config::Config,
    level::{Held, Level},
    levels::{Entered, Levels},
    metrics::{LevelNumbers, Metrics},
};
pub(crate) use self::{schemas::Schema, seat::Seat};
use crate::{
    admission::cached::Cached,
    request::RequestInfo,
    resources::flow_defaults::{LEVELS, SCHEMAS},
    user::User,
};

const EXEMPT: &str = "exempt";
const CATCH_ALL: &str = "catch-all";

/// Interval at which a waiting request looks whether something is due.
const LOOK: Duration = Duration::from_millis(500);

/// Returns true if a priority level exists and does not contradict itself.
pub(crate) fn has_level(store: &Store, name: &str) -> bool {
    let stored = store.get(LEVELS, name);
    let level = stored.and_then(|stored| serde_json::from_slice(&stored.json).ok());
    level.is_some_and(|level| config::plan(&level).is_some())
}

/// Priority and fairness of one server.
#[derive(Debug)]
pub(crate) struct Fairness {
    config: Cached<Config, 2>,
    compiled: AtomicU64,
    metrics: Metrics,
    /// Longest time in a queue.
    wait: Duration,
    /// Number of a user's requests without a seat that wait for their client, beyond which it gets no others.
    most_stuck: usize,
    origin: Instant,
    hasher: RandomState,
    levels: Mutex<Levels>,
}

/// Answer to a request for a seat.
pub(crate) enum Entry {
    Done(Result<Seat, Rejected>),
    /// There are none now, or others come first.
    Waits(BoxFuture<'static, Result<Seat, Rejected>>),
}

/// A rejected request's pause in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejected(pub(crate) u64);

impl Fairness {
    /// Returns the fairness of a server with `seats`, of which each user may block at most half.
    /// Requests wait for a seat for at most `wait`.
    pub(crate) fn new(seats: usize, wait: Duration, registry: &k8s_metrics::Registry) -> Arc<Self> {
        // One request for each thread that polls.
        let runtime = tokio::runtime::Handle::try_current();
        let turn = runtime.map_or(1, |runtime| runtime.metrics().num_workers());
        Self::with_turn(seats, wait, turn, registry)
    }

    fn with_turn(seats: usize, wait: Duration, turn: usize, registry: &k8s_metrics::Registry) -> Arc<Self> {
        let fair = Arc::new(Fairness {
            config: Cached::new([SCHEMAS, LEVELS]),
            compiled: AtomicU64::new(0),
            metrics: Metrics::new(registry),
            wait,
            most_stuck: seats.div_ceil(2),
            origin: Instant::now(),
            hasher: RandomState::new(),
            levels: Mutex::new(Levels::new(seats, turn)),
        });
        registry.register_collector("flowcontrol", metrics::Levels(Arc::downgrade(&fair)));
        fair
    }

    /// Time since the server's start.
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn levels(&self) -> MutexGuard<'_, Levels> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the schema of a user's request, by the newest objects in the store.
    pub(crate) fn classify(&self, store: &Store, user: &User, info: &RequestInfo) -> Option<Arc<Schema>> {
        let config = self.config.get(store, || {
            let number = self.compiled.fetch_add(1, Ordering::AcqRel) + 1;
            let config = Config::load(store, number, &self.metrics);
            self.levels().apply(self.now(), &config);
            config
        });
        config.classify(user, info).cloned()
    }

    /// Asks for a seat. `source` is the connection, if it has one request at a time; `seats` returns the
    /// request's number of seats, of the most that one may have.
    pub(crate) fn enter(
        self: &Arc<Self>,
        schema: &Arc<Schema>,
        user: &User,
        info: &RequestInfo,
        source: Option<usize>,
        seats: impl FnOnce(usize) -> usize,
    ) -> Entry {
        let flow = schema.flow(&user.name, &info.namespace);
        let idle = Arc::default();
        let now = self.now();
        let held = Held {
            schema: schema.clone(),
            user: user.name.as_str().into(),
            verb: known(&info.verb),
            path: info.path.as_str().into(),
            seats: 1,
            arrived: now,
            started: None,
            idle: Arc::clone(&idle),
            waiter: None,
        };
        let flow = self.hasher.hash_one((&schema.name, flow));
        let (level, entered) = {
            let mut levels = self.levels();
            levels.come_from(now, source, flow);
            let entered = levels.enter(now, held, || flow, self.most_stuck, seats);
            self.keep_turning(&mut levels);
            entered
        };
        let seat = |id| Seat { fair: self.clone(), level, id, idle, left: AtomicBool::new(false) };
        match entered {
            Entered::Running(id) => Entry::Done(Ok(seat(id))),
            Entered::Rejected(again) => Entry::Done(Err(Rejected(again))),
            // Boxed: few wait, and the future of every request would have its size.
            Entered::Waiting(id, told) => Entry::Waits(Box::pin(self.clone().wait(seat(id), told))),
        }
    }

    /// Waits until a request starts. A client that leaves drops the seat, and the request leaves its queue.
    async fn wait(
        self: Arc<Self>,
        seat: Seat,
        mut told: tokio::sync::oneshot::Receiver<()>,
    ) -> Result<Seat, Rejected> {
        let until = Instant::now() + self.wait;
        loop {
            let look = until.min(Instant::now() + LOOK);
            if tokio::time::timeout_at(look, &mut told).await.is_ok() {
                return Ok(seat);
            }
            let mut levels = self.levels();
            if Instant::now() < until {
                levels.tick(self.now());
                self.keep_turning(&mut levels);
            } else if let Some(again) = levels.give_up(self.now(), &seat.level, seat.id) {
                self.keep_turning(&mut levels);
                drop(levels);
                return Err(Rejected(again));
            }
        }
    }

    /// Frees a request's place.
    fn free(self: &Arc<Self>, level: &str, id: u64) {
        let mut levels = self.levels();
        levels.free(self.now(), level, id);
        self.keep_turning(&mut levels);
    }

    /// Begins turns while requests wait for them.
    fn keep_turning(self: &Arc<Self>, levels: &mut Levels) {
        if levels.turning || !levels.wants_turn() {
            return;
        }
        // Without a runtime, the server is gone and nobody waits.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            levels.turning = true;
            let fair = self.clone();
            runtime.spawn(async move {
                loop {
                    // Returns after all that is ready now has been polled.
                    tokio::task::yield_now().await;
                    let mut levels = fair.levels();
                    levels.begin_turn(fair.now());
                    if !levels.wants_turn() {
                        levels.turning = false;
                        return;
                    }
                }
            });
        }
    }

    fn with_levels<T>(&self, look: impl FnOnce(&[Level]) -> T) -> T {
        let mut levels = self.levels();
        levels.tick(self.now());
        look(&levels.all)
    }

    /// Returns the numbers of all levels, and the fraction of its target that each gets.
    fn numbers(&self) -> (Vec<LevelNumbers>, f64) {
        let mut levels = self.levels();
        levels.tick(self.now());
        (levels.all.iter().map(Level::numbers).collect(), levels.fraction)
    }
}

/// Returns a verb as a constant; `other` for one that no handler knows.
fn known(verb: &str) -> &'static str {
    let verbs =
        ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "post", "put"];
    verbs.into_iter().find(|known| *known == verb).unwrap_or("other")
}

#[cfg(test)]
mod tests;
