//! Bootstrap objects: namespaces, roles and bindings, priority classes, flow schemas and priority levels.
//!
//! Missing objects are created at every start. Existing roles and bindings get what they lack of upstream's,
//! flow schemas and priority levels are kept as [`flow`] says;
//! other existing objects are not changed.

mod flow;
mod reconcile;

pub(crate) use self::flow::keep as keep_flow;

use http::Method;
use k8s_core::client::{Client, Error};
use k8s_store::Store;
use serde_json::{Value, json};

use self::reconcile::{AUTO_UPDATE, Change};
use crate::{
    auth::default_roles,
    resources::flow_defaults::{LEVELS, SCHEMAS, flow_defaults},
    value::str_at,
};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes the objects that are missing in a store, through a client of its server.
pub(crate) async fn run(store: &Store, client: &Client) -> Result<(), Error> {
    let namespaces = NAMESPACES.map(|name| {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ("namespaces", name.to_owned(), "/api/v1/namespaces".to_owned(), object)
    });
    make(store, client, namespaces.into()).await?;
    let mut rest: Vec<(&str, String, String, Value)> = default_roles::entries().map(rbac).collect();
    for (name, value) in [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)]
    {
        let object = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value});
        rest.push((
            "priorityclasses.scheduling.k8s.io",
            name.into(),
            "/apis/scheduling.k8s.io/v1/priorityclasses".into(),
            object,
        ));
    }
    make(store, client, rest).await?;
    // Levels first, so that a schema finds its own.
    for resource in [LEVELS, SCHEMAS] {
        let defaults = flow_defaults().filter(|default| default.resource == resource);
        let objects =
            defaults.map(|d| (d.resource, d.name.clone(), flow::path(d.resource), d.object.clone()));
        make(store, client, objects.collect()).await?;
    }
    keep_flow(store, client).await?;
    mend(store, client).await
}

/// Number of attempts to change an object that other servers change, too.
const TRIES: usize = 5;

/// Gives existing default roles and bindings what they lack.
async fn mend(store: &Store, client: &Client) -> Result<(), Error> {
    for (storage, key, path, default) in default_roles::entries().map(rbac) {
        for _ in 0..TRIES {
            let stored = store.get(storage, &key);
            let stored = stored.and_then(|stored| serde_json::from_slice::<Value>(&stored.json).ok());
            let Some(change) = stored.and_then(|stored| reconcile::change(&stored, &default)) else { break };
            let place = format!("{path}/{}", str_at(&default, "/metadata/name"));
            let media = "application/json";
            let done = match change {
                Change::Update(next) => client.bytes(Method::PUT, &place, media, next.to_string()).await,
                Change::Recreate => match client.bytes(Method::DELETE, &place, media, "").await {
                    Err(e) if !e.is_not_found() => Err(e),
                    _ => client.bytes(Method::POST, &path, media, default.to_string()).await,
                },
            };
            match done {
                // Another server was faster: what it left is looked at again.
                Err(e) if e.is_conflict() || e.is_already_exists() || e.is_not_found() => {}
                Err(e) => return Err(e),
                Ok(_) => {
                    tracing::info!(path = place, "default role or binding reconciled");
                    break;
                }
            }
        }
    }
    Ok(())
}

fn rbac(mut entry: Value) -> (&'static str, String, String, Value) {
    let (name, namespace) = (str_at(&entry, "/name").to_owned(), str_at(&entry, "/namespace").to_owned());
    let (kind, plural, storage) = match str_at(&entry, "/kind") {
        "clusterrole" => ("ClusterRole", "clusterroles", "clusterroles.rbac.authorization.k8s.io"),
        "clusterrolebinding" => {
            ("ClusterRoleBinding", "clusterrolebindings", "clusterrolebindings.rbac.authorization.k8s.io")
        }
        "role" => ("Role", "roles", "roles.rbac.authorization.k8s.io"),
        _ => ("RoleBinding", "rolebindings", "rolebindings.rbac.authorization.k8s.io"),
    };
    let mut metadata = json!({"name": name, "annotations": {AUTO_UPDATE: "true"}});
    if let Some(labels) = entry.get("labels") {
        metadata["labels"] = labels.clone();
    }
    let base = "/apis/rbac.authorization.k8s.io/v1";
    let (path, key) = if namespace.is_empty() {
        (format!("{base}/{plural}"), name)
    } else {
        (format!("{base}/namespaces/{namespace}/{plural}"), format!("{namespace}/{name}"))
    };
    if let Some(map) = entry.as_object_mut() {
        for field in ["name", "namespace", "labels"] {
            map.remove(field);
        }
        map.insert("apiVersion".into(), "rbac.authorization.k8s.io/v1".into());
        map.insert("kind".into(), kind.into());
        map.insert("metadata".into(), metadata);
    }
    (storage, key, path, entry)
}

/// Creates missing objects concurrently, so that they share flushes.
async fn make(
    store: &Store,
    client: &Client,
    objects: Vec<(&'static str, String, String, Value)>,
) -> Result<(), Error> {
    let missing = objects.into_iter().filter(|(storage, key, _, _)| store.get(storage, key).is_none());
    let writes = missing.map(|(_, _, path, object)| async move {
        match client.bytes(Method::POST, &path, "application/json", object.to_string()).await {
            Err(e) if !e.is_already_exists() => Err(e),
            _ => Ok(()),
        }
    });
    futures::future::try_join_all(writes).await.map(drop)
}
