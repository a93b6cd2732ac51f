//! What the simulation remembers of nodes and pods, and when each pod's next step is due.
//!
//! Guarantees: a pod has at most one step due and at most one write on its way. An address belongs to one
//! running pod. Memory per pod is a few hundred bytes; objects are in the cache that is shared.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque},
    net::IpAddr,
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use k8s_core::{
    api::{api::core::v1::Pod, jiff::Timestamp},
    meta::{ObjectExt, ObjectKey},
};
use tokio::{sync::Notify, time::Instant};

use crate::{addresses::Pool, life::Life, script::Script};

/// A simulated node.
#[derive(Debug, Default)]
pub(crate) struct NodeState {
    /// Addresses for its pods; `None`: they are from the common range.
    pub(crate) pool: Option<Pool>,
    /// Addresses of the node.
    pub(crate) hosts: Arc<[String]>,
    /// Uids of its pods.
    pub(crate) pods: HashSet<Arc<str>>,
    /// Its Node object is simulated, too.
    pub(crate) known: bool,
}

/// A pod on a simulated node.
#[derive(Debug)]
pub(crate) struct PodState {
    pub(crate) key: ObjectKey,
    pub(crate) node: Arc<str>,
    pub(crate) life: Life,
    /// `None`: [`Script::runs`].
    pub(crate) script: Option<Arc<Script>>,
    pub(crate) restarts: u32,
    pub(crate) address: Option<IpAddr>,
    /// Time at which the pod was seen first.
    pub(crate) started: Timestamp,
    /// Time at which its containers began for the last time.
    pub(crate) began: Timestamp,
    /// Its containers were last reported as ready.
    pub(crate) ready: bool,
    /// Part of the next delay that has passed before this program knew the pod.
    pub(crate) elapsed: Duration,
    /// Number of the due step; 0: none.
    pub(crate) due: u64,
    /// A write is on its way.
    pub(crate) busy: bool,
    /// Deletion was seen.
    pub(crate) dying: bool,
    /// Time of the next step, once it was decided.
    pub(crate) at: Option<Instant>,
    /// A Stage has acted on it: its life goes on by Stages.
    pub(crate) staged: bool,
    /// Wakes the task that applies Stages to it, if there is one.
    pub(crate) wake: Option<Arc<Notify>>,
}

#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) nodes: BTreeMap<Arc<str>, NodeState>,
    pub(crate) pods: HashMap<Arc<str>, PodState>,
    /// Range of the pods whose node has none.
    common: Pool,
    timers: BinaryHeap<Reverse<(Instant, u64, Arc<str>)>>,
    ready: VecDeque<(u64, Arc<str>)>,
    numbers: u64,
}

impl Board {
    pub(crate) fn new(common: IpNet) -> Self {
        Board {
            nodes: BTreeMap::new(),
            pods: HashMap::new(),
            common: Pool::new(common),
            timers: BinaryHeap::new(),
            ready: VecDeque::new(),
            numbers: 0,
        }
    }

    /// Replaces the range of the pods whose node has none.
    pub(crate) fn set_common(&mut self, range: IpNet) {
        self.common = Pool::new(range);
    }

    /// Adds a node, or takes over its range and addresses.
    pub(crate) fn add_node(&mut self, name: &str, range: Option<IpNet>, hosts: Vec<String>) {
        let node = self.nodes.entry(name.into()).or_default();
        node.known = true;
        if *node.hosts != *hosts {
            node.hosts = hosts.into();
        }
        if let Some(range) = range
            && node.pool.as_ref().is_none_or(|pool| pool.range() != range.trunc())
        {
            let mut pool = Pool::new(range);
            let uids = node.pods.iter();
            uids.filter_map(|uid| self.pods.get(uid)?.address).for_each(|address| {
                pool.keep(address);
            });
            node.pool = Some(pool);
        }
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// Number of nodes whose objects are simulated.
    pub(crate) fn known_nodes(&self) -> usize {
        self.nodes.values().filter(|node| node.known).count()
    }

    /// Returns the node after `last` in the order of names, the first one after the last one.
    pub(crate) fn node_after(&self, last: Option<&Arc<str>>) -> Option<Arc<str>> {
        let known = |(name, node): (&Arc<str>, &NodeState)| node.known.then(|| name.clone());
        let after = last.and_then(|last| {
            let range = (Bound::Excluded(last.as_ref()), Bound::Unbounded);
            self.nodes.range::<str, _>(range).find_map(known)
        });
        after.or_else(|| self.nodes.iter().find_map(known))
    }

    /// Adds a pod in this state, with the address that it has or the next one of its node.
    pub(crate) fn add_pod(&mut self, pod: &Pod, mut state: PodState) -> &mut PodState {
        let uid: Arc<str> = pod.uid().into();
        let on_host = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
        let has = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()?.parse().ok());
        let node = self.nodes.entry(state.node.clone()).or_default();
        node.pods.insert(uid.clone());
        let pool = node.pool.as_mut().unwrap_or(&mut self.common);
        state.address = match (on_host, has) {
            (true, _) => node.hosts.first().and_then(|host| host.parse().ok()),
            (false, Some(address)) => {
                if state.life != Life::Over {
                    pool.keep(address);
                }
                Some(address)
            }
            (false, None) if state.life == Life::Over => None,
            (false, None) => pool.take(),
        };
        self.pods.entry(uid).insert_entry(state).into_mut()
    }

    /// Gives the address of a pod back, whose containers run no more. The pod's status keeps it.
    pub(crate) fn release(&mut self, uid: &str) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let Some(address) = pod.address.take() else { return };
        if let Some(node) = self.nodes.get_mut(&pod.node) {
            node.pool.as_mut().unwrap_or(&mut self.common).give_back(address);
        } else {
            self.common.give_back(address);
        }
    }

    pub(crate) fn remove_pod(&mut self, uid: &str) {
        self.release(uid);
        if let Some(pod) = self.pods.remove(uid)
            && let Some(node) = self.nodes.get_mut(&pod.node)
        {
            node.pods.remove(uid);
        }
    }

    /// Makes a pod's step due at a time, instead of one that was due before. `None`: at once.
    pub(crate) fn schedule(&mut self, uid: &str, at: Option<Instant>) {
        self.numbers += 1;
        let Some((uid, _)) = self.pods.get_key_value(uid) else { return };
        let (number, uid) = (self.numbers, uid.clone());
        if let Some(pod) = self.pods.get_mut(&uid) {
            pod.due = number;
        }
        match at {
            None => self.ready.push_back((number, uid)),
            Some(at) => self.timers.push(Reverse((at, number, uid))),
        }
    }

    /// Returns the time at which the next timer is due.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, ..))| *at)
    }

    /// Returns the next pod whose step is due, and marks it as busy.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Arc<str>> {
        while let Some(Reverse((at, ..))) = self.timers.peek()
            && *at <= now
            && let Some(Reverse((_, number, uid))) = self.timers.pop()
        {
            self.ready.push_back((number, uid));
        }
        while let Some((number, uid)) = self.ready.pop_front() {
            if let Some(pod) = self.pods.get_mut(&uid)
                && pod.due == number
                && !pod.busy
            {
                (pod.due, pod.busy) = (0, true);
                return Some(uid);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(node: &str) -> PodState {
        PodState {
            key: ObjectKey::new("default", "a"),
            node: node.into(),
            life: Life::Born,
            script: None,
            restarts: 0,
            address: None,
            started: Timestamp::UNIX_EPOCH,
            began: Timestamp::UNIX_EPOCH,
            ready: false,
            elapsed: Duration::ZERO,
            due: 0,
            busy: false,
            dying: false,
            at: None,
            staged: false,
            wake: None,
        }
    }

    fn pod(uid: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        pod
    }

    fn board() -> Board {
        Board::new("10.42.0.0/16".parse().expect("a range"))
    }

    #[expect(clippy::disallowed_methods, reason = "the test begins at some time")]
    #[tokio::test(start_paused = true)]
    async fn a_later_step_replaces_an_earlier_one() {
        let (mut board, now) = (board(), tokio::time::Instant::now());
        board.add_pod(&pod("u"), state("n"));
        board.schedule("u", Some(now + Duration::from_secs(5)));
        board.schedule("u", None);
        assert_eq!(board.pop(now).as_deref(), Some("u"));
        assert_eq!(board.pop(now + Duration::from_secs(9)), None);
        board.schedule("u", None);
        assert_eq!(board.pop(now), None, "a write is on its way");
    }

    #[test]
    fn addresses_are_of_the_node_and_are_given_back() {
        let mut board = board();
        board.add_node("n", "10.9.1.0/24".parse().ok(), vec!["192.0.2.1".into()]);
        let of = |state: &mut PodState| state.address.map(|a| a.to_string()).unwrap_or_default();
        assert_eq!(of(board.add_pod(&pod("a"), state("n"))), "10.9.1.2");
        assert_eq!(of(board.add_pod(&pod("b"), state("other"))), "10.42.0.2");
        let mut host = pod("c");
        host.spec.get_or_insert_default().host_network = Some(true);
        assert_eq!(of(board.add_pod(&host, state("n"))), "192.0.2.1");
        board.remove_pod("a");
        board.remove_pod("b");
        assert!(board.nodes["n"].pods.len() == 1 && board.pods.len() == 1);
    }

    #[test]
    fn nodes_take_turns() {
        let mut board = board();
        assert_eq!(board.node_after(None), None);
        ["b", "a"].iter().for_each(|name| board.add_node(name, None, Vec::new()));
        let a = board.node_after(None);
        let b = board.node_after(a.as_ref());
        assert_eq!((a.as_deref(), b.as_deref()), (Some("a"), Some("b")));
        assert_eq!(board.node_after(b.as_ref()), a);
    }
}
