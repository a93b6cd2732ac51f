//! Secrets that a service account allows its pods: those that it lists, if its annotation says so.

use k8s_store::Stored;
use serde_json::Value;

use crate::value::{array_at, str_at};

/// Annotation of accounts whose pods may use the listed secrets only.
const ENFORCED: &str = "kubernetes.io/enforce-mountable-secrets";

/// Returns true if an account limits the secrets of its pods.
pub(super) fn is_enforced(account: &Stored) -> bool {
    let place = k8s_core::json::find(&account.json, &["metadata", "annotations", ENFORCED]);
    let value = place.and_then(|place| serde_json::from_slice::<String>(&account.json[place]).ok());
    // Texts that Go reads as true.
    value.is_some_and(|text| ["1", "t", "T", "true", "TRUE", "True"].contains(&text.as_str()))
}

/// Checks the secrets of a pod: of volumes, variables and image pulls.
///
/// # Errors
/// The first that its account does not list, with upstream's text.
pub(super) fn of_pod(account: &Value, pod: &Value) -> Result<(), String> {
    for volume in
        array_at(pod, "/spec/volumes").iter().filter(|v| v.get("secret").is_some_and(Value::is_object))
    {
        let name = str_at(volume, "/secret/secretName");
        if !lists(account, "secrets", name) {
            return Err(refusal(account, &format!("volume with secret.secretName=\"{name}\""), "secret"));
        }
    }
    of_containers(account, pod, "initContainers", "init container")?;
    of_containers(account, pod, "containers", "container")?;
    for (i, secret) in array_at(pod, "/spec/imagePullSecrets").iter().enumerate() {
        let name = str_at(secret, "/name");
        if !lists(account, "imagePullSecrets", name) {
            return Err(refusal(
                account,
                &format!("imagePullSecrets[{i}].name=\"{name}\""),
                "imagePullSecret",
            ));
        }
    }
    Ok(())
}

/// Checks the secrets of a pod's ephemeral containers.
///
/// # Errors
/// As [`of_pod`].
pub(super) fn of_debuggers(account: &Value, pod: &Value) -> Result<(), String> {
    of_containers(account, pod, "ephemeralContainers", "ephemeral container")
}

fn of_containers(account: &Value, pod: &Value, field: &str, noun: &str) -> Result<(), String> {
    for container in array_at(pod, &format!("/spec/{field}")) {
        let who = format!("{noun} {}", str_at(container, "/name"));
        let variables = array_at(container, "/env").iter().filter_map(|variable| {
            let secret = variable.pointer("/valueFrom/secretKeyRef").filter(|s| s.is_object())?;
            Some((format!("envVar {}", str_at(variable, "/name")), str_at(secret, "/name")))
        });
        let sets = array_at(container, "/envFrom").iter().filter_map(|from| {
            let secret = from.get("secretRef").filter(|s| s.is_object())?;
            Some(("envFrom".to_owned(), str_at(secret, "/name")))
        });
        for (how, name) in variables.chain(sets) {
            if !lists(account, "secrets", name) {
                let what = format!("{who} with {how} referencing secret.secretName=\"{name}\"");
                return Err(refusal(account, &what, "secret"));
            }
        }
    }
    Ok(())
}

fn lists(account: &Value, field: &str, name: &str) -> bool {
    array_at(account, &format!("/{field}")).iter().any(|one| str_at(one, "/name") == name)
}

fn refusal(account: &Value, what: &str, kind: &str) -> String {
    let name = str_at(account, "/metadata/name");
    format!("{what} is not allowed because service account {name} does not reference that {kind}")
}
