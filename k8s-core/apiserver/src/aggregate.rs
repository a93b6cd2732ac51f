//! Aggregation: groups and versions that an APIService gives to another server.
//!
//! A request for such a version is authenticated and authorized here, and then passed on with the user in `X-Remote-*` headers, which the other server
//! believes because the connection is made with the front proxy's certificate. Whether the other server answers is asked again and again and told as
//! the APIService's condition `Available`; while it does not, requests get 503.

use std::sync::{
    Arc, Mutex, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use k8s_core::client::Body;
use k8s_store::Store;
use serde_json::Value;

use crate::{
    respond,
    user::User,
    value::{integer, text, truth},
    webhook_client::{Callee, ClientIdentity},
};

/// A version that another server answers for.
#[derive(Debug)]
pub(crate) struct Remote {
    /// The APIService's name.
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) version: String,
    group_priority: i64,
    version_priority: i64,
    pub(crate) spec: Value,
    pub(crate) callee: Result<Callee, String>,
    pub(crate) available: AtomicBool,
    /// Its APIResourceList, as it was when it last answered.
    pub(crate) resources: Mutex<Value>,
}

/// All versions that other servers answer for.
#[derive(Debug, Default)]
pub(crate) struct Aggregator {
    remotes: RwLock<Arc<Vec<Arc<Remote>>>>,
}

impl Remote {
    pub(crate) fn new(service: &Value, identity: Option<&ClientIdentity>) -> Self {
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
        store: &Store,
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
        match callee.call(store, out).await {
            Ok(mut response) => {
                response.extensions_mut().insert(respond::Foreign);
                response
            }
            Err(why) => unavailable(&format!("error trying to reach service: {why}\n")),
        }
    }
}

/// Says who asks, in place of what the client may have said.
pub(crate) fn identify(user: &User, headers: &mut HeaderMap) {
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

    pub(crate) fn replace(&self, name: &str, remote: Option<Arc<Remote>>) {
        let mut all = self.remotes.write().unwrap_or_else(PoisonError::into_inner);
        let mut new: Vec<Arc<Remote>> = all.iter().filter(|r| r.name != name).cloned().collect();
        new.extend(remote);
        new.sort_by_key(|r| (-r.group_priority, r.group.clone(), -r.version_priority, r.version.clone()));
        *all = Arc::new(new);
    }
}
