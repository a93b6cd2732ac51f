//! Keeps the graph current for one resource.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::Status,
    client::{Error, Resource},
    status::ApiStatus,
};
use serde::Deserialize;
use tracing::debug;

use super::Shared;
use crate::builtin::dynamic::{self, Any};

#[derive(Deserialize)]
struct Event<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a serde_json::value::RawValue,
}

const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// Lists, watches, and does so again whenever that ends.
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
        let event: Event<'_> = serde_json::from_slice(&line).map_err(decode)?;
        if event.r#type == "ERROR" {
            let status: Status = serde_json::from_str(event.object.get()).map_err(decode)?;
            return Err(ApiStatus::from_status(status).into());
        }
        let object: Any = serde_json::from_str(event.object.get()).map_err(decode)?;
        if !object.metadata.resource_version.is_empty() {
            *position = Some(object.metadata.resource_version.clone());
        }
        let touched = match event.r#type {
            "ADDED" | "MODIFIED" => shared.graph().set(resource, object.metadata),
            "DELETED" => shared.graph().remove(&object.metadata.uid),
            _ => continue,
        };
        look(touched);
    }
    Ok(())
}
