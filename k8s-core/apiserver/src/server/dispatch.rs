//! The handler of a request for a resource.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use k8s_core::{client::Body, status::ApiStatus};

use crate::{body::read_body, call::Call, resources::Resource, respond::not_found_page, state::State};

/// Answers a request about a resource, by its kind of resource.
pub(super) async fn resource(
    state: &Arc<State>,
    call: &Call,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let info = &call.info;
    if let Some(response) = crate::reviews::handle(state, call, request).await? {
        return Ok(response);
    }
    let Some(resource) = call.registry.find(&info.group, &info.version, &info.resource).cloned() else {
        let served =
            call.registry.groups().iter().any(|(g, v)| *g == info.group && v.contains(&info.version));
        return if served { Err(ApiStatus::no_resource()) } else { Ok(not_found_page()) };
    };
    if let Some(webhook) = &resource.webhook {
        return crate::conversion::handle(state, call, &resource, webhook, request, dispatch).await;
    }
    dispatch(state, call, &resource, request).await
}

/// Answers a request for a resource that is served.
pub(crate) fn dispatch<'a>(
    state: &'a Arc<State>,
    call: &'a Call,
    resource: &'a Arc<Resource>,
    request: &'a mut Request<Body>,
) -> BoxFuture<'a, Result<Response<Body>, ApiStatus>> {
    async move {
        let info = &call.info;
        if resource.namespaced
            && info.namespace.is_empty()
            && !matches!(info.verb.as_str(), "list" | "watch" | "deletecollection")
        {
            return if info.verb == "create" && info.name.is_empty() {
                Err(ApiStatus::method_not_allowed())
            } else {
                Err(ApiStatus::no_resource())
            };
        }
        if !info.subresource.is_empty() {
            let known = resource.subresource(&info.subresource);
            if known.is_none() {
                return Err(ApiStatus::no_resource());
            }
            return crate::subresources::handle(state, call, resource, request).await;
        }
        match info.verb.as_str() {
            "get" => crate::read::get(state, call, resource),
            "list" => crate::read::list(state, call, resource),
            "watch" => crate::read::watch(state, call, resource),
            "create" if info.name.is_empty() => {
                let body = read_body(request).await?;
                crate::write::create(state, call, resource, &body).await
            }
            "update" if !info.name.is_empty() => {
                let body = read_body(request).await?;
                crate::write::update(state, call, resource, &body).await
            }
            "patch" if !info.name.is_empty() => {
                let body = read_body(request).await?;
                crate::write::patch(state, call, resource, &body).await
            }
            "delete" => {
                let body = read_body(request).await?;
                crate::delete::one(state, call, resource, &body).await
            }
            "deletecollection" => {
                let body = read_body(request).await?;
                crate::delete::collection(state, call, resource, &body).await
            }
            _ => Err(ApiStatus::method_not_allowed()),
        }
    }
    .boxed()
}
