//! Keeps a DNS server's state equal to the caches.

use std::{collections::HashSet, io};

use k8s_core::{
    api::api::{core::v1::Service, discovery::v1::EndpointSlice},
    cache::{Cache, Change},
    meta::{ObjectExt, ObjectKey},
};
use tokio::sync::watch;

use super::{
    index::{self, Data},
    settings::DnsSettings,
};

const BY_SERVICE: &str = "dns-service";

/// The records of a service.
pub(super) type Entries = Vec<(String, Data)>;

/// A state in this process or in another one.
pub(super) trait Sink {
    /// Replaces the records of all services. Afterwards names of the cluster are answered.
    fn replace(&self, all: Vec<(ObjectKey, Entries)>) -> impl Future<Output = io::Result<()>> + Send;

    /// Replaces the records of one service; without any it is gone.
    fn set(&self, key: ObjectKey, entries: Entries) -> impl Future<Output = io::Result<()>> + Send;

    /// Replaces the settings.
    fn settings(&self, settings: DnsSettings) -> impl Future<Output = io::Result<()>> + Send;
}

/// Caches and settings that a server answers from.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    pub(super) domain: String,
    pub(super) services: Cache<Service>,
    pub(super) slices: Cache<EndpointSlice>,
    /// `None`: not known yet, the server keeps those it has.
    pub(super) settings: watch::Receiver<Option<DnsSettings>>,
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let label = slice.label("kubernetes.io/service-name")?;
    Some(ObjectKey::new(slice.namespace(), label))
}

impl Sources {
    pub(super) fn new(
        domain: &str,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
        settings: watch::Receiver<Option<DnsSettings>>,
    ) -> Self {
        slices.add_index(BY_SERVICE, |slice: &EndpointSlice| {
            service_of(slice).iter().map(ObjectKey::to_string).collect()
        });
        Sources { domain: domain.to_owned(), services, slices, settings }
    }

    fn entries(&self, key: &ObjectKey) -> Entries {
        let Some(service) = self.services.by_key(key) else { return Entries::new() };
        let slices = self.slices.by_index(BY_SERVICE, &key.to_string());
        index::entries(&service, &slices, &self.domain)
    }

    fn all(&self) -> Vec<(ObjectKey, Entries)> {
        let keys = self.services.list().into_iter().map(|service| service.key());
        keys.map(|key| (key.clone(), self.entries(&key))).collect()
    }

    /// Feeds a sink until it fails or the caches end. The settings come first, then the complete state, then
    /// each change.
    pub(super) async fn follow(mut self, sink: &impl Sink) -> io::Result<()> {
        let (mut services, mut slices) = (self.services.subscribe(), self.slices.subscribe());
        let settings = self.settings.borrow_and_update().clone();
        if let Some(settings) = settings {
            sink.settings(settings).await?;
        }
        let mut is_complete = false;
        let mut settings_end = false;
        loop {
            let mut keys = HashSet::new();
            let mut all = false;
            tokio::select! {
                () = async { self.services.synced().await; self.slices.synced().await }, if !is_complete => {
                    is_complete = true;
                    all = true;
                }
                changed = self.settings.changed(), if !settings_end => {
                    settings_end = changed.is_err();
                    let settings = self.settings.borrow_and_update().clone();
                    if let Some(settings) = settings {
                        sink.settings(settings).await?;
                    }
                }
                change = services.next(), if is_complete => match change {
                    Some(Change::Added(s) | Change::Modified(_, s) | Change::Deleted(s)) => {
                        keys.insert(s.key());
                    }
                    Some(Change::Resync) => all = true,
                    None => return Ok(()),
                },
                change = slices.next(), if is_complete => match change {
                    Some(Change::Added(s) | Change::Deleted(s)) => keys.extend(service_of(&s)),
                    Some(Change::Modified(old, new)) => {
                        keys.extend(service_of(&old));
                        keys.extend(service_of(&new));
                    }
                    Some(Change::Resync) => all = true,
                    None => return Ok(()),
                },
            }
            if all {
                sink.replace(self.all()).await?;
            }
            for key in keys {
                let entries = self.entries(&key);
                sink.set(key, entries).await?;
            }
        }
    }
}
