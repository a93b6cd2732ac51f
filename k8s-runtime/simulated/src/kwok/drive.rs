//! Applies Stages to one object, until none matches.

use std::{sync::Arc, time::Duration};

use http::Method;
use k8s_core::{
    api::{
        api::core::v1::{Node, ObjectReference, Pod},
        jiff::Timestamp,
    },
    client::{Client, DeleteOptions, Error, Resource},
    clock::Clock,
    events::{EventType, Recorder},
    meta::ObjectKey,
    random,
};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, watch};

use super::{
    Kind, Stage,
    stage::{Form, Step, finalizers_patch, pick},
    template::Place,
    watch::Stages,
};
use crate::{nodes, parts::Parts};

/// Requests on their way at a time.
const AT_ONCE: usize = 64;
/// Stages without a delay that one object goes through before it pauses: they may be a circle.
const PAUSES_AFTER: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// What the drivers of all objects share.
pub(crate) struct Drive {
    pub(crate) client: Client,
    pub(crate) clock: Clock,
    pub(crate) stages: watch::Receiver<Arc<Stages>>,
    pub(crate) recorder: Recorder,
    pub(crate) parts: Parts,
    started: Timestamp,
    permits: Semaphore,
}

/// The object that is driven.
pub(crate) struct Driven {
    pub(crate) kind: Kind,
    pub(crate) key: ObjectKey,
    pub(crate) uid: Arc<str>,
    /// Notified when the object or the Stages have changed.
    pub(crate) wake: Arc<Notify>,
}

/// How a drive ended: no Stage matches any more, or the last one has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// A Stage was applied.
    pub(crate) acted: bool,
    /// Revision of the object that was seen last.
    pub(crate) revision: u64,
}

impl Drive {
    pub(crate) fn new(client: Client, parts: Parts, stages: watch::Receiver<Arc<Stages>>) -> Self {
        let clock = parts.clock.clone();
        Drive {
            recorder: Recorder::new(&client, clock.clone(), "kwok"),
            started: clock.now(),
            client,
            clock,
            stages,
            parts,
            permits: Semaphore::new(AT_ONCE),
        }
    }

    /// Applies Stages until none matches.
    pub(crate) async fn run(&self, driven: &Driven) -> Outcome {
        let mut outcome = Outcome { acted: false, revision: 0 };
        let mut count = 0;
        while let Some(object) = self.get(driven).await {
            outcome.revision = outcome.revision.max(revision(&object));
            let stages = self.stages_of(driven.kind);
            let Some(stage) = pick(&stages, &object, |below| random::range(0..below.max(1))).cloned() else {
                return outcome;
            };
            let delay = stage.delay(&object, self.clock.now(), |below| random::range(0..below.max(1)));
            let (object, waited) = match delay {
                Duration::ZERO => (object, true),
                delay => match self.wait(driven, &stage, delay).await {
                    Some(object) => (object, false),
                    None => continue,
                },
            };
            outcome.acted = true;
            match self.apply(driven, &stage, &object).await {
                Ok(after) => {
                    let changed = after != revision(&object);
                    outcome.revision = outcome.revision.max(after);
                    if !changed && !stage.immediate {
                        return outcome;
                    }
                    count += 1;
                    if waited && (!changed || count % PAUSES_AFTER == 0) {
                        self.clock.sleep(PAUSE).await;
                    }
                }
                Err(e) => {
                    let message = format!("stage {}: {e}", stage.name);
                    tracing::warn!(object = %driven.key, error = message, "stage not applied");
                    self.recorder.warning(about(driven, &object), "StageFailed", message);
                    return outcome;
                }
            }
        }
        // Nothing to look at again: it is gone, or a later change will tell.
        outcome.revision = u64::MAX;
        outcome
    }

    fn stages_of(&self, kind: Kind) -> Vec<Arc<Stage>> {
        let stages = self.stages.borrow();
        match kind {
            Kind::Pod => stages.pods.clone(),
            Kind::Node => stages.nodes.clone(),
        }
    }

    /// Waits until the Stage is due, as long as it matches; `None`: it does not any more.
    async fn wait(&self, driven: &Driven, stage: &Arc<Stage>, delay: Duration) -> Option<Value> {
        let due = self.clock.now().saturating_add(delay).ok()?;
        loop {
            let left = self.clock.until(due);
            let woken = tokio::select! {
                biased;
                () = self.clock.sleep(left) => false,
                () = driven.wake.notified() => true,
            };
            let object = self.get(driven).await?;
            let is_there = self.stages_of(driven.kind).iter().any(|known| Arc::ptr_eq(known, stage));
            if !is_there || !stage.matches(&object) {
                return None;
            }
            if !woken {
                return Some(object);
            }
        }
    }

    /// Reads the object; `None`: it is gone, or cannot be read now.
    async fn get(&self, driven: &Driven) -> Option<Value> {
        let _permit = self.permits.acquire().await.ok()?;
        let path = path(driven, "");
        let object: Value = match self.client.bytes(Method::GET, &path, "", "").await {
            Ok(bytes) => serde_json::from_slice(&bytes).ok()?,
            Err(e) => {
                if !e.is_not_found() {
                    tracing::warn!(object = %driven.key, error = %e, "read an object for its stages");
                }
                return None;
            }
        };
        (object["metadata"]["uid"].as_str() == Some(&driven.uid)).then_some(object)
    }

    /// Does the steps of a Stage. Returns the revision of the object afterwards.
    ///
    /// # Errors
    /// A template or the API server's error.
    async fn apply(&self, driven: &Driven, stage: &Stage, object: &Value) -> Result<u64, String> {
        let mut newest = object.clone();
        for step in &stage.steps {
            match step {
                Step::Event { warning, reason, message } => {
                    let kind = if *warning { EventType::Warning } else { EventType::Normal };
                    self.recorder.event(about(driven, object), kind, reason, message.clone());
                }
                Step::Finalizers { add, remove, empty } => {
                    if let Some(patch) = finalizers_patch(&newest, add, remove, *empty) {
                        newest = self.patch(driven, "", Form::Json, patch).await?.unwrap_or(newest);
                    }
                }
                Step::Delete => {
                    let options = DeleteOptions::default().with_uid(&driven.uid).grace(0);
                    self.delete(driven, &options).await.map_err(|e| e.to_string())?;
                    return Ok(revision(&newest));
                }
                Step::Patch { subresource, root, template, form } => {
                    let place = Here { drive: self, driven, node: node_of(driven, object) };
                    let value = template.value(object, &place)?;
                    if value.is_null() {
                        continue;
                    }
                    let patch = rooted(root, value, *form, &driven.uid)?;
                    newest = self.patch(driven, subresource, *form, patch).await?.unwrap_or(newest);
                }
            }
        }
        Ok(revision(&newest))
    }

    /// Patches the object. `None`: it is gone or was changed meanwhile, and a later change will tell.
    async fn patch(
        &self,
        driven: &Driven,
        subresource: &str,
        form: Form,
        patch: Value,
    ) -> Result<Option<Value>, String> {
        let kind = match form {
            Form::Json => "application/json-patch+json",
            Form::Merge => "application/merge-patch+json",
            Form::Strategic => "application/strategic-merge-patch+json",
        };
        let _permit = self.permits.acquire().await.map_err(|e| e.to_string())?;
        let path = path(driven, subresource);
        match self.client.bytes(Method::PATCH, &path, kind, patch.to_string()).await {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| e.to_string()),
            Err(e) if e.is_not_found() || e.is_conflict() => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }

    async fn delete(&self, driven: &Driven, options: &DeleteOptions) -> Result<(), Error> {
        let (namespace, name) = (&driven.key.namespace, &driven.key.name);
        let deleted = match driven.kind {
            Kind::Pod => self.client.namespaced::<Pod>(namespace).delete_if_exists(name, options).await,
            Kind::Node => self.client.all::<Node>().delete_if_exists(name, options).await,
        };
        // Another object has the name.
        deleted.or_else(|e| if e.is_conflict() { Ok(()) } else { Err(e) })
    }
}

fn path(driven: &Driven, subresource: &str) -> String {
    let resource = match driven.kind {
        Kind::Pod => Resource::of::<Pod>(),
        Kind::Node => Resource::of::<Node>(),
    };
    resource.path(&driven.key.namespace, &driven.key.name, subresource)
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn node_of(driven: &Driven, object: &Value) -> String {
    match driven.kind {
        Kind::Node => driven.key.name.clone(),
        Kind::Pod => object["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(),
    }
}

fn about(driven: &Driven, object: &Value) -> ObjectReference {
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    ObjectReference {
        api_version: some("v1"),
        kind: some(match driven.kind {
            Kind::Pod => "Pod",
            Kind::Node => "Node",
        }),
        namespace: some(&driven.key.namespace),
        name: some(&driven.key.name),
        uid: some(&driven.uid),
        resource_version: object["metadata"]["resourceVersion"].as_str().and_then(some),
        ..ObjectReference::default()
    }
}

/// Puts a patch below its root. The uid is a precondition of a patch below a root.
fn rooted(root: &str, value: Value, form: Form, uid: &str) -> Result<Value, String> {
    if root.is_empty() {
        return Ok(value);
    }
    if form != Form::Json {
        let mut patch = json!({"metadata": {"uid": uid}});
        match (root, value) {
            ("metadata", Value::Object(mut fields)) => {
                fields.insert("uid".into(), json!(uid));
                patch["metadata"] = Value::Object(fields);
            }
            (root, value) => patch[root] = value,
        }
        return Ok(patch);
    }
    let Value::Array(mut operations) = value else {
        return Err("a patch of type json is no list of operations".into());
    };
    for operation in &mut operations {
        let path = operation["path"].as_str().ok_or("an operation of a patch has no path")?;
        operation["path"] = format!("/{root}{path}").into();
    }
    Ok(Value::Array(operations))
}

/// What templates ask about.
struct Here<'a> {
    drive: &'a Drive,
    driven: &'a Driven,
    node: String,
}

impl Place for Here<'_> {
    fn now(&self) -> String {
        self.drive.clock.time().0.to_string()
    }

    fn start_time(&self) -> String {
        self.drive.started.to_string()
    }

    fn node_conditions(&self) -> Value {
        let row = |(kind, status, reason, message)| json!({"type": kind, "status": status, "reason": reason, "message": message});
        nodes::CONDITIONS.into_iter().map(row).collect()
    }

    fn node_ips(&self, node: &str) -> Vec<String> {
        let node = if node.is_empty() { &self.node } else { node };
        let board = self.drive.parts.board();
        board.nodes.get(node).map(|node| node.hosts.to_vec()).unwrap_or_default()
    }

    fn node_name(&self) -> String {
        self.node.clone()
    }

    fn pod_ips(&self, node: &str, on_host: bool) -> Vec<String> {
        if on_host {
            return self.node_ips(node);
        }
        let board = self.drive.parts.board();
        let address = board.pods.get(&self.driven.uid).and_then(|pod| pod.address);
        address.map(|address| address.to_string()).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_put_below_their_root() {
        let of = |root: &str, value: Value, form| rooted(root, value, form, "u");
        let wanted = json!({"metadata": {"uid": "u"}, "status": {"phase": "Failed"}});
        assert_eq!(of("status", json!({"phase": "Failed"}), Form::Strategic), Ok(wanted));
        let wanted = json!({"metadata": {"uid": "u", "labels": {}}});
        assert_eq!(of("metadata", json!({"labels": {}}), Form::Merge), Ok(wanted));
        assert_eq!(of("", json!({"a": 1}), Form::Merge), Ok(json!({"a": 1})));
        let patch = json!([{"op": "remove", "path": "/phase"}]);
        assert_eq!(of("status", patch, Form::Json), Ok(json!([{"op": "remove", "path": "/status/phase"}])));
        assert!(of("status", json!({}), Form::Json).is_err());
    }
}
