//! Pods that the node evicts: for limits of local storage, and where it is short of disk or memory.

use std::time::Duration;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Outcome,
    harness::{Cluster, HYPERKUBE, IMAGE_2, Namespace, WAIT, pod, run, until},
};

type Test = fn(&Cluster, &str) -> Outcome;

pub const SHARED: &[(&str, Test)] = &[("pods_over_their_limits_of_local_storage_are_evicted", limits)];

pub const TESTS: &[crate::Test] = &[
    ("a_node_short_of_disk_or_memory_evicts_pods", pressure),
    ("bad_thresholds_are_refused", bad_thresholds),
];

/// Writes a file of so many MiB, and waits.
fn writes(path: &str, mib: u32) -> String {
    format!("/bin/busybox dd if=/dev/zero of={path} bs=1048576 count={mib}; {WAIT}")
}

/// Phase, reason and message of a pod.
fn status(n: &Namespace<'_>, pod: &str) -> Result<[String; 3], Failed> {
    let of = |field: &str| n.jsonpath(&format!("pod/{pod}"), &format!("{{.status.{field}}}"));
    Ok([of("phase")?, of("reason")?, of("message")?])
}

fn until_evicted(n: &Namespace<'_>, pod: &str, message: &str) -> Outcome {
    until(&format!("{pod} is evicted"), Duration::from_secs(60), || {
        let [phase, reason, said] = status(n, pod).map_err(|e| format!("{e:?}"))?;
        if phase == "Failed" && reason == "Evicted" && said.contains(message) {
            return Ok(true);
        }
        Err(format!("{phase} {reason} {said}"))
    })
}

fn limits(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    let volume = |name: &str, mib: u32| {
        let mut pod = pod(name, &writes("/v/file", mib));
        pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"sizeLimit": "4Mi"}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        pod
    };
    let layer = |name: &str, mib: u32| {
        let mut pod = pod(name, &writes("/tmp/file", mib));
        let limits = json!({"limits": {"ephemeral-storage": "4Mi"}});
        pod["spec"]["containers"][0]["resources"] = limits;
        pod
    };
    // A pod that hides what it writes below many directories.
    let mut deep = volume("deep", 0);
    let script = format!(
        "cd /v; i=0; while [ $i -lt 30 ]; do mkdir {0}; cd -P {0}; i=$((i+1)); done; /bin/busybox dd if=/dev/zero of=f bs=1048576 count=6; {WAIT}",
        "d".repeat(200)
    );
    deep["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]);
    for pod in [volume("volume", 6), volume("small", 2), layer("layer", 6), layer("small-layer", 2), deep] {
        let said = n.run(&["apply", "-f", "-"], &pod.to_string())?;
        if said.code != 0 || said.err.contains("Warning") {
            return Err(format!("{said:?}").into());
        }
    }
    let of_volume = "Usage of EmptyDir volume \"v\" exceeds the limit \"4Mi\". ";
    until_evicted(&n, "volume", of_volume)?;
    until_evicted(&n, "deep", of_volume)?;
    let of_pod = "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ";
    until_evicted(&n, "layer", of_pod)?;
    n.until(&["describe", "pod", "layer"], of_pod, 10)?;
    let uid = n.jsonpath("pod/volume", "{.metadata.uid}")?;
    let dir = cluster.data.join(format!("kubelet/pods/{uid}"));
    until("its files are gone", Duration::from_secs(10), || Ok(!dir.exists()))?;
    for small in ["small", "small-layer"] {
        n.expect(&["get", "pod", small], "", 0, "Running")?;
    }
    n.ok(&["delete", "pod", "--all", "--grace-period=1", "--timeout=60s"], "").map(drop)
}

/// Runs pods, and starts the node anew with thresholds that are surely met.
fn pressure() -> Outcome {
    let mut cluster = Cluster::up()?;
    let restart = |cluster: &mut Cluster, more: &[&str]| -> Outcome {
        for mut process in cluster.processes.drain(..) {
            process.stop()?;
        }
        cluster.start_up_short_of_disk(more)
    };
    {
        let n = cluster.namespace("evicted")?;
        n.ok(&["apply", "-f", "-"], &pod("plain", WAIT).to_string())?;
        let mut critical = pod("critical", WAIT);
        critical["spec"]["priorityClassName"] = json!("system-node-critical");
        n.ok(&["apply", "-f", "-"], &critical.to_string())?;
        n.ok(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"], "")?;
    }

    restart(&mut cluster, &["--eviction-hard", "nodefs.available<99%"])?;
    let n = Namespace { cluster: &cluster, name: "evicted".into() };
    until_evicted(&n, "plain", "The node was low on resource: ephemeral-storage. Threshold quantity: ")?;
    let target = n.jsonpath("pod/plain", "{.status.conditions[?(@.type==\"DisruptionTarget\")].reason}")?;
    if target != "TerminationByKubelet" {
        return Err(format!("DisruptionTarget: {target:?}").into());
    }
    n.expect(&["get", "pod", "critical"], "", 0, "Running")?;
    n.until(&["describe", "node", "node-1"], "kubelet has disk pressure", 10)?;
    n.until(&["describe", "node", "node-1"], "node.kubernetes.io/disk-pressure:NoSchedule", 20)?;
    n.until(&["describe", "node", "node-1"], "Attempting to reclaim ephemeral-storage", 20)?;
    // An image that no container has is gone.
    let data = cluster.data.to_string_lossy().into_owned();
    let images =
        run(&mut cluster.hyperkube(&["image", "ls", "--data-dir", &data]), "", Duration::from_secs(20))?;
    if images.code != 0 || images.out.contains(IMAGE_2) {
        return Err(format!("an unused image is left: {images:?}").into());
    }

    // Without thresholds the node takes pods again.
    restart(&mut cluster, &["--eviction-hard="])?;
    let n = Namespace { cluster: &cluster, name: "evicted".into() };
    n.ok(&["apply", "-f", "-"], &pod("second", WAIT).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/second", "--timeout=60s"], "")?;

    restart(
        &mut cluster,
        &[
            "--eviction-hard=",
            "--eviction-soft=memory.available<1000Gi",
            "--eviction-soft-grace-period=memory.available=2s",
        ],
    )?;
    let n = Namespace { cluster: &cluster, name: "evicted".into() };
    until_evicted(
        &n,
        "second",
        "The node was low on resource: memory. Threshold quantity: 1000Gi, available: ",
    )?;
    let message = n.jsonpath("pod/second", "{.status.message}")?;
    if !message.contains("Container main was using") {
        return Err(message.into());
    }
    n.until(&["describe", "node", "node-1"], "kubelet has insufficient memory available", 10)?;
    n.expect(&["get", "pod", "critical"], "", 0, "Running")?;
    let conditions: Value = serde_json::from_str(&n.ok(&["get", "pod", "critical", "-o", "json"], "")?)?;
    if conditions["status"]["containerStatuses"][0]["restartCount"] != 0 {
        return Err(format!("the critical pod was restarted: {conditions}").into());
    }
    cluster.take_down()
}

fn bad_thresholds() -> Outcome {
    for (flag, want) in [
        ("--eviction-hard=memory<1Gi", "--eviction-hard: unsupported eviction signal memory"),
        ("--eviction-soft=memory.available<1Gi", "grace period must be specified for the soft eviction"),
        ("--eviction-minimum-reclaim=memory.available<1", "malformed pair, expect string=string"),
        ("--eviction-hard=", "--eviction-hard: simulated nodes evict no pods"),
    ] {
        let dir = tempfile::tempdir()?;
        let mut command = std::process::Command::new(HYPERKUBE);
        command.arg("up").arg("--data-dir").arg(dir.path().join("data")).arg(flag);
        if want.contains("simulated") {
            command.arg("--simulated-nodes=2");
        }
        let said = run(&mut command, "", Duration::from_secs(20))?;
        if said.code != 2 || !said.err.contains(want) || dir.path().join("data").exists() {
            return Err(format!("{flag}: {said:?}").into());
        }
    }
    Ok(())
}
