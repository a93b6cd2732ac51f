//! The store in a data directory. An unusable file is an error, never a new cluster.

use std::{path::Path, time::Duration};

use k8s_store::{Embedded, Local, OpenError, Store, sealed::Sealed};

use crate::{encryption::EncryptionSettings, error::ClusterError, paths::Paths};

/// Time that a stopped cluster of this process gets to close its store.
const CLOSING: Duration = Duration::from_secs(5);
/// Interval of the attempts to open it.
const AGAIN: Duration = Duration::from_millis(10);

/// Opens the store in a data directory, whose lock the caller has; `keys` is the directory of keys. A store
/// that is in use is then one of this process that is closing: tasks of a cluster that has just stopped end
/// one after the other. It is waited for.
///
/// # Errors
/// As [`open_now`].
pub(crate) async fn open_store(
    paths: &Paths,
    forget: bool,
    encryption: &EncryptionSettings,
    keys: &Path,
) -> Result<Store, ClusterError> {
    for _ in 0..CLOSING.as_millis() / AGAIN.as_millis() {
        match open_now(paths, forget, encryption, keys) {
            Err(ClusterError::Store(OpenError::InUse { .. })) => tokio::time::sleep(AGAIN).await,
            opened => return opened,
        }
    }
    open_now(paths, forget, encryption, keys)
}

/// Opens the store in a data directory. `forget` moves an unusable file aside and starts with an empty store.
///
/// # Errors
/// [`ClusterError::Store`]; [`ClusterError::StateLost`] for a file that is empty, of another program, or
/// missing beside containers.
#[expect(clippy::disallowed_methods, reason = "only the name of a file that is set aside has the time")]
fn open_now(
    paths: &Paths,
    forget: bool,
    encryption: &EncryptionSettings,
    keys: &Path,
) -> Result<Store, ClusterError> {
    let file = paths.store();
    let opened = Embedded::open_existing(&file);
    let lost = match &opened {
        Err(OpenError::Empty { .. }) => Some("it is empty"),
        Err(OpenError::Foreign { .. }) => Some("it is no store of this program"),
        Err(OpenError::Missing { .. }) if k8s_runtime::embedded::has_sandboxes(&paths.containers()) => {
            Some("it is missing, and there are containers of a cluster")
        }
        _ => None,
    };
    let opened = match lost {
        Some(reason) if !forget => {
            return Err(ClusterError::StateLost { path: file, reason });
        }
        Some(_) if file.exists() => {
            let aside = file.with_extension(format!("forgotten-{}", jiff::Timestamp::now().as_second()));
            std::fs::rename(&file, &aside)
                .map_err(ClusterError::io(format!("set {} aside", file.display())))?;
            Embedded::open(&file)
        }
        _ if matches!(opened, Err(OpenError::Missing { .. })) => Embedded::open(&file),
        _ => opened,
    };
    let (log, sealer) = encryption.seal(opened?, keys)?;
    let backend = Sealed::new(Local::new(log), sealer);
    Store::open(backend, k8s_apiserver::format::Json).map_err(ClusterError::of("read the store"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(paths: &Paths, forget: bool) -> Result<Store, ClusterError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        fs::create_dir_all(paths.pki()).unwrap();
        runtime.block_on(open_store(paths, forget, &EncryptionSettings::default(), &paths.pki()))
    }

    #[test]
    fn a_store_that_lost_its_content_is_never_taken_for_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new("hyperkube", directory.path()).unwrap();
        drop(open(&paths, false).unwrap());
        drop(open(&paths, false).unwrap());
        for content in [&b""[..], b"not a store at all, but some other file\n"] {
            // The file is removed first: a store that is still closing writes to the old inode.
            fs::remove_file(paths.store()).unwrap();
            fs::write(paths.store(), content).unwrap();
            let refused = open(&paths, false).unwrap_err();
            assert!(matches!(refused, ClusterError::StateLost { .. }), "{refused}");
            for part in [&*paths.store().to_string_lossy(), "--forget-state"] {
                assert!(refused.to_string().contains(part), "{refused}");
            }
            assert!(fs::read(paths.store()).unwrap() == content, "it is left as it is");
        }
        drop(open(&paths, true).unwrap());
        let aside = fs::read_dir(directory.path()).unwrap().flatten();
        assert!(aside.into_iter().any(|e| e.file_name().to_string_lossy().contains("forgotten")));

        // A missing file means a first start only if there are no containers.
        fs::remove_file(paths.store()).unwrap();
        fs::create_dir_all(paths.containers().join("sandboxes/abc")).unwrap();
        assert!(matches!(open(&paths, false), Err(ClusterError::StateLost { .. })));
        drop(open(&paths, true).unwrap());
    }
}
