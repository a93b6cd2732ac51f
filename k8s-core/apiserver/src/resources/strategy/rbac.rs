//! Roles and bindings. Privilege escalation is checked in admission, with the authorizer ([`crate::auth`]).

use serde_json::Value;

use super::{
    BASE, NameRule, Strategy,
    rule::{Check, Rule, check},
};
use crate::value::{array_at, str_at};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Defaults and validation of Roles and ClusterRoles.
pub static ROLE: Strategy = Strategy {
    allow_create_on_update: true,
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
        for (i, rule) in array_at(role, "/rules").iter().enumerate() {
            let at = format!("rules[{i}]");
            if array_at(rule, "/verbs").is_empty() {
                errors.required(format!("{at}.verbs"), "verbs must contain at least one value");
            }
            let urls = !array_at(rule, "/nonResourceURLs").is_empty();
            if urls && str_at(role, "/kind") == "Role" {
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
                if array_at(rule, "/resources").is_empty() {
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
    allow_create_on_update: true,
    name: NameRule::Segment,
    default: |binding| {
        if let Some(role) = binding.get_mut("roleRef").filter(|r| r.is_object()) {
            crate::value::default_text(role, "apiGroup", "rbac.authorization.k8s.io");
        }
        for subject in binding.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
            if str_at(subject, "/kind") != "ServiceAccount" {
                crate::value::default_text(subject, "apiGroup", "rbac.authorization.k8s.io");
            }
        }
    },
    validate: |binding, errors| {
        let kind = str_at(binding, "/roleRef/kind");
        if !["Role", "ClusterRole"].contains(&kind) {
            errors.not_supported("roleRef.kind", kind, &["ClusterRole", "Role"]);
        }
        if str_at(binding, "/roleRef/name").is_empty() {
            errors.required("roleRef.name", "");
        }
        let group = str_at(binding, "/roleRef/apiGroup");
        if group != GROUP {
            errors.not_supported("roleRef.apiGroup", group, &[GROUP]);
        }
        for (i, subject) in array_at(binding, "/subjects").iter().enumerate() {
            let at = format!("subjects[{i}]");
            if str_at(subject, "/name").is_empty() {
                errors.required(format!("{at}.name"), "");
            }
            let kind = str_at(subject, "/kind");
            if !["User", "Group", "ServiceAccount"].contains(&kind) {
                errors.not_supported(format!("{at}.kind"), kind, &["Group", "ServiceAccount", "User"]);
            }
            let (group, name) = (str_at(subject, "/apiGroup"), str_at(subject, "/name"));
            let own = if kind == "ServiceAccount" { "" } else { GROUP };
            if ["User", "Group", "ServiceAccount"].contains(&kind) && group != own {
                errors.not_supported(format!("{at}.apiGroup"), group, &[own]);
            }
            if kind == "ServiceAccount" && !name.is_empty() {
                NameRule::Subdomain.check(&format!("{at}.name"), name, errors);
            }
            // A subject without namespace in a RoleBinding is in the binding's namespace.
            let of_cluster = str_at(binding, "/kind") == "ClusterRoleBinding";
            if kind == "ServiceAccount" && of_cluster && str_at(subject, "/namespace").is_empty() {
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
