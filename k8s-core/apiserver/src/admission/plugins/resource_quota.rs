//! ResourceQuota: charges writes to the quotas of their namespace.
//!
//! Flow of a create, or an update that uses more: every quota decides ([`k8s_quota`]); then the charge of
//! each is added to its `status.used` by a compare-and-swap of the stored quota. If one cannot be charged,
//! those that were are given back. The charges are given back, too, if the object is not stored.
//!
//! Guarantees: `used` never exceeds `hard`, however many API servers and writers there are. A server that
//! ends between charge and store leaves a charge, which the controller takes back. A namespace without quotas
//! costs one look-up. A dry run charges nothing.
//!
//! Not here: usage that falls, which the controller counts.

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::PoisonError,
};

use async_trait::async_trait;
use k8s_core::{
    clock::Clock,
    status::{ApiStatus, Reason},
};
use k8s_quota::{Amounts, Quota};
use k8s_store::{Expect, Store, StoreError, Stored};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::{
    admission::{Abandoned, Admission, Admit, Operation, Parts},
    resources::{Resource, meta_of},
    value::{Unversioned, set, str_at},
};

/// The resource of quotas in the store.
const QUOTAS: &str = "resourcequotas";
/// Number of locks that keep the writers of one process from conflicting.
const TURNS: usize = 64;
/// Most tries to charge one quota, against writers in other processes.
const TRIES: usize = 1000;

pub(super) struct ResourceQuota {
    store: Store,
    clock: Clock,
    /// Locks by namespace. They save conflicts only: what is right is decided by the store.
    turns: [Mutex<()>; TURNS],
}

impl ResourceQuota {
    pub(super) fn new(parts: &Parts) -> Self {
        let turns = std::array::from_fn(|_| Mutex::default());
        ResourceQuota { store: parts.store.clone(), clock: parts.clock.clone(), turns }
    }

    fn turn(&self, namespace: &str) -> &Mutex<()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(namespace);
        &self.turns[usize::try_from(hash).unwrap_or(usize::MAX) % TURNS]
    }

    /// Returns the charge of a write to a stored quota.
    fn charge_of(&self, stored: &Stored, admission: &Admission<'_>) -> Result<(Value, Amounts), ApiStatus> {
        let quota = serde_json::from_slice::<Value>(&stored.json).map_err(ApiStatus::internal)?;
        let charge = Quota::of(&quota)
            .charge(&admission.resource.storage, admission.object, admission.old, self.clock.now())
            .map_err(|refusal| admission.forbidden(&refusal.to_string()))?;
        Ok((quota, charge))
    }

    /// Charges a quota by its key. A quota that is gone charges nothing.
    async fn charge(&self, key: &str, admission: &Admission<'_>) -> Result<Amounts, ApiStatus> {
        for _ in 0..TRIES {
            let Some(stored) = self.store.get(QUOTAS, key) else { break };
            let (quota, charge) = self.charge_of(&stored, admission)?;
            if charge.is_empty() || self.write(&stored, quota, |used| used.add(&charge)).await? {
                return Ok(charge);
            }
        }
        match self.store.get(QUOTAS, key) {
            None => Ok(Amounts::default()),
            Some(_) => Err(ApiStatus::conflict(
                "",
                QUOTAS,
                key.rsplit_once('/').map_or(key, |(_, name)| name),
                "the object has been modified; please apply your changes to the latest version and try again",
            )),
        }
    }

    /// Gives charges back.
    async fn refund(&self, charges: Vec<(String, Amounts)>) {
        for (key, charge) in charges {
            for _ in 0..TRIES {
                let Some(stored) = self.store.get(QUOTAS, &key) else { break };
                let Ok(quota) = serde_json::from_slice::<Value>(&stored.json) else { break };
                match self.write(&stored, quota, |used| *used = less(used, &charge)).await {
                    Ok(false) => {}
                    Ok(true) => break,
                    Err(error) => {
                        tracing::debug!(key, %error, "a charge is left to the quota controller");
                        break;
                    }
                }
            }
        }
    }

    /// Changes `status.used` of a quota. Returns false if the quota was changed meanwhile.
    async fn write(
        &self,
        stored: &Stored,
        mut quota: Value,
        change: impl FnOnce(&mut Amounts),
    ) -> Result<bool, ApiStatus> {
        let mut used = Amounts::of(quota.pointer("/status/used"));
        change(&mut used);
        set(&mut quota, "/status/used", used.to_json());
        let (meta, json) = (meta_of(&quota, &[]), Unversioned::encode(&quota));
        let expect = Expect::Revision(stored.revision);
        match self.store.put(QUOTAS, &stored.key, expect, meta, |revision| json.at(revision)).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(ApiStatus::of(
                Reason::ServiceUnavailable,
                format!("charge the quota {}: {error}", stored.name()),
            )
            .retry_after(1)),
        }
    }
}

/// Subtracts a charge. Names that the quota has lost meanwhile stay lost.
fn less(used: &Amounts, charge: &Amounts) -> Amounts {
    let mut less = used.clone();
    less.subtract(charge);
    less.only(|name| used.get(name).is_some())
}

/// Returns true if there is an object of the name that is created.
fn exists(store: &Store, admission: &Admission<'_>) -> bool {
    let (name, namespace) = (admission.name(), admission.request.namespace.as_str());
    let is_named = str_at(admission.object, "/metadata/generateName").is_empty();
    is_named && store.get(&admission.resource.storage, &admission.resource.key(namespace, name)).is_some()
}

#[async_trait]
impl Admit for ResourceQuota {
    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        let grows = matches!(&*resource.storage, "pods" | "services" | "persistentvolumeclaims");
        resource.namespaced
            && match (operation, subresource) {
                (Operation::Create, "") => true,
                (Operation::Update, "") => grows,
                // The storage that a volume has been allocated.
                (Operation::Update, "status") => &*resource.storage == "persistentvolumeclaims",
                _ => false,
            }
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let namespace = admission.request.namespace.as_str();
        let prefix = format!("{namespace}/");
        let snapshot = self.store.snapshot(QUOTAS);
        let mut quotas = snapshot.range(&prefix, "").peekable();
        if namespace.is_empty() || quotas.peek().is_none() {
            return Ok(());
        }
        if admission.old.is_none() && exists(&self.store, admission) {
            let Resource { group, plural, .. } = admission.resource;
            return Err(ApiStatus::already_exists(group, plural, admission.name()));
        }
        let mut keys = Vec::new();
        for stored in quotas {
            if !self.charge_of(stored, admission)?.1.is_empty() {
                keys.push(stored.key.to_string());
            }
        }
        if keys.is_empty() || admission.dry_run {
            return Ok(());
        }
        let _turn = self.turn(namespace).lock().await;
        for key in keys {
            // Those that are charged already are given back by `abandon`.
            let charge = self.charge(&key, admission).await?;
            if !charge.is_empty() {
                let mut charges = admission.call.charges.lock().unwrap_or_else(PoisonError::into_inner);
                charges.push((key, charge));
            }
        }
        Ok(())
    }

    async fn abandon(&self, abandoned: &Abandoned<'_>) {
        let charges = {
            let mut charges = abandoned.call.charges.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *charges)
        };
        if !charges.is_empty() {
            self.refund(charges).await;
        }
    }
}
