//! Changes of the cluster that may make a refused pod schedulable.

use k8s_core::api::api::{core::v1::Node, resource::v1::ResourceClaim};

use crate::{NodeInfo, PodInfo};

/// A set of kinds of changes that may make an unschedulable pod schedulable.
///
/// ```
/// use k8s_scheduler::WakeOn;
/// let wakes = WakeOn::NODE.or(WakeOn::POD_GONE);
/// assert!(wakes.meets(WakeOn::POD_GONE) && wakes.meets(WakeOn::NODE_TAINTS));
/// assert!(!wakes.meets(WakeOn::VOLUME));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeOn(u32);

impl WakeOn {
    /// A node was added.
    pub const NODE_ADDED: WakeOn = WakeOn(1);
    /// Allocatable resources of a node changed.
    pub const NODE_ALLOCATABLE: WakeOn = WakeOn(1 << 1);
    /// Labels of a node changed.
    pub const NODE_LABELS: WakeOn = WakeOn(1 << 2);
    /// Taints of a node changed, or it was cordoned or uncordoned.
    pub const NODE_TAINTS: WakeOn = WakeOn(1 << 3);
    /// A node was deleted.
    pub const NODE_GONE: WakeOn = WakeOn(1 << 4);
    /// Any change of a node.
    pub const NODE: WakeOn = WakeOn(0b1_1111);
    /// A pod was placed on a node.
    pub const POD_PLACED: WakeOn = WakeOn(1 << 5);
    /// Labels of a placed pod changed.
    pub const POD_LABELS: WakeOn = WakeOn(1 << 6);
    /// Requests of a placed pod became smaller.
    pub const POD_SCALED_DOWN: WakeOn = WakeOn(1 << 7);
    /// A pod left a node.
    pub const POD_GONE: WakeOn = WakeOn(1 << 8);
    /// Labels of a namespace changed.
    pub const NAMESPACE: WakeOn = WakeOn(1 << 9);
    /// A claim was created or changed.
    pub const CLAIM: WakeOn = WakeOn(1 << 10);
    /// A persistent volume was created or changed.
    pub const PERSISTENT_VOLUME: WakeOn = WakeOn(1 << 11);
    /// A storage class was created or changed.
    pub const CLASS: WakeOn = WakeOn(1 << 12);
    /// A CSINode was created or changed.
    pub const CSI_NODE: WakeOn = WakeOn(1 << 13);
    /// Any change of a claim, a volume, a storage class or a CSINode.
    pub const VOLUME: WakeOn = WakeOn(0b1111 << 10);
    /// A ResourceClaim was created, changed or deleted.
    pub const RESOURCE_CLAIM: WakeOn = WakeOn(1 << 14);
    /// A DeviceClass was created or changed.
    pub const DEVICE_CLASS: WakeOn = WakeOn(1 << 15);
    /// A ResourceSlice was created or changed.
    pub const RESOURCE_SLICE: WakeOn = WakeOn(1 << 16);
    /// A CSIDriver was created, changed or deleted.
    pub const CSI_DRIVER: WakeOn = WakeOn(1 << 17);
    /// A CSIStorageCapacity was created, or has more room.
    pub const STORAGE_CAPACITY: WakeOn = WakeOn(1 << 18);
    /// Every kind of change.
    pub const ANYTHING: WakeOn = WakeOn(u32::MAX);
    /// The empty set.
    pub const NOTHING: WakeOn = WakeOn(0);

    /// Returns the union.
    #[must_use]
    pub const fn or(self, other: WakeOn) -> Self {
        WakeOn(self.0 | other.0)
    }

    /// Returns true if the sets intersect.
    #[must_use]
    pub const fn meets(self, other: WakeOn) -> bool {
        self.0 & other.0 != 0
    }
}

/// A change of the cluster. Fields that its kind does not have are `None`.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Kinds of the change; an update of a node can be several.
    pub what: WakeOn,
    /// The node as it is now.
    pub node: Option<&'a NodeInfo>,
    /// The node before an update, or the deleted one.
    pub old_node: Option<&'a Node>,
    /// The placed pod as it is now, or the one that left.
    pub pod: Option<&'a PodInfo>,
    /// The placed pod before an update.
    pub old_pod: Option<&'a PodInfo>,
    /// The ResourceClaim as it is now.
    pub claim: Option<&'a ResourceClaim>,
    /// The ResourceClaim before an update, or the deleted one.
    pub old_claim: Option<&'a ResourceClaim>,
    /// Namespace and name of the claim, volume, class or CSINode.
    pub object: Option<(&'a str, &'a str)>,
}

impl<'a> Event<'a> {
    /// Creates a change of these kinds without details.
    #[must_use]
    pub fn of(what: WakeOn) -> Self {
        Event {
            what,
            node: None,
            old_node: None,
            pod: None,
            old_pod: None,
            claim: None,
            old_claim: None,
            object: None,
        }
    }

    pub(crate) fn node(what: WakeOn, node: Option<&'a NodeInfo>, old_node: Option<&'a Node>) -> Self {
        Event { node, old_node, ..Event::of(what) }
    }

    pub(crate) fn pod(what: WakeOn, pod: &'a PodInfo, old_pod: Option<&'a PodInfo>) -> Self {
        Event { pod: Some(pod), old_pod, ..Event::of(what) }
    }

    pub(crate) fn claim(claim: Option<&'a ResourceClaim>, old_claim: Option<&'a ResourceClaim>) -> Self {
        Event { claim, old_claim, ..Event::of(WakeOn::RESOURCE_CLAIM) }
    }

    pub(crate) fn object(what: WakeOn, namespace: &'a str, name: &'a str) -> Self {
        Event { object: Some((namespace, name)), ..Event::of(what) }
    }
}
