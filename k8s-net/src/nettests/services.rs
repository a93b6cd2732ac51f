//! Services in the kernel.

use super::*;

/// Debian's `nft` lists every rule of every table without complaint. (1.0.6 used to end with an assertion.)
pub(super) fn lists(host: &Ns) {
    let listed =
        host.run(|| Command::new("nft").args(["list", "ruleset"]).output().expect("nft is installed"));
    let (out, err) = (String::from_utf8_lossy(&listed.stdout), String::from_utf8_lossy(&listed.stderr));
    assert!(listed.status.success() && err.is_empty(), "{}: {err}", listed.status);
    for part in
        ["map fronts", "map affinity", "chain services", "@backends", "update @affinity", "masquerade"]
    {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
}

#[test]
fn services_reach_their_endpoints() {
    let (host, outside, bridge, config) = node("svc");
    let (a, b, client) = (Ns::new(), Ns::new(), Ns::new());
    let [ip_a, ip_b, ip_c] =
        [("a", &a), ("b", &b), ("c", &client)].map(|(name, ns)| attach(&host, &bridge, attachment(name, ns)));
    a.serve("a", 80);
    b.serve("b", 80);
    let world = World::start(&host, "svc");
    let ports = json!([{"name": "tcp", "port": 80, "nodePort": 30080}, {"name": "udp", "port": 80, "protocol": "UDP", "nodePort": 30080}]);
    world.service("web", json!({"clusterIP": "10.43.0.50", "type": "NodePort", "externalIPs": ["198.51.100.9"], "ports": ports}));

    // No endpoints, an unknown port, an unknown service: refused at once.
    for target in ["10.43.0.50:80", "10.43.0.50:81", "10.43.7.7:80"] {
        for (who, ns) in [("pod", &client), ("host", &host)] {
            let before = Instant::now();
            let error = ns.get(target).expect_err("refused");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{who} {target}");
            assert!(before.elapsed() < Duration::from_millis(500), "{who} {target}");
        }
    }
    for target in ["127.0.0.1:30080", "192.0.2.2:30080"] {
        let error = host.get(target).expect_err("refused");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{target}");
    }

    world.endpoints("web", &[ip_a]);
    assert_eq!(client.get("10.43.0.50:80").expect("pod to service"), format!("a {ip_c}"));
    assert_eq!(client.get_udp("10.43.0.50:80").expect("udp"), format!("a {ip_c}"));
    assert_eq!(host.get("10.43.0.50:80").expect("node to service"), "a 10.42.0.1");
    assert_eq!(a.get("10.43.0.50:80").expect("to itself"), "a 10.42.0.1");
    for target in ["127.0.0.1:30080", "192.0.2.2:30080"] {
        assert_eq!(host.get(target).expect(target), "a 10.42.0.1", "{target}");
        assert_eq!(host.get_udp(target).expect(target), "a 10.42.0.1", "{target}");
    }
    assert_eq!(client.get("192.0.2.2:30080").expect("node port from a pod"), "a 10.42.0.1");
    assert_eq!(outside.get("192.0.2.2:30080").expect("node port from outside"), "a 10.42.0.1");
    assert_eq!(client.get("198.51.100.9:80").expect("external address"), "a 10.42.0.1");

    // Both endpoints get connections; after the change none goes to the removed one.
    world.endpoints("web", &[ip_a, ip_b]);
    let answers: Vec<_> = (0..40).map(|_| client.get("10.43.0.50:80").expect("served")).collect();
    assert!(answers.iter().any(|t| t.starts_with('a')) && answers.iter().any(|t| t.starts_with('b')));
    world.endpoints("web", &[ip_b]);
    for _ in 0..20 {
        assert_eq!(client.get("10.43.0.50:80").expect("served"), format!("b {ip_c}"));
        assert_eq!(client.get_udp("10.43.0.50:80").expect("udp"), format!("b {ip_c}"));
    }

    // Session affinity: one client stays with one endpoint until that is removed.
    let affine = json!({"clusterIP": "10.43.0.50", "sessionAffinity": "ClientIP", "ports": ports});
    world.service("web", affine.clone());
    world.endpoints("web", &[ip_a, ip_b]);
    let first = client.get("10.43.0.50:80").expect("served");
    for _ in 0..20 {
        assert_eq!(client.get("10.43.0.50:80").expect("served"), first);
    }
    let other = if first.starts_with('a') { ip_b } else { ip_a };
    world.endpoints("web", &[other]);
    let moved = client.get("10.43.0.50:80").expect("served");
    assert_ne!(moved, first);
    world.endpoints("web", &[ip_a, ip_b]);
    for _ in 0..10 {
        assert_eq!(client.get("10.43.0.50:80").expect("served"), moved);
    }

    // Affinity that was off for a moment holds afterwards, and nothing is removed twice.
    world.service("web", json!({"clusterIP": "10.43.0.50", "ports": ports}));
    world.service("web", affine);
    std::thread::sleep(Duration::from_millis(1300));
    let first = client.get("10.43.0.50:80").expect("served");
    for _ in 0..10 {
        assert_eq!(client.get("10.43.0.50:80").expect("served"), first);
    }

    lists(&host);

    // `externalTrafficPolicy: Local` without local endpoint: dropped for outside clients, served inside.
    world.service("web", json!({"clusterIP": "10.43.0.50", "type": "NodePort", "externalTrafficPolicy": "Local", "ports": ports}));
    assert_eq!(outside.get("192.0.2.2:30080").map(|t| t[2..].to_owned()).expect("local"), "192.0.2.1");
    world.stop();
    finish(&host, config);
}
