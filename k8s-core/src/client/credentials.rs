//! Credentials of a connection: fixed, from a token file, or from a plugin.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use jiff::Timestamp;

use super::{BoxError, Error, ExecPlugin, RemoteConfig, kubeconfig};
use crate::clock::Clock;

/// Time between two reads of a token file, and of a kubeconfig with a client certificate.
const REREAD: Duration = Duration::from_secs(60);

/// A client certificate chain and its key (PEM).
pub(super) type Identity = (Vec<u8>, Vec<u8>);

/// A client's credential at one time. The same `Arc` is the same credential.
#[derive(Default)]
pub(super) struct Credential {
    pub(super) authorization: Option<HeaderValue>,
    /// Client certificate of a plugin, instead of the settings' own.
    pub(super) identity: Option<Identity>,
}

/// A source of credentials.
pub(super) struct Credentials {
    source: Source,
    clock: Clock,
}

enum Source {
    Fixed(Arc<Credential>),
    File { path: PathBuf, last: Mutex<Option<(Timestamp, Arc<Credential>)>> },
    Plugin { plugin: Box<ExecPlugin>, last: tokio::sync::Mutex<Option<(Option<Timestamp>, Arc<Credential>)>> },
}

fn header(scheme: &str, value: &str) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}"))
        .map_err(|e| Error::Request(format!("token: {e}")))?;
    header.set_sensitive(true);
    Ok(header)
}

fn bearer(token: &str) -> Result<Arc<Credential>, Error> {
    Ok(Arc::new(Credential { authorization: Some(header("Bearer", token)?), identity: None }))
}

fn read(path: &Path) -> Result<Arc<Credential>, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::Request(format!("token file {}: {e}", path.display())))?;
    bearer(text.trim())
}

impl Credentials {
    /// Takes the first that is set: token file, token, user name and password, plugin.
    pub(super) fn new(config: &RemoteConfig, clock: Clock) -> Result<Self, Error> {
        let source = if let Some(path) = &config.token_file {
            let last = config.token.as_deref().map(bearer).transpose()?;
            let last = Mutex::new(last.map(|token| (Timestamp::MIN, token)));
            Source::File { path: path.clone(), last }
        } else if let Some(token) = &config.token {
            Source::Fixed(bearer(token)?)
        } else if let Some((user, password)) = &config.basic {
            let encoded = STANDARD.encode(format!("{user}:{password}"));
            let authorization = Some(header("Basic", &encoded)?);
            Source::Fixed(Arc::new(Credential { authorization, identity: None }))
        } else if let Some(plugin) = &config.exec {
            Source::Plugin { plugin: Box::new(plugin.clone()), last: tokio::sync::Mutex::new(None) }
        } else {
            Source::Fixed(Arc::default())
        };
        Ok(Credentials { source, clock })
    }

    /// Returns the credential of now. A token file that became unreadable leaves its last token in use.
    pub(super) async fn current(&self) -> Result<Arc<Credential>, BoxError> {
        let now = self.clock.now();
        match &self.source {
            Source::Fixed(credential) => Ok(credential.clone()),
            Source::File { path, last } => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                let kept = match &*last {
                    Some((at, token)) if *at > Timestamp::MIN && self.clock.since(*at) < REREAD => {
                        return Ok(token.clone());
                    }
                    kept => kept.as_ref().map(|(_, token)| token.clone()),
                };
                let token = match (read(path), kept) {
                    (Ok(token), _) => token,
                    (Err(error), Some(kept)) => {
                        tracing::warn!(%error, "the last token stays in use");
                        kept
                    }
                    (Err(error), None) => return Err(error.into()),
                };
                *last = Some((now, token.clone()));
                Ok(token)
            }
            Source::Plugin { plugin, last } => {
                let mut last = last.lock().await;
                if let Some((expires, credential)) = &*last
                    && expires.is_none_or(|at| now < at)
                {
                    return Ok(credential.clone());
                }
                let issued = plugin.run().await?;
                let authorization = issued.token.as_deref().map(|t| header("Bearer", t)).transpose()?;
                let identity = issued.client_certificate_data.zip(issued.client_key_data);
                let identity = identity.map(|(chain, key)| (chain.into_bytes(), key.into_bytes()));
                let credential = Arc::new(Credential { authorization, identity });
                *last = Some((issued.expiration_timestamp, credential.clone()));
                Ok(credential)
            }
        }
    }

    /// Drops a plugin's credential that the server refused with 401. True if another one can be had.
    pub(super) async fn refused(&self, credential: &Arc<Credential>) -> bool {
        let Source::Plugin { last, .. } = &self.source else { return false };
        let mut last = last.lock().await;
        if last.as_ref().is_some_and(|(_, current)| Arc::ptr_eq(current, credential)) {
            *last = None;
        }
        true
    }
}

/// The kubeconfig that a client certificate is from. Who renews the certificate writes the file again.
pub(super) struct UserFile {
    path: PathBuf,
    user: String,
    /// The certificate of the settings.
    first: Identity,
    clock: Clock,
    /// Time of the last read, and the certificate since then if it is not the first.
    last: Mutex<(Timestamp, Option<Identity>)>,
}

impl UserFile {
    /// `None` for settings without a certificate or without a file.
    pub(super) fn new(config: &RemoteConfig, clock: Clock) -> Option<Self> {
        let (path, user) = config.user_file.clone()?;
        let first = config.certificate.clone().zip(config.key.clone())?;
        let last = Mutex::new((clock.now(), None));
        Some(UserFile { path, user, first, clock, last })
    }

    /// Returns the certificate of now, if it is another one than that of the settings. A file that cannot be
    /// used leaves the last one in use.
    pub(super) fn changed(&self) -> Option<Identity> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if self.clock.since(last.0) < REREAD {
            return last.1.clone();
        }
        last.0 = self.clock.now();
        match kubeconfig::reread(&self.path, &self.user) {
            Ok((Some(certificate), Some(key))) => {
                last.1 = Some((certificate, key)).filter(|identity| *identity != self.first);
            }
            Ok(_) => tracing::warn!(path = ?self.path, user = self.user, "the client certificate is gone"),
            Err(error) => tracing::warn!(%error, "the last client certificate stays in use"),
        }
        last.1.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_renewed_certificate_in_a_kubeconfig_is_used_after_a_minute() {
        use crate::client::Kubeconfig;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        let write = |certificate: &str, key: &str| {
            let config = Kubeconfig::single("a", "https://a", "CA", certificate, key);
            std::fs::write(&path, config.to_yaml()).unwrap();
        };
        write("one", "1");
        let config = Kubeconfig::read(&path).unwrap().remote(None).unwrap();
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        let file = UserFile::new(&config, clock.clone()).unwrap();
        let now = || {
            file.changed().map(|(certificate, key)| [certificate, key].map(|b| String::from_utf8(b).unwrap()))
        };
        write("two", "2");
        assert_eq!(now(), None);
        clock.sleep(REREAD).await;
        assert_eq!(now().unwrap(), ["two", "2"]);
        std::fs::write(&path, "{broken").unwrap();
        clock.sleep(REREAD).await;
        assert_eq!(now().unwrap(), ["two", "2"], "the last one stays");
        write("one", "1");
        clock.sleep(REREAD).await;
        assert_eq!(now(), None, "the settings' own again");
        // Settings whose certificate was taken out must not get it back.
        let without = RemoteConfig { certificate: None, key: None, ..config };
        assert!(UserFile::new(&without, clock).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_file_is_read_again_after_a_minute() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "one\n").unwrap();
        let config = RemoteConfig { token_file: Some(path.clone()), ..RemoteConfig::default() };
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        let credentials = Credentials::new(&config, clock.clone()).unwrap();
        let token = async || credentials.current().await.unwrap().authorization.clone().unwrap();
        assert_eq!(token().await, "Bearer one");
        std::fs::write(&path, "two").unwrap();
        clock.sleep(Duration::from_secs(59)).await;
        assert_eq!(token().await, "Bearer one");
        clock.sleep(Duration::from_secs(1)).await;
        assert_eq!(token().await, "Bearer two");
        std::fs::remove_file(&path).unwrap();
        clock.sleep(Duration::from_secs(60)).await;
        assert_eq!(token().await, "Bearer two");
    }
}
