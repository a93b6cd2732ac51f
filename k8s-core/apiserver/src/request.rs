//! Request attributes, parsed from method and path.

use std::collections::HashMap;

use http::Method;
use k8s_core::meta::{FieldSelector, LabelSelector};
use percent_encoding::percent_decode_str;

/// Decoded query parameters; the last of a name counts, unless all are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(HashMap<String, Vec<String>>);

impl Query {
    /// Parses a query string.
    #[must_use]
    pub fn parse(query: &str) -> Self {
        let decode = |s: &str| percent_decode_str(&s.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = query.split('&').filter(|p| !p.is_empty()).map(|p| {
            let (key, value) = p.split_once('=').unwrap_or((p, ""));
            (decode(key), decode(value))
        });
        let mut all = HashMap::<String, Vec<String>>::new();
        for (key, value) in pairs {
            all.entry(key).or_default().push(value);
        }
        Query(all)
    }

    /// Returns a parameter; empty if absent.
    #[must_use]
    pub fn get(&self, key: &str) -> &str {
        self.0.get(key).and_then(|values| values.last()).map_or("", String::as_str)
    }

    /// Returns all values of a parameter, in their order.
    pub fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.get(key).into_iter().flatten().map(String::as_str)
    }

    /// Returns true if the parameter is present.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Parses a boolean as Go does; absent and malformed ones are false.
    #[must_use]
    pub fn truth(&self, key: &str) -> bool {
        matches!(self.get(key), "1" | "t" | "T" | "true" | "True" | "TRUE")
    }

    /// Sets a parameter; an empty value removes it.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        if value.is_empty() {
            self.0.remove(key);
        } else {
            self.0.insert(key.to_owned(), vec![value.to_owned()]);
        }
    }

    /// Parses an integer parameter.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<i64> {
        self.get(key).parse().ok()
    }
}

/// Attributes of a request.
///
/// ```
/// use http::Method;
/// use k8s_apiserver::request::{Query, RequestInfo};
/// let path = "/apis/apps/v1/namespaces/default/deployments/web/scale";
/// let info = RequestInfo::parse(&Method::PATCH, path, &Query::default());
/// assert_eq!((info.verb.as_str(), info.resource.as_str()), ("patch", "deployments"));
/// assert_eq!((info.name.as_str(), info.subresource.as_str()), ("web", "scale"));
/// let watch = RequestInfo::parse(&Method::GET, "/api/v1/pods", &Query::parse("watch=1"));
/// assert_eq!((watch.verb.as_str(), watch.namespace.as_str()), ("watch", ""));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for non-resource
    /// paths the method in lower case.
    pub verb: String,
    /// Request path without the query.
    pub path: String,
    /// True for resource requests (below `/api/v1` or `/apis/<group>/<version>`).
    pub is_resource: bool,
    /// API group; empty for the core group.
    pub group: String,
    /// Version of the API.
    pub version: String,
    /// Namespace; empty if there is none.
    pub namespace: String,
    /// Plural name of the resource.
    pub resource: String,
    /// Object name; empty for collections.
    pub name: String,
    /// Subresource; empty if there is none.
    pub subresource: String,
    /// Path below a `proxy` subresource.
    pub rest: String,
}

impl RequestInfo {
    /// Returns true if the query may be longer than a URI: the command line of `exec`, which is passed on to
    /// a kubelet in a way of its own.
    #[must_use]
    pub(crate) fn may_be_long(&self) -> bool {
        self.group.is_empty()
            && self.resource == "pods"
            && matches!(self.subresource.as_str(), "exec" | "attach")
    }

    /// Parses method, path and query.
    #[must_use]
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let decode = |s: &str| percent_decode_str(s).decode_utf8_lossy().into_owned();
        let mut info = RequestInfo {
            verb: method.as_str().to_lowercase(),
            path: path.to_owned(),
            ..RequestInfo::default()
        };
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] => {
                info.version = decode(version);
                rest
            }
            ["apis", group, version, rest @ ..] => {
                info.group = decode(group);
                info.version = decode(version);
                rest
            }
            _ => return info,
        };
        if rest.is_empty() {
            return info;
        }
        info.is_resource = true;
        // The legacy form `/watch/...` of a watch.
        let (watch, rest) =
            if rest[0] == "watch" && rest.len() > 1 { (true, &rest[1..]) } else { (false, rest) };
        let rest = match rest {
            ["namespaces", name, tail @ ..] => {
                info.namespace = decode(name);
                // The namespace itself, and its subresources.
                if tail.is_empty() || matches!(tail, ["status" | "finalize"]) { rest } else { tail }
            }
            other => other,
        };
        info.resource = rest.first().map(|r| decode(r)).unwrap_or_default();
        info.name = rest.get(1).map(|r| decode(r)).unwrap_or_default();
        info.subresource = rest.get(2).map(|r| decode(r)).unwrap_or_default();
        if info.subresource == "proxy" {
            info.rest = after_segments(path, parts.len() - rest.len() + 3).to_owned();
        } else if rest.len() > 3 {
            info.rest = rest[3..].join("/");
        }
        info.verb = match (method.as_str(), info.name.is_empty()) {
            ("GET" | "HEAD", _) if watch || query.truth("watch") => "watch",
            ("GET" | "HEAD", true) => "list",
            ("GET" | "HEAD", false) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "deletecollection",
            ("DELETE", false) => "delete",
            (other, _) => other,
        }
        .to_owned();
        info
    }
}

/// Returns the rest of a path after its first `count` segments, with its slash. Empty segments do not count.
fn after_segments(path: &str, count: usize) -> &str {
    let mut left = path;
    for _ in 0..count {
        left = left.trim_start_matches('/');
        left = left.find('/').map_or("", |end| &left[end..]);
    }
    left
}

/// Attributes of a request for authorizers.
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a> {
    /// Verb, such as `get` or `deletecollection`.
    pub verb: &'a str,
    /// API group; empty for the core group.
    pub group: &'a str,
    /// Plural name of the resource.
    pub resource: &'a str,
    /// Subresource; empty if there is none.
    pub subresource: &'a str,
    /// Namespace; empty if there is none.
    pub namespace: &'a str,
    /// Object name, or empty.
    pub name: &'a str,
    /// For paths that are no resources; else empty.
    pub path: &'a str,
    /// Version of the API; empty for paths.
    pub version: &'a str,
    /// Field selector of a list, watch or deletecollection; `None` for none and for an invalid one.
    pub fields: Option<&'a FieldSelector>,
    /// Label selector of a list, watch or deletecollection; `None` for none and for an invalid one.
    pub labels: Option<&'a LabelSelector>,
}

impl<'a> Attributes<'a> {
    /// Returns the attributes of a request with the verb `create`: for a PUT or apply that finds no object,
    /// and for a WebSocket, which begins with a GET.
    #[must_use]
    pub fn create(info: &'a RequestInfo) -> Self {
        Attributes {
            verb: "create",
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            version: &info.version,
            ..Attributes::default()
        }
    }

    /// Returns true for verbs that only read.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch")
    }

    /// Returns the value that the field selector requires for `path`, if any.
    #[must_use]
    pub fn required_field(&self, path: &str) -> Option<&'a str> {
        self.fields.and_then(|fields| fields.required(path))
    }
}

/// Label and field selectors of a request, parsed for authorizers.
#[derive(Debug, Default)]
pub(crate) struct Selectors {
    pub(crate) fields: Option<FieldSelector>,
    pub(crate) labels: Option<LabelSelector>,
}

impl Selectors {
    /// Parses the selectors of a list, watch or deletecollection. Invalid ones are left out: they authorize
    /// nothing, and the handler refuses them.
    pub(crate) fn of(info: &RequestInfo, query: &Query) -> Self {
        if !info.is_resource || !matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
            return Selectors::default();
        }
        let text = |key: &str| Some(query.get(key)).filter(|text| !text.is_empty());
        Selectors {
            fields: text("fieldSelector").and_then(|text| text.parse().ok()),
            labels: text("labelSelector").and_then(|text| text.parse().ok()),
        }
    }

    /// Returns the name of the only object that a list or watch selects by `metadata.name`. A user who may
    /// read only that object may list and watch it.
    pub(crate) fn only_name(&self, info: &RequestInfo) -> Option<&str> {
        if !info.name.is_empty() || !matches!(info.verb.as_str(), "list" | "watch") {
            return None;
        }
        let name = self.fields.as_ref()?.required("metadata.name")?;
        let is_segment = !name.is_empty() && ![".", ".."].contains(&name) && !name.contains(['/', '%']);
        is_segment.then_some(name)
    }
}

/// Client certificate (DER), verified by TLS against the client CA. In the extensions of requests over such a
/// connection.
#[derive(Clone, Debug)]
pub struct PeerCertificate(pub Vec<u8>);

/// Address of the client or of the last proxy before the server, in the extensions of requests over a socket.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub std::net::IpAddr);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_proxied_is_found_by_its_place_and_not_by_its_name() {
        let rest = |path: &str| parse("GET", path, "").rest;
        assert_eq!(rest("/api/v1/namespaces/proxy-x/pods/proxy/proxy/a/proxy/b"), "/a/proxy/b");
        assert_eq!(rest("/api/v1/namespaces/proxy/services/proxy:80/proxy/"), "/");
        assert_eq!(rest("/api/v1/nodes/proxy-1/proxy"), "");
        assert_eq!(rest("//api/v1//nodes/proxy-1/proxy//stats/"), "//stats/");
        assert_eq!(rest("/api/v1/watch/namespaces/proxy/pods/a/proxy/x"), "/x");
    }

    fn parse(method: &str, path: &str, query: &str) -> RequestInfo {
        RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(query))
    }

    #[test]
    fn a_namespace_is_named_once() {
        let parsed = |path: &str| RequestInfo::parse(&Method::GET, path, &Query::default());
        let info = parsed("/apis/custom.metrics.k8s.io/v1beta2/namespaces/victim/namespaces/mine/depth");
        assert_eq!((&*info.namespace, &*info.resource, &*info.name), ("victim", "namespaces", "mine"));
        for path in ["/api/v1/namespaces/a", "/api/v1/namespaces/a/status", "/api/v1/namespaces/a/finalize"] {
            let info = parsed(path);
            assert_eq!((&*info.namespace, &*info.resource, &*info.name), ("a", "namespaces", "a"), "{path}");
        }
    }

    #[test]
    fn paths() {
        let p = parse("GET", "/api/v1/namespaces/ns/pods/p/log", "");
        assert_eq!(
            (
                p.verb.as_str(),
                p.namespace.as_str(),
                p.resource.as_str(),
                p.name.as_str(),
                p.subresource.as_str()
            ),
            ("get", "ns", "pods", "p", "log")
        );
        let p = parse("GET", "/apis/apps/v1/deployments", "watch=1");
        assert_eq!(
            (p.verb.as_str(), p.group.as_str(), p.resource.as_str()),
            ("watch", "apps", "deployments")
        );
        let p = parse("PUT", "/api/v1/namespaces/ns/finalize", "");
        assert_eq!(
            (p.resource.as_str(), p.name.as_str(), p.subresource.as_str()),
            ("namespaces", "ns", "finalize")
        );
        let p = parse("DELETE", "/api/v1/namespaces/ns", "");
        assert_eq!((p.verb.as_str(), p.resource.as_str(), p.name.as_str()), ("delete", "namespaces", "ns"));
        let p = parse("GET", "/api/v1/namespaces/ns/services/http:web:80/proxy/a/b", "");
        assert_eq!((p.name.as_str(), p.rest.as_str()), ("http:web:80", "/a/b"));
        assert!(!parse("GET", "/healthz", "").is_resource);
        assert_eq!(Query::parse("a=b%20c&d").get("a"), "b c");
    }
}
