//! Builds the pods of a Job. Pure.

use k8s_core::{
    api::api::{
        batch::v1::Job,
        core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
    },
    meta::ObjectExt,
};

use super::TRACKING;
use crate::pods;

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// Maximum length of `generateName`: the API server appends five characters, and a pod's name is also a host
/// name.
const LONGEST_PREFIX: usize = 63 - 5;

/// A pod to create.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct New {
    /// Completion index, for an Indexed Job.
    pub(super) index: Option<i32>,
    /// Failures of the index so far, if the Job has `backoffLimitPerIndex`.
    pub(super) failures: Option<Failures>,
}

/// Failures of a completion index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// Failures that count towards `backoffLimitPerIndex`.
    pub(super) counted: i32,
    /// Failures ignored by the pod failure policy.
    pub(super) ignored: i32,
}

/// Returns the completion index of a pod.
pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    pod.annotation(INDEX)?.parse().ok().filter(|i| *i >= 0)
}

/// Returns the failures of its index at the time the pod was created.
pub(super) fn failures_before(pod: &Pod) -> Failures {
    let number = |key| pod.annotation(key).and_then(|text| text.parse().ok()).unwrap_or(0).max(0);
    Failures { counted: number(FAILURES), ignored: number(IGNORED) }
}

fn prefix(job: &str, index: i32) -> String {
    let end = format!("-{index}-");
    let mut cut = job.len().min(LONGEST_PREFIX.saturating_sub(end.len()));
    while !job.is_char_boundary(cut) {
        cut -= 1;
    }
    job[..cut].to_owned() + &end
}

pub(super) fn pod(job: &Job, new: &New) -> Pod {
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(job, &template);
    let metadata = &mut pod.metadata;
    metadata.finalizers.get_or_insert_default().push(TRACKING.into());
    let labels = metadata.labels.get_or_insert_default();
    // The API server adds these labels to most Jobs' templates; Jobs with `manualSelector` need them here.
    for (key, value) in [("job-name", job.name()), ("controller-uid", job.uid())] {
        labels.entry(format!("batch.kubernetes.io/{key}")).or_insert_with(|| value.to_owned());
    }
    let Some(index) = new.index else { return pod };
    labels.insert(INDEX.into(), index.to_string());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if let Some(failures) = new.failures {
        annotations.insert(FAILURES.into(), failures.counted.to_string());
        if failures.ignored > 0 {
            annotations.insert(IGNORED.into(), failures.ignored.to_string());
        }
    }
    metadata.generate_name = Some(prefix(job.name(), index));
    let spec = pod.spec.get_or_insert_default();
    if spec.hostname.as_ref().is_none_or(String::is_empty) {
        spec.hostname = Some(format!("{}-{index}", job.name()));
    }
    let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for container in containers {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|e| e.name == "JOB_COMPLETION_INDEX") {
            env.push(EnvVar {
                name: "JOB_COMPLETION_INDEX".into(),
                value_from: Some(source.clone()),
                ..EnvVar::default()
            });
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_leave_room_for_what_the_server_adds() {
        assert_eq!(prefix("work", 3), "work-3-");
        let long = prefix(&"x".repeat(60), 12345);
        assert!(long.len() == LONGEST_PREFIX && long.ends_with("x-12345-"), "{long}");
    }
}
