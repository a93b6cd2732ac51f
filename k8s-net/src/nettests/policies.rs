//! Network policies: real connections between pods, compared with the model of the API.

use std::{collections::BTreeMap, sync::Arc};

use k8s_core::{
    api::{
        Pod,
        api::{core::v1::Namespace, networking::v1::NetworkPolicy},
    },
    meta::ObjectKey,
};

use super::{policy_cases, *};
use crate::policy::{
    Policies, PolicyConfig, PolicyStats,
    facts::facts,
    gate::Gate,
    model::{Model, ModelPod},
};

/// Time after which a connection counts as denied.
const DENIED: Duration = Duration::from_millis(250);

/// Network policies over caches that the test fills.
pub(super) struct Rules {
    namespaces: Cache<Namespace>,
    pub(super) pods: Cache<Pod>,
    pub(super) policies: Cache<NetworkPolicy>,
    gate: Gate,
    pub(super) stats: tokio::sync::watch::Receiver<PolicyStats>,
    stop: mpsc::Sender<()>,
    ended: mpsc::Receiver<()>,
}

impl Rules {
    pub(super) fn start(host: &Ns, bridge: &Bridge, cluster: &'static str) -> Self {
        let (namespaces, pods) = (Cache::<Namespace>::new(), Cache::<Pod>::new());
        let policies = Cache::<NetworkPolicy>::new();
        namespaces.advance(1);
        pods.advance(1);
        policies.advance(1);
        let caches = (namespaces.clone(), pods.clone(), policies.clone());
        let ((stop, stopped), (end, ended)) = (mpsc::channel::<()>(), mpsc::channel());
        let bridge = bridge.clone();
        let (gate, stats) = host.run(move || {
            let (tell, told) = mpsc::channel();
            std::thread::spawn(move || {
                runtime().block_on(async {
                    let config = PolicyConfig {
                        table: format!("hyperkube-{cluster}-policy"),
                        node_name: "node".into(),
                        cluster_cidr: Some(cidr("10.42.0.0/16")),
                        dns: None,
                        recorder: Recorder::silent(),
                    };
                    let policies = Policies::start(config, caches.0, caches.1, caches.2).expect("starts");
                    bridge.set_gate(policies.gate());
                    tell.send((policies.gate(), policies.stats())).expect("waiting");
                    let _ = tokio::task::spawn_blocking(move || stopped.recv()).await;
                    policies.shutdown().await;
                });
                let _ = end.send(());
            });
            told.recv_timeout(Duration::from_secs(20)).expect("policies start")
        });
        Rules { namespaces, pods, policies, gate, stats, stop, ended }
    }

    pub(super) fn stop(self) {
        drop(self.stop);
        self.ended.recv_timeout(WAIT).expect("stops");
    }

    pub(super) fn namespace(&self, name: &str) {
        let labels = json!({"ns": name, "kubernetes.io/metadata.name": name});
        let namespace = json!({"metadata": {"name": name, "labels": labels}});
        self.namespaces.upsert(serde_json::from_value(namespace).expect("namespace"));
    }

    pub(super) fn pod(
        &self,
        namespace: &str,
        name: &str,
        labels: serde_json::Value,
        address: Option<IpAddr>,
    ) {
        let ports: Vec<_> = ["TCP", "UDP"]
            .iter()
            .flat_map(|protocol| [80, 81].map(|port| json!({"name": format!("serve-{port}"), "containerPort": port, "protocol": protocol})))
            .collect();
        let ips: Vec<_> = address.iter().map(|ip| json!({"ip": ip})).collect();
        let pod = json!({"metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"nodeName": "node", "containers": [{"name": "main", "ports": ports}]},
            "status": {"phase": "Running", "podIPs": ips}});
        self.pods.upsert(serde_json::from_value(pod).expect("pod"));
    }

    pub(super) fn policy(&self, namespace: &str, name: &str, spec: &serde_json::Value) {
        self.policies.upsert(policy(namespace, name, spec));
    }

    /// Waits until the kernel has all that is in the caches, and connections are cut. The pod must be one
    /// that is attached.
    pub(super) fn settle(&self, namespace: &str, name: &str, address: IpAddr) {
        let IpAddr::V4(address) = address else { panic!("not IPv4") };
        runtime().block_on(self.gate.pass(ObjectKey::new(namespace, name), address));
        let since = Instant::now();
        while self.stats.borrow().cutting {
            assert!(since.elapsed() < WAIT * 3, "connections are not cut");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn policy(namespace: &str, name: &str, spec: &serde_json::Value) -> NetworkPolicy {
    let policy = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
    serde_json::from_value(policy).expect("policy")
}

fn attach_pod(host: &Ns, bridge: &Bridge, namespace: &str, name: &str, netns: &Ns) -> IpAddr {
    let pod = PodAttachment {
        sandbox: format!("{namespace}-{name}"),
        namespace: namespace.into(),
        name: name.into(),
        netns: netns.path.clone(),
        host_ports: Vec::new(),
    };
    attach(host, bridge, pod)
}

/// Tries a connection from the calling thread's namespace.
fn reaches(target: SocketAddr, protocol: u8, patience: Duration) -> bool {
    if protocol == 6 {
        return TcpStream::connect_timeout(&target, patience).is_ok();
    }
    let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
    socket.set_read_timeout(Some(patience)).expect("timeout");
    let mut buffer = [0; 64];
    socket.send_to(b"?", target).is_ok() && socket.recv(&mut buffer).is_ok()
}

#[test]
fn pods_reach_what_the_model_allows() {
    let (host, outside, bridge, config) = node("policy");
    outside.run(|| {
        let how = How::Via { gateway: Ipv4Addr::new(192, 0, 2, 2), index: None };
        let route = Route { to: cidr("10.42.0.0/24"), how, metric: 0 };
        Rtnl::open().and_then(|mut rtnl| rtnl.set_route(&route)).expect("route to the pods");
    });
    let rules = Rules::start(&host, &bridge, "policy");
    let mut ends: Vec<(String, IpAddr, Arc<Ns>)> = Vec::new();
    let mut model = Model::default();
    for namespace in ["x", "y", "z"] {
        rules.namespace(namespace);
        let labels = [("ns", namespace), ("kubernetes.io/metadata.name", namespace)];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        model.namespaces.insert(namespace.into(), BTreeMap::from(labels));
        for name in ["a", "b", "c"] {
            let netns = Ns::new();
            rules.pod(namespace, name, json!({"pod": name}), None);
            let address = attach_pod(&host, &bridge, namespace, name, &netns);
            rules.pod(namespace, name, json!({"pod": name}), Some(address));
            let pod = rules.pods.get(namespace, name).expect("pod");
            let facts = facts(&pod, "node", &[]).expect("a pod of the pod network");
            model.pods.push(ModelPod { namespace: namespace.into(), facts });
            ends.push((format!("{namespace}/{name}"), address, Arc::new(netns)));
        }
    }
    let (first, all_pods) = (ends[0].1, ends.len());
    ends.push(("outside".into(), "192.0.2.1".parse().expect("address"), Arc::new(outside)));
    for (_, _, netns) in &ends {
        netns.serve("pod", 80);
        netns.serve("pod", 81);
    }
    let cases = policy_cases::all();
    assert!(cases.len() >= 40, "{}", cases.len());
    for (title, specs) in cases {
        for old in rules.policies.list() {
            rules.policies.remove((*old).clone());
        }
        model.policies.clear();
        for (number, (namespace, spec)) in specs.iter().enumerate() {
            rules.policy(namespace, &format!("p{number}"), spec);
            model.policies.push(policy(namespace, &format!("p{number}"), spec));
        }
        rules.settle("x", "a", first);
        let mut running = Vec::new();
        for (from, from_address, netns) in &ends {
            let mut wanted = Vec::new();
            for (to, to_address, _) in ends.iter().filter(|(to, ..)| from != to || to != "outside") {
                let (IpAddr::V4(source), IpAddr::V4(target)) = (from_address, to_address) else { continue };
                for (protocol, port) in [(6, 80), (6, 81), (17, 80), (17, 81)] {
                    let want = model.allows(*source, *target, protocol, port);
                    wanted.push((
                        format!("{from} to {to}"),
                        SocketAddr::new(*to_address, port),
                        protocol,
                        want,
                    ));
                }
            }
            running.push(netns.start(move || {
                std::thread::scope(|scope| {
                    let tries: Vec<_> = wanted
                        .iter()
                        .map(|(pair, target, protocol, want)| {
                            let patience = if *want { WAIT } else { DENIED };
                            (
                                pair,
                                target,
                                protocol,
                                want,
                                scope.spawn(move || reaches(*target, *protocol, patience)),
                            )
                        })
                        .collect();
                    let results = tries.into_iter().filter_map(|(pair, target, protocol, want, tried)| {
                        let got = tried.join().expect("tries");
                        (got != *want).then(|| format!("{pair} ({target}, protocol {protocol}): got {got}"))
                    });
                    results.collect::<Vec<_>>()
                })
            }));
        }
        let wrong: Vec<_> = running
            .into_iter()
            .flat_map(|result| result.recv_timeout(Duration::from_secs(30)).expect("tries end"))
            .collect();
        assert!(wrong.is_empty(), "{title}: {wrong:#?}");
        // The node reaches its pods, whatever the policies.
        for (_, address, _) in &ends[..all_pods] {
            assert!(host.get(&format!("{address}:80")).is_ok(), "{title}: the node to {address}");
        }
    }
    lists(&host);
    rules.stop();
    finish(&host, config);
}

/// Debian's `nft` lists the tables without complaint.
fn lists(host: &Ns) {
    let listed =
        host.run(|| Command::new("nft").args(["list", "ruleset"]).output().expect("nft is installed"));
    let (out, err) = (String::from_utf8_lossy(&listed.stdout), String::from_utf8_lossy(&listed.stderr));
    assert!(listed.status.success() && err.is_empty(), "{}: {err}", listed.status);
    for part in ["map ingress", "set ports", "@ports", "@senders", "jump from-pod"] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
}

const DENY: fn() -> serde_json::Value = || json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});

#[test]
fn new_pods_are_closed_until_their_policies_are_known() {
    let (host, _outside, bridge, config) = node("fresh");
    let rules = Rules::start(&host, &bridge, "fresh");
    let (open, late, closed) = (Ns::new(), Ns::new(), Ns::new());
    rules.namespace("x");
    rules.namespace("y");
    rules.policy("y", "deny", &DENY());
    rules.pod("x", "open", json!({}), None);
    let open_ip = attach_pod(&host, &bridge, "x", "open", &open);
    // Its policies hold for its first packet: it is not reached when it is attached.
    rules.pod("y", "closed", json!({}), None);
    let closed_ip = attach_pod(&host, &bridge, "y", "closed", &closed);
    for (ns, port) in [(&open, 80), (&late, 80), (&closed, 80)] {
        ns.serve("pod", port);
    }
    let tries = |ns: &Ns, to: IpAddr, want: bool| {
        let patience = if want { WAIT } else { DENIED };
        let got = ns.run(move || reaches(SocketAddr::new(to, 80), 6, patience));
        assert_eq!(got, want, "to {to}");
    };
    tries(&open, closed_ip, false);
    tries(&closed, open_ip, false);
    // The API server's news of a pod come late: nobody reaches it but the node.
    let late_ip = attach_pod(&host, &bridge, "x", "late", &late);
    tries(&open, late_ip, false);
    tries(&late, open_ip, false);
    tries(&host, late_ip, true);
    rules.pod("x", "late", json!({}), None);
    rules.settle("x", "late", late_ip);
    tries(&open, late_ip, true);
    tries(&late, open_ip, true);
    tries(&late, closed_ip, false);
    // The node agent restarts while nothing plans: what was closed stays so.
    rules.stop();
    tries(&open, closed_ip, false);
    let again = config.clone();
    let bridge = host.run(move || Bridge::start(again).expect("takes over"));
    let later = Ns::new();
    later.serve("pod", 80);
    let later_ip = attach_pod(&host, &bridge, "x", "later", &later);
    tries(&open, later_ip, false);
    let rules = Rules::start(&host, &bridge, "fresh");
    for name in ["x", "y"] {
        rules.namespace(name);
    }
    rules.policy("y", "deny", &DENY());
    for (namespace, name, address) in
        [("x", "open", open_ip), ("y", "closed", closed_ip), ("x", "late", late_ip), ("x", "later", later_ip)]
    {
        rules.pod(namespace, name, json!({}), Some(address));
    }
    rules.settle("x", "later", later_ip);
    tries(&open, later_ip, true);
    tries(&open, closed_ip, false);
    rules.stop();
    finish(&host, config);
}

#[test]
fn connections_that_a_change_denies_are_cut() {
    let (host, _outside, bridge, config) = node("cut");
    let rules = Rules::start(&host, &bridge, "cut");
    let (client, server) = (Ns::new(), Ns::new());
    rules.namespace("x");
    rules.pod("x", "client", json!({"app": "client"}), None);
    rules.pod("x", "server", json!({"app": "server"}), None);
    attach_pod(&host, &bridge, "x", "client", &client);
    let server_ip = attach_pod(&host, &bridge, "x", "server", &server);
    let allow = json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]});
    rules.policy("x", "p", &allow);
    rules.settle("x", "server", server_ip);
    let listener = server.run(|| TcpListener::bind("0.0.0.0:90").expect("binds"));
    let udp = server.run(|| UdpSocket::bind("0.0.0.0:90").expect("binds"));
    let target = SocketAddr::new(server_ip, 90);
    let mut near = client.run(move || TcpStream::connect_timeout(&target, WAIT).expect("allowed"));
    let (mut far, _) = listener.accept().expect("accepts");
    let probe = host.run(move || TcpStream::connect_timeout(&target, WAIT).expect("the node is allowed"));
    let (mut probed, _) = listener.accept().expect("accepts");
    let sender = client.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
        socket.connect(target).expect("connects");
        socket
    });
    for stream in [&near, &far, &probe, &probed] {
        stream.set_read_timeout(Some(WAIT)).expect("timeout");
    }
    udp.set_read_timeout(Some(WAIT)).expect("timeout");
    sender.set_read_timeout(Some(DENIED)).expect("timeout");
    let mut byte = [0; 1];
    near.write_all(b"1").expect("sends");
    far.read_exact(&mut byte).expect("arrives");
    sender.send(b"1").expect("sends");
    let (_, peer) = udp.recv_from(&mut byte).expect("arrives");
    udp.send_to(b"2", peer).expect("sends");
    sender.recv(&mut byte).expect("arrives");

    // A change that still allows them does not.
    let both = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    rules.policy("x", "p", &both);
    rules.settle("x", "server", server_ip);
    std::thread::sleep(DENIED);
    near.write_all(b"1").expect("sends");
    far.read_exact(&mut byte).expect("arrives");

    let before = rules.stats.borrow().transactions;
    rules.policy("x", "p", &json!({"podSelector": {"matchLabels": {"app": "server"}}}));
    rules.settle("x", "server", server_ip);
    assert!(rules.stats.borrow().transactions > before);
    std::thread::sleep(DENIED);
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(DENIED * 2)).expect("timeout");
    }
    udp.set_read_timeout(Some(DENIED)).expect("timeout");
    // Not from the server's end, either: what it sends must not open the connection anew.
    far.write_all(b"2").expect("is queued");
    assert!(near.read_exact(&mut byte).is_err(), "the server reaches the client");
    near.write_all(b"1").expect("is queued");
    assert!(far.read_exact(&mut byte).is_err(), "the client reaches the server");
    let _ = sender.send(b"1");
    assert!(udp.recv_from(&mut byte).is_err(), "UDP goes on");
    // The node's connections stay.
    (&probe).write_all(b"1").expect("sends");
    probed.read_exact(&mut byte).expect("the node's connection goes on");
    rules.stop();
    finish(&host, config);
}

#[test]
fn pods_send_with_no_address_but_their_own() {
    let (host, _outside, bridge, config) = node("spoof");
    let (good, evil, target) = (Ns::new(), Ns::new(), Ns::new());
    let [good_ip, evil_ip, target_ip] = [("good", &good), ("evil", &evil), ("target", &target)]
        .map(|(name, ns)| attach(&host, &bridge, attachment(name, ns)));
    let IpAddr::V4(good_ip) = good_ip else { panic!("not IPv4") };
    let received = target.run(|| UdpSocket::bind("0.0.0.0:90").expect("binds"));
    let mut buffer = [0; 8];
    let mut arrives = |patience| {
        received.set_read_timeout(Some(patience)).expect("timeout");
        received.recv_from(&mut buffer).map(|(_, from)| from.ip()).ok()
    };
    let sent = |from: IpAddr| {
        evil.run(move || {
            let socket = UdpSocket::bind((from, 0)).expect("binds");
            socket.send_to(b"x", (target_ip, 90)).is_ok()
        })
    };
    assert!(sent(evil_ip));
    assert_eq!(arrives(WAIT), Some(evil_ip));
    // The address of another pod, of the node and of nobody.
    for address in
        [good_ip, Ipv4Addr::new(10, 42, 0, 1), Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(10, 42, 0, 99)]
    {
        evil.run(move || {
            let mut rtnl = Rtnl::open().expect("rtnetlink");
            let lo = rtnl.index_of("lo").expect("asks").expect("lo");
            rtnl.add_address(lo, address, 32).expect("address");
        });
        assert!(sent(address.into()));
        assert_eq!(arrives(DENIED), None, "{address} was believed");
    }
    // Another MAC.
    let mac = |mac: [u8; 6]| {
        evil.run(move || {
            let mut rtnl = Rtnl::open().expect("rtnetlink");
            let link = rtnl.index_of("eth0").expect("asks").expect("eth0");
            rtnl.set_mac(link, mac).expect("sets");
            // That forgot the neighbours.
            let gateway = bridge::gateway_mac("hk-spoof");
            rtnl.set_neighbour(link, Ipv4Addr::new(10, 42, 0, 1), gateway).expect("sets");
        });
    };
    let own = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => [&[0x0a, 0x58][..], &ip.octets()].concat().try_into().expect("six bytes"),
        IpAddr::V6(_) => panic!("not IPv4"),
    };
    mac(own(good_ip.into()));
    assert!(sent(evil_ip));
    assert_eq!(arrives(DENIED), None, "another pod's MAC was believed");
    mac(own(evil_ip));
    assert!(sent(evil_ip));
    assert_eq!(arrives(WAIT), Some(evil_ip), "its own MAC again");
    // Nobody outside has a pod's address.
    host.run(move || {
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        let links = rtnl.links().expect("lists");
        let bridge = links.iter().find(|link| link.name == "hk-spoof").expect("bridge");
        assert!(links.iter().all(|link| link.master != Some(bridge.index)), "pods share no link");
    });
    finish(&host, config);
}
