//! Labels Secrets with the day on which their token was last used, for the cleaner of unused ones, and tells
//! in a ConfigMap since when.

#![expect(clippy::disallowed_methods, reason = "the task ends when the server is dropped")]

use std::sync::Arc;

use jiff::{civil::Date, tz::TimeZone};
use k8s_store::{Expect, StoreError};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    auth::LAST_USED,
    state::State,
    storage::{TRIES, put},
    value::{str_at, timestamp},
};

/// Starts the task, which writes a label for each Secret that comes out of `used`.
pub(crate) fn start(state: &Arc<State>, mut used: mpsc::Receiver<String>) {
    let weak = Arc::downgrade(state);
    tokio::spawn(async move {
        while let Some(secret) = used.recv().await {
            let Some(state) = weak.upgrade() else { return };
            record(&state, &secret).await;
            state.token_uses.recorded(&secret);
        }
    });
}

fn today(state: &State) -> String {
    state.clock.now().to_zoned(TimeZone::UTC).date().to_string()
}

/// Name of the ConfigMap of kube-system, as upstream's.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";

/// Records the day since when uses are labelled, unless a day is recorded.
pub(crate) async fn track(state: &Arc<State>) {
    let registry = state.registry.now();
    let Some(resource) = registry.find("", "v1", "configmaps") else { return };
    let key = format!("kube-system/{TRACKING}");
    for _ in 0..TRIES {
        let (expect, mut object) = match state.store.get("configmaps", &key) {
            None => {
                let uid = k8s_core::random::uuid().to_string();
                let now = timestamp(state.clock.now());
                let metadata = json!({"name": TRACKING, "namespace": "kube-system", "uid": uid, "creationTimestamp": now});
                (Expect::Absent, json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata}))
            }
            Some(stored) => {
                let Ok(object) = serde_json::from_slice::<Value>(&stored.json) else { return };
                if str_at(&object, "/data/since").parse::<Date>().is_ok() {
                    return;
                }
                (Expect::Revision(stored.revision), object)
            }
        };
        if !object.get("data").is_some_and(Value::is_object) {
            object["data"] = json!({});
        }
        object["data"]["since"] = today(state).into();
        match put(state, resource, &key, expect, &object).await {
            Ok(_) => return,
            Err(StoreError::Conflict { .. }) => {}
            Err(e) => {
                return tracing::warn!(error = %e, "the start of records of token uses could not be stored");
            }
        }
    }
}

async fn record(state: &Arc<State>, secret: &str) {
    let registry = state.registry.now();
    let Some(resource) = registry.find("", "v1", "secrets") else { return };
    let today = today(state);
    for _ in 0..TRIES {
        let Some(stored) = state.store.get("secrets", secret) else { return };
        let Ok(mut object) = serde_json::from_slice::<Value>(&stored.json) else { return };
        if !object.pointer("/metadata/labels").is_some_and(Value::is_object) {
            object["metadata"]["labels"] = json!({});
        }
        object["metadata"]["labels"][LAST_USED] = today.as_str().into();
        match put(state, resource, secret, Expect::Revision(stored.revision), &object).await {
            Ok(_) => return,
            Err(StoreError::Conflict { .. }) => {}
            // The next use tries again.
            Err(e) => {
                return tracing::warn!(error = %e, secret, "the use of a token could not be recorded");
            }
        }
    }
}
