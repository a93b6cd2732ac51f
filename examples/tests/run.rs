//! Runs every example and checks its output.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use k8s_controllers::Conditions;
use k8s_core::{
    api::api::core::v1::Pod,
    client::{Client, Kubeconfig, Remote},
    meta::ObjectExt,
};
use k8s_examples::rds::{DatabaseSpec, Engine, RdsDatabase};

fn check(program: &str, wanted: &[&str]) {
    let out = Command::new(program).output().expect("the example is built with its tests");
    let (said, err) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program}: {}\n{said}\n{err}", out.status);
    for want in wanted {
        assert!(said.contains(want), "{program} did not say {want:?}:\n{said}\n{err}");
    }
}

#[test]
fn embed_cluster() {
    check(env!("CARGO_BIN_EXE_embed_cluster"), &["web-", " Running"]);
}

#[test]
fn custom_controller() {
    check(
        env!("CARGO_BIN_EXE_custom_controller"),
        &[
            "CustomResourceDefinition: orders is ready: Postgres with 20 GB",
            "CustomResourceDefinition: gone with all it owned",
            "ThirdPartyResource: orders is ready",
            "secret with 2 entries",
            "ThirdPartyResource: gone with all it owned",
        ],
    );
}

#[test]
fn kube_controller() {
    check(env!("CARGO_BIN_EXE_kube_controller"), &["orders is ready, with 1 secret"]);
}

#[tokio::test]
async fn distribution() {
    let directory = tempfile::tempdir().unwrap();
    let (data, home) = (directory.path().join("data"), directory.path().join("home"));
    let kept = data.clone();
    let mut running = Command::new(env!("CARGO_BIN_EXE_distribution"))
        .args(["up", "--simulated-nodes", "1", "--bind-address", "127.0.0.1", "--https-listen-port", "0"])
        .arg("--data-dir")
        .arg(&data)
        .env("HOME", &home)
        .env_remove("KUBECONFIG")
        .stdout(Stdio::null())
        .spawn()
        .expect("the example is built with its tests");
    let ready = async move {
        let begun = Instant::now();
        let wait = async |what: &str| {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        while !data.join("kubeconfig").exists() {
            wait("no kubeconfig").await;
        }
        let config = Kubeconfig::read(&data.join("kubeconfig")).unwrap().remote(None).unwrap();
        let client = Client::new(Remote::new(&config).unwrap());
        let databases = client.namespaced::<RdsDatabase>("default");
        let orders = RdsDatabase::new("orders", DatabaseSpec { engine: Engine::Mysql, storage_gb: 20 });
        // Pods are admitted once the service account exists.
        databases.create(&orders).await.unwrap();
        while !databases.get("orders").await.unwrap().condition("Ready") {
            wait("orders is not ready").await;
        }
        let pods = client.namespaced::<Pod>("default").list(&Default::default()).await.unwrap();
        assert_eq!(pods[0].label("team"), Some("shop"));
    };
    let result = tokio::spawn(ready).await;
    running.kill().unwrap();
    running.wait().unwrap();
    // Volumes of running pods stay mounted when a cluster's process ends.
    let reset =
        Command::new(env!("CARGO_BIN_EXE_distribution")).args(["reset", "--data-dir"]).arg(kept).status();
    result.unwrap();
    assert!(reset.unwrap().success());
}

#[test]
fn admission() {
    check(env!("CARGO_BIN_EXE_admission"), &["refused: ", "nobody's", "\"team\":"]);
}
