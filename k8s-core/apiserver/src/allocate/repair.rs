//! Makes the stored claims and the Services agree again: after a start with a store that has no claims yet,
//! after a server that died between two writes, and when somebody deletes an IPAddress that is in use.

#![expect(clippy::disallowed_methods, reason = "the task ends when the server is dropped")]

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_store::{StoreError, Stored};
use serde_json::Value;

use super::claims::{self, ADDRESSES, Claim, Owner, PORTS, owner_of};
use crate::{
    resources::Resource,
    state::{Observer, State},
    value::{name, str_at},
};

/// Interval of looking at everything, as upstream's repair has it.
const EVERY: Duration = Duration::from_secs(180);
/// Age from which on a claim without its Service is left over. Until then its Service may be on its way.
const GRACE: Duration = Duration::from_secs(60);

/// Returns what a Service has.
pub(super) fn held(service: &Value) -> impl Iterator<Item = Claim> {
    let ports = super::node_ports(service).into_iter().map(Claim::Port);
    super::addresses(service).into_iter().map(Claim::Address).chain(ports)
}

/// Takes for the stored Services what they have and nobody has claimed for them.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub(crate) async fn claim_all(state: &Arc<State>) -> Result<(), StoreError> {
    for stored in state.store.snapshot("services").range("", "") {
        let Ok(service) = serde_json::from_slice::<Value>(&stored.json) else { continue };
        let owner = Owner::of(&service);
        for claim in held(&service) {
            if !claim.take(state, &owner).await?
                && let Some(other) = claim.stored(state).map(|stored| owner_of(&stored))
                && other.as_ref() != Some(&owner)
            {
                let other = other.map(|other| other.key());
                tracing::warn!(service = %stored.key, ?claim, ?other, "a Service has what another one has");
            }
        }
    }
    Ok(())
}

/// Removes the claims whose Service does not have them, once they are old enough.
async fn release_all(state: &Arc<State>) -> Result<(), StoreError> {
    for resource in [ADDRESSES, PORTS] {
        for stored in state.store.snapshot(resource).range("", "") {
            if owner_of(stored).is_some_and(|owner| !has(state, &owner, stored)) && is_old(state, stored) {
                tracing::info!(claim = %stored.key, resource, "no Service has it: released");
                match claims::remove(state, stored, resource).await {
                    Ok(()) | Err(StoreError::Conflict { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }
    Ok(())
}

/// Returns true if a Service has what is claimed for it.
fn has(state: &State, owner: &Owner, claim: &Stored) -> bool {
    let stored = state.store.get("services", &owner.key());
    let service = stored.and_then(|stored| serde_json::from_slice::<Value>(&stored.json).ok());
    service.is_some_and(|service| {
        held(&service).any(|held| match held {
            Claim::Address(address) => address.to_string() == *claim.key,
            Claim::Port(port) => port.to_string() == *claim.key,
        })
    })
}

fn is_old(state: &State, stored: &Stored) -> bool {
    let object: Value = serde_json::from_slice(&stored.json).unwrap_or_default();
    let made = str_at(&object, "/metadata/creationTimestamp").parse::<Timestamp>();
    // One from the future is another server's, whose clock is ahead.
    made.is_ok_and(|made| {
        state.clock.now().duration_since(made) > SignedDuration::try_from(GRACE).unwrap_or_default()
    })
}

/// Looks at everything now and then. The task ends when the server is dropped.
pub(crate) fn start(state: &Arc<State>) {
    let weak = Arc::downgrade(state);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(state) = weak.upgrade() else { return };
            for done in [claim_all(&state).await, release_all(&state).await] {
                if let Err(error) = done {
                    tracing::debug!(%error, "addresses and node ports are looked at again later");
                }
            }
        }
    });
}

/// Gives back what a deleted Service had, and keeps the addresses of the others.
pub(crate) struct Addresses;

#[async_trait]
impl Observer for Addresses {
    fn observes(&self, resource: &Resource) -> bool {
        resource.strategy.allocates || &*resource.storage == ADDRESSES
    }

    async fn after_write(&self, _: &Arc<State>, _: &Resource, _: &Arc<Stored>) {}

    async fn after_delete(&self, state: &Arc<State>, resource: &Resource, object: &Value) {
        if resource.strategy.allocates {
            let owner = Owner::of(object);
            for claim in held(object) {
                claim.give_back(state, &owner).await;
            }
            return;
        }
        // An IPAddress. Its Service keeps the address.
        let parent = object.pointer("/spec/parentRef").unwrap_or(&Value::Null);
        let part = |at| str_at(parent, at).to_owned();
        let owner = Owner { namespace: part("/namespace"), name: part("/name") };
        let stored = state.store.get("services", &owner.key());
        let service = stored.and_then(|stored| serde_json::from_slice::<Value>(&stored.json).ok());
        let claim = name(object).parse().map(Claim::Address);
        if let (Some(service), Ok(claim)) = (service, claim)
            && held(&service).any(|held| held == claim)
        {
            tracing::warn!(address = name(object), service = %owner.key(), "the address is in use: claimed again");
            drop(claim.take(state, &owner).await);
        }
    }
}
