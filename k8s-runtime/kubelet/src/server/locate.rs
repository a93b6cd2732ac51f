//! Finds the pod and container of a request.

use std::sync::Arc;

use k8s_core::{
    meta::ObjectExt,
    status::{ApiStatus, Reason},
};

use crate::{
    context::{ContainerView, Context, PodView},
    types::Pod,
};

/// Returns a pod of this node and its view; 404 if there is none.
pub(super) fn pod(cx: &Context, namespace: &str, name: &str) -> Result<(Arc<Pod>, PodView), ApiStatus> {
    let pod = cx.pods.get(namespace, name).ok_or_else(|| ApiStatus::not_found("", "pods", name))?;
    let view = cx.view(pod.uid()).unwrap_or_default();
    Ok((pod, view))
}

/// Returns a container of a pod; 404 if there is none.
pub(super) fn container<'v>(
    view: &'v PodView,
    pod: &str,
    container: &str,
) -> Result<&'v ContainerView, ApiStatus> {
    view.containers.get(container).ok_or_else(|| {
        ApiStatus::of(Reason::NotFound, format!("container {container:?} not found in pod {pod:?}"))
    })
}

/// Returns the id of a running container; 404 if it is not running.
pub(super) fn running(view: &PodView, pod: &str, name: &str) -> Result<k8s_runtime::ContainerId, ApiStatus> {
    let found = container(view, pod, name)?;
    match &found.id {
        Some(id) if found.running => Ok(id.clone()),
        _ => Err(ApiStatus::of(Reason::NotFound, format!("container not found ({name:?})"))),
    }
}
