//! Measured use, `kubectl top`, and an autoscaler of 2017 that follows it up and down.

use std::time::Duration;

use serde_json::json;

use crate::{
    Outcome,
    harness::{Cluster, IMAGE, until},
};

pub const TESTS: &[crate::Test] = &[("a_busy_deployment_is_scaled_up_and_down", busy)];

fn busy() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    cluster.load_images()?;
    // An autoscaler that looks each second, and forgets a peak at once.
    cluster.start_up_with(&[
        "--horizontal-pod-autoscaler-sync-period=1s",
        "--horizontal-pod-autoscaler-downscale-stabilization=2s",
    ])?;
    let namespace = cluster.namespace("busy")?;
    let script = "while true; do if [ -e /tmp/idle ]; then sleep 1; fi; done";
    let container = json!({"name": "c", "image": IMAGE, "command": ["sh", "-c", script],
        "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "150m"}}});
    let deployment = json!({"apiVersion": "extensions/v1beta1", "kind": "Deployment", "metadata": {"name": "busy"}, "spec": {
        "replicas": 1, "template": {"metadata": {"labels": {"app": "busy"}}, "spec": {
            "terminationGracePeriodSeconds": 0, "containers": [container]}}}});
    namespace.ok(&["apply", "-f", "-"], &deployment.to_string())?;
    let autoscaler = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "busy"}, "spec": {
        "scaleTargetRef": {"apiVersion": "extensions/v1beta1", "kind": "Deployment", "name": "busy"},
        "minReplicas": 1, "maxReplicas": 3, "targetCPUUtilizationPercentage": 50}});
    namespace.ok(&["apply", "-f", "-"], &autoscaler.to_string())?;
    namespace.until(&["get", "deployment", "busy", "-o", "jsonpath={.status.readyReplicas}"], "3", 90)?;
    namespace.until(
        &["describe", "hpa", "busy"],
        "cpu resource utilization (percentage of request) above target",
        20,
    )?;
    namespace.until(&["get", "hpa", "busy"], "/50%", 10)?;
    // Several milli-CPU, of pods and of the node.
    until("pods have their use", Duration::from_secs(30), || {
        let said = namespace.run(&["top", "pod", "--containers"], "").map_err(|e| format!("{e:?}"))?;
        let busy = said.out.lines().filter(|line| line.contains("busy-") && !line.contains(" 0m ")).count();
        if busy == 3 { Ok(true) } else { Err(format!("{said:?}")) }
    })?;
    let node = cluster.ok(&["top", "node"], "")?;
    if !node.contains("node-1") || node.contains("<unknown>") {
        return Err(node.into());
    }
    let pods = namespace.ok(&["get", "pods", "-l", "app=busy", "-o", "name"], "")?;
    for pod in pods.lines() {
        namespace.ok(&["exec", pod, "--", "sh", "-c", "echo > /tmp/idle"], "")?;
    }
    namespace.until(&["get", "deployment", "busy", "-o", "jsonpath={.spec.replicas}"], "1", 90)?;
    namespace.until(&["get", "events"], "New size: 1; reason: All metrics below target", 20)?;
    drop(namespace);
    cluster.take_down()
}
