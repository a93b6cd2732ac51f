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
    /// Returns the rule that allows everything.
    pub(crate) fn everything() -> Self {
        let all = || vec!["*".to_owned()];
        Rule { verbs: all(), groups: all(), resources: all(), names: Vec::new(), paths: all() }
    }

    pub(crate) fn from_json(rule: &Value) -> Self {
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
    /// The rules of the role; the reason if there is no such role.
    rules: Result<Arc<Vec<Rule>>, String>,
}

impl Grant {
    /// Returns true if the binding counts for requests in a namespace; empty for none, and for paths.
    fn is_for(&self, namespace: &str) -> bool {
        self.namespace.is_empty() || self.namespace == namespace
    }
}

/// A subject's place in a binding.
#[derive(Clone, Debug)]
struct Place {
    grant: usize,
    subject: usize,
    /// The reason of a request that the binding allows.
    reason: Arc<str>,
}

#[derive(Debug, Default)]
struct Compiled {
    revisions: [u64; 4],
    /// Cluster role bindings by name, then role bindings by namespace and name.
    grants: Vec<Grant>,
    of: HashMap<Subject, Vec<Place>>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Subject {
    User(String),
    Group(String),
}

impl Compiled {
    /// Returns the bindings of a user that count in a namespace, in their order.
    fn grants_of(&self, user: &User, namespace: &str) -> Vec<(&Grant, &Place)> {
        let groups = user.groups.iter().map(|g| Subject::Group(g.clone()));
        let mut found: Vec<(&Grant, &Place)> = std::iter::once(Subject::User(user.name.clone()))
            .chain(groups)
            .filter_map(|subject| self.of.get(&subject))
            .flatten()
            .filter_map(|place| Some((self.grants.get(place.grant)?, place)))
            .filter(|(grant, _)| grant.is_for(namespace))
            .collect();
        found.sort_unstable_by_key(|(_, place)| (place.grant, place.subject));
        found.dedup_by_key(|(_, place)| place.grant);
        found
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
        is_master(user) || self.decide(store, user, a, |_| true).is_ok()
    }

    /// Returns true if `user` may do it to objects of every name: rules with `resourceNames` do not count.
    pub(crate) fn allows_every_name(&self, store: &Store, user: &User, a: &Attributes<'_>) -> bool {
        is_master(user) || self.decide(store, user, a, |rule| rule.names.is_empty()).is_ok()
    }

    /// Returns the reason for which the bindings of a user allow a request.
    ///
    /// # Errors
    /// No binding allows it; the text names bindings to roles that do not exist, and may be empty.
    pub(crate) fn reason(&self, store: &Store, user: &User, a: &Attributes<'_>) -> Result<Arc<str>, String> {
        self.decide(store, user, a, |_| true)
    }

    fn decide(
        &self,
        store: &Store,
        user: &User,
        a: &Attributes<'_>,
        counts: impl Fn(&Rule) -> bool,
    ) -> Result<Arc<str>, String> {
        let compiled = self.compiled(store);
        let namespace = if a.path.is_empty() { a.namespace } else { "" };
        let mut broken = Vec::new();
        for (grant, place) in compiled.grants_of(user, namespace) {
            match &grant.rules {
                Ok(rules) if rules.iter().any(|rule| counts(rule) && rule.allows(a)) => {
                    return Ok(place.reason.clone());
                }
                Ok(_) => {}
                Err(why) => broken.push(why.as_str()),
            }
        }
        Err(aggregate(broken).map_or(String::new(), |why| format!("RBAC: {why}")))
    }

    /// The rules that `user` has in a namespace.
    #[must_use]
    pub fn rules(&self, store: &Store, user: &User, namespace: &str) -> Vec<Rule> {
        self.rules_and_problems(store, user, namespace).0
    }

    /// The rules that `user` has in a namespace, and the bindings to roles that do not exist.
    pub(crate) fn rules_and_problems(
        &self,
        store: &Store,
        user: &User,
        namespace: &str,
    ) -> (Vec<Rule>, Option<String>) {
        if is_master(user) {
            return (vec![Rule::everything()], None);
        }
        let compiled = self.compiled(store);
        let (mut rules, mut broken) = (Vec::new(), Vec::new());
        for (grant, _) in compiled.grants_of(user, namespace) {
            match &grant.rules {
                Ok(of_role) => rules.extend(of_role.iter().cloned()),
                Err(why) => broken.push(why.as_str()),
            }
        }
        (rules, aggregate(broken))
    }
}

/// Returns true for users who may do everything.
pub(crate) fn is_master(user: &User) -> bool {
    user.groups.iter().any(|g| g == "system:masters")
}

/// Joins problems as upstream does: one alone, several in brackets, each once.
pub(crate) fn aggregate<T: AsRef<str>>(problems: Vec<T>) -> Option<String> {
    let mut unique: Vec<&str> = Vec::new();
    for problem in &problems {
        if !unique.contains(&problem.as_ref()) {
            unique.push(problem.as_ref());
        }
    }
    match unique.as_slice() {
        [] => None,
        [one] => Some((*one).to_owned()),
        several => Some(format!("[{}]", several.join(", "))),
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
    let mut compiled = Compiled { revisions, ..Compiled::default() };
    for (resource, namespaced) in [(RESOURCES[1], false), (RESOURCES[3], true)] {
        for stored in store.snapshot(resource).range("", "") {
            let Ok(binding) = serde_json::from_slice::<Value>(&stored.json) else { continue };
            let namespace = if namespaced { stored.namespace() } else { "" };
            let (kind, role) = (str_at(&binding, "/roleRef/kind"), str_at(&binding, "/roleRef/name"));
            let home = if kind == "ClusterRole" { "" } else { namespace };
            let rules = roles.get(&(home.to_owned(), role.to_owned())).cloned();
            let absent = || format!("{}.rbac.authorization.k8s.io {role:?} not found", kind.to_lowercase());
            for (at, subject) in array_at(&binding, "/subjects").iter().enumerate() {
                let Some((who, described)) = subject_of(subject, namespace) else { continue };
                let (of, name) = match namespaced {
                    true => ("RoleBinding", format!("{}/{namespace}", stored.name())),
                    false => ("ClusterRoleBinding", stored.name().to_owned()),
                };
                let reason = format!("RBAC: allowed by {of} {name:?} of {kind} {role:?} to {described}");
                let place = Place { grant: compiled.grants.len(), subject: at, reason: reason.into() };
                compiled.of.entry(who).or_default().push(place);
            }
            compiled.grants.push(Grant { namespace: namespace.into(), rules: rules.ok_or_else(absent) });
        }
    }
    compiled
}

/// Returns a binding's subject, and its description in reasons.
fn subject_of(subject: &Value, namespace: &str) -> Option<(Subject, String)> {
    let (kind, name) = (str_at(subject, "/kind"), str_at(subject, "/name"));
    match kind {
        "User" => Some((Subject::User(name.to_owned()), format!("User {name:?}"))),
        "Group" => Some((Subject::Group(name.to_owned()), format!("Group {name:?}"))),
        "ServiceAccount" => {
            let at = match str_at(subject, "/namespace") {
                "" => namespace,
                at => at,
            };
            let described = format!("ServiceAccount {:?}", format!("{name}/{at}"));
            // Without a namespace it is nobody.
            let user = format!("system:serviceaccount:{at}:{name}");
            (!at.is_empty()).then_some((Subject::User(user), described))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
