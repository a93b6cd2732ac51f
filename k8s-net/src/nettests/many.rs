//! Time and memory of one change among many services.

use super::*;

#[test]
fn one_change_among_many_services_is_quick() {
    let (host, _outside, _bridge, config) = node("many");
    let count: u16 = if std::env::var_os("K8S_NET_BENCH").is_some() { 10_000 } else { 500 };
    let world = World::start(&host, "many");
    let before = world.transactions();
    for i in 0..count {
        let [high, low] = i.to_be_bytes();
        let service = json!({"metadata": {"name": format!("s{i}"), "namespace": "demo"},
            "spec": {"clusterIP": format!("10.43.{}.{low}", high + 1), "ports": [{"name": "tcp", "port": 80}]}});
        world.services.upsert(serde_json::from_value(service).expect("service"));
    }
    world.wait_after(before);
    std::thread::sleep(Duration::from_secs(1));
    let mut times = Vec::new();
    for i in 0..500u16 {
        world.endpoints(
            &format!("s{i}"),
            &[IpAddr::from([10, 42, 0, u8::try_from(i % 250).expect("small") + 2])],
        );
        times.push(world.stats.borrow().last);
    }
    times.sort();
    println!("{count} services, one change: p50 {:?}, p99 {:?}", times[250], times[495]);
    assert!(times[250] < Duration::from_millis(100), "{:?}", times[50]);
    world.stop();
    finish(&host, config);
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("reads");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("listed");
    line.trim().trim_end_matches(" kB").parse().expect("number")
}

/// Set in the process that measures.
const ALONE: &str = "K8S_NET_ALONE";

/// Measured in a process of its own, beside no other test.
#[test]
fn a_hundred_thousand_endpoints_take_little_memory() {
    if std::env::var_os(ALONE).is_some() {
        return measure();
    }
    let name = "nettests::many::a_hundred_thousand_endpoints_take_little_memory";
    let mut alone = std::process::Command::new(std::env::current_exe().expect("this program"));
    let said = alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().expect("starts");
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && text.contains("MiB"), "{text}{}", String::from_utf8_lossy(&said.stderr));
}

fn measure() {
    let (host, _outside, _bridge, config) = node("huge");
    let world = World::start(&host, "huge");
    let before = resident();
    for i in 0..1000u16 {
        let [high, low] = i.to_be_bytes();
        let endpoints: Vec<_> = (0..100)
            .map(|e| {
                let [_, a, b, c] = (u32::from(i) * 100 + e).to_be_bytes();
                json!({"addresses": [format!("10.{}.{b}.{c}", 128 + a)], "nodeName": format!("node-{}", e % 7),
                    "conditions": {"ready": true, "serving": true, "terminating": false}, "zone": "z1",
                    "targetRef": {"kind": "Pod", "namespace": "demo", "name": format!("s{i}-{e}"), "uid": "u"}})
            })
            .collect();
        let slice = json!({"addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": format!("s{i}-1"), "namespace": "demo", "labels": {"kubernetes.io/service-name": format!("s{i}")}},
            "ports": [{"name": "tcp", "port": 80, "protocol": "TCP"}]});
        let mut slice: EndpointSlice = serde_json::from_value(slice).expect("slice");
        crate::node::trim(&mut slice);
        world.slices.upsert(slice);
        let service = json!({"metadata": {"name": format!("s{i}"), "namespace": "demo"},
            "spec": {"clusterIP": format!("10.43.{}.{low}", high + 1), "ports": [{"name": "tcp", "port": 80}]}});
        world.services.upsert(serde_json::from_value(service).expect("service"));
    }
    // Rules rest when nothing was written for two seconds.
    let mut last = 0;
    while last != world.transactions() {
        last = world.transactions();
        std::thread::sleep(Duration::from_secs(2));
    }
    let whole = resident() - before;
    let caches = (world.slices.memory() + world.services.memory()) / 1024;
    println!("100,000 endpoints: {} MiB, of it caches {} MiB", whole / 1024, caches / 1024);
    world.stop();
    finish(&host, config);
    // The goal is 64 MiB.
    assert!(whole < 80 << 10, "{whole} KiB");
}
