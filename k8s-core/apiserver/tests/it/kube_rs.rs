//! An unmodified kube-rs client on the in-process service: all of its operations.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use k8s_apiserver::{ApiServer, User};
use k8s_core::{
    api::{
        Metadata, NamespaceResourceScope, Resource as _,
        api::{apps::v1::Deployment, core::v1::ConfigMap},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    custom::{CustomResource as _, PrinterColumn, Problems, Rule},
};
use k8s_store::Store;
use kube::{
    Api, Client, CustomResource, CustomResourceExt, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    core::GroupVersionKind,
    discovery::Discovery,
    runtime::watcher,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

async fn client() -> Client {
    let server = crate::support::server().await;
    Client::new(server.service_as(User::admin()), "default")
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": "v"}})).unwrap()
}

#[tokio::test]
async fn objects_from_create_to_delete() {
    let maps: Api<ConfigMap> = Api::default_namespaced(client().await);
    let made = maps.create(&PostParams::default(), &map("a")).await.unwrap();
    assert!(made.uid().is_some());
    let mut changed = maps.get("a").await.unwrap();
    changed.data = Some(BTreeMap::from([("k".into(), "w".into())]));
    maps.replace("a", &PostParams::default(), &changed).await.unwrap();
    let stale = maps.replace("a", &PostParams::default(), &changed).await.unwrap_err();
    assert!(matches!(stale, kube::Error::Api(e) if e.is_conflict()));
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"more": "1"}});
    let applied = maps.patch("a", &PatchParams::apply("mine"), &Patch::Apply(applied)).await.unwrap();
    assert_eq!(applied.data.unwrap().len(), 2);
    let taken = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "x"}});
    let conflict = maps.patch("a", &PatchParams::apply("mine"), &Patch::Apply(&taken)).await.unwrap_err();
    assert!(matches!(conflict, kube::Error::Api(e) if e.is_conflict()));
    maps.patch("a", &PatchParams::apply("mine").force(), &Patch::Apply(&taken)).await.unwrap();
    maps.create(&PostParams::default(), &map("b")).await.unwrap();
    let page = maps.list(&ListParams::default().limit(1)).await.unwrap();
    assert_eq!((page.items.len(), page.metadata.remaining_item_count), (1, Some(1)));
    let next = page.metadata.continue_.unwrap();
    let page = maps.list(&ListParams::default().limit(1).continue_token(&next)).await.unwrap();
    assert_eq!(page.items[0].name_any(), "b");
    assert_eq!(maps.list_metadata(&ListParams::default()).await.unwrap().items.len(), 2);
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(maps.get_opt("a").await.unwrap().is_none());
    maps.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    assert!(maps.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn watches_and_the_watcher() {
    let client = client().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    maps.create(&PostParams::default(), &map("a")).await.unwrap();
    let mut events = maps.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    assert!(matches!(events.try_next().await.unwrap(), Some(WatchEvent::Added(m)) if m.name_any() == "a"));
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(matches!(events.try_next().await.unwrap(), Some(WatchEvent::Deleted(m)) if m.name_any() == "a"));
    maps.create(&PostParams::default(), &map("b")).await.unwrap();
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut seen = watcher::watcher(maps.clone(), config).boxed();
        assert!(matches!(seen.try_next().await.unwrap(), Some(watcher::Event::Init)));
        assert!(
            matches!(seen.try_next().await.unwrap(), Some(watcher::Event::InitApply(m)) if m.name_any() == "b")
        );
        assert!(matches!(seen.try_next().await.unwrap(), Some(watcher::Event::InitDone)));
        maps.create(&PostParams::default(), &map("c")).await.unwrap();
        assert!(
            matches!(seen.try_next().await.unwrap(), Some(watcher::Event::Apply(m)) if m.name_any() == "c")
        );
        maps.delete("c", &DeleteParams::default()).await.unwrap();
        assert!(
            matches!(seen.try_next().await.unwrap(), Some(watcher::Event::Delete(m)) if m.name_any() == "c")
        );
    }
}

#[tokio::test]
async fn subresources_and_what_is_known_only_at_run_time() {
    let client = client().await;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let web = json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    deployments.create(&PostParams::default(), &serde_json::from_value(web).unwrap()).await.unwrap();
    let scale = json!({"spec": {"replicas": 3}});
    deployments.patch_scale("web", &PatchParams::default(), &Patch::Merge(scale)).await.unwrap();
    assert_eq!(deployments.get_scale("web").await.unwrap().spec.unwrap().replicas, Some(3));
    let status = json!({"status": {"replicas": 2}});
    let shown =
        deployments.patch_status("web", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    assert_eq!((shown.spec.unwrap().replicas, shown.status.unwrap().replicas), (Some(3), Some(2)));
    for discovery in [
        Discovery::new(client.clone()).run().await.unwrap(),
        Discovery::new(client.clone()).run_aggregated().await.unwrap(),
    ] {
        let kind = GroupVersionKind::gvk("apps", "v1", "Deployment");
        let (resource, capabilities) = discovery.resolve_gvk(&kind).unwrap();
        assert_eq!(resource.plural, "deployments");
        assert!(capabilities.supports_operation(kube::discovery::verbs::WATCH));
        let dynamic: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);
        assert_eq!(dynamic.get("web").await.unwrap().data["spec"]["replicas"], 3);
    }
    assert_eq!(client.apiserver_version().await.unwrap().major, "1");
}

#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(group = "example.com", version = "v1", kind = "Shop", namespaced, status = "ShopStatus")]
#[kube(crates(k8s_openapi = "k8s_core::api"))]
#[kube(
    shortname = "shp",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.open")
)]
struct ShopSpec {
    replicas: i32,
    #[serde(default)]
    open: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
struct ShopStatus {
    open: i32,
}

#[tokio::test]
async fn custom_resources_by_kubes_derive() {
    let client = client().await;
    let definitions = Api::all(client.clone());
    definitions.create(&PostParams::default(), &Shop::crd()).await.unwrap();
    let shops: Api<Shop> = Api::default_namespaced(client);
    let made = shops
        .create(&PostParams::default(), &Shop::new("corner", ShopSpec { replicas: 1, open: true }))
        .await;
    assert!(made.unwrap().spec.open);
    let status = json!({"status": {"open": 1}});
    let shown = shops.patch_status("corner", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    assert_eq!(shown.status.unwrap().open, 1);
    let scale = json!({"spec": {"replicas": 4}});
    shops.patch_scale("corner", &PatchParams::default(), &Patch::Merge(scale)).await.unwrap();
    assert_eq!(shops.get("corner").await.unwrap().spec.replicas, 4);
    let wrong = json!({"spec": {"replicas": "many"}});
    let refused = shops.patch("corner", &PatchParams::default(), &Patch::Merge(wrong)).await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(e) if e.code == 422));
}

/// A resource that is served from its Rust type alone.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Database {
    metadata: ObjectMeta,
    spec: DatabaseSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<DatabaseStatus>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct DatabaseSpec {
    engine: String,
    storage_gb: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct DatabaseStatus {
    ready: bool,
}

impl k8s_core::api::Resource for Database {
    const API_VERSION: &'static str = "stable.example.com/v2";
    const GROUP: &'static str = "stable.example.com";
    const KIND: &'static str = "Database";
    const VERSION: &'static str = "v2";
    const URL_PATH_SEGMENT: &'static str = "databases";
    type Scope = NamespaceResourceScope;
}

impl Metadata for Database {
    type Ty = ObjectMeta;
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl k8s_core::custom::CustomResource for Database {
    const NAMESPACED: bool = true;
    const COLUMNS: &'static [PrinterColumn] = &[PrinterColumn::new("Engine", "string", ".spec.engine")];
    const RULES: &'static [Rule] = &[Rule::new("self.spec.storageGb >= 10", "too small to be useful")];
    const OTHER_VERSIONS: &'static [&'static str] = &["v1"];

    fn default(&mut self) {
        self.spec.storage_gb.get_or_insert(20);
    }

    fn validate(&self, old: Option<&Self>, problems: &mut Problems) {
        if !["postgres", "mysql"].contains(&self.spec.engine.as_str()) {
            problems.add("spec.engine", "must be postgres or mysql");
        }
        if old.is_some_and(|old| old.spec.engine != self.spec.engine) {
            problems.add("spec.engine", "may not change");
        }
    }

    fn validate_status(&self, _: &Self, problems: &mut Problems) {
        if self.status.as_ref().is_some_and(|s| s.ready) && self.spec.engine == "mysql" {
            problems.add("status.ready", "mysql is never ready");
        }
    }

    // v1 had the size as a string at the top level.
    fn from_version(_: &str, object: &mut serde_json::Value) {
        if let Some(size) = object["spec"].as_object_mut().and_then(|spec| spec.remove("engineAndSize")) {
            let (engine, size) = size.as_str().unwrap_or_default().split_once('/').unwrap_or_default();
            object["spec"]["engine"] = engine.into();
            object["spec"]["storageGb"] = size.parse::<u32>().unwrap_or(0).into();
        }
    }
    fn to_version(_: &str, object: &mut serde_json::Value) {
        let spec = &mut object["spec"];
        *spec = json!({"engineAndSize": format!("{}/{}", spec["engine"].as_str().unwrap_or_default(), spec["storageGb"])});
    }
}

#[tokio::test]
async fn a_type_is_a_resource() {
    let server = ApiServer::builder(Store::memory()).resource::<Database>().build().await.unwrap();
    let client = Client::new(server.service_as(User::admin()), "default");
    let databases: Api<Database> = Api::default_namespaced(client.clone());
    let database = |name: &str, engine: &str, size: Option<u32>| Database {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        spec: DatabaseSpec { engine: engine.into(), storage_gb: size },
        status: None,
    };
    let post = PostParams::default();
    let made = databases.create(&post, &database("orders", "postgres", None)).await.unwrap();
    assert_eq!(made.spec.storage_gb, Some(20));
    for (bad, want) in [
        (database("x", "oracle", None), "must be postgres or mysql"),
        (database("x", "mysql", Some(1)), "too small to be useful"),
    ] {
        let refused = databases.create(&post, &bad).await.unwrap_err().to_string();
        assert!(refused.contains(want), "{refused}");
    }
    let change = Patch::Merge(json!({"spec": {"engine": "mysql"}}));
    let refused = databases.patch("orders", &PatchParams::default(), &change).await.unwrap_err();
    assert!(refused.to_string().contains("may not change"));
    databases.create(&post, &database("old", "mysql", None)).await.unwrap();
    let ready = Patch::Merge(json!({"status": {"ready": true}}));
    databases.patch_status("orders", &PatchParams::default(), &ready).await.unwrap();
    let refused = databases.patch_status("old", &PatchParams::default(), &ready).await.unwrap_err();
    assert!(refused.to_string().contains("mysql is never ready"));
    assert_eq!(Database::definition()["spec"]["versions"][0]["name"], Database::VERSION);
}
