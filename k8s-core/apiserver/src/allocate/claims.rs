//! Addresses and node ports of Services, each a stored object that names its Service. Only one write
//! can create such an object, whichever server it goes through.

use std::{net::Ipv4Addr, sync::Arc};

use k8s_schema::patch::managed::{self, Manager};
use k8s_store::{Expect, StoreError, Stored};
use serde_json::{Value, json};

use crate::{
    resources::{Resource, meta_of},
    state::State,
    storage::timestamp,
    value::{Unversioned, str_at},
};

/// Name of IPAddresses in the store.
pub(super) const ADDRESSES: &str = "ipaddresses.networking.k8s.io";
/// Node ports in the store. No API shows them.
pub(super) const PORTS: &str = "ranges.servicenodeports";
/// Label of addresses that belong to Services, and its value, which other clients know.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
const API_VERSION: &str = "networking.k8s.io/v1";

/// A Service, by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Owner {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Owner {
    pub(super) fn of(service: &Value) -> Self {
        let part = |at| str_at(service, at).to_owned();
        Owner { namespace: part("/metadata/namespace"), name: part("/metadata/name") }
    }

    /// Returns the key of the Service in the store.
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Something that at most one Service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    Address(Ipv4Addr),
    Port(u16),
}

impl Claim {
    fn resource(self) -> &'static str {
        match self {
            Claim::Address(_) => ADDRESSES,
            Claim::Port(_) => PORTS,
        }
    }

    fn key(self) -> String {
        match self {
            Claim::Address(address) => address.to_string(),
            Claim::Port(port) => port.to_string(),
        }
    }

    /// Returns the stored claim; `None`: nobody has it.
    pub(super) fn stored(self, state: &State) -> Option<Arc<Stored>> {
        state.store.get(self.resource(), &self.key())
    }

    /// Takes it for a Service. Returns false if somebody has it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub(super) async fn take(self, state: &Arc<State>, owner: &Owner) -> Result<bool, StoreError> {
        if self.stored(state).is_some() {
            return Ok(false);
        }
        let registry = state.registry.now();
        // `--runtime-config` may have switched the API off.
        let resource = match self {
            Claim::Address(_) => registry.find("networking.k8s.io", "v1", "ipaddresses"),
            Claim::Port(_) => None,
        };
        let object = match self {
            Claim::Address(address) => address_of(state, address, owner, resource.map(Arc::as_ref)),
            Claim::Port(_) => json!({
                "metadata": {"creationTimestamp": timestamp(state.clock.now())},
                "service": {"namespace": owner.namespace, "name": owner.name},
            }),
        };
        let fields = resource.map_or(&[][..], |resource| &resource.fields);
        let (meta, json) = (meta_of(&object, fields), Unversioned::encode(&object));
        let key = self.key();
        let write =
            state.store.put(self.resource(), &key, Expect::Absent, meta, |revision| json.at(revision));
        match write.await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Gives it back, if the Service has it. A store that does not answer is no error: what is left over is
    /// found later ([`super::repair`]).
    pub(super) async fn give_back(self, state: &Arc<State>, owner: &Owner) {
        let Some(stored) = self.stored(state) else { return };
        if owner_of(&stored).as_ref() == Some(owner) {
            drop(remove(state, &stored, self.resource()).await);
        }
    }
}

/// Deletes a claim in the state in which it was read.
pub(super) async fn remove(state: &Arc<State>, stored: &Stored, resource: &str) -> Result<(), StoreError> {
    let json = stored.json.clone();
    state.store.delete(resource, &stored.key, stored.revision, |_| json).await.map(drop)
}

/// Returns the Service that a stored claim names. `None` for an IPAddress that is not of a Service, or that
/// somebody else made.
pub(super) fn owner_of(stored: &Stored) -> Option<Owner> {
    let object: Value = serde_json::from_slice(&stored.json).ok()?;
    let parent = match object.pointer("/spec/parentRef") {
        Some(parent) => {
            let labels = object.pointer("/metadata/labels")?;
            let ours = labels.get(MANAGED_BY)?.as_str() == Some(ALLOCATOR);
            let is_service = str_at(parent, "/resource") == "services" && str_at(parent, "/group").is_empty();
            (ours && is_service).then_some(parent)?
        }
        None => object.get("service")?,
    };
    Some(Owner {
        namespace: str_at(parent, "/namespace").to_owned(),
        name: str_at(parent, "/name").to_owned(),
    })
}

/// Returns the IPAddress of a Service's address.
fn address_of(state: &State, address: Ipv4Addr, owner: &Owner, resource: Option<&Resource>) -> Value {
    let now = timestamp(state.clock.now());
    let mut object = json!({
        "kind": "IPAddress",
        "apiVersion": API_VERSION,
        "metadata": {
            "name": address.to_string(),
            "uid": k8s_core::random::uuid().to_string(),
            "creationTimestamp": now,
            "labels": {"ipaddress.kubernetes.io/ip-family": "IPv4", MANAGED_BY: ALLOCATOR},
        },
        "spec": {"parentRef": {"resource": "services", "namespace": owner.namespace, "name": owner.name}},
    });
    if let Some(resource) = resource {
        let manager = Manager {
            name: "kube-apiserver".into(),
            api_version: API_VERSION.into(),
            subresource: String::new(),
        };
        managed::record_update(&managed::nothing(), &mut object, &resource.schema, &manager, &now);
    }
    object
}
