//! Roles and bindings. Privilege escalation is checked in admission, with the authorizer ([`crate::auth`]).

use serde_json::Value;

use super::{
    BASE, NameRule, Strategy,
    rule::{Check, Rule, check},
};
use crate::value::{list, text};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Defaults and validation of Roles and ClusterRoles.
pub static ROLE: Strategy = Strategy {
    name: NameRule::Segment,
    validate: |role, errors| {
        const AGGREGATION: &[Rule] = &[
            Rule(
                "aggregationRule.clusterRoleSelectors",
                &[Check::Required("at least one clusterRoleSelector required if aggregationRule is non-nil")],
            ),
            Rule("aggregationRule.clusterRoleSelectors[*]", &[Check::Selector]),
        ];
        check(role, AGGREGATION, errors);
        for (i, rule) in list(role, "/rules").iter().enumerate() {
            let at = format!("rules[{i}]");
            if list(rule, "/verbs").is_empty() {
                errors.required(format!("{at}.verbs"), "verbs must contain at least one value");
            }
            let urls = !list(rule, "/nonResourceURLs").is_empty();
            if urls && text(role, "/kind") == "Role" {
                errors.invalid(
                    format!("{at}.nonResourceURLs"),
                    rule["nonResourceURLs"].clone(),
                    "namespaced rules cannot apply to non-resource URLs",
                );
            } else if !urls {
                if rule.get("apiGroups").is_none_or(|g| g.as_array().is_none_or(Vec::is_empty)) {
                    errors.required(
                        format!("{at}.apiGroups"),
                        "resource rules must supply at least one api group",
                    );
                }
                if list(rule, "/resources").is_empty() {
                    errors.required(
                        format!("{at}.resources"),
                        "resource rules must supply at least one resource",
                    );
                }
            }
        }
    },
    ..BASE
};

/// Defaults and validation of RoleBindings and ClusterRoleBindings.
pub static BINDING: Strategy = Strategy {
    name: NameRule::Segment,
    default: |binding| {
        if let Some(role) = binding.get_mut("roleRef").filter(|r| r.is_object()) {
            crate::value::default_text(role, "apiGroup", "rbac.authorization.k8s.io");
        }
        for subject in binding.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
            if text(subject, "/kind") != "ServiceAccount" {
                crate::value::default_text(subject, "apiGroup", "rbac.authorization.k8s.io");
            }
        }
    },
    validate: |binding, errors| {
        let kind = text(binding, "/roleRef/kind");
        if !["Role", "ClusterRole"].contains(&kind) {
            errors.not_supported("roleRef.kind", kind, &["ClusterRole", "Role"]);
        }
        if text(binding, "/roleRef/name").is_empty() {
            errors.required("roleRef.name", "");
        }
        let group = text(binding, "/roleRef/apiGroup");
        if group != GROUP {
            errors.not_supported("roleRef.apiGroup", group, &[GROUP]);
        }
        for (i, subject) in list(binding, "/subjects").iter().enumerate() {
            let at = format!("subjects[{i}]");
            if text(subject, "/name").is_empty() {
                errors.required(format!("{at}.name"), "");
            }
            let kind = text(subject, "/kind");
            if !["User", "Group", "ServiceAccount"].contains(&kind) {
                errors.not_supported(format!("{at}.kind"), kind, &["Group", "ServiceAccount", "User"]);
            }
            let (group, name) = (text(subject, "/apiGroup"), text(subject, "/name"));
            let own = if kind == "ServiceAccount" { "" } else { GROUP };
            if ["User", "Group", "ServiceAccount"].contains(&kind) && group != own {
                errors.not_supported(format!("{at}.apiGroup"), group, &[own]);
            }
            if kind == "ServiceAccount" && !name.is_empty() {
                NameRule::Subdomain.check(&format!("{at}.name"), name, errors);
            }
            // A subject without namespace in a RoleBinding is in the binding's namespace.
            let of_cluster = text(binding, "/kind") == "ClusterRoleBinding";
            if kind == "ServiceAccount" && of_cluster && text(subject, "/namespace").is_empty() {
                errors.required(format!("{at}.namespace"), "");
            }
        }
    },
    validate_update: |new, old, errors| {
        if new.get("roleRef") != old.get("roleRef") {
            errors.invalid(
                "roleRef",
                new.get("roleRef").cloned().unwrap_or_default(),
                "cannot change roleRef",
            );
        }
    },
    ..BASE
};
