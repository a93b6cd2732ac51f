//! Access to the kubelet's listener.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{FakeRuntime, cluster::Api};

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }
}

/// Requests `/healthz`. `None`: the connection was refused.
async fn ask(port: u16, roots: Arc<RootCertStore>, identity: Option<Pair>) -> Option<String> {
    request(port, roots, identity, "GET /healthz HTTP/1.1").await
}

/// Sends a request line, with any headers. `None`: the connection was refused.
async fn request(port: u16, roots: Arc<RootCertStore>, identity: Option<Pair>, what: &str) -> Option<String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("node").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.ok()?;
    let text = format!("{what}\r\nhost: node\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    Some(text)
}

#[tokio::test]
async fn a_client_certificate_of_the_cluster_is_required() {
    let (cluster, stranger) = (Authority::new(), Authority::new());
    let (chain, key) = cluster.issue("node");
    let clock = k8s_core::clock::Clock::system();
    let runtime = Arc::new(FakeRuntime::new(clock));
    let dir = tempfile::tempdir().unwrap();
    for anonymous_handshake in [false, true] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(cluster.roots(), provider.clone());
        let verifier = if anonymous_handshake { verifier.allow_unauthenticated() } else { verifier };
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain.clone(), key.clone_key())
            .unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let api = Api::start(k8s_core::clock::Clock::system()).await;
        api.allow("apiserver", "get", "proxy").await;
        let kubelet = k8s_kubelet::Kubelet::builder(api.connection.client(), "n1")
            .configure(|c| {
                c.root_dir = dir.path().join("kubelet");
                c.log_dir = dir.path().join("logs");
                c.bind_address = [127, 0, 0, 1].into();
                c.port = port;
                c.tls = Some(Arc::new(tls).into());
            })
            .runtime(runtime.clone())
            .images(runtime.clone())
            .start()
            .await
            .unwrap();
        let known = ask(port, cluster.roots(), Some(cluster.issue("apiserver"))).await.unwrap();
        assert!(known.starts_with("HTTP/1.1 200") && known.ends_with("ok"), "{known}");
        assert_eq!(ask(port, cluster.roots(), Some(stranger.issue("apiserver"))).await, None);
        match ask(port, cluster.roots(), None).await {
            Some(text) => assert!(anonymous_handshake && text.starts_with("HTTP/1.1 401"), "{text}"),
            None => assert!(!anonymous_handshake),
        }
        kubelet.shutdown().await;
    }
}

#[tokio::test]
async fn every_request_is_authorized_by_the_api_server() {
    let cluster = Authority::new();
    let (chain, key) = cluster.issue("node");
    let runtime = Arc::new(FakeRuntime::new(k8s_core::clock::Clock::system()));
    let dir = tempfile::tempdir().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(cluster.roots(), provider.clone());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let api = Api::start(k8s_core::clock::Clock::system()).await;
    api.allow("admin", "get", "proxy").await;
    api.allow("admin", "create", "proxy").await;
    api.allow("monitor", "get", "stats").await;
    api.allow("monitor", "get", "pods").await;
    let kubelet = k8s_kubelet::Kubelet::builder(api.connection.client(), "n1")
        .configure(|c| {
            c.root_dir = dir.path().join("kubelet");
            c.log_dir = dir.path().join("logs");
            c.bind_address = [127, 0, 0, 1].into();
            c.port = port;
            c.tls = Some(Arc::new(tls).into());
        })
        .runtime(runtime.clone())
        .images(runtime)
        .start()
        .await
        .unwrap();
    let exec = "/exec/default/p/c?command=id&output=1";
    for (user, what, code, says) in [
        ("admin", "GET /pods", 200, "PodList"),
        ("admin", &format!("POST {exec}"), 404, "not found"),
        ("monitor", "GET /pods", 200, "PodList"),
        ("monitor", "GET /stats/summary", 200, "nodeName"),
        (
            "monitor",
            "GET /metrics",
            403,
            "Forbidden (user=monitor, verb=get, resource=nodes, subresource(s)=[metrics])",
        ),
        (
            "system:kube-scheduler",
            "GET /pods",
            403,
            "Forbidden (user=system:kube-scheduler, verb=get, resource=nodes, subresource(s)=[pods proxy])",
        ),
        (
            "system:kube-scheduler",
            &format!("GET {exec}"),
            403,
            "Forbidden (user=system:kube-scheduler, verb=get, resource=nodes, subresource(s)=[proxy])",
        ),
        ("system:kube-scheduler", "GET /healthz", 403, "subresource(s)=[healthz proxy]"),
        ("monitor", &format!("POST {exec}"), 403, "verb=create"),
    ] {
        let what = format!("{what} HTTP/1.1");
        let answer = request(port, cluster.roots(), Some(cluster.issue(user)), &what).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {code} ")) && answer.contains(says),
            "{user} {what}: {answer}"
        );
    }
    // Answers are cached for a while.
    let asked = api.reviews();
    for _ in 0..3 {
        ask(port, cluster.roots(), Some(cluster.issue("system:kube-scheduler"))).await.unwrap();
    }
    assert_eq!(api.reviews(), asked);
    kubelet.shutdown().await;
}

#[tokio::test]
async fn bearer_tokens_are_reviewed_by_the_api_server() {
    let cluster = Authority::new();
    let (chain, key) = cluster.issue("node");
    let runtime = Arc::new(FakeRuntime::new(k8s_core::clock::Clock::system()));
    let dir = tempfile::tempdir().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(cluster.roots(), provider.clone());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let api = Api::start(k8s_core::clock::Clock::system()).await;
    api.allow("system:serviceaccount:ns:default", "get", "metrics").await;
    let kubelet = k8s_kubelet::Kubelet::builder(api.connection.client(), "n1")
        .configure(|c| {
            c.root_dir = dir.path().join("kubelet");
            c.log_dir = dir.path().join("logs");
            c.bind_address = [127, 0, 0, 1].into();
            c.port = port;
            c.tls = Some(Arc::new(tls).into());
        })
        .runtime(runtime.clone())
        .images(runtime)
        .start()
        .await
        .unwrap();
    let token = api.token("ns", "default").await;
    let ask = async |path: &str, authorization: &str| {
        let what = format!("GET {path} HTTP/1.1\r\nauthorization: {authorization}");
        request(port, cluster.roots(), None, &what).await.unwrap()
    };
    for (path, authorization, code, says) in [
        ("/metrics/resource", format!("Bearer {token}"), 200, "node_cpu_usage_seconds_total"),
        ("/pods", format!("Bearer {token}"), 403, "user=system:serviceaccount:ns:default, verb=get"),
        ("/metrics", format!("Bearer {token}x"), 401, "Unauthorized"),
        ("/metrics", "Bearer stranger".into(), 401, "Unauthorized"),
        ("/metrics", "Basic YTpi".into(), 401, "Unauthorized"),
        ("/healthz", String::new(), 401, "Unauthorized"),
    ] {
        let answer = ask(path, &authorization).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {code} ")) && answer.contains(says),
            "{path}: {answer}"
        );
    }
    // A valid token is reviewed once a minute.
    let asked = api.connection.count("create", "tokenreviews");
    ask("/metrics/resource", &format!("Bearer {token}")).await;
    assert_eq!(api.connection.count("create", "tokenreviews"), asked);
    kubelet.shutdown().await;
}
