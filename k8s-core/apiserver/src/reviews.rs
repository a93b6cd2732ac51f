//! Resources that are questions, not objects: access and token reviews, bindings by name, component statuses.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use k8s_core::{client::Body, status::ApiStatus};
use serde_json::{Value, json};

use crate::{
    accept::{Form, Offer, negotiate},
    auth::rbac::{Attributes, Rule},
    body::{decode_body, read_body},
    call::Call,
    respond,
    stages::Credentials,
    state::State,
    user::User,
    value::{array_at, str_at},
};

/// Answers a question; `None` when the request is about a stored resource.
pub(crate) async fn handle(
    state: &Arc<State>,
    call: &Call,
    request: &mut Request<Body>,
) -> Result<Option<Response<Body>>, ApiStatus> {
    let info = &call.info;
    let kind = match (info.group.as_str(), info.resource.as_str()) {
        ("", "componentstatuses") => return component_statuses(state, call).map(Some),
        ("", "bindings") => {
            if info.verb != "create" || info.namespace.is_empty() || !info.name.is_empty() {
                return Err(ApiStatus::method_not_allowed());
            }
            return crate::subresources::create_binding(state, call, request).await.map(Some);
        }
        ("authorization.k8s.io", "selfsubjectaccessreviews") => "SelfSubjectAccessReview",
        ("authorization.k8s.io", "subjectaccessreviews") => "SubjectAccessReview",
        ("authorization.k8s.io", "localsubjectaccessreviews") => "LocalSubjectAccessReview",
        ("authorization.k8s.io", "selfsubjectrulesreviews") => "SelfSubjectRulesReview",
        ("authentication.k8s.io", "selfsubjectreviews") => "SelfSubjectReview",
        ("authentication.k8s.io", "tokenreviews") => "TokenReview",
        _ => return Ok(None),
    };
    if info.verb != "create" || info.version != "v1" {
        return Err(ApiStatus::method_not_allowed());
    }
    let body = read_body(request).await?;
    let (mut review, _) = decode_body(call, kind, &body)?;
    if !review.is_object() {
        return Err(ApiStatus::bad_request(format!("the body must be a {kind}")));
    }
    let status = match kind {
        "SelfSubjectAccessReview" => access(state, &call.user, &review).await,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let groups: Vec<&str> =
                array_at(&review, "/spec/groups").iter().filter_map(Value::as_str).collect();
            let user = User {
                groups: groups.iter().map(|g| (*g).to_owned()).collect(),
                ..User::new(str_at(&review, "/spec/user"), &[])
            };
            access(state, &user, &review).await
        }
        "SelfSubjectRulesReview" => rules(state, &call.user, str_at(&review, "/spec/namespace")),
        "SelfSubjectReview" => json!({"userInfo": user_info(&call.user)}),
        _ => token(state, &review).await?,
    };
    review["kind"] = kind.into();
    review["apiVersion"] = format!("{}/v1", info.group).into();
    if !review.get("metadata").is_some_and(Value::is_object) {
        review["metadata"] = json!({});
    }
    if kind == "SelfSubjectReview" {
        review["metadata"]["creationTimestamp"] = crate::storage::timestamp(state.clock.now()).into();
    }
    review["status"] = status;
    Ok(Some(respond::json_value(StatusCode::CREATED, &review)))
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

async fn access(state: &Arc<State>, user: &User, review: &Value) -> Value {
    let at = |field: &str| str_at(review, &format!("/spec/resourceAttributes/{field}"));
    let path = str_at(review, "/spec/nonResourceAttributes/path");
    let attributes = if path.is_empty() {
        Attributes {
            verb: at("verb"),
            group: at("group"),
            resource: at("resource"),
            subresource: at("subresource"),
            namespace: at("namespace"),
            name: at("name"),
            path: "",
        }
    } else {
        Attributes { verb: str_at(review, "/spec/nonResourceAttributes/verb"), path, ..Attributes::default() }
    };
    match state.authorization.authorize(user, &attributes).await {
        Ok(()) => json!({"allowed": true}),
        Err(_) => json!({"allowed": false}),
    }
}

fn rules(state: &Arc<State>, user: &User, namespace: &str) -> Value {
    let all = state.authorization.rbac.rules(&state.store, user, namespace);
    let resource = |r: &Rule| {
        let mut rule = json!({"verbs": r.verbs, "apiGroups": r.groups, "resources": r.resources});
        if !r.names.is_empty() {
            rule["resourceNames"] = json!(r.names);
        }
        rule
    };
    let resources: Vec<Value> = all.iter().filter(|r| !r.resources.is_empty()).map(resource).collect();
    let paths: Vec<Value> = all
        .iter()
        .filter(|r| !r.paths.is_empty())
        .map(|r| json!({"verbs": r.verbs, "nonResourceURLs": r.paths}))
        .collect();
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}

async fn token(state: &Arc<State>, review: &Value) -> Result<Value, ApiStatus> {
    let token = str_at(review, "/spec/token");
    if token.is_empty() {
        return Err(ApiStatus::bad_request("token is required for TokenReview in authentication"));
    }
    let mut audiences: Vec<String> =
        array_at(review, "/spec/audiences").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences = state.issuer.api_audiences().to_vec();
    }
    let found = state.authenticator.token(token, &audiences, &state.evidence()).await;
    let why = match found {
        Ok(found) => return Ok(authenticated(&found.user, &found.audiences)),
        Err(why) => why,
    };
    // Tokens of the added authenticators are for the API server.
    audiences.retain(|audience| state.issuer.api_audiences().contains(audience));
    if !audiences.is_empty()
        && let Ok(value) = HeaderValue::from_str(&format!("Bearer {token}"))
    {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
        let credentials = Credentials { headers: &headers, certificate: None };
        for authenticator in state.authenticators.first.iter().chain(&state.authenticators.then) {
            match authenticator.authenticate(&credentials).await {
                Ok(Some(user)) => return Ok(authenticated(&user, &audiences)),
                Ok(None) => {}
                Err(refused) => return Ok(json!({"user": {}, "error": refused.to_string()})),
            }
        }
    }
    Ok(json!({"user": {}, "error": why.to_string()}))
}

fn authenticated(user: &User, audiences: &[String]) -> Value {
    json!({"authenticated": true, "user": user_info(user), "audiences": audiences})
}

/// The old health of parts. All of them are this process or report by leases; the store answers for itself.
fn component_statuses(state: &Arc<State>, call: &Call) -> Result<Response<Body>, ApiStatus> {
    let (form, _) = negotiate(&call.headers, Offer::All)?;
    let component = |name: &str| {
        json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name, "creationTimestamp": null},
            "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]})
    };
    let names = ["controller-manager", "etcd-0", "scheduler"];
    call.warn("v1 ComponentStatus is deprecated in v1.19+".into());
    if !call.info.name.is_empty() {
        if !names.contains(&call.info.name.as_str()) {
            return Err(ApiStatus::not_found("", "componentstatuses", &call.info.name));
        }
        return Ok(respond::json_value(StatusCode::OK, &component(&call.info.name)));
    }
    if call.info.verb != "list" {
        return Err(ApiStatus::method_not_allowed());
    }
    let metadata = json!({"resourceVersion": state.store.revision().to_string()});
    if form == Form::Table {
        let column = |name: &str, format: &str| json!({"name": name, "type": "string", "format": format, "description": "", "priority": 0});
        let rows: Vec<Value> = names
            .iter()
            .map(|n| json!({"cells": [n, "Healthy", "ok", ""], "object": crate::read::table::metadata_only(&component(n))}))
            .collect();
        let table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "columnDefinitions": [column("Name", "name"), column("Status", ""), column("Message", ""), column("Error", "")], "rows": rows});
        return Ok(respond::json_value(StatusCode::OK, &table));
    }
    let items: Vec<Value> = names.iter().map(|n| component(n)).collect();
    let all =
        json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": metadata, "items": items});
    Ok(respond::json_value(StatusCode::OK, &all))
}
