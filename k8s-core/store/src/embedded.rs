//! The embedded durable log: one redb file.
//!
//! Format: table `objects` maps `resource NUL key` to an 8-byte little-endian revision followed by the
//! object's JSON; table `meta` holds `format` (this layout's number) and `revision` (the newest). Every
//! commit is one redb transaction with immediate durability: redb writes copy-on-write pages, flushes, then
//! switches the root, so a crash leaves either the old or the new state. A new file is made under another
//! name and renamed when its tables are on disk, so an empty file is never the trace of a crash.
//!
//! A full disk: after an I/O error redb refuses everything until its file is opened again. So the file is
//! closed, the space held in reserve (a file of [`RESERVE`] bytes beside it) is given up, and the file is
//! opened again; what a failed commit may have left in it is undone. From then on only batches that do not
//! grow are written (deletions, mostly), until [`Log::mend`] could take the reserve again.

mod convert;
mod file;

pub use file::OpenError;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::{BackendError, Log, Record};

const OBJECTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The layout that this program writes.
const FORMAT: u64 = 1;
/// redb's own page cache, bytes. The store holds every object itself, so reads after start-up are rare.
const PAGE_CACHE: usize = 1 << 20;
/// Bytes of disk held in reserve: room for redb to open its file and to delete objects on a disk that is
/// full.
const RESERVE: usize = 4 << 20;

impl Record {
    /// The change that undoes this one.
    fn undone(&self) -> Record {
        let (revision, bytes) =
            self.before.clone().map_or((0, None), |(revision, bytes)| (revision, Some(bytes)));
        Record { resource: self.resource.clone(), key: self.key.clone(), revision, bytes, before: None }
    }

    /// Bytes that the change adds to what is kept; negative when it removes some.
    fn growth(&self) -> isize {
        let length = |bytes: Option<&Bytes>| {
            bytes.map_or(0, |bytes| isize::try_from(bytes.len()).unwrap_or(isize::MAX))
        };
        length(self.bytes.as_ref()) - length(self.before.as_ref().map(|(_, bytes)| bytes))
    }
}

/// A log in one redb file, locked by this process.
#[derive(Debug)]
pub struct Embedded {
    path: PathBuf,
    /// `None` after an I/O error, until the file could be opened again.
    database: Option<Database>,
    /// The disk was full and has not been seen with room again.
    full: bool,
    /// The newest revision that was committed.
    revision: u64,
    /// Records that undo a failed commit, which may have reached the file.
    undo: Vec<Record>,
}

impl Embedded {
    /// Opens a file, or makes it where it is missing (mode 0600: it holds Secrets).
    ///
    /// # Errors
    /// [`OpenError`] says what to do. A file that is empty or of another program is an error, and is left as
    /// it is.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        match Self::open_existing(path) {
            Err(OpenError::Missing { .. }) => file::create(path).map(|database| Self::new(path, database)),
            other => other,
        }
    }

    /// Opens a file that is there.
    ///
    /// # Errors
    /// As [`Embedded::open`]; [`OpenError::Missing`] where there is no file.
    pub fn open_existing(path: &Path) -> Result<Self, OpenError> {
        file::check(path)?;
        let database = match file::open(path) {
            Err(OpenError::Other { .. }) if give_up_reserve(path) => file::open(path)?,
            other => other?,
        };
        Ok(Self::new(path, database))
    }

    fn new(path: &Path, database: Database) -> Self {
        let full = take_reserve(path).is_err();
        Embedded { path: path.to_owned(), database: Some(database), full, revision: 0, undo: Vec::new() }
    }

    fn database(&self) -> Result<&Database, redb::Error> {
        self.database.as_ref().ok_or(redb::Error::PreviousIo)
    }

    fn read_all(&self, each: &mut dyn FnMut(Record)) -> Result<u64, redb::Error> {
        let transaction = self.database()?.begin_read()?;
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
                bytes: Some(Bytes::copy_from_slice(json)),
                before: None,
            });
        }
        Ok(transaction.open_table(META)?.get("revision")?.map_or(0, |r| r.value()))
    }

    fn write_all(&self, batch: &[Record], revision: u64) -> Result<(), redb::Error> {
        let transaction = self.database()?.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            let mut value = Vec::new();
            for record in batch {
                let key = [record.resource.as_bytes(), b"\0", record.key.as_bytes()].concat();
                match &record.bytes {
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
            transaction.open_table(META)?.insert("revision", revision)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Opens the file again after an I/O error, and undoes what the failed commit may have left in it.
    fn reopen(&mut self) -> Result<(), BackendError> {
        if self.database.is_none() {
            self.database = Some(file::open(&self.path).map_err(|e| BackendError(e.to_string()))?);
        }
        if !self.undo.is_empty() {
            let left = self.file_revision().map_err(|e| self.failed(&e))?;
            if left != self.revision {
                self.write_all(&self.undo, self.revision).map_err(|e| self.failed(&e))?;
            }
            self.undo.clear();
        }
        Ok(())
    }

    fn file_revision(&self) -> Result<u64, redb::Error> {
        let transaction = self.database()?.begin_read()?;
        Ok(transaction.open_table(META)?.get("revision")?.map_or(0, |r| r.value()))
    }

    /// Closes the file, which redb asks for after an I/O error.
    fn failed(&mut self, error: &redb::Error) -> BackendError {
        self.database = None;
        BackendError(error.to_string())
    }

    fn write(&mut self, batch: &[Record]) -> Result<(), BackendError> {
        let revision = batch.last().map_or(self.revision, |last| last.revision);
        match self.write_all(batch, revision) {
            Ok(()) => {
                self.revision = revision;
                Ok(())
            }
            Err(e) => {
                self.undo = batch.iter().rev().map(Record::undone).collect();
                Err(self.failed(&e))
            }
        }
    }
}

fn split_key(key: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(key).ok()?.split_once('\0')
}

fn reserve(path: &Path) -> PathBuf {
    path.with_extension("reserve")
}

/// Holds space in reserve, by a file that is full of zeros.
fn take_reserve(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(reserve(path))?;
    if file.metadata()?.len() == RESERVE as u64 {
        return Ok(());
    }
    file.set_len(0)?;
    let zeros = [0; 64 << 10];
    let written = (0..RESERVE / zeros.len()).try_for_each(|_| file.write_all(&zeros));
    // Some file systems learn only here that there is no room.
    let written = written.and_then(|()| file.sync_data());
    if written.is_err() {
        file.set_len(0)?;
    }
    written
}

/// Gives the reserve back to the disk; whether there was any.
fn give_up_reserve(path: &Path) -> bool {
    let Ok(file) = std::fs::OpenOptions::new().write(true).open(reserve(path)) else { return false };
    let held = file.metadata().is_ok_and(|m| m.len() > 0);
    held && file.set_len(0).is_ok()
}

impl Log for Embedded {
    fn load(&mut self, each: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
        self.revision = self.read_all(each).map_err(|e| BackendError(e.to_string()))?;
        Ok(self.revision)
    }

    fn commit(&mut self, batch: &[Record]) -> Result<(), BackendError> {
        let grows = batch.iter().map(Record::growth).sum::<isize>() > 0;
        if self.full && grows {
            return Err(BackendError("no space left on the disk".into()));
        }
        if self.database.is_none() || !self.undo.is_empty() {
            self.reopen()?;
        }
        let Err(error) = self.write(batch) else { return Ok(()) };
        self.full = true;
        give_up_reserve(&self.path);
        self.reopen()?;
        if grows { Err(error) } else { self.write(batch) }
    }

    fn mend(&mut self) -> Result<(), BackendError> {
        self.reopen()?;
        take_reserve(&self.path).map_err(|e| BackendError(e.to_string()))?;
        self.full = false;
        Ok(())
    }

    fn is_well(&self) -> bool {
        !self.full && self.database.is_some()
    }
}

#[cfg(test)]
mod tests;
