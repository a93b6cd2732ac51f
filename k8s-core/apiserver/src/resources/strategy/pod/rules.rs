//! Validation of pod specs.

use std::collections::HashSet;

use k8s_core::meta::Quantity;
use serde_json::{Value, json};

use super::{details, is_blank, volumes::check_sources};
use crate::{
    invalid::{FieldErrors, names},
    resources::strategy::rule::At,
    value::{array_at, int_at, object_at, str_at},
};

/// Validates a pod template: labels and spec.
pub(in crate::resources) fn check_template(template: &Value, field: &str, errors: &mut FieldErrors) {
    super::super::check_labels(template, "/metadata/labels", &format!("{field}.metadata.labels"), errors);
    check_spec(template.get("spec").unwrap_or(&Value::Null), &format!("{field}.spec"), errors);
}

/// Validates a pod spec.
pub(super) fn check_spec(spec: &Value, at: &str, errors: &mut FieldErrors) {
    let volumes = check_volumes(spec, at, errors);
    let containers = array_at(spec, "/containers");
    if containers.is_empty() {
        errors.required(format!("{at}.containers"), "");
    }
    let mut seen = HashSet::new();
    for (i, container) in array_at(spec, "/initContainers").iter().enumerate() {
        check_container(container, &format!("{at}.initContainers[{i}]"), &volumes, &mut seen, errors);
        let policy = str_at(container, "/restartPolicy");
        if !policy.is_empty() && policy != "Always" {
            errors.not_supported(format!("{at}.initContainers[{i}].restartPolicy"), policy, &["Always"]);
        }
    }
    for (i, container) in containers.iter().enumerate() {
        check_container(container, &format!("{at}.containers[{i}]"), &volumes, &mut seen, errors);
    }
    one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], at, errors);
    one_of(spec, "dnsPolicy", &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], at, errors);
    super::super::not_negative(spec, "/terminationGracePeriodSeconds", errors);
    if let Some(n) = int_at(spec, "/activeDeadlineSeconds")
        && n < 1
    {
        errors.invalid(
            format!("{at}.activeDeadlineSeconds"),
            n,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    for name in ["hostname", "subdomain"] {
        let value = str_at(spec, &format!("/{name}"));
        if !value.is_empty() && !names::is_label(value) {
            errors.invalid(format!("{at}.{name}"), value, names::LABEL_MESSAGE);
        }
    }
    let account = str_at(spec, "/serviceAccountName");
    if !account.is_empty() && !names::is_subdomain(account) {
        errors.invalid(format!("{at}.serviceAccountName"), account, names::SUBDOMAIN_MESSAGE);
    }
    check_resources(spec, at, errors);
    super::whole::check(spec, at, errors);
    super::super::check_labels(spec, "/nodeSelector", &format!("{at}.nodeSelector"), errors);
    let spec = At::root(spec, at);
    spec.check(details::SPEC, errors);
    check_host_ports(&spec, errors);
    check_ephemeral(&spec, errors);
}

/// With `hostNetwork`, host ports must equal container ports.
fn check_host_ports(spec: &At<'_>, errors: &mut FieldErrors) {
    if !spec.truth("hostNetwork") {
        return;
    }
    for field in ["containers", "initContainers"] {
        for container in spec.field(field).items() {
            for port in container.field("ports").items() {
                let (own, host) = (port.field("containerPort"), port.integer("hostPort").unwrap_or(0));
                if own.value.as_i64() != Some(host) {
                    own.invalid(errors, "must match `hostPort` when `hostNetwork` is true");
                }
            }
        }
    }
}

/// Validates ephemeral containers: unique names, existing target containers.
fn check_ephemeral(spec: &At<'_>, errors: &mut FieldErrors) {
    let lists = [spec.field("containers"), spec.field("initContainers")];
    let names: Vec<&str> =
        lists.iter().flat_map(|list| list.items().map(|c| c.text("name")).collect::<Vec<_>>()).collect();
    for container in spec.field("ephemeralContainers").items() {
        let (name, target) = (container.field("name"), container.field("targetContainerName"));
        if names.contains(&name.as_text()) {
            errors.duplicate(name, name.as_text());
        }
        if target.is_set() && !names.contains(&target.as_text()) {
            errors.not_found(target, target.as_text());
        }
    }
}

fn one_of(object: &Value, field: &str, values: &[&str], at: &str, errors: &mut FieldErrors) {
    let value = str_at(object, &format!("/{field}"));
    if value.is_empty() {
        errors.required(format!("{at}.{field}"), "");
    } else if !values.contains(&value) {
        errors.not_supported(format!("{at}.{field}"), value, values);
    }
}

/// Validates the name of a volume or container, a label that is not in `seen`; adds it there.
fn check_name<'a>(object: &'a Value, at: &str, seen: &mut HashSet<&'a str>, errors: &mut FieldErrors) {
    let name = str_at(object, "/name");
    if name.is_empty() {
        errors.required(format!("{at}.name"), "");
    } else if !names::is_label(name) {
        errors.invalid(format!("{at}.name"), name, names::LABEL_MESSAGE);
    } else if !seen.insert(name) {
        errors.duplicate(format!("{at}.name"), name);
    }
}

/// Validates volumes; returns their names.
fn check_volumes<'a>(spec: &'a Value, at: &str, errors: &mut FieldErrors) -> HashSet<&'a str> {
    let mut seen = HashSet::new();
    for (i, volume) in array_at(spec, "/volumes").iter().enumerate() {
        let at = format!("{at}.volumes[{i}]");
        check_name(volume, &at, &mut seen, errors);
        check_sources(volume, &at, &["name"], errors);
    }
    seen
}

fn check_container<'a>(
    container: &'a Value,
    at: &str,
    volumes: &HashSet<&str>,
    seen: &mut HashSet<&'a str>,
    errors: &mut FieldErrors,
) {
    check_name(container, at, seen, errors);
    let image = str_at(container, "/image");
    if image.is_empty() {
        errors.required(format!("{at}.image"), "");
    } else if image.trim() != image {
        errors.invalid(format!("{at}.image"), image, "must not have leading or trailing whitespace");
    }
    check_ports(container, at, errors);
    for (i, env) in array_at(container, "/env").iter().enumerate() {
        let at = format!("{at}.env[{i}]");
        let name = str_at(env, "/name");
        if name.is_empty() {
            errors.required(format!("{at}.name"), "");
        } else if name.contains('=') || !name.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            errors.invalid(format!("{at}.name"), name, "a valid environment variable name must consist only of printable ASCII characters other than '='");
        }
        if let Some(from) = object_at(env, "/valueFrom") {
            if !str_at(env, "/value").is_empty() {
                errors.invalid(
                    format!("{at}.valueFrom"),
                    "",
                    "may not be specified when `value` is not empty",
                );
            } else if from.len() != 1 {
                let detail = if from.is_empty() {
                    "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
                } else {
                    "may not have more than one field specified at a time"
                };
                errors.invalid(format!("{at}.valueFrom"), "", detail);
            }
            for source in ["configMapKeyRef", "secretKeyRef"] {
                if let Some(reference) = from.get(source)
                    && is_blank(reference.get("key"))
                {
                    errors.required(format!("{at}.valueFrom.{source}.key"), "");
                }
            }
        }
    }
    for (i, mount) in array_at(container, "/volumeMounts").iter().enumerate() {
        let at = format!("{at}.volumeMounts[{i}]");
        let name = str_at(mount, "/name");
        if name.is_empty() {
            errors.required(format!("{at}.name"), "");
        } else if !volumes.contains(name) {
            errors.not_found(format!("{at}.name"), name);
        }
        let path = str_at(mount, "/mountPath");
        if path.is_empty() {
            errors.required(format!("{at}.mountPath"), "");
        } else if array_at(container, "/volumeMounts")[..i].iter().any(|m| str_at(m, "/mountPath") == path) {
            errors.invalid(format!("{at}.mountPath"), path, "must be unique");
        }
        let sub_path = str_at(mount, "/subPath");
        if sub_path.starts_with('/') {
            errors.invalid(format!("{at}.subPath"), sub_path, "must be a relative path");
        } else if sub_path.split('/').any(|p| p == "..") {
            errors.invalid(format!("{at}.subPath"), sub_path, "must not contain '..'");
        }
    }
    one_of(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], at, errors);
    one_of(container, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], at, errors);
    check_resources(container, at, errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(handler) = container.get(probe) {
            check_handler(handler, &format!("{at}.{probe}"), errors);
            if probe != "readinessProbe" && int_at(handler, "/successThreshold").is_some_and(|n| n != 1) {
                errors.invalid(
                    format!("{at}.{probe}.successThreshold"),
                    handler["successThreshold"].clone(),
                    "must be 1",
                );
            }
            for number in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "failureThreshold"] {
                if let Some(n) = int_at(handler, &format!("/{number}"))
                    && n < 0
                {
                    errors.invalid(format!("{at}.{probe}.{number}"), n, "must be greater than or equal to 0");
                }
            }
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = container.pointer(&format!("/lifecycle/{hook}")) {
            check_handler(handler, &format!("{at}.lifecycle.{hook}"), errors);
        }
    }
}

fn check_handler(handler: &Value, at: &str, errors: &mut FieldErrors) {
    let kinds: Vec<&str> = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"]
        .into_iter()
        .filter(|k| handler.get(k).is_some())
        .collect();
    if kinds.is_empty() {
        errors.required(at, "must specify a handler type");
    }
    for extra in kinds.iter().skip(1) {
        errors.forbidden(format!("{at}.{extra}"), "may not specify more than 1 handler type");
    }
    if handler.get("exec").is_some() && array_at(handler, "/exec/command").is_empty() {
        errors.required(format!("{at}.exec.command"), "");
    }
}

fn check_ports(container: &Value, at: &str, errors: &mut FieldErrors) {
    let mut names_seen = HashSet::new();
    for (i, port) in array_at(container, "/ports").iter().enumerate() {
        let at = format!("{at}.ports[{i}]");
        let name = str_at(port, "/name");
        if !name.is_empty() {
            if name.len() > 15 || !names::is_label(name) || !name.bytes().any(|b| b.is_ascii_lowercase()) {
                errors.invalid(format!("{at}.name"), name, "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), at least one letter, and be no more than 15 characters");
            } else if !names_seen.insert(name) {
                errors.duplicate(format!("{at}.name"), name);
            }
        }
        let number = int_at(port, "/containerPort").unwrap_or(0);
        if number == 0 {
            errors.required(format!("{at}.containerPort"), "");
        } else if !(1..=65535).contains(&number) {
            errors.invalid(format!("{at}.containerPort"), number, "must be between 1 and 65535, inclusive");
        }
        if let Some(host) = int_at(port, "/hostPort")
            && host != 0
            && !(1..=65535).contains(&host)
        {
            errors.invalid(format!("{at}.hostPort"), host, "must be between 1 and 65535, inclusive");
        }
        let protocol = str_at(port, "/protocol");
        if !["TCP", "UDP", "SCTP"].contains(&protocol) {
            errors.not_supported(format!("{at}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        }
    }
}

fn check_resources(container: &Value, at: &str, errors: &mut FieldErrors) {
    let quantity = |value: &Value| value.as_str().and_then(|q| q.parse::<Quantity>().ok());
    for list in ["limits", "requests"] {
        for (name, value) in object_at(container, &format!("/resources/{list}")).into_iter().flatten() {
            if quantity(value).is_some_and(|q| q.is_negative()) {
                errors.invalid(
                    format!("{at}.resources.{list}[{name}]"),
                    value.clone(),
                    "must be greater than or equal to 0",
                );
            }
        }
    }
    for (name, request) in object_at(container, "/resources/requests").into_iter().flatten() {
        let Some(limit) = container.pointer("/resources/limits").and_then(|l| l.get(name)) else { continue };
        if let (Some(r), Some(l)) = (quantity(request), quantity(limit))
            && r > l
        {
            errors.invalid(
                format!("{at}.resources.requests"),
                request.clone(),
                format!("must be less than or equal to {name} limit of {l}"),
            );
        }
    }
}

const UPDATE_MESSAGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Validates a pod update: only a few fields are mutable.
pub(super) fn check_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let frozen = |pod: &Value| {
        let mut spec = pod.get("spec").cloned().unwrap_or_default();
        for field in ["containers", "initContainers"] {
            for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(map) = container.as_object_mut() {
                    map.remove("image");
                }
            }
        }
        if let Some(map) = spec.as_object_mut() {
            for field in ["activeDeadlineSeconds", "tolerations"] {
                map.remove(field);
            }
            // Scheduling gates may be removed, never added.
            map.remove("schedulingGates");
        }
        spec
    };
    let (now, before) = (frozen(new), frozen(old));
    if now != before {
        errors.forbidden("spec", &format!("{UPDATE_MESSAGE}\n{}", difference(&now, &before)));
    }
    let have = array_at(new, "/spec/tolerations");
    if array_at(old, "/spec/tolerations").iter().any(|t| !have.contains(t)) {
        errors.forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
    let gates = |pod: &Value| -> Vec<Value> { array_at(pod, "/spec/schedulingGates").to_vec() };
    if gates(new).iter().any(|g| !gates(old).contains(g)) {
        errors.forbidden("spec.schedulingGates", "only deletion is allowed, but found new scheduling gate");
    }
}

/// Validates an update of ephemeral containers: they may be added, but not changed.
pub(super) fn check_ephemeral_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let field = "spec.ephemeralContainers";
    if object_at(new, "/metadata/annotations").is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"))
    {
        errors.forbidden("", "static pods do not support ephemeral containers");
    }
    let now = array_at(new, "/spec/ephemeralContainers");
    for container in array_at(old, "/spec/ephemeralContainers") {
        let name = str_at(container, "/name");
        match now.iter().find(|c| str_at(c, "/name") == name) {
            None => errors
                .forbidden(field, &format!("existing ephemeral containers \"{name}\" may not be removed\n")),
            Some(changed) if changed != container => errors.forbidden(
                field,
                &format!(
                    "existing ephemeral containers \"{name}\" may not be changed\n{}",
                    difference(changed, container)
                ),
            ),
            Some(_) => {}
        }
    }
}

/// Formats the differing fields for the message: field, old value, new value.
fn difference(new: &Value, old: &Value) -> String {
    let mut lines = Vec::new();
    let empty = json!({});
    let (new, old) = (new.as_object().or(empty.as_object()), old.as_object().or(empty.as_object()));
    if let (Some(new), Some(old)) = (new, old) {
        for key in old.keys().chain(new.keys().filter(|k| !old.contains_key(*k))) {
            let (before, after) = (old.get(key), new.get(key));
            if before != after {
                lines.extend(before.map(|v| format!("- {key}: {v}")));
                lines.extend(after.map(|v| format!("+ {key}: {v}")));
            }
        }
    }
    lines.join("\n")
}
