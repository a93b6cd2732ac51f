//! Server-side apply of the objects that this program manages.

use k8s_core::client::Client;
use serde_json::Value;

/// Applies an object by server-side apply; the client's name is the field manager. 503 (the store cannot
/// write, as on a full disk) is logged and is not an error, so that a cluster can start read-only.
///
/// # Errors
/// The API server's error.
pub(crate) async fn apply(
    client: &Client,
    path: &str,
    object: &Value,
) -> Result<(), k8s_core::client::Error> {
    let target = format!("{path}?fieldManager={}&force=true", client.name());
    match client.bytes(http::Method::PATCH, &target, "application/apply-patch+yaml", object.to_string()).await
    {
        Err(e) if e.status().is_some_and(|status| status.code() == 503) => {
            tracing::warn!(path, error = %e, "object not applied: the store cannot write");
            Ok(())
        }
        other => other.map(drop),
    }
}
