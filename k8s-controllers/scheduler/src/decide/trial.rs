//! The search for victims: trials on copies of nodes.

use std::{cell::OnceCell, sync::Arc};

use super::{Asked, Profile, trials::Known};
use crate::{Candidate, Cluster, Cycle, NodeInfo, PodInfo, Search};

/// A search for victims. The state of the cycle is kept equal to the copy of the node.
pub(super) struct Trial<'a> {
    profile: &'a Profile,
    cx: Cycle<'a>,
    asked: Asked,
    pod: &'a PodInfo,
    resolvable: &'a [u32],
    names: OnceCell<Vec<String>>,
    node: Option<NodeInfo>,
    /// Pods that the copy lacks.
    away: Vec<Arc<PodInfo>>,
    /// Outcomes of earlier trials, if they depend on the node alone.
    known: Option<&'a mut Known>,
}

impl<'a> Trial<'a> {
    pub(super) fn new(
        profile: &'a Profile,
        cx: Cycle<'a>,
        asked: Asked,
        pod: &'a PodInfo,
        resolvable: &'a [u32],
        known: Option<&'a mut Known>,
    ) -> Self {
        let (names, node, away) = (OnceCell::new(), None, Vec::new());
        Trial { profile, cx, asked, pod, resolvable, names, node, away, known }
    }

    fn moved(&mut self, other: &PodInfo, by: i64) {
        if let Some(node) = &self.node {
            self.profile.moved(&mut self.cx, &self.asked, self.pod, other, node, by);
        }
    }

    /// Ends a trial: the state of the cycle is as before it.
    pub(super) fn leave(&mut self) {
        for pod in std::mem::take(&mut self.away) {
            self.moved(&pod, 1);
        }
        self.node = None;
    }
}

impl Search for Trial<'_> {
    fn cluster(&self) -> &Cluster {
        self.cx.cluster()
    }

    fn pod(&self) -> &PodInfo {
        self.pod
    }

    fn resolvable(&self) -> &[String] {
        self.names.get_or_init(|| {
            let nodes = self.resolvable.iter().filter_map(|at| self.cx.cluster().nodes().get(*at as usize));
            nodes.map(|node| node.name().to_owned()).collect()
        })
    }

    fn resolvable_at(&self) -> Vec<usize> {
        self.resolvable.iter().map(|at| *at as usize).collect()
    }

    fn recall(&self, at: usize) -> Option<Option<Candidate>> {
        self.known.as_ref()?.get(self.cx.cluster(), at).cloned()
    }

    fn remember(&mut self, at: usize, outcome: &Option<Candidate>) {
        if let Some(known) = &mut self.known {
            known.set(self.cx.cluster(), at, outcome.clone());
        }
    }

    fn visit(&mut self, node: &str) -> bool {
        self.leave();
        self.node = self.cx.cluster().node(node).cloned();
        self.node.is_some()
    }

    fn remove(&mut self, pod: &Arc<PodInfo>) {
        if self.node.as_mut().is_some_and(|node| node.remove(pod.uid())) {
            self.moved(pod, -1);
            self.away.push(pod.clone());
        }
    }

    fn restore(&mut self, pod: &Arc<PodInfo>) {
        let Some(at) = self.away.iter().position(|p| p.uid() == pod.uid()) else { return };
        let pod = self.away.swap_remove(at);
        self.moved(&pod, 1);
        if let Some(node) = &mut self.node {
            node.add(pod);
        }
    }

    fn fits(&mut self) -> bool {
        let Some(node) = self.node.take() else { return false };
        let fits = self.profile.check(&mut self.cx, &self.asked, self.pod, &node).is_ok();
        self.node = Some(node);
        fits
    }
}
