//! Durations of admission, by step and by plugin, with upstream's names.

use std::{future::Future, sync::Arc};

use k8s_core::status::ApiStatus;
use k8s_metrics::{Family, Histogram, Registry};
use tokio::time::Instant;

use super::{Admit, Operation};

/// Upper bounds of the duration buckets in seconds, as upstream's.
const SECONDS: [f64; 6] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
/// Operations in the order of [`Operation`].
const OPERATIONS: [Operation; 4] =
    [Operation::Create, Operation::Update, Operation::Delete, Operation::Connect];

/// A step of admission.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Plugins may change the object.
    Admit,
    /// Plugins may refuse the request.
    Validate,
}

/// Steps in the order of [`Step`].
const STEPS: [&str; 2] = ["admit", "validate"];

/// Histograms of requests that are not rejected, by step and operation.
type Accepted = [[Histogram; 4]; 2];

fn accepted(get: impl Fn(&str, &str) -> Histogram) -> Accepted {
    STEPS.map(|step| OPERATIONS.map(|operation| get(step, operation.name())))
}

/// The durations of admission.
pub(super) struct Durations {
    steps: Family<3, Histogram>,
    step: Accepted,
    plugins: Family<4, Histogram>,
}

/// A plugin of the chain, and its durations.
pub(super) struct Row {
    pub(super) plugin: Arc<dyn Admit>,
    name: &'static str,
    accepted: Accepted,
}

impl Durations {
    pub(super) fn new(registry: &Registry) -> Self {
        let steps = registry.register(
            "apiserver_admission_step_admission_duration_seconds",
            "Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit).",
            Family::new_with_constructor(["type", "operation", "rejected"], |_| Histogram::new(SECONDS)),
        );
        let plugins = registry.register(
            "apiserver_admission_controller_admission_duration_seconds",
            "Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).",
            Family::new_with_constructor(["name", "type", "operation", "rejected"], |_| Histogram::new(SECONDS)),
        );
        let step = accepted(|step, operation| steps.get_or_create(&[step, operation, "false"]));
        Durations { steps, step, plugins }
    }

    /// Returns the row of a plugin.
    pub(super) fn row(&self, name: &'static str, plugin: Arc<dyn Admit>) -> Row {
        let get = |step: &str, operation: &str| self.plugins.get_or_create(&[name, step, operation, "false"]);
        Row { plugin, name, accepted: accepted(get) }
    }

    /// Measures a whole step.
    #[expect(clippy::disallowed_methods, reason = "the duration of a step, in virtual time as well")]
    pub(super) async fn step<T>(
        &self,
        step: Step,
        operation: Operation,
        work: impl Future<Output = Result<T, ApiStatus>>,
    ) -> Result<T, ApiStatus> {
        let begun = Instant::now();
        let done = work.await;
        let elapsed = begun.elapsed().as_secs_f64();
        match &done {
            Ok(_) => self.step[step as usize][operation as usize].observe(elapsed),
            Err(_) => {
                let labels = [STEPS[step as usize], operation.name(), "true"];
                self.steps.get_or_create(&labels).observe(elapsed);
            }
        }
        done
    }

    /// Measures the work of a plugin.
    #[expect(clippy::disallowed_methods, reason = "the duration of a plugin, in virtual time as well")]
    pub(super) async fn plugin<T>(
        &self,
        row: &Row,
        step: Step,
        operation: Operation,
        work: impl Future<Output = Result<T, ApiStatus>>,
    ) -> Result<T, ApiStatus> {
        let begun = Instant::now();
        let done = work.await;
        let elapsed = begun.elapsed().as_secs_f64();
        match &done {
            Ok(_) => row.accepted[step as usize][operation as usize].observe(elapsed),
            Err(_) => {
                let labels = [row.name, STEPS[step as usize], operation.name(), "true"];
                self.plugins.get_or_create(&labels).observe(elapsed);
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_in_the_order_of_their_enums() {
        for (at, operation) in OPERATIONS.into_iter().enumerate() {
            assert_eq!(operation as usize, at);
        }
        assert_eq!((STEPS[Step::Admit as usize], STEPS[Step::Validate as usize]), ("admit", "validate"));
    }
}
