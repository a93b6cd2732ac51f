//! Ingresses, reached from another network namespace.

use std::time::Duration;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Outcome,
    harness::{Cluster, NetworkNamespace, Process, deployment, run, until},
    load_balancer::connect,
};

pub const TESTS: &[crate::Test] =
    &[("ingresses_route_from_outside", routed), ("a_taken_port_leaves_node_ports", taken)];

/// Sends a request to the node from outside; returns its status and body.
fn curl(outside: &NetworkNamespace, arguments: &[&str]) -> Result<(u16, String), Failed> {
    let mut command = outside.command("curl");
    command.args(["-sk", "-m", "5", "-w", "\n%{http_code}"]).args(arguments);
    let said = run(&mut command, "", Duration::from_secs(10))?;
    let (body, code) = said.out.rsplit_once('\n').unwrap_or(("", &said.out));
    Ok((code.trim().parse().unwrap_or(0), body.to_owned()))
}

/// Polls until a request to `http://HOST/PATH` gets this status and a body with this text.
fn gets(outside: &NetworkNamespace, url: &str, more: &[&str], code: u16, text: &str) -> Outcome {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let host = rest.split('/').next().unwrap_or_default();
    let port = if scheme == "https" { 443 } else { 80 };
    let resolve = format!("{host}:{port}:192.0.2.2");
    until(&format!("{url} gets {code} {text:?}"), Duration::from_secs(20), || {
        let arguments = [&["--resolve", &resolve, url], more].concat();
        let got = curl(outside, &arguments).map_err(|e| e.message().unwrap_or_default().to_owned())?;
        if got.0 == code && got.1.contains(text) { Ok(true) } else { Err(format!("{got:?}")) }
    })
}

fn ingress(name: &str, host: &str, path: &str, service: &str, port: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name},
        "spec": {"rules": [{"host": host, "http": {"paths": [
            {"path": path, "pathType": "Prefix", "backend": {"service": {"name": service, "port": port}}},
        ]}}]},
    })
}

/// A Deployment whose pods serve a text.
fn web(name: &str, text: &str) -> Value {
    let mut web = deployment(name, 1);
    let script = format!(
        "mkdir -p /tmp/www/api; echo {text} | tee /tmp/www/index.html /tmp/www/api/index.html; trap 'exit 0' TERM; httpd -f -p 8080 -h /tmp/www & wait"
    );
    web["spec"]["template"]["spec"]["containers"][0]["command"] =
        json!(["/bin/busybox", "sh", "-c", script.replace("tee", "busybox tee")]);
    web
}

fn routed() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    let outside = NetworkNamespace::new()?;
    connect(&cluster, &outside)?;
    cluster.load_images()?;
    cluster.start_up()?;
    {
        let n = cluster.namespace("shop")?;
        for (name, text) in [("one", "this-is-one"), ("two", "this-is-two")] {
            n.ok(&["apply", "-f", "-"], &web(name, text).to_string())?;
            n.ok(&["expose", "deployment", name, "--port=80", "--target-port=8080"], "")?;
        }
        for name in ["one", "two"] {
            n.ok(&["wait", "--for=condition=Available", &format!("deployment/{name}"), "--timeout=60s"], "")?;
        }
        cluster.ok(
            &[
                "-n",
                "kube-system",
                "wait",
                "--for=jsonpath={.status.loadBalancer.ingress[0].ip}=192.0.2.2",
                "service/ingress",
                "--timeout=30s",
            ],
            "",
        )?;

        // The default class, an address, a route.
        let said = n.run(
            &["apply", "-f", "-"],
            &ingress("web", "shop.example.com", "/", "one", json!({"number": 80})).to_string(),
        )?;
        if said.code != 0 || said.err.contains("no ingress controller") {
            return Err(format!("{said:?}").into());
        }
        n.until(&["get", "ingress", "web"], "192.0.2.2", 20)?;
        n.expect(&["get", "ingress", "web"], "", 0, "hyperkube")?;
        gets(&outside, "http://shop.example.com/", &[], 200, "this-is-one")?;
        gets(&outside, "http://other.example.com/", &[], 404, "")?;

        // The client's own address counts, and not what it says about it.
        let claim = ["-H", "X-Forwarded-For: 198.51.100.1"];
        for (range, code) in [("198.51.100.0/24", 403), ("192.0.2.1/32", 200)] {
            let annotation = format!("nginx.ingress.kubernetes.io/whitelist-source-range={range}");
            n.ok(&["annotate", "--overwrite", "ingress", "web", &annotation], "")?;
            gets(&outside, "http://shop.example.com/", &claim, code, "")?;
        }

        // Edited while it is in use.
        let other = r#"[{"op": "replace", "path": "/spec/rules/0/http/paths/0/backend/service/name", "value": "two"}]"#;
        n.ok(&["patch", "ingress", "web", "--type=json", "-p", other], "")?;
        gets(&outside, "http://shop.example.com/", &[], 200, "this-is-two")?;

        // No endpoints; another class; old versions; a problem that is told.
        n.ok(&["scale", "deployment", "two", "--replicas=0"], "")?;
        gets(&outside, "http://shop.example.com/", &[], 503, "")?;
        let mut foreign = ingress("foreign", "foreign.example.com", "/", "one", json!({"number": 80}));
        foreign["spec"]["ingressClassName"] = "traefik".into();
        n.ok(&["apply", "-f", "-"], &foreign.to_string())?;
        let backend = json!({"serviceName": "one", "servicePort": 80});
        for (version, host) in
            [("extensions/v1beta1", "ext.example.com"), ("networking.k8s.io/v1beta1", "net.example.com")]
        {
            let annotations = json!({"kubernetes.io/ingress.class": "nginx", "nginx.ingress.kubernetes.io/rewrite-target": "/", "nginx.ingress.kubernetes.io/server-snippet": "deny all;"});
            let old = json!({
                "apiVersion": version, "kind": "Ingress", "metadata": {"name": host, "annotations": annotations},
                "spec": {"rules": [{"host": host, "http": {"paths": [{"path": "/deep/path", "backend": backend}]}}]},
            });
            n.ok(&["create", "--validate=false", "-f", "-"], &old.to_string())?;
            gets(&outside, &format!("http://{host}/deep/path"), &[], 200, "this-is-one")?;
            n.until(&["describe", "ingress", host], "SnippetRefused", 20)?;
        }
        gets(&outside, "http://foreign.example.com/", &[], 404, "")?;
        if !n.jsonpath("ingress/foreign", "{.status.loadBalancer.ingress}")?.is_empty() {
            return Err("an Ingress of another class has an address".into());
        }

        // TLS, and the way there.
        tls(&cluster, &outside)?;
        let metrics = cluster.ok(&["get", "--raw=/metrics"], "")?;
        if !metrics.contains("ingress_requests_total{namespace=\"shop\",ingress=\"web\"") {
            return Err("requests are not counted".into());
        }
    }
    if let Some(mut up) = cluster.processes.pop() {
        up.stop()?;
    }
    cluster.start_up()?;
    gets(&outside, "http://secure.example.com/", &[], 308, "")?;
    gets(&outside, "https://secure.example.com/", &[], 200, "this-is-one")?;
    if let Some(mut up) = cluster.processes.pop() {
        up.stop()?;
    }
    cluster.start_up_with(&["--disable", "ingress"])?;
    for object in ["service/ingress", "ingressclass/hyperkube"] {
        if cluster.kubectl(&["get", "-n", "kube-system", object])?.code == 0 {
            return Err(format!("{object} is left").into());
        }
    }
    gets(&outside, "http://secure.example.com/", &[], 0, "")?;
    cluster.take_down()
}

/// Serves a host with a certificate, which is replaced.
fn tls(cluster: &Cluster, outside: &NetworkNamespace) -> Outcome {
    let n = cluster.namespace("secure")?;
    n.ok(&["apply", "-f", "-"], &web("one", "this-is-one").to_string())?;
    n.ok(&["expose", "deployment", "one", "--port=80", "--target-port=8080"], "")?;
    n.ok(&["wait", "--for=condition=Available", "deployment/one", "--timeout=60s"], "")?;
    let secret = || -> Result<(String, String), Failed> {
        let made = rcgen::generate_simple_self_signed(["secure.example.com".to_owned()])?;
        let data = json!({"tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem()});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "type": "kubernetes.io/tls", "stringData": data});
        Ok((secret.to_string(), made.cert.pem()))
    };
    let ca = cluster.dir.path().join("ca.pem");
    let trusted = |pem: &str| -> Outcome {
        std::fs::write(&ca, pem)?;
        // curl verifies with -k only if a later --no-insecure takes it back.
        let path = ca.to_string_lossy().into_owned();
        gets(
            outside,
            "https://secure.example.com/",
            &["--no-insecure", "--cacert", &path],
            200,
            "this-is-one",
        )
    };
    let mut with_tls = ingress("secure", "secure.example.com", "/", "one", json!({"number": 80}));
    with_tls["spec"]["tls"] = json!([{"hosts": ["secure.example.com"], "secretName": "tls"}]);
    n.ok(&["apply", "-f", "-"], &with_tls.to_string())?;
    n.until(&["describe", "ingress", "secure"], "CertificateMissing", 20)?;
    gets(outside, "http://secure.example.com/", &[], 200, "this-is-one")?;
    let (first, pem) = secret()?;
    n.ok(&["apply", "-f", "-"], &first)?;
    trusted(&pem)?;
    gets(outside, "http://secure.example.com/", &[], 308, "")?;
    let (renewed, pem) = secret()?;
    n.ok(&["apply", "-f", "-"], &renewed)?;
    trusted(&pem)?;
    gets(outside, "https://secure.example.com/", &["--http2"], 200, "this-is-one")
}

fn taken() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    let outside = NetworkNamespace::new()?;
    connect(&cluster, &outside)?;
    cluster.load_images()?;
    // A program of the node has the port.
    let mut httpd = cluster.net.command("/bin/busybox");
    httpd.args(["httpd", "-f", "-p", "80", "-h", "/nonexistent"]);
    let directory = cluster.dir.path().join("www");
    std::fs::create_dir(&directory)?;
    let directory = directory.to_string_lossy().into_owned();
    let mut httpd = cluster.net.command("/bin/busybox");
    let mut other = Process::start(
        httpd.args(["httpd", "-f", "-p", "80", "-h", &directory]),
        cluster.dir.path().join("httpd.log"),
    )?;
    cluster.start_up()?;
    {
        let n = cluster.namespace("shop")?;
        n.ok(&["apply", "-f", "-"], &web("one", "this-is-one").to_string())?;
        n.ok(&["expose", "deployment", "one", "--port=80", "--target-port=8080"], "")?;
        n.ok(&["wait", "--for=condition=Available", "deployment/one", "--timeout=60s"], "")?;
        n.ok(
            &["apply", "-f", "-"],
            &ingress("web", "shop.example.com", "/", "one", json!({"number": 80})).to_string(),
        )?;
        until("the taken port is told", Duration::from_secs(30), || {
            let said = cluster.kubectl(&["-n", "kube-system", "describe", "service", "ingress"]);
            let out = said.map_err(|e| e.message().unwrap_or_default().to_owned())?.out;
            if out.contains("80/TCP of 192.0.2.2 is in use on node node-1 itself") {
                Ok(true)
            } else {
                Err(out)
            }
        })?;
        let port = cluster.ok(
            &["-n", "kube-system", "get", "service", "ingress", "-o", "jsonpath={.spec.ports[0].nodePort}"],
            "",
        )?;
        let url = format!("http://192.0.2.2:{port}/");
        until("the node port routes", Duration::from_secs(20), || {
            let got = curl(&outside, &["-H", "Host: shop.example.com", &url]);
            let got = got.map_err(|e| e.message().unwrap_or_default().to_owned())?;
            if got.0 == 200 && got.1.contains("this-is-one") { Ok(true) } else { Err(format!("{got:?}")) }
        })?;
        n.until(&["get", "ingress", "web"], "192.0.2.2", 20)?;
    }
    other.kill();
    cluster.take_down()
}
