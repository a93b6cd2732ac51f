//! Service account tokens: JWTs signed with the cluster's key (ES256).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
    },
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    user::User,
    value::{array_at, int_at, str_at},
};

/// The audience of tokens for the API server itself.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// How many tokens are remembered, so that a signature is checked once and not with every request.
const KNOWN: usize = 4096;

/// Signs and verifies service account tokens.
pub struct TokenIssuer {
    key: EcdsaKeyPair,
    random: SystemRandom,
    /// What tokens say whose signatures were right, by their SHA-256.
    known: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

/// What a token says.
struct Claims {
    /// Seconds since 1970.
    not_before: i64,
    /// Seconds since 1970.
    expires: i64,
    audiences: Vec<String>,
    user: User,
    /// The objects that must still be there for it to hold: resource, key, uid.
    needs: Vec<(&'static str, String, String)>,
}

impl std::fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenIssuer { <key> }")
    }
}

/// Name and uid of an object that a token names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Name.
    pub name: String,
    /// Uid; empty where it is not known.
    pub uid: String,
}

/// The object that a token is bound to: with it, the token becomes invalid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Bound {
    /// None: the token holds as long as its service account.
    #[default]
    Nothing,
    /// A pod, and the node that it runs on, which the token names but does not depend on.
    Pod(Named, Option<Named>),
    /// A secret of the service account's namespace.
    Secret(Named),
    /// A node.
    Node(Named),
}

/// The service account, and the object that the token is bound to.
#[derive(Clone, Debug, Default)]
pub struct TokenSubject {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub name: String,
    /// Uid of the service account.
    pub uid: String,
    /// The object that it is bound to.
    pub bound: Bound,
}

/// The user of a valid token, and those of the asked audiences that it is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The user.
    pub user: User,
    /// The audiences.
    pub audiences: Vec<String>,
}

/// Why a bearer token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It is not known, has expired, or an object that it depends on is gone.
    #[error("invalid bearer token")]
    Invalid,
    /// It is meant for other audiences.
    #[error("[invalid bearer token, token audiences {has} is invalid for the target audiences {want}]", has = quoted(.has), want = quoted(.want))]
    Audience {
        /// The audiences that it is meant for.
        has: Vec<String>,
        /// The audiences that were asked for.
        want: Vec<String>,
    },
}

/// A list of texts as Go quotes it.
fn quoted(texts: &[String]) -> String {
    let all: Vec<String> = texts.iter().map(|t| format!("{t:?}")).collect();
    format!("[{}]", all.join(" "))
}

impl TokenIssuer {
    /// From a PKCS#8 P-256 key; `None`: a new key that dies with the process.
    ///
    /// # Errors
    /// When the key is not one.
    pub fn new(pkcs8: Option<&[u8]>) -> Result<Self, String> {
        let random = SystemRandom::new();
        let generated;
        let bytes = match pkcs8 {
            Some(bytes) => bytes,
            None => {
                generated = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                    .map_err(|_| "the system has no randomness".to_owned())?;
                generated.as_ref()
            }
        };
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, bytes, &random)
            .map_err(|e| format!("service account key: {e}"))?;
        Ok(TokenIssuer { key, random, known: Mutex::default() })
    }

    /// Issues a token that is valid from `now` for `seconds`.
    ///
    /// # Errors
    /// When signing fails for want of randomness.
    pub fn issue(
        &self,
        subject: &TokenSubject,
        audiences: &[String],
        now: i64,
        seconds: i64,
    ) -> Result<String, String> {
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
        let signature =
            self.key.sign(&self.random, message.as_bytes()).map_err(|_| "signing failed".to_owned())?;
        Ok(format!("{message}.{}", B64.encode(signature)))
    }

    /// The user of a token that is signed by this key, valid at `now`, meant for one of `audiences`, and whose service account and bound object are
    /// `alive` (resource, key, uid).
    ///
    /// # Errors
    /// Why it is refused.
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

    /// What a token says, if this key signed it. That never changes, so it is found out once.
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
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(message.as_bytes(), &B64.decode(signature).ok()?)
            .ok()?;
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
            // A pod's node is only told.
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
