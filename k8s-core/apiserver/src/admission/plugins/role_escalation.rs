//! RoleEscalation: refuses to grant rights that the user does not hold.
//!
//! Every write of a role or binding passes this plugin (create, update, patch, apply, dry run), after all
//! other plugins. The aggregation controller has `escalate` on ClusterRoles for the rules that it aggregates.
//!
//! A role needs all of its rules, or `escalate`. An aggregation rule needs every right. A binding needs all
//! rules of its role, or `bind`; an absent role needs `bind` or `system:masters`.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use serde_json::{Value, json};

use crate::{
    admission::{Admission, Admit},
    auth::Authorization,
    request::Attributes,
    user::User,
    value::{array_at, str_at},
};

/// The API group of roles and bindings.
const GROUP: &str = "rbac.authorization.k8s.io";

/// Maximum of combinations of verbs, groups, resources and names of one role.
const MOST_COMBINATIONS: usize = 1 << 20;

/// The check of roles and bindings.
pub(super) struct RoleEscalation {
    pub(super) authorization: Arc<Authorization>,
}

#[async_trait]
impl Admit for RoleEscalation {
    /// # Errors
    /// 403 with the missing rights; 404 for a binding to an absent role.
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let is_master = admission.user.groups.iter().any(|g| g == "system:masters");
        if admission.resource.group != GROUP || is_master {
            return Ok(());
        }
        check(&self.authorization, admission).await
    }
}

async fn check(authorization: &Authorization, admission: &Admission<'_>) -> Result<(), ApiStatus> {
    let (resource, object, old) = (admission.resource, &*admission.object, admission.old);
    if old.is_some_and(|old| changes_only_collection(object, old)) {
        return Ok(());
    }
    let namespace = admission.request.namespace.as_str();
    let caller = Caller { authorization, user: admission.user, namespace };
    let forbidden = |why: &str| {
        ApiStatus::forbidden(&resource.group, &resource.plural, str_at(object, "/metadata/name"), why)
    };
    if resource.plural.ends_with("bindings") {
        let (kind, name) = (str_at(object, "/roleRef/kind"), str_at(object, "/roleRef/name"));
        let (plural, key) = match kind {
            "ClusterRole" => ("clusterroles", name.to_owned()),
            "Role" => ("roles", format!("{namespace}/{name}")),
            // The type's own rules refuse it.
            _ => return Ok(()),
        };
        if caller.may("bind", plural, name).await {
            return Ok(());
        }
        let stored = authorization.store.get(&format!("{plural}.{GROUP}"), &key);
        let stored = stored.ok_or_else(|| ApiStatus::not_found(GROUP, plural, name))?;
        let role: Value = serde_json::from_slice(&stored.json).map_err(ApiStatus::internal)?;
        return caller.holds(array_at(&role, "/rules")).map_err(|why| forbidden(&why));
    }
    if caller.may("escalate", &resource.plural, &admission.request.name).await {
        return Ok(());
    }
    caller.holds(array_at(object, "/rules")).map_err(|why| forbidden(&why))?;
    let aggregates = |role: &Value| !array_at(role, "/aggregationRule/clusterRoleSelectors").is_empty();
    if aggregates(object) || old.is_some_and(aggregates) {
        let everything = json!([
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
            {"verbs": ["*"], "nonResourceURLs": ["*"]},
        ]);
        caller
            .holds(array_at(&everything, ""))
            .map_err(|_| forbidden("must have cluster-admin privileges to use the aggregationRule"))?;
    }
    Ok(())
}

/// Returns true if an update changes only finalizers and owner references, as garbage collection does.
pub(super) fn changes_only_collection(new: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["finalizers", "ownerReferences", "selfLink", "managedFields", "resourceVersion"] {
                metadata.remove(field);
            }
        }
        object
    };
    rest(new) == rest(old)
}

struct Caller<'a> {
    authorization: &'a Authorization,
    user: &'a User,
    namespace: &'a str,
}

impl Caller<'_> {
    /// Returns true if the user has a verb that stands in for the rules.
    async fn may(&self, verb: &str, resource: &str, name: &str) -> bool {
        let wanted = Attributes {
            verb,
            group: GROUP,
            resource,
            namespace: self.namespace,
            name,
            ..Default::default()
        };
        self.authorization.authorize(self.user, &wanted).await.is_ok()
    }

    fn is_granted(&self, wanted: &Attributes<'_>) -> bool {
        self.authorization.rbac.allows(&self.authorization.store, self.user, wanted)
    }

    fn is_granted_for_every_name(&self, wanted: &Attributes<'_>) -> bool {
        self.authorization.rbac.allows_every_name(&self.authorization.store, self.user, wanted)
    }

    /// Checks that the caller's own roles cover all rules.
    ///
    /// # Errors
    /// The reason, with the rights that are missing.
    fn holds(&self, rules: &[Value]) -> Result<(), String> {
        let combinations = rules
            .iter()
            .map(|rule| {
                ["/verbs", "/apiGroups", "/resources", "/resourceNames", "/nonResourceURLs"]
                    .iter()
                    .fold(1usize, |product, part| product.saturating_mul(array_at(rule, part).len().max(1)))
            })
            .fold(0, usize::saturating_add);
        if combinations > MOST_COMBINATIONS {
            return Err(format!(
                "the rules name more than {MOST_COMBINATIONS} combinations of verbs, groups, resources and names: use \"*\" or several roles"
            ));
        }
        let mut missing = Missing::default();
        rules.iter().for_each(|rule| self.look_up(rule, &mut missing));
        if missing.0.is_empty() {
            return Ok(());
        }
        Err(format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            self.user.name,
            quoted(&self.user.groups),
            missing.describe()
        ))
    }

    fn look_up(&self, rule: &Value, missing: &mut Missing) {
        let texts = |part: &str| array_at(rule, part).iter().filter_map(Value::as_str).collect::<Vec<_>>();
        let (verbs, groups, resources) = (texts("/verbs"), texts("/apiGroups"), texts("/resources"));
        // A rule without names is for all of them. The empty name is a name like others.
        let names = match texts("/resourceNames") {
            names if names.is_empty() => vec![None],
            names => names.into_iter().map(Some).collect(),
        };
        for verb in verbs {
            for path in texts("/nonResourceURLs") {
                let wanted = Attributes { verb, path, ..Attributes::default() };
                if path.is_empty() || !self.is_granted(&wanted) {
                    missing.add(Right { path: path.to_owned(), ..Right::default() }, verb);
                }
            }
            for group in &groups {
                for full in &resources {
                    let (resource, subresource) = full.split_once('/').unwrap_or((full, ""));
                    for name in &names {
                        let wanted = Attributes {
                            verb,
                            group,
                            resource,
                            subresource,
                            namespace: self.namespace,
                            name: name.unwrap_or_default(),
                            ..Attributes::default()
                        };
                        let granted = match name {
                            Some(_) => self.is_granted(&wanted),
                            None => self.is_granted_for_every_name(&wanted),
                        };
                        if !granted {
                            let right = Right {
                                group: (*group).to_owned(),
                                resource: (*full).to_owned(),
                                name: name.map(str::to_owned),
                                path: String::new(),
                            };
                            missing.add(right, verb);
                        }
                    }
                }
            }
        }
    }
}

/// A right but for its verb: a resource, with an object's name where only that one is meant, or a path.
#[derive(Default, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    group: String,
    resource: String,
    name: Option<String>,
    path: String,
}

/// Rights that are missing, with their verbs.
#[derive(Default)]
struct Missing(BTreeMap<Right, Vec<String>>);

impl Missing {
    fn add(&mut self, right: Right, verb: &str) {
        let verbs = self.0.entry(right).or_default();
        if !verbs.iter().any(|v| v == verb) {
            verbs.push(verb.to_owned());
        }
    }

    /// One rule a line, as upstream shows rules.
    fn describe(&self) -> String {
        let mut lines: Vec<String> = self
            .0
            .iter()
            .map(|(Right { group, resource, name, path }, verbs)| {
                let part = |label: &str, value: &str| format!("{label}:[{value:?}]");
                let mut parts = Vec::new();
                if path.is_empty() && !resource.is_empty() {
                    parts.extend([part("APIGroups", group), part("Resources", resource)]);
                } else {
                    parts.push(part("NonResourceURLs", path));
                }
                if let Some(name) = name {
                    parts.push(part("ResourceNames", name));
                }
                parts.push(format!("Verbs:{}", quoted(verbs)));
                format!("{{{}}}", parts.join(", "))
            })
            .collect();
        lines.sort();
        lines.join("\n")
    }
}

/// A list of texts as Go quotes it.
fn quoted(texts: &[String]) -> String {
    let all: Vec<String> = texts.iter().map(|t| format!("{t:?}")).collect();
    format!("[{}]", all.join(" "))
}
