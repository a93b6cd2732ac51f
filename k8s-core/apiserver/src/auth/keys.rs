//! Keys of JSON Web Signatures: RSA, and ECDSA over P-256 and P-384.
//!
//! Without the feature `jwt` nothing can be signed, and no signature is valid. P-521 (ES512) is not
//! supported: ring has no such signatures.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::der::{BIT_STRING, Der, OBJECT_ID, SEQUENCE, encode, encode_unsigned, pem};
use crate::value::str_at;

#[cfg(feature = "jwt")]
pub(super) use signing::PrivateKey;
#[cfg(not(feature = "jwt"))]
pub(super) use without::PrivateKey;

/// A key of tokens cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key is damaged, or of an unsupported kind. Use RSA of 2048 to 8192 bits, P-256 or P-384.
    #[error("service account key: {0}")]
    Invalid(String),
    /// The system has no randomness to generate or use a key.
    #[error("the system has no randomness")]
    NoRandomness,
    /// The program is built without the feature `jwt`.
    #[error(
        "service account tokens need k8s-apiserver's feature \"jwt\", which this program is built without"
    )]
    NoFeature,
}

const RSA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: [u8; 5] = [0x2b, 0x81, 0x04, 0x00, 0x22];

/// Signature algorithm of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
}

impl Algorithm {
    /// All algorithms with their names.
    const ALL: [(&'static str, Algorithm); 8] = [
        ("RS256", Algorithm::Rs256),
        ("RS384", Algorithm::Rs384),
        ("RS512", Algorithm::Rs512),
        ("PS256", Algorithm::Ps256),
        ("PS384", Algorithm::Ps384),
        ("PS512", Algorithm::Ps512),
        ("ES256", Algorithm::Es256),
        ("ES384", Algorithm::Es384),
    ];

    /// Returns the algorithm of a name. `none` and HMAC, whose keys are secrets, are no algorithms here.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
    }

    /// Returns the name.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }
}

/// A public key, which verifies tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// Modulus and exponent.
    Rsa(Vec<u8>, Vec<u8>),
    /// Uncompressed point.
    P256(Vec<u8>),
    /// Uncompressed point.
    P384(Vec<u8>),
}

impl PublicKey {
    /// Reads the keys of a PEM file: public keys, certificates, and the public halves of private keys.
    ///
    /// ```
    /// use k8s_apiserver::auth::PublicKey;
    /// assert!(PublicKey::parse_pem("no keys").unwrap_err().to_string().contains("no key"));
    /// ```
    ///
    /// # Errors
    /// A key is damaged or unsupported, or the file has none.
    pub fn parse_pem(text: &str) -> Result<Vec<PublicKey>, KeyError> {
        let keys = pem(text).into_iter().filter_map(|(label, der)| match label.as_str() {
            "PUBLIC KEY" => Some(PublicKey::from_info(Der(&der))),
            "RSA PUBLIC KEY" => Some(PublicKey::from_pkcs1(&der)),
            "CERTIFICATE" => Some(PublicKey::from_certificate(&der)),
            "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => {
                PrivateKey::of_block(&label, &der).ok().map(|key| Some(key.public()))
            }
            _ => None,
        });
        let keys: Option<Vec<PublicKey>> = keys.collect();
        match keys {
            Some(keys) if !keys.is_empty() => Ok(keys),
            Some(_) => Err(KeyError::Invalid("no key in the PEM file".into())),
            None => Err(KeyError::Invalid("damaged or of an unsupported kind (RSA, P-256 or P-384)".into())),
        }
    }

    /// Reads a JSON Web Key. `None` for unsupported kinds, such as secrets.
    pub(crate) fn from_jwk(key: &Value) -> Option<PublicKey> {
        let part = |name: &str| B64.decode(str_at(key, name).trim_end_matches('=')).ok();
        let point = |size: usize| {
            let (x, y) = (part("/x")?, part("/y")?);
            (x.len() == size && y.len() == size).then(|| [&[4][..], &x, &y].concat())
        };
        let kind = match (str_at(key, "/kty"), str_at(key, "/crv")) {
            ("RSA", _) => return PublicKey::rsa(&part("/n")?, &part("/e")?),
            ("EC", "P-256") => Kind::P256(point(32)?),
            ("EC", "P-384") => Kind::P384(point(48)?),
            _ => return None,
        };
        Some(PublicKey(kind))
    }

    fn rsa(n: &[u8], e: &[u8]) -> Option<PublicKey> {
        let trim = |bytes: &[u8]| Some(bytes[bytes.iter().position(|b| *b != 0)?..].to_vec());
        let (n, e) = (trim(n)?, trim(e)?);
        // Smaller ones are weak, larger ones slow.
        ((256..=1024).contains(&n.len()) && e.len() <= 4).then_some(PublicKey(Kind::Rsa(n, e)))
    }

    /// Reads a `SubjectPublicKeyInfo`.
    fn from_info(mut der: Der<'_>) -> Option<PublicKey> {
        let mut info = der.sequence()?;
        let mut algorithm = info.sequence()?;
        let id = algorithm.take(OBJECT_ID)?;
        let bits = info.take(BIT_STRING)?.strip_prefix(&[0])?;
        if id == RSA {
            return PublicKey::from_pkcs1(bits);
        }
        let curve = (id == EC).then(|| algorithm.take(OBJECT_ID)).flatten()?;
        PublicKey::from_point(curve, bits)
    }

    fn from_point(curve: &[u8], point: &[u8]) -> Option<PublicKey> {
        let kind = match (curve, point) {
            (curve, [4, ..]) if curve == P256 && point.len() == 65 => Kind::P256(point.to_vec()),
            (curve, [4, ..]) if curve == P384 && point.len() == 97 => Kind::P384(point.to_vec()),
            _ => return None,
        };
        Some(PublicKey(kind))
    }

    fn from_pkcs1(der: &[u8]) -> Option<PublicKey> {
        let mut key = Der(der).sequence()?;
        PublicKey::rsa(key.unsigned()?, key.unsigned()?)
    }

    fn from_certificate(der: &[u8]) -> Option<PublicKey> {
        let mut signed = Der(der).sequence()?;
        let mut certificate = signed.sequence()?;
        certificate.take(0xa0); // The version.
        certificate.next()?; // The serial number.
        for _ in ["signature", "issuer", "validity", "subject"] {
            certificate.sequence()?;
        }
        PublicKey::from_info(certificate)
    }

    /// Encodes the key as `SubjectPublicKeyInfo`.
    fn info(&self) -> Vec<u8> {
        let (algorithm, bits) = match &self.0 {
            Kind::Rsa(n, e) => {
                let key = encode(SEQUENCE, &[encode_unsigned(n), encode_unsigned(e)].concat());
                ([encode(OBJECT_ID, &RSA), vec![5, 0]].concat(), key)
            }
            Kind::P256(point) => ([encode(OBJECT_ID, &EC), encode(OBJECT_ID, &P256)].concat(), point.clone()),
            Kind::P384(point) => ([encode(OBJECT_ID, &EC), encode(OBJECT_ID, &P384)].concat(), point.clone()),
        };
        let bits = encode(BIT_STRING, &[&[0], &bits[..]].concat());
        encode(SEQUENCE, &[encode(SEQUENCE, &algorithm), bits].concat())
    }

    /// Returns the key's id, as upstream derives it from the key.
    pub(crate) fn id(&self) -> String {
        B64.encode(Sha256::digest(self.info()))
    }

    /// Returns the algorithm of service account tokens with this key.
    pub(crate) fn algorithm(&self) -> Algorithm {
        match self.0 {
            Kind::Rsa(..) => Algorithm::Rs256,
            Kind::P256(_) => Algorithm::Es256,
            Kind::P384(_) => Algorithm::Es384,
        }
    }

    /// Returns the key as a JSON Web Key.
    pub(crate) fn to_jwk(&self) -> Value {
        let id = self.id();
        let (kid, alg) = (id.as_str(), self.algorithm().name());
        let curve = |crv: &str, point: &[u8]| {
            let (x, y) = point[1..].split_at((point.len() - 1) / 2);
            json!({"use": "sig", "kty": "EC", "kid": kid, "crv": crv, "alg": alg, "x": B64.encode(x), "y": B64.encode(y)})
        };
        match &self.0 {
            Kind::Rsa(n, e) => {
                json!({"use": "sig", "kty": "RSA", "kid": kid, "alg": alg, "n": B64.encode(n), "e": B64.encode(e)})
            }
            Kind::P256(point) => curve("P-256", point),
            Kind::P384(point) => curve("P-384", point),
        }
    }

    /// True if the key signed the message with this algorithm, which must be one for the key's kind.
    #[cfg(feature = "jwt")]
    pub(crate) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        use ring::signature as ring;
        let rsa: &ring::RsaParameters = match (algorithm, &self.0) {
            (Algorithm::Es256, Kind::P256(point)) => {
                let key = ring::UnparsedPublicKey::new(&ring::ECDSA_P256_SHA256_FIXED, point);
                return key.verify(message, signature).is_ok();
            }
            (Algorithm::Es384, Kind::P384(point)) => {
                let key = ring::UnparsedPublicKey::new(&ring::ECDSA_P384_SHA384_FIXED, point);
                return key.verify(message, signature).is_ok();
            }
            (Algorithm::Rs256, _) => &ring::RSA_PKCS1_2048_8192_SHA256,
            (Algorithm::Rs384, _) => &ring::RSA_PKCS1_2048_8192_SHA384,
            (Algorithm::Rs512, _) => &ring::RSA_PKCS1_2048_8192_SHA512,
            (Algorithm::Ps256, _) => &ring::RSA_PSS_2048_8192_SHA256,
            (Algorithm::Ps384, _) => &ring::RSA_PSS_2048_8192_SHA384,
            (Algorithm::Ps512, _) => &ring::RSA_PSS_2048_8192_SHA512,
            (Algorithm::Es256 | Algorithm::Es384, _) => return false,
        };
        let Kind::Rsa(n, e) = &self.0 else { return false };
        ring::RsaPublicKeyComponents { n, e }.verify(rsa, message, signature).is_ok()
    }

    /// Without the feature `jwt` no signature is valid.
    #[cfg(not(feature = "jwt"))]
    #[allow(clippy::unused_self)] // The signature of the other one.
    pub(crate) fn verifies(&self, _: Algorithm, _: &[u8], _: &[u8]) -> bool {
        false
    }
}

#[cfg(feature = "jwt")]
mod signing {
    use ring::{
        rand::SystemRandom,
        signature::{
            ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
            RSA_PKCS1_SHA256, RsaKeyPair,
        },
    };

    use super::{
        super::der::{BIT_STRING, Der, INTEGER, OBJECT_ID, OCTET_STRING, pem},
        Algorithm, KeyError, Kind, P256, P384, PublicKey,
    };

    /// The key pair that signs tokens.
    pub(in crate::auth) struct PrivateKey {
        pair: Pair,
        random: SystemRandom,
    }

    enum Pair {
        Rsa(Box<RsaKeyPair>),
        P256(EcdsaKeyPair),
        P384(EcdsaKeyPair),
    }

    fn invalid(e: impl std::fmt::Display) -> KeyError {
        KeyError::Invalid(e.to_string())
    }

    impl PrivateKey {
        /// Generates a P-256 key.
        pub(in crate::auth) fn generate() -> Result<Self, KeyError> {
            let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| KeyError::NoRandomness)?;
            Self::of_block("PRIVATE KEY", made.as_ref())
        }

        /// Reads a key: PEM, or the DER of PKCS#8.
        pub(in crate::auth) fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
            let text = std::str::from_utf8(bytes).unwrap_or_default();
            if !text.contains("-----BEGIN ") {
                return Self::of_block("PRIVATE KEY", bytes);
            }
            let blocks = pem(text);
            let found = blocks.iter().find(|(label, _)| label.ends_with("PRIVATE KEY"));
            let (label, der) = found.ok_or_else(|| invalid("no private key in the PEM file"))?;
            Self::of_block(label, der)
        }

        /// Reads a PEM block: PKCS#8, or the older forms of RSA and elliptic curve keys.
        pub(in crate::auth) fn of_block(label: &str, der: &[u8]) -> Result<Self, KeyError> {
            let random = SystemRandom::new();
            let pair = match label {
                "RSA PRIVATE KEY" => Pair::Rsa(Box::new(RsaKeyPair::from_der(der).map_err(invalid)?)),
                "EC PRIVATE KEY" => Self::of_sec1(der, &random)?,
                "PRIVATE KEY" => {
                    let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random);
                    let p384 = || EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, der, &random);
                    match p256 {
                        Ok(pair) => Pair::P256(pair),
                        Err(e) => match (p384(), RsaKeyPair::from_pkcs8(der)) {
                            (Ok(pair), _) => Pair::P384(pair),
                            (_, Ok(pair)) => Pair::Rsa(Box::new(pair)),
                            _ => return Err(invalid(e)),
                        },
                    }
                }
                other => return Err(invalid(format!("PEM block {other:?} is no usable private key"))),
            };
            Ok(PrivateKey { pair, random })
        }

        fn of_sec1(der: &[u8], random: &SystemRandom) -> Result<Pair, KeyError> {
            let read = || {
                let mut key = Der(der).sequence()?;
                key.take(INTEGER)?;
                let private = key.take(OCTET_STRING)?;
                let curve = Der(key.take(0xa0)?).take(OBJECT_ID)?;
                let public = Der(key.take(0xa1)?).take(BIT_STRING)?.strip_prefix(&[0])?;
                Some((private, curve, public))
            };
            let (private, curve, public) = read().ok_or_else(|| invalid("damaged"))?;
            let pair = |algorithm| {
                EcdsaKeyPair::from_private_key_and_public_key(algorithm, private, public, random)
                    .map_err(invalid)
            };
            match curve {
                curve if curve == P256 => pair(&ECDSA_P256_SHA256_FIXED_SIGNING).map(Pair::P256),
                curve if curve == P384 => pair(&ECDSA_P384_SHA384_FIXED_SIGNING).map(Pair::P384),
                _ => Err(invalid("an unsupported curve: use P-256 or P-384")),
            }
        }

        /// Returns the public half.
        pub(in crate::auth) fn public(&self) -> PublicKey {
            match &self.pair {
                Pair::Rsa(pair) => {
                    let parts: ring::rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
                    PublicKey(Kind::Rsa(parts.n, parts.e))
                }
                Pair::P256(pair) => PublicKey(Kind::P256(pair.public_key().as_ref().to_vec())),
                Pair::P384(pair) => PublicKey(Kind::P384(pair.public_key().as_ref().to_vec())),
            }
        }

        pub(in crate::auth) fn algorithm(&self) -> Algorithm {
            self.public().algorithm()
        }

        pub(in crate::auth) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
            match &self.pair {
                Pair::Rsa(pair) => {
                    let mut signature = vec![0; pair.public().modulus_len()];
                    pair.sign(&RSA_PKCS1_SHA256, &self.random, message, &mut signature)
                        .map_err(|_| KeyError::NoRandomness)?;
                    Ok(signature)
                }
                Pair::P256(pair) | Pair::P384(pair) => {
                    let signature = pair.sign(&self.random, message);
                    signature.map(|s| s.as_ref().to_vec()).map_err(|_| KeyError::NoRandomness)
                }
            }
        }
    }
}

#[cfg(not(feature = "jwt"))]
mod without {
    use super::{Algorithm, KeyError, PublicKey};

    /// Stand-in without the feature `jwt`: there is none.
    pub(in crate::auth) enum PrivateKey {}

    impl PrivateKey {
        pub(in crate::auth) fn generate() -> Result<Self, KeyError> {
            Err(KeyError::NoFeature)
        }

        pub(in crate::auth) fn parse(_: &[u8]) -> Result<Self, KeyError> {
            Err(KeyError::NoFeature)
        }

        pub(in crate::auth) fn of_block(_: &str, _: &[u8]) -> Result<Self, KeyError> {
            Err(KeyError::NoFeature)
        }

        pub(in crate::auth) fn public(&self) -> PublicKey {
            match *self {}
        }

        pub(in crate::auth) fn algorithm(&self) -> Algorithm {
            match *self {}
        }

        pub(in crate::auth) fn sign(&self, _: &[u8]) -> Result<Vec<u8>, KeyError> {
            match *self {}
        }
    }
}

#[cfg(all(test, feature = "jwt"))]
mod tests {
    use super::*;

    const RSA_2048: &str = include_str!("../../tests/data/rsa-2048.pem");
    const SEC1: &str = include_str!("../../tests/data/p384-sec1.pem");

    #[test]
    fn keys_sign_for_themselves_only_and_with_their_algorithm_only() {
        let keys = [
            PrivateKey::generate().unwrap(),
            PrivateKey::parse(RSA_2048.as_bytes()).unwrap(),
            PrivateKey::parse(SEC1.as_bytes()).unwrap(),
        ];
        for (i, key) in keys.iter().enumerate() {
            let signature = key.sign(b"message").unwrap();
            for (j, other) in keys.iter().enumerate() {
                for (_, algorithm) in Algorithm::ALL {
                    let valid = other.public().verifies(algorithm, b"message", &signature);
                    assert_eq!(valid, i == j && algorithm == key.algorithm(), "{i} {j} {algorithm:?}");
                }
            }
            assert!(!key.public().verifies(key.algorithm(), b"another", &signature));
        }
    }

    #[test]
    fn public_keys_come_from_every_form() {
        let known = |text: &str| PublicKey::parse_pem(text).unwrap();
        let rsa = known(RSA_2048);
        // Written by OpenSSL from the same key.
        assert_eq!(known(include_str!("../../tests/data/rsa-2048.pub")), rsa);
        assert_eq!(known(include_str!("../../tests/data/rsa-2048.pkcs1.pub")), rsa);
        assert_eq!(known(include_str!("../../tests/data/rsa-2048.crt")), rsa);
        assert_eq!(known(&format!("{RSA_2048}\n{SEC1}")).len(), 2);
        for key in known(&format!("{RSA_2048}\n{SEC1}")) {
            assert_eq!(PublicKey::from_jwk(&key.to_jwk()), Some(key));
        }
        assert!(PublicKey::parse_pem("").is_err());
        assert!(PublicKey::parse_pem("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----").is_err());
        // The id is the hash of the key as OpenSSL writes it.
        let der = pem(include_str!("../../tests/data/rsa-2048.pub")).remove(0).1;
        assert_eq!(rsa[0].id(), B64.encode(Sha256::digest(der)));
        assert_eq!(PublicKey::from_jwk(&json!({"kty": "oct", "k": "AAAA"})), None);
        let short = json!({"kty": "RSA", "n": B64.encode([0xff; 64]), "e": "AQAB"});
        assert_eq!(PublicKey::from_jwk(&short), None);
    }
}
