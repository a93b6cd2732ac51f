//! DeviceAccess: who may ask for devices that others use, and who may say which devices a claim has.
//!
//! Every write of a ResourceClaim or ResourceClaimTemplate passes this check, as upstream's storage of these
//! kinds has it:
//!
//! - admin access needs a label of the namespace, [`ADMIN_ACCESS`];
//! - `status.allocation` and `status.reservedFor` need the verb of the request on `resourceclaims/binding`;
//! - `status.devices` needs, for the driver of each changed device, `arbitrary-node:VERB` on
//!   `resourceclaims/driver`, or `associated-node:VERB` from a service account on the claim's node.

use std::{collections::BTreeMap, sync::Arc};

use k8s_core::status::ApiStatus;
use serde_json::Value;

use crate::{
    admission::{Admission, Operation},
    auth::Authorization,
    invalid::FieldErrors,
    request::Attributes,
    user::User,
    value::{array_at, str_at},
};

const GROUP: &str = "resource.k8s.io";
/// Label of namespaces whose claims may have admin access.
const ADMIN_ACCESS: &str = "resource.kubernetes.io/admin-access";
/// Extra attribute of service-account tokens of pods.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// The check of claims and their templates.
pub(super) struct DeviceAccess {
    pub(super) authorization: Arc<Authorization>,
}

impl DeviceAccess {
    /// # Errors
    /// 422 with the fields that the user may not set.
    pub(super) async fn check(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let resource = admission.resource;
        if resource.group != GROUP {
            return Ok(());
        }
        let mut errors = FieldErrors::default();
        let part = admission.request.subresource.as_str();
        match (resource.plural.as_str(), admission.operation, part) {
            ("resourceclaims", Operation::Create, "") => self.requests("/spec", admission, &mut errors),
            ("resourceclaimtemplates", Operation::Create, "") => {
                self.requests("/spec/spec", admission, &mut errors);
            }
            ("resourceclaims", Operation::Update, "status") => self.status(admission, &mut errors).await,
            _ => {}
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(errors.into_status(&resource.group, &resource.kind, admission.name()))
    }

    /// Checks the requests of a claim's spec.
    fn requests(&self, spec: &str, admission: &Admission<'_>, errors: &mut FieldErrors) {
        let all = array_at(admission.object, &format!("{spec}/devices/requests"));
        let asks = |request: &Value| request.pointer("/exactly/adminAccess") == Some(&Value::Bool(true));
        if let Some(place) = all.iter().position(asks) {
            self.admin(admission, &format!("spec.devices.requests[{place}].adminAccess"), errors);
        }
    }

    /// Refuses admin access in a namespace without the label.
    fn admin(&self, admission: &Admission<'_>, field: &str, errors: &mut FieldErrors) {
        let namespace = self.authorization.store.get("namespaces", &admission.request.namespace);
        let namespace = namespace.and_then(|stored| serde_json::from_slice::<Value>(&stored.json).ok());
        let labels = namespace.as_ref().and_then(|namespace| namespace.pointer("/metadata/labels"));
        if labels.and_then(|labels| labels.get(ADMIN_ACCESS)?.as_str()) != Some("true") {
            errors.forbidden(
                field,
                &format!(
                    "admin access to devices requires the `{ADMIN_ACCESS}: true` label on the containing namespace"
                ),
            );
        }
    }

    async fn status(&self, admission: &Admission<'_>, errors: &mut FieldErrors) {
        let (new, old) = (&*admission.object, admission.old.unwrap_or(&Value::Null));
        let results = "/status/allocation/devices/results";
        let granted = |claim: &Value| {
            let all = array_at(claim, results);
            all.iter().position(|result| result.get("adminAccess") == Some(&Value::Bool(true)))
        };
        if let (Some(place), None) = (granted(new), granted(old)) {
            self.admin(admission, &format!("status.allocation.devices.results[{place}].adminAccess"), errors);
        }
        let (user, verb) = (admission.user, admission.call.info.verb.as_str());
        if ["/status/allocation", "/status/reservedFor"].iter().any(|at| part(new, at) != part(old, at)) {
            let wanted = Attributes { subresource: "binding", verb, ..of_claims() };
            if let Err(why) = self.authorization.authorize(user, &wanted).await {
                let why = format!(
                    "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"{verb}\" permission: {}",
                    why.message()
                );
                errors.forbidden("status.allocation", &why);
            }
        }
        if part(new, "/status/allocation").is_some() {
            self.drivers(admission, verb, errors).await;
        }
    }

    /// Checks the drivers whose devices change.
    async fn drivers(&self, admission: &Admission<'_>, verb: &str, errors: &mut FieldErrors) {
        let user = admission.user;
        let mut verbs = vec![format!("arbitrary-node:{verb}")];
        if node_of(admission.object).is_some_and(|node| is_on(user, node)) {
            verbs.insert(0, format!("associated-node:{verb}"));
        }
        let namespace = admission.request.namespace.as_str();
        for driver in changed_drivers(admission.object, admission.old.unwrap_or(&Value::Null)) {
            let mut refused = None;
            for verb in &verbs {
                let wanted =
                    Attributes { subresource: "driver", verb, namespace, name: driver, ..of_claims() };
                match self.authorization.authorize(user, &wanted).await {
                    Ok(()) => {
                        refused = None;
                        break;
                    }
                    Err(why) => drop(refused.get_or_insert(why)),
                }
            }
            if let Some(why) = refused {
                let why = format!(
                    "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{}]\" permission: {}",
                    verbs.join(" "),
                    why.message()
                );
                errors.forbidden("status.devices", &why);
            }
        }
    }
}

fn of_claims() -> Attributes<'static> {
    Attributes { group: GROUP, version: "v1", resource: "resourceclaims", ..Attributes::default() }
}

/// Returns a part of a claim. An empty one is as good as none.
fn part<'a>(claim: &'a Value, at: &str) -> Option<&'a Value> {
    claim.pointer(at).filter(|part| !part.is_null() && part.as_array().is_none_or(|list| !list.is_empty()))
}

/// Returns the drivers of the devices whose status differs, in order of their names.
fn changed_drivers<'a>(new: &'a Value, old: &'a Value) -> Vec<&'a str> {
    let devices = |claim: &'a Value| {
        let all = array_at(claim, "/status/devices").iter();
        let key = |d: &'a Value| ["/driver", "/pool", "/device", "/shareID"].map(|at| str_at(d, at));
        all.map(|device| (key(device), device)).collect::<BTreeMap<_, _>>()
    };
    let (new, old) = (devices(new), devices(old));
    let differs = new.iter().filter(|(key, device)| old.get(*key) != Some(device)).map(|(key, _)| key[0]);
    let mut drivers: Vec<&str> =
        differs.chain(old.keys().filter(|key| !new.contains_key(*key)).map(|key| key[0])).collect();
    drivers.sort_unstable();
    drivers.dedup();
    drivers
}

/// Returns the node of a claim that is allocated for one node only.
fn node_of(claim: &Value) -> Option<&str> {
    let [term] = array_at(claim, "/status/allocation/nodeSelector/nodeSelectorTerms") else { return None };
    let [field] = array_at(term, "/matchFields") else { return None };
    let [Value::String(name)] = array_at(field, "/values") else { return None };
    let is_name = str_at(field, "/key") == "metadata.name" && str_at(field, "/operator") == "In";
    (is_name && array_at(term, "/matchExpressions").is_empty()).then_some(name)
}

/// Returns true for a service account whose token was made for a pod of a node.
fn is_on(user: &User, node: &str) -> bool {
    user.name.starts_with("system:serviceaccount:")
        && user.extra.get(NODE_NAME).is_some_and(|names| names.len() == 1 && names[0] == node)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_changed_device_is_its_drivers() {
        let claim = |devices: Value| json!({"status": {"devices": devices}});
        let device = |driver: &str, device: &str, ready: bool| json!({"driver": driver, "pool": "p", "device": device, "data": {"ready": ready}});
        let old =
            claim(json!([device("a.io", "1", true), device("b.io", "1", true), device("c.io", "1", true)]));
        let new =
            claim(json!([device("d.io", "1", true), device("a.io", "1", true), device("b.io", "1", false)]));
        assert_eq!(changed_drivers(&new, &old), ["b.io", "c.io", "d.io"]);
        assert_eq!(changed_drivers(&old, &old), [""; 0]);
        assert_eq!(changed_drivers(&old, &Value::Null), ["a.io", "b.io", "c.io"]);
    }

    #[test]
    fn only_a_claim_for_one_node_by_name_has_a_node() {
        let claim =
            |term: Value| json!({"status": {"allocation": {"nodeSelector": {"nodeSelectorTerms": [term]}}}});
        let name = |key: &str, values: Value| json!([{"key": key, "operator": "In", "values": values}]);
        let one = claim(json!({"matchFields": name("metadata.name", json!(["n"]))}));
        assert_eq!(node_of(&one), Some("n"));
        for other in [
            json!({"matchFields": name("metadata.name", json!(["n", "m"]))}),
            json!({"matchExpressions": name("metadata.name", json!(["n"]))}),
            json!({"matchFields": name("metadata.name", json!(["n"])), "matchExpressions": name("a", json!(["b"]))}),
        ] {
            assert_eq!(node_of(&claim(other)), None);
        }
        let user = |name: &str, node: &str| User {
            name: name.into(),
            extra: [(NODE_NAME.to_owned(), vec![node.to_owned()])].into(),
            ..User::default()
        };
        assert!(is_on(&user("system:serviceaccount:a:b", "n"), "n"));
        assert!(!is_on(&user("system:serviceaccount:a:b", "m"), "n"));
        assert!(!is_on(&user("alice", "n"), "n"));
    }
}
