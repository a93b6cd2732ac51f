//! The annotation `last-change-trigger-time`, from which the latency of endpoint changes is measured.
//!
//! Its value is the time of the oldest unpublished change: a new Service, or a transition of a pod's
//! readiness. Deleted pods leave no time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use k8s_core::{
    api::{
        api::core::v1::{Pod, Service},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    meta::{ObjectExt, ObjectKey},
};

use crate::pods;

pub(super) const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Published change times of a Service and its pods.
#[derive(Debug, Default)]
struct Told {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

/// Published change times of all Services.
#[derive(Debug, Default)]
pub(super) struct Tracker(Mutex<HashMap<ObjectKey, Told>>);

impl Tracker {
    /// Returns the time of the oldest unpublished change, and marks all as published.
    pub(super) fn next(&self, service: &Service, pods: &[Arc<Pod>]) -> Option<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = all.entry(service.key()).or_default();
        let mut oldest: Option<Timestamp> = None;
        let mut look = |at: Timestamp, before: Option<Timestamp>| {
            if before.is_none_or(|before| at > before) {
                oldest = oldest.into_iter().chain([at]).min();
            }
        };
        let mut seen = HashMap::new();
        for pod in pods {
            let change = pods::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref());
            if let Some(at) = change.map(|t| t.0) {
                look(at, told.pods.get(pod.uid()).copied());
                seen.insert(pod.uid().to_owned(), at);
            }
        }
        told.pods = seen;
        let made = service.metadata.creation_timestamp.as_ref().map(|t| t.0);
        if let Some(made) = made {
            look(made, told.service);
        }
        told.service = made;
        oldest.map(|t| t.to_string())
    }

    pub(super) fn forget(&self, key: &ObjectKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Sets the annotation, or removes that of an earlier change.
pub(super) fn write(metadata: &mut ObjectMeta, time: Option<&str>) {
    let annotations = metadata.annotations.get_or_insert_default();
    match time {
        Some(time) => drop(annotations.insert(ANNOTATION.into(), time.to_owned())),
        None => drop(annotations.remove(ANNOTATION)),
    }
    metadata.annotations = metadata.annotations.take().filter(|a| !a.is_empty());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, ready: &str) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"uid": uid},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": ready}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn each_change_is_told_once_the_oldest_first() {
        let service: Service = serde_json::from_value(
            json!({"metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z"}}),
        )
        .unwrap();
        let tracker = Tracker::default();
        let (a, b) = (pod("a", "2026-01-01T00:01:00Z"), pod("b", "2026-01-01T00:02:00Z"));
        assert_eq!(tracker.next(&service, std::slice::from_ref(&a)).as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(tracker.next(&service, std::slice::from_ref(&a)), None);
        assert_eq!(tracker.next(&service, &[a, b]).as_deref(), Some("2026-01-01T00:02:00Z"));
        let (a, b) = (pod("a", "2026-01-01T00:05:00Z"), pod("b", "2026-01-01T00:04:00Z"));
        assert_eq!(tracker.next(&service, &[a, b]).as_deref(), Some("2026-01-01T00:04:00Z"));
        assert_eq!(tracker.next(&service, &[]), None);
    }
}
