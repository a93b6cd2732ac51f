//! Scopes: the pods and claims that a quota is about.

use std::fmt;

use serde_json::Value;

use crate::pod;

/// A term of a quota's scopes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    scope: String,
    operator: String,
    values: Vec<String>,
}

/// Reads `scopes` and `scopeSelector` of a quota's spec.
pub(crate) fn of_spec(spec: &Value) -> Vec<Selector> {
    let scopes = spec.get("scopes").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let plain = scopes.map(|scope| Selector {
        scope: scope.to_owned(),
        operator: "Exists".to_owned(),
        values: Vec::new(),
    });
    let terms =
        spec.pointer("/scopeSelector/matchExpressions").and_then(Value::as_array).into_iter().flatten();
    plain.chain(terms.map(Selector::of)).collect()
}

impl Selector {
    /// Reads a term: `{scopeName, operator, values}`.
    #[must_use]
    pub fn of(term: &Value) -> Self {
        let text = |field: &str| term.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let values = term.get("values").and_then(Value::as_array).into_iter().flatten();
        Selector {
            scope: text("scopeName"),
            operator: text("operator"),
            values: values.filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }

    /// Returns the name of the scope, such as `PriorityClass`.
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// Returns true if an object is in the scope. Only pods and claims are in any.
    #[must_use]
    pub fn selects(&self, resource: &str, object: &Value) -> bool {
        match (resource, self.scope.as_str()) {
            ("pods", "Terminating") => pod::has_deadline(object),
            ("pods", "NotTerminating") => !pod::has_deadline(object),
            ("pods", "BestEffort") => pod::is_best_effort(object),
            ("pods", "NotBestEffort") => !pod::is_best_effort(object),
            ("pods", "PriorityClass") => {
                self.has(&text(object, "/spec/priorityClassName").into_iter().collect::<Vec<_>>())
            }
            ("pods", "CrossNamespacePodAffinity") => pod::has_far_affinity(object),
            ("persistentvolumeclaims", "VolumeAttributesClass") => {
                let places = [
                    "/spec/volumeAttributesClassName",
                    "/status/currentVolumeAttributesClassName",
                    "/status/modifyVolumeStatus/targetVolumeAttributesClassName",
                ];
                self.has(&places.iter().filter_map(|place| text(object, place)).collect::<Vec<_>>())
            }
            _ => false,
        }
    }

    /// Returns true if one of the names fits the operator; without names, if their absence does.
    fn has(&self, names: &[&str]) -> bool {
        let among = |name: &&str| self.values.iter().any(|value| value == *name);
        match self.operator.as_str() {
            "Exists" => !names.is_empty(),
            "DoesNotExist" => names.is_empty(),
            "In" => names.iter().any(among),
            "NotIn" => names.is_empty() || names.iter().any(|name| !among(name)),
            _ => false,
        }
    }
}

/// `{PriorityClass In [high low]}`, as messages about quotas have it.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{} {} [{}]}}", self.scope, self.operator, self.values.join(" "))
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}
