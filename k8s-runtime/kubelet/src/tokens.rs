//! Tokens of service accounts, bound to the pod that uses them: asked for once, asked for again before they
//! expire.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_core::{
    client::{Client, Error},
    clock::Clock,
    meta::ObjectExt,
};

use crate::types::*;

/// A token is refreshed after this time at the latest.
const LONGEST_USE: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    pod_uid: String,
    audience: String,
    expiration: i64,
}

/// A token and its refresh time.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) token: String,
    pub(crate) refresh_at: Timestamp,
}

/// The tokens of this node's pods.
#[derive(Debug)]
pub(crate) struct Tokens {
    client: Client,
    clock: Clock,
    known: Mutex<HashMap<Key, Token>>,
}

impl Tokens {
    pub(crate) fn new(client: Client, clock: Clock) -> Self {
        Tokens { client, clock, known: Mutex::default() }
    }

    /// Returns a token for the pod's service account. An empty `audience` is the API server's.
    pub(crate) async fn get(&self, pod: &Pod, audience: &str, expiration: i64) -> Result<Token, Error> {
        let key = Key { pod_uid: pod.uid().to_owned(), audience: audience.to_owned(), expiration };
        let now = self.clock.now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(token) = known.filter(|t| now < t.refresh_at) {
            return Ok(token);
        }
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
        let account = account.filter(|a| !a.is_empty()).unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(if audience.is_empty() { Vec::new() } else { vec![audience.to_owned()] }),
                expiration_seconds: Some(expiration),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name().to_owned()),
                    uid: Some(pod.uid().to_owned()),
                }),
            }),
            ..TokenRequest::default()
        };
        let api = self.client.namespaced::<ServiceAccount>(pod.namespace());
        let answer: TokenRequest = api.create_subresource(account, "token", &request).await?;
        let status = answer.status.unwrap_or_default();
        let expires = status.expiration_timestamp.map(|t| t.0);
        let life = expires.map_or(Duration::from_secs(3600), |t| self.clock.until(t));
        let use_for = life.mul_f64(0.8).min(LONGEST_USE);
        let token = Token {
            token: status.token.unwrap_or_default(),
            refresh_at: now.saturating_add(use_for).unwrap_or(now),
        };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token.clone());
        Ok(token)
    }

    /// Removes a pod's tokens from the cache.
    pub(crate) fn forget(&self, pod_uid: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| key.pod_uid != pod_uid);
    }
}
