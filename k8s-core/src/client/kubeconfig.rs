//! The kubeconfig file, compatible with kubectl.
//!
//! Unknown fields are kept, so that merging a context never loses a user's settings.

use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::RemoteConfig;

/// Errors of reading or using a kubeconfig.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubeconfigError {
    /// The file, or one that it refers to, cannot be read.
    #[error("read {path:?}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
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
    #[error("no {what} {name:?} in the kubeconfig")]
    Missing {
        /// "context", "cluster" or "user".
        what: &'static str,
        /// Name of the missing entry.
        name: String,
    },
    /// A `*-data` field is not base64.
    #[error("{field} is not base64")]
    Base64 {
        /// Name of the field.
        field: &'static str,
    },
}

/// Contents of a kubeconfig file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kubeconfig {
    /// Always `v1`.
    #[serde(rename = "apiVersion", default)]
    pub api_version: String,
    /// Always `Config`.
    #[serde(default)]
    pub kind: String,
    /// Clusters by name.
    #[serde(default, deserialize_with = "or_null")]
    pub clusters: Vec<NamedCluster>,
    /// Users by name.
    #[serde(default, deserialize_with = "or_null")]
    pub users: Vec<NamedUser>,
    /// Contexts by name.
    #[serde(default, deserialize_with = "or_null")]
    pub contexts: Vec<NamedContext>,
    /// Name of the current context.
    #[serde(default, deserialize_with = "or_null")]
    pub current_context: String,
    /// Fields that this type does not know; they are written back.
    #[serde(flatten)]
    pub other: Map<String, Value>,
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
    #[must_use]
    pub fn single(name: &str, server: &str, ca: &str, certificate: &str, key: &str) -> Self {
        let encode = |pem: &str| Some(STANDARD.encode(pem));
        Kubeconfig {
            api_version: "v1".into(),
            kind: "Config".into(),
            clusters: vec![NamedCluster {
                name: name.into(),
                cluster: Cluster {
                    server: server.into(),
                    certificate_authority_data: encode(ca),
                    ..Cluster::default()
                },
            }],
            users: vec![NamedUser {
                name: name.into(),
                user: User {
                    client_certificate_data: encode(certificate),
                    client_key_data: encode(key),
                    ..User::default()
                },
            }],
            contexts: vec![NamedContext {
                name: name.into(),
                context: Context { cluster: name.into(), user: name.into(), ..Context::default() },
            }],
            current_context: name.into(),
            other: Map::new(),
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
        serde_saphyr::from_str(text)
            .map_err(|e| KubeconfigError::Parse { path: path.to_owned(), message: e.to_string() })
    }

    /// Serializes to JSON, which is valid YAML.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).unwrap_or_default()
    }

    /// Adds or replaces the clusters, users and contexts of `other`, and makes its context current.
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
    /// # Errors
    /// A referenced entry does not exist, or a file cannot be read.
    pub fn remote(&self, context: Option<&str>) -> Result<RemoteConfig, KubeconfigError> {
        let missing = |what, name: &str| KubeconfigError::Missing { what, name: name.to_owned() };
        let name = context.unwrap_or(&self.current_context);
        let context =
            &self.contexts.iter().find(|c| c.name == name).ok_or_else(|| missing("context", name))?.context;
        let cluster = &self
            .clusters
            .iter()
            .find(|c| c.name == context.cluster)
            .ok_or_else(|| missing("cluster", &context.cluster))?
            .cluster;
        let user = &self
            .users
            .iter()
            .find(|u| u.name == context.user)
            .ok_or_else(|| missing("user", &context.user))?
            .user;
        let load = |data: &Option<String>,
                    file: &Option<PathBuf>,
                    field|
         -> Result<Option<Vec<u8>>, KubeconfigError> {
            match (data, file) {
                (Some(data), _) => {
                    STANDARD.decode(data).map(Some).map_err(|_| KubeconfigError::Base64 { field })
                }
                (None, Some(path)) => std::fs::read(path)
                    .map(Some)
                    .map_err(|source| KubeconfigError::Read { path: path.clone(), source }),
                (None, None) => Ok(None),
            }
        };
        let token = match (&user.token, &user.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(path)) => Some(
                std::fs::read_to_string(path)
                    .map_err(|source| KubeconfigError::Read { path: path.clone(), source })?
                    .trim()
                    .to_owned(),
            ),
            (None, None) => None,
        };
        Ok(RemoteConfig {
            server: cluster.server.clone(),
            ca: load(
                &cluster.certificate_authority_data,
                &cluster.certificate_authority,
                "certificate-authority-data",
            )?,
            certificate: load(
                &user.client_certificate_data,
                &user.client_certificate,
                "client-certificate-data",
            )?,
            key: load(&user.client_key_data, &user.client_key, "client-key-data")?,
            token,
            insecure: cluster.insecure_skip_tls_verify == Some(true),
        })
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
        assert_eq!(again.users[0].user.other["exec"]["command"], "aws");
        assert_eq!(again.other["preferences"]["colors"], true);
        let remote = again.remote(None).unwrap();
        assert_eq!((remote.ca.unwrap(), remote.key.unwrap()), (b"CA".to_vec(), b"KEY".to_vec()));
        assert!(matches!(again.remote(Some("nope")), Err(KubeconfigError::Missing { what: "context", .. })));
    }
}
