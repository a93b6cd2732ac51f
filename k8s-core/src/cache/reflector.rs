//! Keeps a cache current.

use std::{collections::HashSet, time::Duration};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Cache;
use crate::{
    client::{Api, Error, ListParams, WatchEvent},
    meta::{Object, ObjectExt, ObjectKey},
};

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// A running reflector; dropping it stops it.
#[derive(Debug)]
pub struct Reflector {
    stop: CancellationToken,
}

impl Drop for Reflector {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts to fill `cache` from `api` and keeps it current until the returned handle is dropped.
#[must_use]
pub fn reflect<K: Object>(api: Api<K>, params: ListParams, cache: Cache<K>) -> Reflector {
    reflect_trimmed(api, params, cache, |_| {})
}

/// As [`reflect`], with `trim` taking out of each object what nobody who reads this cache needs.
#[must_use]
pub fn reflect_trimmed<K: Object>(
    api: Api<K>,
    params: ListParams,
    cache: Cache<K>,
    trim: fn(&mut K),
) -> Reflector {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            // So that what happens in a test follows from its seed, here and in every controller.
            biased;
            () = stopped.cancelled() => {}
            () = run(Source { api: api.lean(), params, trim }, cache) => {}
        }
    });
    Reflector { stop }
}

/// Where objects come from, and what is taken out of them.
struct Source<K> {
    api: Api<K>,
    params: ListParams,
    trim: fn(&mut K),
}

/// Where the reflector stands.
enum Position {
    /// Nothing is known, or history no longer reaches back to what is.
    Start,
    /// The cache is current up to this revision.
    At(u64),
}

async fn run<K: Object>(source: Source<K>, cache: Cache<K>) {
    let mut position = Position::Start;
    let mut delay = FIRST_DELAY;
    loop {
        let before = cache.revision();
        match source.follow(&cache, &position).await {
            Ok(()) => debug!(kind = K::KIND, "watch ended"),
            Err(e) if e.is_expired() => {
                debug!(kind = K::KIND, "history is gone, listing again");
                position = Position::Start;
                continue;
            }
            Err(e) => warn!(kind = K::KIND, error = %e, "watch failed"),
        }
        let now = cache.revision();
        if now > before {
            delay = FIRST_DELAY;
        }
        if now > 0 {
            position = Position::At(now);
        }
        // Half fixed, half random, so that many reflectors do not return at one moment.
        let jitter = crate::random::range(0.5..1.0);
        tokio::time::sleep(delay.mul_f64(jitter)).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}

impl<K: Object> Source<K> {
    /// An object as caches hold it: without managedFields (a list has them still), trimmed, and without the room to grow that decoding leaves in its lists.
    fn slim(&self, mut object: K) -> K {
        object.metadata_mut().managed_fields = None;
        (self.trim)(&mut object);
        object.clone()
    }

    /// One watch, to its end.
    async fn follow(&self, cache: &Cache<K>, position: &Position) -> Result<(), Error> {
        let (api, params) = (&self.api, &self.params);
        let (mut events, mut initial) = match position {
            Position::Start => match api.watch_list(params).await {
                Ok(events) => (events, Some(HashSet::<ObjectKey>::new())),
                // A server without WatchList: list first, then watch.
                Err(e) if e.is_invalid() => {
                    let (objects, version) = api.list_with_version(params).await?;
                    let revision = version.parse().unwrap_or(1);
                    cache.replace(objects.into_iter().map(|o| self.slim(o)).collect(), revision);
                    (api.watch(&ListParams { resource_version: version, ..params.clone() }).await?, None)
                }
                Err(e) => return Err(e),
            },
            Position::At(revision) => {
                let resource_version = revision.to_string();
                (api.watch(&ListParams { resource_version, ..params.clone() }).await?, None)
            }
        };
        while let Some(event) = events.next().await {
            match (event?, &mut initial) {
                (WatchEvent::Added(object) | WatchEvent::Modified(object), None) => {
                    cache.upsert(self.slim(object))
                }
                (WatchEvent::Deleted(object), None) => cache.remove(object),
                (WatchEvent::Added(object) | WatchEvent::Modified(object), Some(seen)) => {
                    seen.insert(object.key());
                    cache.upsert_initial(self.slim(object));
                }
                (WatchEvent::Deleted(object), Some(seen)) => {
                    seen.remove(&object.key());
                    cache.remove_initial(object);
                }
                (WatchEvent::Bookmark(revision, complete), slot) => {
                    if complete {
                        if let Some(seen) = slot.take() {
                            cache.retain_keys(&seen);
                        }
                        cache.advance(revision.max(1));
                    } else if slot.is_none() {
                        cache.advance(revision);
                    }
                }
                (WatchEvent::Error(status), _) => return Err(status.into()),
            }
        }
        Ok(())
    }
}
