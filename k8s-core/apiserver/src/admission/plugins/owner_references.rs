//! OwnerReferencesPermissionEnforcement: who changes an object's owners must be allowed to delete the object,
//! and who blocks an owner's deletion must be allowed to set the owner's finalizers.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use serde_json::Value;

use crate::{
    admission::{Admission, Admit, Operation},
    auth::Authorization,
    request::Attributes,
    resources::Resource,
    value::{array_at, bool_at, str_at},
};

pub(super) struct OwnerReferencesPermissionEnforcement {
    pub(super) authorization: Arc<Authorization>,
}

const OWNERS: &str = "/metadata/ownerReferences";

#[async_trait]
impl Admit for OwnerReferencesPermissionEnforcement {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        // These two keep the owners as they are.
        let kept = resource.storage.as_ref() == "pods" && matches!(part, "status" | "binding");
        matches!(operation, Operation::Create | Operation::Update) && !kept
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let new = array_at(admission.object, OWNERS);
        let old = admission.old.map(|old| array_at(old, OWNERS)).unwrap_or_default();
        if new == old {
            return Ok(());
        }
        let (resource, request, user) = (admission.resource, admission.request, admission.user);
        let namespace = request.namespace.as_str();
        if admission.operation == Operation::Update {
            let wanted = Attributes {
                verb: "delete",
                group: &resource.group,
                resource: &resource.plural,
                subresource: &request.subresource,
                namespace,
                name: admission.name(),
                ..Attributes::default()
            };
            if let Err(e) = self.authorization.authorize(user, &wanted).await {
                let why = format!("cannot set an ownerRef on a resource you can't delete: {}", e.message());
                return Err(admission.forbidden(&why));
            }
        }
        let blocks = |owner: &&Value| bool_at(owner, "/blockOwnerDeletion");
        let blocked_before =
            |owner: &Value| old.iter().filter(blocks).any(|other| other["uid"] == owner["uid"]);
        let added: Vec<&Value> = new.iter().filter(blocks).filter(|owner| !blocked_before(owner)).collect();
        if added.is_empty() {
            return Ok(());
        }
        let finalizers = |group: &'static str, plural: &'static str| Attributes {
            verb: "update",
            group,
            resource: plural,
            subresource: "finalizers",
            name: "*",
            ..Attributes::default()
        };
        if self.authorization.authorize(user, &finalizers("*", "*")).await.is_ok() {
            return Ok(());
        }
        for owner in added {
            let (version, kind) = (str_at(owner, "/apiVersion"), str_at(owner, "/kind"));
            let (group, of_group) = version.split_once('/').unwrap_or(("", version));
            let Some(owning) = admission.call.registry.by_kind(group, of_group, kind) else {
                return Err(admission.forbidden(&format!(
                    "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {version} Kind {kind}: no matches for kind \"{kind}\" in version \"{version}\""
                )));
            };
            let wanted = Attributes {
                verb: "update",
                group: &owning.group,
                resource: &owning.plural,
                subresource: "finalizers",
                namespace: if owning.namespaced { namespace } else { "" },
                name: str_at(owner, "/name"),
                ..Attributes::default()
            };
            if let Err(e) = self.authorization.authorize(user, &wanted).await {
                let why = "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on";
                return Err(admission.forbidden(&format!("{why}: {}", e.message())));
            }
        }
        Ok(())
    }
}
