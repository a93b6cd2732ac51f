//! Requests and their answers.

use std::{
    sync::{Mutex, atomic::Ordering},
    time::Instant,
};

use super::*;

#[tokio::test]
async fn requests_reach_their_backend_over_kept_connections() {
    let (one, two) = (Endpoint::start("one").await, Endpoint::start("two").await);
    let served = Served::of(vec![
        To("a.org", "/", vec![one.address], &[]),
        To("b.org", "/shop", vec![two.address], &[]),
        To("none.org", "/", vec![], &[]),
    ])
    .await;
    let mut stream = served.connect().await;
    for i in 0..3 {
        stream
            .write_all(format!("GET /x{i}?y=1 HTTP/1.1\r\nHost: A.org:80\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        while !answer.contains("body of 0\n") {
            let mut part = vec![0; 4096];
            let length = stream.read(&mut part).await.unwrap();
            answer += std::str::from_utf8(&part[..length]).unwrap();
        }
        assert!(answer.contains(&format!("one GET /x{i}?y=1 HTTP/1.1")) && answer.contains("host: A.org:80"));
    }
    assert_eq!(one.connections.load(Ordering::SeqCst), 1, "the endpoint's connection is kept");
    for (host, path, want) in
        [("b.org", "/shop/x", 200), ("b.org", "/", 404), ("c.org", "/", 404), ("none.org", "/", 503)]
    {
        assert_eq!(status(&served.get(host, path, "").await), want, "{host}{path}");
    }
    let answer =
        served.get("b.org", "/shop", "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n").await;
    let told = body(&answer);
    assert!(
        told.contains("x-forwarded-for: 127.0.0.1\n") && told.contains("x-forwarded-proto: http\n"),
        "{told}"
    );
    assert!(told.contains("x-real-ip: 127.0.0.1\n") && told.contains("x-request-id: "), "{told}");
    let hop = served.get("a.org", "/hop", "").await;
    assert_eq!((header(&hop, "x-secret"), header(&hop, "x-endpoint")), (None, Some("one")));
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let one = Endpoint::start("one").await;
    let served = Served::of(vec![To("a.org", "/", vec![one.address], &[])]).await;
    let mut stream = served.connect().await;
    stream
        .write_all(b"POST /echo HTTP/1.1\r\nHost: a.org\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    let mut got = String::new();
    for word in ["first", "other"] {
        // The next part is sent only after this one came back.
        stream.write_all(format!("5\r\n{word}\r\n").as_bytes()).await.unwrap();
        while !got.contains(word) {
            let mut part = [0; 1024];
            let length = stream.read(&mut part).await.unwrap();
            assert_ne!(length, 0, "{got}");
            got += std::str::from_utf8(&part[..length]).unwrap();
        }
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let megabyte = "x".repeat(3 << 20);
    let head = format!(
        "POST /up HTTP/1.1\r\nHost: a.org\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        megabyte.len()
    );
    let answer = served.raw(&(head + &megabyte)).await;
    assert!(body(&answer).contains(&format!("body of {}\n", megabyte.len())), "{answer}");
    assert!(body(&answer).contains("content-length: 3145728\n"));
}

#[tokio::test]
async fn endpoints_that_do_not_answer_are_passed_over() {
    let one = Endpoint::start("one").await;
    let (dead, also_dead) = (Endpoint::nobody().await, Endpoint::nobody().await);
    let served = Served::of(vec![
        To("a.org", "/", vec![dead, one.address, also_dead], &[]),
        To("dead.org", "/", vec![dead, also_dead], &[]),
    ])
    .await;
    for _ in 0..6 {
        assert_eq!(status(&served.get("a.org", "/", "").await), 200);
        let post = "POST / HTTP/1.1\r\nHost: a.org\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
        assert!(served.raw(post).await.contains("body of 2\n"), "nothing was sent to those that are dead");
    }
    assert_eq!(status(&served.get("dead.org", "/", "").await), 502);
}

/// An endpoint that reads requests and closes.
async fn rude() -> (std::net::SocketAddr, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(0)));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut part = [0; 4096];
            let _ = stream.read(&mut part).await;
            *counted.lock().unwrap() += 1;
        }
    });
    (address, count)
}

#[tokio::test]
async fn only_requests_that_may_be_repeated_are() {
    let one = Endpoint::start("one").await;
    let (rude, count) = rude().await;
    let served = Served::of(vec![To("a.org", "/", vec![rude, one.address], &[])]).await;
    for _ in 0..4 {
        assert_eq!(status(&served.get("a.org", "/", "").await), 200);
    }
    let asked = *count.lock().unwrap();
    assert!(asked > 0);
    let post = "POST / HTTP/1.1\r\nHost: a.org\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
    let answers = [status(&served.raw(post).await), status(&served.raw(post).await)];
    assert!(answers.contains(&502) && answers.contains(&200), "{answers:?}");
    assert_eq!(one.seen().iter().filter(|seen| seen.contains("POST")).count(), 1);
    assert_eq!(*count.lock().unwrap(), asked + 1);
}

#[tokio::test]
async fn a_slow_backend_times_out_and_holds_nobody_else() {
    let (one, two) = (Endpoint::start("one").await, Endpoint::start("two").await);
    let served = Arc::new(
        Served::of(vec![
            To("slow.org", "/", vec![one.address], &[("proxy-read-timeout", "1")]),
            To("quick.org", "/", vec![two.address], &[]),
        ])
        .await,
    );
    let slow: Vec<_> = (0..50)
        .map(|_| {
            let served = served.clone();
            tokio::spawn(async move {
                served.raw("POST /slow HTTP/1.1\r\nHost: slow.org\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await
            })
        })
        .collect();
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(status(&served.get("quick.org", "/", "").await), 200);
    }
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    for answer in slow {
        assert_eq!(status(&answer.await.unwrap()), 504);
    }
}

#[tokio::test]
async fn websockets_pass_through() {
    let one = Endpoint::start("one").await;
    let served = Served::of(vec![To("a.org", "/", vec![one.address], &[])]).await;
    let mut stream = served.connect().await;
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nHost: a.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert_eq!((status(&head), header(&head, "upgrade")), (101, Some("websocket")));
    for word in [b"ping", b"abcd"] {
        stream.write_all(word).await.unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back.to_ascii_lowercase(), *word);
        assert_ne!(back, *word);
    }
}

#[tokio::test]
async fn no_request_is_dropped_by_a_change() {
    let (one, two) = (Endpoint::start("one").await, Endpoint::start("two").await);
    let served = Arc::new(Served::of(vec![To("a.org", "/", vec![one.address], &[])]).await);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let served = served.clone();
            tokio::spawn(async move {
                let mut bad = Vec::new();
                for _ in 0..50 {
                    let answer = served.get("a.org", "/", "").await;
                    if status(&answer) != 200 {
                        bad.push(answer);
                    }
                }
                bad
            })
        })
        .collect();
    for i in 0..200 {
        let endpoint = if i % 2 == 0 { one.address } else { two.address };
        served.proxy.replace(table(vec![To("a.org", "/", vec![endpoint], &[])]));
        tokio::task::yield_now().await;
    }
    for client in clients {
        assert_eq!(client.await.unwrap(), Vec::<String>::new());
    }
    assert!(!one.seen().is_empty() && !two.seen().is_empty());
    served.proxy.replace(Table::default());
    assert_eq!(status(&served.get("a.org", "/", "").await), 404, "the next request sees it");
}

#[tokio::test]
async fn requests_in_flight_end_after_the_stop() {
    let one = Endpoint::start("one").await;
    let mut served = Served::of(vec![To("a.org", "/", vec![one.address], &[])]).await;
    let mut stream = served.connect().await;
    stream.write_all(b"POST /up HTTP/1.1\r\nHost: a.org\r\nContent-Length: 4\r\n\r\nab").await.unwrap();
    while one.connections.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let idle = served.connect().await;
    served.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.write_all(b"cd").await.unwrap();
    let answer = all(&mut stream).await;
    assert!(status(&answer) == 200 && answer.contains("body of 4\n"), "{answer}");
    tokio::time::timeout(Duration::from_secs(5), &mut served.task).await.unwrap().unwrap();
    drop(idle);
}

#[tokio::test]
async fn rewrites_limits_ranges_and_cookies() {
    let (one, two) = (Endpoint::start("one").await, Endpoint::start("two").await);
    let served = Served::of(vec![
        To("rewrite.org", "/api(/|$)(.*)", vec![one.address], &[("rewrite-target", "/v2/$2")]),
        To("small.org", "/", vec![one.address], &[("proxy-body-size", "1k")]),
        To("closed.org", "/", vec![one.address], &[("whitelist-source-range", "10.0.0.0/8")]),
        To("rate.org", "/", vec![one.address], &[("limit-rps", "1"), ("limit-burst-multiplier", "2")]),
        To(
            "sticky.org",
            "/",
            vec![one.address, two.address],
            &[("affinity", "cookie"), ("session-cookie-name", "r")],
        ),
        To("secure.org", "/", vec![one.address], &[("force-ssl-redirect", "true")]),
    ])
    .await;
    let answer = served.get("rewrite.org", "/api/users/a%20b?x=1", "").await;
    assert!(body(&answer).contains("one GET /v2/users/a%20b?x=1 "), "{answer}");

    let post = |body: &str| {
        format!(
            "POST / HTTP/1.1\r\nHost: small.org\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    assert_eq!(status(&served.raw(&post(&"x".repeat(1024))).await), 200);
    assert_eq!(status(&served.raw(&post(&"x".repeat(1025))).await), 413);
    let part = format!("400\r\n{}\r\n", "x".repeat(1024));
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: small.org\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{part}{part}0\r\n\r\n"
    );
    assert_eq!(status(&served.raw(&chunked).await), 413);

    assert_eq!(status(&served.get("closed.org", "/", "X-Forwarded-For: 10.0.0.1\r\n").await), 403);

    let mut codes = Vec::new();
    for _ in 0..4 {
        codes.push(status(&served.get("rate.org", "/", "").await));
    }
    assert_eq!(codes, [200, 200, 503, 503]);

    let first = served.get("sticky.org", "/", "").await;
    let cookie = header(&first, "set-cookie").unwrap().split(';').next().unwrap().to_owned();
    for _ in 0..6 {
        let again = served.get("sticky.org", "/", &format!("Cookie: {cookie}\r\n")).await;
        assert_eq!(header(&again, "x-endpoint"), header(&first, "x-endpoint"));
        assert_eq!(header(&again, "set-cookie"), None);
    }
    let secure = served.get("secure.org", "/a?b=c", "").await;
    assert_eq!((status(&secure), header(&secure, "location")), (308, Some("https://secure.org/a?b=c")));
}

#[tokio::test]
async fn another_server_decides_who_gets_in() {
    let (one, auth) = (Endpoint::start("one").await, Endpoint::start("auth").await);
    // By a Service: addresses of this machine are refused by name.
    let with = |path: &str, annotations: &[(&str, &str)]| {
        let url = format!("http://auth.ns.svc{path}");
        let mut settings = settings(&[&[("auth-url", &*url)], annotations].concat());
        let backend = Backend::new(ObjectKey::new("ns", "auth"), "80".into(), vec![auth.address], 0);
        settings.auth.as_mut().unwrap().target = crate::access::AuthTarget::Service(Arc::new(backend));
        settings
    };
    let mut table =
        table(vec![To("by-name.org", "/", vec![one.address], &[("auth-url", "http://127.0.0.1/allow")])]);
    for (host, settings) in [
        ("allow.org", with("/allow", &[("auth-response-headers", "X-User, X-Role, Host")])),
        ("deny.org", with("/deny", &[])),
        ("login.org", with("/login", &[("auth-signin", "https://sso.org/start")])),
    ] {
        let route = Route {
            ingress: ObjectKey::new("ns", host),
            settings: Arc::new(settings),
            pattern: None,
            backend: Arc::new(Backend::new(ObjectKey::new("ns", "web"), "80".into(), vec![one.address], 0)),
            canaries: Vec::new(),
        };
        table.hosts.entry(host.into()).or_default().default = Some(Arc::new(route));
    }
    let served = Served::start(ProxyConfig::default(), table).await;
    let allowed = served
        .get("allow.org", "/a?b=c", "X-User: root\r\nX-Role: root\r\nX_Role: root\r\nCookie: s=1\r\n")
        .await;
    assert!(
        status(&allowed) == 200 && allowed.contains("x-user: me\n") && !allowed.contains("root"),
        "{allowed}"
    );
    assert!(allowed.contains("host: allow.org\n"));
    let asked = auth.seen().pop().unwrap();
    for want in [
        "x-original-url: http://allow.org/a?b=c\n",
        "x-original-method: GET\n",
        "host: auth.ns.svc\n",
        "cookie: s=1\n",
    ] {
        assert!(asked.contains(want), "{want} {asked}");
    }
    assert!(!asked.contains("x_role"), "{asked}");
    let denied = served.get("deny.org", "/", "").await;
    assert_eq!((status(&denied), header(&denied, "www-authenticate")), (401, Some("Basic")));
    let login = served.get("login.org", "/a", "").await;
    let target = "https://sso.org/start?rd=http%3A%2F%2Flogin%2Eorg%2Fa";
    assert_eq!((status(&login), header(&login, "location")), (302, Some(target)));
    assert_eq!(status(&served.get("by-name.org", "/", "").await), 500);
    assert_eq!(one.seen().len(), 1);
}

#[tokio::test]
async fn the_proxy_in_front_tells_the_client() {
    let one = Endpoint::start("one").await;
    let config = ProxyConfig { proxy_protocol: true, trust_forwarded: true, ..ProxyConfig::default() };
    let served = Served::start(config, table(vec![To("a.org", "/", vec![one.address], &[])])).await;
    let get = "GET / HTTP/1.1\r\nHost: a.org\r\nX-Forwarded-For: 198.51.100.1\r\nConnection: close\r\n\r\n";
    let answer = served.raw(&format!("PROXY TCP4 192.0.2.7 10.0.0.1 5000 80\r\n{get}")).await;
    assert!(answer.contains("x-forwarded-for: 198.51.100.1, 192.0.2.7\n"), "{answer}");
    assert_eq!(served.raw(get).await, "", "without it there is no answer");
}

#[tokio::test]
async fn requests_are_counted() {
    let one = Endpoint::start("one").await;
    let config = ProxyConfig::default();
    let registry = config.metrics.clone();
    let served = Served::start(config, table(vec![To("a.org", "/", vec![one.address], &[])])).await;
    served.get("a.org", "/", "").await;
    served.get("b.org", "/", "").await;
    let mut text = String::new();
    k8s_metrics::encode(&mut text, &registry);
    for want in [
        "ingress_requests_total{namespace=\"ns\",ingress=\"a.org\",service=\"web\",code=\"200\"} 1\n",
        "ingress_requests_total{namespace=\"\",ingress=\"\",service=\"\",code=\"404\"} 1\n",
        "ingress_request_duration_seconds_count{namespace=\"ns\",ingress=\"a.org\"} 1\n",
        "ingress_routing_tables_total 1\n",
    ] {
        assert!(text.contains(want), "{want} {text}");
    }
}

#[tokio::test]
async fn connections_that_rested_go_on() {
    let one = Endpoint::start("one").await;
    let served = Served::of(vec![To("a.org", "/", vec![one.address], &[])]).await;
    let (mut quiet, mut half, mut body) =
        (served.connect().await, served.connect().await, served.connect().await);
    let get = "GET /x HTTP/1.1\r\nHost: a.org\r\n\r\n";
    quiet.write_all(get.as_bytes()).await.unwrap();
    // A request in two parts, and one whose body does not go on after it was refused.
    half.write_all(&get.as_bytes()[..20]).await.unwrap();
    let refused = "POST / HTTP/1.1\r\nHost: none.org\r\nContent-Length: 500\r\n\r\n";
    body.write_all(refused.as_bytes()).await.unwrap();
    let resting = async || {
        while served.proxy.0.metrics.resting.get() != 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), resting())
        .await
        .expect("the quiet one rests, and no other");
    let rest = "GET /y HTTP/1.1\r\nHost: a.org\r\nConnection: close\r\n\r\n";
    quiet.write_all(rest.as_bytes()).await.unwrap();
    let answers = all(&mut quiet).await;
    assert!(answers.contains("one GET /x ") && answers.contains("one GET /y "), "{answers}");
    half.write_all(format!("{}{rest}", &get[20..]).as_bytes()).await.unwrap();
    let answers = all(&mut half).await;
    assert!(answers.contains("one GET /x ") && answers.contains("one GET /y "), "{answers}");
    // The bytes that come now are the body, and no request.
    let _ = body.write_all(rest.as_bytes()).await;
    let _ = body.shutdown().await;
    let answers = all(&mut body).await;
    assert!(status(&answers) == 404 && !answers.contains("one GET"), "{answers}");
    assert!(!one.seen().iter().any(|seen| seen.contains("none.org")));
}
