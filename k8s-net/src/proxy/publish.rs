//! Publishes the ports that the node itself uses, for the controller of load balancers.
//!
//! One ConfigMap has an entry per node. Whoever may write it can only keep load balancers from a node.

use std::time::Duration;

use http::Method;
use k8s_core::client::Client;
use serde_json::json;
use tokio::sync::watch;
use tracing::debug;

/// Namespace and name of the ConfigMap whose entry `NODE` lists the ports of the node itself: `TCP/22`,
/// `UDP/192.0.2.2:53`, separated by blanks. A cluster without it has no controller that reads it.
pub const OWN_PORTS: (&str, &str) = ("kube-system", "service-lb-ports");

/// Publishes each state of a node's ports until the proxy ends. A failure is tried again after ten seconds;
/// where the ConfigMap is missing or may not be written (a cluster without this load balancer), after a
/// minute.
pub async fn publish_own_ports(
    client: Client,
    node: String,
    mut ports: watch::Receiver<Option<Vec<String>>>,
) {
    let path = format!("/api/v1/namespaces/{}/configmaps/{}", OWN_PORTS.0, OWN_PORTS.1);
    loop {
        let text = ports.borrow_and_update().as_ref().map(|ports| ports.join(" "));
        let pause = match text {
            None => Duration::MAX,
            Some(text) => {
                let patch = json!({"data": {&node: text}}).to_string();
                match client.bytes(Method::PATCH, &path, "application/merge-patch+json", patch).await {
                    Ok(_) => Duration::MAX,
                    Err(error) => {
                        debug!(%error, "ports of the node not published");
                        let refused = error.status().is_some_and(|s| matches!(s.code(), 403 | 404));
                        Duration::from_secs(if refused { 60 } else { 10 })
                    }
                }
            }
        };
        if let Ok(Err(_)) = tokio::time::timeout(pause, ports.changed()).await {
            return;
        }
    }
}
