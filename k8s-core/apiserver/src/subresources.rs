//! Subresources: status and scale, binding, eviction, tokens, finalize, and those that are forwarded to a
//! kubelet.

mod eviction;
mod kubelet;

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use k8s_core::{client::Body, status::ApiStatus};
use serde_json::{Value, json};

use crate::{
    admission::Admission,
    body::{decode_body, fit, read_body},
    call::Call,
    errors::{modified, other_namespace, precondition, store_failure},
    invalid::FieldErrors,
    resources::{
        Resource,
        strategy::{core::check_finalizers, pod},
    },
    respond,
    scale::scale_of,
    state::State,
    storage::{TRIES, current, put, timestamp},
    value::{array_at, set, str_at},
    write::{self, Change, modify},
};

/// Answers a request for a subresource that the resource has.
pub(crate) async fn handle(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let part = call.info.subresource.as_str();
    match (part, call.info.verb.as_str()) {
        ("log" | "exec" | "attach" | "portforward" | "proxy", _) => {
            kubelet::handle(state, call, resource, request).await
        }
        ("status" | "approval" | "resize" | "ephemeralcontainers", "get") => {
            crate::read::get(state, call, resource)
        }
        ("status" | "approval" | "resize" | "ephemeralcontainers", "update") => {
            let body = read_body(request).await?;
            write::update(state, call, resource, &body).await
        }
        ("status" | "approval" | "resize" | "ephemeralcontainers", "patch") => {
            let body = read_body(request).await?;
            write::patch(state, call, resource, &body).await
        }
        ("scale", verb) => {
            let body = read_body(request).await?;
            scale(state, call, resource, verb, &body).await
        }
        ("binding", "create") => {
            let body = read_body(request).await?;
            let (object, _) = decode_body(call, "Binding", &body)?;
            bind(state, call, resource, &call.info.name, object).await
        }
        ("eviction", "create") => {
            let body = read_body(request).await?;
            eviction::handle(state, call, resource, &body).await
        }
        ("token", "create") => {
            let body = read_body(request).await?;
            crate::tokens::request(state, call, resource, &body).await
        }
        ("finalize", "update") => {
            let body = read_body(request).await?;
            finalize(state, call, resource, &body).await
        }
        _ => Err(ApiStatus::method_not_allowed()),
    }
}

async fn scale(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    verb: &str,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let key = resource.key(&call.info.namespace, &call.info.name);
    let Some(paths) = resource.scale.clone() else { return Err(ApiStatus::no_resource()) };
    if verb == "get" {
        let (_, object) = current(state, resource, &key, &call.info.name)?;
        return Ok(respond::json_value(StatusCode::OK, &scale_of(resource, &object)));
    }
    let dry_run = crate::call::dry_run(call, "UpdateOptions")?;
    let change: write::PatchFunction = match verb {
        "update" => {
            let (wanted, _) = decode_body(call, "Scale", body)?;
            Box::new(move |scale| {
                *scale = wanted.clone();
                Ok(())
            })
        }
        "patch" => {
            let media = crate::body::media_type(call);
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
    let bytes = modify(state, call, resource, dry_run, &|old| {
        let mut scale = scale_of(resource, old);
        let before = str_at(&scale, "/metadata/resourceVersion").to_owned();
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
        let wanted = str_at(&scale, "/metadata/resourceVersion");
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

/// POST of the collection `bindings`: as `pods/NAME/binding`, with the pod's name in the Binding's metadata.
///
/// # Errors
/// 400 for a Binding without a name or of another namespace, else those of `pods/NAME/binding`.
pub(crate) async fn create_binding(
    state: &Arc<State>,
    call: &Call,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let body = read_body(request).await?;
    let (binding, _) = decode_body(call, "Binding", &body)?;
    let (namespace, name) = (str_at(&binding, "/metadata/namespace"), str_at(&binding, "/metadata/name"));
    if !namespace.is_empty() && namespace != call.info.namespace {
        return Err(other_namespace());
    }
    if name.is_empty() {
        return Err(ApiStatus::bad_request("Name parameter required."));
    }
    let pods = call.registry.find("", "v1", "pods").ok_or_else(ApiStatus::no_resource)?;
    let mut inner = call.inner();
    inner.info.resource = "pods".into();
    inner.info.name = name.to_owned();
    inner.info.subresource = "binding".into();
    let answer = bind(state, &inner, pods, &inner.info.name, binding).await;
    call.take_notes(&inner);
    answer
}

/// Places a pod on the node that a Binding names.
async fn bind(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    name: &str,
    mut binding: Value,
) -> Result<Response<Body>, ApiStatus> {
    let dry_run = crate::call::dry_run(call, "CreateOptions")?;
    let named = str_at(&binding, "/metadata/name");
    if !named.is_empty() && named != name {
        return Err(ApiStatus::bad_request("name in URL does not match name in Binding object"));
    }
    state.admission.posted(call, resource, &mut binding, dry_run).await?;
    let binding = &binding;
    // They become the pod's, which holds texts only.
    for field in ["labels", "annotations"] {
        let all = binding.pointer(&format!("/metadata/{field}")).filter(|all| !all.is_null());
        let texts = |all: &Value| all.as_object().is_some_and(|all| all.values().all(Value::is_string));
        if !all.is_none_or(texts) {
            return Err(ApiStatus::bad_request(format!(
                "Binding in version \"v1\" cannot be handled as a Binding: metadata.{field} must be a map of strings"
            )));
        }
    }
    let node = str_at(binding, "/target/name").to_owned();
    let kind = str_at(binding, "/target/kind");
    if !["", "Node"].contains(&kind) || node.is_empty() {
        let mut errors = FieldErrors::default();
        if node.is_empty() {
            errors.required("target.name", "");
        }
        if !["", "Node"].contains(&kind) {
            errors.not_supported("target.kind", kind, &["Node"]);
        }
        return Err(errors.into_status("", "Binding", name));
    }
    let uid = str_at(binding, "/metadata/uid").to_owned();
    let key = resource.key(&call.info.namespace, name);
    for _ in 0..TRIES {
        let (stored, old) = current(state, resource, &key, name)?;
        if !uid.is_empty() && uid != *stored.uid {
            return Err(precondition(resource, &key, name, &uid, &stored.uid));
        }
        let mut new = old;
        let now = timestamp(state.clock.now());
        pod::bind(&mut new, &node, binding, &now)
            .map_err(|why| ApiStatus::conflict("", "pods/binding", name, &why))?;
        if dry_run {
            return Ok(created());
        }
        let expect = k8s_store::Expect::Revision(stored.revision);
        match put(state, resource, &key, expect, &new).await {
            Ok(_) => return Ok(created()),
            Err(k8s_store::StoreError::Conflict { .. }) => {}
            Err(e) => return Err(store_failure(resource, name, &e)),
        }
    }
    Err(ApiStatus::conflict("", "pods/binding", name, "the pod changes too fast"))
}

/// `namespaces/<name>/finalize`: what keeps a namespace is taken off.
async fn finalize(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let dry_run = crate::call::dry_run(call, "UpdateOptions")?;
    let (mut wanted, duplicates) = decode_body(call, "Namespace", body)?;
    fit(call, resource, &mut wanted, duplicates)?;
    let name = call.info.name.as_str();
    let named = str_at(&wanted, "/metadata/name");
    if !named.is_empty() && named != name {
        return Err(ApiStatus::bad_request(format!(
            "the name of the object ({named}) does not match the name on the URL ({name})"
        )));
    }
    for _ in 0..TRIES {
        let (stored, old) = current(state, resource, name, name)?;
        let version = str_at(&wanted, "/metadata/resourceVersion");
        if !version.is_empty() && version != stored.revision.to_string() {
            return Err(modified(resource, name));
        }
        // Whatever the request or a plugin says, the rest stays as it is.
        let finalized = |by: &Value| {
            let mut new = old.clone();
            set(&mut new, "/spec/finalizers", array_at(by, "/spec/finalizers").to_vec().into());
            new
        };
        let mut new = finalized(&wanted);
        state.admission.admit(&mut Admission::new(call, resource, &mut new, Some(&old), dry_run)).await?;
        new = finalized(&new);
        let mut errors = FieldErrors::default();
        check_finalizers(&new, &mut errors);
        if !errors.is_empty() {
            return Err(errors.into_status(&resource.group, &resource.kind, name));
        }
        state.admission.validate(&Admission::new(call, resource, &mut new, Some(&old), dry_run)).await?;
        if dry_run {
            let json = crate::value::encode(&new).into();
            return crate::read::object_response(state, call, resource, StatusCode::OK, &json);
        }
        let result = if crate::storage::is_finished(resource, &new) {
            crate::storage::remove(state, resource, name, stored.revision, &new).await
        } else {
            put(state, resource, name, k8s_store::Expect::Revision(stored.revision), &new).await
        };
        match result {
            Ok(done) => {
                return crate::read::object_response(state, call, resource, StatusCode::OK, &done.json);
            }
            Err(k8s_store::StoreError::Conflict { .. }) => {}
            Err(e) => return Err(store_failure(resource, name, &e)),
        }
    }
    Err(ApiStatus::conflict("", "namespaces", name, "the object has been modified"))
}
