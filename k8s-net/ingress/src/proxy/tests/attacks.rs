//! Clients that mean harm.

use std::{sync::atomic::Ordering, time::Instant};

use super::*;

#[tokio::test]
async fn requests_with_two_lengths_reach_the_backend_as_one() {
    let one = Endpoint::start("one").await;
    let served = Served::of(vec![To("a.org", "/", vec![one.address], &[])]).await;
    let smuggled = "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a.org\r\n\r\n";
    for lengths in [
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked", smuggled.len()),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {}", smuggled.len()),
    ] {
        let before = one.seen().len();
        served
            .raw(&format!(
                "POST /x HTTP/1.1\r\nHost: a.org\r\n{lengths}\r\nConnection: close\r\n\r\n{smuggled}"
            ))
            .await;
        for seen in &one.seen()[before..] {
            assert!(seen.contains("POST /x ") && seen.contains("body of 0"), "{seen}");
            assert!(!(seen.contains("content-length") && seen.contains("transfer-encoding")), "{seen}");
        }
        assert!(one.seen().len() <= before + 1);
    }
    for bad in [
        "Content-Length: 1\r\nContent-Length: 2",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: +1",
        "Content-Length: 1, 1x",
        "X: a\r\n b: folded",
        "Bad Name: x",
        "X : y",
    ] {
        let before = one.seen().len();
        let answer = served
            .raw(&format!("POST / HTTP/1.1\r\nHost: a.org\r\n{bad}\r\nConnection: close\r\n\r\n1"))
            .await;
        assert_eq!(status(&answer), 400, "{bad}: {answer}");
        assert_eq!(one.seen().len(), before, "{bad}");
    }
    for (request, want) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.org\r\nHost: b.org\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.org/..\r\n\r\n", 400),
        ("GET /../x HTTP/1.1\r\nHost: a.org\r\n\r\n", 400),
        ("GET /%00 HTTP/1.1\r\nHost: a.org\r\n\r\n", 400),
        ("CONNECT a.org:80 HTTP/1.1\r\nHost: a.org\r\n\r\n", 405),
        ("TRACE / HTTP/1.1\r\nHost: a.org\r\n\r\n", 405),
        ("OPTIONS * HTTP/1.1\r\nHost: a.org\r\n\r\n", 400),
    ] {
        let request = request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&served.raw(&request).await), want, "{request}");
    }
    // The host of the address goes before the header.
    let answer =
        served.raw("GET http://a.org/y HTTP/1.1\r\nHost: other.org\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains("host: a.org\n"), "{answer}");
}

#[tokio::test]
async fn paths_are_matched_in_their_normal_form() {
    let (open, admin) = (Endpoint::start("open").await, Endpoint::start("admin").await);
    let closed: &[(&str, &str)] = &[("whitelist-source-range", "10.0.0.0/8")];
    let served = Served::of(vec![
        To("a.org", "/", vec![open.address], &[]),
        To("a.org", "/admin", vec![admin.address], closed),
    ])
    .await;
    for path in
        ["/admin", "/x/../admin/", "//admin", "/%61dmin", "/x/%2e%2e/admin", "/./admin", "/x%2f..%2fadmin"]
    {
        assert_eq!(status(&served.get("a.org", path, "").await), 403, "{path}");
    }
    assert_eq!(status(&served.get("a.org", "/administrator", "").await), 200);
    assert_eq!(admin.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn floods_of_headers_are_cut() {
    let one = Endpoint::start("one").await;
    let served = Served::of(vec![To("a.org", "/", vec![one.address], &[])]).await;
    let answer = served.get("a.org", "/", &"X-Flood: 1234567890\r\n".repeat(5000)).await;
    assert_eq!(status(&answer), 431);
    let many = served.get("a.org", "/", &"A: 1\r\n".repeat(200)).await;
    assert_eq!(status(&many), 431);
    assert!(one.seen().is_empty());
}

#[tokio::test]
async fn clients_that_are_slow_or_silent_are_closed() {
    let one = Endpoint::start("one").await;
    let config = ProxyConfig { idle: Duration::from_millis(300), ..ProxyConfig::default() };
    let annotations: &[(&str, &str)] = &[("proxy-send-timeout", "1")];
    let served = Served::start(config, table(vec![To("a.org", "/", vec![one.address], annotations)])).await;
    let begun = Instant::now();
    let mut dripping = served.connect().await;
    let mut closed = false;
    for byte in "GET / HTTP/1.1\r\nHost: a.org\r\nX-Slow: 1\r\n".bytes().cycle().take(60) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        closed = dripping.write_all(&[byte]).await.is_err();
        if closed {
            break;
        }
    }
    let rest = all(&mut dripping).await;
    assert!(closed || rest.is_empty() || status(&rest) == 408, "{rest}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let mut half = served.connect().await;
    half.write_all(b"POST / HTTP/1.1\r\nHost: a.org\r\nContent-Length: 10\r\n\r\n12").await.unwrap();
    let answer = all(&mut half).await;
    assert_eq!(status(&answer), 408, "{answer}");
}

#[tokio::test]
async fn connections_are_bounded() {
    let one = Endpoint::start("one").await;
    let config = ProxyConfig { connections: 4, idle: Duration::from_millis(400), ..ProxyConfig::default() };
    let served = Served::start(config, table(vec![To("a.org", "/", vec![one.address], &[])])).await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(served.connect().await);
    }
    // Served as soon as the idle ones are closed.
    assert_eq!(status(&served.get("a.org", "/", "").await), 200);
}

#[tokio::test]
async fn connections_that_rest_are_small() {
    let served = Served::of(vec![]).await;
    let (shared, stop) = (served.proxy.0.clone(), CancellationToken::new());
    let stream = served.connect().await;
    let peer = super::super::Peer { address: [127, 0, 0, 1].into(), tls: None, activity: None };
    let resting = super::super::rest::serve(&shared, stream, peer, &stop);
    assert!(size_of_val(&resting) < 1024, "{} bytes", size_of_val(&resting));
    let address = [127, 0, 0, 1].into();
    let whole = super::super::connection(&shared, served.connect().await, address, false, &stop);
    assert!(size_of_val(&whole) < 1024, "{} bytes", size_of_val(&whole));
}

#[tokio::test]
async fn a_request_that_comes_back_is_not_sent_again() {
    let one = Endpoint::start("one").await;
    let served = Served::start(ProxyConfig::default(), Table::default()).await;
    let mut table =
        table(vec![To("a.org", "/", vec![served.http], &[]), To("b.org", "/", vec![one.address], &[])]);
    let mut asks = settings(&[("auth-url", "http://auth.ns.svc/")]);
    let itself = Backend::new(ObjectKey::new("ns", "auth"), "80".into(), vec![served.http], 0);
    asks.auth.as_mut().unwrap().target = crate::access::AuthTarget::Service(Arc::new(itself));
    let route = Arc::new(Route {
        ingress: ObjectKey::new("ns", "asks"),
        settings: Arc::new(asks),
        pattern: None,
        backend: Arc::new(Backend::new(ObjectKey::new("ns", "web"), "80".into(), vec![one.address], 0)),
        canaries: Vec::new(),
    });
    for host in ["asks.org", "auth.ns.svc"] {
        table.hosts.entry(host.into()).or_default().default = Some(route.clone());
    }
    served.proxy.replace(table);
    assert_eq!(status(&served.get("a.org", "/", "").await), 508);
    assert_eq!(status(&served.get("asks.org", "/", "").await), 500, "the question is not answered");
    assert!(one.seen().is_empty());
    let forged = "X-Ingress-Sent-By: forged\r\nX-Ingress-Sent-By: again\r\n";
    let answer = served.get("b.org", "/", forged).await;
    assert_eq!(status(&answer), 200);
    assert!(!answer.contains("forged") && !answer.contains("again"), "{answer}");
    assert_eq!(answer.matches("x-ingress-sent-by: ").count(), 1, "{answer}");
}

#[tokio::test]
async fn names_with_underscores_do_not_pass() {
    let one = Endpoint::start("one").await;
    let served = Served::of(vec![To("a.org", "/", vec![one.address], &[])]).await;
    let answer =
        served.get("a.org", "/", "X_User: root\r\nX-User_Id: root\r\n_: root\r\nX-Fine: 1\r\n").await;
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("x-fine: 1\n") && !answer.contains("root"), "{answer}");
}

#[tokio::test]
async fn a_path_that_becomes_too_long_is_not_sent_as_it_was() {
    let one = Endpoint::start("one").await;
    let route = To("a.org", "/(.*)", vec![one.address], &[("rewrite-target", "/$1$1$1$1")]);
    let served = Served::of(vec![route]).await;
    assert_eq!(status(&served.get("a.org", &format!("/{}", "a".repeat(20_000)), "").await), 414);
    assert!(one.seen().is_empty());
    assert_eq!(status(&served.get("a.org", &format!("/{}", "a".repeat(1000)), "").await), 200);
}
