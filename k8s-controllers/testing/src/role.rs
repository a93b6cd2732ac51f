//! The smallest RBAC role that suffices for a run.
//!
//! A watch counts as a list, too: a cache lists if its server does not stream the initial state, and that may
//! depend on chance.

use std::collections::{BTreeMap, BTreeSet};

use k8s_apiserver::request::RequestInfo;
use k8s_core::api::{
    api::rbac::v1::{ClusterRole, PolicyRule, Role},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

/// Describes a request that a program's role does not allow, with the rule that it lacks.
pub(crate) fn missing(program: &str, info: &RequestInfo) -> String {
    let mut recorded = Recorded::default();
    recorded.note_only(info);
    let rules = serde_saphyr::to_string(&recorded.role(program, false).rules).unwrap_or_default();
    let place = match info.namespace.as_str() {
        "" => "at the scope of the cluster".to_owned(),
        namespace => format!("in namespace {namespace}"),
    };
    format!("the role of {program} does not allow {} {} {place}; it lacks\n{rules}", info.verb, info.path)
}

/// A rule with more names than this applies to all names.
const FEW: usize = 3;

/// By verb: the names of the objects; empty for requests without a name.
type Verbs = BTreeMap<String, BTreeSet<String>>;

/// The permissions that a program used.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded {
    /// Verbs by group and resource (with its subresource).
    resources: BTreeMap<(String, String), Verbs>,
    paths: BTreeSet<String>,
    /// A request was cluster-scoped.
    cluster: bool,
    namespaces: BTreeSet<String>,
}

impl Recorded {
    /// Notes a request, and that a watch may become a list.
    pub(crate) fn note(&mut self, info: &RequestInfo) {
        self.note_only(info);
        if info.is_resource && info.verb == "watch" {
            self.note_only(&RequestInfo { verb: "list".into(), ..info.clone() });
        }
    }

    fn note_only(&mut self, info: &RequestInfo) {
        if !info.is_resource {
            self.paths.insert(info.path.clone());
            return;
        }
        if info.namespace.is_empty() {
            self.cluster = true;
        } else {
            self.namespaces.insert(info.namespace.clone());
        }
        let resource = match info.subresource.as_str() {
            "" => info.resource.clone(),
            sub => format!("{}/{sub}", info.resource),
        };
        let names = self.resources.entry((info.group.clone(), resource)).or_default();
        names.entry(info.verb.clone()).or_default().insert(info.name.clone());
    }

    pub(crate) fn merge(&mut self, other: &Recorded) {
        for (resource, verbs) in &other.resources {
            let mine = self.resources.entry(resource.clone()).or_default();
            for (verb, names) in verbs {
                mine.entry(verb.clone()).or_default().extend(names.iter().cloned());
            }
        }
        self.paths.extend(other.paths.iter().cloned());
        self.cluster |= other.cluster;
        self.namespaces.extend(other.namespaces.iter().cloned());
    }

    /// Builds the role. `named`: rules with at most [`FEW`] names are restricted to them (`resourceNames`).
    pub(crate) fn role(&self, name: &str, named: bool) -> NeededRole {
        // Merges verbs with the same names into one rule, and resources of a group with the same verbs.
        let mut rules: BTreeMap<(String, Vec<String>, Vec<String>), Vec<String>> = BTreeMap::new();
        for ((group, resource), verbs) in &self.resources {
            let mut by_names: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
            for (verb, names) in verbs {
                let whole = names.contains("") || names.len() > FEW || !named;
                let names = if whole { Vec::new() } else { names.iter().cloned().collect() };
                by_names.entry(names).or_default().push(verb.clone());
            }
            for (names, verbs) in by_names {
                rules.entry((group.clone(), verbs, names)).or_default().push(resource.clone());
            }
        }
        let mut rules: Vec<PolicyRule> = rules
            .into_iter()
            .map(|((group, verbs, names), resources)| PolicyRule {
                api_groups: Some(vec![group]),
                resources: Some(resources),
                resource_names: Some(names).filter(|n| !n.is_empty()),
                verbs,
                ..PolicyRule::default()
            })
            .collect();
        if !self.paths.is_empty() {
            rules.push(PolicyRule {
                non_resource_urls: Some(self.paths.iter().cloned().collect()),
                verbs: vec!["get".into()],
                ..PolicyRule::default()
            });
        }
        let one = self.namespaces.iter().next().filter(|_| self.namespaces.len() == 1);
        let namespace = one.filter(|_| !self.cluster && self.paths.is_empty()).cloned();
        NeededRole { name: name.to_owned(), namespace, rules }
    }
}

/// The smallest role that permits all requests of a run: a Role if all were in one namespace, otherwise a
/// ClusterRole. `to_string()` writes it as YAML.
#[derive(Clone, Debug, PartialEq)]
pub struct NeededRole {
    name: String,
    namespace: Option<String>,
    /// Rules of the role.
    pub rules: Vec<PolicyRule>,
}

impl NeededRole {
    /// Returns the Role or ClusterRole object.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let metadata = ObjectMeta {
            name: Some(self.name.clone()),
            namespace: self.namespace.clone(),
            ..ObjectMeta::default()
        };
        let rules = Some(self.rules.clone());
        let object = match self.namespace {
            Some(_) => serde_json::to_value(Role { metadata, rules }),
            None => serde_json::to_value(ClusterRole { metadata, rules, aggregation_rule: None }),
        };
        object.unwrap_or_else(|e| json!({"error": e.to_string()}))
    }
}

impl Serialize for NeededRole {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl std::fmt::Display for NeededRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = serde_saphyr::to_string(&self.to_value()).map_err(|_| std::fmt::Error)?;
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use k8s_apiserver::request::Query;

    use super::*;

    fn note(recorded: &mut Recorded, method: Method, path: &str) {
        recorded.note(&RequestInfo::parse(&method, path, &Query::default()));
    }

    #[test]
    fn rules_are_as_narrow_as_what_was_used() {
        let mut recorded = Recorded::default();
        note(&mut recorded, Method::GET, "/api/v1/namespaces/shop/configmaps/a");
        note(&mut recorded, Method::POST, "/api/v1/namespaces/shop/secrets");
        note(&mut recorded, Method::POST, "/api/v1/namespaces/shop/configmaps");
        note(&mut recorded, Method::PUT, "/apis/apps/v1/namespaces/shop/deployments/a/status");
        let role = recorded.role("r", true);
        assert_eq!(role.to_value()["kind"], "Role");
        assert_eq!(
            role.to_value()["rules"],
            json!([
                {"apiGroups": [""], "resources": ["configmaps", "secrets"], "verbs": ["create"]},
                {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a"], "verbs": ["get"]},
                {"apiGroups": ["apps"], "resources": ["deployments/status"], "resourceNames": ["a"], "verbs": ["update"]},
            ])
        );
        note(&mut recorded, Method::GET, "/api/v1/pods");
        assert_eq!(recorded.role("r", false).to_value()["kind"], "ClusterRole");
        assert!(recorded.role("r", false).rules.iter().all(|r| r.resource_names.is_none()));
        assert!(recorded.role("r", false).to_string().contains("deployments/status"));
    }
}
