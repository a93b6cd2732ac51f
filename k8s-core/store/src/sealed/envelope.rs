//! Keys that a service outside keeps safe (KMS, version 2 of its interface).
//!
//! Flow: the service wraps a seed, once per start and whenever its own key changes. Each record is sealed
//! with a key of its own, derived from the seed and 32 random bytes. The record holds the wrapped seed, so
//! that whoever reaches the service can open it. Wrapped seeds that were opened before are remembered.
//!
//! Record after the name: length of the wrapped seed (4 bytes, big endian), the wrapped seed, 32 random
//! bytes, then as with AES-GCM.
//!
//! Guarantee: no write waits for the service. It is asked by [`Envelope::new`], by [`Envelope::refresh`], and
//! when a record of an unknown seed is opened.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use ring::{
    aead::{AES_256_GCM, UnboundKey},
    hkdf::{HKDF_SHA256, Prk},
};

use super::{
    cipher::Cipher,
    keys::{KeyError, checked_name, new_secret},
};
use crate::BackendError;

/// Length of the random bytes that make a record's key its own.
pub(super) const SALT: usize = 32;
/// Bounds of what a service may answer, bytes, as its interface has them.
const KEY_ID: usize = 1024;
const WRAPPED: usize = 1024;
const ANNOTATIONS: usize = 32 * 1024;
/// How many opened seeds are remembered.
const REMEMBERED: usize = 1_000;

/// The service does not answer, or not as its interface says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key service {service:?}: {reason}")]
pub struct ServiceError {
    /// Name of the service.
    pub service: String,
    /// What is wrong.
    pub reason: String,
}

/// A seed as the service wrapped it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrappedKey {
    /// The service's own key that wrapped it: 1 to 1,024 bytes.
    pub key_id: String,
    /// The wrapped seed: 1 to 1,024 bytes.
    pub bytes: Vec<u8>,
    /// What the service wants back with it; together at most 32 kB.
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// A service that wraps keys with a key that never leaves it.
///
/// Its calls block. They must end within a time that the start of a server may take.
pub trait KeyService: Send + Sync + Debug {
    /// Returns the id of the key that it wraps with now.
    ///
    /// # Errors
    /// Why the service cannot be used.
    fn key_id(&self) -> Result<String, String>;

    /// Wraps a seed.
    ///
    /// # Errors
    /// Why it cannot.
    fn encrypt(&self, plain: &[u8]) -> Result<WrappedKey, String>;

    /// Unwraps a seed.
    ///
    /// # Errors
    /// Why it cannot.
    fn decrypt(&self, wrapped: &WrappedKey) -> Result<Vec<u8>, String>;
}

/// What new records are sealed with.
pub(super) struct Writing {
    head: Vec<u8>,
    pub(super) key_id: String,
    seed: Prk,
}

/// A provider whose keys a service wraps.
pub struct Envelope {
    name: String,
    service: Box<dyn KeyService>,
    /// The seed of new records, or why there is none now.
    writing: RwLock<Result<Arc<Writing>, String>>,
    opened: Mutex<HashMap<Vec<u8>, Arc<Prk>>>,
}

impl Debug for Envelope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Envelope({:?})", self.name)
    }
}

impl Envelope {
    /// Creates the provider. A service that does not answer is no error yet: writes fail until
    /// [`refresh`](Self::refresh) has reached it.
    ///
    /// # Errors
    /// The name is empty or has a colon.
    pub fn new(name: &str, service: impl KeyService + 'static) -> Result<Self, KeyError> {
        let made = Envelope {
            name: checked_name(name)?,
            service: Box::new(service),
            writing: RwLock::new(Err("it was not asked yet".to_owned())),
            opened: Mutex::default(),
        };
        if let Err(error) = made.refresh() {
            made.suspend(&error.reason);
        }
        Ok(made)
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn error(&self, reason: impl Into<String>) -> ServiceError {
        ServiceError { service: self.name.clone(), reason: reason.into() }
    }

    /// Asks the service which key it wraps with. If that is another one, new records get a new seed.
    ///
    /// # Errors
    /// The service cannot be used now. Records are written with the seed from before.
    pub fn refresh(&self) -> Result<(), ServiceError> {
        let id = self.service.key_id().map_err(|reason| self.error(reason))?;
        if id.is_empty() || id.len() > KEY_ID {
            return Err(self.error(format!("its key id has {} bytes: want 1 to {KEY_ID}", id.len())));
        }
        if self.writing().is_ok_and(|writing| writing.key_id == id) {
            return Ok(());
        }
        let seed = new_secret().map_err(|e| self.error(e.0))?;
        let wrapped = self.service.encrypt(&seed).map_err(|reason| self.error(reason))?;
        let head = encode(&wrapped).map_err(|reason| self.error(reason))?;
        let seed = Prk::new_less_safe(HKDF_SHA256, &seed);
        self.remember(head.clone(), Arc::new(seed.clone()));
        let writing = Writing { head, key_id: wrapped.key_id, seed };
        *self.writing.write().unwrap_or_else(PoisonError::into_inner) = Ok(Arc::new(writing));
        Ok(())
    }

    /// Refuses new records, until the next [`refresh`](Self::refresh) that succeeds: the service was silent
    /// for too long, and its key may have been taken away.
    pub fn suspend(&self, reason: &str) {
        *self.writing.write().unwrap_or_else(PoisonError::into_inner) = Err(reason.to_owned());
    }

    pub(super) fn writing(&self) -> Result<Arc<Writing>, ServiceError> {
        let now = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        now.clone().map_err(|reason| self.error(reason))
    }

    fn remember(&self, head: Vec<u8>, seed: Arc<Prk>) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.len() >= REMEMBERED {
            opened.clear();
        }
        opened.insert(head, seed);
    }

    fn seed(&self, head: &[u8]) -> Result<Arc<Prk>, ServiceError> {
        let known = self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(head).cloned();
        if let Some(seed) = known {
            return Ok(seed);
        }
        let wrapped = decode(head).ok_or_else(|| self.error("the record's key is damaged"))?;
        let seed = self.service.decrypt(&wrapped).map_err(|reason| self.error(reason))?;
        let seed = Arc::new(Prk::new_less_safe(HKDF_SHA256, &seed));
        self.remember(head.to_vec(), seed.clone());
        Ok(seed)
    }

    /// Opens a record without its name.
    ///
    /// # Errors
    /// The service does not unwrap the record's key. `Ok(None)`: the record is damaged.
    pub(super) fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Option<Vec<u8>>, ServiceError> {
        let Some((head, rest)) = split(sealed) else { return Ok(None) };
        let seed = self.seed(head)?;
        let Some((salt, text)) = rest.split_first_chunk::<SALT>() else { return Ok(None) };
        Ok(cipher(&seed, salt).and_then(|cipher| cipher.open(place, text)))
    }
}

impl Writing {
    /// Appends the sealed form of `plain` to `record`.
    pub(super) fn seal(
        &self,
        place: &[u8],
        plain: &[u8],
        salt: &[u8; SALT],
        nonce: &[u8],
        record: &mut Vec<u8>,
    ) {
        let length = u32::try_from(self.head.len()).unwrap_or(u32::MAX);
        record.extend_from_slice(&length.to_be_bytes());
        record.extend_from_slice(&self.head);
        record.extend_from_slice(salt);
        let cipher = cipher(&self.seed, salt);
        // A derived key is at most 255 times as long as a digest; this one is as long.
        assert!(cipher.is_some(), "no key of {} bytes", AES_256_GCM.key_len());
        cipher.into_iter().for_each(|cipher| cipher.seal(place, plain, nonce, record));
    }
}

/// Returns true if a record, without its name, was sealed under a service's key of this id.
pub(super) fn is_of(sealed: &[u8], key_id: &str) -> bool {
    split(sealed).and_then(|(head, _)| decode(head)).is_some_and(|wrapped| wrapped.key_id == key_id)
}

fn cipher(seed: &Prk, salt: &[u8; SALT]) -> Option<Cipher> {
    let info = [salt.as_slice()];
    let derived = seed.expand(&info, &AES_256_GCM).ok()?;
    Some(Cipher::of_gcm(UnboundKey::from(derived)))
}

fn split(sealed: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = sealed.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// Encodes a wrapped seed: parts with their lengths, 4 bytes each.
fn encode(wrapped: &WrappedKey) -> Result<Vec<u8>, String> {
    let annotations: usize = wrapped.annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
    for (what, size, most) in
        [("key id", wrapped.key_id.len(), KEY_ID), ("wrapped key", wrapped.bytes.len(), WRAPPED)]
    {
        if size == 0 || size > most {
            return Err(format!("its {what} has {size} bytes: want 1 to {most}"));
        }
    }
    if annotations > ANNOTATIONS {
        return Err(format!("its annotations have {annotations} bytes: want at most {ANNOTATIONS}"));
    }
    let mut head = Vec::new();
    let mut part = |bytes: &[u8]| {
        head.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        head.extend_from_slice(bytes);
    };
    part(wrapped.key_id.as_bytes());
    part(&wrapped.bytes);
    for (name, value) in &wrapped.annotations {
        part(name.as_bytes());
        part(value);
    }
    Ok(head)
}

fn decode(head: &[u8]) -> Option<WrappedKey> {
    let mut parts = Vec::new();
    let mut rest = head;
    while !rest.is_empty() {
        let (part, after) = split(rest)?;
        parts.push(part);
        rest = after;
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let (first, annotations) = parts.split_at_checked(2)?;
    let (pairs, odd) = annotations.as_chunks::<2>();
    if !odd.is_empty() {
        return None;
    }
    let annotations = pairs.iter().map(|[name, value]| Some((text(name)?, value.to_vec())));
    Some(WrappedKey {
        key_id: text(first[0])?,
        bytes: first[1].to_vec(),
        annotations: annotations.collect::<Option<_>>()?,
    })
}

impl From<ServiceError> for BackendError {
    fn from(error: ServiceError) -> Self {
        BackendError(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wrapped_key_is_read_back(
            key_id in "[a-z]{1,20}",
            bytes in proptest::collection::vec(any::<u8>(), 1..40),
            annotations in proptest::collection::btree_map("[a-z.]{1,9}", proptest::collection::vec(any::<u8>(), 0..9), 0..3),
        ) {
            let wrapped = WrappedKey { key_id, bytes, annotations };
            prop_assert_eq!(decode(&encode(&wrapped).unwrap()), Some(wrapped));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = (decode(&bytes), split(&bytes));
        }
    }

    #[test]
    fn answers_are_bounded() {
        let with = |id: usize, bytes: usize, annotation: usize| {
            let annotations = [("a".to_owned(), vec![0; annotation])].into();
            encode(&WrappedKey { key_id: "k".repeat(id), bytes: vec![0; bytes], annotations }).map(drop)
        };
        assert_eq!(with(1, 1, 0), Ok(()));
        assert_eq!(with(0, 1, 0).unwrap_err(), "its key id has 0 bytes: want 1 to 1024");
        assert!(with(1, 1025, 0).is_err() && with(1, 0, 0).is_err() && with(1, 1, 33_000).is_err());
    }
}
