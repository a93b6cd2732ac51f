//! Users.

use std::collections::BTreeMap;

/// An authenticated user, in the request's extensions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User name: the certificate's common name, or `system:serviceaccount:NAMESPACE:NAME`.
    pub name: String,
    /// Unique id, if the authenticator provides one.
    pub uid: String,
    /// Groups of the user.
    pub groups: Vec<String>,
    /// Further attributes from the authenticator.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Creates a user with groups; adds `system:authenticated`.
    #[must_use]
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        let everyone = "system:authenticated";
        if !groups.iter().any(|g| g == everyone) {
            groups.push(everyone.into());
        }
        User { name: name.into(), groups, ..User::default() }
    }

    /// Returns a service account with its groups.
    #[must_use]
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let of_namespace = format!("system:serviceaccounts:{namespace}");
        User::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &of_namespace],
        )
    }

    /// Returns the user of a node's kubelet.
    #[must_use]
    pub fn node(name: &str) -> Self {
        User::new(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// Returns the first group that is not a system group, or `default`.
    ///
    /// ```
    /// use k8s_apiserver::User;
    /// let user = User::new("eve", &["system:authenticated", "shop"]);
    /// assert_eq!(user.group_or("shared"), "shop");
    /// assert_eq!(User::admin().group_or("shared"), "shared");
    /// ```
    #[must_use]
    pub fn group_or<'a>(&'a self, default: &'a str) -> &'a str {
        self.groups.iter().find(|g| !g.starts_with("system:")).map_or(default, String::as_str)
    }

    /// Returns a user with all permissions.
    #[must_use]
    pub fn admin() -> Self {
        User::new("system:admin", &["system:masters"])
    }

    /// Returns the anonymous user.
    #[must_use]
    pub fn anonymous() -> Self {
        User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..User::default()
        }
    }
}
