//! Bearer tokens that another server knows: a TokenReview is posted to it, and its answer is cached.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{Method, Request, StatusCode, header};
use k8s_core::{
    client::{Body, Remote, RemoteConfig, Transport, body_from_bytes},
    random,
};
use k8s_metrics::Registry;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    constant_time::{Hashed, hashed},
    metrics::TokenCache,
    tokens::Verified,
};
use crate::{
    user::User,
    value::{array_at, str_at},
    webhook_client::whole,
};

/// Largest answer, in bytes.
const LARGEST: usize = 1 << 20;
/// Longest token that is sent, in bytes.
const LONGEST: usize = 64 << 10;
/// Timeout of a token's review, repetitions included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Number of attempts while the webhook answers that it is overloaded or broken.
const ATTEMPTS: u32 = 5;
/// Wait before the second attempt; each further wait is half as long again.
const BACKOFF: Duration = Duration::from_millis(500);
/// Number of concurrent reviews; further ones wait.
const CONCURRENT: usize = 100;
/// Number of cached answers of each kind, positive and negative, so that invalid tokens displace no valid
/// ones.
const CACHED: usize = 4096;

/// Version of the TokenReview that the webhook understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReviewVersion {
    /// `authentication.k8s.io/v1`.
    V1,
    /// `authentication.k8s.io/v1beta1`, upstream's default.
    #[default]
    V1beta1,
}

impl ReviewVersion {
    fn api_version(self) -> &'static str {
        match self {
            ReviewVersion::V1 => "authentication.k8s.io/v1",
            ReviewVersion::V1beta1 => "authentication.k8s.io/v1beta1",
        }
    }
}

impl std::str::FromStr for ReviewVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "v1" => Ok(ReviewVersion::V1),
            "v1beta1" => Ok(ReviewVersion::V1beta1),
            _ => Err(format!(
                "unsupported authentication webhook version {text:?}, supported versions are \"v1\", \"v1beta1\""
            )),
        }
    }
}

/// A token webhook cannot be called with its settings.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WebhookError(String);

/// Cached answers until they expire.
struct Cache<T>(HashMap<Hashed, (Instant, T)>);

impl<T: Clone> Cache<T> {
    fn get(&self, key: &Hashed, now: Instant) -> Option<T> {
        self.0.get(key).filter(|(end, _)| now < *end).map(|(_, answer)| answer.clone())
    }

    fn put(&mut self, key: Hashed, end: Instant, answer: T, now: Instant) {
        if self.0.len() >= CACHED {
            self.0.retain(|_, (end, _)| now < *end);
        }
        if self.0.len() >= CACHED {
            self.0.clear();
        }
        self.0.insert(key, (end, answer));
    }
}

/// A webhook that reviews bearer tokens (`--authentication-token-webhook-config-file`).
pub struct TokenWebhook {
    remote: Remote,
    /// URL path of the webhook.
    path: String,
    version: ReviewVersion,
    ttl: Duration,
    /// Part of the cache's keys, so that a memory image tells no token by its hash.
    salt: [u8; 32],
    valid: Mutex<Cache<Verified>>,
    invalid: Mutex<Cache<String>>,
    places: Semaphore,
    metrics: Option<TokenCache>,
}

impl fmt::Debug for TokenWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenWebhook").field("remote", &self.remote).finish_non_exhaustive()
    }
}

impl TokenWebhook {
    /// Creates a webhook at the URL of `config.server`, whose answers are used for `ttl`. Upstream's default:
    /// two minutes.
    ///
    /// ```
    /// use k8s_apiserver::auth::{Authenticator, ReviewVersion, TokenWebhook};
    /// use k8s_core::client::RemoteConfig;
    /// use std::time::Duration;
    /// let server = "https://tokens.example.com/review".into();
    /// let config = RemoteConfig { server, ..RemoteConfig::default() };
    /// let webhook = TokenWebhook::new(&config, ReviewVersion::V1, Duration::from_secs(120))?;
    /// let authenticator = Authenticator::default().token_webhook(webhook);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The unusable part of the settings.
    pub fn new(config: &RemoteConfig, version: ReviewVersion, ttl: Duration) -> Result<Self, WebhookError> {
        let url: http::Uri = config.server.parse().map_err(|e| WebhookError(format!("server: {e}")))?;
        let remote = Remote::new(config).map_err(|e| WebhookError(e.to_string()))?;
        let mut salt = [0; 32];
        salt[..16].copy_from_slice(random::uuid().as_bytes());
        salt[16..].copy_from_slice(random::uuid().as_bytes());
        Ok(TokenWebhook {
            remote,
            path: url.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            version,
            ttl,
            salt,
            valid: Mutex::new(Cache(HashMap::new())),
            invalid: Mutex::new(Cache(HashMap::new())),
            places: Semaphore::new(CONCURRENT),
            metrics: None,
        })
    }

    /// Measures cache and calls in a server's metrics.
    pub(super) fn measure(&mut self, registry: &Registry) {
        self.metrics = Some(TokenCache::new(registry));
    }

    /// Returns the user of a token for one of `audiences`.
    ///
    /// # Errors
    /// The reason of the rejection; empty if the webhook gives none.
    #[expect(clippy::disallowed_methods, reason = "the duration of an authentication")]
    pub(super) async fn user(&self, token: &str, audiences: &[String]) -> Result<Verified, String> {
        let (begun, mut hit) = (Instant::now(), true);
        let found = self.found(token, audiences, &mut hit).await;
        if let Some(metrics) = &self.metrics {
            metrics.looked_up(hit, begun.elapsed());
        }
        found
    }

    /// As [`TokenWebhook::user`]. `hit` is false afterwards if the cache has no answer.
    #[expect(clippy::disallowed_methods, reason = "the age of answers of another server, in real time")]
    async fn found(&self, token: &str, audiences: &[String], hit: &mut bool) -> Result<Verified, String> {
        if token.len() > LONGEST {
            return Err("the token is too long".into());
        }
        let key = hashed(&[&self.salt, audiences.join("\n").as_bytes(), b"\0", token.as_bytes()].concat());
        let now = Instant::now();
        if let Some(known) = lock(&self.valid).get(&key, now) {
            return Ok(known);
        }
        if let Some(reason) = lock(&self.invalid).get(&key, now) {
            return Err(reason);
        }
        *hit = false;
        let active = |status| self.metrics.as_ref().map(|metrics| metrics.active(status));
        let review = async {
            let blocked = active("blocked");
            let _place = self.places.acquire().await.map_err(|e| e.to_string())?;
            drop(blocked);
            let _in_flight = active("in_flight");
            self.review(token, audiences).await
        };
        let answer = tokio::time::timeout(TIMEOUT, review).await.map_err(|_| "timeout".to_owned()).flatten();
        if let Some(metrics) = &self.metrics {
            metrics.fetched(answer.is_ok());
        }
        // Failures to ask are not cached.
        let review = answer.map_err(|why| {
            tracing::warn!(webhook = self.remote.host(), why, "token webhook failed");
            format!("token webhook: {why}")
        })?;
        let now = Instant::now();
        let decision = decide(&review, audiences);
        match &decision {
            Ok(verified) => lock(&self.valid).put(key, now + self.ttl, verified.clone(), now),
            Err(reason) => lock(&self.invalid).put(key, now + self.ttl, reason.clone(), now),
        }
        decision
    }

    /// Posts a TokenReview and returns the answer.
    async fn review(&self, token: &str, audiences: &[String]) -> Result<Value, String> {
        let review = json!({
            "kind": "TokenReview", "apiVersion": self.version.api_version(), "metadata": {"creationTimestamp": null},
            "spec": {"token": token, "audiences": audiences}, "status": {"user": {}},
        });
        let review = review.to_string();
        let mut wait = BACKOFF;
        let mut attempt = 1;
        loop {
            let failed = match self.post(&review).await {
                Ok((StatusCode::OK | StatusCode::CREATED, body)) => return self.parsed(&body),
                Ok((code, _)) if !code.is_server_error() && code != StatusCode::TOO_MANY_REQUESTS => {
                    return Err(format!("status {code}"));
                }
                Ok((code, _)) => format!("status {code}"),
                // A pooled connection may have ended; a webhook that is down stays down.
                Err(why) if attempt == 1 => {
                    attempt += 1;
                    tracing::debug!(why, "token webhook is asked again");
                    continue;
                }
                Err(why) => return Err(why),
            };
            if attempt >= ATTEMPTS {
                return Err(failed);
            }
            attempt += 1;
            k8s_core::clock::Clock::system().sleep(wait).await;
            wait = wait * 3 / 2;
        }
    }

    async fn post(&self, review: &str) -> Result<(StatusCode, bytes::Bytes), String> {
        let request: Request<Body> = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(body_from_bytes(review.to_owned()))
            .map_err(|e| e.to_string())?;
        let response = self.remote.call(request).await.map_err(|e| e.to_string())?;
        let code = response.status();
        Ok((code, whole(response.into_body(), LARGEST).await?))
    }

    fn parsed(&self, body: &[u8]) -> Result<Value, String> {
        let answer: Value =
            serde_json::from_slice(body).map_err(|e| format!("the answer is no JSON: {e}"))?;
        let wanted = self.version.api_version();
        let (version, kind) = (str_at(&answer, "/apiVersion"), str_at(&answer, "/kind"));
        if kind == "TokenReview" && version == wanted {
            return Ok(answer);
        }
        Err(format!("the answer is {version} {kind:?}, want {wanted} TokenReview"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the user of an answered review, or the webhook's reason.
fn decide(review: &Value, audiences: &[String]) -> Result<Verified, String> {
    let texts = |path: &str| -> Vec<String> {
        array_at(review, path).iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let said = texts("/status/audiences");
    // A webhook that knows no audiences means the API server's.
    let mut shared = if said.is_empty() { audiences.to_vec() } else { said };
    shared.retain(|audience| audiences.contains(audience));
    let authenticated = review.pointer("/status/authenticated").and_then(Value::as_bool).unwrap_or(false);
    if !authenticated || shared.is_empty() {
        return Err(str_at(review, "/status/error").to_owned());
    }
    let name = str_at(review, "/status/user/username");
    if name.is_empty() {
        return Err("token webhook: the answer has no user name".into());
    }
    let groups = texts("/status/user/groups");
    let mut user = User::new(name, &groups.iter().map(String::as_str).collect::<Vec<_>>());
    user.uid = str_at(review, "/status/user/uid").to_owned();
    for (key, values) in review.pointer("/status/user/extra").and_then(Value::as_object).into_iter().flatten()
    {
        let values = values.as_array().into_iter().flatten();
        let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
        user.extra.insert(key.clone(), values);
    }
    Ok(Verified { user, audiences: shared })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached(cache: &Cache<u32>, key: u8, now: Instant) -> Option<u32> {
        cache.get(&hashed(&[key]), now)
    }

    #[tokio::test]
    async fn answers_expire_and_are_bounded() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut cache = Cache::<u32>(HashMap::new());
        cache.put(hashed(&[1]), now + second, 1, now);
        assert_eq!(cached(&cache, 1, now), Some(1));
        assert_eq!(cached(&cache, 1, now + second), None);
        for i in 0..u32::try_from(CACHED).unwrap() * 3 {
            cache.put(hashed(&i.to_be_bytes()), now + second, i, now);
            assert!(cache.0.len() <= CACHED);
        }
        // Those that expired go first.
        let later = now + second;
        cache.put(hashed(&[9]), later + second, 9, later);
        for i in 0..u32::try_from(CACHED).unwrap() {
            cache.put(hashed(&i.to_be_bytes()), later, i, now);
        }
        cache.put(hashed(&[8]), later + second, 8, later);
        assert_eq!(cached(&cache, 8, later), Some(8));
    }

    #[test]
    fn answers_are_decided_by_audience_and_name() {
        let own = ["api".to_owned()];
        let review = |status: Value| decide(&json!({"status": status}), &own);
        let eve = json!({"username": "eve", "groups": ["dev"], "extra": {"a/b": ["c"]}});
        let found = review(json!({"authenticated": true, "user": eve})).unwrap();
        assert_eq!(
            (found.user.groups, found.audiences),
            (vec!["dev".into(), "system:authenticated".into()], own.to_vec())
        );
        assert_eq!(found.user.extra["a/b"], ["c"]);
        assert!(review(json!({"authenticated": true, "user": eve, "audiences": ["api", "x"]})).is_ok());
        for bad in [
            json!({"authenticated": true, "user": eve, "audiences": ["x"]}),
            json!({"authenticated": "true", "user": eve}),
            json!({"authenticated": true, "user": {}}),
            json!({"user": eve}),
        ] {
            assert!(review(bad.clone()).is_err(), "{bad}");
        }
        assert_eq!(review(json!({"authenticated": false, "error": "no"})).unwrap_err(), "no");
    }
}
