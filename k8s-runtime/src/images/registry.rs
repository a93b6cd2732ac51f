//! Pulls images from registries by the OCI distribution protocol.
//!
//! Flow: the endpoints are tried in order (mirrors first, see [`Registries`]). From an endpoint come the
//! manifest (resolved through an index), the configuration, and then the missing layers, three at a time,
//! into scratch files; the store unpacks them. A 401 challenge is answered once, with a token or a password.
//! Guarantees: content with a wrong digest is rejected. An unreachable registry is an error within seconds.

mod config;
mod http;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use base64::Engine;
use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper::{StatusCode, header};
use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use sha2::{Digest, Sha256};

pub use self::config::{Auth, Host, Mirror, Registries, Tls};
use self::{
    config::Endpoint,
    http::{Answer, Http},
};
use super::{
    archive::choose,
    reference::Reference,
    store::{ImageStore, parse_manifest},
    unpack::digest_of,
};
use crate::api::{ImageInfo, RuntimeError};

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Maximum size of a manifest or configuration, bytes.
const MAX_DOCUMENT: usize = 8 << 20;

/// Pulls an image into the store.
pub(super) async fn pull(
    store: &ImageStore,
    registries: &Registries,
    user_agent: &str,
    reference: &Reference,
    auth: Option<(String, String)>,
) -> Result<ImageInfo, RuntimeError> {
    let mut last = None;
    for endpoint in registries.endpoints(&reference.registry) {
        let auth = auth.clone();
        let session =
            Session { registries, user_agent, reference, endpoint, auth, authorization: Mutex::default() };
        match session.pull(store).await {
            Ok(info) => return Ok(info),
            Err(error) => {
                tracing::debug!(%error, endpoint = session.endpoint.base, "pull");
                last = Some(error);
            }
        }
    }
    // The error of the registry itself, which is tried last, is the most useful one.
    let why = last.unwrap_or_else(|| io::Error::other("no endpoint"));
    Err(RuntimeError::Other(format!("failed to pull image {:?}: {why}", reference.to_string())))
}

struct Session<'a> {
    registries: &'a Registries,
    user_agent: &'a str,
    reference: &'a Reference,
    endpoint: Endpoint,
    auth: Option<(String, String)>,
    /// The `Authorization` header that the registry accepted.
    authorization: Mutex<Option<String>>,
}

impl Session<'_> {
    async fn pull(&self, store: &ImageStore) -> io::Result<ImageInfo> {
        let (manifest_bytes, manifest, top_digest) = self.manifest().await?;
        let config = self.document("blobs", manifest.config().digest().as_ref(), "*/*").await?;
        let parsed: ImageConfiguration = serde_json::from_slice(&config)?;
        let scratch = store.scratch().map_err(io::Error::other)?;
        let missing: Vec<(usize, String)> = parsed
            .rootfs()
            .diff_ids()
            .iter()
            .zip(manifest.layers())
            .enumerate()
            .filter(|(_, (diff_id, _))| !store.has_layer(diff_id))
            .map(|(index, (_, layer))| (index, layer.digest().to_string()))
            .collect();
        futures::stream::iter(missing)
            .map(|(index, digest)| {
                let file = layer_file(&scratch.0, index);
                async move { self.download(&digest, &file).await }
            })
            .buffer_unordered(3)
            .try_collect::<()>()
            .await?;
        let mut name = self.reference.clone();
        name.digest = Some(top_digest);
        let mut layer = |index: usize| -> Result<Box<dyn Read>, RuntimeError> {
            let path = layer_file(&scratch.0, index);
            let file = fs::File::open(&path).map_err(RuntimeError::io(format!("open {path:?}")))?;
            Ok(Box::new(io::BufReader::with_capacity(1 << 16, file)))
        };
        // Unpacking blocks for long; it must not hold up other tasks.
        store
            .add_blocking(&[name], &manifest_bytes, &config, &mut layer)
            .map_err(|e| io::Error::other(format!("unpack: {e}")))
    }

    /// Returns the manifest for this machine's platform, and the digest of the reference.
    async fn manifest(&self) -> io::Result<(Vec<u8>, ImageManifest, String)> {
        let mut bytes = self.document("manifests", self.reference.version(), MANIFESTS).await?;
        let top = digest_of(Sha256::new().chain_update(&bytes));
        for _ in 0..4 {
            let Ok(index) = serde_json::from_slice::<ImageIndex>(&bytes) else {
                let manifest = parse_manifest(&bytes).map_err(io::Error::other)?;
                return Ok((bytes, manifest, top));
            };
            let chosen = choose(&index).ok_or_else(|| {
                io::Error::other("no manifest for this machine's platform in the image's index")
            })?;
            bytes = self.document("manifests", chosen.digest().as_ref(), MANIFESTS).await?;
        }
        Err(io::Error::other("image indexes are nested too deeply"))
    }

    /// Fetches a manifest or small blob, and verifies it if `version` is a digest.
    async fn document(&self, kind: &str, version: &str, accept: &str) -> io::Result<Vec<u8>> {
        let answer = self.get(kind, version, accept).await?;
        let bytes = http::body(answer, MAX_DOCUMENT).await?;
        let digest = digest_of(Sha256::new().chain_update(&bytes));
        if version.starts_with("sha256:") && version != digest {
            return Err(io::Error::other(format!("the registry sent {digest} for {version}")));
        }
        Ok(bytes)
    }

    async fn download(&self, digest: &str, file: &Path) -> io::Result<()> {
        let mut body = self.get("blobs", digest, "*/*").await?.into_body();
        let mut target = fs::File::create_new(file)?;
        let mut hash = Sha256::new();
        while let Some(frame) = tokio::time::timeout(http::SILENCE, body.frame())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        {
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                hash.update(&data);
                target.write_all(&data)?;
            }
        }
        let found = digest_of(hash);
        if found != digest {
            return Err(io::Error::other(format!("the registry sent {found} for layer {digest}")));
        }
        Ok(())
    }

    async fn get(&self, kind: &str, version: &str, accept: &str) -> io::Result<Answer> {
        let namespace = self.endpoint.namespace.as_ref().map(|n| format!("?ns={n}")).unwrap_or_default();
        let url = format!("{}/{}/{kind}/{version}{namespace}", self.endpoint.base, self.reference.repository);
        let named =
            |e: io::Error| io::Error::new(e.kind(), format!("failed to do request: Get {url:?}: {e}"));
        let client = Http { user_agent: self.user_agent, tls: &|host| self.registries.tls(host) };
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut answer = http::get(client, &url, known.as_deref(), accept).await.map_err(named)?;
        if answer.status() == StatusCode::UNAUTHORIZED
            && let Some(authorization) = self.answer_challenge(&answer).await.map_err(named)?
        {
            answer = http::get(client, &url, Some(&authorization), accept).await.map_err(named)?;
            *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        }
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::NOT_FOUND => {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("{}: not found", self.reference)))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(io::Error::other(format!(
                "pull access denied, repository does not exist or may require authorization: {url} answered {}",
                answer.status()
            ))),
            status => Err(io::Error::other(format!("{url} answered {status}"))),
        }
    }

    fn credentials(&self) -> Option<(String, String)> {
        let host = self
            .endpoint
            .base
            .split("://")
            .nth(1)
            .and_then(|rest| rest.split('/').next())
            .unwrap_or_default();
        self.auth.clone().or_else(|| self.registries.credentials(host))
    }

    async fn answer_challenge(&self, answer: &Answer) -> io::Result<Option<String>> {
        let challenge =
            answer.headers().get(header::WWW_AUTHENTICATE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let credentials = self.credentials();
        let basic = credentials.map(|(user, password)| {
            format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
            )
        });
        let Some(parameters) = strip_scheme(challenge, "Bearer") else {
            return Ok(basic.filter(|_| strip_scheme(challenge, "Basic").is_some()));
        };
        let parameter =
            |name: &str| parse_parameters(parameters).into_iter().find(|(n, _)| n == name).map(|(_, v)| v);
        let realm =
            parameter("realm").ok_or_else(|| io::Error::other("authentication challenge without a realm"))?;
        let scope =
            parameter("scope").unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository));
        let mut url = format!("{realm}?scope={}", escape(&scope));
        if let Some(service) = parameter("service") {
            url.push_str(&format!("&service={}", escape(&service)));
        }
        let client = Http { user_agent: self.user_agent, tls: &|host| self.registries.tls(host) };
        let answer = http::get(client, &url, basic.as_deref(), "application/json").await?;
        if answer.status() != StatusCode::OK {
            return Err(io::Error::other(format!("token server {realm} answered {}", answer.status())));
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let token: Token = serde_json::from_slice(&http::body(answer, MAX_DOCUMENT).await?)?;
        Ok(token.token.or(token.access_token).map(|t| format!("Bearer {t}")))
    }
}

fn layer_file(scratch: &Path, index: usize) -> PathBuf {
    scratch.join(format!("layer-{index}"))
}

fn strip_scheme<'a>(challenge: &'a str, scheme: &str) -> Option<&'a str> {
    let (found, rest) = challenge.trim().split_once(' ').unwrap_or((challenge.trim(), ""));
    found.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// Parses the parameters of a challenge: `name="value",other=token`.
fn parse_parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((name, tail)) = rest.split_once('=') {
        let name = name.trim().trim_start_matches(',').trim().to_ascii_lowercase();
        let (value, after) = match tail.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => tail.split_once(',').unwrap_or((tail, "")),
        };
        found.push((name, value.to_owned()));
        rest = after;
    }
    found
}

/// Percent-encodes a query value.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
                char::from(b).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}
