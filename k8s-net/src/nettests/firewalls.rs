//! Beside firewalls of other programs.

use std::process::Stdio;

use super::*;

/// Chains as Docker and ufw have them, and as firewalld has them.
const FIREWALLS: [&str; 2] = [
    "table ip filter {
        chain FORWARD { type filter hook forward priority filter; policy drop; counter; }
        chain INPUT { type filter hook input priority filter; policy drop; ct state established accept; tcp dport 8080 accept; }
    }",
    "table inet firewalld {
        chain filter_FORWARD { type filter hook forward priority filter + 10; ct state established accept; reject with icmpx type admin-prohibited; }
        chain filter_INPUT { type filter hook input priority filter + 10; ct state established accept; reject with icmpx type admin-prohibited; }
    }",
];

/// Loads rules.
fn load(host: &Ns, rules: &'static str) {
    host.run(move || {
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
        nft.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("writes");
        assert!(nft.wait().expect("ends").success());
    });
}

fn nft(host: &Ns, arguments: &'static [&'static str]) -> String {
    let said = host.run(move || Command::new("nft").args(arguments).output().expect("nft is installed"));
    assert!(said.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8_lossy(&said.stdout).into_owned()
}

#[test]
fn pods_pass_firewalls_that_drop() {
    for (firewall, delete) in FIREWALLS
        .into_iter()
        .zip([["delete", "table", "ip", "filter"], ["delete", "table", "inet", "firewalld"]])
    {
        let (host, outside, bridge, config) = node("wall");
        let (a, b) = (Ns::new(), Ns::new());
        let [_, ip_b] = [("a", &a), ("b", &b)].map(|(name, ns)| attach(&host, &bridge, attachment(name, ns)));
        b.serve("b", 80);
        outside.serve("outside", 80);
        host.serve("api", 6443);
        host.serve("ssh", 22);
        let pod = format!("{ip_b}:80");
        let world = World::start(&host, "wall");
        world.service("web", json!({"clusterIP": "10.43.0.50", "type": "NodePort", "ports": [{"name": "tcp", "port": 80, "nodePort": 30080}]}));
        world.endpoints("web", &[ip_b]);

        load(&host, firewall);
        a.get(&pod).expect_err("dropped");
        let settings = config.clone();
        let open = move || crate::bridge::firewalls::open(&settings, false);
        host.run(open.clone());
        let once = nft(&host, &["list", "ruleset"]);
        host.run(open);
        assert_eq!(nft(&host, &["list", "ruleset"]).lines().count(), once.lines().count(), "idempotent");
        assert!(a.get(&pod).expect("pod to pod").starts_with("b "));
        assert!(a.get("192.0.2.1:80").expect("pod to outside").starts_with("outside "));
        assert!(a.get("10.43.0.50:80").expect("service").starts_with("b "));
        assert!(outside.get("192.0.2.2:30080").expect("node port").starts_with("b "));
        assert!(a.get("192.0.2.2:6443").expect("the API server").starts_with("api "));
        a.get("192.0.2.2:22").expect_err("still the firewall's");

        // Gone without a trace of ours; the firewall's own rules stay.
        world.stop();
        finish(&host, config.clone());
        let left = nft(&host, &["list", "ruleset"]);
        assert!(
            !left.contains("hyperkube") && !left.contains("10.42") && left.contains("hook forward"),
            "{left}"
        );
        let arguments: &'static [&'static str] = Vec::leak(delete.to_vec());
        nft(&host, arguments);
    }
}

#[test]
fn chains_that_accept_are_left_alone() {
    let (host, _outside, _bridge, config) = node("open");
    load(
        &host,
        "table ip filter { chain FORWARD { type filter hook forward priority filter; policy accept; }; }",
    );
    load(
        &host,
        "table ip mine { chain FORWARD { type filter hook forward priority filter; policy drop; }; }",
    );
    let before = nft(&host, &["list", "ruleset"]);
    let settings = config.clone();
    host.run(move || crate::bridge::firewalls::open(&settings, false));
    assert_eq!(nft(&host, &["list", "ruleset"]), before, "an administrator's table neither");
    finish(&host, config);
}
