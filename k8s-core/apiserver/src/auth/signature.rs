//! Signatures of service account tokens: ECDSA over P-256 with SHA-256 (ES256).
//!
//! Without the feature `jwt` nothing can be signed, and no signature is valid.

/// The key of service account tokens cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key is not a PKCS#8 P-256 key.
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

#[cfg(feature = "jwt")]
pub(super) use signing::Key;
#[cfg(not(feature = "jwt"))]
pub(super) use without::Key;

#[cfg(feature = "jwt")]
mod signing {
    use super::KeyError;
    use ring::{
        rand::SystemRandom,
        signature::{
            ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
            UnparsedPublicKey,
        },
    };

    /// The key pair that signs tokens.
    pub(in crate::auth) struct Key {
        pair: EcdsaKeyPair,
        random: SystemRandom,
    }

    impl Key {
        /// Reads a PKCS#8 P-256 key. `None`: generates one.
        pub(in crate::auth) fn new(pkcs8: Option<&[u8]>) -> Result<Self, KeyError> {
            let random = SystemRandom::new();
            let generated;
            let bytes = match pkcs8 {
                Some(bytes) => bytes,
                None => {
                    generated = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                        .map_err(|_| KeyError::NoRandomness)?;
                    generated.as_ref()
                }
            };
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, bytes, &random)
                .map_err(|e| KeyError::Invalid(e.to_string()))?;
            Ok(Key { pair, random })
        }

        pub(in crate::auth) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
            let signature = self.pair.sign(&self.random, message);
            signature.map(|s| s.as_ref().to_vec()).map_err(|_| KeyError::NoRandomness)
        }

        pub(in crate::auth) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
            let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref());
            public.verify(message, signature).is_ok()
        }
    }
}

#[cfg(not(feature = "jwt"))]
mod without {
    use super::KeyError;

    /// No key.
    pub(in crate::auth) struct Key;

    impl Key {
        /// Refuses a key that could not be used.
        pub(in crate::auth) fn new(pkcs8: Option<&[u8]>) -> Result<Self, KeyError> {
            pkcs8.map_or(Ok(Key), |_| Err(KeyError::NoFeature))
        }

        #[allow(clippy::unused_self)] // The signature of the other one.
        pub(in crate::auth) fn sign(&self, _: &[u8]) -> Result<Vec<u8>, KeyError> {
            Err(KeyError::NoFeature)
        }

        #[allow(clippy::unused_self)] // The signature of the other one.
        pub(in crate::auth) fn verifies(&self, _: &[u8], _: &[u8]) -> bool {
            false
        }
    }
}
