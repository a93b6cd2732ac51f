//! kill -9 of the program, then `up` again on the same data directory.

use std::time::Duration;

use libtest_mimic::Failed;
use serde_json::Value;

use crate::{
    Outcome,
    harness::{Cluster, WAIT, pod, until},
};

pub const TESTS: &[crate::Test] = &[("kill_9_loses_nothing_and_containers_are_adopted", kill_9)];

fn container(cluster: &Cluster) -> Result<Value, Failed> {
    let json = cluster.ok(&["get", "pod", "p", "-n", "kept", "-o", "json"], "")?;
    let pod: Value = serde_json::from_str(&json)?;
    Ok(pod["status"]["containerStatuses"][0].clone())
}

fn kill_9() -> Outcome {
    let mut cluster = Cluster::up()?;
    let n = cluster.namespace("kept")?;
    n.ok(&["apply", "-f", "-"], &pod("p", WAIT).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"], "")?;
    let before = container(&cluster)?;
    // Writes go on up to the kill: every acknowledged one must exist afterwards.
    let writers: Vec<_> = (0..3)
        .map(|w| {
            let command = |i: usize| {
                cluster.kubectl_command(&["-n", "kept", "create", "configmap", &format!("w{w}-{i}")])
            };
            let commands: Vec<_> = (0..100).map(command).collect();
            std::thread::spawn(move || {
                let mut acknowledged = Vec::new();
                for (i, mut command) in commands.into_iter().enumerate() {
                    match command.output() {
                        Ok(out) if out.status.success() => acknowledged.push(format!("w{w}-{i}")),
                        _ => break,
                    }
                }
                acknowledged
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    let mut killed = cluster.processes.pop().ok_or("not running")?;
    killed.kill();
    let acknowledged: Vec<String> = writers.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect();
    if acknowledged.len() < 3 {
        return Err(format!("only {acknowledged:?} were written before the kill").into());
    }
    cluster.start_up()?;
    let have = cluster.ok(&["get", "configmaps", "-n", "kept", "-o", "name"], "")?;
    let lost: Vec<&String> =
        acknowledged.iter().filter(|name| !have.contains(&format!("configmap/{name}\n"))).collect();
    if !lost.is_empty() {
        return Err(format!("acknowledged and lost: {lost:?}").into());
    }
    // Time for the kubelet to do anything wrong.
    std::thread::sleep(Duration::from_secs(2));
    let after = container(&cluster)?;
    for field in ["containerID", "restartCount", "state"] {
        if before[field] != after[field] {
            return Err(format!("{field}: {} became {}", before[field], after[field]).into());
        }
    }
    cluster.ok(&["exec", "-n", "kept", "p", "--", "true"], "")?;
    cluster.ok(&["logs", "-n", "kept", "p"], "")?;
    cluster.ok(&["delete", "pod", "p", "-n", "kept"], "")?;
    until("the pod is gone", Duration::from_secs(10), || Ok(container(&cluster).is_err()))?;
    cluster.take_down()
}
