//! Services of type LoadBalancer, reached from another network namespace.

use std::{thread::sleep, time::Duration};

use libtest_mimic::Failed;

use crate::{
    Outcome,
    harness::{Cluster, NetworkNamespace, deployment, run, until},
};

pub const TESTS: &[crate::Test] = &[("load_balancers_are_reached_from_outside", reached)];

/// Connects a cluster's network namespace (192.0.2.2) to an outside (192.0.2.1), its default gateway.
pub fn connect(cluster: &Cluster, outside: &NetworkNamespace) -> Outcome {
    let peer = format!("link add up0 type veth peer name eth0 netns {}", outside.id());
    for (namespace, command) in [
        (&cluster.net, peer.as_str()),
        (&cluster.net, "address add 192.0.2.2/24 dev up0"),
        (&cluster.net, "link set up0 up"),
        (outside, "address add 192.0.2.1/24 dev eth0"),
        (outside, "link set eth0 up"),
        (&cluster.net, "route add default via 192.0.2.1"),
    ] {
        let said = run(namespace.command("ip").args(command.split(' ')), "", Duration::from_secs(10))?;
        if said.code != 0 {
            return Err(format!("ip {command}: {said:?}").into());
        }
    }
    Ok(())
}

/// Returns the body that the outside gets; `None` if it gets none within two seconds.
fn fetch(outside: &NetworkNamespace, url: &str) -> Result<Option<String>, Failed> {
    // The option -T ends some builds of busybox.
    let mut wget = outside.command("timeout");
    let said = run(wget.args(["3", "/bin/busybox", "wget", "-q", "-O-", url]), "", Duration::from_secs(10))?;
    Ok(Some(said.out).filter(|_| said.code == 0))
}

fn answers(outside: &NetworkNamespace, url: &str, wanted: bool) -> Outcome {
    until(&format!("{url} is answered: {wanted}"), Duration::from_secs(20), || {
        let got = fetch(outside, url).map_err(|e| e.message().unwrap_or_default().to_owned())?;
        let is_web = got.as_deref().is_some_and(|body| body.contains("version 1"));
        if is_web == wanted { Ok(true) } else { Err(format!("{got:?}")) }
    })
}

fn reached() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    let outside = NetworkNamespace::new()?;
    connect(&cluster, &outside)?;
    cluster.load_images()?;
    // Its Service would have port 80.
    cluster.start_up_with(&["--disable", "ingress"])?;
    {
        let n = cluster.namespace("lb")?;
        n.ok(&["apply", "-f", "-"], &deployment("web", 2).to_string())?;
        n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"], "")?;
        let expose = |name: &str, port: &str| {
            let (name, port) = (format!("--name={name}"), format!("--port={port}"));
            n.ok(
                &["expose", "deployment", "web", &name, &port, "--target-port=8080", "--type=LoadBalancer"],
                "",
            )
        };
        expose("web", "80")?;
        n.until(&["get", "service", "web"], "192.0.2.2", 10)?;
        answers(&outside, "http://192.0.2.2/", true)?;
        n.until(&["describe", "service", "web"], "Ensured load balancer", 10)?;
        if n.jsonpath("service/web", "{.status.loadBalancer.ingress[0].ipMode}")? != "VIP" {
            return Err("the status has no ipMode".into());
        }

        // Another Service on the same port, and one on the API server's.
        expose("late", "80")?;
        n.until(&["describe", "service", "late"], "port 80/TCP of 192.0.2.2 belongs to Service lb/web", 10)?;
        n.expect(&["get", "service", "late"], "", 0, "<pending>")?;
        expose("greedy", "6443")?;
        n.until(
            &["describe", "service", "greedy"],
            "6443/TCP of 192.0.2.2 is in use on node node-1 itself",
            20,
        )?;
        n.until(&["get", "service", "greedy"], "<pending>", 20)?;
        answers(&outside, "http://192.0.2.2:6443/", false)?;
        // As an external IP, which nothing but the proxy can refuse.
        let external = r#"{"spec": {"type": "ClusterIP", "externalIPs": ["192.0.2.2"]}}"#;
        n.ok(&["patch", "service", "greedy", "-p", external], "")?;
        n.until(&["describe", "service", "greedy"], "ExternalIPInUse", 20)?;
        answers(&outside, "http://192.0.2.2:6443/", false)?;
        cluster.ok(&["get", "--raw=/readyz"], "")?;

        // Clients.
        let ranges = |range: &str| {
            let patch = format!(r#"{{"spec": {{"loadBalancerSourceRanges": ["{range}"]}}}}"#);
            n.ok(&["patch", "service", "web", "-p", &patch], "")
        };
        ranges("198.51.100.0/24")?;
        answers(&outside, "http://192.0.2.2/", false)?;
        ranges("192.0.2.1/32")?;
        answers(&outside, "http://192.0.2.2/", true)?;

        // The health check node port tells of endpoints on this node.
        let local = r#"{"spec": {"externalTrafficPolicy": "Local", "healthCheckNodePort": 32100}}"#;
        n.ok(&["patch", "service", "web", "-p", local], "")?;
        until("the health check answers", Duration::from_secs(10), || {
            let got = fetch(&outside, "http://192.0.2.2:32100/");
            let got = got.map_err(|e| e.message().unwrap_or_default().to_owned())?.unwrap_or_default();
            if got.contains("\"localEndpoints\": 2") { Ok(true) } else { Err(got) }
        })?;
        answers(&outside, "http://192.0.2.2/", true)?;

        // The end of one is the beginning of the other.
        let inner = r#"{"spec": {"type": "ClusterIP", "externalTrafficPolicy": null, "loadBalancerSourceRanges": null}}"#;
        n.ok(&["patch", "service", "web", "-p", inner], "")?;
        n.until(&["get", "service", "late"], "192.0.2.2", 10)?;
        n.expect(&["get", "service", "web"], "", 0, "<none>")?;
        answers(&outside, "http://192.0.2.2/", true)?;
        n.ok(&["delete", "service", "late"], "")?;
        answers(&outside, "http://192.0.2.2/", false)?;
    }
    if let Some(mut up) = cluster.processes.pop() {
        up.stop()?;
    }
    cluster.start_up_with(&["--disable", "servicelb"])?;
    {
        let n = cluster.namespace("without")?;
        n.ok(&["create", "service", "loadbalancer", "web", "--tcp=80:8080"], "")?;
        sleep(Duration::from_secs(1));
        n.expect(&["get", "service", "web"], "", 0, "<pending>")?;
        let said = cluster.kubectl(&["get", "-n", "kube-system", "configmap/service-lb-ports"])?;
        if said.code == 0 {
            return Err("the ports of nodes are still published".into());
        }
    }
    cluster.take_down()
}
