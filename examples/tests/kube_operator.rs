//! Tests of `src/kube_operator.rs`, a kube-rs operator, in a control plane inside the test: virtual time, and
//! faults from seeds.

use std::time::Duration;

use k8s_core::api::api::{apps::v1::Deployment, core::v1::Secret};
use k8s_examples::kube_operator::{self, RdsDatabase};
use k8s_testing::{
    Faults, Lab, Life, Running,
    controllers::{deployment, garbage_collector, replica_set},
};
use kube::{Api, Client, CustomResourceExt};

/// The operator connects to the lab as to any cluster, but without a socket.
fn lab() -> Lab {
    let definition = serde_json::to_string(&RdsDatabase::crd()).expect("a definition is JSON");
    Lab::new()
        .manifests(&definition)
        .controllers([deployment(), replica_set(), garbage_collector()])
        .nodes(1)
        .program("databases", |life: Life| kube_operator::run(Client::new(life.service(), "default")))
}

async fn orders(lab: &Running) -> RdsDatabase {
    let databases: Api<RdsDatabase> = Api::default_namespaced(Client::new(lab.service(), "default"));
    databases.get("orders").await.expect("the database was applied")
}

fn is_ready(db: &RdsDatabase) -> bool {
    let conditions = db.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

#[test]
fn a_database_becomes_ready_whatever_the_api_server_does() {
    let report = lab().seeds(0..12).faults(Faults::all()).run(async |lab| {
        lab.apply(include_str!("orders.yaml")).await;
        lab.settle().await;
        assert!(is_ready(&orders(&lab).await));
        lab.assert_quiet_for(Duration::from_hours(1)).await;
    });
    assert!(report.faults > 10, "{} faults", report.faults);
}

#[test]
fn a_deleted_deployment_comes_back_and_the_password_stays() {
    lab().run(async |lab| {
        lab.apply(include_str!("orders.yaml")).await;
        lab.settle().await;
        let password = lab.get::<Secret>("orders").await.data;
        lab.delete::<Deployment>("orders").await;
        lab.settle().await;
        assert!(is_ready(&orders(&lab).await));
        assert_eq!(lab.get::<Secret>("orders").await.data, password);
    });
}
