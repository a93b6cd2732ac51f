//! Names that pods resolve.

use super::*;

/// Resolves a name and returns type and data of each record, or the response code.
fn resolve(ns: &Ns, server: &str, name: &str, kind: hickory_proto::rr::RecordType, tcp: bool) -> Vec<String> {
    use hickory_proto::{
        op::{Message, Query, ResponseCode},
        rr::Name,
    };
    let server: SocketAddr = server.parse().expect("address");
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
    let bytes = question.to_vec().expect("encodes");
    let answer = ns.run(move || {
        if tcp {
            let mut stream = TcpStream::connect_timeout(&server, WAIT).expect("connects");
            stream.set_read_timeout(Some(WAIT)).expect("sets");
            let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
            stream.write_all(&[&length[..], &bytes].concat()).expect("sends");
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("answers");
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).expect("answers");
            return answer;
        }
        let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
        socket.set_read_timeout(Some(WAIT)).expect("sets");
        socket.connect(server).expect("connects");
        socket.send(&bytes).expect("sends");
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer).expect("answers");
        buffer.truncate(length);
        buffer
    });
    let answer = Message::from_vec(&answer).expect("decodes");
    assert_eq!(answer.metadata.id, question.metadata.id);
    if answer.metadata.truncation {
        return vec!["cut".into()];
    }
    if answer.metadata.response_code != ResponseCode::NoError {
        return vec![answer.metadata.response_code.to_string()];
    }
    let mut out: Vec<_> = answer.answers.iter().map(|r| format!("{} {}", r.record_type(), r.data)).collect();
    out.sort();
    out
}

#[test]
fn a_node_answers_names_from_pods_and_is_removed() {
    use hickory_proto::rr::RecordType::{A, AAAA, CNAME, PTR, SRV};

    use crate::node::{self, NodeNet, NodeNetConfig};
    let (host, pod) = (Ns::new(), Ns::new());
    let config = NodeNetConfig {
        name: "dns".into(),
        node_name: "node".into(),
        resolv_conf: None,
        state_dir: std::env::temp_dir().join(format!("k8s-net-dns-{}", std::process::id())),
        ..NodeNetConfig::default()
    };
    let (services, slices) = (Cache::<Service>::new(), Cache::<EndpointSlice>::new());
    let (stop, stopped) = mpsc::channel::<()>();
    let nodes = Cache::<Node>::new();
    nodes.advance(1);
    let (used, s, e, n) = (config.clone(), services.clone(), slices.clone(), nodes);
    let (network, ended) = host.run(move || {
        let lo = nix::net::if_::if_nametoindex("lo").expect("lo");
        Rtnl::open().and_then(|mut r| r.set_up(lo)).expect("up");
        let ((tell, told), (end, ended)) = (mpsc::channel(), mpsc::channel());
        std::thread::spawn(move || {
            runtime().block_on(async {
                let net = NodeNet::start_with(used, s, e, n).await.expect("starts");
                tell.send(net.pod_network()).expect("waiting");
                let _ = tokio::task::spawn_blocking(move || stopped.recv()).await;
                net.shutdown().await;
            });
            let _ = end.send(());
        });
        (told.recv_timeout(Duration::from_secs(20)).expect("starts"), ended)
    });
    let attached = attachment("p", &pod);
    host.run(move || runtime().block_on(network.attach(&attached)).expect("attaches"));
    let ask = |name: &str, kind| resolve(&pod, "10.43.0.10:53", name, kind, false);
    let web = "web.demo.svc.cluster.local.";
    assert_eq!(ask(web, A), ["Server Failure"], "no answer before the caches are complete");

    let put = |name: &str, spec: serde_json::Value| {
        let service = json!({"metadata": {"name": name, "namespace": "demo"}, "spec": spec});
        services.upsert(serde_json::from_value(service).expect("service"));
    };
    put("web", json!({"clusterIP": "10.43.0.50", "ports": [{"name": "http", "port": 80}]}));
    put("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}));
    put("alias", json!({"type": "ExternalName", "externalName": "web.demo.svc.cluster.local"}));
    put("away", json!({"type": "ExternalName", "externalName": "example.com"}));
    let endpoints: Vec<_> = (0..100)
        .map(|i| json!({"addresses": [format!("10.42.1.{i}")], "hostname": format!("db-{i}")}))
        .collect();
    let slice = json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "sql", "port": 5432}],
        "metadata": {"name": "db-1", "namespace": "demo", "labels": {"kubernetes.io/service-name": "db"}}});
    slices.upsert(serde_json::from_value(slice).expect("slice"));
    services.advance(1);
    slices.advance(1);
    let end = Instant::now() + WAIT;
    while ask(web, A) != ["A 10.43.0.50"] {
        assert!(Instant::now() < end, "{:?}", ask(web, A));
    }
    assert_eq!(ask("WEB.Demo.svc.cluster.local.", A), ["A 10.43.0.50"]);
    assert_eq!(ask(web, AAAA), Vec::<String>::new(), "no data");
    assert_eq!(ask("_http._tcp.web.demo.svc.cluster.local.", SRV), [format!("SRV 0 100 80 {web}")]);
    assert_eq!(ask("50.0.43.10.in-addr.arpa.", PTR), [format!("PTR {web}")]);
    assert_eq!(ask("web.demo.demo.svc.cluster.local.", A), ["Non-Existent Domain"]);
    assert_eq!(ask("demo.svc.cluster.local.", A), Vec::<String>::new());
    assert_eq!(ask("db-3.db.demo.svc.cluster.local.", A), ["A 10.42.1.3"]);
    assert_eq!(ask("10-42-0-5.demo.pod.cluster.local.", A), ["A 10.42.0.5"]);
    assert_eq!(ask("alias.demo.svc.cluster.local.", A), ["A 10.43.0.50".to_owned(), format!("CNAME {web}")]);
    assert_eq!(ask("alias.demo.svc.cluster.local.", CNAME), [format!("CNAME {web}")]);
    assert_eq!(ask("away.demo.svc.cluster.local.", A), ["CNAME example.com."]);
    assert_eq!(ask("example.com.", A), ["Server Failure"], "no server to ask");
    assert_eq!(ask("db.demo.svc.cluster.local.", A), ["cut"]);
    assert_eq!(resolve(&pod, "10.43.0.10:53", "db.demo.svc.cluster.local.", A, true).len(), 100);
    assert_eq!(resolve(&host, "10.43.0.10:53", web, A, false), ["A 10.43.0.50"]);

    let questions = if std::env::var_os("K8S_NET_BENCH").is_some() { 20_000 } else { 200 };
    let rate = pod.run(move || dns_rate(questions));
    println!("DNS: {rate:.0} questions/s (one client, one server thread)");

    drop(stop);
    ended.recv_timeout(WAIT).expect("stops");
    host.run(move || {
        node::cleanup(&config).expect("removes");
        node::cleanup(&config).expect("again");
        let _ = std::fs::remove_dir_all(&config.state_dir);
        let links = Rtnl::open().and_then(|mut r| r.links()).expect("lists");
        assert_eq!(links.len(), 1, "{links:?}");
        let routes = Rtnl::open().and_then(|mut r| r.routes()).expect("lists");
        assert!(routes.is_empty(), "{routes:?}");
    });
}

/// Returns queries per second with 32 in flight.
fn dns_rate(questions: u32) -> f64 {
    use hickory_proto::{
        op::{Message, Query},
        rr::{Name, RecordType},
    };
    let mut question = Message::query();
    question.add_query(Query::query(
        Name::from_ascii("web.demo.svc.cluster.local.").expect("name"),
        RecordType::A,
    ));
    let bytes = question.to_vec().expect("encodes");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
    socket.connect("10.43.0.10:53").expect("connects");
    socket.set_read_timeout(Some(WAIT)).expect("sets");
    let mut buffer = [0; 512];
    let began = Instant::now();
    for _ in 0..32 {
        socket.send(&bytes).expect("sends");
    }
    for _ in 0..questions {
        socket.recv(&mut buffer).expect("answers");
        socket.send(&bytes).expect("sends");
    }
    f64::from(questions) / began.elapsed().as_secs_f64()
}
