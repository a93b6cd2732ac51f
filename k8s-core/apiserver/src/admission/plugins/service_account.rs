//! ServiceAccount: the account of a pod, its image pull secrets, and the volume with its token.
//!
//! Mirror pods have none of these. An account may limit the secrets of its pods ([`mountable`]).

mod mountable;

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::{Value, json};

use super::pods::handles_pods;
use crate::{
    admission::{Admission, Admit, Operation},
    auth::node::{Kind, references},
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
        match operation {
            Operation::Create => handles_pods(operation, resource, part),
            Operation::Update => part == "ephemeralcontainers" && resource.storage.as_ref() == "pods",
            _ => false,
        }
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        if admission.operation == Operation::Create {
            service_account(&self.store, admission.object)?;
        }
        Ok(())
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let (pod, creates) = (&*admission.object, admission.operation == Operation::Create);
        if creates && is_mirror(pod) {
            return mirror(pod).map_err(|why| admission.forbidden(why));
        }
        let (namespace, name) = (&admission.request.namespace, str_at(pod, "/spec/serviceAccountName"));
        if name.is_empty() {
            let why = format!("no service account specified for pod {namespace}/{}", admission.name());
            return Err(admission.forbidden(&why));
        }
        let Some(stored) = self.store.get("serviceaccounts", &format!("{namespace}/{name}")) else {
            return Err(admission.forbidden(&absent(namespace, name)));
        };
        if !mountable::is_enforced(&stored) {
            return Ok(());
        }
        let account: Value = serde_json::from_slice(&stored.json).map_err(ApiStatus::internal)?;
        let checked = match creates {
            true => mountable::of_pod(&account, pod),
            false => mountable::of_debuggers(&account, pod),
        };
        checked.map_err(|why| admission.forbidden(&why))
    }
}

fn absent(namespace: &str, account: &str) -> String {
    format!("error looking up service account {namespace}/{account}: serviceaccount \"{account}\" not found")
}

/// Returns true for a pod that is marked as a kubelet's copy of one from a file.
fn is_mirror(pod: &Value) -> bool {
    object_at(pod, "/metadata/annotations").is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"))
}

/// Checks that a mirror pod has no account and no secrets.
fn mirror(pod: &Value) -> Result<(), &'static str> {
    if !str_at(pod, "/spec/serviceAccountName").is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    if references(pod).iter().any(|(kind, _)| *kind == Kind::Secret) {
        return Err("a mirror pod may not reference secrets");
    }
    let mut sources =
        array_at(pod, "/spec/volumes").iter().flat_map(|volume| array_at(volume, "/projected/sources"));
    if sources.any(|source| source.get("serviceAccountToken").is_some_and(Value::is_object)) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

fn service_account(store: &Store, pod: &mut Value) -> Result<(), ApiStatus> {
    let namespace = str_at(pod, "/metadata/namespace").to_owned();
    let pod_name = str_at(pod, "/metadata/name").to_owned();
    // The kubelet's own pods have no account.
    if is_mirror(pod) {
        return mirror(pod).map_err(|why| ApiStatus::forbidden("", "pods", &pod_name, why));
    }
    let Some(spec) = child(pod, "spec") else { return Ok(()) };
    let account = match str_at(spec, "/serviceAccountName") {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    let Some(stored) = store.get("serviceaccounts", &format!("{namespace}/{account}")) else {
        return Err(ApiStatus::forbidden("", "pods", &pod_name, &absent(&namespace, &account)));
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
