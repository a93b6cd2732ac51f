//! Cells that are computed from several fields.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, human_duration};
use crate::value::{integer, list, map, text, truth};

pub(super) fn joined(parts: impl IntoIterator<Item = String>, none: &str) -> Value {
    let parts: Vec<String> = parts.into_iter().collect();
    if parts.is_empty() { none.into() } else { parts.join(",").into() }
}

pub(super) fn containers(object: &Value, field: &str) -> Value {
    let template =
        object.pointer("/spec/jobTemplate/spec/template").or_else(|| object.pointer("/spec/template"));
    let all = template.map_or(&[][..], |t| list(t, "/spec/containers"));
    joined(all.iter().map(|c| text(c, &format!("/{field}")).to_owned()), "<none>")
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
        serde_json::from_value(selector.clone())
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
    list(object, "/status/conditions").iter().find(|c| text(c, "/type") == name)
}

pub(super) fn or_none(value: &str) -> Value {
    if value.is_empty() { "<none>".into() } else { value.into() }
}

pub(super) fn ratio(object: &Value, have: &str, want: &str) -> Value {
    format!("{}/{}", integer(object, have).unwrap_or(0), integer(object, want).unwrap_or(0)).into()
}

pub(super) fn pod_ready(pod: &Value, _: Timestamp) -> Value {
    let statuses = list(pod, "/status/containerStatuses");
    let ready = statuses.iter().filter(|c| truth(c, "/ready")).count();
    let sidecars: Vec<&Value> =
        list(pod, "/spec/initContainers").iter().filter(|c| text(c, "/restartPolicy") == "Always").collect();
    let sidecars_ready = list(pod, "/status/initContainerStatuses")
        .iter()
        .filter(|s| sidecars.iter().any(|c| text(c, "/name") == text(s, "/name")) && truth(s, "/ready"))
        .count();
    format!("{}/{}", ready + sidecars_ready, list(pod, "/spec/containers").len() + sidecars.len()).into()
}

/// Returns the reason of a container's state, if it is more specific than the pod's phase.
pub(super) fn container_reason(status: &Value) -> Option<String> {
    let waiting = text(status, "/state/waiting/reason");
    if !waiting.is_empty() {
        return Some(waiting.to_owned());
    }
    let ended = status.pointer("/state/terminated")?;
    let reason = text(ended, "/reason");
    if !reason.is_empty() {
        return Some(reason.to_owned());
    }
    match integer(ended, "/signal") {
        Some(signal) if signal != 0 => Some(format!("Signal:{signal}")),
        _ => Some(format!("ExitCode:{}", integer(ended, "/exitCode").unwrap_or(0))),
    }
}

/// Summarizes a pod's state in one word.
pub(super) fn pod_status(pod: &Value, _: Timestamp) -> Value {
    let phase = text(pod, "/status/phase");
    let mut reason = text(pod, "/status/reason").to_owned();
    if reason.is_empty() {
        reason = phase.to_owned();
    }
    if condition(pod, "PodScheduled").is_some_and(|c| text(c, "/reason") == "SchedulingGated") {
        reason = "SchedulingGated".into();
    }
    let init_specs = list(pod, "/spec/initContainers");
    let mut initializing = false;
    for (i, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
        let sidecar = init_specs
            .iter()
            .any(|c| text(c, "/name") == text(status, "/name") && text(c, "/restartPolicy") == "Always");
        let done = integer(status, "/state/terminated/exitCode") == Some(0);
        if done || (sidecar && truth(status, "/started")) {
            continue;
        }
        initializing = true;
        reason = match (status.pointer("/state/terminated"), text(status, "/state/waiting/reason")) {
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
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            if let Some(why) = container_reason(status) {
                reason = why;
            } else if truth(status, "/ready") && status.pointer("/state/running").is_some() {
                running = true;
            }
        }
        if reason == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|c| text(c, "/status") == "True");
            reason = if ready { "Running".into() } else { "NotReady".into() };
        }
    }
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        let ended = phase == "Succeeded" || phase == "Failed";
        if text(pod, "/status/reason") == "NodeLost" {
            reason = "Unknown".into();
        } else if !ended {
            reason = "Terminating".into();
        }
    }
    reason.into()
}

pub(super) fn pod_restarts(pod: &Value, now: Timestamp) -> Value {
    let all = || list(pod, "/status/containerStatuses").iter();
    let total: i64 = all().filter_map(|s| integer(s, "/restartCount")).sum();
    let last = all().map(|s| text(s, "/lastState/terminated/finishedAt")).filter(|t| !t.is_empty()).max();
    match last {
        Some(time) if total > 0 => format!("{total} ({} ago)", age(time, now)).into(),
        _ => total.to_string().into(),
    }
}

pub(super) fn pod_gates(pod: &Value, _: Timestamp) -> Value {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let open = gates
        .iter()
        .filter(|g| condition(pod, text(g, "/conditionType")).is_some_and(|c| text(c, "/status") == "True"))
        .count();
    format!("{open}/{}", gates.len()).into()
}

pub(super) fn node_status(node: &Value, _: Timestamp) -> Value {
    let mut words = vec![
        match condition(node, "Ready").map(|c| text(c, "/status")) {
            Some("True") => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }
        .to_owned(),
    ];
    if truth(node, "/spec/unschedulable") {
        words.push("SchedulingDisabled".into());
    }
    joined(words, "")
}

pub(super) fn node_roles(node: &Value, _: Timestamp) -> Value {
    let labels = map(node, "/metadata/labels").into_iter().flatten();
    let roles = labels.filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) if !role.is_empty() => Some(role.to_owned()),
        _ if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        _ => None,
    });
    joined(roles, "<none>")
}

pub(super) fn node_address(node: &Value, kind: &str) -> Value {
    let found = list(node, "/status/addresses").iter().find(|a| text(a, "/type") == kind);
    or_none(found.map_or("", |a| text(a, "/address")))
}

pub(super) fn service_external(service: &Value, _: Timestamp) -> Value {
    let external: Vec<String> =
        list(service, "/spec/externalIPs").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    match text(service, "/spec/type") {
        "ExternalName" => text(service, "/spec/externalName").into(),
        "LoadBalancer" => {
            let mut all: Vec<String> = list(service, "/status/loadBalancer/ingress")
                .iter()
                .map(|i| {
                    if text(i, "/ip").is_empty() { text(i, "/hostname") } else { text(i, "/ip") }.to_owned()
                })
                .collect();
            all.extend(external);
            joined(all, "<pending>")
        }
        _ => joined(external, "<none>"),
    }
}

pub(super) fn service_ports(service: &Value, _: Timestamp) -> Value {
    let ports = list(service, "/spec/ports").iter().map(|p| {
        let (port, protocol) = (integer(p, "/port").unwrap_or(0), text(p, "/protocol"));
        match integer(p, "/nodePort") {
            Some(node) if node > 0 => format!("{port}:{node}/{protocol}"),
            _ => format!("{port}/{protocol}"),
        }
    });
    joined(ports, "<none>")
}

pub(super) fn endpoints(object: &Value, _: Timestamp) -> Value {
    let mut all = Vec::new();
    for subset in list(object, "/subsets") {
        let ports = list(subset, "/ports");
        for address in list(subset, "/addresses") {
            let ip = text(address, "/ip");
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|p| format!("{ip}:{}", integer(p, "/port").unwrap_or(0))));
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
    let mut all: Vec<String> = list(slice, "/endpoints")
        .iter()
        .flat_map(|e| list(e, "/addresses"))
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
    joined(list(slice, "/ports").iter().map(|p| integer(p, "/port").unwrap_or(0).to_string()), "<unset>")
}

pub(super) fn data_count(object: &Value, _: Timestamp) -> Value {
    let entries = |p: &str| map(object, p).map_or(0, serde_json::Map::len);
    (entries("/data") + entries("/binaryData")).into()
}

pub(super) fn event_last_seen(event: &Value, now: Timestamp) -> Value {
    let series = text(event, "/series/lastObservedTime");
    let last =
        [series, text(event, "/lastTimestamp"), text(event, "/eventTime"), text(event, "/firstTimestamp")]
            .into_iter()
            .find(|t| !t.is_empty())
            .unwrap_or_default();
    age(last, now).into()
}

pub(super) fn event_first_seen(event: &Value, now: Timestamp) -> Value {
    let first = text(event, "/firstTimestamp");
    age(if first.is_empty() { text(event, "/eventTime") } else { first }, now).into()
}

pub(super) fn event_object(event: &Value, _: Timestamp) -> Value {
    format!("{}/{}", text(event, "/involvedObject/kind").to_lowercase(), text(event, "/involvedObject/name"))
        .into()
}

pub(super) fn event_source(event: &Value, _: Timestamp) -> Value {
    let parts = [text(event, "/source/component"), text(event, "/source/host")];
    let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    if parts.is_empty() { text(event, "/reportingComponent").into() } else { parts.join(", ").into() }
}

pub(super) fn event_count(event: &Value, _: Timestamp) -> Value {
    integer(event, "/series/count").or_else(|| integer(event, "/count")).unwrap_or(1).into()
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
    let holds = |name: &str| condition(job, name).is_some_and(|c| text(c, "/status") == "True");
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
    let done = integer(job, "/status/succeeded").unwrap_or(0);
    match (integer(job, "/spec/completions"), integer(job, "/spec/parallelism").unwrap_or(0)) {
        (Some(want), _) => format!("{done}/{want}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    }
    .into()
}

pub(super) fn job_duration(job: &Value, now: Timestamp) -> Value {
    let Ok(start) = text(job, "/status/startTime").parse::<Timestamp>() else { return "".into() };
    let end = text(job, "/status/completionTime").parse::<Timestamp>().unwrap_or(now);
    human_duration(end.as_second() - start.as_second()).into()
}

pub(super) fn ingress_hosts(ingress: &Value, _: Timestamp) -> Value {
    joined(
        list(ingress, "/spec/rules").iter().map(|r| text(r, "/host").to_owned()).filter(|h| !h.is_empty()),
        "*",
    )
}

pub(super) fn ingress_address(ingress: &Value, _: Timestamp) -> Value {
    let all = list(ingress, "/status/loadBalancer/ingress");
    joined(
        all.iter().map(|i| {
            if text(i, "/ip").is_empty() { text(i, "/hostname") } else { text(i, "/ip") }.to_owned()
        }),
        "",
    )
}

pub(super) fn hpa_reference(hpa: &Value, _: Timestamp) -> Value {
    format!("{}/{}", text(hpa, "/spec/scaleTargetRef/kind"), text(hpa, "/spec/scaleTargetRef/name")).into()
}

pub(super) fn hpa_targets(hpa: &Value, _: Timestamp) -> Value {
    let current = list(hpa, "/status/currentMetrics");
    let targets = list(hpa, "/spec/metrics").iter().enumerate().map(|(i, metric)| {
        let name = text(metric, "/resource/name");
        let now = current.get(i);
        if let Some(want) = integer(metric, "/resource/target/averageUtilization") {
            let have = now.and_then(|c| integer(c, "/resource/current/averageUtilization"));
            format!("{name}: {}/{want}%", have.map_or("<unknown>".into(), |h| format!("{h}%")))
        } else {
            let want = text(metric, "/resource/target/averageValue");
            let have = now.map_or("", |c| text(c, "/resource/current/averageValue"));
            format!("{name}: {}/{want}", if have.is_empty() { "<unknown>" } else { have })
        }
    });
    joined(targets, "<none>")
}

pub(super) fn role_of(binding: &Value, _: Timestamp) -> Value {
    format!("{}/{}", text(binding, "/roleRef/kind"), text(binding, "/roleRef/name")).into()
}

pub(super) fn subjects(binding: &Value, kind: &str) -> Value {
    let names = list(binding, "/subjects").iter().filter(|s| text(s, "/kind") == kind).map(|s| {
        let (namespace, name) = (text(s, "/namespace"), text(s, "/name"));
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
    let used = map(quota, "/status/used");
    let amounts = map(quota, "/status/hard").into_iter().flatten().filter_map(|(name, hard)| {
        let used = used.and_then(|u| u.get(name)).and_then(Value::as_str).unwrap_or("0");
        let is_limit = name.contains("limits");
        (is_limit == limits).then(|| format!("{name}: {used}/{}", hard.as_str().unwrap_or_default()))
    });
    amounts.collect::<Vec<_>>().join(", ").into()
}

pub(super) fn template_containers(template: &Value, field: &str) -> Value {
    let all = list(template, "/template/spec/containers");
    joined(all.iter().map(|c| text(c, &format!("/{field}")).to_owned()), "<none>")
}

/// Formats the controlling owner: `deployment.apps/web`.
pub(super) fn revision_owner(object: &Value) -> Value {
    let owner = list(object, "/metadata/ownerReferences").iter().find(|o| truth(o, "/controller"));
    let Some(owner) = owner else { return "<none>".into() };
    let kind = text(owner, "/kind").to_lowercase();
    let group = text(owner, "/apiVersion").rsplit_once('/').map_or(String::new(), |(g, _)| format!(".{g}"));
    format!("{kind}{group}/{}", text(owner, "/name")).into()
}

/// Formats the object that an IPAddress belongs to: `services/default/kubernetes`.
pub(super) fn parent(address: &Value) -> Value {
    let part = |field: &str| text(address, &format!("/spec/parentRef/{field}"));
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
