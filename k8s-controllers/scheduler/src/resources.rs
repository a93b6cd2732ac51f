//! Resource amounts as plain integers.

use std::collections::BTreeMap;

use k8s_core::{
    api::{
        api::core::v1::{Container, ContainerStatus, Pod, PodSpec, ResourceRequirements},
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
        Self::total(spec, &|container| requests(container))
    }

    /// Computes the requests of a pod that may be in the course of a resize: for each container the larger of
    /// its spec and of the amounts that its node allocated or applied. If the node finds the resize
    /// infeasible, its spec does not count.
    pub(crate) fn of_placed(pod: &Pod) -> Self {
        let (Some(spec), status) = (&pod.spec, pod.status.as_ref()) else { return Resources::default() };
        let infeasible = status.and_then(|s| s.conditions.as_ref()).is_some_and(|all| {
            all.iter().any(|c| c.type_ == "PodResizePending" && c.reason.as_deref() == Some("Infeasible"))
        });
        let regular = status.and_then(|s| s.container_statuses.as_ref());
        let initial = status.and_then(|s| s.init_container_statuses.as_ref());
        let statuses: Vec<&ContainerStatus> = regular.into_iter().chain(initial).flatten().collect();
        Self::total(spec, &|container| {
            let mut wanted = requests(container);
            let Some(status) = statuses.iter().find(|s| s.name == container.name) else { return wanted };
            let applied = status.resources.as_ref().and_then(|r| r.requests.as_ref());
            let mut there = Resources::from_api(status.allocated_resources.as_ref());
            there.raise_to(&Resources::from_api(applied));
            if infeasible && there != Resources::default() {
                return there;
            }
            wanted.raise_to(&there);
            wanted
        })
    }

    /// Computes the requests as scores count them: 100m CPU and 200 MiB memory for a container without any.
    pub(crate) fn counted(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Resources::default() };
        Self::total(spec, &|container| {
            let mut own = requests(container);
            let given = |name: &str| {
                let resources = container.resources.as_ref();
                let listed =
                    |map: Option<&BTreeMap<String, ApiQuantity>>| map.is_some_and(|m| m.contains_key(name));
                listed(resources.and_then(|r| r.requests.as_ref()))
                    || listed(resources.and_then(|r| r.limits.as_ref()))
            };
            if !given("cpu") {
                own.milli_cpu = 100;
            }
            if !given("memory") {
                own.memory = 200 * 1024 * 1024;
            }
            own
        })
    }

    fn total(spec: &PodSpec, requests: &dyn Fn(&Container) -> Resources) -> Self {
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
        if let Some(whole) = &spec.resources {
            total.replace_with(whole);
        }
        if let Some(overhead) = &spec.overhead {
            total.add(&Resources::from_api(Some(overhead)));
        }
        total
    }

    /// Replaces amounts by those of the pod's own requests: CPU, memory and huge pages.
    fn replace_with(&mut self, whole: &ResourceRequirements) {
        let own = of_requirements(whole);
        let given = |name: &str| {
            let in_map =
                |m: &Option<BTreeMap<String, ApiQuantity>>| m.as_ref().is_some_and(|m| m.contains_key(name));
            in_map(&whole.requests) || in_map(&whole.limits)
        };
        if given("cpu") {
            self.milli_cpu = own.milli_cpu;
        }
        if given("memory") {
            self.memory = own.memory;
        }
        for (name, amount) in own.others.iter().filter(|(name, _)| name.starts_with("hugepages-")) {
            match self.others.iter_mut().find(|(known, _)| known == name) {
                Some((_, have)) => *have = *amount,
                None => self.others.push((name.clone(), *amount)),
            }
        }
    }

    /// Returns the amount of a resource by its API name.
    pub(crate) fn amount(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.milli_cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral,
            other => self.other(other),
        }
    }

    /// Returns the names and amounts.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, i64)> {
        let fixed = [("cpu", self.milli_cpu), ("memory", self.memory), ("ephemeral-storage", self.ephemeral)];
        fixed.into_iter().chain(self.others.iter().map(|(name, amount)| (name.as_str(), *amount)))
    }

    /// Returns true if any amount is smaller than the other's.
    pub(crate) fn is_below(&self, other: &Resources) -> bool {
        self.milli_cpu < other.milli_cpu
            || self.memory < other.memory
            || self.ephemeral < other.ephemeral
            || other.others.iter().any(|(name, amount)| self.other(name) < *amount)
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
