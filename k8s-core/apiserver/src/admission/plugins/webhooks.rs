//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: servers that are asked about requests.
//!
//! Mutating webhooks are called one after the other, in the order of their configurations' names; each sees
//! the changes of those before. Validating ones are called at the same time. A webhook that cannot be asked
//! refuses the request, or is left out (`failurePolicy`).
//!
//! Guarantees: configurations of webhooks and policies are never subject to a webhook, so that one that does
//! not answer can always be removed. A call ends at its timeout. What a patch changes of the server's own
//! fields is set again.

mod hook;
mod review;

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use k8s_core::status::ApiStatus;
use k8s_metrics::{Counter, Family, Histogram, Registry};
use k8s_store::Store;
use serde_json::{Value, json};

use super::Parts;
use crate::{
    admission::{Admission, Admit, Connection, Deletion, Operation, cached::Cached, event::Event},
    auth::Authorization,
    resources::Resource,
};
use hook::{Failure, Hook};

const MUTATING: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
const VALIDATING: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";

/// The group of configurations of webhooks and policies, which are exempt.
pub(super) const EXEMPT: &str = "admissionregistration.k8s.io";

/// The webhooks of one kind.
struct Webhooks {
    store: Store,
    authorization: Arc<Authorization>,
    hooks: Cached<Vec<Hook>, 1>,
    metrics: Metrics,
    /// `admit` or `validating` in metrics.
    step: &'static str,
}

/// Metrics of webhooks, with upstream's names.
struct Metrics {
    duration: Family<4, Histogram>,
    rejections: Family<5, Counter>,
    failed_open: Family<2, Counter>,
}

/// The step in which webhooks are called one after the other.
const ONE_BY_ONE: &str = "admit";
/// Upper bounds of the duration buckets in seconds, as upstream's.
const SECONDS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];

impl Metrics {
    fn new(registry: &Registry) -> Self {
        Metrics {
            duration: registry.register(
                "apiserver_admission_webhook_admission_duration_seconds",
                "Admission webhook latency in seconds by webhook, step, operation and rejection.",
                Family::new_with_constructor(["name", "type", "operation", "rejected"], |_| Histogram::new(SECONDS)),
            ),
            rejections: registry.register(
                "apiserver_admission_webhook_rejection_count",
                "Number of requests that a webhook rejected, by webhook, step, operation, error type and code.",
                Family::new(["name", "type", "operation", "error_type", "rejection_code"]),
            ),
            failed_open: registry.register(
                "apiserver_admission_webhook_fail_open_count",
                "Number of calls that failed and were left out, by webhook and step.",
                Family::new(["name", "type"]),
            ),
        }
    }
}

impl Webhooks {
    fn new(parts: &Parts, resource: &'static str, step: &'static str) -> Self {
        Webhooks {
            store: parts.store.clone(),
            authorization: parts.authorization.clone(),
            hooks: Cached::new([resource]),
            metrics: Metrics::new(&parts.metrics),
            step,
        }
    }

    fn hooks(&self, resource: &'static str) -> Arc<Vec<Hook>> {
        self.hooks.get(&self.store, || {
            let configurations = self.store.snapshot(resource);
            configurations
                .range("", "")
                .filter_map(|stored| serde_json::from_slice::<Value>(&stored.json).ok())
                .flat_map(|configuration| Hook::of_configuration(&configuration))
                .collect()
        })
    }

    /// Calls a webhook and measures the call. `Ok(None)`: the call failed, and is left out.
    #[expect(clippy::disallowed_methods, reason = "the duration of a call, in virtual time as well")]
    async fn ask(
        &self,
        hook: &Hook,
        event: &Event<'_>,
        resource: &Resource,
        annotation: &str,
    ) -> Result<Option<review::Answer>, ApiStatus> {
        let begun = tokio::time::Instant::now();
        let result = hook.call(event, resource, &self.store).await;
        let (name, operation) = (hook.name.as_str(), event.operation.name());
        let rejected = |kind: &str, code: u16| {
            self.metrics
                .rejections
                .get_or_create(&[name, self.step, operation, kind, &code.to_string()])
                .inc();
        };
        let outcome = match result {
            Ok(answer) => {
                for (key, value) in &answer.annotations {
                    event.call.annotate(format!("{name}/{key}"), value.clone());
                }
                answer.warnings.iter().for_each(|warning| event.call.warn_once(warning.clone()));
                match answer.refusal(name) {
                    Some(refusal) => {
                        rejected("no_error", refusal.code());
                        Err(refusal)
                    }
                    None => Ok(Some(answer)),
                }
            }
            Err(Failure::Call(why)) if hook.ignores_failures => {
                tracing::warn!(webhook = name, error = %why, "the webhook cannot be asked and is left out");
                self.metrics.failed_open.get_or_create(&[name, self.step]).inc();
                event.call.annotate(format!("failed-open.{annotation}"), name.to_owned());
                Ok(None)
            }
            Err(Failure::Call(why)) => {
                tracing::warn!(webhook = name, error = %why, "the webhook cannot be asked: the request is refused");
                rejected("calling_webhook_error", 503);
                Err(ApiStatus::internal(format!("failed calling webhook {name:?}: {why}")))
            }
            Err(Failure::Refused(status)) => {
                rejected("apiserver_internal_error", 0);
                Err(status)
            }
        };
        let labels = [name, self.step, operation, if outcome.is_err() { "true" } else { "false" }];
        self.metrics.duration.get_or_create(&labels).observe(begun.elapsed().as_secs_f64());
        if self.step == ONE_BY_ONE {
            event.call.wait(begun.elapsed());
        }
        outcome
    }
}

fn handles(resource: &Resource) -> bool {
    resource.group != EXEMPT
}

/// The plugin of webhooks that change objects.
pub(super) struct Mutating(Webhooks);

impl Mutating {
    pub(super) fn new(parts: &Parts) -> Self {
        Mutating(Webhooks::new(parts, MUTATING, ONE_BY_ONE))
    }

    /// Calls the webhooks for a request without an object that could be changed.
    async fn ask_all(&self, event: &Event<'_>) -> Result<(), ApiStatus> {
        for (i, hook) in self.0.hooks(MUTATING).iter().enumerate() {
            let place = hook.is_for(event, &self.0.store, &self.0.authorization).await?;
            let Some(place) = place else { continue };
            let resource = place.of(event);
            let annotation = format!("mutating.webhook.admission.k8s.io/round_0_index_{i}");
            let answer = self.0.ask(hook, event, resource, &annotation).await?;
            if answer.is_some_and(|answer| answer.changes()) {
                let name = &hook.name;
                let why = format!(
                    "admission webhook {name:?} attempted to modify the object, which is not supported for this operation"
                );
                return Err(ApiStatus::internal(why));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Admit for Mutating {
    fn handles(&self, _: Operation, resource: &Resource, _: &str) -> bool {
        handles(resource)
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let hooks = self.0.hooks(MUTATING);
        if hooks.is_empty() {
            return Ok(());
        }
        let round = u8::from(admission.rounds.again);
        if admission.rounds.again && admission.rounds.changed_since(admission.object) {
            // The plugins before have changed the object in this round.
            admission.rounds.call_again();
        }
        for (i, hook) in hooks.iter().enumerate() {
            if admission.rounds.again && !admission.rounds.is_due(&hook.id) {
                continue;
            }
            let (call, resource) = (admission.call, admission.resource);
            let event = Event::of_write(admission);
            let Some(place) = hook.is_for(&event, &self.0.store, &self.0.authorization).await? else {
                continue;
            };
            let target = place.of(&event);
            let annotation = format!("mutating.webhook.admission.k8s.io/round_{round}_index_{i}");
            let answer = self.0.ask(hook, &event, target, &annotation).await?;
            let changed = match answer {
                Some(answer) => hook.patched(&answer, &event, target, &self.0.store).await?,
                None => None,
            };
            let note = json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": changed.is_some()});
            let annotation = annotation.trim_start_matches("mutating.");
            call.annotate(format!("mutation.{annotation}"), note.to_string());
            if let Some(mut object) = changed {
                if event.is_whole() {
                    object = place.stored(resource, object, &self.0.store).await?;
                    resource.default(&mut object);
                }
                *admission.object = object;
                admission.reset = true;
                admission.rounds.call_again();
                admission.rounds.wanted = true;
            }
            if hook.reinvoked {
                admission.rounds.wait(&hook.id);
            }
        }
        admission.rounds.remember(admission.object);
        Ok(())
    }

    async fn delete(&self, deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        if self.0.hooks(MUTATING).is_empty() {
            return Ok(());
        }
        let old = deletion.object()?;
        self.ask_all(&Event::of_deletion(deletion, &old)).await
    }

    async fn connect(&self, connection: &Connection<'_>) -> Result<(), ApiStatus> {
        self.ask_all(&Event::of_connection(connection)).await
    }
}

/// The plugin of webhooks that refuse requests.
pub(super) struct Validating(Webhooks);

impl Validating {
    pub(super) fn new(parts: &Parts) -> Self {
        Validating(Webhooks::new(parts, VALIDATING, "validating"))
    }

    #[expect(clippy::disallowed_methods, reason = "the duration of calls, in virtual time as well")]
    async fn ask_all(&self, event: &Event<'_>) -> Result<(), ApiStatus> {
        let hooks = self.0.hooks(VALIDATING);
        let mut relevant = Vec::new();
        for hook in hooks.iter() {
            if let Some(place) = hook.is_for(event, &self.0.store, &self.0.authorization).await? {
                relevant.push((hook, place));
            }
        }
        let calls = relevant.iter().enumerate().map(|(i, (hook, place))| async move {
            let annotation = format!("validating.webhook.admission.k8s.io/round_0_index_{i}");
            self.0.ask(hook, event, place.of(event), &annotation).await
        });
        let begun = tokio::time::Instant::now();
        let answers = join_all(calls).await;
        event.call.wait(begun.elapsed());
        answers.into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Admit for Validating {
    fn handles(&self, _: Operation, resource: &Resource, _: &str) -> bool {
        handles(resource)
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        if self.0.hooks(VALIDATING).is_empty() {
            return Ok(());
        }
        self.ask_all(&Event::of_write(admission)).await
    }

    async fn delete(&self, deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        if self.0.hooks(VALIDATING).is_empty() {
            return Ok(());
        }
        let old = deletion.object()?;
        self.ask_all(&Event::of_deletion(deletion, &old)).await
    }

    async fn connect(&self, connection: &Connection<'_>) -> Result<(), ApiStatus> {
        self.ask_all(&Event::of_connection(connection)).await
    }
}
