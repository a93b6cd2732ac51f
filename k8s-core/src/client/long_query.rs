//! Queries that are too long for a URI: `exec` of a long command line.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request};

/// The query of a request, in place of its URI's. The `http` crate's `Uri` ends at 65,534 bytes; upstream
/// serves requests of 1 MiB.
///
/// An extension of a request within a process. Between an API server and a kubelet it is a header
/// ([`LongQuery::HEADER`]), which an API server removes from requests of its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LongQuery(Arc<str>);

impl LongQuery {
    /// The header with the query, from an API server to a kubelet.
    pub const HEADER: HeaderName = HeaderName::from_static("x-kubernetes-long-query");

    /// Creates a long query; `query` is percent-encoded, without `?`.
    #[must_use]
    pub fn new(query: &str) -> Self {
        LongQuery(query.into())
    }

    /// Returns the query of a request: its long one, or else the URI's. Empty without either.
    #[must_use]
    pub fn of<B>(request: &Request<B>) -> &str {
        let uri = || request.uri().query().unwrap_or_default();
        request.extensions().get::<LongQuery>().map_or_else(uri, |long| &long.0)
    }

    /// Takes the query out of its header.
    #[must_use]
    pub fn take(headers: &mut HeaderMap) -> Option<Self> {
        headers.remove(Self::HEADER)?.to_str().ok().map(LongQuery::new)
    }

    /// Returns the header's value. `None` if the query is not of visible ASCII characters.
    #[must_use]
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }
}
