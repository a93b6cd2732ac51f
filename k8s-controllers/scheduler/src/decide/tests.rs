//! Tests of decisions on synthetic clusters.

use std::{collections::BTreeMap, sync::Arc};

use k8s_core::api::{
    api::core::v1::{
        Affinity, Container, ContainerPort, Node, NodeSpec, NodeStatus, Pod, PodAffinity, PodAffinityTerm,
        PodAntiAffinity, PodSpec, ResourceRequirements, Taint, Toleration, TopologySpreadConstraint,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
    },
};
use proptest::prelude::*;
use rand::SeedableRng;

use super::*;
use crate::plugins;

mod incremental;
mod naive;
mod points;
mod preemption;

fn profile() -> Profile {
    Profile { name: "default-scheduler".into(), rows: plugins::all(), enough: Enough::All }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn node(name: &str, cpu: &str, labels: &[(&str, &str)]) -> Node {
    let allocatable = [("cpu", cpu), ("memory", "8Gi"), ("pods", "110")]
        .map(|(k, v)| (k.to_owned(), Quantity(v.to_owned())));
    Node {
        metadata: ObjectMeta { name: Some(name.into()), labels: Some(map(labels)), ..ObjectMeta::default() },
        spec: Some(NodeSpec::default()),
        status: Some(NodeStatus { allocatable: Some(allocatable.into()), ..NodeStatus::default() }),
    }
}

fn pod(name: &str, cpu: &str) -> Pod {
    let requests = [("cpu".to_owned(), Quantity(cpu.to_owned()))].into();
    let resources = ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() };
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("n".into()),
            uid: Some(format!("uid-{name}")),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![Container { resources: Some(resources), ..Container::default() }],
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn spec(pod: &mut Pod) -> &mut PodSpec {
    pod.spec.get_or_insert_default()
}

fn cluster(nodes: impl IntoIterator<Item = Node>) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.set_node(Arc::new(node));
    }
    cluster
}

/// Decides and assumes; returns the node's name, or the message.
fn place(cluster: &mut Cluster, pod: Pod) -> Result<String, String> {
    let info = Arc::new(PodInfo::new(Arc::new(pod)));
    match profile().decide(cluster, &info, &mut Kept::default(), &mut StdRng::seed_from_u64(7), &mut ()) {
        Decision::Fits(fit) => {
            cluster.assume(info, &fit.node);
            Ok(fit.node)
        }
        Decision::Nowhere(why) => Err(why.message),
    }
}

/// Returns the outcome of the post-filters without extenders.
fn nomination(profile: &Profile, cluster: &Cluster, pod: &PodInfo, why: &Unschedulable) -> Nomination {
    match profile.post_filter(cluster, pod, why, &mut Kept::default()) {
        Nomination::Candidates(all) => plugins::preemption::cheapest(all).unwrap(),
        other => other,
    }
}

#[test]
fn messages_are_upstreams() {
    assert_eq!(place(&mut cluster([]), pod("a", "1")).unwrap_err(), "no nodes available to schedule pods");

    let mut cordoned = node("c", "4", &[]);
    cordoned.spec.get_or_insert_default().unschedulable = Some(true);
    let mut tainted = node("t", "4", &[]);
    let taint =
        Taint { key: "k".into(), value: Some("v".into()), effect: "NoSchedule".into(), ..Taint::default() };
    tainted.spec.get_or_insert_default().taints = Some(vec![taint]);
    let mut c = cluster([node("small", "500m", &[]), cordoned, tainted]);
    assert_eq!(
        place(&mut c, pod("a", "1")).unwrap_err(),
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable."
    );
    let mut tolerant = pod("b", "1");
    let toleration =
        Toleration { key: Some("k".into()), operator: Some("Exists".into()), ..Toleration::default() };
    spec(&mut tolerant).tolerations = Some(vec![toleration]);
    assert_eq!(place(&mut c, tolerant).unwrap(), "t");
    let mut picky = pod("d", "100m");
    spec(&mut picky).node_selector = Some(map(&[("disk", "ssd")]));
    let message = place(&mut c, picky).unwrap_err();
    assert!(message.contains("1 node(s) didn't match Pod's node affinity/selector"), "{message}");
}

#[test]
fn host_ports_clash_unless_addresses_differ() {
    let with_port = |name: &str, ip: Option<&str>| {
        let mut p = pod(name, "1m");
        let port = ContainerPort {
            container_port: 80,
            host_port: Some(80),
            host_ip: ip.map(Into::into),
            ..ContainerPort::default()
        };
        spec(&mut p).containers[0].ports = Some(vec![port]);
        p
    };
    let mut c = cluster([node("a", "4", &[])]);
    place(&mut c, with_port("1", Some("10.0.0.1"))).unwrap();
    place(&mut c, with_port("2", Some("10.0.0.2"))).unwrap();
    let message = place(&mut c, with_port("3", None)).unwrap_err();
    let want = "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
    assert_eq!(message, want);
}

fn labelled(name: &str, app: &str) -> Pod {
    let mut p = pod(name, "1m");
    p.metadata.labels = Some(map(&[("app", app)]));
    p
}

fn term(app: &str) -> PodAffinityTerm {
    let selector = LabelSelector { match_labels: Some(map(&[("app", app)])), ..LabelSelector::default() };
    PodAffinityTerm {
        label_selector: Some(selector),
        topology_key: "zone".into(),
        ..PodAffinityTerm::default()
    }
}

#[test]
fn affinity_and_anti_affinity_work_over_topologies_and_in_both_directions() {
    let nodes = || [("a1", "a"), ("a2", "a"), ("b1", "b")].map(|(n, z)| node(n, "4", &[("zone", z)]));
    let mut c = cluster(nodes());
    let mut alone = labelled("alone", "db");
    let far = PodAntiAffinity {
        required_during_scheduling_ignored_during_execution: Some(vec![term("web"), term("db")]),
        ..PodAntiAffinity::default()
    };
    spec(&mut alone).affinity = Some(Affinity { pod_anti_affinity: Some(far), ..Affinity::default() });
    let first = place(&mut c, alone.clone()).unwrap();
    // A placed pod's anti-affinity keeps later pods away.
    let web = place(&mut c, labelled("web", "web")).unwrap();
    assert_ne!(&web[..1], &first[..1]);
    // A later pod's anti-affinity keeps it away from placed ones.
    alone.metadata.uid = Some("second".into());
    let message = place(&mut c, alone).unwrap_err();
    assert!(message.contains("anti-affinity"), "{message}");
    // Affinity to the web server, in its zone.
    let mut near = labelled("near", "cache");
    let by = PodAffinity {
        required_during_scheduling_ignored_during_execution: Some(vec![term("web")]),
        ..PodAffinity::default()
    };
    spec(&mut near).affinity = Some(Affinity { pod_affinity: Some(by), ..Affinity::default() });
    assert_eq!(&place(&mut c, near.clone()).unwrap()[..1], &web[..1]);
    // Affinity to a pod that does not exist: unschedulable. Affinity to its own labels: the first pod goes
    // anywhere.
    let mut c = cluster(nodes());
    assert!(place(&mut c, near.clone()).unwrap_err().contains("didn't match pod affinity rules"));
    near.metadata.labels = Some(map(&[("app", "web")]));
    place(&mut c, near).unwrap();
}

#[test]
fn pods_spread_over_zones() {
    let nodes = [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")];
    let mut c = cluster(nodes.map(|(n, z)| node(n, "4", &[("zone", z)])));
    let mut zones = BTreeMap::<String, i32>::new();
    for i in 0..20 {
        let mut p = labelled(&i.to_string(), "web");
        spec(&mut p).topology_spread_constraints = Some(vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "zone".into(),
            when_unsatisfiable: "DoNotSchedule".into(),
            label_selector: term("web").label_selector,
            ..TopologySpreadConstraint::default()
        }]);
        let node = place(&mut c, p).unwrap();
        *zones.entry(node[..1].to_owned()).or_default() += 1;
        let in_zone = |zone: &str| zones.get(zone).copied().unwrap_or(0);
        assert!((in_zone("a") - in_zone("b")).abs() <= 1, "{zones:?}");
    }
}

#[test]
fn preemption_takes_the_least_important_and_no_more_than_needed() {
    let mut c = cluster([node("a", "4", &[]), node("b", "4", &[])]);
    for (i, (node, priority)) in [("a", 1), ("a", 5), ("b", 2), ("b", 3)].into_iter().enumerate() {
        let mut p = pod(&i.to_string(), "2");
        spec(&mut p).priority = Some(priority);
        c.set_pod(Arc::new(PodInfo::new(Arc::new(p))), node);
    }
    let profile = profile();
    let plan = |priority: i32| {
        let mut p = pod("new", "2");
        spec(&mut p).priority = Some(priority);
        let info = PodInfo::new(Arc::new(p));
        match profile.decide(&c, &info, &mut Kept::default(), &mut StdRng::seed_from_u64(1), &mut ()) {
            Decision::Nowhere(why) => nomination(&profile, &c, &info, &why),
            Decision::Fits(fit) => panic!("{fit:?}"),
        }
    };
    match plan(10) {
        Nomination::Preempt { node, victims } => {
            assert_eq!(node, "a");
            assert_eq!(victims.iter().map(|v| v.priority).collect::<Vec<_>>(), [1]);
        }
        other => panic!("{other:?}"),
    }
    match plan(0) {
        Nomination::No(message) => assert_eq!(
            message,
            "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."
        ),
        other => panic!("{other:?}"),
    }
}

proptest! {
    /// After any sequence of changes no node is overcommitted, and the running totals equal the sums over the
    /// pods.
    #[test]
    fn never_overcommits(ops in proptest::collection::vec((0..4u8, 0..30usize, 1..3000i64, 0..6usize), 1..200)) {
        let mut c = cluster((0..3).map(|i| node(&format!("n{i}"), "4", &[])));
        for (op, id, cpu, which) in ops {
            let uid = format!("uid-{id}");
            match op {
                0 | 1 if !c.is_placed(&uid) => {
                    // A pod that fits nowhere is skipped.
                    let _ = place(&mut c, pod(&id.to_string(), &format!("{cpu}m")));
                }
                2 => {
                    c.remove_pod(&uid);
                }
                3 if which < 3 => c.remove_node(&format!("n{which}")),
                3 => c.set_node(Arc::new(node(&format!("n{}", which - 3), "4", &[]))),
                _ => {}
            }
            for node in c.nodes() {
                let sum: i64 = node.pods.iter().map(|p| p.requests.milli_cpu).sum();
                prop_assert_eq!(sum, node.requested.milli_cpu);
                prop_assert!(sum <= node.allocatable.milli_cpu);
            }
        }
    }
}

#[test]
fn all_feasible_nodes_are_scored_unless_a_percentage_is_set() {
    let mut c = cluster((0..300).map(|i| node(&i.to_string(), if i == 299 { "8" } else { "4" }, &[])));
    let info = PodInfo::new(Arc::new(pod("a", "1")));
    let decide = |c: &Cluster, enough| {
        let profile = Profile { enough, ..profile() };
        match profile.decide(c, &info, &mut Kept::default(), &mut StdRng::seed_from_u64(1), &mut ()) {
            Decision::Fits(fit) => (fit.node, fit.evaluated, fit.feasible),
            Decision::Nowhere(why) => panic!("{why:?}"),
        }
    };
    assert_eq!(decide(&c, Enough::All), ("299".into(), 300, 300), "the last one has the most room");
    assert_eq!(decide(&c, Enough::Percentage(100)), ("299".into(), 300, 300));
    let (chosen, evaluated, feasible) = decide(&c, Enough::Percentage(34));
    assert_eq!((chosen == "299", evaluated, feasible), (false, 102, 102));
    assert_eq!(decide(&c, Enough::Percentage(10)).1, 100, "the least number");
    // A node that a percentage does not reach is examined when no other one is feasible.
    let small = (0..299).map(|i| node(&i.to_string(), "500m", &[]));
    small.for_each(|node| c.set_node(Arc::new(node)));
    let mut kept = Kept::default();
    let profile = Profile { enough: Enough::Percentage(34), ..profile() };
    match profile.decide(&c, &info, &mut kept, &mut StdRng::seed_from_u64(1), &mut ()) {
        Decision::Fits(fit) => assert_eq!((fit.node.as_str(), fit.evaluated, fit.feasible), ("299", 300, 1)),
        Decision::Nowhere(why) => panic!("{why:?}"),
    }
}

/// Places 5,000 pods on 1,000 nodes and prints the time per decision (`--release -- --nocapture`). Asserts no
/// time.
#[test]
fn five_thousand_pods_find_their_place() {
    let mut c = cluster((0..1000).map(|i| node(&format!("n{i}"), "64", &[("zone", "a")])));
    let (profile, mut kept, mut rng) = (profile(), Kept::default(), StdRng::seed_from_u64(1));
    let (mut times, mut placed) = (Vec::new(), 0);
    for i in 0..5000 {
        let info = Arc::new(PodInfo::new(Arc::new(pod(&i.to_string(), "100m"))));
        let begin = std::time::Instant::now();
        if let Decision::Fits(fit) = profile.decide(&c, &info, &mut kept, &mut rng, &mut ()) {
            c.assume(info, &fit.node);
            placed += 1;
        }
        times.push(begin.elapsed());
    }
    assert_eq!(placed, 5000);
    times.sort_unstable();
    println!(
        "p50 {:?} p99 {:?} all {:?}",
        times[2500],
        times[4950],
        times.iter().sum::<std::time::Duration>()
    );
}
