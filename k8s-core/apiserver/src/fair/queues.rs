//! Fair queuing of one level: which of the waiting requests starts next.
//!
//! Each queue has a virtual clock: the time at which its next request would start if all busy flows
//! were served at the same rate, a slice of each in turn. The request that would end first in that
//! virtual world is the next one in the real world. Virtual time passes at the rate at which one busy
//! flow is served: that of the seats in use, divided by the number of flows. A flow that fills several
//! queues is charged in each for all of them, so it gets no more than a flow in one queue (upstream
//! serves queues at the same rate, whoever fills them).
//!
//! The duration of a request is not known before its end: it is charged [`SERVICE`] when it starts, and
//! the difference when it ends. A queue that was empty begins at the current virtual time, or a little
//! before it if it has used less than its part ([`CREDIT`]): who asks seldom is served before those who
//! always wait.
//!
//! Time is passed in, and requests are numbers: this module knows neither tokio nor HTTP. Upstream's
//! description is `queueset/doc.go`.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use super::hand::deal;

/// Requests by number. Numbers are given in order, and need no hash that an attacker cannot guess.
pub(super) type ById<T> = HashMap<u64, T, BuildHasherDefault<Spread>>;

/// Spreads consecutive numbers over a table.
#[derive(Debug, Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Charged duration of a request that has not ended, seconds.
const SERVICE: f64 = 0.003;

/// Most work that an idle queue saves up, seat-seconds.
const CREDIT: f64 = SERVICE;

/// Treatment of requests for which there are no seats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Discipline {
    /// There are always seats.
    Exempt,
    /// They are rejected.
    Reject,
    /// They wait.
    Queue(Queuing),
}

/// Queues of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queuing {
    pub(super) queues: usize,
    /// Number of queues of one flow.
    pub(super) hand: usize,
    /// Requests of one queue beyond which it is full while nothing can start.
    pub(super) length: usize,
}

/// Fate of a request that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    Starts,
    Waits,
    /// No seats, and no queues.
    NoSeats,
    /// Its queue is full.
    QueueFull,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// In its queue; it does not start before this virtual time.
    Waiting(f64),
    Running(Duration),
    /// Its seats were taken back.
    Unseated,
}

#[derive(Debug)]
struct Request {
    queue: Option<usize>,
    /// Hash of its flow.
    flow: u64,
    seats: usize,
    /// Number of queues that its flow was charged for when it started.
    share: usize,
    phase: Phase,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<u64>,
    waiting_seats: usize,
    running: usize,
    running_seats: usize,
    /// Virtual time at which its next request starts.
    next_start: f64,
}

impl Queue {
    fn is_active(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

/// State of one queue, for people.
#[derive(Debug)]
pub(super) struct QueueView {
    pub(super) waiting: usize,
    pub(super) running: usize,
    pub(super) running_seats: usize,
    pub(super) waiting_seats: usize,
    pub(super) next_start: f64,
    /// Estimated work of the waiting requests, seat-seconds.
    pub(super) waiting_work: f64,
}

/// The queues and seats of one level.
#[derive(Debug)]
pub(super) struct Queues {
    discipline: Discipline,
    /// Number of seats.
    limit: usize,
    queues: Vec<Queue>,
    /// Queues with waiting requests.
    waiting_in: BTreeSet<usize>,
    /// Busy flows: the queues in which they have requests that wait or run, and their number there.
    flows: ById<Vec<(usize, usize)>>,
    requests: ById<Request>,
    waiting: usize,
    waiting_seats: usize,
    running: usize,
    running_seats: usize,
    virtual_time: f64,
    passed: Duration,
    /// Queue of the last request that started; others come first among equals.
    last: usize,
    arrivals: usize,
    hand: Vec<usize>,
}

impl Queues {
    pub(super) fn new(now: Duration, discipline: Discipline, limit: usize) -> Self {
        let mut queues = Queues {
            discipline,
            limit,
            queues: Vec::new(),
            waiting_in: BTreeSet::new(),
            flows: ById::default(),
            requests: ById::default(),
            waiting: 0,
            waiting_seats: 0,
            running: 0,
            running_seats: 0,
            virtual_time: 0.0,
            passed: now,
            last: 0,
            arrivals: 0,
            hand: Vec::new(),
        };
        queues.configure(now, discipline);
        queues
    }

    /// Changes the discipline. Requests that wait stay where they are.
    pub(super) fn configure(&mut self, now: Duration, discipline: Discipline) {
        self.pass(now);
        self.discipline = discipline;
        let wanted = self.wanted();
        while self.queues.len() < wanted {
            self.queues.push(Queue::default());
        }
        self.trim();
    }

    /// Sets the number of seats.
    pub(super) fn set_limit(&mut self, now: Duration, limit: usize) {
        self.pass(now);
        self.limit = limit;
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    fn wanted(&self) -> usize {
        if let Discipline::Queue(queuing) = self.discipline { queuing.queues } else { 0 }
    }

    /// Removes idle queues beyond those that are wanted, from the end.
    fn trim(&mut self) {
        let wanted = self.wanted();
        while self.queues.len() > wanted && self.queues.last().is_some_and(|queue| !queue.is_active()) {
            self.queues.pop();
        }
    }

    /// Lets virtual time pass up to `now`, at the rate of the state since the last call.
    fn pass(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.passed).as_secs_f64();
        self.passed = self.passed.max(now);
        if !self.flows.is_empty() {
            self.virtual_time += seconds * self.running_seats as f64 / self.flows.len() as f64;
        }
    }

    /// True if a request of this width may start beside those that run. A request that is wider than
    /// the level runs alone.
    fn fits(&self, seats: usize) -> bool {
        self.discipline == Discipline::Exempt
            || self.running_seats + seats <= self.limit
            || (seats > self.limit && self.running == 0)
    }

    /// Takes a request with a number of its own, of a flow with this hash (asked for if there are
    /// queues). `may_start` is false if nothing can start now, whatever the seats. A request that waits
    /// starts by [`next`](Queues::next).
    pub(super) fn arrive(
        &mut self,
        now: Duration,
        id: u64,
        seats: usize,
        hash: impl FnOnce() -> u64,
        may_start: bool,
    ) -> Arrived {
        self.pass(now);
        let Discipline::Queue(queuing) = self.discipline else {
            if !self.fits(seats) {
                return Arrived::NoSeats;
            }
            let phase = Phase::Running(now);
            self.requests.insert(id, Request { queue: None, flow: 0, seats, share: 1, phase });
            self.running += 1;
            self.running_seats += seats;
            return Arrived::Starts;
        };
        let flow = hash();
        let index = self.emptiest(queuing, flow);
        let busy = self.running_seats >= self.limit || !may_start;
        if busy && self.queues[index].waiting.len() >= queuing.length {
            return Arrived::QueueFull;
        }
        let queue = &mut self.queues[index];
        if !queue.is_active() {
            queue.next_start = queue.next_start.clamp(self.virtual_time - CREDIT, self.virtual_time);
        }
        let busy = self.flows.entry(flow).or_default();
        match busy.iter_mut().find(|(queue, _)| *queue == index) {
            Some((_, requests)) => *requests += 1,
            None => busy.push((index, 1)),
        }
        queue.waiting.push_back(id);
        queue.waiting_seats += seats;
        self.waiting_in.insert(index);
        self.waiting += 1;
        self.waiting_seats += seats;
        let phase = Phase::Waiting(self.virtual_time - CREDIT);
        self.requests.insert(id, Request { queue: Some(index), flow, seats, share: 1, phase });
        self.bound(index);
        Arrived::Waits
    }

    /// Returns the queue of a flow's hand with the least work waiting.
    fn emptiest(&mut self, queuing: Queuing, hash: u64) -> usize {
        let mut hand = std::mem::take(&mut self.hand);
        deal(hash, queuing.queues, queuing.hand, &mut hand);
        // From another one each time: among equals no queue is preferred.
        self.arrivals = self.arrivals.wrapping_add(1);
        let first = self.arrivals % hand.len().max(1);
        let order = hand[first..].iter().chain(&hand[..first]).copied();
        let best = order.min_by_key(|queue| self.queues[*queue].waiting_seats).unwrap_or(0);
        self.hand = hand;
        best
    }

    /// Returns the queue whose first request would end first in virtual time, and that request.
    fn fairest(&self) -> Option<(usize, u64)> {
        let order = self.waiting_in.range(self.last + 1..).chain(self.waiting_in.range(..=self.last));
        let mut best: Option<(f64, usize, u64)> = None;
        for index in order {
            let queue = &self.queues[*index];
            let Some(id) = queue.waiting.front() else { continue };
            let end = queue.next_start + self.charge(&self.requests[id]);
            if best.is_none_or(|(least, ..)| end < least) {
                best = Some((end, *index, *id));
            }
        }
        best.map(|(_, index, id)| (index, id))
    }

    /// Returns the number of queues in which a request's flow has requests.
    fn share(&self, request: &Request) -> usize {
        self.flows.get(&request.flow).map_or(1, |queues| queues.len().max(1))
    }

    /// Returns the work that a request's queue is charged for when it starts.
    fn charge(&self, request: &Request) -> f64 {
        work(request.seats) * self.share(request) as f64
    }

    /// Returns true if [`next`](Queues::next) has a request.
    pub(super) fn has_next(&self) -> bool {
        self.waiting > 0 && self.fairest().is_some_and(|(_, id)| self.fits(self.requests[&id].seats))
    }

    /// Starts the request whose turn it is, if there are seats for it.
    pub(super) fn next(&mut self, now: Duration) -> Option<u64> {
        if self.waiting == 0 {
            return None;
        }
        self.pass(now);
        let (index, id) = self.fairest().filter(|(_, id)| self.fits(self.requests[id].seats))?;
        self.unqueue(index, id);
        let share = self.share(&self.requests[&id]);
        let request = self.requests.get_mut(&id)?;
        request.phase = Phase::Running(now);
        request.share = share;
        let queue = &mut self.queues[index];
        queue.running += 1;
        queue.running_seats += request.seats;
        queue.next_start += work(request.seats) * share as f64;
        self.running += 1;
        self.running_seats += request.seats;
        self.last = index;
        self.bound(index);
        Some(id)
    }

    fn unqueue(&mut self, index: usize, id: u64) {
        let seats = self.requests[&id].seats;
        let queue = &mut self.queues[index];
        queue.waiting.retain(|waiting| *waiting != id);
        queue.waiting_seats -= seats;
        if queue.waiting.is_empty() {
            self.waiting_in.remove(&index);
        }
        self.waiting -= 1;
        self.waiting_seats -= seats;
    }

    /// A queue that always waits saves up no credit either.
    fn bound(&mut self, index: usize) {
        let queue = &mut self.queues[index];
        if let Some(Phase::Waiting(earliest)) = queue.waiting.front().map(|id| self.requests[id].phase) {
            queue.next_start = queue.next_start.max(earliest);
        }
    }

    /// Takes the seats of a running request back; its work goes on without. Returns true if it had any.
    pub(super) fn unseat(&mut self, now: Duration, id: u64) -> bool {
        self.pass(now);
        let Some(request) = self.requests.get_mut(&id) else { return false };
        let Phase::Running(since) = request.phase else { return false };
        request.phase = Phase::Unseated;
        let (seats, queue, flow, share) = (request.seats, request.queue, request.flow, request.share);
        self.running -= 1;
        self.running_seats -= seats;
        if let Some(index) = queue {
            let queue = &mut self.queues[index];
            queue.running -= 1;
            queue.running_seats -= seats;
            let more = now.saturating_sub(since).as_secs_f64() - SERVICE;
            queue.next_start += more * (seats * share) as f64;
            self.bound(index);
            self.left(flow, index);
        }
        true
    }

    /// Forgets a request: it has ended, or it waits no longer. Returns true if it was waiting.
    pub(super) fn remove(&mut self, now: Duration, id: u64) -> bool {
        self.unseat(now, id);
        let Some((queue, flow, phase)) = self.requests.get(&id).map(|r| (r.queue, r.flow, r.phase)) else {
            return false;
        };
        let waited = matches!(phase, Phase::Waiting(_));
        if let (true, Some(index)) = (waited, queue) {
            self.unqueue(index, id);
            self.bound(index);
            self.left(flow, index);
        }
        self.requests.remove(&id);
        waited
    }

    /// Counts a request that has left a queue of its flow.
    fn left(&mut self, flow: u64, index: usize) {
        if let Some(busy) = self.flows.get_mut(&flow) {
            busy.iter_mut().filter(|(queue, _)| *queue == index).for_each(|(_, requests)| *requests -= 1);
            busy.retain(|(_, requests)| *requests > 0);
            if busy.is_empty() {
                self.flows.remove(&flow);
            }
        }
        if !self.queues[index].is_active() {
            self.trim();
        }
    }

    pub(super) fn is_waiting(&self, id: u64) -> bool {
        self.requests.get(&id).is_some_and(|request| matches!(request.phase, Phase::Waiting(_)))
    }

    pub(super) fn is_running(&self, id: u64) -> bool {
        self.requests.get(&id).is_some_and(|request| matches!(request.phase, Phase::Running(_)))
    }

    /// Returns true if there are no requests, unseated ones included.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Number of seats that the level could use.
    pub(super) fn demand(&self) -> usize {
        self.running_seats + self.waiting_seats
    }

    /// Returns the queues in order.
    pub(super) fn views(&self) -> impl Iterator<Item = QueueView> {
        self.queues.iter().map(|queue| QueueView {
            waiting: queue.waiting.len(),
            running: queue.running,
            running_seats: queue.running_seats,
            waiting_seats: queue.waiting_seats,
            next_start: queue.next_start,
            waiting_work: work(queue.waiting_seats),
        })
    }

    /// Returns the queue of a request, and its place in it; `None` for what is not there.
    pub(super) fn place(&self, id: u64) -> (Option<usize>, Option<usize>) {
        let queue = self.requests.get(&id).and_then(|request| request.queue);
        let place =
            queue.and_then(|queue| self.queues[queue].waiting.iter().position(|waiting| *waiting == id));
        (queue, place)
    }
}

/// Charged work of a request that has not ended, seat-seconds.
fn work(seats: usize) -> f64 {
    SERVICE * seats as f64
}

#[cfg(test)]
mod tests;
