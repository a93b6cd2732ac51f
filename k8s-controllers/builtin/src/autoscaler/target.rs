//! The object that an autoscaler scales, through its subresource `scale`.

use http::Method;
use k8s_core::client::{Client, Error, Resource};
use serde_json::{Value, json};

use super::super::{
    discovery::{Discovery, EXTENSIONS, SUCCESSORS},
    dynamic,
};

/// Returns the resource of a kind.
///
/// The group `extensions` of the first years names the same objects as its successors.
///
/// # Errors
/// No served resource has the kind, in upstream's words.
pub(super) fn resource<'a>(
    discovery: &'a Discovery,
    group: &str,
    kind: &str,
) -> Result<&'a Resource, String> {
    let of = |group: &str| {
        let all = discovery.served.iter().map(|served| &served.resource);
        all.clone().find(|r| r.group == group && r.kind == kind)
    };
    let moved = || SUCCESSORS.iter().find_map(|group| of(group));
    let found = of(group).or_else(|| if group == EXTENSIONS { moved() } else { None });
    found.ok_or_else(|| match discovery.failure().filter(|_| discovery.is_uncertain(group)) {
        Some(failure) => failure,
        None => format!("no matches for kind {kind:?} in group {group:?}"),
    })
}

/// A `Scale` object.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    path: String,
    object: Value,
}

fn count(value: &Value) -> i32 {
    value.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0)
}

impl Scale {
    /// Reads it.
    ///
    /// # Errors
    /// The API server's.
    pub(super) async fn get(
        client: &Client,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Self, Error> {
        let path = resource.path(namespace, name, "scale");
        let object = dynamic::get(client, &path).await?;
        Ok(Scale { path, object })
    }

    /// Desired number of pods.
    pub(super) fn desired(&self) -> i32 {
        count(&self.object["spec"]["replicas"])
    }

    /// Number of pods that there are.
    pub(super) fn present(&self) -> i32 {
        count(&self.object["status"]["replicas"])
    }

    /// Selector of the pods, as text; empty if the target gives none.
    pub(super) fn selector(&self) -> &str {
        self.object["status"]["selector"].as_str().unwrap_or_default()
    }

    /// Writes the desired number. Somebody else's change at the same time is read and overruled, a few times.
    ///
    /// # Errors
    /// The API server's.
    pub(super) async fn set(mut self, client: &Client, replicas: i32) -> Result<(), Error> {
        const ATTEMPTS: usize = 5;
        for attempt in 1.. {
            self.object["spec"]["replicas"] = json!(replicas);
            let body = self.object.to_string();
            let written = client.json::<Value>(Method::PUT, &self.path, "application/json", body).await;
            match written {
                Err(e) if e.is_conflict() && attempt < ATTEMPTS => {
                    self.object = dynamic::get(client, &self.path).await?;
                }
                other => return other.map(drop),
            }
        }
        Ok(())
    }
}
