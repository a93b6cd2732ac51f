//! TokenRequest (`serviceaccounts/NAME/token`): issues a token for a service account, optionally bound to an
//! object.

use std::sync::Arc;

use std::time::Duration;

use http::{Response, StatusCode};
use k8s_core::{client::Body, status::ApiStatus};
use k8s_store::Stored;
use serde_json::{Value, json};

use crate::{
    auth::tokens::{Bound, Named, TokenSubject},
    body::decode_body,
    call::Call,
    invalid::FieldErrors,
    resources::Resource,
    respond,
    state::State,
    storage::{current, timestamp},
    value::{array_at, int_at, set, str_at},
};

const GROUP: &str = "authentication.k8s.io";

/// Answers POST `serviceaccounts/NAME/token` with a signed token.
pub(crate) async fn request(
    state: &Arc<State>,
    call: &Call,
    resource: &Resource,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let (mut request, _) = decode_body(call, "TokenRequest", body)?;
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let (stored, _) = current(state, resource, &resource.key(namespace, name), name)?;
    check_metadata(&request, namespace, name, &stored)?;
    let dry_run = crate::call::dry_run(call, "CreateOptions")?;
    state.admission.posted(call, resource, &mut request, dry_run).await?;
    let longest = state.issuer.settings().max_seconds.unwrap_or(i64::MAX);
    let seconds = seconds(&request)?.min(longest);
    let mut audiences: Vec<String> =
        array_at(&request, "/spec/audiences").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences = state.issuer.api_audiences().to_vec();
    }
    let bound = match request.pointer("/spec/boundObjectRef") {
        Some(reference) if reference.is_object() => bind(state, namespace, name, reference)?,
        _ => Bound::Nothing,
    };
    let now = state.clock.now();
    let subject =
        TokenSubject { namespace: namespace.into(), name: name.into(), uid: stored.uid.to_string(), bound };
    let token = state
        .issuer
        .issue(&subject, &audiences, now.as_second(), seconds)
        .map_err(|e| ApiStatus::internal(e.to_string()))?;
    let expires = now.checked_add(Duration::from_secs(seconds.unsigned_abs())).unwrap_or(now);
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = format!("{GROUP}/v1").into();
    request["metadata"] = json!({"name": name, "namespace": namespace, "uid": &*stored.uid, "creationTimestamp": timestamp(now)});
    set(&mut request, "/spec/audiences", audiences.into());
    set(&mut request, "/spec/expirationSeconds", seconds.into());
    request["status"] = json!({"token": token, "expirationTimestamp": timestamp(expires)});
    Ok(respond::json_value(StatusCode::CREATED, &request))
}

/// Checks that a request's metadata, where it says anything, means the service account of its path.
fn check_metadata(request: &Value, namespace: &str, name: &str, account: &Stored) -> Result<(), ApiStatus> {
    for (field, want, what) in [("name", name, "name"), ("namespace", namespace, "namespace")] {
        let said = str_at(request, &format!("/metadata/{field}"));
        if !said.is_empty() && said != want {
            let mut errors = FieldErrors::default();
            let why = format!("must match the service account {what} if specified");
            errors.invalid(format!("metadata.{field}"), said, why);
            return Err(errors.into_status(GROUP, "TokenRequest", name));
        }
    }
    let uid = str_at(request, "/metadata/uid");
    if !uid.is_empty() && uid != &*account.uid {
        let why = format!(
            "the UID in the token request ({uid}) does not match the UID of the service account ({})",
            account.uid
        );
        return Err(ApiStatus::conflict(GROUP, "TokenRequest", name, &why));
    }
    Ok(())
}

/// Returns the token's lifetime in seconds. Default: an hour.
fn seconds(request: &Value) -> Result<i64, ApiStatus> {
    let seconds = int_at(request, "/spec/expirationSeconds").unwrap_or(3600);
    let why = match seconds {
        ..600 => "may not specify a duration less than 10 minutes",
        4_294_967_297.. => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(seconds),
    };
    let mut errors = FieldErrors::default();
    errors.invalid("spec.expirationSeconds", seconds, why);
    Err(errors.into_status(GROUP, "TokenRequest", ""))
}

/// Returns the object that a token is bound to.
///
/// # Errors
/// 404 if the object is absent, 409 if its uid differs, 400 for a pod of another service account or an
/// unsupported kind.
fn bind(state: &Arc<State>, namespace: &str, account: &str, reference: &Value) -> Result<Bound, ApiStatus> {
    let (version, kind, name) =
        (str_at(reference, "/apiVersion"), str_at(reference, "/kind"), str_at(reference, "/name"));
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let get = |plural: &str, key: &str, name: &str| {
        state.store.get(plural, key).ok_or_else(|| ApiStatus::not_found("", plural, name))
    };
    let within = format!("{namespace}/{name}");
    let (stored, bound) = match (group, kind) {
        ("", "Pod") => {
            let stored = get("pods", &within, name)?;
            let pod: Value = serde_json::from_slice(&stored.json).map_err(ApiStatus::internal)?;
            if str_at(&pod, "/spec/serviceAccountName") != account {
                return Err(ApiStatus::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            let node = Some(str_at(&pod, "/spec/nodeName")).filter(|node| !node.is_empty()).map(|node| {
                let stored = state.store.get("nodes", node);
                Named { name: node.into(), uid: stored.map(|s| s.uid.to_string()).unwrap_or_default() }
            });
            let named = named(&stored);
            (stored, Bound::Pod(named, node))
        }
        ("", "Secret") => {
            let stored = get("secrets", &within, name)?;
            let named = named(&stored);
            (stored, Bound::Secret(named))
        }
        ("", "Node") => {
            let stored = get("nodes", name, name)?;
            let named = named(&stored);
            (stored, Bound::Node(named))
        }
        _ => {
            return Err(ApiStatus::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    let uid = str_at(reference, "/uid");
    if !uid.is_empty() && uid != &*stored.uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiStatus::conflict(group, kind, name, &why));
    }
    Ok(bound)
}

fn named(stored: &Stored) -> Named {
    Named { name: stored.name().to_owned(), uid: stored.uid.to_string() }
}
