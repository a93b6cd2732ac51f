//! Runs every example and checks its output.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]

use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hyperkube::{Cluster, Node};
use k8s_controllers::Conditions;
use k8s_core::{
    api::api::core::v1::Pod,
    client::{Client, Kubeconfig, Remote},
    meta::ObjectExt,
};
use k8s_examples::rds::{DatabaseSpec, Engine, RdsDatabase};

/// Most time of a program.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs a program and returns its output. It must end in time and with success.
fn output(program: &str, environment: &[(&str, &Path)]) -> String {
    let mut command = Command::new(program);
    command.envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the example is built with its tests");
    let pid = child.id();
    let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().expect("it is our child") {
            Some(status) => break Some(status),
            None if begun.elapsed() > LIMIT => {
                child.kill().expect("it is our child");
                child.wait().expect("it was killed");
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let (stdout, stderr) = (stdout.join().expect("a reader"), stderr.join().expect("a reader"));
    assert!(
        status.is_some_and(|status| status.success()),
        "{program} ({pid}): {status:?}, `None` is more than {LIMIT:?}\n{stdout}\n{stderr}"
    );
    stdout
}

fn read(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut stream) = stream {
            // Text up to an error is as good as none: the assertions print it.
            let _ = stream.read_to_string(&mut text);
        }
        text
    })
}

fn check(program: &str, wanted: &[&str]) {
    let said = output(program, &[]);
    for want in wanted {
        assert!(said.contains(want), "{program} did not say {want:?}:\n{said}");
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
            "orders is ready: Postgres with 20 GB",
            "secret with 2 entries",
            "orders is gone with all it owned",
        ],
    );
}

#[test]
fn third_party_resource() {
    check(env!("CARGO_BIN_EXE_third_party_resource"), &["orders is ready: Mysql"]);
}

#[test]
fn kube_controller() {
    check(env!("CARGO_BIN_EXE_kube_controller"), &["orders is ready, with 1 secret"]);
}

#[test]
fn scheduler_plugin() {
    let said = output(env!("CARGO_BIN_EXE_scheduler_plugin"), &[]);
    let placed: Vec<&str> = said.lines().collect();
    assert_eq!(placed.len(), 4, "{said}");
    assert!(placed.iter().all(|line| line.ends_with(" runs in rack-1")), "{said}");
}

#[test]
fn custom_runtime() {
    check(
        env!("CARGO_BIN_EXE_custom_runtime"),
        &["log of greeting: hello, world", "exec is not supported by this runtime", "counter is gone"],
    );
}

#[tokio::test]
async fn existing_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder()
        .data_dir(directory.path().join("data"))
        .memory()
        .node(Node::simulated(1))
        .listen("127.0.0.1:0".parse().unwrap())
        .start()
        .await
        .unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, cluster.kubeconfig().unwrap()).unwrap();
    let program = env!("CARGO_BIN_EXE_existing_cluster");
    let run = tokio::task::spawn_blocking(move || output(program, &[("KUBECONFIG", &kubeconfig)]));
    let said = run.await.unwrap();
    for want in ["ok: 2 replicas are available", "ok: 3 replicas", "ok: the namespace is gone"] {
        assert!(said.contains(want), "it did not say {want:?}:\n{said}");
    }
    cluster.down().await.unwrap();
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
    check(env!("CARGO_BIN_EXE_admission"), &["refused: ", "nobody's", "\"team\":\"shared\""]);
}
