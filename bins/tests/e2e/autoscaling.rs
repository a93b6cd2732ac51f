//! Measured use, `kubectl top`, and an autoscaler of 2017 that follows it up and down.

use std::time::Duration;

use serde_json::json;

use crate::{
    Outcome,
    harness::{Cluster, IMAGE, until},
};

pub const TESTS: &[crate::Test] = &[
    ("a_busy_deployment_is_scaled_up_and_down", busy),
    ("a_deployment_scales_by_metrics_that_its_pods_serve", served),
];

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

/// Returns an autoscaler of the Deployment `web` by one metric.
fn by(metric: &serde_json::Value) -> String {
    json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "minReplicas": 1, "maxReplicas": 3, "metrics": [metric]}})
    .to_string()
}

fn served() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    cluster.load_images()?;
    cluster.start_up_with(&[
        "--custom-metrics",
        "--horizontal-pod-autoscaler-sync-period=1s",
        "--horizontal-pod-autoscaler-downscale-stabilization=2s",
    ])?;
    let n = cluster.namespace("served")?;
    // Five hits a second, and a queue of 30.
    let script = "mkdir -p /tmp/www; cd /tmp/www; httpd -p 8080 -h /tmp/www; i=0; while true; do i=$((i+5)); \
        echo \"hits_total{code=\\\"200\\\"} $i\" > new; echo queue_depth 30 >> new; cat new > metrics; sleep 1; done";
    let container = json!({"name": "c", "image": IMAGE, "command": ["sh", "-c", script], "ports": [{"containerPort": 8080}]});
    let metadata = json!({"labels": {"app": "web"}, "annotations": {"prometheus.io/scrape": "true"}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": metadata, "spec": {
            "terminationGracePeriodSeconds": 0, "containers": [container]}}}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"}, "ports": [{"port": 8080}]}});
    for object in [deployment, service] {
        n.ok(&["apply", "-f", "-"], &object.to_string())?;
    }
    let replicas = ["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}/{.status.readyReplicas}"];
    let depth = json!({"name": "queue_depth"});
    let of_pods = json!({"type": "Pods", "pods": {"metric": depth, "target": {"type": "AverageValue", "averageValue": "10"}}});
    n.ok(&["apply", "-f", "-"], &by(&of_pods))?;
    n.until(&replicas, "3/3", 90)?;
    n.until(&["describe", "hpa", "web"], "pods metric queue_depth above target", 20)?;

    // The same numbers by hand: of each pod, of the Service, and the rate of a counter.
    let custom = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/served";
    let get = |path: &str| n.ok(&["get", "--raw", path], "");
    n.until(&["get", "--raw", &format!("{custom}/services/web/queue_depth")], "\"value\":\"90\"", 20)?;
    let list: serde_json::Value = serde_json::from_str(&get(&format!("{custom}/pods/*/queue_depth"))?)?;
    if list["items"].as_array().is_none_or(|items| items.len() != 3) {
        return Err(list.to_string().into());
    }
    until("the counter has its rate", Duration::from_secs(20), || {
        let path = format!("{custom}/deployments.apps/web/hits_per_second?metricLabelSelector=code%3D200");
        let said = n.run(&["get", "--raw", &path], "").map_err(|e| format!("{e:?}"))?;
        let list: serde_json::Value = serde_json::from_str(&said.out).unwrap_or_default();
        let value = list["items"][0]["value"].as_str().unwrap_or_default().to_owned();
        let rate: f64 = match value.strip_suffix('m') {
            Some(thousandths) => thousandths.parse::<f64>().unwrap_or(0.0) / 1000.0,
            None => value.parse().unwrap_or(0.0),
        };
        // Three pods, five each; a busy machine sleeps longer.
        if (5.0..30.0).contains(&rate) { Ok(true) } else { Err(format!("{said:?}")) }
    })?;
    n.expect(
        &["get", "--raw", &format!("{custom}/pods/*/nothing")],
        "",
        1,
        "could not find the metric nothing",
    )?;

    // Two pods have the whole queue of 90, shared as 45 each.
    let external = json!({"type": "External", "external": {"metric": depth, "target": {"type": "AverageValue", "averageValue": "45"}}});
    n.ok(&["apply", "-f", "-"], &by(&external))?;
    n.until(&replicas, "2/2", 60)?;
    let object = json!({"type": "Object", "object": {"metric": depth, "target": {"type": "Value", "value": "20"},
        "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "web"}}});
    n.ok(&["apply", "-f", "-"], &by(&object))?;
    n.until(&replicas, "3/3", 60)?;
    let metrics = get("/metrics")?;
    let name =
        "horizontal_pod_autoscaler_controller_desired_replicas{namespace=\"served\",hpa_name=\"web\"} 3";
    let counted = "horizontal_pod_autoscaler_controller_metric_computation_total{action=\"scale_up\",error=\"none\",metric_type=\"Object\"}";
    for wanted in [name, counted, "horizontal_pod_autoscaler_controller_num_horizontal_pod_autoscalers 1"] {
        if !metrics.contains(wanted) {
            let have: Vec<&str> = metrics.lines().filter(|l| l.starts_with("horizontal")).collect();
            return Err(format!("no {wanted} in {have:#?}").into());
        }
    }
    drop(n);
    cluster.take_down()
}
