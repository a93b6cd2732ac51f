//! Limits on the requests of a client: rates, and requests in flight.
//!
//! Memory is bounded: at most [`MOST`] clients of all Ingresses are known; beyond that, those that were not
//! seen for longest are forgotten.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_core::meta::ObjectKey;
use tokio::time::Instant;

use crate::settings;

/// Clients that are known at most.
const MOST: usize = 65_536;

type Id = (ObjectKey, IpAddr);

/// A rate as a bucket that leaks.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    level: f64,
}

impl Bucket {
    /// Takes one request in; false if the bucket is full.
    fn take(&mut self, elapsed: f64, per_second: f64, burst: f64) -> bool {
        self.level = (self.level - elapsed * per_second).max(0.0);
        let fits = self.level + 1.0 <= burst;
        if fits {
            self.level += 1.0;
        }
        fits
    }
}

#[derive(Debug)]
struct Known {
    seen: Instant,
    second: Bucket,
    minute: Bucket,
    in_flight: u32,
}

/// The clients of a proxy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limiter(Arc<Mutex<HashMap<Id, Known>>>);

/// One of a client's requests in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Limiter, Id);

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(known) = self.0.lock().get_mut(&self.1) {
            known.in_flight = known.in_flight.saturating_sub(1);
        }
    }
}

impl Limiter {
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request. Returns `Err` if it is one too many, else its slot if requests in flight are
    /// limited.
    pub(crate) fn enter(
        &self,
        ingress: &ObjectKey,
        client: IpAddr,
        limits: &settings::Limits,
        now: Instant,
    ) -> Result<Option<Slot>, ()> {
        if limits.per_second.is_none() && limits.per_minute.is_none() && limits.connections.is_none() {
            return Ok(None);
        }
        let id = (ingress.clone(), client);
        let mut all = self.lock();
        if all.len() >= MOST && !all.contains_key(&id) {
            forget(&mut all);
        }
        let known = all.entry(id.clone()).or_insert_with(|| Known {
            seen: now,
            second: Bucket::default(),
            minute: Bucket::default(),
            in_flight: 0,
        });
        let elapsed = now.duration_since(known.seen).as_secs_f64();
        known.seen = now;
        let burst = f64::from(limits.burst);
        let rate = |bucket: &mut Bucket, limit: Option<u32>, seconds: f64| {
            let limit = limit.map(f64::from);
            limit.is_none_or(|limit| bucket.take(elapsed, limit / seconds, limit * burst))
        };
        let second = rate(&mut known.second, limits.per_second, 1.0);
        let minute = rate(&mut known.minute, limits.per_minute, 60.0);
        if !(second && minute) || limits.connections.is_some_and(|most| known.in_flight >= most) {
            return Err(());
        }
        Ok(limits.connections.map(|_| {
            known.in_flight += 1;
            Slot(self.clone(), id)
        }))
    }
}

/// Forgets half of the clients without requests in flight, those not seen for longest.
fn forget(all: &mut HashMap<Id, Known>) {
    let mut times: Vec<_> = all.values().map(|known| known.seen).collect();
    let middle = times.len() / 2;
    let (_, median, _) = times.select_nth_unstable(middle);
    let median = *median;
    all.retain(|_, known| known.in_flight > 0 || known.seen > median);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_have_bursts_and_clients_do_not_share_them() {
        let (limiter, now, key) = (Limiter::default(), Instant::now(), ObjectKey::new("a", "b"));
        let limits = settings::Limits { per_second: Some(2), burst: 3, ..settings::Limits::default() };
        let enter = |client: u8, now| limiter.enter(&key, [10, 0, 0, client].into(), &limits, now).is_ok();
        assert_eq!((0..10).filter(|_| enter(1, now)).count(), 6);
        assert!(enter(2, now), "another client");
        let later = now + Duration::from_secs(1);
        assert_eq!((0..10).filter(|_| enter(1, later)).count(), 2);
    }

    #[test]
    fn requests_in_flight_end_with_their_slot() {
        let (limiter, now, key) = (Limiter::default(), Instant::now(), ObjectKey::new("a", "b"));
        let limits = settings::Limits { connections: Some(1), burst: 5, ..settings::Limits::default() };
        let enter = || limiter.enter(&key, [10, 0, 0, 1].into(), &limits, now);
        let slot = enter().unwrap();
        assert!(slot.is_some() && enter().is_err());
        drop(slot);
        assert!(enter().is_ok());
    }

    #[test]
    fn memory_is_bounded() {
        let (limiter, mut now, key) = (Limiter::default(), Instant::now(), ObjectKey::new("a", "b"));
        let limits = settings::Limits { per_minute: Some(1), burst: 1, ..settings::Limits::default() };
        for i in 0..u32::try_from(MOST).unwrap() + 10 {
            now += Duration::from_micros(1);
            limiter.enter(&key, IpAddr::from(i.to_be_bytes()), &limits, now).unwrap();
        }
        assert!(limiter.lock().len() <= MOST);
    }
}
