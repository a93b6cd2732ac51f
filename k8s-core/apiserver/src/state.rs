//! State of a server that all handlers share: the store, the registry and the configured parts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use k8s_core::client::Client;
use k8s_core::clock::Clock;
use k8s_store::{Store, Stored};
use serde_json::Value;

use crate::{
    admission::Chain,
    aggregate::{Aggregator, Remote},
    audit::Auditor,
    auth::{Authenticator, Authorization, Evidence, TokenUses, tokens::TokenIssuer},
    limits::Gate,
    metrics::Metrics,
    proxy::NodeConnector,
    request::RequestInfo,
    resources::{Resource, SharedRegistry},
    service_ranges::ServiceRanges,
    stages::{Audit, Authenticate, FlowControl},
    tls::ClientKeys,
};

/// Intervals of background work. A cluster in virtual time, where years pass, sets them long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Interval of bookmarks on an idle watch.
    pub bookmark_every: Duration,
    /// Range of durations, in seconds, of watches without `timeoutSeconds`. Drawn at random so that clients
    /// do not reconnect together.
    pub watch_seconds: std::ops::Range<u64>,
    /// Interval of the search for expired events.
    pub sweep_every: Duration,
    /// Interval in which history is forgotten, after as long again: a continue token or an exact read lives
    /// for one to two of them. Zero: history ends by its size only.
    pub compact_every: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            bookmark_every: Duration::from_secs(60),
            watch_seconds: 1800..3600,
            sweep_every: Duration::from_secs(60),
            compact_every: Duration::from_secs(300),
        }
    }
}

/// Authenticators beside the server's own.
#[derive(Default)]
pub(crate) struct Authenticators {
    /// Asked before the server's own.
    pub(crate) first: Vec<Arc<dyn Authenticate>>,
    /// Asked after the server's own.
    pub(crate) then: Vec<Arc<dyn Authenticate>>,
}

/// Acts on stored objects of some kinds right after they were written or deleted.
#[async_trait]
pub(crate) trait Observer: Send + Sync {
    /// Returns true if it acts on objects of the resource. Such objects are decoded when they are deleted.
    fn observes(&self, resource: &Resource) -> bool;

    /// Acts on an object that was written.
    async fn after_write(&self, state: &Arc<State>, resource: &Resource, stored: &Arc<Stored>);

    /// Acts on an object that was deleted; `object` is its last state.
    async fn after_delete(&self, state: &Arc<State>, resource: &Resource, object: &Value);
}

/// State that all handlers of a server share.
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) registry: SharedRegistry,
    pub(crate) clock: Clock,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorization: Arc<Authorization>,
    pub(crate) issuer: TokenIssuer,
    pub(crate) services: ServiceRanges,
    pub(crate) admission: Chain,
    pub(crate) observers: &'static [&'static dyn Observer],
    pub(crate) authenticators: Authenticators,
    pub(crate) flow: Vec<Arc<dyn FlowControl>>,
    pub(crate) audit: Vec<Arc<dyn Audit>>,
    /// Audit by policy, if there is one.
    pub(crate) auditor: Option<Arc<Auditor>>,
    pub(crate) nodes: Option<Arc<dyn NodeConnector>>,
    pub(crate) aggregator: Aggregator,
    /// Returns a client of the server as itself.
    pub(crate) own: fn(&Arc<State>) -> Client,
    /// Notified when definitions change.
    pub(crate) redefined: Arc<tokio::sync::Notify>,
    pub(crate) front_proxy: Option<ClientKeys>,
    pub(crate) pace: Pace,
    /// Warn about fields and kinds that are stored and not acted on.
    pub(crate) warns_unenforced: bool,
    /// An Ingress controller runs.
    pub(crate) serves_ingresses: bool,
    /// The range of pod addresses, where it is configured.
    pub(crate) pod_range: Option<ipnet::Ipv4Net>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) metrics: Metrics,
    /// Secrets whose tokens were used today.
    pub(crate) token_uses: TokenUses,
    pub(crate) open_api: Mutex<HashMap<String, Bytes>>,
    pub(crate) ready: AtomicBool,
    /// The process is about to end: `/readyz` fails.
    pub(crate) stopping: AtomicBool,
    /// Serve `/debug/pprof`.
    pub(crate) profiling: bool,
}

impl State {
    /// Returns what authenticators look at beside the credentials of a request.
    pub(crate) fn evidence(&self) -> Evidence<'_> {
        Evidence { store: &self.store, clock: &self.clock, issuer: &self.issuer, uses: &self.token_uses }
    }

    /// Returns the aggregated server that serves a path, if any.
    pub(crate) fn elsewhere(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        if let Some(rest) = info.path.strip_prefix("/openapi/v3/apis/") {
            let (group, version) = rest.split_once('/')?;
            return self.aggregator.find(group, version);
        }
        if info.group.is_empty() { None } else { self.aggregator.find(&info.group, &info.version) }
    }

    /// Returns the observer of a resource's objects, if any.
    pub(crate) fn observer(&self, resource: &Resource) -> Option<&'static dyn Observer> {
        self.observers.iter().copied().find(|observer| observer.observes(resource))
    }
}
