//! Invariants of the built-in controllers under faults: at every moment, and after the faults have stopped.
//!
//! CI runs a few seeds of each; `SEEDS=1000` runs that many.

mod alike;
mod autoscaling;
mod budgets;
mod daemons;
mod devices;
mod endpoints;
mod jobs;
mod load_balancers;
mod nodes;
mod owned;
mod pods;
mod quotas;
mod rollouts;
mod scheduling;
mod stateful;
mod volumes;

use std::time::Duration;

use k8s_builtin::pods::is_active;
use k8s_core::{
    api::api::core::v1::{Pod, PodTemplateSpec},
    meta::ObjectExt,
    random,
};
use k8s_testing::{Faults, Lab, Script};
use serde_json::{Value, json};

/// A lab with all faults. Pods take a second to start and one to stop; they are created with a node name.
fn storm(seeds: u64) -> Lab {
    scheduled_storm(1, seeds).without_scheduler()
}

/// As [`storm`], with pods that the scheduler places.
fn scheduled_storm(nodes: usize, seeds: u64) -> Lab {
    let script = |_: &Pod| slow(Script::runs());
    Lab::new().nodes(nodes).seeds(0..seeds).faults(Faults::all().at_most(200)).pods(script)
}

fn slow(script: Script) -> Script {
    script.starts_after(Duration::from_secs(1)).stops_after(Duration::from_secs(1))
}

/// A pod template with a node name; the simulated node ends the pods.
fn template(app: &str, image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"nodeName": "node-0", "containers": [{"name": "c", "image": image}]},
    })
}

fn typed_template(app: &str, image: &str) -> PodTemplateSpec {
    serde_json::from_value(template(app, image)).unwrap()
}

fn pod(name: &str, app: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": template(app, "one")["spec"]})
}

fn seconds(range: std::ops::Range<u64>) -> Duration {
    Duration::from_secs(random::range(range))
}

fn active<'a>(all: &'a [&Pod], app: &'a str) -> impl Iterator<Item = &'a Pod> {
    all.iter().copied().filter(move |p| p.label("app") == Some(app) && is_active(p))
}
