//! Admission: what may change or refuse an object between authorization and storage.

mod escalation;
mod typed;

pub use typed::{Every, IntoAdmit, Request, Verdict};

use std::sync::Arc;

use async_trait::async_trait;
use k8s_core::{api::apimachinery::pkg::apis::meta::v1::StatusCause, status::ApiStatus};
use k8s_store::Stored;
use serde_json::{Value, json};

use crate::{
    resources::Resource,
    server::{ApiServer, Call},
    user::User,
    value::{child, default, list, map, text},
};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed object.
    Update,
}

impl Operation {
    fn of(old: Option<&Value>) -> Self {
        if old.is_some() { Operation::Update } else { Operation::Create }
    }
}

/// A write that is to be admitted. `object` is the stored form.
#[derive(Debug)]
pub struct Admission<'a> {
    /// What is being done.
    pub operation: Operation,
    /// By whom.
    pub user: &'a User,
    /// To which resource.
    pub resource: &'a Resource,
    /// The object; may be changed.
    pub object: &'a mut Value,
    /// The object before, for updates.
    pub old: Option<&'a Value>,
}

/// An admission function that sees every write. Closures are ones that only [`admit`](Admit::admit); one over a [`Request`] sees the writes of one type.
#[async_trait]
pub trait Admit: Send + Sync + 'static {
    /// Changes the object, or refuses it. The object has its defaults; what is made of it is defaulted and checked again.
    ///
    /// # Errors
    /// Why it is refused; the client gets this as it is.
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus>;

    /// Refuses the object as it is going to be stored: all changes are made and all rules of its type hold.
    ///
    /// # Errors
    /// Why it is refused; the client gets this as it is.
    async fn validate(&self, _admission: &Admission<'_>) -> Result<(), ApiStatus> {
        Ok(())
    }
}

#[async_trait]
impl<F> Admit for F
where
    F: Fn(&mut Admission<'_>) -> Result<(), ApiStatus> + Send + Sync + 'static,
{
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        self(admission)
    }
}

/// Runs the built-in admission and then the server's own list.
pub(crate) async fn run(
    server: &ApiServer,
    call: &Call,
    resource: &Resource,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), ApiStatus> {
    if &*resource.storage == "pods" && old.is_none() {
        priority(server, object)?;
        service_account(server, object)?;
        tolerations(object);
    }
    if &*resource.storage == "persistentvolumeclaims" && old.is_none() {
        storage_class(server, object);
    }
    if &*resource.storage == RESOURCE_OF_REQUESTS && old.is_none() {
        requester(call, object);
    }
    let own = &server.inner.admission;
    if !own.is_empty() {
        let operation = Operation::of(old);
        let mut admission = Admission { operation, user: &call.user, resource, object: &mut *object, old };
        for admit in own {
            admit.admit(&mut admission).await?;
        }
        // What they made of it has its defaults as well.
        resource.default(object);
    }
    if resource.group == escalation::GROUP {
        escalation::check(server, call, resource, object, old).await?;
    }
    Ok(())
}

/// How the store calls CertificateSigningRequests.
const RESOURCE_OF_REQUESTS: &str = "certificatesigningrequests.certificates.k8s.io";

/// Who asks for a certificate is who sent the request, whatever it says.
fn requester(call: &Call, object: &mut Value) {
    let user = &call.user;
    let Some(spec) = child(object, "spec") else { return };
    for field in ["username", "uid", "groups", "extra"] {
        crate::value::take(spec, "", field);
    }
    spec["username"] = user.name.clone().into();
    if !user.uid.is_empty() {
        spec["uid"] = user.uid.clone().into();
    }
    if !user.groups.is_empty() {
        spec["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
}

/// Asks the server's own list whether the object may be stored as it is.
pub(crate) async fn validate(
    server: &ApiServer,
    call: &Call,
    resource: &Resource,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), ApiStatus> {
    let operation = Operation::of(old);
    for admit in &server.inner.admission {
        admit.validate(&Admission { operation, user: &call.user, resource, object, old }).await?;
    }
    Ok(())
}

/// Objects are made only in namespaces that are there and stay.
pub(crate) fn namespace(
    server: &ApiServer,
    resource: &Resource,
    namespace: &str,
    name: &str,
) -> Result<(), ApiStatus> {
    if !resource.namespaced {
        return Ok(());
    }
    let Some(stored) = server.inner.store.get("namespaces", namespace) else {
        return Err(ApiStatus::not_found("", "namespaces", namespace));
    };
    if stored.fields.first().is_some_and(|phase| &**phase == "Terminating") {
        let cause = StatusCause {
            reason: Some("NamespaceTerminating".into()),
            message: Some(format!("namespace {namespace} is being terminated")),
            field: Some("metadata.namespace".into()),
        };
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(ApiStatus::forbidden(&resource.group, &resource.plural, name, &why).causes(vec![cause]));
    }
    Ok(())
}

/// Namespaces that every cluster has stay.
pub(crate) fn delete(resource: &Resource, name: &str) -> Result<(), ApiStatus> {
    if &*resource.storage == "namespaces" && ["default", "kube-system", "kube-public"].contains(&name) {
        return Err(ApiStatus::forbidden("", "namespaces", name, "this namespace may not be deleted"));
    }
    Ok(())
}

fn priority(server: &ApiServer, pod: &mut Value) -> Result<(), ApiStatus> {
    let class = text(pod, "/spec/priorityClassName").to_owned();
    let found = |name: &str| -> Option<Value> {
        let stored = server.inner.store.get("priorityclasses.scheduling.k8s.io", name)?;
        serde_json::from_slice(&stored.json).ok()
    };
    let class = if class.is_empty() {
        let snapshot = server.inner.store.snapshot("priorityclasses.scheduling.k8s.io");
        // Asked for every pod: the others are not decoded.
        let is_default = |s: &&Arc<Stored>| {
            k8s_core::json::find(&s.json, &["globalDefault"])
                .is_some_and(|place| s.json[place] == b"true"[..])
        };
        snapshot.range("", "").find(is_default).and_then(|s| serde_json::from_slice(&s.json).ok())
    } else {
        let found = found(&class);
        if found.is_none() {
            let why = format!("no PriorityClass with name {class} was found");
            return Err(ApiStatus::forbidden("", "pods", text(pod, "/metadata/name"), &why));
        }
        found
    };
    let Some(spec) = child(pod, "spec") else { return Ok(()) };
    let (value, policy, name) = match &class {
        Some(class) => (
            class.get("value").cloned().unwrap_or(0.into()),
            text(class, "/preemptionPolicy").to_owned(),
            text(class, "/metadata/name").to_owned(),
        ),
        None => (0.into(), "PreemptLowerPriority".into(), String::new()),
    };
    spec["priority"] = value;
    default(spec, "preemptionPolicy", if policy.is_empty() { "PreemptLowerPriority".into() } else { policy });
    if !name.is_empty() {
        spec["priorityClassName"] = name.into();
    }
    Ok(())
}

/// Where a pod finds its token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn service_account(server: &ApiServer, pod: &mut Value) -> Result<(), ApiStatus> {
    let namespace = text(pod, "/metadata/namespace").to_owned();
    let pod_name = text(pod, "/metadata/name").to_owned();
    // The kubelet's own pods have no account.
    if map(pod, "/metadata/annotations").is_some_and(|a| a.contains_key("kubernetes.io/config.mirror")) {
        return Ok(());
    }
    let Some(spec) = child(pod, "spec") else { return Ok(()) };
    let account = match text(spec, "/serviceAccountName") {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    let Some(stored) = server.inner.store.get("serviceaccounts", &format!("{namespace}/{account}")) else {
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
    if secrets.as_array().is_some_and(|all| !all.is_empty()) && list(spec, "/imagePullSecrets").is_empty() {
        spec["imagePullSecrets"] = secrets;
    }
    let automount = "automountServiceAccountToken";
    let mounts = spec.get(automount).and_then(Value::as_bool).or_else(|| of_account(automount).as_bool());
    let mounts = mounts.unwrap_or(true);
    let all = ["containers", "initContainers"];
    let needs = |c: &Value| !list(c, "/volumeMounts").iter().any(|m| text(m, "/mountPath") == TOKEN_PATH);
    let any = all.iter().any(|f| list(spec, &format!("/{f}")).iter().any(needs));
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

/// How long a pod stays on a node that is not ready or unreachable.
fn tolerations(pod: &mut Value) {
    let Some(spec) = child(pod, "spec") else { return };
    let mut all = list(spec, "/tolerations").to_vec();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = all.iter().any(|t| {
            let (k, e) = (text(t, "/key"), text(t, "/effect"));
            (k == key || (k.is_empty() && text(t, "/operator") == "Exists"))
                && (e.is_empty() || e == "NoExecute")
        });
        if !tolerated {
            all.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
    spec["tolerations"] = all.into();
}

/// Claims without a class get the default one.
fn storage_class(server: &ApiServer, claim: &mut Value) {
    let named = claim.pointer("/spec/storageClassName").is_some()
        || map(claim, "/metadata/annotations")
            .is_some_and(|a| a.contains_key("volume.beta.kubernetes.io/storage-class"));
    if named {
        return;
    }
    let snapshot = server.inner.store.snapshot("storageclasses.storage.k8s.io");
    let default =
        snapshot.range("", "").filter_map(|s| serde_json::from_slice::<Value>(&s.json).ok()).find(|c| {
            map(c, "/metadata/annotations").is_some_and(|a| {
                [
                    "storageclass.kubernetes.io/is-default-class",
                    "storageclass.beta.kubernetes.io/is-default-class",
                ]
                .iter()
                .any(|k| a.get(*k).is_some_and(|v| v == "true"))
            })
        });
    if let (Some(class), Some(spec)) = (default, child(claim, "spec")) {
        spec["storageClassName"] = text(&class, "/metadata/name").into();
    }
}
