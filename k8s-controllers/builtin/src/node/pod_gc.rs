//! Pod garbage collection: deletes pods that no node will finish.
//!
//! Flow: every 20 s [`plan`] chooses terminated pods beyond the threshold, pods being deleted on nodes out of
//! service, pods of nodes that do not exist, and pods being deleted that were never scheduled.
//!
//! Invariants:
//! 1. Pods of a missing node are deleted only after a quarantine of 40 s, and after the API server has said
//!    that the node does not exist: the cache may be stale.
//! 2. A pod that had not terminated is `Failed` before it is deleted; one of a missing node has the condition
//!    `DisruptionTarget`, too.
//! 3. A pod is deleted by its uid, so that another of its name stays.

#![expect(clippy::disallowed_methods, reason = "an interval of the loop, in virtual time as well")]

mod plan;

use std::{sync::Arc, time::Duration};

use k8s_core::{
    api::api::core::v1::{Node, Pod},
    client::{Client, DeleteOptions, Error},
    clock::Clock,
    meta::ObjectExt,
};
use tokio::time::Instant;
use tracing::{debug, warn};

use self::plan::Missing;
use crate::pods;
use k8s_controllers::Environment;

const PERIOD: Duration = Duration::from_secs(20);

pub(super) async fn run(environment: Environment, threshold: usize) {
    let client = environment.client.named("pod-garbage-collector");
    let (all, nodes) = (environment.caches.of::<Pod>(), environment.caches.of::<Node>());
    let (mut missing, begun) = (Missing::default(), Instant::now());
    let collector = Collector { client, clock: environment.clock.clone() };
    let work = async {
        all.synced().await;
        nodes.synced().await;
        loop {
            let pods = all.list();
            collector.collect(&plan::terminated(&pods, threshold), false).await;
            collector.collect(&plan::out_of_service(&pods, |name| nodes.get("", name)), false).await;
            for node in missing.look(&pods, |name| nodes.get("", name).is_some(), begun.elapsed()) {
                if collector.is_gone(&node).await {
                    let on = |pod: &&Arc<Pod>| pods::node_name(pod) == node;
                    let orphans: Vec<Arc<Pod>> = pods.iter().filter(on).cloned().collect();
                    collector.collect(&orphans, true).await;
                }
            }
            collector.collect(&plan::unscheduled(&pods), false).await;
            tokio::time::sleep(PERIOD).await;
        }
    };
    tokio::select! {
        biased;
        () = environment.shutdown.cancelled() => {}
        () = work => {}
    }
}

struct Collector {
    client: Client,
    clock: Clock,
}

impl Collector {
    async fn is_gone(&self, node: &str) -> bool {
        matches!(self.client.all::<Node>().get_opt(node).await, Ok(None))
    }

    /// Deletes pods. `orphaned` says that their node does not exist.
    async fn collect(&self, pods: &[Arc<Pod>], orphaned: bool) {
        for pod in pods {
            match self.delete(pod, orphaned).await {
                Ok(()) => debug!(pod = %pod.key(), orphaned, "pod collected"),
                // Another pod of its name, or one that changed: the next round sees it.
                Err(e) if e.is_conflict() || e.is_not_found() => {}
                Err(e) => warn!(pod = %pod.key(), error = %e, "pod not collected"),
            }
        }
    }

    async fn delete(&self, pod: &Pod, orphaned: bool) -> Result<(), Error> {
        if !pods::is_terminal(pod) {
            let message = "PodGC: node no longer exists";
            let target = || pods::disruption_target(pod, "DeletionByPodGC", message, self.clock.time());
            let condition = orphaned.then(target);
            pods::patch_status(&self.client, pod, Some("Failed"), condition).await?;
        }
        let options = DeleteOptions::default().grace(0).with_uid(pod.uid());
        let api = self.client.namespaced::<Pod>(pod.namespace());
        api.delete_if_exists(pod.name(), &options).await.map(drop)
    }
}
