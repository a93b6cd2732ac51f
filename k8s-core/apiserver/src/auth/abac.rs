//! Attribute-based access control: one policy per line of a file.
//!
//! The file is upstream's (`--authorization-policy-file`): JSON lines of
//! `abac.authorization.kubernetes.io/v1beta1` `Policy`; blank lines and lines that begin with `#` do not
//! count. Not here: the unversioned lines of Kubernetes 1.0.

use std::sync::Arc;

use serde::Deserialize;

use super::rbac::Rule;
use crate::{request::Attributes, user::User};

/// A line of a policy file is no policy.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct PolicyFileError {
    /// Number of the line, from 1.
    pub line: usize,
    /// The problem.
    pub why: String,
}

/// The policies of a file.
///
/// ```
/// use k8s_apiserver::auth::abac::Policies;
/// let spec = r#"{"user": "bob", "namespace": "*", "resource": "pods", "readonly": true}"#;
/// let version = "abac.authorization.kubernetes.io/v1beta1";
/// let line = format!(r#"{{"apiVersion": "{version}", "kind": "Policy", "spec": {spec}}}"#);
/// assert!(Policies::parse(&line).is_ok());
/// assert_eq!(Policies::parse("{}").unwrap_err().line, 1);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Policies(Arc<Vec<Policy>>);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    api_version: String,
    kind: String,
    spec: Policy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    api_group: String,
    resource: String,
    namespace: String,
    non_resource_path: String,
}

impl Policies {
    /// Parses a policy file.
    ///
    /// # Errors
    /// The first line that is no policy.
    pub fn parse(text: &str) -> Result<Self, PolicyFileError> {
        let mut policies = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let refused = |why: String| PolicyFileError { line: at + 1, why };
            let parsed: Line = serde_json::from_str(line).map_err(|e| refused(e.to_string()))?;
            if parsed.api_version != "abac.authorization.kubernetes.io/v1beta1" || parsed.kind != "Policy" {
                return Err(refused(format!(
                    "apiVersion {:?}, kind {:?}: abac.authorization.kubernetes.io/v1beta1 Policy is needed",
                    parsed.api_version, parsed.kind
                )));
            }
            policies.push(parsed.spec);
        }
        Ok(Policies(Arc::new(policies)))
    }

    /// Returns true if a policy allows the request.
    pub(crate) fn allow(&self, user: &User, wanted: &Attributes<'_>) -> bool {
        self.0.iter().any(|policy| policy.is_for(user) && policy.allows(wanted))
    }

    /// Returns the rules that a user has in a namespace.
    pub(crate) fn rules(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let mine = self.0.iter().filter(|p| p.is_for(user) && is(&p.namespace, namespace));
        mine.map(|policy| {
            let verbs = if policy.readonly { vec!["get", "list", "watch"] } else { vec!["*"] };
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned()).into_iter().collect();
            Rule {
                verbs: verbs.into_iter().map(str::to_owned).collect(),
                groups: vec![policy.api_group.clone()],
                resources: some(&policy.resource),
                names: Vec::new(),
                paths: some(&policy.non_resource_path),
            }
        })
        .collect()
    }
}

fn is(pattern: &str, value: &str) -> bool {
    pattern == "*" || pattern == value
}

impl Policy {
    fn is_for(&self, user: &User) -> bool {
        let of_user = self.user.is_empty() || is(&self.user, &user.name);
        let of_group = self.group.is_empty() || self.group == "*" || user.groups.contains(&self.group);
        // A policy without a subject is for nobody.
        of_user && of_group && !(self.user.is_empty() && self.group.is_empty())
    }

    fn allows(&self, wanted: &Attributes<'_>) -> bool {
        if self.readonly && !wanted.is_read_only() {
            return false;
        }
        if wanted.path.is_empty() {
            return is(&self.namespace, wanted.namespace)
                && is(&self.resource, wanted.resource)
                && is(&self.api_group, wanted.group);
        }
        let pattern = &self.non_resource_path;
        is(pattern, wanted.path)
            || (pattern.ends_with('*') && wanted.path.starts_with(pattern.trim_end_matches('*')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(specs: &[&str]) -> Policies {
        let line = |spec: &&str| {
            format!(
                "{{\"apiVersion\":\"abac.authorization.kubernetes.io/v1beta1\",\"kind\":\"Policy\",\"spec\":{spec}}}\n"
            )
        };
        let text: String = specs.iter().map(line).collect();
        Policies::parse(&format!("# who may do what\n\n{text}")).unwrap()
    }

    #[test]
    fn a_policy_needs_its_subject_and_its_object() {
        let all = policies(&[
            r#"{"user":"bob","namespace":"shop","resource":"pods","readonly":true}"#,
            r#"{"group":"ops","namespace":"*","resource":"*","apiGroup":"*"}"#,
            r#"{"user":"bob","group":"ops","nonResourcePath":"/debug/*"}"#,
            r#"{"namespace":"*","resource":"*","apiGroup":"*","nonResourcePath":"*"}"#,
        ]);
        let (bob, ops) = (User::new("bob", &[]), User::new("eve", &["ops"]));
        let pods =
            |verb, namespace| Attributes { verb, namespace, resource: "pods", ..Attributes::default() };
        let path = |path| Attributes { verb: "get", path, ..Attributes::default() };
        for (user, wanted, allowed) in [
            (&bob, pods("list", "shop"), true),
            (&bob, pods("create", "shop"), false),
            (&bob, pods("list", "other"), false),
            (&bob, Attributes { group: "apps", ..pods("list", "shop") }, false),
            (&ops, Attributes { group: "apps", ..pods("delete", "other") }, true),
            (&ops, pods("delete", ""), true),
            (&ops, path("/debug/x"), false),
            (&bob, path("/debug/x"), false),
            (&User::new("bob", &["ops"]), path("/debug/x"), true),
            (&User::new("bob", &["ops"]), path("/debugx"), false),
            (&User::anonymous(), pods("list", "shop"), false),
        ] {
            assert_eq!(all.allow(user, &wanted), allowed, "{} {wanted:?}", user.name);
        }
        assert_eq!(all.rules(&bob, "shop")[0].verbs, ["get", "list", "watch"]);
        assert!(all.rules(&bob, "other").is_empty());
    }

    #[test]
    fn wrong_lines_are_named() {
        let error = |text: &str| Policies::parse(text).unwrap_err();
        assert_eq!(error("\n# x\nnonsense").line, 3);
        assert!(error(r#"{"apiVersion":"v1","kind":"Pod","spec":{}}"#).why.contains("Policy is needed"));
        let typo = r#"{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"read":true}}"#;
        assert!(error(typo).why.contains("unknown field `read`"));
    }
}
