//! The APIs of custom and external metrics, `custom.metrics.k8s.io` and `external.metrics.k8s.io`, in front
//! of an [`Adapter`] that knows the values. [`Scraper`] is one, for metrics that pods serve in Prometheus'
//! text format.
//!
//! ```
//! use std::sync::Arc;
//! use k8s_apiserver::ApiServer;
//! use k8s_core::clock::Clock;
//! use k8s_metrics_server::adapter::{CustomMetrics, ExternalMetrics, Scraper};
//! use k8s_store::Store;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let scraper = Arc::new(Scraper::new(std::time::Duration::from_secs(15), Clock::system()));
//! let server = CustomMetrics::versions(&scraper)
//!     .into_iter()
//!     .fold(ApiServer::builder(Store::memory()), |server, api| server.local_api(Arc::new(api)))
//!     .local_api(Arc::new(ExternalMetrics::new(scraper)))
//!     .build()
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! Flow: `answer` reads the path; the adapter returns numbers; `answer` writes the list of values.
//! Guarantee: both versions of custom metrics have the same values.
//! Not here: watches, metrics of objects without a namespace (but namespaces themselves).

mod answer;
mod scrape;
mod text;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{Method, Request, Response};
use jiff::Timestamp;
use k8s_apiserver::LocalApi;
use k8s_core::{
    client::{Body, Client},
    meta::LabelSelector,
    status::ApiStatus,
};

pub use scrape::Scraper;

/// API group of custom metrics.
pub const CUSTOM: &str = "custom.metrics.k8s.io";
/// API group of external metrics.
pub const EXTERNAL: &str = "external.metrics.k8s.io";

/// A metric: its name, and a selector of its series.
#[derive(Clone, Debug)]
pub struct Metric {
    /// Name of the metric.
    pub name: String,
    /// Selects series by their labels.
    pub series: LabelSelector,
}

/// The objects that a metric is asked of.
#[derive(Clone, Debug)]
pub struct Of {
    /// Namespace of the objects.
    pub namespace: String,
    /// Resource as in a path: `pods`, `deployments.apps`. `namespaces`: the namespace itself.
    pub resource: String,
    /// Which of them.
    pub which: Which,
}

/// One object, or those that a selector matches.
#[derive(Clone, Debug)]
pub enum Which {
    /// The object of this name.
    One(String),
    /// The objects with these labels.
    All(LabelSelector),
}

/// A number, and how it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The number. Those that are not finite are left out of answers.
    pub value: f64,
    /// End of the time that it was measured over.
    pub at: Timestamp,
    /// Length of that time. `None`: it is the value of a moment.
    pub window: Option<Duration>,
}

/// Knows metrics of objects, and such as belong to no object.
#[async_trait]
pub trait Adapter: Send + Sync + 'static {
    /// Returns the metric of each of these objects that has it, by the object's name.
    ///
    /// # Errors
    /// The status of the answer, such as 404 for a resource without metrics.
    async fn custom(
        &self,
        client: &Client,
        of: &Of,
        metric: &Metric,
    ) -> Result<Vec<(String, Measured)>, ApiStatus>;

    /// Returns the series of a metric in a namespace, with their labels.
    ///
    /// # Errors
    /// The status of the answer.
    async fn external(
        &self,
        client: &Client,
        namespace: &str,
        metric: &Metric,
    ) -> Result<Vec<(BTreeMap<String, String>, Measured)>, ApiStatus>;
}

/// Answers one version of `custom.metrics.k8s.io`.
#[derive(Debug)]
pub struct CustomMetrics<A> {
    adapter: Arc<A>,
    version: &'static str,
}

impl<A: Adapter> CustomMetrics<A> {
    /// Returns the API in its versions v1beta2 and v1beta1.
    pub fn versions(adapter: &Arc<A>) -> [Self; 2] {
        ["v1beta2", "v1beta1"].map(|version| CustomMetrics { adapter: adapter.clone(), version })
    }
}

#[async_trait]
impl<A: Adapter> LocalApi for CustomMetrics<A> {
    fn group(&self) -> &'static str {
        CUSTOM
    }

    fn version(&self) -> &str {
        self.version
    }

    async fn call(&self, client: &Client, request: Request<Body>) -> Response<Body> {
        if request.method() != Method::GET {
            return answer::not_allowed();
        }
        let uri = request.uri().clone();
        drop(request);
        let asked = match answer::Custom::parse(&uri, self.version) {
            Ok(Some(asked)) => asked,
            Ok(None) => return answer::discovery(CUSTOM, self.version),
            Err(status) => return answer::refuse(&status),
        };
        match self.adapter.custom(client, &asked.of, &asked.metric).await {
            Ok(values) => asked.answer(self.version, values),
            Err(status) => answer::refuse(&status),
        }
    }
}

/// Answers `external.metrics.k8s.io/v1beta1`.
#[derive(Debug)]
pub struct ExternalMetrics<A>(Arc<A>);

impl<A: Adapter> ExternalMetrics<A> {
    /// Creates the API over an adapter.
    pub fn new(adapter: Arc<A>) -> Self {
        ExternalMetrics(adapter)
    }
}

#[async_trait]
impl<A: Adapter> LocalApi for ExternalMetrics<A> {
    fn group(&self) -> &'static str {
        EXTERNAL
    }

    fn version(&self) -> &'static str {
        "v1beta1"
    }

    async fn call(&self, client: &Client, request: Request<Body>) -> Response<Body> {
        if request.method() != Method::GET {
            return answer::not_allowed();
        }
        let uri = request.uri().clone();
        drop(request);
        let (namespace, metric) = match answer::external(&uri) {
            Ok(Some(asked)) => asked,
            Ok(None) => return answer::discovery(EXTERNAL, "v1beta1"),
            Err(status) => return answer::refuse(&status),
        };
        match self.0.external(client, &namespace, &metric).await {
            Ok(series) => answer::external_list(&metric.name, series),
            Err(status) => answer::refuse(&status),
        }
    }
}
