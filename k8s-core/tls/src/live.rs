//! Certificates that are replaced while they are in use.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{ServerConfig, SignatureScheme, client::ResolvesClientCert, sign::CertifiedKey};

use crate::{Identity, Policy, ServerConfigs, TlsError};

/// A server's TLS configuration, which can be replaced while it serves. Clones share it. Connections keep the
/// configuration of their handshake.
///
/// ```
/// use std::sync::Arc;
/// use k8s_tls::{ClientAuth, Identity, ServerTls, server};
/// let config = |name: &str| {
///     let made = rcgen::generate_simple_self_signed([name.to_owned()])?;
///     let key = made.signing_key.serialize_pem().into_bytes();
///     let identity = Identity { certificate: made.cert.pem().into_bytes(), key };
///     Ok::<_, Box<dyn std::error::Error>>(Arc::new(server(&identity, &ClientAuth::Off, &[])?))
/// };
/// let (old, new) = (config("localhost")?, config("localhost")?);
/// let tls = ServerTls::from(old.clone());
/// assert!(Arc::ptr_eq(&tls.at(None), &old));
/// tls.replace(new.clone());
/// assert!(Arc::ptr_eq(&tls.clone().at(None), &new));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<RwLock<ServerConfigs>>);

impl ServerTls {
    /// Takes the first configuration.
    pub fn new(configs: impl Into<ServerConfigs>) -> Self {
        ServerTls(Arc::new(RwLock::new(configs.into())))
    }

    /// Uses other certificates and client CAs from the next handshake on. Sessions of the former
    /// configuration are not resumed.
    pub fn replace(&self, configs: impl Into<ServerConfigs>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = configs.into();
    }

    /// Returns the configuration for a new connection to an address of this machine.
    #[must_use]
    pub fn at(&self, local: Option<IpAddr>) -> Arc<ServerConfig> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).at(local)
    }
}

impl From<Arc<ServerConfig>> for ServerTls {
    fn from(config: Arc<ServerConfig>) -> Self {
        ServerTls::new(config)
    }
}

impl From<ServerConfigs> for ServerTls {
    fn from(configs: ServerConfigs) -> Self {
        ServerTls::new(configs)
    }
}

/// A client certificate, which can be replaced while connections are opened with it. Clones share it.
///
/// ```
/// use k8s_tls::{ClientIdentity, Identity, Trust, client_of};
/// let made = rcgen::generate_simple_self_signed(["me".to_owned()])?;
/// let (certificate, key) = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
/// let identity = Identity { certificate, key };
/// let mine = ClientIdentity::new(&identity)?;
/// let config = client_of(&Trust::Anyone, &mine, &[b"http/1.1"])?;
/// assert!(config.client_auth_cert_resolver.has_certs());
/// // From now on, handshakes with `config` present another certificate.
/// mine.replace(&identity)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ClientIdentity(Arc<RwLock<Arc<CertifiedKey>>>);

fn certified(identity: &Identity) -> Result<Arc<CertifiedKey>, TlsError> {
    identity.certified(&Policy::default().provider()).map(Arc::new)
}

impl ClientIdentity {
    /// Takes the first certificate.
    ///
    /// # Errors
    /// The certificate or the key is not usable, or they do not belong together.
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        Ok(ClientIdentity(Arc::new(RwLock::new(certified(identity)?))))
    }

    /// Uses another certificate from the next handshake on.
    ///
    /// # Errors
    /// As [`ClientIdentity::new`]; the former certificate stays in use.
    pub fn replace(&self, identity: &Identity) -> Result<(), TlsError> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified(identity)?;
        Ok(())
    }
}

impl ResolvesClientCert for ClientIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
