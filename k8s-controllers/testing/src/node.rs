//! Nodes without processes: every pod that is bound to one is said to run, and one that is deleted is gone.
//!
//! A node registers itself, renews its lease, and answers each pod by one status write. A pod whose containers should end does so by annotation:
//! [`EXIT`] gives the exit code with which its containers end as soon as they run.
//!
//! Not here: probes, restarts, images. `k8s-kubelet` over its simulated runtime has those.

use std::{collections::HashSet, time::Duration};

use futures::StreamExt;
use k8s_core::{
    api::{
        api::{
            coordination::v1::Lease,
            core::v1::{Node, Pod},
        },
        apimachinery::pkg::apis::meta::v1::Time,
    },
    client::{Client, DeleteOptions, Error, ListParams, Patch, WatchEvent},
    clock::Clock,
    meta::ObjectExt,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Annotation of a pod: with which exit code its containers end as soon as they run.
pub const EXIT: &str = "k8s-testing/exit-code";

/// How often a node says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value)
        .map_err(|source| Error::Decode { what: std::any::type_name::<T>().to_owned(), source })
}

/// Makes the Node, ready, with room for 110 pods.
///
/// # Errors
/// What the API server answers.
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

/// Is a node until it is dropped.
pub async fn run(client: Client, clock: Clock, name: String, index: usize) {
    let beat = async {
        loop {
            clock.sleep(HEARTBEAT).await;
            let patch = Patch::Merge(json!({"spec": {"renewTime": clock.micro_time()}}));
            if let Err(e) = client.namespaced::<Lease>("kube-node-lease").patch(&name, &patch).await {
                tracing::warn!(node = name, error = %e, "renew the lease");
            }
        }
    };
    let mut pods = Pods { client: &client, clock: &clock, index, next_address: 1, started: HashSet::new() };
    tokio::join!(beat, pods.follow(&name));
}

struct Pods<'a> {
    client: &'a Client,
    clock: &'a Clock,
    index: usize,
    next_address: u32,
    /// Uids of pods that were answered.
    started: HashSet<String>,
}

impl Pods<'_> {
    async fn follow(&mut self, node: &str) {
        let params = ListParams::default().fields(format!("spec.nodeName={node}"));
        loop {
            if let Ok(mut events) = self.client.all::<Pod>().watch(&params).await {
                while let Some(Ok(event)) = events.next().await {
                    match event {
                        WatchEvent::Added(pod) | WatchEvent::Modified(pod) => self.answer(&pod).await,
                        WatchEvent::Deleted(pod) => drop(self.started.remove(pod.uid())),
                        _ => {}
                    }
                }
            }
            self.clock.sleep(Duration::from_secs(1)).await;
        }
    }

    async fn answer(&mut self, pod: &Pod) {
        let api = self.client.namespaced::<Pod>(pod.namespace());
        let result = if pod.is_deleting() {
            api.delete_if_exists(pod.name(), &DeleteOptions::default().with_uid(pod.uid()).grace(0)).await
        } else if self.started.insert(pod.uid().to_owned()) {
            let status = Patch::Merge(json!({"status": self.status(pod)}));
            api.patch_status(pod.name(), &status).await.map(drop)
        } else {
            Ok(())
        };
        if let Err(e) = result
            && !e.is_not_found()
        {
            tracing::warn!(pod = %pod.key(), error = %e, "answer for a pod");
            self.started.remove(pod.uid());
        }
    }

    /// What a kubelet would say of a pod whose containers all run, or have all ended.
    fn status(&mut self, pod: &Pod) -> Value {
        let now: Time = self.clock.time();
        let exit: Option<i32> = pod.annotation(EXIT).and_then(|code| code.parse().ok());
        let address = format!("10.42.{}.{}", self.index % 256, 2 + self.next_address % 250);
        self.next_address += 1;
        let containers = pod.spec.iter().flat_map(|s| &s.containers).map(|c| {
            let state = match exit {
                Some(code) => json!({"terminated": {"exitCode": code, "reason": if code == 0 { "Completed" } else { "Error" }, "startedAt": now, "finishedAt": now}}),
                None => json!({"running": {"startedAt": now}}),
            };
            json!({"name": c.name, "image": c.image, "imageID": "", "ready": exit.is_none(), "restartCount": 0, "started": exit.is_none(), "state": state})
        });
        let containers: Vec<Value> = containers.collect();
        let ready = if exit.is_none() { "True" } else { "False" };
        let condition =
            |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": now});
        json!({
            "phase": match exit { None => "Running", Some(0) => "Succeeded", Some(_) => "Failed" },
            "podIP": address, "podIPs": [{"ip": address}], "startTime": now,
            "containerStatuses": containers,
            "conditions": [condition("Initialized", "True"), condition("Ready", ready), condition("ContainersReady", ready), condition("PodScheduled", "True")],
        })
    }
}
