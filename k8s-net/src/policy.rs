//! Network policies: the kernel lets through what the NetworkPolicies of pods allow.
//!
//! Flow: [`Policies::start`] reads NetworkPolicies, pods and namespaces from caches. `parse` reads a policy,
//! `plan` computes what the table must have (`pairs` says how), and `rules` turns the difference into one
//! nf_tables transaction (`worker`). Then `cut` deletes what conntrack knows of connections that are no
//! longer allowed. A new pod is closed (`gate`) until its rules are in the kernel.
//!
//! Guarantees:
//! 1. Only the table `TABLE-policy` is touched; [`cleanup`] removes it. Stopping leaves it in place, so
//!    running pods stay closed to others.
//! 2. The first packet of a connection costs a fixed number of lookups, later ones none, whatever the number
//!    of policies and pods. A change costs what it touches. Packets see the state of before or after.
//! 3. Nothing is allowed by mistake: what cannot be read of a policy allows nothing (a warning event tells),
//!    a pod that is not known is closed, and an unknown namespace matches no selector.
//! 4. The table has a limited number of elements. Beyond it the namespace whose policies weigh most allows
//!    nothing, until it fits again; the others go on. A policy has a limited number of peers and ports.
//! 5. The node reaches its own pods always. A pod reaches itself always, and the node as its egress policies
//!    allow.
//!
//! Pods of the host network count as the node: policies neither select them nor know them as peers, but by
//! address block. The cluster's DNS server, which is in the node, counts as a pod of kube-system with the
//! label `k8s-app: kube-dns`.
//!
//! Not here: IPv6 (blocks of it have no effect); packets that pods send with addresses of others (see
//! [`crate::bridge`]).

mod blocks;
mod cut;
mod elements;
pub(crate) mod facts;
pub(crate) mod gate;
mod inputs;
#[cfg(test)]
pub(crate) mod model;
mod pairs;
mod parse;
mod plan;
mod ports;
mod rules;
#[cfg(test)]
mod tests;
mod worker;

use std::{io, net::Ipv4Addr, time::Duration};

use ipnet::Ipv4Net;
use k8s_core::{
    api::{
        Pod,
        api::{core::v1::Namespace, networking::v1::NetworkPolicy},
    },
    cache::Cache,
    events::Recorder,
};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::nft::Nft;
pub(crate) use facts::trim;
use gate::Gate;
use worker::Worker;

/// Settings of network policies.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// Name of the nf_tables table.
    pub table: String,
    /// Name of this node. Policies of its pods are applied here.
    pub node_name: String,
    /// Pod CIDR of the cluster. Other addresses in a pod's status are not believed. `None`: all are.
    pub cluster_cidr: Option<Ipv4Net>,
    /// Address of the cluster's DNS server on this node.
    pub dns: Option<Ipv4Addr>,
    /// Recorder of events about NetworkPolicies. [`Recorder::silent`]: none.
    pub recorder: Recorder,
}

/// Statistics of network policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyStats {
    /// Transactions committed since the start.
    pub transactions: u64,
    /// Duration of the last transaction, from the first change seen to the kernel's acknowledgement.
    pub last: Duration,
    /// Elements in the table.
    pub elements: usize,
    /// Established connections that are no longer allowed are being looked for, to be cut.
    pub cutting: bool,
}

/// Errors of starting and removing network policies.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The kernel refused a change.
    #[error("{context}: {source}")]
    Io {
        /// The operation that failed.
        context: String,
        /// Error of the netlink request.
        #[source]
        source: io::Error,
    },
}

/// Running network policies. Dropping it stops the task and leaves the table in place.
#[derive(Debug)]
pub struct Policies {
    gate: Gate,
    stats: watch::Receiver<PolicyStats>,
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
    _guard: DropGuard,
}

/// Removes a policy table. Blocking and idempotent.
pub fn cleanup(table: &str) -> Result<(), PolicyError> {
    let done = Nft::open().and_then(|mut nft| nft.drop_table(table));
    done.map_err(|source| PolicyError::Io { context: format!("remove table {table}"), source })
}

impl Policies {
    /// Starts network policies over caches that the caller fills. Rules are written once all are synced.
    #[expect(clippy::disallowed_methods, reason = "they wait for their worker at shutdown")]
    pub fn start(
        config: PolicyConfig,
        namespaces: Cache<Namespace>,
        pods: Cache<Pod>,
        policies: Cache<NetworkPolicy>,
    ) -> Result<Self, PolicyError> {
        let nft =
            Nft::open().map_err(|source| PolicyError::Io { context: "open nf_tables".into(), source })?;
        let (gate, reports) = Gate::new();
        let (sender, stats) = watch::channel(PolicyStats::default());
        let stop = CancellationToken::new();
        let worker = Worker::new(config, (namespaces, pods, policies), nft, reports, sender);
        let task = tokio::spawn(worker.run(stop.clone()));
        Ok(Policies { gate, stats, task, stop: stop.clone(), _guard: stop.drop_guard() })
    }

    /// Returns the statistics; they change after every transaction.
    #[must_use]
    pub fn stats(&self) -> watch::Receiver<PolicyStats> {
        self.stats.clone()
    }

    /// Returns what closes new pods until their rules are in the kernel.
    pub(crate) fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Stops; the rules stay in the kernel.
    pub async fn shutdown(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}
