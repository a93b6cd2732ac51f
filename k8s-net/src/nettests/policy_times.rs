//! Time of one change among many policies and pods, and of a packet between two pods.

use super::{policies::Rules, *};

/// Namespaces, each with as many pods and policies.
fn size() -> (u8, u8) {
    if std::env::var_os("K8S_NET_BENCH").is_some() { (50, 20) } else { (10, 10) }
}

#[test]
fn one_change_among_many_policies_is_quick() {
    let (host, _outside, bridge, config) = node("manypol");
    let rules = Rules::start(&host, &bridge, "manypol");
    let (namespaces, each) = size();
    let name = |n: u8| format!("n{n}");
    let app = |i: u8| json!({"app": format!("a{}", i % 10)});
    let address = |n: u8, i: u8| IpAddr::from([10, 42, n + 1, i + 1]);
    // Each policy lets one app of the namespace be reached from another, from a neighbour namespace and from
    // a block; one more denies all.
    let spec = |n: u8, i: u8, port: u16| {
        json!({"podSelector": {"matchLabels": app(i)}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": app(i + 1)}}, {"namespaceSelector": {"matchLabels": {"ns": name((n + 1) % namespaces)}}}], "ports": [{"port": port}]},
                {"from": [{"ipBlock": {"cidr": format!("172.16.{n}.0/24"), "except": [format!("172.16.{n}.{i}/32")]}}]}],
            "egress": [{"to": [{"podSelector": {}}]}, {"to": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]}]})
    };
    for n in 0..namespaces {
        rules.namespace(&name(n));
        for i in 0..each {
            rules.pod(&name(n), &format!("p{i}"), app(i), Some(address(n, i)));
            rules.policy(&name(n), &format!("q{i}"), &spec(n, i, 80));
        }
        rules.policy(&name(n), "deny", &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    }
    let mut last = 0;
    while last == 0 || last != rules.stats.borrow().transactions {
        last = rules.stats.borrow().transactions;
        std::thread::sleep(Duration::from_millis(1500));
    }
    let elements = rules.stats.borrow().elements;
    let mut all = Vec::new();
    let mut measure = |what: &str, change: &dyn Fn(u8)| {
        let mut times: Vec<Duration> = (0..200)
            .map(|round| {
                let before = rules.stats.borrow().transactions;
                let since = Instant::now();
                change(round);
                while rules.stats.borrow().transactions == before {
                    assert!(since.elapsed() < WAIT * 2, "{what} {round} was not applied");
                    std::thread::sleep(Duration::from_micros(50));
                }
                since.elapsed()
            })
            .collect();
        times.sort();
        println!("{what}: p50 {:?}, p99 {:?}, most {:?}", times[100], times[197], times[199]);
        all.extend(times);
    };
    println!("{} policies, {} pods, {elements} elements", rules.policies.len(), rules.pods.len());
    measure("a policy's port", &|round| {
        let (n, i) = (round % namespaces, round % each);
        rules.policy(&name(n), &format!("q{i}"), &spec(n, i, 1000 + u16::from(round)));
    });
    measure("a pod's labels", &|round| {
        let (n, i) = (round % namespaces, round % each);
        rules.pod(&name(n), &format!("p{i}"), app(i + 1 + round / each), Some(address(n, i)));
    });
    measure("a new pod", &|round| {
        let n = round % namespaces;
        rules.pod(
            &name(n),
            &format!("new{round}"),
            app(round),
            Some(IpAddr::from([10, 42, n + 1, 50 + round])),
        );
    });
    measure("a new policy that denies all", &|round| {
        let n = round % namespaces;
        let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"new": format!("{round}")}}}], "ports": [{"port": 1000 + u16::from(round)}]}]});
        rules.policy(&name(n), &format!("new{round}"), &spec);
    });
    all.sort();
    assert!(all[all.len() / 2] < Duration::from_millis(100), "{all:?}");
    rules.stop();
    finish(&host, config);
}

/// The kernel takes nearly as many elements as the budget allows. A namespace that needs more is closed, and
/// the pods of others go on.
#[test]
fn a_namespace_with_too_many_elements_closes_no_other() {
    let (host, _outside, bridge, config) = node("budget");
    let rules = Rules::start(&host, &bridge, "budget");
    let (a, b) = (Ns::new(), Ns::new());
    let pair = [("a", &a), ("b", &b)].map(|(name, ns)| {
        let address = attach(&host, &bridge, attachment(name, ns));
        rules.pod("demo", name, json!({"app": name}), Some(address));
        address
    });
    for namespace in ["demo", "bad"] {
        rules.namespace(namespace);
    }
    let from_a = json!([{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": [{"port": 80}]}]);
    let only_b = json!({"matchLabels": {"app": "b"}});
    rules.policy("demo", "n", &json!({"podSelector": only_b, "ingress": from_a}));
    let wide = json!([{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]);
    rules.policy("demo", "wide", &json!({"podSelector": only_b, "egress": wide, "policyTypes": ["Egress"]}));
    b.run(|| {
        for port in [80, 81] {
            let listener = TcpListener::bind(("0.0.0.0", port)).expect("binds");
            std::thread::spawn(move || listener.incoming().for_each(drop));
        }
    });
    let goes_on = |what: &str| {
        rules.settle("demo", "b", pair[1]);
        let reached = [80, 81].map(|port| {
            let target = SocketAddr::new(pair[1], port);
            a.run(move || TcpStream::connect_timeout(&target, Duration::from_millis(500)).is_ok())
        });
        assert_eq!(reached, [true, false], "{what}");
    };
    goes_on("before");
    let wait = |what: &str, done: &dyn Fn(usize) -> bool| {
        let since = Instant::now();
        while !done(rules.stats.borrow().elements) {
            assert!(since.elapsed() < Duration::from_secs(120), "{what}: {:?}", rules.stats.borrow());
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("{what}: {:?}", rules.stats.borrow());
    };
    // A port of its own for each pod, and blocks for all: the product.
    let add = |number: u8| {
        let label = json!({"number": number.to_string()});
        rules.pod("bad", &format!("p{number}"), label.clone(), Some(IpAddr::from([10, 42, 9, number])));
        let ports = json!([{"ports": [{"port": 1000 + u16::from(number)}]}]);
        let spec = json!({"podSelector": {"matchLabels": label}, "ingress": ports});
        rules.policy("bad", &format!("n{number}"), &spec);
    };
    (1..=35).for_each(add);
    let cidr = |n: u32| format!("{}/32", Ipv4Addr::from(0xc633_0000 + 2 * n));
    let blocks: Vec<_> = (0..9500).map(|n| json!({"ipBlock": {"cidr": cidr(n)}})).collect();
    rules.policy("bad", "blocks", &json!({"podSelector": {}, "ingress": [{"from": blocks}]}));
    wait("nearly the budget", &|elements| elements > 340_000);
    goes_on("nearly the budget");
    (36..=45).for_each(add);
    wait("closed", &|elements| elements < 1000);
    goes_on("closed");
    rules.stop();
    finish(&host, config);
}

/// Prints the time of a round trip between two pods of a node and how many bytes pass a second: with links of
/// their own, and as ports of one bridge.
#[test]
fn packets_between_two_pods_are_quick() {
    let (host, _outside, bridge, config) = node("speed");
    let (a, b) = (Ns::new(), Ns::new());
    let from = attach(&host, &bridge, attachment("a", &a));
    let ip = attach(&host, &bridge, attachment("b", &b));
    let listener = b.run(|| TcpListener::bind("0.0.0.0:80").expect("binds"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepts");
            stream.set_nodelay(true).expect("sets");
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length) = stream.read(&mut buffer) {
                // A single byte is answered, more are not.
                if length == 0 || (length == 1 && stream.write_all(&[1]).is_err()) {
                    break;
                }
            }
        }
    });
    let rounds = if std::env::var_os("K8S_NET_BENCH").is_some() { 50_000u32 } else { 500 };
    let measure = |what: &str| {
        let (trip, rate) = a.run(move || speed(SocketAddr::new(ip, 80), rounds));
        println!("{what}: round trip {trip:?}, {rate:.0} MB/s");
    };
    for _ in 0..3 {
        measure("routed");
    }
    for (ns, address) in [(&a, from), (&b, ip)] {
        let IpAddr::V4(address) = address else { panic!("not IPv4") };
        super::pods::make_port(&host, "hk-speed", ns, address);
    }
    for _ in 0..3 {
        measure("bridged");
    }
    finish(&host, config);
}

/// Returns the time of a round trip and megabytes per second.
fn speed(target: SocketAddr, rounds: u32) -> (Duration, f64) {
    let mut stream = TcpStream::connect(target).expect("connects");
    stream.set_nodelay(true).expect("sets");
    let since = Instant::now();
    for _ in 0..rounds {
        stream.write_all(&[1]).expect("sends");
        stream.read_exact(&mut [0]).expect("receives");
    }
    let trip = since.elapsed() / rounds;
    let (since, block) = (Instant::now(), vec![2; 1 << 16]);
    for _ in 0..rounds {
        stream.write_all(&block).expect("sends");
    }
    (trip, f64::from(rounds) * 65.536e-3 / since.elapsed().as_secs_f64())
}
