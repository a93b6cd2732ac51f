//! Pod affinity and anti-affinity.

use std::collections::{HashMap, HashSet};

use crate::{Cluster, Cycle, Filter, NodeInfo, PodInfo, Reject, Score, plugin, terms::AffinityTerm};

/// Required and preferred pod affinity and anti-affinity.
#[derive(Clone, Copy, Debug)]
pub struct InterPodAffinity;

fn selects(
    term: &AffinityTerm,
    pod: &PodInfo,
    namespace_labels: &std::collections::BTreeMap<String, String>,
) -> bool {
    term.selects(&pod.key.namespace, pod.pod.metadata.labels.as_ref(), || Some(namespace_labels))
}

/// Returns true if a term selects a placed pod; the labels of its namespace are looked up for
/// `namespaceSelector`.
fn selects_placed(cluster: &Cluster, term: &AffinityTerm, pod: &PodInfo) -> bool {
    let labels = cluster.namespace_labels(&pod.key.namespace);
    selects(term, pod, &labels)
}

/// Topology domains that matter for one pod, as (topology key, value).
struct State {
    /// Domains with placed pods whose anti-affinity selects the pod.
    forbidden: HashSet<(String, String)>,
    /// For each affinity term of the pod: domains with matching pods.
    near: Vec<HashSet<String>>,
    /// For each anti-affinity term of the pod: domains with matching pods.
    far: Vec<HashSet<String>>,
    /// No placed pod matches the affinity terms, but the pod itself does: it may go anywhere.
    first_of_its_kind: bool,
}

impl Filter for InterPodAffinity {
    fn prepare(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let cluster = cx.cluster();
        if pod.affinity.is_empty() && pod.anti_affinity.is_empty() && !cluster.has_affinity() {
            return Ok(false);
        }
        let own_labels = cluster.namespace_labels(&pod.key.namespace);
        let mut state = State {
            forbidden: HashSet::new(),
            near: vec![HashSet::new(); pod.affinity.len()],
            far: vec![HashSet::new(); pod.anti_affinity.len()],
            first_of_its_kind: false,
        };
        for node in cluster.nodes() {
            if node.with_affinity > 0 {
                for term in node.pods.iter().flat_map(|p| &p.anti_affinity) {
                    if let Some(value) = node.label(&term.topology_key)
                        && selects(term, pod, &own_labels)
                    {
                        state.forbidden.insert((term.topology_key.clone(), value.to_owned()));
                    }
                }
            }
            if pod.affinity.is_empty() && pod.anti_affinity.is_empty() {
                continue;
            }
            for placed in &node.pods {
                // A placed pod satisfies affinity only if all terms select it.
                if !pod.affinity.is_empty() && pod.affinity.iter().all(|t| selects_placed(cluster, t, placed))
                {
                    for (term, domains) in pod.affinity.iter().zip(&mut state.near) {
                        domains.extend(node.label(&term.topology_key).map(str::to_owned));
                    }
                }
                for (term, domains) in pod.anti_affinity.iter().zip(&mut state.far) {
                    if let Some(value) = node.label(&term.topology_key)
                        && !domains.contains(value)
                        && selects_placed(cluster, term, placed)
                    {
                        domains.insert(value.to_owned());
                    }
                }
            }
        }
        state.first_of_its_kind = state.near.iter().all(HashSet::is_empty)
            && pod.affinity.iter().all(|t| selects(t, pod, &own_labels));
        let needed = !state.forbidden.is_empty() || !pod.affinity.is_empty() || !pod.anti_affinity.is_empty();
        cx.put(state);
        Ok(needed)
    }

    fn filter(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let Some(state) = cx.get::<State>() else { return Ok(()) };
        for (term, domains) in pod.affinity.iter().zip(&state.near) {
            let there = node.label(&term.topology_key);
            let fits = there.is_some_and(|v| domains.contains(v) || state.first_of_its_kind);
            if !fits {
                return Err(Reject::never("node(s) didn't match pod affinity rules"));
            }
        }
        for (term, domains) in pod.anti_affinity.iter().zip(&state.far) {
            if node.label(&term.topology_key).is_some_and(|v| domains.contains(v)) {
                return Err(Reject::full("node(s) didn't match pod anti-affinity rules"));
            }
        }
        let kept_away = state.forbidden.iter().any(|(key, value)| node.label(key) == Some(value));
        if kept_away {
            return Err(Reject::full("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }
}

/// Preference for each topology domain, by key and value.
struct Welcome(HashMap<String, HashMap<String, i64>>);

impl Score for InterPodAffinity {
    fn prepare(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> bool {
        let cluster = cx.cluster();
        if pod.preferred_pods.is_empty() && !cluster.has_affinity() {
            return false;
        }
        let own_labels = cluster.namespace_labels(&pod.key.namespace);
        let mut welcome: HashMap<String, HashMap<String, i64>> = HashMap::new();
        let mut add = |key: &str, value: Option<&str>, weight: i64| {
            if let Some(value) = value {
                *welcome.entry(key.to_owned()).or_default().entry(value.to_owned()).or_default() += weight;
            }
        };
        for node in cluster.nodes() {
            if pod.preferred_pods.is_empty() && node.with_affinity == 0 {
                continue;
            }
            for placed in &node.pods {
                for (weight, term) in &pod.preferred_pods {
                    if selects_placed(cluster, term, placed) {
                        add(&term.topology_key, node.label(&term.topology_key), *weight);
                    }
                }
                // Preferred terms of placed pods count too, and their required affinity with weight 1.
                let required = placed.affinity.iter().map(|t| (1, t));
                for (weight, term) in placed.preferred_pods.iter().map(|(w, t)| (*w, t)).chain(required) {
                    if selects(term, pod, &own_labels) {
                        add(&term.topology_key, node.label(&term.topology_key), weight);
                    }
                }
            }
        }
        let any = !welcome.is_empty();
        cx.put(Welcome(welcome));
        any
    }

    fn score(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(Welcome(welcome)) = cx.get::<Welcome>() else { return 0 };
        let there = |(key, values): (&String, &HashMap<String, i64>)| {
            node.label(key).and_then(|v| values.get(v)).copied().unwrap_or(0)
        };
        welcome.iter().map(there).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        plugin::spread(scores);
    }
}
