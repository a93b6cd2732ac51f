//! Upkeep of the defaults of priority and fairness while the server runs.

#![expect(clippy::disallowed_methods, reason = "the task ends when the server is dropped")]

use std::sync::Arc;

use k8s_core::client::Client;

use super::ApiServer;
use crate::{state::State, user::User};

/// Returns a client of the server as itself.
pub(super) fn own_client(server: &ApiServer) -> Client {
    server.client_as(User::new("system:apiserver", &["system:masters"])).named("kube-apiserver")
}

/// Starts the task. It ends when the server is dropped.
pub(super) fn start(state: &Arc<State>) {
    let (weak, every) = (Arc::downgrade(state), state.pace.sweep_every);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            let Some(state) = weak.upgrade() else { return };
            let server = ApiServer { state, user: None };
            if let Err(error) = crate::bootstrap::keep_flow(server.store(), &own_client(&server)).await {
                tracing::debug!(%error, "defaults of priority and fairness are looked at again later");
            }
            crate::flow_status::check_all(&server.state).await;
        }
    });
}
