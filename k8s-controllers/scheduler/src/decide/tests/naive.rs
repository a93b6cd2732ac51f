//! Decisions against a model that looks at everything anew, without any of the scheduler's state.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{option, prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;

#[derive(Clone, Debug)]
struct Machine {
    zone: Option<&'static str>,
    cpu: i64,
    tainted: bool,
    cordoned: bool,
    disk: bool,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    None,
    Near,
    Far,
    Spread { skew: i64, least: i64 },
}

#[derive(Clone, Debug)]
struct Work {
    app: &'static str,
    cpu: i64,
    port: Option<i32>,
    tolerates: bool,
    disk: bool,
    priority: i32,
    rule: Rule,
    /// The application that the rule is about.
    other: &'static str,
    key: &'static str,
}

fn machine() -> impl Strategy<Value = Machine> {
    (option::of(select(vec!["a", "b", "c"])), 1..6i64, 0..5u8, 0..6u8, any::<bool>()).prop_map(
        |(zone, cpu, taint, cordon, disk)| Machine {
            zone,
            cpu,
            tainted: taint == 0,
            cordoned: cordon == 0,
            disk,
        },
    )
}

fn work() -> impl Strategy<Value = Work> {
    let app = || select(vec!["x", "y"]);
    let rule = prop_oneof![
        Just(Rule::None),
        Just(Rule::Near),
        Just(Rule::Far),
        (1..3i64, 1..4i64).prop_map(|(skew, least)| Rule::Spread { skew, least }),
    ];
    (
        app(),
        0..3i64,
        option::of(select(vec![80, 81])),
        any::<bool>(),
        0..4u8,
        0..3i32,
        rule,
        app(),
        select(vec!["zone", "host"]),
    )
        .prop_map(|(app, cpu, port, tolerates, disk, priority, rule, other, key)| Work {
            app,
            cpu,
            port,
            tolerates,
            disk: disk == 0,
            priority,
            rule,
            other,
            key,
        })
}

impl Machine {
    fn label(&self, name: usize, key: &str) -> Option<String> {
        if key == "host" { Some(name.to_string()) } else { self.zone.map(str::to_owned) }
    }

    fn node(&self, name: usize) -> Node {
        let mut labels = json!({"host": name.to_string()});
        if let Some(zone) = self.zone {
            labels["zone"] = zone.into();
        }
        if self.disk {
            labels["disk"] = "ssd".into();
        }
        let taints = if self.tainted { json!([{"key": "k", "effect": "NoSchedule"}]) } else { json!([]) };
        serde_json::from_value(json!({
            "metadata": {"name": name.to_string(), "labels": labels},
            "spec": {"unschedulable": self.cordoned, "taints": taints},
            "status": {"allocatable": {"cpu": self.cpu.to_string(), "pods": "4"}},
        }))
        .unwrap()
    }
}

impl Work {
    fn pod(&self, id: usize) -> Pod {
        let term = json!([{"topologyKey": self.key, "labelSelector": {"matchLabels": {"app": self.other}}}]);
        let mut spec = json!({
            "priority": self.priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": self.cpu.to_string()}}}],
        });
        if let Some(port) = self.port {
            spec["containers"][0]["ports"] = json!([{"containerPort": port, "hostPort": port}]);
        }
        if self.tolerates {
            spec["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
        }
        if self.disk {
            spec["nodeSelector"] = json!({"disk": "ssd"});
        }
        let required = |term: Value| json!({"requiredDuringSchedulingIgnoredDuringExecution": term});
        match self.rule {
            Rule::None => {}
            Rule::Near => spec["affinity"] = json!({"podAffinity": required(term)}),
            Rule::Far => spec["affinity"] = json!({"podAntiAffinity": required(term)}),
            Rule::Spread { skew, least } => {
                spec["topologySpreadConstraints"] = json!([{
                    "maxSkew": skew, "minDomains": least, "topologyKey": self.key,
                    "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": self.other}},
                }]);
            }
        }
        serde_json::from_value(json!({
            "metadata": {"name": id.to_string(), "namespace": "n", "uid": format!("uid-{id}"), "labels": {"app": self.app}},
            "spec": spec,
        }))
        .unwrap()
    }
}

/// Everything that runs, by id: its node and itself.
type Placed = BTreeMap<usize, (usize, Work)>;

fn there(placed: &Placed, at: usize) -> impl Iterator<Item = &Work> {
    placed.values().filter(move |(node, _)| *node == at).map(|(_, work)| work)
}

/// Returns true if the pod may run on the node.
fn may_run(work: &Work, at: usize, machines: &[Machine], placed: &Placed) -> bool {
    let machine = &machines[at];
    if (machine.tainted && !work.tolerates) || machine.cordoned || (work.disk && !machine.disk) {
        return false;
    }
    let used: i64 = there(placed, at).map(|w| w.cpu).sum();
    if there(placed, at).count() >= 4 || (work.cpu > 0 && used + work.cpu > machine.cpu) {
        return false;
    }
    if work.port.is_some() && there(placed, at).any(|w| w.port == work.port) {
        return false;
    }
    let domain = |node: usize, key: &str| machines[node].label(node, key);
    // Others keep it away.
    let unwanted = placed.values().any(|(node, w)| {
        matches!(w.rule, Rule::Far) && w.other == work.app && {
            let theirs = domain(*node, w.key);
            theirs.is_some() && theirs == domain(at, w.key)
        }
    });
    if unwanted {
        return false;
    }
    let own = domain(at, work.key);
    let matching = || placed.values().filter(|(_, w)| w.app == work.other);
    match work.rule {
        Rule::None => true,
        Rule::Near => {
            let Some(own) = own else { return false };
            let nobody = !matching().any(|(node, _)| domain(*node, work.key).is_some());
            matching().any(|(node, _)| domain(*node, work.key).as_ref() == Some(&own))
                || (nobody && work.app == work.other)
        }
        Rule::Far => own.is_none() || !matching().any(|(node, _)| domain(*node, work.key) == own),
        Rule::Spread { skew, least } => {
            let Some(own) = own else { return false };
            let mut counts: BTreeMap<String, i64> = BTreeMap::new();
            for (node, machine) in machines.iter().enumerate() {
                if let Some(value) = domain(node, work.key).filter(|_| !work.disk || machine.disk) {
                    let here = matching().filter(|(n, _)| *n == node).count();
                    *counts.entry(value).or_default() += i64::try_from(here).unwrap();
                }
            }
            let fewest = if i64::try_from(counts.len()).unwrap() < least {
                0
            } else {
                counts.values().copied().min().unwrap_or(0)
            };
            let itself = i64::from(work.app == work.other);
            counts.get(&own).copied().unwrap_or(0) + itself - fewest <= skew
        }
    }
}

/// Collects the nodes that were refused.
#[derive(Default)]
struct Refusals(BTreeSet<String>);

impl Trace for Refusals {
    const FULL: bool = true;
    fn refused(&mut self, node: Option<&NodeInfo>, _: &str, _: &Reject) {
        self.0.extend(node.map(|n| n.name().to_owned()));
    }
    fn scored(&mut self, _: &str, _: i64, _: &[&NodeInfo], _: &[i64], _: &[i64]) {}
}

fn feasible(profile: &Profile, cluster: &Cluster, info: &PodInfo) -> (BTreeSet<usize>, Decision) {
    let mut refusals = Refusals::default();
    let decision =
        profile.decide(cluster, info, &mut Kept::default(), &mut StdRng::seed_from_u64(3), &mut refusals);
    let all = cluster.nodes().iter().map(|n| n.name().to_owned());
    let left = all.filter(|n| !refusals.0.contains(n)).map(|n| n.parse().unwrap()).collect();
    (left, decision)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The feasible nodes are those of the model, after any changes of pods and nodes; the chosen one is
    /// among them; and preemption deletes only pods of lower priority, none of them needlessly, after which
    /// the pod may run on the node.
    #[test]
    fn decisions_are_those_of_the_model(
        first in proptest::collection::vec(machine(), 1..5),
        ops in proptest::collection::vec((work(), 0..10u8, 0..30usize, machine()), 1..25),
    ) {
        let profile = profile();
        let mut machines = first;
        let mut cluster = cluster(machines.iter().enumerate().map(|(i, m)| m.node(i)));
        let mut placed = Placed::new();
        for (id, (work, op, which, machine)) in ops.into_iter().enumerate() {
            match op {
                0 => {
                    let at = which % machines.len();
                    cluster.set_node(Arc::new(machine.node(at)));
                    machines[at] = machine;
                    continue;
                }
                1 => {
                    if let Some(id) = placed.keys().nth(which % placed.len().max(1)).copied() {
                        placed.remove(&id);
                        cluster.remove_pod(&format!("uid-{id}"));
                    }
                    continue;
                }
                _ => {}
            }
            let info = Arc::new(PodInfo::new(Arc::new(work.pod(id))));
            let (found, decision) = feasible(&profile, &cluster, &info);
            let wanted: BTreeSet<usize> = (0..machines.len()).filter(|at| may_run(&work, *at, &machines, &placed)).collect();
            prop_assert_eq!(&found, &wanted, "{:?} on {:?} with {:?}", work, machines, placed);
            match decision {
                Decision::Fits(fit) => {
                    let at = fit.node.parse().unwrap();
                    prop_assert!(wanted.contains(&at));
                    cluster.assume(info, &fit.node);
                    placed.insert(id, (at, work));
                }
                Decision::Nowhere(why) => {
                    if let Nomination::Preempt { node, victims } = nomination(&profile, &cluster, &info, &why) {
                        let at: usize = node.parse().unwrap();
                        let ids: Vec<usize> = victims.iter().map(|v| v.key.name.parse().unwrap()).collect();
                        prop_assert!(!ids.is_empty());
                        let mut left = placed.clone();
                        for id in &ids {
                            let (node, victim) = left.remove(id).unwrap();
                            prop_assert!(node == at && victim.priority < work.priority);
                        }
                        prop_assert!(may_run(&work, at, &machines, &left), "{:?} without {:?}", work, ids);
                        for id in &ids {
                            let mut one_more = left.clone();
                            one_more.insert(*id, placed[id].clone());
                            prop_assert!(!may_run(&work, at, &machines, &one_more), "{} is a needless victim", id);
                        }
                    }
                }
            }
        }
    }
}
