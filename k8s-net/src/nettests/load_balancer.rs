//! Load balancers' addresses and external IPs: who is answered on them, and who is not.

use super::{services::lists, *};

/// A Service of type LoadBalancer whose status has an address; `at` orders creations.
fn balanced(name: &str, at: u8, address: &str, more: serde_json::Value) -> serde_json::Value {
    let mut spec = json!({"type": "LoadBalancer", "clusterIP": format!("10.43.1.{at}"),
        "ports": [{"name": "tcp", "port": 80}, {"name": "udp", "port": 80, "protocol": "UDP"}]});
    spec.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
    json!({"metadata": {"name": name, "namespace": "demo", "creationTimestamp": format!("2026-01-01T00:00:{at:02}Z")},
        "spec": spec, "status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}})
}

fn refused(ns: &Ns, target: &str) {
    let error = ns.get(target).expect_err("not answered");
    assert_ne!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{target} is dropped, not refused");
    ns.get_udp(target).expect_err("not answered");
}

#[test]
fn load_balancers_answer_the_clients_of_their_source_ranges() {
    let (host, outside, bridge, config) = node("lb");
    let (a, client) = (Ns::new(), Ns::new());
    let [ip_a, ip_c] =
        [("a", &a), ("c", &client)].map(|(name, ns)| attach(&host, &bridge, attachment(name, ns)));
    a.serve("a", 80);
    let world = World::start(&host, "lb");
    let put = |more| world.put(balanced("web", 1, "192.0.2.2", more));
    let all = |target: &str| {
        for (who, ns) in [("outside", &outside), ("pod", &client), ("node", &host)] {
            assert_eq!(ns.get(target).expect(who), "a 10.42.0.1", "{who}");
            assert_eq!(ns.get_udp(target).expect(who), "a 10.42.0.1", "{who}");
        }
    };
    put(json!({}));
    world.endpoints("web", &[ip_a]);
    all("192.0.2.2:80");
    assert_eq!(a.get("192.0.2.2:80").expect("to itself"), "a 10.42.0.1");

    // Prefixes of two lengths, with and without affinity.
    for affinity in ["None", "ClientIP"] {
        let ranges = json!(["192.0.2.1/32", "10.42.0.0/16"]);
        put(json!({"loadBalancerSourceRanges": ranges, "sessionAffinity": affinity}));
        assert_eq!(outside.get("192.0.2.2:80").expect("in the ranges"), "a 10.42.0.1");
        assert_eq!(outside.get_udp("192.0.2.2:80").expect("in the ranges"), "a 10.42.0.1");
        assert_eq!(client.get("192.0.2.2:80").expect("in the ranges"), "a 10.42.0.1");
        refused(&host, "192.0.2.2:80");
    }
    lists(&host);
    put(json!({"loadBalancerSourceRanges": ["198.51.100.0/24", "192.0.2.2/32"]}));
    refused(&outside, "192.0.2.2:80");
    assert_eq!(host.get("192.0.2.2:80").expect("in the ranges"), "a 10.42.0.1");
    assert_eq!(
        client.get("10.43.1.1:80").expect("cluster IP"),
        format!("a {ip_c}"),
        "ranges are for the balancer"
    );
    let mut annotated = balanced("web", 1, "192.0.2.2", json!({}));
    annotated["metadata"]["annotations"] =
        json!({"service.beta.kubernetes.io/load-balancer-source-ranges": "198.51.100.0/24, 203.0.113.0/24"});
    world.put(annotated);
    refused(&outside, "192.0.2.2:80");
    put(json!({}));
    all("192.0.2.2:80");

    // `Local` keeps the client's address.
    put(json!({"externalTrafficPolicy": "Local"}));
    assert_eq!(outside.get("192.0.2.2:80").expect("local"), "a 192.0.2.1");
    world.stop();
    finish(&host, config);
}

#[test]
fn no_service_takes_a_port_of_the_node() {
    let (host, outside, bridge, config) = node("own");
    let (a, b) = (Ns::new(), Ns::new());
    let ip_a = attach(&host, &bridge, attachment("a", &a));
    let mut pod_b = attachment("b", &b);
    pod_b.host_ports =
        vec![HostPort { protocol: "TCP".into(), host_ip: None, host_port: 8081, container_port: 80 }];
    attach(&host, &bridge, pod_b);
    a.serve("a", 80);
    b.serve("b", 80);
    host.serve("node", 8080);
    // In the range from which the kernel chooses ports of clients.
    host.serve("node", 45_000);
    let world = World::start(&host, "own");
    let other = json!({"clusterIP": "10.43.1.2", "type": "NodePort", "ports": [{"name": "tcp", "port": 80, "nodePort": 30080}]});
    world.service("other", other);
    world.endpoints("other", &[ip_a]);
    let numbers = [80, 6443, 8080, 8081, 30080, 45_000];
    let ports: Vec<_> = numbers.iter().map(|n| json!({"name": format!("p{n}"), "port": n})).collect();
    let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": [ip_a]}], "ports":
        numbers.map(|n| json!({"name": format!("p{n}"), "port": 80, "protocol": "TCP"})),
        "metadata": {"name": "greedy-2", "namespace": "demo", "labels": {"kubernetes.io/service-name": "greedy"}}});
    world.slices.upsert(serde_json::from_value(slice).expect("slice"));
    let as_balancer = balanced("greedy", 1, "192.0.2.2", json!({"ports": ports}));
    let as_external = json!({"metadata": {"name": "greedy", "namespace": "demo"}, "spec":
        {"clusterIP": "10.43.1.1", "externalIPs": ["192.0.2.2"], "ports": ports}});
    for service in [as_balancer, as_external] {
        world.put(service.clone());
        for (who, ns, from) in [("outside", &outside, "192.0.2.1"), ("node", &host, "192.0.2.2")] {
            assert_eq!(ns.get("192.0.2.2:80").expect(who), "a 10.42.0.1", "{who}: a free port");
            for port in [8080, 45_000] {
                assert_eq!(ns.get(&format!("192.0.2.2:{port}")).expect(who), format!("node {from}"), "{who}");
            }
            assert!(ns.get("192.0.2.2:8081").expect(who).starts_with("b "), "{who}: the pod's host port");
            let error = ns.get("192.0.2.2:6443").expect_err("reserved, and nothing listens");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{who}");
        }
        world.endpoints("other", &[]);
        outside.get("192.0.2.2:30080").expect_err("the other's node port, without endpoints");
        world.endpoints("other", &[ip_a]);
        outside.get("192.0.2.2:30080").expect("the other's node port");
        let before = world.transactions();
        world.services.remove(serde_json::from_value(service).expect("service"));
        world.wait_after(before);
    }
    world.stop();
    finish(&host, config);
}

#[test]
fn the_older_of_two_services_has_the_address() {
    let (host, outside, bridge, config) = node("two-lb");
    let (a, b) = (Ns::new(), Ns::new());
    let [ip_a, ip_b] = [("a", &a), ("b", &b)].map(|(name, ns)| attach(&host, &bridge, attachment(name, ns)));
    a.serve("a", 80);
    b.serve("b", 80);
    // By name the young one comes first.
    let (young, old) =
        (balanced("a-young", 9, "192.0.2.2", json!({})), balanced("b-old", 2, "192.0.2.2", json!({})));
    let world = World::start(&host, "two-lb");
    world.put(old.clone());
    world.put(young);
    world.endpoints("a-young", &[ip_a]);
    world.endpoints("b-old", &[ip_b]);
    assert!(outside.get("192.0.2.2:80").expect("served").starts_with('b'));
    // A proxy that starts sees both at once.
    let (services, slices) = (world.services.clone(), world.slices.clone());
    world.stop();
    let world = World::over(&host, "two-lb", services, slices);
    assert!(outside.get("192.0.2.2:80").expect("served").starts_with('b'));
    // The end of one gives the address to the other.
    let before = world.transactions();
    world.services.remove(serde_json::from_value(old).expect("service"));
    world.wait_after(before);
    assert!(outside.get("192.0.2.2:80").expect("served").starts_with('a'));
    world.stop();
    finish(&host, config);
}

#[test]
fn health_check_node_ports_answer() {
    let (host, outside, bridge, config) = node("health");
    let a = Ns::new();
    let ip_a = attach(&host, &bridge, attachment("a", &a));
    let world = World::start(&host, "health");
    let ask = || {
        outside.run(|| {
            let address: SocketAddr = "192.0.2.2:32100".parse().expect("address");
            let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
            stream.set_read_timeout(Some(WAIT))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            std::io::Result::Ok(text)
        })
    };
    let local = json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32100});
    world.put(balanced("web", 1, "192.0.2.2", local));
    let none = ask().expect("answers");
    assert!(none.starts_with("HTTP/1.1 503 "), "{none}");
    assert!(none.to_lowercase().contains("x-load-balancing-endpoint-weight: 0\r\n"), "{none}");
    world.endpoints("web", &[ip_a]);
    let one = ask().expect("answers");
    assert!(one.starts_with("HTTP/1.1 200 "), "{one}");
    let head = one.to_lowercase();
    for line in [
        "x-load-balancing-endpoint-weight: 1",
        "content-type: application/json",
        "x-content-type-options: nosniff",
    ] {
        assert!(head.contains(line), "{line} is not in {one}");
    }
    let body: serde_json::Value =
        serde_json::from_str(one.split("\r\n\r\n").nth(1).expect("body")).expect("JSON");
    let wanted = json!({"service": {"namespace": "demo", "name": "web"}, "localEndpoints": 1, "serviceProxyHealthy": true});
    assert_eq!(body, wanted);
    // Another policy: the port is closed.
    world.put(balanced("web", 1, "192.0.2.2", json!({})));
    ask().expect_err("closed");
    world.stop();
    finish(&host, config);
}

#[test]
fn endpoints_of_the_nodes_zone_are_preferred() {
    let (host, _outside, bridge, config) = node("zones");
    let (a, b, client) = (Ns::new(), Ns::new(), Ns::new());
    let [ip_a, ip_b, _] =
        [("a", &a), ("b", &b), ("c", &client)].map(|(name, ns)| attach(&host, &bridge, attachment(name, ns)));
    a.serve("a", 80);
    b.serve("b", 80);
    let world = World::start(&host, "zones");
    world.service("web", json!({"clusterIP": "10.43.0.50", "ports": [{"name": "tcp", "port": 80}]}));
    let before = world.transactions();
    let of = |ip: IpAddr, zone: &str| json!({"addresses": [ip], "hints": {"forZones": [{"name": zone}]}});
    let slice = json!({"addressType": "IPv4", "endpoints": [of(ip_a, "z1"), of(ip_b, "z2")],
        "metadata": {"name": "web-1", "namespace": "demo", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "tcp", "port": 80, "protocol": "TCP"}]});
    world.slices.upsert(serde_json::from_value(slice).expect("slice"));
    world.wait_after(before);
    for (zone, wanted) in [("z2", 'b'), ("z1", 'a')] {
        let before = world.transactions();
        let labels = json!({"topology.kubernetes.io/zone": zone});
        let node = json!({"metadata": {"name": "node", "labels": labels}});
        world.nodes.upsert(serde_json::from_value(node).expect("node"));
        world.wait_after(before);
        for _ in 0..12 {
            assert!(client.get("10.43.0.50:80").expect("served").starts_with(wanted), "{zone}");
        }
    }
    world.stop();
    finish(&host, config);
}
