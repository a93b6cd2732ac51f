//! Disruption budgets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_builtin::pods::is_ready;
use k8s_core::{
    api::api::{
        apps::v1::ReplicaSet,
        core::v1::Pod,
        policy::v1::{Eviction, PodDisruptionBudget},
    },
    meta::ObjectExt,
    random,
};
use k8s_testing::{
    Running,
    controllers::{disruption, replica_set},
};
use serde_json::json;

use super::{active, storm, template};

/// Asks for the eviction of a pod. Returns the code of the answer.
async fn evict(lab: &Running, pod: &str) -> u16 {
    let eviction: Eviction = serde_json::from_value(json!({"metadata": {"name": pod}})).unwrap();
    match lab.api::<Pod>().create_subresource::<_, serde_json::Value>(pod, "eviction", &eviction).await {
        Ok(_) => 201,
        Err(e) => e.status().map_or(0, k8s_core::status::ApiStatus::code),
    }
}

/// Whoever evicts, and whatever fails: the budget's least number of pods stays ready.
#[test]
fn evictions_leave_what_the_budget_asks_for() {
    storm(10).controllers([replica_set(), disruption()]).run(async |lab| {
        let holds = Arc::new(AtomicBool::new(false));
        let watched = holds.clone();
        lab.always(move |all: &[&Pod]| {
            let ready = active(all, "web").filter(|pod| is_ready(pod)).count();
            assert!(ready >= 3 || !watched.load(Ordering::SeqCst), "{ready} of 5 are ready");
        })
        .await;
        lab.create_from::<ReplicaSet>(json!({"metadata": {"name": "web"}, "spec": {
            "replicas": 5, "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "one"),
        }}))
        .await;
        let budget = if random::number().is_multiple_of(2) {
            json!({"minAvailable": 3})
        } else {
            json!({"maxUnavailable": "40%"})
        };
        let mut spec = json!({"selector": {"matchLabels": {"app": "web"}}});
        spec.as_object_mut().unwrap().extend(budget.as_object().unwrap().clone());
        lab.create_from::<PodDisruptionBudget>(json!({"metadata": {"name": "web"}, "spec": spec})).await;
        lab.until("web", |budget: &PodDisruptionBudget| {
            budget.status.as_ref().is_some_and(|status| status.disruptions_allowed == Some(2))
        })
        .await;
        holds.store(true, Ordering::SeqCst);
        let (mut gone, mut refused) = (0, 0);
        for _ in 0..20 {
            let all: Vec<Pod> = lab.list().await;
            for pod in all.iter().filter(|_| random::number().is_multiple_of(2)) {
                match evict(&lab, pod.name()).await {
                    201 => gone += 1,
                    429 => refused += 1,
                    404 | 409 => {}
                    code => panic!("{code}"),
                }
            }
            lab.sleep(Duration::from_millis(random::range(100..4000))).await;
        }
        assert!(gone > 1 && refused > 0, "{gone} gone, {refused} refused");
        lab.assert_idempotent().await;
        let status = lab.get::<PodDisruptionBudget>("web").await.status.unwrap();
        assert_eq!((status.disruptions_allowed, status.current_healthy), (Some(2), Some(5)));
        assert_eq!(status.disrupted_pods, None);
    });
}
