//! `pods/NAME/eviction`: a deletion that the disruption budget of the pod may refuse.
//!
//! Guarantee: a budget gives out a disruption by compare-and-swap on its status, so that no two evictions
//! take the same one.

use std::sync::Arc;

use http::Response;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::StatusCause,
    client::Body,
    meta::LabelSelector,
    status::{ApiStatus, Reason},
};
use k8s_store::{Expect, Stored};
use serde_json::{Value, json};

use super::created;
use crate::{
    body::decode_body,
    call::Call,
    delete::{self, Options},
    errors::{modified, precondition},
    resources::Resource,
    state::State,
    storage::{TRIES, current, put},
    value::{array_at, int_at, object_at, set, str_at},
};

/// Most evictions of a budget that its controller has not seen yet.
const MOST_DISRUPTED: usize = 2000;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// Evicts a pod.
pub(super) async fn handle(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let (mut eviction, _) = decode_body(call, "Eviction", body)?;
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let named = str_at(&eviction, "/metadata/name");
    if !named.is_empty() && named != name {
        return Err(ApiStatus::bad_request("name in URL does not match name in Eviction object"));
    }
    let asked = crate::call::dry_run(call, "CreateOptions")?;
    state.admission.posted(call, resource, &mut eviction, asked).await?;
    let nothing = json!({});
    let options = delete::parse(call, eviction.get("deleteOptions").unwrap_or(&nothing))?;
    let eviction = Eviction { state, call, resource, options: &options };
    let (stored, pod) = current(state, resource, &resource.key(namespace, name), name)?;
    if is_unguarded(&pod) {
        return eviction.unguarded().await;
    }
    let mut covering = eviction.budgets(&pod)?;
    let Some(budget) = covering.pop() else { return eviction.delete(None).await };
    if !covering.is_empty() {
        let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(ApiStatus::of(Reason::InternalError, why));
    }
    if is_ready(&pod) || !spares_unhealthy(&budget.1) {
        eviction.take(budget).await?;
        return eviction.delete(None).await;
    }
    // The pod must not have become ready since.
    let name = budget.0.name().to_owned();
    match eviction.delete(Some(stored.revision)).await {
        Err(e) if e.code() == 409 && options.revision.is_empty() => Err(in_work(&name)),
        other => other,
    }
}

/// Returns true for a pod that no budget guards: it has ended, is ending, or has not begun.
fn is_unguarded(pod: &Value) -> bool {
    matches!(str_at(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending") || is_deleting(pod)
}

fn is_deleting(pod: &Value) -> bool {
    pod.pointer("/metadata/deletionTimestamp").is_some()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = array_at(pod, "/status/conditions");
    conditions.iter().any(|c| str_at(c, "/type") == "Ready" && str_at(c, "/status") == "True")
}

/// Returns true if a pod that is not ready may go without a disruption of the budget.
fn spares_unhealthy(budget: &Value) -> bool {
    let number = |path: &str| int_at(budget, path).unwrap_or(0);
    let (current, desired) = (number("/status/currentHealthy"), number("/status/desiredHealthy"));
    str_at(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow" || (current >= desired && desired > 0)
}

/// 429 for a budget that another writer works on.
fn in_work(budget: &str) -> ApiStatus {
    let message = format!("The disruption budget {budget} is still being processed by the server.");
    too_many(message).retry_after(10)
}

fn too_many(message: String) -> ApiStatus {
    let cause = StatusCause { reason: Some("DisruptionBudget".into()), message: Some(message), field: None };
    ApiStatus::of(Reason::TooManyRequests, REFUSED).causes(vec![cause])
}

/// The refusal of a budget that allows no disruption.
fn refusal(name: &str, budget: &Value) -> ApiStatus {
    let number = |path: &str| int_at(budget, path).unwrap_or(0);
    let (current, desired) = (number("/status/currentHealthy"), number("/status/desiredHealthy"));
    let conditions = array_at(budget, "/status/conditions");
    let condition = conditions.iter().find(|c| str_at(c, "/type") == "DisruptionAllowed");
    let said = condition.filter(|c| str_at(c, "/status") == "False" && !str_at(c, "/message").is_empty());
    let (reason, message) = said.map_or(("", ""), |c| (str_at(c, "/reason"), str_at(c, "/message")));
    too_many(match (reason, message) {
        ("SyncFailed", why) => {
            format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {why}"
            )
        }
        _ if current <= desired => {
            format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently")
        }
        ("", "") => format!("The disruption budget {name} does not allow evicting pods currently"),
        (reason, why) => {
            format!("The disruption budget {name} does not allow evicting pods currently ({reason}): {why}")
        }
    })
}

/// One request.
struct Eviction<'a> {
    state: &'a Arc<State>,
    call: &'a Call,
    resource: &'a Arc<Resource>,
    options: &'a Options,
}

impl Eviction<'_> {
    /// Deletes a pod that no budget guards, unless it is guarded by then.
    async fn unguarded(&self) -> Result<Response<Body>, ApiStatus> {
        let (namespace, name) = (&self.call.info.namespace, &self.call.info.name);
        let mut last = None;
        for _ in 0..TRIES {
            let (stored, pod) =
                current(self.state, self.resource, &self.resource.key(namespace, name), name)?;
            if !is_unguarded(&pod) {
                break;
            }
            // A pod that has not begun must not begin meanwhile.
            let begins = str_at(&pod, "/status/phase") == "Pending" && !is_deleting(&pod);
            let at = Some(stored.revision).filter(|_| begins && self.options.revision.is_empty());
            match self.delete(at).await {
                Err(e) if e.code() == 409 && self.options.revision.is_empty() => last = Some(e),
                other => return other,
            }
        }
        Err(last.unwrap_or_else(|| modified(self.resource, name)))
    }

    /// Returns the budgets that cover a pod.
    fn budgets(&self, pod: &Value) -> Result<Vec<(Arc<Stored>, Value)>, ApiStatus> {
        let Some(budgets) = self.call.registry.find("policy", "v1", "poddisruptionbudgets") else {
            return Ok(Vec::new());
        };
        let labels =
            |key: &str| pod.pointer("/metadata/labels").and_then(|l| l.get(key)).and_then(Value::as_str);
        let covers = |budget: &Value| {
            let selector = budget.pointer("/spec/selector").and_then(|s| k8s_core::json::from_value(s).ok());
            let selector = selector.and_then(|s| LabelSelector::from_api(&s).ok());
            selector.is_some_and(|selector| selector.matches_with(labels))
        };
        let snapshot = self.state.store.snapshot(&budgets.storage);
        let mut all = Vec::new();
        for stored in snapshot.range(&format!("{}/", self.call.info.namespace), "") {
            let budget: Value = serde_json::from_slice(&stored.json).map_err(ApiStatus::internal)?;
            if covers(&budget) {
                all.push((stored.clone(), budget));
            }
        }
        Ok(all)
    }

    /// Takes a disruption from a budget; in a dry run, only looks whether there is one.
    async fn take(&self, budget: (Arc<Stored>, Value)) -> Result<(), ApiStatus> {
        let Some(budgets) = self.call.registry.find("policy", "v1", "poddisruptionbudgets") else {
            return Ok(());
        };
        let (mut stored, mut object) = budget;
        for _ in 0..TRIES {
            let name = stored.name().to_owned();
            let number = |path: &str| int_at(&object, path).unwrap_or(0);
            if number("/status/observedGeneration") < number("/metadata/generation") {
                return Err(in_work(&name));
            }
            let forbidden = |why: &str| ApiStatus::forbidden("policy", "poddisruptionbudget", &name, why);
            let allowed = number("/status/disruptionsAllowed");
            if allowed < 0 {
                return Err(forbidden("pdb disruptions allowed is negative"));
            }
            if object_at(&object, "/status/disruptedPods").is_some_and(|map| map.len() > MOST_DISRUPTED) {
                let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
                return Err(forbidden(why));
            }
            if allowed == 0 {
                return Err(refusal(&name, &object));
            }
            if self.options.dry_run {
                return Ok(());
            }
            set(&mut object, "/status/disruptionsAllowed", (allowed - 1).into());
            let now = self.state.clock.time();
            object["status"]["disruptedPods"][&self.call.info.name] = json!(now);
            if put(self.state, budgets, &stored.key, Expect::Revision(stored.revision), &object).await.is_ok()
            {
                return Ok(());
            }
            (stored, object) = current(self.state, budgets, &stored.key, &name)?;
        }
        Err(in_work(stored.name()))
    }

    /// Notes the reason in the pod's conditions, and deletes it. `at`: the revision that the pod must have,
    /// unless the client names one.
    async fn delete(&self, at: Option<u64>) -> Result<Response<Body>, ApiStatus> {
        let mut options = self.options.clone();
        if let Some(at) = at
            && options.revision.is_empty()
        {
            options.revision = at.to_string();
        }
        if !options.dry_run {
            let revision = self.mark(&options).await?;
            if !options.revision.is_empty() {
                options.revision = revision.to_string();
            }
        }
        delete::with(self.state, self.call, self.resource, &options).await?;
        Ok(created())
    }

    /// Sets the condition `DisruptionTarget`. Returns the pod's revision.
    async fn mark(&self, options: &Options) -> Result<u64, ApiStatus> {
        let (namespace, name) = (&self.call.info.namespace, &self.call.info.name);
        let key = self.resource.key(namespace, name);
        for _ in 0..TRIES {
            let (stored, mut pod) = current(self.state, self.resource, &key, name)?;
            if !options.uid.is_empty() && options.uid != *stored.uid {
                return Err(precondition(self.resource, &key, name, &options.uid, &stored.uid));
            }
            if !options.revision.is_empty() && options.revision != stored.revision.to_string() {
                return Err(modified(self.resource, name));
            }
            let mut conditions = array_at(&pod, "/status/conditions").to_vec();
            let is_target = |c: &Value| str_at(c, "/type") == "DisruptionTarget";
            if conditions.iter().any(|c| is_target(c) && str_at(c, "/status") == "True") {
                return Ok(stored.revision);
            }
            conditions.retain(|c| !is_target(c));
            conditions.push(json!({
                "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting", "lastTransitionTime": self.state.clock.time(),
            }));
            set(&mut pod, "/status/conditions", conditions.into());
            let expect = Expect::Revision(stored.revision);
            if let Ok(written) = put(self.state, self.resource, &key, expect, &pod).await {
                return Ok(written.revision);
            }
        }
        Err(modified(self.resource, name))
    }
}
