//! Preemption with extenders: they may drop candidates, and choose other victims.

use std::{collections::BTreeMap, sync::Arc};

use tracing::debug;

use super::{
    Extender, ExtenderError, Extenders, short,
    wire::{MetaVictims, Preemption, PreemptionResult, Uid, Victims},
};
use crate::{
    Candidate, Cluster, Nomination, PodInfo,
    plugins::preemption::{cheapest, importance},
};

impl Extender {
    /// Sends candidates, and returns those of the answer.
    async fn preempt(
        &self,
        cluster: &Cluster,
        pod: &PodInfo,
        candidates: &[Candidate],
    ) -> Result<Vec<Candidate>, ExtenderError> {
        let mut args =
            Preemption { pod: &pod.pod, node_name_to_victims: None, node_name_to_meta_victims: None };
        if self.knows_nodes {
            let uids = |c: &'_ Candidate| -> Vec<Uid> {
                c.victims.iter().map(|victim| Uid { uid: victim.uid().to_owned() }).collect()
            };
            let victims = candidates
                .iter()
                .map(|c| (c.node.as_str(), Victims { pods: uids(c), violations: c.violating }));
            args.node_name_to_meta_victims = Some(victims.collect());
        } else {
            let victims = candidates.iter().map(|c| {
                let pods = c.victims.iter().map(|victim| &*victim.pod).collect();
                (c.node.as_str(), Victims { pods, violations: c.violating })
            });
            args.node_name_to_victims = Some(victims.collect());
        }
        let answer: PreemptionResult = self.send(&self.preempt, &args).await?;
        let mut chosen = Vec::new();
        for (node, victims) in answer.nodes {
            if !candidates.iter().any(|candidate| candidate.node == node) {
                let node = short(&node);
                return Err(self.bad(format!("node {node:?} is not among the candidates for preemption")));
            }
            let candidate = self.candidate(cluster, pod, node, victims.unwrap_or_default())?;
            if !candidate.victims.is_empty() {
                chosen.push(candidate);
            } else if self.ignorable {
                debug!(pod = %pod.key, node = candidate.node, extender = self.name, "no victims: node ignored");
            } else {
                let node = candidate.node;
                return Err(ExtenderError::Said(format!(
                    "expected at least one victim pod on node {node:?}"
                )));
            }
        }
        Ok(chosen)
    }

    /// Finds the victims that an extender names by their uids.
    fn candidate(
        &self,
        cluster: &Cluster,
        pod: &PodInfo,
        node: String,
        victims: MetaVictims,
    ) -> Result<Candidate, ExtenderError> {
        let there = cluster.node(&node).map(|node| node.pods.as_slice()).unwrap_or_default();
        // By uid: one may be named twice.
        let mut found: BTreeMap<String, Arc<PodInfo>> = BTreeMap::new();
        for uid in victims.pods.into_iter().map(|pod| pod.unwrap_or_default().uid) {
            let Some(victim) = there.iter().find(|p| p.uid() == uid) else {
                let (name, uid) = (&self.name, short(&uid));
                return Err(ExtenderError::Said(format!(
                    "extender: {name} claims to preempt pod (UID: {uid}) on node: {node}, but the pod is not \
                     found on that node"
                )));
            };
            if victim.priority >= pod.priority {
                let key = &victim.key;
                return Err(self.bad(format!("victim {key} on node {node:?} is not of lower priority")));
            }
            found.insert(uid, victim.clone());
        }
        let mut victims_by_importance: Vec<_> = found.into_values().collect();
        victims_by_importance.sort_by_cached_key(|victim| importance(victim));
        let violating = usize::try_from(victims.violations).unwrap_or(0);
        Ok(Candidate { node, victims: victims_by_importance, violating })
    }
}

impl Extenders {
    /// Asks the extenders in turn about candidates of a preemption, and nominates the cheapest one.
    pub(crate) async fn preempt(
        &self,
        cluster: &Cluster,
        pod: &PodInfo,
        mut candidates: Vec<Candidate>,
    ) -> Nomination {
        for extender in self.asked(pod, |extender| &extender.preempt) {
            if candidates.is_empty() {
                break;
            }
            match extender.preempt(cluster, pod, &candidates).await {
                Ok(chosen) => candidates = chosen,
                Err(error) if extender.ignorable => {
                    debug!(pod = %pod.key, extender = extender.name, %error, "extender ignored");
                }
                Err(error) => return Nomination::Wait(format!("preemption: {error}")),
            }
        }
        cheapest(candidates)
            .unwrap_or_else(|| Nomination::Wait("preemption: no candidate node for preemption".into()))
    }
}
