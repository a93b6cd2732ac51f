//! Opens and makes the store's file, and tells what else is found in its place.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use redb::{Database, ReadableDatabase, TableHandle};

use super::{FORMAT, META, OBJECTS, PAGE_CACHE};

/// What every redb file begins with.
const MAGIC: &[u8] = b"redb";

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no file ([`Embedded::open_existing`](super::Embedded::open_existing) only).
    #[error("{path:?} is missing")]
    Missing {
        /// Path of the state file.
        path: PathBuf,
    },
    /// The file is there and holds nothing: its content was lost, since this program never leaves an empty
    /// file.
    #[error("{path:?} is empty: its content was lost; restore it from a backup")]
    Empty {
        /// Path of the state file.
        path: PathBuf,
    },
    /// The file was written by another program.
    #[error("{path:?} is not a store of this program")]
    Foreign {
        /// Path of the state file.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error("{path:?} is in use by another process")]
    InUse {
        /// Path of the state file.
        path: PathBuf,
    },
    /// A newer program wrote it.
    #[error(
        "{path:?} has format {have}, this program knows formats up to {FORMAT}: use a newer program or another data directory"
    )]
    Newer {
        /// Path of the state file.
        path: PathBuf,
        /// Version of the format that the file has.
        have: u64,
    },
    /// The file cannot be opened or is damaged.
    #[error("open {path:?}: {message}")]
    Other {
        /// Path of the state file.
        path: PathBuf,
        /// Cause and remedy, for users.
        message: String,
    },
}

fn other(path: &Path, error: impl std::fmt::Display) -> OpenError {
    OpenError::Other { path: path.to_owned(), message: error.to_string() }
}

/// Looks at a file's first bytes.
///
/// # Errors
/// [`OpenError::Missing`], [`OpenError::Empty`], [`OpenError::Foreign`].
pub(super) fn check(path: &Path) -> Result<(), OpenError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(OpenError::Missing { path: path.to_owned() });
        }
        Err(e) => return Err(other(path, e)),
    };
    let mut begin = Vec::new();
    file.take(MAGIC.len() as u64).read_to_end(&mut begin).map_err(|e| other(path, e))?;
    match begin.as_slice() {
        MAGIC => Ok(()),
        [] => Err(OpenError::Empty { path: path.to_owned() }),
        _ => Err(OpenError::Foreign { path: path.to_owned() }),
    }
}

/// Opens a file that is a redb file.
///
/// # Errors
/// In use, of another program, of a newer one, damaged.
pub(super) fn open(path: &Path) -> Result<Database, OpenError> {
    let database = match Database::builder().set_cache_size(PAGE_CACHE).open(path) {
        Ok(database) => database,
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
            return Err(OpenError::InUse { path: path.to_owned() });
        }
        Err(e) => return Err(other(path, e)),
    };
    match format(&database).map_err(|e| other(path, e))? {
        Some(have) if have > FORMAT => Err(OpenError::Newer { path: path.to_owned(), have }),
        Some(_) => Ok(database),
        None => Err(OpenError::Foreign { path: path.to_owned() }),
    }
}

/// The layout's number; `None` in a file of another program.
fn format(database: &Database) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    if !transaction.list_tables()?.any(|table| table.name() == META.name()) {
        return Ok(None);
    }
    match transaction.open_table(META) {
        Ok(meta) => Ok(redb::ReadableTable::get(&meta, "format")?.map(|format| format.value())),
        Err(redb::TableError::TableTypeMismatch { .. }) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Makes a new file. It gets its name when its tables are on disk.
///
/// # Errors
/// In use by another process that makes it now, or the disk's error.
pub(super) fn create(path: &Path) -> Result<Database, OpenError> {
    let new = path.with_extension("new");
    // Left over from a process that was killed here.
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(other(path, e)),
        _ => {}
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(|e| other(path, e))?;
    let made = Database::builder()
        .set_cache_size(PAGE_CACHE)
        .create(&new)
        .map_err(redb::Error::from)
        .and_then(|database| prepare(&database).map(|()| database));
    let named = made.map_err(|e| other(path, e)).and_then(|database| {
        std::fs::rename(&new, path).map_err(|e| other(path, e))?;
        Ok(database)
    });
    if named.is_err() {
        // What could not be finished takes no room.
        let _ = std::fs::remove_file(&new);
    }
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| other(path, e))?;
    named
}

fn prepare(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("format", FORMAT)?;
    transaction.open_table(OBJECTS)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Embedded;
    use super::*;

    fn opened(path: &Path) -> Result<(), OpenError> {
        Embedded::open(path).map(drop)
    }

    #[test]
    fn missing_empty_and_foreign_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        assert!(matches!(Embedded::open_existing(&path), Err(OpenError::Missing { .. })));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(opened(&path), Err(OpenError::Empty { path: p }) if p == path));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "it is left as it is");
        for text in ["r", "SQLite format 3"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(opened(&path), Err(OpenError::Foreign { path: p }) if p == path));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
        let theirs = Database::create(&path).unwrap();
        let write = theirs.begin_write().unwrap();
        write.open_table(redb::TableDefinition::<&str, &str>::new("meta")).unwrap();
        write.commit().unwrap();
        drop(theirs);
        assert!(matches!(opened(&path), Err(OpenError::Foreign { .. })));
        std::fs::remove_file(&path).unwrap();
        opened(&path).unwrap();
        opened(&path).unwrap();
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..100]).unwrap();
        assert!(matches!(opened(&path), Err(OpenError::Other { .. })), "a damaged file is another matter");
    }

    #[test]
    fn a_new_file_has_its_name_only_when_it_is_whole() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        std::fs::write(path.with_extension("new"), "half").unwrap();
        opened(&path).unwrap();
        assert!(!path.with_extension("new").exists());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
