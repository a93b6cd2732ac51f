//! The webhook backend: events are posted to a server in batches (`EventList`).
//!
//! Guarantees: requests never wait for the webhook, nor does the server's own runtime: a thread of its own
//! sends. Memory is bounded by the buffer and by [`CONCURRENT`] batches under way. Events that do not fit, or
//! that no attempt delivers, are lost and counted.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc as blocking},
    time::Duration,
};

use http::{Method, Request, header};
use k8s_core::{
    client::{Body, Remote, RemoteConfig, Transport, body_from_bytes},
    clock::Clock,
    random,
};
use k8s_metrics::Counter;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    Event, Sink,
    truncate::{Truncation, fitted},
};
use crate::webhook_client::whole;

/// Number of attempts to deliver a batch.
const ATTEMPTS: u32 = 5;
/// Timeout of an attempt.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Number of batches that are sent at the same time.
const CONCURRENT: usize = 15;
/// Time that the end of a backend waits for the delivery of the rest.
const FAREWELL: Duration = Duration::from_secs(5);
/// Largest answer that is read, bytes.
const LARGEST: usize = 1 << 20;
/// Start of an event's JSON that the items of a list do not have.
const OWN_KIND: &[u8] = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;

/// Bound of the rate of batches: a token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttle {
    /// Batches per second, on average. Default: 10.
    pub per_second: f32,
    /// Batches that may be sent at once after a pause. Default: 15.
    pub burst: u32,
}

impl Default for Throttle {
    fn default() -> Self {
        Throttle { per_second: 10.0, burst: 15 }
    }
}

/// Settings of a webhook backend (`--audit-webhook-*`). The URL of `remote.server` gets the batches.
#[derive(Clone, Debug)]
pub struct AuditWebhookSettings {
    /// Server, trust and credentials.
    pub remote: RemoteConfig,
    /// Wait before the second attempt; each further one is half as long again. Default: 10 s.
    pub initial_backoff: Duration,
    /// Number of events in the buffer. Default: 10000.
    pub buffer: usize,
    /// Number of events in a batch, at most. Default: 400.
    pub max_size: usize,
    /// Time that an event waits for a batch to fill, at most. Default: 30 s.
    pub max_wait: Duration,
    /// Bound of the rate; `None`: unbounded. Default: [`Throttle::default`].
    pub throttle: Option<Throttle>,
    /// Limits of sizes. Default: none.
    pub truncation: Option<Truncation>,
}

impl AuditWebhookSettings {
    /// Returns upstream's defaults for a server.
    #[must_use]
    pub fn new(remote: RemoteConfig) -> Self {
        AuditWebhookSettings {
            remote,
            initial_backoff: Duration::from_secs(10),
            buffer: 10_000,
            max_size: 400,
            max_wait: Duration::from_secs(30),
            throttle: Some(Throttle::default()),
            truncation: None,
        }
    }
}

/// An audit webhook.
#[derive(Debug)]
pub struct Webhook {
    truncation: Option<Truncation>,
    /// `None` once the backend ends.
    events: Option<mpsc::Sender<Vec<u8>>>,
    errors: Arc<OnceLock<Counter>>,
    /// Ends with the thread.
    ended: Mutex<blocking::Receiver<()>>,
    ending: watch::Sender<bool>,
}

impl Webhook {
    /// Starts the thread that sends. It ends with the backend; the rest of the events gets one attempt and
    /// five seconds then.
    ///
    /// ```
    /// use k8s_apiserver::audit::{AuditWebhookSettings, Webhook};
    /// use k8s_core::client::RemoteConfig;
    ///
    /// let server = "http://127.0.0.1:9/events".into();
    /// let settings = AuditWebhookSettings::new(RemoteConfig { server, ..RemoteConfig::default() });
    /// let sink = Webhook::open(&settings)?;
    /// # drop(sink);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    /// The unusable part of the settings, or the thread cannot be started.
    pub fn open(settings: &AuditWebhookSettings) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let url: http::Uri = settings.remote.server.parse().map_err(|e| invalid(format!("server: {e}")))?;
        let remote = Remote::new(&settings.remote).map_err(|e| invalid(e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (send, events) = mpsc::channel(settings.buffer.max(1));
        let (ended_with, ended) = blocking::channel();
        let (ending, is_ending) = watch::channel(false);
        let errors: Arc<OnceLock<Counter>> = Arc::default();
        let sender = Sender {
            remote: Arc::new(remote),
            path: url.path_and_query().map_or("/", |path| path.as_str()).into(),
            settings: settings.clone(),
            errors: errors.clone(),
            ending: is_ending,
        };
        std::thread::Builder::new().name("audit-webhook".into()).spawn(move || {
            runtime.block_on(sender.run(events));
            drop(ended_with);
        })?;
        Ok(Webhook {
            truncation: settings.truncation,
            events: Some(send),
            errors,
            ended: ended.into(),
            ending,
        })
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.events = None;
        self.ending.send_replace(true);
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(FAREWELL);
    }
}

/// Counts and logs events that are lost.
fn lost(errors: &OnceLock<Counter>, number: usize, why: &dyn std::fmt::Display) {
    if let Some(counter) = errors.get() {
        counter.inc_by(number as u64);
    }
    tracing::error!(plugin = "webhook", number, error = %why, "audit events are lost");
}

impl Sink for Webhook {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn count_errors(&self, counter: Counter) {
        let _ = self.errors.set(counter);
    }

    fn record(&self, event: &Event) -> io::Result<()> {
        let Some(events) = &self.events else { return Ok(()) };
        match fitted(event, self.truncation.as_ref()) {
            Ok(json) => {
                if events.try_send(json).is_err() {
                    lost(&self.errors, 1, &"the buffer of --audit-webhook-batch-buffer-size is full");
                }
            }
            Err(error) => lost(&self.errors, 1, &error),
        }
        Ok(())
    }
}

/// The thread's part of a backend.
struct Sender {
    remote: Arc<Remote>,
    /// URL path of the webhook.
    path: Arc<str>,
    settings: AuditWebhookSettings,
    errors: Arc<OnceLock<Counter>>,
    ending: watch::Receiver<bool>,
}

impl Sender {
    /// Sends events until the backend ends and its buffer is empty.
    async fn run(self, mut events: mpsc::Receiver<Vec<u8>>) {
        let places = Arc::new(Semaphore::new(CONCURRENT));
        let mut under_way = JoinSet::new();
        let mut bucket = self.settings.throttle.map(Bucket::new);
        let mut ending = self.ending.clone();
        while let Some(batch) = self.collect(&mut events).await {
            let most = self.settings.truncation.map_or(usize::MAX, |limits| limits.max_batch);
            for part in split(batch, most) {
                if let Some(bucket) = &mut bucket {
                    tokio::select! {
                        () = bucket.take() => {}
                        _ = ending.wait_for(|ending| *ending) => {}
                    }
                }
                // The semaphore is never closed.
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let delivery = self.delivery(part.len(), list(&part));
                under_way.spawn(async move {
                    delivery.run().await;
                    drop(place);
                });
                while under_way.try_join_next().is_some() {}
            }
        }
        while under_way.join_next().await.is_some() {}
    }

    /// Returns the next batch; `None` at the end.
    #[expect(clippy::disallowed_methods, reason = "deadlines of a real server, in real time")]
    async fn collect(&self, events: &mut mpsc::Receiver<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        let mut batch = vec![events.recv().await?];
        let until = Instant::now() + self.settings.max_wait;
        while batch.len() < self.settings.max_size {
            match tokio::time::timeout_at(until, events.recv()).await {
                Ok(Some(event)) => batch.push(event),
                Ok(None) | Err(_) => break,
            }
        }
        Some(batch)
    }

    fn delivery(&self, number: usize, body: Vec<u8>) -> Delivery {
        Delivery {
            remote: self.remote.clone(),
            path: self.path.clone(),
            number,
            body: body.into(),
            backoff: self.settings.initial_backoff,
            errors: self.errors.clone(),
            ending: self.ending.clone(),
        }
    }
}

/// One batch on its way.
struct Delivery {
    remote: Arc<Remote>,
    path: Arc<str>,
    /// Number of events.
    number: usize,
    body: bytes::Bytes,
    backoff: Duration,
    errors: Arc<OnceLock<Counter>>,
    ending: watch::Receiver<bool>,
}

impl Delivery {
    async fn run(mut self) {
        let (clock, mut wait) = (Clock::system(), self.backoff);
        for attempt in 1.. {
            let answer = tokio::time::timeout(TIMEOUT, self.post()).await;
            let Err(why) = answer.map_err(|_| "timeout".to_owned()).flatten() else { return };
            if attempt >= ATTEMPTS || *self.ending.borrow() {
                return lost(&self.errors, self.number, &why);
            }
            tracing::debug!(attempt, why, "the audit webhook is asked again");
            tokio::select! {
                () = clock.sleep(wait.mul_f64(random::range(1.0..1.2))) => {}
                _ = self.ending.wait_for(|ending| *ending) => {}
            }
            wait = wait * 3 / 2;
        }
    }

    async fn post(&self) -> Result<(), String> {
        let request: Request<Body> = Request::builder()
            .method(Method::POST)
            .uri(&*self.path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(body_from_bytes(self.body.clone()))
            .map_err(|e| e.to_string())?;
        let response = self.remote.call(request).await.map_err(|e| e.to_string())?;
        let code = response.status();
        whole(response.into_body(), LARGEST).await?;
        if code.is_success() { Ok(()) } else { Err(format!("status {code}")) }
    }
}

/// Splits a batch so that no part but one of a single event is larger than `most` bytes.
fn split(batch: Vec<Vec<u8>>, most: usize) -> Vec<Vec<Vec<u8>>> {
    let (mut parts, mut size) = (Vec::<Vec<Vec<u8>>>::new(), 0_usize);
    for event in batch {
        let length = event.len();
        match parts.last_mut().filter(|_| size.saturating_add(length) <= most) {
            Some(part) => {
                part.push(event);
                size += length;
            }
            None => {
                parts.push(vec![event]);
                size = length;
            }
        }
    }
    parts
}

/// Returns the JSON of an `EventList`.
fn list(events: &[Vec<u8>]) -> Vec<u8> {
    let sum: usize = events.iter().map(|event| event.len() + 1).sum();
    let mut json = Vec::with_capacity(sum + 96);
    json.extend_from_slice(br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#);
    for (i, event) in events.iter().enumerate() {
        if i > 0 {
            json.push(b',');
        }
        match event.strip_prefix(OWN_KIND) {
            Some(rest) => {
                json.push(b'{');
                json.extend_from_slice(rest);
            }
            None => json.extend_from_slice(event),
        }
    }
    json.extend_from_slice(b"]}");
    json
}

/// A token bucket.
struct Bucket {
    throttle: Throttle,
    tokens: f32,
    at: Instant,
}

impl Bucket {
    #[expect(clippy::disallowed_methods, reason = "the rate of a real server, in real time")]
    fn new(throttle: Throttle) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a burst is a small number")]
        let tokens = throttle.burst as f32;
        Bucket { throttle, tokens, at: Instant::now() }
    }

    /// Waits for a token, and takes it.
    async fn take(&mut self) {
        loop {
            self.fill();
            if self.tokens >= 1.0 {
                self.tokens -= 1.0;
                return;
            }
            let missing = (1.0 - self.tokens) / self.throttle.per_second;
            Clock::system().sleep(Duration::from_secs_f32(missing.clamp(0.001, 3600.0))).await;
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the rate of a real server, in real time")]
    fn fill(&mut self) {
        let now = Instant::now();
        let passed = now.duration_since(self.at).as_secs_f32();
        #[expect(clippy::cast_precision_loss, reason = "a burst is a small number")]
        let most = self.throttle.burst as f32;
        self.tokens = (self.tokens + passed * self.throttle.per_second).min(most);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(lengths: &[usize]) -> Vec<Vec<u8>> {
        lengths.iter().map(|length| vec![b'x'; *length]).collect()
    }

    #[test]
    fn a_batch_is_split_by_bytes() {
        let parts = |lengths: &[usize], most| -> Vec<Vec<usize>> {
            let parts = split(events(lengths), most);
            parts.iter().map(|part| part.iter().map(Vec::len).collect()).collect()
        };
        assert_eq!(parts(&[3, 3, 4], 10), [vec![3, 3, 4]]);
        assert_eq!(parts(&[3, 3, 5], 10), [vec![3, 3], vec![5]]);
        assert_eq!(parts(&[20, 1, 20], 10), [vec![20], vec![1], vec![20]]);
        assert_eq!(parts(&[], 10), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn a_list_is_json() {
        let one = [OWN_KIND, br#""level":"Metadata"}"#].concat();
        let list: serde_json::Value = serde_json::from_slice(&list(&[one, b"{}".to_vec()])).unwrap();
        assert_eq!(list["kind"], "EventList");
        assert_eq!(list["items"], serde_json::json!([{"level": "Metadata"}, {}]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_bounds_the_rate() {
        let begun = Instant::now();
        let mut bucket = Bucket::new(Throttle { per_second: 10.0, burst: 5 });
        for _ in 0..25 {
            bucket.take().await;
        }
        let taken = begun.elapsed().as_secs_f32();
        assert!((1.9..2.5).contains(&taken), "{taken}: five at once, then ten a second");
    }
}
