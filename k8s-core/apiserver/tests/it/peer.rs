//! Fake servers for tests, with certificates.

use std::{convert::Infallible, sync::Arc};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_apiserver::{
    ClientIdentity,
    listen::{self, TlsFiles},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;

/// A CA: certificate (PEM) and key.
pub(crate) type Authority = (String, KeyPair);

/// Creates a CA that signs certificates of clients and servers.
pub(crate) fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "test-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap().pem(), key)
}

/// Creates a certificate for a name, with its key.
pub(crate) fn signed(ca: &Authority, name: &str) -> ClientIdentity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let issuer = Issuer::from_ca_cert_pem(&ca.0, &ca.1).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    ClientIdentity { certificate, key: key.serialize_pem() }
}

/// Serves JSON over TLS on a local port until the task is aborted: a function from request to response.
pub(crate) async fn serve_json(
    ca: &Authority,
    name: &str,
    answer: impl Fn(Value) -> Value + Send + Sync + 'static,
) -> (u16, tokio::task::AbortHandle) {
    serve_on(ca, name, "127.0.0.1:0", answer).await
}

/// As [`serve_json`], on a given address.
pub(crate) async fn serve_on(
    ca: &Authority,
    name: &str,
    address: &str,
    answer: impl Fn(Value) -> Value + Send + Sync + 'static,
) -> (u16, tokio::task::AbortHandle) {
    let identity = signed(ca, name);
    let files = TlsFiles {
        certificate: identity.certificate.into_bytes(),
        key: identity.key.into_bytes(),
        client_ca: None,
    };
    let mut tls = listen::tls_config(&files).unwrap();
    tls.alpn_protocols.clear();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    let task = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = answer.clone();
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let json = answer(serde_json::from_slice(&body).unwrap()).to_string();
                        Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from(json))))
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tls), service)
                    .await;
            });
        }
    });
    (port, task.abort_handle())
}
