//! The server side.

use std::sync::Arc;

use rustls::{
    CipherSuite, ServerConfig,
    crypto::CryptoProvider,
    server::{ClientCertVerifierBuilder, WebPkiClientVerifier},
};

use crate::{Identity, TlsError, roots};

/// The client certificates that a server asks for.
#[derive(Clone, Copy, Debug)]
pub enum ClientAuth<'a> {
    /// No client certificate is requested.
    Off,
    /// A certificate signed by one of these CAs (PEM), or none. Any other fails the handshake.
    Optional(&'a [u8]),
    /// A certificate signed by one of these CAs (PEM). Anything else fails the handshake.
    Required(&'a [u8]),
}

/// Builds a server's TLS configuration, with the server's order of cipher suites. `alpn` lists the
/// application protocols in order of preference.
///
/// ```
/// use k8s_tls::{ClientAuth, Identity, server};
///
/// let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
/// let certificate = made.cert.pem().into_bytes();
/// let identity = Identity { certificate, key: made.signing_key.serialize_pem().into_bytes() };
/// let ca = identity.certificate.clone();
/// let config = server(&identity, &ClientAuth::Optional(&ca), &[b"h2", b"http/1.1"])?;
/// assert_eq!(config.alpn_protocols.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A CA, certificate or key that is not usable PEM; the error names the part.
pub fn server(
    identity: &Identity,
    clients: &ClientAuth<'_>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(fastest_first(rustls::crypto::ring::default_provider()));
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::of("TLS"))?;
    let builder = match clients {
        ClientAuth::Off => builder.with_no_client_auth(),
        ClientAuth::Optional(pem) => {
            let verifier = verifier(pem, provider)?.allow_unauthenticated().build();
            builder.with_client_cert_verifier(verifier.map_err(TlsError::of("CA certificate"))?)
        }
        ClientAuth::Required(pem) => {
            let verifier = verifier(pem, provider)?.build();
            builder.with_client_cert_verifier(verifier.map_err(TlsError::of("CA certificate"))?)
        }
    };
    let (chain, key) = identity.read()?;
    let mut config = builder.with_single_cert(chain, key).map_err(TlsError::of("certificate"))?;
    config.ignore_client_order = true;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn verifier(pem: &[u8], provider: Arc<CryptoProvider>) -> Result<ClientCertVerifierBuilder, TlsError> {
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pem)?), provider))
}

/// Prefers AES-128 like Go's servers: a third less work than AES-256 for both sides of a large response.
fn fastest_first(mut provider: CryptoProvider) -> CryptoProvider {
    provider.cipher_suites.sort_by_key(|suite| {
        !matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    provider
}
