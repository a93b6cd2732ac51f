//! StatefulSet: pods with a name, a host name and claims of their own that survive them.
//!
//! Flow: [`plan`] compares the ordinals that should exist with the pods, and gives the steps of one round.
//! Each template is kept as a ControllerRevision ([`history`]), whose name labels its pods. Claims are made
//! before their pod; the retention policy decides who owns them ([`claims`]).
//!
//! Invariants:
//! 1. There is at most one pod of an ordinal, as its name has it.
//! 2. With the policy `OrderedReady` a pod is made only while all with smaller ordinals are available, and
//!    pods are scaled away one by one, the highest ordinal first.
//! 3. A rolling update deletes a pod only while fewer than `maxUnavailable` pods are unavailable, and never
//!    one whose ordinal is below the partition.
//! 4. The controller deletes no claim, and makes no pod on a claim that will be deleted with its predecessor.

mod claims;
mod identity;
mod plan;

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_controllers::{Action, Caches, Context, Controller, Environment, Error, EventType, Reconcile};
use k8s_core::{
    api::api::{
        apps::v1::{ControllerRevision, StatefulSet},
        core::v1::{PersistentVolumeClaim, Pod},
    },
    client::DeleteOptions,
    meta::{LabelSelector, ObjectExt, ObjectKey},
};
use serde_json::json;

use self::{
    identity::{POD_INDEX, POD_NAME, REVISION},
    plan::{Claim, Observed, Plan, Step, Version},
};
use super::{
    Options,
    batch::{is_namespace_terminating, slow_start},
    claim,
    history::{self, History},
};

/// Label of a revision with the hash of its template.
const HASH: &str = "controller.kubernetes.io/hash";

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<StatefulSet>::new()
        .named("statefulset-controller")
        .owns::<Pod>()
        .owns::<ControllerRevision>()
        .watches::<Pod>(adopters)
        .reads::<PersistentVolumeClaim>()
        .run_in(environment, StatefulSets)
}

fn selector(set: &StatefulSet) -> Option<LabelSelector> {
    let selector = LabelSelector::from_api(&set.spec.as_ref()?.selector).ok()?;
    (!selector.is_everything()).then_some(selector)
}

/// Returns the sets that may adopt an orphaned pod.
fn adopters(caches: &Caches, pod: &Pod) -> Vec<ObjectKey> {
    if pod.controller_ref().is_some() {
        return Vec::new();
    }
    let Some((set, _)) = pod.name().rsplit_once('-') else { return Vec::new() };
    let key = ObjectKey { namespace: pod.namespace().to_owned(), name: set.to_owned() };
    let found = caches.of::<StatefulSet>().get(&key.namespace, &key.name);
    let selects =
        found.is_some_and(|set| selector(&set).is_some_and(|s| s.matches(pod.metadata.labels.as_ref())));
    if selects { vec![key] } else { Vec::new() }
}

struct StatefulSets;

impl Reconcile for StatefulSets {
    type Kind = StatefulSet;

    async fn reconcile(&self, cx: &Context, set: Arc<StatefulSet>) -> Result<Action, Error> {
        let spec = set.spec.clone().unwrap_or_default();
        let selector = LabelSelector::from_api(&spec.selector)
            .map_err(|e| Error::invalid(format!("selector of {}", cx.key()), e))?;
        if selector.is_everything() {
            return Ok(Action::await_change());
        }
        // A pod whose name is none of the set's is not its own, whatever its labels.
        let named = |pod: &Pod| identity::ordinal(&set, pod).is_some();
        let pods: Vec<Arc<Pod>> = claim::claim_with(cx, &*set, &selector, None, named).await?;
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let history = history::ensure(cx, &*set, &selector, &spec.template, collisions, HASH).await?;
        let current = current(&set, &history);
        let template = history::template(&current).unwrap_or_else(|| spec.template.clone());
        let find = |name: &str| cx.cached::<PersistentVolumeClaim>(name);
        let observed = Observed {
            set: &set,
            pods: &pods,
            current: Version { name: current.name(), template: &template },
            update: Version { name: history.update.name(), template: &spec.template },
            claim: &find,
            now: cx.clock().now(),
        };
        let Plan { steps, status, after } = observed.plan();
        let done = act(cx, &set, steps).await;
        let live = [current.name().to_owned(), history.update.name().to_owned()];
        cx.status(&*set, |next| {
            next.status = Some(status);
            next.status.get_or_insert_default().collision_count = history.collisions.or(Some(0));
        })
        .await?;
        history::clean_up(cx, &history.all, spec.revision_history_limit.unwrap_or(10), |revision| {
            live.iter().any(|name| name == revision.name())
                || pods.iter().any(|pod| pod.label(REVISION) == Some(revision.name()))
        })
        .await?;
        done.map(|()| Action::maybe_after(after))
    }
}

/// Returns the revision that pods had before the update; that of the update if there was none.
fn current(set: &StatefulSet, history: &History) -> Arc<ControllerRevision> {
    let name = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
    let found = history.all.iter().find(|revision| Some(revision.name()) == name);
    found.unwrap_or(&history.update).clone()
}

/// Takes steps. Several pods are made or deleted at the same time.
async fn act(cx: &Context, set: &Arc<StatefulSet>, steps: Vec<Step>) -> Result<(), Error> {
    let (_, failure) = slow_start(cx, set, steps, take).await;
    failure.map_or(Ok(()), Err)
}

async fn take(cx: Arc<Context>, set: Arc<StatefulSet>, step: Step) -> Result<(), Error> {
    match step {
        Step::Create(pod, claims) => {
            let made = async {
                write(&cx, &set, pod.name(), claims).await?;
                cx.create(&*pod).await
            };
            match made.await {
                Ok(_) => {
                    say(&cx, &set, "create", pod.name(), None);
                    Ok(())
                }
                Err(e) if is_namespace_terminating(&e) => Ok(()),
                // The cache did not have it yet, or it is somebody else's.
                Err(Error::Api(e)) if e.is_already_exists() => Err(Error::Api(e)),
                Err(e) => {
                    say(&cx, &set, "create", pod.name(), Some(&e));
                    Err(e)
                }
            }
        }
        Step::Claims(pod, claims) => write(&cx, &set, pod.name(), claims).await,
        Step::Identify(pod, ordinal) => {
            let labels = json!({POD_NAME: pod.name(), POD_INDEX: ordinal.to_string()});
            let done = cx.merge(&*pod, &json!({"metadata": {"uid": pod.uid(), "labels": labels}})).await;
            say(&cx, &set, "update", pod.name(), done.as_ref().err());
            done.map(drop)
        }
        Step::Delete(pod) => {
            let done = cx.delete(&*pod, DeleteOptions::default()).await;
            say(&cx, &set, "delete", pod.name(), done.as_ref().err());
            done
        }
    }
}

/// Writes the claims of a pod.
async fn write(cx: &Context, set: &StatefulSet, pod: &str, claims: Vec<Claim>) -> Result<(), Error> {
    for claim in claims {
        match claim {
            Claim::Create(claim) => match cx.create(&*claim).await {
                Err(Error::Api(e)) if e.is_already_exists() => {}
                made => {
                    let (verb, name) = (if made.is_ok() { "Successful" } else { "Failed" }, claim.name());
                    let message = match &made {
                        Ok(_) => {
                            format!("Create Claim {name} Pod {pod} in StatefulSet {} success", set.name())
                        }
                        Err(e) => format!(
                            "Create Claim {name} for Pod {pod} in StatefulSet {} failed error: {e}",
                            set.name()
                        ),
                    };
                    cx.event(set, kind(made.is_ok()), &format!("{verb}Create"), message);
                    made?;
                }
            },
            Claim::Own(claim, owners) => {
                if owners.conflict {
                    let message = format!(
                        "PersistentVolumeClaim {} has a conflicting OwnerReference that acts as a managing controller, the retention policy is ignored for this claim",
                        claim.name()
                    );
                    cx.event(set, EventType::Warning, "ConflictingController", message);
                }
                let mut next = (*claim).clone();
                next.metadata.owner_references = Some(owners.references);
                cx.replace(&next).await?;
            }
            Claim::Leaving(name) => {
                return Err(Error::Other(format!("pvc {name} is being deleted").into()));
            }
        }
    }
    Ok(())
}

fn kind(good: bool) -> EventType {
    if good { EventType::Normal } else { EventType::Warning }
}

/// Sends the event of a change of a pod.
fn say(cx: &Context, set: &StatefulSet, verb: &str, pod: &str, error: Option<&Error>) {
    let verb = match verb {
        "create" => "Create",
        "delete" => "Delete",
        _ => "Update",
    };
    let about = format!("{verb} Pod {pod} in StatefulSet {}", set.name());
    match error {
        None => cx.event(set, EventType::Normal, &format!("Successful{verb}"), format!("{about} successful")),
        Some(e) => {
            cx.event(set, EventType::Warning, &format!("Failed{verb}"), format!("{about} failed error: {e}"));
        }
    }
}
