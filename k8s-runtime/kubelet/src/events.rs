//! Records Events about pods and the node.
//!
//! Flow: callers hand an event over and go on; one task writes them. The same event again (same object,
//! reason and message) raises the count of the first. A backlog that grows too long loses its newest events,
//! never the caller's time.

use std::{collections::HashMap, time::Duration};

use k8s_core::{
    client::{Client, Patch},
    clock::Clock,
    meta::ObjectExt,
};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

use crate::types::*;

const BACKLOG: usize = 1024;
/// Different events that are remembered for counting.
const REMEMBERED: usize = 4096;

/// Queues events. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Happening>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Happening {
    namespace: String,
    kind: &'static str,
    name: String,
    uid: String,
    field_path: Option<String>,
    warning: bool,
    reason: String,
    message: String,
}

impl Recorder {
    /// Starts the writer. It ends when the last recorder is dropped.
    pub(crate) fn start(client: Client, clock: Clock, node_name: String) -> (Self, impl Future<Output = ()>) {
        let (queue, events) = mpsc::channel(BACKLOG);
        (Recorder { queue }, write(client, clock, node_name, events))
    }

    /// Records a `Normal` event about a pod or one of its containers.
    pub(crate) fn normal(
        &self,
        pod: &Pod,
        container: Option<&str>,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record(pod, container, false, reason, message.into());
    }

    /// Records a `Warning` event about a pod or one of its containers.
    pub(crate) fn warning(
        &self,
        pod: &Pod,
        container: Option<&str>,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record(pod, container, true, reason, message.into());
    }

    fn record(&self, pod: &Pod, container: Option<&str>, warning: bool, reason: &str, message: String) {
        self.send(Happening {
            namespace: pod.namespace().to_owned(),
            kind: "Pod",
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            field_path: container.map(|name| field_path(pod, name)),
            warning,
            reason: reason.to_owned(),
            message,
        });
    }

    /// Records a `Normal` event about the node.
    pub(crate) fn node(&self, node_name: &str, reason: &str, message: impl Into<String>) {
        self.send(Happening {
            namespace: "default".into(),
            kind: "Node",
            name: node_name.to_owned(),
            uid: node_name.to_owned(),
            field_path: None,
            warning: false,
            reason: reason.to_owned(),
            message: message.into(),
        });
    }

    fn send(&self, event: Happening) {
        if let Err(e) = self.queue.try_send(event) {
            debug!(error = %e, "event dropped");
        }
    }
}

fn field_path(pod: &Pod, container: &str) -> String {
    let spec = pod.spec.as_ref();
    let init =
        spec.and_then(|s| s.init_containers.as_ref()).is_some_and(|c| c.iter().any(|c| c.name == container));
    let ephemeral = spec
        .and_then(|s| s.ephemeral_containers.as_ref())
        .is_some_and(|c| c.iter().any(|c| c.name == container));
    let list = match (init, ephemeral) {
        (true, _) => "initContainers",
        (false, true) => "ephemeralContainers",
        (false, false) => "containers",
    };
    format!("spec.{list}{{{container}}}")
}

async fn write(client: Client, clock: Clock, node_name: String, mut events: mpsc::Receiver<Happening>) {
    let mut counts: HashMap<Happening, (String, i32)> = HashMap::new();
    while let Some(happening) = events.recv().await {
        let api = client.namespaced::<Event>(&happening.namespace);
        if let Some((name, count)) = counts.get_mut(&happening) {
            *count += 1;
            let patch = json!({"count": *count, "lastTimestamp": clock.time()});
            match api.patch(name, &Patch::Merge(patch)).await {
                Ok(_) => continue,
                Err(e) if e.is_not_found() => {}
                Err(e) => {
                    debug!(error = %e, "event not counted");
                    continue;
                }
            }
        }
        if counts.len() >= REMEMBERED {
            counts.clear();
        }
        let event = new_event(&happening, &clock, &node_name);
        let name = event.name().to_owned();
        if !create(&api, &event).await {
            continue;
        }
        counts.insert(happening, (name, 1));
    }
}

/// Creates the event, with a few retries while the API server is not reachable. Returns `false` if it gave
/// up.
async fn create(api: &k8s_core::client::Api<Event>, event: &Event) -> bool {
    for pause in [100, 1000, 5000, 0] {
        match api.create(event).await {
            Ok(_) => return true,
            Err(e) if e.status().is_some() => {
                debug!(error = %e, "event refused");
                return false;
            }
            Err(e) => debug!(error = %e, "event not written"),
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    false
}

fn new_event(happening: &Happening, clock: &Clock, node_name: &str) -> Event {
    let now = clock.now();
    let unique = u64::try_from(now.as_nanosecond()).unwrap_or_default() ^ rand::random_range(0..0xffff);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{unique:x}", happening.name)),
            namespace: Some(happening.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some(happening.kind.into()),
            name: Some(happening.name.clone()),
            namespace: (happening.kind != "Node").then(|| happening.namespace.clone()),
            uid: Some(happening.uid.clone()),
            field_path: happening.field_path.clone(),
            ..ObjectReference::default()
        },
        reason: Some(happening.reason.clone()),
        message: Some(happening.message.clone()),
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(node_name.to_owned()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node_name.to_owned()),
        first_timestamp: Some(clock.time()),
        last_timestamp: Some(clock.time()),
        count: Some(1),
        type_: Some(if happening.warning { "Warning" } else { "Normal" }.into()),
        ..Event::default()
    }
}
