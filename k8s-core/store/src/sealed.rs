//! Encryption of objects on their way to a backend, so that files, copies and backups hold sealed records.
//!
//! Flow: [`Sealed`] wraps a backend. It seals the bytes of a write before the backend sees them, and opens
//! the records that the backend loads and streams. Readers and watchers of the store see plain objects.
//!
//! Format: `k8s:enc:`, the algorithm (`aesgcm`, `aescbc`, `secretbox`) and `:v1:`, or `kms:v2:`; the name of
//! the key or service and a colon; then what the algorithm makes. An object of JSON never begins like this.
//! AES-GCM and services authenticate the type and key of the object, so that a record cannot take the place
//! of another one.
//!
//! Guarantees:
//! 1. An object of a sealed type is never given to the backend in plain.
//! 2. A record that was changed, moved or sealed with another key is an error of the start, which names the
//!    object; nothing is lost. (`secretbox` does not notice a moved one, `aescbc` not every changed one.)
//!
//! Not here: old versions of a record in a file's free pages ([`Embedded::convert`](crate::Embedded::convert)
//! writes a new file), and swap.

mod cipher;
mod envelope;
mod keys;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};

pub use cipher::Algorithm;
pub use envelope::{Envelope, KeyService, ServiceError, WrappedKey};
use envelope::{SALT, Writing};
pub use keys::{Key, KeyError, Provider, Rule, new_secret};

use crate::{Backend, BackendError, Change, Done, Loaded, Sink, Write};

/// The beginning of every sealed record.
const PREFIX: &[u8] = b"k8s:enc:";
/// What follows it if a service keeps the key.
const SERVICE: &str = "kms:v2";

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
    /// The service that keeps the record's key does not give it.
    #[error("{resource} {key:?} cannot be decrypted: {error}")]
    Service {
        /// The type of the object.
        resource: String,
        /// The object's key in its type.
        key: String,
        /// What the service says.
        error: ServiceError,
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
/// use k8s_store::sealed::{Algorithm, Key, Provider, Rule, Sealer};
/// let key = Key::new(Algorithm::AesGcm, "k1", &[7; 32])?;
/// let sealer = Sealer::new(vec![Rule::new(["secrets"], vec![Provider::keys(vec![key])])]);
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

    /// Returns true if new records of a type are sealed.
    fn seals(&self, resource: &str) -> bool {
        !matches!(self.providers(resource).first(), None | Some(Provider::Identity))
    }

    /// Returns all that sealing one new record of a type needs; `None`: records of it are plain.
    fn prepared(&self, resource: &str) -> Result<Option<Prepared>, BackendError> {
        let seal = match self.providers(resource).first() {
            None | Some(Provider::Identity) => return Ok(None),
            Some(Provider::Keys(keys)) if keys.is_empty() => return Ok(None),
            Some(Provider::Keys(keys)) => With::Key(keys.clone()),
            Some(Provider::Service(envelope)) => With::Service(envelope.writing()?, envelope.clone()),
        };
        let mut random = [0; RANDOM];
        self.random.fill(&mut random).map_err(|_| BackendError("the system has no randomness".into()))?;
        Ok(Some(Prepared { with: seal, random }))
    }

    /// Seals the bytes of an object of a sealed type.
    ///
    /// # Errors
    /// The system has no randomness, or the service that keeps the key was silent for too long.
    pub fn seal(&self, resource: &str, key: &str, plain: Bytes) -> Result<Bytes, BackendError> {
        Ok(self.prepared(resource)?.map_or(plain.clone(), |with| with.seal(resource, key, &plain)))
    }

    /// Opens a record. A plain one is returned as it is if its type may be plain.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(&self, resource: &str, key: &str, record: Bytes) -> Result<Bytes, SealError> {
        let (of, at) = (|| resource.to_owned(), || key.to_owned());
        let providers = self.providers(resource);
        let Some(parts) = split(&record) else {
            let plain = providers.is_empty() || providers.iter().any(|p| matches!(p, Provider::Identity));
            return if plain { Ok(record) } else { Err(SealError::Plain { resource: of(), key: at() }) };
        };
        let place = place(resource, key);
        let mut known = false;
        for provider in providers {
            match provider {
                Provider::Identity => {}
                Provider::Keys(keys) => {
                    for one in keys.iter().filter(|one| parts.is_of(one)) {
                        known = true;
                        if let Some(plain) = one.cipher().open(&place, parts.sealed) {
                            return Ok(plain.into());
                        }
                    }
                }
                Provider::Service(envelope) if parts.is_of_service(envelope) => {
                    known = true;
                    let opened = envelope.open(&place, parts.sealed);
                    let opened =
                        opened.map_err(|error| SealError::Service { resource: of(), key: at(), error })?;
                    if let Some(plain) = opened {
                        return Ok(plain.into());
                    }
                }
                Provider::Service(_) => {}
            }
        }
        let name = parts.name.to_owned();
        Err(match known {
            false => SealError::NoKey { resource: of(), key: at(), name },
            true => SealError::Damaged { resource: of(), key: at(), name },
        })
    }

    /// Returns a record as it would be written now; `None` if it is already sealed so. A plain record of a
    /// sealed type is one from before.
    ///
    /// # Errors
    /// A record that cannot be opened, or no randomness.
    pub fn renewed(&self, resource: &str, key: &str, record: &[u8]) -> Result<Option<Bytes>, BackendError> {
        let found = split(record);
        let same = match (self.prepared(resource)?, &found) {
            (None, found) => found.is_none(),
            (Some(_), None) => false,
            (Some(Prepared { with: With::Key(keys), .. }), Some(found)) => found.is_of(&keys[0]),
            (Some(Prepared { with: With::Service(writing, envelope), .. }), Some(found)) => {
                found.is_of_service(&envelope) && envelope::is_of(found.sealed, &writing.key_id)
            }
        };
        if same {
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

/// The parts of a sealed record.
struct Parts<'a> {
    /// Algorithm and version, such as `aesgcm:v1`.
    form: &'a str,
    /// The key's or the service's name.
    name: &'a str,
    sealed: &'a [u8],
}

impl Parts<'_> {
    fn is_of(&self, key: &Key) -> bool {
        self.form.strip_suffix(":v1") == Some(key.algorithm().name()) && self.name == key.name()
    }

    fn is_of_service(&self, envelope: &Envelope) -> bool {
        self.form == SERVICE && self.name == envelope.name()
    }
}

/// Splits a sealed record.
fn split(record: &[u8]) -> Option<Parts<'_>> {
    let rest = record.strip_prefix(PREFIX)?;
    let colons: Vec<usize> =
        rest.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(i, _)| i).take(3).collect();
    let [_, version, name] = colons[..] else { return None };
    let form = std::str::from_utf8(&rest[..version]).ok()?;
    let known = form.strip_suffix(":v1").and_then(Algorithm::named);
    if form != SERVICE && known.is_none() {
        return None;
    }
    let name_text = std::str::from_utf8(&rest[version + 1..name]).ok()?;
    Some(Parts { form, name: name_text, sealed: &rest[name + 1..] })
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

/// Random bytes for one record: a service's salt and the longest nonce.
const RANDOM: usize = SALT + 24;

/// What a record is sealed with.
enum With {
    /// The first of these keys.
    Key(Arc<[Key]>),
    Service(Arc<Writing>, Arc<Envelope>),
}

/// All that sealing one record needs, so that sealing cannot fail.
struct Prepared {
    with: With,
    random: [u8; RANDOM],
}

impl Prepared {
    fn seal(&self, resource: &str, key: &str, plain: &[u8]) -> Bytes {
        let place = place(resource, key);
        let (salt, nonce) = self.random.split_first_chunk::<SALT>().unwrap_or((&[0; SALT], &[]));
        let mut record = Vec::with_capacity(plain.len() + 128);
        record.extend_from_slice(PREFIX);
        match &self.with {
            With::Key(keys) => {
                let key = &keys[0];
                record.extend_from_slice(format!("{}:v1:{}:", key.algorithm().name(), key.name()).as_bytes());
                key.cipher().seal(&place, plain, &nonce[..key.algorithm().nonce_length()], &mut record);
            }
            With::Service(writing, envelope) => {
                record.extend_from_slice(format!("{SERVICE}:{}:", envelope.name()).as_bytes());
                let nonce = &nonce[..Algorithm::AesGcm.nonce_length()];
                writing.seal(&place, plain, salt, nonce, &mut record);
            }
        }
        record.into()
    }
}

/// A backend whose records are sealed.
///
/// ```
/// use k8s_store::{Local, Opaque, Store, sealed::{Algorithm, Key, Provider, Rule, Sealed, Sealer}};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let key = Key::new(Algorithm::AesGcm, "k1", &[7; 32])?;
/// let sealer = Sealer::new(vec![Rule::new(["secrets"], vec![Provider::keys(vec![key])])]);
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
        let with = match self.sealer.prepared(resource) {
            Ok(Some(with)) => with,
            Ok(None) => return self.backend.write(Write { resource, key, expect, effect, encode }, done),
            Err(e) => return done.unavailable(&e),
        };
        let mut sealed = |revision: Option<u64>| with.seal(resource, key, &encode(revision));
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
        // The backend may write it again, to undo a change. If it cannot be sealed now, the write is a conflict.
        self.sealer.seal(resource, key, plain).ok().map(|sealed| (revision, sealed))
    }

    fn ailing(&self, reason: Option<String>) {
        self.sink.ailing(reason);
    }
}

#[cfg(test)]
mod tests;
