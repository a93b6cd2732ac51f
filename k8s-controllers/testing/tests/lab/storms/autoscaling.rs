//! Horizontal autoscalers, over metrics that the test serves.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{Method, Request, Response, StatusCode};
use k8s_apiserver::LocalApi;
use k8s_core::{
    api::{
        Event,
        api::{
            apps::v1::ReplicaSet,
            autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition},
            core::v1::{ConfigMap, Pod},
        },
    },
    client::{Body, Client, body_from_bytes},
    meta::ObjectExt,
};
use k8s_testing::{
    Lab, Running,
    controllers::{autoscaler, replica_set},
};
use serde_json::{Value, json};

use super::{storm, template};

/// The metrics APIs. What they say is in the ConfigMap `load`: `cpu`, the milli-CPU that the running pods
/// share, and the values of custom and external metrics by their names. Without the ConfigMap they are
/// unavailable.
struct Metrics(&'static str, &'static str);

#[async_trait]
impl LocalApi for Metrics {
    fn group(&self) -> &str {
        self.0
    }

    fn version(&self) -> &str {
        self.1
    }

    async fn call(&self, client: &Client, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        drop(request);
        let answer = if path.ends_with(self.1) {
            Some(
                json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{}/{}", self.0, self.1),
                "resources": [{"name": "pods", "kind": "PodMetrics", "namespaced": true, "verbs": ["get", "list"]}]}),
            )
        } else {
            measure(client, &path).await
        };
        let mut response = Response::new(body_from_bytes(answer.clone().unwrap_or_default().to_string()));
        if answer.is_none() {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    }
}

#[expect(clippy::disallowed_methods, reason = "a lab's threads see its virtual time")]
async fn measure(client: &Client, path: &str) -> Option<Value> {
    let load: Value = client
        .json(Method::GET, "/api/v1/namespaces/default/configmaps/load", "application/json", "")
        .await
        .ok()?;
    let value = |name: &str| load["data"][name].as_str()?.parse::<i64>().ok();
    let pods: Vec<Pod> = client.namespaced::<Pod>("default").list(&Default::default()).await.ok()?;
    let running: Vec<&str> = pods
        .iter()
        .filter(|pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"))
        .map(ObjectExt::name)
        .collect();
    let now = jiff::Timestamp::now();
    let metric = path.rsplit('/').next().unwrap_or_default();
    let items: Vec<Value> = if path.starts_with("/apis/metrics.k8s.io") {
        let each = value("cpu")? / i64::try_from(running.len().max(1)).ok()?;
        let usage = json!({"cpu": format!("{each}m"), "memory": "1Mi"});
        let of = |pod: &&str| json!({"metadata": {"name": pod}, "timestamp": now, "window": "15s", "containers": [{"name": "c", "usage": usage}]});
        running.iter().map(of).collect()
    } else if path.contains("/pods/*/") {
        let value = value(metric)?;
        let of = |pod: &&str| json!({"describedObject": {"name": pod}, "timestamp": now, "value": format!("{value}m")});
        running.iter().map(of).collect()
    } else {
        vec![json!({"describedObject": {"name": "x"}, "timestamp": now, "value": value(metric)?.to_string()})]
    };
    Some(json!({"items": items}))
}

fn with_metrics(lab: Lab) -> Lab {
    lab.local_api(Arc::new(Metrics("metrics.k8s.io", "v1beta1")))
        .local_api(Arc::new(Metrics("custom.metrics.k8s.io", "v1beta2")))
        .local_api(Arc::new(Metrics("external.metrics.k8s.io", "v1beta1")))
        .controllers([replica_set(), autoscaler()])
}

/// Two pods that request 100 milli-CPU each.
async fn web(lab: &Running, name: &str, replicas: i32) {
    let mut template = template(name, "one");
    template["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
    lab.create_from::<ReplicaSet>(json!({"metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template,
    }}))
    .await;
}

async fn scale(lab: &Running, name: &str, of: &str, metrics: Value) {
    lab.create_from::<HorizontalPodAutoscaler>(json!({"metadata": {"name": name}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": of},
        "minReplicas": 1, "maxReplicas": 8, "metrics": metrics,
    }}))
    .await;
}

fn half() -> Value {
    json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}])
}

async fn load(lab: &Running, values: Value) {
    if lab.find::<ConfigMap>("load").await.is_some() {
        lab.edit::<ConfigMap>("load", |map| map.data = serde_json::from_value(values.clone()).unwrap()).await;
    } else {
        lab.create_from::<ConfigMap>(json!({"metadata": {"name": "load"}, "data": values})).await;
    }
}

async fn becomes(lab: &Running, name: &str, count: i32) {
    lab.until(name, |set: &ReplicaSet| {
        let status = set.status.as_ref();
        set.spec.as_ref().is_some_and(|s| s.replicas == Some(count))
            && status.is_some_and(|s| s.ready_replicas.unwrap_or(0) == count)
    })
    .await;
}

fn condition(hpa: &HorizontalPodAutoscaler, kind: &str) -> Option<HorizontalPodAutoscalerCondition> {
    hpa.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind).cloned()
}

/// Whatever fails: the count stays within its bounds, follows the load, keeps a peak for five minutes, and
/// does not fall while nothing is measured.
#[test]
fn the_count_follows_the_load_within_its_bounds() {
    with_metrics(storm(6)).run(async |lab| {
        lab.always(|all: &[&ReplicaSet]| {
            for set in all {
                let count = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                assert!((1..=8).contains(&count), "{count} pods");
            }
        })
        .await;
        load(&lab, json!({"cpu": "100"})).await;
        web(&lab, "web", 2).await;
        becomes(&lab, "web", 2).await;
        scale(&lab, "web", "web", half()).await;
        load(&lab, json!({"cpu": "290"})).await;
        becomes(&lab, "web", 6).await;
        // Blind: nothing changes.
        lab.delete::<ConfigMap>("load").await;
        lab.sleep(Duration::from_secs(900)).await;
        becomes(&lab, "web", 6).await;
        load(&lab, json!({"cpu": "290"})).await;
        // It sees again that six are needed, and remembers that for five minutes.
        lab.until("web", |hpa: &HorizontalPodAutoscaler| {
            condition(hpa, "ScalingActive").is_some_and(|c| c.status == "True")
        })
        .await;
        load(&lab, json!({"cpu": "80"})).await;
        let begun = lab.clock().now();
        becomes(&lab, "web", 2).await;
        let passed = lab.clock().since(begun);
        assert!(passed >= Duration::from_secs(260), "after {passed:?}");
        load(&lab, json!({"cpu": "5000"})).await;
        becomes(&lab, "web", 8).await;
        // A status whose write failed is written by the next look at the autoscaler.
        lab.until("web", |hpa: &HorizontalPodAutoscaler| {
            condition(hpa, "ScalingActive").is_some_and(|c| c.status == "True")
        })
        .await;
    });
}

/// Each kind of metric, beside the number that it asks for.
#[test]
fn each_kind_of_metric_scales() {
    let average = |value: &str| json!({"type": "AverageValue", "averageValue": value});
    let whole = |value: &str| json!({"type": "Value", "value": value});
    let object = json!({"kind": "ReplicaSet", "apiVersion": "apps/v1", "name": "web"});
    let container =
        json!({"name": "cpu", "container": "c", "target": {"type": "Utilization", "averageUtilization": 50}});
    let cases = [
        ("cpu", json!({"type": "Resource", "resource": {"name": "cpu", "target": average("60m")}}), 5),
        ("cpu", json!({"type": "ContainerResource", "containerResource": container}), 6),
        ("hits", json!({"type": "Pods", "pods": {"metric": {"name": "hits"}, "target": average("100m")}}), 6),
        (
            "hits",
            json!({"type": "Object", "object": {"describedObject": object, "metric": {"name": "hits"}, "target": whole("100")}}),
            6,
        ),
        (
            "hits",
            json!({"type": "Object", "object": {"describedObject": object, "metric": {"name": "hits"}, "target": average("60")}}),
            5,
        ),
        (
            "hits",
            json!({"type": "External", "external": {"metric": {"name": "hits"}, "target": whole("150")}}),
            4,
        ),
        (
            "hits",
            json!({"type": "External", "external": {"metric": {"name": "hits"}, "target": average("100")}}),
            3,
        ),
    ];
    for (name, metric, wanted) in cases {
        let said = metric.to_string();
        with_metrics(Lab::new().nodes(1).without_scheduler()).run(async |lab| {
            load(&lab, json!({name: "300"})).await;
            web(&lab, "web", 2).await;
            becomes(&lab, "web", 2).await;
            scale(&lab, "web", "web", json!([metric])).await;
            let hpa = lab
                .until("web", |hpa: &HorizontalPodAutoscaler| {
                    hpa.status.as_ref().is_some_and(|s| s.last_scale_time.is_some())
                })
                .await;
            let status = hpa.status.clone().unwrap();
            let set = lab.get::<ReplicaSet>("web").await;
            assert_eq!(
                set.spec.unwrap().replicas,
                Some(wanted.min(4)),
                "{said}: at most four at once, {hpa:?}"
            );
            assert_eq!(status.current_metrics.as_ref().map(Vec::len), Some(1), "{said}");
            assert_eq!(condition(&hpa, "ScalingActive").unwrap().reason.as_deref(), Some("ValidMetricFound"));
        });
    }
}

/// What cannot be scaled says why, and is left alone.
#[test]
fn what_is_wrong_is_said() {
    with_metrics(Lab::new().nodes(1).without_scheduler()).run(async |lab| {
        web(&lab, "web", 2).await;
        web(&lab, "none", 0).await;
        becomes(&lab, "web", 2).await;
        scale(&lab, "blind", "web", half()).await;
        scale(&lab, "none", "none", half()).await;
        scale(&lab, "lost", "nowhere", half()).await;
        let until = async |name: &str, kind: &str, reason: &str, part: &str| {
            lab.until(name, |hpa: &HorizontalPodAutoscaler| {
                condition(hpa, kind).is_some_and(|c| {
                    c.status == "False" && c.reason.as_deref() == Some(reason)
                        && c.message.as_deref().unwrap_or_default().contains(part)
                })
            })
            .await
        };
        until("blind", "ScalingActive", "FailedGetResourceMetric", "failed to get cpu utilization: unable to get metrics for resource cpu: unable to fetch metrics from resource metrics API").await;
        until("none", "ScalingActive", "ScalingDisabled", "the replica count of the target is zero").await;
        until("lost", "AbleToScale", "FailedGetScale", "\"nowhere\" not found").await;
        lab.edit::<HorizontalPodAutoscaler>("lost", |hpa| hpa.spec.scale_target_ref.kind = "Nothing".into()).await;
        until("lost", "AbleToScale", "FailedGetScale", "no matches for kind \"Nothing\" in group \"apps\"").await;
        // Two that select the same pods scale neither.
        load(&lab, json!({"cpu": "900"})).await;
        scale(&lab, "rival", "web", half()).await;
        until("rival", "ScalingActive", "AmbiguousSelector", "controlled by multiple HPAs: [default/blind default/rival]").await;
        until("blind", "ScalingActive", "AmbiguousSelector", "default/rival").await;
        let events: Vec<Event> = lab.list().await;
        let reasons: Vec<&str> = events.iter().filter_map(|e| e.reason.as_deref()).collect();
        for reason in ["FailedGetResourceMetric", "FailedComputeMetricsReplicas", "FailedGetScale", "AmbiguousSelector"] {
            assert!(reasons.contains(&reason), "{reason} in {reasons:?}");
        }
        lab.delete::<HorizontalPodAutoscaler>("rival").await;
        becomes(&lab, "web", 8).await;
    });
}
