//! Outcomes of trials, kept for the next pods of one template: a node that did not change gives the same one.

use std::{collections::HashMap, sync::Arc};

use k8s_core::api::api::policy::v1::PodDisruptionBudget;

use super::{Asked, Profile, memo::Template};
use crate::{Candidate, Cluster, PodInfo, cluster::Identity};

/// Limit of templates.
const MOST: usize = 8;

/// The outcomes of one profile.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    cluster: Option<Identity>,
    list: Vec<Known>,
    asked: u64,
}

/// The outcomes for the pods of one template and priority.
#[derive(Debug)]
pub(super) struct Known {
    template: Template,
    priority: i32,
    asked_rows: Asked,
    budgets: Vec<Arc<PodDisruptionBudget>>,
    /// By the node's index, with its version.
    outcomes: HashMap<usize, (u64, Option<Candidate>)>,
    asked: u64,
}

impl Trials {
    /// Returns the outcomes for a pod. `None`: they depend on more than one node.
    pub(super) fn known(
        &mut self,
        profile: &Profile,
        cluster: &Cluster,
        pod: &PodInfo,
        asked: &Asked,
    ) -> Option<&mut Known> {
        if asked.iter().any(|row| profile.rows[*row].per_node.is_none()) {
            return None;
        }
        if self.cluster.as_ref().is_none_or(|known| !known.is_of(cluster)) {
            self.cluster = Some(cluster.identity());
            self.list.clear();
        }
        self.asked += 1;
        let budgets = cluster.lists().map(|lists| lists.budgets.list()).unwrap_or_default();
        let reads_all = profile.reads_all();
        let is_it = |known: &Known| {
            known.priority == pod.priority
                && known.asked_rows == *asked
                && known.template.is_of(pod, reads_all)
                && known.budgets.len() == budgets.len()
                && known.budgets.iter().zip(&budgets).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        let at = self.list.iter().position(is_it).unwrap_or_else(|| {
            let known = Known {
                template: Template::of(pod),
                priority: pod.priority,
                asked_rows: asked.clone(),
                budgets,
                outcomes: HashMap::new(),
                asked: 0,
            };
            let oldest = (0..self.list.len()).min_by_key(|at| self.list[*at].asked);
            match oldest.filter(|_| self.list.len() >= MOST) {
                Some(at) => {
                    self.list[at] = known;
                    at
                }
                None => {
                    self.list.push(known);
                    self.list.len() - 1
                }
            }
        });
        self.list[at].asked = self.asked;
        self.list.get_mut(at)
    }
}

impl Known {
    /// Returns the outcome on a node, if the node is as it was. Pods that wait for room there count too.
    pub(super) fn get(&self, cluster: &Cluster, at: usize) -> Option<&Option<Candidate>> {
        let node = cluster.nodes().get(at)?;
        let (version, outcome) = self.outcomes.get(&at)?;
        (*version == node.version && cluster.nominated_on(node.name()).is_empty()).then_some(outcome)
    }

    /// Keeps the outcome on a node.
    pub(super) fn set(&mut self, cluster: &Cluster, at: usize, outcome: Option<Candidate>) {
        if let Some(node) = cluster.nodes().get(at).filter(|n| cluster.nominated_on(n.name()).is_empty()) {
            self.outcomes.insert(at, (node.version, outcome));
        }
    }
}
