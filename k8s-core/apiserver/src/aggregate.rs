//! Aggregation: groups and versions that an APIService gives to another server.
//!
//! A request for such a version is authenticated and authorized here, and then passed on with the user in `X-Remote-*` headers, which the other server
//! believes because the connection is made with the front proxy's certificate. Whether the other server answers is asked again and again and told as
//! the APIService's condition `Available`; while it does not, requests get 503.

mod check;
mod local;

use std::sync::{
    Arc, Mutex, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use k8s_core::client::Body;
use k8s_store::Stored;
use serde_json::Value;

use crate::{
    outbound::{Callee, ClientIdentity},
    respond,
    server::ApiServer,
    user::User,
    value::{integer, text, truth},
};

/// How APIServices are stored.
pub(crate) const STORAGE: &str = "apiservices.apiregistration.k8s.io";

/// A version that another server answers for.
#[derive(Debug)]
pub(crate) struct Remote {
    /// The APIService's name.
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) version: String,
    group_priority: i64,
    version_priority: i64,
    spec: Value,
    callee: Result<Callee, String>,
    available: AtomicBool,
    /// Its APIResourceList, as it was when it last answered.
    resources: Mutex<Value>,
}

/// All versions that other servers answer for.
#[derive(Debug, Default)]
pub(crate) struct Aggregator {
    remotes: RwLock<Arc<Vec<Arc<Remote>>>>,
}

impl Remote {
    fn new(service: &Value, identity: Option<&ClientIdentity>) -> Self {
        let spec = service.get("spec").cloned().unwrap_or_default();
        Remote {
            name: text(service, "/metadata/name").into(),
            group: text(&spec, "/group").into(),
            version: text(&spec, "/version").into(),
            group_priority: integer(&spec, "/groupPriorityMinimum").unwrap_or(0),
            version_priority: integer(&spec, "/versionPriority").unwrap_or(0),
            callee: Callee::service(
                &spec["service"],
                text(&spec, "/caBundle"),
                truth(&spec, "/insecureSkipTLSVerify"),
                identity,
            ),
            spec,
            available: AtomicBool::new(false),
            resources: Mutex::default(),
        }
    }

    /// Whether it answered when it was last asked.
    pub(crate) fn is_available(&self) -> bool {
        self.available.load(Ordering::Acquire)
    }

    /// The resources that it serves, as its own discovery has them.
    pub(crate) fn resources(&self) -> Value {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Passes a request on.
    pub(crate) async fn forward(
        &self,
        server: &ApiServer,
        user: &User,
        request: &mut Request<Body>,
    ) -> Response<Body> {
        let unavailable = |why: &str| respond::text(StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
        let Some(callee) = self.callee.as_ref().ok().filter(|_| self.is_available()) else {
            return unavailable("service unavailable\n");
        };
        let target = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let mut out = match crate::proxy::forwarded(&target, request) {
            Ok(out) => out,
            Err(status) => return respond::failure(&status),
        };
        identify(user, out.headers_mut());
        match callee.call(server, out).await {
            Ok(mut response) => {
                response.extensions_mut().insert(respond::Foreign);
                response
            }
            Err(why) => unavailable(&format!("error trying to reach service: {why}\n")),
        }
    }
}

/// Says who asks, in place of what the client may have said.
fn identify(user: &User, headers: &mut HeaderMap) {
    let said: Vec<HeaderName> =
        headers.keys().filter(|n| n.as_str().starts_with("x-remote-")).cloned().collect();
    for name in said {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC);
        for value in values {
            add(&format!("x-remote-extra-{key}"), value);
        }
    }
}

impl Aggregator {
    /// All of them, those of important groups first.
    pub(crate) fn all(&self) -> Arc<Vec<Arc<Remote>>> {
        self.remotes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who answers for a group and version, if it is somebody else.
    pub(crate) fn find(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let all = self.remotes.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|r| r.group == group && r.version == version).cloned()
    }

    fn replace(&self, name: &str, remote: Option<Arc<Remote>>) {
        let mut all = self.remotes.write().unwrap_or_else(PoisonError::into_inner);
        let mut new: Vec<Arc<Remote>> = all.iter().filter(|r| r.name != name).cloned().collect();
        new.extend(remote);
        new.sort_by_key(|r| (-r.group_priority, r.group.clone(), -r.version_priority, r.version.clone()));
        *all = Arc::new(new);
    }
}

/// Called with every APIService that was written, and at the start with those that are there.
pub(crate) fn after_write(server: &ApiServer, stored: &Arc<Stored>) {
    let Ok(service) = serde_json::from_slice::<Value>(&stored.json) else { return };
    let (aggregator, name) = (&server.inner.aggregator, text(&service, "/metadata/name"));
    if !service.pointer("/spec/service").is_some_and(Value::is_object) {
        return aggregator.replace(name, None);
    }
    let known = aggregator.all().iter().any(|r| r.name == name && r.spec == service["spec"]);
    if known {
        return;
    }
    let remote = Arc::new(Remote::new(&service, server.inner.front_proxy.as_ref()));
    aggregator.replace(name, Some(remote.clone()));
    check::start(server, remote);
}

/// Called with every APIService that was deleted.
pub(crate) fn after_delete(server: &ApiServer, service: &Value) {
    server.inner.aggregator.replace(text(service, "/metadata/name"), None);
}

/// Begins to serve the APIServices that are there, and makes those of this server's own versions, whenever its definitions change.
pub(crate) fn start(server: &ApiServer) {
    for stored in server.inner.store.snapshot(STORAGE).range("", "") {
        after_write(server, stored);
    }
    let (weak, changed) = (Arc::downgrade(&server.inner), server.inner.redefined.clone());
    tokio::spawn(async move {
        loop {
            let Some(server) = ApiServer::of(&weak) else { return };
            local::register(&server).await;
            drop(server);
            changed.notified().await;
        }
    });
}
