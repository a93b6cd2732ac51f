//! Tests of the generated type.

use k8s_core::{
    Resource,
    api::Resource as _,
    custom::{CustomResource, Problems},
    meta::{Object, ObjectExt},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(rename_all = "lowercase")]
enum Engine {
    Postgres,
    Mysql,
}

fn twenty() -> u32 {
    20
}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[resource(group = "stable.example.com", version = "v1", kind = "RdsDatabase", namespaced, status = DatabaseStatus)]
#[resource(
    column(name = "Engine", path = ".spec.engine"),
    rule("self.storageGb >= 10", "too small to be useful")
)]
#[serde(rename_all = "camelCase")]
struct DatabaseSpec {
    engine: Engine,
    #[serde(default = "twenty")]
    storage_gb: u32,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
struct DatabaseStatus {
    ready: bool,
}

fn at_least_one(quota: &mut Quota) {
    quota.spec.count = quota.spec.count.max(1);
}

fn no_less(quota: &Quota, old: Option<&Quota>, problems: &mut Problems) {
    if old.is_some_and(|old| old.spec.count > quota.spec.count) {
        problems.add("spec.count", "may not shrink");
    }
}

fn rename(_: &str, object: &mut Value) {
    object["spec"]["number"] = object["spec"]["count"].take();
}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[resource(group = "example.com", version = "v2", kind = "Quota", plural = "quotas", singular = "quota")]
#[resource(
    short_names("qt"),
    categories("all"),
    versions("v1"),
    object_rule("has(self.metadata.name)", "named")
)]
#[resource(
    column(name = "Count", path = ".spec.count", type = "integer", wide),
    scale(spec = ".spec.count", status = ".spec.count")
)]
#[resource(default = at_least_one, validate = no_less, to_version = rename)]
struct QuotaSpec {
    count: i32,
}

fn is_object<K: Object>() -> &'static str {
    K::PLURAL
}

#[test]
fn a_whole_object_is_made() {
    let manifest = json!({"apiVersion": "stable.example.com/v1", "kind": "RdsDatabase", "metadata": {"name": "orders"},
        "spec": {"engine": "postgres"}, "status": {"ready": true}});
    let orders: RdsDatabase = serde_json::from_value(manifest).unwrap();
    assert_eq!(
        (orders.name(), orders.spec.storage_gb, is_object::<RdsDatabase>()),
        ("orders", 20, "rdsdatabases")
    );
    let back = serde_json::to_value(&orders).unwrap();
    assert_eq!(
        (&back["kind"], &back["spec"]["storageGb"], &back["status"]["ready"]),
        (&json!("RdsDatabase"), &json!(20), &json!(true))
    );
    assert_eq!(RdsDatabase::API_VERSION, "stable.example.com/v1");
    let new = RdsDatabase::new("x", DatabaseSpec { engine: Engine::Mysql, storage_gb: 10 });
    assert!(new.status.is_none() && serde_json::to_value(&new).unwrap().get("status").is_none());
}

#[test]
fn its_definition_has_what_was_said() {
    let definition = RdsDatabase::definition();
    let version = &definition["spec"]["versions"][0];
    let spec = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
    assert_eq!(spec["x-kubernetes-validations"][0]["rule"], "self.storageGb >= 10");
    assert_eq!(spec["properties"]["engine"]["enum"], json!(["postgres", "mysql"]));
    assert_eq!(spec["properties"]["storageGb"]["default"], 20);
    assert_eq!(version["additionalPrinterColumns"][0]["jsonPath"], ".spec.engine");
    assert_eq!(
        (&definition["spec"]["scope"], &version["subresources"]),
        (&json!("Namespaced"), &json!({"status": {}}))
    );

    let definition = Quota::definition();
    let names = &definition["spec"]["names"];
    assert_eq!(
        (&names["shortNames"], &names["singular"], &definition["spec"]["scope"]),
        (&json!(["qt"]), &json!("quota"), &json!("Cluster"))
    );
    assert_eq!(definition["spec"]["versions"][1]["name"], "v1");
    let version = &definition["spec"]["versions"][0];
    assert_eq!(
        (
            &version["additionalPrinterColumns"][0]["type"],
            &version["additionalPrinterColumns"][0]["priority"]
        ),
        (&json!("integer"), &json!(1))
    );
    assert_eq!(version["subresources"]["scale"]["specReplicasPath"], ".spec.count");
}

#[test]
fn its_methods_are_the_functions() {
    let mut quota = Quota::new("q", QuotaSpec { count: 0 });
    CustomResource::default(&mut quota);
    assert_eq!(quota.spec.count, 1);
    let old = Quota::new("q", QuotaSpec { count: 5 });
    let mut problems = Problems::default();
    quota.validate(Some(&old), &mut problems);
    assert_eq!(problems.iter().next(), Some(("spec.count", "may not shrink")));
    let mut value = serde_json::to_value(&old).unwrap();
    Quota::to_version("v1", &mut value);
    assert_eq!(value["spec"]["number"], 5);
}
