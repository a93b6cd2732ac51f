//! Simulated nodes: the life of each pod is a [`Script`], and a deleted pod ends without a process.
//!
//! A node registers itself, renews its lease, and writes pod status as a kubelet would: start, readiness,
//! exit, restarts with back-off. By default a pod runs at once. Its annotations ([`EXIT`], [`RUN_FOR`],
//! [`START_AFTER`], [`READY_AFTER`], [`STOP_AFTER`], [`STUCK`]) or a function that returns scripts change
//! that.
//!
//! Not here: images, volumes, real probes. `k8s-kubelet` over its simulated runtime has those.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use k8s_core::{
    api::{
        api::{
            coordination::v1::Lease,
            core::v1::{Node, Pod},
        },
        apimachinery::pkg::apis::meta::v1::Time,
    },
    client::{Api, Client, DeleteOptions, Error, ListParams, Patch, WatchEvent},
    clock::Clock,
    meta::ObjectExt,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::{AbortHandle, JoinSet};

use crate::{hub::Hub, script::Script};

pub use crate::script::{EXIT, READY_AFTER, RUN_FOR, START_AFTER, STOP_AFTER, STUCK};

/// Interval of lease renewals.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Back-off before the first restart of a container; doubled each time.
const FIRST_RESTART: Duration = Duration::from_secs(10);
/// Exit code of a process that was ended by SIGTERM.
const TERMINATED: i32 = 128 + 15;
const LONGEST_RESTART: Duration = Duration::from_secs(300);

/// Returns the script of a pod.
pub(crate) type Director = Arc<dyn Fn(&Pod) -> Script + Send + Sync>;

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value)
        .map_err(|source| Error::Decode { what: std::any::type_name::<T>().to_owned(), source })
}

/// Creates a ready Node with capacity for 110 pods.
///
/// # Errors
/// The API server's error.
pub async fn register(client: &Client, clock: &Clock, name: &str) -> Result<(), Error> {
    let now = clock.time();
    let room = json!({"cpu": "32", "memory": "64Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    let node: Node = typed(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "status": {
            "capacity": room, "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now}],
        },
    }))?;
    client.all::<Node>().create(&node).await?;
    let lease: Lease = typed(
        json!({"metadata": {"name": name}, "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": clock.micro_time()}}),
    )?;
    client.namespaced::<Lease>("kube-node-lease").create(&lease).await?;
    Ok(())
}

/// Simulates a node until the future is dropped.
pub async fn run(client: Client, clock: Clock, name: String, index: usize) {
    let params = ListParams::default().fields(format!("spec.nodeName={name}"));
    let base = u32::try_from(index % 256).unwrap_or(0) << 8;
    let pods = Pods::new(client.clone(), clock.clone(), Arc::new(Script::of), None, base);
    tokio::join!(beat(&client, &clock, &name), pods.follow(params));
}

/// Renews the node's lease for ever.
pub(crate) async fn beat(client: &Client, clock: &Clock, name: &str) {
    loop {
        clock.sleep(HEARTBEAT).await;
        let patch = Patch::Merge(json!({"spec": {"renewTime": clock.micro_time()}}));
        if let Err(e) = client.namespaced::<Lease>("kube-node-lease").patch(name, &patch).await {
            tracing::warn!(node = name, error = %e, "renew the lease");
        }
    }
}

/// The simulated pods of one node, or of all.
pub(crate) struct Pods {
    actor: Actor,
    /// Tasks of the pods, by uid; `None` for pods of others.
    lives: HashMap<String, Option<AbortHandle>>,
    tasks: JoinSet<()>,
}

/// Everything that the task of a pod needs.
#[derive(Clone)]
struct Actor {
    client: Client,
    clock: Clock,
    director: Director,
    hub: Option<Arc<Hub>>,
    base: u32,
    next: Arc<AtomicU32>,
}

impl Pods {
    pub(crate) fn new(
        client: Client,
        clock: Clock,
        director: Director,
        hub: Option<Arc<Hub>>,
        base: u32,
    ) -> Self {
        let actor = Actor { client, clock, director, hub, base, next: Arc::default() };
        Pods { actor, lives: HashMap::new(), tasks: JoinSet::new() }
    }

    pub(crate) async fn follow(mut self, params: ListParams) {
        loop {
            if let Ok(mut events) = self.actor.client.all::<Pod>().watch(&params).await {
                while let Some(Ok(event)) = events.next().await {
                    match event {
                        WatchEvent::Added(pod) | WatchEvent::Modified(pod) => self.see(pod),
                        WatchEvent::Deleted(pod) => self.end(pod.uid()),
                        _ => {}
                    }
                    while self.tasks.try_join_next().is_some() {}
                }
            }
            self.actor.clock.sleep(Duration::from_secs(1)).await;
        }
    }

    fn end(&mut self, uid: &str) {
        if let Some(Some(task)) = self.lives.remove(uid) {
            task.abort();
        }
    }

    fn see(&mut self, pod: Pod) {
        if pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_none_or(str::is_empty) {
            return;
        }
        let (uid, key) = (pod.uid().to_owned(), pod.is_deleting());
        let life = format!("{uid}{}", if key { "/end" } else { "" });
        if self.lives.contains_key(&life) {
            return;
        }
        if pod.is_deleting() {
            self.end(&uid);
        } else if phase(&pod) != "Pending" {
            // Written by another node agent, or by the cluster that this one was forked from.
            self.lives.insert(life, None);
            return;
        }
        let actor = self.actor.clone();
        let task = self.tasks.spawn(async move {
            let result = if pod.is_deleting() { actor.stop(&pod).await } else { actor.live(&pod).await };
            if let Err(e) = result
                && !e.is_not_found()
            {
                tracing::warn!(pod = %pod.key(), error = %e, "answer for a pod");
            }
        });
        self.lives.insert(life, Some(task));
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

impl Actor {
    async fn wait(&self, how_long: Duration) {
        if !how_long.is_zero() {
            if let Some(hub) = &self.hub {
                hub.await_script(how_long);
            }
            self.clock.sleep(how_long).await;
        }
    }

    async fn stop(&self, pod: &Pod) -> Result<(), Error> {
        self.wait((self.director)(pod).stop).await;
        if !matches!(phase(pod), "Succeeded" | "Failed") {
            // A holder of a finalizer (a Job, to count the pod) must see that the pod has ended.
            let api = self.client.namespaced::<Pod>(pod.namespace());
            let now = self.clock.time();
            let address = pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default();
            let report = Report { pod, address, restarts: 0, started: now.clone() };
            let ended = json!({"terminated": {"exitCode": TERMINATED, "reason": "Error", "finishedAt": now}});
            report.write(&api, "Failed", false, &ended, now).await?;
        }
        let options = DeleteOptions::default().with_uid(pod.uid()).grace(0);
        match self.client.namespaced::<Pod>(pod.namespace()).delete_if_exists(pod.name(), &options).await {
            Err(e) if e.is_conflict() => Ok(()),
            other => other,
        }
    }

    async fn live(&self, pod: &Pod) -> Result<(), Error> {
        let script = (self.director)(pod);
        let api = self.client.namespaced::<Pod>(pod.namespace());
        let number = self.base + 2 + self.next.fetch_add(1, Ordering::Relaxed);
        let address = format!("10.42.{}.{}", number >> 8 & 255, number & 255);
        let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
        let mut report = Report { pod, address, restarts: 0, started: self.clock.time() };
        self.wait(script.start).await;
        if let Some(reason) = &script.stuck {
            return report
                .write(&api, "Pending", false, &json!({"waiting": {"reason": reason}}), self.clock.time())
                .await;
        }
        let mut back_off = FIRST_RESTART;
        loop {
            let began = self.clock.time();
            let running = json!({"running": {"startedAt": began}});
            let ends_at_once = script.end.is_some_and(|(after, _)| after.is_zero());
            if !ends_at_once {
                let ready = script.ready.is_zero();
                report.write(&api, "Running", ready, &running, self.clock.time()).await?;
                let steps =
                    (!ready).then_some((script.ready, true)).into_iter().chain(script.probes.iter().copied());
                for (after, ready) in steps {
                    self.wait(after).await;
                    report.write(&api, "Running", ready, &running, self.clock.time()).await?;
                }
            }
            let Some((after, code)) = script.end else { return Ok(()) };
            self.wait(after).await;
            let reason = if code == 0 { "Completed" } else { "Error" };
            let now = self.clock.time();
            let ended = json!({"terminated": {"exitCode": code, "reason": reason, "startedAt": began, "finishedAt": now}});
            if policy == "Never" || (policy == "OnFailure" && code == 0) {
                let phase = if code == 0 { "Succeeded" } else { "Failed" };
                return report.write(&api, phase, false, &ended, now).await;
            }
            let waits = json!({"waiting": {"reason": "CrashLoopBackOff"}});
            report.write(&api, "Running", false, &waits, now).await?;
            // The cluster does not count as unsettled during a restart back-off, because restarts never end.
            self.clock.sleep(back_off).await;
            back_off = (back_off * 2).min(LONGEST_RESTART);
            report.restarts += 1;
        }
    }
}

/// The fields of a pod status, as a kubelet reports them.
struct Report<'a> {
    pod: &'a Pod,
    address: String,
    restarts: u32,
    started: Time,
}

impl Report<'_> {
    async fn write(
        &self,
        api: &Api<Pod>,
        phase: &str,
        ready: bool,
        state: &Value,
        now: Time,
    ) -> Result<(), Error> {
        let runs = state.get("running").is_some();
        let containers: Vec<Value> = self
            .pod
            .spec
            .iter()
            .flat_map(|s| &s.containers)
            .map(|c| {
                json!({"name": c.name, "image": c.image, "imageID": "", "ready": ready, "restartCount": self.restarts, "started": runs, "state": state})
            })
            .collect();
        let is_ready = if ready { "True" } else { "False" };
        let condition =
            |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": now});
        let mut status = json!({
            "phase": phase, "startTime": self.started, "containerStatuses": containers,
            "conditions": [condition("Initialized", "True"), condition("Ready", is_ready), condition("ContainersReady", is_ready), condition("PodScheduled", "True")],
        });
        // A pod that is deleted before it starts never has an address.
        if phase != "Pending" && !self.address.is_empty() {
            status["podIP"] = json!(self.address);
            status["podIPs"] = json!([{"ip": self.address}]);
        }
        // The uid is a precondition: a later pod of the same name stays untouched. Conditions of others, such as
        // DisruptionTarget, are kept.
        let patch = json!({"metadata": {"uid": self.pod.uid()}, "status": status});
        match api.patch_status(self.pod.name(), &Patch::Strategic(patch)).await {
            Err(e) if e.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }
}
