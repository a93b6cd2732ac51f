//! Parts of a whole cluster that can be left out, to be replaced by others.

use k8s_core::client::{Client, Error};
use serde_json::json;

use crate::apply::apply;

/// A part that `up` and `server` have and `--disable` leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[non_exhaustive]
pub enum Addon {
    /// The resource metrics API (`metrics.k8s.io`), which `kubectl top` and autoscalers read.
    MetricsServer,
}

/// Lets those who may view, edit or administer a namespace read the metrics of its pods, as metrics-server's
/// own manifest does.
///
/// # Errors
/// The API server's error.
pub(crate) async fn metrics_reader(client: &Client) -> Result<(), Error> {
    const NAME: &str = "system:aggregated-metrics-reader";
    let aggregated = |role: &str| format!("rbac.authorization.k8s.io/aggregate-to-{role}");
    let labels: serde_json::Map<_, _> =
        ["view", "edit", "admin"].iter().map(|role| (aggregated(role), json!("true"))).collect();
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": NAME, "labels": labels},
        "rules": [{"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}],
    });
    apply(client, &format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{NAME}"), &role).await.map(drop)
}
