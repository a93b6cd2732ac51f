//! Observers of a client's requests, for metrics.

#![expect(clippy::disallowed_methods, reason = "the duration of a request, in virtual time as well")]

use std::{sync::Arc, time::Duration};

use http::{Method, Request, StatusCode};
use tokio::time::Instant;

use super::{Body, request::Transport};

/// A request that has its response, or none.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RequestEnd<'a> {
    /// HTTP method.
    pub method: &'a Method,
    /// `host:port` of the server; empty for a server in the same process.
    pub host: &'a str,
    /// Status of the response; `None` if the server was not reached.
    pub status: Option<StatusCode>,
    /// Time until the head of the response.
    pub took: Duration,
}

/// Sees the end of each request of a client, repeated ones included. Implemented for every such closure.
/// k8s-controllers' `metrics::counted` is one, with upstream's metrics.
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
/// use k8s_core::client::{Client, RequestEnd};
/// # fn example(client: Client) {
/// let failures = Arc::new(AtomicU32::new(0));
/// let count = failures.clone();
/// let client = client.observed(move |end: &RequestEnd<'_>| {
///     if end.status.is_none_or(|status| status.is_server_error()) {
///         count.fetch_add(1, Ordering::Relaxed);
///     }
/// });
/// # }
/// ```
pub trait Observe: Send + Sync + 'static {
    /// Called once a request has ended. It must not block.
    fn ended(&self, end: &RequestEnd<'_>);
}

impl<F: Fn(&RequestEnd<'_>) + Send + Sync + 'static> Observe for F {
    fn ended(&self, end: &RequestEnd<'_>) {
        self(end);
    }
}

/// A request in progress, and its observer. A request that is dropped before its response is not reported.
pub(super) struct Observed {
    observer: Arc<dyn Observe>,
    transport: Arc<dyn Transport>,
    method: Method,
    begun: Instant,
}

impl Observed {
    pub(super) fn begin(
        observer: &Arc<dyn Observe>,
        transport: &Arc<dyn Transport>,
        request: &Request<Body>,
    ) -> Self {
        let (observer, transport) = (observer.clone(), transport.clone());
        Observed { observer, transport, method: request.method().clone(), begun: Instant::now() }
    }

    pub(super) fn end(self, status: Option<StatusCode>) {
        let (method, host, took) = (&self.method, self.transport.host(), self.begun.elapsed());
        self.observer.ended(&RequestEnd { method, host, status, took });
    }
}
