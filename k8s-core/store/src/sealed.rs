//! Encryption of objects on their way to a backend, so that files, copies and backups hold sealed records.
//!
//! Flow: [`Sealed`] wraps a backend. It seals the bytes of a write before the backend sees them, and opens
//! the records that the backend loads and streams. Readers and watchers of the store see plain objects.
//!
//! Format: `k8s:enc:aesgcm:v1:KEY:`, a nonce of 12 random bytes, the encrypted bytes and their tag (AES-GCM).
//! The type and key of the object are authenticated, so that a record cannot take the place of another one.
//! An object of JSON never begins like this.
//!
//! Guarantees:
//! 1. An object of a sealed type is never given to the backend in plain.
//! 2. A record that was changed, moved or sealed with another key is an error of the start, which names the
//!    object; nothing is lost.
//!
//! Not here: old versions of a record in a file's free pages ([`Embedded::convert`](crate::Embedded::convert)
//! writes a new file), and swap.

mod keys;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use ring::{
    aead::{Aad, Nonce},
    rand::{SecureRandom, SystemRandom},
};

pub use keys::{Key, KeyError, Provider, Rule, new_secret};

use crate::{Backend, BackendError, Change, Done, Loaded, Sink, Write};

/// The beginning of every sealed record.
const PREFIX: &[u8] = b"k8s:enc:aesgcm:v1:";
/// Length of a nonce, bytes.
const NONCE: usize = 12;

/// A sealed record cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// No key has the record's name for it. Give that key.
    #[error("{resource} {key:?} is encrypted with the key {name:?}, which is not among the keys for it")]
    NoKey {
        /// The type of the object.
        resource: String,
        /// The object's key in its type.
        key: String,
        /// Name of the encryption key.
        name: String,
    },
    /// The record was changed or moved, or the key is another one of the same name.
    #[error(
        "{resource} {key:?} cannot be decrypted with the key {name:?}: the record is damaged, or the key is another one"
    )]
    Damaged {
        /// The type of the object.
        resource: String,
        /// The object's key in its type.
        key: String,
        /// Name of the encryption key.
        name: String,
    },
    /// The record is plain, and plain records of its type are not accepted.
    #[error("{resource} {key:?} is not encrypted, and its type is")]
    Plain {
        /// The type of the object.
        resource: String,
        /// The object's key in its type.
        key: String,
    },
}

/// Rules about the types that are sealed, and their keys.
///
/// ```
/// use k8s_store::sealed::{Key, Provider, Rule, Sealer};
/// let key = Key::new("k1", &[7; 32])?;
/// let sealer = Sealer::new(vec![Rule::new(["secrets"], vec![Provider::AesGcm(vec![key])])]);
/// let record = sealer.seal("secrets", "default/a", "{\"data\":{}}".into()).unwrap();
/// assert!(record.starts_with(b"k8s:enc:aesgcm:v1:k1:"));
/// assert_eq!(sealer.open("secrets", "default/a", record.clone()).unwrap(), "{\"data\":{}}");
/// assert!(sealer.open("secrets", "default/b", record).is_err());
/// assert_eq!(sealer.seal("configmaps", "default/a", "{}".into()).unwrap(), "{}");
/// # Ok::<(), k8s_store::sealed::KeyError>(())
/// ```
#[derive(Debug)]
pub struct Sealer {
    rules: Vec<Rule>,
    random: SystemRandom,
}

impl Sealer {
    /// Creates a sealer. The first rule that is about a type counts; other types are plain.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Sealer { rules, random: SystemRandom::new() }
    }

    fn providers(&self, resource: &str) -> &[Provider] {
        self.rules.iter().find(|rule| rule.is_about(resource)).map_or(&[], |rule| &rule.providers)
    }

    /// Returns the key that new records of a type are sealed with; `None`: they are plain.
    fn writing_key(&self, resource: &str) -> Option<&Key> {
        match self.providers(resource).first()? {
            Provider::AesGcm(keys) => keys.first(),
            Provider::Identity => None,
        }
    }

    /// Returns true if new records of a type are sealed.
    fn seals(&self, resource: &str) -> bool {
        self.writing_key(resource).is_some()
    }

    /// Seals the bytes of an object of a sealed type.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn seal(&self, resource: &str, key: &str, plain: Bytes) -> Result<Bytes, BackendError> {
        let Some(with) = self.writing_key(resource) else { return Ok(plain) };
        Ok(with.seal(resource, key, &plain, self.nonce()?))
    }

    fn nonce(&self) -> Result<[u8; NONCE], BackendError> {
        let mut nonce = [0; NONCE];
        self.random.fill(&mut nonce).map_err(|_| BackendError("the system has no randomness".into()))?;
        Ok(nonce)
    }

    /// Opens a record. A plain one is returned as it is if its type may be plain.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(&self, resource: &str, key: &str, record: Bytes) -> Result<Bytes, SealError> {
        let (of, at) = (|| resource.to_owned(), || key.to_owned());
        let providers = self.providers(resource);
        let Some((name, sealed)) = split(&record) else {
            let plain = providers.is_empty() || providers.iter().any(|p| matches!(p, Provider::Identity));
            return if plain { Ok(record) } else { Err(SealError::Plain { resource: of(), key: at() }) };
        };
        let keys = providers.iter().flat_map(|provider| match provider {
            Provider::AesGcm(keys) => keys.as_slice(),
            Provider::Identity => &[],
        });
        let mut known = keys.filter(|known| known.name() == name).peekable();
        if known.peek().is_none() {
            return Err(SealError::NoKey { resource: of(), key: at(), name: name.to_owned() });
        }
        known.find_map(|known| known.open(resource, key, sealed)).ok_or_else(|| SealError::Damaged {
            resource: of(),
            key: at(),
            name: name.to_owned(),
        })
    }

    /// Returns a record as it would be written now; `None` if it is already sealed so. A plain record of a
    /// sealed type is one from before.
    ///
    /// # Errors
    /// A record that cannot be opened, or no randomness.
    pub fn renewed(&self, resource: &str, key: &str, record: &[u8]) -> Result<Option<Bytes>, BackendError> {
        let found = split(record).map(|(name, _)| name);
        if found == self.writing_key(resource).map(Key::name) {
            return Ok(None);
        }
        let record = Bytes::copy_from_slice(record);
        let plain = match found {
            Some(_) => self.open(resource, key, record).map_err(|e| BackendError(e.to_string()))?,
            None => record,
        };
        self.seal(resource, key, plain).map(Some)
    }
}

/// Splits a sealed record into its key's name and the rest.
fn split(record: &[u8]) -> Option<(&str, &[u8])> {
    let rest = record.strip_prefix(PREFIX)?;
    let end = rest.iter().position(|byte| *byte == b':')?;
    let (name, sealed) = rest.split_at(end);
    Some((std::str::from_utf8(name).ok()?, &sealed[1..]))
}

/// Returns true if a record is sealed, whatever its key.
#[must_use]
pub fn is_sealed(record: &[u8]) -> bool {
    split(record).is_some()
}

/// What is authenticated with a record.
fn place(resource: &str, key: &str) -> Vec<u8> {
    [resource.as_bytes(), b"\0", key.as_bytes()].concat()
}

impl Key {
    fn seal(&self, resource: &str, key: &str, plain: &[u8], nonce: [u8; NONCE]) -> Bytes {
        let mut text = Vec::with_capacity(plain.len() + self.secret().algorithm().tag_len());
        text.extend_from_slice(plain);
        let sealed = self.secret().seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(place(resource, key)),
            &mut text,
        );
        // AES-GCM refuses only texts of more than 64 GiB, which no object can be.
        assert!(sealed.is_ok(), "an object of {} bytes cannot be sealed", plain.len());
        [PREFIX, self.name().as_bytes(), b":", &nonce, &text].concat().into()
    }

    fn open(&self, resource: &str, key: &str, sealed: &[u8]) -> Option<Bytes> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE>()?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length =
            self.secret().open_in_place(nonce, Aad::from(place(resource, key)), &mut text).ok()?.len();
        text.truncate(length);
        Some(text.into())
    }
}

/// A backend whose records are sealed.
///
/// ```
/// use k8s_store::{Local, Opaque, Store, sealed::{Key, Provider, Rule, Sealed, Sealer}};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let key = Key::new("k1", &[7; 32])?;
/// let sealer = Sealer::new(vec![Rule::new(["secrets"], vec![Provider::AesGcm(vec![key])])]);
/// let store = Store::open(Sealed::new(Local::memory(0), sealer), Opaque)?;
/// assert_eq!(store.revision(), 0);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Sealed<B> {
    backend: B,
    sealer: Arc<Sealer>,
}

impl<B: Backend> Sealed<B> {
    /// Wraps a backend.
    pub fn new(backend: B, sealer: Sealer) -> Self {
        Sealed { backend, sealer: Arc::new(sealer) }
    }
}

impl<B: Backend> Backend for Sealed<B> {
    fn start(&self, sink: Arc<dyn Sink>) -> Result<u64, BackendError> {
        let opening = Arc::new(Opening { sink, sealer: self.sealer.clone(), failed: Mutex::default() });
        let revision = self.backend.start(opening.clone())?;
        match opening.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(e) => Err(BackendError(e.to_string())),
            None => Ok(revision),
        }
    }

    fn write(&self, write: Write<'_>, done: Done) {
        let Write { resource, key, expect, effect, encode } = write;
        let Some(with) = self.sealer.writing_key(resource) else {
            return self.backend.write(Write { resource, key, expect, effect, encode }, done);
        };
        let nonce = match self.sealer.nonce() {
            Ok(nonce) => nonce,
            Err(e) => return done.unavailable(&e),
        };
        let mut sealed = |revision: Option<u64>| with.seal(resource, key, &encode(revision), nonce);
        self.backend.write(Write { resource, key, expect, effect, encode: &mut sealed }, done);
    }
}

/// The store's sink, as the wrapped backend sees it.
struct Opening {
    sink: Arc<dyn Sink>,
    sealer: Arc<Sealer>,
    /// The first record that could not be opened while objects were loaded.
    failed: Mutex<Option<SealError>>,
}

impl Sink for Opening {
    fn load(&self, object: Loaded) {
        match self.sealer.open(&object.resource, &object.key, object.bytes) {
            Ok(bytes) => self.sink.load(Loaded { bytes, ..object }),
            Err(e) => {
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        }
    }

    fn apply(&self, changes: Vec<Change>) -> bool {
        let opened = changes.into_iter().filter_map(|change| {
            match self.sealer.open(&change.resource, &change.key, change.bytes) {
                Ok(bytes) => Some(Change { bytes, ..change }),
                Err(error) => {
                    // Another writer's record; one bad object stops no other.
                    tracing::error!(%error, "a change cannot be decrypted and is left out");
                    None
                }
            }
        });
        self.sink.apply(opened.collect())
    }

    fn current(&self, resource: &str, key: &str) -> Option<(u64, Bytes)> {
        let (revision, plain) = self.sink.current(resource, key)?;
        if !self.sealer.seals(resource) {
            return Some((revision, plain));
        }
        // The backend may write it again, to undo a change. Without randomness there is no write, either.
        let sealed = self.sealer.seal(resource, key, plain).ok().unwrap_or_default();
        Some((revision, sealed))
    }

    fn ailing(&self, reason: Option<String>) {
        self.sink.ailing(reason);
    }
}

#[cfg(test)]
mod tests;
