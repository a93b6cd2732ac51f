//! The client side.

use std::sync::Arc;

use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore,
    client::WantsClientCert,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{ClientIdentity, Identity, TlsError, pinned::Pinned, roots, unverified::Unverified};

/// The servers that a client trusts.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// Servers whose certificate one of these CAs signed, or is one of these (PEM, any number; none: no
    /// server).
    Pem(&'a [u8]),
    /// Like [`Trust::Pem`], but entries that rustls does not take are skipped: for a machine's own bundle.
    Bundle(&'a [u8]),
    /// Any server, unverified (`insecure-skip-tls-verify`).
    Anyone,
}

/// Builds a client's TLS configuration. `alpn` lists the application protocols in the order of preference.
///
/// # Errors
/// A CA, certificate or key that is not usable PEM; the error names the part.
pub fn client(
    trust: &Trust<'_>,
    identity: Option<&Identity>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    match identity {
        Some(identity) => client_of(trust, &ClientIdentity::new(identity)?, alpn),
        None => Ok(with_protocols(builder(trust)?.with_no_client_auth(), alpn)),
    }
}

/// Builds the TLS configuration of a client whose certificate may be replaced.
///
/// # Errors
/// A CA that is not usable PEM.
pub fn client_of(
    trust: &Trust<'_>,
    identity: &ClientIdentity,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    let resolver = Arc::new(identity.clone());
    Ok(with_protocols(builder(trust)?.with_client_cert_resolver(resolver), alpn))
}

fn with_protocols(mut config: ClientConfig, alpn: &[&[u8]]) -> ClientConfig {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

fn builder(trust: &Trust<'_>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::of("TLS"))?;
    Ok(match trust {
        Trust::Pem(pem) => {
            let roots = roots(pem)?;
            if roots.is_empty() {
                return Ok(builder.with_root_certificates(roots));
            }
            let own = CertificateDer::pem_slice_iter(pem).flatten().collect();
            let verifier = Pinned::new(roots, own, provider)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        Trust::Bundle(pem) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).flatten());
            builder.with_root_certificates(roots)
        }
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider))),
    })
}

/// Performs the handshake with `host` (a DNS name or an IP address, IPv6 with or without brackets) on a
/// connected stream.
///
/// ```
/// use std::sync::Arc;
/// use k8s_tls::{ClientAuth, Identity, TlsAcceptor, Trust, client, connect, server};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let made = rcgen::generate_simple_self_signed(["api.example.com".to_owned()])?;
/// let ca = made.cert.pem().into_bytes();
/// let identity = Identity { certificate: ca.clone(), key: made.signing_key.serialize_pem().into_bytes() };
/// let acceptor = TlsAcceptor::from(Arc::new(server(&identity, &ClientAuth::Off, &[])?));
/// let config = Arc::new(client(&Trust::Pem(&ca), None, &[])?);
///
/// let (near, far) = tokio::io::duplex(16 * 1024);
/// let connecting = connect(config, "api.example.com", near);
/// let (client_side, server_side) = tokio::join!(connecting, acceptor.accept(far));
/// assert!(client_side.is_ok() && server_side.is_ok());
/// # Ok(()) }
/// ```
///
/// # Errors
/// An invalid host name, an untrusted certificate, or a broken connection.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    host: &str,
    stream: S,
) -> std::io::Result<TlsStream<S>> {
    let name =
        ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(std::io::Error::other)?;
    TlsConnector::from(config).connect(name, stream).await
}
