//! NodeRestriction: what kubelets may write, beyond what the Node authorizer can see.
//!
//! A kubelet writes its own Node (without taints, owners and the labels of others), its Lease, CSINode and
//! ResourceSlices, statuses and evictions of its pods, mirror pods that refer to nothing, tokens for its
//! pods, and certificate requests with its own name.

mod references;

use std::sync::Arc;

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::{Store, Stored};
use serde_json::Value;

use self::references::{has_audience, refers_to};
use crate::{
    admission::{Admission, Admit, Deletion, Operation},
    auth::{
        Authorization,
        node::{LEASES, node_of},
    },
    request::Attributes,
    resources::{Resource, strategy::certificates},
    stages::Decision,
    user::User,
    value::{array_at, bool_at, object_at, str_at, take},
};

/// The annotation of the pods that a kubelet makes for pods of files.
const MIRROR: &str = "kubernetes.io/config.mirror";

const POD_CERTIFICATES: &str = "podcertificaterequests.certificates.k8s.io";

/// Labels that kubelets set on their Node.
const LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
];

pub(super) struct NodeRestriction {
    pub(super) store: Store,
    pub(super) authorization: Arc<Authorization>,
}

/// A refusal: a reason, or a status of its own.
enum Refused {
    Because(String),
    With(ApiStatus),
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Refused::Because(why)
    }
}

type Checked = Result<(), Refused>;

fn when(allowed: bool, why: impl FnOnce() -> String) -> Checked {
    if allowed { Ok(()) } else { Err(Refused::Because(why())) }
}

/// Returns the name of the node whose kubelet a user is.
///
/// # Errors
/// The user is a kubelet without a node's name.
fn node(user: &User) -> Result<Option<&str>, String> {
    match node_of(user) {
        Some("") => Err(format!("could not determine node from user {:?}", user.name)),
        other => Ok(other),
    }
}

#[async_trait]
impl Admit for NodeRestriction {
    fn handles(&self, _: Operation, resource: &Resource, _: &str) -> bool {
        matches!(
            &*resource.storage,
            "pods"
                | "nodes"
                | "persistentvolumeclaims"
                | "serviceaccounts"
                | "leases.coordination.k8s.io"
                | "csinodes.storage.k8s.io"
                | "resourceslices.resource.k8s.io"
                | "certificatesigningrequests.certificates.k8s.io"
                | POD_CERTIFICATES
        )
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let node = node(admission.user).map_err(|why| admission.forbidden(&why))?;
        let Some(node) = node else { return Ok(()) };
        self.write(node, admission).await.map_err(|refused| match refused {
            Refused::Because(why) => admission.forbidden(&why),
            Refused::With(status) => status,
        })
    }

    async fn delete(&self, deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        let resource = deletion.resource;
        let refused =
            |why: String| ApiStatus::forbidden(&resource.group, &resource.plural, deletion.name, &why);
        let Some(node) = node(deletion.user).map_err(refused)? else { return Ok(()) };
        let on_node = || Ok::<_, ApiStatus>(str_at(&deletion.object()?, "/spec/nodeName") == node);
        let why = match &*resource.storage {
            "pods" if !on_node()? => {
                format!("node {node:?} can only delete pods with spec.nodeName set to itself")
            }
            "nodes" if deletion.name != node => {
                format!("node {node:?} is not allowed to modify node {:?}", deletion.name)
            }
            "persistentvolumeclaims" => "may only update PVC status".to_owned(),
            "leases.coordination.k8s.io" if deletion.namespace != LEASES => {
                format!("can only access leases in the {LEASES:?} system namespace")
            }
            "leases.coordination.k8s.io" if deletion.name != node => same_name("node lease"),
            "csinodes.storage.k8s.io" if deletion.name != node => same_name("CSINode"),
            POD_CERTIFICATES => "unexpected operation DELETE".to_owned(),
            "resourceslices.resource.k8s.io" if !on_node()? => {
                "can only delete ResourceSlice with the same NodeName as the requesting node".to_owned()
            }
            _ => return Ok(()),
        };
        Err(refused(why))
    }
}

fn same_name(what: &str) -> String {
    format!("can only access {what} with the same name as the requesting node")
}

impl NodeRestriction {
    async fn write(&self, node: &str, admission: &Admission<'_>) -> Checked {
        let (operation, part) = (admission.operation, admission.request.subresource.as_str());
        let creates = operation == Operation::Create;
        let object = &*admission.object;
        match (&*admission.resource.storage, part) {
            ("pods", "") if creates => self.mirror_pod(node, object),
            ("pods", "") => Err(Refused::Because(format!(
                "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
            ))),
            ("pods", "status") => pod_status(node, object, admission.old.unwrap_or(&Value::Null)),
            ("pods", "eviction") => {
                let pod = self.pod(&admission.request.namespace, admission.name())?;
                let why = || format!("node {node} can only evict pods with spec.nodeName set to itself");
                when(str_at(&pod, "/spec/nodeName") == node, why)
            }
            ("pods", part) => Err(Refused::Because(format!(
                "unexpected pod subresource {part:?}, only 'status' and 'eviction' are allowed"
            ))),
            ("nodes", _) => {
                let name = admission.name();
                when(name == node, || format!("node {node:?} is not allowed to modify node {name:?}"))?;
                own_node(node, object, admission.old)
            }
            ("persistentvolumeclaims", "status") => claim_status(node, object, admission.old),
            ("persistentvolumeclaims", _) => Err("may only update PVC status".to_owned().into()),
            ("serviceaccounts", "token") if creates => self.token(node, admission).await,
            ("leases.coordination.k8s.io", _) => {
                let why = || format!("can only access leases in the {LEASES:?} system namespace");
                when(admission.request.namespace == LEASES, why)?;
                when(admission.name() == node, || same_name("node lease"))
            }
            ("csinodes.storage.k8s.io", _) => when(admission.name() == node, || same_name("CSINode")),
            ("resourceslices.resource.k8s.io", _) if creates => {
                let why = "can only create ResourceSlice with the same NodeName as the requesting node";
                when(str_at(object, "/spec/nodeName") == node, || why.to_owned())
            }
            ("certificatesigningrequests.certificates.k8s.io", "") if creates => own_request(node, object),
            (POD_CERTIFICATES, "") if creates => {
                self.pod_certificate(node, &admission.request.namespace, object)
            }
            (POD_CERTIFICATES, part) => Err(Refused::Because(if creates || part.is_empty() {
                "unexpected operation UPDATE".to_owned()
            } else {
                format!("unexpected subresource {part}")
            })),
            _ => Ok(()),
        }
    }

    fn stored_pod(&self, namespace: &str, name: &str) -> Result<Arc<Stored>, Refused> {
        let stored = self.store.get("pods", &format!("{namespace}/{name}"));
        stored.ok_or_else(|| Refused::With(ApiStatus::not_found("", "pods", name)))
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Value, Refused> {
        let stored = self.stored_pod(namespace, name)?;
        serde_json::from_slice(&stored.json).map_err(|e| Refused::With(ApiStatus::internal(e)))
    }

    fn mirror_pod(&self, node: &str, pod: &Value) -> Checked {
        let mirrors = object_at(pod, "/metadata/annotations").is_some_and(|a| a.contains_key(MIRROR));
        when(mirrors, || {
            format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods")
        })?;
        let on_node = str_at(pod, "/spec/nodeName") == node;
        when(on_node, || format!("node {node:?} can only create pods with spec.nodeName set to itself"))?;
        let can = |what: &str| format!("node {node:?} can only create pods with {what}");
        let owner = match array_at(pod, "/metadata/ownerReferences") {
            [] => return Err(can("an owner reference set to itself").into()),
            [owner] => owner,
            _ => return Err(can("a single owner reference set to itself").into()),
        };
        let own = str_at(owner, "/apiVersion") == "v1"
            && str_at(owner, "/kind") == "Node"
            && str_at(owner, "/name") == node;
        when(own, || can("an owner reference set to itself"))?;
        when(bool_at(owner, "/controller"), || can("a controller owner reference set to itself"))?;
        when(!bool_at(owner, "/blockOwnerDeletion"), || {
            format!("node {node:?} must not set blockOwnerDeletion on an owner reference")
        })?;
        let stored = self.store.get("nodes", node);
        let stored = stored.ok_or_else(|| Refused::With(ApiStatus::not_found("", "nodes", node)))?;
        let uid = str_at(owner, "/uid");
        when(*stored.uid == *uid, || format!("node {node} UID mismatch: expected {uid} got {}", stored.uid))?;
        match refers_to(pod) {
            Ok(None) => Ok(()),
            Ok(Some(what)) => Err(format!("node {node:?} can not create pods that reference {what}").into()),
            Err(why) => Err(format!("error checking mirror pod for API references: {why}").into()),
        }
    }

    async fn token(&self, node: &str, admission: &Admission<'_>) -> Checked {
        let request = &*admission.object;
        let at = |field: &str| str_at(request, &format!("/spec/boundObjectRef/{field}"));
        let bound = at("apiVersion") == "v1" && at("kind") == "Pod" && !at("name").is_empty();
        when(bound, || "node requested token not bound to a pod".to_owned())?;
        let uid = at("uid");
        when(!uid.is_empty(), || "node requested token with a pod binding without a uid".to_owned())?;
        let namespace = admission.request.namespace.as_str();
        let stored = self.stored_pod(namespace, at("name"))?;
        when(*stored.uid == *uid, || {
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            )
        })?;
        let pod = self.pod(namespace, at("name"))?;
        when(str_at(&pod, "/spec/nodeName") == node, || {
            "node requested token bound to a pod scheduled on a different node".to_owned()
        })?;
        let audience = match array_at(request, "/spec/audiences") {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return Err("node may only request 0 or 1 audiences".to_owned().into()),
        };
        if has_audience(&self.store, namespace, &pod, audience) {
            return Ok(());
        }
        let wanted = Attributes {
            verb: "request-serviceaccounts-token-audience",
            resource: audience,
            namespace,
            name: &admission.request.name,
            version: "v1",
            ..Attributes::default()
        };
        let allowed = self.authorization.decide(admission.user, &wanted).await.decision == Decision::Allow;
        when(allowed, || {
            format!(
                "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
                admission.user.name
            )
        })
    }
}

/// The checks of certificate requests for pods.
impl NodeRestriction {
    /// Checks that a request is for a pod of the node, with the UIDs and the account that the pod has.
    ///
    /// # Errors
    /// 500 where a later try may succeed, because this server may lag behind; 403 elsewhere.
    fn pod_certificate(&self, node: &str, namespace: &str, request: &Value) -> Checked {
        let at = |field: &str| str_at(request, &format!("/spec/{field}"));
        let later = |why: String| Err(Refused::With(ApiStatus::internal(why)));
        let named = at("nodeName");
        when(named == node, || {
            format!(
                "PodCertificateRequest.Spec.NodeName={named:?}, which is not the requesting node {node:?}"
            )
        })?;
        let missing = |what: &str, name: &str| {
            format!("while retrieving {what} {name:?} named in the PodCertificateRequest: not found")
        };
        let Some(live_node) = self.store.get("nodes", node) else { return later(missing("node", node)) };
        let pod_name = format!("{namespace}/{}", at("podName"));
        if *live_node.uid != *at("nodeUID") {
            return later(format!(
                "PodCertificateRequest for pod {pod_name:?} names node UID {:?}, inconsistent with the running node ({:?})",
                at("nodeUID"),
                &*live_node.uid
            ));
        }
        let Some(stored) = self.store.get("pods", &pod_name) else { return later(missing("pod", &pod_name)) };
        if *stored.uid != *at("podUID") {
            return later(format!(
                "PodCertificateRequest for pod {pod_name:?} contains pod UID ({:?}) which differs from running pod {:?}",
                at("podUID"),
                &*stored.uid
            ));
        }
        let pod: Value =
            serde_json::from_slice(&stored.json).map_err(|e| Refused::With(ApiStatus::internal(e)))?;
        when(str_at(&pod, "/spec/nodeName") == node, || {
            format!("pod {pod_name:?} is not running on node {node:?} named in the PodCertificateRequest")
        })?;
        let mirrors = object_at(&pod, "/metadata/annotations").is_some_and(|a| a.contains_key(MIRROR));
        when(!mirrors, || format!("pod {pod_name:?} is a mirror pod"))?;
        let (account, own) = (at("serviceAccountName"), str_at(&pod, "/spec/serviceAccountName"));
        when(account == own, || {
            format!(
                "PodCertificateRequest for pod {pod_name:?} contains serviceAccountName ({account:?}) that differs from running pod ({own:?})"
            )
        })?;
        let account_name = format!("{namespace}/{account}");
        let Some(live) = self.store.get("serviceaccounts", &account_name) else {
            return later(missing("service account", &account_name));
        };
        if *live.uid != *at("serviceAccountUID") {
            return later(format!(
                "PodCertificateRequest for pod {pod_name:?} names service account UID {:?}, which differs from the running service account ({:?})",
                at("serviceAccountUID"),
                &*live.uid
            ));
        }
        Ok(())
    }
}

fn pod_status(node: &str, new: &Value, old: &Value) -> Checked {
    when(str_at(old, "/spec/nodeName") == node, || {
        format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")
    })?;
    let same = |pointer: &str| filled(new, pointer) == filled(old, pointer);
    when(same("/metadata/labels"), || format!("node {node:?} cannot update labels through pod status"))?;
    when(same("/status/resourceClaimStatuses"), || {
        format!("node {node:?} cannot update resource claim statues")
    })?;
    when(same("/status/extendedResourceClaimStatus"), || {
        format!("node {node:?} cannot update extended resource claim status")
    })
}

/// Returns a field's value. An empty list or map is as good as none.
fn filled<'a>(object: &'a Value, pointer: &str) -> Option<&'a Value> {
    object.pointer(pointer).filter(|value| match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    })
}

/// Checks the contents of a node's own Node.
fn own_node(node: &str, new: &Value, old: Option<&Value>) -> Checked {
    let config = filled(new, "/spec/configSource");
    let Some(old) = old else {
        when(config.is_none(), || {
            format!("node {node:?} is not allowed to create pods with a non-nil configSource")
        })?;
        let labels = forbidden_labels(new, &Value::Null);
        return when(labels.is_empty(), || {
            format!("node {node:?} is not allowed to set the following labels: {}", labels.join(", "))
        });
    };
    let same = |pointer: &str| filled(new, pointer) == filled(old, pointer);
    when(config.is_none() || same("/spec/configSource"), || {
        format!("node {node:?} is not allowed to update configSource to a new non-nil configSource")
    })?;
    when(same("/spec/taints"), || format!("node {node:?} is not allowed to modify taints"))?;
    when(same("/metadata/ownerReferences"), || {
        format!("node {node:?} is not allowed to modify ownerReferences")
    })?;
    let labels = forbidden_labels(new, old);
    when(labels.is_empty(), || format!("is not allowed to modify labels: {}", labels.join(", ")))
}

/// Returns the labels that differ and that a node may not change, sorted.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let labels = |object| object_at(object, "/metadata/labels").into_iter().flatten();
    let value = |object, key: &str| object_at(object, "/metadata/labels").and_then(|all| all.get(key));
    let mut changed: Vec<String> = labels(new)
        .chain(labels(old))
        .map(|(key, _)| key)
        .filter(|key| value(new, key) != value(old, key) && is_forbidden(key))
        .cloned()
        .collect();
    changed.sort();
    changed.dedup();
    changed
}

fn is_forbidden(label: &str) -> bool {
    let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
    let within = |domain: &str| {
        namespace.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if within("node-restriction.kubernetes.io") {
        return true;
    }
    let of_kubelets =
        LABELS.contains(&label) || within("kubelet.kubernetes.io") || within("node.kubernetes.io");
    (within("kubernetes.io") || within("k8s.io")) && !of_kubelets
}

fn claim_status(node: &str, new: &Value, old: Option<&Value>) -> Checked {
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        for field in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
            take(&mut claim, "/status", field);
        }
        for field in ["resourceVersion", "managedFields"] {
            take(&mut claim, "/metadata", field);
        }
        if filled(&claim, "/status").is_none() {
            take(&mut claim, "", "status");
        }
        claim
    };
    when(old.is_some_and(|old| rest(old) == rest(new)), || {
        format!(
            "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
        )
    })
}

/// Signers whose certificates are for kubelets.
const KUBELET_SIGNERS: [&str; 2] =
    ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];

fn own_request(node: &str, request: &Value) -> Checked {
    if !KUBELET_SIGNERS.contains(&str_at(request, "/spec/signerName")) {
        return Ok(());
    }
    let subject = certificates::subject(str_at(request, "/spec/request"))
        .map_err(|why| format!("unable to parse csr: {why}"))?;
    let name = format!("system:node:{node}");
    when(subject.common_name == name, || format!("can only create a node CSR with CN={name}"))
}
