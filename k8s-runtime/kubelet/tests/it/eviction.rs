//! Pods that are evicted: from a node that is short of something, and for limits of local storage.

use std::{fs, time::Duration};

use k8s_kubelet::{Eviction, EvictionSettings, Signal};
use serde_json::{Value, json};

use crate::{Node, one};

/// A pod that requests memory. Every container uses 64 MiB.
fn asking(memory: &str) -> Value {
    let mut spec = one(&["run"]);
    spec["containers"][0]["resources"] = json!({"requests": {"memory": memory}});
    spec
}

fn limited(limit: &str) -> Value {
    let mut spec = one(&["run"]);
    spec["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": limit}});
    spec
}

async fn seconds(n: u64) {
    tokio::time::sleep(Duration::from_secs(n)).await;
}

impl Node {
    /// Status and reason of a condition of the node.
    fn node_condition(&self, type_: &str) -> (String, String) {
        let node = self.api.node().unwrap_or_default();
        let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|c| c["type"] == type_).cloned().unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (text(&found["status"]), text(&found["reason"]))
    }

    async fn until_node(&self, type_: &str, status: &str) {
        self.until(&format!("{type_} {status}"), || self.node_condition(type_).0 == status).await;
    }

    fn evicted(&self) -> Vec<String> {
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let is_evicted = |pod: &&Value| pod["status"]["reason"] == "Evicted";
        let mut names: Vec<String> = self.api.list("pods").iter().filter(is_evicted).map(name).collect();
        names.sort();
        names
    }

    async fn run(&self, name: &str, spec: Value) {
        self.create(name, spec).await;
        self.until_phase(name, "Running").await;
    }

    fn disruption_target(&self, pod: &str) -> Option<Value> {
        let pod = self.pod(pod).unwrap_or_default();
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == "DisruptionTarget")
    }
}

#[tokio::test(start_paused = true)]
async fn the_pod_that_exceeds_its_request_goes_when_memory_is_short() {
    let node = Node::start().await;
    node.run("within", asking("100Mi")).await;
    node.run("above", asking("10Mi")).await;
    let mut critical = one(&["run"]);
    critical["priorityClassName"] = json!("system-cluster-critical");
    node.run("critical", critical).await;
    let runtime = node.runtime.clone();
    let has_above = move || runtime.sandboxes().iter().any(|sandbox| sandbox.spec.name == "above");
    node.signals.low_while(Signal::MemoryAvailable, 50 << 20, has_above);
    node.until_phase("above", "Failed").await;
    let status = node.pod("above").unwrap()["status"].clone();
    let message = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
        Container c was using 64Mi, request is 10Mi, has larger consumption of memory. ";
    assert_eq!((&status["reason"], &status["message"]), (&json!("Evicted"), &json!(message)));
    let target = node.disruption_target("above").unwrap();
    assert_eq!((&target["reason"], &target["message"]), (&json!("TerminationByKubelet"), &json!(message)));
    node.until("event", || node.has_event("above", "Evicted", message)).await;
    node.until("event", || node.has_event("n1", "EvictionThresholdMet", "Attempting to reclaim memory"))
        .await;
    assert!(node.runtime.log().contains(&"stop c 2".to_owned()), "{:?}", node.runtime.log());

    // Pods without requests are refused until the transition period is over.
    node.until_node("MemoryPressure", "True").await;
    assert_eq!(node.node_condition("MemoryPressure").1, "KubeletHasInsufficientMemory");
    assert_eq!(node.node_condition("DiskPressure").0, "False");
    let told = "Node n1 status is now: NodeHasInsufficientMemory";
    node.until("event", || node.has_event("n1", "NodeHasInsufficientMemory", told)).await;
    node.create("best-effort", one(&["run"])).await;
    node.until_phase("best-effort", "Failed").await;
    let refused = node.pod("best-effort").unwrap()["status"].clone();
    assert_eq!(refused["message"], "Pod was rejected: The node had condition: [MemoryPressure]. ");
    node.run("burstable", asking("1Mi")).await;
    seconds(280).await;
    assert_eq!(node.node_condition("MemoryPressure").0, "True");
    node.until_node("MemoryPressure", "False").await;
    node.run("late", one(&["run"])).await;
    assert_eq!(node.evicted(), ["above", "best-effort"]);
    let text = crate::server::get(&node, "/metrics").await.1;
    let counted = "kubelet_evictions{eviction_signal=\"memory.available\"} 1\n";
    assert!(text.contains(counted), "{text}");
    // Nothing of an evicted pod is left but its object.
    assert!(!node.runtime.sandboxes().iter().any(|sandbox| sandbox.spec.name == "above"));
    node.delete("above", Some(0)).await;
    node.until("gone", || node.pod("above").is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn one_pod_goes_at_a_time_and_critical_ones_stay() {
    let node = Node::start().await;
    for (class, value) in [("high", 7), ("low", 5), ("middle", 6)] {
        let class = json!({"metadata": {"name": class}, "value": value});
        node.api.create("/apis/scheduling.k8s.io/v1/priorityclasses", class).await;
    }
    for (name, class) in
        [("a", "high"), ("b", "low"), ("c", "middle"), ("critical", "system-cluster-critical")]
    {
        let mut spec = one(&["stubborn"]);
        spec["priorityClassName"] = json!(class);
        node.run(name, spec).await;
    }
    let runtime = node.runtime.clone();
    node.signals.low_while(Signal::PidAvailable, 1, move || runtime.sandboxes().len() > 2);
    // Not among upstream's defaults.
    seconds(60).await;
    assert!(node.evicted().is_empty());
    node.signals.low_while(Signal::MemoryAvailable, 1, {
        let runtime = node.runtime.clone();
        move || runtime.sandboxes().len() > 2
    });
    node.until_phase("b", "Failed").await;
    assert_eq!(node.evicted(), ["b"]);
    node.until_phase("c", "Failed").await;
    seconds(60).await;
    assert_eq!(node.evicted(), ["b", "c"]);
    // Even if it would never be enough.
    node.signals.set(|_| 1);
    node.until_phase("a", "Failed").await;
    seconds(120).await;
    assert_eq!((node.evicted().len(), node.phase("critical")), (3, "Running".into()));
}

#[tokio::test(start_paused = true)]
async fn what_no_pod_needs_goes_before_a_pod_when_the_disk_is_short() {
    let node = Node::start().await;
    node.runtime.add_image("old:1");
    node.run("running", one(&["run"])).await;
    let mut job = one(&["exit", "0"]);
    job["restartPolicy"] = json!("Never");
    node.create("job", job).await;
    node.until_phase("job", "Succeeded").await;
    let runtime = node.runtime.clone();
    let has_old = move || runtime.log().iter().all(|line| line != "remove-image sha256:old:1");
    node.signals.low_while(Signal::NodeFsAvailable, 1 << 30, has_old);
    let image = "remove-image sha256:old:1".to_owned();
    node.until("the image is removed", || node.runtime.log().contains(&image)).await;
    node.until_node("DiskPressure", "True").await;
    seconds(60).await;
    assert!(node.evicted().is_empty() && node.phase("running") == "Running");
    assert!(!node.runtime.log().contains(&"remove-image sha256:1".to_owned()), "a container has it");
    let names = |node: &Node| -> Vec<String> {
        node.runtime.sandboxes().iter().map(|sandbox| sandbox.spec.name.clone()).collect()
    };
    assert_eq!((names(&node), node.phase("job")), (vec!["running".to_owned()], "Succeeded".into()));
    node.create("any", asking("1Mi")).await;
    node.until_phase("any", "Failed").await;
    let status = node.pod("any").unwrap()["status"].clone();
    assert_eq!(status["message"], "Pod was rejected: The node had condition: [DiskPressure]. ");
    // A new image stays for two minutes: its pod may have no container yet.
    node.until_node("DiskPressure", "False").await;
    node.runtime.add_image("new:1");
    seconds(30).await;
    let runtime = node.runtime.clone();
    let has_new = move || runtime.log().iter().all(|line| line != "remove-image sha256:new:1");
    node.signals.low_while(Signal::ImageFsAvailable, 1 << 30, has_new);
    seconds(60).await;
    assert_eq!(node.evicted(), ["any", "running"]);
    assert!(!node.runtime.log().contains(&"remove-image sha256:new:1".to_owned()));
    seconds(60).await;
    assert!(node.runtime.log().contains(&"remove-image sha256:new:1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_pod_that_has_written_most_goes_when_the_disk_is_short() {
    let node = Node::start().await;
    for (name, container, bytes) in [("small", "s", 1 << 20), ("large", "l", 8 << 20)] {
        let mut spec = one(&["run"]);
        spec["containers"][0]["name"] = json!(container);
        node.runtime.set_layer(container, bytes);
        node.run(name, spec).await;
    }
    let runtime = node.runtime.clone();
    node.signals.low_while(Signal::NodeFsAvailable, 100, move || runtime.sandboxes().len() > 1);
    node.until("one is evicted", || !node.evicted().is_empty()).await;
    seconds(60).await;
    assert_eq!(node.evicted(), ["large"]);
}

#[tokio::test(start_paused = true)]
async fn a_soft_threshold_waits_and_gives_grace() {
    let settings = EvictionSettings {
        hard: Some([].into()),
        soft: [("memory.available".into(), "1Gi".into())].into(),
        soft_grace_period: [("memory.available".into(), Duration::from_secs(60))].into(),
        minimum_reclaim: [("memory.available".into(), "1Gi".into())].into(),
        max_pod_grace_period: 7,
        pressure_transition_period: Duration::from_secs(20),
        ..EvictionSettings::default()
    };
    let node = Node::start_with(Eviction::new(&settings).unwrap()).await;
    node.run("p", one(&["run"])).await;
    node.signals.low_while(Signal::MemoryAvailable, 512 << 20, || true);
    node.until_node("MemoryPressure", "True").await;
    seconds(50).await;
    assert_eq!(node.phase("p"), "Running");
    node.until_phase("p", "Failed").await;
    assert!(node.runtime.log().contains(&"stop c 7".to_owned()), "{:?}", node.runtime.log());
    // Between the threshold and its minimum reclaim the node stays under pressure.
    node.signals.low_while(Signal::MemoryAvailable, 3 << 29, || true);
    seconds(120).await;
    assert_eq!(node.node_condition("MemoryPressure").0, "True");
    node.signals.low_while(Signal::MemoryAvailable, 2 << 30, || true);
    node.until_node("MemoryPressure", "False").await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_dir_over_its_limit_costs_the_pod() {
    let node = Node::start_with(Eviction::none()).await;
    let mut spec = one(&["run"]);
    spec["volumes"] = json!([
        {"name": "free", "emptyDir": {}}, {"name": "small", "emptyDir": {"sizeLimit": "1Mi"}},
    ]);
    for name in ["good", "bad"] {
        node.run(name, spec.clone()).await;
    }
    let volume = |pod: &str, name: &str| {
        let uid = node.pod(pod).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        node.dir.path().join(format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/{name}"))
    };
    fs::create_dir(volume("bad", "small").join("below")).unwrap();
    fs::write(volume("bad", "small").join("below/file"), vec![1; 2 << 20]).unwrap();
    fs::write(volume("good", "free").join("file"), vec![1; 2 << 20]).unwrap();
    std::os::unix::fs::symlink(volume("good", "free"), volume("good", "small").join("link")).unwrap();
    node.until_phase("bad", "Failed").await;
    let status = node.pod("bad").unwrap()["status"].clone();
    let message = "Usage of EmptyDir volume \"small\" exceeds the limit \"1Mi\". ";
    assert_eq!((&status["reason"], &status["message"]), (&json!("Evicted"), &json!(message)));
    assert_eq!(node.disruption_target("bad"), None, "it is the pod's own fault");
    node.until("event", || node.has_event("bad", "Evicted", message)).await;
    node.until("gone", || !volume("bad", "small").exists()).await;
    seconds(120).await;
    assert_eq!(node.phase("good"), "Running");
}

#[tokio::test(start_paused = true)]
async fn local_storage_over_the_limits_costs_the_pod() {
    let node = Node::start_with(Eviction::none()).await;
    let named = |spec: &mut Value, at: usize, name: &str| spec["containers"][at]["name"] = json!(name);
    let mut within = limited("2Mi");
    named(&mut within, 0, "within");
    let mut two = limited("2Mi");
    two["containers"].as_array_mut().unwrap().push(limited("8Mi")["containers"][0].clone());
    named(&mut two, 0, "one");
    named(&mut two, 1, "other");
    let mut whole = limited("2Mi");
    named(&mut whole, 0, "whole");
    for (container, bytes) in [("within", 1), ("one", 3), ("other", 1), ("whole", 3)] {
        node.runtime.set_layer(container, bytes << 20);
    }
    for (name, spec) in [("within", within), ("two", two), ("whole", whole)] {
        node.create(name, spec).await;
    }
    node.until_phase("within", "Running").await;
    for (name, message) in [
        ("two", "Container one exceeded its local ephemeral storage limit \"2Mi\". "),
        ("whole", "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "),
    ] {
        node.until_phase(name, "Failed").await;
        let status = node.pod(name).unwrap()["status"].clone();
        assert_eq!((&status["reason"], &status["message"]), (&json!("Evicted"), &json!(message)));
    }
    seconds(60).await;
    assert_eq!(node.evicted(), ["two", "whole"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_short_of_disk_at_its_start_says_so_at_once() {
    let mut node = Node::start().await;
    node.run("p", one(&["run"])).await;
    node.stop_kubelet().await;
    let runtime = node.runtime.clone();
    node.signals.low_while(Signal::NodeFsAvailable, 1, move || !runtime.sandboxes().is_empty());
    node.start_kubelet().await;
    // The pod of the earlier kubelet is evicted.
    node.until_phase("p", "Failed").await;
    assert_eq!(node.evicted(), ["p"]);
    node.until_node("DiskPressure", "True").await;
}

#[tokio::test(start_paused = true)]
async fn hard_thresholds_are_not_allocatable() {
    let settings = EvictionSettings {
        hard: Some([("memory.available".into(), "1Gi".into())].into()),
        ..EvictionSettings::default()
    };
    let node = Node::start_with(Eviction::new(&settings).unwrap()).await;
    node.until("registered", || node.api.node().is_some()).await;
    let status = node.api.node().unwrap()["status"].clone();
    let amount = |list: &str, name: &str| -> i64 {
        let text = status[list][name].as_str().unwrap();
        let quantity: k8s_core::meta::Quantity = text.parse().unwrap();
        quantity.units()
    };
    assert_eq!(amount("capacity", "memory") - amount("allocatable", "memory"), 1 << 30);
    let disk = |list| amount(list, "ephemeral-storage") / 1024;
    assert_eq!(disk("capacity"), disk("allocatable"));
}
