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
