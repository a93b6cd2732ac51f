//! Event recorder.
//!
//! Flow: [`Recorder::event`] never blocks; a task writes the correlated events (`correlate`): a repeated
//! event increments a count, many similar events are combined, and events per object are rate-limited.
//!
//! Best effort: an event that the API server refuses is dropped. While the server cannot be reached, an event
//! is tried again for 6.1 s.

mod correlate;

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    client::{Api, Client, Patch},
    clock::Clock,
    meta::{Object, ObjectExt},
};
use correlate::{Correlator, Subject, Verdict};

/// Type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// An expected change, such as `Scheduled`.
    Normal,
    /// May need a user's attention.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Returns a reference to an object for events.
#[must_use]
pub fn involved<T: Object>(object: &T) -> ObjectReference {
    let some = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    ObjectReference {
        api_version: some(T::API_VERSION),
        kind: some(T::KIND),
        namespace: some(object.namespace()),
        name: some(object.name()),
        uid: some(object.uid()),
        resource_version: object.metadata().resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// Returns a reference to a pod, or to one of its containers, for events.
#[must_use]
pub fn involved_container(pod: &Pod, container: Option<&str>) -> ObjectReference {
    ObjectReference { field_path: container.map(|name| field_path(pod, name)), ..involved(pod) }
}

fn field_path(pod: &Pod, container: &str) -> String {
    let spec = pod.spec.as_ref();
    let is_init = spec.is_some_and(|s| s.init_containers.iter().flatten().any(|c| c.name == container));
    let is_ephemeral =
        spec.is_some_and(|s| s.ephemeral_containers.iter().flatten().any(|c| c.name == container));
    let list = match (is_init, is_ephemeral) {
        (true, _) => "initContainers",
        (false, true) => "ephemeralContainers",
        (false, false) => "containers",
    };
    format!("spec.{list}{{{container}}}")
}

/// Queue length; further events are dropped.
const BACKLOG: usize = 4096;

/// Pauses before the retries of an event while the API server cannot be reached.
const RETRY_PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(5)];

struct Pending {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
}

/// Records events of a component. Cheap to clone.
///
/// ```
/// use k8s_core::{api::Pod, client::{Client, Error}, clock::Clock, events::{Recorder, involved}};
/// # async fn example(client: Client) -> Result<(), Error> {
/// let recorder = Recorder::new(&client, Clock::system(), "shop-operator");
/// let pod = client.namespaced::<Pod>("default").get("web").await?;
/// recorder.normal(involved(&pod), "Painted", "The shop is red");
/// // Repeats are counted in one event.
/// recorder.warning(involved(&pod), "PaintMissing", "There is no more red");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Recorder {
    sender: Option<Arc<mpsc::Sender<Pending>>>,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl Recorder {
    /// Creates a recorder and its writer task, which ends with the last clone.
    #[must_use]
    pub fn new(client: &Client, clock: Clock, component: &str) -> Self {
        Self::on_host(client, clock, component, "")
    }

    /// As [`Recorder::new`], for a component on a node.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the writer ends with the last clone of the recorder")]
    pub fn on_host(client: &Client, clock: Clock, component: &str, host: &str) -> Self {
        let (recorder, writer) = Self::with_writer(client, clock, component, host);
        tokio::spawn(writer);
        recorder
    }

    /// As [`Recorder::on_host`], for a caller that runs the writer in a task of its own. The writer ends with
    /// the last clone of the recorder.
    pub fn with_writer(
        client: &Client,
        clock: Clock,
        component: &str,
        host: &str,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: Some(host.to_owned()).filter(|h| !h.is_empty()),
        };
        let writer = write_all(client.named(component).all(), clock, source, receiver);
        (Recorder { sender: Some(Arc::new(sender)) }, writer)
    }

    /// Returns a recorder that drops all events.
    #[must_use]
    pub fn silent() -> Self {
        Recorder { sender: None }
    }

    /// Records an [`EventType::Normal`] event about an object.
    pub fn normal(&self, about: ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(about, EventType::Normal, reason, message.into());
    }

    /// Records an [`EventType::Warning`] event about an object.
    pub fn warning(&self, about: ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(about, EventType::Warning, reason, message.into());
    }

    /// Records an event about an object.
    pub fn event(&self, about: ObjectReference, kind: EventType, reason: &str, message: String) {
        let Some(sender) = &self.sender else { return };
        // The API limits messages to 1024 characters.
        let message = if message.len() > 1024 { message.chars().take(1000).collect() } else { message };
        if sender.try_send(Pending { about, kind, reason: reason.to_owned(), message }).is_err() {
            tracing::debug!(reason, "event dropped");
        }
    }
}

impl Pending {
    fn subject(&self, namespace: &str) -> Subject {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Subject {
            object: correlate::Object {
                namespace: namespace.to_owned(),
                kind: text(&self.about.kind),
                name: text(&self.about.name),
                uid: text(&self.about.uid),
                field: text(&self.about.field_path),
            },
            warning: self.kind == EventType::Warning,
            reason: self.reason.clone(),
        }
    }
}

async fn write_all(
    events: Api<Event>,
    clock: Clock,
    source: EventSource,
    mut queue: mpsc::Receiver<Pending>,
) {
    let mut correlator = Correlator::default();
    let mut last_nanos = 0;
    while let Some(pending) = queue.recv().await {
        let namespace = pending.about.namespace.clone().unwrap_or_else(|| "default".into());
        let api = events.within(&namespace);
        let (verdict, same) =
            correlator.judge(pending.subject(&namespace), pending.message.clone(), clock.now());
        let message = match verdict {
            Verdict::Drop => continue,
            Verdict::New(message) => message,
            Verdict::Again { name, count, message } => {
                let patch = json!({"count": count, "lastTimestamp": clock.time(), "message": message});
                match api.patch(&name, &Patch::Merge(patch)).await {
                    Err(e) if e.is_not_found() => correlator.forget(&same), // it expired
                    Err(e) => {
                        tracing::debug!(error = %e, "event not counted");
                        continue;
                    }
                    Ok(_) => continue,
                }
                message
            }
        };
        // Names must be unique even if the clock stands still.
        last_nanos = clock.now().as_nanosecond().max(last_nanos + 1);
        let name = format!("{}.{last_nanos:x}", pending.about.name.as_deref().unwrap_or_default());
        let event = new_event(&name, &namespace, Pending { message, ..pending }, &source, &clock);
        if create(&api, &event, &clock).await {
            correlator.wrote(same, name);
        }
    }
}

/// Creates an event, with a few retries while the API server cannot be reached. Returns false if it gave up.
async fn create(api: &Api<Event>, event: &Event, clock: &Clock) -> bool {
    for (retries, pause) in RETRY_PAUSES.into_iter().map(Some).chain([None]).enumerate() {
        match api.create(event).await {
            Ok(_) => return true,
            // The response of an earlier try was lost.
            Err(e) if e.is_already_exists() && retries > 0 => return true,
            Err(e) if e.status().is_some() => {
                tracing::debug!(error = %e, name = event.name(), "event refused");
                return false;
            }
            Err(e) => tracing::debug!(error = %e, name = event.name(), "event not written"),
        }
        if let Some(pause) = pause {
            clock.sleep(pause).await;
        }
    }
    false
}

fn new_event(name: &str, namespace: &str, pending: Pending, source: &EventSource, clock: &Clock) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: pending.about,
        type_: Some(pending.kind.as_str().to_owned()),
        reason: Some(pending.reason),
        message: Some(pending.message),
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        first_timestamp: Some(clock.time()),
        last_timestamp: Some(clock.time()),
        count: Some(1),
        ..Event::default()
    }
}
