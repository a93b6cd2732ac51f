//! Paths and answers of the two APIs. Pure.

use std::collections::BTreeMap;

use http::{Response, StatusCode, Uri};
use k8s_core::{
    client::Body,
    meta::{LabelSelector, Quantity},
    status::{ApiStatus, Reason},
};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{CUSTOM, EXTERNAL, Measured, Metric, Of, Which};
pub(super) use crate::answer::{not_allowed, refuse};
use crate::answer::{parameter, respond};

fn not_found() -> ApiStatus {
    ApiStatus::of(Reason::NotFound, "the server could not find the requested resource")
}

/// Splits the path after group and version into its decoded segments.
fn segments(uri: &Uri, group: &str, version: &str) -> Result<Vec<String>, ApiStatus> {
    let rest = uri.path().strip_prefix(&format!("/apis/{group}/{version}")).ok_or_else(not_found)?;
    let parts = rest.split('/').filter(|part| !part.is_empty());
    let decoded = parts.map(|part| percent_decode_str(part).decode_utf8().map(Into::into));
    decoded.collect::<Result<_, _>>().map_err(|_| not_found())
}

/// Reads a selector from the query; everything without one.
fn selector(uri: &Uri, name: &str) -> Result<LabelSelector, ApiStatus> {
    let text = parameter(uri.query().unwrap_or_default(), name).unwrap_or_default().replace('+', " ");
    let text = percent_decode_str(&text).decode_utf8_lossy().into_owned();
    text.parse().map_err(|e| ApiStatus::bad_request(format!("{name}: {e}")))
}

/// A question for custom metrics.
#[derive(Debug)]
pub(super) struct Custom {
    pub(super) of: Of,
    pub(super) metric: Metric,
}

impl Custom {
    /// Reads `/namespaces/NS/RESOURCE/NAME/METRIC` (`*` for all names) and `/namespaces/NS/metrics/METRIC`.
    /// `None`: discovery.
    ///
    /// # Errors
    /// 404 for another path, 400 for a selector that is not valid.
    pub(super) fn parse(uri: &Uri, version: &str) -> Result<Option<Self>, ApiStatus> {
        let parts = segments(uri, CUSTOM, version)?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (namespace, resource, name, metric) = match parts[..] {
            [] => return Ok(None),
            ["namespaces", namespace, "metrics", metric] => (namespace, "namespaces", namespace, metric),
            ["namespaces", namespace, resource, name, metric] => (namespace, resource, name, metric),
            _ => return Err(not_found()),
        };
        let which = match name {
            "*" => Which::All(selector(uri, "labelSelector")?),
            name => Which::One(name.to_owned()),
        };
        let of = Of { namespace: namespace.to_owned(), resource: resource.to_owned(), which };
        let metric = Metric { name: metric.to_owned(), series: selector(uri, "metricLabelSelector")? };
        Ok(Some(Custom { of, metric }))
    }

    /// Answers with a list of values; 404 if there are none.
    pub(super) fn answer(&self, version: &str, values: Vec<(String, Measured)>) -> Response<Body> {
        let (Of { namespace, resource, which }, metric) = (&self.of, &self.metric);
        if values.is_empty() {
            let name = match which {
                Which::One(name) => name,
                Which::All(_) => "*",
            };
            let why = format!(
                "the server could not find the metric {} for {resource} {namespace}/{name}",
                metric.name
            );
            return refuse(&ApiStatus::of(Reason::NotFound, why));
        }
        let item = |(name, measured): (String, Measured)| {
            let object = json!({"kind": kind(resource), "namespace": namespace, "name": name, "apiVersion": api_version(resource)});
            let mut item = json!({"describedObject": object, "timestamp": measured.at, "value": quantity(measured.value)?});
            let window = measured.window.map(|window| window.as_secs());
            if version == "v1beta1" {
                (item["metricName"], item["window"]) = (json!(metric.name), json!(window));
            } else {
                item["metric"] = json!({"name": metric.name});
                item["windowSeconds"] = json!(window);
            }
            Some(item)
        };
        let items: Vec<Value> = values.into_iter().filter_map(item).collect();
        let list = json!({"kind": "MetricValueList", "apiVersion": format!("{CUSTOM}/{version}"), "metadata": {}, "items": items});
        respond(StatusCode::OK, &list)
    }
}

/// Reads `/namespaces/NS/METRIC`. `None`: discovery.
///
/// # Errors
/// As [`Custom::parse`].
pub(super) fn external(uri: &Uri) -> Result<Option<(String, Metric)>, ApiStatus> {
    let parts = segments(uri, EXTERNAL, "v1beta1")?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts[..] {
        [] => Ok(None),
        ["namespaces", namespace, metric] => {
            let metric = Metric { name: metric.to_owned(), series: selector(uri, "labelSelector")? };
            Ok(Some((namespace.to_owned(), metric)))
        }
        _ => Err(not_found()),
    }
}

/// Answers with the series of an external metric.
pub(super) fn external_list(name: &str, series: Vec<(BTreeMap<String, String>, Measured)>) -> Response<Body> {
    let item = |(labels, measured): (BTreeMap<String, String>, Measured)| {
        let window = measured.window.map(|window| window.as_secs());
        let value = quantity(measured.value)?;
        Some(
            json!({"metricName": name, "metricLabels": labels, "timestamp": measured.at, "window": window, "value": value}),
        )
    };
    let items: Vec<Value> = series.into_iter().filter_map(item).collect();
    let list = json!({"kind": "ExternalMetricValueList", "apiVersion": format!("{EXTERNAL}/v1beta1"), "metadata": {}, "items": items});
    respond(StatusCode::OK, &list)
}

pub(super) fn discovery(group: &str, version: &str) -> Response<Body> {
    let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{group}/{version}"), "resources": []});
    respond(StatusCode::OK, &list)
}

/// Writes a number in thousandths. `None`: it is not finite.
#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn quantity(value: f64) -> Option<String> {
    value.is_finite().then(|| Quantity::from_milli((value * 1000.0).round() as i64).to_string())
}

/// Resources that have metrics, with their kinds.
pub(super) const KINDS: [(&str, &str); 9] = [
    ("pods", "Pod"),
    ("namespaces", "Namespace"),
    ("services", "Service"),
    ("replicationcontrollers", "ReplicationController"),
    ("deployments.apps", "Deployment"),
    ("replicasets.apps", "ReplicaSet"),
    ("statefulsets.apps", "StatefulSet"),
    ("daemonsets.apps", "DaemonSet"),
    ("jobs.batch", "Job"),
];

fn kind(resource: &str) -> &str {
    KINDS.iter().find(|(plural, _)| *plural == resource).map_or(resource, |(_, kind)| kind)
}

fn api_version(resource: &str) -> String {
    resource.split_once('.').map_or_else(|| "/v1".to_owned(), |(_, group)| format!("{group}/v1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_apis() {
        let custom = |path: &str| {
            let uri = format!("/apis/custom.metrics.k8s.io/v1beta2{path}").parse().unwrap();
            Custom::parse(&uri, "v1beta2").map(|asked| {
                asked.map(|Custom { of, metric }| {
                    let which = match of.which {
                        Which::One(name) => name,
                        Which::All(selector) => format!("[{selector}]"),
                    };
                    format!("{} {} {which} {} [{}]", of.namespace, of.resource, metric.name, metric.series)
                })
            })
        };
        assert_eq!(custom("").unwrap(), None);
        for (path, want) in [
            ("/namespaces/a/pods/*/hits?labelSelector=app%3Dweb", "a pods [app=web] hits []"),
            ("/namespaces/a/pods/p/hits?metricLabelSelector=code+in+(a,b)", "a pods p hits [code in (a,b)]"),
            ("/namespaces/a/deployments.apps/d/x%2Fy", "a deployments.apps d x/y []"),
            ("/namespaces/a/metrics/hits", "a namespaces a hits []"),
        ] {
            assert_eq!(custom(path).unwrap().as_deref(), Some(want), "{path}");
        }
        assert_eq!(custom("/nodes/n/hits").unwrap_err().code(), 404);
        assert_eq!(custom("/namespaces/a/pods/*/x?labelSelector=%21%21").unwrap_err().code(), 400);
        let uri =
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/a/depth?labelSelector=q%3D1".parse().unwrap();
        let (namespace, metric) = external(&uri).unwrap().unwrap();
        assert_eq!(
            (namespace.as_str(), metric.name.as_str(), metric.series.to_string().as_str()),
            ("a", "depth", "q=1")
        );
    }

    #[test]
    fn numbers_are_thousandths() {
        for (value, want) in [
            (30.0, Some("30")),
            (0.25, Some("250m")),
            (-1.5, Some("-1500m")),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(quantity(value).as_deref(), want);
        }
    }
}
