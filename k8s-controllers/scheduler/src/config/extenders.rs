//! `extenders` of a KubeSchedulerConfiguration: their fields, and what cannot be used.

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::SignedDuration;
use k8s_core::client::RemoteConfig;
use serde::Deserialize;

use super::{ConfigError, error};
use crate::extender::{Extender, Extenders, Http};

/// Timeout of a request to an extender, if the file has none.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A webhook that takes part in decisions. The URL of a request is `urlPrefix`, a slash, and the verb.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExtenderConfig {
    /// `http://HOST[:PORT]/PATH` or `https://...`.
    pub url_prefix: String,
    /// Verb that selects nodes among the feasible ones. Default: none.
    pub filter_verb: String,
    /// Verb that chooses among the candidates of a preemption. Default: none.
    pub preempt_verb: String,
    /// Verb that scores nodes from 0 to 10. Default: none.
    pub prioritize_verb: String,
    /// Weight of the scores; positive.
    pub weight: i64,
    /// Verb that binds pods, in place of the plugins. One extender at most has it. Default: none.
    pub bind_verb: String,
    /// True to accept any certificate of the server, unless `tlsConfig` has a CA.
    #[serde(rename = "enableHTTPS")]
    pub enable_https: bool,
    /// TLS for an `https` URL.
    pub tls_config: Option<ExtenderTls>,
    /// Timeout of a request, such as `2s`. Default: 5 seconds; so is 0.
    pub http_timeout: Option<String>,
    /// True if the extender knows the nodes: it gets their names alone.
    pub node_cache_capable: bool,
    /// Extended resources: only pods that ask for one are sent to the extender. Default: all pods are.
    pub managed_resources: Vec<ManagedResource>,
    /// True if a request that fails is as if there were no extender. Default: the pod is not scheduled.
    pub ignorable: bool,
}

/// An extended resource that an extender manages.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ManagedResource {
    /// Name, such as `example.com/licence`.
    pub name: String,
    /// True if NodeResourcesFit does not check it.
    pub ignored_by_scheduler: bool,
}

/// TLS to an extender. The fields `certData`, `keyData` and `caData` are base64 of PEM, and go before the
/// files. The files are read when the scheduler starts.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExtenderTls {
    /// True to accept any certificate of the server.
    pub insecure: bool,
    /// Name in the server's certificate. Default: the host of the URL.
    pub server_name: Option<String>,
    /// File of the client certificate.
    pub cert_file: Option<String>,
    /// File of its key.
    pub key_file: Option<String>,
    /// File of the CAs of the server.
    pub ca_file: Option<String>,
    /// The client certificate.
    pub cert_data: Option<String>,
    /// Its key.
    pub key_data: Option<String>,
    /// The CAs of the server.
    pub ca_data: Option<String>,
}

impl std::fmt::Debug for ExtenderTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExtenderTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Returns the resources that NodeResourcesFit does not check.
pub(super) fn ignored(all: &[ExtenderConfig]) -> Vec<&str> {
    let resources = all.iter().flat_map(|extender| &extender.managed_resources);
    resources
        .filter(|resource| resource.ignored_by_scheduler)
        .map(|resource| resource.name.as_str())
        .collect()
}

/// Makes the extenders.
///
/// # Errors
/// The path of the first field that cannot be used, and the reason.
pub(super) fn connect(all: &[ExtenderConfig]) -> Result<Extenders, ConfigError> {
    let (mut extenders, mut names) = (Vec::new(), BTreeSet::new());
    for (at, config) in all.iter().enumerate() {
        let path = format!("extenders[{at}]");
        if !config.prioritize_verb.is_empty() && config.weight <= 0 {
            return Err(error(format!("{path}.weight"), "must have a positive weight applied to it"));
        }
        for (at, ManagedResource { name, .. }) in config.managed_resources.iter().enumerate() {
            let path = format!("{path}.managedResources[{at}].name");
            if !is_extended(name) {
                return Err(error(path, format!("{name:?} is an invalid extended resource name")));
            }
            if !names.insert(name) {
                return Err(error(path, format!("{name:?}: duplicate extender managed resource name")));
            }
        }
        extenders.push(config.connect(&path)?);
    }
    let binders = all.iter().filter(|extender| !extender.bind_verb.is_empty()).count();
    if binders > 1 {
        let found = format!("found {binders} extenders implementing bind");
        return Err(error("extenders", format!("{found}, only one extender can implement bind")));
    }
    Ok(Extenders::new(extenders))
}

/// Returns true for a name such as `example.com/licence` outside of Kubernetes' own domains.
fn is_extended(name: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let ends = |part: &str| end(part.chars().next()) && end(part.chars().next_back());
    let is_name = |part: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        part.len() <= 63 && ends(part) && part.chars().all(inner)
    };
    let is_label = |label: &str| {
        ends(label) && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    // With `requests.` before it, the name is that of a quota's resource, and is as long as a name can be.
    let is_domain = |domain: &str| domain.len() + "requests.".len() <= 253 && domain.split('.').all(is_label);
    name.split_once('/').is_some_and(|(domain, part)| is_domain(domain) && is_name(part))
        && !name.contains("kubernetes.io/")
        && !name.starts_with("requests.")
}

impl ExtenderConfig {
    fn connect(&self, path: &str) -> Result<Extender, ConfigError> {
        let remote = self.remote(path)?;
        let timeout = self.timeout().map_err(|reason| error(format!("{path}.httpTimeout"), reason))?;
        let http =
            Http::new(&remote, timeout).map_err(|reason| error(format!("{path}.urlPrefix"), reason))?;
        let verbs = [
            ("filterVerb", &self.filter_verb),
            ("preemptVerb", &self.preempt_verb),
            ("prioritizeVerb", &self.prioritize_verb),
            ("bindVerb", &self.bind_verb),
        ];
        for (field, verb) in verbs {
            http.url(verb).map_err(|reason| error(format!("{path}.{field}"), reason))?;
        }
        Ok(Extender {
            name: self.url_prefix.clone(),
            filter: self.filter_verb.clone(),
            prioritize: self.prioritize_verb.clone(),
            preempt: self.preempt_verb.clone(),
            bind: self.bind_verb.clone(),
            weight: self.weight,
            knows_nodes: self.node_cache_capable,
            resources: self.managed_resources.iter().map(|resource| resource.name.clone()).collect(),
            ignorable: self.ignorable,
            post: Arc::new(http),
        })
    }

    fn timeout(&self) -> Result<Duration, String> {
        let Some(text) = self.http_timeout.as_deref().filter(|text| *text != "0") else { return Ok(TIMEOUT) };
        let time: SignedDuration =
            text.parse().map_err(|_| format!("{text:?} is not a duration such as \"5s\""))?;
        let time = Duration::try_from(time).map_err(|_| format!("{text:?} is negative"))?;
        Ok(if time.is_zero() { TIMEOUT } else { time })
    }

    fn remote(&self, path: &str) -> Result<RemoteConfig, ConfigError> {
        let default = ExtenderTls::default();
        let (path, tls) = (format!("{path}.tlsConfig"), self.tls_config.as_ref().unwrap_or(&default));
        let part = |name: &str, data: &Option<String>, file: &Option<String>| {
            pem(data.as_deref(), file.as_deref())
                .map_err(|(field, reason)| error(format!("{path}.{name}{field}"), reason))
        };
        let ca = part("ca", &tls.ca_data, &tls.ca_file)?;
        let certificate = part("cert", &tls.cert_data, &tls.cert_file)?;
        let key = part("key", &tls.key_data, &tls.key_file)?;
        if certificate.is_some() != key.is_some() {
            return Err(error(path, "a client certificate needs certData and keyData, or the files of both"));
        }
        if ca.is_some() && tls.insecure {
            let reason = "specifying a root certificates file with the insecure flag is not allowed";
            return Err(error(format!("{path}.insecure"), reason));
        }
        let insecure = tls.insecure || (self.enable_https && ca.is_none());
        if self.url_prefix.starts_with("https:") && ca.is_none() && !insecure {
            let reason = "set caData or caFile; without one, `enableHTTPS: true` accepts any certificate";
            return Err(error(path, reason));
        }
        let server_name = tls.server_name.clone().filter(|name| !name.is_empty());
        let server = self.url_prefix.clone();
        Ok(RemoteConfig { server, ca, certificate, key, server_name, insecure, ..RemoteConfig::default() })
    }
}

/// Returns the PEM of a field or, if that is empty, of a file.
///
/// # Errors
/// The end of the field's name, and the reason.
fn pem(data: Option<&str>, file: Option<&str>) -> Result<Option<Vec<u8>>, (&'static str, String)> {
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        return STANDARD.decode(data).map(Some).map_err(|e| ("Data", format!("not base64: {e}")));
    }
    let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
    fs::read(file).map(Some).map_err(|e| ("File", format!("{file}: {e}")))
}
