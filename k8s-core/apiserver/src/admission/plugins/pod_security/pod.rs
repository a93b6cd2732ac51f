//! View of a pod for the controls, and the offenders that a control finds in it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::value::{array_at, at, str_at};

/// Metadata and spec of a pod or of a pod template.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pod<'a> {
    pub(super) metadata: &'a Value,
    pub(super) spec: &'a Value,
}

impl<'a> Pod<'a> {
    /// Returns the parts of a pod or pod template. `None`: it has no spec.
    pub(super) fn of(object: &'a Value) -> Option<Self> {
        static NONE: Value = Value::Null;
        Some(Pod { metadata: object.get("metadata").unwrap_or(&NONE), spec: object.get("spec")? })
    }

    /// Iterates over init, regular and ephemeral containers, in upstream's order of messages.
    pub(super) fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let spec = self.spec;
        ["/initContainers", "/containers", "/ephemeralContainers"]
            .into_iter()
            .flat_map(move |field| array_at(spec, field))
    }

    pub(super) fn annotations(&self) -> Option<&'a Map<String, Value>> {
        self.metadata.get("annotations")?.as_object()
    }

    pub(super) fn volumes(&self) -> &'a [Value] {
        array_at(self.spec, "/volumes")
    }

    pub(super) fn is_windows(&self) -> bool {
        str_at(self.spec, "/os/name") == "windows"
    }

    /// Returns true for a pod in a user namespace of its own.
    pub(super) fn has_user_namespace(&self) -> bool {
        self.spec.get("hostUsers") == Some(&Value::Bool(false))
    }
}

/// Returns a field below `securityContext` of a pod spec or container. Null counts as absent.
pub(super) fn security<'a>(of: &'a Value, pointer: &str) -> Option<&'a Value> {
    at(of.get("securityContext")?, pointer).filter(|value| !value.is_null())
}

/// The pod and the containers that break a control, and the forbidden values that they have.
#[derive(Debug, Default)]
pub(super) struct Offenders<'a> {
    pub(super) pod: bool,
    pub(super) containers: Vec<&'a str>,
    pub(super) values: BTreeSet<String>,
}

impl<'a> Offenders<'a> {
    /// Collects the containers for which `breaks` returns true; it adds the forbidden values.
    pub(super) fn in_containers(
        pod: &Pod<'a>,
        mut breaks: impl FnMut(&'a Value, &mut BTreeSet<String>) -> bool,
    ) -> Self {
        let mut found = Offenders::default();
        for container in pod.containers() {
            if breaks(container, &mut found.values) {
                found.containers.push(str_at(container, "/name"));
            }
        }
        found
    }

    /// Collects the security contexts, the pod's own included, in which the field at `pointer` is set to a
    /// value that `breaks` the control.
    pub(super) fn in_contexts(
        pod: &Pod<'a>,
        pointer: &str,
        mut breaks: impl FnMut(&Value, &mut BTreeSet<String>) -> bool,
    ) -> Self {
        let mut values = BTreeSet::new();
        let of_pod = security(pod.spec, pointer).is_some_and(|value| breaks(value, &mut values));
        let mut found = Self::in_containers(pod, |container, values| {
            security(container, pointer).is_some_and(|value| breaks(value, values))
        });
        found.pod = of_pod;
        found.values.append(&mut values);
        found
    }

    /// Returns the offenders as messages name them, such as `pod and container "a"`. `None`: nobody.
    pub(super) fn names(&self) -> Option<String> {
        let mut parts = Vec::new();
        if self.pod {
            parts.push("pod".to_owned());
        }
        if !self.containers.is_empty() {
            parts.push(self.container_names());
        }
        (!parts.is_empty()).then(|| parts.join(" and "))
    }

    /// Returns `container "a"` or `containers "a", "b"`.
    pub(super) fn container_names(&self) -> String {
        format!("{} {}", count("container", self.containers.len()), quote_all(&self.containers))
    }

    pub(super) fn quoted_values(&self) -> String {
        quote_all(&self.values)
    }
}

/// Returns a noun, with a plural s unless there is one of it.
pub(super) fn count(noun: &str, number: usize) -> String {
    format!("{noun}{}", if number == 1 { "" } else { "s" })
}

/// Returns names in quotes, separated by commas. Quotes inside are kept as they are, as upstream does.
pub(super) fn quote_all<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("\"{}\"", name.as_ref())).collect();
    quoted.join(", ")
}
