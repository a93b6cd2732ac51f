//! [`Connection`]: the requests of one component, counted and disturbed by a test.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use k8s_apiserver::request::{Query, RequestInfo};
use k8s_core::{
    client::{Body, BoxError, Client, body_from_bytes},
    status::ApiStatus,
};
use serde_json::Value;
use tokio::sync::watch;

use crate::wire::failure;

/// A verb, and a resource with its subresource (`pods/status`).
type Target = (String, String);

#[derive(Default)]
struct State {
    /// Bodies of all requests; empty ones for reads.
    requests: Vec<(Target, Bytes)>,
    /// Requests to refuse: how many, and the answer.
    failures: Vec<(Target, usize, ApiStatus)>,
    delays: Vec<(Target, Duration)>,
}

/// A connection of one component to the API server, as a `tower::Service`. Clones are the same connection.
///
/// # Examples
/// ```
/// use k8s_core::{api::api::core::v1::ConfigMap, status::ApiStatus};
/// use k8s_testing::TestCluster;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let cluster = TestCluster::bare().start().await.unwrap();
/// let connection = cluster.connection();
/// let maps = connection.client().namespaced::<ConfigMap>("default");
/// connection.fail("get", "configmaps", 1, ApiStatus::internal("on purpose"));
/// assert!(maps.get_opt("a").await.is_err());
/// assert!(maps.get_opt("a").await.unwrap().is_none());
/// assert_eq!(connection.count("get", "configmaps"), 2);
/// # }
/// ```
#[derive(Clone)]
pub struct Connection {
    upstream: Client,
    state: Arc<Mutex<State>>,
    cut: watch::Sender<bool>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("requests", &self.state().requests.len()).finish_non_exhaustive()
    }
}

fn target(verb: &str, resource: &str) -> Target {
    (verb.to_owned(), resource.to_owned())
}

fn refused() -> BoxError {
    "connection refused (cut by the test)".into()
}

impl Connection {
    pub(crate) fn new(upstream: Client) -> Self {
        Connection { upstream, state: Arc::default(), cut: watch::channel(false).0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a client that uses the connection.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.clone())
    }

    /// Returns the number of requests so far. `verb` is one of `get`, `list`, `watch`, `create`, `update`,
    /// `patch`, `delete`, `deletecollection`; `resource` may have a subresource (`pods/status`).
    #[must_use]
    pub fn count(&self, verb: &str, resource: &str) -> usize {
        self.bodies(verb, resource).len()
    }

    /// Returns the number of requests that write something other than events.
    #[must_use]
    pub fn writes(&self) -> usize {
        let is_write = |(verb, resource): &Target| {
            !matches!(verb.as_str(), "get" | "list" | "watch") && resource != "events"
        };
        self.state().requests.iter().filter(|(target, _)| is_write(target)).count()
    }

    /// Returns the bodies of requests so far, in order. Bodies that are no JSON are null.
    #[must_use]
    pub fn sent(&self, verb: &str, resource: &str) -> Vec<Value> {
        let bodies = self.bodies(verb, resource);
        bodies.iter().map(|body| serde_json::from_slice(body).unwrap_or_default()).collect()
    }

    fn bodies(&self, verb: &str, resource: &str) -> Vec<Bytes> {
        let wanted = target(verb, resource);
        self.state().requests.iter().filter(|(t, _)| *t == wanted).map(|(_, body)| body.clone()).collect()
    }

    /// Answers the next `times` requests with `status`; they do not reach the server.
    pub fn fail(&self, verb: &str, resource: &str, times: usize, status: ApiStatus) {
        self.state().failures.push((target(verb, resource), times, status));
    }

    /// Delays each part of the responses to such requests from now on: of a watch each event.
    pub fn delay(&self, verb: &str, resource: &str, by: Duration) {
        self.state().delays.push((target(verb, resource), by));
    }

    /// Cuts the connection, as if the server had stopped: watches end, requests fail.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Restores a cut connection.
    pub fn mend(&self) {
        self.cut.send_replace(false);
    }

    async fn exchange(self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        // As over a network, other tasks run before a response arrives.
        tokio::task::yield_now().await;
        let mut cut = self.cut.subscribe();
        if *cut.borrow_and_update() {
            return Err(refused());
        }
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
        let resource = match info.subresource.as_str() {
            "" => info.resource.clone(),
            sub => format!("{}/{sub}", info.resource),
        };
        let wanted = (info.verb, resource);
        let (request, body) = if matches!(wanted.0.as_str(), "get" | "list" | "watch") {
            (request, Bytes::new())
        } else {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await?.to_bytes();
            (Request::from_parts(parts, body_from_bytes(bytes.clone())), bytes)
        };
        let (failure_of, delay) = self.note(&wanted, body);
        if let Some(status) = failure_of {
            return Ok(failure(&status));
        }
        let (parts, body) = tokio::select! {
            answer = self.upstream.send(request) => answer?.into_parts(),
            _ = cut.wait_for(|cut| *cut) => return Err(refused()),
        };
        if wanted.0 != "watch" && delay.is_none() {
            return Ok(Response::from_parts(parts, body));
        }
        let frames = BodyStream::new(body).then(move |frame| async move {
            tokio::time::sleep(delay.unwrap_or_default()).await;
            frame
        });
        // The sender lives in the future, so that only a cut ends the stream.
        let held = self.cut.clone();
        let until = Box::pin(async move {
            let _ = cut.wait_for(|cut| *cut).await;
            drop(held);
        });
        Ok(Response::from_parts(parts, StreamBody::new(frames.take_until(until)).boxed_unsync()))
    }

    /// Records a request. Returns the failure and the delay that are meant for it.
    fn note(&self, wanted: &Target, body: Bytes) -> (Option<ApiStatus>, Option<Duration>) {
        let mut state = self.state();
        state.requests.push((wanted.clone(), body));
        let failure = state.failures.iter_mut().find(|(t, left, _)| t == wanted && *left > 0);
        let failure = failure.map(|(_, left, status)| {
            *left -= 1;
            status.clone()
        });
        (failure, state.delays.iter().find(|(t, _)| t == wanted).map(|(_, by)| *by))
    }
}

impl<B> tower_service::Service<Request<B>> for Connection
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(self.clone().exchange(request.map(|b| b.map_err(Into::into).boxed_unsync())))
    }
}
