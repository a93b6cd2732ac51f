//! Aggregation: groups and versions that an APIService gives to another server.
//!
//! A request for such a version is authenticated and authorized here, then passed on with the user in
//! `X-Remote-*` headers. The other server trusts them because of the front proxy's certificate. While the
//! other server is unavailable, requests get 503. Its checks are in `apiservices`.

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
    tls::ClientKeys,
    user::User,
    value::{bool_at, int_at, str_at},
    webhook_client::Callee,
};

/// A version that another server answers for.
#[derive(Debug)]
pub(crate) struct Remote {
    /// Name of the APIService: `version.group`.
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) version: String,
    group_priority: i64,
    version_priority: i64,
    pub(crate) spec: Value,
    pub(crate) callee: Result<Callee, String>,
    pub(crate) available: AtomicBool,
    /// Its APIResourceList of the last successful check.
    pub(crate) resources: Mutex<Value>,
}

/// All versions that other servers answer for.
#[derive(Debug, Default)]
pub(crate) struct Aggregator {
    remotes: RwLock<Arc<Vec<Arc<Remote>>>>,
}

impl Remote {
    pub(crate) fn new(service: &Value, identity: Option<&ClientKeys>) -> Self {
        let spec = service.get("spec").cloned().unwrap_or_default();
        Remote {
            name: str_at(service, "/metadata/name").into(),
            group: str_at(&spec, "/group").into(),
            version: str_at(&spec, "/version").into(),
            group_priority: int_at(&spec, "/groupPriorityMinimum").unwrap_or(0),
            version_priority: int_at(&spec, "/versionPriority").unwrap_or(0),
            callee: Callee::service(
                &spec["service"],
                str_at(&spec, "/caBundle"),
                bool_at(&spec, "/insecureSkipTLSVerify"),
                identity,
            ),
            spec,
            available: AtomicBool::new(false),
            resources: Mutex::default(),
        }
    }

    /// Returns true if the last check succeeded.
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

/// Sets the `X-Remote-*` headers, and removes those of the client.
pub(crate) fn identify(user: &User, headers: &mut HeaderMap) {
    let said: Vec<HeaderName> =
        headers.keys().filter(|n| n.as_str().starts_with("x-remote-")).cloned().collect();
    for name in said {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value.as_bytes()))
        {
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

    /// Returns the aggregated server of a group and version, if any.
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
