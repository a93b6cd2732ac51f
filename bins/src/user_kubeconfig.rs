//! Adds a cluster's context to the user's kubeconfig, and removes it.
//!
//! Guarantees: the user's text stays, comments and order included; symbolic links are followed; the file is
//! replaced atomically and keeps mode and owner; another cluster's current context stays current unless asked
//! otherwise. Not here: reading kubeconfigs to connect (see `k8s_core::client::Kubeconfig`).

mod text;

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use k8s_core::client::{Kubeconfig, KubeconfigError};

use crate::pki::private_file;

/// Errors of changing the user's kubeconfig.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The file exists and is not a kubeconfig.
    #[error(transparent)]
    Unreadable(#[from] KubeconfigError),
    /// The file cannot be written.
    #[error("write {path:?}: {source}")]
    Write {
        /// Path with symbolic links resolved.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
}

/// The user's kubeconfig file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserKubeconfig {
    path: PathBuf,
}

/// Outcome of [`UserKubeconfig::merge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Path with symbolic links resolved.
    pub path: PathBuf,
    /// The current context after the merge.
    pub current: String,
    /// The file could not be edited in place and lost its comments.
    pub rewritten: bool,
}

impl UserKubeconfig {
    /// Returns the first file of `KUBECONFIG`, else `~/.kube/config`; `None` if neither `KUBECONFIG` nor
    /// `HOME` is set.
    #[must_use]
    pub fn find() -> Option<Self> {
        let path = match std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty()) {
            Some(list) => std::env::split_paths(&list).find(|p| !p.as_os_str().is_empty()),
            None => std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config")),
        };
        path.map(Self::at)
    }

    /// Returns the kubeconfig at a path.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        UserKubeconfig { path: path.into() }
    }

    /// Adds a cluster's context or updates it. It becomes current if `take_current` is set or there is no
    /// other.
    ///
    /// # Errors
    /// [`MergeError`]; the file is unchanged.
    pub fn merge(&self, config: Kubeconfig, take_current: bool) -> Result<Merged, MergeError> {
        let (path, text) = self.read()?;
        let mut wanted = parse(&path, &text)?;
        let current = wanted.current_context.clone();
        let added = config.current_context.clone();
        wanted.merge(config.clone());
        if !(take_current || current.is_empty()) {
            wanted.current_context.clone_from(&current);
        }
        let edited = text::merged(&text, &config, &wanted.current_context);
        let rewritten = self.write(&path, &text, edited, &wanted)?;
        let current = if take_current || current.is_empty() { added } else { current };
        Ok(Merged { path, current, rewritten })
    }

    /// Removes cluster, user and context `name`, if that cluster has this CA (PEM). Returns the changed file.
    ///
    /// # Errors
    /// [`MergeError`]; the file is unchanged.
    pub fn remove(&self, name: &str, ca: &str) -> Result<Option<PathBuf>, MergeError> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let (path, text) = self.read()?;
        let mut wanted = parse(&path, &text)?;
        let ours = STANDARD.encode(ca);
        let is_ours = |c: &k8s_core::client::NamedCluster| {
            c.name == name && c.cluster.certificate_authority_data.as_deref() == Some(&ours)
        };
        if !wanted.clusters.iter().any(is_ours) {
            return Ok(None);
        }
        wanted.remove(name);
        let edited = text::removed(&text, name, &wanted.current_context);
        self.write(&path, &text, edited, &wanted)?;
        Ok(Some(path))
    }

    /// Returns the resolved path and the text; the text is empty if the file does not exist.
    fn read(&self) -> Result<(PathBuf, String), MergeError> {
        let mut path = self.path.clone();
        // A symbolic link may point to a missing file. 40 links is the kernel's limit, too.
        for _ in 0..40 {
            let Ok(target) = fs::read_link(&path) else { break };
            path = path.parent().unwrap_or(Path::new("/")).join(target);
        }
        // Normalizes the path, without `..`.
        if let (Some(parent), Some(name)) =
            (path.parent().and_then(|p| p.canonicalize().ok()), path.file_name())
        {
            path = parent.join(name);
        }
        match fs::read_to_string(&path) {
            Ok(text) => Ok((path, text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((path, String::new())),
            Err(source) => Err(KubeconfigError::Read { path, source }.into()),
        }
    }

    /// Writes the edited text if it parses to the wanted value, else serializes the whole file; returns true
    /// in the latter case.
    fn write(
        &self,
        path: &Path,
        before: &str,
        edited: Option<String>,
        wanted: &Kubeconfig,
    ) -> Result<bool, MergeError> {
        let edited = edited.filter(|text| parse(path, text).is_ok_and(|c| same(&c, wanted)));
        let rewritten = edited.is_none() && before.contains('#');
        let text = edited.unwrap_or_else(|| wanted.to_yaml());
        if text != before {
            replace(path, text.as_bytes())
                .map_err(|source| MergeError::Write { path: path.to_owned(), source })?;
        }
        Ok(rewritten)
    }
}

fn parse(path: &Path, text: &str) -> Result<Kubeconfig, MergeError> {
    Ok(Kubeconfig::parse(path, text)?)
}

/// Compares two kubeconfigs; the order of named entries is irrelevant.
fn same(a: &Kubeconfig, b: &Kubeconfig) -> bool {
    let sorted = |config: &Kubeconfig| {
        let mut config = config.clone();
        config.clusters.sort_by(|x, y| x.name.cmp(&y.name));
        config.users.sort_by(|x, y| x.name.cmp(&y.name));
        config.contexts.sort_by(|x, y| x.name.cmp(&y.name));
        serde_json::to_value(config).ok()
    };
    sorted(a) == sorted(b)
}

/// Replaces a file atomically, keeping mode and owner; a new one gets 0600.
fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    use std::io::Write;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = private_file(path)?;
    file.write_all(contents)?;
    if let Ok(before) = fs::metadata(path) {
        // Keep the user's mode, because the file has keys.
        let mode = before.permissions().mode() & 0o7777;
        file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        // `sudo hyperkube up` with the user's HOME must not change the file's owner.
        if before.uid() != nix::unistd::geteuid().as_raw() {
            chown(file.path(), Some(before.uid()), Some(before.gid()))?;
        }
    }
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|e| e.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: &str = "# my clusters\napiVersion: v1\nkind: Config\npreferences: {}\nclusters:\n- name: c   # the old one\n  cluster:\n    server: https://work:6443\ncontexts:\n- context:\n    cluster: c\n    user: u\n    namespace: shop\n  name: work\ncurrent-context: work\nusers:\n# ask Olga\n- name: u\n  user:\n    exec: {apiVersion: client.authentication.k8s.io/v1, command: aws}\n";

    fn ours(server: &str) -> Kubeconfig {
        Kubeconfig::single("hyperkube", server, "CA", "CERT", "KEY")
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(&path, text).unwrap();
        (directory, path)
    }

    #[test]
    fn a_merge_keeps_comments_and_a_foreign_current_context() {
        let (_directory, path) = file(WORK);
        let user = UserKubeconfig::at(&path);
        let merged = user.merge(ours("https://127.0.0.1:6443"), false).unwrap();
        assert_eq!((merged.current.as_str(), merged.rewritten), ("work", false));
        let text = fs::read_to_string(&path).unwrap();
        for line in WORK.lines() {
            assert!(text.lines().any(|l| l == line), "{line:?} is gone from\n{text}");
        }
        let now = Kubeconfig::read(&path).unwrap();
        assert_eq!(now.current_context, "work");
        assert_eq!(now.remote(Some("hyperkube")).unwrap().server, "https://127.0.0.1:6443");
        assert_eq!(now.contexts.len(), 2);

        // A second merge with another port updates the entry, and the flag makes it current.
        let merged = user.merge(ours("https://127.0.0.1:7443"), true).unwrap();
        assert_eq!((merged.current.as_str(), merged.rewritten), ("hyperkube", false));
        let now = Kubeconfig::read(&path).unwrap();
        assert_eq!(now.remote(None).unwrap().server, "https://127.0.0.1:7443");
        assert_eq!((now.clusters.len(), now.users.len(), now.contexts.len()), (2, 2, 2));

        // The entry is removed only if the CA is the same.
        assert_eq!(user.remove("hyperkube", "OTHER").unwrap(), None);
        assert!(user.remove("hyperkube", "CA").unwrap().is_some());
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, WORK.replace("current-context: work\n", "current-context: \"\"\n"));
        assert_eq!(user.remove("hyperkube", "CA").unwrap(), None);
    }

    #[test]
    fn links_are_followed_and_a_new_file_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let (link, real) = (directory.path().join("link"), directory.path().join("kept/real"));
        std::os::unix::fs::symlink("kept/real", &link).unwrap();
        let merged = UserKubeconfig::at(&link).merge(ours("https://h:1"), false).unwrap();
        assert!(merged.path.ends_with("kept/real"));
        assert_eq!(merged.current, "hyperkube");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);

        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        UserKubeconfig::at(&link).merge(ours("https://h:2"), false).unwrap();
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_file_that_cannot_be_edited_in_place_is_written_anew() {
        for text in [
            "",
            "{}",
            "{\"apiVersion\": \"v1\", \"kind\": \"Config\", \"clusters\": [{\"name\": \"c\", \"cluster\": {\"server\": \"https://c\"}}]}",
            "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: null\nusers:\ncurrent-context: \"\"\n",
            "apiVersion: v1\nclusters: [{name: c, cluster: {server: https://c}}] # flow\ncurrent-context: x\n",
            "apiVersion: v1\nclusters:\n  - name: c\n    cluster:\n      server: https://c\nusers:\n    - name: u\n      user: {}\n",
        ] {
            let (_directory, path) = file(text);
            let before = Kubeconfig::read(&path).unwrap();
            UserKubeconfig::at(&path).merge(ours("https://h:1"), false).unwrap();
            let now = Kubeconfig::read(&path).unwrap();
            assert_eq!(now.clusters.len(), before.clusters.len() + 1, "{text}");
            assert_eq!(now.remote(Some("hyperkube")).unwrap().server, "https://h:1", "{text}");
        }
        let (_directory, path) = file("{not: [yaml");
        assert!(matches!(
            UserKubeconfig::at(&path).merge(ours("https://h:1"), false),
            Err(MergeError::Unreadable(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{not: [yaml");
    }
}
