//! Cells that are computed from several fields.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, human_duration};
use crate::value::{array_at, bool_at, int_at, object_at, str_at};

pub(super) fn joined(parts: impl IntoIterator<Item = String>, none: &str) -> Value {
    let parts: Vec<String> = parts.into_iter().collect();
    if parts.is_empty() { none.into() } else { parts.join(",").into() }
}

pub(super) fn containers(object: &Value, field: &str) -> Value {
    let template =
        object.pointer("/spec/jobTemplate/spec/template").or_else(|| object.pointer("/spec/template"));
    let all = template.map_or(&[][..], |t| array_at(t, "/spec/containers"));
    joined(all.iter().map(|c| str_at(c, &format!("/{field}")).to_owned()), "<none>")
}

/// Formats a selector (map or structured); `<none>` if it is empty.
#[must_use]
pub fn selector_text(selector: Option<&Value>) -> String {
    let Some(selector) = selector else { return "<none>".into() };
    if let Some(text) = selector.as_str() {
        return text.to_owned();
    }
    let structured = selector.get("matchLabels").is_some_and(Value::is_object)
        || selector.get("matchExpressions").is_some_and(Value::is_array);
    let parsed = if structured {
        k8s_core::json::from_value(selector)
            .ok()
            .and_then(|s| k8s_core::meta::LabelSelector::from_api(&s).ok())
            .map(|s| s.to_string())
    } else {
        let pairs = selector.as_object().into_iter().flatten();
        Some(
            pairs
                .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(","),
        )
    };
    parsed.filter(|s| !s.is_empty()).unwrap_or_else(|| "<none>".into())
}

pub(super) fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    array_at(object, "/status/conditions").iter().find(|c| str_at(c, "/type") == name)
}

pub(super) fn or_none(value: &str) -> Value {
    if value.is_empty() { "<none>".into() } else { value.into() }
}

pub(super) fn ratio(object: &Value, have: &str, want: &str) -> Value {
    format!("{}/{}", int_at(object, have).unwrap_or(0), int_at(object, want).unwrap_or(0)).into()
}

pub(super) fn pod_ready(pod: &Value, _: Timestamp) -> Value {
    let statuses = array_at(pod, "/status/containerStatuses");
    let ready = statuses.iter().filter(|c| bool_at(c, "/ready")).count();
    let sidecars: Vec<&Value> = array_at(pod, "/spec/initContainers")
        .iter()
        .filter(|c| str_at(c, "/restartPolicy") == "Always")
        .collect();
    let sidecars_ready = array_at(pod, "/status/initContainerStatuses")
        .iter()
        .filter(|s| sidecars.iter().any(|c| str_at(c, "/name") == str_at(s, "/name")) && bool_at(s, "/ready"))
        .count();
    format!("{}/{}", ready + sidecars_ready, array_at(pod, "/spec/containers").len() + sidecars.len()).into()
}

/// Returns the reason of a container's state, if it is more specific than the pod's phase.
pub(super) fn container_reason(status: &Value) -> Option<String> {
    let waiting = str_at(status, "/state/waiting/reason");
    if !waiting.is_empty() {
        return Some(waiting.to_owned());
    }
    let ended = status.pointer("/state/terminated")?;
    let reason = str_at(ended, "/reason");
    if !reason.is_empty() {
        return Some(reason.to_owned());
    }
    match int_at(ended, "/signal") {
        Some(signal) if signal != 0 => Some(format!("Signal:{signal}")),
        _ => Some(format!("ExitCode:{}", int_at(ended, "/exitCode").unwrap_or(0))),
    }
}

/// Summarizes a pod's state in one word.
pub(super) fn pod_status(pod: &Value, _: Timestamp) -> Value {
    let phase = str_at(pod, "/status/phase");
    let mut reason = str_at(pod, "/status/reason").to_owned();
    if reason.is_empty() {
        reason = phase.to_owned();
    }
    if condition(pod, "PodScheduled").is_some_and(|c| str_at(c, "/reason") == "SchedulingGated") {
        reason = "SchedulingGated".into();
    }
    let init_specs = array_at(pod, "/spec/initContainers");
    let mut initializing = false;
    for (i, status) in array_at(pod, "/status/initContainerStatuses").iter().enumerate() {
        let sidecar = init_specs.iter().any(|c| {
            str_at(c, "/name") == str_at(status, "/name") && str_at(c, "/restartPolicy") == "Always"
        });
        let done = int_at(status, "/state/terminated/exitCode") == Some(0);
        if done || (sidecar && bool_at(status, "/started")) {
            continue;
        }
        initializing = true;
        reason = match (status.pointer("/state/terminated"), str_at(status, "/state/waiting/reason")) {
            (Some(_), _) => format!("Init:{}", container_reason(status).unwrap_or_default()),
            (None, waiting) if !waiting.is_empty() && waiting != "PodInitializing" => {
                format!("Init:{waiting}")
            }
            _ => format!("Init:{i}/{}", init_specs.len()),
        };
        break;
    }
    if !initializing {
        let mut running = false;
        for status in array_at(pod, "/status/containerStatuses").iter().rev() {
            if let Some(why) = container_reason(status) {
                reason = why;
            } else if bool_at(status, "/ready") && status.pointer("/state/running").is_some() {
                running = true;
            }
        }
        if reason == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|c| str_at(c, "/status") == "True");
            reason = if ready { "Running".into() } else { "NotReady".into() };
        }
    }
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        let ended = phase == "Succeeded" || phase == "Failed";
        if str_at(pod, "/status/reason") == "NodeLost" {
            reason = "Unknown".into();
        } else if !ended {
            reason = "Terminating".into();
        }
    }
    reason.into()
}

pub(super) fn pod_restarts(pod: &Value, now: Timestamp) -> Value {
    let all = || array_at(pod, "/status/containerStatuses").iter();
    let total: i64 = all().filter_map(|s| int_at(s, "/restartCount")).sum();
    let last = all().map(|s| str_at(s, "/lastState/terminated/finishedAt")).filter(|t| !t.is_empty()).max();
    match last {
        Some(time) if total > 0 => format!("{total} ({} ago)", age(time, now)).into(),
        _ => total.to_string().into(),
    }
}

pub(super) fn pod_gates(pod: &Value, _: Timestamp) -> Value {
    let gates = array_at(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let open = gates
        .iter()
        .filter(|g| {
            condition(pod, str_at(g, "/conditionType")).is_some_and(|c| str_at(c, "/status") == "True")
        })
        .count();
    format!("{open}/{}", gates.len()).into()
}

pub(super) fn node_status(node: &Value, _: Timestamp) -> Value {
    let mut words = vec![
        match condition(node, "Ready").map(|c| str_at(c, "/status")) {
            Some("True") => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }
        .to_owned(),
    ];
    if bool_at(node, "/spec/unschedulable") {
        words.push("SchedulingDisabled".into());
    }
    joined(words, "")
}

pub(super) fn node_roles(node: &Value, _: Timestamp) -> Value {
    let labels = object_at(node, "/metadata/labels").into_iter().flatten();
    let roles = labels.filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) if !role.is_empty() => Some(role.to_owned()),
        _ if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        _ => None,
    });
    joined(roles, "<none>")
}

pub(super) fn node_address(node: &Value, kind: &str) -> Value {
    let found = array_at(node, "/status/addresses").iter().find(|a| str_at(a, "/type") == kind);
    or_none(found.map_or("", |a| str_at(a, "/address")))
}

pub(super) fn service_external(service: &Value, _: Timestamp) -> Value {
    let external: Vec<String> =
        array_at(service, "/spec/externalIPs").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    match str_at(service, "/spec/type") {
        "ExternalName" => str_at(service, "/spec/externalName").into(),
        "LoadBalancer" => {
            let mut all: Vec<String> = array_at(service, "/status/loadBalancer/ingress")
                .iter()
                .map(|i| {
                    if str_at(i, "/ip").is_empty() { str_at(i, "/hostname") } else { str_at(i, "/ip") }
                        .to_owned()
                })
                .collect();
            all.extend(external);
            joined(all, "<pending>")
        }
        _ => joined(external, "<none>"),
    }
}

pub(super) fn service_ports(service: &Value, _: Timestamp) -> Value {
    let ports = array_at(service, "/spec/ports").iter().map(|p| {
        let (port, protocol) = (int_at(p, "/port").unwrap_or(0), str_at(p, "/protocol"));
        match int_at(p, "/nodePort") {
            Some(node) if node > 0 => format!("{port}:{node}/{protocol}"),
            _ => format!("{port}/{protocol}"),
        }
    });
    joined(ports, "<none>")
}

pub(super) fn endpoints(object: &Value, _: Timestamp) -> Value {
    let mut all = Vec::new();
    for subset in array_at(object, "/subsets") {
        let ports = array_at(subset, "/ports");
        for address in array_at(subset, "/addresses") {
            let ip = str_at(address, "/ip");
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|p| format!("{ip}:{}", int_at(p, "/port").unwrap_or(0))));
        }
    }
    let more = all.len().saturating_sub(3);
    all.truncate(3);
    match joined(all, "<none>") {
        Value::String(shown) if more > 0 => format!("{shown} + {more} more...").into(),
        shown => shown,
    }
}

pub(super) fn slice_endpoints(slice: &Value, _: Timestamp) -> Value {
    let mut all: Vec<String> = array_at(slice, "/endpoints")
        .iter()
        .flat_map(|e| array_at(e, "/addresses"))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let more = all.len().saturating_sub(3);
    all.truncate(3);
    match joined(all, "<unset>") {
        Value::String(shown) if more > 0 => format!("{shown} + {more} more...").into(),
        shown => shown,
    }
}

pub(super) fn slice_ports(slice: &Value, _: Timestamp) -> Value {
    joined(array_at(slice, "/ports").iter().map(|p| int_at(p, "/port").unwrap_or(0).to_string()), "<unset>")
}

pub(super) fn data_count(object: &Value, _: Timestamp) -> Value {
    let entries = |p: &str| object_at(object, p).map_or(0, serde_json::Map::len);
    (entries("/data") + entries("/binaryData")).into()
}

pub(super) fn event_last_seen(event: &Value, now: Timestamp) -> Value {
    let series = str_at(event, "/series/lastObservedTime");
    let last = [
        series,
        str_at(event, "/lastTimestamp"),
        str_at(event, "/eventTime"),
        str_at(event, "/firstTimestamp"),
    ]
    .into_iter()
    .find(|t| !t.is_empty())
    .unwrap_or_default();
    age(last, now).into()
}

pub(super) fn event_first_seen(event: &Value, now: Timestamp) -> Value {
    let first = str_at(event, "/firstTimestamp");
    age(if first.is_empty() { str_at(event, "/eventTime") } else { first }, now).into()
}

pub(super) fn event_object(event: &Value, _: Timestamp) -> Value {
    format!(
        "{}/{}",
        str_at(event, "/involvedObject/kind").to_lowercase(),
        str_at(event, "/involvedObject/name")
    )
    .into()
}

pub(super) fn event_source(event: &Value, _: Timestamp) -> Value {
    let parts = [str_at(event, "/source/component"), str_at(event, "/source/host")];
    let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    if parts.is_empty() { str_at(event, "/reportingComponent").into() } else { parts.join(", ").into() }
}

pub(super) fn event_count(event: &Value, _: Timestamp) -> Value {
    int_at(event, "/series/count").or_else(|| int_at(event, "/count")).unwrap_or(1).into()
}

pub(super) fn access_modes(modes: &[Value]) -> Value {
    let short = modes.iter().filter_map(Value::as_str).map(|m| match m {
        "ReadWriteOnce" => "RWO".to_owned(),
        "ReadOnlyMany" => "ROX".to_owned(),
        "ReadWriteMany" => "RWX".to_owned(),
        "ReadWriteOncePod" => "RWOP".to_owned(),
        other => other.to_owned(),
    });
    joined(short, "")
}

pub(super) fn terminating_or<'a>(object: &'a Value, phase: &'a str) -> Value {
    if object.pointer("/metadata/deletionTimestamp").is_some() { "Terminating".into() } else { phase.into() }
}

pub(super) fn job_status(job: &Value, _: Timestamp) -> Value {
    let holds = |name: &str| condition(job, name).is_some_and(|c| str_at(c, "/status") == "True");
    if holds("Complete") {
        "Complete".into()
    } else if holds("Failed") {
        "Failed".into()
    } else if job.pointer("/metadata/deletionTimestamp").is_some() {
        "Terminating".into()
    } else if holds("Suspended") {
        "Suspended".into()
    } else if holds("FailureTarget") {
        "FailureTarget".into()
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet".into()
    } else {
        "Running".into()
    }
}

pub(super) fn job_completions(job: &Value, _: Timestamp) -> Value {
    let done = int_at(job, "/status/succeeded").unwrap_or(0);
    match (int_at(job, "/spec/completions"), int_at(job, "/spec/parallelism").unwrap_or(0)) {
        (Some(want), _) => format!("{done}/{want}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    }
    .into()
}

pub(super) fn job_duration(job: &Value, now: Timestamp) -> Value {
    let Ok(start) = str_at(job, "/status/startTime").parse::<Timestamp>() else { return "".into() };
    let end = str_at(job, "/status/completionTime").parse::<Timestamp>().unwrap_or(now);
    human_duration(end.as_second() - start.as_second()).into()
}

pub(super) fn ingress_hosts(ingress: &Value, _: Timestamp) -> Value {
    joined(
        array_at(ingress, "/spec/rules")
            .iter()
            .map(|r| str_at(r, "/host").to_owned())
            .filter(|h| !h.is_empty()),
        "*",
    )
}

pub(super) fn ingress_address(ingress: &Value, _: Timestamp) -> Value {
    let all = array_at(ingress, "/status/loadBalancer/ingress");
    joined(
        all.iter().map(|i| {
            if str_at(i, "/ip").is_empty() { str_at(i, "/hostname") } else { str_at(i, "/ip") }.to_owned()
        }),
        "",
    )
}

pub(super) fn hpa_reference(hpa: &Value, _: Timestamp) -> Value {
    format!("{}/{}", str_at(hpa, "/spec/scaleTargetRef/kind"), str_at(hpa, "/spec/scaleTargetRef/name"))
        .into()
}

pub(super) fn hpa_targets(hpa: &Value, _: Timestamp) -> Value {
    let current = array_at(hpa, "/status/currentMetrics");
    let targets = array_at(hpa, "/spec/metrics").iter().enumerate().map(|(i, metric)| {
        let name = str_at(metric, "/resource/name");
        let now = current.get(i);
        if let Some(want) = int_at(metric, "/resource/target/averageUtilization") {
            let have = now.and_then(|c| int_at(c, "/resource/current/averageUtilization"));
            format!("{name}: {}/{want}%", have.map_or("<unknown>".into(), |h| format!("{h}%")))
        } else {
            let want = str_at(metric, "/resource/target/averageValue");
            let have = now.map_or("", |c| str_at(c, "/resource/current/averageValue"));
            format!("{name}: {}/{want}", if have.is_empty() { "<unknown>" } else { have })
        }
    });
    joined(targets, "<none>")
}

pub(super) fn role_of(binding: &Value, _: Timestamp) -> Value {
    format!("{}/{}", str_at(binding, "/roleRef/kind"), str_at(binding, "/roleRef/name")).into()
}

pub(super) fn subjects(binding: &Value, kind: &str) -> Value {
    let names = array_at(binding, "/subjects").iter().filter(|s| str_at(s, "/kind") == kind).map(|s| {
        let (namespace, name) = (str_at(s, "/namespace"), str_at(s, "/name"));
        if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
    });
    joined(names, "")
}

pub(super) fn texts(values: &[Value]) -> impl Iterator<Item = String> {
    values.iter().filter_map(Value::as_str).map(str::to_owned)
}

pub(super) fn truth_text(truth: bool) -> Value {
    if truth { "True" } else { "False" }.into()
}

/// Formats used and hard amounts, of limits or of all others: `cpu: 1/2, pods: 3/10`.
pub(super) fn quota_amounts(quota: &Value, limits: bool) -> Value {
    let used = object_at(quota, "/status/used");
    let amounts = object_at(quota, "/status/hard").into_iter().flatten().filter_map(|(name, hard)| {
        let used = used.and_then(|u| u.get(name)).and_then(Value::as_str).unwrap_or("0");
        let is_limit = name.contains("limits");
        (is_limit == limits).then(|| format!("{name}: {used}/{}", hard.as_str().unwrap_or_default()))
    });
    amounts.collect::<Vec<_>>().join(", ").into()
}

pub(super) fn template_containers(template: &Value, field: &str) -> Value {
    let all = array_at(template, "/template/spec/containers");
    joined(all.iter().map(|c| str_at(c, &format!("/{field}")).to_owned()), "<none>")
}

/// Formats the controlling owner: `deployment.apps/web`.
pub(super) fn revision_owner(object: &Value) -> Value {
    let owner = array_at(object, "/metadata/ownerReferences").iter().find(|o| bool_at(o, "/controller"));
    let Some(owner) = owner else { return "<none>".into() };
    let kind = str_at(owner, "/kind").to_lowercase();
    let group = str_at(owner, "/apiVersion").rsplit_once('/').map_or(String::new(), |(g, _)| format!(".{g}"));
    format!("{kind}{group}/{}", str_at(owner, "/name")).into()
}

/// Formats the object that an IPAddress belongs to: `services/default/kubernetes`.
pub(super) fn parent(address: &Value) -> Value {
    let part = |field: &str| str_at(address, &format!("/spec/parentRef/{field}"));
    let resource = if part("group").is_empty() {
        part("resource").to_owned()
    } else {
        format!("{}.{}", part("resource"), part("group"))
    };
    [resource.as_str(), part("namespace"), part("name")]
        .into_iter()
        .filter(|p| !p.is_empty())
        .collect::<Vec<_>>()
        .join("/")
        .into()
}
