//! Conversion of a file: the same objects in another form, in a new file.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable};

use super::{Embedded, META, OBJECTS, file, split_key};
use crate::BackendError;

/// Returns an object's bytes in the new form; `None`: they stay as they are.
type Convert<'a> = dyn FnMut(&str, &str, &[u8]) -> Result<Option<bytes::Bytes>, BackendError> + 'a;

impl Embedded {
    /// Returns true if one of the objects' bytes meets a condition.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn any(&self, mut condition: impl FnMut(&[u8]) -> bool) -> Result<bool, BackendError> {
        let mut read = || -> Result<bool, redb::Error> {
            let transaction = self.database()?.begin_read()?;
            for entry in transaction.open_table(OBJECTS)?.iter()? {
                let (_, value) = entry?;
                if value.value().get(8..).is_some_and(&mut condition) {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        read().map_err(|e| BackendError(e.to_string()))
    }

    /// Changes the form of objects' bytes, such as their encryption. If there is anything to change, a new
    /// file is written and takes the place of the old one when it is whole; nothing of the old form is left
    /// in it. Revisions stay. Returns the number of changed objects.
    ///
    /// # Errors
    /// When a file cannot be read or written, or an object cannot be changed: the old file stays as it is.
    pub fn convert(self, convert: &mut Convert<'_>) -> Result<(Self, usize), BackendError> {
        let path = self.path.clone();
        let changed = self.count(convert).map_err(|e| BackendError(e.to_string()))??;
        if changed == 0 {
            return Ok((self, 0));
        }
        let new = path.with_extension("converted");
        // Left over from a process that was killed here.
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(BackendError(e.to_string())),
            _ => {}
        }
        let made = file::create(&new).map_err(|e| BackendError(e.to_string()))?;
        let written = self.copy(&made, convert).map_err(|e| BackendError(e.to_string()));
        if let Err(e) | Ok(Err(e)) = written {
            // What could not be finished takes no room.
            let _ = std::fs::remove_file(&new);
            return Err(e);
        }
        drop(made);
        drop(self);
        let renamed = std::fs::rename(&new, &path).and_then(|()| sync_directory(&path));
        renamed.map_err(|e| BackendError(e.to_string()))?;
        let again = Embedded::open_existing(&path).map_err(|e| BackendError(e.to_string()))?;
        Ok((again, changed))
    }

    /// Counts the objects that would change.
    fn count(&self, convert: &mut Convert<'_>) -> Result<Result<usize, BackendError>, redb::Error> {
        let mut count = 0;
        let transaction = self.database()?.begin_read()?;
        for entry in transaction.open_table(OBJECTS)?.iter()? {
            let (key, value) = entry?;
            let (Some((resource, key)), Some(bytes)) = (split_key(key.value()), value.value().get(8..))
            else {
                continue;
            };
            match convert(resource, key, bytes) {
                Ok(changed) => count += usize::from(changed.is_some()),
                Err(e) => return Ok(Err(e)),
            }
        }
        Ok(Ok(count))
    }

    /// Writes all objects into another file, in one transaction.
    fn copy(
        &self,
        to: &Database,
        convert: &mut Convert<'_>,
    ) -> Result<Result<(), BackendError>, redb::Error> {
        let read = self.database()?.begin_read()?;
        let write = to.begin_write()?;
        {
            let mut objects = write.open_table(OBJECTS)?;
            for entry in read.open_table(OBJECTS)?.iter()? {
                let (key, value) = entry?;
                let (key, value) = (key.value(), value.value());
                let parts = split_key(key).zip(value.split_first_chunk::<8>());
                let changed = match parts.map(|((resource, name), (_, bytes))| convert(resource, name, bytes))
                {
                    Some(Err(e)) => return Ok(Err(e)),
                    Some(Ok(changed)) => changed,
                    None => None,
                };
                match changed {
                    Some(changed) => {
                        let value = [value.get(..8).unwrap_or_default(), &changed].concat();
                        objects.insert(key, value.as_slice())?;
                    }
                    None => {
                        objects.insert(key, value)?;
                    }
                }
            }
            let mut meta = write.open_table(META)?;
            for entry in read.open_table(META)?.iter()? {
                let (name, value) = entry?;
                meta.insert(name.value(), value.value())?;
            }
        }
        write.commit()?;
        Ok(Ok(()))
    }
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(directory)?.sync_all()
}
