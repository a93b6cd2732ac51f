//! DaemonSets: history and rollback.

use std::collections::BTreeMap;

use k8s_builtin::pods::{is_active, is_ready, node_name};
use k8s_core::{
    api::api::{
        apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec},
        core::v1::Pod,
    },
    client::Patch,
    meta::ObjectExt,
};
use serde_json::json;

use crate::lab::{Lab, metadata, selector, template};

/// Pods of the image `broken` never become ready.
fn fate(pod: &Pod) -> &'static str {
    let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.as_deref());
    if image == Some("broken") { "Pending" } else { "Running" }
}

async fn start() -> Lab {
    let lab = Lab::start(3, fate).await;
    let spec = DaemonSetSpec {
        selector: selector("agent"),
        template: template("agent", "one"),
        ..Default::default()
    };
    lab.create(&DaemonSet { metadata: metadata("agent"), spec: Some(spec), status: None }).await;
    lab.until("complete", async || is_complete(&lab).await).await;
    lab
}

async fn is_complete(lab: &Lab) -> bool {
    let live: DaemonSet = lab.get("agent").await;
    let status = live.status.unwrap_or_default();
    let counts = (status.number_available, status.updated_number_scheduled, status.number_unavailable);
    status.observed_generation == live.metadata.generation && counts == (Some(3), Some(3), None)
}

/// Uids of the pods by node.
async fn pods(lab: &Lab) -> BTreeMap<String, String> {
    let all: Vec<Pod> = lab.list().await;
    let ready = all.iter().filter(|pod| is_active(pod) && is_ready(pod));
    ready.map(|pod| (node_name(pod).to_owned(), pod.uid().to_owned())).collect()
}

async fn revisions(lab: &Lab) -> Vec<ControllerRevision> {
    let mut all: Vec<ControllerRevision> = lab.list().await;
    all.sort_by_key(|one| one.revision);
    all
}

#[tokio::test(start_paused = true)]
async fn a_rollback_restarts_what_was_updated_alone() {
    let lab = start().await;
    let before = pods(&lab).await;
    lab.edit("agent", |d: &mut DaemonSet| d.spec.as_mut().unwrap().template = template("agent", "broken"))
        .await;
    lab.until("one is broken", async || lab.list::<Pod>().await.iter().any(|pod| fate(pod) == "Pending"))
        .await;
    lab.is_quiet().await;
    assert_eq!(pods(&lab).await.len(), 2, "no more than one is taken down");
    let history = revisions(&lab).await;
    assert_eq!(history.iter().map(|one| one.revision).collect::<Vec<_>>(), [1, 2]);

    // As `kubectl rollout undo`: the data of a revision is a patch.
    let patch = Patch::Strategic(history[0].data.clone().unwrap().0);
    lab.api::<DaemonSet>().patch("agent", &patch).await.unwrap();
    lab.until("back", async || is_complete(&lab).await).await;
    let after = pods(&lab).await;
    let same = before.iter().filter(|(node, uid)| after.get(*node) == Some(*uid)).count();
    assert_eq!(same, 2, "those that were never updated run on");
    let history = revisions(&lab).await;
    assert_eq!(history.iter().map(|one| one.revision).collect::<Vec<_>>(), [2, 3]);
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn an_equal_revision_made_by_others_is_used() {
    let lab = start().await;
    let before = pods(&lab).await;
    let first = revisions(&lab).await.remove(0);
    let mut copy = first.clone();
    copy.metadata.name = Some("copy".into());
    (copy.metadata.uid, copy.metadata.resource_version) = (None, None);
    copy.revision += 1;
    lab.create(&copy).await;
    lab.delete::<ControllerRevision>(first.name(), "Background").await;
    lab.is_quiet().await;
    let names: Vec<String> = revisions(&lab).await.iter().map(|one| one.name().to_owned()).collect();
    assert_eq!(names, ["copy"]);
    assert_eq!(pods(&lab).await, before);
}

#[tokio::test(start_paused = true)]
async fn another_template_of_the_same_hash_gets_another_name() {
    let lab = start().await;
    let first = revisions(&lab).await.remove(0);
    lab.delete::<DaemonSet>("agent", "Background").await;
    lab.until("gone", async || lab.list::<ControllerRevision>().await.is_empty()).await;
    let mut foreign = first.clone();
    (foreign.metadata.uid, foreign.metadata.resource_version) = (None, None);
    foreign.metadata.owner_references = None;
    foreign.metadata.labels = None;
    foreign.data.as_mut().unwrap().0["spec"]["template"]["spec"]["containers"][0]["image"] = json!("other");
    lab.create(&foreign).await;
    let spec = DaemonSetSpec {
        selector: selector("agent"),
        template: template("agent", "one"),
        ..Default::default()
    };
    lab.create(&DaemonSet { metadata: metadata("agent"), spec: Some(spec), status: None }).await;
    lab.until("complete", async || is_complete(&lab).await).await;
    assert_eq!(lab.get::<DaemonSet>("agent").await.status.unwrap().collision_count, Some(1));
    let all = revisions(&lab).await;
    assert!(all.len() == 2 && all.iter().any(|one| one.name() != first.name()), "{all:?}");
    lab.is_quiet().await;
}
