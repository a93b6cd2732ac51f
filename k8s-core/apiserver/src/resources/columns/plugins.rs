//! Printer columns of extension points: storage, admission, devices, runtimes, flow control.

use super::{
    AGE, Column, NAME,
    cells::{joined, or_none, texts},
    computed, path, typed,
};
use crate::value::{integer, list, map, text, truth};

const fn boolean(name: &'static str, pointer: &'static str) -> Column {
    typed("boolean", path(name, pointer))
}

/// A column with the length of a list.
macro_rules! length {
    ($name:literal, $pointer:literal) => {
        typed("integer", computed($name, |o, _| list(o, $pointer).len().into()))
    };
}

/// A column with a string, or `<none>`.
macro_rules! or_none {
    ($name:literal, $pointer:literal) => {
        computed($name, |o, _| or_none(text(o, $pointer)))
    };
}

pub(in crate::resources) const CSIDRIVERS: [Column; 8] = [
    NAME,
    boolean("AttachRequired", "/spec/attachRequired"),
    boolean("PodInfoOnMount", "/spec/podInfoOnMount"),
    boolean("StorageCapacity", "/spec/storageCapacity"),
    computed("TokenRequests", |o, _| {
        joined(list(o, "/spec/tokenRequests").iter().map(|r| text(r, "/audience").to_owned()), "<unset>")
    }),
    typed("boolean", computed("RequiresRepublish", |o, _| truth(o, "/spec/requiresRepublish").into())),
    computed("Modes", |o, _| joined(texts(list(o, "/spec/volumeLifecycleModes")), "<none>")),
    AGE,
];
pub(in crate::resources) const CSINODES: [Column; 3] = [NAME, length!("Drivers", "/spec/drivers"), AGE];
pub(in crate::resources) const VOLUMEATTACHMENTS: [Column; 6] = [
    NAME,
    Column { format: "name", ..path("Attacher", "/spec/attacher") },
    path("PV", "/spec/source/persistentVolumeName"),
    path("Node", "/spec/nodeName"),
    typed("boolean", computed("Attached", |o, _| truth(o, "/status/attached").into())),
    AGE,
];
pub(in crate::resources) const VOLUMEATTRIBUTESCLASSES: [Column; 3] =
    [NAME, path("DriverName", "/driverName"), AGE];
pub(in crate::resources) const MUTATINGADMISSIONPOLICIES: [Column; 4] =
    [NAME, length!("Mutations", "/spec/mutations"), computed("ParamKind", |o, _| param_kind(o)), AGE];
pub(in crate::resources) const VALIDATINGADMISSIONPOLICIES: [Column; 4] =
    [NAME, length!("Validations", "/spec/validations"), computed("ParamKind", |o, _| param_kind(o)), AGE];
pub(in crate::resources) const ADMISSIONPOLICYBINDINGS: [Column; 4] =
    [NAME, path("PolicyName", "/spec/policyName"), computed("ParamRef", |o, _| param_ref(o)), AGE];
pub(in crate::resources) const WEBHOOKCONFIGURATIONS: [Column; 3] =
    [NAME, length!("Webhooks", "/webhooks"), AGE];
pub(in crate::resources) const RUNTIMECLASSES: [Column; 3] = [NAME, path("Handler", "/handler"), AGE];
pub(in crate::resources) const NAME_AND_AGE: [Column; 2] = [NAME, AGE];
pub(in crate::resources) const RESOURCECLAIMS: [Column; 3] =
    [NAME, computed("State", |o, _| claim_state(o)), AGE];
pub(in crate::resources) const RESOURCESLICES: [Column; 5] = [
    NAME,
    path("Node", "/spec/nodeName"),
    path("Driver", "/spec/driver"),
    path("Pool", "/spec/pool/name"),
    AGE,
];
pub(in crate::resources) const FLOWSCHEMAS: [Column; 6] = [
    NAME,
    or_none!("PriorityLevel", "/spec/priorityLevelConfiguration/name"),
    computed("MatchingPrecedence", |o, _| integer(o, "/spec/matchingPrecedence").unwrap_or(0).into()),
    or_none!("DistinguisherMethod", "/spec/distinguisherMethod/type"),
    AGE,
    computed("MissingPL", |o, _| {
        let conditions = list(o, "/status/conditions");
        conditions.iter().find(|c| text(c, "/type") == "Dangling").map_or("?", |c| text(c, "/status")).into()
    }),
];
pub(in crate::resources) const PRIORITYLEVELCONFIGURATIONS: [Column; 7] = [
    NAME,
    path("Type", "/spec/type"),
    computed("NominalConcurrencyShares", |o, _| {
        let shares = integer(o, "/spec/limited/nominalConcurrencyShares");
        shares
            .or_else(|| integer(o, "/spec/exempt/nominalConcurrencyShares"))
            .map_or("<none>".into(), Into::into)
    }),
    computed("Queues", |o, _| queuing(o, "queues")),
    computed("HandSize", |o, _| queuing(o, "handSize")),
    computed("QueueLengthLimit", |o, _| queuing(o, "queueLengthLimit")),
    AGE,
];

use serde_json::Value;

fn param_kind(policy: &Value) -> Value {
    match map(policy, "/spec/paramKind") {
        Some(_) => {
            format!("{}/{}", text(policy, "/spec/paramKind/apiVersion"), text(policy, "/spec/paramKind/kind"))
                .into()
        }
        None => "<unset>".into(),
    }
}

fn param_ref(binding: &Value) -> Value {
    if map(binding, "/spec/paramRef").is_none() {
        return "<unset>".into();
    }
    let (namespace, name) = (text(binding, "/spec/paramRef/namespace"), text(binding, "/spec/paramRef/name"));
    match (namespace, name) {
        (_, "") => "*".into(),
        ("", name) => name.into(),
        (namespace, name) => format!("{namespace}/{name}").into(),
    }
}

fn claim_state(claim: &Value) -> Value {
    let mut states = Vec::new();
    if claim.pointer("/metadata/deletionTimestamp").is_some() {
        states.push("deleted");
    }
    match map(claim, "/status/allocation") {
        None if states.is_empty() => states.push("pending"),
        None => {}
        Some(_) => {
            states.push("allocated");
            if !list(claim, "/status/reservedFor").is_empty() {
                states.push("reserved");
            }
        }
    }
    states.join(",").into()
}

fn queuing(level: &Value, field: &str) -> Value {
    integer(level, &format!("/spec/limited/limitResponse/queuing/{field}"))
        .map_or("<none>".into(), Into::into)
}
