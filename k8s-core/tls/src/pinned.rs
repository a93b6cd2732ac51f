//! A verifier that also accepts the very certificate that it was given as a CA.
//!
//! Go trusts a server's own certificate if it is among the roots, and many who call webhooks count on that:
//! `caBundle` is then the server's certificate (controller-runtime's envtest does so). Its names, its validity
//! and its use are checked all the same.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::parse_x509_certificate;

use crate::TlsError;

/// Accepts what webpki accepts, and the pinned certificates.
#[derive(Debug)]
pub(crate) struct Pinned {
    by_ca: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl Pinned {
    /// Creates the verifier for CAs, each of which may be a server's own certificate.
    ///
    /// # Errors
    /// The verifier cannot be built.
    pub(crate) fn new(
        roots: RootCertStore,
        pinned: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let by_ca = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Pinned { by_ca: by_ca.map_err(TlsError::of("CA certificate"))?, pinned })
    }
}

/// Checks that a certificate is valid now, and for servers.
fn check(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let malformed = || Error::InvalidCertificate(CertificateError::BadEncoding);
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|_| malformed())?;
    let (validity, now) = (parsed.validity(), i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    if now < validity.not_before.timestamp() {
        return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if now > validity.not_after.timestamp() {
        return Err(Error::InvalidCertificate(CertificateError::Expired));
    }
    match parsed.extended_key_usage().map_err(|_| malformed())? {
        Some(usage) if !usage.value.server_auth && !usage.value.any => {
            Err(Error::InvalidCertificate(CertificateError::InvalidPurpose))
        }
        _ => Ok(()),
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let by_ca = self.by_ca.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if by_ca.is_ok() || !self.pinned.iter().any(|pinned| pinned == end_entity) {
            return by_ca;
        }
        check(end_entity, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_ca.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_ca.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_ca.supported_verify_schemes()
    }
}
