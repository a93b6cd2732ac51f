//! The kubeconfig file, compatible with kubectl.
//!
//! Unknown fields are kept, so that merging a context never loses a user's settings.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{ExecPlugin, Impersonation, Proxy, RemoteConfig};

/// Errors of reading or using a kubeconfig.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubeconfigError {
    /// The file, or one that it refers to, cannot be read.
    #[error("read {path:?}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Cause, such as a missing file or permission.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a kubeconfig.
    #[error("{path:?} is not a kubeconfig: {message}")]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// Parse error with its position.
        message: String,
    },
    /// A referenced entry does not exist.
    #[error("no {what} {name:?} in the kubeconfig {files:?}")]
    Missing {
        /// "context", "cluster" or "user".
        what: &'static str,
        /// Name of the missing entry.
        name: String,
        /// Files of the kubeconfig.
        files: Vec<PathBuf>,
    },
    /// A field has a value that cannot be used.
    #[error("{field} of {path:?}: {message}")]
    Field {
        /// Path of the field, such as `users[admin].user.exec`.
        field: String,
        /// Path of the file.
        path: PathBuf,
        /// Reason and remedy, for users.
        message: String,
    },
    /// Nothing tells where the API server is.
    #[error("no kubeconfig in {paths:?}, and not in a pod: KUBERNETES_SERVICE_HOST is not set")]
    Nowhere {
        /// Files that do not exist or are empty.
        paths: Vec<PathBuf>,
    },
}

/// Contents of a kubeconfig file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kubeconfig {
    /// Version of the format: always `v1`.
    #[serde(rename = "apiVersion", default)]
    pub api_version: String,
    /// Kind of the file: always `Config`.
    #[serde(default)]
    pub kind: String,
    /// API servers with their CAs; contexts refer to them by name.
    #[serde(default, deserialize_with = "or_null")]
    pub clusters: Vec<NamedCluster>,
    /// Credentials; contexts refer to them by name.
    #[serde(default, deserialize_with = "or_null")]
    pub users: Vec<NamedUser>,
    /// Pairs of a cluster and a user, with a default namespace.
    #[serde(default, deserialize_with = "or_null")]
    pub contexts: Vec<NamedContext>,
    /// Name of the current context.
    #[serde(default, deserialize_with = "or_null")]
    pub current_context: String,
    /// Fields that this type does not know; they are written back.
    #[serde(flatten)]
    pub other: Map<String, Value>,
    /// Files that this was read from.
    #[serde(skip)]
    pub files: Vec<PathBuf>,
}

/// Deserializes `null` as empty: kubectl writes it for empty lists.
fn or_null<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// An entry of `clusters`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NamedCluster {
    /// Name of the entry.
    pub name: String,
    /// The cluster's connection settings.
    pub cluster: Cluster,
    /// File of the entry: its relative paths start at the file's directory.
    #[serde(skip)]
    pub file: PathBuf,
}

/// Connection settings of a cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cluster {
    /// URL of the API server, `https://host:port`.
    pub server: String,
    /// CA certificates: base64 of PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
    /// File of CA certificates (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<PathBuf>,
    /// Accept any server certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_skip_tls_verify: Option<bool>,
    /// Name in the server's certificate. `None`: the host of `server`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// Proxy on the way to the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
    /// Fields that this type does not know; they are written back.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// An entry of `users`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NamedUser {
    /// Name of the entry.
    pub name: String,
    /// Credentials of the user.
    pub user: User,
    /// File of the entry: its relative paths start at the file's directory.
    #[serde(skip)]
    pub file: PathBuf,
}

/// Credentials of a user.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct User {
    /// Client certificate: base64 of PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_data: Option<String>,
    /// Client key: base64 of PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key_data: Option<String>,
    /// File of the client certificate (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,
    /// File of the client key (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// Bearer token, as literal text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// File of a bearer token.
    #[serde(default, rename = "tokenFile", skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// User name for basic authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password for basic authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// User name to impersonate (`Impersonate-User`).
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub as_user: Option<String>,
    /// User id to impersonate (`Impersonate-Uid`); needs a user name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_uid: Option<String>,
    /// Groups to impersonate (`Impersonate-Group`); need a user name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_groups: Option<Vec<String>>,
    /// Further attributes to impersonate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_user_extra: Option<BTreeMap<String, Vec<String>>>,
    /// Settings of a credential plugin: see [`ExecPlugin`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<Value>,
    /// Fields that this type does not know; they are written back.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("User { <credentials> }")
    }
}

/// An entry of `contexts`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NamedContext {
    /// Name of the entry.
    pub name: String,
    /// The context's cluster and user.
    pub context: Context,
}

/// A combination of cluster and user.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Context {
    /// Name of the cluster entry.
    pub cluster: String,
    /// Name of the user entry.
    pub user: String,
    /// Fields that this type does not know; they are written back.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Kubeconfig {
    /// Creates a kubeconfig with one cluster, user and context, all of the same name. Certificates and key
    /// are PEM.
    ///
    /// ```
    /// use std::path::Path;
    /// use k8s_core::client::Kubeconfig;
    /// let config = Kubeconfig::single("shop", "https://10.0.0.1:6443", "CA", "CERTIFICATE", "KEY");
    /// let read = Kubeconfig::parse(Path::new("kubeconfig"), &config.to_yaml())?;
    /// assert_eq!(read.remote(None)?.server, "https://10.0.0.1:6443");
    /// assert_eq!(read.current_context, "shop");
    /// # Ok::<(), k8s_core::client::KubeconfigError>(())
    /// ```
    #[must_use]
    pub fn single(name: &str, server: &str, ca: &str, certificate: &str, key: &str) -> Self {
        let encode = |pem: &str| Some(STANDARD.encode(pem));
        let user = User {
            client_certificate_data: encode(certificate),
            client_key_data: encode(key),
            ..User::default()
        };
        Self::of_one(name, server, encode(ca), user)
    }

    /// Creates a kubeconfig of one cluster and one user with a bearer token, for a server without TLS.
    ///
    /// # Examples
    /// ```
    /// use k8s_core::client::Kubeconfig;
    /// let config = Kubeconfig::with_token("test", "http://127.0.0.1:8080", "s3cret");
    /// assert_eq!(config.users[0].user.token.as_deref(), Some("s3cret"));
    /// ```
    #[must_use]
    pub fn with_token(name: &str, server: &str, token: &str) -> Self {
        Self::of_one(name, server, None, User { token: Some(token.into()), ..User::default() })
    }

    fn of_one(name: &str, server: &str, ca: Option<String>, user: User) -> Self {
        let cluster = Cluster { server: server.into(), certificate_authority_data: ca, ..Cluster::default() };
        let context = Context { cluster: name.into(), user: name.into(), ..Context::default() };
        Kubeconfig {
            api_version: "v1".into(),
            kind: "Config".into(),
            clusters: vec![NamedCluster { name: name.into(), cluster, file: PathBuf::new() }],
            users: vec![NamedUser { name: name.into(), user, file: PathBuf::new() }],
            contexts: vec![NamedContext { name: name.into(), context }],
            current_context: name.into(),
            ..Kubeconfig::default()
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read or is not a kubeconfig.
    pub fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| KubeconfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Parses the text of the file at `path`; an empty text is an empty kubeconfig.
    ///
    /// # Errors
    /// [`KubeconfigError::Parse`] with the path.
    pub fn parse(path: &Path, text: &str) -> Result<Self, KubeconfigError> {
        if text.trim().is_empty() {
            return Ok(Kubeconfig {
                api_version: "v1".into(),
                kind: "Config".into(),
                ..Kubeconfig::default()
            });
        }
        let mut parsed: Kubeconfig = serde_saphyr::from_str(text)
            .map_err(|e| KubeconfigError::Parse { path: path.to_owned(), message: e.to_string() })?;
        parsed.clusters.iter_mut().for_each(|c| path.clone_into(&mut c.file));
        parsed.users.iter_mut().for_each(|u| path.clone_into(&mut u.file));
        parsed.files.push(path.to_owned());
        Ok(parsed)
    }

    /// Returns true if there are no entries and no current context.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty()
            && self.users.is_empty()
            && self.contexts.is_empty()
            && self.current_context.is_empty()
    }

    /// Adds those clusters, users and contexts of `other` whose name is new, and its current context if there
    /// is none yet: kubectl's rule for a `KUBECONFIG` of several files.
    pub fn add(&mut self, other: Kubeconfig) {
        for new in other.clusters {
            if self.clusters.iter().all(|c| c.name != new.name) {
                self.clusters.push(new);
            }
        }
        for new in other.users {
            if self.users.iter().all(|u| u.name != new.name) {
                self.users.push(new);
            }
        }
        for new in other.contexts {
            if self.contexts.iter().all(|c| c.name != new.name) {
                self.contexts.push(new);
            }
        }
        if self.current_context.is_empty() {
            self.current_context = other.current_context;
        }
        self.files.extend(other.files);
    }

    /// Serializes to JSON, which is valid YAML.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).unwrap_or_default()
    }

    /// Adds or replaces the clusters, users and contexts of `other`, and makes its context current.
    ///
    /// ```
    /// use k8s_core::client::Kubeconfig;
    /// let of = |name: &str| Kubeconfig::single(name, "https://10.0.0.1:6443", "", "", "");
    /// let (mut mine, mut several) = (of("mine"), of("first"));
    /// mine.merge(of("new"));
    /// several.add(of("second"));
    /// assert_eq!((mine.current_context.as_str(), several.current_context.as_str()), ("new", "first"));
    /// mine.remove("new");
    /// assert_eq!((mine.contexts.len(), mine.current_context.as_str()), (1, ""));
    /// ```
    pub fn merge(&mut self, other: Kubeconfig) {
        let Kubeconfig { clusters, users, contexts, current_context, .. } = other;
        for new in clusters {
            self.clusters.retain(|c| c.name != new.name);
            self.clusters.push(new);
        }
        for new in users {
            self.users.retain(|u| u.name != new.name);
            self.users.push(new);
        }
        for new in contexts {
            self.contexts.retain(|c| c.name != new.name);
            self.contexts.push(new);
        }
        self.current_context = current_context;
    }

    /// Removes cluster, user and context `name`.
    pub fn remove(&mut self, name: &str) {
        self.clusters.retain(|c| c.name != name);
        self.users.retain(|u| u.name != name);
        self.contexts.retain(|c| c.name != name);
        if self.current_context == name {
            self.current_context.clear();
        }
    }

    /// Resolves a context (`None`: the current one) to a client configuration.
    ///
    /// ```
    /// use k8s_core::client::Kubeconfig;
    /// let config = Kubeconfig::single("shop", "https://10.0.0.1:6443", "", "", "");
    /// assert!(config.remote(Some("shop")).is_ok());
    /// let error = config.remote(Some("other")).unwrap_err();
    /// assert!(error.to_string().contains("other"), "{error}");
    /// ```
    ///
    /// # Errors
    /// A referenced entry does not exist, or a field is not usable; the error names the field and the file.
    pub fn remote(&self, context: Option<&str>) -> Result<RemoteConfig, KubeconfigError> {
        let missing = |what, name: &str| KubeconfigError::Missing {
            what,
            name: name.to_owned(),
            files: self.files.clone(),
        };
        let name = context.unwrap_or(&self.current_context);
        let context =
            &self.contexts.iter().find(|c| c.name == name).ok_or_else(|| missing("context", name))?.context;
        let cluster = self.clusters.iter().find(|c| c.name == context.cluster);
        let cluster = cluster.ok_or_else(|| missing("cluster", &context.cluster))?;
        let user = self.users.iter().find(|u| u.name == context.user);
        let user = user.ok_or_else(|| missing("user", &context.user))?;
        let mut config = RemoteConfig::default();
        cluster.fill(&mut config)?;
        user.fill(&mut config, cluster)?;
        config.namespace = context.other.get("namespace").and_then(Value::as_str).map(str::to_owned);
        Ok(config)
    }
}

/// A client certificate and its key (PEM), as far as there are any.
type Pair = (Option<Vec<u8>>, Option<Vec<u8>>);

/// Reads the client certificate and the key of a user again.
///
/// # Errors
/// The file or the user is gone, or a field is not usable.
pub(super) fn reread(file: &Path, user: &str) -> Result<Pair, KubeconfigError> {
    let config = Kubeconfig::read(file)?;
    let found = config.users.iter().find(|u| u.name == user);
    let missing =
        || KubeconfigError::Missing { what: "user", name: user.to_owned(), files: config.files.clone() };
    found.ok_or_else(missing)?.identity()
}

/// An entry in a file, for errors and for relative paths.
struct Place<'a> {
    /// Place in the file for messages, such as `users[admin].user`.
    entry: String,
    file: &'a Path,
}

impl Place<'_> {
    fn error(&self, field: &str, message: impl ToString) -> KubeconfigError {
        let field = format!("{}.{field}", self.entry);
        KubeconfigError::Field { field, path: self.file.to_owned(), message: message.to_string() }
    }

    fn directory(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    /// Returns the bytes of field `{field}-data` (base64), or of the file of field `field`.
    fn load(
        &self,
        field: &str,
        data: Option<&String>,
        file: Option<&PathBuf>,
    ) -> Result<Option<Vec<u8>>, KubeconfigError> {
        match (data.filter(|d| !d.is_empty()), file.filter(|f| !f.as_os_str().is_empty())) {
            (Some(data), _) => match STANDARD.decode(data) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(_) => Err(self.error(&format!("{field}-data"), "not base64")),
            },
            (None, Some(path)) => {
                let path = self.directory().join(path);
                let read = std::fs::read(&path);
                read.map(Some).map_err(|e| self.error(field, format!("read {}: {e}", path.display())))
            }
            (None, None) => Ok(None),
        }
    }
}

impl NamedCluster {
    fn fill(&self, config: &mut RemoteConfig) -> Result<(), KubeconfigError> {
        let Cluster { certificate_authority_data, certificate_authority, .. } = &self.cluster;
        let place = Place { entry: format!("clusters[{}].cluster", self.name), file: &self.file };
        config.server.clone_from(&self.cluster.server);
        config.insecure = self.cluster.insecure_skip_tls_verify == Some(true);
        config.server_name = self.cluster.tls_server_name.clone().filter(|name| !name.is_empty());
        config.ca = place.load(
            "certificate-authority",
            certificate_authority_data.as_ref(),
            certificate_authority.as_ref(),
        )?;
        if let Some(url) = self.cluster.proxy_url.as_deref().filter(|url| !url.is_empty()) {
            config.proxy = Some(Proxy::parse(url).map_err(|e| place.error("proxy-url", e))?);
        }
        Ok(())
    }

    /// Returns `spec.cluster` of a credential plugin's input.
    fn for_plugin(&self, ca: Option<&[u8]>) -> Value {
        let extensions = self.cluster.other.get("extensions").and_then(Value::as_array);
        let own = extensions
            .into_iter()
            .flatten()
            .find(|extension| extension["name"] == "client.authentication.k8s.io/exec");
        let mut info = json!({
            "server": self.cluster.server,
            "tls-server-name": self.cluster.tls_server_name,
            "insecure-skip-tls-verify": self.cluster.insecure_skip_tls_verify,
            "certificate-authority-data": ca.map(|pem| STANDARD.encode(pem)),
            "proxy-url": self.cluster.proxy_url,
            "config": own.map(|extension| &extension["extension"]),
        });
        if let Some(fields) = info.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        info
    }
}

impl NamedUser {
    /// Returns the client certificate and its key.
    fn identity(&self) -> Result<Pair, KubeconfigError> {
        let user = &self.user;
        let place = Place { entry: format!("users[{}].user", self.name), file: &self.file };
        let certificate = place.load(
            "client-certificate",
            user.client_certificate_data.as_ref(),
            user.client_certificate.as_ref(),
        )?;
        let key = place.load("client-key", user.client_key_data.as_ref(), user.client_key.as_ref())?;
        Ok((certificate, key))
    }

    fn fill(&self, config: &mut RemoteConfig, cluster: &NamedCluster) -> Result<(), KubeconfigError> {
        let user = &self.user;
        let place = Place { entry: format!("users[{}].user", self.name), file: &self.file };
        (config.certificate, config.key) = self.identity()?;
        if !self.file.as_os_str().is_empty() {
            config.user_file = Some((self.file.clone(), self.name.clone()));
        }
        if user.other.get("auth-provider").is_some_and(|provider| !provider.is_null()) {
            return Err(place.error("auth-provider", "not supported: use exec"));
        }
        config.token = user.token.clone().filter(|token| !token.is_empty());
        if let Some(path) = user.token_file.as_ref().filter(|path| !path.as_os_str().is_empty()) {
            let path = place.directory().join(path);
            if config.token.is_none()
                && let Err(e) = std::fs::File::open(&path)
            {
                return Err(place.error("tokenFile", format!("read {}: {e}", path.display())));
            }
            config.token_file = Some(path);
        }
        if let Some(name) = user.username.clone().filter(|name| !name.is_empty()) {
            config.basic = Some((name, user.password.clone().unwrap_or_default()));
        }
        if let Some(exec) = &user.exec {
            let field = format!("{}.exec of {:?}", place.entry, self.file);
            let info = cluster.for_plugin(config.ca.as_deref());
            let plugin = ExecPlugin::parse(exec, place.directory(), field, info)
                .map_err(|(below, message)| place.error(&format!("exec{below}"), message))?;
            config.exec = Some(plugin);
        }
        if let Some(name) = user.as_user.clone().filter(|name| !name.is_empty()) {
            config.impersonation = Some(Impersonation {
                user: name,
                uid: user.as_uid.clone(),
                groups: user.as_groups.clone().unwrap_or_default(),
                extra: user.as_user_extra.clone().unwrap_or_default(),
            });
        } else if user.as_uid.is_some() || user.as_groups.is_some() || user.as_user_extra.is_some() {
            return Err(place.error("as", "as-uid, as-groups and as-user-extra need it"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_what_is_foreign() {
        let mut mine: Kubeconfig = serde_saphyr::from_str(
            "apiVersion: v1\nkind: Config\npreferences: {colors: true}\ncurrent-context: work\ncontexts:\n- name: work\n  context: {cluster: c, user: u, namespace: shop}\nusers:\n- name: u\n  user: {exec: {command: aws}}\n",
        )
        .unwrap();
        mine.merge(Kubeconfig::single("hyperkube", "https://127.0.0.1:6443", "CA", "CERT", "KEY"));
        let again: Kubeconfig = serde_saphyr::from_str(&mine.to_yaml()).unwrap();
        assert_eq!(again.current_context, "hyperkube");
        assert_eq!(again.contexts[0].context.other["namespace"], "shop");
        assert_eq!(again.users[0].user.exec.as_ref().unwrap()["command"], "aws");
        assert_eq!(again.other["preferences"]["colors"], true);
        let remote = again.remote(None).unwrap();
        assert_eq!((remote.ca.unwrap(), remote.key.unwrap()), (b"CA".to_vec(), b"KEY".to_vec()));
        assert!(matches!(again.remote(Some("nope")), Err(KubeconfigError::Missing { what: "context", .. })));
    }
}
