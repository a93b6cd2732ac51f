//! Namespace deletion, and owner references across namespaces.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use http::{HeaderValue, Request, Response, header};
use k8s_builtin::{
    Options,
    conditions::{self, Condition},
};
use k8s_core::{
    api::{
        api::{
            apps::v1::Deployment,
            core::v1::{ConfigMap, Event, Namespace, PersistentVolume},
            rbac::v1::ClusterRole,
        },
        apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
        apimachinery::pkg::apis::meta::v1::OwnerReference,
    },
    client::{Body, BoxError, Client, DeleteOptions, ListParams, Resource, Transport},
    meta::{ObjectExt, owner_reference},
};
use k8s_testing::{
    Lab as VirtualLab, Running, What,
    controllers::{self, garbage_collector, replica_set},
};

use crate::{
    deployment,
    lab::{Lab, metadata},
    runs,
};

fn map(name: &str, namespace: &str) -> ConfigMap {
    let mut map = ConfigMap { metadata: metadata(name), ..ConfigMap::default() };
    map.metadata.namespace = Some(namespace.into());
    map
}

async fn namespace(lab: &Lab, name: &str) {
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.into());
    lab.create(&namespace).await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_says_what_keeps_it() {
    let lab = Lab::start(0, runs).await;
    namespace(&lab, "shop").await;
    let maps = lab.client.namespaced::<ConfigMap>("shop");
    let mut held = map("held", "shop");
    held.metadata.finalizers = Some(vec!["example.com/wait".into()]);
    maps.create(&held).await.unwrap();
    maps.create(&map("free", "shop")).await.unwrap();
    lab.delete::<Namespace>("shop", "Background").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let live: Namespace = lab.get("shop").await;
    let status = live.status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Terminating"));
    for (kind, value, reason, message) in [
        (
            "NamespaceDeletionDiscoveryFailure",
            "False",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            "False",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            "False",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            "True",
            "SomeResourcesRemain",
            "Some resources are remaining: configmaps. has 1 resource instances",
        ),
        (
            "NamespaceFinalizersRemaining",
            "True",
            "SomeFinalizersRemain",
            "Some content in the namespace has finalizers remaining: example.com/wait in 1 resource instances",
        ),
    ] {
        let found = conditions::find(status.conditions.as_ref(), kind).unwrap();
        assert_eq!(
            (found.status.as_str(), found.reason(), found.message()),
            (value, reason, message),
            "{kind}"
        );
    }
    let mut held = maps.get("held").await.unwrap();
    held.metadata.finalizers = None;
    maps.replace("held", &held).await.unwrap();
    lab.until("gone", async || lab.api::<Namespace>().get_opt("shop").await.unwrap().is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn owners_in_other_namespaces_are_none_and_the_user_is_told() {
    let lab = Lab::start(0, runs).await;
    namespace(&lab, "shop").await;
    let owner = lab.create(&map("owner", "default")).await;
    let of = |reference: OwnerReference| Some(vec![OwnerReference { controller: None, ..reference }]);
    let mut child = map("child", "shop");
    child.metadata.owner_references = of(owner_reference(&owner));
    lab.client.namespaced::<ConfigMap>("shop").create(&child).await.unwrap();
    // A cluster-scoped object with a namespaced owner: its namespace is undecidable.
    let mut role = ClusterRole::default();
    role.metadata.name = Some("kept".into());
    role.metadata.owner_references = of(owner_reference(&owner));
    lab.create(&role).await;
    role.metadata.name = Some("kept-too".into());
    role.metadata.owner_references.as_mut().unwrap()[0].uid = "unknown".into();
    lab.create(&role).await;
    // A cluster-scoped owner is valid for all objects.
    let mut volume = PersistentVolume::default();
    volume.metadata.name = Some("v".into());
    volume.spec = serde_json::from_value(serde_json::json!({
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"},
    }))
    .unwrap();
    let volume = lab.create(&volume).await;
    let mut fine = map("fine", "shop");
    fine.metadata.owner_references = of(owner_reference(&volume));
    lab.client.namespaced::<ConfigMap>("shop").create(&fine).await.unwrap();
    let exists =
        async |name: &str| lab.client.namespaced::<ConfigMap>("shop").get_opt(name).await.unwrap().is_some();
    lab.until("the child goes", async || !exists("child").await).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(exists("fine").await);
    for name in ["kept", "kept-too"] {
        lab.get::<ClusterRole>(name).await;
    }
    let events: Vec<Event> = lab.list_in("").await;
    for (kind, name, text) in [
        (
            "ConfigMap",
            "child",
            "name: owner, uid: ".to_owned() + owner.uid() + "] does not exist in namespace \"shop\"",
        ),
        ("ClusterRole", "kept", "does not exist in namespace \"\"".into()),
        ("ClusterRole", "kept-too", "[v1/ConfigMap, namespace: , name: owner, uid: unknown]".into()),
    ] {
        let found = events.iter().any(|e| {
            let about = &e.involved_object;
            about.kind.as_deref() == Some(kind)
                && about.name.as_deref() == Some(name)
                && e.reason.as_deref() == Some("OwnerRefInvalidNamespace")
                && e.message.as_deref().is_some_and(|m| m.contains(&text))
        });
        assert!(found, "nothing was said about {name}");
    }
    lab.delete::<PersistentVolume>("v", "Background").await;
    lab.until("goes with its owner", async || !exists("fine").await).await;
}

#[tokio::test(start_paused = true)]
async fn foreground_waits_for_those_that_block_only() {
    let lab = Lab::start(0, runs).await;
    let owner = lab.create(&map("owner", "default")).await;
    for (name, blocks) in [("blocks", true), ("does-not", false)] {
        let mut child = map(name, "default");
        let reference = OwnerReference {
            controller: None,
            block_owner_deletion: Some(blocks),
            ..owner_reference(&owner)
        };
        child.metadata.owner_references = Some(vec![reference]);
        child.metadata.finalizers = Some(vec!["example.com/wait".into()]);
        lab.create(&child).await;
    }
    lab.delete::<ConfigMap>("owner", "Foreground").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    for name in ["owner", "blocks", "does-not"] {
        assert!(lab.get::<ConfigMap>(name).await.is_deleting(), "{name}");
    }
    lab.edit("blocks", |m: &mut ConfigMap| m.metadata.finalizers = None).await;
    let exists = async |name: &str| lab.api::<ConfigMap>().get_opt(name).await.unwrap().is_some();
    lab.until("the owner goes", async || !exists("owner").await).await;
    assert!(exists("does-not").await);
}

#[tokio::test(start_paused = true)]
async fn dependents_outlive_a_change_of_their_owners_version() {
    let lab = Lab::start(0, runs).await;
    let version = |name: &str, storage: bool| serde_json::json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    let definition: CustomResourceDefinition = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [version("v1beta1", true)],
        },
    }))
    .unwrap();
    lab.create(&definition).await;
    let widgets = |version: &str| {
        let resource = Resource {
            group: "example.com".into(),
            version: version.into(),
            kind: "Widget".into(),
            plural: "widgets".into(),
            namespaced: true,
        };
        lab.client.dynamic(&resource, "default")
    };
    let old = widgets("v1beta1");
    lab.until("served", async || old.list(&ListParams::default()).await.is_ok()).await;
    let object =
        serde_json::json!({"apiVersion": "example.com/v1beta1", "kind": "Widget", "metadata": {"name": "w"}});
    let widget = old.create(&serde_json::from_value(object).unwrap()).await.unwrap();
    let mut child = map("child", "default");
    child.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "example.com/v1beta1".into(),
        kind: "Widget".into(),
        name: "w".into(),
        uid: widget.metadata.uid.clone().unwrap(),
        ..OwnerReference::default()
    }]);
    lab.create(&child).await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    lab.edit("widgets.example.com", |d: &mut CustomResourceDefinition| {
        d.spec.versions =
            serde_json::from_value(serde_json::json!([version("v1", true), version("v1beta1", false)]))
                .unwrap();
    })
    .await;
    tokio::time::sleep(Duration::from_secs(180)).await;
    let exists = async |name: &str| lab.api::<ConfigMap>().get_opt(name).await.unwrap().is_some();
    assert!(exists("child").await, "its owner is there");
    widgets("v1").delete("w", &DeleteOptions::background()).await.unwrap();
    lab.until("goes with its owner", async || !exists("child").await).await;
}

/// An API server without aggregated discovery. It does not answer the second request for `apps/v1`.
struct OldServer {
    upstream: Client,
    asked: Arc<AtomicUsize>,
}

impl Transport for OldServer {
    fn call(&self, mut request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let path = request.uri().path();
        if path == "/apis/apps/v1" && self.asked.fetch_add(1, Ordering::Relaxed) == 1 {
            return async { Err("no answer".into()) }.boxed();
        }
        if ["/api", "/apis"].contains(&path) {
            request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        }
        self.upstream.send(request).map_err(Into::into).boxed()
    }
}

#[test]
fn dependents_are_collected_after_a_lost_discovery_request() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let collector = move |life: k8s_testing::Life| {
        let mut environment = life.environment();
        let upstream = environment.client.clone();
        environment.client = Client::new(OldServer { upstream, asked: counter.clone() });
        (garbage_collector().start)(environment, Options::default())
    };
    VirtualLab::new().program("collector", collector).run(async |lab| {
        let owner = lab.create(&map("owner", "default")).await;
        let mut owned = deployment("owned", 1);
        owned.metadata.owner_references = Some(vec![owner_reference(&owner)]);
        lab.create(&owned).await;
        // Long enough for three discoveries.
        lab.sleep(Duration::from_secs(3600)).await;
        assert!(asked.load(Ordering::Relaxed) > 2, "the lost request was followed by others");
        lab.delete::<ConfigMap>("owner").await;
        lab.sleep(Duration::from_secs(60)).await;
        assert!(lab.find::<Deployment>("owned").await.is_none());
    });
}

/// Returns the number of requests for `/api`, `/apis` and versions below them.
fn discoveries(lab: &Running) -> usize {
    let trace = lab.trace();
    let discovers = |what: &What| {
        let What::Request { verb, path, .. } = what else { return false };
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        verb == "get" && matches!(parts[..], ["api" | "apis"] | ["api", _] | ["apis", _, _])
    };
    trace.entries().filter(|entry| discovers(&entry.what)).count()
}

#[test]
fn a_quiet_cluster_is_seldom_discovered() {
    let all = [controllers::deployment(), replica_set(), garbage_collector()];
    VirtualLab::new().controllers(all).nodes(1).whole_trace().run(async |lab| {
        lab.create(&deployment("web", 1)).await;
        lab.settle().await;
        let before = discoveries(&lab);
        lab.sleep(Duration::from_secs(3600)).await;
        let hour = discoveries(&lab) - before;
        println!("{before} discovery requests until the cluster settled, {hour} in the quiet hour after it");
        assert!(before > 0 && hour <= 16, "{before}, then {hour}");
    });
}
