//! TLS and HTTP/2, on both sides.

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_tls::{TlsStream, Trust};

use super::*;
use crate::certificates::tests::secret;

async fn connect(served: &Served, name: &str, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
    let config = Arc::new(k8s_tls::client(&Trust::Anyone, None, alpn).unwrap());
    k8s_tls::connect(config, name, TcpStream::connect(served.https).await.unwrap()).await.unwrap()
}

/// Returns the leaf that a name gets.
async fn leaf(served: &Served, name: &str) -> Vec<u8> {
    connect(served, name, &[]).await.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

async fn get(served: &Served, sni: &str, host: &str) -> String {
    let mut stream = connect(served, sni, &[b"http/1.1"]).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn certificates_by_name_change_while_they_are_in_use() {
    let one = Endpoint::start("one").await;
    let of = |hosts: &[&str]| certificate(&secret("ns", "tls", hosts));
    let (a, wild, default, renewed) = (of(&["a.org"]), of(&["*.b.org"]), of(&["default"]), of(&["a.org"]));
    let with = |a: &Arc<Certificate>| {
        let to = |host| To(host, "/", vec![one.address], &[]);
        let mut table = table(vec![to("a.org"), to("x.b.org"), to("plain.org")]);
        table.certificates.insert("a.org".into(), a.clone());
        table.certificates.insert("*.b.org".into(), wild.clone());
        table
    };
    let config = ProxyConfig { certificate: Some(default.clone()), ..ProxyConfig::default() };
    let served = Served::start(config, with(&a)).await;
    let der = |certificate: &Certificate| certificate.key.cert[0].to_vec();
    assert_eq!(leaf(&served, "a.org").await, der(&a));
    assert_eq!(leaf(&served, "A.ORG").await, der(&a));
    assert_eq!(leaf(&served, "x.b.org").await, der(&wild));
    assert_eq!(leaf(&served, "other.org").await, der(&default));
    assert_eq!(leaf(&served, "127.0.0.1").await, der(&default), "without a name");
    served.proxy.replace(with(&renewed));
    assert_eq!(leaf(&served, "a.org").await, der(&renewed));

    let answer = get(&served, "a.org", "a.org").await;
    assert!(
        answer.contains("x-forwarded-proto: https\n") && answer.contains("x-forwarded-port: 443\n"),
        "{answer}"
    );
    assert_eq!(
        status(&get(&served, "x.b.org", "a.org").await),
        421,
        "a connection made for another certificate"
    );
    assert_eq!(status(&get(&served, "127.0.0.1", "a.org").await), 200);
    assert_eq!(status(&get(&served, "plain.org", "plain.org").await), 200);

    let plain = served.get("a.org", "/x?y", "").await;
    assert_eq!((status(&plain), header(&plain, "location")), (308, Some("https://a.org/x?y")));
    assert_eq!(status(&served.get("plain.org", "/", "").await), 200, "it has no certificate");
}

#[tokio::test]
async fn http2_from_clients_and_grpc_to_backends() {
    let one = Endpoint::start("one").await;
    let tls = certificate(&secret("ns", "tls", &["grpc.org", "web.org"]));
    let mut table = table(vec![
        To("grpc.org", "/", vec![one.address], &[("backend-protocol", "GRPC")]),
        To("web.org", "/", vec![one.address], &[]),
    ]);
    for host in ["grpc.org", "web.org"] {
        table.certificates.insert(host.into(), tls.clone());
    }
    let served = Served::start(ProxyConfig::default(), table).await;
    let stream = connect(&served, "grpc.org", &[b"h2"]).await;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (host, version, trailers) in [("grpc.org", "HTTP/2.0", Some("0")), ("web.org", "HTTP/1.1", None)] {
        let request = Request::post(format!("https://{host}/pkg.Service/Method"))
            .version(Version::HTTP_2)
            .header("te", "trailers")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Full::new(Bytes::from_static(b"hello")))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
        let answer = response.into_body().collect().await.unwrap();
        let got =
            answer.trailers().and_then(|t| t.get("grpc-status")).map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(got.as_deref(), trailers);
        let text = String::from_utf8(answer.to_bytes().to_vec()).unwrap();
        assert!(
            text.contains(version) && text.contains("body of 5") && text.contains("cookie: a=1; b=2\n"),
            "{text}"
        );
        assert!(text.contains(host), "the host is that of the client: {text}");
    }
}

#[tokio::test]
async fn idle_connections_of_http2_are_closed() {
    let one = Endpoint::start("one").await;
    let patient: &[(&str, &str)] = &[("proxy-read-timeout", "1")];
    let mut table = table(vec![To("a.org", "/", vec![one.address], patient)]);
    table.certificates.insert("a.org".into(), certificate(&secret("ns", "tls", &["a.org"])));
    let config = ProxyConfig { idle: Duration::from_millis(200), ..ProxyConfig::default() };
    let served = Served::start(config, table).await;
    let open = async || {
        let stream = connect(&served, "a.org", &[b"h2"]).await;
        let (sender, connection) =
            http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        (sender, tokio::spawn(connection))
    };
    let soon = Duration::from_secs(10);
    let (_unused, ending) = open().await;
    tokio::time::timeout(soon, ending).await.expect("a connection without a request ends").unwrap().unwrap();
    let (mut sender, ending) = open().await;
    // It is in flight for longer than connections are idle.
    let slow = Request::post("https://a.org/slow").version(Version::HTTP_2).body(Full::default()).unwrap();
    assert_eq!(sender.send_request(slow).await.unwrap().status(), 504);
    tokio::time::timeout(soon, ending).await.expect("it ends after its last request").unwrap().unwrap();
    // Clients that do not take part in the end.
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for begin in [&b""[..], preface] {
        let mut stream = connect(&served, "a.org", &[b"h2"]).await;
        stream.write_all(begin).await.unwrap();
        let mut got = Vec::new();
        let read = tokio::time::timeout(2 * soon, stream.read_to_end(&mut got)).await;
        let _ = read.expect("a silent one is closed");
    }
}
