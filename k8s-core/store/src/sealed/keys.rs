//! Keys, and the rules about which types they are for.

use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};

use super::{
    cipher::{Algorithm, Cipher},
    envelope::Envelope,
};
use crate::BackendError;

/// A key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The secret has a wrong length.
    #[error("a secret of {found} bytes: {} takes {:?}", algorithm.name(), algorithm.secret_lengths())]
    Length {
        /// What the key is for.
        algorithm: Algorithm,
        /// Length of the secret, bytes.
        found: usize,
    },
    /// The name is empty or has a colon, which ends it in a record.
    #[error("the name {0:?} is empty or has a colon")]
    Name(String),
}

/// Returns a new secret of 32 bytes.
///
/// # Errors
/// The system has no randomness.
pub fn new_secret() -> Result<[u8; 32], BackendError> {
    let mut secret = [0; 32];
    let filled = SystemRandom::new().fill(&mut secret);
    filled.map_err(|_| BackendError("the system has no randomness".into()))?;
    Ok(secret)
}

/// Checks the name of a key or key service.
pub(super) fn checked_name(name: &str) -> Result<String, KeyError> {
    if name.is_empty() || name.contains(':') {
        return Err(KeyError::Name(name.to_owned()));
    }
    Ok(name.to_owned())
}

/// A key with its name, which is in every record that it seals.
pub struct Key {
    name: String,
    cipher: Cipher,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?}, {:?})", self.cipher.algorithm(), self.name)
    }
}

impl Key {
    /// Creates a key of an algorithm from a secret of one of [its lengths](Algorithm::secret_lengths).
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn new(algorithm: Algorithm, name: &str, secret: &[u8]) -> Result<Self, KeyError> {
        Ok(Key { name: checked_name(name)?, cipher: Cipher::new(algorithm, secret)? })
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what the key is for.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.cipher.algorithm()
    }

    pub(super) fn cipher(&self) -> &Cipher {
        &self.cipher
    }
}

/// A way to keep records.
#[derive(Clone, Debug)]
pub enum Provider {
    /// In plain.
    Identity,
    /// Sealed with keys. The first one seals; all of them open.
    Keys(Arc<[Key]>),
    /// Sealed with keys that a service outside keeps safe.
    Service(Arc<Envelope>),
}

impl Provider {
    /// Returns the provider of some keys.
    #[must_use]
    pub fn keys(keys: Vec<Key>) -> Self {
        Provider::Keys(keys.into())
    }
}

/// The providers of some types. The first one writes; all of them read.
#[derive(Debug)]
pub struct Rule {
    resources: Vec<String>,
    pub(super) providers: Vec<Provider>,
}

impl Rule {
    /// Creates a rule for types: `secrets`, `deployments.apps`, `*.apps` for a group, `*.` for the core
    /// group, `*.*` for all.
    pub fn new<R: Into<String>>(resources: impl IntoIterator<Item = R>, providers: Vec<Provider>) -> Self {
        Rule { resources: resources.into_iter().map(Into::into).collect(), providers }
    }

    /// Returns the providers, to add one.
    pub fn providers_mut(&mut self) -> &mut Vec<Provider> {
        &mut self.providers
    }

    /// Returns true for a type of the rule, by its name in the store.
    pub(super) fn is_about(&self, resource: &str) -> bool {
        let group = resource.split_once('.').map_or("", |(_, group)| group);
        self.resources.iter().any(|named| match named.strip_prefix("*.") {
            Some("*") => true,
            Some(of) => of == group,
            None => named.trim_end_matches('.') == resource,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_types_and_groups() {
        let is = |named: &str, resource: &str| Rule::new([named], Vec::new()).is_about(resource);
        assert!(
            is("secrets", "secrets") && is("secrets.", "secrets") && !is("secrets", "secrets.example.com")
        );
        assert!(is("deployments.apps", "deployments.apps") && !is("deployments", "deployments.apps"));
        assert!(is("*.apps", "deployments.apps") && !is("*.apps", "pods") && is("*.", "pods"));
        assert!(is("*.*", "pods") && is("*.*", "deployments.apps") && !is("*.", "deployments.apps"));
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = Key::new(Algorithm::AesGcm, "k", b"0123456789abcdef").unwrap();
        assert_eq!(format!("{key:?}"), "Key(AesGcm, \"k\")");
        assert_eq!(Key::new(Algorithm::AesGcm, "a:b", &[0; 32]).err(), Some(KeyError::Name("a:b".into())));
        let length = |algorithm, of: usize| {
            Key::new(algorithm, "k", &vec![0; of]).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(length(Algorithm::AesGcm, 24), "a secret of 24 bytes: aesgcm takes [16, 32]");
        assert_eq!(length(Algorithm::Secretbox, 16), "a secret of 16 bytes: secretbox takes [32]");
        assert_eq!(length(Algorithm::AesCbc, 24), "");
    }
}
