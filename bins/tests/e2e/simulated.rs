//! Simulated nodes under kubectl: `up --simulated-nodes`, nodes that a user adds, and kwok's Stages.

use std::{collections::HashSet, time::Duration};

use serde_json::Value;

use crate::{
    Outcome,
    harness::{Cluster, deployment, until},
};

pub const TESTS: &[crate::Test] = &[
    ("up_with_simulated_nodes_runs_pods_and_mounts_nothing", pods),
    ("a_stage_of_kwok_changes_what_pods_do", stages),
];

fn up(nodes: &str, more: &[&str]) -> Result<Cluster, libtest_mimic::Failed> {
    let mut cluster = Cluster::prepare()?;
    cluster.start_up_with(&[&["--simulated-nodes", nodes], more].concat())?;
    Ok(cluster)
}

fn pods() -> Outcome {
    let mut cluster = up("300", &["--simulated-heartbeat-interval", "20s"])?;
    until("one line about the nodes", Duration::from_secs(30), || {
        Ok(cluster.log().contains("300 nodes ready (node-1-0 to node-1-299)"))
    })?;
    let n = cluster.namespace("many")?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 40).to_string())?;
    n.ok(&["rollout", "status", "deployment/web", "--timeout=60s"], "")?;
    let all: Value = serde_json::from_str(&n.ok(&["get", "pods", "-o", "json"], "")?)?;
    let addresses: HashSet<&str> =
        all["items"].as_array().into_iter().flatten().filter_map(|p| p["status"]["podIP"].as_str()).collect();
    if addresses.len() != 40 {
        return Err(format!("40 addresses: {addresses:?}").into());
    }
    let pod = &all["items"][0];
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    let range = n.jsonpath(&format!("node/{node}"), "{.spec.podCIDR}")?;
    let prefix = range.trim_end_matches("0/24");
    if !pod["status"]["podIP"].as_str().is_some_and(|ip| !prefix.is_empty() && ip.starts_with(prefix)) {
        return Err(format!("{range}: {pod}").into());
    }
    n.until(&["top", "node", &node], &node, 60)?;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    n.expect(&["logs", &name], "", 1, "simulated nodes run no process")?;
    n.ok(&["drain", &node, "--ignore-daemonsets", "--timeout=60s"], "")?;
    n.ok(&["rollout", "status", "deployment/web", "--timeout=60s"], "")?;
    let left =
        n.ok(&["get", "pods", "--field-selector", &format!("spec.nodeName={node}"), "-o", "name"], "")?;
    if !left.is_empty() {
        return Err(format!("left on {node}: {left}").into());
    }
    n.ok(&["create", "job", "once", "--image=i"], "")?;
    n.ok(&["wait", "--for=condition=Complete", "--timeout=60s", "job/once"], "")?;
    // A node that somebody adds as for kwok.
    let annotations = serde_json::json!({"kwok.x-k8s.io/node": "fake"});
    let metadata = serde_json::json!({"name": "fake", "annotations": annotations});
    let fake = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata}).to_string();
    n.ok(&["apply", "-f", "-"], &fake)?;
    n.ok(&["wait", "--for=condition=Ready", "--timeout=60s", "node/fake"], "")?;
    n.ok(&["run", "there", "--image=i", "--overrides", "{\"spec\": {\"nodeName\": \"fake\"}}"], "")?;
    n.ok(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/there"], "")?;
    n.until(&["get", "lease", "-n", "kube-node-lease", "fake"], "fake", 60)?;
    let data = cluster.data.display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    if mounts.contains(&data) {
        return Err(format!("mounted below {data}: {mounts}").into());
    }
    cluster.take_down()
}

/// Pods with the label fail after their delay; a Stage that cannot be read is refused.
const STAGES: &str = r#"
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: fails}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchLabels: {fails: "yes"}
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
    - {key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: In, values: ["True"]}
  delay:
    durationMilliseconds: 100
    durationFrom: {expressionFrom: '.metadata.annotations["delay"]'}
  next:
    event: {type: Warning, reason: Broke, message: the pod broke}
    statusTemplate: |
      {{ $now := Now }}
      containerStatuses:
      {{ range .spec.containers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        ready: false
        restartCount: 7
        state:
          terminated: {exitCode: 9, reason: Broke, finishedAt: {{ $now | Quote }}, startedAt: {{ $now | Quote }}}
      {{ end }}
      phase: Failed
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: odd}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector: {matchLabels: {odd: "yes"}}
  next:
    statusTemplate: |
      a: b
      c: {{ Usage "cpu" }}
"#;

fn stages() -> Outcome {
    let mut cluster = up("2", &[])?;
    let n = cluster.namespace("staged")?;
    n.ok(&["apply", "-f", "-"], STAGES)?;
    n.ok(&["wait", "--for=condition=Accepted", "--timeout=60s", "stage/fails"], "")?;
    let refused = "{.status.conditions[?(@.type==\"Accepted\")].message}";
    until("the refusal", Duration::from_secs(30), || {
        let told = n.jsonpath("stage/odd", refused).map_err(|e| format!("{e:?}"))?;
        Ok(told.contains("spec.next.statusTemplate: line 2: function \"Usage\" is not supported"))
    })?;
    n.ok(&["run", "good", "--image=i"], "")?;
    n.ok(&["run", "bad", "--image=i", "--labels=fails=yes", "--annotations=delay=300ms"], "")?;
    n.ok(&["wait", "--for=jsonpath={.status.phase}=Failed", "--timeout=60s", "pod/bad"], "")?;
    let code = n.jsonpath("pod/bad", "{.status.containerStatuses[0].state.terminated.exitCode}")?;
    if code != "9" || n.jsonpath("pod/good", "{.status.phase}")? != "Running" {
        return Err(format!("exit code {code}").into());
    }
    n.until(&["get", "events", "--field-selector", "reason=Broke"], "the pod broke", 30)?;
    // Deletion goes on without a Stage for it, and so does all else when the Stages are gone.
    n.ok(&["delete", "pod", "bad", "--timeout=60s"], "")?;
    n.ok(&["delete", "stages", "--all"], "")?;
    n.ok(&["run", "again", "--image=i", "--labels=fails=yes"], "")?;
    n.ok(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/again"], "")?;
    cluster.take_down()
}
