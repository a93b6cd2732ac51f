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
    value::{integer, list, text},
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
    user: User,
    /// The objects that must still be there for it to hold: resource, key, uid.
    needs: Vec<(&'static str, String, String)>,
}

impl std::fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenIssuer { <key> }")
    }
}

/// The service account, and the object the token is bound to (pod name and uid), if any.
#[derive(Clone, Debug, Default)]
pub struct TokenSubject {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub name: String,
    /// Uid of the service account.
    pub uid: String,
    /// Pod name and uid.
    pub pod: Option<(String, String)>,
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
        if let Some((name, uid)) = &subject.pod {
            kubernetes["pod"] = json!({"name": name, "uid": uid});
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

    /// The user of a token that is signed by this key, valid at `now`, meant for the API server, and whose service account and pod are `alive`
    /// (resource, key, uid).
    #[must_use]
    pub fn verify(&self, token: &str, now: i64, alive: &dyn Fn(&str, &str, &str) -> bool) -> Option<User> {
        let claims = self.signed(token)?;
        let in_time = claims.not_before <= now + 5 && now < claims.expires;
        let mut needed = claims.needs.iter();
        (in_time && needed.all(|(resource, key, uid)| alive(resource, key, uid))).then(|| claims.user.clone())
    }

    /// What a token says, if this key signed it and it is meant for the API server. That never changes, so it is found out once.
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
        if text(&header, "/alg") != "ES256" {
            return None;
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(message.as_bytes(), &B64.decode(signature).ok()?)
            .ok()?;
        let claims: Value = serde_json::from_slice(&B64.decode(claims).ok()?).ok()?;
        if !list(&claims, "/aud").iter().any(|a| a == API_AUDIENCE) {
            return None;
        }
        let about = claims.get("kubernetes.io")?;
        let (namespace, name, uid) = (
            text(about, "/namespace"),
            text(about, "/serviceaccount/name"),
            text(about, "/serviceaccount/uid"),
        );
        let mut user = User::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")],
        );
        user.uid = uid.to_owned();
        let mut needs = vec![("serviceaccounts", format!("{namespace}/{name}"), uid.to_owned())];
        let (pod, pod_uid) = (text(about, "/pod/name"), text(about, "/pod/uid"));
        if !pod.is_empty() {
            needs.push(("pods", format!("{namespace}/{pod}"), pod_uid.to_owned()));
            user.extra.insert("authentication.kubernetes.io/pod-name".into(), vec![pod.into()]);
            user.extra.insert("authentication.kubernetes.io/pod-uid".into(), vec![pod_uid.into()]);
        }
        Some(Claims {
            not_before: integer(&claims, "/nbf")?,
            expires: integer(&claims, "/exp")?,
            user,
            needs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_hold_until_they_expire_or_their_account_goes() {
        let issuer = TokenIssuer::new(None).unwrap();
        let subject =
            TokenSubject { namespace: "ns".into(), name: "default".into(), uid: "u".into(), pod: None };
        let token = issuer.issue(&subject, &[API_AUDIENCE.into()], 1000, 600).unwrap();
        let user = issuer.verify(&token, 1100, &|_, key, uid| key == "ns/default" && uid == "u").unwrap();
        assert_eq!(user.name, "system:serviceaccount:ns:default");
        assert!(issuer.verify(&token, 1700, &|_, _, _| true).is_none(), "expired");
        assert!(issuer.verify(&token, 1100, &|_, _, _| false).is_none(), "account gone");
        let mut forged = token.clone();
        forged.replace_range(token.len() - 4.., "AAAA");
        assert!(issuer.verify(&forged, 1100, &|_, _, _| true).is_none(), "forged");
        let other = TokenIssuer::new(None).unwrap();
        assert!(other.verify(&token, 1100, &|_, _, _| true).is_none(), "another key");
        let elsewhere = issuer.issue(&subject, &["vault".into()], 1000, 600).unwrap();
        assert!(issuer.verify(&elsewhere, 1100, &|_, _, _| true).is_none(), "another audience");
    }
}
