//! Directories of a cluster, and the names of everything that it creates outside of them.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::error::ClusterError;

/// Layout version of a data directory.
const FORMAT: u32 = 1;
/// Marker file of a data directory; contains the layout version and the distribution's name.
pub(crate) const MARKER: &str = "format";
/// Distribution of a data directory whose marker has no name.
const HYPERKUBE: &str = "hyperkube";

/// Directories and names of one cluster, derived from its data directory.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Persistent state.
    pub data: PathBuf,
    /// State that does not survive a reboot.
    pub run: PathBuf,
    /// Eight hexadecimal digits: a hash that distinguishes this data directory from others on the machine.
    pub id: String,
    /// Name of the distribution.
    pub name: String,
}

/// Returns the default data directory of a distribution.
pub(crate) fn default_data_dir(name: &str) -> PathBuf {
    Path::new("/var/lib").join(name)
}

/// Checks the name of a distribution, which is part of paths and of names of kernel objects.
///
/// # Errors
/// [`ClusterError::Invalid`].
pub(crate) fn check_name(name: &str) -> Result<(), ClusterError> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.is_empty() && name.len() <= 32 && name.chars().all(valid) && !name.starts_with('-') {
        return Ok(());
    }
    Err(ClusterError::invalid(
        "name of the distribution",
        format!("{name:?} is not 1 to 32 lower-case letters, digits or '-'"),
    ))
}

impl Paths {
    /// Derives the paths from the name of a distribution and a data directory, which need not exist yet.
    ///
    /// # Errors
    /// The name is invalid, or the path cannot be made absolute.
    pub fn new(name: &str, data: &Path) -> Result<Self, ClusterError> {
        check_name(name)?;
        let data = std::path::absolute(data).map_err(ClusterError::io(format!("data directory {data:?}")))?;
        let digest = Sha256::digest(data.as_os_str().as_encoded_bytes());
        let id: String = digest[..4].iter().map(|b| format!("{b:02x}")).collect();
        Ok(Paths { run: Path::new("/run").join(name).join(&id), data, id, name: name.to_owned() })
    }

    /// Creates the data directory and its subdirectories with mode 0700, and narrows wider modes: images
    /// contain setuid programs and volumes contain Secrets.
    ///
    /// # Errors
    /// The I/O error; [`io::ErrorKind::DirectoryNotEmpty`] for a directory with foreign content.
    pub fn make(&self) -> io::Result<()> {
        let private = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(&self.data)?;
        if !self.is_ours()? {
            if let Some(foreign) = self.foreign()? {
                return Err(io::Error::new(
                    io::ErrorKind::DirectoryNotEmpty,
                    format!("it is not empty and holds {foreign:?}, which is no part of a cluster"),
                ));
            }
            fs::write(self.data.join(MARKER), self.marker())?;
        }
        let own = [self.pki(), self.images(), self.containers(), self.kubelet(), self.network(), self.logs()];
        own.iter().try_for_each(|path| private(path))?;
        for path in std::iter::once(&self.data).chain(&own) {
            if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
                fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
            }
        }
        Ok(())
    }

    /// Content of the marker file: the layout version, and the name of a distribution other than `hyperkube`.
    fn marker(&self) -> String {
        if self.name == HYPERKUBE { format!("{FORMAT}\n") } else { format!("{FORMAT} {}\n", self.name) }
    }

    /// Refuses a data directory of another distribution. A missing one, or one without a marker, passes.
    ///
    /// # Errors
    /// [`ClusterError::OtherDistribution`], [`ClusterError::Directory`].
    pub(crate) fn check_owner(&self) -> Result<(), ClusterError> {
        let text = match fs::read_to_string(self.data.join(MARKER)) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(ClusterError::Directory { path: self.data.clone(), source }),
        };
        let owner = text.split_whitespace().nth(1).unwrap_or(HYPERKUBE);
        if owner == self.name {
            return Ok(());
        }
        let (path, owner, name) = (self.data.clone(), owner.to_owned(), self.name.clone());
        Err(ClusterError::OtherDistribution { path, owner, name })
    }

    /// Returns true if the directory has the marker file, so that this program created it.
    ///
    /// # Errors
    /// The I/O error.
    pub fn is_ours(&self) -> io::Result<bool> {
        match fs::symlink_metadata(self.data.join(MARKER)) {
            Ok(marker) => Ok(marker.is_file()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Returns an entry that neither this program nor an administrator (before the first start) creates.
    fn foreign(&self) -> io::Result<Option<OsString>> {
        const GIVEN: [&str; 6] =
            ["registries.yaml", "manifests", "images", "images-store", "pki", "lost+found"];
        for entry in fs::read_dir(&self.data)? {
            let name = entry?.file_name();
            if !GIVEN.iter().any(|given| name == *given) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Lists the entries that this program creates, the marker last. `reset` removes no others.
    ///
    /// # Errors
    /// The I/O error.
    pub fn own_entries(&self) -> io::Result<Vec<PathBuf>> {
        const NAMES: [&str; 10] = [
            "pki",
            "images-store",
            "containers",
            "kubelet",
            "network",
            "logs",
            "simulated",
            "kubeconfig",
            "lock",
            MARKER,
        ];
        const PREFIXES: [&str; 2] = ["state.", ".hyperkube-"];
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.data)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if NAMES.contains(&&*name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
                found.push(entry.path());
            }
        }
        // The marker goes last, so that an interrupted removal can be repeated.
        found.sort_by_key(|path| path.ends_with(MARKER));
        Ok(found)
    }

    /// Path of the store's file.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.data.join("state.redb")
    }
    /// Directory of certificates and keys.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }
    /// Path of the administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }
    /// Directory of the image store.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.data.join("images-store")
    }
    /// Directory of the containers.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }
    /// Directory of the kubelet.
    #[must_use]
    pub fn kubelet(&self) -> PathBuf {
        self.data.join("kubelet")
    }
    /// Directory of the pod address allocations.
    #[must_use]
    pub fn network(&self) -> PathBuf {
        self.data.join("network")
    }
    /// Directory of the containers' logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }
    /// Name of the parent cgroup of this cluster's pods.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("{}-{}", self.name, self.id)
    }
}

/// Exclusive lock of a data directory.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<fs::File>,
}

impl Lock {
    /// Creates the directory if it is missing, checks its layout version and owner, and locks it.
    ///
    /// # Errors
    /// [`ClusterError::DirectoryInUse`], [`ClusterError::Directory`], [`ClusterError::NewerFormat`],
    /// [`ClusterError::OtherDistribution`].
    pub fn take(paths: &Paths) -> Result<Self, ClusterError> {
        let data = &paths.data;
        let refused = |source: io::Error| ClusterError::Directory { path: data.clone(), source };
        paths.make().map_err(refused)?;
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(data.join("lock"))
            .map_err(refused)?;
        paths.check_owner()?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| ClusterError::DirectoryInUse { path: data.clone(), owner: paths.name.clone() })?;
        let marker = data.join(MARKER);
        match fs::read_to_string(&marker) {
            Ok(text) => {
                let have = text.split_whitespace().next().unwrap_or_default();
                if have.parse().unwrap_or(u32::MAX) > FORMAT {
                    let (path, have) = (data.clone(), have.to_owned());
                    return Err(ClusterError::NewerFormat { path, have, known: FORMAT });
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::write(&marker, paths.marker()).map_err(refused)?;
            }
            Err(e) => return Err(refused(e)),
        }
        Ok(Lock { _file: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_the_administrators_alone_whoever_made_them() {
        let parent = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let wide = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        let paths = Paths::new("hyperkube", &parent.path().join("data")).unwrap();
        // `image load` creates the directory before `up` does.
        paths.make().unwrap();
        wide(&paths.data);
        wide(&paths.images());
        drop(Lock::take(&paths).unwrap());
        for path in [&paths.data, &paths.images(), &paths.kubelet(), &paths.pki(), &paths.containers()] {
            assert_eq!(mode(path), 0o700, "{path:?}");
        }
        // A foreign directory, given by mistake, is refused and left unchanged.
        let shared = Paths::new("hyperkube", &parent.path().join("shared")).unwrap();
        fs::create_dir(&shared.data).unwrap();
        wide(&shared.data);
        fs::write(shared.data.join("letter.txt"), "").unwrap();
        let refused = Lock::take(&shared).unwrap_err();
        assert!(matches!(refused, ClusterError::Directory { .. }));
        assert!(refused.to_string().contains("letter.txt"), "{refused}");
        assert_eq!((mode(&shared.data), fs::read_dir(&shared.data).unwrap().count()), (0o755, 1));
    }

    #[test]
    fn a_directory_is_held_by_one_and_not_from_the_future() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new("hyperkube", directory.path()).unwrap();
        let first = Lock::take(&paths).unwrap();
        assert!(matches!(Lock::take(&paths), Err(ClusterError::DirectoryInUse { .. })));
        drop(first);
        fs::write(directory.path().join("format"), "99\n").unwrap();
        let newer = Lock::take(&paths).unwrap_err();
        assert!(matches!(newer, ClusterError::NewerFormat { .. }));
        assert!(newer.to_string().contains("format 99"));
    }

    #[test]
    fn a_directory_belongs_to_one_distribution() {
        let directory = tempfile::tempdir().unwrap();
        let of = |name: &str| Paths::new(name, directory.path()).unwrap();
        drop(Lock::take(&of("shopkube")).unwrap());
        drop(Lock::take(&of("shopkube")).unwrap());
        let refused = Lock::take(&of("hyperkube")).unwrap_err();
        assert!(matches!(refused, ClusterError::OtherDistribution { .. }), "{refused}");
        assert!(refused.to_string().contains("one of shopkube, not of hyperkube"), "{refused}");
        // A marker without a name is hyperkube's.
        fs::write(directory.path().join(MARKER), "1\n").unwrap();
        drop(Lock::take(&of("hyperkube")).unwrap());
        assert!(Lock::take(&of("shopkube")).is_err());
        assert_ne!(of("hyperkube").run, of("shopkube").run);
        assert_ne!(of("hyperkube").cgroup(), of("shopkube").cgroup());
        for bad in ["", "../etc", "Shop", "-x", "a b"] {
            assert!(Paths::new(bad, directory.path()).is_err(), "{bad:?}");
        }
    }
}
