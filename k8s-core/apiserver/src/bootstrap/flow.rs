//! Default flow schemas and priority levels, kept as upstream keeps them.
//!
//! A missing one is created. The spec of a mandatory one (`exempt`, `catch-all`) is always the default;
//! that of another one follows the default while its annotation says so, or has none and was never
//! changed. An object with the annotation that is no default any more is deleted.

use http::Method;
use k8s_core::client::{Client, Error};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::{
    resources::flow_defaults::{API, AUTO_UPDATE, FlowDefault, LEVELS, SCHEMAS, flow_defaults},
    value::{int_at, str_at},
};

const MEDIA: &str = "application/json";

/// Returns the path of a resource.
pub(super) fn path(resource: &str) -> String {
    let plural = resource.split('.').next().unwrap_or_default();
    format!("/apis/{}/{}/{plural}", API.0, API.1)
}

/// Makes the objects of a store as they should be, through a client of its server.
pub(crate) async fn keep(store: &Store, client: &Client) -> Result<(), Error> {
    for default in flow_defaults() {
        let collection = path(default.resource);
        let stored = store.get(default.resource, &default.name);
        let done = match stored.and_then(|stored| serde_json::from_slice::<Value>(&stored.json).ok()) {
            None => client.bytes(Method::POST, &collection, MEDIA, default.object.to_string()).await,
            Some(stored) => {
                let Some(next) = revised(&stored, default) else { continue };
                tracing::info!(name = default.name, "default of priority and fairness reconciled");
                let place = format!("{collection}/{}", default.name);
                client.bytes(Method::PUT, &place, MEDIA, next.to_string()).await
            }
        };
        tolerate(done)?;
    }
    for resource in [SCHEMAS, LEVELS] {
        for stored in store.snapshot(resource).range("", "") {
            let Ok(object) = serde_json::from_slice::<Value>(&stored.json) else { continue };
            let name = str_at(&object, "/metadata/name");
            let is_default = flow_defaults().any(|d| d.resource == resource && d.name == name);
            if !is_default && follows(&object) == Some(true) {
                let place = format!("{}/{name}", path(resource));
                tolerate(client.bytes(Method::DELETE, &place, MEDIA, "").await)?;
            }
        }
    }
    Ok(())
}

/// Another server or user was faster: the next round looks at what it left.
fn tolerate<T>(done: Result<T, Error>) -> Result<(), Error> {
    match done {
        Err(e) if !(e.is_conflict() || e.is_already_exists() || e.is_not_found()) => Err(e),
        _ => Ok(()),
    }
}

/// Returns the annotation's value; `None` if there is none that Go reads as a boolean.
fn follows(object: &Value) -> Option<bool> {
    let annotations = object.pointer("/metadata/annotations")?;
    match annotations.get(AUTO_UPDATE)?.as_str()? {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// Returns a stored object as it should be; `None` if it is.
fn revised(stored: &Value, default: &FlowDefault) -> Option<Value> {
    let said = follows(stored);
    let unchanged = || int_at(stored, "/metadata/generation") == Some(1);
    let auto = default.is_mandatory() || said.unwrap_or_else(unchanged);
    let spec = auto && !default.has_spec_of(stored);
    if !spec && said == Some(auto) {
        return None;
    }
    let mut next = stored.clone();
    if spec {
        next["spec"] = default.object["spec"].clone();
    }
    if !next["metadata"]["annotations"].is_object() {
        next["metadata"]["annotations"] = json!({});
    }
    next["metadata"]["annotations"][AUTO_UPDATE] = auto.to_string().into();
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default(name: &str, resource: &str) -> &'static FlowDefault {
        flow_defaults().find(|d| d.name == name && d.resource == resource).unwrap()
    }

    #[test]
    fn suggested_ones_follow_the_defaults_until_an_administrator_says_otherwise() {
        let system = default("system", LEVELS);
        let mut stored = system.object.clone();
        stored["metadata"]["generation"] = 1.into();
        assert_eq!(revised(&stored, system), None);
        stored["spec"]["limited"]["nominalConcurrencyShares"] = 7.into();
        assert_eq!(revised(&stored, system).unwrap()["spec"], system.object["spec"]);
        stored["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
        assert_eq!(revised(&stored, system), None);
        stored["metadata"]["annotations"][AUTO_UPDATE] = "perhaps".into();
        assert_eq!(revised(&stored, system).unwrap()["spec"], system.object["spec"], "never changed");
        stored["metadata"]["generation"] = 2.into();
        let kept = revised(&stored, system).unwrap();
        assert_eq!(kept["spec"], stored["spec"]);
        assert_eq!(kept["metadata"]["annotations"][AUTO_UPDATE], "false");
    }

    #[test]
    fn mandatory_ones_are_always_the_defaults() {
        let catch_all = default("catch-all", SCHEMAS);
        let mut stored = catch_all.object.clone();
        stored["metadata"]["annotations"] = json!({AUTO_UPDATE: "false", "mine": "x"});
        stored["spec"]["rules"] = json!([]);
        let next = revised(&stored, catch_all).unwrap();
        assert_eq!(next["spec"], catch_all.object["spec"]);
        assert_eq!(next["metadata"]["annotations"], json!({AUTO_UPDATE: "true", "mine": "x"}));
        let exempt = default("exempt", LEVELS);
        let mut stored = exempt.object.clone();
        stored["spec"]["exempt"]["nominalConcurrencyShares"] = 9.into();
        assert_eq!(revised(&stored, exempt), None, "an administrator may choose these");
    }
}
