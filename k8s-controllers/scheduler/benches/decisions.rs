//! Measures bare decisions over many nodes: no API server, no queue, no binding. Prints figures, asserts
//! none.
//!
//! `cargo bench -p k8s-scheduler --bench decisions [-- <nodes> [<name of a case>]]`

#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_core::api::{Node, Pod};
use k8s_scheduler::{Cluster, Plan, PodInfo, Scheduler};
use serde_json::{Value, json};

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, more) => *into = more,
    }
}

fn pod(name: &str, app: &str, cpu: u64, more: Value) -> Arc<PodInfo> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": app}},
        "spec": {
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            ],
            "containers": [{"name": "c", "image": "nginx:1", "resources": {"requests": {"cpu": format!("{cpu}m"), "memory": "64Mi"}}}],
        },
    });
    merge(&mut value, more);
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value::<Pod>(value).unwrap())))
}

/// A cluster with five pods on each node, of 500 applications.
fn cluster(nodes: usize, cpu: u64, priority: i32) -> Cluster {
    let mut cluster = Cluster::default();
    for at in 0..nodes {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": format!("n{at}"), "labels": {
                HOST: format!("n{at}"), ZONE: format!("z{}", at % 10),
                "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            }},
            "status": {"allocatable": {"cpu": "32", "memory": "128Gi", "ephemeral-storage": "100Gi", "pods": "110"}},
        }))
        .unwrap();
        cluster.set_node(Arc::new(node));
        for k in 0..5 {
            let id = at * 5 + k;
            let placed = pod(
                &format!("old-{id}"),
                &format!("old-{}", id % 500),
                cpu,
                json!({"spec": {"priority": priority}}),
            );
            cluster.set_pod(placed, &format!("n{at}"));
        }
    }
    cluster
}

fn terms(app: &str, key: &str) -> Value {
    json!([{"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}])
}

fn anti(app: &str, key: &str) -> Value {
    json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms(app, key)}}}})
}

fn near(app: &str, key: &str) -> Value {
    json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms(app, key)}}}})
}

fn prefers(app: &str) -> Value {
    let term = json!({"topologyKey": ZONE, "labelSelector": {"matchLabels": {"app": app}}});
    let node = json!({"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["z1", "z2"]}]});
    json!({"spec": {"affinity": {
        "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "podAffinityTerm": term}]},
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "preference": node}]},
    }}})
}

fn spread(app: &str, keys: &[&str], unsatisfiable: &str) -> Value {
    let one = |key: &&str| json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": unsatisfiable, "labelSelector": {"matchLabels": {"app": app}}});
    json!({"spec": {"topologySpreadConstraints": keys.iter().map(one).collect::<Vec<_>>()}})
}

/// Decides about the pods one by one; each counts on its node before the next, and victims leave.
fn measure(name: &str, mut cluster: Cluster, pods: usize, make: impl Fn(usize) -> Arc<PodInfo>) {
    let pods: Vec<Arc<PodInfo>> = (0..pods).map(make).collect();
    let mut planner = Scheduler::builder().planner(1).unwrap();
    let (mut times, mut nowhere, mut preempted) = (Vec::with_capacity(pods.len()), 0, 0);
    let begun = Instant::now();
    for pod in &pods {
        let begun = Instant::now();
        let plan = planner.plan(&cluster, pod);
        times.push(begun.elapsed());
        match plan {
            Plan::Node(node) => cluster.assume(pod.clone(), &node),
            Plan::Preempt { node, victims } => {
                preempted += 1;
                for victim in victims {
                    cluster.remove_pod(victim.uid());
                }
                cluster.assume(pod.clone(), &node);
            }
            Plan::Nowhere(why) => {
                if nowhere == 0 {
                    println!("  {why}");
                }
                nowhere += 1;
            }
        }
    }
    let all = begun.elapsed();
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(Duration::ZERO);
    println!(
        "{name:<34} p50 {:>9.1?} p99 {:>9.1?} {:>8.0}/s with placing; {nowhere} nowhere, {preempted} preempted",
        at(50),
        at(99),
        pods.len() as f64 / all.as_secs_f64(),
    );
}

fn main() {
    // Cargo adds `--bench`.
    let mut args = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let nodes: usize = args.next().and_then(|n| n.parse().ok()).unwrap_or(5000);
    let only = args.next();
    let case = |name: &str, pods: usize, make: &dyn Fn(usize) -> Arc<PodInfo>| {
        if only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
            let (cpu, priority) = if name == "preemption" { (6200, 0) } else { (200, 0) };
            measure(name, cluster(nodes, cpu, priority), pods, make);
        }
    };
    println!("{nodes} nodes, {} pods on them", nodes * 5);
    let new = |i: usize| format!("new-{i}");
    case("plain", 5000, &|i| pod(&new(i), "a", 100, json!({})));
    case("plain, all requests different", 2000, &|i| pod(&new(i), "a", 100 + i as u64, json!({})));
    case("node selector", 5000, &|i| pod(&new(i), "a", 100, json!({"spec": {"nodeSelector": {ZONE: "z3"}}})));
    case("preferred spread, zone and host", 5000, &|i| {
        pod(&new(i), "a", 100, spread("a", &[HOST, ZONE], "ScheduleAnyway"))
    });
    case("required anti-affinity, host", 4000, &|i| pod(&new(i), "a", 100, anti("a", HOST)));
    case("required anti-affinity, zone", 4000, &|i| {
        let app = format!("a{}", i / 10);
        pod(&new(i), &app, 100, anti(&app, ZONE))
    });
    case("required affinity, zone", 4000, &|i| {
        let app = format!("a{}", i / 100);
        pod(&new(i), &app, 100, near(&app, ZONE))
    });
    case("required spread, zone", 4000, &|i| pod(&new(i), "a", 100, spread("a", &[ZONE], "DoNotSchedule")));
    case("required spread, zone and host", 4000, &|i| {
        pod(&new(i), "a", 100, spread("a", &[ZONE, HOST], "DoNotSchedule"))
    });
    case("preferred affinity", 4000, &|i| pod(&new(i), "a", 100, prefers("old-1")));
    case("preemption", 2000, &|i| pod(&new(i), "a", 6000, json!({"spec": {"priority": 10}})));
}
