//! Other nodes, and connections that last while endpoints change.

use super::*;

#[test]
fn pods_of_other_nodes_are_reached_through_their_nodes() {
    let (host, outside, _bridge, config) = node("nodes");
    outside.run(|| {
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        let lo = rtnl.index_of("lo").expect("asks").expect("lo");
        rtnl.add_address(lo, Ipv4Addr::new(10, 42, 1, 7), 32).expect("a pod of the other node");
        let how = How::Via { gateway: Ipv4Addr::new(192, 0, 2, 2), index: None };
        rtnl.set_route(&Route { to: cidr("10.42.0.0/24"), how, metric: 0 }).expect("route back");
    });
    outside.serve("other", 80);
    assert!(host.get("10.42.1.7:80").is_err(), "no route yet");
    let routes = host.run(|| {
        let nodes = Cache::new();
        let node = |name: &str, address: &str, range: &str| {
            let node = json!({"metadata": {"name": name}, "spec": {"podCIDR": range},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]}});
            nodes.upsert(serde_json::from_value(node).expect("node"));
        };
        node("node", "192.0.2.2", "10.42.0.0/24");
        node("other", "192.0.2.1", "10.42.1.0/24");
        node("gone", "192.0.2.3", "10.42.2.0/24");
        let all = crate::routes::plan(&nodes.list(), "node", cidr("10.42.0.0/16"));
        crate::routes::apply(&all, cidr("10.42.0.0/16")).expect("sets routes");
        crate::routes::apply(&all[..1], cidr("10.42.0.0/16")).expect("removes one");
        all.len()
            + Rtnl::open()
                .and_then(|mut r| r.routes())
                .expect("lists")
                .iter()
                .filter(|r| r.is_ours && r.gateway.is_some() && r.to.prefix_len() > 0)
                .count()
    });
    assert_eq!(routes, 2 + 1);
    let answer = host.get("10.42.1.7:80");
    let last = host.run(|| crate::routes::plan(&[], "node", cidr("10.42.0.0/16")).len());
    assert_eq!(last, 0);
    assert_eq!(answer.map_err(|e| e.to_string()), Ok("other 192.0.2.2".to_owned()));
    finish(&host, config);
}

fn web() -> SocketAddr {
    SocketAddr::from(([10, 43, 0, 60], 80))
}

#[test]
fn no_connection_is_lost_while_endpoints_change() {
    let (host, _outside, bridge, config) = node("roll");
    let (a, b, client) = (Ns::new(), Ns::new(), Ns::new());
    let [ip_a, ip_b, _] =
        [("a", &a), ("b", &b), ("c", &client)].map(|(name, ns)| attach(&host, &bridge, attachment(name, ns)));
    a.serve("a", 80);
    b.serve("b", 80);
    let world = World::start(&host, "roll");
    world.service("web", json!({"clusterIP": "10.43.0.60", "ports": [{"name": "tcp", "port": 80}]}));
    world.endpoints("web", &[ip_a]);
    // The transaction that was waited for may have been another one, about the node's own ports.
    client.run(|| {
        let end = Instant::now() + WAIT;
        while TcpStream::connect_timeout(&web(), WAIT).is_err() {
            assert!(Instant::now() < end, "the service has no endpoint");
        }
    });
    let outcome = client.start(|| {
        let end = Instant::now() + Duration::from_millis(1500);
        let address = web();
        let mut served = 0;
        while Instant::now() < end {
            let mut text = String::new();
            TcpStream::connect_timeout(&address, WAIT)?.read_to_string(&mut text)?;
            served += 1;
        }
        std::io::Result::Ok(served)
    });
    let mut changes = 0;
    let served = loop {
        for set in [&[ip_a, ip_b][..], &[ip_b], &[ip_a, ip_b], &[ip_a]] {
            world.endpoints("web", set);
            changes += 1;
        }
        if let Ok(served) = outcome.try_recv() {
            break served.expect("no connection fails");
        }
    };
    println!("{served} connections over {changes} changes");
    assert!(served > 100 && changes > 100, "{served} connections, {changes} changes");
    world.stop();
    finish(&host, config);
}
