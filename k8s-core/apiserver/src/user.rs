//! Who asks.

use std::collections::BTreeMap;

/// An authenticated user; travels in the request's extensions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Uid, where the authenticator knows one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Anything else the authenticator says.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user with groups; `system:authenticated` is added.
    #[must_use]
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        let everyone = "system:authenticated";
        if !groups.iter().any(|g| g == everyone) {
            groups.push(everyone.into());
        }
        User { name: name.into(), groups, ..User::default() }
    }

    /// A service account, with the groups that its tokens give.
    #[must_use]
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let of_namespace = format!("system:serviceaccounts:{namespace}");
        User::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &of_namespace],
        )
    }

    /// A node's kubelet.
    #[must_use]
    pub fn node(name: &str) -> Self {
        User::new(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// The first of its groups that an administrator named (not one of the system's own), or `default`.
    #[must_use]
    pub fn group_or<'a>(&'a self, default: &'a str) -> &'a str {
        self.groups.iter().find(|g| !g.starts_with("system:")).map_or(default, String::as_str)
    }

    /// Somebody who may do everything.
    #[must_use]
    pub fn admin() -> Self {
        User::new("system:admin", &["system:masters"])
    }

    /// Nobody in particular.
    #[must_use]
    pub fn anonymous() -> Self {
        User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..User::default()
        }
    }
}
