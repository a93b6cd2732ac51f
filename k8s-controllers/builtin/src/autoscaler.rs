//! HorizontalPodAutoscaler: the number of pods that brings measured use to its target.
//!
//! Flow: each autoscaler is looked at every 15 seconds. The target's [`target::Scale`] tells its present
//! number and its pods. Each metric proposes a number ([`calculate`]) from what the metrics APIs say
//! ([`metrics`]); the largest counts. Recent proposals, the behavior's policies and the autoscaler's bounds
//! limit it ([`limit`]), and it is written to the Scale.
//!
//! Invariants:
//! 1. A number that is written lies between `minReplicas` and `maxReplicas`.
//! 2. A metric that cannot be read never makes the number smaller.
//! 3. The number does not shrink below a proposal of the last stabilization window, of which the number found
//!    at the controller's start is one, nor change faster than the policies allow.
//! 4. A target of 0 pods is left alone.
//! 5. Pods that two autoscalers select are scaled by neither.

mod calculate;
mod limit;
mod metrics;
mod monitor;
mod target;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_controllers::{Action, Context, Controller, Environment, Error, EventType, Reconcile};
use k8s_core::{
    api::{
        api::{
            autoscaling::v2::{
                ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler,
                HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus,
                MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus,
                PodsMetricStatus, ResourceMetricStatus,
            },
            core::v1::Pod,
        },
        apimachinery::pkg::api::resource::Quantity as ApiQuantity,
    },
    meta::{LabelSelector, ObjectExt, ObjectKey, Quantity},
};

use self::{
    calculate::{Delays, Failure, Observed, Proposal, Target, Tolerance, Usage},
    limit::{Bounds, History},
    metrics::Reader,
    monitor::{Change, Fault, Monitor},
    target::Scale,
};
use super::{
    Options,
    conditions::{self, Condition},
    discovery::{Discovery, discover},
};

/// Time that the known resources are used without asking again.
const DISCOVERY_AGE: Duration = Duration::from_secs(30);

/// Options of the horizontal autoscaler, with upstream's defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Autoscaling {
    /// Time between two looks at an autoscaler (`--horizontal-pod-autoscaler-sync-period`). Default: 15 s.
    pub sync_period: Duration,
    /// Time that a larger proposal is kept for (`--horizontal-pod-autoscaler-downscale-stabilization`).
    /// Default: 5 minutes.
    pub downscale_stabilization: Duration,
    /// Distance of use from its target, relative to it, that changes nothing
    /// (`--horizontal-pod-autoscaler-tolerance`). Default: 0.1.
    pub tolerance: f64,
    /// Time after a pod's start in which its CPU counts only while it is ready
    /// (`--horizontal-pod-autoscaler-cpu-initialization-period`). Default: 5 minutes.
    pub cpu_initialization_period: Duration,
    /// Time after a pod's start in which a change to ready is its first
    /// (`--horizontal-pod-autoscaler-initial-readiness-delay`). Default: 30 s.
    pub initial_readiness_delay: Duration,
}

impl Default for Autoscaling {
    fn default() -> Self {
        Autoscaling {
            sync_period: Duration::from_secs(15),
            downscale_stabilization: Duration::from_secs(300),
            tolerance: 0.1,
            cpu_initialization_period: Duration::from_secs(300),
            initial_readiness_delay: Duration::from_secs(30),
        }
    }
}

pub(super) fn start(environment: Environment, options: Options) -> BoxFuture<'static, ()> {
    let autoscalers = Autoscalers::new(options.autoscaling, Monitor::new(environment.metrics.registry()));
    Controller::<HorizontalPodAutoscaler>::new()
        .named("horizontal-pod-autoscaler")
        .reads::<Pod>()
        .run_in(environment, autoscalers)
}

/// What is known of an autoscaler in this process.
#[derive(Default)]
struct Known {
    history: History,
    /// Last look, and the spec that it was for.
    looked: Option<(Timestamp, HorizontalPodAutoscalerSpec)>,
    /// Selector of the target's pods, from the last look.
    selector: Option<LabelSelector>,
}

struct Autoscalers {
    options: Autoscaling,
    known: Mutex<HashMap<ObjectKey, Known>>,
    discovery: tokio::sync::Mutex<Option<(Timestamp, Arc<Discovery>)>>,
    monitor: Monitor,
}

impl Reconcile for Autoscalers {
    type Kind = HorizontalPodAutoscaler;

    async fn reconcile(&self, cx: &Context, hpa: Arc<HorizontalPodAutoscaler>) -> Result<Action, Error> {
        let now = cx.clock().now();
        let early = self.with(cx.key(), |known| {
            let (at, spec) = known.looked.as_ref()?;
            let passed = Duration::try_from(now.duration_since(*at)).unwrap_or_default();
            // Its own status, and other changes that ask nothing new, do not count as a look.
            (*spec == hpa.spec).then(|| self.options.sync_period.saturating_sub(passed))
        });
        if let Some(left) = early.filter(|left| !left.is_zero()) {
            return Ok(Action::requeue_after(left));
        }
        self.with(cx.key(), |known| known.looked = Some((now, hpa.spec.clone())));
        self.count();
        let mut status = hpa.status.clone().unwrap_or_default();
        let scaled = |status: &HorizontalPodAutoscalerStatus| status.last_scale_time.clone();
        let before = scaled(&status);
        let done = self.look(cx, &hpa, &mut status).await;
        let change = match scaled(&status) == before {
            true => Change::None,
            false => Change::of(status.desired_replicas, status.current_replicas.unwrap_or(0)),
        };
        let fault = if done.is_ok() { Fault::None } else { Fault::Internal };
        self.monitor.looked(change, fault, since(cx, now));
        if done.is_ok() {
            let desired = self.monitor.desired.get_or_create(&[hpa.namespace(), hpa.name()]);
            desired.set(i64::from(status.desired_replicas));
        }
        if let Err(e) = cx.status(&*hpa, |next| next.status = Some(status)).await {
            if !e.is_conflict() {
                cx.event(&*hpa, EventType::Warning, "FailedUpdateStatus", e.to_string());
            }
            // The next look, not this one again: it would scale twice.
            tracing::debug!(autoscaler = %cx.key(), error = %e, "status not written");
        }
        if let Err(why) = done {
            tracing::debug!(autoscaler = %cx.key(), %why, "not scaled");
        }
        Ok(Action::requeue_after(self.options.sync_period))
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(cx.key());
        self.monitor.desired.remove(&[&cx.key().namespace, &cx.key().name]);
        self.count();
        Ok(Action::await_change())
    }
}

/// Returns the time that has passed.
fn since(cx: &Context, then: Timestamp) -> Duration {
    Duration::try_from(cx.clock().now().duration_since(then)).unwrap_or_default()
}

/// Sets a condition of the status.
fn set(status: &mut HorizontalPodAutoscalerStatus, cx: &Context, kind: &str, is: bool, why: (&str, &str)) {
    let is = if is { "True" } else { "False" };
    let now = cx.clock().time();
    let next = HorizontalPodAutoscalerCondition::make(kind, is, why.0, why.1, &now);
    conditions::set(&mut status.conditions, next);
}

/// What a metric says: a number of pods, the metric in words, and its status.
struct Reading {
    replicas: i32,
    metric: String,
    status: MetricStatus,
}

/// A metric that could not be read: the reason of the condition, its message, and the whole error.
struct Unread {
    reason: &'static str,
    message: Failure,
    whole: Failure,
}

impl Autoscalers {
    fn new(options: Autoscaling, monitor: Monitor) -> Self {
        Autoscalers { options, known: Mutex::default(), discovery: tokio::sync::Mutex::default(), monitor }
    }

    fn with<T>(&self, key: &ObjectKey, act: impl FnOnce(&mut Known) -> T) -> T {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        act(all.entry(key.clone()).or_default())
    }

    /// Tells the metrics how many autoscalers there are.
    fn count(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.monitor.autoscalers.set(i64::try_from(known).unwrap_or(i64::MAX));
    }

    /// Returns the served resources, at most [`DISCOVERY_AGE`] old.
    async fn discovered(&self, cx: &Context) -> Result<Arc<Discovery>, Error> {
        let mut kept = self.discovery.lock().await;
        let now = cx.clock().now();
        if let Some((at, found)) = &*kept
            && Duration::try_from(now.duration_since(*at)).is_ok_and(|age| age < DISCOVERY_AGE)
        {
            return Ok(found.clone());
        }
        let found = Arc::new(discover(cx.client()).await?);
        *kept = Some((now, found.clone()));
        Ok(found)
    }

    /// Looks at an autoscaler once, and scales its target if that is due. `status` gets what was found.
    ///
    /// # Errors
    /// Why a part of it was not possible; the conditions say so too.
    async fn look(
        &self,
        cx: &Context,
        hpa: &HorizontalPodAutoscaler,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<(), Failure> {
        let spec = &hpa.spec;
        let discovery = self.discovered(cx).await.map_err(|e| e.to_string());
        let (discovery, scale) = match async {
            let discovery = discovery?;
            let to = &spec.scale_target_ref;
            let group = to.api_version.as_deref().unwrap_or_default();
            let group = group.rsplit_once('/').map_or("", |(group, _)| group);
            let resource = target::resource(&discovery, group, &to.kind)?;
            let scale = Scale::get(cx.client(), resource, hpa.namespace(), &to.name).await;
            let scale = scale.map_err(|e| e.to_string())?;
            Ok::<_, Failure>((discovery, scale))
        }
        .await
        {
            Ok(found) => found,
            Err(why) => {
                cx.event(hpa, EventType::Warning, "FailedGetScale", why.clone());
                let why = format!("the HPA controller was unable to get the target's current scale: {why}");
                set(status, cx, "AbleToScale", false, ("FailedGetScale", &why));
                return Err(why);
            }
        };
        let got = "the HPA controller was able to get the target's current scale";
        set(status, cx, "AbleToScale", true, ("SucceededGetScale", got));
        let (current, now) = (scale.desired(), cx.clock().now());
        self.with(cx.key(), |known| known.history.begin(current, now));
        let least = spec.min_replicas.unwrap_or(1);
        status.current_replicas = Some(current);
        let (desired, why) = if current == 0 {
            let why = "scaling is disabled since the replica count of the target is zero";
            set(status, cx, "ScalingActive", false, ("ScalingDisabled", why));
            status.desired_replicas = 0;
            status.current_metrics = None;
            return Ok(());
        } else if current > spec.max_replicas {
            status.current_metrics = None;
            (spec.max_replicas, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < least {
            status.current_metrics = None;
            (least, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            let measured = self.measure(cx, hpa, spec, &discovery, &scale, status).await;
            let (proposed, metric) = measured.inspect_err(|e| {
                cx.event(hpa, EventType::Warning, "FailedComputeMetricsReplicas", e.clone());
            })?;
            let bounds = Bounds {
                least,
                most: spec.max_replicas,
                current,
                behavior: spec.behavior.as_ref(),
                down_window: self.options.downscale_stabilization,
            };
            let limited = self.with(cx.key(), |known| known.history.limit(proposed, &bounds, now));
            set(status, cx, "AbleToScale", true, limited.able);
            set(status, cx, "ScalingLimited", limited.limited.0, limited.limited.1);
            let why = if proposed > current {
                format!("{metric} above target")
            } else {
                "All metrics below target".to_owned()
            };
            (limited.replicas, why)
        };
        if desired == current {
            status.desired_replicas = current;
            return Ok(());
        }
        if let Err(e) = scale.set(cx.client(), desired).await {
            let text = format!("New size: {desired}; reason: {why}; error: {e}");
            cx.event(hpa, EventType::Warning, "FailedRescale", text);
            let why = format!("the HPA controller was unable to update the target scale: {e}");
            set(status, cx, "AbleToScale", false, ("FailedUpdateScale", &why));
            return Err(why);
        }
        self.with(cx.key(), |known| known.history.scaled(current, desired, now));
        let done = format!("the HPA controller was able to update the target scale to {desired}");
        set(status, cx, "AbleToScale", true, ("SucceededRescale", &done));
        let text = format!("New size: {desired}; reason: {why}");
        cx.event(hpa, EventType::Normal, "SuccessfulRescale", text);
        status.desired_replicas = desired;
        status.last_scale_time = Some(cx.clock().time());
        Ok(())
    }

    /// Returns the largest number that a metric proposes, and that metric in words.
    ///
    /// # Errors
    /// No metric could be read, or one could not and the others ask for fewer pods.
    async fn measure(
        &self,
        cx: &Context,
        hpa: &HorizontalPodAutoscaler,
        spec: &HorizontalPodAutoscalerSpec,
        discovery: &Discovery,
        scale: &Scale,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<(i32, String), Failure> {
        let selector = self.selector(cx, hpa, scale).map_err(|(event, why, condition)| {
            cx.event(hpa, EventType::Warning, event, why.clone());
            let reason = if event == "SelectorRequired" { "InvalidSelector" } else { event };
            set(status, cx, "ScalingActive", false, (reason, condition.unwrap_or(&why)));
            why
        })?;
        let mut pods = cx.caches().of::<Pod>().in_namespace(hpa.namespace());
        pods.retain(|pod| selector.matches(pod.metadata.labels.as_ref()));
        let measuring = Measuring {
            options: &self.options,
            reader: Reader { client: cx.client(), discovery, namespace: hpa.namespace() },
            selector: scale.selector(),
            pods: &pods,
            current: scale.desired(),
            present: scale.present(),
            tolerance: Tolerance::of(spec.behavior.as_ref(), self.options.tolerance),
            now: cx.clock().now(),
        };
        let all = spec.metrics.as_deref().unwrap_or_default();
        let (mut best, mut first, mut unread) = (None::<(i32, String)>, None::<Unread>, 0);
        let mut statuses = Vec::with_capacity(all.len());
        for metric in all {
            let begun = cx.clock().now();
            let read = measuring.read(metric).await;
            let change = read.as_ref().map_or(Change::None, |r| Change::of(r.replicas, measuring.current));
            let fault = match &read {
                Ok(_) => Fault::None,
                Err(unread) if unread.reason == UNKNOWN_TYPE => Fault::Spec,
                Err(_) => Fault::Internal,
            };
            self.monitor.computed(change, fault, since(cx, begun), &metric.type_);
            match read {
                Ok(reading) => {
                    statuses.push(reading.status);
                    if best.as_ref().is_none_or(|(replicas, _)| reading.replicas > *replicas) {
                        best = Some((reading.replicas, reading.metric));
                    }
                }
                Err(failed) => {
                    statuses.push(MetricStatus::default());
                    cx.event(hpa, EventType::Warning, failed.reason, failed.message.clone());
                    unread += 1;
                    first.get_or_insert(failed);
                }
            }
        }
        status.current_metrics = Some(statuses);
        let fewer = |(replicas, _): &(i32, String)| unread > 0 && *replicas < measuring.current;
        match (best.filter(|best| !fewer(best)), first) {
            (Some((replicas, metric)), _) => {
                let why = format!("the HPA was able to successfully calculate a replica count from {metric}");
                set(status, cx, "ScalingActive", true, ("ValidMetricFound", &why));
                Ok((replicas, metric))
            }
            (None, Some(Unread { reason, message, whole })) => {
                let why = format!("the HPA was unable to compute the replica count: {message}");
                set(status, cx, "ScalingActive", false, (reason, &why));
                let count = all.len();
                Err(format!("invalid metrics ({unread} invalid out of {count}), first error is: {whole}"))
            }
            // Without metrics: the API server sets one by default.
            (None, None) => Err("invalid metrics (0 invalid out of 0), first error is: none is given".into()),
        }
    }

    /// Returns the selector of the target's pods, and remembers it.
    ///
    /// # Errors
    /// Reason of the event, message, and the condition's message if it is another: there is no selector, it
    /// is not valid, or another autoscaler selects one of the pods, too.
    fn selector(
        &self,
        cx: &Context,
        hpa: &HorizontalPodAutoscaler,
        scale: &Scale,
    ) -> Result<LabelSelector, (&'static str, Failure, Option<&'static str>)> {
        let text = scale.selector();
        if text.is_empty() {
            let missing = "the HPA target's scale is missing a selector";
            return Err(("SelectorRequired", "selector is required".into(), Some(missing)));
        }
        let selector = text.parse::<LabelSelector>().map_err(|e| {
            let why = format!("couldn't convert selector into a corresponding internal selector object: {e}");
            ("InvalidSelector", why, None)
        })?;
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(cx.key().clone()).or_default().selector = Some(selector.clone());
        let rivals: Vec<(&ObjectKey, &LabelSelector)> = all
            .iter()
            .filter(|(key, _)| key.namespace == hpa.namespace() && *key != cx.key())
            .filter_map(|(key, known)| Some((key, known.selector.as_ref()?)))
            .collect();
        let pods = if rivals.is_empty() {
            Vec::new()
        } else {
            cx.caches().of::<Pod>().in_namespace(hpa.namespace())
        };
        let own = pods.iter().filter(|pod| selector.matches(pod.metadata.labels.as_ref()));
        let mut too: Vec<String> = own
            .flat_map(|pod| {
                let selects =
                    |(_, other): &&(&ObjectKey, &LabelSelector)| other.matches(pod.metadata.labels.as_ref());
                rivals.iter().filter(selects).map(|(key, _)| format!("{}/{}", key.namespace, key.name))
            })
            .collect();
        if too.is_empty() {
            return Ok(selector);
        }
        too.push(format!("{}/{}", hpa.namespace(), hpa.name()));
        too.sort();
        too.dedup();
        let why = format!("pods by selector {text} are controlled by multiple HPAs: [{}]", too.join(" "));
        Err(("AmbiguousSelector", why, None))
    }
}

/// One look at the metrics of a target.
struct Measuring<'a> {
    options: &'a Autoscaling,
    reader: Reader<'a>,
    selector: &'a str,
    pods: &'a [Arc<Pod>],
    /// Number of pods that is asked for now.
    current: i32,
    /// Number of pods that there are now.
    present: i32,
    tolerance: Tolerance,
    now: Timestamp,
}

fn milli(quantity: Option<&ApiQuantity>) -> Option<i64> {
    quantity?.0.parse::<Quantity>().ok().map(|q| q.milli())
}

fn of_milli(milli: i64) -> Option<ApiQuantity> {
    Some(Quantity::from_milli(milli).to_api())
}

/// The average use in the notation of its resource: bytes in Ki, Mi, ...
fn amount(resource: &str, milli: i64) -> Option<ApiQuantity> {
    if resource != "memory" {
        return of_milli(milli);
    }
    let bytes = milli / 1000 + i64::from(milli % 1000 > 0);
    Some(Quantity::from_bytes(bytes).to_api())
}

/// Reason for a metric of a type that is not known.
const UNKNOWN_TYPE: &str = "InvalidMetricSourceType";
const NO_TARGET: &str = "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set";

impl Measuring<'_> {
    async fn read(&self, metric: &MetricSpec) -> Result<Reading, Unread> {
        let kind = metric.type_.as_str();
        let status = MetricStatus { type_: kind.to_owned(), ..MetricStatus::default() };
        if let ("Resource", Some(source)) = (kind, &metric.resource) {
            let read = self.resource(&source.name, None, &source.target).await;
            let (proposal, metric) = read.map_err(|message| Unread {
                reason: "FailedGetResourceMetric",
                whole: format!("failed to get {} resource metric value: {message}", source.name),
                message,
            })?;
            let current = of_usage(&source.name, &proposal.usage);
            let status = MetricStatus {
                resource: Some(ResourceMetricStatus { name: source.name.clone(), current }),
                ..status
            };
            return Ok(Reading { replicas: proposal.replicas, metric, status });
        }
        if let ("ContainerResource", Some(source)) = (kind, &metric.container_resource) {
            let read = self.resource(&source.name, Some(&source.container), &source.target).await;
            let (proposal, metric) = read.map_err(|message| Unread {
                reason: "FailedGetContainerResourceMetric",
                whole: format!("failed to get {} container metric value: {message}", source.container),
                message,
            })?;
            let current = of_usage(&source.name, &proposal.usage);
            let (name, container) = (source.name.clone(), source.container.clone());
            let status = MetricStatus {
                container_resource: Some(ContainerResourceMetricStatus { name, container, current }),
                ..status
            };
            return Ok(Reading { replicas: proposal.replicas, metric, status });
        }
        if let ("Pods", Some(source)) = (kind, &metric.pods) {
            let unread = |message: Failure| Unread {
                reason: "FailedGetPodsMetric",
                whole: format!("failed to get pods metric value: {message}"),
                message,
            };
            let name = &source.metric.name;
            let samples = self.reader.pods(&source.metric, self.selector).await;
            let samples = samples.map_err(|e| unread(format!("unable to get metric {name}: {e}")))?;
            let wanted = milli(source.target.average_value.as_ref()).unwrap_or(0);
            let observed = Observed { pods: self.pods, samples, cpu: None, now: self.now };
            let proposal = observed.propose(self.current, self.tolerance, || Ok(Target::Average(wanted)));
            let Proposal { replicas, usage } = proposal.map_err(unread)?;
            let current =
                MetricValueStatus { average_value: of_milli(usage.average), ..MetricValueStatus::default() };
            let metric = source.metric.clone();
            let status = MetricStatus { pods: Some(PodsMetricStatus { metric, current }), ..status };
            return Ok(Reading { replicas, metric: format!("pods metric {name}"), status });
        }
        if let ("Object", Some(source)) = (kind, &metric.object) {
            let (name, object) = (&source.metric.name, &source.described_object);
            let unread = |message: Failure| Unread {
                reason: "FailedGetObjectMetric",
                whole: format!("failed to get object metric value: {message}"),
                message,
            };
            let usage = self.reader.object(object, &source.metric).await.map_err(|e| {
                let (kind, namespace) = (&object.kind, self.reader.namespace);
                unread(format!("unable to get metric {name}: {kind} on {namespace} {}/{e}", object.name))
            })?;
            let (replicas, current) = self.other(usage, &source.target).map_err(|e| {
                unread(e.unwrap_or_else(|| {
                    "invalid object metric source: neither a value target nor an average value target was set".into()
                }))
            })?;
            let (metric, described_object) = (source.metric.clone(), object.clone());
            let words = format!("{} metric {name}", object.kind);
            let status = ObjectMetricStatus { metric, described_object, current };
            let status =
                MetricStatus { object: Some(status), type_: kind.to_owned(), ..MetricStatus::default() };
            return Ok(Reading { replicas, metric: words, status });
        }
        if let ("External", Some(source)) = (kind, &metric.external) {
            let name = &source.metric.name;
            let unread = |message: Failure| Unread {
                reason: "FailedGetExternalMetric",
                whole: format!("failed to get {name} external metric value: {message}"),
                message,
            };
            let usage = self.reader.external(&source.metric).await.map_err(|e| {
                let own = metrics::selector(&source.metric).unwrap_or_default();
                unread(format!("unable to get external metric {}/{name}/{own}: {e}", self.reader.namespace))
            })?;
            let (replicas, current) = self.other(usage, &source.target).map_err(|e| {
                unread(e.unwrap_or_else(|| {
                    "invalid external metric source: neither a value target nor an average value target was set".into()
                }))
            })?;
            let metric = source.metric.clone();
            let status = MetricStatus { external: Some(ExternalMetricStatus { metric, current }), ..status };
            return Ok(Reading { replicas, metric: format!("external metric {name}"), status });
        }
        let message = format!("unknown metric source type {kind:?}");
        Err(Unread { reason: UNKNOWN_TYPE, whole: message.clone(), message })
    }

    /// A proposal by the use of a resource.
    async fn resource(
        &self,
        name: &str,
        container: Option<&str>,
        wanted: &MetricTarget,
    ) -> Result<(Proposal, String), Failure> {
        let by_value = milli(wanted.average_value.as_ref());
        let what = if by_value.is_some() { "usage" } else { "utilization" };
        let failed = |e: Failure| format!("failed to get {name} {what}: {e}");
        let Some(percent) = wanted.average_utilization.or_else(|| by_value.map(|_| 0)) else {
            return Err(NO_TARGET.into());
        };
        let samples = self.reader.resource(name, self.selector, container).await;
        let samples =
            samples.map_err(|e| failed(format!("unable to get metrics for resource {name}: {e}")))?;
        let delays = Delays {
            cpu_initialization: self.options.cpu_initialization_period,
            initial_readiness: self.options.initial_readiness_delay,
        };
        let cpu = (name == "cpu").then_some(delays);
        let observed = Observed { pods: self.pods, samples, cpu, now: self.now };
        let target = || match by_value {
            Some(value) => Ok(Target::Average(value)),
            None => {
                let requests = calculate::requests(self.pods, container, name)?;
                Ok(Target::Utilization { percent, requests })
            }
        };
        let proposal = observed.propose(self.current, self.tolerance, target).map_err(failed)?;
        let words = match (by_value, container) {
            (Some(_), _) => format!("{name} resource"),
            (None, None) => format!("{name} resource utilization (percentage of request)"),
            (None, Some(_)) => format!("{name} container resource utilization (percentage of request)"),
        };
        Ok((proposal, words))
    }

    /// A proposal by a metric of something else than pods.
    ///
    /// # Errors
    /// The selector finds no pods; `None` if the target has no value.
    fn other(&self, usage: i64, target: &MetricTarget) -> Result<(i32, MetricValueStatus), Option<Failure>> {
        let none = MetricValueStatus::default();
        if let Some(wanted) = milli(target.average_value.as_ref()) {
            let (replicas, share) = calculate::by_share(usage, wanted, self.present, self.tolerance);
            return Ok((replicas, MetricValueStatus { average_value: of_milli(share), ..none }));
        }
        let wanted = milli(target.value.as_ref()).ok_or(None)?;
        let replicas = calculate::by_whole(usage, wanted, self.current, self.tolerance, self.pods)?;
        Ok((replicas, MetricValueStatus { value: of_milli(usage), ..none }))
    }
}

fn of_usage(resource: &str, usage: &Usage) -> MetricValueStatus {
    MetricValueStatus {
        average_utilization: usage.utilization,
        average_value: amount(resource, usage.average),
        value: None,
    }
}
