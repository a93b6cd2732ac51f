//! Status of FlowSchemas: the condition `Dangling` says whether the priority level exists.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_store::{Expect, Stored};
use serde_json::{Value, json};

use crate::{
    fair::has_level,
    resources::{
        Resource,
        flow_defaults::{API, LEVELS, SCHEMAS},
    },
    state::{Observer, State},
    storage::{put, timestamp},
    value::{array_at, str_at},
};

/// The observer of flow schemas and priority levels.
pub(crate) struct Flows;

#[async_trait]
impl Observer for Flows {
    fn observes(&self, resource: &Resource) -> bool {
        [SCHEMAS, LEVELS].contains(&&*resource.storage)
    }

    async fn after_write(&self, state: &Arc<State>, resource: &Resource, stored: &Arc<Stored>) {
        if &*resource.storage == SCHEMAS {
            check(state, resource, stored).await;
        } else {
            check_all(state).await;
        }
    }

    async fn after_delete(&self, state: &Arc<State>, resource: &Resource, _: &Value) {
        if &*resource.storage == LEVELS {
            check_all(state).await;
        }
    }
}

/// Sets the conditions of all flow schemas.
pub(crate) async fn check_all(state: &Arc<State>) {
    let registry = state.registry.now();
    let Some(resource) = registry.find(API.0, API.1, "flowschemas") else { return };
    for stored in state.store.snapshot(SCHEMAS).range("", "") {
        check(state, resource, stored).await;
    }
}

/// Sets the condition of a flow schema. A concurrent writer of it does so, too.
async fn check(state: &Arc<State>, resource: &Resource, stored: &Arc<Stored>) {
    let Ok(mut schema) = serde_json::from_slice::<Value>(&stored.json) else { return };
    let level = str_at(&schema, "/spec/priorityLevelConfiguration/name");
    let (status, reason, end) = match has_level(&state.store, level) {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let message =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {end}");
    let mut conditions = array_at(&schema, "/status/conditions").to_vec();
    let known = conditions.iter().position(|condition| str_at(condition, "/type") == "Dangling");
    let text = |field| known.map_or("", |at| str_at(&conditions[at], field));
    if [text("/status"), text("/reason"), text("/message")] == [status, reason, &message] {
        return;
    }
    let condition = json!({
        "type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": timestamp(state.clock.now()),
    });
    match known {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
    schema["status"]["conditions"] = conditions.into();
    let _ = put(state, resource, &stored.key, Expect::Revision(stored.revision), &schema).await;
}
