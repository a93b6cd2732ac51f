//! Tests against the kernel, each in network namespaces of its own. They need root.

mod peers;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::mpsc,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use k8s_core::{
    api::api::{core::v1::Service, discovery::v1::EndpointSlice},
    cache::Cache,
};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use crate::{
    bridge::{self, Bridge, BridgeConfig},
    nft::Nft,
    node::NodeNetConfig,
    pod::{HostPort, PodAttachment, PodNetwork},
    proxy::{self, Proxy, ProxyConfig, ProxyStats},
    rtnl::{How, Route, Rtnl},
};

const WAIT: Duration = Duration::from_secs(3);

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a new network namespace; dropping it ends both.
struct Ns {
    jobs: mpsc::Sender<Job>,
    path: PathBuf,
}

impl Ns {
    fn new() -> Self {
        let (jobs, work) = mpsc::channel::<Job>();
        let (ready, path) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("network tests need root");
            ready
                .send(PathBuf::from(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid())))
                .expect("waiting");
            for job in work {
                job();
            }
        });
        Ns { jobs, path: path.recv().expect("thread starts") }
    }

    /// Starts `work` in the namespace.
    fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(work())))).expect("thread lives");
        result
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(work).recv_timeout(Duration::from_secs(60)).expect("work ends without panic")
    }

    /// Starts a server that answers each connection and datagram with `name` and the peer's address.
    fn serve(&self, name: &'static str, port: u16) {
        self.run(move || {
            let listener = TcpListener::bind(("0.0.0.0", port)).expect("free port");
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.expect("accepts");
                    let peer = stream.peer_addr().expect("connected");
                    let _ = write!(stream, "{name} {}", peer.ip());
                }
            });
            let udp = UdpSocket::bind(("0.0.0.0", port)).expect("free port");
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
                }
            });
        });
    }

    /// Returns the server's answer over TCP.
    fn get(&self, address: &str) -> std::io::Result<String> {
        let address: SocketAddr = address.parse().expect("address");
        self.run(move || {
            let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
            stream.set_read_timeout(Some(WAIT))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }

    /// Returns the server's answer over UDP.
    fn get_udp(&self, address: &str) -> std::io::Result<String> {
        let address: SocketAddr = address.parse().expect("address");
        self.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(WAIT))?;
            socket.connect(address)?;
            socket.send(b"?")?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
    }
}

fn cidr(text: &str) -> Ipv4Net {
    text.parse().expect("range")
}

fn config(test: &str) -> BridgeConfig {
    BridgeConfig {
        table: format!("hyperkube-{test}"),
        bridge: bridge::bridge_name(test),
        pod_cidr: cidr("10.42.0.0/24"),
        cluster_cidr: cidr("10.42.0.0/16"),
        service_cidr: cidr("10.43.0.0/16"),
        mtu: 0,
        state_dir: std::env::temp_dir().join(format!("k8s-net-{test}-{}", std::process::id())),
    }
}

fn attachment(name: &str, netns: &Ns) -> PodAttachment {
    PodAttachment {
        sandbox: format!("sandbox-{name}"),
        namespace: "demo".into(),
        name: name.into(),
        netns: netns.path.clone(),
        host_ports: Vec::new(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

fn attach(host: &Ns, bridge: &Bridge, pod: PodAttachment) -> IpAddr {
    let bridge = bridge.clone();
    host.run(move || runtime().block_on(bridge.attach(&pod)).expect("attaches")[0])
}

/// A node in a namespace, connected to an outside that answers ARP for every address and counts packets.
fn node(test: &'static str) -> (Ns, Ns, Bridge, BridgeConfig) {
    let (host, outside) = (Ns::new(), Ns::new());
    let peer = outside.path.clone();
    host.run(move || {
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        let lo = rtnl.index_of("lo").expect("asks").expect("lo");
        rtnl.set_up(lo).expect("up");
        let file = std::fs::File::open(peer).expect("namespace");
        rtnl.add_bridge("uplink", [2, 0, 0, 0, 0, 1], 1500).expect("bridge");
        let uplink = rtnl.index_of("uplink").expect("asks").expect("uplink");
        rtnl.add_veth("out", "eth0", std::os::fd::AsFd::as_fd(&file), 1500, uplink).expect("veth");
        rtnl.add_address(uplink, Ipv4Addr::new(192, 0, 2, 2), 24).expect("address");
        rtnl.set_up(uplink).expect("up");
    });
    outside.run(|| {
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        for (link, address) in [("lo", None), ("eth0", Some(Ipv4Addr::new(192, 0, 2, 1)))] {
            let index = rtnl.index_of(link).expect("asks").expect("link");
            if let Some(address) = address {
                rtnl.add_address(index, address, 24).expect("address");
            }
            rtnl.set_up(index).expect("up");
        }
    });
    let config = config(test);
    let used = config.clone();
    let bridge = host.run(move || {
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        let how = How::Via { gateway: Ipv4Addr::new(192, 0, 2, 1), index: None };
        rtnl.set_route(&Route { to: cidr("0.0.0.0/0"), how, metric: 0 }).expect("default route");
        Bridge::start(used).expect("bridge starts")
    });
    (host, outside, bridge, config)
}

fn finish(host: &Ns, config: BridgeConfig) {
    let (links, tables) = host.run(move || {
        proxy::cleanup(&config.table).expect("removes rules");
        bridge::cleanup(&config).expect("removes bridge");
        bridge::cleanup(&config).expect("again");
        let _ = std::fs::remove_dir_all(&config.state_dir);
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        let mut links: Vec<_> = rtnl.links().expect("lists").into_iter().map(|l| l.name).collect();
        links.sort();
        let ours =
            rtnl.routes().expect("lists").into_iter().filter(|r| r.is_ours && r.to.prefix_len() > 0).count();
        assert_eq!(ours, 0, "routes are left");
        let mut nft = Nft::open().expect("nf_tables");
        let tables = [config.table.clone(), format!("{}-pods", config.table)];
        (links, tables.map(|t| nft.has_table(&t).expect("asks")))
    });
    assert_eq!(links, ["lo", "out", "uplink"].map(str::to_owned), "links are left");
    assert_eq!(tables, [false, false], "tables are left");
}

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
    let (host, outside, _bridge, config) = node("leak");
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
    for target in ["10.43.0.99:80", "10.43.255.1:53", "10.42.0.77:80", "10.42.9.9:80", "10.42.255.255:80"] {
        send(target);
    }
    std::thread::sleep(Duration::from_millis(100));
    let after = outside.run(count).expect("counts");
    assert!(after <= first + 2, "packets left the machine: {first} then {after}");
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

struct World {
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    stats: tokio::sync::watch::Receiver<ProxyStats>,
    stop: mpsc::Sender<()>,
    ended: mpsc::Receiver<()>,
}

impl World {
    /// Stops the proxy; otherwise it would repair a table that is removed under it.
    fn stop(self) {
        drop(self.stop);
        self.ended.recv_timeout(WAIT).expect("stops");
    }

    /// Starts a proxy on a thread of the namespace.
    fn start(host: &Ns, cluster: &'static str) -> Self {
        let (services, slices) = (Cache::new(), Cache::new());
        services.advance(1);
        slices.advance(1);
        let (stop, stopped) = mpsc::channel::<()>();
        let (end, ended) = mpsc::channel();
        let (s, e) = (services.clone(), slices.clone());
        let stats = host.run(move || {
            let (tell, told) = mpsc::channel();
            std::thread::spawn(move || {
                runtime().block_on(async {
                    let config = ProxyConfig {
                        table: format!("hyperkube-{cluster}"),
                        node_name: "node".into(),
                        cluster_cidr: Some(cidr("10.42.0.0/16")),
                        service_cidr: Some(cidr("10.43.0.0/16")),
                        metrics: k8s_metrics::Registry::default(),
                    };
                    let proxy = Proxy::start(config, s, e).expect("starts");
                    proxy.synced().await;
                    tell.send(proxy.stats()).expect("waiting");
                    let _ = tokio::task::spawn_blocking(move || stopped.recv()).await;
                    proxy.shutdown().await;
                });
                let _ = end.send(());
            });
            told.recv_timeout(Duration::from_secs(20)).expect("proxy syncs")
        });
        World { services, slices, stats, stop, ended }
    }

    fn transactions(&self) -> u64 {
        self.stats.borrow().transactions
    }

    fn wait_after(&self, before: u64) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.transactions() <= before {
            assert!(Instant::now() < end, "the proxy did not apply the change");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn service(&self, name: &str, spec: serde_json::Value) {
        let before = self.transactions();
        let service = json!({"metadata": {"name": name, "namespace": "demo"}, "spec": spec});
        self.services.upsert(serde_json::from_value(service).expect("service"));
        self.wait_after(before);
    }

    fn endpoints(&self, name: &str, addresses: &[IpAddr]) {
        let before = self.transactions();
        let endpoints: Vec<_> =
            addresses.iter().map(|a| json!({"addresses": [a], "nodeName": "node"})).collect();
        let slice = json!({"addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": format!("{name}-1"), "namespace": "demo", "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "tcp", "port": 80, "protocol": "TCP"}, {"name": "udp", "port": 80, "protocol": "UDP"}]});
        self.slices.upsert(serde_json::from_value(slice).expect("slice"));
        self.wait_after(before);
    }
}

/// Debian's `nft` lists every rule of every table without complaint. (1.0.6 used to end with an assertion.)
fn lists(host: &Ns) {
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

/// Resolves a name and returns type and data of each record, or the response code.
fn resolve(ns: &Ns, server: &str, name: &str, kind: hickory_proto::rr::RecordType, tcp: bool) -> Vec<String> {
    use hickory_proto::{
        op::{Message, Query, ResponseCode},
        rr::Name,
    };
    let server: SocketAddr = server.parse().expect("address");
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
    let bytes = question.to_vec().expect("encodes");
    let answer = ns.run(move || {
        if tcp {
            let mut stream = TcpStream::connect_timeout(&server, WAIT).expect("connects");
            stream.set_read_timeout(Some(WAIT)).expect("sets");
            let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
            stream.write_all(&[&length[..], &bytes].concat()).expect("sends");
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("answers");
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).expect("answers");
            return answer;
        }
        let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
        socket.set_read_timeout(Some(WAIT)).expect("sets");
        socket.connect(server).expect("connects");
        socket.send(&bytes).expect("sends");
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer).expect("answers");
        buffer.truncate(length);
        buffer
    });
    let answer = Message::from_vec(&answer).expect("decodes");
    assert_eq!(answer.metadata.id, question.metadata.id);
    if answer.metadata.truncation {
        return vec!["cut".into()];
    }
    if answer.metadata.response_code != ResponseCode::NoError {
        return vec![answer.metadata.response_code.to_string()];
    }
    let mut out: Vec<_> = answer.answers.iter().map(|r| format!("{} {}", r.record_type(), r.data)).collect();
    out.sort();
    out
}

#[test]
fn a_node_answers_names_from_pods_and_is_removed() {
    use hickory_proto::rr::RecordType::{A, AAAA, CNAME, PTR, SRV};

    use crate::node::{self, NodeNet, NodeNetConfig};
    let (host, pod) = (Ns::new(), Ns::new());
    let config = NodeNetConfig {
        name: "dns".into(),
        node_name: "node".into(),
        resolv_conf: None,
        state_dir: std::env::temp_dir().join(format!("k8s-net-dns-{}", std::process::id())),
        ..NodeNetConfig::default()
    };
    let (services, slices) = (Cache::<Service>::new(), Cache::<EndpointSlice>::new());
    let (stop, stopped) = mpsc::channel::<()>();
    let (used, s, e) = (config.clone(), services.clone(), slices.clone());
    let (network, ended) = host.run(move || {
        let lo = nix::net::if_::if_nametoindex("lo").expect("lo");
        Rtnl::open().and_then(|mut r| r.set_up(lo)).expect("up");
        let ((tell, told), (end, ended)) = (mpsc::channel(), mpsc::channel());
        std::thread::spawn(move || {
            runtime().block_on(async {
                let net = NodeNet::start_with(used, s, e).await.expect("starts");
                tell.send(net.pod_network()).expect("waiting");
                let _ = tokio::task::spawn_blocking(move || stopped.recv()).await;
                net.shutdown().await;
            });
            let _ = end.send(());
        });
        (told.recv_timeout(Duration::from_secs(20)).expect("starts"), ended)
    });
    let attached = attachment("p", &pod);
    host.run(move || runtime().block_on(network.attach(&attached)).expect("attaches"));
    let ask = |name: &str, kind| resolve(&pod, "10.43.0.10:53", name, kind, false);
    let web = "web.demo.svc.cluster.local.";
    assert_eq!(ask(web, A), ["Server Failure"], "no answer before the caches are complete");

    let put = |name: &str, spec: serde_json::Value| {
        let service = json!({"metadata": {"name": name, "namespace": "demo"}, "spec": spec});
        services.upsert(serde_json::from_value(service).expect("service"));
    };
    put("web", json!({"clusterIP": "10.43.0.50", "ports": [{"name": "http", "port": 80}]}));
    put("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}));
    put("alias", json!({"type": "ExternalName", "externalName": "web.demo.svc.cluster.local"}));
    put("away", json!({"type": "ExternalName", "externalName": "example.com"}));
    let endpoints: Vec<_> = (0..100)
        .map(|i| json!({"addresses": [format!("10.42.1.{i}")], "hostname": format!("db-{i}")}))
        .collect();
    let slice = json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "sql", "port": 5432}],
        "metadata": {"name": "db-1", "namespace": "demo", "labels": {"kubernetes.io/service-name": "db"}}});
    slices.upsert(serde_json::from_value(slice).expect("slice"));
    services.advance(1);
    slices.advance(1);
    let end = Instant::now() + WAIT;
    while ask(web, A) != ["A 10.43.0.50"] {
        assert!(Instant::now() < end, "{:?}", ask(web, A));
    }
    assert_eq!(ask("WEB.Demo.svc.cluster.local.", A), ["A 10.43.0.50"]);
    assert_eq!(ask(web, AAAA), Vec::<String>::new(), "no data");
    assert_eq!(ask("_http._tcp.web.demo.svc.cluster.local.", SRV), [format!("SRV 0 100 80 {web}")]);
    assert_eq!(ask("50.0.43.10.in-addr.arpa.", PTR), [format!("PTR {web}")]);
    assert_eq!(ask("web.demo.demo.svc.cluster.local.", A), ["Non-Existent Domain"]);
    assert_eq!(ask("demo.svc.cluster.local.", A), Vec::<String>::new());
    assert_eq!(ask("db-3.db.demo.svc.cluster.local.", A), ["A 10.42.1.3"]);
    assert_eq!(ask("10-42-0-5.demo.pod.cluster.local.", A), ["A 10.42.0.5"]);
    assert_eq!(ask("alias.demo.svc.cluster.local.", A), ["A 10.43.0.50".to_owned(), format!("CNAME {web}")]);
    assert_eq!(ask("alias.demo.svc.cluster.local.", CNAME), [format!("CNAME {web}")]);
    assert_eq!(ask("away.demo.svc.cluster.local.", A), ["CNAME example.com."]);
    assert_eq!(ask("example.com.", A), ["Server Failure"], "no server to ask");
    assert_eq!(ask("db.demo.svc.cluster.local.", A), ["cut"]);
    assert_eq!(resolve(&pod, "10.43.0.10:53", "db.demo.svc.cluster.local.", A, true).len(), 100);
    assert_eq!(resolve(&host, "10.43.0.10:53", web, A, false), ["A 10.43.0.50"]);

    let questions = if std::env::var_os("K8S_NET_BENCH").is_some() { 20_000 } else { 200 };
    let rate = pod.run(move || dns_rate(questions));
    println!("DNS: {rate:.0} questions/s (one client, one server thread)");

    drop(stop);
    ended.recv_timeout(WAIT).expect("stops");
    host.run(move || {
        node::cleanup(&config).expect("removes");
        node::cleanup(&config).expect("again");
        let _ = std::fs::remove_dir_all(&config.state_dir);
        let links = Rtnl::open().and_then(|mut r| r.links()).expect("lists");
        assert_eq!(links.len(), 1, "{links:?}");
        let routes = Rtnl::open().and_then(|mut r| r.routes()).expect("lists");
        assert!(routes.is_empty(), "{routes:?}");
    });
}

/// Returns queries per second with 32 in flight.
fn dns_rate(questions: u32) -> f64 {
    use hickory_proto::{
        op::{Message, Query},
        rr::{Name, RecordType},
    };
    let mut question = Message::query();
    question.add_query(Query::query(
        Name::from_ascii("web.demo.svc.cluster.local.").expect("name"),
        RecordType::A,
    ));
    let bytes = question.to_vec().expect("encodes");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
    socket.connect("10.43.0.10:53").expect("connects");
    socket.set_read_timeout(Some(WAIT)).expect("sets");
    let mut buffer = [0; 512];
    let began = Instant::now();
    for _ in 0..32 {
        socket.send(&bytes).expect("sends");
    }
    for _ in 0..questions {
        socket.recv(&mut buffer).expect("answers");
        socket.send(&bytes).expect("sends");
    }
    f64::from(questions) / began.elapsed().as_secs_f64()
}
