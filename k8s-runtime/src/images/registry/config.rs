//! `registries.yaml` in k3s's schema: mirrors, credentials and TLS settings per registry.

use std::{collections::BTreeMap, path::PathBuf};

use base64::Engine;
use serde::Deserialize;

use crate::api::RuntimeError;

/// Contents of the file. Default: no mirrors, anonymous access.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    /// Mirrors by registry (`*`: any), in the order of the attempts. The registry itself is tried last.
    pub mirrors: BTreeMap<String, Mirror>,
    /// Settings by `host[:port]` of an endpoint.
    pub configs: BTreeMap<String, Host>,
}

/// Endpoints of one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mirror {
    /// URLs of the endpoints. `http://` URLs are used without TLS.
    pub endpoint: Vec<String>,
}

/// Settings for one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// Credentials of the host.
    pub auth: Option<Auth>,
    /// TLS settings of the host.
    pub tls: Option<Tls>,
}

/// Credentials of a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// User name. Empty: anonymous, or given in `auth`.
    pub username: String,
    /// Password or token of the user.
    pub password: String,
    /// User name and password as `base64(user:password)`.
    pub auth: String,
}

/// TLS settings of a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// CA bundle to trust, in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// Skips certificate verification. Default: false.
    pub insecure_skip_verify: bool,
}

/// An endpoint of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// URL up to and including `/v2`.
    pub(super) base: String,
    /// Name of the registry (`ns` parameter), for mirrors of several registries.
    pub(super) namespace: Option<String>,
}

impl Registries {
    /// Parses the file. Unknown keys are errors.
    ///
    /// ```
    /// use k8s_runtime::images::Registries;
    /// let text = "mirrors: {docker.io: {endpoint: ['https://mirror.example.com']}}";
    /// let registries = Registries::parse(text)?;
    /// assert_eq!(registries.mirrors["docker.io"].endpoint, ["https://mirror.example.com"]);
    /// assert!(Registries::parse("mirror: {}").is_err());
    /// # Ok::<(), k8s_runtime::RuntimeError>(())
    /// ```
    pub fn parse(yaml: &str) -> Result<Registries, RuntimeError> {
        if yaml.trim().is_empty() {
            return Ok(Registries::default());
        }
        serde_saphyr::from_str(yaml).map_err(|e| RuntimeError::Invalid(format!("registries.yaml: {e}")))
    }

    /// Returns the endpoints of a registry, in the order of the attempts.
    pub(super) fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        let mirror = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let mut found: Vec<Endpoint> = mirror
            .iter()
            .flat_map(|m| &m.endpoint)
            .map(|url| Endpoint { base: base(url), namespace: Some(registry.to_owned()) })
            .collect();
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let local = name == "localhost" || name == "[::1]" || name.starts_with("127.");
        let own = base(&format!("{}://{host}", if local { "http" } else { "https" }));
        if !found.iter().any(|e| e.base == own) {
            found.push(Endpoint { base: own, namespace: None });
        }
        found
    }

    /// Returns the credentials of a host.
    pub(super) fn credentials(&self, host: &str) -> Option<(String, String)> {
        let auth = self.configs.get(host)?.auth.as_ref()?;
        if !auth.username.is_empty() {
            return Some((auth.username.clone(), auth.password.clone()));
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(&auth.auth).ok()?;
        let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    }

    /// Returns the TLS settings of a host.
    pub(super) fn tls(&self, host: &str) -> Tls {
        self.configs.get(host).and_then(|c| c.tls.clone()).unwrap_or_default()
    }
}

fn base(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    if url.ends_with("/v2") || url.contains("/v2/") { url } else { format!("{url}/v2") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_first() {
        let yaml = r#"
mirrors:
  docker.io:
    endpoint: ["http://localhost:5000", "https://mirror.example/v2/hub"]
configs:
  "localhost:5000":
    auth: {username: me, password: secret}
  other.example:
    auth: {auth: "dTpw"}
    tls: {insecure_skip_verify: true}
"#;
        let parsed = Registries::parse(yaml).expect("valid");
        let bases: Vec<String> = parsed.endpoints("docker.io").into_iter().map(|e| e.base).collect();
        assert_eq!(
            bases,
            ["http://localhost:5000/v2", "https://mirror.example/v2/hub", "https://registry-1.docker.io/v2"]
        );
        assert_eq!(parsed.endpoints("quay.io")[0].base, "https://quay.io/v2");
        assert_eq!(parsed.endpoints("127.0.0.1:7")[0].base, "http://127.0.0.1:7/v2");
        assert_eq!(parsed.credentials("localhost:5000"), Some(("me".into(), "secret".into())));
        assert_eq!(parsed.credentials("other.example"), Some(("u".into(), "p".into())));
        assert!(parsed.tls("other.example").insecure_skip_verify);
        assert!(Registries::parse("mirors: {}").is_err());
        assert_eq!(Registries::parse("").expect("empty"), Registries::default());
    }
}
