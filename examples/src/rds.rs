//! A custom resource and its controller: an `RdsDatabase` gets a Secret, a Deployment, a Service, and a
//! `Ready` condition.
//!
//! `custom_controller.rs` runs it; `tests/rds.rs` tests it in virtual time and under faults.

use k8s_controllers::prelude::*;
use k8s_core::{
    Resource,
    api::{
        api::{
            apps::v1::Deployment,
            core::v1::{Secret, Service},
        },
        apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
    },
    random,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Desired state of a database.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[resource(group = "stable.example.com", version = "v1", kind = "RdsDatabase", namespaced, status = DatabaseStatus)]
#[resource(
    column(name = "Engine", path = ".spec.engine"),
    rule("self.storageGb >= 10", "too small to be useful")
)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseSpec {
    /// The database engine.
    pub engine: Engine,
    /// Capacity in gigabytes. Default: 20.
    #[serde(default = "twenty")]
    pub storage_gb: u32,
}

/// Supported engines.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// PostgreSQL.
    Postgres,
    /// MySQL.
    Mysql,
}

/// Observed state of a database.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default)]
pub struct DatabaseStatus {
    /// Conditions; `Ready`: the database accepts connections.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

fn twenty() -> u32 {
    20
}

/// Parses an object of a built-in type, written as in a manifest.
fn object<T: DeserializeOwned>(manifest: Value) -> T {
    serde_json::from_value(manifest).expect("the manifests below have the shape of their types")
}

fn credentials(db: &RdsDatabase) -> Secret {
    let metadata = ObjectMeta { name: Some(db.name().to_owned()), ..ObjectMeta::default() };
    let password = random::uuid().to_string();
    let string_data = [("user".to_owned(), "admin".to_owned()), ("password".to_owned(), password)];
    Secret { metadata, string_data: Some(string_data.into()), ..Secret::default() }
}

fn deployment(db: &RdsDatabase, secret: &Secret) -> Deployment {
    let (name, labels) = (db.name(), json!({"database": db.name()}));
    let image = match db.spec.engine {
        Engine::Postgres => "postgres:16",
        Engine::Mysql => "mysql:8",
    };
    object(json!({
        "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "db", "image": image, "envFrom": [{"secretRef": {"name": secret.name()}}]}]},
        }},
    }))
}

fn service(db: &RdsDatabase) -> Service {
    let name = db.name();
    object(
        json!({"metadata": {"name": name}, "spec": {"selector": {"database": name}, "ports": [{"port": 5432}]}}),
    )
}

/// The reconciler.
#[derive(Clone, Debug)]
pub struct Databases;

impl Reconcile for Databases {
    type Kind = RdsDatabase;

    async fn reconcile(&self, cx: &Context, db: Arc<RdsDatabase>) -> Result<Action, Error> {
        let secret = cx.get_or_create(&db, || credentials(&db)).await?; // owned by db, so garbage collected with it
        cx.apply(&db, &deployment(&db, &secret)).await?;
        cx.apply(&db, &service(&db)).await?;
        let ready = cx.cached::<Deployment>(db.name()).is_some_and(|d| d.is_available());
        cx.status(&db, |s| s.set_condition("Ready", ready, "DeploymentAvailable")).await?;
        Ok(Action::await_change())
    }
}

/// Builds the controller with its watches.
#[must_use]
pub fn controller() -> Controller<RdsDatabase> {
    Controller::<RdsDatabase>::new().owns::<Deployment>().owns::<Service>().owns::<Secret>()
}
