//! Keeps a cache current.

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
/// Between attempts on a server that lacks the kind, or does not let it be read.
const LONGEST_DELAY_WITHOUT: Duration = Duration::from_secs(120);
/// A server that sends nothing for so long, and has not said that the initial state is complete, never will.
const STALLED: Duration = Duration::from_secs(90);
/// Objects on a page of a list.
const PAGE: u32 = 500;

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
            () = run(Source { api: api.lean(), params, trim, lists: AtomicBool::new(false) }, cache) => {}
        }
    });
    Reflector { stop }
}

/// Where objects come from, and what is taken out of them.
struct Source<K> {
    api: Api<K>,
    params: ListParams,
    trim: fn(&mut K),
    /// The server does not send the initial state in a watch.
    lists: AtomicBool,
}

/// Where the reflector stands.
#[derive(Clone, Copy)]
enum Position {
    /// Nothing is known, or history no longer reaches back to what is.
    Start,
    /// The cache is current up to this revision.
    At(u64),
}

/// What was logged of a server that does not answer as it should, so that each is logged once.
#[derive(Default)]
struct Trouble(Option<String>);

impl Trouble {
    fn tell(&mut self, kind: &str, error: &Error) {
        let text = error.to_string();
        if self.0.as_ref() == Some(&text) {
            return debug!(kind, error = text, "watch failed");
        }
        if is_without(error) {
            warn!(kind, error = text, "the server does not give this kind: asking again from time to time");
        } else {
            warn!(kind, error = text, "watch failed");
        }
        self.0 = Some(text);
    }

    fn over(&mut self, kind: &str) {
        if self.0.take().is_some() {
            info!(kind, "watch works again");
        }
    }
}

/// Whether a server lacks the kind, or does not let it be read: that does not change soon.
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
                debug!(kind = K::KIND, "history is gone, listing again");
                position = Position::Start;
                // Once at once; a server that says so again and again is not asked in a loop.
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
        // Half fixed, half random, so that many reflectors do not return at one moment.
        let jitter = crate::random::range(0.5..1.0);
        tokio::time::sleep(delay.mul_f64(jitter)).await;
        delay = (delay * 2).min(longest);
    }
}

type Events<K> = BoxStream<'static, Result<WatchEvent<K>, Error>>;

impl<K: Object> Source<K> {
    /// An object as caches hold it: without managedFields (a list has them still), trimmed, and without the room to grow that decoding leaves in its lists.
    fn slim(&self, mut object: K) -> K {
        object.metadata_mut().managed_fields = None;
        (self.trim)(&mut object);
        object.clone()
    }

    /// Remembers that the server does not send the initial state in a watch.
    fn list_from_now_on(&self, why: &dyn std::fmt::Display) {
        if !self.lists.swap(true, Ordering::Relaxed) {
            debug!(kind = K::KIND, %why, "the server does not send the initial state: listing it");
        }
    }

    /// Opens a watch; with the set of objects seen, when it begins with the initial state.
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

    /// Lists everything, page by page, into the cache, and returns the list's resourceVersion.
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
                // History went on while it was listed: now all of it at once.
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

    /// One watch, to its end.
    async fn follow(&self, cache: &Cache<K>, position: Position) -> Result<(), Error> {
        let (mut events, mut initial) = self.open(cache, position).await?;
        loop {
            let event = match &initial {
                None => events.next().await,
                Some(_) => match tokio::time::timeout(STALLED, events.next()).await {
                    Ok(event) => event,
                    Err(_) => {
                        self.list_from_now_on(&"it is not complete after a long time");
                        return Ok(());
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
                    }
                    return Err(status.into());
                }
            }
        }
    }
}

/// Whether an answer to a watch that asks for the initial state says that the server does not know how. (An API server over an old etcd fails with 500.)
fn refuses(code: u16) -> bool {
    matches!(code, 400 | 422 | 500 | 501)
}

#[cfg(test)]
mod tests;
