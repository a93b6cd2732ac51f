//! Service account tokens: JWTs signed with the cluster's key.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub use super::keys::KeyError;
use super::{
    jwt,
    keys::{PrivateKey, PublicKey},
};
use crate::{
    user::User,
    value::{int_at, str_at},
};

/// Issuer of tokens, and audience of tokens for the API server itself, unless others are configured.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// Issuer of tokens in Secrets.
const LEGACY: &str = "kubernetes/serviceaccount";

/// Prefix of the claims of tokens in Secrets.
const LEGACY_CLAIM: &str = "kubernetes.io/serviceaccount/";

/// Number of cached tokens; the signature of a cached token is not verified again.
const KNOWN: usize = 4096;

/// Settings of service account tokens.
#[derive(Clone, Debug, Default)]
pub struct ServiceAccountTokens {
    /// Issuers (`--service-account-issuer`): the first is in new tokens, all are accepted. Default:
    /// [`API_AUDIENCE`].
    pub issuers: Vec<String>,
    /// Audiences of tokens for the API server (`--api-audiences`). Default: the issuers.
    pub audiences: Vec<String>,
    /// Keys that verify tokens, beside the one that signs (`--service-account-key-file`).
    pub keys: Vec<PublicKey>,
    /// URL of the public keys in the discovery document (`--service-account-jwks-uri`). Default: at
    /// `external_address`.
    pub jwks_uri: Option<String>,
    /// `host:port` of this server for clients outside of the cluster.
    pub external_address: Option<String>,
    /// Longest lifetime of a token, in seconds (`--service-account-max-token-expiration`); longer requests
    /// get it. Default: no limit beyond 2^32.
    pub max_seconds: Option<i64>,
}

/// Issues and verifies service account tokens.
pub struct TokenIssuer {
    key: Option<PrivateKey>,
    /// Keys that verify tokens, with their ids. The first is the signing key's.
    keys: Vec<(String, PublicKey)>,
    settings: ServiceAccountTokens,
    /// Claims of tokens with a valid signature, by SHA-256 of the token.
    known: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

/// Objects that tokens depend on.
pub trait Lookup: Sync {
    /// Returns true if an object (resource, key, uid) exists.
    fn is_alive(&self, resource: &str, key: &str, uid: &str) -> bool;

    /// Returns true if a Secret holds this service account token. Default: no.
    fn holds_token(&self, _secret: &str, _token: &str) -> bool {
        false
    }
}

impl<F: Fn(&str, &str, &str) -> bool + Sync> Lookup for F {
    fn is_alive(&self, resource: &str, key: &str, uid: &str) -> bool {
        self(resource, key, uid)
    }
}

/// Claims of a token.
struct Claims {
    /// Start of validity, in seconds since 1970.
    not_before: i64,
    /// End of validity, in seconds since 1970.
    expires: i64,
    /// Audiences; `None` for the token of a Secret, which is for the API server.
    audiences: Option<Vec<String>>,
    user: User,
    /// Key of the Secret that must hold the token.
    secret: Option<String>,
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
    /// An identity provider's token does not meet its rules, or a webhook refuses it.
    #[error("[invalid bearer token{}]", listed(.reasons))]
    Refused {
        /// The reasons, without parts of the token.
        reasons: Vec<String>,
    },
    /// It is for other audiences.
    #[error("[invalid bearer token, token audiences {has} is invalid for the target audiences {want}]", has = quoted(.has), want = quoted(.want))]
    Audience {
        /// Audiences of the token.
        has: Vec<String>,
        /// Audiences that the caller accepts.
        want: Vec<String>,
    },
}

/// Formats reasons as upstream does.
fn listed(reasons: &[String]) -> String {
    reasons.iter().map(|reason| format!(", {reason}")).collect()
}

/// Formats a list of strings like Go.
fn quoted(texts: &[String]) -> String {
    let all: Vec<String> = texts.iter().map(|t| format!("{t:?}")).collect();
    format!("[{}]", all.join(" "))
}

impl TokenIssuer {
    /// Creates an issuer from a private key: PEM, or the DER of PKCS#8; RSA, P-256 or P-384. `None`: a new
    /// key for the lifetime of the process. Without the feature `jwt` no token is issued and none is valid.
    ///
    /// # Errors
    /// The key is damaged or unsupported.
    pub fn new(key: Option<&[u8]>) -> Result<Self, KeyError> {
        Self::with(key, ServiceAccountTokens::default())
    }

    /// As [`TokenIssuer::new`], with settings.
    ///
    /// # Errors
    /// The key is damaged or unsupported.
    pub fn with(key: Option<&[u8]>, mut settings: ServiceAccountTokens) -> Result<Self, KeyError> {
        let key = match key.map_or_else(PrivateKey::generate, PrivateKey::parse) {
            Err(KeyError::NoFeature) if key.is_none() => None,
            made => Some(made?),
        };
        if settings.issuers.is_empty() {
            settings.issuers.push(API_AUDIENCE.into());
        }
        if settings.audiences.is_empty() {
            settings.audiences = settings.issuers.clone();
        }
        let mut keys: Vec<(String, PublicKey)> = Vec::new();
        for public in key.iter().map(PrivateKey::public).chain(settings.keys.iter().cloned()) {
            if keys.iter().all(|(_, known)| *known != public) {
                keys.push((public.id(), public));
            }
        }
        Ok(TokenIssuer { key, keys, settings, known: Mutex::default() })
    }

    /// Returns the audiences of tokens for the API server; at least one.
    #[must_use]
    pub fn api_audiences(&self) -> &[String] {
        &self.settings.audiences
    }

    /// Returns the settings, with defaults.
    pub(crate) fn settings(&self) -> &ServiceAccountTokens {
        &self.settings
    }

    /// Iterates over the keys that verify tokens.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.iter().map(|(_, key)| key)
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
            "iss": self.settings.issuers.first(),
            "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.name),
            "iat": now, "nbf": now, "exp": now + seconds,
            "jti": k8s_core::random::uuid().to_string(),
            "kubernetes.io": kubernetes,
        });
        self.sign(&claims)
    }

    /// Returns the token of a Secret of type `kubernetes.io/service-account-token`: without audiences and
    /// without end, valid as long as the Secret holds it.
    ///
    /// # Errors
    /// As [`TokenIssuer::issue`].
    pub fn issue_legacy(&self, account: &TokenSubject, secret: &str) -> Result<String, KeyError> {
        let mut claims = json!({
            "iss": LEGACY,
            "sub": format!("system:serviceaccount:{}:{}", account.namespace, account.name),
        });
        for (name, value) in [
            ("namespace", &*account.namespace),
            ("secret.name", secret),
            ("service-account.name", &*account.name),
            ("service-account.uid", &*account.uid),
        ] {
            claims[format!("{LEGACY_CLAIM}{name}")] = value.into();
        }
        self.sign(&claims)
    }

    fn sign(&self, claims: &Value) -> Result<String, KeyError> {
        let (Some(key), Some((id, _))) = (&self.key, self.keys.first()) else {
            return Err(KeyError::NoFeature);
        };
        let header = json!({"alg": key.algorithm().name(), "kid": id});
        let message = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
        let signature = key.sign(message.as_bytes())?;
        Ok(format!("{message}.{}", B64.encode(signature)))
    }

    /// Verifies a token: it must be signed by a known key, valid at `now` and for one of `audiences`, and its
    /// service account and bound object must be alive. Returns its user.
    ///
    /// # Errors
    /// The reason of the rejection.
    pub fn verify(
        &self,
        token: &str,
        audiences: &[String],
        now: i64,
        objects: &dyn Lookup,
    ) -> Result<Verified, TokenError> {
        let claims = self.signed(token).ok_or(TokenError::Invalid)?;
        let has = claims.audiences.as_ref().unwrap_or(&self.settings.audiences);
        let shared: Vec<String> = has.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if shared.is_empty() {
            return Err(TokenError::Audience { has: has.clone(), want: audiences.to_vec() });
        }
        let in_time = claims.not_before <= now + 5 && now < claims.expires;
        let mut needed = claims.needs.iter();
        if !in_time || !needed.all(|(resource, key, uid)| objects.is_alive(resource, key, uid)) {
            return Err(TokenError::Invalid);
        }
        if claims.secret.as_ref().is_some_and(|secret| !objects.holds_token(secret, token)) {
            return Err(TokenError::Invalid);
        }
        Ok(Verified { user: claims.user.clone(), audiences: shared })
    }

    /// Returns the claims of a token if a known key signed it. Cached, because the result never changes.
    fn signed(&self, token: &str) -> Option<Arc<Claims>> {
        let token = jwt::Token::parse(token)?;
        let digest: [u8; 32] = Sha256::digest(token.text).into();
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&digest) {
            return Some(known.clone());
        }
        let claims = Arc::new(self.check(&token)?);
        let mut known = lock();
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(digest, claims.clone());
        Some(claims)
    }

    fn check(&self, token: &jwt::Token<'_>) -> Option<Claims> {
        let claims = token.unverified_claims()?;
        let issuer = str_at(&claims, "/iss");
        let legacy = issuer == LEGACY;
        if !legacy && !self.settings.issuers.iter().any(|known| known == issuer) {
            return None;
        }
        let header = token.header()?;
        // Tokens from before there were ids are tried with each key.
        let named = |id: &str| header.key_id.as_ref().is_none_or(|wanted| wanted == id);
        let mut keys = self.keys.iter().filter(|(id, _)| named(id));
        if !keys.any(|(_, key)| header.algorithm == key.algorithm() && token.is_signed_by(key, &header)) {
            return None;
        }
        if legacy { Claims::of_secret(&claims) } else { Claims::new(&claims) }
    }
}

impl Claims {
    /// Returns the claims of a token in a Secret.
    fn of_secret(claims: &Value) -> Option<Claims> {
        let part = |name: &str| {
            let value = claims.get(format!("{LEGACY_CLAIM}{name}")).and_then(Value::as_str);
            value.filter(|value| !value.is_empty())
        };
        let (namespace, secret) = (part("namespace")?, part("secret.name")?);
        let (name, uid) = (part("service-account.name")?, part("service-account.uid")?);
        let mut user = User::service_account(namespace, name);
        if str_at(claims, "/sub") != user.name {
            return None;
        }
        user.uid = uid.to_owned();
        Some(Claims {
            not_before: 0,
            expires: i64::MAX,
            audiences: None,
            user,
            secret: Some(format!("{namespace}/{secret}")),
            needs: vec![("serviceaccounts", format!("{namespace}/{name}"), uid.to_owned())],
        })
    }

    fn new(claims: &Value) -> Option<Claims> {
        let about = claims.get("kubernetes.io")?;
        let (namespace, name, uid) = (
            str_at(about, "/namespace"),
            str_at(about, "/serviceaccount/name"),
            str_at(about, "/serviceaccount/uid"),
        );
        let mut user = User::service_account(namespace, name);
        user.uid = uid.to_owned();
        let mut needs = vec![("serviceaccounts", format!("{namespace}/{name}"), uid.to_owned())];
        let id = str_at(claims, "/jti");
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
            not_before: int_at(claims, "/nbf")?,
            expires: int_at(claims, "/exp")?,
            audiences: Some(jwt::audiences(claims)),
            user,
            secret: None,
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

    fn always(_: &str, _: &str, _: &str) -> bool {
        true
    }

    fn never(_: &str, _: &str, _: &str) -> bool {
        false
    }

    fn own() -> Vec<String> {
        vec![API_AUDIENCE.into()]
    }

    #[test]
    fn tokens_hold_until_they_expire_or_their_account_goes() {
        let issuer = TokenIssuer::new(None).unwrap();
        let token = issuer.issue(&subject(Bound::Nothing), &own(), 1000, 600).unwrap();
        let at = |issuer: &TokenIssuer, token: &str, now, alive: &dyn Lookup| {
            issuer.verify(token, &own(), now, alive)
        };
        let own_account = |_: &str, key: &str, uid: &str| key == "ns/default" && uid == "u";
        let user = at(&issuer, &token, 1100, &own_account).unwrap().user;
        assert_eq!(user.name, "system:serviceaccount:ns:default");
        assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("JTI="));
        assert!(at(&issuer, &token, 1700, &always).is_err(), "expired");
        assert!(at(&issuer, &token, 1100, &never).is_err(), "account gone");
        let mut forged = token.clone();
        forged.replace_range(token.len() - 4.., "AAAA");
        assert!(at(&issuer, &forged, 1100, &always).is_err(), "forged");
        let other = TokenIssuer::new(None).unwrap();
        assert!(at(&other, &token, 1100, &always).is_err(), "another key");
    }

    #[test]
    fn a_token_is_for_its_audiences() {
        let issuer = TokenIssuer::new(None).unwrap();
        let audiences = ["vault".to_owned(), "api".to_owned()];
        let token = issuer.issue(&subject(Bound::Nothing), &audiences, 1000, 600).unwrap();
        let asked = ["other".to_owned(), "api".to_owned()];
        assert_eq!(issuer.verify(&token, &asked, 1100, &always).unwrap().audiences, ["api"]);
        let error = issuer.verify(&token, &own(), 1100, &always).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "[invalid bearer token, token audiences [\"vault\" \"api\"] is invalid for the target audiences [{API_AUDIENCE:?}]]"
            )
        );
    }

    /// Tokens whose parts lie: of another algorithm, another key's id, another issuer.
    #[test]
    fn a_token_names_its_key_and_cannot_choose_its_algorithm() {
        let rsa = include_bytes!("../../tests/data/rsa-2048.pem");
        let old = TokenIssuer::new(None).unwrap();
        let keys = old.keys().cloned().collect();
        let settings = ServiceAccountTokens {
            issuers: vec!["https://new".into(), API_AUDIENCE.into()],
            keys,
            ..ServiceAccountTokens::default()
        };
        let new = TokenIssuer::with(Some(rsa), settings).unwrap();
        assert_eq!(new.api_audiences(), ["https://new", API_AUDIENCE]);
        let by_old = old.issue(&subject(Bound::Nothing), &own(), 1000, 600).unwrap();
        let by_new = new.issue(&subject(Bound::Nothing), &own(), 1000, 600).unwrap();
        assert!(new.verify(&by_old, &own(), 1100, &always).is_ok(), "an old key and issuer");
        assert!(new.verify(&by_new, &own(), 1100, &always).is_ok());
        assert!(old.verify(&by_new, &own(), 1100, &always).is_err(), "an unknown issuer");
        let ids: Vec<String> = new.keys().map(PublicKey::id).collect();
        let claims = by_new.split('.').nth(1).unwrap();
        let resigned = |alg: &str, kid: &str| {
            let header = B64.encode(json!({"alg": alg, "kid": kid}).to_string());
            let message = format!("{header}.{claims}");
            let signature = new.key.as_ref().unwrap().sign(message.as_bytes()).unwrap();
            format!("{message}.{}", B64.encode(signature))
        };
        assert!(new.verify(&resigned("RS256", &ids[0]), &own(), 1100, &always).is_ok());
        for (alg, kid) in [
            ("RS256", &*ids[1]),
            ("RS256", "unknown"),
            ("PS256", &ids[0]),
            ("RS512", &ids[0]),
            ("HS256", &ids[0]),
            ("none", &ids[0]),
        ] {
            assert!(new.verify(&resigned(alg, kid), &own(), 1100, &always).is_err(), "{alg} {kid}");
        }
        let unsigned = format!("{}.{claims}.", B64.encode(r#"{"alg":"none"}"#));
        assert!(new.verify(&unsigned, &own(), 1100, &always).is_err());
        assert!(new.verify(&"a".repeat(1 << 20), &own(), 1100, &always).is_err());
    }

    #[test]
    fn a_secrets_token_is_valid_while_the_secret_holds_it() {
        struct Holding(String);
        impl Lookup for Holding {
            fn is_alive(&self, resource: &str, key: &str, uid: &str) -> bool {
                (resource, key, uid) == ("serviceaccounts", "ns/default", "u")
            }
            fn holds_token(&self, secret: &str, token: &str) -> bool {
                secret == "ns/s" && token == self.0
            }
        }
        let issuer = TokenIssuer::new(None).unwrap();
        let token = issuer.issue_legacy(&subject(Bound::Nothing), "s").unwrap();
        let holding = Holding(token.clone());
        let found = issuer.verify(&token, &own(), i64::MAX - 9, &holding).unwrap();
        assert_eq!(found.user.name, "system:serviceaccount:ns:default");
        assert_eq!((found.user.uid.as_str(), found.audiences), ("u", own()));
        assert!(issuer.verify(&token, &["vault".to_owned()], 0, &holding).is_err());
        assert!(issuer.verify(&token, &own(), 0, &Holding(String::new())).is_err(), "the secret has another");
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
            let seen = Mutex::new(Vec::new());
            let alive = |resource: &str, key: &str, uid: &str| {
                seen.lock().unwrap().push((resource.to_owned(), key.to_owned(), uid.to_owned()));
                true
            };
            let user = issuer.verify(&token, &own(), 1100, &alive).unwrap().user;
            let seen: Vec<_> =
                seen.into_inner().unwrap().into_iter().filter(|(r, _, _)| r != "serviceaccounts").collect();
            let needs: Vec<_> =
                needs.iter().map(|(r, k, u)| ((*r).into(), (*k).into(), (*u).into())).collect();
            assert_eq!(seen, needs, "{bound:?}");
            let node = user.extra.get("authentication.kubernetes.io/node-name");
            assert_eq!(node.is_some(), !matches!(bound, Bound::Secret(_)), "{bound:?}");
        }
    }
}
