//! A container's environment: literals, `valueFrom`, `envFrom`, service variables, and `$(NAME)` expansion.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use k8s_core::meta::ObjectExt;

use crate::{context::Context, resources, sources::SourceError, types::*};

/// The reason for which a container's configuration cannot be made. It is tried again when a source changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{0}")]
    Source(#[from] SourceError),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { kind: &'static str, namespace: String, name: String, key: String },
    #[error("{0}")]
    Resource(#[from] resources::FieldError),
    #[error("unsupported fieldPath: {0}")]
    FieldPath(String),
    #[error("{0}")]
    Invalid(String),
}

/// The sources of a container's environment.
pub(crate) struct EnvSource<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) spec: &'a PodSpec,
    pub(crate) container: &'a Container,
    pub(crate) pod_ips: &'a [IpAddr],
}

/// Replaces `$(NAME)` where `lookup` knows the name; `$$` is a dollar sign; everything else stays.
pub(crate) fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some(reference) = rest.strip_prefix('(')
            && let Some(end) = reference.find(')')
        {
            let name = &reference[..end];
            match lookup(name) {
                Some(value) => result.push_str(&value),
                None => {
                    result.push_str("$(");
                    result.push_str(name);
                    result.push(')');
                }
            }
            rest = &reference[end + 1..];
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

/// Variables in the order in which they were first set; the last value wins.
#[derive(Debug, Default)]
struct Vars {
    order: Vec<String>,
    values: HashMap<String, String>,
}

impl Vars {
    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }
}

/// Builds the environment of a container.
pub(crate) async fn make(cx: &Context, source: &EnvSource<'_>) -> Result<Vec<(String, String)>, ConfigError> {
    let namespace = source.pod.namespace();
    let links = source.spec.enable_service_links.unwrap_or(true);
    let services = service_env(cx, namespace, links);
    let mut vars = Vars::default();
    for from in source.container.env_from.iter().flatten() {
        add_all(cx, namespace, from, &mut vars).await?;
    }
    for var in source.container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(text), _) if !text.is_empty() => {
                expand(text, &|name| vars.values.get(name).cloned().or_else(|| services.get(name).cloned()))
            }
            (_, Some(from)) => match referenced(cx, source, from).await? {
                Some(value) => value,
                None => continue,
            },
            _ => String::new(),
        };
        vars.set(var.name.clone(), value);
    }
    let mut result: Vec<(String, String)> =
        services.into_iter().filter(|(name, _)| !vars.values.contains_key(name)).collect();
    result.sort();
    for name in vars.order {
        let value = vars.values.remove(&name).unwrap_or_default();
        result.push((name, value));
    }
    Ok(result)
}

/// Adds one `envFrom` entry: all keys of a ConfigMap or Secret.
async fn add_all(
    cx: &Context,
    namespace: &str,
    from: &EnvFromSource,
    vars: &mut Vars,
) -> Result<(), ConfigError> {
    let prefix = from.prefix.as_deref().unwrap_or_default();
    if let Some(reference) = &from.config_map_ref {
        if let Some(map) =
            optional(cx.sources.config_map(namespace, &reference.name).await, reference.optional)?
        {
            for (key, value) in map.data.iter().flatten() {
                vars.set(format!("{prefix}{key}"), value.clone());
            }
        }
    } else if let Some(reference) = &from.secret_ref
        && let Some(secret) =
            optional(cx.sources.secret(namespace, &reference.name).await, reference.optional)?
    {
        for (key, value) in secret.data.iter().flatten() {
            vars.set(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
        }
    }
    Ok(())
}

/// Maps a missing object to `None` if the reference is `optional`.
pub(crate) fn optional<T>(
    found: Result<Arc<T>, SourceError>,
    optional: Option<bool>,
) -> Result<Option<Arc<T>>, SourceError> {
    match found {
        Ok(object) => Ok(Some(object)),
        Err(SourceError::Missing { .. }) if optional == Some(true) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Resolves a `valueFrom`. `None`: the reference is optional and its object or key is missing.
async fn referenced(
    cx: &Context,
    source: &EnvSource<'_>,
    from: &EnvVarSource,
) -> Result<Option<String>, ConfigError> {
    let namespace = source.pod.namespace();
    let missing = |kind, name: &str, key: &str| ConfigError::Key {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        key: key.to_owned(),
    };
    if let Some(field) = &from.field_ref {
        return field_value(cx, source.pod, source.pod_ips, &field.field_path).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        let own = Some(source.container.name.as_str());
        return Ok(Some(resources::field(source.spec, own, selector, &cx.facts.allocatable())?));
    }
    if let Some(selector) = &from.config_map_key_ref {
        let Some(map) = optional(cx.sources.config_map(namespace, &selector.name).await, selector.optional)?
        else {
            return Ok(None);
        };
        let value = map.data.as_ref().and_then(|d| d.get(&selector.key)).cloned();
        return match value {
            None if selector.optional != Some(true) => {
                Err(missing("ConfigMap", &selector.name, &selector.key))
            }
            value => Ok(value),
        };
    }
    if let Some(selector) = &from.secret_key_ref {
        let Some(secret) = optional(cx.sources.secret(namespace, &selector.name).await, selector.optional)?
        else {
            return Ok(None);
        };
        let value = secret.data.as_ref().and_then(|d| d.get(&selector.key));
        return match value.map(|v| String::from_utf8_lossy(&v.0).into_owned()) {
            None if selector.optional != Some(true) => Err(missing("Secret", &selector.name, &selector.key)),
            value => Ok(value),
        };
    }
    Err(ConfigError::Invalid("environment variable has no supported valueFrom".into()))
}

/// Returns a field of a pod by its path, for `fieldRef` and downward API volumes.
pub(crate) fn field_value(
    cx: &Context,
    pod: &Pod,
    pod_ips: &[IpAddr],
    path: &str,
) -> Result<String, ConfigError> {
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let spec = pod.spec.as_ref();
    let maps = |map: Option<&std::collections::BTreeMap<String, String>>| {
        map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
    };
    if let Some((base, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match base {
            "metadata.labels" => pod.metadata.labels.as_ref(),
            "metadata.annotations" => pod.metadata.annotations.as_ref(),
            _ => return Err(ConfigError::FieldPath(path.to_owned())),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => maps(pod.metadata.labels.as_ref()),
        "metadata.annotations" => maps(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => cx.node_ips().first().map(ToString::to_string).unwrap_or_default(),
        "status.hostIPs" => join(cx.node_ips()),
        "status.podIP" => pod_ips.first().map(ToString::to_string).unwrap_or_default(),
        "status.podIPs" => join(pod_ips),
        _ => return Err(ConfigError::FieldPath(path.to_owned())),
    })
}

/// Service environment variables: of the services in the pod's namespace if `links` is set, and always of
/// `default/kubernetes`.
fn service_env(cx: &Context, namespace: &str, links: bool) -> HashMap<String, String> {
    let mut vars = HashMap::new();
    if let Some((host, port)) = cx.config.kubernetes_service {
        let port = ServicePort { name: Some("https".into()), port: port.into(), ..ServicePort::default() };
        add_service(&mut vars, "kubernetes", &host.to_string(), &[port]);
    }
    let own = if links { cx.services.in_namespace(namespace) } else { Vec::new() };
    for service in cx.services.get("default", "kubernetes").into_iter().chain(own) {
        let Some(spec) = &service.spec else { continue };
        let host = spec.cluster_ip.as_deref().unwrap_or_default();
        if host.is_empty() || host == "None" {
            continue;
        }
        add_service(&mut vars, service.name(), host, spec.ports.as_deref().unwrap_or_default());
    }
    vars
}

fn add_service(vars: &mut HashMap<String, String>, name: &str, host: &str, ports: &[ServicePort]) {
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    vars.insert(format!("{prefix}_SERVICE_HOST"), host.to_owned());
    let address = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{address}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            vars.insert(format!("{prefix}_SERVICE_PORT"), port.port.to_string());
            vars.insert(format!("{prefix}_PORT"), url.clone());
        }
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            vars.insert(format!("{prefix}_SERVICE_PORT_{}", upper(name)), port.port.to_string());
        }
        let base = format!("{prefix}_PORT_{}_{protocol}", port.port);
        vars.insert(format!("{base}_PROTO"), protocol.to_lowercase());
        vars.insert(format!("{base}_PORT"), port.port.to_string());
        vars.insert(format!("{base}_ADDR"), host.to_owned());
        vars.insert(base, url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then(|| "x".to_owned());
        for (text, want) in [
            ("$(A)", "x"),
            ("a$(A)b$(A)", "axbx"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$A", "$A"),
            ("$$$(A)", "$x"),
            ("ü$(A)ü", "üxü"),
        ] {
            assert_eq!(expand(text, &lookup), want, "{text}");
        }
    }

    #[test]
    fn services() {
        let mut vars = HashMap::new();
        let port = ServicePort { name: Some("my-web".into()), port: 80, ..ServicePort::default() };
        add_service(&mut vars, "foo-bar", "10.0.0.1", &[port]);
        for (name, want) in [
            ("FOO_BAR_SERVICE_HOST", "10.0.0.1"),
            ("FOO_BAR_SERVICE_PORT", "80"),
            ("FOO_BAR_SERVICE_PORT_MY_WEB", "80"),
            ("FOO_BAR_PORT", "tcp://10.0.0.1:80"),
            ("FOO_BAR_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("FOO_BAR_PORT_80_TCP_ADDR", "10.0.0.1"),
        ] {
            assert_eq!(vars.get(name).map(String::as_str), Some(want), "{name}");
        }
    }
}
