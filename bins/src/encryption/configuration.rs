//! EncryptionConfiguration files: which types are sealed, how, and with which keys.

use std::{path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_store::sealed::{Algorithm, Key, Provider, Rule};
use serde_json::Value;

use super::kms;

/// Names of types that no API serves.
const UNSERVED: [&str; 3] = ["apiserveripinfo", "serviceipallocations", "servicenodeportallocations"];

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(of: &'a Value, field: &str) -> &'a [Value] {
    of.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Returns the rules of an EncryptionConfiguration. Key services that it names are asked.
///
/// # Errors
/// The path of a field, and its problem.
pub(super) fn rules(configuration: &Value) -> Result<Vec<Rule>, String> {
    let (version, kind) = (text(configuration, "apiVersion"), text(configuration, "kind"));
    if kind != "EncryptionConfiguration" || !version.starts_with("apiserver.config.k8s.io/") {
        return Err(format!(
            "want an EncryptionConfiguration of apiserver.config.k8s.io/v1, not {kind:?} of {version:?}"
        ));
    }
    let resources = list(configuration, "resources");
    if resources.is_empty() {
        return Err("resources: required".into());
    }
    let mut services = Vec::new();
    let mut rules = Vec::new();
    for (i, one) in resources.iter().enumerate() {
        let at = format!("resources[{i}]");
        let named: Vec<&str> = list(one, "resources").iter().filter_map(Value::as_str).collect();
        check_names(&named).map_err(|reason| format!("{at}.resources{reason}"))?;
        let mut providers = Vec::new();
        for (j, one) in list(one, "providers").iter().enumerate() {
            providers.push(provider(one, &format!("{at}.providers[{j}]"), &mut services)?);
        }
        if providers.is_empty() {
            return Err(format!("{at}.providers: required"));
        }
        rules.push(Rule::new(named, providers));
    }
    Ok(rules)
}

/// Checks the types of one rule, with upstream's reasons.
fn check_names(named: &[&str]) -> Result<(), String> {
    if named.is_empty() {
        return Err(": required".into());
    }
    for (i, name) in named.iter().enumerate() {
        let group = name.split_once('.').map_or("", |(_, group)| group);
        let problem = match *name {
            "*" => {
                "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
            }
            _ if name.chars().any(char::is_uppercase) => "resource name should not contain capital letters",
            _ if UNSERVED.contains(name) => "resources which do not have REST API/s cannot be encrypted",
            _ if group == "events.k8s.io" => "use 'events': these objects are stored as such",
            _ if group == "extensions" => {
                "'extensions' group has been removed and cannot be used for encryption"
            }
            _ if group == "*" && *name != "*.*" => {
                "encrypting the same resource across groups is not supported"
            }
            _ => continue,
        };
        return Err(format!("[{i}]: Invalid value: {name:?}: {problem}"));
    }
    let group = |name: &str| name.split_once('.').map_or(String::new(), |(_, group)| group.to_owned());
    for (i, one) in named.iter().enumerate() {
        for other in &named[i + 1..] {
            if one.trim_end_matches('.') == other.trim_end_matches('.') {
                return Err(format!("[{i}]: the same resource cannot be specified multiple times: {one:?}"));
            }
            let all = |name: &str| name.starts_with("*.");
            let masked =
                [*one, *other].contains(&"*.*") || (group(one) == group(other) && (all(one) || all(other)));
            if masked {
                return Err(format!(
                    "[{i}]: {one:?} and {other:?} overlap, and one of them would be masked: name only one"
                ));
            }
        }
    }
    Ok(())
}

/// Returns one provider; `services` are the names of key services before it.
fn provider(one: &Value, at: &str, services: &mut Vec<String>) -> Result<Provider, String> {
    let fields: Vec<&str> = one.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let [name] = fields[..] else {
        return Err(format!("{at}: want exactly one of aesgcm, secretbox, aescbc, kms, identity"));
    };
    if let Some(algorithm) = Algorithm::named(name) {
        return Ok(Provider::keys(keys(&one[name], algorithm, &format!("{at}.{name}"))?));
    }
    match name {
        "identity" => Ok(Provider::Identity),
        "kms" => service(&one[name], &format!("{at}.kms"), services),
        _ => Err(format!("{at}.{name}: want one of aesgcm, secretbox, aescbc, kms, identity")),
    }
}

fn keys(provider: &Value, algorithm: Algorithm, at: &str) -> Result<Vec<Key>, String> {
    let all = list(provider, "keys");
    if all.is_empty() {
        return Err(format!("{at}.keys: required"));
    }
    let keys = all.iter().enumerate().map(|(i, key)| {
        let at = format!("{at}.keys[{i}]");
        let secret =
            STANDARD.decode(text(key, "secret")).map_err(|_| format!("{at}.secret: is no base64"))?;
        Key::new(algorithm, text(key, "name"), &secret).map_err(|e| format!("{at}: {e}"))
    });
    keys.collect()
}

fn service(of: &Value, at: &str, services: &mut Vec<String>) -> Result<Provider, String> {
    let name = text(of, "name");
    if services.iter().any(|known| known == name) {
        return Err(format!("{at}.name: Invalid value: {name:?}: names must be unique"));
    }
    services.push(name.to_owned());
    if text(of, "apiVersion") != "v2" {
        let found = text(of, "apiVersion");
        return Err(format!("{at}.apiVersion: Invalid value: {found:?}: only v2 is supported; v1 has ended"));
    }
    if of.get("cachesize").is_some() {
        return Err(format!("{at}.cachesize: cachesize is not supported in v2"));
    }
    let endpoint = text(of, "endpoint");
    let socket = endpoint.strip_prefix("unix://").filter(|path| !path.is_empty()).ok_or_else(|| {
        format!("{at}.endpoint: Invalid value: {endpoint:?}: want unix:///PATH, the socket of the service")
    })?;
    // As upstream: a name after unix:///@ is one in the abstract namespace, which begins with a zero byte.
    let socket =
        PathBuf::from(socket.strip_prefix("/@").map_or(socket.to_owned(), |name| format!("\0{name}")));
    let timeout = match text(of, "timeout") {
        "" => Duration::from_secs(3),
        given => crate::duration::parse(given)
            .ok()
            .filter(|timeout| !timeout.is_zero())
            .ok_or_else(|| format!("{at}.timeout: Invalid value: {given:?}: want a duration such as 3s"))?,
    };
    let envelope = kms::envelope(name, socket, timeout).map_err(|reason| format!("{at}: {reason}"))?;
    Ok(Provider::Service(envelope))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problem(resources: Value) -> String {
        let configuration = json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration", "resources": resources,
        });
        rules(&configuration).map(drop).unwrap_err()
    }

    #[test]
    fn problems_name_the_field() {
        let one = |provider: Value| json!([{"resources": ["secrets"], "providers": [provider]}]);
        let kms = |name: &str, endpoint: &str, version: &str| json!({"kms": {"name": name, "endpoint": endpoint, "apiVersion": version}});
        for (resources, want) in [
            (json!([]), "resources: required"),
            (json!([{"resources": ["secrets"]}]), "resources[0].providers: required"),
            (one(json!({"vault": {}})), "resources[0].providers[0].vault: want one of"),
            (one(json!({"aesgcm": {}, "identity": {}})), "resources[0].providers[0]: want exactly one of"),
            (one(json!({"aesgcm": {}})), "resources[0].providers[0].aesgcm.keys: required"),
            (
                one(json!({"aescbc": {"keys": [{"name": "a", "secret": "!"}]}})),
                "resources[0].providers[0].aescbc.keys[0].secret: is no base64",
            ),
            (
                one(json!({"secretbox": {"keys": [{"name": "a", "secret": "AAAA"}]}})),
                "resources[0].providers[0].secretbox.keys[0]: a secret of 3 bytes: secretbox takes [32]",
            ),
            (one(kms("a", "unix:///x", "v1")), "resources[0].providers[0].kms.apiVersion: "),
            (one(kms("a", "https://x", "v2")), "resources[0].providers[0].kms.endpoint: "),
            (one(kms("a:b", "unix:///nowhere", "v2")), "resources[0].providers[0].kms: the name"),
        ] {
            let error = problem(resources);
            assert!(error.starts_with(want), "{error}");
        }
        assert!(rules(&json!({"kind": "Pod"})).is_err());
    }

    #[test]
    fn types_are_named_once_and_as_they_are_stored() {
        for (named, want) in [
            (json!(["*"]), "[0]: Invalid value: \"*\": use '*.'"),
            (json!(["Secrets"]), "capital letters"),
            (json!(["a.events.k8s.io"]), "use 'events'"),
            (json!(["secrets", "secrets"]), "multiple times"),
            (json!(["secrets", "*."]), "overlap"),
            (json!(["secrets", "*.*"]), "overlap"),
            (json!(["deployments.*"]), "across groups"),
        ] {
            let error = problem(json!([{"resources": named, "providers": [{"identity": {}}]}]));
            assert!(error.starts_with("resources[0].resources[0]") && error.contains(want), "{error}");
        }
        assert_eq!(check_names(&["secrets", "configmaps", "*.apps"]), Ok(()));
    }
}
