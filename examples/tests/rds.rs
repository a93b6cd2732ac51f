//! Tests of `src/rds.rs`: virtual time, a thousand seeds of faults, the smallest role.

use std::time::Duration;

use k8s_controllers::{Conditions, Controller};
use k8s_core::api::api::{apps::v1::Deployment, core::v1::Secret};
use k8s_examples::rds::{Databases, RdsDatabase, controller};
use k8s_testing::{
    Faults, Lab,
    controllers::{deployment, garbage_collector, replica_set},
};

/// A thousand in optimized builds; `SEEDS=1000` sets the number in others.
const SEEDS: u64 = if cfg!(debug_assertions) { 12 } else { 1000 };
/// The garbage collector's discovery every half a minute is slow in unoptimized builds.
const DAY: Duration = if cfg!(debug_assertions) { Duration::from_hours(1) } else { Duration::from_hours(24) };

#[test]
fn an_order_database_comes_up_whatever_the_api_server_does() {
    let report = Lab::new()
        .crd::<RdsDatabase>()
        .controllers([deployment(), replica_set(), garbage_collector()])
        .nodes(3)
        .with(Controller::<RdsDatabase>::new().owns::<Deployment>(), || Databases)
        .seeds(0..SEEDS)
        .faults(Faults::all())
        .run(async |lab| {
            lab.apply(include_str!("orders.yaml")).await;
            lab.settle().await;
            assert!(lab.get::<RdsDatabase>("orders").await.condition("Ready"));
            lab.sleep(DAY).await;
            assert_eq!(lab.writes_since_settled(), 0, "{:?}", lab.written());
            insta::assert_yaml_snapshot!("needed_role", lab.needed_role());
        });
    println!("{} runs, {} faults", report.runs, report.faults);
}

#[test]
fn what_a_database_owns_comes_back_when_it_is_deleted() {
    Lab::new()
        .crd::<RdsDatabase>()
        .controllers([deployment(), replica_set()])
        .nodes(1)
        .with(controller(), || Databases)
        .seeds(0..20)
        .faults(Faults::all())
        .run(async |lab| {
            lab.apply(include_str!("orders.yaml")).await;
            lab.settle().await;
            lab.assert_never_stale();
            let password = lab.get::<Secret>("orders").await.data;
            lab.delete::<Deployment>("orders").await;
            lab.settle().await;
            assert!(lab.get::<Deployment>("orders").await.is_available());
            assert_eq!(lab.get::<Secret>("orders").await.data, password, "it is made once");
        });
}

#[test]
fn what_a_database_owns_goes_with_it() {
    Lab::new()
        .crd::<RdsDatabase>()
        .controllers([deployment(), replica_set(), garbage_collector()])
        .nodes(1)
        .with(controller(), || Databases)
        .run(async |lab| {
            lab.apply(include_str!("orders.yaml")).await;
            lab.settle().await;
            lab.delete::<RdsDatabase>("orders").await;
            lab.settle().await;
            assert!(lab.find::<Deployment>("orders").await.is_none());
            assert!(lab.find::<Secret>("orders").await.is_none());
        });
}
