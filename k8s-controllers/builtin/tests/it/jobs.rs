//! Jobs: the effect of each field, as a table.

use std::time::Duration;

use jiff::Timestamp;
use k8s_builtin::{conditions, pods};
use k8s_core::{
    api::api::{batch::v1::Job, core::v1::Pod},
    meta::ObjectExt,
};
use serde_json::{Value, json};

use crate::{
    is_finished,
    lab::{Fate, Lab},
    runs,
};

fn job(spec: Value) -> Job {
    let mut job = json!({
        "metadata": {"name": "work", "namespace": "default"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}]}}},
    });
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    serde_json::from_value(job).unwrap()
}

fn index(pod: &Pod) -> i32 {
    pod.label("batch.kubernetes.io/job-completion-index").and_then(|i| i.parse().ok()).unwrap_or(-1)
}

/// Returns the number of earlier attempts of a pod's index.
fn tries(pod: &Pod) -> i32 {
    let count = |key: &str| pod.annotation(key).and_then(|n| n.parse::<i32>().ok()).unwrap_or(0);
    count("batch.kubernetes.io/job-index-failure-count")
        + count("batch.kubernetes.io/job-index-ignored-failure-count")
}

struct Case {
    name: &'static str,
    spec: Value,
    fate: Fate,
    /// Type, reason and message of the last condition.
    end: (&'static str, &'static str, &'static str),
    /// Expected fields of the status.
    status: Value,
}

fn cases() -> Vec<Case> {
    let case = |name, spec, fate: Fate, end, status| Case { name, spec, fate, end, status };
    let reached = "Reached expected number of succeeded pods";
    let limit = "Job has reached the specified backoff limit";
    let codes = |action: &str| json!({"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [42]}}]});
    let disrupted = json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]});
    vec![
        case(
            "nothing to do",
            json!({"completions": 0}),
            runs,
            ("Complete", "CompletionsReached", reached),
            json!({"succeeded": null, "failed": null, "ready": 0, "terminating": 0}),
        ),
        case(
            "any success is enough",
            json!({"parallelism": 3}),
            |_| "Succeeded",
            ("Complete", "CompletionsReached", reached),
            json!({"succeeded": 3, "active": null}),
        ),
        case(
            "back-off limit",
            json!({"completions": 3, "parallelism": 3, "backoffLimit": 1}),
            |_| "Failed",
            ("Failed", "BackoffLimitExceeded", limit),
            json!({"failed": 3, "completionTime": null}),
        ),
        case(
            "deadline",
            json!({"completions": 1, "activeDeadlineSeconds": 30}),
            runs,
            ("Failed", "DeadlineExceeded", "Job was active longer than specified deadline"),
            json!({"failed": 1, "succeeded": null}),
        ),
        case(
            "fail the job",
            json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed", "podFailurePolicy": codes("FailJob")}),
            |pod| if index(pod) == 2 { "Failed:42" } else { "Running" },
            ("Failed", "PodFailurePolicy", "failed with exit code 42 matching FailJob rule at index 0"),
            json!({"succeeded": null}),
        ),
        case(
            "count, so that the limit ends it",
            json!({"completions": 1, "backoffLimit": 0, "podFailurePolicy": codes("Count")}),
            |_| "Failed:42",
            ("Failed", "BackoffLimitExceeded", limit),
            json!({"failed": 1}),
        ),
        case(
            "ignored failures do not count",
            json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 0, "podFailurePolicy": disrupted}),
            |pod| if tries(pod) < 2 { "Failed!DisruptionTarget" } else { "Succeeded" },
            ("Complete", "CompletionsReached", reached),
            json!({"succeeded": 2, "failed": null, "completedIndexes": "0,1", "failedIndexes": ""}),
        ),
        case(
            "fail an index",
            json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 5, "podFailurePolicy": codes("FailIndex")}),
            |pod| if index(pod) == 1 { "Failed:42" } else { "Succeeded" },
            ("Failed", "FailedIndexes", "Job has failed indexes"),
            json!({"succeeded": 2, "failed": 1, "completedIndexes": "0,2", "failedIndexes": "1"}),
        ),
        case(
            "tries by index",
            json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 1}),
            |pod| match (index(pod), tries(pod)) {
                (0, _) | (2, 0) => "Failed",
                _ => "Succeeded",
            },
            ("Failed", "FailedIndexes", "Job has failed indexes"),
            json!({"succeeded": 2, "failed": 3, "completedIndexes": "1,2", "failedIndexes": "0"}),
        ),
        case(
            "too many failed indexes",
            json!({"completions": 9, "parallelism": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 0, "maxFailedIndexes": 1}),
            |pod| if index(pod) < 2 { "Failed" } else { "Running" },
            (
                "Failed",
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            ),
            // The pod of index 2 is deleted with the Job, and counts.
            json!({"failedIndexes": "0-2", "succeeded": null}),
        ),
        case(
            "success policy",
            json!({"completions": 5, "parallelism": 5, "completionMode": "Indexed", "successPolicy": {"rules": [{"succeededIndexes": "4"}, {"succeededIndexes": "0-2", "succeededCount": 2}]}}),
            |pod| if matches!(index(pod), 1 | 2) { "Succeeded" } else { "Running" },
            ("Complete", "SuccessPolicy", "Matched rules at index 1"),
            json!({"succeeded": 2, "completedIndexes": "1,2", "active": null}),
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn jobs_end_as_their_fields_say() {
    for case in cases() {
        let lab = Lab::start(2, case.fate).await;
        let created: Job = lab.create(&job(case.spec)).await;
        lab.until(case.name, async || is_finished(&lab.get("work").await)).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let live: Job = lab.get("work").await;
        let status = live.status.clone().unwrap();
        let (kind, reason, message) = case.end;
        let criterion = if kind == "Complete" { "SuccessCriteriaMet" } else { "FailureTarget" };
        for kind in [criterion, kind] {
            let found = conditions::find(status.conditions.as_ref(), kind).unwrap();
            assert_eq!(
                (found.status.as_str(), found.reason.as_deref()),
                ("True", Some(reason)),
                "{}",
                case.name
            );
            let said = found.message.clone().unwrap_or_default();
            assert!(said.contains(message), "{}: {said}", case.name);
        }
        let shown = serde_json::to_value(&status).unwrap();
        for (field, want) in case.status.as_object().unwrap() {
            assert_eq!(shown[field], *want, "{}: {field} of {shown}", case.name);
        }
        assert_eq!(shown["uncountedTerminatedPods"], json!({}), "{}", case.name);
        for pod in lab.list::<Pod>().await {
            assert!(
                pod.metadata.finalizers.iter().flatten().next().is_none(),
                "{}: {}",
                case.name,
                pod.name()
            );
            assert!(pods::is_terminal(&pod), "{}: {} goes on", case.name, pod.name());
        }
        let (kind, part) =
            if kind == "Complete" { ("Completed", "Job completed") } else { (reason, message) };
        assert!(lab.heard("Job", kind, part).await, "{}: no event {kind}", case.name);
        assert_eq!(live.uid(), created.uid());
        lab.is_quiet().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspended_job_has_no_pods_and_begins_anew() {
    let lab = Lab::start(2, runs).await;
    lab.create(&job(
        json!({"completions": 2, "parallelism": 2, "suspend": true, "activeDeadlineSeconds": 100}),
    ))
    .await;
    let status = async || lab.get::<Job>("work").await.status.unwrap_or_default();
    let suspended = async |value: &str| {
        let all = status().await.conditions;
        conditions::find(all.as_ref(), "Suspended").is_some_and(|c| c.status == value)
    };
    let suspend = async |on: bool| {
        lab.edit("work", move |j: &mut Job| j.spec.as_mut().unwrap().suspend = Some(on)).await;
    };
    lab.until("suspended", async || suspended("True").await).await;
    assert!(status().await.start_time.is_none() && lab.list::<Pod>().await.is_empty());
    suspend(false).await;
    lab.until("runs", async || status().await.ready == Some(2)).await;
    assert!(suspended("False").await && status().await.start_time.is_some());
    tokio::time::sleep(Duration::from_secs(80)).await;
    suspend(true).await;
    lab.until("no pods", async || lab.list::<Pod>().await.is_empty()).await;
    tokio::time::sleep(Duration::from_secs(500)).await;
    assert!(suspended("True").await && status().await.start_time.is_none());
    assert_eq!(status().await.failed, None, "pods that were taken away have not failed");
    suspend(false).await;
    lab.until("runs", async || status().await.ready == Some(2)).await;
    tokio::time::sleep(Duration::from_secs(80)).await;
    assert_eq!(status().await.ready, Some(2), "the deadline begins anew");
    lab.edit("work", |j: &mut Job| j.spec.as_mut().unwrap().parallelism = Some(1)).await;
    lab.until("one runs", async || status().await.active == Some(1) && status().await.terminating == Some(0))
        .await;
    assert_eq!(status().await.failed, None);
    for (reason, message) in [("Suspended", "Job suspended"), ("Resumed", "Job resumed")] {
        assert!(lab.heard("Job", reason, message).await, "{reason}");
    }
    lab.until("deadline", async || is_finished(&lab.get("work").await)).await;
}

fn created(pod: &Pod) -> Timestamp {
    pod.metadata.creation_timestamp.as_ref().unwrap().0
}

#[tokio::test(start_paused = true)]
async fn failed_pods_are_replaced_ever_later() {
    let lab = Lab::start(1, |_| "Failed:1").await;
    lab.create(&job(json!({"completions": 1, "backoffLimit": 3}))).await;
    lab.until("failed", async || is_finished(&lab.get("work").await)).await;
    let mut all: Vec<Pod> = lab.list().await;
    all.sort_by_key(created);
    let gaps: Vec<i64> =
        all.windows(2).map(|w| created(&w[1]).as_second() - created(&w[0]).as_second()).collect();
    // One second more for the pod to fail, and perhaps one for rounding.
    for (gap, want) in gaps.iter().zip([10, 20, 40]) {
        assert!((want..=want + 2).contains(gap), "{gaps:?}");
    }
    assert_eq!(gaps.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn pods_of_an_indexed_job_know_their_index() {
    let lab = Lab::start(1, |_| "Succeeded").await;
    lab.create(&job(json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed"}))).await;
    lab.until("complete", async || is_finished(&lab.get("work").await)).await;
    let mut all: Vec<Pod> = lab.list().await;
    all.sort_by_key(index);
    for (i, pod) in all.iter().enumerate() {
        let spec = pod.spec.as_ref().unwrap();
        assert!(pod.name().starts_with(&format!("work-{i}-")));
        assert_eq!(spec.hostname, Some(format!("work-{i}")));
        assert_eq!(pod.annotation("batch.kubernetes.io/job-completion-index"), Some(i.to_string().as_str()));
        let env = spec.containers[0].env.as_ref().unwrap();
        let field =
            env.iter().find(|e| e.name == "JOB_COMPLETION_INDEX").unwrap().value_from.clone().unwrap();
        let path = field.field_ref.unwrap().field_path;
        assert_eq!(path, "metadata.labels['batch.kubernetes.io/job-completion-index']");
    }
    assert_eq!(all.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn only_ended_pods_are_replaced_where_that_is_asked_and_strangers_jobs_are_left_alone() {
    let lab = Lab::start(1, runs).await;
    lab.create(&job(json!({"completions": 1, "podReplacementPolicy": "Failed"}))).await;
    let mut strange = job(json!({"managedBy": "example.com/other"}));
    strange.metadata.name = Some("strange".into());
    lab.create(&strange).await;
    lab.until("runs", async || lab.list::<Pod>().await.iter().any(pods::is_ready)).await;
    let first = lab.list::<Pod>().await[0].clone();
    lab.delete::<Pod>(first.name(), "Background").await;
    // The kubelet needs a second to end the pod; it is replaced only then.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(lab.list::<Pod>().await.len(), 1);
    assert_eq!(lab.get::<Job>("work").await.status.unwrap().terminating, Some(1));
    assert_eq!(lab.get::<Job>("strange").await.status.unwrap_or_default(), Default::default());
}

#[tokio::test(start_paused = true)]
async fn a_job_made_again_under_its_name_lets_the_pods_of_the_first_go() {
    let lab = Lab::start(1, runs).await;
    lab.create(&job(json!({"completions": 1}))).await;
    lab.until("runs", async || lab.list::<Pod>().await.iter().any(pods::is_ready)).await;
    let first = lab.list::<Pod>().await[0].clone();
    // The controllers' next reconcile is at the full second.
    lab.delete::<Job>("work", "Background").await;
    let second = lab.create(&job(json!({"completions": 1}))).await;
    lab.until("the first pod is gone", async || {
        lab.list::<Pod>().await.iter().all(|p| p.uid() != first.uid())
    })
    .await;
    lab.until("runs", async || lab.list::<Pod>().await.iter().any(pods::is_ready)).await;
    let left = lab.list::<Pod>().await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].controller_ref().unwrap().uid, second.uid());
}
