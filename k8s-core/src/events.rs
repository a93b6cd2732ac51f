//! Event recorder.
//!
//! Flow: [`Recorder::event`] never blocks; a task writes the correlated events (`correlate`): a repeated
//! event increments a count, many similar events are combined, and events per object are rate-limited. Best
//! effort: an event that cannot be written is dropped.

mod correlate;

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
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
    /// Expected.
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

/// Queue length; further events are dropped.
const BACKLOG: usize = 4096;

struct Said {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
}

/// Records events of a component. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    sender: Option<Arc<mpsc::Sender<Said>>>,
}

impl std::fmt::Debug for Said {
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
    pub fn on_host(client: &Client, clock: Clock, component: &str, host: &str) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: Some(host.to_owned()).filter(|h| !h.is_empty()),
        };
        tokio::spawn(write_all(client.named(component).all(), clock, source, receiver));
        Recorder { sender: Some(Arc::new(sender)) }
    }

    /// Returns a recorder that drops all events.
    #[must_use]
    pub fn silent() -> Self {
        Recorder { sender: None }
    }

    /// Records an event about an object.
    pub fn event(&self, about: ObjectReference, kind: EventType, reason: &str, message: String) {
        let Some(sender) = &self.sender else { return };
        // The API limits messages to 1024 characters.
        let message = if message.len() > 1024 { message.chars().take(1000).collect() } else { message };
        if sender.try_send(Said { about, kind, reason: reason.to_owned(), message }).is_err() {
            tracing::debug!(reason, "event dropped");
        }
    }
}

impl Said {
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

async fn write_all(events: Api<Event>, clock: Clock, source: EventSource, mut said: mpsc::Receiver<Said>) {
    let mut correlator = Correlator::default();
    let mut last_nanos = 0;
    while let Some(said) = said.recv().await {
        let namespace = said.about.namespace.clone().unwrap_or_else(|| "default".into());
        let api = events.within(&namespace);
        let (verdict, same) = correlator.judge(said.subject(&namespace), said.message.clone(), clock.now());
        let message = match verdict {
            Verdict::Drop => continue,
            Verdict::New(message) => message,
            Verdict::Again { name, count, message } => {
                let patch = json!({"count": count, "lastTimestamp": clock.time(), "message": message});
                match api.patch(&name, &Patch::Merge(patch)).await {
                    Err(e) if e.is_not_found() => correlator.forget(&same), // it expired: say it anew
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
        let name = format!("{}.{last_nanos:x}", said.about.name.as_deref().unwrap_or_default());
        let event = new_event(&name, &namespace, Said { message, ..said }, &source, &clock);
        match api.create(&event).await {
            Ok(_) => correlator.wrote(same, name),
            Err(e) => tracing::debug!(error = %e, name, "event not written"),
        }
    }
}

fn new_event(name: &str, namespace: &str, said: Said, source: &EventSource, clock: &Clock) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: said.about,
        type_: Some(said.kind.as_str().to_owned()),
        reason: Some(said.reason),
        message: Some(said.message),
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        first_timestamp: Some(clock.time()),
        last_timestamp: Some(clock.time()),
        count: Some(1),
        ..Event::default()
    }
}
