//! Aggregation: groups and versions that an APIService gives to another server, or that other code of this
//! process answers ([`LocalApi`]).
//!
//! A request for such a version is authenticated and authorized here, then passed on with the user in
//! `X-Remote-*` headers. The other server trusts them because of the front proxy's certificate. While the
//! other server is unavailable, requests get 503. Its checks are in `apiservices`. An APIService that names a
//! Service comes before a local API of its name.

use std::sync::{
    Arc, Mutex, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use k8s_core::client::{Body, Client};
use k8s_store::Store;
use serde_json::Value;

use crate::{
    respond,
    tls::ClientKeys,
    user::User,
    value::{bool_at, int_at, str_at},
    webhook_client::{Callee, Unreachable},
};

/// A group and version that code of this process answers.
///
/// Requests arrive as an aggregated server gets them: authenticated, authorized, by their whole path
/// (`/apis/GROUP/VERSION/...`), with the user in `X-Remote-*` headers.
#[async_trait]
pub trait LocalApi: Send + Sync + 'static {
    /// API group (`metrics.k8s.io`).
    fn group(&self) -> &str;

    /// Version (`v1beta1`).
    fn version(&self) -> &str;

    /// Answers a request. `GET /apis/GROUP/VERSION` must answer with an `APIResourceList`. `client` acts as
    /// the API server itself, which may do all.
    async fn call(&self, client: &Client, request: Request<Body>) -> Response<Body>;
}

/// Priorities of the groups and versions of local APIs, as metrics-server asks for.
pub(crate) const LOCAL_PRIORITY: i64 = 100;

/// Who answers for a version.
pub(crate) enum Peer {
    /// A server behind a Service.
    Server(Callee),
    /// Code of this process.
    Local(Arc<dyn LocalApi>),
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Peer::Server(_) => "Server",
            Peer::Local(_) => "Local",
        })
    }
}

impl Peer {
    pub(crate) async fn call(
        &self,
        store: &Store,
        own: impl FnOnce() -> Client,
        request: Request<Body>,
    ) -> Result<Response<Body>, Unreachable> {
        match self {
            Peer::Server(callee) => callee.call(store, request).await,
            Peer::Local(local) => Ok(local.call(&own(), request).await),
        }
    }
}

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
    pub(crate) peer: Result<Peer, String>,
    pub(crate) available: AtomicBool,
    /// Its APIResourceList of the last successful check.
    pub(crate) resources: Mutex<Value>,
}

/// All versions that other servers answer for.
#[derive(Debug, Default)]
pub(crate) struct Aggregator {
    remotes: RwLock<Arc<Vec<Arc<Remote>>>>,
    /// APIs of this process, which answer while no other server does.
    locals: Vec<Arc<Remote>>,
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
            peer: Callee::service(
                &spec["service"],
                str_at(&spec, "/caBundle"),
                bool_at(&spec, "/insecureSkipTLSVerify"),
                identity,
            )
            .map(Peer::Server),
            spec,
            available: AtomicBool::new(false),
            resources: Mutex::default(),
        }
    }

    fn local(api: Arc<dyn LocalApi>) -> Self {
        Remote {
            name: format!("{}.{}", api.version(), api.group()),
            group: api.group().to_owned(),
            version: api.version().to_owned(),
            group_priority: LOCAL_PRIORITY,
            version_priority: LOCAL_PRIORITY,
            peer: Ok(Peer::Local(api)),
            spec: Value::Null,
            available: AtomicBool::new(true),
            resources: Mutex::default(),
        }
    }

    /// Returns true for an API of this process.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.peer, Ok(Peer::Local(_)))
    }

    /// Returns true if the last check succeeded.
    pub(crate) fn is_available(&self) -> bool {
        self.available.load(Ordering::Acquire)
    }

    /// The resources that it serves, as its own discovery has them.
    pub(crate) fn resources(&self) -> Value {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Passes a request on. `own` gives the client of the API server itself.
    pub(crate) async fn forward(
        &self,
        store: &Store,
        own: impl FnOnce() -> Client,
        user: &User,
        request: &mut Request<Body>,
    ) -> Response<Body> {
        let unavailable = |why: &str| respond::text(StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
        let Some(peer) = self.peer.as_ref().ok().filter(|_| self.is_available()) else {
            return unavailable("service unavailable\n");
        };
        let target = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let mut out = match crate::proxy::forwarded(&target, request) {
            Ok(out) => out,
            Err(status) => return respond::failure(&status),
        };
        if let Err(why) = identify(user, out.headers_mut()) {
            return unavailable(&format!("error trying to reach service: {why}\n"));
        }
        match peer.call(store, own, out).await {
            Ok(mut response) => {
                response.extensions_mut().insert(respond::Foreign);
                response
            }
            Err(why) => unavailable(&format!("error trying to reach service: {why}\n")),
        }
    }
}

/// Sets the `X-Remote-*` headers, and removes those of the client.
///
/// # Errors
/// A part of the user cannot be in a header as it is, so that the server would see another user: it has
/// control characters, or spaces around it, which receivers cut off. Upstream's Go refuses the first in these
/// words.
pub(crate) fn identify(user: &User, headers: &mut HeaderMap) -> Result<(), String> {
    let said: Vec<HeaderName> =
        headers.keys().filter(|n| n.as_str().starts_with("x-remote-")).cloned().collect();
    for name in said {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        let trimmed = value.trim_matches([' ', '\t']);
        let parts = (HeaderName::try_from(name), HeaderValue::from_bytes(value.as_bytes()));
        let (Ok(key), Ok(sent), true) = (parts.0, parts.1, trimmed == value) else {
            return Err(format!("invalid header field value for {name:?}"));
        };
        headers.append(key, sent);
        Ok(())
    };
    add("x-remote-user", &user.name)?;
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid)?;
    }
    for group in &user.groups {
        add("x-remote-group", group)?;
    }
    for (key, values) in &user.extra {
        let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC);
        for value in values {
            add(&format!("x-remote-extra-{key}"), value)?;
        }
    }
    Ok(())
}

impl Aggregator {
    pub(crate) fn new(locals: Vec<Arc<dyn LocalApi>>) -> Self {
        let locals: Vec<Arc<Remote>> = locals.into_iter().map(|api| Arc::new(Remote::local(api))).collect();
        let aggregator = Aggregator { remotes: RwLock::default(), locals };
        for local in &aggregator.locals {
            aggregator.replace(&local.name, None);
        }
        aggregator
    }

    /// The APIs of this process, whether they answer now or another server does.
    pub(crate) fn locals(&self) -> &[Arc<Remote>] {
        &self.locals
    }

    /// All of them, those of important groups first.
    pub(crate) fn all(&self) -> Arc<Vec<Arc<Remote>>> {
        self.remotes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the aggregated server of a group and version, if any.
    pub(crate) fn find(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let all = self.remotes.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|r| r.group == group && r.version == version).cloned()
    }

    /// Replaces the server of an APIService; `None`: this process answers, if it can.
    pub(crate) fn replace(&self, name: &str, remote: Option<Arc<Remote>>) {
        let remote = remote.or_else(|| self.locals.iter().find(|local| local.name == name).cloned());
        let mut all = self.remotes.write().unwrap_or_else(PoisonError::into_inner);
        let mut new: Vec<Arc<Remote>> = all.iter().filter(|r| r.name != name).cloned().collect();
        new.extend(remote);
        new.sort_by_key(|r| (-r.group_priority, r.group.clone(), -r.version_priority, r.version.clone()));
        *all = Arc::new(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_sent_whole_or_not_at_all() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("forged"));
        let mut user = User::new("j\u{f6}rg", &["a group", "system:authenticated"]);
        user.extra.insert("example.com/\u{e4} %".into(), vec!["one".into(), "two".into()]);
        identify(&user, &mut headers).unwrap();
        let sent =
            |name: &str| -> Vec<&[u8]> { headers.get_all(name).iter().map(HeaderValue::as_bytes).collect() };
        assert_eq!(sent("x-remote-user"), ["j\u{f6}rg".as_bytes()]);
        assert_eq!(sent("x-remote-group"), [b"a group".as_slice(), b"system:authenticated"]);
        assert_eq!(sent("x-remote-extra-example%2ecom%2f%c3%a4%20%25"), [b"one", b"two"]);
        let with = |change: fn(&mut User)| {
            let mut user = User::new("u", &["g"]);
            change(&mut user);
            identify(&user, &mut HeaderMap::new()).unwrap_err()
        };
        assert_eq!(with(|u| u.name = "admin\n".into()), "invalid header field value for \"x-remote-user\"");
        assert_eq!(with(|u| u.name = "admin ".into()), "invalid header field value for \"x-remote-user\"");
        assert_eq!(with(|u| u.uid = "\u{7f}".into()), "invalid header field value for \"x-remote-uid\"");
        assert_eq!(
            with(|u| u.groups.push("a\0".into())),
            "invalid header field value for \"x-remote-group\""
        );
        let extra = with(|u| drop(u.extra.insert("k".into(), vec!["\r".into()])));
        assert_eq!(extra, "invalid header field value for \"x-remote-extra-k\"");
    }
}
