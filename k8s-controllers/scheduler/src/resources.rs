//! Resource amounts as plain integers.

use std::collections::BTreeMap;

use k8s_core::{
    api::{
        api::core::v1::{Container, PodSpec, ResourceRequirements},
        apimachinery::pkg::api::resource::Quantity as ApiQuantity,
    },
    meta::Quantity,
};

/// Resource amounts: millicores, bytes, and whole units of all others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU in millicores.
    pub milli_cpu: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Ephemeral storage in bytes.
    pub ephemeral: i64,
    /// Other resources (huge pages, devices) by name. Rare, so a list is enough.
    pub others: Vec<(String, i64)>,
}

impl Resources {
    /// Converts from quantities. Malformed ones count as 0; the API server does not admit them.
    #[must_use]
    pub fn from_api(map: Option<&BTreeMap<String, ApiQuantity>>) -> Self {
        let mut result = Resources::default();
        for (name, quantity) in map.into_iter().flatten() {
            let quantity = Quantity::try_from(quantity).unwrap_or(Quantity::ZERO);
            match name.as_str() {
                "cpu" => result.milli_cpu = quantity.milli(),
                "memory" => result.memory = quantity.units(),
                "ephemeral-storage" => result.ephemeral = quantity.units(),
                "pods" => {}
                _ => result.others.push((name.clone(), quantity.units())),
            }
        }
        result
    }

    /// Returns the amount of another resource, 0 by default.
    #[must_use]
    pub fn other(&self, name: &str) -> i64 {
        self.others.iter().find(|(n, _)| n == name).map_or(0, |(_, amount)| *amount)
    }

    fn combine(&mut self, other: &Resources, f: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = f(self.milli_cpu, other.milli_cpu);
        self.memory = f(self.memory, other.memory);
        self.ephemeral = f(self.ephemeral, other.ephemeral);
        for (name, amount) in &other.others {
            match self.others.iter_mut().find(|(n, _)| n == name) {
                Some((_, have)) => *have = f(*have, *amount),
                None => self.others.push((name.clone(), f(0, *amount))),
            }
        }
    }

    /// Adds; saturates at the limits of i64.
    pub fn add(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_add);
    }

    /// Subtracts; saturates at the limits of i64.
    pub fn subtract(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_sub);
    }

    /// Raises each amount to at least the other's.
    pub fn raise_to(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }

    /// Computes a pod's effective requests: the maximum of the containers' sum and of each init container
    /// with the sidecars started before it, plus the overhead. Pod-level requests replace those of the
    /// containers.
    ///
    /// ```
    /// use k8s_core::api::PodSpec;
    /// use k8s_scheduler::Resources;
    /// let spec: PodSpec = serde_json::from_value(serde_json::json!({"containers": [
    ///     {"name": "a", "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}}},
    ///     {"name": "b", "resources": {"requests": {"cpu": "1"}}},
    /// ]}))?;
    /// let requests = Resources::of_pod(&spec);
    /// assert_eq!((requests.milli_cpu, requests.memory), (1250, 64 << 20));
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    #[must_use]
    pub fn of_pod(spec: &PodSpec) -> Self {
        let mut sidecars = Resources::default();
        let mut initial = Resources::default();
        for container in spec.init_containers.iter().flatten() {
            let own = requests(container);
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&own);
                initial.raise_to(&sidecars);
            } else {
                let mut together = own;
                together.add(&sidecars);
                initial.raise_to(&together);
            }
        }
        let mut total = sidecars;
        for container in &spec.containers {
            total.add(&requests(container));
        }
        total.raise_to(&initial);
        if let Some(whole) = spec.resources.as_ref().map(of_requirements) {
            let replace = |have: &mut i64, with: i64| {
                if with > 0 {
                    *have = with;
                }
            };
            replace(&mut total.milli_cpu, whole.milli_cpu);
            replace(&mut total.memory, whole.memory);
        }
        if let Some(overhead) = &spec.overhead {
            total.add(&Resources::from_api(Some(overhead)));
        }
        total
    }
}

/// Requests, defaulted from limits.
fn of_requirements(requirements: &ResourceRequirements) -> Resources {
    let mut all = requirements.limits.clone().unwrap_or_default();
    all.extend(requirements.requests.clone().unwrap_or_default());
    Resources::from_api(Some(&all))
}

fn requests(container: &Container) -> Resources {
    container.resources.as_ref().map(of_requirements).unwrap_or_default()
}
