//! CAs, and the certificates that they sign.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use x509_parser::{extensions::ParsedExtension, pem::parse_x509_pem};

use super::{
    CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY, der,
    request::{Name, Request},
};

/// Time before now from which certificates are valid, for clocks that are late.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Certificates that are valid for less end when they were asked to; longer ones are backdated at both ends.
const SHORT: Duration = Duration::from_secs(8 * 3600);
/// The shortest time that a certificate is valid.
const SHORTEST: Duration = Duration::from_secs(10 * 60);

/// A certificate and key cannot sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The certificate is not PEM of X.509.
    #[error("CA certificate: {0}")]
    Certificate(String),
    /// The key is not PEM of PKCS #8, or of a kind that cannot sign.
    #[error("CA key: {0}")]
    Key(String),
    /// The key is not that of the certificate.
    #[error("the CA key is not that of the CA certificate")]
    Mismatch,
}

/// A CA: a certificate and its key. Keys: ECDSA on P-256 or P-384, RSA, Ed25519.
///
/// ```
/// use k8s_builtin::Authority;
/// let (key, other) = (rcgen::KeyPair::generate()?, rcgen::KeyPair::generate()?);
/// let certificate = rcgen::CertificateParams::new(Vec::new())?.self_signed(&key)?;
/// assert!(Authority::from_pem(&certificate.pem(), &key.serialize_pem()).is_ok());
/// assert!(Authority::from_pem(&certificate.pem(), &other.serialize_pem()).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Authority {
    /// Subject of the certificate, DER.
    name: Vec<u8>,
    /// Subject key identifier of the certificate; empty if it has none.
    key_id: Vec<u8>,
    /// End of the certificate, in seconds since 1970.
    not_after: i64,
    key: KeyPair,
    /// Identifier of the signature algorithm, DER.
    algorithm: Vec<u8>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority { <key> }")
    }
}

/// CAs of the signers, and the longest time that their certificates are valid.
#[derive(Clone, Debug)]
pub struct Signing {
    /// Time that a certificate is valid, unless its request asks for less. Default: a year.
    pub duration: Duration,
    /// CAs by the signer's name. Requests for other signers are not signed.
    authorities: BTreeMap<&'static str, Arc<Authority>>,
}

impl Default for Signing {
    fn default() -> Self {
        Signing { duration: Duration::from_secs(8760 * 3600), authorities: BTreeMap::new() }
    }
}

impl Signing {
    /// Signs for all of Kubernetes' signers by one CA (`--cluster-signing-cert-file`).
    #[must_use]
    pub fn all(authority: Authority) -> Self {
        let authority = Arc::new(authority);
        let signers = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY];
        let authorities = signers.map(|signer| (signer, authority.clone())).into();
        Signing { authorities, ..Signing::default() }
    }

    /// Signs client certificates for the API server.
    #[must_use]
    pub fn kube_apiserver_client(self, authority: Authority) -> Self {
        self.with(CLIENT, authority)
    }

    /// Signs client certificates of kubelets.
    #[must_use]
    pub fn kubelet_client(self, authority: Authority) -> Self {
        self.with(KUBELET_CLIENT, authority)
    }

    /// Signs serving certificates of kubelets.
    #[must_use]
    pub fn kubelet_serving(self, authority: Authority) -> Self {
        self.with(KUBELET_SERVING, authority)
    }

    /// Signs requests of old versions, which name no signer.
    #[must_use]
    pub fn legacy_unknown(self, authority: Authority) -> Self {
        self.with(LEGACY, authority)
    }

    fn with(mut self, signer: &'static str, authority: Authority) -> Self {
        self.authorities.insert(signer, Arc::new(authority));
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.authorities.is_empty()
    }

    pub(super) fn of(&self, signer: &str) -> Option<&Authority> {
        self.authorities.get(signer).map(Arc::as_ref)
    }

    /// Returns the time that a certificate is valid for.
    pub(super) fn lifetime(&self, asked: Option<i32>) -> Duration {
        let asked = asked.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or_default()));
        asked.map_or(self.duration, |asked| asked.max(SHORTEST).min(self.duration))
    }
}

impl Authority {
    /// Reads a certificate and its key from PEM.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let unusable = |e: &dyn std::fmt::Display| AuthorityError::Certificate(e.to_string());
        let (_, block) = parse_x509_pem(certificate.as_bytes()).map_err(|e| unusable(&e))?;
        let certificate = block.parse_x509().map_err(|e| unusable(&e))?;
        let key = KeyPair::from_pem(key).map_err(|e| AuthorityError::Key(e.to_string()))?;
        if *certificate.public_key().subject_public_key.data != *key.der_bytes() {
            return Err(AuthorityError::Mismatch);
        }
        let algorithm = algorithm(&key)
            .ok_or_else(|| AuthorityError::Key("of a kind that cannot sign certificates here".to_owned()))?;
        let key_id =
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
        Ok(Authority {
            name: certificate.subject().as_raw().to_vec(),
            key_id: key_id.unwrap_or_default(),
            not_after: certificate.validity().not_after.timestamp(),
            key,
            algorithm,
        })
    }

    /// Signs a request. Returns the certificate as PEM.
    ///
    /// # Errors
    /// The CA has expired, or a usage is unknown.
    pub(super) fn sign(
        &self,
        request: &Request,
        usages: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, String> {
        if now.as_second() >= self.not_after {
            return Err("the signer has expired".to_owned());
        }
        let back = |at: Timestamp| at.checked_sub(BACKDATE).map_err(|e| e.to_string());
        let end = now.checked_add(lifetime).map_err(|e| e.to_string())?;
        let end = if lifetime < SHORT { end } else { back(end)? };
        let last = Timestamp::from_second(self.not_after).map_err(|e| e.to_string())?;
        let serial = k8s_core::random::uuid();
        let body = der::sequence(&[
            // Version 3.
            der::element(der::explicit(0), &der::integer(&[2])),
            der::integer(serial.as_bytes()),
            self.algorithm.clone(),
            self.name.clone(),
            der::sequence(&[der::time(back(now)?), der::time(end.min(last))]),
            request.subject.clone(),
            request.public_key.clone(),
            der::element(der::explicit(3), &der::sequence(&self.extensions(request, usages)?)),
        ]);
        let signature = self.key.sign(&body).map_err(|e| e.to_string())?;
        Ok(pem(&der::sequence(&[body, self.algorithm.clone(), der::bits(&signature)])))
    }

    fn extensions(&self, request: &Request, usages: &[String]) -> Result<Vec<Vec<u8>>, String> {
        let (mut key_usage, mut purposes) = (0, Vec::new());
        for usage in usages {
            match (key_usage_bit(usage), purpose(usage)) {
                (Some(bit), _) => key_usage |= 1 << bit,
                (None, Some(oid)) if !purposes.contains(&oid) => purposes.push(oid),
                (None, Some(_)) => {}
                (None, None) => return Err(format!("unrecognized usage values: [{usage:?}]")),
            }
        }
        let extension = |last: u64, critical: bool, value: Vec<u8>| {
            let mut parts = vec![der::oid(&[2, 5, 29, last])];
            if critical {
                parts.push(der::element(0x01, &[0xff]));
            }
            parts.push(der::octets(&value));
            der::sequence(&parts)
        };
        let mut all = Vec::new();
        if key_usage != 0 {
            all.push(extension(15, true, der::flags(key_usage)));
        }
        if !purposes.is_empty() {
            let oids: Vec<Vec<u8>> = purposes.iter().map(|oid| der::oid(oid)).collect();
            all.push(extension(37, false, der::sequence(&oids)));
        }
        // No CA: the default of the only field.
        all.push(extension(19, true, der::sequence(&[])));
        if !self.key_id.is_empty() {
            let id = der::element(der::implicit(0), &self.key_id);
            all.push(extension(35, false, der::sequence(&[id])));
        }
        if !request.names.is_empty() {
            let names: Vec<Vec<u8>> = request.names.iter().map(general_name).collect();
            // Without a subject the names are all that the certificate says.
            let critical = request.subject == der::sequence(&[]);
            all.push(extension(17, critical, der::sequence(&names)));
        }
        Ok(all)
    }
}

fn general_name(name: &Name) -> Vec<u8> {
    match name {
        Name::Email(text) => der::element(der::implicit(1), text.as_bytes()),
        Name::Dns(text) => der::element(der::implicit(2), text.as_bytes()),
        Name::Uri(text) => der::element(der::implicit(6), text.as_bytes()),
        Name::Ip(bytes) => der::element(der::implicit(7), bytes),
    }
}

/// Returns the identifier of the algorithm that a key signs by; `None` for an unknown one.
fn algorithm(key: &KeyPair) -> Option<Vec<u8>> {
    let known = key.algorithm();
    let ecdsa = |last| Some(der::sequence(&[der::oid(&[1, 2, 840, 10045, 4, 3, last])]));
    let rsa = |last| {
        let null = der::element(0x05, &[]);
        Some(der::sequence(&[der::oid(&[1, 2, 840, 113_549, 1, 1, last]), null]))
    };
    match known {
        a if *a == rcgen::PKCS_ECDSA_P256_SHA256 => ecdsa(2),
        a if *a == rcgen::PKCS_ECDSA_P384_SHA384 => ecdsa(3),
        a if *a == rcgen::PKCS_RSA_SHA256 => rsa(11),
        a if *a == rcgen::PKCS_RSA_SHA384 => rsa(12),
        a if *a == rcgen::PKCS_RSA_SHA512 => rsa(13),
        a if *a == rcgen::PKCS_ED25519 => Some(der::sequence(&[der::oid(&[1, 3, 101, 112])])),
        _ => None,
    }
}

/// Returns the bit of a key usage.
fn key_usage_bit(usage: &str) -> Option<u16> {
    Some(match usage {
        "signing" | "digital signature" => 0,
        "content commitment" => 1,
        "key encipherment" => 2,
        "data encipherment" => 3,
        "key agreement" => 4,
        "cert sign" => 5,
        "crl sign" => 6,
        "encipher only" => 7,
        "decipher only" => 8,
        _ => return None,
    })
}

/// Returns the object identifier of an extended key usage.
fn purpose(usage: &str) -> Option<&'static [u64]> {
    Some(match usage {
        "any" => &[2, 5, 29, 37, 0],
        "server auth" => &[1, 3, 6, 1, 5, 5, 7, 3, 1],
        "client auth" => &[1, 3, 6, 1, 5, 5, 7, 3, 2],
        "code signing" => &[1, 3, 6, 1, 5, 5, 7, 3, 3],
        "email protection" | "s/mime" => &[1, 3, 6, 1, 5, 5, 7, 3, 4],
        "ipsec end system" => &[1, 3, 6, 1, 5, 5, 7, 3, 5],
        "ipsec tunnel" => &[1, 3, 6, 1, 5, 5, 7, 3, 6],
        "ipsec user" => &[1, 3, 6, 1, 5, 5, 7, 3, 7],
        "timestamping" => &[1, 3, 6, 1, 5, 5, 7, 3, 8],
        "ocsp signing" => &[1, 3, 6, 1, 5, 5, 7, 3, 9],
        "microsoft sgc" => &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3],
        "netscape sgc" => &[2, 16, 840, 1, 113_730, 4, 1],
        _ => return None,
    })
}

/// Writes a certificate as PEM.
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests;
