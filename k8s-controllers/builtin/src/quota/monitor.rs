//! Watches of limited resources, for objects whose usage falls.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::Status,
    client::{Error, Resource},
    json,
    status::ApiStatus,
};
use tracing::debug;

use super::Shared;
use crate::dynamic::{self, Meta};

const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// Starts the watch of a resource unless it runs.
#[expect(clippy::disallowed_methods, reason = "the watch ends with the environment")]
pub(super) fn ensure(shared: &Arc<Shared>, name: &str, resource: &Resource) {
    let mut tracked = shared.tracked.lock().unwrap_or_else(PoisonError::into_inner);
    if !tracked.insert(name.to_owned()) {
        return;
    }
    let (shared, name, resource) = (shared.clone(), name.to_owned(), resource.clone());
    tokio::spawn(async move {
        let shutdown = shared.environment.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = run(&shared, &name, &resource) => {}
        }
    });
}

/// Lists and watches; restarts whenever the watch ends. Ends when the resource is not served or not limited
/// any more.
async fn run(shared: &Shared, name: &str, resource: &Resource) {
    let mut position: Option<String> = None;
    let mut delay = Duration::from_millis(100);
    loop {
        match follow(shared, name, resource, &mut position).await {
            Ok(true) => delay = Duration::from_millis(100),
            Ok(false) => return,
            Err(e) if e.is_not_found() => {
                debug!(resource = name, "not served any more");
                shared.tracked.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
                return;
            }
            Err(e) => {
                debug!(resource = name, error = %e, "not monitored");
                if e.is_expired() {
                    position = None;
                }
                delay = (delay * 2).min(LONGEST_DELAY);
            }
        }
        tokio::time::sleep(delay).await;
    }
}

/// Returns false if no quota limits the resource any more.
async fn follow(
    shared: &Shared,
    name: &str,
    resource: &Resource,
    position: &mut Option<String>,
) -> Result<bool, Error> {
    let client = &shared.environment.client;
    if position.is_none() {
        *position = Some(dynamic::list(client, resource, "").await?.metadata.resource_version);
        // Deletions may have been missed.
        if is_done(shared, name, None) {
            return Ok(false);
        }
    }
    let from = position.clone().unwrap_or_default();
    let path = resource.path("", "", "") + "?watch=1&allowWatchBookmarks=true&resourceVersion=" + &from;
    let mut lines = client.lines(&path).await?;
    while let Some(line) = lines.next().await {
        let line = line?;
        let decode = |source| Error::Decode { what: format!("watch of {name}"), source };
        // Little of the object is parsed.
        let kind = json::plain(&line, &["type"]).unwrap_or_default();
        if kind == "ERROR" {
            let status: Status = json::read(&line, &["object"]).map_err(decode)?;
            return Err(ApiStatus::from_status(status).into());
        }
        let meta: Meta = json::read_leniently(&line, &["object", "metadata"]).map_err(decode)?;
        let falls = match (kind, name) {
            ("DELETED", _) | ("MODIFIED", "services" | "persistentvolumeclaims") => true,
            ("MODIFIED", "pods") => {
                let phase = json::plain(&line, &["object", "status", "phase"]);
                matches!(phase, Some("Succeeded" | "Failed"))
            }
            _ => false,
        };
        if falls && is_done(shared, name, Some(&meta.namespace)) {
            return Ok(false);
        }
        if !meta.resource_version.is_empty() {
            *position = Some(meta.resource_version);
        }
    }
    Ok(true)
}

/// Tells the quotas of a namespace that usage fell. Returns true if the watch can end: no quota limits the
/// resource.
fn is_done(shared: &Shared, name: &str, namespace: Option<&str>) -> bool {
    // Under the lock, so that a pass that begins to count the resource starts the watch again.
    let mut tracked = shared.tracked.lock().unwrap_or_else(PoisonError::into_inner);
    let is_done = !shared.fell(name, namespace);
    if is_done {
        tracked.remove(name);
    }
    is_done
}
