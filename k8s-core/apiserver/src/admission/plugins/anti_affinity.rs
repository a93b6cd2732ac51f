//! LimitPodHardAntiAffinityTopology: a required anti-affinity keeps pods off nodes, not off whole zones.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;

use super::pods::handles_pods;
use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, str_at},
};

pub(super) struct LimitPodHardAntiAffinityTopology;

const HOSTNAME: &str = "kubernetes.io/hostname";

#[async_trait]
impl Admit for LimitPodHardAntiAffinityTopology {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        handles_pods(operation, resource, part)
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let terms = "/spec/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution";
        let keys = array_at(admission.object, terms).iter().map(|term| str_at(term, "/topologyKey"));
        match keys.into_iter().find(|key| *key != HOSTNAME) {
            None => Ok(()),
            Some(key) => Err(admission.forbidden(&format!(
                "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOSTNAME} is allowed"
            ))),
        }
    }
}
