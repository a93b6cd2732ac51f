//! ClusterRole aggregation: a ClusterRole with an aggregation rule gets the rules of all ClusterRoles that it
//! selects.

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_core::{
    api::api::rbac::v1::{ClusterRole, PolicyRule},
    meta::{LabelSelector, ObjectExt, ObjectKey},
};
use serde_json::json;

use super::Options;
use k8s_controllers::{Action, Caches, Context, Controller, Environment, Error, Reconcile};

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<ClusterRole>::new()
        .named("clusterrole-aggregation-controller")
        .watches::<ClusterRole>(selecting)
        .run_in(environment, Aggregation)
}

fn selectors(role: &ClusterRole) -> Option<Vec<LabelSelector>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_ref();
    Some(selectors.into_iter().flatten().filter_map(|s| LabelSelector::from_api(s).ok()).collect())
}

fn selects(selectors: &[LabelSelector], role: &ClusterRole) -> bool {
    selectors.iter().any(|s| s.matches(role.metadata.labels.as_ref()))
}

fn selecting(caches: &Caches, role: &ClusterRole) -> Vec<ObjectKey> {
    let all = caches.of::<ClusterRole>().list();
    all.iter().filter(|r| selectors(r).is_some_and(|s| selects(&s, role))).map(|r| r.key()).collect()
}

struct Aggregation;

impl Reconcile for Aggregation {
    type Kind = ClusterRole;

    async fn reconcile(&self, cx: &Context, role: Arc<ClusterRole>) -> Result<Action, Error> {
        let Some(selectors) = selectors(&role).filter(|_| !role.is_deleting()) else {
            return Ok(Action::await_change());
        };
        let mut rules: Vec<PolicyRule> = Vec::new();
        // The cache lists by name, so the order of rules is deterministic.
        for other in cx.caches().of::<ClusterRole>().list() {
            if other.name() == role.name() || !selects(&selectors, &other) {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
        if role.rules.clone().unwrap_or_default() != rules {
            // The uid is a precondition: a new role of the same name without aggregation must not get the
            // rules.
            let of = json!({"uid": role.uid(), "resourceVersion": role.metadata.resource_version});
            cx.merge(&*role, &json!({"metadata": of, "rules": rules})).await?;
        }
        Ok(Action::await_change())
    }
}
