//! TLS configurations for the clients and servers of a cluster.
//!
//! ```
//! use k8s_tls::{Trust, client};
//! // Verifies nobody: for probes, which ask whether a server answers and not who it is.
//! let config = client(&Trust::Anyone, None, &[b"http/1.1"])?;
//! assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]);
//! // A CA that is no certificate is an error that names the part.
//! let error = client(&Trust::Pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"), None, &[]).unwrap_err();
//! assert!(error.to_string().starts_with("CA certificate: "));
//! # Ok::<(), k8s_tls::TlsError>(())
//! ```
//!
//! Flow: [`client`] and [`server`] parse PEM once and return a rustls configuration; [`connect`] performs the
//! handshake on a connected stream. [`ServerTls`] and [`ClientIdentity`] are replaced while they are in use,
//! so that renewed certificates need no restart.
//!
//! Guarantees: TLS 1.2 and 1.3 with ring; no other provider is linked. Only [`Trust::Anyone`] skips the check
//! of names and issuers, and even then signatures are verified.
//!
//! Not here: making certificates (the `hyperkube` crate has the cluster's CA), sockets, HTTP.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

mod client;
mod live;
mod names;
mod pinned;
mod policy;
mod server;
mod system;
mod unverified;

pub use client::{Trust, client, client_of, connect};
pub use live::{ClientIdentity, ServerTls};
pub use policy::{Policy, PolicyError};
pub use rustls::{ClientConfig, ServerConfig};
pub use server::{ClientAuth, NamedIdentity, ServerConfigs, ServerSettings, server, server_with};
pub use system::system_bundle;
pub use tokio_rustls::{TlsAcceptor, client::TlsStream};

use rustls::{
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

/// A certificate chain and its private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The chain, leaf first.
    pub certificate: Vec<u8>,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity { <key> }")
    }
}

impl Identity {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(TlsError::of("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(TlsError::of("private key"))?;
        Ok((chain, key))
    }

    /// Returns the chain with its key, which belong together.
    fn certified(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let (chain, key) = self.read()?;
        if chain.is_empty() {
            return Err(TlsError { part: "certificate", message: "there is none in the PEM".into() });
        }
        CertifiedKey::from_der(chain, key, provider).map_err(TlsError::of("certificate"))
    }
}

/// A certificate or key that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {message}")]
pub struct TlsError {
    /// "CA certificate", "certificate", "private key" or "TLS".
    pub part: &'static str,
    /// The parser's or rustls' message.
    pub message: String,
}

impl TlsError {
    fn of<E: std::fmt::Display>(part: &'static str) -> impl FnOnce(E) -> TlsError {
        move |e| TlsError { part, message: e.to_string() }
    }
}

/// Root certificates from PEM; text without a certificate gives an empty store, which trusts nobody.
fn roots(pem: &[u8]) -> Result<rustls::RootCertStore, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots
            .add(certificate.map_err(TlsError::of("CA certificate"))?)
            .map_err(TlsError::of("CA certificate"))?;
    }
    Ok(roots)
}
