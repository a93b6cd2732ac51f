//! The loop of network policies: collects changes, plans them, and applies the plan in one transaction.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use futures::FutureExt;
use k8s_core::{
    api::{
        Pod,
        api::{core::v1::Namespace, networking::v1::NetworkPolicy},
    },
    cache::{Cache, Change, Subscription},
    events::involved,
    meta::{Object, ObjectKey},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    PolicyConfig, PolicyStats,
    cut::{self, Flows},
    elements::{Delta, Key},
    facts,
    gate::Report,
    inputs::{Dirty, Inputs, Warning, note},
    plan::Plan,
    rules::{self, FRESH},
};
use crate::{
    conntrack,
    nft::{Batch, Nft},
};

/// Time between two readings of conntrack's table at least, so that many changes do not keep a processor
/// busy.
const REST: Duration = Duration::from_millis(100);

/// Plan and connection; moved to a blocking thread for each transaction.
struct Kernel {
    nft: Nft,
    table: String,
    plan: Plan,
    /// Closed addresses of pods that are not known.
    fresh: BTreeSet<Ipv4Addr>,
    /// The kernel's state is unknown: make the table anew.
    broken: bool,
}

pub(super) struct Worker {
    config: PolicyConfig,
    inputs: Inputs,
    reports: mpsc::UnboundedReceiver<Report>,
    /// Addresses that were attached since the last transaction, and who waits for it.
    new: Vec<(Ipv4Addr, oneshot::Sender<()>)>,
    /// Addresses that were freed since the last cut.
    left: HashSet<Ipv4Addr>,
    /// Connections may be open that are no longer allowed.
    cut: bool,
    /// Flows that are being read, to cut some.
    reading: Option<JoinHandle<io::Result<Flows>>>,
    /// Earliest time of the next reading.
    next_reading: Instant,
    kernel: Option<Kernel>,
    /// Last warning told about a policy.
    told: HashMap<ObjectKey, String>,
    stats: watch::Sender<PolicyStats>,
}

fn drain<K: Object>(changes: &mut Subscription<K>, mut each: impl FnMut(Change<K>)) {
    while let Some(Some(change)) = changes.next().now_or_never() {
        each(change);
    }
}

impl Worker {
    #[expect(clippy::disallowed_methods, reason = "the kernel applies rules in real time")]
    pub(super) fn new(
        config: PolicyConfig,
        (namespaces, pods, policies): (Cache<Namespace>, Cache<Pod>, Cache<NetworkPolicy>),
        nft: Nft,
        reports: mpsc::UnboundedReceiver<Report>,
        stats: watch::Sender<PolicyStats>,
    ) -> Self {
        let mut plan = Plan::default();
        if let Some(address) = config.dns {
            let (key, dns) = facts::dns(address);
            plan.set_pod(&key, Some(dns));
        }
        let kernel = Kernel { nft, table: config.table.clone(), plan, fresh: BTreeSet::new(), broken: true };
        let inputs = Inputs {
            namespaces,
            pods,
            policies,
            node: config.node_name.clone(),
            cluster_cidr: config.cluster_cidr,
            dns: config.dns,
            assigned: BTreeMap::new(),
        };
        Worker {
            config,
            inputs,
            reports,
            new: Vec::new(),
            left: HashSet::new(),
            cut: false,
            reading: None,
            next_reading: Instant::now(),
            kernel: Some(kernel),
            told: HashMap::new(),
            stats,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the kernel applies rules in real time")]
    async fn work(&mut self) {
        let mut namespaces = self.inputs.namespaces.subscribe();
        let (mut pods, mut policies) = (self.inputs.pods.subscribe(), self.inputs.policies.subscribe());
        self.inputs.namespaces.synced().await;
        self.inputs.pods.synced().await;
        self.inputs.policies.synced().await;
        let mut dirty = Dirty { all: true, ..Dirty::default() };
        let mut delay = Duration::from_millis(100);
        loop {
            let since = Instant::now();
            let mut names = BTreeSet::new();
            let mut all = dirty.all;
            drain(&mut namespaces, |change| all |= !note(&change, &mut names));
            drain(&mut pods, |change| all |= !note(&change, &mut dirty.pods));
            drain(&mut policies, |change| all |= !note(&change, &mut dirty.policies));
            dirty.all = all;
            dirty.namespaces.extend(names.into_iter().map(|key| key.name));
            while let Ok(report) = self.reports.try_recv() {
                self.report(report, &mut dirty);
            }
            if !dirty.is_empty() || self.kernel.as_ref().is_none_or(|kernel| kernel.broken) {
                match self.apply(&mut dirty, since).await {
                    Ok(()) => delay = Duration::from_millis(100),
                    Err(error) => {
                        warn!(%error, table = self.config.table, "network policies, will be made anew");
                        tokio::time::sleep(delay).await;
                        delay = (delay * 2).min(Duration::from_secs(10));
                        continue;
                    }
                }
            }
            if self.cut && self.reading.is_none() && Instant::now() >= self.next_reading {
                self.cut = false;
                self.read_flows();
            }
            let waits = self.cut && self.reading.is_none();
            let rest = tokio::time::sleep_until(self.next_reading.into());
            let read = async {
                match &mut self.reading {
                    Some(reading) => reading.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = namespaces.next() => match change {
                    Some(change) => {
                        let mut keys = BTreeSet::new();
                        dirty.all |= !note(&change, &mut keys);
                        dirty.namespaces.extend(keys.into_iter().map(|key| key.name));
                    }
                    None => return,
                },
                change = pods.next() => match change {
                    Some(change) => dirty.all |= !note(&change, &mut dirty.pods),
                    None => return,
                },
                change = policies.next() => match change {
                    Some(change) => dirty.all |= !note(&change, &mut dirty.policies),
                    None => return,
                },
                Some(report) = self.reports.recv() => self.report(report, &mut dirty),
                () = rest, if waits => {}
                read = read => {
                    self.reading = None;
                    self.next_reading = Instant::now() + REST;
                    self.cut(read.map_err(io::Error::other).flatten()).await;
                }
            }
        }
    }

    fn report(&mut self, report: Report, dirty: &mut Dirty) {
        match report {
            Report::Attached { pod, address, done } => {
                dirty.pods.insert(pod.clone());
                dirty.pods.extend(self.inputs.assigned.insert(address, pod));
                self.new.push((address, done));
            }
            Report::Detached { address } => {
                dirty.pods.extend(self.inputs.assigned.remove(&address));
                self.left.insert(address);
                if let Some(kernel) = &mut self.kernel {
                    kernel.fresh.remove(&address);
                }
                self.cut = true;
            }
        }
    }

    async fn apply(&mut self, dirty: &mut Dirty, since: Instant) -> io::Result<()> {
        let Some(mut kernel) = self.kernel.take() else { return Err(io::Error::other("worker was lost")) };
        kernel.fresh.extend(self.new.iter().map(|(address, _)| *address));
        let (inputs, changed) = (self.inputs.clone(), std::mem::take(dirty));
        // Large policies take long: the shared runtime must not wait for them.
        let (kernel, told, result) = tokio::task::spawn_blocking(move || {
            let told = inputs.plan(&mut kernel.plan, changed);
            let result = kernel.apply(&inputs.assigned);
            (kernel, told, result)
        })
        .await
        .map_err(io::Error::other)?;
        for (key, warning) in told {
            self.tell(key, warning);
        }
        let fresh = kernel.fresh.clone();
        self.kernel = Some(kernel);
        let applied = result?;
        self.cut |= applied.tighter;
        if applied.changed {
            let last = since.elapsed();
            debug!(?last, "network policies applied");
            let elements = self.kernel.as_ref().map_or(0, |kernel| kernel.plan.len());
            let cutting = self.cut || self.reading.is_some();
            self.stats.send_modify(|s| {
                *s = PolicyStats { transactions: s.transactions + 1, last, elements, cutting };
            });
        }
        for (address, done) in std::mem::take(&mut self.new) {
            if fresh.contains(&address) {
                // Its pod is not in the cache yet. It is asked about again when it is.
                self.new.push((address, done));
            } else {
                let _ = done.send(());
            }
        }
        // Those who no longer wait need no answer.
        self.new.retain(|(_, done)| !done.is_closed());
        Ok(())
    }

    /// Tells which parts of a policy have no effect, and why; once for each message.
    fn tell(&mut self, key: ObjectKey, warning: Option<Warning>) {
        let Some(Warning { policy, reason, message }) = warning else {
            self.told.remove(&key);
            return;
        };
        if self.told.get(&key) != Some(&message) {
            warn!(policy = %key, "{message}");
            self.config.recorder.warning(involved(&*policy), reason, &*message);
            self.told.insert(key, message);
        }
    }

    /// Starts to read the flows that may have to be cut.
    fn read_flows(&mut self) {
        let Some(kernel) = &self.kernel else { return };
        let isolated: HashSet<Ipv4Addr> = kernel.plan.isolated().collect();
        let left = std::mem::take(&mut self.left);
        if !isolated.is_empty() || !left.is_empty() {
            self.reading = Some(tokio::task::spawn_blocking(move || cut::read(&isolated, left)));
        } else {
            self.stats.send_modify(|s| s.cutting = false);
        }
    }

    /// Cuts the flows that are not allowed.
    async fn cut(&mut self, read: io::Result<Flows>) {
        let done = match (read, &self.kernel) {
            (Ok(read), Some(kernel)) => {
                let denied = cut::denied(&kernel.plan, read);
                let count = denied.len();
                if count > 0 {
                    debug!(count, "connections that policies no longer allow are cut");
                }
                tokio::task::spawn_blocking(move || conntrack::forget(denied))
                    .await
                    .map_err(io::Error::other)
                    .flatten()
            }
            (Err(error), _) => Err(error),
            (Ok(_), None) => Ok(()),
        };
        if let Err(error) = done {
            warn!(%error, "connections that policies no longer allow may go on");
        }
        let cutting = self.cut;
        self.stats.send_modify(|s| s.cutting = cutting);
    }
}

struct Applied {
    changed: bool,
    /// Less may be allowed than before.
    tighter: bool,
}

impl Kernel {
    /// Applies the plan. `assigned`: pods by the addresses that the pod network gave them.
    fn apply(&mut self, assigned: &BTreeMap<Ipv4Addr, ObjectKey>) -> io::Result<Applied> {
        let arrived = self.plan.take_arrivals();
        let waiting = self.fresh.iter().copied().chain(arrived).filter(|address| {
            let holder = self.plan.holder(*address);
            holder.is_some() && assigned.get(address).is_none_or(|pod| Some(pod) == holder)
        });
        // Addresses of pods of this node that are known now, which may be closed.
        let known: BTreeSet<Ipv4Addr> = waiting.collect();
        let mut batch = Batch::new(&self.table);
        let rebuild = self.broken;
        if rebuild {
            match self.nft.keys(&self.table, FRESH) {
                Ok(keys) => {
                    let keys = keys.iter().filter_map(|key| <[u8; 4]>::try_from(key.as_slice()).ok());
                    self.fresh.extend(keys.map(Ipv4Addr::from));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            rules::skeleton(&mut batch);
        }
        let delta = if rebuild { self.plan.take_all() } else { self.plan.take_delta() };
        rules::change(&mut batch, &delta);
        for address in &known {
            self.fresh.remove(address);
            if !rebuild {
                // The kernel removes what is there only.
                batch.add(FRESH, &rules::fresh(*address));
                batch.remove(FRESH, &rules::fresh(*address));
            }
        }
        if rebuild {
            for address in &self.fresh {
                batch.add(FRESH, &rules::fresh(*address));
            }
        }
        if batch.is_empty() {
            return Ok(Applied { changed: false, tighter: false });
        }
        let done = self.nft.commit(batch);
        self.broken = done.is_err();
        if done.is_err() {
            self.fresh.extend(&known);
            if rebuild {
                self.close_all();
            }
            done?;
        }
        Ok(Applied { changed: true, tighter: is_tighter(&delta, rebuild, &known) })
    }
}

impl Kernel {
    /// Closes all isolated pods: the kernel does not take their rules.
    fn close_all(&mut self) {
        self.fresh.extend(self.plan.isolated());
        let mut first = Ok(());
        for anew in [false, true] {
            let mut batch = Batch::new(&self.table);
            if anew {
                // There was no table yet.
                rules::skeleton(&mut batch);
            }
            for address in &self.fresh {
                batch.add(FRESH, &rules::fresh(*address));
            }
            match self.nft.commit(batch) {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => first = Err(e),
                other => {
                    first = other;
                    break;
                }
            }
        }
        let count = self.fresh.len();
        match first {
            Ok(()) => {
                warn!(count, "the kernel refuses the rules of network policies: isolated pods are closed")
            }
            Err(error) => warn!(%error, "isolated pods are not closed"),
        }
    }
}

/// Returns true if connections may be open that are no longer allowed. Pods that have just begun have none.
fn is_tighter(delta: &Delta, rebuild: bool, began: &BTreeSet<Ipv4Addr>) -> bool {
    let isolates = |key: &Key| match key {
        Key::Ingress(address) | Key::Egress(address) => !began.contains(address),
        _ => false,
    };
    rebuild || !delta.remove.is_empty() || delta.add.iter().any(|(key, _)| isolates(key))
}
