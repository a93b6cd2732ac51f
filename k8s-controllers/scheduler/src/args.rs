//! Arguments of the built-in plugins, as in `pluginConfig` of a KubeSchedulerConfiguration.

use k8s_core::api::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;

macro_rules! args {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name {
            #[serde(rename = "apiVersion")]
            _api_version: String,
            #[serde(rename = "kind")]
            _kind: String,
            $($(#[$field_doc])* pub $field: $kind,)*
        }

        impl Default for $name {
            fn default() -> Self {
                $name { _api_version: String::new(), _kind: String::new(), $($field: $default,)* }
            }
        }
    };
}

args! {
    /// Arguments of NodeResourcesFit.
    NodeResourcesFitArgs {
        /// Extended resources that the filter does not check.
        ignored_resources: Vec<String> = Vec::new(),
        /// Prefixes, such as `example.com`, of extended resources that the filter does not check.
        ignored_resource_groups: Vec<String> = Vec::new(),
        /// The score. Default: LeastAllocated over CPU and memory.
        scoring_strategy: ScoringStrategy = ScoringStrategy::default(),
    }
}

args! {
    /// Arguments of NodeResourcesBalancedAllocation.
    NodeResourcesBalancedAllocationArgs {
        /// The resources, of weight 1. Default: CPU and memory.
        resources: Vec<ResourceSpec> = cpu_and_memory(),
    }
}

args! {
    /// Arguments of InterPodAffinity.
    InterPodAffinityArgs {
        /// Weight of a required affinity term of a placed pod, 0 to 100. Default: 1.
        hard_pod_affinity_weight: i64 = 1,
        /// Ignores preferred terms of placed pods, unless the pod has affinity of its own. Default: false.
        ignore_preferred_terms_of_existing_pods: bool = false,
    }
}

args! {
    /// Arguments of NodeAffinity.
    NodeAffinityArgs {
        /// Node affinity of all pods, beside their own.
        added_affinity: Option<NodeAffinity> = None,
    }
}

args! {
    /// Arguments of PodTopologySpread.
    PodTopologySpreadArgs {
        /// Constraints of pods without any, if `defaultingType` is `List`. They have no selector.
        default_constraints: Vec<TopologySpreadConstraint> = Vec::new(),
        /// `System` (default): spread over hosts (skew 3) and zones (skew 5). `List`: `defaultConstraints`.
        defaulting_type: String = "System".to_owned(),
    }
}

args! {
    /// Arguments of VolumeBinding.
    VolumeBindingArgs {
        /// Timeout in seconds for the binding of a pod's claims. Default: 600.
        bind_timeout_seconds: u64 = 600,
    }
}

args! {
    /// Arguments of DefaultPreemption.
    DefaultPreemptionArgs {
        /// Percentage of the nodes for which victims are computed, 0 to 100. Default: 10.
        min_candidate_nodes_percentage: usize = 10,
        /// Least number of nodes for which victims are computed. Default: 100.
        min_candidate_nodes_absolute: usize = 100,
    }
}

/// A resource and its weight.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceSpec {
    /// Name, such as `cpu` or `nvidia.com/gpu`.
    pub name: String,
    /// Weight, 1 to 100. Default: 1.
    #[serde(default = "one")]
    pub weight: i64,
}

fn one() -> i64 {
    1
}

fn cpu_and_memory() -> Vec<ResourceSpec> {
    ["cpu", "memory"].map(|name| ResourceSpec { name: name.to_owned(), weight: 1 }).into()
}

/// The score of NodeResourcesFit.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScoringStrategy {
    /// The strategy.
    #[serde(rename = "type")]
    pub strategy: Strategy,
    /// The resources that count. Default: CPU and memory.
    pub resources: Vec<ResourceSpec>,
    /// The shape for the strategy RequestedToCapacityRatio.
    pub requested_to_capacity_ratio: Option<RequestedToCapacityRatio>,
}

impl Default for ScoringStrategy {
    fn default() -> Self {
        ScoringStrategy {
            strategy: Strategy::LeastAllocated,
            resources: cpu_and_memory(),
            requested_to_capacity_ratio: None,
        }
    }
}

/// Names of scoring strategies.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum Strategy {
    /// Prefers nodes with a large free share.
    LeastAllocated,
    /// Prefers nodes with a small free share.
    MostAllocated,
    /// Maps the utilization to a score by a shape.
    RequestedToCapacityRatio,
}

/// A broken line from utilization to score.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestedToCapacityRatio {
    /// Points with increasing utilization.
    pub shape: Vec<UtilizationShapePoint>,
}

/// A point of the line.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UtilizationShapePoint {
    /// Utilization in percent, 0 to 100.
    pub utilization: i64,
    /// Score, 0 to 10.
    pub score: i64,
}
