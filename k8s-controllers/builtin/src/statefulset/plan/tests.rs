use serde_json::{Value, json};

use super::*;

/// Parts of a case: the spec of a set `db`, and its pods.
struct Case {
    set: StatefulSet,
    pods: Vec<Arc<Pod>>,
    claims: Vec<PersistentVolumeClaim>,
}

const NOW: &str = "2026-11-28T12:00:00Z";

/// A pod: ordinal, state and revision. States: `ready`, `pending`, `running` (not ready), `failed`,
/// `leaving` (ready, being deleted), `young` (ready for ten seconds).
fn pod(ordinal: i32, state: &str, revision: &str) -> Arc<Pod> {
    let name = format!("db-{ordinal}");
    let phase = match state {
        "pending" => "Pending",
        "failed" => "Failed",
        _ => "Running",
    };
    let ready = matches!(state, "ready" | "leaving" | "young");
    let since = if state == "young" { "2026-11-28T11:59:50Z" } else { "2026-11-28T11:00:00Z" };
    let status = if ready { "True" } else { "False" };
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {
            POD_NAME: name, POD_INDEX: ordinal.to_string(), REVISION: revision}},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": since}]},
    });
    if state == "leaving" {
        pod["metadata"]["deletionTimestamp"] = NOW.into();
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn case(spec: Value, pods: &[(i32, &str, &str)]) -> Case {
    let mut whole = json!({"selector": {"matchLabels": {"app": "db"}}, "template": {}});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let set =
        json!({"metadata": {"name": "db", "namespace": "a", "uid": "s", "generation": 3}, "spec": whole});
    Case {
        set: serde_json::from_value(set).unwrap(),
        pods: pods.iter().map(|(ordinal, state, revision)| pod(*ordinal, state, revision)).collect(),
        claims: Vec::new(),
    }
}

impl Case {
    fn plan(&self) -> Plan {
        let template = PodTemplateSpec::default();
        let find = |name: &str| self.claims.iter().find(|c| c.name() == name).cloned().map(Arc::new);
        let observed = Observed {
            set: &self.set,
            pods: &self.pods,
            current: Version { name: "old", template: &template },
            update: Version { name: "new", template: &template },
            claim: &find,
            now: NOW.parse().unwrap(),
        };
        observed.plan()
    }

    /// The steps in words: `+0 new` for a pod made, `-0` for one deleted, `claims 0`, `labels 0`.
    fn steps(&self) -> Vec<String> {
        let steps = self.plan().steps;
        let words = steps.iter().map(|step| match step {
            Step::Create(pod, _) => {
                format!("+{} {}", ordinal(&self.set, pod).unwrap(), pod.label(REVISION).unwrap())
            }
            Step::Delete(pod) => format!("-{}", ordinal(&self.set, pod).unwrap()),
            Step::Claims(pod, _) => format!("claims {}", ordinal(&self.set, pod).unwrap()),
            Step::Identify(_, ordinal) => format!("labels {ordinal}"),
        });
        words.collect()
    }
}

fn steps(spec: Value, pods: &[(i32, &str, &str)]) -> Vec<String> {
    case(spec, pods).steps()
}

const NONE: [&str; 0] = [];

#[test]
fn ordered_pods_come_one_by_one_and_go_from_the_last() {
    let three = || json!({"replicas": 3});
    assert_eq!(steps(three(), &[]), ["+0 new"]);
    for state in ["pending", "running", "leaving"] {
        assert_eq!(steps(three(), &[(0, state, "new")]), NONE, "{state}");
    }
    assert_eq!(steps(three(), &[(0, "ready", "new")]), ["+1 new"]);
    assert_eq!(steps(three(), &[(0, "ready", "new"), (2, "ready", "new")]), ["+1 new"], "a gap is filled");
    assert_eq!(steps(three(), &[(0, "failed", "new"), (1, "ready", "new")]), ["-0"]);

    let one = || json!({"replicas": 1});
    let pods = [(0, "ready", "new"), (1, "ready", "new"), (2, "ready", "new")];
    assert_eq!(steps(one(), &pods), ["-2"]);
    assert_eq!(steps(one(), &[pods[0], pods[1], (2, "leaving", "new")]), NONE);
    assert_eq!(steps(one(), &[(0, "running", "new"), pods[1]]), NONE, "not while one that stays ails");
    assert_eq!(steps(one(), &[pods[0], (1, "running", "new"), pods[2]]), ["-2"]);
    assert_eq!(steps(one(), &[pods[0], pods[1], (2, "running", "new")]), ["-2"], "the only one that ails");
    let both = [pods[0], (1, "running", "new"), (2, "running", "new")];
    assert_eq!(steps(one(), &both), NONE, "as upstream: the lower one ails first");
}

#[test]
fn parallel_pods_come_and_go_at_once() {
    let parallel = |replicas: i32| json!({"replicas": replicas, "podManagementPolicy": "Parallel"});
    assert_eq!(steps(parallel(3), &[(1, "running", "new")]), ["+0 new", "+2 new"]);
    let pods = [(0, "ready", "new"), (1, "ready", "new"), (2, "running", "new")];
    assert_eq!(steps(parallel(1), &pods), ["-2", "-1"]);
}

#[test]
fn ordinals_start_where_they_are_told() {
    let spec = json!({"replicas": 2, "ordinals": {"start": 5}});
    assert_eq!(steps(spec.clone(), &[(5, "ready", "new")]), ["+6 new"]);
    assert_eq!(steps(spec, &[(5, "ready", "new"), (6, "ready", "new"), (0, "ready", "new")]), ["-0"]);
}

#[test]
fn a_rolling_update_goes_from_the_last_to_the_partition() {
    let spec = |rolling: Value| json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}});
    let old = [(0, "ready", "old"), (1, "ready", "old"), (2, "ready", "old")];
    assert_eq!(steps(spec(json!({"partition": 0})), &old), ["-2"]);
    assert_eq!(steps(spec(json!({"partition": 0, "maxUnavailable": 2})), &old), ["-2", "-1"]);
    assert_eq!(steps(spec(json!({"maxUnavailable": "50%"})), &old), ["-2"], "rounded down");
    let waiting = [old[0], old[1], (2, "running", "new")];
    assert_eq!(steps(spec(json!({"partition": 0})), &waiting), NONE);
    let partly = [old[0], old[1], (2, "ready", "new")];
    assert_eq!(steps(spec(json!({"partition": 2})), &partly), NONE);
    assert_eq!(steps(spec(json!({"partition": 1})), &partly), ["-1"]);
    assert_eq!(steps(spec(json!({"partition": 1})), &[]), ["+0 old"], "below the partition");
    assert_eq!(steps(spec(json!({"partition": 1})), &old[..1]), ["+1 new"]);
    assert_eq!(steps(json!({"replicas": 3, "updateStrategy": {"type": "OnDelete"}}), &old), NONE);
}

#[test]
fn a_pod_is_available_after_its_time() {
    let case = case(json!({"replicas": 2, "minReadySeconds": 30}), &[(0, "young", "new")]);
    assert_eq!(case.steps(), NONE);
    let Plan { after, status, .. } = case.plan();
    assert_eq!(after, Some(Duration::from_secs(20)));
    assert_eq!((status.ready_replicas, status.available_replicas), (Some(1), Some(0)));
}

#[test]
fn the_status_counts_revisions_and_ends_an_update() {
    let spec = json!({"replicas": 2, "updateStrategy": {"type": "RollingUpdate"}});
    let mixed = case(spec.clone(), &[(0, "ready", "old"), (1, "ready", "new"), (7, "running", "old")]).plan();
    let status = mixed.status;
    assert_eq!((status.replicas, status.ready_replicas, status.observed_generation), (3, Some(2), Some(3)));
    assert_eq!((status.current_replicas, status.updated_replicas), (Some(2), Some(1)));
    assert_eq!(
        (status.current_revision.as_deref(), status.update_revision.as_deref()),
        (Some("old"), Some("new"))
    );
    let done = case(spec, &[(0, "ready", "new"), (1, "ready", "new")]).plan().status;
    assert_eq!((done.current_revision.as_deref(), done.current_replicas), (Some("new"), Some(2)));
}

#[test]
fn claims_come_before_their_pod_and_again_if_they_are_missing() {
    let spec = json!({"replicas": 1, "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]});
    let mut case = case(spec, &[]);
    let plan = case.plan();
    let [Step::Create(_, claims)] = plan.steps.as_slice() else { panic!("{:?}", plan.steps) };
    assert!(matches!(&claims[..], [Claim::Create(claim)] if claim.name() == "data-db-0"));
    case.pods = vec![pod(0, "pending", "new")];
    assert_eq!(case.steps(), ["claims 0"]);
    case.pods = vec![pod(0, "ready", "new")];
    assert_eq!(case.steps(), NONE, "a running pod has its claim, even if it is gone from the API");
    let claim = json!({"metadata": {"name": "data-db-0", "deletionTimestamp": NOW}});
    case.claims = vec![serde_json::from_value(claim).unwrap()];
    case.pods.clear();
    let plan = case.plan();
    let [Step::Create(_, claims)] = plan.steps.as_slice() else { panic!("{:?}", plan.steps) };
    assert!(matches!(&claims[..], [Claim::Leaving(name)] if name == "data-db-0"));

    // A claim that will be deleted with a former pod is waited for.
    let owner =
        json!({"apiVersion": "v1", "kind": "Pod", "name": "db-0", "uid": "former", "controller": true});
    let claim = json!({"metadata": {"name": "data-db-0", "ownerReferences": [owner]}});
    case.claims = vec![serde_json::from_value(claim).unwrap()];
    let policy = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    case.set.spec.as_mut().unwrap().persistent_volume_claim_retention_policy =
        serde_json::from_value(policy).unwrap();
    assert_eq!(case.steps(), NONE);
}

#[test]
fn pods_of_other_names_are_not_touched_and_labels_mended() {
    let mut case = case(json!({"replicas": 1}), &[(0, "ready", "new")]);
    let mut other = (*case.pods[0]).clone();
    other.metadata.name = Some("db-x".into());
    case.pods.push(Arc::new(other));
    assert_eq!(case.steps(), NONE);
    assert_eq!(case.plan().status.replicas, 1);
    let mut bare = (*case.pods[0]).clone();
    bare.metadata.labels.as_mut().unwrap().remove(POD_INDEX);
    case.pods[0] = Arc::new(bare);
    assert_eq!(case.steps(), ["labels 0"]);
    case.set.metadata.deletion_timestamp = serde_json::from_value(json!(NOW)).unwrap();
    assert_eq!(case.steps(), NONE, "a set that is being deleted only reports");
}

#[test]
fn a_round_is_bounded_whatever_is_asked_for() {
    let spec = json!({"replicas": i32::MAX, "podManagementPolicy": "Parallel", "ordinals": {"start": 5}});
    let made = steps(spec, &[(5, "ready", "new"), (2, "ready", "new")]);
    assert_eq!((made.len(), made[0].as_str()), (BURST, "+6 new"));
}
