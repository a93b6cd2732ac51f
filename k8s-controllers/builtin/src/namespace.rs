//! Namespace deletion: deletes all objects in a terminating namespace, then finalizes the namespace.
//!
//! Flow: pods are deleted first, with their grace periods, then all other resources. When nothing is left the
//! finalizer `kubernetes` is removed, which removes the namespace. Conditions report what blocks it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use http::Method;
use k8s_core::{
    api::api::core::v1::{Namespace, NamespaceCondition, Pod},
    client::{DeleteOptions, Error as ApiError, ListParams, Resource},
    json,
    meta::{ObjectExt, ObjectKey},
};

use super::{
    Options,
    conditions::{self, Condition},
    discovery::{self, Served},
    dynamic::{self, Any},
};
use k8s_controllers::{Action, Caches, Context, Controller, Environment, Error, Reconcile};

const FINALIZER: &str = "kubernetes";
/// Delay before remaining objects are listed again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Number of resources processed concurrently.
const AT_ONCE: usize = 8;

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<Namespace>::new()
        .named("namespace-controller")
        .watches::<Pod>(of_terminating)
        .run_in(environment, Namespaces)
}

/// Maps a removed pod to its terminating namespace: it may have been the last object.
fn of_terminating(caches: &Caches, pod: &Pod) -> Vec<ObjectKey> {
    let namespace = caches.of::<Namespace>().get("", pod.namespace());
    let terminating = pod.is_deleting() && namespace.is_some_and(|n| n.is_deleting());
    if terminating { vec![ObjectKey::new("", pod.namespace())] } else { Vec::new() }
}

struct Namespaces;

impl Reconcile for Namespaces {
    type Kind = Namespace;

    async fn reconcile(&self, cx: &Context, namespace: Arc<Namespace>) -> Result<Action, Error> {
        let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
        if !namespace.is_deleting() || finalizers.is_empty() {
            return Ok(Action::await_change());
        }
        if !finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(Action::await_change());
        }
        let mut left = Left::default();
        match discovery::discover(cx.client()).await {
            Ok(found) => {
                // Known resources are deleted; failed discovery keeps the namespace.
                left.discovery = found.failure();
                left.empty(cx, namespace.name(), found.served).await;
            }
            Err(e) => left.discovery = Some(e.to_string()),
        }
        cx.status(&*namespace, |next| left.write(next, cx)).await?;
        if !left.is_nothing() {
            return Ok(Action::requeue_after(LOOK_AGAIN));
        }
        finalize(cx, &namespace).await?;
        Ok(Action::await_change())
    }
}

async fn finalize(cx: &Context, namespace: &Namespace) -> Result<(), Error> {
    let mut next = namespace.clone();
    // The status was just written, so the cached resourceVersion is stale. Only the finalizers are changed
    // here, so no precondition is needed.
    next.metadata.resource_version = None;
    if let Some(finalizers) = next.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER);
    }
    let path = format!("/api/v1/namespaces/{}/finalize", namespace.name());
    let body = json::to_vec(&next).map_err(|e| Error::Other(e.into()))?;
    match cx.client().bytes(Method::PUT, &path, "application/json", body).await {
        Err(e) if !e.is_not_found() => Err(e.into()),
        _ => Ok(()),
    }
}

/// Remaining objects and errors.
#[derive(Debug, Default)]
struct Left {
    discovery: Option<String>,
    failures: Vec<String>,
    /// Number of remaining objects by resource.
    objects: BTreeMap<String, usize>,
    /// Number of remaining objects by finalizer.
    finalizers: BTreeMap<String, usize>,
}

impl Left {
    fn is_nothing(&self) -> bool {
        self.discovery.is_none() && self.failures.is_empty() && self.objects.is_empty()
    }

    /// Deletes all objects of the resources and records those that remain.
    async fn empty(&mut self, cx: &Context, namespace: &str, served: Vec<Served>) {
        let deletable = |s: &Served| s.resource.namespaced && s.can("delete") && s.can("list");
        let (pods, others): (Vec<_>, Vec<_>) = served
            .into_iter()
            .filter(deletable)
            .partition(|s| s.resource.plural == "pods" && s.resource.group.is_empty());
        // Pods may need the other objects until they have ended.
        for part in [pods, others] {
            let work: Vec<_> = part.iter().map(|row| empty(cx, namespace, row).boxed()).collect();
            // In order, so that messages do not depend on response times.
            let results: Vec<_> = futures::stream::iter(work).buffered(AT_ONCE).collect().await;
            for (row, result) in part.iter().zip(results) {
                match result {
                    Ok(left) => self.note(row, &left),
                    Err(e) => self.failures.push(format!("{}: {e}", row.resource.plural)),
                }
            }
            if !self.objects.is_empty() {
                return;
            }
        }
    }

    fn note(&mut self, row: &Served, left: &[Any]) {
        if left.is_empty() {
            return;
        }
        let Resource { plural, group, .. } = &row.resource;
        // As upstream, with a trailing dot for the core group.
        *self.objects.entry(format!("{plural}.{group}")).or_default() += left.len();
        for finalizer in left.iter().flat_map(|o| &o.metadata.finalizers) {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }

    fn write(&self, namespace: &mut Namespace, cx: &Context) {
        let status = namespace.status.get_or_insert_default();
        status.phase = Some("Terminating".into());
        let mut set = |kind: &str, bad: Option<(&str, String)>, fine: (&str, &str)| {
            let (value, reason, message) = match &bad {
                Some((reason, message)) => ("True", *reason, message.as_str()),
                None => ("False", fine.0, fine.1),
            };
            let next = NamespaceCondition::make(kind, value, reason, message, &cx.clock().time());
            conditions::set(&mut status.conditions, next);
        };
        set(
            "NamespaceDeletionDiscoveryFailure",
            self.discovery.clone().map(|m| ("DiscoveryFailed", m)),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        );
        set(
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        );
        set(
            "NamespaceDeletionContentFailure",
            (!self.failures.is_empty()).then(|| {
                let all = self.failures.join(", ");
                (
                    "ContentDeletionFailed",
                    format!("Failed to delete all resource types, {} remaining: {all}", self.failures.len()),
                )
            }),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        );
        let listed = |all: &BTreeMap<String, usize>, what: &str| {
            all.iter()
                .map(|(name, n)| format!("{name} {what} {n} resource instances"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        set(
            "NamespaceContentRemaining",
            (!self.objects.is_empty()).then(|| {
                (
                    "SomeResourcesRemain",
                    format!("Some resources are remaining: {}", listed(&self.objects, "has")),
                )
            }),
            ("ContentRemoved", "All content successfully removed"),
        );
        set(
            "NamespaceFinalizersRemaining",
            (!self.finalizers.is_empty()).then(|| {
                let all = listed(&self.finalizers, "in");
                (
                    "SomeFinalizersRemain",
                    format!("Some content in the namespace has finalizers remaining: {all}"),
                )
            }),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        );
    }
}

/// Deletes all objects of a resource; returns those that still exist.
async fn empty(cx: &Context, namespace: &str, row: &Served) -> Result<Vec<Any>, ApiError> {
    let resource = &row.resource;
    let before = match dynamic::list(cx.client(), resource, namespace).await {
        // No longer served: the definition of a custom resource was deleted meanwhile.
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        other => other?,
    };
    let standing = before.items.iter().filter(|o| o.metadata.deletion_timestamp.is_none());
    let standing: Vec<&str> = standing.map(|o| o.metadata.name.as_str()).collect();
    let api = cx.client().dynamic(resource, namespace);
    if standing.is_empty() {
        return Ok(before.items);
    }
    if row.can("deletecollection") {
        api.delete_collection(&ListParams::default(), &DeleteOptions::background()).await?;
    } else {
        for name in standing {
            api.delete_if_exists(name, &DeleteOptions::background()).await?;
        }
    }
    Ok(dynamic::list(cx.client(), resource, namespace).await?.items)
}
