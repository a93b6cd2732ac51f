//! Name conflicts of CustomResourceDefinitions, and their status.
//!
//! A name belongs to the first definition that has it, or to a built-in resource of the group. Kinds and list
//! kinds are one set of names; plural, singular and short names are another.

use std::sync::Arc;

use std::collections::HashSet;

use serde_json::{Value, json};

use super::DEFINITIONS;
use crate::{
    resources::strategy::extensions::non_structural,
    state::State,
    value::{list, set, text, truth},
};

/// Names used by others in a group.
#[derive(Default)]
struct Taken {
    resources: HashSet<String>,
    kinds: HashSet<String>,
}

impl Taken {
    fn add(&mut self, names: &Value) {
        for field in ["plural", "singular"] {
            self.resources.insert(text(names, &format!("/{field}")).to_owned());
        }
        self.resources.extend(short_names(names));
        for field in ["kind", "listKind"] {
            self.kinds.insert(text(names, &format!("/{field}")).to_owned());
        }
    }
}

fn short_names(names: &Value) -> impl Iterator<Item = String> {
    list(names, "/shortNames").iter().filter_map(Value::as_str).map(str::to_owned)
}

/// A name that is taken.
pub(super) struct Conflict {
    /// Reason of the condition: `PluralConflict` and so on.
    reason: &'static str,
    message: String,
}

/// The names of a definition that others have.
pub(super) fn conflicts(state: &Arc<State>, crd: &Value) -> Vec<Conflict> {
    let (group, own) = (text(crd, "/spec/group"), text(crd, "/metadata/name"));
    let mut taken = Taken::default();
    let registry = state.registry.now();
    for resource in registry.all().filter(|r| r.group == group && !r.custom) {
        taken.resources.extend([resource.plural.clone(), resource.singular.clone()]);
        taken.resources.extend(resource.short_names.iter().cloned());
        taken.kinds.extend([resource.kind.clone(), resource.list_kind.clone()]);
    }
    for stored in state.store.snapshot(DEFINITIONS).range("", "").filter(|s| &*s.key != own) {
        let Ok(other) = serde_json::from_slice::<Value>(&stored.json) else { continue };
        if text(&other, "/spec/group") == group {
            taken.add(other.pointer("/status/acceptedNames").unwrap_or(&Value::Null));
        }
    }
    let names = crd.pointer("/spec/names").cloned().unwrap_or_default();
    let already = |name: &str| format!("\"{name}\" is already in use");
    let mut found = Vec::new();
    let mut check = |field: &str, reason, all: &HashSet<String>| {
        let name = text(&names, &format!("/{field}"));
        if !name.is_empty() && all.contains(name) {
            found.push(Conflict { reason, message: already(name) });
        }
    };
    check("plural", "PluralConflict", &taken.resources);
    check("singular", "SingularConflict", &taken.resources);
    check("kind", "KindConflict", &taken.kinds);
    check("listKind", "ListKindConflict", &taken.kinds);
    let short: Vec<String> = short_names(&names)
        .filter(|name| taken.resources.contains(name))
        .map(|name| already(&name))
        .collect();
    if !short.is_empty() {
        found.push(Conflict { reason: "ShortNamesConflict", message: short.join(", ") });
    }
    found
}

/// Returns the status of a definition with these conflicts.
pub(super) fn status(crd: &Value, conflicts: &[Conflict], now: &str) -> Value {
    let accepted = if conflicts.is_empty() {
        condition(crd, "NamesAccepted", true, "NoConflicts", "no conflicts found", now)
    } else {
        // The condition has room for one conflict; as upstream, the last.
        let (reason, message) = conflicts.last().map_or(("", ""), |c| (c.reason, c.message.as_str()));
        condition(crd, "NamesAccepted", false, reason, message, now)
    };
    let was = condition_of(crd, "Established").is_some_and(|c| text(c, "/status") == "True");
    let established = if conflicts.is_empty() || was {
        condition(
            crd,
            "Established",
            true,
            "InitialNamesAccepted",
            "the initial names have been accepted",
            now,
        )
    } else {
        condition(crd, "Established", false, "NotAccepted", "not all names are accepted", now)
    };
    let stored =
        list(crd, "/spec/versions").iter().find(|v| truth(v, "/storage")).map_or("", |v| text(v, "/name"));
    let mut versions = list(crd, "/status/storedVersions").to_vec();
    if !versions.iter().any(|v| v == stored) {
        versions.push(stored.into());
    }
    let names = if conflicts.is_empty() {
        crd.pointer("/spec/names").cloned().unwrap_or_default()
    } else {
        crd.pointer("/status/acceptedNames").cloned().unwrap_or_else(|| json!({"plural": "", "kind": ""}))
    };
    let mut conditions = vec![accepted, established];
    if let Some(violations) = non_structural(crd) {
        conditions.push(condition(crd, "NonStructuralSchema", true, "Violations", &violations, now));
    }
    json!({"conditions": conditions, "acceptedNames": names, "storedVersions": versions})
}

/// Returns true if the status says that objects are served.
pub(super) fn is_established(status: &Value) -> bool {
    list(status, "/conditions")
        .iter()
        .any(|c| text(c, "/type") == "Established" && text(c, "/status") == "True")
}

/// Returns the definition with its accepted names.
pub(super) fn accepted(crd: &Value, status: &Value) -> Value {
    let mut accepted = crd.clone();
    if let Some(names) = status.get("acceptedNames") {
        set(&mut accepted, "/spec/names", names.clone());
    }
    accepted
}

/// Sets the Terminating condition.
pub(super) fn terminating(crd: &mut Value, waits: bool, now: &str) {
    let (going, reason, message) = if waits {
        (true, "InstanceDeletionInProgress", "CustomResource deletion is in progress")
    } else {
        (false, "InstanceDeletionCompleted", "removed all instances")
    };
    let new = condition(crd, "Terminating", going, reason, message, now);
    let mut all: Vec<Value> = list(crd, "/status/conditions")
        .iter()
        .filter(|c| text(c, "/type") != "Terminating")
        .cloned()
        .collect();
    all.push(new);
    set(crd, "/status/conditions", all.into());
}

fn condition_of<'a>(crd: &'a Value, kind: &str) -> Option<&'a Value> {
    list(crd, "/status/conditions").iter().find(|c| text(c, "/type") == kind)
}

fn condition(crd: &Value, kind: &str, holds: bool, reason: &str, message: &str, now: &str) -> Value {
    let status = if holds { "True" } else { "False" };
    let before = condition_of(crd, kind).filter(|c| text(c, "/status") == status);
    let since = before.map_or(now, |c| text(c, "/lastTransitionTime"));
    json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
}
