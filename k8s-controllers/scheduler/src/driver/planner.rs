//! Decisions without an API server, for simulations and measurements.

use std::sync::Arc;

use rand::{SeedableRng, rngs::StdRng};

use super::Builder;
use crate::{
    Cluster, Nomination, PodInfo,
    config::ConfigError,
    decide::{Decision, Kept, Profile},
    plugins,
};

/// Decides about pods on a cluster that the caller holds. Extenders are not asked, and nothing is bound.
///
/// ```
/// use std::sync::Arc;
/// use k8s_core::api::{Node, Pod};
/// use k8s_scheduler::{Cluster, Plan, PodInfo, Scheduler};
/// use serde_json::json;
///
/// let mut cluster = Cluster::default();
/// for name in ["a", "b"] {
///     let status = json!({"allocatable": {"cpu": "2", "memory": "8Gi", "pods": "110"}});
///     let node: Node = serde_json::from_value(json!({"metadata": {"name": name}, "status": status}))?;
///     cluster.set_node(Arc::new(node));
/// }
/// let mut planner = Scheduler::builder().planner(7)?;
/// for name in ["first", "second", "third"] {
///     let pod: Pod = serde_json::from_value(json!({
///         "metadata": {"name": name, "namespace": "shop", "uid": name},
///         "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]},
///     }))?;
///     let pod = Arc::new(PodInfo::new(Arc::new(pod)));
///     match planner.plan(&cluster, &pod) {
///         Plan::Node(node) => cluster.assume(pod, &node),
///         Plan::Nowhere(why) => assert!(name == "third" && why.contains("2 Insufficient cpu"), "{why}"),
///         other => unreachable!("{other:?}"),
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Planner {
    profiles: Vec<(Profile, Kept)>,
    rng: StdRng,
}

/// A decision of a [`Planner`].
#[derive(Clone, Debug)]
pub enum Plan {
    /// The pod fits on this node.
    Node(String),
    /// The pod fits on the node after these pods are deleted.
    Preempt {
        /// Name of the node.
        node: String,
        /// The pods to delete, most important first.
        victims: Vec<Arc<PodInfo>>,
    },
    /// No node is feasible; the message is that of upstream's event.
    Nowhere(String),
}

impl Builder {
    /// Makes a planner with the profiles of this builder. `seed` decides between nodes of equal scores.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn planner(&self, seed: u64) -> Result<Planner, ConfigError> {
        let profiles = self.profiles()?.into_iter().map(|profile| (profile, Kept::default())).collect();
        Ok(Planner { profiles, rng: StdRng::seed_from_u64(seed) })
    }
}

impl Planner {
    /// Decides about a pod. The cluster is not changed: [`Cluster::assume`] makes the pod count on the node.
    pub fn plan(&mut self, cluster: &Cluster, pod: &PodInfo) -> Plan {
        let name = pod.pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
        let name = name.unwrap_or("default-scheduler");
        let Some((profile, kept)) = self.profiles.iter_mut().find(|(p, _)| p.name == name) else {
            return Plan::Nowhere(format!("no profile has the schedulerName {name:?} of the pod"));
        };
        let why = match profile.decide(cluster, pod, kept, &mut self.rng, &mut ()) {
            Decision::Fits(fit) => return Plan::Node(fit.node),
            Decision::Nowhere(why) => why,
        };
        match profile.post_filter(cluster, pod, &why, kept) {
            Nomination::Candidates(all) => match plugins::preemption::cheapest(all) {
                Some(Nomination::Preempt { node, victims }) => Plan::Preempt { node, victims },
                _ => Plan::Nowhere(why.message),
            },
            Nomination::Preempt { node, victims } => Plan::Preempt { node, victims },
            Nomination::Wait(reason) | Nomination::No(reason) if reason.is_empty() => {
                Plan::Nowhere(why.message)
            }
            Nomination::Wait(reason) | Nomination::No(reason) => {
                Plan::Nowhere(format!("{} {reason}", why.message))
            }
        }
    }
}
