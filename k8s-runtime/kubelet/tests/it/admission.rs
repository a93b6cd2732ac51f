//! Pods that the node refuses, and pods that make room for critical ones.

use k8s_core::{api::api::core::v1::Node as ApiNode, client::Patch};
use serde_json::{Value, json};

use crate::{Node, one};

/// A pod that asks for CPU in thousandths.
fn asking(milli: i64) -> Value {
    let mut spec = one(&["run"]);
    spec["containers"][0]["resources"] = json!({"requests": {"cpu": format!("{milli}m")}});
    spec
}

fn with(mut spec: Value, field: &str, value: Value) -> Value {
    spec[field] = value;
    spec
}

fn on_port(port: u16) -> Value {
    let mut spec = one(&["run"]);
    spec["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": port}]);
    spec
}

impl Node {
    async fn registered(&self) {
        self.until("registered", || self.api.node().is_some()).await;
    }

    /// Allocatable CPU in thousandths.
    fn cpu(&self) -> i64 {
        let node = self.api.node().unwrap();
        node["status"]["allocatable"]["cpu"].as_str().unwrap().parse::<i64>().unwrap() * 1000
    }

    async fn until_refused(&self, pod: &str, reason: &str, message: &str) {
        self.until_phase(pod, "Failed").await;
        let status = self.pod(pod).unwrap()["status"].clone();
        assert_eq!(status["reason"], reason, "{status}");
        assert_eq!(status["message"], format!("Pod was rejected: {message}"));
        assert_eq!(status["containerStatuses"], Value::Null);
        self.until("event", || self.has_event(pod, reason, message)).await;
        assert!(
            !self.runtime.sandboxes().iter().any(|sandbox| sandbox.spec.name == pod),
            "{pod} has a sandbox"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_the_node_is_refused_and_never_started() {
    let node = Node::start().await;
    node.registered().await;
    let cpu = node.cpu();
    node.create("first", asking(cpu - 100)).await;
    node.create("port", on_port(8080)).await;
    node.until_phase("first", "Running").await;
    node.until_phase("port", "Running").await;
    let affinity = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    let ports = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    let short = format!(
        "Node didn't have enough resource: cpu, requested: 200, used: {}, capacity: {cpu}",
        cpu - 100
    );
    for (name, spec, reason, message) in [
        ("cpu", asking(200), "OutOfcpu", short.as_str()),
        ("same-port", on_port(8080), "NodePorts", ports),
        ("selector", with(one(&["run"]), "nodeSelector", json!({"disk": "ssd"})), "NodeAffinity", affinity),
        (
            "windows",
            with(one(&["run"]), "os", json!({"name": "windows"})),
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ),
    ] {
        node.create(name, spec).await;
        node.until_refused(name, reason, message).await;
    }
    // What was refused holds nothing; what has ended frees what it held.
    node.create("fits", asking(100)).await;
    node.until_phase("fits", "Running").await;
    node.delete("first", Some(1)).await;
    node.until("gone", || node.pod("first").is_none()).await;
    node.delete("port", Some(1)).await;
    node.until("gone", || node.pod("port").is_none()).await;
    let mut next = on_port(8080);
    next["containers"][0]["resources"] = asking(cpu - 100)["containers"][0]["resources"].clone();
    node.create("next", next).await;
    node.until_phase("next", "Running").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_ended_frees_its_resources() {
    let node = Node::start().await;
    node.registered().await;
    let mut job = asking(node.cpu());
    job["restartPolicy"] = json!("Never");
    job["containers"][0]["command"] = json!(["after", "5", "0"]);
    node.create("job", job).await;
    node.until_phase("job", "Succeeded").await;
    node.create("next", asking(node.cpu())).await;
    node.until_phase("next", "Running").await;
}

#[tokio::test(start_paused = true)]
async fn labels_and_taints_of_the_node_count_as_they_are_now() {
    let node = Node::start().await;
    node.registered().await;
    let api = node.api.client().all::<ApiNode>();
    api.patch("n1", &Patch::Merge(json!({"metadata": {"labels": {"disk": "ssd"}}}))).await.unwrap();
    node.create("selected", with(one(&["run"]), "nodeSelector", json!({"disk": "ssd"}))).await;
    node.until_phase("selected", "Running").await;
    let taints = json!([{"key": "k", "effect": "NoExecute"}, {"key": "s", "effect": "NoSchedule"}]);
    api.patch("n1", &Patch::Merge(json!({"spec": {"taints": taints}}))).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let tolerations = json!([{"key": "k", "operator": "Exists"}]);
    node.create("tolerating", with(one(&["run"]), "tolerations", tolerations)).await;
    node.until_phase("tolerating", "Running").await;
    node.create("tainted", one(&["run"])).await;
    let message = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
    node.until_refused("tainted", "TaintToleration", message).await;
    // The taint does not end what runs; that is the taint manager's.
    assert_eq!(node.phase("selected"), "Running");
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_kubelet_refuses_nothing_that_ran() {
    let mut node = Node::start().await;
    node.registered().await;
    node.create("port", on_port(8080)).await;
    node.create("busy", asking(node.cpu())).await;
    node.until_phase("port", "Running").await;
    node.until_phase("busy", "Running").await;
    node.create("refused", on_port(8080)).await;
    node.until_phase("refused", "Failed").await;
    let refused = node.pod("refused").unwrap()["status"].clone();
    node.stop_kubelet().await;
    let api = node.api.client().all::<ApiNode>();
    let taints = json!([{"key": "k", "effect": "NoExecute"}]);
    api.patch("n1", &Patch::Merge(json!({"spec": {"taints": taints}}))).await.unwrap();
    // Bound while the kubelet is away: it comes after those that run.
    let tolerations = json!([{"operator": "Exists"}]);
    node.create("later", with(on_port(8080), "tolerations", tolerations)).await;
    node.start_kubelet().await;
    node.until_phase("later", "Failed").await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(node.pod("later").unwrap()["status"]["reason"], "NodePorts");
    assert_eq!((node.phase("port"), node.phase("busy")), ("Running".into(), "Running".into()));
    assert_eq!(node.container("port", "/restartCount"), 0);
    assert_eq!(node.pod("refused").unwrap()["status"], refused, "a refusal stays as it was told");
}

#[tokio::test(start_paused = true)]
async fn a_critical_pod_preempts_others() {
    let node = Node::start().await;
    node.registered().await;
    let cpu = node.cpu();
    node.create("large", asking(cpu - 200)).await;
    node.create("small", asking(200)).await;
    node.until_phase("large", "Running").await;
    node.until_phase("small", "Running").await;
    let critical = with(asking(150), "priorityClassName", json!("system-node-critical"));
    node.create("critical", critical.clone()).await;
    node.until_phase("critical", "Running").await;
    let victim = node.pod("small").unwrap()["status"].clone();
    assert_eq!((&victim["phase"], &victim["reason"]), (&json!("Failed"), &json!("Preempting")), "{victim}");
    assert_eq!(victim["message"], "Preempted in order to admit critical pod");
    let conditions = victim["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
    assert_eq!(target["message"], "Pod was preempted by Kubelet to accommodate a critical pod.");
    node.until("event", || node.has_event("small", "Preempting", "Preempted in order to admit")).await;
    assert_eq!(node.phase("large"), "Running");
    // Critical pods do not preempt each other, and a selector is no matter of resources.
    node.create("too-much", {
        let mut spec = critical.clone();
        spec["containers"][0]["resources"] = asking(cpu)["containers"][0]["resources"].clone();
        spec
    })
    .await;
    let text = format!("no set of running pods found to reclaim resources: [(res: cpu, q: {}), ]", 150);
    let message = format!(
        "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: {text}"
    );
    node.until_refused("too-much", "UnexpectedAdmissionError", &message).await;
    node.create("elsewhere", with(critical, "nodeSelector", json!({"disk": "ssd"}))).await;
    node.until_phase("elsewhere", "Failed").await;
    assert_eq!(node.pod("elsewhere").unwrap()["status"]["reason"], "NodeAffinity");
    assert_eq!(node.phase("large"), "Running");
}

/// The scheduler counts with what others advertise on a node, such as device plugins and the conformance
/// suite.
#[tokio::test(start_paused = true)]
async fn resources_that_others_advertise_stay_and_are_allocatable() {
    let node = Node::start().await;
    node.registered().await;
    let capacity = json!({"status": {"capacity": {"example.com/dongle": "3"}}});
    node.api.client().all::<ApiNode>().patch_status("n1", &Patch::Merge(capacity)).await.unwrap();
    let listed = |list: &str| node.api.node().unwrap()["status"][list]["example.com/dongle"].clone();
    node.until("allocatable", || listed("allocatable") == "3").await;
    tokio::time::sleep(std::time::Duration::from_secs(900)).await;
    assert_eq!((listed("capacity"), listed("allocatable")), (json!("3"), json!("3")));
    let gone = json!([{"op": "remove", "path": "/status/capacity/example.com~1dongle"}]);
    node.api.client().all::<ApiNode>().patch_status("n1", &Patch::<Value>::Json(gone)).await.unwrap();
    node.until("gone", || listed("allocatable").is_null()).await;
    assert!(listed("capacity").is_null());
}
