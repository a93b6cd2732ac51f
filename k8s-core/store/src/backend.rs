//! What makes writes durable.

use bytes::Bytes;

/// One durable change.
#[derive(Clone, Debug)]
pub struct Record {
    /// The type, such as `deployments.apps`.
    pub resource: std::sync::Arc<str>,
    /// The object's key in its type.
    pub key: std::sync::Arc<str>,
    /// The revision of the change.
    pub revision: u64,
    /// The object as JSON; `None`: it is deleted.
    pub json: Option<Bytes>,
    /// The object before it and the revision of that; `None`: it was not there.
    pub before: Option<(u64, Bytes)>,
}

impl Record {
    /// The change that takes this one back.
    pub(super) fn undone(&self) -> Record {
        let (revision, json) =
            self.before.clone().map_or((0, None), |(revision, json)| (revision, Some(json)));
        Record { resource: self.resource.clone(), key: self.key.clone(), revision, json, before: None }
    }

    /// How many bytes more there are after it; negative: less.
    pub(super) fn growth(&self) -> isize {
        let length =
            |json: Option<&Bytes>| json.map_or(0, |json| isize::try_from(json.len()).unwrap_or(isize::MAX));
        length(self.json.as_ref()) - length(self.before.as_ref().map(|(_, json)| json))
    }
}

/// A backend that could not do its work.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// Keeps records. Called by one thread at a time.
pub trait Backend: Send + 'static {
    /// Gives every object that is there to `each` and returns the newest revision (0 for an empty store).
    ///
    /// # Errors
    /// When what is stored cannot be read.
    fn load(&mut self, each: &mut dyn FnMut(Record)) -> Result<u64, BackendError>;

    /// Makes all changes durable, or none. Returns after the flush.
    ///
    /// # Errors
    /// When they are not durable; the caller treats them as never made.
    fn commit(&mut self, batch: &[Record]) -> Result<(), BackendError>;

    /// Tries to become able to write again. Called about once a second while [`Backend::is_well`] is false or the last commit failed.
    ///
    /// # Errors
    /// When it still cannot write.
    fn mend(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Whether any write could be made durable now, as far as is known. Some may be even when this is false.
    fn is_well(&self) -> bool {
        true
    }

    /// Whether commits block on a device, so that they belong on a thread of their own.
    fn blocks(&self) -> bool {
        true
    }
}

/// Keeps nothing: for tests and for clusters that may be forgotten.
#[derive(Debug, Default)]
pub struct Memory;

impl Backend for Memory {
    fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
        Ok(0)
    }
    fn commit(&mut self, _: &[Record]) -> Result<(), BackendError> {
        Ok(())
    }
    fn blocks(&self) -> bool {
        false
    }
}
