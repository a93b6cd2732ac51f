//! Subresources that are not the object itself: status and scale, binding, eviction, tokens, finalize, and everything that leads to a kubelet.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use k8s_core::{client::Body, status::ApiStatus};
use serde_json::{Value, json};

use crate::{
    invalid::FieldErrors,
    resources::{Resource, columns::selector_text, strategy::pod},
    respond,
    server::{ApiServer, Call, read_body},
    value::{integer, list, set, text},
    write::{self, Change, current, decode_body, modify, timestamp},
};

/// Answers a request for a subresource that the resource has.
pub(crate) async fn handle(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let part = call.info.subresource.as_str();
    match (part, call.info.verb.as_str()) {
        ("log" | "exec" | "attach" | "portforward" | "proxy", _) => {
            crate::proxy::handle(server, call, resource, request).await
        }
        ("status" | "approval" | "resize" | "ephemeralcontainers", "get") => {
            crate::read::get(server, call, resource)
        }
        ("status" | "approval" | "resize" | "ephemeralcontainers", "update") => {
            let body = read_body(request).await?;
            write::update(server, call, resource, &body).await
        }
        ("status" | "approval" | "resize" | "ephemeralcontainers", "patch") => {
            let body = read_body(request).await?;
            write::patch(server, call, resource, &body).await
        }
        ("scale", verb) => {
            let body = read_body(request).await?;
            scale(server, call, resource, verb, &body).await
        }
        ("binding", "create") => {
            let body = read_body(request).await?;
            binding(server, call, resource, &body).await
        }
        ("eviction", "create") => {
            let body = read_body(request).await?;
            eviction(server, call, resource, &body).await
        }
        ("token", "create") => {
            let body = read_body(request).await?;
            crate::tokens::request(server, call, resource, &body)
        }
        ("finalize", "update") => {
            let body = read_body(request).await?;
            finalize(server, call, resource, &body).await
        }
        _ => Err(ApiStatus::method_not_allowed()),
    }
}

/// The Scale of an object.
fn scale_of(resource: &Resource, object: &Value) -> Value {
    let Some(paths) = &resource.scale else { return Value::Null };
    let metadata = object.get("metadata").cloned().unwrap_or_default();
    let mut kept = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            kept[field] = value.clone();
        }
    }
    let replicas = integer(object, &paths.spec).unwrap_or(0);
    let mut status = json!({"replicas": integer(object, &paths.status).unwrap_or(0)});
    if !paths.selector.is_empty()
        && let Some(selector) = object.pointer(&paths.selector)
    {
        status["selector"] = selector_text(Some(selector)).into();
    }
    let spec = if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) };
    json!({"kind": "Scale", "apiVersion": scale_version(resource), "metadata": kept, "spec": spec, "status": status})
}

fn scale_version(resource: &Resource) -> String {
    let version = resource.subresource("scale").and_then(|s| s.group_version.clone());
    let (group, version) = version.unwrap_or_else(|| ("autoscaling".into(), "v1".into()));
    format!("{group}/{version}")
}

async fn scale(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
    verb: &str,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let key = resource.key(&call.info.namespace, &call.info.name);
    let Some(paths) = resource.scale.clone() else { return Err(ApiStatus::no_resource()) };
    if verb == "get" {
        let (_, object) = current(server, resource, &key, &call.info.name)?;
        return Ok(respond::json_value(StatusCode::OK, &scale_of(resource, &object)));
    }
    let dry_run = write::dry_run(call, "UpdateOptions")?;
    let change: write::PatchFunction = match verb {
        "update" => {
            let (wanted, _) = decode_body(call, "Scale", body)?;
            Box::new(move |scale| {
                *scale = wanted.clone();
                Ok(())
            })
        }
        "patch" => {
            let media = write::media_type(call);
            let media = if media == "application/strategic-merge-patch+json"
                || media == "application/apply-patch+yaml"
            {
                // A Scale has no lists: the three are the same here.
                "application/merge-patch+json".to_owned()
            } else {
                media
            };
            write::patch_function(resource, &media, body)?
        }
        _ => return Err(ApiStatus::method_not_allowed()),
    };
    let bytes = modify(server, call, resource, dry_run, &|old| {
        let mut scale = scale_of(resource, old);
        let before = text(&scale, "/metadata/resourceVersion").to_owned();
        change(&mut scale)?;
        let replicas = match scale.pointer("/spec/replicas") {
            None => 0,
            Some(n) => n.as_i64().ok_or_else(|| {
                ApiStatus::bad_request(format!("Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal {n} into Go struct field ScaleSpec.spec.replicas of type int32"))
            })?,
        };
        if !(0..=i64::from(i32::MAX)).contains(&replicas) {
            let mut errors = FieldErrors::default();
            errors.invalid("spec.replicas", replicas, "must be greater than or equal to 0");
            return Err(errors.into_status("autoscaling", "Scale", &call.info.name));
        }
        let mut new = old.clone();
        let wanted = text(&scale, "/metadata/resourceVersion");
        if !wanted.is_empty() && wanted != before {
            set(&mut new, "/metadata/resourceVersion", wanted.into());
        } else if let Some(metadata) = new["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
        }
        set(&mut new, &paths.spec, replicas.into());
        // `modify` expects the served form.
        resource.from_storage(&mut new);
        Ok(Change::Replace(new))
    })
    .await?;
    let object: Value = serde_json::from_slice(&bytes).map_err(ApiStatus::internal)?;
    Ok(respond::json_value(StatusCode::OK, &scale_of(resource, &object)))
}

fn created() -> Response<Body> {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    respond::json_value(StatusCode::CREATED, &status)
}

/// `pods/<name>/binding`: the scheduler places a pod.
async fn binding(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let (binding, _) = decode_body(call, "Binding", body)?;
    let node = text(&binding, "/target/name").to_owned();
    let kind = text(&binding, "/target/kind");
    if !["", "Node"].contains(&kind) || node.is_empty() {
        let mut errors = FieldErrors::default();
        if node.is_empty() {
            errors.required("target.name", "");
        }
        if !["", "Node"].contains(&kind) {
            errors.not_supported("target.kind", kind, &["Node"]);
        }
        return Err(errors.into_status("", "Binding", &call.info.name));
    }
    let uid = text(&binding, "/metadata/uid").to_owned();
    let annotations = crate::value::map(&binding, "/metadata/annotations").cloned();
    let dry_run = write::dry_run(call, "CreateOptions")?;
    let name = &call.info.name;
    let key = resource.key(&call.info.namespace, name);
    for _ in 0..write::TRIES {
        let (stored, old) = current(server, resource, &key, name)?;
        if !uid.is_empty() && uid != *stored.uid {
            return Err(write::precondition(resource, &key, name, &uid, &stored.uid));
        }
        let mut new = old;
        let now = timestamp(server.inner.clock.now());
        pod::bind(&mut new, &node, annotations.as_ref(), &now)
            .map_err(|why| ApiStatus::conflict("", "pods/binding", name, &why))?;
        if dry_run {
            return Ok(created());
        }
        let expect = k8s_store::Expect::Revision(stored.revision);
        match write::put(server, resource, &key, expect, &new).await {
            Ok(_) => return Ok(created()),
            Err(k8s_store::StoreError::Conflict { .. }) => {}
            Err(e) => return Err(write::store_failure(resource, name, &e)),
        }
    }
    Err(ApiStatus::conflict("", "pods/binding", name, "the pod changes too fast"))
}

/// `pods/<name>/eviction`: a deletion that PodDisruptionBudgets may refuse.
async fn eviction(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let (eviction, _) = decode_body(call, "Eviction", body)?;
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let named = text(&eviction, "/metadata/name");
    if !named.is_empty() && named != name {
        return Err(ApiStatus::bad_request("name in URL does not match name in Eviction object"));
    }
    let nothing = json!({});
    let options = crate::delete::parse(call, eviction.get("deleteOptions").unwrap_or(&nothing))?;
    let (_, pod) = current(server, resource, &resource.key(namespace, name), name)?;
    let waiting = ["Succeeded", "Failed", "Pending"].contains(&text(&pod, "/status/phase"));
    if !waiting && pod.pointer("/metadata/deletionTimestamp").is_none() {
        budget(server, call, namespace, &pod, options.dry_run).await?;
    }
    crate::delete::with(server, call, resource, &options).await?;
    Ok(created())
}

/// Takes one disruption from the budgets that cover a pod; in a dry run, only looks whether there is one.
async fn budget(
    server: &ApiServer,
    call: &Call,
    namespace: &str,
    pod: &Value,
    dry_run: bool,
) -> Result<(), ApiStatus> {
    let Some(budgets) = call.registry.find("policy", "v1", "poddisruptionbudgets").cloned() else {
        return Ok(());
    };
    let labels = |key: &str| pod.pointer("/metadata/labels").and_then(|l| l.get(key)).and_then(Value::as_str);
    let snapshot = server.inner.store.snapshot(&budgets.storage);
    for stored in snapshot.range(&format!("{namespace}/"), "") {
        for _ in 0..write::TRIES {
            let Ok((stored, mut budget)) = current(server, &budgets, &stored.key, stored.name()) else {
                break;
            };
            let covers = budget
                .pointer("/spec/selector")
                .and_then(|s| serde_json::from_value(s.clone()).ok())
                .and_then(|s| k8s_core::meta::LabelSelector::from_api(&s).ok())
                .is_some_and(|s| s.matches_with(labels));
            if !covers {
                break;
            }
            let allowed = integer(&budget, "/status/disruptionsAllowed").unwrap_or(0);
            if allowed <= 0 {
                let cause = k8s_core::api::apimachinery::pkg::apis::meta::v1::StatusCause {
                    reason: Some("DisruptionBudget".into()),
                    message: Some(format!(
                        "The disruption budget {} needs {} healthy pods and has {} currently",
                        stored.name(),
                        integer(&budget, "/status/desiredHealthy").unwrap_or(0),
                        integer(&budget, "/status/currentHealthy").unwrap_or(0)
                    )),
                    field: None,
                };
                return Err(ApiStatus::new(
                    429,
                    "TooManyRequests",
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                )
                .causes(vec![cause]));
            }
            if dry_run {
                break;
            }
            set(&mut budget, "/status/disruptionsAllowed", (allowed - 1).into());
            let expect = k8s_store::Expect::Revision(stored.revision);
            if write::put(server, &budgets, &stored.key, expect, &budget).await.is_ok() {
                break;
            }
        }
    }
    Ok(())
}

/// `namespaces/<name>/finalize`: what keeps a namespace is taken off.
async fn finalize(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let dry_run = write::dry_run(call, "UpdateOptions")?;
    let (wanted, _) = decode_body(call, "Namespace", body)?;
    let name = call.info.name.as_str();
    for _ in 0..write::TRIES {
        let (stored, old) = current(server, resource, name, name)?;
        let version = text(&wanted, "/metadata/resourceVersion");
        if !version.is_empty() && version != stored.revision.to_string() {
            return Err(ApiStatus::conflict(
                "",
                "namespaces",
                name,
                "the object has been modified; please apply your changes to the latest version and try again",
            ));
        }
        let mut new = old.clone();
        set(&mut new, "/spec/finalizers", list(&wanted, "/spec/finalizers").to_vec().into());
        if dry_run {
            let json = crate::value::encode(&new).into();
            return write::object_response(server, call, resource, StatusCode::OK, &json);
        }
        let result = if crate::delete::is_finished(resource, &new) {
            crate::delete::remove(server, resource, name, stored.revision, &new).await
        } else {
            write::put(server, resource, name, k8s_store::Expect::Revision(stored.revision), &new).await
        };
        match result {
            Ok(done) => return write::object_response(server, call, resource, StatusCode::OK, &done.json),
            Err(k8s_store::StoreError::Conflict { .. }) => {}
            Err(e) => return Err(write::store_failure(resource, name, &e)),
        }
    }
    Err(ApiStatus::conflict("", "namespaces", name, "the object has been modified"))
}
