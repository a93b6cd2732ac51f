//! Keys, and the rules about which types they are for.

use ring::{
    aead::{AES_128_GCM, AES_256_GCM, LessSafeKey, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

use crate::BackendError;

/// A key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The secret has a wrong length.
    #[error("a secret of {0} bytes: AES-GCM takes 16 or 32")]
    Length(usize),
    /// The name is empty or has a colon, which ends it in a record.
    #[error("the name {0:?} is empty or has a colon")]
    Name(String),
}

/// Returns a new secret for AES-256.
///
/// # Errors
/// The system has no randomness.
pub fn new_secret() -> Result<[u8; 32], BackendError> {
    let mut secret = [0; 32];
    let filled = SystemRandom::new().fill(&mut secret);
    filled.map_err(|_| BackendError("the system has no randomness".into()))?;
    Ok(secret)
}

/// A key of AES-GCM with its name, which is in every record that it seals.
pub struct Key {
    name: String,
    secret: LessSafeKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?})", self.name)
    }
}

impl Key {
    /// Creates a key from a secret of 16 or 32 bytes (AES-128 or AES-256).
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn new(name: &str, secret: &[u8]) -> Result<Self, KeyError> {
        if name.is_empty() || name.contains(':') {
            return Err(KeyError::Name(name.to_owned()));
        }
        let algorithm = match secret.len() {
            16 => &AES_128_GCM,
            32 => &AES_256_GCM,
            other => return Err(KeyError::Length(other)),
        };
        let secret = UnboundKey::new(algorithm, secret).map_err(|_| KeyError::Length(secret.len()))?;
        Ok(Key { name: name.to_owned(), secret: LessSafeKey::new(secret) })
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn secret(&self) -> &LessSafeKey {
        &self.secret
    }
}

/// A way to keep records.
#[derive(Debug)]
pub enum Provider {
    /// In plain.
    Identity,
    /// Sealed with AES-GCM. The first key seals; all of them open.
    AesGcm(Vec<Key>),
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
        let key = Key::new("k", b"0123456789abcdef").unwrap();
        assert_eq!(format!("{key:?}"), "Key(\"k\")");
        assert_eq!(Key::new("k", &[0; 24]).err(), Some(KeyError::Length(24)));
        assert_eq!(Key::new("a:b", &[0; 32]).err(), Some(KeyError::Name("a:b".into())));
    }
}
