//! Metrics of the kubelet, with upstream's names. Kubelets that share a registry add up.

use k8s_metrics::{Counter, Family, Gauge, Registry, encode};

use crate::{types::PodStatus, view::PodView};

/// The metrics of one kubelet.
pub(crate) struct Metrics {
    registry: Registry,
    active: Gauge,
    running: Gauge,
    containers: Gauge,
    started_containers: Counter,
    evictions: Family<1, Counter>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        k8s_metrics::process::register(registry);
        let containers: Family<1, Gauge> = registry.register(
            "kubelet_running_containers",
            "Number of containers currently running",
            Family::new(["container_state"]),
        );
        let started: Family<1, Counter> = registry.register(
            "kubelet_started_containers_total",
            "Cumulative number of containers started",
            Family::new(["container_type"]),
        );
        Metrics {
            active: registry.register(
                "kubelet_active_pods",
                "The number of pods the kubelet considers active",
                Gauge::default(),
            ),
            running: registry.register(
                "kubelet_running_pods",
                "Number of pods that have a running pod sandbox",
                Gauge::default(),
            ),
            containers: containers.get_or_create(&["running"]),
            started_containers: started.get_or_create(&["container"]),
            evictions: registry.register(
                "kubelet_evictions",
                "Cumulative number of pod evictions by eviction signal",
                Family::new(["eviction_signal"]),
            ),
            registry: registry.clone(),
        }
    }

    /// Adds a pod.
    pub(crate) fn add(&self, view: &PodView) {
        self.active.inc();
        self.running.inc_by(is_running(&view.status));
        self.containers.inc_by(running_containers(view));
    }

    /// Subtracts a pod.
    pub(crate) fn subtract(&self, view: &PodView) {
        self.active.dec();
        self.running.dec_by(is_running(&view.status));
        self.containers.dec_by(running_containers(view));
    }

    /// Counts a started container.
    pub(crate) fn container_started(&self) {
        self.started_containers.inc();
    }

    /// Counts an evicted pod.
    pub(crate) fn evicted(&self, signal: &str) {
        self.evictions.get_or_create(&[signal]).inc();
    }

    /// Returns all metrics of the registry in the text format.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        encode(&mut out, &self.registry);
        out
    }
}

fn is_running(status: &PodStatus) -> i64 {
    i64::from(status.phase.as_deref() == Some("Running"))
}

fn running_containers(view: &PodView) -> i64 {
    view.containers.values().map(|c| i64::from(c.running)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::ContainerView;

    fn view(phase: &str, running: &[bool]) -> PodView {
        let container = |(n, running): (usize, &bool)| {
            (format!("c{n}"), ContainerView { running: *running, ..ContainerView::default() })
        };
        PodView {
            containers: running.iter().enumerate().map(container).collect(),
            status: PodStatus { phase: Some(phase.into()), ..PodStatus::default() },
            ..PodView::default()
        }
    }

    #[test]
    fn kubelets_of_one_registry_add_up() {
        let registry = Registry::default();
        let (one, two) = (Metrics::new(&registry), Metrics::new(&registry));
        let counts = || (one.active.get(), one.running.get(), one.containers.get());
        one.add(&view("Running", &[true, true, false]));
        two.add(&view("Running", &[true]));
        two.add(&view("Pending", &[false]));
        assert_eq!(counts(), (3, 2, 3));
        two.subtract(&view("Running", &[true]));
        assert_eq!(counts(), (2, 1, 2));
        assert!(one.text().contains("kubelet_running_containers{container_state=\"running\"} 2\n"));
    }
}
