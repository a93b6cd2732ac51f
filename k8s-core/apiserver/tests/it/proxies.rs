//! Targets of the proxy subresources, and permissions of those that reach a kubelet.

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use http::{Request, Response};
use k8s_apiserver::{
    ApiServer, User,
    proxy::{LocalKubelets, NodeConnector, RemoteKubelets},
};
use k8s_core::client::{Body, BoxError, body_from_bytes};
use k8s_store::Store;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{admin, ask, ask_as, done, grant, server};

/// Returns an address of this machine that is not loopback, if it has one.
fn own_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: this only looks up the route.
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_loopback())
}

/// Starts a web server on all addresses that returns the request line; returns its port.
async fn backend() -> u16 {
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                let n = tcp.read(&mut buffer).await.unwrap_or(0);
                let line =
                    String::from_utf8_lossy(&buffer[..n]).lines().next().unwrap_or_default().to_owned();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{line}",
                    line.len()
                );
                let _ = tcp.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}

async fn pod(server: &ApiServer, name: &str, ip: &str) {
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": name}, "spec": {"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "x"}]}});
    done(server, "POST", pods, &pod).await;
    let status = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
    done(server, "PATCH", &format!("{pods}/{name}/status"), &status).await;
}

async fn account(server: &ApiServer) {
    done(
        server,
        "POST",
        "/api/v1/namespaces/default/serviceaccounts",
        &json!({"metadata": {"name": "default"}}),
    )
    .await;
}

#[tokio::test]
async fn a_pod_proxy_reaches_global_addresses_only() {
    let server = server().await;
    account(&server).await;
    let port = backend().await;
    for (i, ip) in
        ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "::ffff:127.0.0.1"].iter().enumerate()
    {
        pod(&server, &format!("p{i}"), ip).await;
        let answer =
            admin(&server, "GET", &format!("/api/v1/namespaces/default/pods/p{i}:{port}/proxy/"), "", "")
                .await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["message"].as_str()),
            (400, Some("address not allowed")),
            "{ip}"
        );
    }
    if let Some(own) = own_address() {
        pod(&server, "proxy", &own.to_string()).await;
        let path = format!("/api/v1/namespaces/default/pods/proxy:{port}/proxy/a/proxy/b?c=d");
        let answer = admin(&server, "GET", &path, "", "").await;
        assert_eq!(answer.json(), "GET /a/proxy/b?c=d HTTP/1.1", "{}", answer.status);
    }
}

#[tokio::test]
async fn links_of_a_page_lead_through_the_proxy() {
    let Some(own) = own_address() else { panic!("this machine has no address") };
    let server = server().await;
    account(&server).await;
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut buffer = vec![0; 4096];
            let n = tcp.read(&mut buffer).await.unwrap_or(0);
            let asked = String::from_utf8_lossy(&buffer[..n]).to_lowercase();
            let uri = asked.lines().find_map(|line| line.strip_prefix("x-forwarded-uri: "));
            let head = match asked.starts_with("get /go ") {
                true => "302 Found\r\nlocation: /there",
                false => "200 OK\r\ncontent-type: text/html",
            };
            let page = format!("<a href=\"/a\">{}</a>", uri.unwrap_or("none"));
            let length = page.len();
            let answer =
                format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{page}");
            let _ = tcp.write_all(answer.as_bytes()).await;
        }
    });
    pod(&server, "page", &own.to_string()).await;
    let base = format!("/api/v1/namespaces/default/pods/page:{port}/proxy");
    let answer = admin(&server, "GET", &format!("{base}/b/?q"), "", "").await;
    assert_eq!(answer.json(), format!("<a href=\"{base}/a\">{base}/b/</a>"));
    let answer = admin(&server, "GET", &format!("{base}/go"), "", "").await;
    assert_eq!(answer.status.as_u16(), 302);
    assert_eq!(answer.headers["location"], format!("{base}/there"));
}

fn slice(name: &str, service: &str, port: u16, endpoints: Value) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": port}], "endpoints": endpoints})
}

#[tokio::test]
async fn a_service_proxy_reaches_pods_of_its_namespace_only() {
    let server = server().await;
    account(&server).await;
    let port = backend().await;
    let own = own_address().map_or_else(|| "192.0.2.77".to_owned(), |ip| ip.to_string());
    let base = "/api/v1/namespaces/default";
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    pod(&server, "real", &own).await;
    pod(&server, "other", "10.1.2.3").await;
    let spec = json!({"ports": [{"port": 80}]});
    done(&server, "POST", &format!("{base}/services"), &json!({"metadata": {"name": "web"}, "spec": spec}))
        .await;
    let target = |kind: &str, namespace: &str, name: &str| json!([{"addresses": [own], "targetRef": {"kind": kind, "namespace": namespace, "name": name}}]);
    let wrong = [
        ("no pod", json!([{"addresses": [own]}])),
        ("a pod with another address", target("Pod", "default", "other")),
        ("a pod that is not there", target("Pod", "default", "absent")),
        ("a pod of another namespace", target("Pod", "kube-system", "real")),
        ("no pod, but its name", target("Node", "default", "real")),
    ];
    for (i, (how, endpoints)) in wrong.into_iter().enumerate() {
        done(&server, "POST", slices, &slice(&format!("a{i}"), "web", port, endpoints)).await;
        let answer = admin(&server, "GET", &format!("{base}/services/web/proxy/"), "", "").await;
        assert_eq!(answer.status, 503, "{how}: {}", answer.json());
        assert_eq!(answer.json()["message"], "no endpoints available for service \"web\"", "{how}");
    }
    // Invalid endpoints are skipped for a valid one, such as a pod on the node's network.
    done(&server, "POST", slices, &slice("b", "web", port, target("Pod", "default", "real"))).await;
    if own_address().is_some() {
        let answer = admin(&server, "GET", &format!("{base}/services/http:web:80/proxy/x"), "", "").await;
        assert_eq!(answer.json(), "GET /x HTTP/1.1", "{}", answer.status);
    }
}

#[tokio::test]
async fn a_proxied_root_without_a_slash_is_redirected() {
    let server = server().await;
    account(&server).await;
    pod(&server, "p", "10.0.0.1").await;
    let answer = admin(&server, "GET", "/api/v1/namespaces/default/pods/p/proxy?a=b", "", "").await;
    assert_eq!(answer.status, 301);
    assert_eq!(answer.headers["location"], "/api/v1/namespaces/default/pods/p/proxy/?a=b");
}

struct Kubelet;

#[async_trait]
impl NodeConnector for Kubelet {
    async fn call(&self, _: &Value, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        Ok(Response::new(body_from_bytes(request.uri().to_string())))
    }
}

#[tokio::test]
async fn a_node_proxy_refuses_loopback_but_for_a_kubelet_of_this_process() {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let kubelets = LocalKubelets::new(Some(Arc::new(RemoteKubelets::new(tls))));
    kubelets.add("own", Arc::new(Kubelet));
    let server = ApiServer::builder(Store::memory()).nodes(Arc::new(kubelets)).build().await.unwrap();
    let master = User::admin();
    for (name, ip) in [("own", "127.0.0.1"), ("loopback", "127.0.0.1"), ("link-local", "169.254.169.254")] {
        let node = json!({"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": ip}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}});
        assert_eq!(ask_as(&server, &master, "POST", "/api/v1/nodes", &node).await.status, 201);
    }
    let answer = ask_as(&server, &master, "GET", "/api/v1/nodes/own:10250/proxy/pods", &Value::Null).await;
    assert_eq!(answer.json(), "/pods");
    for node in ["loopback", "link-local", "loopback:10250", "https:loopback:8080", "own:8080"] {
        let answer =
            ask_as(&server, &master, "GET", &format!("/api/v1/nodes/{node}/proxy/"), &Value::Null).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!((answer.status.as_u16(), message.as_str()), (400, "address not allowed"), "{node}");
    }
}

#[tokio::test]
async fn what_runs_in_a_container_needs_create_as_well_as_get() {
    let server = server().await;
    account(&server).await;
    pod(&server, "p", "10.0.0.1").await;
    let of = |verbs: &[&str]| json!([{"apiGroups": [""], "resources": ["pods/exec", "pods/attach", "pods/portforward", "pods/log"], "verbs": verbs}]);
    grant(&server, "reader", of(&["get"])).await;
    grant(&server, "runner", of(&["get", "create"])).await;
    for part in ["exec", "attach", "portforward", "log"] {
        for name in ["reader", "runner"] {
            let request = Request::builder()
                .uri(format!("/api/v1/namespaces/default/pods/p/{part}?command=id"))
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                .body(Vec::new())
                .unwrap();
            let answer = ask(&server.service_as(User::new(name, &[])), request).await;
            let refused = part != "log" && name == "reader";
            assert_eq!(answer.status == 403, refused, "{name} {part}: {} {}", answer.status, answer.json());
            if refused {
                let want = format!(
                    "pods \"p\" is forbidden: User \"reader\" cannot create resource \"pods/{part}\" in API group \"\" in the namespace \"default\""
                );
                assert_eq!(answer.json()["message"], want);
            }
        }
    }
}

#[tokio::test]
async fn a_patch_or_put_that_creates_needs_create() {
    let server = server().await;
    let rule = json!([{"apiGroups": ["", "coordination.k8s.io"], "resources": ["configmaps", "leases"], "verbs": ["get", "patch", "update"]}]);
    grant(&server, "patcher", rule).await;
    let user = User::new("patcher", &[]);
    let apply = |path: &str, body: Value| {
        let request = Request::builder().method("PATCH").uri(format!("{path}?fieldManager=t"));
        request
            .header("content-type", "application/apply-patch+yaml")
            .body(body.to_string().into_bytes())
            .unwrap()
    };
    let path = "/api/v1/namespaces/default/configmaps/a";
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}});
    let answer = ask(&server.service_as(user.clone()), apply(path, config.clone())).await;
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.json()["message"],
        "configmaps \"a\" is forbidden: User \"patcher\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    let lease = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l";
    let body = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "x"}});
    assert_eq!(ask_as(&server, &user, "PUT", lease, &body).await.status, 403);
    done(&server, "POST", "/api/v1/namespaces/default/configmaps", &json!({"metadata": {"name": "a"}})).await;
    let answer = ask(&server.service_as(user), apply(path, config)).await;
    assert_eq!(answer.status, 200, "what is there may be patched: {}", answer.json());
}

#[tokio::test]
async fn an_https_target_is_spoken_to_over_tls() {
    let Some(own) = own_address() else { return };
    let server = server().await;
    account(&server).await;
    let ca = crate::peer::authority();
    let (port, task) =
        crate::peer::serve_on(&ca, "localhost", "0.0.0.0:0", |sent| json!({"got": sent})).await;
    pod(&server, "tls", &own.to_string()).await;
    let path = format!("/api/v1/namespaces/default/pods/https:tls:{port}/proxy/");
    let answer = admin(&server, "POST", &path, "application/json", "{\"a\":1}").await;
    task.abort();
    assert_eq!(answer.json(), json!({"got": {"a": 1}}), "{}", answer.status);
}
