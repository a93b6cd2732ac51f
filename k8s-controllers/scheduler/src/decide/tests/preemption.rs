//! Preemption: nominated nodes, budgets, and the message when it does not help.

use k8s_core::{api::api::policy::v1::PodDisruptionBudget, cache::Cache};
use serde_json::{Value, json};

use super::*;
use crate::volumes::Lists;

fn with(pod: Pod, priority: i32, labels: Value) -> Arc<PodInfo> {
    let mut pod = pod;
    spec(&mut pod).priority = Some(priority);
    pod.metadata.labels = serde_json::from_value(labels).unwrap();
    Arc::new(PodInfo::new(Arc::new(pod)))
}

fn nominate(cluster: &Cluster, info: &PodInfo) -> Nomination {
    let profile = profile();
    match profile.decide(cluster, info, &mut Kept::default(), &mut StdRng::seed_from_u64(1), &mut ()) {
        Decision::Nowhere(why) => nomination(&profile, cluster, info, &why),
        Decision::Fits(fit) => panic!("{fit:?}"),
    }
}

fn victims(nomination: &Nomination) -> (String, Vec<String>) {
    match nomination {
        Nomination::Preempt { node, victims } => {
            (node.clone(), victims.iter().map(|v| v.key.name.clone()).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn budgets_are_kept_where_another_victim_does() {
    let lists = Lists::default();
    let budget: PodDisruptionBudget = serde_json::from_value(json!({
        "metadata": {"name": "kept", "namespace": "n"},
        "spec": {"selector": {"matchLabels": {"app": "kept"}}},
        "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1},
    }))
    .unwrap();
    lists.budgets.replace(vec![budget], 1);
    let mut cluster = Cluster::watching(Cache::new(), lists);
    for name in ["a", "b"] {
        cluster.set_node(Arc::new(node(name, "4", &[])));
    }
    // The protected pods have the lowest priority, and the least important one of the rest is on b.
    for (name, on, priority, app) in
        [("a1", "a", 1, "kept"), ("a2", "a", 3, "free"), ("b1", "b", 1, "kept"), ("b2", "b", 2, "free")]
    {
        cluster.set_pod(with(pod(name, "2"), priority, json!({"app": app})), on);
    }
    let small = nominate(&cluster, &with(pod("new", "2"), 10, json!({})));
    assert_eq!(victims(&small), ("b".into(), vec!["b2".into()]));
    // If it cannot be otherwise, the budget is violated; the more important pods come first.
    let large = nominate(&cluster, &with(pod("new", "4"), 10, json!({})));
    assert_eq!(victims(&large), ("b".into(), vec!["b2".into(), "b1".into()]));
}

#[test]
fn room_is_kept_for_a_nominated_pod_from_those_of_lower_priority() {
    let mut c = cluster([node("a", "4", &[])]);
    let important = with(pod("important", "3"), 5, json!({}));
    c.nominate(&important, Some("a"));
    let mut lower = pod("lower", "2");
    spec(&mut lower).priority = Some(4);
    let message = place(&mut c, lower.clone()).unwrap_err();
    assert_eq!(message, "0/1 nodes are available: 1 Insufficient cpu.");
    let mut higher = pod("higher", "2");
    spec(&mut higher).priority = Some(6);
    place(&mut c, higher).unwrap();
    c.remove_pod("uid-higher");
    assert_eq!(c.withdraw(important.uid()).as_deref(), Some("a"));
    place(&mut c, lower).unwrap();
}

#[test]
fn a_pod_preempts_one_that_its_anti_affinity_is_about() {
    let mut c = cluster([node("a", "4", &[("zone", "a")]), node("b", "4", &[("zone", "a")])]);
    c.set_pod(with(pod("web", "1"), 0, json!({"app": "web"})), "a");
    let mut alone = pod("alone", "1");
    spec(&mut alone).affinity = Some(Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![term("web")]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    });
    assert_eq!(victims(&nominate(&c, &with(alone, 1, json!({})))), ("a".into(), vec!["web".into()]));
}

#[test]
fn it_says_why_it_does_not_help() {
    let mut c = cluster([node("a", "4", &[]), node("b", "1", &[])]);
    c.set_pod(with(pod("old", "3"), 9, json!({})), "a");
    let reason = |info: &PodInfo| match nominate(&c, info) {
        Nomination::No(reason) | Nomination::Wait(reason) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        reason(&with(pod("new", "3"), 9, json!({}))),
        "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."
    );
    let mut polite = pod("polite", "3");
    spec(&mut polite).preemption_policy = Some("Never".into());
    assert_eq!(
        reason(&with(polite, 10, json!({}))),
        "preemption: not eligible due to preemptionPolicy=Never."
    );
}
