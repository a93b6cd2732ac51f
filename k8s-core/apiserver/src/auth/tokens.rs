//! Service account tokens: JWTs signed with the cluster's key (ES256).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::signature::Key;
pub use super::signature::KeyError;
use crate::{
    user::User,
    value::{array_at, int_at, str_at},
};

/// Audience of tokens for the API server itself.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// Number of cached tokens; the signature of a cached token is not verified again.
const KNOWN: usize = 4096;

/// Issues and verifies service account tokens.
pub struct TokenIssuer {
    key: Key,
    /// Claims of tokens with a valid signature, by SHA-256 of the token.
    known: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

/// Claims of a token.
struct Claims {
    /// Start of validity, in seconds since 1970.
    not_before: i64,
    /// End of validity, in seconds since 1970.
    expires: i64,
    audiences: Vec<String>,
    user: User,
    /// Objects that must exist for the token to be valid: resource, key, uid.
    needs: Vec<(&'static str, String, String)>,
}

impl std::fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenIssuer { <key> }")
    }
}

/// Name and uid of an object in a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Name of the object, without a namespace.
    pub name: String,
    /// Unique id; empty if unknown.
    pub uid: String,
}

/// Object that a token is bound to; deleting it invalidates the token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Bound {
    /// Not bound: valid as long as the service account exists.
    #[default]
    Nothing,
    /// A pod, and its node. Validity does not depend on the node.
    Pod(Named, Option<Named>),
    /// A Secret in the service account's namespace.
    Secret(Named),
    /// Valid while this Node exists.
    Node(Named),
}

/// The service account of a token, and the object that it is bound to.
#[derive(Clone, Debug, Default)]
pub struct TokenSubject {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub name: String,
    /// Unique id of the service account.
    pub uid: String,
    /// Object that the token is bound to.
    pub bound: Bound,
}

/// User of a valid token, and the requested audiences that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The service account's user, with its groups.
    pub user: User,
    /// Those requested audiences that the token has; at least one.
    pub audiences: Vec<String>,
}

/// Reason for which a bearer token is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It is unknown or expired, or an object that it depends on is gone.
    #[error("invalid bearer token")]
    Invalid,
    /// It is for other audiences.
    #[error("[invalid bearer token, token audiences {has} is invalid for the target audiences {want}]", has = quoted(.has), want = quoted(.want))]
    Audience {
        /// Audiences of the token.
        has: Vec<String>,
        /// Audiences that the caller accepts.
        want: Vec<String>,
    },
}

/// Formats a list of strings like Go.
fn quoted(texts: &[String]) -> String {
    let all: Vec<String> = texts.iter().map(|t| format!("{t:?}")).collect();
    format!("[{}]", all.join(" "))
}

impl TokenIssuer {
    /// Creates an issuer from a PKCS#8 P-256 key. `None`: a new key for the lifetime of the process. Without
    /// the feature `jwt` no token is issued and none is valid.
    ///
    /// # Errors
    /// The key is not a PKCS#8 P-256 key.
    pub fn new(pkcs8: Option<&[u8]>) -> Result<Self, KeyError> {
        Ok(TokenIssuer { key: Key::new(pkcs8)?, known: Mutex::default() })
    }

    /// Issues a token that is valid from `now` for `seconds`.
    ///
    /// # Errors
    /// The system has no randomness, or the feature `jwt` is off.
    pub fn issue(
        &self,
        subject: &TokenSubject,
        audiences: &[String],
        now: i64,
        seconds: i64,
    ) -> Result<String, KeyError> {
        let mut kubernetes = json!({
            "namespace": subject.namespace,
            "serviceaccount": {"name": subject.name, "uid": subject.uid},
        });
        let mut name = |field: &str, of: &Named| {
            kubernetes[field] = json!({"name": of.name});
            if !of.uid.is_empty() {
                kubernetes[field]["uid"] = of.uid.clone().into();
            }
        };
        match &subject.bound {
            Bound::Nothing => {}
            Bound::Secret(secret) => name("secret", secret),
            Bound::Node(node) => name("node", node),
            Bound::Pod(pod, node) => {
                name("pod", pod);
                if let Some(node) = node {
                    name("node", node);
                }
            }
        }
        let claims = json!({
            "aud": audiences,
            "iss": API_AUDIENCE,
            "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.name),
            "iat": now, "nbf": now, "exp": now + seconds,
            "jti": k8s_core::random::uuid().to_string(),
            "kubernetes.io": kubernetes,
        });
        let header = json!({"alg": "ES256", "typ": "JWT"});
        let message = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
        let signature = self.key.sign(message.as_bytes())?;
        Ok(format!("{message}.{}", B64.encode(signature)))
    }

    /// Verifies a token: it must be signed by this key, valid at `now` and for one of `audiences`, and its
    /// service account and bound object must be `alive` (resource, key, uid). Returns its user.
    ///
    /// # Errors
    /// The reason of the rejection.
    pub fn verify(
        &self,
        token: &str,
        audiences: &[String],
        now: i64,
        alive: &dyn Fn(&str, &str, &str) -> bool,
    ) -> Result<Verified, TokenError> {
        let claims = self.signed(token).ok_or(TokenError::Invalid)?;
        let shared: Vec<String> =
            claims.audiences.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if shared.is_empty() {
            return Err(TokenError::Audience { has: claims.audiences.clone(), want: audiences.to_vec() });
        }
        let in_time = claims.not_before <= now + 5 && now < claims.expires;
        let mut needed = claims.needs.iter();
        if !in_time || !needed.all(|(resource, key, uid)| alive(resource, key, uid)) {
            return Err(TokenError::Invalid);
        }
        Ok(Verified { user: claims.user.clone(), audiences: shared })
    }

    /// Returns the claims of a token if this key signed it. Cached, because the result never changes.
    fn signed(&self, token: &str) -> Option<Arc<Claims>> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&digest) {
            return Some(known.clone());
        }
        let claims = Arc::new(self.check(token)?);
        let mut known = lock();
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(digest, claims.clone());
        Some(claims)
    }

    fn check(&self, token: &str) -> Option<Claims> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let header: Value = serde_json::from_slice(&B64.decode(header).ok()?).ok()?;
        if str_at(&header, "/alg") != "ES256" {
            return None;
        }
        if !self.key.verifies(message.as_bytes(), &B64.decode(signature).ok()?) {
            return None;
        }
        let claims: Value = serde_json::from_slice(&B64.decode(claims).ok()?).ok()?;
        let audiences =
            array_at(&claims, "/aud").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let about = claims.get("kubernetes.io")?;
        let (namespace, name, uid) = (
            str_at(about, "/namespace"),
            str_at(about, "/serviceaccount/name"),
            str_at(about, "/serviceaccount/uid"),
        );
        let mut user = User::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")],
        );
        user.uid = uid.to_owned();
        let mut needs = vec![("serviceaccounts", format!("{namespace}/{name}"), uid.to_owned())];
        let id = str_at(&claims, "/jti");
        if !id.is_empty() {
            user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec![format!("JTI={id}")]);
        }
        let named = |kind: &str| {
            let of = |field: &str| str_at(about, &format!("/{kind}/{field}")).to_owned();
            Some(Named { name: of("name"), uid: of("uid") }).filter(|named| !named.name.is_empty())
        };
        let (pod, node) = (named("pod"), named("node"));
        let bound = [
            ("pods", named("pod"), true),
            ("secrets", named("secret"), true),
            // The node of a pod is informational.
            ("nodes", named("node").filter(|_| pod.is_none()), false),
        ];
        for (resource, named, namespaced) in bound {
            let Some(Named { name, uid }) = named else { continue };
            needs.push((resource, if namespaced { format!("{namespace}/{name}") } else { name }, uid));
        }
        for (kind, named) in [("pod", pod), ("node", node)] {
            let Some(Named { name, uid }) = named else { continue };
            for (field, value) in [("name", name), ("uid", uid)] {
                if !value.is_empty() {
                    user.extra.insert(format!("authentication.kubernetes.io/{kind}-{field}"), vec![value]);
                }
            }
        }
        Some(Claims {
            not_before: int_at(&claims, "/nbf")?,
            expires: int_at(&claims, "/exp")?,
            audiences,
            user,
            needs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(bound: Bound) -> TokenSubject {
        TokenSubject { namespace: "ns".into(), name: "default".into(), uid: "u".into(), bound }
    }

    fn own() -> Vec<String> {
        vec![API_AUDIENCE.into()]
    }

    #[test]
    fn tokens_hold_until_they_expire_or_their_account_goes() {
        let issuer = TokenIssuer::new(None).unwrap();
        let token = issuer.issue(&subject(Bound::Nothing), &own(), 1000, 600).unwrap();
        let at = |issuer: &TokenIssuer, token: &str, now, alive: &dyn Fn(&str, &str, &str) -> bool| {
            issuer.verify(token, &own(), now, alive)
        };
        let user = at(&issuer, &token, 1100, &|_, key, uid| key == "ns/default" && uid == "u").unwrap().user;
        assert_eq!(user.name, "system:serviceaccount:ns:default");
        assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("JTI="));
        assert!(at(&issuer, &token, 1700, &|_, _, _| true).is_err(), "expired");
        assert!(at(&issuer, &token, 1100, &|_, _, _| false).is_err(), "account gone");
        let mut forged = token.clone();
        forged.replace_range(token.len() - 4.., "AAAA");
        assert!(at(&issuer, &forged, 1100, &|_, _, _| true).is_err(), "forged");
        let other = TokenIssuer::new(None).unwrap();
        assert!(at(&other, &token, 1100, &|_, _, _| true).is_err(), "another key");
    }

    #[test]
    fn a_token_is_for_its_audiences() {
        let issuer = TokenIssuer::new(None).unwrap();
        let audiences = ["vault".to_owned(), "api".to_owned()];
        let token = issuer.issue(&subject(Bound::Nothing), &audiences, 1000, 600).unwrap();
        let asked = ["other".to_owned(), "api".to_owned()];
        assert_eq!(issuer.verify(&token, &asked, 1100, &|_, _, _| true).unwrap().audiences, ["api"]);
        let error = issuer.verify(&token, &own(), 1100, &|_, _, _| true).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "[invalid bearer token, token audiences [\"vault\" \"api\"] is invalid for the target audiences [{API_AUDIENCE:?}]]"
            )
        );
    }

    #[test]
    fn a_token_ends_with_what_it_is_bound_to() {
        let issuer = TokenIssuer::new(None).unwrap();
        let it = || Named { name: "x".into(), uid: "1".into() };
        let node = Named { name: "n".into(), uid: "2".into() };
        for (bound, needs) in [
            (Bound::Secret(it()), vec![("secrets", "ns/x", "1")]),
            (Bound::Node(it()), vec![("nodes", "x", "1")]),
            (Bound::Pod(it(), Some(node)), vec![("pods", "ns/x", "1")]),
        ] {
            let token = issuer.issue(&subject(bound.clone()), &own(), 1000, 600).unwrap();
            let seen = std::cell::RefCell::new(Vec::new());
            let alive = |resource: &str, key: &str, uid: &str| {
                seen.borrow_mut().push((resource.to_owned(), key.to_owned(), uid.to_owned()));
                true
            };
            let user = issuer.verify(&token, &own(), 1100, &alive).unwrap().user;
            let seen: Vec<_> = seen.take().into_iter().filter(|(r, _, _)| r != "serviceaccounts").collect();
            let needs: Vec<_> =
                needs.iter().map(|(r, k, u)| ((*r).into(), (*k).into(), (*u).into())).collect();
            assert_eq!(seen, needs, "{bound:?}");
            let node = user.extra.get("authentication.kubernetes.io/node-name");
            assert_eq!(node.is_some(), !matches!(bound, Bound::Secret(_)), "{bound:?}");
        }
    }
}
