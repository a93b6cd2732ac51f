//! Watches the ConfigMaps, Secrets and ClusterTrustBundles that a pod references.

use std::{collections::BTreeSet, sync::Arc};

use k8s_core::meta::ObjectExt;
use tokio::task::JoinSet;

use super::{
    worker::Mailbox,
    world::{Message, World},
};
use crate::{
    context::Context,
    types::*,
    volumes::{self, Reference},
};

/// The watches of a pod. Dropping it stops them.
#[derive(Debug, Default)]
pub(super) struct Watches {
    /// The pod whose references are watched.
    pod: Option<Arc<Pod>>,
    watched: BTreeSet<Reference>,
    tasks: JoinSet<()>,
}

impl Watches {
    /// Starts the watches that the pod's newest specification adds. Each change becomes a
    /// [`Message::Source`].
    pub(super) fn follow(&mut self, cx: &Context, world: &World, mailbox: &Mailbox) {
        if self.pod.as_ref().is_some_and(|pod| Arc::ptr_eq(pod, &world.pod)) {
            return;
        }
        self.pod = Some(world.pod.clone());
        let namespace = world.pod.namespace();
        for reference in references(world) {
            if !self.watched.insert(reference.clone()) {
                continue;
            }
            let mailbox = mailbox.clone();
            match reference {
                Reference::ConfigMap(name) => {
                    let watched = cx.sources.watch_config_map(namespace, &name);
                    let mut changes = watched.subscribe();
                    self.tasks.spawn(async move {
                        while changes.next().await.is_some() {
                            mailbox.send(Message::Source);
                        }
                        drop(watched);
                    });
                }
                Reference::TrustBundles => {
                    let watched = cx.trust.watch();
                    let mut changes = watched.subscribe();
                    self.tasks.spawn(async move {
                        while changes.next().await.is_some() {
                            mailbox.send(Message::Source);
                        }
                        drop(watched);
                    });
                }
                Reference::Secret(name) => {
                    let watched = cx.sources.watch_secret(namespace, &name);
                    let mut changes = watched.subscribe();
                    self.tasks.spawn(async move {
                        while changes.next().await.is_some() {
                            mailbox.send(Message::Source);
                        }
                        drop(watched);
                    });
                }
            }
        }
    }
}

/// Returns the objects that the pod's volumes and environments reference.
fn references(world: &World) -> BTreeSet<Reference> {
    let mut found: BTreeSet<Reference> = volumes::references(&world.pod).into_iter().collect();
    for life in &world.containers {
        for from in life.spec.env_from.iter().flatten() {
            found.extend(from.config_map_ref.as_ref().map(|r| Reference::ConfigMap(r.name.clone())));
            found.extend(from.secret_ref.as_ref().map(|r| Reference::Secret(r.name.clone())));
        }
        for from in life.spec.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            found.extend(from.config_map_key_ref.as_ref().map(|r| Reference::ConfigMap(r.name.clone())));
            found.extend(from.secret_key_ref.as_ref().map(|r| Reference::Secret(r.name.clone())));
        }
    }
    found
}
