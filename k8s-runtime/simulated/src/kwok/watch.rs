//! Reads the Stages of the cluster, and says whether each is accepted.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_core::{
    client::{Api, Client, DynObject, Error, ListParams, Patch, Resource, WatchEvent},
    clock::Clock,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Kind, Stage};

/// Condition of a Stage: it is read and acts.
const ACCEPTED: &str = "Accepted";
/// Pause before the next try without the resource, or after an error.
const PAUSE: Duration = Duration::from_secs(5);

/// Specs and Stages by name.
type Known = BTreeMap<String, (Value, Arc<Stage>)>;

/// The Stages that act, by kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stages {
    pub(crate) pods: Vec<Arc<Stage>>,
    pub(crate) nodes: Vec<Arc<Stage>>,
}

fn stages() -> Resource {
    Resource {
        group: "kwok.x-k8s.io".into(),
        version: "v1alpha1".into(),
        kind: "Stage".into(),
        plural: "stages".into(),
        namespaced: false,
    }
}

/// Keeps the Stages current, for ever.
pub(crate) async fn run(client: Client, clock: Clock, sender: watch::Sender<Arc<Stages>>) {
    let api = client.dynamic(&stages(), "");
    let mut known = Known::new();
    loop {
        if let Err(e) = follow(&api, &clock, &sender, &mut known).await {
            // Without the CustomResourceDefinition there are none.
            if e.is_not_found() {
                sender.send_if_modified(|stages| {
                    let had = !(stages.pods.is_empty() && stages.nodes.is_empty());
                    *stages = Arc::default();
                    had
                });
            } else {
                tracing::warn!(error = %e, "stages not read, trying again");
            }
        }
        clock.sleep(PAUSE).await;
    }
}

async fn follow(
    api: &Api<DynObject>,
    clock: &Clock,
    sender: &watch::Sender<Arc<Stages>>,
    known: &mut Known,
) -> Result<(), Error> {
    let (all, version) = api.list_with_version(&ListParams::default()).await?;
    let before = std::mem::take(known);
    for object in &all {
        known.extend(read(api, clock, object, &before).await);
    }
    publish(known, sender);
    let mut events = api.watch(&ListParams::default().at(version)).await?;
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let read = read(api, clock, &object, known).await;
                known.remove(object.metadata.name.as_deref().unwrap_or_default());
                known.extend(read);
            }
            WatchEvent::Deleted(object) => {
                known.remove(object.metadata.name.as_deref().unwrap_or_default());
            }
            WatchEvent::Error(status) => return Err(status.into()),
            WatchEvent::Unreadable(..) | WatchEvent::Bookmark(..) => continue,
        }
        publish(known, sender);
    }
    Ok(())
}

fn publish(known: &Known, sender: &watch::Sender<Arc<Stages>>) {
    let of = |kind| known.values().map(|(_, stage)| stage).filter(|s| s.kind == kind).cloned().collect();
    let stages = Stages { pods: of(Kind::Pod), nodes: of(Kind::Node) };
    sender.send_replace(Arc::new(stages));
}

/// Reads a Stage, and says in its status whether it is accepted.
async fn read(
    api: &Api<DynObject>,
    clock: &Clock,
    object: &DynObject,
    before: &Known,
) -> Option<(String, (Value, Arc<Stage>))> {
    let name = object.metadata.name.clone().unwrap_or_default();
    // A map's index panics without the key; a value's does not.
    let data = Value::Object(object.data.clone());
    let spec = &data["spec"];
    let read = Stage::read(&name, spec);
    let (status, reason, message) = match &read {
        Ok(_) => ("True", "Read", "the stage acts"),
        Err(e) => ("False", "NotSupported", e.as_str()),
    };
    if let Some(conditions) = told(&data["status"]["conditions"], clock, [status, reason, message]) {
        if let Err(e) = &read {
            tracing::warn!(stage = name, error = e, "stage refused");
        }
        let patch = Patch::Merge(json!({"status": {"conditions": conditions}}));
        if let Err(e) = api.patch_status(&name, &patch).await
            && !e.is_not_found()
        {
            tracing::warn!(stage = name, error = %e, "condition of a stage not written");
        }
    }
    let stage = read.ok()?;
    // The same Stage as before: delays that run go on.
    let same = before.get(&name).filter(|(known, _)| known == spec).map(|(_, stage)| stage.clone());
    Some((name, (spec.clone(), same.unwrap_or_else(|| Arc::new(stage)))))
}

/// Returns the conditions with the one about acceptance; `None`: it is there already.
fn told(there: &Value, clock: &Clock, [status, reason, message]: [&str; 3]) -> Option<Vec<Value>> {
    let all = there.as_array().cloned().unwrap_or_default();
    let same = |c: &Value| c["type"] == ACCEPTED && c["status"] == status && c["message"] == message;
    if all.iter().any(same) {
        return None;
    }
    let mut all: Vec<Value> = all.into_iter().filter(|c| c["type"] != ACCEPTED).collect();
    all.push(json!({
        "type": ACCEPTED, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": clock.time(),
    }));
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_written_once_and_others_stay() {
        let clock = Clock::system();
        let other = json!({"type": "Other", "status": "True"});
        let first = told(&json!([other]), &clock, ["True", "Read", "m"]).expect("a change");
        assert_eq!((first.len(), &first[0]), (2, &other));
        let there = Value::Array(first);
        assert_eq!(told(&there, &clock, ["True", "Read", "m"]), None);
        let refused = told(&there, &clock, ["False", "NotSupported", "n"]).expect("a change");
        assert_eq!((refused.len(), refused[1]["status"].as_str()), (2, Some("False")));
    }
}
