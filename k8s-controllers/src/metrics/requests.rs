//! Metrics of a client's requests.

use k8s_core::client::{Client, Observe, RequestEnd};
use k8s_metrics::{Counter, Family, Histogram, Registry};

/// Upstream's buckets of a request's duration, in seconds.
const SECONDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// Returns a client whose requests are counted in a registry, as `rest_client_requests_total` by code, method
/// and host, and timed until the head of the response, as `rest_client_request_duration_seconds` by host and
/// verb. The code is `<error>` if the server was not reached; the host of a server in the same process is
/// `in-process`. All clients of a registry count together.
///
/// # Examples
/// ```
/// use k8s_controllers::metrics::{Registry, counted};
/// use k8s_core::client::{Client, Error};
/// # fn example() -> Result<(), Error> {
/// let registry = Registry::default();
/// let client = counted(&Client::try_default()?, &registry);
/// # Ok(()) }
/// ```
#[must_use]
pub fn counted(client: &Client, registry: &Registry) -> Client {
    client.observed(Requests::new(registry))
}

struct Requests {
    total: Family<3, Counter>,
    seconds: Family<2, Histogram>,
}

impl Requests {
    fn new(registry: &Registry) -> Self {
        Requests {
            total: registry.register(
                "rest_client_requests_total",
                "Number of HTTP requests, partitioned by status code, method, and host.",
                Family::new(["code", "method", "host"]),
            ),
            seconds: registry.register(
                "rest_client_request_duration_seconds",
                "Request latency in seconds. Broken down by verb, and host.",
                Family::new_with_constructor(["host", "verb"], |_| Histogram::new(SECONDS)),
            ),
        }
    }
}

impl Observe for Requests {
    fn ended(&self, end: &RequestEnd<'_>) {
        let (method, host) = (end.method.as_str(), if end.host.is_empty() { "in-process" } else { end.host });
        let code = end.status.as_ref().map_or("<error>", |status| status.as_str());
        self.total.get_or_create(&[code, method, host]).inc();
        self.seconds.get_or_create(&[host, method]).observe(end.took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use k8s_core::{
        api::Pod,
        client::{Body, ListParams, RemoteConfig, body_from_bytes},
    };
    use tokio::net::TcpListener;

    use super::*;

    fn lines(registry: &Registry) -> Vec<String> {
        let mut text = String::new();
        k8s_metrics::encode(&mut text, registry);
        let ours = |l: &&str| l.starts_with("rest_client_requests_total{") || l.contains("_seconds_count{");
        text.lines().filter(ours).map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn requests_are_counted_by_code_method_and_host() {
        let server = answering(|request: http::Request<Body>| {
            let (code, text) = match request.uri().path() {
                "/api/v1/pods" => {
                    (200, r#"{"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": []}"#)
                }
                _ => (404, "{}"),
            };
            http::Response::builder().status(code).body(body_from_bytes(text)).expect("valid")
        });
        let registry = Registry::default();
        let client = counted(&Client::new(server), &registry);
        assert!(client.is_observed() && client.named("other").without_managed_fields().is_observed());
        client.all::<Pod>().list(&ListParams::default()).await.unwrap();
        client.named("other").all::<Pod>().list(&ListParams::default()).await.unwrap();
        client.namespaced::<Pod>("default").get("web").await.unwrap_err();

        // Nobody listens on the port of a closed listener.
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let nobody = RemoteConfig { server: format!("http://{address}"), ..RemoteConfig::default() };
        let nobody = counted(&Client::remote(&nobody).unwrap(), &registry);
        nobody.namespaced::<Pod>("default").get("web").await.unwrap_err();

        let mut wanted = vec![
            r#"rest_client_requests_total{code="200",method="GET",host="in-process"} 2"#.to_owned(),
            r#"rest_client_requests_total{code="404",method="GET",host="in-process"} 1"#.to_owned(),
            format!(r#"rest_client_requests_total{{code="<error>",method="GET",host="{address}"}} 1"#),
            r#"rest_client_request_duration_seconds_count{host="in-process",verb="GET"} 3"#.to_owned(),
            format!(r#"rest_client_request_duration_seconds_count{{host="{address}",verb="GET"}} 1"#),
        ];
        let mut have = lines(&registry);
        have.sort();
        wanted.sort();
        assert_eq!(have, wanted);
    }

    /// A transport that answers at once.
    fn answering(
        answer: impl Fn(http::Request<Body>) -> http::Response<Body> + Send + Sync + 'static,
    ) -> impl k8s_core::client::Transport {
        struct Answers<F>(F);
        impl<F> k8s_core::client::Transport for Answers<F>
        where
            F: Fn(http::Request<Body>) -> http::Response<Body> + Send + Sync + 'static,
        {
            fn call(
                &self,
                request: http::Request<Body>,
            ) -> futures::future::BoxFuture<'static, Result<http::Response<Body>, k8s_core::client::BoxError>>
            {
                let response = (self.0)(request);
                Box::pin(async move { Ok(response) })
            }
        }
        Answers(answer)
    }
}
