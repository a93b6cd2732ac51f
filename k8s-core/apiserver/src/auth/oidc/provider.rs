//! The keys that an issuer publishes: found by its discovery document, fetched again for an unknown key.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use k8s_core::client::empty_body;
use serde_json::Value;
use tokio::{net::TcpStream, time::Instant};

use super::super::{
    jwt::{Header, Token},
    keys::{Algorithm, PublicKey},
};
use crate::{
    tls::Tls,
    value::{array_at, str_at},
    webhook_client::whole,
};

/// Timeout of a request to the issuer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest document of an issuer, in bytes.
const LARGEST: usize = 1 << 20;
/// Largest number of keys of an issuer.
const MOST_KEYS: usize = 100;
/// Number of fetches in a row, and the interval in which one more is allowed: tokens with unknown keys cannot
/// make this server flood the issuer.
const BURST: u32 = 5;
const REFILL: Duration = Duration::from_secs(10);

/// An issuer of tokens.
pub(in crate::auth) struct Issuer {
    /// Value of the claim `iss`.
    pub(in crate::auth) url: String,
    /// URL of the discovery document. `None`: below `url`.
    pub(in crate::auth) discovery_url: Option<String>,
    /// Accepted audiences.
    pub(in crate::auth) audiences: Vec<String>,
    /// Trust in the issuer's server.
    pub(in crate::auth) tls: Tls,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A published key.
#[derive(Debug)]
struct Key {
    id: String,
    /// The only algorithm that the issuer uses it with, if it says so.
    algorithm: Option<Algorithm>,
    key: PublicKey,
}

/// The keys of the last successful fetch.
#[derive(Debug, Default)]
struct Keys {
    keys: Vec<Key>,
    /// False before the first successful fetch.
    fetched: bool,
}

impl Keys {
    fn verifies(&self, token: &Token<'_>, header: &Header) -> bool {
        let named = |key: &&Key| header.key_id.as_ref().is_none_or(|id| *id == key.id);
        let usable = |key: &&Key| key.algorithm.is_none_or(|only| only == header.algorithm);
        self.keys.iter().filter(named).filter(usable).any(|key| token.is_signed_by(&key.key, header))
    }
}

/// State of fetching, held by the one request that fetches.
#[derive(Debug)]
struct Fetching {
    /// URL of the keys, from the discovery document.
    keys_url: Option<String>,
    left: u32,
    since: Option<Instant>,
}

/// An issuer with its current keys.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) issuer: Issuer,
    keys: RwLock<Arc<Keys>>,
    /// Number of fetches, failed ones included.
    fetches: AtomicU64,
    fetching: tokio::sync::Mutex<Fetching>,
}

impl Provider {
    pub(super) fn new(issuer: Issuer) -> Self {
        let fetching = Fetching { keys_url: None, left: BURST, since: None };
        Provider { issuer, keys: RwLock::default(), fetches: AtomicU64::new(0), fetching: fetching.into() }
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Verifies a token's signature. If no key fits, the keys are fetched again, at most once.
    pub(super) async fn verify(&self, token: &Token<'_>, header: &Header) -> Result<(), String> {
        let fetches = self.fetches.load(Ordering::Acquire);
        if self.keys().verifies(token, header) {
            return Ok(());
        }
        self.fetch_after(fetches).await?;
        let keys = self.keys();
        match (keys.verifies(token, header), keys.fetched) {
            (true, _) => Ok(()),
            (false, true) => Err("failed to verify signature: failed to verify id token signature".into()),
            (false, false) => Err("oidc: authenticator not initialized".into()),
        }
    }

    /// Fetches the keys, unless another request did so after this number of fetches: those that waited for a
    /// fetch share its result.
    #[expect(clippy::disallowed_methods, reason = "the pace of requests to another server, in real time")]
    async fn fetch_after(&self, fetches: u64) -> Result<(), String> {
        let mut fetching = self.fetching.lock().await;
        if self.fetches.load(Ordering::Acquire) != fetches {
            return Ok(());
        }
        let now = Instant::now();
        let since = *fetching.since.get_or_insert(now);
        let earned = u32::try_from((now - since).as_secs() / REFILL.as_secs()).unwrap_or(BURST);
        if earned > 0 {
            fetching.left = fetching.left.saturating_add(earned).min(BURST);
            fetching.since = Some(now);
        }
        if fetching.left == 0 {
            return Ok(());
        }
        fetching.left -= 1;
        let found = self.fetch(&mut fetching).await;
        self.fetches.fetch_add(1, Ordering::AcqRel);
        match found {
            Ok(keys) => {
                let keys = Arc::new(Keys { keys, fetched: true });
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
                Ok(())
            }
            Err(why) => {
                tracing::warn!(issuer = self.issuer.url, why, "keys of an issuer of tokens are not fetched");
                // A moved document of keys is looked for again.
                fetching.keys_url = None;
                Err(format!("oidc: fetch keys: {why}"))
            }
        }
    }

    async fn fetch(&self, fetching: &mut Fetching) -> Result<Vec<Key>, String> {
        let url = match &fetching.keys_url {
            Some(url) => url.clone(),
            None => {
                let url = self.discover().await?;
                fetching.keys_url = Some(url.clone());
                url
            }
        };
        let set = get(&url, &self.issuer.tls).await?;
        let keys = array_at(&set, "/keys").iter().filter(|key| str_at(key, "/use") != "enc");
        let keys = keys.filter_map(|key| {
            let said = str_at(key, "/alg");
            let algorithm = Algorithm::named(said);
            (said.is_empty() || algorithm.is_some()).then_some(())?;
            Some(Key { id: str_at(key, "/kid").to_owned(), algorithm, key: PublicKey::from_jwk(key)? })
        });
        Ok(keys.take(MOST_KEYS).collect())
    }

    /// Returns the URL of the keys.
    async fn discover(&self) -> Result<String, String> {
        let issuer = &self.issuer;
        let default = || format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/'));
        let document = get(&issuer.discovery_url.clone().unwrap_or_else(default), &issuer.tls).await?;
        let (said, url) = (str_at(&document, "/issuer"), str_at(&document, "/jwks_uri"));
        if said != issuer.url {
            return Err(format!(
                "issuer did not match the issuer returned by provider, expected {:?} got {said:?}",
                issuer.url
            ));
        }
        match url.parse::<Uri>() {
            Ok(parsed) if parsed.scheme_str() == Some("https") => Ok(url.to_owned()),
            _ => Err(format!("jwks_uri {url:?} is no https URL")),
        }
    }
}

/// Gets a JSON document over https. Redirections are not followed.
async fn get(url: &str, tls: &Tls) -> Result<Value, String> {
    let answer = tokio::time::timeout(TIMEOUT, exchange(url, tls)).await;
    answer.map_err(|_| "timeout".to_owned()).flatten().map_err(|e| format!("get {url}: {e}"))
}

async fn exchange(url: &str, tls: &Tls) -> Result<Value, String> {
    let url: Uri = url.parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
    let authority = url.authority().ok_or("no host")?.clone();
    let host = authority.host().trim_matches(['[', ']']);
    let tcp = TcpStream::connect((host, authority.port_u16().unwrap_or(443))).await;
    let stream = tls.connect(host, tcp.map_err(|e| e.to_string())?).await.map_err(|e| e.to_string())?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority.as_str())
        .header(header::ACCEPT, "application/json")
        .body(empty_body())
        .map_err(|e| e.to_string())?;
    let response = crate::proxy::exchange(TokioIo::new(stream), request).await.map_err(|e| e.to_string())?;
    if response.status() != StatusCode::OK {
        return Err(format!("status {}", response.status()));
    }
    let body = whole(response.into_body(), LARGEST).await?;
    serde_json::from_slice(&body).map_err(|e| e.to_string())
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use super::*;
    use crate::tls::Trust;

    /// An issuer that accepts connections and says nothing: those who wait for it wait once.
    #[tokio::test(start_paused = true)]
    async fn many_tokens_wait_for_a_silent_issuer_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let tls = Tls::new(&Trust::System, None).unwrap();
        let provider = Provider::new(Issuer { url, discovery_url: None, audiences: Vec::new(), tls });
        let token = Token::parse("eyJhbGciOiJFUzI1NiIsImtpZCI6ImEifQ.e30.AAAA").unwrap();
        let header = token.header().unwrap();
        let begun = Instant::now();
        let all = (0..50).map(|_| provider.verify(&token, &header));
        let refused = futures::future::join_all(all).await;
        assert!(refused.iter().all(Result::is_err));
        assert!(begun.elapsed() < TIMEOUT * 2, "{:?}", begun.elapsed());
        assert_eq!(provider.fetches.load(Ordering::Acquire), 1);
        // The pace of further attempts is bounded.
        for _ in 0..20 {
            assert!(provider.verify(&token, &header).await.is_err());
        }
        assert!(provider.fetches.load(Ordering::Acquire) <= 5 + begun.elapsed().as_secs() / REFILL.as_secs());
    }
}
