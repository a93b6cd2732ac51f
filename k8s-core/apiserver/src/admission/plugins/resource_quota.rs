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
//! A ResourceQuotaConfiguration names resources that may be used only where a quota limits them
//! ([`limited`]).
//!
//! Not here: usage that falls, which the controller counts.

mod limited;

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::PoisonError,
    time::Duration,
};

use async_trait::async_trait;
use k8s_core::{
    clock::Clock,
    status::{ApiStatus, Reason},
};
use k8s_quota::{Amounts, Quota};
use k8s_schema::patch::managed::{self, Manager};
use k8s_store::{Expect, Store, StoreError, Stored};
use serde_json::Value;
use tokio::sync::Mutex;

use self::limited::Limited;
use crate::{
    admission::{Abandoned, Admission, Admit, Operation, Parts},
    call::{Call, Charge},
    resources::{Resource, meta_of},
    value::{Unversioned, set, str_at, timestamp},
};

/// The resource of quotas in the store.
const QUOTAS: &str = "resourcequotas";
/// Number of locks that keep the writers of one process from conflicting.
const TURNS: usize = 64;
/// Time in which a charge can be given back: less than the second after which the controller takes back
/// charges without an object.
const REFUNDED: Duration = Duration::from_millis(500);
/// Most tries to charge one quota, against writers in other processes.
const TRIES: usize = 1000;

pub(super) struct ResourceQuota {
    store: Store,
    clock: Clock,
    limited: Vec<Limited>,
    /// Locks by namespace. They save conflicts only: what is right is decided by the store.
    turns: [Mutex<()>; TURNS],
}

impl ResourceQuota {
    /// # Errors
    /// The field of the configuration, and its problem.
    pub(super) fn new(parts: &Parts, configuration: &Value) -> Result<Self, String> {
        Ok(ResourceQuota {
            store: parts.store.clone(),
            clock: parts.clock.clone(),
            limited: limited::read(configuration)?,
            turns: std::array::from_fn(|_| Mutex::default()),
        })
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

    /// Charges a quota by its key. A quota that is gone charges nothing. `decided` is the decision about the
    /// quota as it was.
    async fn charge(
        &self,
        key: &str,
        decided: (u64, Value, Amounts),
        admission: &Admission<'_>,
    ) -> Result<Amounts, ApiStatus> {
        let mut decided = Some(decided);
        for _ in 0..TRIES {
            let Some(stored) = self.store.get(QUOTAS, key) else { break };
            let (quota, charge) = match decided.take() {
                Some((revision, quota, charge)) if revision == stored.revision => (quota, charge),
                _ => self.charge_of(&stored, admission)?,
            };
            if charge.is_empty()
                || self.write(admission.call, &stored, quota, |used| used.add(&charge)).await?
            {
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

    /// Gives charges back. Old ones are left to the controller, which may have taken them back already.
    async fn refund(&self, call: &Call, charges: Vec<Charge>) {
        let is_young = |charge: &Charge| self.clock.since(charge.at) < REFUNDED;
        for Charge { quota: key, amounts, .. } in charges.into_iter().filter(is_young) {
            for _ in 0..TRIES {
                let Some(stored) = self.store.get(QUOTAS, &key) else { break };
                let Ok(quota) = serde_json::from_slice::<Value>(&stored.json) else { break };
                match self.write(call, &stored, quota, |used| *used = less(used, &amounts)).await {
                    Ok(false) => {}
                    Ok(true) => break,
                    Err(error) => {
                        tracing::debug!(%key, %error, "a charge is left to the quota controller");
                        break;
                    }
                }
            }
        }
    }

    /// Changes `status.used` of a quota, as the manager of upstream's charges. Returns false if the quota was
    /// changed meanwhile.
    async fn write(
        &self,
        call: &Call,
        stored: &Stored,
        mut quota: Value,
        change: impl FnOnce(&mut Amounts),
    ) -> Result<bool, ApiStatus> {
        let mut used = Amounts::of(quota.pointer("/status/used"));
        change(&mut used);
        let old = quota.clone();
        set(&mut quota, "/status/used", used.to_json());
        if let Some(resource) = call.registry.find("", "v1", QUOTAS) {
            let manager = Manager {
                name: "kube-apiserver".to_owned(),
                api_version: "v1".to_owned(),
                subresource: "status".to_owned(),
            };
            let now = timestamp(self.clock.now());
            managed::record_update(&old, &mut quota, &resource.schema, &manager, &now);
        }
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
        // Reviews are not stored.
        resource.namespaced
            && resource.group != "authorization.k8s.io"
            && match (operation, subresource) {
                (Operation::Create, "") => true,
                (Operation::Update, "") => grows,
                (Operation::Update, "resize") => &*resource.storage == "pods",
                // The storage that a volume has been allocated.
                (Operation::Update, "status") => &*resource.storage == "persistentvolumeclaims",
                _ => false,
            }
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let namespace = admission.request.namespace.as_str();
        let snapshot = self.store.snapshot(QUOTAS);
        let has_limited = !self.limited.is_empty();
        if namespace.is_empty() || (snapshot.is_empty() && !has_limited) {
            return Ok(());
        }
        let prefix = format!("{namespace}/");
        let mut quotas = snapshot.range(&prefix, "").peekable();
        if quotas.peek().is_none() && !has_limited {
            return Ok(());
        }
        let (mut charged, mut all) = (Vec::new(), Vec::new());
        for stored in quotas {
            let (quota, charge) = self.charge_of(stored, admission)?;
            if has_limited {
                all.push(Quota::of(&quota));
            }
            if !charge.is_empty() {
                charged.push((stored.key.clone(), (stored.revision, quota, charge)));
            }
        }
        limited::check(&self.limited, &all, admission, self.clock.now())?;
        // As upstream, a full quota is told first.
        if admission.old.is_none() && exists(&self.store, admission) {
            let Resource { group, plural, .. } = admission.resource;
            return Err(ApiStatus::already_exists(group, plural, admission.name()));
        }
        if charged.is_empty() || admission.dry_run {
            return Ok(());
        }
        let _turn = self.turn(namespace).lock().await;
        for (key, decided) in charged {
            // Those that are charged already are given back by `abandon`.
            let at = self.clock.now();
            let amounts = self.charge(&key, decided, admission).await?;
            if !amounts.is_empty() {
                let mut charges = admission.call.charges.lock().unwrap_or_else(PoisonError::into_inner);
                charges.push(Charge { quota: key, amounts, at });
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
            self.refund(abandoned.call, charges).await;
        }
    }
}
