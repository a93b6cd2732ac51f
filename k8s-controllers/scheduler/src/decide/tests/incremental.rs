//! Decisions on a cluster that is kept up to date, against asking every plugin about every node of one that
//! was made anew.

use std::collections::BTreeSet;

use k8s_core::{api::api::core::v1::Namespace, cache::Cache};
use proptest::{option, prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;
use crate::{Candidate, volumes::Lists};

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

#[derive(Clone, Debug)]
struct Machine {
    zone: Option<&'static str>,
    host: bool,
    cpu: i64,
    memory: i64,
    devices: i64,
    taint: Option<&'static str>,
    cordoned: bool,
    image: Option<i64>,
}

#[derive(Clone, Debug)]
struct Work {
    app: &'static str,
    namespace: &'static str,
    cpu: i64,
    memory: i64,
    devices: i64,
    port: bool,
    tolerates: bool,
    zone: Option<&'static str>,
    prefers: bool,
    priority: i32,
    rules: Vec<Rule>,
    leaving: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    kind: u8,
    key: &'static str,
    app: &'static str,
    /// By names, by a selector, or the pod's own.
    namespaces: u8,
}

#[derive(Clone, Debug)]
enum Op {
    Node(usize, Machine),
    NodeGone(usize),
    Decide(Work),
    Place(Work, usize),
    Gone(usize),
    Confirm(usize),
    Leaving(usize),
    Nominate(Work, usize),
    Namespace(&'static str, &'static str),
}

fn machine() -> impl Strategy<Value = Machine> {
    (
        option::of(select(vec!["a", "b", "c"])),
        0..8u8,
        1..6i64,
        1..6i64,
        0..3i64,
        option::weighted(0.3, select(vec!["NoSchedule", "PreferNoSchedule"])),
        0..8u8,
        option::weighted(0.4, 100..900i64),
    )
        .prop_map(|(zone, host, cpu, memory, devices, taint, cordoned, image)| Machine {
            zone,
            host: host > 0,
            cpu,
            memory,
            devices,
            taint,
            cordoned: cordoned == 0,
            image,
        })
}

fn rule() -> impl Strategy<Value = Rule> {
    (0..8u8, select(vec![ZONE, HOST, "none"]), select(vec!["x", "y"]), 0..4u8)
        .prop_map(|(kind, key, app, namespaces)| Rule { kind, key, app, namespaces })
}

fn work() -> impl Strategy<Value = Work> {
    (
        (select(vec!["x", "y"]), select(vec!["n", "m"]), 0..3i64, 0..3i64, 0..6i64, 0..5u8),
        any::<bool>(),
        option::weighted(0.2, select(vec!["a", "b"])),
        0..3u8,
        0..3i32,
        proptest::collection::vec(rule(), 0..3),
        0..8u8,
    )
        .prop_map(
            |(
                (app, namespace, cpu, memory, devices, port),
                tolerates,
                zone,
                prefers,
                priority,
                rules,
                leaving,
            )| Work {
                app,
                namespace,
                cpu,
                memory,
                devices: (devices - 4).max(0),
                port: port == 0,
                tolerates,
                zone,
                prefers: prefers == 0,
                priority,
                rules,
                leaving: leaving == 0,
            },
        )
}

fn op() -> impl Strategy<Value = Op> {
    let at = || 0..40usize;
    prop_oneof![
        2 => (0..8usize, machine()).prop_map(|(at, machine)| Op::Node(at, machine)),
        1 => at().prop_map(Op::NodeGone),
        8 => work().prop_map(Op::Decide),
        4 => (work(), 0..8usize).prop_map(|(work, at)| Op::Place(work, at)),
        2 => at().prop_map(Op::Gone),
        2 => at().prop_map(Op::Confirm),
        1 => at().prop_map(Op::Leaving),
        1 => (work(), 0..8usize).prop_map(|(work, at)| Op::Nominate(work, at)),
        1 => (select(vec!["n", "m"]), select(vec!["red", "blue"])).prop_map(|(name, team)| Op::Namespace(name, team)),
    ]
}

impl Machine {
    fn node(&self, at: usize) -> Arc<Node> {
        let mut labels = json!({});
        if let Some(zone) = self.zone {
            labels[ZONE] = zone.into();
        }
        if self.host {
            labels[HOST] = at.to_string().into();
        }
        let taints: Vec<Value> =
            self.taint.iter().map(|effect| json!({"key": "k", "effect": effect})).collect();
        let images: Vec<Value> =
            self.image.iter().map(|mib| json!({"names": ["img:1"], "sizeBytes": mib << 20})).collect();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("n{at}"), "labels": labels},
                "spec": {"unschedulable": self.cordoned, "taints": taints},
                "status": {"images": images, "allocatable": {
                    "cpu": self.cpu.to_string(), "memory": format!("{}Gi", self.memory), "pods": "4",
                    "example.com/dev": self.devices.to_string(),
                }},
            }))
            .unwrap(),
        )
    }
}

impl Work {
    fn pod(&self, id: usize) -> Arc<PodInfo> {
        let mut requests = json!({"cpu": self.cpu.to_string(), "memory": format!("{}Gi", self.memory)});
        if self.devices > 0 {
            requests["example.com/dev"] = self.devices.to_string().into();
        }
        let mut container = json!({"name": "c", "image": "img:1", "resources": {"requests": requests}});
        if self.port {
            container["ports"] = json!([{"containerPort": 80, "hostPort": 80}]);
        }
        let mut spec =
            json!({"priority": self.priority, "containers": [container], "topologySpreadConstraints": []});
        if self.tolerates {
            spec["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
        }
        if let Some(zone) = self.zone {
            spec["nodeSelector"] = json!({ZONE: zone});
        }
        let mut affinity = json!({"podAffinity": {}, "podAntiAffinity": {}});
        if self.prefers {
            let term = json!({"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["a"]}]});
            affinity["nodeAffinity"] = json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 7, "preference": term}]});
        }
        let (required, preferred) = (
            "requiredDuringSchedulingIgnoredDuringExecution",
            "preferredDuringSchedulingIgnoredDuringExecution",
        );
        for Rule { kind, key, app, namespaces } in &self.rules {
            let mut term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}});
            match namespaces {
                0 => term["namespaces"] = json!(["n", "m"]),
                1 => term["namespaceSelector"] = json!({"matchLabels": {"team": "red"}}),
                2 => term["namespaceSelector"] = json!({}),
                _ => {}
            }
            let push = |list: &mut Value, one: Value| match list {
                Value::Array(list) => list.push(one),
                none => *none = json!([one]),
            };
            let spread = |skew: i64, when: &str, more: Value| {
                let mut one = json!({"maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": when,
                    "labelSelector": {"matchLabels": {"app": app}}});
                one.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                one
            };
            match kind {
                0 => push(&mut affinity["podAffinity"][required], term),
                1 => push(&mut affinity["podAntiAffinity"][required], term),
                2 => push(
                    &mut affinity["podAffinity"][preferred],
                    json!({"weight": 9, "podAffinityTerm": term}),
                ),
                3 => push(
                    &mut affinity["podAntiAffinity"][preferred],
                    json!({"weight": 5, "podAffinityTerm": term}),
                ),
                4 => push(&mut spec["topologySpreadConstraints"], spread(1, "DoNotSchedule", json!({}))),
                5 => push(
                    &mut spec["topologySpreadConstraints"],
                    spread(2, "DoNotSchedule", json!({"minDomains": 2, "nodeTaintsPolicy": "Honor"})),
                ),
                6 => push(&mut spec["topologySpreadConstraints"], spread(2, "ScheduleAnyway", json!({}))),
                _ => push(
                    &mut spec["topologySpreadConstraints"],
                    spread(1, "ScheduleAnyway", json!({"nodeAffinityPolicy": "Ignore"})),
                ),
            }
        }
        spec["affinity"] = affinity;
        let mut metadata = json!({"name": id.to_string(), "namespace": self.namespace, "uid": format!("uid-{id}"), "labels": {"app": self.app}});
        if self.leaving {
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        Arc::new(PodInfo::new(Arc::new(pod)))
    }
}

/// Asks every plugin about every node. Returns the feasible nodes, and those with the highest score.
fn plugin_by_plugin(
    profile: &Profile,
    cluster: &Cluster,
    pod: &PodInfo,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut cx = Cycle::new(cluster);
    let Ok((asked, _)) = profile.pre_filter(&mut cx, pod, &mut ()) else { return Default::default() };
    let mut feasible: Vec<&NodeInfo> = Vec::new();
    for node in cluster.nodes() {
        if profile.check(&mut cx, &asked, pod, node).is_ok() {
            feasible.push(node);
        }
    }
    let mut totals = vec![0; feasible.len()];
    for row in &profile.rows {
        let Some(score) = &row.score else { continue };
        if row.pre_score.as_ref().is_some_and(|plugin| !plugin.pre_score(&mut cx, pod, &feasible)) {
            continue;
        }
        let mut scores: Vec<i64> = feasible.iter().map(|node| score.score(&cx, pod, node)).collect();
        if let Some(plugin) = &row.normalize {
            plugin.normalize(&cx, pod, &feasible, &mut scores);
        }
        totals.iter_mut().zip(scores).for_each(|(total, score)| *total += row.weight * score);
    }
    let most = totals.iter().max().copied();
    let best = feasible.iter().zip(&totals).filter(|(_, total)| Some(**total) == most);
    (feasible.iter().map(|n| n.name().to_owned()).collect(), best.map(|(n, _)| n.name().to_owned()).collect())
}

#[derive(Default)]
struct Refusals {
    nodes: BTreeSet<String>,
    totals: BTreeMap<String, i64>,
}

impl Trace for Refusals {
    const FULL: bool = true;
    fn refused(&mut self, node: Option<&NodeInfo>, _: &str, _: &Reject) {
        assert!(node.is_none_or(|n| self.nodes.insert(n.name().to_owned())), "refused twice");
    }
    fn scored(&mut self, _: &str, weight: i64, nodes: &[&NodeInfo], _: &[i64], scores: &[i64]) {
        for (node, score) in nodes.iter().zip(scores) {
            *self.totals.entry(node.name().to_owned()).or_default() += weight * score;
        }
    }
}

/// A cluster with what is known, in the order of the nodes of another one.
struct World {
    namespaces: Cache<Namespace>,
    machines: BTreeMap<usize, Machine>,
    /// Pods with their node, by id.
    pods: BTreeMap<usize, (Work, String)>,
    nominated: BTreeMap<usize, (Work, String)>,
}

impl World {
    fn cluster(&self) -> Cluster {
        Cluster::watching(self.namespaces.clone(), Lists::default())
    }

    fn anew(&self, like: &Cluster) -> Cluster {
        let mut cluster = self.cluster();
        for node in like.nodes() {
            let at = node.name()[1..].parse().unwrap();
            cluster.set_node(self.machines[&at].node(at));
        }
        for (id, (work, node)) in &self.pods {
            cluster.set_pod(work.pod(*id), node);
        }
        for (id, (work, node)) in &self.nominated {
            cluster.nominate(&work.pod(*id), Some(node));
        }
        cluster
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever changed before: the feasible nodes, the best ones and the refusals are those of asking every
    /// plugin about every node of a cluster made anew; a pod without a node has none there either.
    #[test]
    fn decisions_are_those_of_a_cluster_made_anew(
        first in proptest::collection::vec(machine(), 1..8),
        templates in proptest::collection::vec(work(), 1..5),
        ops in proptest::collection::vec((op(), option::weighted(0.6, 0..5usize)), 1..40),
    ) {
        let profile = profile();
        let mut world = World { namespaces: Cache::new(), machines: BTreeMap::new(), pods: BTreeMap::new(), nominated: BTreeMap::new() };
        let mut cluster = world.cluster();
        for (at, machine) in first.into_iter().enumerate() {
            cluster.set_node(machine.node(at));
            world.machines.insert(at, machine);
        }
        let mut kept = Kept::default();
        let some = |all: &BTreeMap<usize, (Work, String)>, at: usize| all.keys().nth(at % all.len().max(1)).copied();
        for (id, (op, template)) in ops.into_iter().enumerate() {
            // Many pods are of few templates.
            let of = |work: Work| template.and_then(|at| templates.get(at)).cloned().unwrap_or(work);
            match op {
                Op::Node(at, machine) => {
                    cluster.set_node(machine.node(at));
                    world.machines.insert(at, machine);
                }
                Op::NodeGone(at) => {
                    if let Some(at) = world.machines.keys().nth(at % world.machines.len().max(1)).copied() {
                        cluster.remove_node(&format!("n{at}"));
                        world.machines.remove(&at);
                    }
                }
                Op::Place(work, at) => {
                    let work = of(work);
                    cluster.set_pod(work.pod(id), &format!("n{at}"));
                    world.pods.insert(id, (work, format!("n{at}")));
                }
                Op::Gone(at) => if let Some(id) = some(&world.pods, at) {
                    cluster.remove_pod(&format!("uid-{id}"));
                    world.pods.remove(&id);
                },
                Op::Confirm(at) => if let Some(id) = some(&world.pods, at) {
                    let (work, node) = &world.pods[&id];
                    cluster.set_pod(work.pod(id), node);
                },
                Op::Leaving(at) => if let Some(id) = some(&world.pods, at) {
                    let (work, node) = world.pods.get_mut(&id).unwrap();
                    work.leaving = true;
                    cluster.set_pod(work.pod(id), node);
                },
                Op::Nominate(work, at) => {
                    let work = of(work);
                    cluster.nominate(&work.pod(id), Some(&format!("n{at}")));
                    world.nominated.insert(id, (work, format!("n{at}")));
                }
                Op::Namespace(name, team) => world.namespaces.upsert(
                    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"team": team}}})).unwrap(),
                ),
                Op::Decide(work) => {
                    let work = of(work);
                    let pod = work.pod(id);
                    let anew = world.anew(&cluster);
                    let (feasible, best) = plugin_by_plugin(&profile, &anew, &pod);
                    let mut refusals = Refusals::default();
                    profile.decide(&cluster, &pod, &mut kept, &mut StdRng::seed_from_u64(1), &mut refusals);
                    let most = refusals.totals.values().max();
                    let top = refusals.totals.iter().filter(|(_, t)| Some(*t) == most).map(|(n, _)| n.clone()).collect::<BTreeSet<_>>();
                    prop_assert_eq!(&top, &best, "explained scores of {:?}", work);
                    let mut chosen = None;
                    for seed in 0..4 {
                        match profile.decide(&cluster, &pod, &mut kept, &mut StdRng::seed_from_u64(seed), &mut ()) {
                            Decision::Fits(fit) => {
                                prop_assert!(best.contains(&fit.node), "{} of {:?} for {:?}", fit.node, best, work);
                                prop_assert_eq!(fit.feasible, feasible.len());
                                chosen = Some(fit.node);
                            }
                            Decision::Nowhere(why) => {
                                prop_assert!(feasible.is_empty(), "{} for {:?}: {:?}", why.message, work, feasible);
                                let fresh = profile.decide(&anew, &pod, &mut Kept::default(), &mut StdRng::seed_from_u64(1), &mut ());
                                let Decision::Nowhere(fresh) = fresh else { panic!("{fresh:?}") };
                                prop_assert_eq!(&why.message, &fresh.message);
                                prop_assert_eq!((why.refused_by, &why.resolvable), (fresh.refused_by, &fresh.resolvable));
                                let (one, other) = (profile.post_filter(&cluster, &pod, &why, &mut kept), profile.post_filter(&anew, &pod, &fresh, &mut Kept::default()));
                                prop_assert_eq!(told(one), told(other));
                            }
                        }
                    }
                    if let Some(node) = chosen {
                        cluster.assume(pod, &node);
                        world.pods.insert(id, (work, node));
                    }
                }
            }
        }
    }
}

/// Returns a nomination as text; equal ones are equal.
fn told(nomination: Nomination) -> String {
    match nomination {
        Nomination::Candidates(all) => {
            let one = |c: Candidate| {
                let mut victims: Vec<String> = c.victims.iter().map(|v| v.key.to_string()).collect();
                victims.sort();
                format!("{} {victims:?} {}", c.node, c.violating)
            };
            all.into_iter().map(one).collect::<Vec<_>>().join("; ")
        }
        other => format!("{other:?}"),
    }
}
