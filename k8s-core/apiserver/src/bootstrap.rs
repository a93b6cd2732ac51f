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
    resources::{
        Registry,
        flow_defaults::{LEVELS, SCHEMAS, flow_defaults},
    },
    value::str_at,
};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes the objects that are missing in a store, through a client of its server.
///
/// Objects of versions that are not served are left out.
pub(crate) async fn run(store: &Store, registry: &Registry, client: &Client) -> Result<(), Error> {
    let served = |storage: &str| registry.all().any(|r| *r.storage == *storage && r.is_storage_version());
    let namespaces = NAMESPACES.map(|name| {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ("namespaces", name.to_owned(), "/api/v1/namespaces".to_owned(), object)
    });
    make(store, client, namespaces.into_iter().filter(|made| served(made.0)).collect()).await?;
    let added = || {
        let on = WHERE_SERVED.iter().filter(|(kind, ..)| served(kind));
        on.flat_map(|(_, name, account, rules)| with_binding(name, account, &rules()))
    };
    let roles = || default_roles::entries().chain(added());
    let mut rest: Vec<(&str, String, String, Value)> = roles().map(rbac).collect();
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
    rest.retain(|made| served(made.0));
    make(store, client, rest).await?;
    // Levels first, so that a schema finds its own.
    for resource in [LEVELS, SCHEMAS].into_iter().filter(|resource| served(resource)) {
        let defaults = flow_defaults().filter(|default| default.resource == resource);
        let objects =
            defaults.map(|d| (d.resource, d.name.clone(), flow::path(d.resource), d.object.clone()));
        make(store, client, objects.collect()).await?;
    }
    if served(SCHEMAS) {
        keep_flow(store, client).await?;
    }
    mend(store, client, roles().map(rbac).filter(|made| served(made.0))).await
}

/// A default role that upstream has only where its kind is served: kind in the store, role, account of
/// kube-system (empty: all service accounts), and the rules.
type WhereServed = (&'static str, &'static str, &'static str, fn() -> Value);

const WHERE_SERVED: [WhereServed; 3] = [
    (BUNDLES, "system:cluster-trust-bundle-discovery", "", || {
        json!([rule("clustertrustbundles", &["get", "list", "watch"])])
    }),
    (
        BUNDLES,
        "system:controller:kube-apiserver-serving-clustertrustbundle-publisher",
        "kube-apiserver-serving-clustertrustbundle-publisher",
        || {
            let mut attest = rule("signers", &["attest"]);
            attest["resourceNames"] = json!(["kubernetes.io/kube-apiserver-serving"]);
            let events = json!({"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]});
            json!([
                attest,
                rule("clustertrustbundles", &["create", "delete", "list", "update", "watch"]),
                events
            ])
        },
    ),
    (
        "podcertificaterequests.certificates.k8s.io",
        "system:controller:podcertificaterequestcleaner",
        "podcertificaterequestcleaner",
        || json!([rule("podcertificaterequests", &["delete", "get", "list", "watch"])]),
    ),
];
const BUNDLES: &str = "clustertrustbundles.certificates.k8s.io";

fn rule(resource: &str, verbs: &[&str]) -> Value {
    json!({"apiGroups": ["certificates.k8s.io"], "resources": [resource], "verbs": verbs})
}

/// Returns a role of [`WHERE_SERVED`] and its binding.
fn with_binding(name: &str, account: &str, rules: &Value) -> [Value; 2] {
    let group = "rbac.authorization.k8s.io";
    let labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    let subject = match account {
        "" => json!({"apiGroup": group, "kind": "Group", "name": "system:serviceaccounts"}),
        account => json!({"kind": "ServiceAccount", "name": account, "namespace": "kube-system"}),
    };
    [
        json!({"kind": "clusterrole", "name": name, "labels": labels, "rules": rules}),
        json!({"kind": "clusterrolebinding", "name": name, "labels": labels, "subjects": [subject],
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name}}),
    ]
}

/// Number of attempts to change an object that other servers change, too.
const TRIES: usize = 5;

/// Gives existing default roles and bindings what they lack.
async fn mend(
    store: &Store,
    client: &Client,
    defaults: impl Iterator<Item = (&'static str, String, String, Value)>,
) -> Result<(), Error> {
    for (storage, key, path, default) in defaults {
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
