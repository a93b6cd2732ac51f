use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::{
    super::thresholds::{Amount, Threshold},
    *,
};

/// A pod of a priority that requests memory and disk in MiB.
fn pod(uid: &str, priority: i32, request: i64) -> Pod {
    let requests = json!({"memory": format!("{request}Mi"), "ephemeral-storage": format!("{request}Mi")});
    let container = json!({"name": "c", "resources": {"requests": requests}});
    let spec = json!({"priority": priority, "containers": [container]});
    serde_json::from_value(json!({"metadata": {"name": uid, "uid": uid}, "spec": spec})).unwrap()
}

/// Memory and disk in MiB, and process ids.
fn using(memory: u64, disk: u64, pids: u64) -> Option<Usage> {
    let half = DiskUsage { bytes: disk << 19, inodes: disk };
    let container = ContainerUsage {
        name: "c".into(),
        memory: Some(memory << 20),
        pids,
        layer: Some(half),
        logs: Some(half),
    };
    Some(Usage { containers: vec![container], volumes: BTreeMap::new() })
}

fn order(signal: Signal, disks: Disks, mut pods: Vec<(Pod, Option<Usage>)>) -> String {
    rank(signal, disks, &mut pods, |(pod, usage)| (pod, usage.as_ref()));
    pods.iter().map(|(pod, _)| pod.uid()).collect::<Vec<_>>().join(" ")
}

#[test]
fn who_exceeds_then_who_is_unimportant_then_who_uses_most() {
    let pods = || {
        vec![
            (pod("within", 0, 100), using(99, 99, 9)),
            (pod("above", 0, 100), using(101, 101, 5)),
            (pod("far-above", 0, 100), using(500, 300, 7)),
            (pod("important", 9, 0), using(900, 900, 3)),
            (pod("unknown", 9, 100), None),
        ]
    };
    let by_usage = "unknown far-above above important within";
    for signal in [Signal::MemoryAvailable, Signal::AllocatableMemoryAvailable, Signal::NodeFsAvailable] {
        assert_eq!(order(signal, Disks::Shared, pods()), by_usage, "{signal}");
    }
    assert_eq!(order(Signal::NodeFsAvailable, Disks::Split, pods()), by_usage);
    // Nobody requests inodes.
    assert_eq!(
        order(Signal::NodeFsInodesFree, Disks::Shared, pods()),
        "unknown far-above above within important"
    );
    assert_eq!(
        order(Signal::PidAvailable, Disks::Shared, pods()),
        "within far-above above unknown important"
    );
    // No pod has anything on a disk that is the images' own.
    assert_eq!(
        order(Signal::ImageFsAvailable, Disks::Split, pods()),
        "unknown above far-above within important"
    );
}

fn met(signal: Signal, value: i64, available: i64) -> Met {
    let threshold = Threshold {
        signal,
        value: Amount::Fixed(Quantity::from_bytes(value)),
        grace_period: Duration::ZERO,
        minimum_reclaim: None,
    };
    Met { threshold, quantity: Quantity::from_bytes(value), available: Quantity::from_bytes(available) }
}

#[test]
fn messages_are_upstreams() {
    let low = met(Signal::MemoryAvailable, 100 << 20, 50 << 20);
    let begin = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. ";
    let above = pod("p", 0, 100);
    assert_eq!(message(&low, &above, None), begin);
    assert_eq!(message(&low, &above, using(100, 0, 0).as_ref()), begin);
    assert_eq!(
        message(&low, &above, using(128, 0, 0).as_ref()),
        format!("{begin}Container c was using 128Mi, request is 100Mi, has larger consumption of memory. ")
    );
    let mut whole = above.clone();
    let asked = json!({"requests": {"memory": "1Gi"}});
    whole.spec.as_mut().unwrap().resources = serde_json::from_value(asked).unwrap();
    assert_eq!(
        message(&low, &whole, using(64, 0, 0).as_ref()),
        format!("{begin}Pod p was using 64Mi, request is 1Gi, has larger consumption of memory. ")
    );
    let disk = met(Signal::NodeFsAvailable, 1 << 30, 1000);
    let mut none = pod("p", 0, 0);
    none.spec.as_mut().unwrap().containers[0].resources = None;
    assert_eq!(
        message(&disk, &none, using(0, 8, 0).as_ref()),
        "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 1k. \
         Container c was using 8Mi, request is 0, has larger consumption of ephemeral-storage. "
    );
    let inodes = message(&met(Signal::NodeFsInodesFree, 1024, 7), &none, using(0, 8, 0).as_ref());
    assert_eq!(inodes, "The node was low on resource: inodes. Threshold quantity: 1Ki, available: 7. ");
}

proptest! {
    /// The order does not depend on the order before, and no pod within its request goes before one above.
    #[test]
    fn laws(
        figures in prop::collection::vec((0_i32..3, 0_i64..4, prop::option::of(0_u64..6)), 1..8),
        turn in any::<usize>(),
    ) {
        let pods: Vec<(Pod, Option<Usage>)> = figures
            .iter()
            .enumerate()
            .map(|(n, (priority, request, used))| {
                (pod(&format!("p{n}"), *priority, *request), used.and_then(|used| using(used, used, used)))
            })
            .collect();
        for signal in [Signal::MemoryAvailable, Signal::NodeFsAvailable, Signal::PidAvailable] {
            let mut turned = pods.clone();
            turned.rotate_left(turn % pods.len());
            let have = order(signal, Disks::Shared, pods.clone());
            prop_assert_eq!(&have, &order(signal, Disks::Shared, turned));
            let place = |uid: &str| -> (i32, bool) {
                let n: usize = uid[1..].parse().unwrap();
                let (priority, request, used) = &figures[n];
                (*priority, used.is_some_and(|used| used as i64 <= *request))
            };
            let places: Vec<(i32, bool)> = have.split(' ').map(place).collect();
            let sorted = match signal {
                Signal::PidAvailable => places.is_sorted_by_key(|(priority, _)| *priority),
                _ => places.is_sorted_by_key(|(_, is_within)| *is_within),
            };
            prop_assert!(sorted, "{signal}: {places:?}");
        }
    }
}
