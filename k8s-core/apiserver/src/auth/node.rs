//! The Node authorizer: kubelets get the objects that the pods of their node refer to, and their own.
//!
//! Flow: a request of `system:node:NAME` in `system:nodes` for a kind that is divided among nodes is compared
//! with the index of [`graph`]; other requests are compared with the rules of the ClusterRole `system:node`
//! as this server has them, not as they are stored. Contents of writes are checked by the admission plugin
//! NodeRestriction.
//!
//! Guarantee: the index has every change that the store has shown when a request is decided.

mod graph;

use k8s_store::Store;

use self::graph::Graph;
pub(crate) use self::graph::{Kind, references};
use super::{default_roles, rbac::Rule};
use crate::{request::Attributes, stages::Decision, user::User};

/// The namespace of the nodes' leases.
pub(crate) const LEASES: &str = "kube-node-lease";

/// Returns the name of the node whose kubelet a user is; `None` for other users. Empty if the user is a
/// kubelet without a node's name.
pub(crate) fn node_of(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:")?;
    user.groups.iter().any(|g| g == "system:nodes").then_some(name)
}

/// Decides about the requests of kubelets.
#[derive(Debug)]
pub(crate) struct NodeAuthorizer {
    graph: Graph,
    rules: Vec<Rule>,
}

/// The answer: allowed, or a reason that may be empty.
type Answer = Result<(), String>;

fn no(why: &str) -> Answer {
    Err(why.to_owned())
}

fn when(allowed: bool, why: &str) -> Answer {
    if allowed { Ok(()) } else { no(why) }
}

impl NodeAuthorizer {
    pub(crate) fn new(store: Store) -> Self {
        NodeAuthorizer { graph: Graph::new(store), rules: default_roles::rules_of("system:node") }
    }

    /// Decides about a request; undecided about users that are no kubelets.
    pub(crate) fn decide(&self, user: &User, wanted: &Attributes<'_>) -> (Decision, String) {
        let Some(node) = node_of(user) else { return (Decision::NoOpinion, String::new()) };
        if node.is_empty() {
            return (Decision::NoOpinion, format!("unknown node for user {:?}", user.name));
        }
        match self.answer(node, wanted) {
            Ok(()) => (Decision::Allow, String::new()),
            Err(why) => (Decision::NoOpinion, why),
        }
    }

    fn answer(&self, node: &str, wanted: &Attributes<'_>) -> Answer {
        if wanted.path.is_empty() {
            match (wanted.group, wanted.resource) {
                ("", "secrets") => return self.read(node, Kind::Secret, wanted),
                ("", "configmaps") => return self.read(node, Kind::ConfigMap, wanted),
                ("", "persistentvolumeclaims") if wanted.subresource == "status" => {
                    let writes = matches!(wanted.verb, "update" | "patch");
                    when(writes, "can only get/update/patch this type")?;
                    return self.related(node, Kind::Claim, wanted);
                }
                ("", "persistentvolumeclaims") => return self.get(node, Kind::Claim, wanted),
                ("", "persistentvolumes") => return self.get(node, Kind::Volume, wanted),
                ("resource.k8s.io", "resourceclaims") => return self.get(node, Kind::ResourceClaim, wanted),
                ("resource.k8s.io", "resourceslices") => return self.slice(node, wanted),
                ("storage.k8s.io", "volumeattachments") => return self.get(node, Kind::Attachment, wanted),
                ("storage.k8s.io", "csinodes") => return own(node, wanted, "CSINode"),
                ("", "serviceaccounts") => return self.service_account(node, wanted),
                ("coordination.k8s.io", "leases") => {
                    when(lease_verb(wanted), "can only get, create, update, patch, or delete a node lease")?;
                    let why = format!("can only access leases in the {LEASES:?} system namespace");
                    when(wanted.namespace == LEASES, &why)?;
                    return own(node, wanted, "node lease");
                }
                ("", "nodes") => return of_node(node, wanted),
                ("", "pods") => return self.pod(node, wanted),
                ("certificates.k8s.io", "podcertificaterequests") => {
                    return self.pod_certificate(node, wanted);
                }
                ("certificates.k8s.io", "clustertrustbundles") => {
                    let reads = wanted.is_read_only() && wanted.subresource.is_empty();
                    return when(reads, "");
                }
                _ => {}
            }
        }
        when(self.rules.iter().any(|rule| rule.allows(wanted)), "")
    }

    /// A read of a namespaced object by its name; a list or watch may select it by `metadata.name`.
    fn read(&self, node: &str, kind: Kind, wanted: &Attributes<'_>) -> Answer {
        when(wanted.is_read_only(), "can only read resources of this type")?;
        when(wanted.subresource.is_empty(), "cannot read subresource")?;
        when(!wanted.namespace.is_empty(), "can only read namespaced object of this type")?;
        self.related(node, kind, wanted)
    }

    fn get(&self, node: &str, kind: Kind, wanted: &Attributes<'_>) -> Answer {
        when(wanted.verb == "get", "can only get individual resources of this type")?;
        when(wanted.subresource.is_empty(), "cannot get subresource")?;
        self.related(node, kind, wanted)
    }

    fn related(&self, node: &str, kind: Kind, wanted: &Attributes<'_>) -> Answer {
        when(!wanted.name.is_empty(), "No Object name found")?;
        let found = self.graph.relates(node, kind, wanted.namespace, wanted.name);
        when(found, &format!("no relationship found between node '{node}' and this object"))
    }

    fn service_account(&self, node: &str, wanted: &Attributes<'_>) -> Answer {
        if wanted.verb == "get" && wanted.subresource.is_empty() {
            return self.read(node, Kind::ServiceAccount, wanted);
        }
        let one = wanted.verb == "create" && !wanted.name.is_empty();
        when(one, "can only create tokens for individual service accounts")?;
        when(wanted.subresource == "token", "can only create token subresource of serviceaccount")?;
        self.related(node, Kind::ServiceAccount, wanted)
    }

    fn pod(&self, node: &str, wanted: &Attributes<'_>) -> Answer {
        match (wanted.subresource, wanted.verb) {
            ("", "get") => self.related(node, Kind::Pod, wanted),
            ("", "list" | "watch") => {
                if wanted.required_field("spec.nodeName") == Some(node) {
                    return Ok(());
                }
                let why = "can only list/watch pods with spec.nodeName field selector";
                when(!wanted.name.is_empty(), why)?;
                self.related(node, Kind::Pod, wanted)
            }
            // NodeRestriction lets only mirror pods through, and statuses and evictions of this node's pods.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => no(""),
        }
    }

    fn slice(&self, node: &str, wanted: &Attributes<'_>) -> Answer {
        when(wanted.subresource.is_empty(), "cannot authorize ResourceSlice subresources")?;
        match wanted.verb {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => self.related(node, Kind::Slice, wanted),
            "list" | "watch" | "deletecollection" => when(
                wanted.required_field("spec.nodeName") == Some(node),
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    /// A certificate request for a pod. NodeRestriction compares its contents with the pod.
    fn pod_certificate(&self, node: &str, wanted: &Attributes<'_>) -> Answer {
        if !wanted.subresource.is_empty() {
            return no("nodes may not access the status subresource of PodCertificateRequests");
        }
        match wanted.verb {
            "create" => Ok(()),
            "get" => self.related(node, Kind::PodCertificate, wanted),
            "list" | "watch" => when(
                wanted.required_field("spec.nodeName") == Some(node),
                "can only list/watch podcertificaterequests with nodeName field selector",
            ),
            verb => no(&format!("nodes may not {verb} podcertificaterequests")),
        }
    }
}

fn lease_verb(wanted: &Attributes<'_>) -> bool {
    matches!(wanted.verb, "get" | "create" | "update" | "patch" | "delete")
}

/// A request for an object that has the node's name. The name of a new object is checked by NodeRestriction.
fn own(node: &str, wanted: &Attributes<'_>, what: &str) -> Answer {
    let a = if what == "CSINode" { "a " } else { "" };
    when(lease_verb(wanted), &format!("can only get, create, update, patch, or delete {a}{what}"))?;
    if what == "CSINode" {
        when(wanted.subresource.is_empty(), "cannot authorize CSINode subresources")?;
    }
    let why = format!("can only access {what} with the same name as the requesting node");
    when(wanted.verb == "create" || wanted.name == node, &why)
}

fn of_node(node: &str, wanted: &Attributes<'_>) -> Answer {
    match (wanted.subresource, wanted.verb) {
        // NodeRestriction compares the name of the object.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") => match wanted.name {
            name if name == node => Ok(()),
            "" => no(&format!("node '{node}' cannot read all nodes, only its own Node object")),
            name => no(&format!("node '{node}' cannot read '{name}', only its own Node object")),
        },
        _ => no(""),
    }
}

#[cfg(test)]
mod tests;
