//! User impersonation, and the permissions that it requires.

use http::HeaderMap;
use k8s_core::status::ApiStatus;

use super::rbac::Attributes;
use crate::user::User;

const AUTHENTICATION: &str = "authentication.k8s.io";
const EXTRA: &str = "impersonate-extra-";

/// The impersonated user, and the attributes that the requester must be allowed to `impersonate`.
#[derive(Debug, PartialEq)]
pub(crate) struct Impersonated {
    pub(crate) user: User,
    needs: Vec<Need>,
}

#[derive(Debug, PartialEq)]
struct Need {
    group: &'static str,
    resource: &'static str,
    subresource: String,
    namespace: String,
    name: String,
}

impl Impersonated {
    /// Returns the required permissions.
    pub(crate) fn needs(&self) -> impl Iterator<Item = Attributes<'_>> {
        self.needs.iter().map(|need| Attributes {
            verb: "impersonate",
            group: need.group,
            resource: need.resource,
            subresource: &need.subresource,
            namespace: &need.namespace,
            name: &need.name,
            ..Attributes::default()
        })
    }

    /// Parses the impersonation headers of a request.
    ///
    /// # Errors
    /// Groups, uid or extra data without a user.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, ApiStatus> {
        let values = |name: &str| -> Vec<String> {
            headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
        };
        let names = values("impersonate-user");
        let groups = values("impersonate-group");
        let uid = values("impersonate-uid").pop();
        let extra = || headers.keys().filter_map(|k| k.as_str().strip_prefix(EXTRA));
        let Some(name) = names.into_iter().next().filter(|n| !n.is_empty()) else {
            if groups.is_empty() && uid.is_none() && extra().next().is_none() {
                return Ok(None);
            }
            return Err(ApiStatus::internal(
                "impersonation of groups, uid or extra data needs a user: set Impersonate-User as well",
            ));
        };
        let plain = |group, resource, name: &str| Need {
            group,
            resource,
            subresource: String::new(),
            namespace: String::new(),
            name: name.to_owned(),
        };
        let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        let mut needs = vec![match account {
            Some((namespace, account)) => {
                Need { namespace: namespace.to_owned(), ..plain("", "serviceaccounts", account) }
            }
            None => plain("", "users", &name),
        }];
        needs.extend(groups.iter().map(|group| plain("", "groups", group)));
        let mut user = if name == "system:anonymous" && groups.is_empty() {
            User::anonymous()
        } else if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
            let own = format!("system:serviceaccounts:{namespace}");
            User::new(&name, &["system:serviceaccounts", &own])
        } else {
            User::new(&name, &groups.iter().map(String::as_str).collect::<Vec<_>>())
        };
        if let Some(uid) = uid {
            needs.push(plain(AUTHENTICATION, "uids", &uid));
            user.uid = uid;
        }
        for key in extra() {
            let found = values(&format!("{EXTRA}{key}"));
            let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned();
            needs.extend(found.iter().map(|value| Need {
                subresource: key.clone(),
                ..plain(AUTHENTICATION, "userextras", value)
            }));
            user.extra.insert(key, found);
        }
        Ok(Some(Impersonated { user, needs }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(headers: &[(&'static str, &'static str)]) -> Result<Option<Impersonated>, ApiStatus> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, http::HeaderValue::from_static(value));
        }
        Impersonated::from_headers(&map)
    }

    #[test]
    fn every_part_must_be_allowed() {
        assert_eq!(ask(&[]).unwrap(), None);
        let jane = ask(&[
            ("impersonate-user", "jane"),
            ("impersonate-group", "dev"),
            ("impersonate-uid", "7"),
            ("impersonate-extra-acme.com%2fproject", "x"),
        ]);
        let jane = jane.unwrap().unwrap();
        assert_eq!(jane.user.groups, ["dev", "system:authenticated"]);
        assert_eq!(jane.user.extra["acme.com/project"], ["x"]);
        let needs: Vec<_> = jane.needs().map(|n| (n.resource, n.subresource, n.name)).collect();
        assert_eq!(
            needs,
            [
                ("users", "", "jane"),
                ("groups", "", "dev"),
                ("uids", "", "7"),
                ("userextras", "acme.com/project", "x")
            ]
        );
    }

    #[test]
    fn service_accounts_bring_their_groups() {
        let account = ask(&[("impersonate-user", "system:serviceaccount:ns:a")]).unwrap().unwrap();
        let need = account.needs().next().unwrap();
        assert_eq!((need.resource, need.namespace, need.name), ("serviceaccounts", "ns", "a"));
        assert_eq!(
            account.user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
        );
    }

    #[test]
    fn groups_without_a_user_are_refused() {
        assert!(ask(&[("impersonate-group", "system:masters")]).is_err());
    }
}
