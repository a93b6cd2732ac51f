//! The parts of a server, which all handlers share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use bytes::Bytes;
use k8s_core::{clock::Clock, status::ApiStatus};
use k8s_store::Store;
use serde_json::Value;

use crate::{
    admission::Admit,
    aggregate::{Aggregator, Remote},
    allocate::ServiceAllocator,
    auth::{
        Authenticator, AuthorizationMode,
        rbac::{Attributes, Rbac},
        tokens::TokenIssuer,
    },
    blocking::run_blocking_if,
    call::Call,
    crd::reshape,
    limits::Gate,
    proxy::NodeConnector,
    request::RequestInfo,
    resources::{Resource, SharedRegistry},
    server::Pace,
    stages::{Audit, Authenticate, Authorize, Decision, FlowControl},
    user::User,
    value::text,
    webhook_client::ClientIdentity,
};

/// The parts of a server.
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) registry: SharedRegistry,
    pub(crate) clock: Clock,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorization: AuthorizationMode,
    pub(crate) rbac: Rbac,
    pub(crate) issuer: TokenIssuer,
    pub(crate) services: ServiceAllocator,
    pub(crate) admission: Vec<Arc<dyn Admit>>,
    pub(crate) authenticators: Vec<Arc<dyn Authenticate>>,
    pub(crate) authorizers: Vec<Arc<dyn Authorize>>,
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

    /// Checks that `user` may do it.
    pub(crate) async fn authorize(&self, user: &User, a: &Attributes<'_>) -> Result<(), ApiStatus> {
        let mut reason = String::new();
        for authorizer in &self.authorizers {
            match authorizer.authorize(user, a).await {
                Decision::Allow => return Ok(()),
                Decision::Deny(why) => {
                    reason = why;
                    break;
                }
                Decision::NoOpinion => {}
            }
        }
        let allowed =
            || self.authorization == AuthorizationMode::AlwaysAllow || self.rbac.allows(&self.store, user, a);
        if reason.is_empty() && allowed() {
            return Ok(());
        }
        let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
        let why = if a.path.is_empty() {
            let resource = if a.subresource.is_empty() {
                a.resource.to_owned()
            } else {
                format!("{}/{}", a.resource, a.subresource)
            };
            let scope = if a.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace \"{}\"", a.namespace)
            };
            format!(
                "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}{reason}",
                user.name, a.verb, a.group
            )
        } else {
            let why =
                format!("forbidden: User \"{}\" cannot {} path \"{}\"{reason}", user.name, a.verb, a.path);
            return Err(ApiStatus::new(403, "Forbidden", why).about("", "", ""));
        };
        Err(ApiStatus::forbidden(a.group, a.resource, a.name, &why))
    }

    /// Checks that the caller may `create` what the request is about: for a PUT or apply that finds no object, and for
    /// a WebSocket, which begins with a GET.
    pub(crate) async fn may_create(&self, call: &Call) -> Result<(), ApiStatus> {
        let info = &call.info;
        let wanted = Attributes {
            verb: "create",
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: "",
        };
        self.authorize(&call.user, &wanted).await
    }

    /// Serves what the definitions in the store define.
    pub(crate) fn load_definitions(&self) {
        for kind in ["customresourcedefinitions.apiextensions.k8s.io", "thirdpartyresources.extensions"] {
            for stored in self.store.snapshot(kind).range("", "") {
                if let Ok(object) = serde_json::from_slice(&stored.json) {
                    self.define(&object);
                }
            }
        }
    }

    /// Serves what a definition (as stored) defines.
    pub(crate) fn define(&self, definition: &Value) {
        let (kind, name) = (text(definition, "/kind"), text(definition, "/metadata/name"));
        let made: Vec<Arc<Resource>> = match kind {
            "CustomResourceDefinition" => crate::resources::custom::from_definition(definition),
            _ => crate::resources::custom::from_third_party(definition),
        };
        let before = self.registry.now();
        let stored = made.iter().find(|r| r.is_storage_version()).cloned();
        self.registry.define(&format!("{kind}/{name}"), made);
        if let Some(now) = stored {
            let was = before.find(&now.group, &now.version, &now.plural);
            if reshape::differs(&now, was.map(|r| &**r)) {
                run_blocking_if(true, || reshape::all(&self.store, &now));
            }
        }
        self.open_api.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.redefined.notify_one();
    }

    /// Stops to serve what a definition defined.
    pub(crate) fn undefine(&self, kind: &str, name: &str) {
        self.registry.define(&format!("{kind}/{name}"), Vec::new());
        self.open_api.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.redefined.notify_one();
    }
}
