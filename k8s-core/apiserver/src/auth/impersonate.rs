//! User impersonation, and the permissions that it requires.
//!
//! Flow: the headers name a user ([`Wanted`]). Constrained impersonation is tried first: the requester must
//! be allowed to act on the request's object as a user of this kind (`impersonate-on:KIND:VERB`), and to be
//! that user (`impersonate:KIND`). Else the requester must have the verb `impersonate` for each part of the
//! user.

use std::collections::BTreeMap;

use http::HeaderMap;
use k8s_core::status::{ApiStatus, Reason};

use super::{Authorization, rbac::Attributes};
use crate::user::User;

const AUTHENTICATION: &str = "authentication.k8s.io";
const EXTRA: &str = "impersonate-extra-";
const NODE: &str = "system:node:";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Number of checks from which on one of all names is tried before the single ones.
const MANY: usize = 4;

/// The user of a request's impersonation headers, as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wanted {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// A kind of user that constrained impersonation knows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// The node of the requester's own pod.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Any other user.
    UserInfo,
}

impl Mode {
    const ALL: [Mode; 4] = [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo];

    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
        }
    }

    fn applies(self, wanted: &Wanted, requester: &User) -> bool {
        let plain = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let (node, account) = (node(&wanted.name), account(&wanted.name));
        match self {
            Mode::AssociatedNode => {
                let own = requester.extra.get(NODE_NAME).map(Vec::as_slice);
                plain
                    && self::account(&requester.name).is_some()
                    && node.is_some_and(|node| own == Some(&[node.to_owned()]))
            }
            Mode::ArbitraryNode => plain && node.is_some(),
            Mode::ServiceAccount => plain && account.is_some(),
            Mode::UserInfo => node.is_none() && account.is_none(),
        }
    }
}

impl Wanted {
    /// Parses the impersonation headers of a request.
    ///
    /// # Errors
    /// Groups, uid or extra data without a user; a value that is no UTF-8.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, ApiStatus> {
        // A value that is passed over would leave the requester with its own rights, or others.
        let values = |name: &str| -> Result<Vec<String>, ApiStatus> {
            let values =
                headers.get_all(name).iter().map(|value| String::from_utf8(value.as_bytes().to_vec()));
            values
                .collect::<Result<_, _>>()
                .map_err(|_| ApiStatus::bad_request(format!("the header {name} is no UTF-8")))
        };
        let first = |name: &str| values(name).map(|all| all.into_iter().next().unwrap_or_default());
        let mut wanted = Wanted {
            name: first("impersonate-user")?,
            uid: first("impersonate-uid")?,
            groups: values("impersonate-group")?,
            extra: BTreeMap::new(),
        };
        for header in headers.keys() {
            let Some(key) = header.as_str().strip_prefix(EXTRA) else { continue };
            let decoded = percent_encoding::percent_decode_str(key).decode_utf8();
            let key = decoded.map_or_else(|_| key.to_owned(), std::borrow::Cow::into_owned);
            wanted.extra.entry(key).or_default().extend(values(header.as_str())?);
        }
        if !wanted.name.is_empty() {
            return Ok(Some(wanted));
        }
        if wanted.groups.is_empty() && wanted.uid.is_empty() && wanted.extra.is_empty() {
            return Ok(None);
        }
        let why = "requested a uid, groups or extra data without impersonating a user name: set Impersonate-User as well";
        Err(ApiStatus::bad_request(why))
    }

    /// Returns the user, if the requester may impersonate it for a request.
    ///
    /// # Errors
    /// 403 with the first permission that is missing.
    pub(crate) async fn authorized(
        &self,
        requester: &User,
        request: &Attributes<'_>,
        authorization: &Authorization,
    ) -> Result<User, ApiStatus> {
        let mut first = None;
        for mode in Mode::ALL.into_iter().filter(|mode| mode.applies(self, requester)) {
            match self.constrained(mode, requester, request, authorization).await {
                Ok(user) => return Ok(user),
                Err(refused) => first = first.or(Some(refused)),
            }
        }
        match self.checked(None, requester, authorization).await {
            Ok(user) => Ok(user),
            Err(refused) => Err(first.unwrap_or(refused)),
        }
    }

    async fn constrained(
        &self,
        mode: Mode,
        requester: &User,
        request: &Attributes<'_>,
        authorization: &Authorization,
    ) -> Result<User, ApiStatus> {
        let mut requester = requester.clone();
        if mode == Mode::AssociatedNode {
            // The decision is one for all nodes: it must not depend on the pod.
            let keys = requester.extra.keys().cloned().collect();
            requester.extra = [("authentication.kubernetes.io/associated-node-keys".to_owned(), keys)].into();
        }
        let verb = format!("impersonate-on:{}:{}", mode.name(), request.verb);
        authorization.authorize(&requester, &Attributes { verb: &verb, ..request.clone() }).await?;
        self.checked(Some(mode), &requester, authorization).await
    }

    /// Checks each part of the user. `None`: with the verb `impersonate`, which has no mode.
    async fn checked(
        &self,
        mode: Option<Mode>,
        requester: &User,
        authorization: &Authorization,
    ) -> Result<User, ApiStatus> {
        let verb = mode.map_or("impersonate".to_owned(), |mode| format!("impersonate:{}", mode.name()));
        let group = if mode.is_some() { AUTHENTICATION } else { "" };
        let part = |group, resource, name| Attributes {
            verb: &verb,
            group,
            resource,
            name,
            ..Attributes::default()
        };
        let mut groups = self.groups.clone();
        let (node, account) = (node(&self.name), account(&self.name));
        let who = match (node, account) {
            (Some(node), _) if mode.is_some() => {
                groups = vec!["system:nodes".into()];
                let name = if mode == Some(Mode::AssociatedNode) { "*" } else { node };
                part(group, "nodes", name)
            }
            (_, Some((namespace, name))) => {
                if groups.is_empty() {
                    groups =
                        vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
                }
                Attributes { namespace, ..part(group, "serviceaccounts", name) }
            }
            _ => part(group, "users", &self.name),
        };
        authorization.authorize(requester, &who).await?;
        if !self.uid.is_empty() {
            authorization.authorize(requester, &part(AUTHENTICATION, "uids", &self.uid)).await?;
        }
        if mode.is_some() {
            self.is_constrained().map_err(|why| ApiStatus::of(Reason::Forbidden, why))?;
        }
        let all = mode.is_some() && self.groups.len() >= MANY;
        if !(all && authorization.authorize(requester, &part(group, "groups", "*")).await.is_ok()) {
            for name in &self.groups {
                authorization.authorize(requester, &part(group, "groups", name)).await?;
            }
        }
        let extra = |key, value| Attributes { subresource: key, ..part(AUTHENTICATION, "userextras", value) };
        let count = self.extra.values().map(Vec::len).sum::<usize>().max(self.extra.len());
        let all = mode.is_some() && count >= MANY;
        if !(all && authorization.authorize(requester, &extra("*", "*")).await.is_ok()) {
            for (key, values) in &self.extra {
                for value in values {
                    authorization.authorize(requester, &extra(key, value)).await?;
                }
            }
        }
        Ok(self.user(groups))
    }

    /// Checks what constrained impersonation never allows.
    fn is_constrained(&self) -> Result<(), String> {
        if self.groups.iter().any(String::is_empty) {
            return Err("impersonating the empty string group is not allowed".into());
        }
        if self.groups.iter().any(|group| group == "system:masters") {
            return Err("impersonating the system:masters group is not allowed".into());
        }
        for (key, values) in &self.extra {
            let prefixed =
                key.split_once('/').filter(|(domain, rest)| is_subdomain(domain) && !rest.is_empty());
            if prefixed.is_none() || key.to_lowercase() != *key {
                return Err(format!("impersonating an invalid key in extra is not allowed: {key:?}"));
            }
            if values.iter().any(String::is_empty) {
                return Err("impersonating the empty string value in extra is not allowed".into());
            }
        }
        Ok(())
    }

    fn user(&self, mut groups: Vec<String>) -> User {
        const EVERYONE: &str = "system:authenticated";
        const STRANGERS: &str = "system:unauthenticated";
        let has = |groups: &[String], name: &str| groups.iter().any(|group| group == name);
        let missing = if self.name == "system:anonymous" {
            Some(STRANGERS)
        } else {
            Some(EVERYONE).filter(|_| !has(&groups, STRANGERS))
        };
        groups.extend(missing.filter(|name| !has(&groups, name)).map(str::to_owned));
        User { name: self.name.clone(), uid: self.uid.clone(), groups, extra: self.extra.clone() }
    }
}

/// Returns the node of a kubelet's user name.
fn node(name: &str) -> Option<&str> {
    name.strip_prefix(NODE).filter(|node| is_subdomain(node))
}

/// Returns namespace and name of a service account's user name.
fn account(name: &str) -> Option<(&str, &str)> {
    let (namespace, name) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let is_namespace = is_subdomain(namespace) && namespace.len() <= 63 && !namespace.contains('.');
    (is_namespace && is_subdomain(name)).then_some((namespace, name))
}

/// True for a DNS subdomain in lower case.
fn is_subdomain(name: &str) -> bool {
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        let ends = bytes.first().zip(bytes.last());
        ends.is_some_and(|(first, last)| is_alphanumeric(*first) && is_alphanumeric(*last))
            && bytes.iter().all(|b| is_alphanumeric(*b) || *b == b'-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(headers: &[(&'static str, &'static [u8])]) -> Result<Option<Wanted>, ApiStatus> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, http::HeaderValue::from_bytes(value).unwrap());
        }
        Wanted::from_headers(&map)
    }

    #[test]
    fn headers_are_read_whole_or_refused() {
        assert_eq!(ask(&[]).unwrap(), None);
        let jane = ask(&[
            ("impersonate-user", "Jané".as_bytes()),
            ("impersonate-group", b"dev"),
            ("impersonate-group", b"ops"),
            ("impersonate-uid", b"7"),
            ("impersonate-extra-acme.com%2fproject", b"x"),
            ("impersonate-extra-acme.com%2fproject", b"y"),
        ]);
        let jane = jane.unwrap().unwrap();
        assert_eq!((jane.name.as_str(), jane.uid.as_str()), ("Jané", "7"));
        assert_eq!(
            (jane.groups, &jane.extra["acme.com/project"]),
            (vec!["dev".into(), "ops".into()], &vec!["x".into(), "y".into()])
        );
        // A value that cannot be read is never passed over.
        for name in ["impersonate-user", "impersonate-group", "impersonate-uid", "impersonate-extra-a"] {
            assert!(ask(&[("impersonate-user", b"jane"), (name, b"\xff")]).is_err(), "{name}");
            assert_eq!(ask(&[(name, b"\xff")]).unwrap_err().code(), 400, "{name}");
        }
        for name in ["impersonate-group", "impersonate-uid", "impersonate-extra-a"] {
            assert_eq!(ask(&[(name, b"x")]).unwrap_err().code(), 400, "{name} without a user");
            assert_eq!(ask(&[("impersonate-user", b""), (name, b"x")]).unwrap_err().code(), 400, "{name}");
        }
    }

    #[test]
    fn groups_that_follow_from_the_name() {
        let with = |name: &str, groups: &[&str]| {
            let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
            Wanted { name: name.into(), ..Wanted::default() }.user(groups).groups.join(" ")
        };
        assert_eq!(with("jane", &["dev"]), "dev system:authenticated");
        assert_eq!(with("jane", &["system:authenticated", "dev"]), "system:authenticated dev");
        assert_eq!(with("jane", &["system:unauthenticated"]), "system:unauthenticated");
        assert_eq!(with("system:anonymous", &[]), "system:unauthenticated");
        assert_eq!(with("system:anonymous", &["dev"]), "dev system:unauthenticated");
    }

    #[test]
    fn names_of_accounts_and_nodes() {
        assert_eq!(account("system:serviceaccount:ns:a.b"), Some(("ns", "a.b")));
        for name in [
            "system:serviceaccount:ns:",
            "system:serviceaccount:ns",
            "system:serviceaccount:n.s:a",
            "system:serviceaccount:ns:a:b",
            "system:serviceaccount:ns:A",
        ] {
            assert_eq!(account(name), None, "{name}");
        }
        assert_eq!(
            (node("system:node:n1.x"), node("system:node:"), node("system:node:N")),
            (Some("n1.x"), None, None)
        );
    }

    #[test]
    fn modes_of_wanted_users() {
        let modes = |wanted: &Wanted, requester: &User| -> Vec<&str> {
            Mode::ALL.into_iter().filter(|m| m.applies(wanted, requester)).map(Mode::name).collect()
        };
        let named = |name: &str| Wanted { name: name.into(), ..Wanted::default() };
        let mut agent = User::service_account("kube-system", "agent");
        assert_eq!(modes(&named("system:node:n"), &agent), ["arbitrary-node"]);
        agent.extra.insert(NODE_NAME.into(), vec!["n".into()]);
        assert_eq!(modes(&named("system:node:n"), &agent), ["associated-node", "arbitrary-node"]);
        assert_eq!(modes(&named("system:node:m"), &agent), ["arbitrary-node"]);
        assert_eq!(modes(&named("system:serviceaccount:a:b"), &agent), ["serviceaccount"]);
        assert_eq!(modes(&named("jane"), &agent), ["user-info"]);
        let more = Wanted { groups: vec!["x".into()], ..named("system:node:n") };
        assert!(modes(&more, &agent).is_empty(), "a node's groups are fixed");
        let mut person = User::new("joe", &[]);
        person.extra = agent.extra;
        assert_eq!(modes(&named("system:node:n"), &person), ["arbitrary-node"], "no service account");
    }
}
