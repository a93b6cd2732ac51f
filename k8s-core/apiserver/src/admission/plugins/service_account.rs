//! ServiceAccount: the account of a pod, its image pull secrets, and the volume with its token.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::{Value, json};

use super::pods::handles_pods;
use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, child, object_at, str_at},
};

/// The directory of a pod's token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

pub(super) struct ServiceAccount {
    pub(super) store: Store,
}

#[async_trait]
impl Admit for ServiceAccount {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Create && handles_pods(operation, resource, part)
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        service_account(&self.store, admission.object)
    }
}

fn service_account(store: &Store, pod: &mut Value) -> Result<(), ApiStatus> {
    let namespace = str_at(pod, "/metadata/namespace").to_owned();
    let pod_name = str_at(pod, "/metadata/name").to_owned();
    // The kubelet's own pods have no account.
    if object_at(pod, "/metadata/annotations").is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"))
    {
        return Ok(());
    }
    let Some(spec) = child(pod, "spec") else { return Ok(()) };
    let account = match str_at(spec, "/serviceAccountName") {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    let Some(stored) = store.get("serviceaccounts", &format!("{namespace}/{account}")) else {
        let why = format!(
            "error looking up service account {namespace}/{account}: serviceaccount \"{account}\" not found"
        );
        return Err(ApiStatus::forbidden("", "pods", &pod_name, &why));
    };
    // Asked for every pod: no more than these two fields is decoded.
    let of_account = |field: &str| -> Value {
        let place = k8s_core::json::find(&stored.json, &[field]);
        place.and_then(|place| serde_json::from_slice(&stored.json[place]).ok()).unwrap_or_default()
    };
    spec["serviceAccountName"] = account.clone().into();
    spec["serviceAccount"] = account.into();
    let secrets = of_account("imagePullSecrets");
    if secrets.as_array().is_some_and(|all| !all.is_empty()) && array_at(spec, "/imagePullSecrets").is_empty()
    {
        spec["imagePullSecrets"] = secrets;
    }
    let automount = "automountServiceAccountToken";
    let mounts = spec.get(automount).and_then(Value::as_bool).or_else(|| of_account(automount).as_bool());
    let mounts = mounts.unwrap_or(true);
    let all = ["containers", "initContainers"];
    let needs =
        |c: &Value| !array_at(c, "/volumeMounts").iter().any(|m| str_at(m, "/mountPath") == TOKEN_PATH);
    let any = all.iter().any(|f| array_at(spec, &format!("/{f}")).iter().any(needs));
    if !mounts || !any {
        return Ok(());
    }
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let suffix: String =
        (0..5).map(|_| char::from(LETTERS[k8s_core::random::range(0..LETTERS.len())])).collect();
    let name = format!("kube-api-access-{suffix}");
    for field in all {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            if needs(container)
                && let Some(map) = container.as_object_mut()
                && let Some(mounts) = map.entry("volumeMounts").or_insert_with(|| json!([])).as_array_mut()
            {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
            }
        }
    }
    let volume = json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    if let Some(spec) = spec.as_object_mut()
        && let Some(volumes) = spec.entry("volumes").or_insert_with(|| json!([])).as_array_mut()
    {
        volumes.push(volume);
    }
    Ok(())
}
