//! The embedded durable backend: one redb file.
//!
//! Format: table `objects` maps `resource NUL key` to an 8-byte little-endian revision followed by the object's JSON; table `meta` holds `format` (this
//! layout's number) and `revision` (the newest). Every commit is one redb transaction with immediate durability: redb writes copy-on-write pages, flushes,
//! then switches the root, so a crash leaves either the old or the new state.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Backend, BackendError, Record};

const OBJECTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The layout that this program writes.
const FORMAT: u64 = 1;
/// redb's own page cache, bytes. The store holds every object itself, so reads after start-up are rare.
const PAGE_CACHE: usize = 1 << 20;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("{path:?} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A newer program wrote it.
    #[error(
        "{path:?} has format {have}, this program knows formats up to {FORMAT}: use a newer program or another data directory"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        have: u64,
    },
    /// The file cannot be opened or is damaged.
    #[error("open {path:?}: {message}")]
    Other {
        /// The file.
        path: PathBuf,
        /// The whole story.
        message: String,
    },
}

/// One redb file.
#[derive(Debug)]
pub struct Embedded {
    database: Database,
}

impl Embedded {
    /// Opens a file, or makes it (mode 0600: it holds Secrets).
    ///
    /// # Errors
    /// [`OpenError`] says what to do.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        use std::os::unix::fs::OpenOptionsExt;
        let other =
            |e: &dyn std::fmt::Display| OpenError::Other { path: path.to_owned(), message: e.to_string() };
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| other(&e))?;
        let database = match Database::builder().set_cache_size(PAGE_CACHE).create(path) {
            Ok(database) => database,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                return Err(OpenError::InUse { path: path.to_owned() });
            }
            Err(e) => return Err(other(&e)),
        };
        let this = Embedded { database };
        let format = this.prepare().map_err(|e| other(&e))?;
        if format > FORMAT {
            return Err(OpenError::Newer { path: path.to_owned(), have: format });
        }
        Ok(this)
    }

    /// Makes the tables where they are missing and returns the format.
    fn prepare(&self) -> Result<u64, redb::Error> {
        if let Ok(meta) = self.database.begin_read()?.open_table(META)
            && let Some(format) = meta.get("format")?
        {
            return Ok(format.value());
        }
        let transaction = self.database.begin_write()?;
        transaction.open_table(META)?.insert("format", FORMAT)?;
        transaction.open_table(OBJECTS)?;
        transaction.commit()?;
        Ok(FORMAT)
    }

    fn read_all(&self, each: &mut dyn FnMut(Record)) -> Result<u64, redb::Error> {
        let transaction = self.database.begin_read()?;
        for entry in transaction.open_table(OBJECTS)?.iter()? {
            let (key, value) = entry?;
            let (Some((resource, key)), Some((revision, json))) =
                (split_key(key.value()), value.value().split_first_chunk::<8>())
            else {
                continue;
            };
            each(Record {
                resource: resource.into(),
                key: key.into(),
                revision: u64::from_le_bytes(*revision),
                json: Some(Bytes::copy_from_slice(json)),
            });
        }
        Ok(transaction.open_table(META)?.get("revision")?.map_or(0, |r| r.value()))
    }

    fn write_all(&self, batch: &[Record]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            let mut value = Vec::new();
            for record in batch {
                let key = [record.resource.as_bytes(), b"\0", record.key.as_bytes()].concat();
                match &record.json {
                    Some(json) => {
                        value.clear();
                        value.extend_from_slice(&record.revision.to_le_bytes());
                        value.extend_from_slice(json);
                        objects.insert(key.as_slice(), value.as_slice())?;
                    }
                    None => {
                        objects.remove(key.as_slice())?;
                    }
                }
            }
            if let Some(last) = batch.last() {
                transaction.open_table(META)?.insert("revision", last.revision)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

fn split_key(key: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(key).ok()?.split_once('\0')
}

impl Backend for Embedded {
    fn load(&mut self, each: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
        self.read_all(each).map_err(|e| BackendError(e.to_string()))
    }

    fn commit(&mut self, batch: &[Record]) -> Result<(), BackendError> {
        self.write_all(batch).map_err(|e| BackendError(e.to_string()))
    }
}
