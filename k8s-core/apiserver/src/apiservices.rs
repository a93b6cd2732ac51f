//! APIServices: what their writes and deletions set in motion, and the checks of the servers that they name.

mod check;
mod local;

use std::sync::Arc;

use async_trait::async_trait;
use k8s_store::Stored;
use serde_json::Value;

use crate::{
    aggregate::Remote,
    resources::Resource,
    state::{Observer, State},
    value::text,
};

/// The name of APIServices in the store.
const STORAGE: &str = "apiservices.apiregistration.k8s.io";

/// Serves the versions that stored APIServices give to other servers.
pub(crate) struct ApiServices;

#[async_trait]
impl Observer for ApiServices {
    fn observes(&self, resource: &Resource) -> bool {
        &*resource.storage == STORAGE
    }

    async fn after_write(&self, state: &Arc<State>, _: &Resource, stored: &Arc<Stored>) {
        after_write(state, stored);
    }

    async fn after_delete(&self, state: &Arc<State>, _: &Resource, service: &Value) {
        state.aggregator.replace(text(service, "/metadata/name"), None);
    }
}

/// Serves a written APIService; also called at the start with those in the store.
fn after_write(state: &Arc<State>, stored: &Arc<Stored>) {
    let Ok(service) = serde_json::from_slice::<Value>(&stored.json) else { return };
    let (aggregator, name) = (&state.aggregator, text(&service, "/metadata/name"));
    if !service.pointer("/spec/service").is_some_and(Value::is_object) {
        return aggregator.replace(name, None);
    }
    let known = aggregator.all().iter().any(|r| r.name == name && r.spec == service["spec"]);
    if known {
        return;
    }
    let remote = Arc::new(Remote::new(&service, state.front_proxy.as_ref()));
    aggregator.replace(name, Some(remote.clone()));
    check::start(state, remote);
}

/// Begins to serve the APIServices that are there, and makes those of this server's own versions, whenever its definitions change.
pub(crate) fn start(state: &Arc<State>) {
    for stored in state.store.snapshot(STORAGE).range("", "") {
        after_write(state, stored);
    }
    let (weak, changed) = (Arc::downgrade(state), state.redefined.clone());
    tokio::spawn(async move {
        loop {
            let Some(state) = weak.upgrade() else { return };
            local::register(&state).await;
            drop(state);
            changed.notified().await;
        }
    });
}
