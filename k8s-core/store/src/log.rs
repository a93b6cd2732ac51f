//! Durability for a store that has its process for itself.

use std::sync::Arc;

use bytes::Bytes;

use crate::BackendError;

/// One durable change of an object.
#[derive(Clone, Debug)]
pub struct Record {
    /// The type, such as `deployments.apps`.
    pub resource: Arc<str>,
    /// The object's key in its type.
    pub key: Arc<str>,
    /// The revision of the change.
    pub revision: u64,
    /// The object's bytes after the change; `None`: it is deleted.
    pub bytes: Option<Bytes>,
    /// The object's revision and bytes before the change; `None`: it was not there.
    pub before: Option<(u64, Bytes)>,
}

/// Keeps records for [`Local`](crate::Local). Called by one thread at a time.
///
/// ```
/// use k8s_store::{BackendError, Local, Log, Opaque, Record, Store};
///
/// /// A log that prints every change and keeps nothing.
/// struct Printed;
///
/// impl Log for Printed {
///     fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
///         Ok(0)
///     }
///     fn commit(&mut self, batch: &[Record]) -> Result<(), BackendError> {
///         batch.iter().for_each(|record| println!("{} {}", record.resource, record.key));
///         Ok(())
///     }
/// }
///
/// let store = Store::open(Local::new(Printed), Opaque)?;
/// assert_eq!(store.revision(), 0);
/// # Ok::<(), BackendError>(())
/// ```
pub trait Log: Send + 'static {
    /// Gives every object that is there to `each` and returns the newest revision (0 for an empty log).
    ///
    /// # Errors
    /// When what is kept cannot be read.
    fn load(&mut self, each: &mut dyn FnMut(Record)) -> Result<u64, BackendError>;

    /// Makes all changes durable, or none. Returns after the flush.
    ///
    /// # Errors
    /// When they are not durable; the caller treats them as never made.
    fn commit(&mut self, batch: &[Record]) -> Result<(), BackendError>;

    /// Tries to become able to write again. Called about once a second while [`Log::is_well`] is false or
    /// the last commit failed.
    ///
    /// # Errors
    /// When it still cannot write.
    fn mend(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// False when some writes are known to fail. Deletions may succeed even then.
    fn is_well(&self) -> bool {
        true
    }

    /// True when commits block on a device, and so belong on a thread of their own.
    fn blocks(&self) -> bool {
        true
    }
}

/// Keeps nothing: for tests, and for clusters that may be forgotten.
#[derive(Clone, Copy, Debug, Default)]
pub struct Volatile {
    /// The revision to go on from.
    pub(crate) revision: u64,
}

impl Log for Volatile {
    fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
        Ok(self.revision)
    }

    fn commit(&mut self, _: &[Record]) -> Result<(), BackendError> {
        Ok(())
    }

    fn blocks(&self) -> bool {
        false
    }
}
