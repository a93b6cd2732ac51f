//! The controller of [`rds`](crate::rds) written with kube-rs alone: nothing of this repository is imported.
//! It creates the same objects; read the two side by side.
//!
//! `kube_controller.rs` runs it on a cluster in the same process, `tests/kube_operator.rs` tests it with
//! `k8s-testing` in virtual time and under faults.

#![expect(clippy::disallowed_methods, reason = "kube-rs has no clock of its own")]

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Secret, Service},
    },
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{
    Api, Client, CustomResource, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{Controller, controller::Action, watcher},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Desired state of a database.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[kube(
    group = "stable.example.com",
    version = "v1",
    kind = "RdsDatabase",
    namespaced,
    status = "DatabaseStatus"
)]
#[kube(printcolumn = r#"{"name": "Engine", "type": "string", "jsonPath": ".spec.engine"}"#)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseSpec {
    /// The database engine.
    pub engine: Engine,
    /// Capacity in gigabytes. Default: 20.
    #[serde(default = "twenty")]
    pub storage_gb: u32,
}

/// Supported engines.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug)]
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

async fn reconcile(db: Arc<RdsDatabase>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let (name, namespace) = (db.name_any(), db.namespace().unwrap_or_default());
    let owned = json!({"name": name, "ownerReferences": [db.controller_owner_ref(&())]});
    let mine = PatchParams::apply("databases").force();

    let secrets: Api<Secret> = Api::namespaced((*client).clone(), &namespace);
    if secrets.get_opt(&name).await?.is_none() {
        let data = json!({"user": "admin", "password": format!("{:x}", rand())});
        let secret = serde_json::from_value(json!({"metadata": owned, "stringData": data}))
            .map_err(kube::Error::SerdeError)?;
        match secrets.create(&PostParams::default(), &secret).await {
            Err(kube::Error::Api(e)) if e.code == 409 => {}
            other => drop(other?),
        }
    }
    let labels = json!({"database": name});
    let image = match db.spec.engine {
        Engine::Postgres => "postgres:16",
        Engine::Mysql => "mysql:8",
    };
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": owned,
    "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "db", "image": image, "envFrom": [{"secretRef": {"name": name}}]}]},
    }}});
    let deployments: Api<Deployment> = Api::namespaced((*client).clone(), &namespace);
    let deployment = deployments.patch(&name, &mine, &Patch::Apply(deployment)).await?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": owned,
        "spec": {"selector": labels, "ports": [{"port": 5432}]}});
    let services: Api<Service> = Api::namespaced((*client).clone(), &namespace);
    services.patch(&name, &mine, &Patch::Apply(service)).await?;

    let available = deployment.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = available.into_iter().any(|c| c.type_ == "Available" && c.status == "True");
    let status = if ready { "True" } else { "False" };
    let before =
        db.status.iter().flat_map(|s| &s.conditions).find(|c| c.type_ == "Ready" && c.status == status);
    let condition = Condition {
        type_: "Ready".into(),
        status: status.into(),
        reason: "DeploymentAvailable".into(),
        message: String::new(),
        observed_generation: db.metadata.generation,
        // An unchanged condition keeps its time. Otherwise each reconcile would write, and each write trigger
        // a reconcile.
        last_transition_time: before
            .map_or_else(|| Time(k8s_openapi::jiff::Timestamp::now()), |c| c.last_transition_time.clone()),
    };
    let databases: Api<RdsDatabase> = Api::namespaced((*client).clone(), &namespace);
    let patch = json!({"status": {"conditions": [condition]}});
    databases.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(Action::await_change())
}

fn rand() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    u128::from(RandomState::new().hash_one(0)) << 64 | u128::from(RandomState::new().hash_one(1))
}

/// Runs the operator until its future is dropped.
pub async fn run(client: Client) {
    let again =
        |_: Arc<RdsDatabase>, _: &kube::Error, _: Arc<Client>| Action::requeue(Duration::from_secs(1));
    let any = watcher::Config::default;
    Controller::new(Api::<RdsDatabase>::all(client.clone()), any())
        .owns(Api::<Deployment>::all(client.clone()), any())
        .owns(Api::<Service>::all(client.clone()), any())
        .owns(Api::<Secret>::all(client.clone()), any())
        .run(reconcile, again, Arc::new(client))
        .for_each(|_| async {})
        .await;
}
