//! Printer columns: what `kubectl get` shows of each resource, computed by the server.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{integer, list, map, text, truth};

/// Where a cell's value comes from.
#[derive(Clone, Copy, Debug)]
pub enum Cell {
    /// The value at a JSON pointer.
    Path(&'static str),
    /// How long ago the time at a JSON pointer was.
    Age(&'static str),
    /// Computed.
    Fn(fn(&Value, Timestamp) -> Value),
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// `string`, `integer` or `date`.
    pub kind: &'static str,
    /// `name` for the first column.
    pub format: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: i32,
    /// Value.
    pub cell: Cell,
}

/// One column of a custom resource.
#[derive(Clone, Debug)]
pub struct CustomColumn {
    /// Heading.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    /// Format.
    pub format: String,
    /// Description.
    pub description: String,
    /// 0: always shown.
    pub priority: i32,
    /// Simple JSON path such as `.spec.engine`.
    pub path: String,
}

const fn path(name: &'static str, pointer: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0, cell: Cell::Path(pointer) }
}
const fn number(name: &'static str, pointer: &'static str) -> Column {
    Column { name, kind: "integer", format: "", priority: 0, cell: Cell::Path(pointer) }
}
const fn computed(name: &'static str, f: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, kind: "string", format: "", priority: 0, cell: Cell::Fn(f) }
}
const fn count(name: &'static str, f: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, kind: "string", format: "", priority: 0, cell: Cell::Fn(f) }
}
const fn wide(mut column: Column) -> Column {
    column.priority = 1;
    column
}
const NAME: Column =
    Column { name: "Name", kind: "string", format: "name", priority: 0, cell: Cell::Path("/metadata/name") };
const AGE: Column = Column {
    name: "Age",
    kind: "string",
    format: "",
    priority: 0,
    cell: Cell::Age("/metadata/creationTimestamp"),
};
const CREATED_AT: Column = path("Created At", "/metadata/creationTimestamp");
const CONTAINERS: Column = wide(computed("Containers", |o, _| containers(o, "name")));
const IMAGES: Column = wide(computed("Images", |o, _| containers(o, "image")));
const SELECTOR: Column = wide(computed("Selector", |o, _| selector_text(o.pointer("/spec/selector")).into()));

/// How long a span is, as kubectl shows it: at most two units.
#[must_use]
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        s if s < 0 => "<invalid>".into(),
        s if s < 120 => format!("{s}s"),
        s if s < 600 => two(minutes, "m", s % 60, "s"),
        s if s < 3 * 3600 => format!("{minutes}m"),
        s if s < 8 * 3600 => two(hours, "h", minutes % 60, "m"),
        s if s < 48 * 3600 => format!("{hours}h"),
        s if s < 8 * 86400 => two(days, "d", hours % 24, "h"),
        s if s < 2 * 365 * 86400 => format!("{days}d"),
        s if s < 8 * 365 * 86400 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// How long ago an RFC 3339 time was; `<unknown>` where there is none.
#[must_use]
pub fn age(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(then) => human_duration(now.as_second() - then.as_second()),
        Err(_) => "<unknown>".into(),
    }
}

impl Column {
    /// The cell for an object.
    #[must_use]
    pub fn value(&self, object: &Value, now: Timestamp) -> Value {
        match self.cell {
            Cell::Path(pointer) => match object.pointer(pointer) {
                Some(value) => value.clone(),
                None if self.kind == "integer" => 0.into(),
                None => "".into(),
            },
            Cell::Age(pointer) => age(text(object, pointer), now).into(),
            Cell::Fn(f) => f(object, now),
        }
    }
}

impl CustomColumn {
    /// The cell for an object; `null` where the path leads nowhere.
    #[must_use]
    pub fn value(&self, object: &Value, now: Timestamp) -> Value {
        let found = simple_path(object, &self.path);
        match (self.kind.as_str(), found) {
            ("date", Some(Value::String(time))) => age(time, now).into(),
            ("integer" | "number" | "boolean", Some(value)) => value.clone(),
            (_, Some(Value::String(s))) => s.clone().into(),
            (_, Some(value)) => value.to_string().into(),
            (_, None) => Value::Null,
        }
    }
}

/// The value that a simple JSON path leads to: `.a.b`, `.a["b"]`, `.a[0]`, `.a[?(@.type=="Ready")].status`.
#[must_use]
pub fn simple_path<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut at = object;
    let mut rest = path.trim_matches(['{', '}']).trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let mut end = 0;
            let bytes = after.as_bytes();
            while end < bytes.len() && bytes[end] != b'.' && bytes[end] != b'[' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            let end = end.min(after.len());
            let key = after.get(..end)?.replace('\\', "");
            at = at.get(&key)?;
            rest = after.get(end..)?;
        } else if let Some(after) = rest.strip_prefix("[?(@.") {
            let (condition, tail) = after.split_once(")]")?;
            let (field, wanted) = condition.split_once("==")?;
            let wanted = wanted.trim().trim_matches(['"', '\'']);
            at = at.as_array()?.iter().find(|i| text(i, &format!("/{}", field.trim())) == wanted)?;
            rest = tail;
        } else if let Some(after) = rest.strip_prefix('[') {
            let (index, tail) = after.split_once(']')?;
            at = match index.parse::<usize>() {
                Ok(i) => at.get(i)?,
                Err(_) => at.get(index.trim_matches(['"', '\'']))?,
            };
            rest = tail;
        } else {
            return None;
        }
    }
    Some(at)
}

fn joined(parts: impl IntoIterator<Item = String>, none: &str) -> Value {
    let parts: Vec<String> = parts.into_iter().collect();
    if parts.is_empty() { none.into() } else { parts.join(",").into() }
}

fn containers(object: &Value, field: &str) -> Value {
    let template =
        object.pointer("/spec/jobTemplate/spec/template").or_else(|| object.pointer("/spec/template"));
    let all = template.map_or(&[][..], |t| list(t, "/spec/containers"));
    joined(all.iter().map(|c| text(c, &format!("/{field}")).to_owned()), "<none>")
}

/// A selector (map or structured) as text; `<none>` where it is empty.
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

fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    list(object, "/status/conditions").iter().find(|c| text(c, "/type") == name)
}

fn or_none(value: &str) -> Value {
    if value.is_empty() { "<none>".into() } else { value.into() }
}

fn ratio(object: &Value, have: &str, want: &str) -> Value {
    format!("{}/{}", integer(object, have).unwrap_or(0), integer(object, want).unwrap_or(0)).into()
}

fn pod_ready(pod: &Value, _: Timestamp) -> Value {
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

/// What one container's state says, where it says more than the pod's phase.
fn container_reason(status: &Value) -> Option<String> {
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

/// The word that sums up a pod's state.
fn pod_status(pod: &Value, _: Timestamp) -> Value {
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

fn pod_restarts(pod: &Value, now: Timestamp) -> Value {
    let all = || list(pod, "/status/containerStatuses").iter();
    let total: i64 = all().filter_map(|s| integer(s, "/restartCount")).sum();
    let last = all().map(|s| text(s, "/lastState/terminated/finishedAt")).filter(|t| !t.is_empty()).max();
    match last {
        Some(time) if total > 0 => format!("{total} ({} ago)", age(time, now)).into(),
        _ => total.to_string().into(),
    }
}

fn pod_gates(pod: &Value, _: Timestamp) -> Value {
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

fn node_status(node: &Value, _: Timestamp) -> Value {
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

fn node_roles(node: &Value, _: Timestamp) -> Value {
    let labels = map(node, "/metadata/labels").into_iter().flatten();
    let roles = labels.filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) if !role.is_empty() => Some(role.to_owned()),
        _ if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        _ => None,
    });
    joined(roles, "<none>")
}

fn node_address(node: &Value, kind: &str) -> Value {
    let found = list(node, "/status/addresses").iter().find(|a| text(a, "/type") == kind);
    or_none(found.map_or("", |a| text(a, "/address")))
}

fn service_external(service: &Value, _: Timestamp) -> Value {
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

fn service_ports(service: &Value, _: Timestamp) -> Value {
    let ports = list(service, "/spec/ports").iter().map(|p| {
        let (port, protocol) = (integer(p, "/port").unwrap_or(0), text(p, "/protocol"));
        match integer(p, "/nodePort") {
            Some(node) if node > 0 => format!("{port}:{node}/{protocol}"),
            _ => format!("{port}/{protocol}"),
        }
    });
    joined(ports, "<none>")
}

fn endpoints(object: &Value, _: Timestamp) -> Value {
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

fn slice_endpoints(slice: &Value, _: Timestamp) -> Value {
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

fn slice_ports(slice: &Value, _: Timestamp) -> Value {
    joined(list(slice, "/ports").iter().map(|p| integer(p, "/port").unwrap_or(0).to_string()), "<unset>")
}

fn data_count(object: &Value, _: Timestamp) -> Value {
    let entries = |p: &str| map(object, p).map_or(0, serde_json::Map::len);
    (entries("/data") + entries("/binaryData")).into()
}

fn event_last_seen(event: &Value, now: Timestamp) -> Value {
    let series = text(event, "/series/lastObservedTime");
    let last =
        [series, text(event, "/lastTimestamp"), text(event, "/eventTime"), text(event, "/firstTimestamp")]
            .into_iter()
            .find(|t| !t.is_empty())
            .unwrap_or_default();
    age(last, now).into()
}

fn event_first_seen(event: &Value, now: Timestamp) -> Value {
    let first = text(event, "/firstTimestamp");
    age(if first.is_empty() { text(event, "/eventTime") } else { first }, now).into()
}

fn event_object(event: &Value, _: Timestamp) -> Value {
    format!("{}/{}", text(event, "/involvedObject/kind").to_lowercase(), text(event, "/involvedObject/name"))
        .into()
}

fn event_source(event: &Value, _: Timestamp) -> Value {
    let parts = [text(event, "/source/component"), text(event, "/source/host")];
    let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    if parts.is_empty() { text(event, "/reportingComponent").into() } else { parts.join(", ").into() }
}

fn event_count(event: &Value, _: Timestamp) -> Value {
    integer(event, "/series/count").or_else(|| integer(event, "/count")).unwrap_or(1).into()
}

fn access_modes(modes: &[Value]) -> Value {
    let short = modes.iter().filter_map(Value::as_str).map(|m| match m {
        "ReadWriteOnce" => "RWO".to_owned(),
        "ReadOnlyMany" => "ROX".to_owned(),
        "ReadWriteMany" => "RWX".to_owned(),
        "ReadWriteOncePod" => "RWOP".to_owned(),
        other => other.to_owned(),
    });
    joined(short, "")
}

fn terminating_or<'a>(object: &'a Value, phase: &'a str) -> Value {
    if object.pointer("/metadata/deletionTimestamp").is_some() { "Terminating".into() } else { phase.into() }
}

fn job_status(job: &Value, _: Timestamp) -> Value {
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

fn job_completions(job: &Value, _: Timestamp) -> Value {
    let done = integer(job, "/status/succeeded").unwrap_or(0);
    match (integer(job, "/spec/completions"), integer(job, "/spec/parallelism").unwrap_or(0)) {
        (Some(want), _) => format!("{done}/{want}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    }
    .into()
}

fn job_duration(job: &Value, now: Timestamp) -> Value {
    let Ok(start) = text(job, "/status/startTime").parse::<Timestamp>() else { return "".into() };
    let end = text(job, "/status/completionTime").parse::<Timestamp>().unwrap_or(now);
    human_duration(end.as_second() - start.as_second()).into()
}

fn ingress_hosts(ingress: &Value, _: Timestamp) -> Value {
    joined(
        list(ingress, "/spec/rules").iter().map(|r| text(r, "/host").to_owned()).filter(|h| !h.is_empty()),
        "*",
    )
}

fn ingress_address(ingress: &Value, _: Timestamp) -> Value {
    let all = list(ingress, "/status/loadBalancer/ingress");
    joined(
        all.iter().map(|i| {
            if text(i, "/ip").is_empty() { text(i, "/hostname") } else { text(i, "/ip") }.to_owned()
        }),
        "",
    )
}

fn hpa_reference(hpa: &Value, _: Timestamp) -> Value {
    format!("{}/{}", text(hpa, "/spec/scaleTargetRef/kind"), text(hpa, "/spec/scaleTargetRef/name")).into()
}

fn hpa_targets(hpa: &Value, _: Timestamp) -> Value {
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

fn role_of(binding: &Value, _: Timestamp) -> Value {
    format!("{}/{}", text(binding, "/roleRef/kind"), text(binding, "/roleRef/name")).into()
}

fn subjects(binding: &Value, kind: &str) -> Value {
    let names = list(binding, "/subjects").iter().filter(|s| text(s, "/kind") == kind).map(|s| {
        let (namespace, name) = (text(s, "/namespace"), text(s, "/name"));
        if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
    });
    joined(names, "")
}

pub(super) const DEFAULT: [Column; 2] = [NAME, CREATED_AT];
pub(super) const CONFIGMAPS: [Column; 3] = [NAME, count("Data", data_count), AGE];
pub(super) const SECRETS: [Column; 4] = [NAME, path("Type", "/type"), count("Data", data_count), AGE];
pub(super) const SERVICEACCOUNTS: [Column; 2] = [NAME, AGE];
pub(super) const ENDPOINTS: [Column; 3] = [NAME, computed("Endpoints", endpoints), AGE];
pub(super) const NAMESPACES: [Column; 3] = [NAME, path("Status", "/status/phase"), AGE];
pub(super) const RESOURCEQUOTAS: [Column; 2] = [NAME, AGE];
pub(super) const LEASES: [Column; 3] = [NAME, path("Holder", "/spec/holderIdentity"), AGE];
pub(super) const ROLES: [Column; 2] = [NAME, CREATED_AT];
pub(super) const CLUSTERROLES: [Column; 2] = [NAME, CREATED_AT];
pub(super) const CUSTOMRESOURCEDEFINITIONS: [Column; 2] = [NAME, CREATED_AT];
pub(super) const ROLEBINDINGS: [Column; 6] = [
    NAME,
    computed("Role", role_of),
    AGE,
    wide(computed("Users", |o, _| subjects(o, "User"))),
    wide(computed("Groups", |o, _| subjects(o, "Group"))),
    wide(computed("ServiceAccounts", |o, _| subjects(o, "ServiceAccount"))),
];
pub(super) const CLUSTERROLEBINDINGS: [Column; 6] = ROLEBINDINGS;
pub(super) const EVENTS: [Column; 10] = [
    computed("Last Seen", event_last_seen),
    path("Type", "/type"),
    path("Reason", "/reason"),
    computed("Object", event_object),
    wide(path("Subobject", "/involvedObject/fieldPath")),
    wide(computed("Source", event_source)),
    computed("Message", |o, _| text(o, "/message").trim().into()),
    wide(computed("First Seen", event_first_seen)),
    wide(computed("Count", event_count)),
    wide(NAME),
];
pub(super) const NODES: [Column; 10] = [
    NAME,
    computed("Status", node_status),
    computed("Roles", node_roles),
    AGE,
    path("Version", "/status/nodeInfo/kubeletVersion"),
    wide(computed("Internal-IP", |o, _| node_address(o, "InternalIP"))),
    wide(computed("External-IP", |o, _| node_address(o, "ExternalIP"))),
    wide(path("OS-Image", "/status/nodeInfo/osImage")),
    wide(path("Kernel-Version", "/status/nodeInfo/kernelVersion")),
    wide(path("Container-Runtime", "/status/nodeInfo/containerRuntimeVersion")),
];
pub(super) const PODS: [Column; 9] = [
    NAME,
    computed("Ready", pod_ready),
    computed("Status", pod_status),
    computed("Restarts", pod_restarts),
    AGE,
    wide(computed("IP", |o, _| or_none(text(o, "/status/podIP")))),
    wide(computed("Node", |o, _| or_none(text(o, "/spec/nodeName")))),
    wide(computed("Nominated Node", |o, _| or_none(text(o, "/status/nominatedNodeName")))),
    wide(computed("Readiness Gates", pod_gates)),
];
pub(super) const SERVICES: [Column; 7] = [
    NAME,
    path("Type", "/spec/type"),
    computed("Cluster-IP", |o, _| or_none(text(o, "/spec/clusterIP"))),
    computed("External-IP", service_external),
    computed("Port(s)", service_ports),
    AGE,
    wide(computed("Selector", |o, _| selector_text(o.pointer("/spec/selector")).into())),
];
pub(super) const REPLICASETS: [Column; 8] = [
    NAME,
    number("Desired", "/spec/replicas"),
    number("Current", "/status/replicas"),
    number("Ready", "/status/readyReplicas"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const REPLICATIONCONTROLLERS: [Column; 8] = REPLICASETS;
pub(super) const DEPLOYMENTS: [Column; 8] = [
    NAME,
    computed("Ready", |o, _| ratio(o, "/status/readyReplicas", "/spec/replicas")),
    count("Up-to-date", |o, _| integer(o, "/status/updatedReplicas").unwrap_or(0).into()),
    count("Available", |o, _| integer(o, "/status/availableReplicas").unwrap_or(0).into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const STATEFULSETS: [Column; 5] = [
    NAME,
    computed("Ready", |o, _| ratio(o, "/status/readyReplicas", "/spec/replicas")),
    AGE,
    CONTAINERS,
    IMAGES,
];
pub(super) const DAEMONSETS: [Column; 11] = [
    NAME,
    number("Desired", "/status/desiredNumberScheduled"),
    number("Current", "/status/currentNumberScheduled"),
    number("Ready", "/status/numberReady"),
    number("Up-to-date", "/status/updatedNumberScheduled"),
    number("Available", "/status/numberAvailable"),
    computed("Node Selector", |o, _| selector_text(o.pointer("/spec/template/spec/nodeSelector")).into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const JOBS: [Column; 8] = [
    NAME,
    computed("Status", job_status),
    computed("Completions", job_completions),
    computed("Duration", job_duration),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const CRONJOBS: [Column; 10] = [
    NAME,
    path("Schedule", "/spec/schedule"),
    computed("Timezone", |o, _| or_none(text(o, "/spec/timeZone"))),
    computed("Suspend", |o, _| if truth(o, "/spec/suspend") { "True" } else { "False" }.into()),
    count("Active", |o, _| list(o, "/status/active").len().into()),
    computed("Last Schedule", |o, now| match text(o, "/status/lastScheduleTime") {
        "" => "<none>".into(),
        time => age(time, now).into(),
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    wide(computed("Selector", |_, _| "<none>".into())),
];
pub(super) const INGRESSES: [Column; 6] = [
    NAME,
    computed("Class", |o, _| or_none(text(o, "/spec/ingressClassName"))),
    computed("Hosts", ingress_hosts),
    computed("Address", ingress_address),
    computed("Ports", |o, _| if list(o, "/spec/tls").is_empty() { "80" } else { "80, 443" }.into()),
    AGE,
];
pub(super) const INGRESSCLASSES: [Column; 4] = [
    NAME,
    path("Controller", "/spec/controller"),
    computed("Parameters", |o, _| or_none(text(o, "/spec/parameters/name"))),
    AGE,
];
pub(super) const NETWORKPOLICIES: [Column; 3] =
    [NAME, computed("Pod-Selector", |o, _| selector_text(o.pointer("/spec/podSelector")).into()), AGE];
pub(super) const PODDISRUPTIONBUDGETS: [Column; 5] = [
    NAME,
    computed("Min Available", |o, _| int_or_na(o.pointer("/spec/minAvailable"))),
    computed("Max Unavailable", |o, _| int_or_na(o.pointer("/spec/maxUnavailable"))),
    number("Allowed Disruptions", "/status/disruptionsAllowed"),
    AGE,
];
fn int_or_na(value: Option<&Value>) -> Value {
    match value {
        Some(Value::String(s)) => s.clone().into(),
        Some(other) => other.to_string().into(),
        None => "N/A".into(),
    }
}
pub(super) const STORAGECLASSES: [Column; 6] = [
    Column { cell: Cell::Fn(storage_class_name), ..NAME },
    path("Provisioner", "/provisioner"),
    path("ReclaimPolicy", "/reclaimPolicy"),
    path("VolumeBindingMode", "/volumeBindingMode"),
    Column {
        name: "AllowVolumeExpansion",
        kind: "string",
        format: "",
        priority: 0,
        cell: Cell::Fn(|o, _| truth(o, "/allowVolumeExpansion").into()),
    },
    AGE,
];
fn storage_class_name(class: &Value, _: Timestamp) -> Value {
    let is_default = map(class, "/metadata/annotations")
        .is_some_and(|a| a.get("storageclass.kubernetes.io/is-default-class").is_some_and(|v| v == "true"));
    let name = text(class, "/metadata/name");
    if is_default { format!("{name} (default)").into() } else { name.into() }
}
pub(super) const PERSISTENTVOLUMES: [Column; 11] = [
    NAME,
    path("Capacity", "/spec/capacity/storage"),
    computed("Access Modes", |o, _| access_modes(list(o, "/spec/accessModes"))),
    path("Reclaim Policy", "/spec/persistentVolumeReclaimPolicy"),
    computed("Status", |o, _| terminating_or(o, text(o, "/status/phase"))),
    computed("Claim", |o, _| match text(o, "/spec/claimRef/name") {
        "" => "".into(),
        name => format!("{}/{name}", text(o, "/spec/claimRef/namespace")).into(),
    }),
    path("StorageClass", "/spec/storageClassName"),
    computed("VolumeAttributesClass", |o, _| unset(text(o, "/spec/volumeAttributesClassName"))),
    path("Reason", "/status/reason"),
    AGE,
    wide(path("VolumeMode", "/spec/volumeMode")),
];
fn unset(value: &str) -> Value {
    if value.is_empty() { "<unset>".into() } else { value.into() }
}
pub(super) const PERSISTENTVOLUMECLAIMS: [Column; 9] = [
    NAME,
    computed("Status", |o, _| terminating_or(o, text(o, "/status/phase"))),
    path("Volume", "/spec/volumeName"),
    path("Capacity", "/status/capacity/storage"),
    computed("Access Modes", |o, _| access_modes(list(o, "/status/accessModes"))),
    computed("StorageClass", |o, _| {
        let class = text(o, "/spec/storageClassName");
        if !class.is_empty() {
            return class.into();
        }
        let annotations = map(o, "/metadata/annotations");
        annotations
            .and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"))
            .cloned()
            .unwrap_or_else(|| "".into())
    }),
    computed("VolumeAttributesClass", |o, _| unset(text(o, "/spec/volumeAttributesClassName"))),
    AGE,
    wide(path("VolumeMode", "/spec/volumeMode")),
];
pub(super) const HORIZONTALPODAUTOSCALERS: [Column; 7] = [
    NAME,
    computed("Reference", hpa_reference),
    computed("Targets", hpa_targets),
    computed("MinPods", |o, _| {
        integer(o, "/spec/minReplicas").map_or("<unset>".into(), |n| n.to_string()).into()
    }),
    number("MaxPods", "/spec/maxReplicas"),
    number("Replicas", "/status/currentReplicas"),
    AGE,
];
pub(super) const PRIORITYCLASSES: [Column; 5] = [
    NAME,
    number("Value", "/value"),
    computed("Global-Default", |o, _| truth(o, "/globalDefault").into()),
    AGE,
    path("PreemptionPolicy", "/preemptionPolicy"),
];
pub(super) const ENDPOINTSLICES: [Column; 5] = [
    NAME,
    path("AddressType", "/addressType"),
    computed("Ports", slice_ports),
    computed("Endpoints", slice_endpoints),
    AGE,
];
pub(super) const APISERVICES: [Column; 4] = [
    NAME,
    computed("Service", |o, _| match text(o, "/spec/service/name") {
        "" => "Local".into(),
        name => format!("{}/{name}", text(o, "/spec/service/namespace")).into(),
    }),
    computed("Available", |o, _| condition(o, "Available").map_or("Unknown", |c| text(c, "/status")).into()),
    AGE,
];
pub(super) const CERTIFICATESIGNINGREQUESTS: [Column; 6] = [
    NAME,
    AGE,
    path("SignerName", "/spec/signerName"),
    path("Requestor", "/spec/username"),
    computed("RequestedDuration", |o, _| {
        integer(o, "/spec/expirationSeconds").map_or("<none>".into(), human_duration).into()
    }),
    computed("Condition", |o, _| {
        let held: Vec<String> =
            list(o, "/status/conditions").iter().map(|c| text(c, "/type").to_owned()).collect();
        let issued = !text(o, "/status/certificate").is_empty();
        joined(held.into_iter().chain(issued.then(|| "Issued".to_owned())), "Pending")
    }),
];

/// The header and cells of a custom resource without columns of its own.
#[must_use]
pub fn custom_default() -> CustomColumn {
    CustomColumn {
        name: "Age".into(),
        kind: "date".into(),
        format: String::new(),
        description: String::new(),
        priority: 0,
        path: ".metadata.creationTimestamp".into(),
    }
}

/// The whole row of an object, as JSON cells.
#[must_use]
pub fn cells(columns: &super::Columns, object: &Value, now: Timestamp) -> Vec<Value> {
    match columns {
        super::Columns::Static(columns) => columns.iter().map(|c| c.value(object, now)).collect(),
        super::Columns::Custom(columns) => {
            std::iter::once(object.pointer("/metadata/name").cloned().unwrap_or_default())
                .chain(columns.iter().map(|c| c.value(object, now)))
                .collect()
        }
    }
}

/// The headings, as `columnDefinitions`.
#[must_use]
pub fn definitions(columns: &super::Columns) -> Value {
    let one = |name: &str, kind: &str, format: &str, description: &str, priority: i32| json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority});
    let name = || one("Name", "string", "name", "Name must be unique within a namespace.", 0);
    match columns {
        super::Columns::Static(columns) => {
            columns.iter().map(|c| one(c.name, c.kind, c.format, "", c.priority)).collect()
        }
        super::Columns::Custom(columns) => std::iter::once(name())
            .chain(columns.iter().map(|c| one(&c.name, &c.kind, &c.format, &c.description, c.priority)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_at_most_two_units() {
        for (seconds, want) in [
            (5, "5s"),
            (119, "119s"),
            (125, "2m5s"),
            (600, "10m"),
            (10_900, "3h1m"),
            (90_000, "25h"),
            (180_000, "2d2h"),
            (900_000, "10d"),
        ] {
            assert_eq!(human_duration(seconds), want);
        }
    }

    #[test]
    fn a_crashing_pod_says_so() {
        let pod = json!({"spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running", "containerStatuses": [
            {"name": "c", "restartCount": 3, "ready": false, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}});
        assert_eq!(pod_status(&pod, Timestamp::UNIX_EPOCH), "CrashLoopBackOff");
        assert_eq!(pod_ready(&pod, Timestamp::UNIX_EPOCH), "0/1");
        assert_eq!(pod_restarts(&pod, Timestamp::UNIX_EPOCH), "3");
    }

    #[test]
    fn simple_paths() {
        let object = json!({"a": {"b.c": [1, {"type": "Ready", "status": "True"}]}});
        assert_eq!(simple_path(&object, ".a['b.c'][0]"), Some(&json!(1)));
        assert_eq!(simple_path(&object, ".a.b\\.c[?(@.type==\"Ready\")].status"), Some(&json!("True")));
        assert_eq!(simple_path(&object, ".a.x"), None);
        assert_eq!(simple_path(&object, "nonsense"), None);
    }
}
