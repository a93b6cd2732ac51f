//! Keeps a new pod closed until its policies are in the kernel.
//!
//! The pod network puts a pod's address among the fresh ones before its link exists, then asks the worker by
//! a [`Gate`] to plan the pod. The worker takes the address out in the transaction that has the pod's rules.
//! If it does not know the pod yet, the pod stays closed until it does.

use std::{io, net::Ipv4Addr, time::Duration};

use k8s_core::meta::ObjectKey;
use tokio::sync::{mpsc, oneshot};

use super::rules::{self, FRESH};
use crate::nft::{Batch, Nft};

/// Time that a pod's start waits for its rules at most.
const PATIENCE: Duration = Duration::from_millis(500);

/// Report of the pod network to the worker.
#[derive(Debug)]
pub(super) enum Report {
    /// A pod has an address. The sender is told when its rules are in the kernel.
    Attached { pod: ObjectKey, address: Ipv4Addr, done: oneshot::Sender<()> },
    /// An address is free again.
    Detached { address: Ipv4Addr },
}

/// The pod network's end.
#[derive(Clone, Debug)]
pub(crate) struct Gate(mpsc::UnboundedSender<Report>);

impl Gate {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Report>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Gate(sender), receiver)
    }

    /// Waits until the rules of a pod are in the kernel, for half a second at most.
    pub(crate) async fn pass(&self, pod: ObjectKey, address: Ipv4Addr) {
        let (done, told) = oneshot::channel();
        let name = pod.to_string();
        // A worker that has ended tells nobody; the pod stays closed.
        if self.0.send(Report::Attached { pod, address, done }).is_ok()
            && tokio::time::timeout(PATIENCE, told).await.is_err()
        {
            tracing::warn!(pod = name, %address, "network policies of a new pod are not known yet: it is closed");
        }
    }

    /// Reports that an address is free.
    pub(crate) fn leave(&self, address: Ipv4Addr) {
        let _ = self.0.send(Report::Detached { address });
    }
}

/// Returns the name of the policy table beside a service table.
pub(crate) fn table_beside(services: &str) -> String {
    format!("{services}-policy")
}

/// Closes the address of a new pod. With `make` a missing table is made; else without a table nothing is
/// done.
pub(crate) fn close(nft: &mut Nft, services: &str, address: Ipv4Addr, make: bool) -> io::Result<()> {
    let table = table_beside(services);
    let add = |batch: &mut Batch| batch.add(FRESH, &rules::fresh(address));
    let mut batch = Batch::new(&table);
    add(&mut batch);
    match nft.commit(batch) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) && make => {
            let mut batch = Batch::new(&table);
            rules::skeleton(&mut batch);
            add(&mut batch);
            nft.commit(batch)
        }
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Takes an address out of the fresh ones, if it is there.
pub(crate) fn forget(nft: &mut Nft, services: &str, address: Ipv4Addr) -> io::Result<()> {
    let mut batch = Batch::new(&table_beside(services));
    batch.remove(FRESH, &rules::fresh(address));
    match nft.commit(batch) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
