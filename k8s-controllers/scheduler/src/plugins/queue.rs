//! Plugins around the decision: gates, the order of the queue, the binding.

use std::cmp::Ordering;

use async_trait::async_trait;
use k8s_core::{
    api::{
        api::core::v1::{Binding, ObjectReference, Pod},
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status},
    },
    client::Error,
    meta::ObjectExt,
};

use crate::{Bind, Placement, Plugin, PodInfo, Points, PreEnqueue, QueueSort, Reject};

/// Holds pods with `schedulingGates` back.
#[derive(Clone, Copy, Debug, Default)]
pub struct SchedulingGates;

impl PreEnqueue for SchedulingGates {
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Reject> {
        let gates = pod.pod.spec.iter().flat_map(|s| s.scheduling_gates.iter().flatten());
        let names: Vec<&str> = gates.map(|gate| gate.name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(Reject::never(format!("waiting for scheduling gates: [{}]", names.join(" "))))
    }
}

impl Plugin for SchedulingGates {
    fn points(self) -> Points {
        Points::of(self).pre_enqueues().points()
    }
}

/// Schedules pods of higher priority first.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrioritySort;

impl QueueSort for PrioritySort {
    fn compare(&self, a: &PodInfo, b: &PodInfo) -> Ordering {
        b.priority.cmp(&a.priority)
    }
}

impl Plugin for PrioritySort {
    fn points(self) -> Points {
        Points::of(self).sorts_queue().points()
    }
}

/// Binds pods by their subresource `binding`.
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultBinder;

#[async_trait]
impl Bind for DefaultBinder {
    async fn bind(&self, placement: &Placement) -> Result<bool, Error> {
        let pod = &*placement.pod.pod;
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.name().to_owned()),
                namespace: Some(pod.namespace().to_owned()),
                uid: Some(pod.uid().to_owned()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(placement.node.clone()),
                ..ObjectReference::default()
            },
        };
        let api = placement.client.namespaced::<Pod>(pod.namespace());
        api.create_subresource::<_, Status>(pod.name(), "binding", &binding).await?;
        Ok(true)
    }
}

impl Plugin for DefaultBinder {
    fn points(self) -> Points {
        Points::of(self).binds().points()
    }
}
