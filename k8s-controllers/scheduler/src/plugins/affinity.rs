//! Pod affinity and anti-affinity.

use std::collections::BTreeMap;

use super::stretched;
use crate::{
    Cluster, Cycle, EnqueueExtensions, Event, Filter, NodeInfo, NormalizeScore, Plugin, PodInfo, Points,
    PreFilter, PreScore, Reject, Score, WakeOn,
    args::InterPodAffinityArgs,
    feasible::Feasible,
    index::{Domains, Kind},
    many::AtOnce,
    terms::AffinityTerm,
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
    /// By topology key: anti-affinity terms of placed pods that select the pod.
    forbidden: Vec<(String, Domains)>,
    /// For each affinity term of the pod: placed pods by the term's domain that all terms select.
    near: Vec<Domains>,
    /// For each anti-affinity term of the pod: placed pods by the term's domain that it selects.
    far: Vec<Domains>,
    /// The pod is the first of those that want to be together: it satisfies its own affinity terms, and no
    /// placed pod does.
    first: bool,
    selects_itself: bool,
}

/// Refusals by number.
const REFUSALS: [(&str, bool); 3] = [
    ("node(s) didn't match pod affinity rules", false),
    ("node(s) didn't match pod anti-affinity rules", true),
    ("node(s) didn't satisfy existing pods anti-affinity rules", true),
];

impl State {
    fn new(cluster: &Cluster, pod: &PodInfo) -> Self {
        let own_labels = cluster.namespace_labels(&pod.key.namespace);
        let weight = |kind| i64::from(kind == Kind::Far);
        let forbidden = cluster.selecting(pod, weight, |term| selects(term, pod, &own_labels));
        let all = if pod.affinity.is_empty() { None } else { cluster.question(&pod.affinity) };
        let near = pod.affinity.iter().map(|t| cluster.by_domain(all.as_ref(), &t.topology_key));
        let far = pod.anti_affinity.iter().map(|term| {
            let question = cluster.question([term]);
            cluster.by_domain(question.as_ref(), &term.topology_key)
        });
        let mut state = State {
            forbidden,
            near: near.collect(),
            far: far.collect(),
            first: false,
            selects_itself: pod.affinity.iter().all(|t| selects(t, pod, &own_labels)),
            own_labels,
        };
        state.count_near();
        state
    }

    fn count_near(&mut self) {
        self.first = self.selects_itself && self.near.iter().all(Domains::is_empty);
    }

    fn count(&mut self, cluster: &Cluster, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        for term in other.anti_affinity.iter().filter(|term| selects(term, pod, &self.own_labels)) {
            let known = self.forbidden.iter().position(|(key, _)| *key == term.topology_key);
            let at = known.unwrap_or_else(|| {
                let domains = cluster.by_domain(None, &term.topology_key);
                self.forbidden.push((term.topology_key.clone(), domains));
                self.forbidden.len() - 1
            });
            self.forbidden[at].1.add(node.slot, by);
        }
        // A placed pod satisfies affinity only if all terms select it.
        if !pod.affinity.is_empty() && pod.affinity.iter().all(|t| selects_placed(cluster, t, other)) {
            self.near.iter_mut().for_each(|domains| domains.add(node.slot, by));
            self.count_near();
        }
        for (term, domains) in pod.anti_affinity.iter().zip(&mut self.far) {
            if selects_placed(cluster, term, other) {
                domains.add(node.slot, by);
            }
        }
    }

    /// Returns 0, or the number of the refusal.
    fn check(&self, slot: usize) -> u8 {
        let there = |domains: &Domains| domains.pods_at(slot).is_some_and(|pods| pods > 0);
        if !self.near.iter().all(there) {
            // The first of pods that want to be together may go anywhere with the topology keys.
            if !self.first || self.near.iter().any(|domains| domains.of(slot).is_none()) {
                return 1;
            }
        }
        if self.far.iter().any(there) {
            return 2;
        }
        if self.forbidden.iter().any(|(_, domains)| there(domains)) { 3 } else { 0 }
    }
}

fn refusal(number: u8) -> Reject {
    let known = usize::from(number).checked_sub(1).and_then(|at| REFUSALS.get(at));
    let (reason, resolvable) = known.copied().unwrap_or(REFUSALS[0]);
    if resolvable { Reject::full(reason) } else { Reject::never(reason) }
}

impl PreFilter for InterPodAffinity {
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let cluster = cx.cluster();
        let own_terms = !pod.affinity.is_empty() || !pod.anti_affinity.is_empty();
        if !own_terms && !cluster.has_affinity() {
            return Ok(false);
        }
        let state = State::new(cluster, pod);
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
    fn filter(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        match cx.get::<State>().map_or(0, |state| state.check(node.slot)) {
            0 => Ok(()),
            number => Err(refusal(number)),
        }
    }
}

/// Preference for each topology domain, by key.
struct Welcome(Vec<(String, Domains)>);

impl InterPodAffinity {
    fn prepare(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> bool {
        let cluster = cx.cluster();
        let own = !pod.preferred_pods.is_empty();
        if !own && (!cluster.has_affinity() || self.args.ignore_preferred_terms_of_existing_pods) {
            return false;
        }
        let own_labels = cluster.namespace_labels(&pod.key.namespace);
        // Terms of placed pods count too, the required ones with a configured weight.
        let weight = |kind| match kind {
            Kind::Far => 0,
            Kind::Near => self.args.hard_pod_affinity_weight,
            Kind::Preferred(weight) => weight,
        };
        let mut welcome = cluster.selecting(pod, weight, |term| selects(term, pod, &own_labels));
        for (weight, term) in &pod.preferred_pods {
            let Some(question) = cluster.question([term]) else { continue };
            let domains = cluster.by_domain(Some(&question), &term.topology_key);
            match welcome.iter_mut().find(|(key, _)| *key == term.topology_key) {
                Some((_, sum)) => sum.add_all(&domains, *weight),
                None => {
                    let mut sum = cluster.by_domain(None, &term.topology_key);
                    sum.add_all(&domains, *weight);
                    welcome.push((term.topology_key.clone(), sum));
                }
            }
        }
        welcome.retain(|(_, domains)| !domains.is_empty());
        let any = !welcome.is_empty();
        cx.put(Welcome(welcome));
        any
    }
}

impl Welcome {
    fn score(&self, slot: usize) -> i64 {
        self.0.iter().map(|(_, domains)| domains.pods_at(slot).unwrap_or(0)).sum()
    }
}

impl PreScore for InterPodAffinity {
    fn pre_score(&self, cx: &mut Cycle<'_>, pod: &PodInfo, _: &[&NodeInfo]) -> bool {
        self.prepare(cx, pod)
    }
}

impl Score for InterPodAffinity {
    fn score(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
        cx.get::<Welcome>().map_or(0, |welcome| welcome.score(node.slot))
    }
}

impl AtOnce for InterPodAffinity {
    fn filter<'a>(&'a self, cx: &'a Cycle<'_>, _: &'a PodInfo) -> Box<dyn Fn(usize) -> u8 + 'a> {
        match cx.get::<State>() {
            Some(state) => Box::new(|slot| state.check(slot)),
            None => Box::new(|_| 0),
        }
    }

    fn refusal(&self, number: u8) -> Reject {
        refusal(number)
    }

    fn pre_score(&self, cx: &mut Cycle<'_>, pod: &PodInfo, _: &Feasible<'_>) -> bool {
        self.prepare(cx, pod)
    }

    fn score(&self, cx: &Cycle<'_>, _: &PodInfo, nodes: &[u32], scores: &mut [i64]) {
        let Some(welcome) = cx.get::<Welcome>() else { return scores.fill(0) };
        for (score, slot) in scores.iter_mut().zip(nodes) {
            *score = welcome.score(*slot as usize);
        }
    }

    fn normalize(&self, _: &Cycle<'_>, _: &[u32], scores: &mut [i64]) {
        stretched(scores);
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
        let points = Points::of(self).pre_filters().filters().pre_scores().scores(2).normalizes();
        points.wakes().at_once().points()
    }
}
