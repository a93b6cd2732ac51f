//! Pods, the node and the outside.

use std::sync::Arc;

use k8s_core::api::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};

use super::*;

#[test]
fn pods_reach_each_other_and_the_outside_sees_the_node() {
    let (host, outside, bridge, config) = node("pods");
    let (a, b) = (Ns::new(), Ns::new());
    let address_a = attach(&host, &bridge, attachment("a", &a));
    let before = Instant::now();
    let mut pod_b = attachment("b", &b);
    pod_b.host_ports =
        vec![HostPort { protocol: "TCP".into(), host_ip: None, host_port: 8081, container_port: 80 }];
    let address_b = attach(&host, &bridge, pod_b.clone());
    eprintln!("attach took {:?}", before.elapsed());
    assert_eq!(attach(&host, &bridge, pod_b.clone()), address_b, "attach is idempotent");
    b.serve("b", 80);
    outside.serve("outside", 80);
    assert_eq!(a.get(&format!("{address_b}:80")).expect("pod to pod"), format!("b {address_a}"));
    assert_eq!(host.get(&format!("{address_b}:80")).expect("node to pod"), "b 10.42.0.1");
    assert_eq!(a.get("192.0.2.1:80").expect("pod to outside"), "outside 192.0.2.2");
    assert_eq!(outside.get("192.0.2.2:8081").expect("host port"), "b 192.0.2.1");
    assert_eq!(host.get("127.0.0.1:8081").expect("host port on loopback"), "b 10.42.0.1");
    assert_eq!(b.get("192.0.2.2:8081").expect("host port to oneself"), "b 10.42.0.1");
    // A restart of the node agent: addresses stay and connections continue.
    let again = config.clone();
    let bridge = host.run(move || Bridge::start(again).expect("takes over"));
    assert_eq!(attach(&host, &bridge, pod_b.clone()), address_b);
    assert_eq!(a.get(&format!("{address_b}:80")).expect("pod to pod"), format!("b {address_a}"));
    let gone = bridge.clone();
    host.run(move || {
        runtime().block_on(async {
            gone.detach(&pod_b).await.expect("detaches");
            gone.detach(&pod_b).await.expect("detaches again");
            gone.retain(&[]).await.expect("frees the rest");
        });
    });
    assert!(a.get(&format!("{address_b}:80")).is_err());
    finish(&host, config);
}

#[test]
fn nothing_for_the_cluster_leaves_by_the_default_route() {
    let (host, outside, bridge, config) = node("leak");
    // The outside is the default gateway and would receive every packet that leaks.
    let count = || {
        std::fs::read_to_string("/proc/thread-self/net/dev").expect("reads").lines().find_map(|line| {
            let (name, rest) = line.split_once(':')?;
            (name.trim() == "eth0").then(|| rest.split_whitespace().nth(1)?.parse::<u64>().ok())?
        })
    };
    let send = |target: &'static str| {
        host.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
            (0..20).filter(|_| socket.send_to(b"leak?", target).is_ok()).count()
        })
    };
    let end = Instant::now() + WAIT;
    let mut first = Some(0);
    // ARP comes first; packets that are queued for it may be dropped.
    while first < Some(20) && Instant::now() < end {
        send("198.51.100.1:9");
        std::thread::sleep(Duration::from_millis(50));
        first = outside.run(count);
    }
    let first = first.expect("counts");
    assert!(first >= 20, "the counter counts: {first}");
    // Another cluster with the same CIDRs is refused, and its cleanup removes nothing of this one.
    let other = BridgeConfig { table: "other".into(), bridge: "hk-other".into(), ..config.clone() };
    host.run(move || {
        assert!(matches!(Bridge::start(other.clone()), Err(bridge::BridgeError::RangeInUse { .. })));
        let routes = |r: &mut Rtnl| r.routes().expect("lists").len();
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        let before = routes(&mut rtnl);
        bridge::cleanup(&BridgeConfig { state_dir: other.state_dir.join("other"), ..other })
            .expect("cleans up");
        assert_eq!(routes(&mut rtnl), before);
    });
    // A range that was added later, and one that an administrator took from another link's hosts.
    let added = ServiceCIDR {
        spec: Some(ServiceCIDRSpec { cidrs: Some(vec!["10.77.0.0/16".into(), "192.0.2.128/25".into()]) }),
        ..ServiceCIDR::default()
    };
    let (on, all) = (bridge.clone(), [Arc::new(added)]);
    let refused = host.run(move || {
        crate::service_ranges::apply(&on, &all).expect("sets routes");
        crate::service_ranges::apply(&on, &all).expect("sets routes again")
    });
    assert_eq!(refused, [cidr("192.0.2.128/25")]);
    for target in [
        "10.77.3.4:80",
        "10.43.0.99:80",
        "10.43.255.1:53",
        "10.42.0.77:80",
        "10.42.9.9:80",
        "10.42.255.255:80",
    ] {
        send(target);
    }
    std::thread::sleep(Duration::from_millis(100));
    let after = outside.run(count).expect("counts");
    assert!(after <= first + 2, "packets left the machine: {first} then {after}");
    host.run(move || {
        crate::service_ranges::apply(&bridge, &[]).expect("removes routes");
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        assert!(rtnl.routes().expect("lists").iter().all(|r| r.to != cidr("10.77.0.0/16")));
    });
    finish(&host, config);
}

/// Clusters of two distributions on one machine, whose data directories have the same hash: one is removed.
#[test]
fn two_programs_share_no_table() {
    let (host, _outside, bridge, config) = node("two");
    let of = |program: &str, third: u8| NodeNetConfig {
        program: program.into(),
        name: "two".into(),
        pod_cidr: cidr(&format!("10.{third}.0.0/24")),
        cluster_cidr: cidr(&format!("10.{third}.0.0/16")),
        service_cidr: cidr(&format!("10.{}.0.0/16", third + 1)),
        state_dir: config.state_dir.join(program),
        ..NodeNetConfig::default()
    };
    let (own, shop) = (of("hyperkube", 42), of("shopkube", 52));
    assert_eq!((own.table(), shop.table()), (config.table.clone(), "shopkube-two".to_owned()));
    let world = World::start(&host, "two");
    let left = host.run(move || {
        // The link's name has no room for the program's.
        let second = BridgeConfig { bridge: "hk-second".into(), ..shop.bridge() };
        Bridge::start(second.clone()).expect("starts beside the other");
        let mut nft = Nft::open().expect("nf_tables");
        let mut tables = move || {
            ["hyperkube-two", "hyperkube-two-pods", "shopkube-two", "shopkube-two-pods"]
                .map(|table| nft.has_table(table).expect("asks"))
        };
        assert_eq!(tables(), [true, true, false, true]);
        proxy::cleanup(&second.table).expect("removes rules");
        bridge::cleanup(&second).expect("removes bridge");
        assert_eq!(tables(), [true, true, false, false]);
        crate::node::remove_tables(&shop).expect("idempotent");
        tables()
    });
    assert_eq!(left, [true, true, false, false]);
    // The first cluster still works.
    let pod = Ns::new();
    attach(&host, &bridge, attachment("a", &pod));
    world.stop();
    finish(&host, config);
}

/// Connects an attached pod as an earlier version did: as a port of the bridge, with any MAC. Returns the
/// name of the link.
pub(super) fn make_port(host: &Ns, bridge: &'static str, pod: &Ns, address: Ipv4Addr) -> String {
    let path = pod.path.clone();
    let link = host.run(move || {
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        let hop = |l: &crate::rtnl::Listed| l.to == Ipv4Net::new_assert(address, 32);
        let index = rtnl.routes().expect("lists").iter().find(|l| hop(l)).and_then(|l| l.link);
        let link =
            rtnl.links().expect("lists").into_iter().find(|l| Some(l.index) == index).expect("link").name;
        rtnl.del_link(&link).expect("removes");
        let bridge = rtnl.index_of(bridge).expect("asks").expect("bridge");
        rtnl.add_address(bridge, Ipv4Addr::new(10, 42, 0, 1), 24).expect("address");
        let file = std::fs::File::open(path).expect("namespace");
        let veth = Veth { host: &link, peer: "eth0", mtu: 1500, master: Some(bridge), macs: None, group: 0 };
        rtnl.add_veth(&veth, std::os::fd::AsFd::as_fd(&file)).expect("veth");
        link
    });
    pod.run(move || {
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        let index = rtnl.index_of("eth0").expect("asks").expect("eth0");
        rtnl.add_address(index, address, 32).expect("address");
        rtnl.set_up(index).expect("up");
        let gateway = Ipv4Addr::new(10, 42, 0, 1);
        let how = How::Link { index, source: Some(address) };
        rtnl.set_route(&Route { to: Ipv4Net::new_assert(gateway, 32), how, metric: 0 }).expect("gateway");
        let how = How::Via { gateway, index: Some(index) };
        rtnl.set_route(&Route { to: cidr("0.0.0.0/0"), how, metric: 0 }).expect("default route");
    });
    link
}

/// A pod that an earlier version connected to the bridge keeps its address and its connections when the
/// kubelet attaches it again.
#[test]
fn pods_of_an_earlier_version_leave_the_bridge() {
    let (host, _outside, bridge, config) = node("moved");
    let (old, new) = (Ns::new(), Ns::new());
    let pod = attachment("old", &old);
    let (old_ip, new_ip) =
        (attach(&host, &bridge, pod.clone()), attach(&host, &bridge, attachment("new", &new)));
    let IpAddr::V4(address) = old_ip else { panic!("not IPv4") };
    let link = make_port(&host, "hk-moved", &old, address);
    let listener = old.run(|| TcpListener::bind("0.0.0.0:90").expect("binds"));
    old.serve("old", 80);
    new.serve("new", 80);
    assert_eq!(new.get(&format!("{old_ip}:80")).expect("before"), format!("old {new_ip}"));
    let mut near = new.run(move || TcpStream::connect_timeout(&(old_ip, 90).into(), WAIT).expect("connects"));
    let (mut far, _) = listener.accept().expect("accepts");

    let again = config.clone();
    let bridge = host.run(move || Bridge::start(again).expect("takes over"));
    assert_eq!(new.get(&format!("{old_ip}:80")).expect("meanwhile"), format!("old {new_ip}"));
    assert_eq!(attach(&host, &bridge, pod), old_ip);
    host.run(move || {
        let links = Rtnl::open().and_then(|mut rtnl| rtnl.links()).expect("lists");
        let link = links.iter().find(|l| l.name == link).expect("it is the same link");
        assert_eq!(link.master, None);
    });
    near.write_all(b"1").expect("sends");
    far.set_read_timeout(Some(WAIT)).expect("timeout");
    far.read_exact(&mut [0]).expect("the connection goes on");
    assert_eq!(new.get(&format!("{old_ip}:80")).expect("after"), format!("old {new_ip}"));
    assert_eq!(old.get(&format!("{new_ip}:80")).expect("after"), format!("new {old_ip}"));
    assert_eq!(host.get(&format!("{old_ip}:80")).expect("after"), "old 10.42.0.1");
    finish(&host, config);
}
