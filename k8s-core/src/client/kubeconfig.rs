//! The kubeconfig file, as kubectl reads and writes it.
//!
//! What this program does not know in such a file is kept as it is, so that merging a context never loses a user's settings.

use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::RemoteConfig;

/// What can be wrong with a kubeconfig.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubeconfigError {
    /// A file it names, or itself, cannot be read.
    #[error("read {path:?}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Not a kubeconfig.
    #[error("{path:?} is not a kubeconfig: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it does not fit.
        message: String,
    },
    /// A name leads nowhere.
    #[error("no {what} {name:?} in the kubeconfig")]
    Missing {
        /// "context", "cluster" or "user".
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A `*-data` field is not base64.
    #[error("{field} is not base64")]
    Base64 {
        /// The field.
        field: &'static str,
    },
}

/// A kubeconfig file.
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
    /// The context in use.
    #[serde(default, deserialize_with = "or_null")]
    pub current_context: String,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// An empty value for `null`, which kubectl writes for a list without entries.
fn or_null<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A named cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NamedCluster {
    /// Name.
    pub name: String,
    /// Where it is.
    pub cluster: Cluster,
}

/// Where a cluster is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cluster {
    /// `https://host:port`.
    pub server: String,
    /// CA certificates in PEM, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
    /// File with CA certificates in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<PathBuf>,
    /// Trust anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_skip_tls_verify: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A named user.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NamedUser {
    /// Name.
    pub name: String,
    /// Credentials.
    pub user: User,
}

/// Credentials.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct User {
    /// Certificate in PEM, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_data: Option<String>,
    /// Key in PEM, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key_data: Option<String>,
    /// File with the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,
    /// File with the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// Bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// File with a bearer token.
    #[serde(default, rename = "tokenFile", skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("User { <credentials> }")
    }
}

/// A named context.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NamedContext {
    /// Name.
    pub name: String,
    /// Which cluster, as whom.
    pub context: Context,
}

/// Which cluster, as whom.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Context {
    /// A cluster's name.
    pub cluster: String,
    /// A user's name.
    pub user: String,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Kubeconfig {
    /// One cluster, one user, one context, all of the same name. Certificates and key are PEM.
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
    /// When it cannot be read or is not a kubeconfig.
    pub fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| KubeconfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Parses the text of the file at `path`; an empty one has nothing in it.
    ///
    /// # Errors
    /// [`KubeconfigError::Parse`], which names the path.
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

    /// The file's text (JSON, which is YAML).
    #[must_use]
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).unwrap_or_default()
    }

    /// Adds or replaces the clusters, users and contexts that `other` has, and makes its context the current one.
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

    /// Removes a cluster, user and context of this name.
    pub fn remove(&mut self, name: &str) {
        self.clusters.retain(|c| c.name != name);
        self.users.retain(|u| u.name != name);
        self.contexts.retain(|c| c.name != name);
        if self.current_context == name {
            self.current_context.clear();
        }
    }

    /// What is needed to connect to a context (`None`: the current one).
    ///
    /// # Errors
    /// When a name leads nowhere or a file cannot be read.
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
