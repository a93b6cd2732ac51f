//! A scheduler with an extender over HTTP, beside a whole control plane, in real time.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use k8s_apiserver::User;
use k8s_controllers::Handle;
use k8s_core::{
    api::api::core::v1::{Binding, Event, Node, ObjectReference, Pod, PodCondition},
    client::{Client, ListParams},
    meta::ObjectExt,
};
use k8s_scheduler::{Builder, Configuration, Scheduler};
use k8s_testing::TestCluster;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The extender's behaviour and its calls.
#[derive(Default)]
struct Rules {
    /// Nodes that it passes.
    passes: BTreeSet<String>,
    /// True if it answers 500 to the filter.
    fails: bool,
    /// Uids of the victims that it chooses; empty: those that it was sent.
    victims: Vec<String>,
    seen: Vec<(String, Value)>,
}

/// An extender over HTTP that binds pods itself.
#[derive(Clone)]
struct Webhook {
    url: String,
    rules: Arc<Mutex<Rules>>,
}

async fn request(stream: &mut TcpStream) -> Option<(String, Value)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let length =
        head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok())?;
    let mut body = vec![0u8; length];
    stream.read_exact(&mut body).await.ok()?;
    let verb = head.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    Some((verb, serde_json::from_slice(&body).ok()?))
}

impl Webhook {
    async fn start(client: Client, passes: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let passes = passes.iter().map(|name| (*name).to_owned()).collect();
        let this = Webhook { url, rules: Arc::new(Mutex::new(Rules { passes, ..Rules::default() })) };
        let serving = this.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (this, client) = (serving.clone(), client.clone());
                tokio::spawn(async move {
                    while let Some((verb, body)) = request(&mut stream).await {
                        let (code, answer) = this.answer(&client, &verb, &body).await;
                        let answer = answer.to_string();
                        let text =
                            format!("HTTP/1.1 {code} X\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
                        if stream.write_all(text.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        this
    }

    async fn answer(&self, client: &Client, verb: &str, body: &Value) -> (u16, Value) {
        let (passes, fails, victims) = {
            let mut rules = self.rules.lock().expect("no test thread panics with it");
            rules.seen.push((verb.to_owned(), body.clone()));
            (rules.passes.clone(), rules.fails, rules.victims.clone())
        };
        match verb {
            "filter" if fails => (500, Value::Null),
            "filter" => {
                let names = body["Nodes"]["items"].as_array().into_iter().flatten();
                let names = names.filter_map(|node| node["metadata"]["name"].as_str());
                let (passed, failed): (Vec<&str>, Vec<&str>) = names.partition(|name| passes.contains(*name));
                let items: Vec<Value> =
                    passed.iter().map(|name| json!({"metadata": {"name": name}})).collect();
                let failed: serde_json::Map<String, Value> =
                    failed.iter().map(|name| ((*name).to_owned(), json!("no licence"))).collect();
                (200, json!({"Nodes": {"items": items}, "FailedNodes": failed}))
            }
            "prioritize" => (200, json!([{"Host": "node-2", "Score": 10}])),
            "preempt" => {
                let nodes = body["NodeNameToVictims"].as_object().into_iter().flatten();
                let nodes = nodes.map(|(node, sent)| {
                    let sent = sent["Pods"].as_array().into_iter().flatten();
                    let sent = sent.filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned));
                    let uids: Vec<String> = if victims.is_empty() { sent.collect() } else { victims.clone() };
                    let pods: Vec<Value> = uids.iter().map(|uid| json!({"UID": uid})).collect();
                    (node.clone(), json!({"Pods": pods, "NumPDBViolations": 0}))
                });
                (200, json!({"NodeNameToMetaVictims": nodes.collect::<serde_json::Map<String, Value>>()}))
            }
            "bind" => {
                let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
                let mut binding = Binding {
                    target: ObjectReference {
                        kind: Some("Node".into()),
                        name: Some(text("Node")),
                        ..ObjectReference::default()
                    },
                    ..Binding::default()
                };
                binding.metadata.name = Some(text("PodName"));
                binding.metadata.uid = Some(text("PodUID"));
                let pods = client.namespaced::<Pod>(&text("PodNamespace"));
                let bound = pods.create_subresource::<_, Value>(&text("PodName"), "binding", &binding).await;
                (200, json!({"Error": bound.err().map(|e| e.to_string()).unwrap_or_default()}))
            }
            other => panic!("{other}"),
        }
    }

    fn set(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.rules.lock().expect("no test thread panics with it"));
    }

    fn verbs(&self) -> Vec<String> {
        let rules = self.rules.lock().expect("no test thread panics with it");
        rules.seen.iter().map(|(verb, _)| verb.clone()).collect()
    }

    /// Returns a scheduler that asks the extender.
    fn scheduler(&self) -> Builder {
        let file: Configuration = serde_json::from_value(json!({"extenders": [{
            "urlPrefix": self.url, "filterVerb": "filter", "prioritizeVerb": "prioritize", "weight": 100,
            "preemptVerb": "preempt", "bindVerb": "bind", "httpTimeout": "2s",
        }]}))
        .expect("the fields exist");
        Scheduler::builder().configured(file).expect("the file is usable")
    }
}

/// A cluster of three nodes, its extender, and the scheduler that asks it.
async fn start(passes: &[&str]) -> Result<(TestCluster, Webhook, Handle), Box<dyn std::error::Error>> {
    let cluster = TestCluster::builder().nodes(3).without_scheduler().start().await?;
    let webhook = Webhook::start(cluster.client(), passes).await;
    let client = cluster.client_as(User::new("system:kube-scheduler", &[])).named("kube-scheduler");
    let running = webhook.scheduler().start(client);
    Ok((cluster, webhook, running))
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [
        {"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}},
    ]}})
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn scheduled(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().find(|condition| condition.type_ == "PodScheduled")
}

/// Returns the condition's reason and message once the pod waits for a node.
async fn refused(
    cluster: &TestCluster,
    name: &str,
    reason: &str,
) -> Result<String, Box<dyn std::error::Error>> {
    let says = |pod: &Pod| scheduled(pod).is_some_and(|c| c.reason.as_deref() == Some(reason));
    let pod = cluster.until::<Pod>("default", name, says).await?;
    Ok(scheduled(&pod).and_then(|condition| condition.message.clone()).unwrap_or_default())
}

#[tokio::test]
async fn an_extender_filters_scores_and_binds() -> Outcome {
    let (cluster, webhook, running) = start(&["node-1", "node-2"]).await?;
    cluster.create::<Pod>("default", &pod("a", "100m")).await?;
    let placed = cluster.until::<Pod>("default", "a", |pod| node_of(pod).is_some()).await?;
    assert_eq!(node_of(&placed), Some("node-2"), "it has the higher score");
    assert_eq!(webhook.verbs(), ["filter", "prioritize", "bind"]);
    {
        let rules = webhook.rules.lock().expect("no test thread panics with it");
        let (_, filter) = &rules.seen[0];
        assert_eq!(filter["Pod"]["metadata"]["name"], "a");
        assert_eq!(filter["Nodes"]["items"].as_array().map(Vec::len), Some(3));
        assert_eq!(filter["NodeNames"], Value::Null);
        let (_, scored) = &rules.seen[1];
        assert_eq!(scored["Nodes"]["items"].as_array().map(Vec::len), Some(2));
    }
    let why = webhook.scheduler().explain_pod(&cluster.client(), "default", "a").await?;
    assert_eq!(why.node.as_deref(), Some("node-2"));
    let score = why.nodes[0].scores.iter().find(|score| score.plugin == webhook.url).expect("it scored");
    assert_eq!((score.raw, score.normalized, score.weighted), (10, 100, 10_000));
    let refused = why.nodes.iter().find(|verdict| verdict.node == "node-0").expect("it is listed");
    let refusal = refused.refusal.as_ref().expect("it is refused");
    assert_eq!(
        (refusal.plugin.as_str(), &refusal.reasons[..]),
        (&*webhook.url, &["no licence".to_owned()][..])
    );
    assert_eq!(webhook.verbs().iter().filter(|verb| *verb == "bind").count(), 1, "explanations bind nothing");
    running.shutdown().await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_that_an_extender_refuses_is_tried_again_after_any_change() -> Outcome {
    let (cluster, webhook, running) = start(&[]).await?;
    cluster.create::<Pod>("default", &pod("a", "100m")).await?;
    let message = refused(&cluster, "a", "Unschedulable").await?;
    let want = "0/3 nodes are available: 3 no licence. preemption: 0/3 nodes are available: 3 No preemption \
                victims found for incoming pod.";
    assert_eq!(message, want);
    webhook.set(|rules| rules.passes = BTreeSet::from(["node-0".to_owned()]));
    // A change that no plugin waits for.
    let labels = json!({"metadata": {"labels": {"rack": "7"}}});
    let nodes = cluster.client().all::<Node>();
    nodes.patch("node-2", &k8s_core::client::Patch::Merge(labels)).await?;
    let placed = cluster.until::<Pod>("default", "a", |pod| node_of(pod).is_some()).await?;
    assert_eq!(node_of(&placed), Some("node-0"));
    running.shutdown().await?;
    Ok(())
}

#[tokio::test]
async fn an_extender_that_fails_is_a_scheduler_error_until_it_answers() -> Outcome {
    let (cluster, webhook, running) = start(&["node-1"]).await?;
    webhook.set(|rules| rules.fails = true);
    cluster.create::<Pod>("default", &pod("a", "100m")).await?;
    let message = refused(&cluster, "a", "SchedulerError").await?;
    let want = format!("failed filter with extender at URL {}/filter, code 500", webhook.url);
    assert_eq!(message, want);
    let why = webhook.scheduler().explain_pod(&cluster.client(), "default", "a").await?;
    assert_eq!((why.node, why.message), (None, want.clone()));
    assert_eq!(why.refusal.map(|refusal| refusal.plugin).as_ref(), Some(&webhook.url));
    webhook.set(|rules| rules.fails = false);
    let placed = cluster.until::<Pod>("default", "a", |pod| node_of(pod).is_some()).await?;
    assert_eq!(node_of(&placed), Some("node-1"), "after a back-off, without any change");
    let events = cluster.client().namespaced::<Event>("default").list(&ListParams::default()).await?;
    let failed = events.iter().filter(|event| event.reason.as_deref() == Some("FailedScheduling"));
    let messages: Vec<&str> = failed.filter_map(|event| event.message.as_deref()).collect();
    assert!(messages.contains(&want.as_str()), "{messages:?}");
    running.shutdown().await?;
    Ok(())
}

#[tokio::test]
async fn an_extender_chooses_victims_but_none_of_higher_priority() -> Outcome {
    let (cluster, webhook, running) = start(&["node-1"]).await?;
    cluster
        .apply("{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: high}, value: 1000}")
        .await?;
    let node = cluster.client().all::<Node>().get("node-1").await?;
    let cpu = node.status.and_then(|status| status.allocatable).and_then(|all| all.get("cpu").cloned());
    let all: i64 = cpu.expect("nodes have CPUs").0.parse()?;
    let half = format!("{}m", all * 500);
    let uid = async |name: &str, class: &str| -> Result<String, Box<dyn std::error::Error>> {
        let mut manifest = pod(name, &half);
        if !class.is_empty() {
            manifest["spec"]["priorityClassName"] = class.into();
        }
        cluster.create::<Pod>("default", &manifest).await?;
        let placed = cluster.until::<Pod>("default", name, |pod| node_of(pod).is_some()).await?;
        Ok(placed.uid().to_owned())
    };
    let (low, important) = (uid("low", "").await?, uid("important", "high").await?);
    // The extender wants the important one deleted.
    webhook.set(|rules| rules.victims = vec![important]);
    let mut urgent = pod("urgent", &half);
    urgent["spec"]["priorityClassName"] = "high".into();
    cluster.create::<Pod>("default", &urgent).await?;
    let message = refused(&cluster, "urgent", "Unschedulable").await?;
    let want = format!(
        "preemption: extender {:?}: victim default/important on node \"node-1\" is not of lower priority",
        webhook.url
    );
    assert!(message.ends_with(&want), "{message}");
    let pods = cluster.client().namespaced::<Pod>("default");
    assert!(!pods.get("important").await?.is_deleting() && !pods.get("low").await?.is_deleting());
    // Its other choice is taken at the next attempt.
    webhook.set(|rules| rules.victims = vec![low]);
    let labels = json!({"metadata": {"labels": {"rack": "7"}}});
    cluster.client().all::<Node>().patch("node-1", &k8s_core::client::Patch::Merge(labels)).await?;
    let placed = cluster.until::<Pod>("default", "urgent", |pod| node_of(pod).is_some()).await?;
    assert_eq!(node_of(&placed), Some("node-1"));
    assert!(pods.get_opt("low").await?.is_none_or(|low| low.is_deleting()));
    running.shutdown().await?;
    Ok(())
}
