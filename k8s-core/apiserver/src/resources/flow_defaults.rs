//! Upstream's default flow schemas and priority levels, as data.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::value::str_at;

/// One JSON object per line: `kind`, `name`, `spec` with all defaults.
const LINES: &str = include_str!("../../data/bootstrap-flow.jsonl");

/// Names of the resources in the store.
pub(crate) const SCHEMAS: &str = "flowschemas.flowcontrol.apiserver.k8s.io";
pub(crate) const LEVELS: &str = "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io";
/// The group and version of both.
pub(crate) const API: (&str, &str) = ("flowcontrol.apiserver.k8s.io", "v1");

/// Annotation of an object whose spec follows the defaults; `false` keeps what an administrator wrote.
pub(crate) const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// A default object.
#[derive(Clone, Debug)]
pub(crate) struct FlowDefault {
    /// Name of its resource in the store.
    pub(crate) resource: &'static str,
    pub(crate) name: String,
    pub(crate) object: Value,
}

impl FlowDefault {
    /// Returns true for the objects without which a request has no level. Their specs are fixed.
    pub(crate) fn is_mandatory(&self) -> bool {
        matches!(&*self.name, "exempt" | "catch-all")
    }

    /// Returns true if an object has the spec of the default one, except for what an administrator may
    /// choose: the shares of exempt requests.
    pub(crate) fn has_spec_of(&self, object: &Value) -> bool {
        let mut wanted = self.object["spec"].clone();
        if let (Some(wanted), Some(exempt)) = (wanted.get_mut("exempt"), object.pointer("/spec/exempt")) {
            *wanted = exempt.clone();
        }
        wanted == object["spec"]
    }
}

/// The default objects, decoded once.
static DEFAULTS: LazyLock<Vec<FlowDefault>> = LazyLock::new(|| LINES.lines().filter_map(decode).collect());

/// Returns the default objects; levels come before the schemas that name them.
pub(crate) fn flow_defaults() -> impl Iterator<Item = &'static FlowDefault> {
    DEFAULTS.iter()
}

fn decode(line: &str) -> Option<FlowDefault> {
    let mut line: Value = serde_json::from_str(line).ok()?;
    let (kind, name) = (str_at(&line, "/kind").to_owned(), str_at(&line, "/name").to_owned());
    let resource = if kind == "FlowSchema" { SCHEMAS } else { LEVELS };
    let object = json!({
        "apiVersion": format!("{}/{}", API.0, API.1),
        "kind": kind,
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}},
        "spec": line["spec"].take(),
    });
    Some(FlowDefault { resource, name, object })
}

/// Returns the mandatory object of a resource and name, if there is one.
pub(crate) fn mandatory_flow(resource: &str, name: &str) -> Option<&'static FlowDefault> {
    let named = |default: &&FlowDefault| default.resource == resource && default.name == name;
    flow_defaults().find(named).filter(|default| default.is_mandatory())
}
