//! The reflector: lists and watches a resource into a cache.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Cache;
use crate::{
    client::{Api, Error, ListParams, WatchEvent},
    meta::{Object, ObjectExt, ObjectKey},
};

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// Maximum delay of retries if the kind is not served or its access is forbidden.
const LONGEST_DELAY_WITHOUT: Duration = Duration::from_secs(120);
/// Time without any event after which the end of the initial state is no longer expected.
const STALLED: Duration = Duration::from_secs(90);
/// Page size of a list.
const PAGE: u32 = 500;

/// A running reflector. Dropping it stops it.
#[derive(Debug)]
pub struct Reflector {
    stop: CancellationToken,
}

impl Drop for Reflector {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Fills `cache` from `api` and keeps it up to date until the returned handle is dropped.
///
/// ```
/// use k8s_core::{api::Pod, cache::{Cache, reflect}, client::{Client, Error, ListParams}};
/// # async fn example(client: Client) -> Result<(), Error> {
/// let pods = Cache::<Pod>::new();
/// let reflector = reflect(client.all::<Pod>(), ListParams::default(), pods.clone());
/// pods.synced().await;
/// println!("{} pods", pods.len());
/// drop(reflector); // ends the watch
/// # Ok(()) }
/// ```
#[must_use]
pub fn reflect<K: Object>(api: Api<K>, params: ListParams, cache: Cache<K>) -> Reflector {
    reflect_trimmed(api, params, cache, |_| {})
}

/// As [`reflect`], with `trim` dropping fields of each object that no reader of this cache needs.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the task ends with its cancellation token")]
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
            // Polled in a fixed order, so that a seeded test is deterministic.
            biased;
            () = stopped.cancelled() => {}
            () = run(Source { api: api.without_managed_fields(), params, trim, lists: AtomicBool::new(false) }, cache) => {}
        }
    });
    Reflector { stop }
}

/// The watched resource and the trimmer of its objects.
struct Source<K> {
    api: Api<K>,
    params: ListParams,
    trim: fn(&mut K),
    /// The server cannot stream the initial state in a watch.
    lists: AtomicBool,
}

/// Resume point of the watch.
#[derive(Clone, Copy)]
enum Position {
    /// Start over: nothing is known, or the last revision is no longer in history.
    Start,
    /// The cache is complete up to this revision.
    At(u64),
}

/// Failures in a row, within a second, that are not worth a warning. A right may come a moment late: a
/// node's, for the objects of a pod that was just bound.
const PASSING: u32 = 4;

/// A watch that fails. Each error is logged once.
#[derive(Default)]
struct Trouble {
    /// Failures in a row.
    count: u32,
    told: Option<String>,
}

impl Trouble {
    fn tell(&mut self, kind: &str, error: &Error) {
        let text = error.to_string();
        self.count = self.count.saturating_add(1);
        if self.count <= PASSING || self.told.as_ref() == Some(&text) {
            return debug!(kind, error = text, "watch failed");
        }
        if is_without(error) {
            warn!(
                kind,
                error = text,
                "the kind is not served or access is forbidden: retrying at long intervals"
            );
        } else {
            warn!(kind, error = text, "watch failed");
        }
        self.told = Some(text);
    }

    fn over(&mut self, kind: &str) {
        self.count = 0;
        if self.told.take().is_some() {
            info!(kind, "watch works again");
        }
    }
}

/// Returns true for errors that will not pass soon: the kind is not served, or its access is forbidden.
fn is_without(error: &Error) -> bool {
    error.is_not_found() || error.is_forbidden()
}

async fn run<K: Object>(source: Source<K>, cache: Cache<K>) {
    let mut position = Position::Start;
    let mut delay = FIRST_DELAY;
    let mut trouble = Trouble::default();
    let mut expired = false;
    loop {
        let before = cache.revision();
        let mut longest = LONGEST_DELAY;
        let result = source.follow(&cache, position).await;
        let now = cache.revision();
        if now > before {
            delay = FIRST_DELAY;
            trouble.over(K::KIND);
        }
        if now > 0 {
            position = Position::At(now);
        }
        match result {
            Ok(()) => {
                trouble.over(K::KIND);
                debug!(kind = K::KIND, "watch ended");
            }
            Err(e) if e.is_expired() => {
                debug!(kind = K::KIND, "revision expired, listing again");
                position = Position::Start;
                // Retry immediately once; a server that repeats 410 is retried with back-off.
                if now > before || !std::mem::replace(&mut expired, true) {
                    continue;
                }
            }
            Err(e) => {
                if is_without(&e) {
                    longest = LONGEST_DELAY_WITHOUT;
                }
                trouble.tell(K::KIND, &e);
            }
        }
        expired &= now <= before;
        // Half of the delay is random, so that many reflectors do not reconnect at once.
        let jitter = crate::random::range(0.5..1.0);
        tokio::time::sleep(delay.mul_f64(jitter)).await;
        delay = (delay * 2).min(longest);
    }
}

type Events<K> = BoxStream<'static, Result<WatchEvent<K>, Error>>;

impl<K: Object> Source<K> {
    /// Prepares an object for the cache: removes managedFields (lists include them), trims it, and drops the
    /// spare capacity left by decoding.
    fn slim(&self, mut object: K) -> K {
        object.metadata_mut().managed_fields = None;
        (self.trim)(&mut object);
        object.clone()
    }

    /// Remembers that the server cannot stream the initial state in a watch.
    fn list_from_now_on(&self, why: &dyn std::fmt::Display) {
        if !self.lists.swap(true, Ordering::Relaxed) {
            debug!(kind = K::KIND, %why, "the server does not stream the initial state: listing");
        }
    }

    /// Opens a watch. With a streamed initial state also returns the set that collects its keys.
    async fn open(
        &self,
        cache: &Cache<K>,
        position: Position,
    ) -> Result<(Events<K>, Option<HashSet<ObjectKey>>), Error> {
        let version = match position {
            Position::At(revision) => revision.to_string(),
            Position::Start if self.lists.load(Ordering::Relaxed) => self.list(cache).await?,
            Position::Start => match self.api.watch_list(&self.params).await {
                Ok(events) => return Ok((events, Some(HashSet::new()))),
                Err(e) if e.status().is_some_and(|status| refuses(status.code())) => {
                    self.list_from_now_on(&e);
                    self.list(cache).await?
                }
                Err(e) => return Err(e),
            },
        };
        Ok((self.api.watch(&self.params.clone().at(version)).await?, None))
    }

    /// Lists all pages into the cache and returns the list's resourceVersion.
    async fn list(&self, cache: &Cache<K>) -> Result<String, Error> {
        let (mut objects, mut unreadable) = (Vec::new(), Vec::new());
        let mut params = ListParams { limit: PAGE, resource_version: String::new(), ..self.params.clone() };
        let version = loop {
            match self.api.page(&params).await {
                Ok(page) => {
                    objects.extend(page.items.into_iter().map(|object| self.slim(object)));
                    unreadable.extend(page.unreadable);
                    if page.continue_token.is_empty() {
                        break page.version;
                    }
                    params.continue_token = page.continue_token;
                }
                // The continue token expired: list everything in one request.
                Err(e) if e.is_expired() && !params.continue_token.is_empty() => {
                    objects.clear();
                    unreadable.clear();
                    params = ListParams { limit: 0, continue_token: String::new(), ..params };
                }
                Err(e) => return Err(e),
            }
        };
        cache.replace_readable(objects, &unreadable, version.parse().unwrap_or(1));
        Ok(version)
    }

    /// Runs one watch to its end.
    async fn follow(&self, cache: &Cache<K>, position: Position) -> Result<(), Error> {
        let (mut events, mut initial) = self.open(cache, position).await?;
        loop {
            let event = match &initial {
                None => events.next().await,
                Some(_) => match tokio::time::timeout(STALLED, events.next()).await {
                    Ok(event) => event,
                    Err(_) => {
                        self.list_from_now_on(&"it is not complete after a long time");
                        return Box::pin(self.follow(cache, Position::Start)).await;
                    }
                },
            };
            let Some(event) = event else { return Ok(()) };
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
                (WatchEvent::Unreadable(object, gone), None) => {
                    cache.see_unreadable(&object, gone);
                    cache.advance(object.revision);
                }
                (WatchEvent::Unreadable(object, gone), Some(seen)) => {
                    if cache.see_unreadable(&object, gone) {
                        seen.insert(object.key);
                    } else {
                        seen.remove(&object.key);
                    }
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
                (WatchEvent::Error(status), initial) => {
                    if initial.is_some() && refuses(status.code()) {
                        self.list_from_now_on(&status.message());
                        return Box::pin(self.follow(cache, Position::Start)).await;
                    }
                    return Err(status.into());
                }
            }
        }
    }
}

/// Returns true for responses of servers that do not support a streamed initial state. (An API server over an
/// old etcd fails with 500.)
fn refuses(code: u16) -> bool {
    matches!(code, 400 | 422 | 500 | 501)
}

#[cfg(test)]
mod tests;
