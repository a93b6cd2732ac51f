//! Resizes of running pods, through the API server's subresource.

use http::Method;
use serde_json::{Value, json};

use crate::{Node, one};

/// A container that asks for CPU and memory and is limited to the same.
fn sized(cpu: &str, memory: &str) -> Value {
    let mut spec = one(&["run"]);
    let list = json!({"cpu": cpu, "memory": memory});
    spec["containers"][0]["resources"] = json!({"requests": list, "limits": list});
    spec
}

fn restarting(mut spec: Value, resource: &str) -> Value {
    spec["containers"][0]["resizePolicy"] =
        json!([{"resourceName": resource, "restartPolicy": "RestartContainer"}]);
    spec
}

impl Node {
    /// Changes CPU and memory of a pod's container.
    async fn resize(&self, pod: &str, cpu: &str, memory: &str) -> Result<(), String> {
        let list = json!({"cpu": cpu, "memory": memory});
        let container = json!({"name": "c", "resources": {"requests": list, "limits": list}});
        self.patch_resize(pod, json!({"spec": {"containers": [container]}})).await
    }

    async fn patch_resize(&self, pod: &str, patch: Value) -> Result<(), String> {
        let path = format!("/api/v1/namespaces/ns/pods/{pod}/resize");
        let kind = "application/strategic-merge-patch+json";
        let sent = self.api.client().bytes(Method::PATCH, &path, kind, patch.to_string()).await;
        sent.map(drop).map_err(|e| e.to_string())
    }

    fn resize_condition(&self, pod: &str, type_: &str) -> Value {
        let pod = self.pod(pod).unwrap_or_default();
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == type_).unwrap_or_default()
    }

    /// Waits as upstream's tests do: the newest generation is observed, no condition is left, the pod ready.
    async fn until_resized(&self, pod: &str) {
        self.until("resized", || {
            let now = self.pod(pod).unwrap();
            now["status"]["observedGeneration"] == now["metadata"]["generation"]
                && self.resize_condition(pod, "PodResizePending").is_null()
                && self.resize_condition(pod, "PodResizeInProgress").is_null()
                && self.condition(pod, "Ready") == "True"
        })
        .await;
    }

    fn milli(&self) -> i64 {
        let node = self.api.node().unwrap();
        node["status"]["allocatable"]["cpu"].as_str().unwrap().parse::<i64>().unwrap() * 1000
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_container_gets_other_sizes_without_a_restart() {
    let node = Node::start().await;
    node.create("p", sized("100m", "100Mi")).await;
    node.until("ready", || node.condition("p", "Ready") == "True").await;
    let want = json!({"cpu": "100m", "memory": "100Mi"});
    assert_eq!(node.container("p", "/allocatedResources"), want);
    let status =
        |pointer: &str| node.pod("p").unwrap()["status"].pointer(pointer).cloned().unwrap_or_default();
    assert_eq!(status("/allocatedResources"), want);
    assert_eq!(status("/resources/limits"), want);
    for (cpu, memory) in [("200m", "200Mi"), ("150m", "80Mi"), ("100m", "100Mi")] {
        node.resize("p", cpu, memory).await.unwrap();
        node.until_resized("p").await;
        let want = json!({"cpu": cpu, "memory": memory});
        assert_eq!(node.container("p", "/allocatedResources"), want);
        assert_eq!(node.container("p", "/resources"), json!({"requests": want, "limits": want}));
        assert_eq!(node.container("p", "/restartCount"), 0);
        assert_eq!(status("/resources/limits"), want);
        let have = node.runtime.container("c").unwrap().spec;
        let milli: i64 = cpu.trim_end_matches('m').parse().unwrap();
        let mib: i64 = memory.trim_end_matches("Mi").parse().unwrap();
        assert_eq!(have.resources.cpu_quota_us, Some(milli * 100));
        assert_eq!(have.resources.memory_bytes, Some(mib << 20));
        assert_eq!(have.requests.cpu_milli, milli.unsigned_abs());
        let sandbox = node.runtime.sandboxes().remove(0).spec.resources;
        assert_eq!((sandbox.cpu_quota_us, sandbox.memory_bytes), (Some(milli * 100), Some(mib << 20)));
    }
    node.until("events", || node.has_event("p", "ResizeStarted", r#""generation":4"#)).await;
    node.until("events", || node.has_event("p", "ResizeCompleted", r#""generation":4"#)).await;
    assert_eq!(node.pod("p").unwrap()["metadata"]["generation"], 4);
    // Equal amounts are no resize.
    let updates = || node.runtime.log().iter().filter(|line| line.starts_with("update")).count();
    let before = updates();
    node.resize("p", "0.1", "102400Ki").await.unwrap();
    node.until_resized("p").await;
    assert_eq!(updates(), before);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_changes_nothing() {
    let node = Node::start().await;
    node.create("p", sized("100m", "100Mi")).await;
    node.until("ready", || node.condition("p", "Ready") == "True").await;
    let limits =
        |list: Value| json!({"spec": {"containers": [{"name": "c", "resources": {"limits": list}}]}});
    for (patch, why) in [
        (limits(json!({"cpu": null})), "resource limits cannot be removed"),
        (limits(json!({"cpu": "2"})), "Pod QOS Class may not change as a result of resizing"),
        (limits(json!({"cpu": "1m"})), "must be less than or equal to cpu limit of 1m"),
        (
            json!({"spec": {"containers": [{"name": "d", "image": "i"}]}}),
            "containers may not be added or removed on resize",
        ),
    ] {
        let refused = node.patch_resize("p", patch.clone()).await.unwrap_err();
        assert!(refused.contains(why), "{patch}: {refused}");
    }
    let more = format!("{}m", node.milli() + 1);
    let refused = node.resize("p", &more, "100Mi").await.unwrap_err();
    let requested = node.milli() + 1;
    let why = format!("cpu, requested: {requested}, allocatable: {}", node.milli());
    assert!(
        refused.contains("node didn't have enough allocatable resources") && refused.contains(&why),
        "{refused}"
    );
    // Nothing but resources is written through it.
    node.patch_resize("p", json!({"metadata": {"labels": {"new": "x"}}})).await.unwrap();
    let pod = node.pod("p").unwrap();
    assert_eq!(
        (&pod["metadata"]["labels"]["new"], &pod["metadata"]["generation"]),
        (&Value::Null, &json!(1))
    );
}

#[tokio::test(start_paused = true)]
async fn a_policy_restarts_the_container() {
    let node = Node::start().await;
    let mut spec = restarting(sized("100m", "100Mi"), "memory");
    spec["restartPolicy"] = json!("OnFailure");
    spec["terminationGracePeriodSeconds"] = json!(1);
    node.create("p", spec).await;
    node.until("ready", || node.condition("p", "Ready") == "True").await;
    node.resize("p", "200m", "100Mi").await.unwrap();
    node.until_resized("p").await;
    assert_eq!(node.container("p", "/restartCount"), 0, "the policy is about memory");
    node.resize("p", "200m", "200Mi").await.unwrap();
    node.until("restarted", || node.container("p", "/restartCount") == 1).await;
    node.until_resized("p").await;
    assert_eq!(node.runtime.container("c").unwrap().spec.resources.memory_bytes, Some(200 << 20));
    node.until("event", || node.has_event("p", "Killing", "Container c resize requires restart")).await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_below_the_usage_is_an_error_until_it_is_taken_back() {
    let node = Node::start().await;
    node.create("p", sized("100m", "100Mi")).await;
    node.until("ready", || node.condition("p", "Ready") == "True").await;
    node.resize("p", "100m", "10Ki").await.unwrap();
    let error = || node.resize_condition("p", "PodResizeInProgress");
    node.until("error", || error()["reason"] == "Error").await;
    let message = error()["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("attempting to set pod memory limit (10240) below current usage (67108864)"),
        "{message}"
    );
    assert!(message.contains(r#"attempting to set container "c" memory limit (10240) below"#), "{message}");
    assert_eq!(node.container("p", "/resources/limits/memory"), "100Mi");
    assert_eq!(node.container("p", "/allocatedResources/memory"), "10Ki");
    node.until("event", || node.has_event("p", "ResizeError", "below current usage")).await;
    node.resize("p", "100m", "100Mi").await.unwrap();
    node.until_resized("p").await;
    assert_eq!(node.container("p", "/restartCount"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_resize_without_room_waits_for_it_also_over_a_restart_of_the_kubelet() {
    let mut node = Node::start().await;
    node.until("registered", || node.api.node().is_some()).await;
    let all = node.milli();
    node.create("big", sized(&format!("{}m", all - 200), "100Mi")).await;
    node.create("p", sized("100m", "100Mi")).await;
    node.until("ready", || node.condition("p", "Ready") == "True").await;
    node.until("ready", || node.condition("big", "Ready") == "True").await;
    node.resize("p", "500m", "100Mi").await.unwrap();
    let waits = |node: &Node| node.resize_condition("p", "PodResizePending");
    node.until("deferred", || waits(&node)["reason"] == "Deferred").await;
    let message = format!(
        "Node didn't have enough resource: cpu, requested: 500, used: {}, capacity: {all}",
        all - 200
    );
    assert_eq!(waits(&node)["message"], message);
    assert_eq!(waits(&node)["observedGeneration"], 2);
    assert_eq!(node.pod("p").unwrap()["status"]["observedGeneration"], 2);
    node.until("event", || node.has_event("p", "ResizeDeferred", &message)).await;
    assert_eq!(node.container("p", "/allocatedResources/cpu"), "100m");
    node.stop_kubelet().await;
    node.start_kubelet().await;
    node.until("known", || node.pod("p").is_some()).await;
    tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    assert_eq!(waits(&node)["reason"], "Deferred");
    assert_eq!(node.runtime.container("c").map(|c| c.spec.attempt), Some(0));
    // A smaller neighbour leaves room.
    node.resize("big", "100m", "100Mi").await.unwrap();
    node.until_resized("p").await;
    assert_eq!(node.container("p", "/resources/limits/cpu"), "500m");
    assert_eq!(node.container("p", "/restartCount"), 0);
    // So does the end of one.
    node.resize("p", &format!("{all}m"), "100Mi").await.unwrap();
    node.until("deferred", || waits(&node)["reason"] == "Deferred").await;
    node.delete("big", Some(1)).await;
    node.until_resized("p").await;
    assert_eq!(node.container("p", "/resources/limits/cpu"), format!("{all}m"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_as_a_whole_is_resized_too() {
    let node = Node::start().await;
    node.until("registered", || node.api.node().is_some()).await;
    let mut spec = one(&["run"]);
    spec["resources"] = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "100Mi"}});
    node.create("p", spec).await;
    node.until("ready", || node.condition("p", "Ready") == "True").await;
    let have = node.runtime.container("c").unwrap().spec.resources;
    assert_eq!((have.cpu_quota_us, have.memory_bytes), (Some(20_000), Some(100 << 20)));
    let patch = json!({"spec": {"resources": {"limits": {"cpu": "300m", "memory": "200Mi"}}}});
    node.patch_resize("p", patch).await.unwrap();
    node.until_resized("p").await;
    let have = node.runtime.container("c").unwrap().spec.resources;
    assert_eq!((have.cpu_quota_us, have.memory_bytes), (Some(30_000), Some(200 << 20)));
    let sandbox = node.runtime.sandboxes().remove(0).spec.resources;
    assert_eq!((sandbox.cpu_quota_us, sandbox.memory_bytes), (Some(30_000), Some(200 << 20)));
    let status = node.pod("p").unwrap()["status"].clone();
    assert_eq!(status["resources"]["limits"], json!({"cpu": "300m", "memory": "200Mi"}));
    assert_eq!(status["qosClass"], "Burstable");
}

#[tokio::test(start_paused = true)]
async fn a_resize_of_a_critical_pod_preempts_others() {
    let node = Node::start().await;
    node.until("registered", || node.api.node().is_some()).await;
    let milli = node.milli();
    let mut critical = sized("100m", "100Mi");
    critical["priorityClassName"] = json!("system-node-critical");
    node.create("critical", critical.clone()).await;
    node.create("small", sized("300m", "10Mi")).await;
    node.create("large", sized(&format!("{}m", milli - 400), "10Mi")).await;
    for name in ["critical", "small", "large"] {
        node.until(name, || node.condition(name, "Ready") == "True").await;
    }
    // A pod of no importance waits.
    node.resize("small", "400m", "10Mi").await.unwrap();
    node.until("deferred", || node.resize_condition("small", "PodResizePending")["reason"] == "Deferred")
        .await;
    node.resize("small", "300m", "10Mi").await.unwrap();
    node.until_resized("small").await;
    node.resize("critical", "350m", "100Mi").await.unwrap();
    node.until_phase("small", "Failed").await;
    let status = node.pod("small").unwrap()["status"].clone();
    assert_eq!(
        (&status["reason"], &status["message"]),
        (&json!("Preempting"), &json!("Preempted in order to admit critical pod"),)
    );
    node.until_resized("critical").await;
    assert_eq!(node.container("critical", "/allocatedResources/cpu"), "350m");
    assert_eq!(
        (node.container("critical", "/restartCount"), node.phase("large")),
        (json!(0), "Running".into())
    );
    assert!(!node.has_event("critical", "ResizeDeferred", ""));
}
