//! Pod affinity and anti-affinity.

use std::collections::{BTreeMap, HashMap};

use super::stretched;
use crate::{
    Cluster, Cycle, EnqueueExtensions, Event, Filter, NodeInfo, NormalizeScore, Plugin, PodInfo, Points,
    PreFilter, PreScore, Reject, Score, WakeOn, args::InterPodAffinityArgs, terms::AffinityTerm,
};

/// Required and preferred pod affinity and anti-affinity.
#[derive(Clone, Debug, Default)]
pub struct InterPodAffinity {
    args: InterPodAffinityArgs,
}

impl InterPodAffinity {
    pub(crate) fn new(args: InterPodAffinityArgs) -> Self {
        InterPodAffinity { args }
    }
}

type Labels = BTreeMap<String, String>;

fn selects(term: &AffinityTerm, pod: &PodInfo, namespace_labels: &Labels) -> bool {
    term.selects(&pod.key.namespace, pod.pod.metadata.labels.as_ref(), || Some(namespace_labels))
}

/// Returns true if a term selects a placed pod; the labels of its namespace are looked up only for
/// `namespaceSelector`.
fn selects_placed(cluster: &Cluster, term: &AffinityTerm, pod: &PodInfo) -> bool {
    if !term.has_namespace_selector() {
        return term.selects(&pod.key.namespace, pod.pod.metadata.labels.as_ref(), || None);
    }
    selects(term, pod, &cluster.namespace_labels(&pod.key.namespace))
}

/// Numbers of pods per topology domain that matter for one pod.
struct State {
    /// Labels of the pod's namespace.
    own_labels: Labels,
    /// By topology key and value: anti-affinity terms of placed pods that select the pod.
    forbidden: HashMap<(String, String), i64>,
    /// For each affinity term of the pod: placed pods by the term's domain that all terms select.
    near: Vec<HashMap<String, i64>>,
    /// For each anti-affinity term of the pod: placed pods by the term's domain that it selects.
    far: Vec<HashMap<String, i64>>,
    /// The pod satisfies its own affinity terms.
    selects_itself: bool,
}

fn add(domains: &mut HashMap<String, i64>, value: &str, by: i64) {
    match domains.get_mut(value) {
        Some(number) => {
            *number += by;
            if *number == 0 {
                domains.remove(value);
            }
        }
        None => drop(domains.insert(value.to_owned(), by)),
    }
}

impl State {
    fn count(&mut self, cluster: &Cluster, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        for term in &other.anti_affinity {
            if let Some(value) = node.label(&term.topology_key)
                && selects(term, pod, &self.own_labels)
            {
                let domain = (term.topology_key.clone(), value.to_owned());
                let number = self.forbidden.entry(domain).or_default();
                *number += by;
                if *number == 0 {
                    self.forbidden.retain(|_, number| *number != 0);
                }
            }
        }
        // A placed pod satisfies affinity only if all terms select it.
        if !pod.affinity.is_empty() && pod.affinity.iter().all(|t| selects_placed(cluster, t, other)) {
            for (term, domains) in pod.affinity.iter().zip(&mut self.near) {
                if let Some(value) = node.label(&term.topology_key) {
                    add(domains, value, by);
                }
            }
        }
        for (term, domains) in pod.anti_affinity.iter().zip(&mut self.far) {
            if let Some(value) = node.label(&term.topology_key)
                && selects_placed(cluster, term, other)
            {
                add(domains, value, by);
            }
        }
    }
}

impl PreFilter for InterPodAffinity {
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let cluster = cx.cluster();
        let own_terms = !pod.affinity.is_empty() || !pod.anti_affinity.is_empty();
        if !own_terms && !cluster.has_affinity() {
            return Ok(false);
        }
        let own_labels = cluster.namespace_labels(&pod.key.namespace);
        let mut state = State {
            forbidden: HashMap::new(),
            near: vec![HashMap::new(); pod.affinity.len()],
            far: vec![HashMap::new(); pod.anti_affinity.len()],
            selects_itself: pod.affinity.iter().all(|t| selects(t, pod, &own_labels)),
            own_labels,
        };
        for node in cluster.nodes() {
            if own_terms || node.with_affinity > 0 {
                for placed in node.pods.iter().filter(|p| own_terms || !p.anti_affinity.is_empty()) {
                    state.count(cluster, pod, placed, node, 1);
                }
            }
        }
        let needed = !state.forbidden.is_empty() || own_terms;
        cx.put(state);
        Ok(needed)
    }

    fn moved(&self, cx: &mut Cycle<'_>, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        let cluster = cx.cluster();
        if let Some(state) = cx.get_mut::<State>() {
            state.count(cluster, pod, other, node, by);
        }
    }
}

impl Filter for InterPodAffinity {
    fn filter(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let Some(state) = cx.get::<State>() else { return Ok(()) };
        let there = |term: &AffinityTerm, domains: &HashMap<String, i64>| {
            node.label(&term.topology_key).is_some_and(|v| domains.contains_key(v))
        };
        if !pod.affinity.iter().zip(&state.near).all(|(term, domains)| there(term, domains)) {
            // The first of pods that want to be together may go anywhere with the topology keys.
            let first = state.selects_itself && state.near.iter().all(HashMap::is_empty);
            if !first || pod.affinity.iter().any(|term| node.label(&term.topology_key).is_none()) {
                return Err(Reject::never("node(s) didn't match pod affinity rules"));
            }
        }
        if pod.anti_affinity.iter().zip(&state.far).any(|(term, domains)| there(term, domains)) {
            return Err(Reject::full("node(s) didn't match pod anti-affinity rules"));
        }
        if state.forbidden.keys().any(|(key, value)| node.label(key) == Some(value)) {
            return Err(Reject::full("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }
}

/// Preference for each topology domain, by key and value.
struct Welcome(HashMap<String, HashMap<String, i64>>);

impl PreScore for InterPodAffinity {
    fn pre_score(&self, cx: &mut Cycle<'_>, pod: &PodInfo, _: &[&NodeInfo]) -> bool {
        let cluster = cx.cluster();
        let own = !pod.preferred_pods.is_empty();
        if !own && (!cluster.has_affinity() || self.args.ignore_preferred_terms_of_existing_pods) {
            return false;
        }
        let own_labels = cluster.namespace_labels(&pod.key.namespace);
        let mut welcome: HashMap<String, HashMap<String, i64>> = HashMap::new();
        let mut add = |key: &str, value: Option<&str>, weight: i64| {
            if let Some(value) = value {
                *welcome.entry(key.to_owned()).or_default().entry(value.to_owned()).or_default() += weight;
            }
        };
        let hard = self.args.hard_pod_affinity_weight;
        for node in cluster.nodes().iter().filter(|node| own || node.with_affinity > 0) {
            for placed in &node.pods {
                for (weight, term) in &pod.preferred_pods {
                    if selects_placed(cluster, term, placed) {
                        add(&term.topology_key, node.label(&term.topology_key), *weight);
                    }
                }
                // Terms of placed pods count too, the required ones with a configured weight.
                let required = placed.affinity.iter().filter(|_| hard > 0).map(|t| (hard, t));
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
}

impl Score for InterPodAffinity {
    fn score(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(Welcome(welcome)) = cx.get::<Welcome>() else { return 0 };
        let there = |(key, values): (&String, &HashMap<String, i64>)| {
            node.label(key).and_then(|v| values.get(v)).copied().unwrap_or(0)
        };
        welcome.iter().map(there).sum()
    }
}

impl NormalizeScore for InterPodAffinity {
    fn normalize(&self, _: &Cycle<'_>, _: &PodInfo, _: &[&NodeInfo], scores: &mut [i64]) {
        stretched(scores);
    }
}

impl EnqueueExtensions for InterPodAffinity {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE_ADDED
            .or(WakeOn::NODE_LABELS)
            .or(WakeOn::POD_PLACED)
            .or(WakeOn::POD_LABELS)
            .or(WakeOn::POD_GONE)
            .or(WakeOn::NAMESPACE)
    }

    fn hint(&self, cluster: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        let Some(other) = event.pod else { return true };
        let near = |p: &PodInfo| pod.affinity.iter().any(|t| selects_placed(cluster, t, p));
        let far = |p: &PodInfo| {
            let own_labels = cluster.namespace_labels(&pod.key.namespace);
            pod.anti_affinity.iter().any(|t| selects_placed(cluster, t, p))
                || p.anti_affinity.iter().any(|t| selects(t, pod, &own_labels))
        };
        if event.what == WakeOn::POD_PLACED {
            near(other)
        } else if event.what == WakeOn::POD_GONE {
            far(other)
        } else {
            near(other) || event.old_pod.is_some_and(far)
        }
    }
}

impl Plugin for InterPodAffinity {
    fn points(self) -> Points {
        Points::of(self).pre_filters().filters().pre_scores().scores(2).normalizes().wakes().points()
    }
}
