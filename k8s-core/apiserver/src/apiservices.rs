//! APIService objects: serves the versions that they give to other servers, and checks those servers.

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
    value::str_at,
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
        state.aggregator.replace(str_at(service, "/metadata/name"), None);
        // A version of this process gets its APIService again.
        state.redefined.notify_one();
    }
}

/// Serves a written APIService; also called at the start with those in the store.
fn after_write(state: &Arc<State>, stored: &Arc<Stored>) {
    let Ok(service) = serde_json::from_slice::<Value>(&stored.json) else { return };
    let (aggregator, name) = (&state.aggregator, str_at(&service, "/metadata/name"));
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

/// Serves the APIServices in the store, and registers this server's own versions each time its definitions
/// change.
#[expect(clippy::disallowed_methods, reason = "the task ends when the server is dropped")]
pub(crate) fn start(state: &Arc<State>) {
    for stored in state.store.snapshot(STORAGE).range("", "") {
        after_write(state, stored);
    }
    for local in state.aggregator.locals() {
        check::start(state, local.clone());
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
