//! Certificates from Secrets.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_core::api::api::core::v1::Secret;
use rustls::{
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// A certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    /// Chain and key for handshakes.
    pub key: Arc<CertifiedKey>,
    /// Names that it is for, in lower case; may begin with `*.`.
    pub names: Vec<String>,
    /// Time from which it is no longer valid.
    pub not_after: Timestamp,
}

impl Certificate {
    /// Reads the certificate of a Secret.
    ///
    /// # Errors
    /// The reason why it cannot be used, for people.
    pub fn read(secret: &Secret) -> Result<Self, String> {
        let entry = |key: &str| {
            let value = secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| &bytes.0[..]);
            value.filter(|bytes| !bytes.is_empty()).ok_or_else(|| format!("it has no {key}"))
        };
        Certificate::from_pem(entry("tls.crt")?, entry("tls.key")?)
    }

    /// Reads a chain, leaf first, and its key.
    ///
    /// # Errors
    /// As [`Certificate::read`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|e| format!("tls.crt: {e}"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("tls.key: {e}"))?;
        let leaf = chain.first().ok_or("tls.crt has no certificate")?;
        let (_, parsed) = parse_x509_certificate(leaf).map_err(|e| format!("tls.crt: {e}"))?;
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        let alternatives = alternatives.iter().flat_map(|extension| &extension.value.general_names);
        let mut names: Vec<String> = alternatives
            .filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None })
            .map(str::to_ascii_lowercase)
            .collect();
        if names.is_empty() {
            let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
            names.extend(common.map(str::to_ascii_lowercase));
        }
        let not_after = Timestamp::from_second(parsed.validity().not_after.timestamp());
        let not_after = not_after.unwrap_or(Timestamp::MAX);
        let key = CertifiedKey::from_der(chain, key, &provider());
        let key = Arc::new(key.map_err(|e| format!("tls.crt and tls.key: {e}"))?);
        Ok(Certificate { key, names, not_after })
    }

    /// Returns true if it is for a host in lower case, which may begin with `*.`.
    #[must_use]
    pub fn is_for(&self, host: &str) -> bool {
        self.names.iter().any(|name| {
            let wildcard = || {
                let domain = name.strip_prefix("*.");
                domain.is_some() && domain == host.split_once('.').map(|(_, domain)| domain)
            };
            name == host || wildcard()
        })
    }
}

/// Returns the cryptography of all handshakes.
pub(crate) fn provider() -> CryptoProvider {
    ring::default_provider()
}

#[cfg(test)]
pub(crate) mod tests {
    use k8s_core::api::{ByteString, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    use super::*;

    /// Makes a Secret with a self-signed certificate.
    pub(crate) fn secret(namespace: &str, name: &str, hosts: &[&str]) -> Secret {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(hosts).unwrap();
        let data = [("tls.crt", made.cert.pem()), ("tls.key", made.signing_key.serialize_pem())];
        Secret {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some(namespace.into()),
                ..ObjectMeta::default()
            },
            data: Some(data.map(|(k, v)| (k.to_owned(), ByteString(v.into_bytes()))).into()),
            ..Secret::default()
        }
    }

    #[test]
    fn names_of_certificates() {
        let certificate = Certificate::read(&secret("a", "b", &["A.example.com", "*.shop.org"])).unwrap();
        for (host, want) in [
            ("a.example.com", true),
            ("b.example.com", false),
            ("x.shop.org", true),
            ("*.shop.org", true),
            ("shop.org", false),
            ("a.b.shop.org", false),
        ] {
            assert_eq!(certificate.is_for(host), want, "{host}");
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        let mut broken = secret("a", "b", &["x"]);
        let set = |secret: &mut Secret, key: &str, value: Option<&[u8]>| {
            let data = secret.data.as_mut().unwrap();
            match value {
                Some(value) => data.insert(key.into(), ByteString(value.to_vec())),
                None => data.remove(key),
            };
        };
        set(&mut broken, "tls.key", None);
        assert_eq!(Certificate::read(&broken).unwrap_err(), "it has no tls.key");
        set(&mut broken, "tls.key", Some(b"nonsense"));
        assert!(Certificate::read(&broken).unwrap_err().starts_with("tls.key: "));
        let other = secret("a", "b", &["x"]).data.unwrap().remove("tls.key").unwrap().0;
        set(&mut broken, "tls.key", Some(&other));
        assert!(Certificate::read(&broken).unwrap_err().starts_with("tls.crt and tls.key: "));
        set(&mut broken, "tls.crt", Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
        assert!(Certificate::read(&broken).unwrap_err().starts_with("tls.crt: "));
        assert_eq!(Certificate::read(&Secret::default()).unwrap_err(), "it has no tls.crt");
    }
}
