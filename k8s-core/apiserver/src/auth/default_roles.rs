//! Upstream's default roles and bindings, as data.

use serde_json::Value;

use super::rbac::Rule;
use crate::value::{array_at, str_at};

/// One JSON object per line: `kind` (in lower case), `namespace`, `name`, and the object's other fields.
const LINES: &str = include_str!("../../data/bootstrap-rbac.jsonl");

/// Returns the lines of the data.
pub(crate) fn entries() -> impl Iterator<Item = Value> {
    LINES.lines().filter_map(|line| serde_json::from_str(line).ok())
}

/// Returns the rules of a default ClusterRole.
pub(crate) fn rules_of(cluster_role: &str) -> Vec<Rule> {
    let found = entries().find(|e| str_at(e, "/kind") == "clusterrole" && str_at(e, "/name") == cluster_role);
    found.iter().flat_map(|role| array_at(role, "/rules")).map(Rule::from_json).collect()
}
