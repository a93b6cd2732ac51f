//! Decisions with extenders that answer in the same process.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use super::*;
use crate::{
    Candidate, Cluster, Nomination,
    decide::{Decision, Enough, Kept, Profile},
    plugins,
};

mod over_http;
mod over_tls;

/// An extender that answers by a function of verb and body, and remembers the bodies.
struct Fake<F> {
    answer: F,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
}

#[async_trait]
impl<F: Fn(&str, &Value) -> Result<String, String> + Send + Sync + 'static> Post for Fake<F> {
    async fn post(&self, verb: &str, body: Vec<u8>) -> Result<Vec<u8>, ExtenderError> {
        let body: Value = serde_json::from_slice(&body).unwrap();
        let answer = (self.answer)(verb, &body).map_err(ExtenderError::Said);
        self.seen.lock().unwrap().push((verb.to_owned(), body));
        Ok(answer?.into_bytes())
    }
}

type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// Makes an extender with all verbs.
fn fake(
    name: &str,
    answer: impl Fn(&str, &Value) -> Result<Value, String> + Send + Sync + 'static,
) -> (Extender, Seen) {
    raw(name, move |verb, body| answer(verb, body).map(|value| value.to_string()))
}

fn raw(
    name: &str,
    answer: impl Fn(&str, &Value) -> Result<String, String> + Send + Sync + 'static,
) -> (Extender, Seen) {
    let seen = Seen::default();
    let extender = Extender {
        name: name.to_owned(),
        filter: "filter".into(),
        prioritize: "prioritize".into(),
        preempt: "preempt".into(),
        bind: "bind".into(),
        weight: 1,
        knows_nodes: true,
        resources: BTreeSet::new(),
        ignorable: false,
        post: Arc::new(Fake { answer, seen: seen.clone() }),
    };
    (extender, seen)
}

fn verbs(seen: &Seen) -> Vec<String> {
    seen.lock().unwrap().iter().map(|(verb, _)| verb.clone()).collect()
}

fn pod(name: &str, priority: i32, resources: Value) -> Arc<PodInfo> {
    let pod = json!({
        "metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}")},
        "spec": {"priority": priority, "containers": [{"name": "c", "resources": resources}]},
    });
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap())))
}

fn cluster(nodes: usize) -> Cluster {
    let mut cluster = Cluster::default();
    for at in 0..nodes {
        let node = json!({
            "metadata": {"name": format!("n{at}")},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
        });
        cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
    }
    cluster
}

fn profile(enough: usize) -> Profile {
    Profile { name: "default-scheduler".into(), rows: plugins::all(), enough: Enough::Number(enough) }
}

async fn decided(
    extenders: Vec<Extender>,
    cluster: &Cluster,
    pod: &PodInfo,
    enough: usize,
) -> Result<Decision, Failing> {
    let (mut kept, mut rng) = (Kept::default(), StdRng::seed_from_u64(3));
    let extenders = Extenders::new(extenders);
    decide(&profile(enough), &extenders, cluster, pod, &mut kept, &mut rng, &mut ()).await
}

/// Returns the node, or the message.
async fn place(extenders: Vec<Extender>, cluster: &Cluster, pod: &PodInfo) -> Result<String, String> {
    match decided(extenders, cluster, pod, 100).await {
        Ok(Decision::Fits(fit)) => Ok(fit.node),
        Ok(Decision::Nowhere(why)) => Err(why.message),
        Err(error) => Err(error.to_string()),
    }
}

fn plain() -> Arc<PodInfo> {
    pod("p", 0, json!({}))
}

fn sent(body: &Value) -> Vec<&str> {
    body["NodeNames"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn every_extender_takes_nodes_away_and_the_ignorable_ones_are_last() {
    let (mut last, seen_last) = fake("http://last", |_, body| {
        Ok(json!({"nodenames": sent(body)[..1], "failedNodes": {sent(body)[1]: "too old"}}))
    });
    last.ignorable = true;
    let (first, seen) = fake("http://first", |_, _| {
        Ok(json!({"NodeNames": ["n1", "n2"], "FailedAndUnresolvableNodes": {"n0": "no licence"}}))
    });
    let cluster = cluster(3);
    assert_eq!(place(vec![last, first], &cluster, &plain()).await.unwrap(), "n1");
    assert_eq!(verbs(&seen), ["filter"], "one node is left: no scores");
    assert_eq!(sent(&seen.lock().unwrap()[0].1), ["n0", "n1", "n2"]);
    assert_eq!(sent(&seen_last.lock().unwrap()[0].1), ["n1", "n2"]);
}

#[tokio::test]
async fn refusals_say_whether_preemption_helps_and_any_change_wakes_the_pod() {
    let (extender, _) = fake("http://e", |_, _| {
        Ok(json!({
            "NodeNames": [],
            "FailedNodes": {"n0": "busy", "n1": "busy", "elsewhere": "x"},
            "FailedAndUnresolvableNodes": {"n1": "broken", "n2": ""},
            "Unknown": {"a": [1]},
        }))
    });
    let cluster = cluster(4);
    let Ok(Decision::Nowhere(why)) = decided(vec![extender], &cluster, &plain(), 100).await else { panic!() };
    assert_eq!(why.message, "0/4 nodes are available: 1 broken, 1 busy.");
    assert_eq!(why.resolvable, [0], "unresolvable wins; a node without a reason is lost");
    assert_eq!((why.refused_by, why.wakes_on), (0, crate::WakeOn::ANYTHING));

    // Long texts are cut, between characters.
    let (wordy, _) = fake("http://e", |_, body| {
        let reasons: BTreeMap<&str, String> = sent(body).into_iter().map(|n| (n, "ü".repeat(5000))).collect();
        Ok(json!({"NodeNames": [], "FailedNodes": reasons}))
    });
    let message = place(vec![wordy], &cluster, &plain()).await.unwrap_err();
    assert_eq!(message, format!("0/4 nodes are available: 4 {}.", "ü".repeat(512)));
    let (wordy, _) = fake("http://e", |_, _| Ok(json!({"Error": "ü".repeat(5000)})));
    assert_eq!(place(vec![wordy], &cluster, &plain()).await.unwrap_err().len(), 1024);

    let (silent, _) = fake("http://e", |_, _| Ok(Value::Null));
    let Ok(Decision::Nowhere(why)) = decided(vec![silent], &cluster, &plain(), 100).await else { panic!() };
    assert_eq!((why.message.as_str(), why.resolvable.len()), ("0/4 nodes are available:", 0));
}

#[tokio::test]
async fn whole_nodes_are_sent_to_those_that_know_none() {
    let (mut extender, seen) = fake("http://e", |_, body| {
        let last = body["Nodes"]["items"].as_array().unwrap().last().unwrap().clone();
        Ok(json!({"nodes": {"items": [last]}, "NodeNames": ["n0"]}))
    });
    extender.knows_nodes = false;
    let cluster = cluster(2);
    assert_eq!(place(vec![extender], &cluster, &plain()).await.unwrap(), "n1");
    let seen = seen.lock().unwrap();
    let body = &seen[0].1;
    assert_eq!(body["NodeNames"], Value::Null);
    assert_eq!(body["Pod"]["metadata"]["name"], "p");
    assert_eq!(body["Nodes"]["items"][0]["status"]["allocatable"]["cpu"], "4");
}

#[tokio::test]
async fn what_an_extender_must_not_answer_is_an_error_unless_it_is_ignorable() {
    let cases = [
        ("{\"Error\": \"database gone\"}", "database gone"),
        (
            "{\"NodeNames\": [\"n0\", \"other\"]}",
            "extender \"http://e\" claims a filtered node \"other\" which is not found in the input node list",
        ),
        ("", "extender \"http://e\": the answer to filter: EOF while parsing a value at line 1 column 0"),
        ("<html>", "extender \"http://e\": the answer to filter: expected value at line 1 column 1"),
        ("{\"NodeNames\": \"n0\"}", "NodeNames: invalid type: string \"n0\", expected a sequence"),
        ("[]", "invalid type: sequence, expected an object"),
    ];
    let cluster = cluster(2);
    for (answer, want) in cases {
        for ignorable in [false, true] {
            let answer = answer.to_owned();
            let (mut extender, _) = raw("http://e", move |verb, _| match verb {
                "filter" => Ok(answer.clone()),
                _ => Ok("[]".into()),
            });
            extender.ignorable = ignorable;
            match place(vec![extender], &cluster, &plain()).await {
                Ok(_) => assert!(ignorable, "{want}"),
                Err(message) => assert!(!ignorable && message.contains(want), "{message}"),
            }
        }
    }
    // As Go's decoder: what follows the first value is ignored.
    let (lax, _) = raw("http://e", |_, _| Ok("{\"nodeNAMES\": [\"n1\"]} trailing".into()));
    assert_eq!(place(vec![lax], &cluster, &plain()).await.unwrap(), "n1");
}

#[tokio::test]
async fn a_pod_is_sent_only_to_extenders_of_its_resources() {
    let cluster = cluster(2);
    let asks = [
        (json!({"requests": {"a.example/x": "0"}}), 1),
        (json!({"limits": {"a.example/x": "0"}}), 1),
        (json!({"requests": {"b.example/x": "0"}}), 0),
        (json!({}), 0),
    ];
    for (resources, want) in asks {
        let (mut extender, seen) = fake("http://e", |_, body| Ok(json!({"NodeNames": [sent(body)[0]]})));
        extender.resources.insert("a.example/x".into());
        place(vec![extender], &cluster, &pod("p", 0, resources.clone())).await.unwrap();
        assert_eq!(seen.lock().unwrap().len(), want, "{resources}");
    }
}

#[tokio::test]
async fn scores_are_scaled_weighted_and_added_and_errors_ignored() {
    let scorer = |name: &'static str, weight, scores: Value| {
        let (mut extender, _) = fake(name, move |_, _| Ok(scores.clone()));
        extender.filter = String::new();
        extender.weight = weight;
        extender
    };
    let mut cluster = cluster(3);
    // The plugins prefer n0 by far: the others are nearly full.
    for at in 1..3 {
        let other = pod(&format!("o{at}"), 0, json!({"requests": {"cpu": "3900m", "memory": "7Gi"}}));
        cluster.set_pod(other, &format!("n{at}"));
    }
    let small = pod("p", 0, json!({"requests": {"cpu": "10m"}}));
    let place = async |extenders| place(extenders, &cluster, &small).await.unwrap();
    assert_eq!(place(vec![]).await, "n0");
    let high = json!([{"Host": "n1", "Score": 10}, {"host": "n2", "score": 9}, {"Host": "x", "Score": 99}]);
    assert_eq!(place(vec![scorer("http://a", 9, high.clone())]).await, "n1");
    let other = json!([{"Host": "n2", "Score": 2}]);
    let both = vec![scorer("http://a", 9, high.clone()), scorer("http://b", 9, other)];
    assert_eq!(place(both).await, "n2");
    for broken in [json!({"Host": "n1"}), json!([{"Host": "n1", "Score": 1.5}])] {
        assert_eq!(place(vec![scorer("http://a", 9, broken)]).await, "n0");
    }
    let overflow = json!([{"Host": "n1", "Score": i64::MAX}, {"Host": "n1", "Score": i64::MAX}]);
    assert_eq!(place(vec![scorer("http://a", i64::MAX, overflow)]).await, "n1");
}

#[tokio::test]
async fn the_first_interested_extender_binds() {
    let answering = |name: &'static str, answer: Value| fake(name, move |_, _| Ok(answer.clone()));
    let pod = plain();
    assert!(!Extenders::default().bind(&pod, "n0").await.unwrap());
    let (binder, seen) = answering("http://a", json!({"Error": ""}));
    assert!(Extenders::new(vec![binder]).bind(&pod, "n0").await.unwrap());
    let want = json!({"PodName": "p", "PodNamespace": "n", "PodUID": "uid-p", "Node": "n0"});
    assert_eq!(seen.lock().unwrap()[0].1, want);
    let (mut broken, _) = answering("http://a", json!({"error": "no"}));
    let error = Extenders::new(vec![broken.clone()]).bind(&pod, "n0").await.unwrap_err();
    assert_eq!(error.to_string(), "no");
    broken.ignorable = true;
    assert!(!Extenders::new(vec![broken]).bind(&pod, "n0").await.unwrap());
}

/// Two nodes; on each a pod of priority 1 and one of 2, and on n0 one of 100.
fn crowded() -> (Cluster, Vec<Candidate>) {
    let mut cluster = cluster(2);
    let mut all = Vec::new();
    for node in ["n0", "n1"] {
        let low = pod(&format!("low-{node}"), 1, json!({}));
        cluster.set_pod(low.clone(), node);
        cluster.set_pod(pod(&format!("mid-{node}"), 2, json!({})), node);
        all.push(Candidate { node: node.into(), victims: vec![low], violating: 0 });
    }
    cluster.set_pod(pod("top", 100, json!({})), "n0");
    (cluster, all)
}

/// Returns the node and the victims, or the message.
async fn preempted(answer: Value, ignorable: bool, knows_nodes: bool) -> (Result<String, String>, Value) {
    let (cluster, all) = crowded();
    let (mut extender, seen) = fake("http://e", move |_, _| Ok(json!({"NodeNameToMetaVictims": answer})));
    (extender.ignorable, extender.knows_nodes) = (ignorable, knows_nodes);
    let preemptor = pod("p", 10, json!({}));
    let outcome = match Extenders::new(vec![extender]).preempt(&cluster, &preemptor, all).await {
        Nomination::Preempt { node, victims } => {
            let names: Vec<&str> = victims.iter().map(|v| v.key.name.as_str()).collect();
            Ok(format!("{node}: {}", names.join(" ")))
        }
        Nomination::Wait(reason) | Nomination::No(reason) => Err(reason),
        Nomination::Candidates(all) => panic!("{all:?}"),
    };
    let body = seen.lock().unwrap()[0].1.clone();
    (outcome, body)
}

#[tokio::test]
async fn extenders_choose_among_candidates_and_their_victims() {
    let uids = |uids: &[&str]| json!({"Pods": uids.iter().map(|u| json!({"UID": format!("uid-{u}")})).collect::<Vec<_>>()});
    let cases = [
        (json!({"n1": uids(&["low-n1"])}), Ok("n1: low-n1")),
        (json!({"n0": uids(&["low-n0"]), "n1": uids(&["low-n1"])}), Ok("n0: low-n0")),
        // Other victims, one of them twice; the most important is first.
        (json!({"n1": uids(&["low-n1", "mid-n1", "low-n1"])}), Ok("n1: mid-n1 low-n1")),
        (
            json!({"n0": {"pods": [{"uid": "uid-low-n0"}], "numPDBViolations": 3}, "n1": uids(&["mid-n1"])}),
            Ok("n1: mid-n1"),
        ),
        (json!({}), Err("no candidate node for preemption")),
        (json!(null), Err("no candidate node for preemption")),
        (json!({"n0": uids(&["top"])}), Err("victim n/top on node \"n0\" is not of lower priority")),
        (
            json!({"n0": uids(&["low-n1"])}),
            Err("claims to preempt pod (UID: uid-low-n1) on node: n0, but the pod is not found on that node"),
        ),
        (json!({"n7": uids(&["low-n1"])}), Err("node \"n7\" is not among the candidates for preemption")),
        (json!({"n0": uids(&[])}), Err("expected at least one victim pod on node \"n0\"")),
        (json!({"n0": null}), Err("expected at least one victim pod on node \"n0\"")),
    ];
    for (answer, want) in cases {
        let (outcome, body) = preempted(answer.clone(), false, true).await;
        match (&outcome, want) {
            (Ok(chosen), Ok(want)) => assert_eq!(chosen, want),
            (Err(message), Err(want)) => {
                assert!(message.starts_with("preemption: ") && message.contains(want), "{message}");
            }
            _ => panic!("{answer}: {outcome:?}, want {want:?}"),
        }
        assert_eq!(body["NodeNameToVictims"], Value::Null);
        assert_eq!(body["NodeNameToMetaVictims"]["n1"]["Pods"], json!([{"UID": "uid-low-n1"}]));
        assert_eq!(body["NodeNameToMetaVictims"]["n1"]["NumPDBViolations"], 0);
    }
    let (outcome, body) = preempted(json!({"n1": uids(&["low-n1"])}), false, false).await;
    assert_eq!(outcome.unwrap(), "n1: low-n1");
    assert_eq!(body["NodeNameToMetaVictims"], Value::Null);
    assert_eq!(body["NodeNameToVictims"]["n0"]["Pods"][0]["metadata"]["name"], "low-n0");
    // An ignorable one that fails is as if it were not there; its empty candidates are dropped.
    let (outcome, _) = preempted(json!({"n0": uids(&["top"])}), true, true).await;
    assert_eq!(outcome.unwrap(), "n0: low-n0");
    let (outcome, _) = preempted(json!({"n0": uids(&[]), "n1": uids(&["low-n1"])}), true, true).await;
    assert_eq!(outcome.unwrap(), "n1: low-n1");
}

#[tokio::test]
async fn a_nominated_node_is_asked_about_first_and_alone() {
    let mut nominated = (*plain()).clone();
    let mut object = (*nominated.pod).clone();
    object.status.get_or_insert_default().nominated_node_name = Some("n2".into());
    nominated.pod = Arc::new(object);
    let (extender, seen) = fake("http://e", |_, body| Ok(json!({"NodeNames": sent(body)})));
    assert_eq!(place(vec![extender], &cluster(4), &nominated).await.unwrap(), "n2");
    assert_eq!(verbs(&seen), ["filter"]);
    // Refused there, it goes elsewhere.
    let (extender, seen) = fake("http://e", |_, body| {
        Ok(json!({"NodeNames": sent(body).into_iter().filter(|n| *n == "n3").collect::<Vec<_>>()}))
    });
    assert_eq!(place(vec![extender], &cluster(4), &nominated).await.unwrap(), "n3");
    assert_eq!(verbs(&seen), ["filter", "filter"]);
}

#[tokio::test]
async fn the_search_goes_on_while_extenders_refuse_and_takes_few_requests() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let (extender, _) = fake("http://e", move |_, body| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(json!({"NodeNames": sent(body).into_iter().filter(|n| *n == "n997").collect::<Vec<_>>()}))
    });
    assert_eq!(place(vec![extender], &cluster(1000), &plain()).await.unwrap(), "n997");
    assert_eq!(calls.load(Ordering::Relaxed), 4, "100, 200, 400 and the rest");
}

/// By default the extender is not sent all nodes of a large cluster at once.
#[tokio::test]
async fn without_a_percentage_an_extender_is_asked_about_a_hundred_nodes() {
    let (extender, seen) = fake("http://e", |_, body| Ok(json!({"NodeNames": sent(body)})));
    let profile = Profile { enough: Enough::All, ..profile(0) };
    let (mut kept, mut rng, cluster) = (Kept::default(), StdRng::seed_from_u64(3), cluster(300));
    let extenders = Extenders::new(vec![extender]);
    let decision = decide(&profile, &extenders, &cluster, &plain(), &mut kept, &mut rng, &mut ()).await;
    assert!(matches!(decision, Ok(Decision::Fits(fit)) if fit.feasible == 100));
    assert_eq!(sent(&seen.lock().unwrap()[0].1).len(), 100);
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    /// Whatever the extenders pass and however early the search may stop: the node is one that all of them
    /// and the plugins pass, and there is none only if no node is such.
    #[test]
    fn a_decision_is_that_of_a_naive_model(
        passed in proptest::collection::vec(proptest::collection::btree_set(0..12usize, 0..12), 1..4),
        full in proptest::collection::btree_set(0..12usize, 0..8),
        enough in 1..5usize,
    ) {
        let mut cluster = cluster(12);
        for at in &full {
            cluster.set_pod(pod(&format!("o{at}"), 0, json!({"requests": {"cpu": "4"}})), &format!("n{at}"));
        }
        let want: BTreeSet<String> = (0..12)
            .filter(|at| !full.contains(at) && passed.iter().all(|set| set.contains(at)))
            .map(|at| format!("n{at}"))
            .collect();
        let extenders = passed.iter().map(|set| {
            let set: BTreeSet<String> = set.iter().map(|at| format!("n{at}")).collect();
            fake("http://e", move |verb, body| Ok(match verb {
                "filter" => json!({"NodeNames": sent(body).into_iter().filter(|n| set.contains(*n)).collect::<Vec<_>>()}),
                _ => json!([]),
            })).0
        });
        let extenders: Vec<Extender> = extenders.collect();
        let asks = pod("p", 0, json!({"requests": {"cpu": "1"}}));
        let decision = block_on(decided(extenders, &cluster, &asks, enough)).unwrap();
        match decision {
            Decision::Fits(fit) => prop_assert!(want.contains(&fit.node), "{} of {want:?}", fit.node),
            Decision::Nowhere(why) => prop_assert!(want.is_empty(), "{}: {want:?}", why.message),
        }
    }

    /// No answer makes the parser panic.
    #[test]
    fn any_answer_is_parsed_or_refused(answer in "[\\[\\]{}\":,a-zA-Z0-9 ]{0,60}") {
        let all = |text: &str| {
            let _ = serde_json::from_str::<FilterResult>(text);
            let _ = serde_json::from_str::<Vec<Priority>>(text);
            let _ = serde_json::from_str::<wire::PreemptionResult>(text);
        };
        all(&answer);
        all(&format!("{{\"NodeNames\": {answer}}}"));
        all(&format!("[{{\"Host\": {answer}}}]"));
    }
}
