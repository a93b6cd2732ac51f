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
    for i in 0..100u8 {
        world.endpoints(&format!("s{i}"), &[IpAddr::from([10, 42, 0, i + 2])]);
        times.push(world.stats.borrow().last);
    }
    times.sort();
    println!("{count} services, one change: p50 {:?}, p99 {:?}", times[50], times[98]);
    assert!(times[50] < Duration::from_millis(100), "{:?}", times[50]);
    world.stop();
    finish(&host, config);
}
