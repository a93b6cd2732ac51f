//! Custom distributions: this test program, started again, is one of them.

use std::{fs, process::ExitCode, sync::Arc, time::Duration};

use hyperkube::distribution;
use k8s_apiserver::{
    User,
    admission::Request,
    stages::{Authenticate, Credentials},
};
use k8s_controllers::prelude::*;
use k8s_core::{
    Resource,
    api::{
        api::core::v1::{ConfigMap, Pod},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    status::ApiStatus,
};
use k8s_runtime::simulated::Simulated;
use k8s_scheduler::{Cycle, Filter, NodeInfo, Plugin, PodInfo, Points, Reject};
use libtest_mimic::Failed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Outcome,
    harness::{Cluster, HYPERKUBE, Process, Said, run, until},
};

pub const TESTS: &[crate::Test] = &[
    ("two_distributions_live_side_by_side", side_by_side),
    ("a_distributions_components_have_its_extensions", components),
    ("a_service_of_the_programs_name_changes_no_setting", service_links),
];

/// Variable that makes this program a distribution of that name.
pub const NAME: &str = "E2E_DISTRIBUTION";

/// A toy, for which its controller makes a ConfigMap.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[resource(group = "shop.example.com", version = "v1", kind = "Toy", namespaced)]
pub struct ToySpec {
    /// Its colour.
    pub colour: String,
}

#[derive(Clone)]
struct Toys;

impl Reconcile for Toys {
    type Kind = Toy;

    async fn reconcile(&self, cx: &Context, toy: Arc<Toy>) -> Result<Action, Error> {
        let metadata = ObjectMeta { name: toy.metadata.name.clone(), ..ObjectMeta::default() };
        let data = Some([("colour".to_owned(), toy.spec.colour.clone())].into());
        cx.apply(&toy, &ConfigMap { metadata, data, ..ConfigMap::default() }).await?;
        Ok(Action::await_change())
    }
}

/// Rejects pods with the annotation `fragile` on every node.
struct Fragile;

impl Filter for Fragile {
    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, _: &NodeInfo) -> Result<(), Reject> {
        match pod.annotation("fragile") {
            Some(_) => Err(Reject::never("too fragile for any node")),
            None => Ok(()),
        }
    }
}

impl Plugin for Fragile {
    fn points(self) -> Points {
        Points::of(self).filters().points()
    }
}

/// Knows the token of a shopper.
struct Shopper;

#[async_trait::async_trait]
impl Authenticate for Shopper {
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, ApiStatus> {
        Ok(credentials
            .bearer_token()
            .filter(|t| *t == "of-a-shopper")
            .map(|_| User::new("shopper", &["shop"])))
    }
}

/// The distribution's `main`.
pub fn main(name: &'static str) -> ExitCode {
    distribution(name)
        .resource::<Toy>()
        .controller(Controller::<Toy>::new().owns::<ConfigMap>(), Toys)
        .admit(|r: &mut Request<Pod>| r.object.set_label("team", r.user.group_or("shop")))
        .scheduler_plugin(Fragile)
        .authenticator(Shopper)
        .runtime(Simulated::default())
        .main()
}

/// Runs a program of `cluster`'s network namespace: this one as shopkube.
fn shopkube(cluster: &Cluster, arguments: &[&str]) -> Result<std::process::Command, Failed> {
    let program = std::env::current_exe()?;
    let mut command = cluster.net.command(&program.to_string_lossy());
    command.args(arguments).env(NAME, "shopkube").env("HOME", cluster.dir.path()).env_remove("KUBECONFIG");
    Ok(command)
}

fn finish(mut command: std::process::Command) -> Result<Said, Failed> {
    run(&mut command, "", Duration::from_secs(30))
}

fn nodes(cluster: &Cluster, context: &str) -> Result<Said, Failed> {
    cluster.kubectl(&["--context", context, "get", "nodes", "-o", "name"])
}

/// Two names, two ports, two directories, two contexts in one kubeconfig; removing one leaves the other.
fn side_by_side() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    let shop_data = cluster.dir.path().join("shop").to_string_lossy().into_owned();
    let own_data = cluster.data.to_string_lossy().into_owned();
    // One is configured by a file and a variable, the other by flags.
    let settings = cluster.dir.path().join("shop.yaml");
    fs::write(&settings, "https-listen-port: 7443\nsimulated-nodes: 1\nnode-name: shelf\n")?;
    let settings = settings.to_string_lossy().into_owned();
    let mut up = shopkube(&cluster, &["up", "--config", &settings])?;
    up.env("SHOPKUBE_DATA_DIR", &shop_data).env("HYPERKUBE_DATA_DIR", "/nowhere");
    let shop = Process::start(&mut up, cluster.dir.path().join("shop.log"))?;
    cluster.processes.push(shop);
    let mut up =
        cluster.hyperkube(&["up", "--simulated-nodes", "1", "--node-name", "desk", "--data-dir", &own_data]);
    let own = Process::start(&mut up, cluster.dir.path().join("up.log"))?;
    cluster.processes.push(own);
    cluster.kubeconfig = cluster.dir.path().join(".kube/config");
    for (context, node) in [("shopkube", "node/shelf"), ("hyperkube", "node/desk")] {
        until(&format!("{context} has its node"), Duration::from_secs(60), || {
            let said = nodes(&cluster, context).map_err(|e| e.message().unwrap_or_default().to_owned())?;
            if said.out.trim() == node { Ok(true) } else { Err(format!("{said:?}: {}", cluster.log())) }
        })?;
    }
    for name in ["hyperkube", "shopkube"] {
        let fields = "jsonpath={.metadata.managedFields[*].manager}";
        let get = ["--context", name, "get", "service", "kubernetes", "-o", fields];
        let managers = cluster.ok(&get, "")?;
        if managers.trim() != name {
            return Err(format!("the managers of {name}'s Service are {managers:?}").into());
        }
    }
    // A directory is not another distribution's to use or to remove.
    let foreign = finish(cluster.hyperkube(&["reset", "--data-dir", &shop_data]))?;
    if foreign.code != 3 || !foreign.err.contains("one of shopkube, not of hyperkube") {
        return Err(format!("{foreign:?}").into());
    }
    let code = cluster.processes[0].stop()?;
    let said = cluster.processes[0].said();
    if code != 0 || !said.contains("(shopkube reset removes them)") {
        return Err(format!("ended with {code}: {said}").into());
    }
    let removed = finish(shopkube(&cluster, &["reset", "--data-dir", &shop_data])?)?;
    if removed.code != 0 || !removed.out.contains("removed context \"shopkube\"") {
        return Err(format!("{removed:?}").into());
    }
    let gone = !std::path::Path::new(&shop_data).exists();
    let contexts = cluster.ok(&["config", "get-contexts", "-o", "name"], "")?;
    let own = nodes(&cluster, "hyperkube")?;
    if !gone || contexts.trim() != "hyperkube" || own.out.trim() != "node/desk" {
        return Err(format!("gone: {gone}, contexts: {contexts}, {own:?}").into());
    }
    let help = finish(shopkube(&cluster, &["up", "--help"])?)?;
    if help.out.contains("hyperkube") || !help.out.contains("SHOPKUBE_DATA_DIR") {
        return Err(format!("{help:?}").into());
    }
    cluster.take_down()
}

/// Each single component has its part of the distribution's extensions.
fn components() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    let control = cluster.dir.path().join("control");
    let (control_dir, pki) = (control.to_string_lossy().into_owned(), control.join("pki"));
    let kubeconfig =
        |component: &str| pki.join(format!("{component}.kubeconfig")).to_string_lossy().into_owned();
    let start = |cluster: &mut Cluster, component: &str, more: &[&str]| -> Outcome {
        let mut command = shopkube(cluster, &[&["--log", "info", component], more].concat())?;
        let log = cluster.dir.path().join(format!("{component}.log"));
        cluster.processes.push(Process::start(&mut command, log)?);
        Ok(())
    };
    start(
        &mut cluster,
        "kube-apiserver",
        &["--data-dir", &control_dir, "--bind-address", "127.0.0.1", "--kubelet-node-name", "shelf"],
    )?;
    until("the API server has written its kubeconfigs", Duration::from_secs(20), || {
        Ok(pki.join("kube-proxy.kubeconfig").exists())
    })?;
    start(&mut cluster, "kube-controller-manager", &["--kubeconfig", &kubeconfig("controller-manager")])?;
    // Two profiles; the connection comes from the file, too.
    let profiles = cluster.dir.path().join("scheduler.yaml");
    let text = format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nclientConnection: {{kubeconfig: {}}}\nprofiles:\n- schedulerName: default-scheduler\n- schedulerName: packer\n  plugins: {{multiPoint: {{disabled: [{{name: Fragile}}]}}}}\n",
        kubeconfig("scheduler")
    );
    fs::write(&profiles, text)?;
    let profiles = profiles.to_string_lossy().into_owned();
    start(&mut cluster, "kube-scheduler", &["--config", &profiles])?;
    let root = cluster.dir.path().join("node").to_string_lossy().into_owned();
    let kubelet = kubeconfig("kubelet-shelf");
    let room = crate::components::ROOM_ON_SMALL_DISKS;
    let flags = ["--kubeconfig", &kubelet, "--root-dir", &root, "--hostname-override", "shelf", room];
    start(&mut cluster, "kubelet", &flags)?;
    cluster.kubeconfig = pki.join("admin.kubeconfig");
    cluster.wait_ready()?;

    let n = cluster.namespace("toys")?;
    let toy = serde_json::json!({"apiVersion": "shop.example.com/v1", "kind": "Toy", "metadata": {"name": "duck"}, "spec": {"colour": "yellow"}});
    n.ok(&["apply", "-f", "-"], &toy.to_string())?;
    n.until(&["get", "configmap", "duck", "-o", "jsonpath={.data.colour}"], "yellow", 30)?;

    let mut pod = crate::harness::pod("plain", "true");
    n.ok(&["apply", "-f", "-"], &pod.to_string())?;
    n.until(
        &["get", "pod", "plain", "-o", "jsonpath={.metadata.labels.team} {.spec.nodeName} {.status.phase}"],
        "shop shelf Running",
        30,
    )?;
    pod["metadata"] = serde_json::json!({"name": "vase", "annotations": {"fragile": "yes"}});
    n.ok(&["apply", "-f", "-"], &pod.to_string())?;
    n.until(
        &["get", "pod", "vase", "-o", "jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].message}"],
        "too fragile for any node",
        30,
    )?;
    let admin = cluster.kubeconfig.to_string_lossy().into_owned();
    let explain = |more: &[&str]| {
        let flags =
            ["explain-scheduling", "--kubeconfig", &admin, "-n", "toys", "--scheduler-config", &profiles];
        finish(shopkube(&cluster, &[&flags, more].concat())?)
    };
    let vase = explain(&["pod", "vase"])?;
    let plain: serde_json::Value = serde_json::from_str(&explain(&["pod/plain", "-o", "json"])?.out)?;
    let scored = plain["nodes"][0]["scores"].as_array().is_some_and(|all| !all.is_empty());
    if !vase.out.contains("shelf      -  Fragile: too fragile for any node")
        || plain["node"] != "shelf"
        || !scored
    {
        return Err(format!("{vase:?} {plain}").into());
    }
    // The other profile has no such plugin.
    pod["metadata"]["name"] = "box".into();
    pod["spec"]["schedulerName"] = "packer".into();
    n.ok(&["apply", "-f", "-"], &pod.to_string())?;
    n.until(&["get", "pod", "box", "-o", "jsonpath={.spec.nodeName}"], "shelf", 30)?;

    // A kubeconfig without a client certificate, which would be preferred to the token.
    let bare = cluster.dir.path().join("bare.yaml");
    let text = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:6443', insecure-skip-tls-verify: true}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\ncurrent-context: c\n";
    fs::write(&bare, text)?;
    let bare = bare.to_string_lossy().into_owned();
    for (token, wanted) in [("of-a-shopper", "shopper"), ("of-nobody", "must be logged in")] {
        let said = cluster.kubectl(&["--kubeconfig", &bare, "--token", token, "auth", "whoami"])?;
        if !format!("{} {}", said.out, said.err).contains(wanted) {
            return Err(format!("{token}: {said:?}").into());
        }
    }
    // The node's and the control plane's directories have no containers; only files are left.
    for process in cluster.processes.iter_mut().rev() {
        process.stop()?;
    }
    let removed = finish(shopkube(&cluster, &["reset", "--data-dir", &root])?)?;
    if removed.code != 0 {
        return Err(format!("{removed:?}").into());
    }
    cluster.take_down()
}

/// In a pod whose namespace has Services of the programs' names.
fn service_links() -> Outcome {
    for (name, variables) in [("hyperkube", "HYPERKUBE"), ("shopkube", "SHOPKUBE")] {
        let print = |port: &str| {
            let mut command = match name {
                "hyperkube" => std::process::Command::new(HYPERKUBE),
                _ => std::process::Command::new(std::env::current_exe().unwrap_or_default()),
            };
            let links = [
                ("_SERVICE_HOST", "10.43.7.7"),
                ("_SERVICE_PORT", "80"),
                ("_PORT", port),
                ("_PORT_80_TCP", "tcp://10.43.7.7:80"),
                ("_PORT_80_TCP_PROTO", "tcp"),
                ("_PORT_80_TCP_PORT", "80"),
                ("_PORT_80_TCP_ADDR", "10.43.7.7"),
            ];
            command.args(["kubelet", "--kubeconfig", "/k", "--print-config"]);
            command.envs(links.map(|(suffix, value)| (format!("{variables}{suffix}"), value)));
            if name != "hyperkube" {
                command.env(NAME, name);
            }
            finish(command)
        };
        for (port, wanted) in [("tcp://10.43.7.7:80", "port: 10250\n"), ("10251", "port: 10251\n")] {
            let said = print(port)?;
            if said.code != 0 || !said.out.contains(wanted) {
                return Err(format!("{name} with {port}: {said:?}").into());
            }
        }
    }
    Ok(())
}
