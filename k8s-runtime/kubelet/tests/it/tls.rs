//! Who may talk to the kubelet's listener.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{FakeApi, FakeRuntime};

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
        let certificate =
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }
}

/// Asks for `/healthz`; `None`: the connection was refused.
async fn ask(port: u16, roots: Arc<RootCertStore>, identity: Option<Pair>) -> Option<String> {
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
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await.ok()?;
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
        let kubelet = k8s_kubelet::Kubelet::builder(FakeApi::new().client(), "n1")
            .configure(|c| {
                c.root_dir = dir.path().join("kubelet");
                c.log_dir = dir.path().join("logs");
                c.bind_address = [127, 0, 0, 1].into();
                c.port = port;
                c.tls = Some(Arc::new(tls));
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
