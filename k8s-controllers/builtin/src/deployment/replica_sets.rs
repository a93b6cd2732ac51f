//! A Deployment's ReplicaSets: selection of the current one, construction, revisions. Pure.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use k8s_core::{
    api::{
        api::{
            apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
            core::v1::PodTemplateSpec,
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    meta::{ObjectExt, owner_reference},
};

use super::plan::{Bounds, SetView, View};
use crate::hash;

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Label with the hash of the pod's template.
pub(super) const HASH: &str = "pod-template-hash";
/// Annotations of a Deployment that are not copied to its ReplicaSets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    super::rollback::ANNOTATION,
];

pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
}

pub(super) fn desired_annotation(set: &ReplicaSet) -> Option<i32> {
    set.annotation(DESIRED)?.parse().ok()
}

pub(super) fn revision(set: &ReplicaSet) -> i64 {
    set.annotation(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// Returns true if the ReplicaSet controller has observed the current generation.
fn is_observed(set: &ReplicaSet) -> bool {
    let observed = set.status.as_ref().and_then(|s| s.observed_generation);
    observed.unwrap_or(0) >= set.metadata.generation.unwrap_or(0)
}

/// A Deployment's ReplicaSets.
#[derive(Debug)]
pub(super) struct Sets {
    /// The ReplicaSet of the current template.
    pub(super) new: Option<Arc<ReplicaSet>>,
    /// All others, oldest first.
    pub(super) old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    pub(super) fn sort(deployment: &Deployment, mut sets: Vec<Arc<ReplicaSet>>) -> Self {
        let age =
            |s: &Arc<ReplicaSet>| (s.metadata.creation_timestamp.as_ref().map(|t| t.0), s.name().to_owned());
        sets.sort_by_key(age);
        // Of several matches take the oldest, so that the choice is stable.
        let at = sets.iter().position(|set| same_template(deployment, set));
        let new = at.map(|at| sets.remove(at));
        Sets { new, old: sets }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    pub(super) fn total(&self) -> i32 {
        self.all().map(|s| size(s)).sum()
    }

    pub(super) fn find(&self, uid: &str) -> Option<Arc<ReplicaSet>> {
        self.all().find(|s| s.uid() == uid).cloned()
    }

    pub(super) fn update(&mut self, live: ReplicaSet) {
        let live = Arc::new(live);
        if let Some(slot) = self.old.iter_mut().chain(&mut self.new).find(|s| s.uid() == live.uid()) {
            *slot = live;
        }
    }

    /// Returns the revision of the current template: one more than the highest older one.
    pub(super) fn next_revision(&self) -> i64 {
        self.old.iter().map(|s| revision(s)).max().unwrap_or(0).saturating_add(1)
    }

    pub(super) fn view(&self) -> View {
        let view = |set: &Arc<ReplicaSet>| SetView {
            uid: set.uid().to_owned(),
            size: size(set),
            available: set
                .status
                .as_ref()
                .and_then(|s| s.available_replicas)
                .unwrap_or(0)
                .clamp(0, size(set)),
            pods: is_observed(set).then(|| set.status.as_ref().map_or(0, |s| s.replicas)),
            desired: desired_annotation(set),
            max: set.annotation(MAX).and_then(|m| m.parse().ok()),
        };
        View { new: self.new.as_ref().map(view), old: self.old.iter().map(view).collect() }
    }

    /// Returns scaled-down old ReplicaSets beyond `limit`, oldest revision first.
    pub(super) fn beyond_history(&self, limit: usize) -> Vec<Arc<ReplicaSet>> {
        let mut alive: Vec<_> = self.old.iter().filter(|s| !s.is_deleting()).cloned().collect();
        alive.sort_by_key(|s| Reverse(revision(s)));
        let idle = |set: &Arc<ReplicaSet>| {
            let status = set.status.clone().unwrap_or_default();
            status.replicas == 0 && size(set) == 0 && is_observed(set)
        };
        alive.into_iter().skip(limit).filter(idle).collect()
    }
}

/// Returns the template without hash label and with empty maps removed, for comparison.
fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(metadata) = &mut template.metadata {
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH);
        }
        metadata.labels = metadata.labels.take().filter(|l| !l.is_empty());
        metadata.annotations = metadata.annotations.take().filter(|a| !a.is_empty());
        metadata.creation_timestamp = None;
    }
    template.metadata = template.metadata.filter(|m| *m != ObjectMeta::default());
    template
}

fn template_of(deployment: &Deployment) -> PodTemplateSpec {
    deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default()
}

pub(super) fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let theirs = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    bare(&theirs) == bare(&template_of(deployment))
}

/// Returns the ReplicaSet's template without the hash label.
pub(super) fn original_template(set: &ReplicaSet) -> PodTemplateSpec {
    bare(&set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default())
}

/// Returns the Deployment's annotations that its ReplicaSets get.
fn copied(deployment: &Deployment) -> BTreeMap<String, String> {
    let all = deployment.metadata.annotations.clone().unwrap_or_default();
    all.into_iter().filter(|(k, _)| !NOT_COPIED.contains(&k.as_str())).collect()
}

/// Restores the annotations that the Deployment had with this ReplicaSet's template.
pub(super) fn take_back_annotations(deployment: &mut Deployment, set: &ReplicaSet) {
    let own = |key: &String| NOT_COPIED.contains(&key.as_str());
    let mut annotations = deployment.metadata.annotations.take().unwrap_or_default();
    annotations.retain(|key, _| own(key));
    annotations.extend(set.metadata.annotations.clone().into_iter().flatten().filter(|(key, _)| !own(key)));
    deployment.metadata.annotations = Some(annotations);
}

/// Builds a ReplicaSet for the current template.
pub(super) fn build(deployment: &Deployment, size: i32, bounds: &Bounds, revision: i64) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let mut template = bare(&spec.template);
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = hash::of(&template, collisions);
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.into(), hash.clone());
    let mut annotations = copied(deployment);
    annotations.insert(REVISION.into(), revision.to_string());
    annotations.extend(size_annotations(bounds));
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name())),
            namespace: Some(deployment.namespace().to_owned()),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

fn size_annotations(bounds: &Bounds) -> [(String, String); 2] {
    [
        (DESIRED.into(), bounds.replicas.to_string()),
        (MAX.into(), bounds.replicas.saturating_add(bounds.max_surge).to_string()),
    ]
}

/// Returns the ReplicaSet with this size and the annotations about it; `None` if it has them already.
pub(super) fn resized(set: &ReplicaSet, size: i32, bounds: &Bounds) -> Option<ReplicaSet> {
    let mut next = set.clone();
    next.spec.get_or_insert_default().replicas = Some(size);
    next.metadata.annotations.get_or_insert_default().extend(size_annotations(bounds));
    (next != *set).then_some(next)
}

/// Returns the current ReplicaSet with the Deployment's annotations; `None` if it has them already.
pub(super) fn annotated(deployment: &Deployment, set: &ReplicaSet, newest: i64) -> Option<ReplicaSet> {
    let mut next = set.clone();
    next.spec.get_or_insert_default().min_ready_seconds =
        deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
    let annotations = next.metadata.annotations.get_or_insert_default();
    annotations.extend(copied(deployment));
    let before = revision(set);
    if before < newest {
        annotations.insert(REVISION.into(), newest.to_string());
        if before > 0 {
            let history = annotations.entry(HISTORY.into()).or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&before.to_string());
        }
    }
    (next != *set).then_some(next)
}
