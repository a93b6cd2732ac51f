//! Upkeep of the defaults of priority and fairness while the server runs.

#![expect(clippy::disallowed_methods, reason = "the task ends when the server is dropped")]

use std::sync::Arc;

use k8s_core::client::Client;

use super::ApiServer;
use crate::{
    resources::flow_defaults::{LEVELS, SCHEMAS},
    state::State,
    user::User,
};

/// Returns a client of the server as itself.
pub(super) fn own_client(state: &Arc<State>) -> Client {
    let server = ApiServer { state: state.clone(), user: None };
    server.client_as(User::new("system:apiserver", &["system:masters"])).named("kube-apiserver")
}

/// Starts the task. It ends when the server is dropped.
pub(super) fn start(state: &Arc<State>) {
    let (weak, every) = (Arc::downgrade(state), state.pace.sweep_every);
    tokio::spawn(async move {
        let mut kept = None;
        loop {
            tokio::time::sleep(every).await;
            let Some(state) = weak.upgrade() else { return };
            // Read before the objects: a change meanwhile is found by the next round.
            let revisions = [SCHEMAS, LEVELS].map(|resource| state.store.last_change(resource));
            if kept == Some(revisions) {
                continue;
            }
            let server = ApiServer { state, user: None };
            crate::flow_status::check_all(&server.state).await;
            match crate::bootstrap::keep_flow(server.store(), &own_client(&server.state)).await {
                Ok(()) => kept = Some(revisions),
                Err(error) => tracing::debug!(%error, "defaults of priority and fairness are tried again"),
            }
        }
    });
}
