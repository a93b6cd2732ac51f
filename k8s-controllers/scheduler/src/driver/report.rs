//! Writes about pods that are not scheduled: conditions, events, deletions of victims.

use std::sync::Arc;

use k8s_controllers::{EventType, Recorder, involved};
use k8s_core::{
    api::api::core::v1::{Pod, PodCondition},
    client::{Client, DeleteOptions, Error, Patch},
    clock::Clock,
    meta::ObjectExt,
};
use serde_json::json;
use tracing::{debug, warn};

use crate::{PodInfo, failures::Failure};

/// Longest message of a condition, in bytes.
const LONGEST_MESSAGE: usize = 32 << 10;

/// Returns the patch of a pod's condition `PodScheduled` and of its nominated node. `None`: the pod has them
/// already.
pub(super) fn unschedulable(
    failure: &Failure,
    nominated: Option<&str>,
    clock: &Clock,
) -> Option<serde_json::Value> {
    let Failure { pod, reason, message } = failure;
    // Each of thousands of nodes may have a reason of its own.
    let message = &message[..message.floor_char_boundary(LONGEST_MESSAGE)].to_owned();
    let status = pod.pod.status.as_ref();
    let old = status
        .and_then(|s| s.conditions.as_ref())
        .and_then(|all| all.iter().find(|c| c.type_ == "PodScheduled"));
    let said = old.is_some_and(|c| {
        c.status == "False"
            && c.reason.as_deref() == Some(reason.as_str())
            && c.message.as_ref() == Some(message)
    });
    let before = status.and_then(|s| s.nominated_node_name.as_deref()).unwrap_or_default();
    if said && nominated.is_none_or(|node| node == before) {
        return None;
    }
    let transition = old
        .filter(|c| c.status == "False")
        .and_then(|c| c.last_transition_time.clone())
        .unwrap_or_else(|| clock.time());
    let condition = PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some(reason.as_str().into()),
        message: Some(message.clone()),
        last_transition_time: Some(transition),
        observed_generation: pod.pod.metadata.generation,
        ..PodCondition::default()
    };
    let mut status = json!({"conditions": [condition]});
    match nominated {
        Some("") => status["nominatedNodeName"] = serde_json::Value::Null,
        Some(node) => status["nominatedNodeName"] = node.into(),
        None => {}
    }
    Some(json!({"metadata": {"uid": pod.uid()}, "status": status}))
}

/// Deletes the victims of a preemption: the condition `DisruptionTarget` first, then the pod, then an event.
///
/// # Errors
/// A victim could not be deleted; those before it are.
pub(super) async fn evict(
    client: &Client,
    recorder: &Recorder,
    clock: &Clock,
    scheduler: &str,
    preemptor: &PodInfo,
    node: &str,
    victims: &[Arc<PodInfo>],
) -> Result<(), Error> {
    for victim in victims.iter().filter(|v| !v.pod.is_deleting()) {
        let api = client.namespaced::<Pod>(&victim.key.namespace);
        let condition = PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("PreemptionByScheduler".into()),
            message: Some(format!("{scheduler}: preempting to accommodate a higher priority pod")),
            last_transition_time: Some(clock.time()),
            observed_generation: victim.pod.metadata.generation,
            ..PodCondition::default()
        };
        // The uid keeps a new pod of the same name out of it.
        let patch = json!({"metadata": {"uid": victim.uid()}, "status": {"conditions": [condition]}});
        match api.patch_status(&victim.key.name, &Patch::Strategic(patch)).await {
            Ok(_) => {}
            Err(e) if e.is_not_found() => {
                debug!(pod = %victim.key, error = %e, "victim is gone");
                continue;
            }
            Err(e) => {
                warn!(pod = %victim.key, error = %e, "no condition on the victim of a preemption");
                return Err(e);
            }
        }
        let options = DeleteOptions::default().with_uid(victim.uid());
        if let Err(e) = api.delete_if_exists(&victim.key.name, &options).await {
            warn!(pod = %victim.key, error = %e, "victim not deleted");
            return Err(e);
        }
        let message = format!("Preempted by pod {} on node {node}", preemptor.uid());
        recorder.event(involved(&*victim.pod), EventType::Normal, "Preempted", message);
    }
    Ok(())
}
