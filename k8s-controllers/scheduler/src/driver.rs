//! The scheduler's loop: applies changes ([`changes`]), decides for one pod at a time ([`attempt`]), binds
//! in the background ([`binding`]).

#![expect(
    clippy::disallowed_methods,
    reason = "the queue takes the time as values; a binding outlives no client and reports its end to the loop"
)]

mod attempt;
mod binding;
mod builder;
mod changes;
mod explain;
mod planner;
mod report;

pub use builder::Builder;
pub use explain::{ExplainError, Explanation, PluginScore, Preemption, Refusal as NodeRefusal, Verdict};
pub use planner::{Plan, Planner};

use std::{collections::HashMap, sync::Arc};

use futures::FutureExt;
use k8s_controllers::{Environment, Recorder};
use k8s_core::{
    api::{
        api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
        api::{
            resource::v1::{DeviceClass, ResourceClaim, ResourceSlice},
            storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass},
        },
    },
    cache::{Cache, Change, Subscription},
    client::Client,
    meta::ObjectExt,
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{sync::mpsc, time::Instant};

use self::binding::Bound;
use crate::{
    Cluster, Points, WakeOn,
    config::ConfigError,
    decide::{Kept, Profile},
    extender::Extenders,
    failures::Failures,
    metrics::Metrics,
    queue::Queue,
    volumes::{Controllers, Devices, Lists, limit},
};

/// A profile with the rows shared by the tasks that bind.
struct Shared {
    profile: Profile,
    rows: Arc<Vec<Points>>,
    recorder: Recorder,
    metrics: Metrics,
}

/// Message to the loop from a task.
enum Report {
    Bound(Box<Bound>),
    /// The deletion of victims failed: the preemptor is tried again.
    NotEvicted(String),
}

/// A running scheduler.
pub struct Scheduler {
    profiles: Vec<Shared>,
    by_name: HashMap<String, usize>,
    cluster: Cluster,
    queue: Queue,
    failures: Failures,
    environment: Environment,
    client: Client,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    namespaces: Cache<Namespace>,
    lists: Lists,
    /// All profiles ask them.
    extenders: Arc<Extenders>,
    rng: StdRng,
    /// By profile.
    kept: Vec<Kept>,
    report: mpsc::UnboundedSender<Report>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.profiles.iter().map(|p| &*p.profile.name).collect();
        f.debug_struct("Scheduler").field("profiles", &names).finish_non_exhaustive()
    }
}

/// Subscriptions to the caches.
struct Changes {
    pods: Subscription<Pod>,
    nodes: Subscription<Node>,
    claims: Subscription<PersistentVolumeClaim>,
    volumes: Subscription<PersistentVolume>,
    classes: Subscription<StorageClass>,
    csi_nodes: Subscription<CSINode>,
    csi_drivers: Subscription<CSIDriver>,
    capacities: Subscription<CSIStorageCapacity>,
    namespaces: Subscription<Namespace>,
    resource_claims: Subscription<ResourceClaim>,
    device_classes: Subscription<DeviceClass>,
    slices: Subscription<ResourceSlice>,
}

enum Input {
    Pod(Change<Pod>),
    Node(Change<Node>),
    Claim(Change<ResourceClaim>),
    /// A change of an object of this kind, by namespace and name; after missed changes without a name.
    Object(WakeOn, String, String),
    Report(Report),
    Due,
}

/// Returns the input of a change of an object that only wakes pods.
fn object<K: ObjectExt>(what: WakeOn, change: &Change<K>) -> Input {
    match change {
        Change::Resync => Input::Object(WakeOn::ANYTHING, String::new(), String::new()),
        Change::Added(o) | Change::Modified(_, o) | Change::Deleted(o) => {
            Input::Object(what, o.namespace().to_owned(), o.name().to_owned())
        }
    }
}

/// Returns the input of a change of a driver's room. Only more of it helps; drivers publish it every minute.
fn capacity(change: &Change<CSIStorageCapacity>) -> Input {
    let grew = match change {
        Change::Resync | Change::Added(_) => true,
        Change::Modified(old, new) => limit(new) > limit(old),
        Change::Deleted(_) => false,
    };
    object(if grew { WakeOn::STORAGE_CAPACITY } else { WakeOn::NOTHING }, change)
}

fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn nominated_node(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.nominated_node_name.as_deref().filter(|node| !node.is_empty())
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

impl Scheduler {
    /// Returns a builder with the built-in plugins.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::new()
    }

    fn new(builder: &Builder, environment: Environment) -> Result<Self, ConfigError> {
        let caches = &environment.caches;
        let lists = Lists {
            claims: caches.of(),
            volumes: caches.of(),
            classes: caches.of(),
            csi_nodes: caches.of(),
            csi_drivers: caches.of(),
            capacities: caches.of(),
            budgets: caches.of(),
            services: caches.of(),
            controllers: Controllers {
                replication: caches.of(),
                replica_sets: caches.of(),
                stateful_sets: caches.of(),
            },
            devices: Devices { claims: caches.of(), classes: caches.of(), slices: caches.of() },
        };
        let (report, reports) = mpsc::unbounded_channel();
        let profiles = builder.profiles()?;
        let sort = profiles.iter().flat_map(|p| &p.rows).find_map(|row| row.queue_sort.clone());
        let sort = sort.unwrap_or_else(|| Arc::new(crate::plugins::PrioritySort));
        let client = environment.client.named(profiles.first().map_or("", |p| &p.name));
        let profiles: Vec<Shared> = profiles
            .into_iter()
            .map(|profile| Shared {
                rows: Arc::new(profile.rows.clone()),
                recorder: Recorder::new(&client, environment.clock.clone(), &profile.name),
                metrics: Metrics::new(environment.metrics.registry(), &profile.name),
                profile,
            })
            .collect();
        let kept = profiles.iter().map(|_| Kept::default()).collect();
        Ok(Scheduler {
            cluster: Cluster::watching(caches.of::<Namespace>(), lists.clone()),
            by_name: profiles.iter().enumerate().map(|(at, p)| (p.profile.name.clone(), at)).collect(),
            profiles,
            queue: Queue::new(sort, builder.backoff()),
            failures: Failures::new(Instant::now()),
            pods: caches.of(),
            nodes: caches.of(),
            namespaces: caches.of(),
            lists,
            extenders: Arc::new(builder.extenders()?),
            rng: StdRng::seed_from_u64(environment.seed),
            kept,
            client,
            environment,
            report,
            reports,
        })
    }

    async fn run(&mut self) {
        let mut changes = Changes {
            pods: self.pods.subscribe(),
            nodes: self.nodes.subscribe(),
            claims: self.lists.claims.subscribe(),
            volumes: self.lists.volumes.subscribe(),
            classes: self.lists.classes.subscribe(),
            csi_nodes: self.lists.csi_nodes.subscribe(),
            csi_drivers: self.lists.csi_drivers.subscribe(),
            capacities: self.lists.capacities.subscribe(),
            namespaces: self.namespaces.subscribe(),
            resource_claims: self.lists.devices.claims.subscribe(),
            device_classes: self.lists.devices.classes.subscribe(),
            slices: self.lists.devices.slices.subscribe(),
        };
        let lists = self.lists.clone();
        let controllers = &lists.controllers;
        tokio::join!(
            self.nodes.synced(),
            self.pods.synced(),
            self.namespaces.synced(),
            lists.claims.synced(),
            lists.volumes.synced(),
            lists.classes.synced(),
            lists.csi_nodes.synced(),
            lists.csi_drivers.synced(),
            lists.capacities.synced(),
            lists.budgets.synced(),
            lists.services.synced(),
            controllers.replication.synced(),
            controllers.replica_sets.synced(),
            controllers.stateful_sets.synced(),
        );
        self.resync();
        loop {
            while let Some(input) = self.next_input(&mut changes).now_or_never() {
                self.take_in(input);
            }
            while let Some(failure) = self.failures.next(Instant::now()) {
                self.tell(&failure, None);
            }
            let next = self.queue.pop(Instant::now());
            if let Some(first) = self.profiles.first() {
                first.metrics.pending(&self.queue);
            }
            match next {
                Some(attempt) => {
                    self.try_one(attempt).await;
                    // Let bind tasks and watches run.
                    tokio::task::yield_now().await;
                }
                None => {
                    let input = self.next_input(&mut changes).await;
                    self.take_in(input);
                }
            }
        }
    }

    async fn next_input(&mut self, changes: &mut Changes) -> Input {
        let due = self.queue.next_due().into_iter().chain(self.failures.next_due()).min();
        let due = async {
            match due {
                Some(when) => tokio::time::sleep_until(when).await,
                None => std::future::pending().await,
            }
        };
        // Changes come before timers, so that a decision sees everything known. The caches live as long as
        // this loop.
        tokio::select! {
            biased;
            Some(change) = changes.nodes.next() => Input::Node(change),
            Some(change) = changes.pods.next() => Input::Pod(change),
            Some(report) = self.reports.recv() => Input::Report(report),
            Some(change) = changes.claims.next() => object(WakeOn::CLAIM, &change),
            Some(change) = changes.volumes.next() => object(WakeOn::PERSISTENT_VOLUME, &change),
            Some(change) = changes.classes.next() => object(WakeOn::CLASS, &change),
            Some(change) = changes.csi_nodes.next() => object(WakeOn::CSI_NODE, &change),
            Some(change) = changes.csi_drivers.next() => object(WakeOn::CSI_DRIVER, &change),
            Some(change) = changes.capacities.next() => capacity(&change),
            Some(change) = changes.namespaces.next() => object(WakeOn::NAMESPACE, &change),
            Some(change) = changes.resource_claims.next() => Input::Claim(change),
            Some(change) = changes.device_classes.next() => object(WakeOn::DEVICE_CLASS, &change),
            Some(change) = changes.slices.next() => object(WakeOn::RESOURCE_SLICE, &change),
            () = due => Input::Due,
        }
    }

    /// Returns the profile of a pod.
    fn profile_of(&self, pod: &Pod) -> Option<&Shared> {
        let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        self.profiles.get(*self.by_name.get(name)?)
    }
}
