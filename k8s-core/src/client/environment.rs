//! Settings found around a program: `KUBECONFIG`, the home directory, a pod's service account.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Kubeconfig, KubeconfigError, RemoteConfig};

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

type Lookup = Arc<dyn Fn(&str) -> Option<OsString> + Send + Sync>;

/// Environment variables and the directory of a pod's service account. Tests give their own.
///
/// ```
/// use k8s_core::client::Environment;
/// let variables = |name: &str| match name {
///     "KUBECONFIG" => Some("/etc/shop/a:/etc/shop/b".into()),
///     _ => None,
/// };
/// let environment = Environment::new(variables).service_account("/nowhere");
/// assert_eq!(environment.kubeconfig_paths().len(), 2);
/// assert!(environment.kubeconfig()?.is_none()); // neither file exists
/// # Ok::<(), k8s_core::client::KubeconfigError>(())
/// ```
#[derive(Clone)]
pub struct Environment {
    lookup: Lookup,
    account: PathBuf,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Environment {
    /// Returns the environment of this process.
    #[must_use]
    pub fn process() -> Self {
        Environment::new(|name| std::env::var_os(name))
    }

    /// Creates an environment from a function that returns a variable's value.
    #[must_use]
    pub fn new(lookup: impl Fn(&str) -> Option<OsString> + Send + Sync + 'static) -> Self {
        Environment { lookup: Arc::new(lookup), account: ACCOUNT.into() }
    }

    /// Sets the directory of the service account's `token`, `ca.crt` and `namespace`. Default:
    /// `/var/run/secrets/kubernetes.io/serviceaccount`.
    #[must_use]
    pub fn service_account(mut self, directory: impl Into<PathBuf>) -> Self {
        self.account = directory.into();
        self
    }

    fn get(&self, name: &str) -> Option<OsString> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    /// Returns the kubeconfig files: those of `KUBECONFIG`, separated by colons, or `~/.kube/config`.
    #[must_use]
    pub fn kubeconfig_paths(&self) -> Vec<PathBuf> {
        match self.get("KUBECONFIG") {
            Some(list) => std::env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()).collect(),
            None => self.get("HOME").map(|home| Path::new(&home).join(".kube/config")).into_iter().collect(),
        }
    }

    /// Reads and merges the kubeconfig files as kubectl does: the first file with a name wins, and files that
    /// do not exist are skipped. `None`: none exists.
    ///
    /// # Errors
    /// A file cannot be read or is not a kubeconfig; the error names it.
    pub fn kubeconfig(&self) -> Result<Option<Kubeconfig>, KubeconfigError> {
        let mut merged: Option<Kubeconfig> = None;
        for path in self.kubeconfig_paths() {
            let next = match Kubeconfig::read(&path) {
                Ok(next) => next,
                Err(KubeconfigError::Read { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            match &mut merged {
                Some(merged) => merged.add(next),
                None => merged = Some(next),
            }
        }
        Ok(merged)
    }

    /// Resolves the settings of the API server: the kubeconfig's current context, or else the service account
    /// of the pod that this process runs in.
    ///
    /// # Errors
    /// Neither exists, or one is not usable; the error names the field and the file.
    pub fn remote(&self) -> Result<RemoteConfig, KubeconfigError> {
        if let Some(config) = self.kubeconfig()?.filter(|config| !config.is_empty()) {
            return config.remote(None);
        }
        match (self.get("KUBERNETES_SERVICE_HOST"), self.get("KUBERNETES_SERVICE_PORT")) {
            (Some(host), Some(port)) => self.in_cluster(&host.to_string_lossy(), &port.to_string_lossy()),
            _ => Err(KubeconfigError::Nowhere { paths: self.kubeconfig_paths() }),
        }
    }

    fn in_cluster(&self, host: &str, port: &str) -> Result<RemoteConfig, KubeconfigError> {
        let file = |name: &str| {
            let path = self.account.join(name);
            std::fs::read(&path).map_err(|source| KubeconfigError::Read { path, source })
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        // Read for its error: later failures to read the token keep the last one.
        file("token")?;
        let namespace = file("namespace").ok().and_then(|name| String::from_utf8(name).ok());
        Ok(RemoteConfig {
            server: format!("https://{host}:{port}"),
            ca: Some(file("ca.crt")?),
            token_file: Some(self.account.join("token")),
            namespace: namespace.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()),
            ..RemoteConfig::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates an environment of these variables, whose service account is in `directory`.
    fn environment(directory: &Path, variables: &[(&str, String)]) -> Environment {
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Environment::new(move |name| variables.iter().find(|(n, _)| n == name).map(|(_, v)| v.into()))
            .service_account(directory.join("account"))
    }

    fn file(name: &str, server: &str, current: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {current:?}\nclusters: [{{name: {name}, cluster: {{server: {server}, certificate-authority: ca.pem}}}}]\nusers: [{{name: {name}, user: {{tokenFile: token}}}}]\ncontexts: [{{name: {name}, context: {{cluster: {name}, user: {name}, namespace: shop}}}}]\n"
        )
    }

    #[test]
    fn the_first_of_several_files_wins_and_paths_are_relative_to_their_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (folder, text) in [
            ("a", file("one", "https://a:1", "")),
            ("b", file("two", "https://b:2", "two")),
            ("c", file("two", "https://c:3", "one")),
        ] {
            std::fs::create_dir(at(folder)).unwrap();
            std::fs::write(at(folder).join("config"), text).unwrap();
            std::fs::write(at(folder).join("ca.pem"), folder).unwrap();
            std::fs::write(at(folder).join("token"), "T").unwrap();
        }
        let paths = ["a/config", "missing", "b/config", "c/config"].map(at);
        let list = std::env::join_paths(&paths).unwrap().into_string().unwrap();
        let config = environment(directory.path(), &[("KUBECONFIG", list)]).remote().unwrap();
        assert_eq!((config.server.as_str(), config.namespace.as_deref()), ("https://b:2", Some("shop")));
        assert_eq!(config.ca.as_deref(), Some(b"b".as_slice()));
        assert_eq!(config.token_file, Some(at("b/token")));
    }

    #[test]
    fn a_pod_without_kubeconfig_uses_its_service_account() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().to_str().unwrap().to_owned();
        let bare = environment(directory.path(), &[("HOME", home.clone())]);
        let error = bare.remote().unwrap_err().to_string();
        assert!(error.contains(".kube/config") && error.contains("KUBERNETES_SERVICE_HOST"), "{error}");

        let pod = environment(
            directory.path(),
            &[
                ("HOME", home),
                ("KUBERNETES_SERVICE_HOST", "fd00::1".into()),
                ("KUBERNETES_SERVICE_PORT", "443".into()),
            ],
        );
        let error = pod.remote().unwrap_err().to_string();
        assert!(error.contains("account/token"), "{error}");
        let account = directory.path().join("account");
        std::fs::create_dir(&account).unwrap();
        for (name, text) in [("token", "T"), ("ca.crt", "CA"), ("namespace", "shop\n")] {
            std::fs::write(account.join(name), text).unwrap();
        }
        let config = pod.remote().unwrap();
        assert_eq!(
            (config.server.as_str(), config.namespace.as_deref()),
            ("https://[fd00::1]:443", Some("shop"))
        );
        assert_eq!(config.token_file, Some(account.join("token")));
    }

    #[test]
    fn errors_name_the_field_and_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        for (cluster, user, wanted) in [
            ("proxy-url: socks5://p:1", "", "clusters[c].cluster.proxy-url"),
            ("certificate-authority-data: '?'", "", "clusters[c].cluster.certificate-authority-data"),
            ("certificate-authority: none.pem", "", "clusters[c].cluster.certificate-authority"),
            (
                "",
                "exec: {command: x, apiVersion: client.authentication.k8s.io/v1alpha1}",
                "users[u].user.exec.apiVersion",
            ),
            ("", "exec: {command: 3}", "users[u].user.exec"),
            ("", "auth-provider: {name: gcp}", "users[u].user.auth-provider"),
        ] {
            let text = format!(
                "current-context: x\nclusters: [{{name: c, cluster: {{server: 'https://h', {cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n"
            );
            std::fs::write(&path, text).unwrap();
            let list = path.to_str().unwrap().to_owned();
            let error = environment(directory.path(), &[("KUBECONFIG", list.clone())]).remote().unwrap_err();
            let error = error.to_string();
            assert!(error.contains(wanted) && error.contains(&list), "{wanted}: {error}");
        }
    }
}
