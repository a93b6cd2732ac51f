//! Bootstrap tokens: Secrets of kube-system with which new nodes introduce themselves.
//!
//! [`signing`] signs the kubeconfig in kube-public/cluster-info with each token that is for signing, so that
//! whoever has a token can trust it. [`cleaning`] deletes expired tokens. Both are off by default, as
//! upstream.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_core::{
    api::api::core::v1::{ConfigMap, Secret},
    client::{DeleteOptions, ListParams},
    meta::{ObjectExt, ObjectKey},
};
use ring::hmac;
use serde_json::json;

use super::Options;
use k8s_controllers::{Action, Context, Controller, Environment, Error, Reconcile};

const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAMESPACE: &str = "kube-system";
/// The signed ConfigMap.
const INFO: (&str, &str) = ("kube-public", "cluster-info");
/// Key of its signed content.
const CONTENT: &str = "kubeconfig";
/// Prefix of the keys of signatures, before the token's id.
const SIGNATURE: &str = "jws-kubeconfig-";

/// Returns an environment whose cache has Secrets of bootstrap tokens only.
fn tokens_only(mut environment: Environment) -> Environment {
    let fields = format!("type={TYPE}");
    environment.caches = environment.caches.scoped::<Secret>(ListParams { fields, ..ListParams::default() });
    environment
}

fn is_token(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(TYPE) && secret.namespace() == NAMESPACE
}

fn text<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value.and_then(|value| std::str::from_utf8(&value.0).ok()).unwrap_or_default()
}

/// The rest of a token's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Endless,
    Left(Duration),
    Over,
}

/// Returns a token's life; it is over if its expiration is no time.
fn life(secret: &Secret, now: Timestamp) -> Life {
    let expiration = text(secret, "expiration");
    if expiration.is_empty() {
        return Life::Endless;
    }
    let left = expiration.parse::<Timestamp>().ok().map(|end| end.duration_since(now));
    match left.and_then(|left| Duration::try_from(left).ok()).filter(|left| !left.is_zero()) {
        Some(left) => Life::Left(left),
        None => Life::Over,
    }
}

pub(super) fn cleaning(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<Secret>::new().named("token-cleaner").run_in(tokens_only(environment), Cleaning)
}

struct Cleaning;

impl Reconcile for Cleaning {
    type Kind = Secret;

    async fn reconcile(&self, cx: &Context, secret: Arc<Secret>) -> Result<Action, Error> {
        if !is_token(&secret) || secret.is_deleting() {
            return Ok(Action::await_change());
        }
        match life(&secret, cx.clock().now()) {
            Life::Endless => Ok(Action::await_change()),
            Life::Left(left) => Ok(Action::requeue_after(left)),
            Life::Over => {
                match cx.delete(&*secret, DeleteOptions::default().with_uid(secret.uid())).await {
                    // It is gone, or there is a new one of the name, which comes as an event.
                    Err(Error::Api(e)) if e.is_not_found() || e.is_conflict() => {}
                    done => done?,
                }
                Ok(Action::await_change())
            }
        }
    }
}

pub(super) fn signing(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    let (namespace, name) = INFO;
    let mut environment = tokens_only(environment);
    let fields = format!("metadata.name={name},metadata.namespace={namespace}");
    environment.caches =
        environment.caches.scoped::<ConfigMap>(ListParams { fields, ..ListParams::default() });
    Controller::<ConfigMap>::new()
        .named("bootstrap-signer")
        .watches::<Secret>(|_, _| vec![ObjectKey::new(INFO.0, INFO.1)])
        .run_in(environment, Signing)
}

struct Signing;

impl Reconcile for Signing {
    type Kind = ConfigMap;

    async fn reconcile(&self, cx: &Context, info: Arc<ConfigMap>) -> Result<Action, Error> {
        if (info.namespace(), info.name()) != INFO || info.is_deleting() {
            return Ok(Action::await_change());
        }
        let now = cx.clock().now();
        let tokens = cx.caches().of::<Secret>().list();
        let signers: Vec<&Arc<Secret>> = tokens.iter().filter(|secret| signs(secret, now)).collect();
        if let Some(data) = signed(info.data.as_ref(), &signers)
            && info.data.as_ref() != Some(&data)
        {
            match cx.replace(&ConfigMap { data: Some(data), ..ConfigMap::clone(&info) }).await {
                // Changed or deleted meanwhile: that comes as an event.
                Err(Error::Api(e)) if e.is_conflict() || e.is_not_found() => {}
                done => drop(done?),
            }
        }
        // The signature of a token ends with it, whether it is deleted or not.
        let ends = signers.iter().filter_map(|secret| match life(secret, now) {
            Life::Left(left) => Some(left),
            Life::Endless | Life::Over => None,
        });
        Ok(ends.min().map_or_else(Action::await_change, Action::requeue_after))
    }
}

/// Returns true if a Secret is a valid token for signing.
fn signs(secret: &Secret, now: Timestamp) -> bool {
    let id = text(secret, "token-id");
    let form = id.len() == 6 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    is_token(secret)
        && !secret.is_deleting()
        && form
        && secret.name() == format!("bootstrap-token-{id}")
        && !text(secret, "token-secret").is_empty()
        && text(secret, "usage-bootstrap-signing") == "true"
        && life(secret, now) != Life::Over
}

/// Returns the data with the signatures of these tokens and no others; `None` without a kubeconfig.
fn signed(
    data: Option<&BTreeMap<String, String>>,
    signers: &[&Arc<Secret>],
) -> Option<BTreeMap<String, String>> {
    let data = data?;
    let content = data.get(CONTENT)?;
    let rest = data.iter().filter(|(key, _)| !key.starts_with(SIGNATURE));
    let mut next: BTreeMap<String, String> = rest.map(|(key, value)| (key.clone(), value.clone())).collect();
    for secret in signers {
        let id = text(secret, "token-id");
        next.insert(format!("{SIGNATURE}{id}"), detached(content, id, text(secret, "token-secret")));
    }
    Some(next)
}

/// Returns the JSON Web Signature (HS256) of a content, without the content: RFC 7515, appendix F.
fn detached(content: &str, id: &str, secret: &str) -> String {
    let header = B64.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hmac::sign(&key, format!("{header}.{}", B64.encode(content)).as_bytes());
    format!("{header}..{}", B64.encode(signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signature of upstream's own test (staging/src/k8s.io/cluster-bootstrap/token/jws/jws_test.go).
    #[test]
    fn signatures_are_upstreams() {
        assert_eq!(
            detached(
                "Hello from the other side. I must have called a thousand times.",
                "joshua",
                "my voice is my passcode"
            ),
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"
        );
    }

    #[test]
    fn a_life_ends_at_its_expiration_or_where_that_is_no_time() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        for (expiration, want) in [
            ("", Life::Endless),
            ("2026-01-01T00:00:05Z", Life::Left(Duration::from_secs(5))),
            ("2026-01-01T00:00:00Z", Life::Over),
            ("2025-12-31T23:59:59Z", Life::Over),
            ("tomorrow", Life::Over),
        ] {
            let data = [("expiration".to_owned(), k8s_core::api::ByteString(expiration.into()))];
            let secret = Secret { data: Some(data.into()), ..Secret::default() };
            assert_eq!(life(&secret, now), want, "{expiration}");
        }
    }
}
