//! The extension points of the decision: their order, and the state of a plugin.

use std::sync::Mutex;

use super::*;
use crate::{Filter, NormalizeScore, Plugin, PostFilter, PreFilter, PreScore, Score, Search};

/// Records the calls, and behaves by the pod's name.
#[derive(Default)]
struct Recorder(Mutex<Vec<&'static str>>);

struct Mine(usize);

impl Recorder {
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }
}

struct Probe(Arc<Recorder>);

impl PreFilter for Probe {
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        self.0.note("pre-filter");
        cx.put(Mine(cx.cluster().nodes().len()));
        if pod.key.name == "only" {
            cx.restrict(vec!["b".into(), "nowhere".into()]);
        }
        match pod.key.name.as_str() {
            "refused" => Err(Reject::never("not this one")),
            "skipped" => Ok(false),
            _ => Ok(true),
        }
    }
}

impl Filter for Probe {
    fn filter(&self, cx: &Cycle<'_>, pod: &PodInfo, _: &NodeInfo) -> Result<(), Reject> {
        self.0.note("filter");
        assert_eq!(cx.get::<Mine>().unwrap().0, 2);
        if pod.key.name == "full" { Err(Reject::full("too full")) } else { Ok(()) }
    }
}

impl PostFilter for Probe {
    fn post_filter(&self, search: &mut dyn Search) -> Nomination {
        self.0.note("post-filter");
        assert_eq!(search.resolvable().len(), 2);
        assert!(search.visit("a") && !search.fits() && !search.visit("c"));
        Nomination::No("help: none.".into())
    }
}

impl PreScore for Probe {
    fn pre_score(&self, _: &mut Cycle<'_>, _: &PodInfo, nodes: &[&NodeInfo]) -> bool {
        self.0.note("pre-score");
        assert_eq!(nodes.len(), 2);
        true
    }
}

impl Score for Probe {
    fn score(&self, _: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
        self.0.note("score");
        if node.name() == "b" { 7 } else { 3 }
    }
}

impl NormalizeScore for Probe {
    fn normalize(&self, _: &Cycle<'_>, _: &PodInfo, nodes: &[&NodeInfo], scores: &mut [i64]) {
        self.0.note("normalize");
        assert_eq!((nodes.len(), scores.iter().sum::<i64>()), (2, 10));
        scores.iter_mut().for_each(|s| *s *= 10);
    }
}

fn probed() -> (Profile, Arc<Recorder>) {
    let calls = Arc::new(Recorder::default());
    let probe =
        Points::of(Probe(calls.clone())).pre_filters().filters().post_filters().pre_scores().scores(2);
    let rows = vec![probe.normalizes().named("Probe").points()];
    (Profile { name: "mine".into(), rows, enough: Enough::All }, calls)
}

fn decide(name: &str) -> (Decision, Vec<&'static str>) {
    let (profile, calls) = probed();
    let cluster = cluster([node("a", "4", &[]), node("b", "4", &[])]);
    let info = PodInfo::new(Arc::new(pod(name, "1")));
    let decision =
        profile.decide(&cluster, &info, &mut Kept::default(), &mut StdRng::seed_from_u64(1), &mut ());
    if let Decision::Nowhere(why) = &decision {
        let Nomination::No(reason) = profile.post_filter(&cluster, &info, why, &mut Kept::default()) else {
            panic!()
        };
        assert_eq!(reason, if name == "full" { "help: none." } else { "" }, "{why:?}");
    }
    let calls = calls.0.lock().unwrap().clone();
    (decision, calls)
}

#[test]
fn the_points_are_called_in_upstreams_order() {
    let (decision, calls) = decide("fits");
    let Decision::Fits(fit) = decision else { panic!("{decision:?}") };
    assert_eq!((fit.node.as_str(), fit.evaluated, fit.feasible), ("b", 2, 2));
    assert_eq!(calls, ["pre-filter", "filter", "filter", "pre-score", "score", "score", "normalize"]);
}

#[test]
fn a_pre_filter_skips_the_filter_refuses_all_nodes_or_names_them() {
    let (_, calls) = decide("skipped");
    assert!(!calls.contains(&"filter") && calls.contains(&"score"));
    let (decision, calls) = decide("only");
    assert!(matches!(decision, Decision::Fits(fit) if fit.node == "b" && fit.evaluated == 1));
    assert_eq!(calls, ["pre-filter", "filter"], "a single node is not scored");
}

#[test]
fn refusals_name_their_plugin() {
    let Decision::Nowhere(why) = decide("full").0 else { panic!() };
    assert_eq!(why.message, "0/2 nodes are available: 2 too full.");
    assert_eq!((why.refused_by, why.resolvable.len()), (1, 2));
    let (profile, _) = probed();
    assert_eq!(profile.refusers(why.refused_by).map(|p| p.name().to_owned()).collect::<Vec<_>>(), ["Probe"]);
}

/// A pod of a DaemonSet names its node; the others are counted, not examined.
#[test]
fn a_node_named_by_affinity_is_the_only_one_examined() {
    let mut one = pod("d", "9");
    spec(&mut one).affinity = serde_json::from_value(serde_json::json!({"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]},
        ]},
    }}))
    .unwrap();
    let mut c = cluster(["a", "b", "c"].map(|name| node(name, "4", &[])));
    assert_eq!(
        place(&mut c, one).unwrap_err(),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
    );
}
