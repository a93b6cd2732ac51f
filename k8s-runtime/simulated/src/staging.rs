//! The tasks that apply Stages: one for each object that a Stage may match.

use std::{collections::HashMap, sync::Arc};

use k8s_core::{
    api::api::core::v1::{Node, Pod},
    client::Client,
    meta::ObjectExt,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{
    board::PodState,
    kwok::{
        Kind,
        drive::{Drive, Driven, Outcome},
        watch::Stages,
    },
    parts::Parts,
};

/// What happened to the Stages.
pub(crate) enum Event {
    /// They are others now.
    Changed,
    /// No Stage matches an object any more: a node by its name, a pod by its uid.
    Ended(Kind, Arc<str>, Outcome),
}

pub(crate) struct Staging {
    drive: Arc<Drive>,
    stages: watch::Receiver<Arc<Stages>>,
    tasks: JoinSet<(Kind, Arc<str>, Outcome)>,
    /// Wakes the tasks of nodes, by name.
    nodes: HashMap<Arc<str>, Arc<Notify>>,
}

/// Returns the next event; never without Stages.
pub(crate) async fn next(staging: Option<&mut Staging>) -> Event {
    let Some(staging) = staging else { return std::future::pending().await };
    loop {
        tokio::select! {
            biased;
            Some(ended) = staging.tasks.join_next() => if let Ok((kind, id, outcome)) = ended {
                if kind == Kind::Node {
                    staging.nodes.remove(&id);
                }
                return Event::Ended(kind, id, outcome);
            },
            Ok(()) = staging.stages.changed() => return Event::Changed,
            else => return std::future::pending().await,
        }
    }
}

impl Staging {
    pub(crate) fn new(client: Client, parts: Parts, stages: watch::Receiver<Arc<Stages>>) -> Self {
        let drive = Arc::new(Drive::new(client, parts, stages.clone()));
        Staging { drive, stages, tasks: JoinSet::new(), nodes: HashMap::new() }
    }

    pub(crate) fn has_pod_stages(&self) -> bool {
        !self.stages.borrow().pods.is_empty()
    }

    /// Returns true if a task applies Stages to the pod, a new one or one that runs.
    pub(crate) fn drives_pod(&mut self, pod: &Pod, state: &mut PodState) -> bool {
        if let Some(wake) = &state.wake {
            wake.notify_one();
            return true;
        }
        if state.busy || !self.has_pod_stages() {
            return false;
        }
        let wake = Arc::new(Notify::new());
        (state.busy, state.due, state.wake) = (true, 0, Some(wake.clone()));
        self.spawn(Driven { kind: Kind::Pod, key: pod.key(), uid: pod.uid().into(), wake }, pod.uid().into());
        true
    }

    /// Returns true if a task applies Stages to the node, a new one or one that runs.
    pub(crate) fn drives_node(&mut self, node: &Node) -> bool {
        if let Some(wake) = self.nodes.get(node.name()) {
            wake.notify_one();
            return true;
        }
        if self.stages.borrow().nodes.is_empty() {
            return false;
        }
        let (wake, name): (_, Arc<str>) = (Arc::new(Notify::new()), node.name().into());
        self.nodes.insert(name.clone(), wake.clone());
        self.spawn(Driven { kind: Kind::Node, key: node.key(), uid: node.uid().into(), wake }, name);
        true
    }

    fn spawn(&mut self, driven: Driven, id: Arc<str>) {
        let drive = self.drive.clone();
        self.tasks.spawn(async move {
            let outcome = drive.run(&driven).await;
            (driven.kind, id, outcome)
        });
    }
}
