//! The resource metrics API, `metrics.k8s.io/v1beta1`: what nodes and pods use, from the kubelets' summaries;
//! and in [`adapter`] the APIs of custom and external metrics.
//!
//! ```
//! use std::sync::Arc;
//! use k8s_apiserver::ApiServer;
//! use k8s_metrics_server::MetricsServer;
//! use k8s_store::Store;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let metrics = Arc::new(MetricsServer::default());
//! let server = ApiServer::builder(Store::memory()).local_api(metrics).build().await?;
//! # Ok(()) }
//! ```
//!
//! Flow: a request makes it read `/stats/summary` of all nodes through the API server's proxy, unless it did
//! so in the last 15 seconds. Rates of CPU are between two readings. Names and labels of pods and nodes are
//! the API server's.
//!
//! Guarantees: as in metrics-server, a pod without a reading of each of its containers is left out, and so is
//! a node that does not answer. Nothing runs while nobody asks.
//!
//! Not here: the measuring (the kubelet). Metrics of anything else are in [`adapter`].

pub mod adapter;
mod answer;
mod readings;
mod summary;

use std::time::Duration;

use async_trait::async_trait;
use http::{Method, Request, Response, header};
use k8s_apiserver::LocalApi;
use k8s_core::{
    client::{Body, Client},
    clock::Clock,
};

use crate::readings::Readings;

/// API group of the resource metrics.
pub const GROUP: &str = "metrics.k8s.io";
/// Version of [`GROUP`].
pub const VERSION: &str = "v1beta1";

/// Answers `metrics.k8s.io/v1beta1`.
#[derive(Debug)]
pub struct MetricsServer {
    resolution: Duration,
    clock: Clock,
    readings: tokio::sync::Mutex<Readings>,
}

impl Default for MetricsServer {
    fn default() -> Self {
        MetricsServer::new(Duration::from_secs(15), Clock::system())
    }
}

impl MetricsServer {
    /// Creates a server whose readings are at most `resolution` old. Default: 15 s, as `--metric-resolution`.
    #[must_use]
    pub fn new(resolution: Duration, clock: Clock) -> Self {
        MetricsServer { resolution, clock, readings: tokio::sync::Mutex::default() }
    }
}

#[async_trait]
impl LocalApi for MetricsServer {
    fn group(&self) -> &'static str {
        GROUP
    }

    fn version(&self) -> &'static str {
        VERSION
    }

    async fn call(&self, client: &Client, request: Request<Body>) -> Response<Body> {
        let Some(asked) = answer::Asked::parse(request.uri()) else { return answer::not_found() };
        let query = request.uri().query().unwrap_or_default().to_owned();
        let watches = matches!(answer::parameter(&query, "watch"), Some("true" | "1"));
        if request.method() != Method::GET || watches {
            return answer::not_allowed();
        }
        let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let accept = accept.unwrap_or_default().to_owned();
        drop(request);
        if asked == answer::Asked::Discovery {
            return answer::discovery();
        }
        let readings = {
            // Others who ask meanwhile wait, and get the same.
            let mut readings = self.readings.lock().await;
            readings.refresh(client, &self.clock, self.resolution).await;
            readings.newest()
        };
        answer::metrics(client, &readings, &asked, &query, &accept).await
    }
}
