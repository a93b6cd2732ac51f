//! Pods that are resized in place with kubectl, and read their own control groups.

use std::time::Duration;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Outcome,
    harness::{Cluster, Namespace, WAIT, pod, until},
};

type Test = fn(&Cluster, &str) -> Outcome;

pub const TESTS: &[(&str, Test)] = &[
    ("kubectl_resizes_a_running_pod", resizes),
    ("kubectl_meets_resizes_that_fail", failures),
    ("kubectl_resizes_with_restarts_sidecars_and_whole_pods", restarts),
];

/// Quota of the CPU in thousandths and limit of the memory in MiB, as the container sees them, on cgroup v1
/// and v2.
const LIMITS: &str = "cd /sys/fs/cgroup; if [ -f memory.max ]; then read quota _ < cpu.max; read memory < memory.max; \
    else read quota < cpu/cpu.cfs_quota_us; read memory < memory/memory.limit_in_bytes; fi; \
    [ $quota = max ] && quota=-1; echo $((quota / 100)) $((memory / 1048576))";

/// A pod whose containers are limited to what they request.
fn sized(name: &str, cpu: &str, memory: &str) -> Value {
    let mut pod = pod(name, WAIT);
    let list = json!({"cpu": cpu, "memory": memory});
    pod["spec"]["containers"][0]["resources"] = json!({"requests": list, "limits": list});
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pod
}

fn patch(container: &str, cpu: &str, memory: &str) -> String {
    let list = json!({"cpu": cpu, "memory": memory});
    let container = json!({"name": container, "resources": {"requests": list, "limits": list}});
    json!({"spec": {"containers": [container]}}).to_string()
}

fn resize(n: &Namespace<'_>, pod: &str, patch: &str) -> Result<String, Failed> {
    n.ok(&["patch", "pod", pod, "--subresource", "resize", "-p", patch], "")
}

/// Waits until the kubelet has seen the newest generation, no resize is left, and the pod is ready.
fn resized(n: &Namespace<'_>, pod: &str) -> Outcome {
    until(&format!("{pod} is resized"), Duration::from_secs(60), || {
        let said = n.run(&["get", "pod", pod, "-o", "json"], "").map_err(|e| format!("{e:?}"))?;
        let object: Value = serde_json::from_str(&said.out).map_err(|e| format!("{e}: {said:?}"))?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let has = |type_: &str| conditions.iter().any(|c| c["type"] == type_ && c["status"] == "True");
        Ok(object["status"]["observedGeneration"] == object["metadata"]["generation"]
            && !has("PodResizePending")
            && !has("PodResizeInProgress")
            && has("Ready"))
    })
}

fn expect_limits(n: &Namespace<'_>, pod: &str, container: &str, want: &str) -> Outcome {
    let seen = n.ok(&["exec", pod, "-c", container, "--", "sh", "-c", LIMITS], "")?;
    if seen.trim() != want { Err(format!("{pod} {container}: {seen}, wanted {want}").into()) } else { Ok(()) }
}

fn restart_count(n: &Namespace<'_>, pod: &str) -> Result<String, Failed> {
    n.jsonpath(&format!("pod/{pod}"), "{.status.containerStatuses[0].restartCount}")
}

fn resizes(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &sized("p", "100m", "32Mi").to_string())?;
    n.ok(&["wait", "pod/p", "--for=condition=Ready", "--timeout=60s"], "")?;
    expect_limits(&n, "p", "main", "100 32")?;
    let id = n.jsonpath("pod/p", "{.status.containerStatuses[0].containerID}")?;
    for (cpu, memory, want) in
        [("200m", "64Mi", "200 64"), ("150m", "48Mi", "150 48"), ("100m", "32Mi", "100 32")]
    {
        resize(&n, "p", &patch("main", cpu, memory))?;
        resized(&n, "p")?;
        expect_limits(&n, "p", "main", want)?;
    }
    let after = n.jsonpath("pod/p", "{.status.containerStatuses[0].containerID}")?;
    if id != after || restart_count(&n, "p")? != "0" {
        return Err(format!("{id} became {after}").into());
    }
    let status = n.jsonpath("pod/p", "{.status.containerStatuses[0].resources.limits}")?;
    if status != r#"{"cpu":"100m","memory":"32Mi"}"# {
        return Err(status.into());
    }
    n.until(&["get", "events"], "Pod resize completed: {\"containers\":[{\"name\":\"main\"", 10)?;
    n.ok(&["delete", "pod", "p"], "")?;
    Ok(())
}

fn failures(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["create", "quota", "q", "--hard=requests.cpu=300m"], "")?;
    n.until(&["get", "quota", "q"], "requests.cpu: 0/300m", 10)?;
    n.ok(&["apply", "-f", "-"], &sized("p", "100m", "32Mi").to_string())?;
    n.ok(&["wait", "pod/p", "--for=condition=Ready", "--timeout=60s"], "")?;
    let refused = |patch: &str, why: &str| {
        n.expect(&["patch", "pod", "p", "--subresource", "resize", "-p", patch], "", 1, why)
    };
    refused(
        &patch("main", "500m", "32Mi"),
        "exceeded quota: q, requested: requests.cpu=400m, used: requests.cpu=100m, limited: requests.cpu=300m",
    )?;
    refused(
        &patch("main", "1000", "32Mi"),
        "node didn't have enough allocatable resources: cpu, requested: 1000000",
    )?;
    refused(&patch("other", "1", "1Mi"), "containers may not be added or removed on resize")?;
    let class = r#"{"spec":{"containers":[{"name":"main","resources":{"limits":{"cpu":"200m"}}}]}}"#;
    refused(class, "Pod QOS Class may not change as a result of resizing")?;
    // Below what the container uses.
    resize(&n, "p", &patch("main", "100m", "10Ki"))?;
    let message = r#"jsonpath={.status.conditions[?(@.type=="PodResizeInProgress")].message}"#;
    n.until(&["get", "pod", "p", "-o", message], "memory limit (10240) below current usage", 30)?;
    expect_limits(&n, "p", "main", "100 32")?;
    n.until(&["get", "events"], "ResizeError", 10)?;
    resize(&n, "p", &patch("main", "100m", "32Mi"))?;
    resized(&n, "p")?;
    if restart_count(&n, "p")? != "0" {
        return Err("restarted".into());
    }
    n.ok(&["delete", "pod", "p"], "")?;
    Ok(())
}

fn restarts(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    let mut policy = sized("p", "100m", "32Mi");
    policy["spec"]["containers"][0]["resizePolicy"] =
        json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let mut sidecar = policy["spec"]["containers"][0].clone();
    sidecar["name"] = "side".into();
    sidecar["restartPolicy"] = "Always".into();
    sidecar.as_object_mut().map(|map| map.remove("resizePolicy"));
    policy["spec"]["initContainers"] = json!([sidecar]);
    n.ok(&["apply", "-f", "-"], &policy.to_string())?;
    n.ok(&["wait", "pod/p", "--for=condition=Ready", "--timeout=60s"], "")?;
    resize(&n, "p", &patch("main", "200m", "32Mi"))?;
    resized(&n, "p")?;
    if restart_count(&n, "p")? != "0" {
        return Err("restarted without need".into());
    }
    resize(&n, "p", &patch("main", "200m", "64Mi"))?;
    n.until(&["get", "pod", "p", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"], "1", 30)?;
    resized(&n, "p")?;
    expect_limits(&n, "p", "main", "200 64")?;
    let side = patch("side", "300m", "48Mi").replace("\"containers\"", "\"initContainers\"");
    resize(&n, "p", &side)?;
    resized(&n, "p")?;
    expect_limits(&n, "p", "side", "300 48")?;
    // The whole pod.
    let mut whole = pod("w", WAIT);
    whole["spec"]["resources"] =
        json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "64Mi"}});
    n.ok(&["apply", "-f", "-"], &whole.to_string())?;
    n.ok(&["wait", "pod/w", "--for=condition=Ready", "--timeout=60s"], "")?;
    expect_limits(&n, "w", "main", "200 64")?;
    resize(&n, "w", r#"{"spec":{"resources":{"limits":{"cpu":"400m","memory":"96Mi"}}}}"#)?;
    resized(&n, "w")?;
    expect_limits(&n, "w", "main", "400 96")?;
    n.ok(&["delete", "pod", "p", "w"], "")?;
    Ok(())
}
