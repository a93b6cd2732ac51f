//! The sources of the plan: caches of objects, and the addresses that the pod network gave to pods.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use ipnet::Ipv4Net;
use k8s_core::{
    api::{
        Pod,
        api::{core::v1::Namespace, networking::v1::NetworkPolicy},
    },
    cache::{Cache, Change},
    meta::{Object, ObjectExt, ObjectKey},
};

use super::{facts, parse::parse, plan::Plan};

/// Objects that changed since the last transaction.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) all: bool,
    pub(super) namespaces: BTreeSet<String>,
    pub(super) pods: BTreeSet<ObjectKey>,
    pub(super) policies: BTreeSet<ObjectKey>,
}

impl Dirty {
    pub(super) fn is_empty(&self) -> bool {
        !self.all && self.namespaces.is_empty() && self.pods.is_empty() && self.policies.is_empty()
    }
}

/// Adds the key of a changed object; false if any may have changed.
pub(super) fn note<K: Object>(change: &Change<K>, keys: &mut BTreeSet<ObjectKey>) -> bool {
    match change {
        Change::Added(object) | Change::Modified(_, object) | Change::Deleted(object) => {
            keys.insert(object.key());
            true
        }
        Change::Resync => false,
    }
}

/// Warning about a policy: the cause as a word for events, and a sentence.
#[derive(Debug)]
pub(super) struct Warning {
    pub(super) policy: Arc<NetworkPolicy>,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// See the module. A copy shares the caches.
#[derive(Clone)]
pub(super) struct Inputs {
    pub(super) namespaces: Cache<Namespace>,
    pub(super) pods: Cache<Pod>,
    pub(super) policies: Cache<NetworkPolicy>,
    /// Name of this node.
    pub(super) node: String,
    /// Pod CIDR of the cluster. Other addresses in a pod's status are not believed.
    pub(super) cluster_cidr: Option<Ipv4Net>,
    /// Address of the cluster's DNS server on this node.
    pub(super) dns: Option<Ipv4Addr>,
    /// Pods by the addresses that the pod network gave them.
    pub(super) assigned: BTreeMap<Ipv4Addr, ObjectKey>,
}

impl Inputs {
    /// Brings the plan up to date. Returns policies with the warning to tell about each, if any.
    pub(super) fn plan(&self, plan: &mut Plan, mut dirty: Dirty) -> Vec<(ObjectKey, Option<Warning>)> {
        if dirty.all {
            dirty.namespaces.extend(self.namespaces.list().iter().map(|n| n.name().to_owned()));
            dirty.namespaces.extend(plan.namespaces());
            dirty.pods.extend(self.pods.list().iter().map(|pod| pod.key()));
            dirty.pods.extend(plan.pods());
            dirty.policies.extend(self.policies.list().iter().map(|policy| policy.key()));
            dirty.policies.extend(plan.policies());
        }
        // A pod that claimed an address before it was given to another one lets it go.
        let given = self.assigned.iter().filter(|(_, owner)| dirty.pods.contains(*owner));
        let holders = given.filter_map(|(address, owner)| plan.holder(*address).filter(|h| *h != owner));
        let strangers: Vec<ObjectKey> = holders.cloned().collect();
        dirty.pods.extend(strangers);
        for name in &dirty.namespaces {
            let namespace = self.namespaces.get("", name);
            plan.set_namespace(name, namespace.map(|n| n.metadata.labels.clone().unwrap_or_default()));
        }
        let mut assigned: HashMap<&ObjectKey, Vec<Ipv4Addr>> = HashMap::new();
        for (address, key) in self.assigned.iter().filter(|(_, key)| dirty.pods.contains(*key)) {
            assigned.entry(key).or_default().push(*address);
        }
        let own = self.dns.map(facts::dns).map(|(key, _)| key);
        for key in dirty.pods.iter().filter(|key| Some(*key) != own.as_ref()) {
            let pod = self.pods.by_key(key);
            let assigned = assigned.get(key).map(Vec::as_slice).unwrap_or_default();
            let mut facts = pod.and_then(|pod| facts::facts(&pod, &self.node, assigned));
            if let Some(facts) = &mut facts {
                // A node must not claim other addresses by a pod's status, and no status, late or foreign,
                // takes an address from the pod that the pod network gave it to.
                facts.addresses.retain(|address| {
                    self.cluster_cidr.is_none_or(|range| range.contains(address))
                        && self.assigned.get(address).is_none_or(|owner| owner == key)
                });
            }
            plan.set_pod(key, facts);
            for address in assigned {
                plan.assign(*address, key);
            }
        }
        for key in &dirty.policies {
            plan.set_policy(key, self.policies.by_key(key).map(|policy| parse(&policy)));
        }
        plan.reopen();
        let mut keys = dirty.policies;
        keys.extend(plan.take_turned());
        keys.into_iter()
            .map(|key| {
                let warning = self.policies.by_key(&key).and_then(|policy| self.warning(plan, &key, policy));
                (key, warning)
            })
            .collect()
    }

    fn warning(&self, plan: &Plan, key: &ObjectKey, policy: Arc<NetworkPolicy>) -> Option<Warning> {
        let namespace = &key.namespace;
        let problems = plan.problems(key);
        if !problems.is_empty() {
            let problems = problems.join("; ");
            let message = format!("{problems}: that part allows nothing, the selected pods are isolated");
            return Some(Warning { policy, reason: "InvalidNetworkPolicy", message });
        }
        if plan.is_closed(namespace) {
            let message = format!(
                "the network policies of namespace {namespace} need more of the {} elements of node {} than \
                 there are: they allow nothing, the selected pods are isolated",
                plan.most(),
                self.node
            );
            return Some(Warning { policy, reason: "NetworkPolicyTooLarge", message });
        }
        let unknown: Vec<String> = plan.unknown_ports(key).into_iter().collect();
        (!unknown.is_empty()).then(|| {
            let names = unknown.join(", ");
            let message = format!(
                "no selected pod of node {} has a port named {names}: that part allows nothing",
                self.node
            );
            Warning { policy, reason: "UnknownPortName", message }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 2);

    fn inputs() -> Inputs {
        Inputs {
            namespaces: Cache::new(),
            pods: Cache::new(),
            policies: Cache::new(),
            node: "node".into(),
            cluster_cidr: Some(Ipv4Net::new_assert(Ipv4Addr::new(10, 42, 0, 0), 16)),
            dns: None,
            assigned: BTreeMap::new(),
        }
    }

    impl Inputs {
        fn pod(&self, key: &ObjectKey, node: &str, address: Ipv4Addr) {
            let pod = json!({"metadata": {"name": key.name, "namespace": key.namespace},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": "Running", "podIPs": [{"ip": address}]}});
            self.pods.upsert(serde_json::from_value(pod).expect("pod"));
        }

        fn policy(&self, namespace: &str, spec: &Value) {
            let policy = json!({"metadata": {"name": "n", "namespace": namespace}, "spec": spec});
            self.policies.upsert(serde_json::from_value(policy).expect("policy"));
        }
    }

    fn everything() -> Dirty {
        Dirty { all: true, ..Dirty::default() }
    }

    #[test]
    fn a_foreign_status_does_not_take_an_assigned_address() {
        for (node, namespace) in [("node", "y"), ("other", "y"), ("node", "x")] {
            let mut inputs = inputs();
            let (own, foreign) = (ObjectKey::new("x", "own"), ObjectKey::new(namespace, "stranger"));
            inputs.policy("x", &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
            inputs.pod(&own, "node", ADDRESS);
            inputs.assigned.insert(ADDRESS, own.clone());
            let mut plan = Plan::default();
            inputs.plan(&mut plan, everything());
            assert_eq!(plan.isolated().collect::<Vec<_>>(), [ADDRESS]);
            // The status of another pod arrives late, or lies.
            inputs.pod(&foreign, node, ADDRESS);
            inputs.plan(&mut plan, Dirty { pods: [foreign.clone()].into(), ..Dirty::default() });
            assert_eq!(plan.holder(ADDRESS), Some(&own));
            assert_eq!(plan.isolated().collect::<Vec<_>>(), [ADDRESS]);
            inputs.plan(&mut plan, everything());
            assert_eq!(plan.holder(ADDRESS), Some(&own));
            // The address is given to the other pod: it holds it then.
            inputs.assigned.insert(ADDRESS, foreign.clone());
            inputs.plan(&mut plan, Dirty { pods: [own.clone(), foreign.clone()].into(), ..Dirty::default() });
            assert_eq!(plan.holder(ADDRESS), Some(&foreign));
        }
    }

    #[test]
    fn an_early_claim_ends_when_the_address_is_assigned() {
        let mut inputs = inputs();
        let (own, foreign) = (ObjectKey::new("x", "own"), ObjectKey::new("y", "stranger"));
        inputs.pod(&foreign, "other", ADDRESS);
        let mut plan = Plan::default();
        inputs.plan(&mut plan, everything());
        assert_eq!(plan.holder(ADDRESS), Some(&foreign));
        inputs.pod(&own, "node", ADDRESS);
        inputs.assigned.insert(ADDRESS, own.clone());
        inputs.plan(&mut plan, Dirty { pods: [own.clone()].into(), ..Dirty::default() });
        assert_eq!(plan.holder(ADDRESS), Some(&own));
        // Nor does it hold the address when the pod is gone.
        plan.set_pod(&own, None);
        assert_eq!(plan.holder(ADDRESS), None);
    }

    #[test]
    fn addresses_outside_the_cluster_are_not_believed() {
        let inputs = inputs();
        let outside = Ipv4Addr::new(192, 0, 2, 1);
        inputs.pod(&ObjectKey::new("x", "p"), "other", outside);
        let mut plan = Plan::default();
        inputs.plan(&mut plan, everything());
        assert_eq!(plan.holder(outside), None);
    }

    #[test]
    fn a_namespace_that_is_closed_is_told() {
        let inputs = inputs();
        inputs.pod(&ObjectKey::new("x", "p"), "node", ADDRESS);
        let blocks: Vec<Value> =
            (0..60).map(|n| json!({"ipBlock": {"cidr": format!("192.0.2.{n}/32")}})).collect();
        inputs.policy("x", &json!({"podSelector": {}, "ingress": [{"from": blocks}]}));
        let mut plan = Plan::with_most(50);
        let reasons = |told: Vec<(ObjectKey, Option<Warning>)>| -> Vec<Option<&'static str>> {
            told.into_iter().map(|(_, warning)| warning.map(|w| w.reason)).collect()
        };
        assert_eq!(reasons(inputs.plan(&mut plan, everything())), [Some("NetworkPolicyTooLarge")]);
        assert_eq!(plan.isolated().collect::<Vec<_>>(), [ADDRESS]);
        inputs.policy("x", &json!({"podSelector": {}, "ingress": [{}]}));
        assert_eq!(reasons(inputs.plan(&mut plan, everything())), [None]);
        assert!(!plan.is_closed("x") && plan.allows(Ipv4Addr::new(192, 0, 2, 1), ADDRESS, 6, 80));
    }
}
