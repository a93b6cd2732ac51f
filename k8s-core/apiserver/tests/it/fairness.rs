//! Priority and fairness, seen by users of a real server.

use std::time::Duration;

use k8s_apiserver::{ApiServer, User, limits::Limits, listen};
use k8s_store::Store;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    limits::Named,
    support::{admin, done, server},
};

const BASE: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

/// A server on a loopback port, whose tokens are the names of users; `root` is an administrator.
struct Served {
    server: ApiServer,
    address: std::net::SocketAddr,
    _stop: DropGuard,
}

impl Served {
    async fn start(limits: Limits) -> Self {
        let server = ApiServer::builder(Store::memory())
            .authenticate_with(Named)
            .limits(limits)
            .build()
            .await
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(listen::serve_plain(server.clone(), listener, stop.clone()));
        Served { server, address, _stop: stop.drop_guard() }
    }

    async fn connect(&self) -> Connection {
        Connection::open(self.address).await
    }

    /// Writes an object as an administrator in the server's process.
    async fn write(&self, method: &str, path: &str, body: Value) -> Value {
        let own = self.server.service_as(User::admin());
        let request =
            http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        let answer = crate::support::ask(&own, request.body(body.to_string().into_bytes()).unwrap()).await;
        assert!(answer.status.is_success(), "{method} {path}: {}", answer.json());
        answer.json()
    }
}

/// A connection with one request at a time.
struct Connection(BufReader<TcpStream>);

/// Status, headers in lower case, and body.
struct Said(u16, Vec<(String, String)>, String);

impl Said {
    fn header(&self, name: &str) -> Option<&str> {
        self.1.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Connection {
    async fn open(address: std::net::SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Connection(BufReader::new(stream))
    }

    /// Sends a request; `length` is that of its body, which may be sent later.
    async fn send(&mut self, user: &str, method: &str, path: &str, length: usize, body: &str) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {user}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        self.0.get_mut().write_all(head.as_bytes()).await.unwrap();
    }

    /// Reads an answer with a known length or in chunks.
    async fn receive(&mut self) -> Said {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        let status = line.split(' ').nth(1).unwrap_or("0").parse().unwrap();
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.0.read_line(&mut line).await.unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let mut said = Said(status, headers, String::new());
        let mut body = Vec::new();
        if let Some(length) = said.header("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.0.read_exact(&mut body).await.unwrap();
        } else {
            loop {
                line.clear();
                self.0.read_line(&mut line).await.unwrap();
                let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
                let begin = body.len();
                body.resize(begin + length, 0);
                self.0.read_exact(&mut body[begin..]).await.unwrap();
                line.clear();
                self.0.read_line(&mut line).await.unwrap();
                if length == 0 {
                    break;
                }
            }
        }
        said.2 = String::from_utf8(body).unwrap();
        said
    }

    async fn get(&mut self, user: &str, path: &str) -> Said {
        self.send(user, "GET", path, 0, "").await;
        self.receive().await
    }
}

fn dangling(schema: &Value) -> (&str, &str) {
    let condition = &schema["status"]["conditions"][0];
    assert_eq!(condition["type"], "Dangling");
    (condition["status"].as_str().unwrap(), condition["reason"].as_str().unwrap())
}

#[tokio::test]
async fn the_defaults_are_there_and_mandatory_ones_cannot_be_changed() {
    let server = server().await;
    let list = async |plural| done(&server, "GET", &format!("{BASE}/{plural}"), &Value::Null).await;
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let levels = list("prioritylevelconfigurations").await;
    let wanted = [
        "catch-all",
        "exempt",
        "global-default",
        "leader-election",
        "node-high",
        "system",
        "workload-high",
        "workload-low",
    ];
    assert_eq!(names(&levels), wanted);
    let schemas = list("flowschemas").await;
    assert_eq!(names(&schemas).len(), 11);
    for schema in schemas["items"].as_array().unwrap() {
        assert_eq!(dangling(schema), ("False", "Found"), "{schema}");
        assert_eq!(schema["metadata"]["annotations"]["apf.kubernetes.io/autoupdate-spec"], "true");
    }
    for (path, pointer, detail) in [
        ("flowschemas/exempt", "/spec/rules", "spec of 'exempt' must equal the fixed value"),
        (
            "flowschemas/catch-all",
            "/spec/distinguisherMethod",
            "spec of 'catch-all' must equal the fixed value",
        ),
        (
            "prioritylevelconfigurations/catch-all",
            "/spec/limited/lendablePercent",
            "spec of 'catch-all' must equal",
        ),
        ("prioritylevelconfigurations/system", "/spec/limited/lendablePercent", ""),
        ("prioritylevelconfigurations/exempt", "/spec/exempt/lendablePercent", ""),
    ] {
        let path = format!("{BASE}/{path}");
        let mut object = done(&server, "GET", &path, &Value::Null).await;
        let value = object.pointer_mut(pointer).unwrap();
        *value = if value.is_number() { 12.into() } else { Value::Null };
        let answer = admin(&server, "PUT", &path, "application/json", object.to_string()).await;
        let expected = if detail.is_empty() { 200 } else { 422 };
        assert_eq!(answer.status.as_u16(), expected, "{path}: {}", answer.json());
        assert!(answer.json().to_string().contains(detail), "{}", answer.json());
    }
    let wrong = json!({"metadata": {"name": "own"}, "spec": {"type": "Exempt"}});
    let path = format!("{BASE}/prioritylevelconfigurations");
    let answer = admin(&server, "POST", &path, "application/json", wrong.to_string()).await;
    assert!(answer.json()["message"].as_str().unwrap().contains("if and only if"), "{}", answer.json());
}

#[tokio::test]
async fn defaults_come_back_and_former_ones_go() {
    let pace = k8s_apiserver::Pace { sweep_every: Duration::from_millis(20), ..Default::default() };
    let builder = ApiServer::builder(Store::memory()).authenticate_with(Named).pace(pace);
    let server = builder.build().await.unwrap();
    let levels = format!("{BASE}/prioritylevelconfigurations");
    let spec = json!({"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}});
    let former = json!({"metadata": {"name": "former", "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}},
        "spec": spec});
    let own = json!({"metadata": {"name": "own"}, "spec": spec});
    for object in [former, own] {
        done(&server, "POST", &levels, &object).await;
    }
    done(&server, "DELETE", &format!("{levels}/system"), &Value::Null).await;
    let mut chosen = done(&server, "GET", &format!("{levels}/node-high"), &Value::Null).await;
    chosen["metadata"]["annotations"]["apf.kubernetes.io/autoupdate-spec"] = "false".into();
    chosen["spec"]["limited"]["nominalConcurrencyShares"] = 7.into();
    done(&server, "PUT", &format!("{levels}/node-high"), &chosen).await;
    let begun = Instant::now();
    loop {
        let list = done(&server, "GET", &levels, &Value::Null).await;
        let items = list["items"].as_array().unwrap();
        let names: Vec<&str> = items.iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect();
        if names.contains(&"system") && !names.contains(&"former") {
            assert!(names.contains(&"own"));
            let kept = items.iter().find(|item| item["metadata"]["name"] == "node-high").unwrap();
            assert_eq!(kept["spec"]["limited"]["nominalConcurrencyShares"], 7);
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{names:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The schemas of the level that was gone find it again.
    let path = format!("{BASE}/flowschemas/system-nodes");
    while dangling(&done(&server, "GET", &path, &Value::Null).await).0 == "True" {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_schema_says_whether_its_level_exists() {
    let server = server().await;
    let rule = json!({"subjects": [{"kind": "User", "user": {"name": "eve"}}],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]});
    let schema = json!({"metadata": {"name": "own"}, "spec": {"priorityLevelConfiguration": {"name": "own-level"},
        "rules": [rule]}});
    done(&server, "POST", &format!("{BASE}/flowschemas"), &schema).await;
    let path = format!("{BASE}/flowschemas/own");
    let get = || done(&server, "GET", &path, &Value::Null);
    let stored = get().await;
    assert_eq!(dangling(&stored), ("True", "NotFound"));
    let message = "This FlowSchema references the PriorityLevelConfiguration object named \"own-level\" but there is no such object";
    assert_eq!(stored["status"]["conditions"][0]["message"], message);
    let level = json!({"metadata": {"name": "own-level"}, "spec": {"type": "Limited",
        "limited": {"limitResponse": {"type": "Reject"}}}});
    done(&server, "POST", &format!("{BASE}/prioritylevelconfigurations"), &level).await;
    assert_eq!(dangling(&get().await), ("False", "Found"));
    done(&server, "DELETE", &format!("{BASE}/prioritylevelconfigurations/own-level"), &Value::Null).await;
    assert_eq!(dangling(&get().await), ("True", "NotFound"));
}

#[tokio::test]
async fn answers_say_their_schema_and_level_by_uid() {
    let served = Served::start(Limits::default()).await;
    let uid = async |path: &str| {
        let object = served.write("GET", &format!("{BASE}/{path}"), Value::Null).await;
        object["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let mut connection = served.connect().await;
    for (user, path, schema, level, code) in [
        ("eve", "/api/v1/namespaces/default/configmaps/x", "global-default", "global-default", 403),
        ("root", "/api/v1/namespaces/default/configmaps/x", "exempt", "exempt", 404),
        ("root", "/apis", "exempt", "exempt", 200),
    ] {
        let said = connection.get(user, path).await;
        assert_eq!(said.0, code);
        let expected = uid(&format!("flowschemas/{schema}")).await;
        assert_eq!(said.header("x-kubernetes-pf-flowschema-uid"), Some(&*expected), "{user} {path}");
        let expected = uid(&format!("prioritylevelconfigurations/{level}")).await;
        assert_eq!(said.header("x-kubernetes-pf-prioritylevel-uid"), Some(&*expected));
    }
    // A schema of one's own, at once.
    let rule = json!({"subjects": [{"kind": "User", "user": {"name": "eve"}}],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]});
    let schema = json!({"metadata": {"name": "own"}, "spec": {"priorityLevelConfiguration": {"name": "system"},
        "matchingPrecedence": 50, "rules": [rule]}});
    let made = served.write("POST", &format!("{BASE}/flowschemas"), schema).await;
    let said = connection.get("eve", "/apis").await;
    assert_eq!(said.header("x-kubernetes-pf-flowschema-uid"), made["metadata"]["uid"].as_str());
    // Long-running requests but watches are not subject to it.
    let said = connection.get("root", "/api/v1/namespaces/default/pods/p/log").await;
    assert_eq!((said.0, said.header("x-kubernetes-pf-flowschema-uid")), (404, None));
    let ready = connection.get("root", "/readyz?verbose").await;
    assert!(ready.2.contains("[+]poststarthook/priority-and-fairness-config-producer ok\n"), "{}", ready.2);
}

#[tokio::test]
async fn metrics_and_endpoints_show_levels_and_only_administrators_see_them() {
    let served = Served::start(Limits::default()).await;
    let mut connection = served.connect().await;
    connection.get("eve", "/apis").await;
    let path = "/debug/api_priority_and_fairness/dump_priority_levels";
    assert_eq!(connection.get("eve", path).await.0, 403);
    let said = connection.get("root", path).await;
    assert_eq!((said.0, said.2.lines().count()), (200, 9), "{}", said.2);
    let requests = connection.get("root", "/debug/api_priority_and_fairness/dump_requests").await;
    assert!(requests.2.lines().any(|line| line.starts_with("exempt, ")), "itself: {}", requests.2);
    let text = connection.get("root", "/metrics").await.2;
    for line in [
        r#"apiserver_flowcontrol_dispatched_requests_total{priority_level="global-default",flow_schema="global-default"} 2"#,
        r#"apiserver_flowcontrol_nominal_limit_seats{priority_level="system"} 74"#,
        r#"apiserver_flowcontrol_lower_limit_seats{priority_level="workload-low"} 24"#,
        r#"apiserver_flowcontrol_current_executing_requests{priority_level="exempt",flow_schema="exempt"} 1"#,
        r#"apiserver_flowcontrol_request_wait_duration_seconds_count{priority_level="global-default",flow_schema="global-default",execute="true"} 2"#,
    ] {
        assert!(text.lines().any(|known| known == line), "{line}\n{text}");
    }
    let mut off = Limits::default();
    off.fairness = false;
    let served = Served::start(off).await;
    let mut connection = served.connect().await;
    assert_eq!(connection.get("root", path).await.0, 404);
    assert_eq!(connection.get("eve", "/apis").await.header("x-kubernetes-pf-flowschema-uid"), None);
}

#[tokio::test]
async fn slow_clients_do_not_keep_others_out() {
    // One seat for each level.
    let mut limits = Limits::default();
    (limits.requests, limits.mutating) = (1, 0);
    let served = Served::start(limits).await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let body = r#"{"spec":{"nonResourceAttributes":{"path":"/a","verb":"get"}}}"#;
    let mut slow = served.connect().await;
    slow.send("slow", "POST", path, body.len(), &body[..10]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    let mut other = served.connect().await;
    assert_eq!(other.get("other", "/apis").await.0, 200);
    let waited = begun.elapsed();
    assert!(waited > Duration::from_millis(500) && waited < Duration::from_secs(5), "{waited:?}");
    // It has as many unfinished requests as one user may have, and gets no others until one has ended.
    let refused = other.get("slow", "/apis").await;
    assert_eq!((refused.0, refused.header("retry-after")), (429, Some("1")));
    assert!(refused.2.contains("Too many requests, please try again later."));
    slow.0.get_mut().write_all(&body.as_bytes()[10..]).await.unwrap();
    assert_eq!(slow.receive().await.0, 201);
    // Its place is free a moment after the answer.
    while other.get("slow", "/apis").await.0 != 200 {
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test]
async fn a_watch_leaves_its_seat_and_a_wide_list_takes_more() {
    let mut limits = Limits::default();
    (limits.requests, limits.mutating) = (1, 0);
    let served = Served::start(limits).await;
    for i in 0..150 {
        let map = json!({"metadata": {"name": format!("m-{i}")}});
        served.write("POST", "/api/v1/namespaces/default/configmaps", map).await;
    }
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]);
    let role = json!({"metadata": {"name": "maps"}, "rules": rules});
    served.write("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    let binding = json!({"metadata": {"name": "maps"}, "subjects": [{"kind": "Group", "name": "system:authenticated"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "maps"}});
    served.write("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    let mut watches = Vec::new();
    for _ in 0..5 {
        let mut watch = served.connect().await;
        watch.send("eve", "GET", "/api/v1/configmaps?watch=1", 0, "").await;
        let mut line = String::new();
        tokio::time::timeout(Duration::from_secs(10), watch.0.read_line(&mut line)).await.unwrap().unwrap();
        assert!(line.contains("200"), "{line}");
        watches.push(watch);
    }
    let mut connection = served.connect().await;
    assert_eq!(connection.get("eve", "/api/v1/configmaps").await.0, 200);
    let text = connection.get("root", "/metrics").await.2;
    let seats = r#"apiserver_flowcontrol_work_estimated_seats_sum{priority_level="global-default",flow_schema="global-default"} 6"#;
    assert!(text.contains(seats), "a level of one seat has no wide requests: {text}");
    let watched = r#"request_execution_seconds_count{priority_level="global-default",flow_schema="global-default",type="watch"} 5"#;
    assert!(text.contains(watched), "{text}");
}

/// Latencies of a quiet user's requests in microseconds: median and 99th percentile.
#[derive(Clone, Copy, Debug)]
struct Latency {
    median: u128,
    p99: u128,
}

/// Measures requests of `quiet`, one after the other.
async fn measure(address: std::net::SocketAddr, requests: usize) -> Latency {
    let mut connection = Connection::open(address).await;
    let mut times = Vec::new();
    for _ in 0..requests {
        let begun = Instant::now();
        assert_eq!(connection.get("quiet", "/api/v1/namespaces/default/configmaps/x").await.0, 403);
        times.push(begun.elapsed().as_micros());
    }
    times.sort_unstable();
    Latency { median: times[requests / 2], p99: times[requests * 99 / 100] }
}

/// Runs a future on a thread of its own.
fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl Future<Output = T> + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    let run =
        move || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    builder.spawn(run).unwrap()
}

/// Asks with 100 connections until `stop`. Returns the number of answers.
async fn flood(address: std::net::SocketAddr, stop: CancellationToken) -> usize {
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut connection = Connection::open(address).await;
                let mut answers = 0;
                while !stop.is_cancelled() {
                    connection.get("noisy", "/api/v1/namespaces/default/configmaps/x").await;
                    answers += 1;
                }
                answers
            })
        })
        .collect();
    let mut answers = 0;
    for task in tasks {
        answers += task.await.unwrap();
    }
    answers
}

/// Returns the latency of a quiet user alone, and beside a flood; server, flood and user have a thread each.
fn flooded(fairness: bool, requests: usize) -> (Latency, Latency) {
    let mut limits = Limits::default();
    limits.fairness = fairness;
    let (tell, told) = std::sync::mpsc::channel();
    let end = CancellationToken::new();
    let ended = end.clone();
    let serving = on_thread("server", async move {
        let served = Served::start(limits).await;
        tell.send(served.address).unwrap();
        ended.cancelled().await;
    });
    let address = told.recv().unwrap();
    let quiet = |requests| on_thread("quiet", measure(address, requests)).join().unwrap();
    quiet(100);
    let alone = quiet(requests);
    let stop = CancellationToken::new();
    let flooding = on_thread("flood", flood(address, stop.clone()));
    std::thread::sleep(Duration::from_millis(300));
    let begun = std::time::Instant::now();
    let beside = quiet(requests);
    let seconds = begun.elapsed().as_secs_f64() + 0.3;
    stop.cancel();
    let rate = flooding.join().unwrap() as f64 / seconds;
    println!("fairness {fairness}: alone {alone:?}, beside a flood {beside:?}, flood {rate:.0}/s");
    end.cancel();
    serving.join().unwrap();
    (alone, beside)
}

#[test]
fn a_flood_of_one_user_hardly_delays_another() {
    let requests = std::env::var("FAIRNESS_REQUESTS").map_or(200, |number| number.parse().unwrap());
    let (_, without) = flooded(false, requests);
    let (alone, with) = flooded(true, requests);
    assert!(with.median * 2 < without.median, "alone {alone:?}, without {without:?}, with {with:?}");
    assert!(with.p99 < without.p99, "alone {alone:?}, without {without:?}, with {with:?}");
}
