use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-11-28T12:00:00Z";

/// A pod: its node, state and revision. States: `ready`, `young` (ready for ten seconds), `running` (not
/// ready), `waiting` (not scheduled), `failed`, `succeeded`, `leaving` (ready, being deleted), `gone` (failed,
/// being deleted).
type Sketch = (&'static str, &'static str, &'static str);

fn pod(number: usize, (node, state, revision): Sketch) -> Arc<Pod> {
    let phase = match state {
        "waiting" => "Pending",
        "failed" | "gone" => "Failed",
        "succeeded" => "Succeeded",
        _ => "Running",
    };
    let ready = matches!(state, "ready" | "young" | "leaving");
    let since = if state == "young" { "2026-11-28T11:59:50Z" } else { "2026-11-28T11:00:00Z" };
    let mut pod = json!({
        "metadata": {"name": format!("{node}-{state}-{revision}"), "namespace": "a", "labels": {HASH: revision},
            "creationTimestamp": format!("2026-11-28T10:00:{number:02}Z")},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": phase, "conditions": [
            {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": since}]},
    });
    if matches!(state, "leaving" | "gone") {
        pod["metadata"]["deletionTimestamp"] = NOW.into();
    }
    if state == "waiting" {
        pod["spec"]["nodeName"] = Value::Null;
        let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
        let terms = json!({"nodeSelectorTerms": [{"matchFields": [field]}]});
        pod["spec"]["affinity"] =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}});
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// A node: its name and the effect of its taint, if any, after a colon.
fn node(text: &str) -> Arc<Node> {
    let (name, taint) = text.split_once(':').map_or((text, None), |(name, effect)| (name, Some(effect)));
    let taints: Vec<Value> = taint.iter().map(|effect| json!({"key": "t", "effect": effect})).collect();
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"taints": taints}})).unwrap())
}

struct Case {
    set: DaemonSet,
    nodes: Vec<Arc<Node>>,
    pods: Vec<Arc<Pod>>,
    wait: Duration,
}

fn case(update: Value, nodes: &[&str], pods: &[Sketch]) -> Case {
    let mut spec = json!({"selector": {"matchLabels": {"app": "d"}}, "template": {}});
    spec.as_object_mut().unwrap().extend(update.as_object().unwrap().clone());
    let set = json!({"metadata": {"name": "d", "namespace": "a", "generation": 4}, "spec": spec});
    Case {
        set: serde_json::from_value(set).unwrap(),
        nodes: nodes.iter().map(|text| node(text)).collect(),
        pods: pods.iter().enumerate().map(|(number, sketch)| pod(number, *sketch)).collect(),
        wait: Duration::ZERO,
    }
}

impl Case {
    fn plan(&self) -> Plan {
        let wait = self.wait;
        let observed = Observed {
            set: &self.set,
            hashes: &["new".to_owned()],
            nodes: &self.nodes,
            pods: &self.pods,
            wait: &|_| wait,
            now: NOW.parse().unwrap(),
        };
        observed.plan()
    }

    /// The steps in words: `+a` for a pod created for node a, `-` and a name for one deleted, `!` and a name
    /// for one that has ended.
    fn steps(&self) -> Vec<String> {
        let plan = self.plan();
        let create = plan.create.iter().map(|node| format!("+{node}"));
        let delete = plan.delete.iter().map(|pod| format!("-{}", pod.name()));
        create.chain(delete).chain(plan.ended.iter().map(|(pod, _)| format!("!{}", pod.name()))).collect()
    }
}

fn steps(update: Value, nodes: &[&str], pods: &[Sketch]) -> Vec<String> {
    case(update, nodes, pods).steps()
}

fn rolling(unavailable: Value, surge: Value) -> Value {
    let limits = json!({"maxUnavailable": unavailable, "maxSurge": surge});
    json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": limits}})
}

fn one_by_one() -> Value {
    rolling(1.into(), 0.into())
}

fn surging() -> Value {
    rolling(0.into(), 1.into())
}

const NONE: [&str; 0] = [];
const THREE: [&str; 3] = ["a", "b", "c"];

#[test]
fn each_node_that_fits_gets_one_pod() {
    let all = ["a", "b:NoSchedule", "c:NoExecute"];
    assert_eq!(steps(one_by_one(), &all, &[]), ["+a"]);
    let there = [("a", "ready", "new"), ("b", "ready", "new"), ("c", "ready", "new")];
    assert_eq!(steps(one_by_one(), &all, &there), ["-c-ready-new"], "NoSchedule lets it stay");
    let twice = [("a", "ready", "new"), ("a", "running", "new")];
    assert_eq!(steps(one_by_one(), &["a"], &twice), ["-a-running-new"], "the oldest stays");
    let unscheduled = [("a", "waiting", "new"), ("a", "ready", "new")];
    assert_eq!(steps(one_by_one(), &["a"], &unscheduled), ["-a-waiting-new"], "a scheduled one stays");
    for leaving in ["leaving", "ready"] {
        assert_eq!(steps(one_by_one(), &["a"], &[("a", leaving, "new")]), NONE, "{leaving}");
    }
    assert_eq!(steps(one_by_one(), &["a"], &[("a", "gone", "new")]), ["+a"]);
    assert_eq!(steps(surging(), &["a"], &[("a", "leaving", "new")]), ["+a"]);
    let lost = [("x", "waiting", "new"), ("y", "running", "new")];
    assert_eq!(steps(one_by_one(), &[], &lost), ["-x-waiting-new"], "pod GC has the other one");
}

#[test]
fn pods_that_have_ended_are_deleted() {
    let ended = [("a", "failed", "new"), ("b", "succeeded", "new")];
    for update in [one_by_one(), surging()] {
        let mut case = case(update, &["a", "b"], &ended);
        assert_eq!(case.steps(), ["!a-failed-new", "!b-succeeded-new"]);
        case.wait = Duration::from_secs(7);
        assert_eq!(case.steps(), ["!b-succeeded-new"]);
        assert_eq!(case.plan().after, Some(Duration::from_secs(7)));
    }
    let two = [("a", "failed", "new"), ("a", "failed", "old")];
    assert_eq!(steps(surging(), &["a"], &two), ["!a-failed-new"], "one by one");
}

#[test]
fn an_update_leaves_all_but_max_unavailable_available() {
    let old = [("a", "ready", "old"), ("b", "ready", "old"), ("c", "ready", "old")];
    assert_eq!(steps(one_by_one(), &THREE, &old), ["-a-ready-old"]);
    assert_eq!(steps(rolling(2.into(), 0.into()), &THREE, &old), ["-a-ready-old", "-b-ready-old"]);
    assert_eq!(steps(rolling("34%".into(), 0.into()), &THREE, &old), ["-a-ready-old", "-b-ready-old"]);
    assert_eq!(steps(json!({"updateStrategy": {"type": "OnDelete"}}), &THREE, &old), NONE);
    let unready = [("a", "running", "new"), old[1], old[2]];
    assert_eq!(steps(one_by_one(), &THREE, &unready), NONE);
    let sick = [("a", "running", "old"), ("b", "running", "old"), old[2]];
    assert_eq!(steps(one_by_one(), &THREE, &sick), ["-a-running-old", "-b-running-old"]);
    let leaving = [("a", "leaving", "old"), old[1], old[2]];
    assert_eq!(steps(one_by_one(), &THREE, &leaving), NONE);
    assert_eq!(steps(one_by_one(), &THREE, &[("a", "ready", "new"), old[1]]), ["+c"], "missing ones first");
}

#[test]
fn a_pod_counts_after_min_ready_seconds() {
    let mut update = one_by_one();
    update["minReadySeconds"] = 30.into();
    let young = case(update, &["a", "b"], &[("a", "young", "new"), ("b", "ready", "old")]);
    assert_eq!(young.steps(), NONE);
    let plan = young.plan();
    assert_eq!((plan.after, plan.status.number_available), (Some(Duration::from_secs(20)), Some(1)));
    assert_eq!((plan.status.number_ready, plan.status.number_unavailable), (2, Some(1)));
}

#[test]
fn a_surge_adds_the_new_pod_first() {
    let old = [("a", "ready", "old"), ("b", "ready", "old"), ("c", "ready", "old")];
    assert_eq!(steps(surging(), &THREE, &old), ["+a"]);
    assert_eq!(steps(rolling(0.into(), "50%".into()), &THREE, &old), ["+a", "+b"]);
    let with = |state| [old[0], old[1], old[2], ("a", state, "new")];
    assert_eq!(steps(surging(), &THREE, &with("running")), NONE);
    assert_eq!(steps(surging(), &THREE, &with("waiting")), NONE);
    assert_eq!(steps(surging(), &THREE, &with("ready")), ["-a-ready-old"]);
    let sick = [("a", "running", "old"), old[1], old[2], ("a", "running", "new")];
    assert_eq!(steps(surging(), &THREE, &sick), ["-a-running-old"], "the new one is no worse");
    let alone = [("a", "running", "old"), old[1], old[2]];
    assert_eq!(steps(surging(), &THREE, &alone), ["+a", "+b"], "one that ails takes nothing of the surge");
    let three = [old[0], ("a", "running", "new"), ("a", "running", "old")];
    assert_eq!(steps(surging(), &["a"], &three), ["-a-running-old"]);
}

#[test]
fn a_surge_leaves_a_node_when_others_have_its_pod() {
    let update = surging;
    let moved = ["a:NoSchedule", "b"];
    let waiting = [("a", "ready", "old"), ("b", "running", "new")];
    assert_eq!(steps(update(), &moved, &waiting), NONE);
    let there = [("a", "ready", "old"), ("b", "ready", "new")];
    assert_eq!(steps(update(), &moved, &there), ["-a-ready-old"]);
    assert_eq!(
        steps(update(), &moved, &[("a", "running", "old"), ("b", "ready", "new")]),
        ["-a-running-old"]
    );
}

#[test]
fn the_status_counts_nodes() {
    let nodes = ["a", "b", "c", "d:NoExecute", "e"];
    let pods = [
        ("a", "ready", "new"),
        ("b", "ready", "old"),
        ("c", "running", "new"),
        ("d", "ready", "new"),
        ("x", "ready", "new"),
    ];
    let status = case(one_by_one(), &nodes, &pods).plan().status;
    assert_eq!((status.desired_number_scheduled, status.current_number_scheduled), (4, 3));
    assert_eq!((status.number_misscheduled, status.number_ready), (1, 2));
    assert_eq!((status.updated_number_scheduled, status.number_available), (Some(2), Some(2)));
    assert_eq!((status.number_unavailable, status.observed_generation), (Some(2), Some(4)));
}

#[test]
fn a_template_generation_is_as_good_as_a_hash() {
    let mut case = case(one_by_one(), &["a"], &[("a", "ready", "other")]);
    assert_eq!(case.steps(), ["-a-ready-other"]);
    case.set.metadata.annotations =
        Some([("deprecated.daemonset.template.generation".to_owned(), "4".to_owned())].into());
    let pod = Arc::make_mut(&mut case.pods[0]);
    pod.metadata.labels.as_mut().unwrap().insert("pod-template-generation".into(), "4".into());
    assert_eq!(case.steps(), NONE);
}
