//! Keeps the graph up to date for one resource.

use std::{collections::HashSet, sync::Arc, time::Duration};

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

/// Lists and watches; restarts whenever the watch ends.
pub(super) async fn run(shared: &Shared, resource: &Resource) {
    let resource = Arc::new(resource.clone());
    let mut position: Option<String> = None;
    let mut delay = Duration::from_millis(100);
    loop {
        match follow(shared, &resource, &mut position).await {
            Ok(()) => delay = Duration::from_millis(100),
            Err(e) => {
                debug!(resource = resource.plural, error = %e, "not monitored");
                if e.is_expired() {
                    position = None;
                }
                delay = (delay * 2).min(LONGEST_DELAY);
            }
        }
        tokio::time::sleep(delay).await;
    }
}

async fn follow(
    shared: &Shared,
    resource: &Arc<Resource>,
    position: &mut Option<String>,
) -> Result<(), Error> {
    let client = &shared.environment.client;
    let look = |uids: Vec<String>| uids.into_iter().for_each(|uid| shared.queue.add(uid));
    if position.is_none() {
        let list = dynamic::list(client, resource, "").await?;
        let mut uids = HashSet::new();
        for object in list.items {
            uids.insert(object.metadata.uid.clone());
            let touched = shared.graph().set(resource, object.metadata);
            look(touched);
        }
        let touched = shared.graph().retain(resource, &uids);
        look(touched);
        *position = Some(list.metadata.resource_version);
    }
    let from = position.clone().unwrap_or_default();
    let path = resource.path("", "", "") + "?watch=1&allowWatchBookmarks=true&resourceVersion=" + &from;
    let mut lines = client.lines(&path).await?;
    while let Some(line) = lines.next().await {
        let line = line?;
        let decode = |source| Error::Decode { what: format!("watch of {}", resource.plural), source };
        // Only the object's metadata is parsed.
        let kind = json::plain(&line, &["type"]).unwrap_or_default();
        if kind == "ERROR" {
            let status: Status = json::read(&line, &["object"]).map_err(decode)?;
            return Err(ApiStatus::from_status(status).into());
        }
        let meta: Meta = json::read_leniently(&line, &["object", "metadata"]).map_err(decode)?;
        if !meta.resource_version.is_empty() {
            *position = Some(meta.resource_version.clone());
        }
        let touched = match kind {
            "ADDED" | "MODIFIED" => shared.graph().set(resource, meta),
            "DELETED" => shared.graph().remove(&meta.uid),
            _ => continue,
        };
        look(touched);
    }
    Ok(())
}
