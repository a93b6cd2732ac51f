//! The parts of a server, which all handlers share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use k8s_core::clock::Clock;
use k8s_store::{Store, Stored};
use serde_json::Value;

use crate::{
    admission::Chain,
    aggregate::{Aggregator, Remote},
    allocate::ServiceAllocator,
    auth::{Authenticator, Authorization, tokens::TokenIssuer},
    limits::Gate,
    proxy::NodeConnector,
    request::RequestInfo,
    resources::{Resource, SharedRegistry},
    stages::{Audit, Authenticate, FlowControl},
    webhook_client::ClientIdentity,
};

/// Intervals of the work that a server does unasked. A cluster in virtual time, where years pass, sets them long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How often an idle watcher is told the revision it is at.
    pub bookmark_every: Duration,
    /// How long a watch without `timeoutSeconds` goes on, seconds: between these, so that clients do not all come back at once.
    pub watch_seconds: std::ops::Range<u64>,
    /// How often old events are looked for.
    pub sweep_every: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            bookmark_every: Duration::from_secs(60),
            watch_seconds: 1800..3600,
            sweep_every: Duration::from_secs(60),
        }
    }
}

/// Acts on stored objects of some kinds right after they were written or deleted.
#[async_trait]
pub(crate) trait Observer: Send + Sync {
    /// Whether it acts on objects of the resource. Such objects are read when they go.
    fn observes(&self, resource: &Resource) -> bool;

    /// Acts on an object that was written.
    async fn after_write(&self, state: &Arc<State>, resource: &Resource, stored: &Arc<Stored>);

    /// Acts on an object that was deleted; `object` is its last state.
    async fn after_delete(&self, state: &Arc<State>, resource: &Resource, object: &Value);
}

/// The parts of a server.
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) registry: SharedRegistry,
    pub(crate) clock: Clock,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorization: Arc<Authorization>,
    pub(crate) issuer: TokenIssuer,
    pub(crate) services: ServiceAllocator,
    pub(crate) admission: Chain,
    pub(crate) observers: &'static [&'static dyn Observer],
    pub(crate) authenticators: Vec<Arc<dyn Authenticate>>,
    pub(crate) flow: Vec<Arc<dyn FlowControl>>,
    pub(crate) audit: Vec<Arc<dyn Audit>>,
    pub(crate) nodes: Option<Arc<dyn NodeConnector>>,
    pub(crate) aggregator: Aggregator,
    /// Told when what is served changes.
    pub(crate) redefined: Arc<tokio::sync::Notify>,
    pub(crate) front_proxy: Option<ClientIdentity>,
    pub(crate) pace: Pace,
    /// Answers warn of what is stored and not acted on.
    pub(crate) warns_unenforced: bool,
    /// The range of pod addresses, where it is configured.
    pub(crate) pod_range: Option<(std::net::Ipv4Addr, u8)>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) open_api: Mutex<HashMap<String, Bytes>>,
    pub(crate) ready: AtomicBool,
}

/// How long a token still holds after what it depends on was deleted and waits to go, seconds (as upstream's leeway for clocks).
const DELETION_LEEWAY: i64 = 60;

impl State {
    /// Whether an object that a token depends on is still this one, and not one that has long been deleted.
    pub(crate) fn is_alive(&self, resource: &str, key: &str, uid: &str) -> bool {
        let Some(stored) = self.store.get(resource, key).filter(|s| *s.uid == *uid) else { return false };
        let place = k8s_core::json::find(&stored.json, &["metadata", "deletionTimestamp"]);
        let Some(place) = place else { return true };
        let since = serde_json::from_slice::<jiff::Timestamp>(&stored.json[place]);
        since.is_ok_and(|since| since.as_second() >= self.clock.now().as_second() - DELETION_LEEWAY)
    }

    /// Who else answers for a path, if somebody does.
    pub(crate) fn elsewhere(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        if let Some(rest) = info.path.strip_prefix("/openapi/v3/apis/") {
            let (group, version) = rest.split_once('/')?;
            return self.aggregator.find(group, version);
        }
        if info.group.is_empty() { None } else { self.aggregator.find(&info.group, &info.version) }
    }

    /// The observer of a resource's objects, if there is one.
    pub(crate) fn observer(&self, resource: &Resource) -> Option<&'static dyn Observer> {
        self.observers.iter().copied().find(|observer| observer.observes(resource))
    }
}
