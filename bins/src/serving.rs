//! TLS of the API's listener: upstream's flags, and certificates and CAs that are replaced while it serves.
//!
//! Flow: [`ServingSettings::listener`] reads the files and builds the first configuration. Each minute
//! [`ListenerTls::reload`] reads them again and replaces the configuration if one has other content.
//!
//! Guarantee: files that cannot be used are told in the log, once for each reason, and the former ones stay
//! in use until the files are mended.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use clap::{Args, Command, FromArgMatches};
use k8s_tls::{
    ClientAuth, Identity, NamedIdentity, Policy, ServerConfigs, ServerSettings, ServerTls, server_with,
};

use crate::error::ClusterError;

/// Time between two reads of the files, as upstream.
pub(crate) const REREAD: Duration = Duration::from_secs(60);

/// Versions and cipher suites of a TLS server.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PolicyFlags {
    /// Least version of TLS: VersionTLS12 or VersionTLS13 (default: VersionTLS12).
    #[arg(long, value_name = "VERSION")]
    tls_min_version: Option<String>,
    /// Cipher suites of TLS 1.2, comma-separated, with Go's names (default: all that there are). Those of
    /// TLS 1.3 are always accepted.
    #[arg(long, value_delimiter = ',', value_name = "SUITE")]
    tls_cipher_suites: Vec<String>,
}

impl PolicyFlags {
    /// Returns the policy.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] with the flag and the names that there are.
    pub(crate) fn policy(&self) -> Result<Policy, ClusterError> {
        Policy::parse(self.tls_min_version.as_deref().unwrap_or_default(), &self.tls_cipher_suites)
            .map_err(|e| ClusterError::invalid(format!("--{}", e.setting), e.reason))
    }
}

/// Files of a certificate for some names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SniFiles {
    certificate: PathBuf,
    key: PathBuf,
    names: Vec<String>,
}

/// Parses `CERTIFICATE,KEY` or `CERTIFICATE,KEY:NAME,...`.
fn sni(text: &str) -> Result<SniFiles, String> {
    let (files, names) = text.split_once(':').unwrap_or((text, ""));
    let (certificate, key) = files
        .split_once(',')
        .filter(|(certificate, key)| !certificate.is_empty() && !key.is_empty() && !key.contains(','))
        .ok_or_else(|| format!("{text:?} is not CERTIFICATE,KEY or CERTIFICATE,KEY:NAME,..."))?;
    let names = names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    Ok(SniFiles { certificate: certificate.into(), key: key.into(), names })
}

/// Certificates, client CAs, versions and cipher suites of the API's listener.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServingSettings {
    /// Certificate (PEM, with its chain) of the API's listener (default: one of the cluster's own CA). Read
    /// again each minute.
    #[arg(long, value_name = "FILE")]
    tls_cert_file: Option<PathBuf>,
    /// Private key (PEM) of --tls-cert-file.
    #[arg(long, value_name = "FILE")]
    tls_private_key_file: Option<PathBuf>,
    /// Certificate and key for clients that ask for a name (SNI): `CERTIFICATE,KEY`, with the certificate's
    /// own names, or `CERTIFICATE,KEY:NAME,*.DOMAIN`. May be repeated: names that are given go before those
    /// in certificates, earlier ones before later ones. Read again each minute.
    #[arg(long, value_parser = sni, value_name = "FILES")]
    tls_sni_cert_key: Vec<SniFiles>,
    /// CAs (PEM) of client certificates, beside the cluster's own. Read again each minute.
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    #[command(flatten)]
    policy: PolicyFlags,
}

impl ServingSettings {
    /// Returns the versions and cipher suites of the listeners.
    ///
    /// # Errors
    /// As [`PolicyFlags::policy`].
    pub(crate) fn policy(&self) -> Result<Policy, ClusterError> {
        self.policy.policy()
    }
}

impl Default for ServingSettings {
    fn default() -> Self {
        let matches = Self::augment_args(Command::new("defaults")).get_matches_from(["defaults"]);
        Self::from_arg_matches(&matches).expect("every setting is optional")
    }
}

fn read(flag: &str, file: &Path) -> Result<Vec<u8>, ClusterError> {
    fs::read(file).map_err(|e| ClusterError::invalid(format!("--{flag} {}", file.display()), e))
}

fn same(a: &Identity, b: &Identity) -> bool {
    a.certificate == b.certificate && a.key == b.key
}

/// The content of the files.
struct Content {
    identity: Option<Identity>,
    named: Vec<NamedIdentity>,
    client_ca: Vec<u8>,
}

impl Content {
    fn is(&self, other: &Content) -> bool {
        let identities = |content: &Content| {
            let named = content.named.iter().map(|named| named.identity.clone());
            content.identity.clone().into_iter().chain(named).collect::<Vec<_>>()
        };
        let (ours, theirs) = (identities(self), identities(other));
        self.client_ca == other.client_ca
            && ours.len() == theirs.len()
            && ours.iter().zip(&theirs).all(|(a, b)| same(a, b))
    }
}

impl ServingSettings {
    fn content(&self) -> Result<Content, ClusterError> {
        let identity = match (&self.tls_cert_file, &self.tls_private_key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(Identity {
                certificate: read("tls-cert-file", certificate)?,
                key: read("tls-private-key-file", key)?,
            }),
            (Some(_), None) => {
                let why = "the private key of --tls-cert-file is needed";
                return Err(ClusterError::invalid("--tls-private-key-file", why));
            }
            (None, Some(_)) => {
                let why = "the certificate of --tls-private-key-file is needed";
                return Err(ClusterError::invalid("--tls-cert-file", why));
            }
        };
        let mut named = Vec::new();
        for files in &self.tls_sni_cert_key {
            let certificate = read("tls-sni-cert-key", &files.certificate)?;
            let identity = Identity { certificate, key: read("tls-sni-cert-key", &files.key)? };
            named.push(NamedIdentity { identity, names: files.names.clone() });
        }
        let client_ca = self.client_ca_file.as_deref().map(|file| read("client-ca-file", file));
        Ok(Content { identity, named, client_ca: client_ca.transpose()?.unwrap_or_default() })
    }

    /// Checks flags and files before anything is started.
    ///
    /// # Errors
    /// As [`ServingSettings::listener`].
    pub(crate) fn check(&self) -> Result<(), ClusterError> {
        self.policy.policy()?;
        self.content().map(drop)
    }

    /// Returns the listener's TLS with the files of now. `own` and `own_ca` (PEM) are the cluster's
    /// certificate for its listener, and its CA.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] with the flag.
    pub(crate) fn listener(&self, own: Identity, own_ca: &str) -> Result<ListenerTls, ClusterError> {
        let policy = self.policy.policy()?;
        let content = self.content()?;
        let sources = Sources { own, own_ca: own_ca.to_owned(), policy, settings: self.clone() };
        let tls = ServerTls::new(sources.configs(&content)?);
        Ok(ListenerTls { tls, state: Mutex::new(ListenerState { sources, content, told: String::new() }) })
    }
}

/// Parts of the configuration beside the files.
struct Sources {
    own: Identity,
    own_ca: String,
    policy: Policy,
    settings: ServingSettings,
}

impl Sources {
    fn configs(&self, content: &Content) -> Result<ServerConfigs, ClusterError> {
        let mut clients = self.own_ca.clone().into_bytes();
        clients.push(b'\n');
        clients.extend(&content.client_ca);
        let settings = ServerSettings {
            clients: ClientAuth::Optional(&clients),
            alpn: &[b"h2", b"http/1.1"],
            named: &content.named,
            policy: &self.policy,
        };
        let identity = content.identity.as_ref().unwrap_or(&self.own);
        server_with(identity, &settings).map_err(|e| {
            let flag = match (e.part, &self.settings.client_ca_file) {
                ("CA certificate", Some(file)) => format!("--client-ca-file {}", file.display()),
                _ if e.message.starts_with("SNI certificate") => "--tls-sni-cert-key".to_owned(),
                _ => match &self.settings.tls_cert_file {
                    Some(file) => format!("--tls-cert-file {}", file.display()),
                    None => "server TLS".to_owned(),
                },
            };
            ClusterError::invalid(flag, e)
        })
    }
}

struct ListenerState {
    sources: Sources,
    content: Content,
    /// The reason that the log has.
    told: String,
}

/// The TLS of a listener.
pub(crate) struct ListenerTls {
    tls: ServerTls,
    state: Mutex<ListenerState>,
}

impl ListenerTls {
    /// Returns the configuration that the listener serves with.
    pub(crate) fn tls(&self) -> ServerTls {
        self.tls.clone()
    }

    /// Returns the certificates of --tls-cert-file (PEM), if it is given: its clients must trust them.
    pub(crate) fn given(&self) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.content.identity.as_ref().map(|id| String::from_utf8_lossy(&id.certificate).into_owned())
    }

    /// Returns the CAs of client certificates, PEM.
    pub(crate) fn client_cas(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{}{}", state.sources.own_ca, String::from_utf8_lossy(&state.content.client_ca))
    }

    /// Replaces the cluster's own certificate.
    ///
    /// # Errors
    /// It cannot be used; the former one stays in use.
    pub(crate) fn renew(&self, own: Identity) -> Result<(), ClusterError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let former = std::mem::replace(&mut state.sources.own, own);
        match state.sources.configs(&state.content) {
            Ok(configs) => self.tls.replace(configs),
            Err(e) => {
                state.sources.own = former;
                return Err(e);
            }
        }
        Ok(())
    }

    /// Reads the files again. Returns true if one has other content, which is in use then.
    pub(crate) fn reload(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let read = state.sources.settings.content().and_then(|content| {
            let changed = !content.is(&state.content);
            let configs = changed.then(|| state.sources.configs(&content)).transpose()?;
            Ok(configs.map(|configs| (configs, content)))
        });
        match read {
            Ok(Some((configs, content))) => {
                self.tls.replace(configs);
                (state.content, state.told) = (content, String::new());
                tracing::info!("the listener's certificates and client CAs are reloaded");
                true
            }
            Ok(None) => {
                state.told.clear();
                false
            }
            Err(error) => {
                let reason = error.to_string();
                if reason != state.told {
                    tracing::error!(%error, "the listener's files are not reloaded; the former ones stay in use");
                    state.told = reason;
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
