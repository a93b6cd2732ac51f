//! Resources that are questions, not objects: access and token reviews, bindings by name, component statuses.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use k8s_core::{
    client::Body,
    meta::{FieldSelector, LabelSelector},
    status::ApiStatus,
};
use serde_json::{Value, json};

use crate::{
    accept::{Form, Offer, negotiate},
    admission::Admission,
    auth::rbac::{Attributes, Rule},
    body::{decode_body, read_body},
    call::Call,
    invalid::FieldErrors,
    resources::review as review_resource,
    respond,
    stages::{Credentials, Decision},
    state::State,
    user::User,
    value::{array_at, at, object_at, set, str_at},
};

/// Answers a question; `None` when the request is about a stored resource.
pub(crate) async fn handle(
    state: &Arc<State>,
    call: &Call,
    request: &mut Request<Body>,
) -> Result<Option<Response<Body>>, ApiStatus> {
    let info = &call.info;
    let mut served = call.registry.unstored(&info.group, "v1");
    if !served.any(|(plural, ..)| plural == info.resource) {
        return Ok(None);
    }
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
    negotiate(&call.headers, Offer::NoTable)?;
    let body = read_body(request).await?;
    let (mut review, _) = decode_body(call, kind, &body)?;
    if !review.is_object() {
        return Err(ApiStatus::bad_request(format!("the body must be a {kind}")));
    }
    if kind == "LocalSubjectAccessReview" {
        take_namespace(&mut review, &info.namespace)?;
    }
    review["kind"] = kind.into();
    review["apiVersion"] = format!("{}/v1", info.group).into();
    let dry_run = crate::call::dry_run(call, "CreateOptions")?;
    let resource = review_resource(&info.group, &info.resource).ok_or_else(ApiStatus::no_resource)?;
    state.admission.admit(&mut Admission::new(call, resource, &mut review, None, dry_run)).await?;
    check(&review, kind)?;
    state.admission.validate(&Admission::new(call, resource, &mut review, None, dry_run)).await?;
    let status = match kind {
        "SelfSubjectAccessReview" => access(state, &call.user, &review).await,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            access(state, &asked_about(&review), &review).await
        }
        "SelfSubjectRulesReview" => rules(state, &call.user, str_at(&review, "/spec/namespace")),
        "SelfSubjectReview" => json!({"userInfo": user_info(&call.user)}),
        _ => token(state, &review).await?,
    };
    if !review.get("metadata").is_some_and(Value::is_object) {
        review["metadata"] = json!({});
    }
    if kind == "SelfSubjectReview" {
        review["metadata"]["creationTimestamp"] = crate::storage::timestamp(state.clock.now()).into();
    }
    review["status"] = status;
    Ok(Some(respond::json_value(StatusCode::CREATED, &review)))
}

/// Checks that a review asks something.
fn check(review: &Value, kind: &str) -> Result<(), ApiStatus> {
    match kind {
        "SelfSubjectAccessReview" | "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            check_access(review, kind)
        }
        "SelfSubjectRulesReview" if str_at(review, "/spec/namespace").is_empty() => {
            Err(ApiStatus::bad_request("no namespace on request"))
        }
        "TokenReview" if str_at(review, "/spec/token").is_empty() => {
            Err(ApiStatus::bad_request("token is required for TokenReview in authentication"))
        }
        _ => Ok(()),
    }
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

/// Gives a review without a namespace that of its request.
///
/// # Errors
/// 400 if it has another one.
fn take_namespace(review: &mut Value, namespace: &str) -> Result<(), ApiStatus> {
    match str_at(review, "/metadata/namespace") {
        "" => set(review, "/metadata/namespace", namespace.into()),
        own if own != namespace => return Err(crate::errors::other_namespace()),
        _ => {}
    }
    Ok(())
}

/// Checks an access review as upstream does.
///
/// # Errors
/// 422 with all problems. Upstream names no kind in them.
fn check_access(review: &Value, kind: &str) -> Result<(), ApiStatus> {
    let mut errors = FieldErrors::default();
    let there = |field: &str| at(review, &format!("/spec/{field}")).is_some_and(|v| !v.is_null());
    let (resource, path) = (there("resourceAttributes"), there("nonResourceAttributes"));
    if resource && path {
        let value = review["spec"]["nonResourceAttributes"].clone();
        let why = "cannot be specified in combination with resourceAttributes";
        errors.invalid("spec.nonResourceAttributes", value, why);
    }
    if !resource && !path {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.invalid("spec.resourceAttributes", Value::Null, why);
    }
    if kind != "SelfSubjectAccessReview"
        && str_at(review, "/spec/user").is_empty()
        && array_at(review, "/spec/groups").is_empty()
    {
        errors.invalid("spec.user", "", "at least one of user or group must be specified");
    }
    for selector in ["fieldSelector", "labelSelector"] {
        let (pointer, field) =
            (format!("/spec/resourceAttributes/{selector}"), format!("spec.resourceAttributes.{selector}"));
        let raw = str_at(review, &format!("{pointer}/rawSelector"));
        let requirements = array_at(review, &format!("{pointer}/requirements"));
        if !raw.is_empty() && !requirements.is_empty() {
            let why = "may not specified at the same time as requirements";
            errors.invalid(format!("{field}.rawSelector"), raw, why);
        }
        if raw.is_empty() && requirements.is_empty() && at(review, &pointer).is_some_and(Value::is_object) {
            let why = format!("when {field} is specified, requirements or rawSelector is required");
            errors.required(format!("{field}.requirements"), &why);
        }
    }
    let local = kind == "LocalSubjectAccessReview";
    let own = str_at(review, "/metadata/namespace");
    let metadata = review.get("metadata").and_then(Value::as_object);
    let filled = |(key, value): (&String, &Value)| {
        let ignored = key == "managedFields" || (local && key == "namespace");
        !ignored && !value.is_null() && *value != ""
    };
    if metadata.is_some_and(|m| m.iter().any(filled)) {
        let why = if local { "must be empty except for namespace" } else { "must be empty" };
        errors.invalid("metadata", review["metadata"].clone(), why);
    }
    if local {
        let asked = str_at(review, "/spec/resourceAttributes/namespace");
        if resource && asked != own {
            errors.invalid("spec.resourceAttributes.namespace", asked, "must match metadata.namespace");
        }
        if path {
            let value = review["spec"]["nonResourceAttributes"].clone();
            errors.invalid("spec.nonResourceAttributes", value, "disallowed on this kind of request");
        }
    }
    if !errors.is_empty() {
        return Err(errors.into_status("authorization.k8s.io", "", ""));
    }
    Ok(())
}

/// Returns the user that a review asks about, with nothing that it does not say.
fn asked_about(review: &Value) -> User {
    let texts = |values: &[Value]| values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let extra = object_at(review, "/spec/extra").into_iter().flatten();
    User {
        name: str_at(review, "/spec/user").to_owned(),
        uid: str_at(review, "/spec/uid").to_owned(),
        groups: texts(array_at(review, "/spec/groups")),
        extra: extra.map(|(key, values)| (key.clone(), texts(array_at(values, "")))).collect(),
    }
}

/// A parsed selector of an access review, and the problem that a part of it is not understood. Such a part is
/// left out: that asks for more rights than the caller means.
type Parsed<S> = (Option<S>, Option<String>);

/// Joins a selector's parsed requirements; `None` stands for one that is not understood.
fn joined<R, S>(name: &str, parsed: Vec<Option<R>>, join: impl Fn(Vec<R>) -> S) -> Parsed<S> {
    let broken = parsed.iter().any(Option::is_none);
    let good: Vec<R> = parsed.into_iter().flatten().collect();
    let found = (!good.is_empty()).then(|| join(good));
    let how = if found.is_some() { "partially ignored" } else { "ignored" };
    let problem = broken.then(|| format!("spec.resourceAttributes.{name} {how} due to parse error"));
    (found, problem)
}

/// Returns the texts of a selector: the raw one, or the requirements.
fn selector<'a>(review: &'a Value, name: &str) -> (&'a str, &'a [Value]) {
    let pointer = format!("/spec/resourceAttributes/{name}");
    let raw = str_at(review, &format!("{pointer}/rawSelector"));
    (raw, array_at(review, &format!("{pointer}/requirements")))
}

fn field_selector(review: &Value) -> Parsed<FieldSelector> {
    let name = "fieldSelector";
    let (raw, requirements) = selector(review, name);
    if !raw.is_empty() && requirements.is_empty() {
        return joined(name, vec![raw.parse::<FieldSelector>().ok()], |all| {
            all.into_iter().next().unwrap_or_default()
        });
    }
    let term = |requirement: &Value| {
        let equal = match str_at(requirement, "/operator") {
            "In" => true,
            "NotIn" => false,
            _ => return None,
        };
        let [value] = array_at(requirement, "/values") else { return None };
        Some((str_at(requirement, "/key").to_owned(), equal, value.as_str()?.to_owned()))
    };
    joined(name, requirements.iter().map(term).collect(), |terms| FieldSelector { terms })
}

fn label_selector(review: &Value) -> Parsed<LabelSelector> {
    let name = "labelSelector";
    let (raw, requirements) = selector(review, name);
    if !raw.is_empty() && requirements.is_empty() {
        return joined(name, vec![raw.parse::<LabelSelector>().ok()], |all| {
            all.into_iter().next().unwrap_or_default()
        });
    }
    let one = |requirement: &Value| {
        let selector = json!({"matchExpressions": [requirement]});
        LabelSelector::from_api(&k8s_core::json::from_value(&selector).ok()?).ok()
    };
    joined(name, requirements.iter().map(one).collect(), |all| LabelSelector {
        requirements: all.into_iter().flat_map(|selector| selector.requirements).collect(),
    })
}

async fn access(state: &Arc<State>, user: &User, review: &Value) -> Value {
    let attribute = |field: &str| str_at(review, &format!("/spec/resourceAttributes/{field}"));
    let (fields, wrong_fields) = field_selector(review);
    let (labels, wrong_labels) = label_selector(review);
    let attributes = if at(review, "/spec/resourceAttributes").is_some_and(Value::is_object) {
        Attributes {
            verb: attribute("verb"),
            group: attribute("group"),
            resource: attribute("resource"),
            subresource: attribute("subresource"),
            namespace: attribute("namespace"),
            name: attribute("name"),
            path: "",
            version: Some(attribute("version")).filter(|v| !v.is_empty()).unwrap_or("*"),
            fields: fields.as_ref(),
            labels: labels.as_ref(),
        }
    } else {
        let at = |field: &str| str_at(review, &format!("/spec/nonResourceAttributes/{field}"));
        Attributes { verb: at("verb"), path: at("path"), ..Attributes::default() }
    };
    let outcome = state.authorization.decide(user, &attributes).await;
    let mut status = json!({"allowed": outcome.decision == Decision::Allow});
    if matches!(outcome.decision, Decision::Deny(_)) {
        status["denied"] = true.into();
    }
    if !outcome.reason.is_empty() {
        status["reason"] = outcome.reason.into();
    }
    let problems: Vec<String> = [outcome.error, wrong_fields, wrong_labels].into_iter().flatten().collect();
    if !problems.is_empty() {
        status["evaluationError"] = problems.join("; ").into();
    }
    status
}

fn rules(state: &Arc<State>, user: &User, namespace: &str) -> Value {
    let all = state.authorization.rules(user, namespace);
    let resource = |r: &Rule| {
        let mut rule = json!({"verbs": r.verbs, "apiGroups": r.groups, "resources": r.resources});
        if !r.names.is_empty() {
            rule["resourceNames"] = json!(r.names);
        }
        rule
    };
    let resources: Vec<Value> = all.rules.iter().filter(|r| !r.resources.is_empty()).map(resource).collect();
    let paths: Vec<Value> = all
        .rules
        .iter()
        .filter(|r| !r.paths.is_empty())
        .map(|r| json!({"verbs": r.verbs, "nonResourceURLs": r.paths}))
        .collect();
    let mut status =
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": all.incomplete});
    if let Some(error) = all.error {
        status["evaluationError"] = error.into();
    }
    status
}

async fn token(state: &Arc<State>, review: &Value) -> Result<Value, ApiStatus> {
    let token = str_at(review, "/spec/token");
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
