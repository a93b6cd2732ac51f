//! Role-based access control: compiled roles and bindings, recompiled when one of them changes.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
};

use k8s_store::Store;
use serde_json::Value;

pub use crate::request::Attributes;
use crate::{
    user::User,
    value::{array_at, str_at},
};

/// One rule of a role.
///
/// ```
/// use k8s_apiserver::auth::rbac::{Attributes, Rule};
/// let one = |text: &str| vec![text.to_owned()];
/// let rule = Rule { verbs: one("get"), groups: one(""), resources: one("pods"), ..Rule::default() };
/// let get = |resource| Attributes { verb: "get", resource, ..Attributes::default() };
/// assert!(rule.allows(&get("pods")) && !rule.allows(&get("secrets")));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// Verbs (`get`, `list`, `watch`), or `*` for all.
    pub verbs: Vec<String>,
    /// API groups, or `*`.
    pub groups: Vec<String>,
    /// Resources (`pods`, `pods/log`, `*/scale`, `*`).
    pub resources: Vec<String>,
    /// Object names; empty: all.
    pub names: Vec<String>,
    /// Paths that are no resources; may end in `*`.
    pub paths: Vec<String>,
}

fn texts(object: &Value, pointer: &str) -> Vec<String> {
    array_at(object, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|v| v == "*" || v == value)
}

impl Rule {
    fn from_json(rule: &Value) -> Self {
        Rule {
            verbs: texts(rule, "/verbs"),
            groups: texts(rule, "/apiGroups"),
            resources: texts(rule, "/resources"),
            names: texts(rule, "/resourceNames"),
            paths: texts(rule, "/nonResourceURLs"),
        }
    }

    /// Returns true if this rule allows the request.
    #[must_use]
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if !a.path.is_empty() {
            return self.paths.iter().any(|p| {
                p == "*"
                    || p == a.path
                    || p.strip_suffix('*').is_some_and(|prefix| a.path.starts_with(prefix))
            });
        }
        let resource = self.resources.iter().any(|r| {
            r == "*"
                || if a.subresource.is_empty() {
                    r == a.resource
                } else {
                    r.split_once('/').is_some_and(|(base, sub)| {
                        sub == a.subresource && (base == a.resource || base == "*")
                    })
                }
        });
        resource
            && has(&self.groups, a.group)
            && (self.names.is_empty() || self.names.iter().any(|n| n == a.name))
    }
}

#[derive(Debug)]
struct Grant {
    /// Namespace of the binding. Empty: a ClusterRoleBinding, valid everywhere.
    namespace: String,
    rules: Arc<Vec<Rule>>,
}

#[derive(Debug, Default)]
struct Compiled {
    revisions: [u64; 4],
    grants: Vec<Grant>,
    /// The places of a subject's grants.
    of: HashMap<Subject, Vec<usize>>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Subject {
    User(String),
    Group(String),
}

impl Compiled {
    fn grants_of<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a Grant> {
        let groups = user.groups.iter().map(|g| Subject::Group(g.clone()));
        std::iter::once(Subject::User(user.name.clone()))
            .chain(groups)
            .filter_map(|subject| self.of.get(&subject))
            .flatten()
            .filter_map(|at| self.grants.get(*at))
    }
}

const RESOURCES: [&str; 4] = [
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
];

/// Decides by the roles and bindings in a store.
#[derive(Debug, Default)]
pub struct Rbac {
    compiled: RwLock<Arc<Compiled>>,
}

impl Rbac {
    fn compiled(&self, store: &Store) -> Arc<Compiled> {
        let revisions = RESOURCES.map(|r| store.last_change(r));
        let known = self.compiled.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if known.revisions == revisions {
            return known;
        }
        let new = Arc::new(compile(store, revisions));
        *self.compiled.write().unwrap_or_else(std::sync::PoisonError::into_inner) = new.clone();
        new
    }

    /// Returns true if `user` may do it.
    #[must_use]
    pub fn allows(&self, store: &Store, user: &User, a: &Attributes<'_>) -> bool {
        self.has_rule(store, user, a, |_| true)
    }

    /// Returns true if `user` may do it to objects of every name: rules with `resourceNames` do not count.
    pub(crate) fn allows_every_name(&self, store: &Store, user: &User, a: &Attributes<'_>) -> bool {
        self.has_rule(store, user, a, |rule| rule.names.is_empty())
    }

    fn has_rule(
        &self,
        store: &Store,
        user: &User,
        a: &Attributes<'_>,
        counts: impl Fn(&Rule) -> bool,
    ) -> bool {
        if user.groups.iter().any(|g| g == "system:masters") {
            return true;
        }
        let compiled = self.compiled(store);
        compiled.grants_of(user).any(|grant| {
            (grant.namespace.is_empty() || (a.path.is_empty() && grant.namespace == a.namespace))
                && grant.rules.iter().any(|rule| counts(rule) && rule.allows(a))
        })
    }

    /// The rules that `user` has in a namespace.
    #[must_use]
    pub fn rules(&self, store: &Store, user: &User, namespace: &str) -> Vec<Rule> {
        let everything = Rule {
            verbs: vec!["*".into()],
            groups: vec!["*".into()],
            resources: vec!["*".into()],
            names: Vec::new(),
            paths: vec!["*".into()],
        };
        if user.groups.iter().any(|g| g == "system:masters") {
            return vec![everything];
        }
        let compiled = self.compiled(store);
        let mine = compiled.grants_of(user).filter(|g| g.namespace.is_empty() || g.namespace == namespace);
        mine.flat_map(|g| g.rules.iter().cloned()).collect()
    }
}

fn compile(store: &Store, revisions: [u64; 4]) -> Compiled {
    let mut roles: HashMap<(String, String), Arc<Vec<Rule>>> = HashMap::new();
    for (resource, namespaced) in [(RESOURCES[0], false), (RESOURCES[2], true)] {
        for stored in store.snapshot(resource).range("", "") {
            let Ok(role) = serde_json::from_slice::<Value>(&stored.json) else { continue };
            let rules = array_at(&role, "/rules").iter().map(Rule::from_json).collect();
            let namespace = if namespaced { stored.namespace() } else { "" };
            roles.insert((namespace.to_owned(), stored.name().to_owned()), Arc::new(rules));
        }
    }
    let mut grants = Vec::new();
    let mut of: HashMap<Subject, Vec<usize>> = HashMap::new();
    for (resource, namespaced) in [(RESOURCES[1], false), (RESOURCES[3], true)] {
        for stored in store.snapshot(resource).range("", "") {
            let Ok(binding) = serde_json::from_slice::<Value>(&stored.json) else { continue };
            let namespace = if namespaced { stored.namespace() } else { "" };
            let home = if str_at(&binding, "/roleRef/kind") == "ClusterRole" { "" } else { namespace };
            let Some(rules) = roles.get(&(home.to_owned(), str_at(&binding, "/roleRef/name").to_owned()))
            else {
                continue;
            };
            for subject in array_at(&binding, "/subjects") {
                let name = str_at(subject, "/name").to_owned();
                let subject = match str_at(subject, "/kind") {
                    "User" => Subject::User(name),
                    "Group" => Subject::Group(name),
                    "ServiceAccount" => {
                        let at = match str_at(subject, "/namespace") {
                            "" => namespace,
                            at => at,
                        };
                        Subject::User(format!("system:serviceaccount:{at}:{name}"))
                    }
                    _ => continue,
                };
                of.entry(subject).or_default().push(grants.len());
            }
            grants.push(Grant { namespace: namespace.into(), rules: rules.clone() });
        }
    }
    Compiled { revisions, grants, of }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let rule = Rule {
            verbs: vec!["get".into()],
            groups: vec!["".into()],
            resources: vec!["pods".into(), "pods/log".into(), "*/scale".into()],
            names: vec![],
            paths: vec!["/healthz/*".into()],
        };
        let ask = |verb, resource, subresource| {
            rule.allows(&Attributes { verb, resource, subresource, ..Attributes::default() })
        };
        assert!(ask("get", "pods", ""));
        assert!(ask("get", "pods", "log"));
        assert!(ask("get", "things", "scale"));
        assert!(!ask("get", "pods", "exec"));
        assert!(!ask("list", "pods", ""));
        assert!(rule.allows(&Attributes { verb: "get", path: "/healthz/x", ..Attributes::default() }));
        assert!(!rule.allows(&Attributes { verb: "get", path: "/metrics", ..Attributes::default() }));
    }
}
