use std::time::Instant;

use k8s_apiserver::{ApiServer, User};
use k8s_core::api::api::core::v1::Event;
use k8s_store::Store;
use serde_json::Value;

use super::*;
use crate::{certificates::tests::secret, proxy::ProxyConfig};

struct Cluster {
    client: Client,
    proxy: Proxy,
    stop: CancellationToken,
    _server: ApiServer,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Cluster {
    async fn start() -> Self {
        let server = ApiServer::builder(Store::memory()).serves_ingresses(true).build().await.unwrap();
        let client = server.client_as(User::admin()).named("test");
        let (proxy, stop) = (Proxy::new(ProxyConfig::default()).unwrap(), CancellationToken::new());
        let config = ControllerConfig {
            class: "hyperkube".into(),
            service: ("default".into(), "front".into()),
            addresses: vec!["192.0.2.2".into()],
            listeners: Vec::new(),
            clock: Clock::system(),
        };
        tokio::spawn(run(client.clone(), config, proxy.clone(), stop.clone()));
        let cluster = Cluster { client, proxy, stop, _server: server };
        let ports = json!([{"name": "http", "port": 80}]);
        for name in ["web", "front"] {
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": ports},
            });
            cluster.apply("/api/v1/namespaces/default/services", service).await;
        }
        cluster.proxy.filled().await;
        cluster
    }

    async fn apply(&self, path: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let path = format!("{path}/{name}?fieldManager=test&force=true");
        let kind = "application/apply-patch+yaml";
        self.client.bytes(http::Method::PATCH, &path, kind, object.to_string()).await.unwrap();
    }

    async fn endpoint(&self, address: &str) {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "labels": {SERVICE_NAME: "web"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": [address]}], "ports": [{"name": "http", "port": 8080}],
        });
        self.apply("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    }

    async fn ingress(&self, name: &str, host: &str, class: &str, annotations: Value) {
        let backend = json!({"service": {"name": "web", "port": {"name": "http"}}});
        let paths = json!([{"path": "/", "pathType": "Prefix", "backend": backend}]);
        let ingress = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {
                "ingressClassName": class, "tls": [{"hosts": [host], "secretName": "tls"}],
                "rules": [{"host": host, "http": {"paths": paths}}],
            },
        });
        self.apply("/apis/networking.k8s.io/v1/namespaces/default/ingresses", ingress).await;
    }

    /// Waits until the table leads a host to these endpoints; returns how long that took.
    async fn leads(&self, host: &str, want: Option<&str>) -> Duration {
        let begun = Instant::now();
        loop {
            let table = self.proxy.table();
            let found = table.route(host, "/");
            let got = found
                .map(|route| route.backend.endpoints.iter().map(ToString::to_string).collect::<String>());
            if got.as_deref() == want {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{host}: {got:?}");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }

    async fn until(&self, what: &str, mut done: impl AsyncFnMut() -> bool) {
        for _ in 0..1000 {
            if done().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} did not happen");
    }

    async fn address(&self, name: &str) -> Vec<String> {
        let ingress = self.client.namespaced::<Ingress>("default").get(name).await.unwrap();
        let points = ingress.status.and_then(|s| s.load_balancer).and_then(|b| b.ingress).unwrap_or_default();
        points.into_iter().filter_map(|point| point.ip).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_live_and_the_status_has_addresses() {
    let cluster = Cluster::start().await;
    cluster.ingress("web", "a.org", "hyperkube", json!({})).await;
    cluster.leads("a.org", Some("")).await;
    let mut slowest = Duration::ZERO;
    for i in 1..=20 {
        let address = format!("10.0.0.{i}");
        cluster.endpoint(&address).await;
        slowest = slowest.max(cluster.leads("a.org", Some(&format!("{address}:8080"))).await);
    }
    // Below 10 ms on a quiet machine.
    println!("slowest change {slowest:?}");
    cluster.until("the node's address", async || cluster.address("web").await == ["192.0.2.2"]).await;
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}});
    let services = cluster.client.namespaced::<Service>("default");
    let typed = json!({"spec": {"type": "LoadBalancer"}});
    services.patch("front", &Patch::Merge(typed)).await.unwrap();
    services.patch_status("front", &Patch::Merge(status)).await.unwrap();
    cluster.until("the Service's address", async || cluster.address("web").await == ["203.0.113.9"]).await;
    cluster.ingress("web", "a.org", "other", json!({})).await;
    cluster.leads("a.org", None).await;
    cluster.until("no address", async || cluster.address("web").await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn problems_are_told_once_and_certificates_come_alive() {
    let cluster = Cluster::start().await;
    let snippet = json!({"nginx.ingress.kubernetes.io/server-snippet": "x"});
    cluster.ingress("web", "a.org", "hyperkube", snippet).await;
    let has = async |reason: &str| {
        let events =
            cluster.client.namespaced::<Event>("default").list(&ListParams::default()).await.unwrap();
        let of = events.iter().filter(|event| event.reason.as_deref() == Some(reason));
        of.map(|event| event.count.unwrap_or(1)).sum::<i32>()
    };
    for reason in ["Sync", "SnippetRefused", "CertificateMissing"] {
        cluster.until(reason, async || has(reason).await == 1).await;
    }
    for i in 1..5 {
        cluster.endpoint(&format!("10.0.0.{i}")).await;
        cluster.leads("a.org", Some(&format!("10.0.0.{i}:8080"))).await;
    }
    assert!(cluster.proxy.table().certificate("a.org").is_none());
    let mut made = serde_json::to_value(secret("default", "tls", &["a.org"])).unwrap();
    made["type"] = "kubernetes.io/tls".into();
    cluster.apply("/api/v1/namespaces/default/secrets", made).await;
    cluster.until("the certificate", async || cluster.proxy.table().certificate("a.org").is_some()).await;
    assert_eq!(has("SnippetRefused").await, 1);
}
