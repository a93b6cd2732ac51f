//! Chooses the pods to preempt for a critical one. Pure.
//!
//! As upstream (`pkg/kubelet/preemption`): as few pods of a better quality of service as possible, and among
//! the pods of a class those whose requests come closest to what is missing.

use k8s_core::meta::ObjectExt;

use super::fit::Failure;
use crate::{
    ledger::Entry,
    resources::{Qos, qos},
    types::*,
};

/// Priority from which a pod is critical.
const CRITICAL: i32 = 2_000_000_000;

/// Returns `true` for pods that are admitted whatever other pods it costs.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|priority| priority >= CRITICAL)
}

fn may_preempt(pod: &Pod, other: &Pod) -> bool {
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.priority);
    (is_critical(pod) && !is_critical(other))
        || priority(pod).zip(priority(other)).is_some_and(|(mine, its)| mine > its)
}

/// What is missing of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Need {
    resource: String,
    amount: i64,
}

fn request(entry: &Entry, resource: &str) -> i64 {
    if resource == "pods" { 1 } else { entry.requests.get(resource).copied().unwrap_or(0) }
}

/// Returns what is missing after these pods.
fn after<'a>(needs: &[Need], gone: impl IntoIterator<Item = &'a &'a Entry> + Clone) -> Vec<Need> {
    let left = needs.iter().map(|need| {
        let freed: i64 = gone.clone().into_iter().map(|entry| request(entry, &need.resource)).sum();
        Need { amount: need.amount.saturating_sub(freed), ..need.clone() }
    });
    left.filter(|need| need.amount > 0).collect()
}

fn text(needs: &[Need]) -> String {
    let each: String = needs.iter().map(|n| format!("(res: {}, q: {}), ", n.resource, n.amount)).collect();
    format!("no set of running pods found to reclaim resources: [{each}]")
}

/// Returns the share of the needs that would remain without a pod: each squared, so that every resource
/// counts alike.
fn distance(needs: &[Need], entry: &Entry) -> f64 {
    let share = |need: &Need| {
        let rest = need.amount.saturating_sub(request(entry, &need.resource));
        if rest > 0 { (rest as f64 / need.amount as f64).powi(2) } else { 0.0 }
    };
    needs.iter().map(share).sum()
}

/// Chooses from pods of one class until nothing is missing.
fn choose(mut pods: Vec<&Entry>, mut needs: Vec<Need>) -> Result<Vec<&Entry>, String> {
    let mut chosen = Vec::new();
    while !needs.is_empty() {
        let size = |entry: &Entry| (request(entry, "memory"), request(entry, "cpu"));
        let best = pods.iter().enumerate().min_by(|(_, a), (_, b)| {
            let (near, far) = (distance(&needs, a), distance(&needs, b));
            near.total_cmp(&far)
                .then_with(|| size(a).cmp(&size(b)))
                .then_with(|| a.pod.uid().cmp(b.pod.uid()))
        });
        let Some((at, _)) = best else { return Err(text(&needs)) };
        let entry = pods.swap_remove(at);
        needs = after(&needs, [&entry]);
        chosen.push(entry);
    }
    Ok(chosen)
}

/// Returns the pods to preempt, so that what is missing is free.
///
/// # Errors
/// The pods that may be preempted do not hold enough.
pub(super) fn victims<'a>(
    pod: &Pod,
    pods: impl Iterator<Item = &'a Entry>,
    failures: &[Failure],
) -> Result<Vec<&'a Entry>, String> {
    let needs: Vec<Need> = failures
        .iter()
        .filter_map(|failure| match failure {
            Failure::Insufficient { resource, requested, used, capacity } => {
                let amount = requested.saturating_sub(capacity.saturating_sub(*used));
                Some(Need { resource: resource.clone(), amount })
            }
            Failure::Predicate(..) => None,
        })
        .collect();
    let (mut best_effort, mut burstable, mut guaranteed) = (Vec::new(), Vec::new(), Vec::new());
    for entry in pods.filter(|entry| may_preempt(pod, &entry.pod)) {
        match qos(&entry.pod.spec.clone().unwrap_or_default()) {
            Qos::BestEffort => best_effort.push(entry),
            Qos::Burstable => burstable.push(entry),
            Qos::Guaranteed => guaranteed.push(entry),
        }
    }
    let missing = after(&needs, best_effort.iter().chain(&burstable).chain(&guaranteed));
    if !missing.is_empty() {
        return Err(text(&missing));
    }
    // First the best class: what it must give, although all of the others go.
    let guaranteed = choose(guaranteed, after(&needs, best_effort.iter().chain(&burstable)))?;
    let burstable = choose(burstable, after(&needs, best_effort.iter().chain(&guaranteed)))?;
    let best_effort = choose(best_effort, after(&needs, burstable.iter().chain(&guaranteed)))?;
    Ok(best_effort.into_iter().chain(burstable).chain(guaranteed).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ledger::Held;

    fn pod(uid: &str, priority: i32, cpu: &str, limited: bool) -> Pod {
        let mut resources = json!({});
        if !cpu.is_empty() {
            resources["requests"] = json!({"cpu": cpu, "memory": "1Mi"});
        }
        if limited {
            resources["limits"] = resources["requests"].clone();
        }
        let spec = json!({"priority": priority, "containers": [{"name": "c", "resources": resources}]});
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": spec})).unwrap()
    }

    #[test]
    fn few_pods_of_the_lowest_class_go() {
        let mut held = Held::default();
        for (uid, priority, cpu, limited) in [
            ("best", 0, "", false),
            ("small", 0, "200m", false),
            ("middle", 0, "500m", false),
            ("large", 0, "2", false),
            ("guaranteed", 0, "4", true),
            ("critical", CRITICAL, "8", false),
        ] {
            held.insert(&pod(uid, priority, cpu, limited));
        }
        let chosen = |priority: i32, resource: &str, amount: i64| {
            let failure =
                Failure::Insufficient { resource: resource.into(), requested: amount, used: 0, capacity: 0 };
            let victims = victims(&pod("new", priority, "1", false), held.entries(), &[failure])?;
            let mut uids: Vec<String> = victims.iter().map(|e| e.pod.uid().to_owned()).collect();
            uids.sort();
            Ok::<_, String>(uids.join(","))
        };
        for (amount, want) in [
            (100, "small"),
            (300, "middle"),
            (600, "large"),
            (2100, "large,small"),
            (2700, "large,middle,small"),
            (3000, "guaranteed"),
            (5000, "guaranteed,large"),
        ] {
            assert_eq!(chosen(CRITICAL, "cpu", amount).as_deref(), Ok(want), "{amount}");
        }
        // A place for a pod costs a pod of the lowest class.
        assert_eq!(chosen(CRITICAL, "pods", 1).as_deref(), Ok("best"));
        let none = "no set of running pods found to reclaim resources: [(res: cpu, q: 300), ]";
        assert_eq!(chosen(CRITICAL, "cpu", 7000).unwrap_err(), none);
        // A critical pod of a higher priority may preempt a critical one.
        assert_eq!(chosen(CRITICAL + 1, "cpu", 7000).as_deref(), Ok("critical"));
    }
}
