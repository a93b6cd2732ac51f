//! Watches: events and start revisions.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Watcher, admin, done, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn brief(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

fn map(name: &str, app: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": app}}})
}

#[tokio::test]
async fn an_object_that_leaves_the_selection_is_deleted_to_its_watcher() {
    let server = server().await;
    done(&server, "POST", MAPS, &map("a", "x")).await;
    let mut watch = Watcher::open(&server, &format!("{MAPS}?watch=1&labelSelector=app%3Dx")).await;
    assert_eq!(watch.next_brief().await, brief("ADDED", "a"));
    let left = done(&server, "PATCH", &format!("{MAPS}/a"), &map("a", "y")).await;
    let event = watch.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["metadata"]["labels"]["app"], "x", "the last state that was selected");
    assert_eq!(event["object"]["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);
    done(&server, "PATCH", &format!("{MAPS}/a"), &json!({"data": {"k": "v"}})).await;
    done(&server, "PATCH", &format!("{MAPS}/a"), &map("a", "x")).await;
    assert_eq!(
        watch.next_brief().await,
        brief("ADDED", "a"),
        "what happened while it was not selected is not told"
    );
    done(&server, "DELETE", &format!("{MAPS}/a"), &Value::Null).await;
    assert_eq!(watch.next_brief().await, brief("DELETED", "a"));
}

#[tokio::test]
async fn from_a_revision_on_and_with_initial_events() {
    let server = server().await;
    let first = done(&server, "POST", MAPS, &map("a", "x")).await;
    let from = first["metadata"]["resourceVersion"].as_str().unwrap();
    done(&server, "POST", MAPS, &map("b", "x")).await;
    let mut watch = Watcher::open(&server, &format!("{MAPS}?watch=1&resourceVersion={from}")).await;
    assert_eq!(watch.next_brief().await, brief("ADDED", "b"));
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = Watcher::open(&server, &format!("{MAPS}?{query}")).await;
    assert_eq!(watch.next_brief().await, brief("ADDED", "a"));
    assert_eq!(watch.next_brief().await, brief("ADDED", "b"));
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    done(&server, "DELETE", &format!("{MAPS}/a"), &Value::Null).await;
    assert_eq!(watch.next_brief().await, brief("DELETED", "a"));
    // Query, expected status.
    for (query, status) in [
        ("sendInitialEvents=true", 422),
        ("resourceVersionMatch=NotOlderThan", 422),
        ("sendInitialEvents=true&resourceVersionMatch=Exact", 422),
        ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=99999", 504),
        ("resourceVersion=-1", 422),
    ] {
        let answer = admin(&server, "GET", &format!("{MAPS}?watch=1&{query}"), "", "").await;
        assert_eq!(answer.status.as_u16(), status, "{query}: {}", answer.json());
    }
}

#[tokio::test(start_paused = true)]
async fn bookmarks_while_idle_and_before_the_end() {
    let server = server().await;
    let made = done(&server, "POST", MAPS, &map("a", "x")).await;
    let from = made["metadata"]["resourceVersion"].as_str().unwrap();
    // Writes of another type advance the revision without an event here.
    done(&server, "POST", "/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": "s"}})).await;
    let path = format!("{MAPS}?watch=1&resourceVersion={from}&allowWatchBookmarks=true&timeoutSeconds=90");
    let began = tokio::time::Instant::now();
    let mut watch = Watcher::open(&server, &path).await;
    let revision = |event: &Value| {
        event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
    };
    let bookmark = watch.next().await.unwrap();
    assert_eq!((&bookmark["type"], began.elapsed().as_secs()), (&json!("BOOKMARK"), 60));
    assert!(revision(&bookmark) > from.parse().unwrap());
    assert_eq!(watch.next().await.unwrap()["type"], "BOOKMARK");
    assert_eq!(began.elapsed().as_secs(), 88);
    assert!(watch.next().await.is_none());
    assert_eq!(began.elapsed().as_secs(), 90);
    // Clients that do not request bookmarks get none.
    let mut watch =
        Watcher::open(&server, &format!("{MAPS}?watch=1&resourceVersion={from}&timeoutSeconds=90")).await;
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_slow_watcher_is_cut_off_and_harms_nobody() {
    let server = server().await;
    let list = done(&server, "GET", MAPS, &Value::Null).await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let path = format!("{MAPS}?watch=1&resourceVersion={from}");
    let mut slow = Watcher::open(&server, &path).await;
    let mut quick = Watcher::open(&server, &path).await;
    // More than the limit of history, 8 MB.
    for i in 0..300 {
        let object = json!({"metadata": {"name": format!("m{i}")}, "data": {"d": "x".repeat(40_000)}});
        done(&server, "POST", MAPS, &object).await;
        assert_eq!(quick.next_brief().await, brief("ADDED", &format!("m{i}")));
    }
    let told = slow.next().await.unwrap();
    assert_eq!((&told["type"], &told["object"]["code"]), (&json!("ERROR"), &json!(410)), "{told}");
    assert!(slow.next().await.is_none());
    let late = admin(&server, "GET", &path, "", "").await.json();
    assert_eq!(late["object"]["reason"], "Expired", "{late}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A list equals the replay of a watch from its start, for the whole collection and for a selection.
    #[test]
    fn a_list_is_the_replay_of_a_watch(
        writes in proptest::collection::vec((0u8..8, 0u8..4), 1..60),
        start in 0usize..60,
        selected in proptest::option::of(0u8..3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = server().await;
            let selector = selected.map_or(String::new(), |s| format!("&labelSelector=app%3D{s}"));
            let mut replay: BTreeMap<String, Value> = BTreeMap::new();
            let mut from = String::new();
            for (at, (key, app)) in writes.iter().enumerate() {
                if at == start.min(writes.len() - 1) {
                    let list = done(&server, "GET", &format!("{MAPS}?{}", selector.trim_start_matches('&')), &Value::Null).await;
                    from = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
                    for item in list["items"].as_array().unwrap() {
                        replay.insert(item["metadata"]["name"].as_str().unwrap().into(), item["metadata"].clone());
                    }
                }
                let name = format!("m{key}");
                if *app == 3 {
                    admin(&server, "DELETE", &format!("{MAPS}/{name}"), "", "").await;
                } else {
                    let object = map(&name, &app.to_string()).to_string();
                    let made = admin(&server, "POST", MAPS, "application/json", object.clone()).await;
                    if made.status == 409 {
                        admin(&server, "PATCH", &format!("{MAPS}/{name}"), "application/merge-patch+json", object).await;
                    }
                }
            }
            // A last write that all watches see ends the replay.
            let app = selected.unwrap_or(0).to_string();
            done(&server, "POST", MAPS, &map("zz", &app)).await;
            let mut watch = Watcher::open(&server, &format!("{MAPS}?watch=1&resourceVersion={from}{selector}")).await;
            loop {
                let event = watch.next().await.unwrap();
                let metadata = event["object"]["metadata"].clone();
                let name = metadata["name"].as_str().unwrap().to_owned();
                let known = replay.contains_key(&name);
                match event["type"].as_str().unwrap() {
                    "ADDED" => assert!(!known && replay.insert(name.clone(), metadata).is_none()),
                    "MODIFIED" => assert!(known && replay.insert(name.clone(), metadata).is_some()),
                    _ => assert!(replay.remove(&name).is_some()),
                }
                if name == "zz" {
                    break;
                }
            }
            let list = done(&server, "GET", &format!("{MAPS}?{}", selector.trim_start_matches('&')), &Value::Null).await;
            let listed: BTreeMap<String, Value> = list["items"].as_array().unwrap().iter()
                .map(|i| (i["metadata"]["name"].as_str().unwrap().to_owned(), i["metadata"].clone())).collect();
            assert_eq!(replay, listed);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn ages_in_a_watch_of_tables_go_on() {
    use http_body_util::BodyExt;
    let clock = k8s_core::clock::Clock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
    let server = k8s_apiserver::ApiServer::builder(k8s_store::Store::memory())
        .clock(clock.clone())
        .build()
        .await
        .unwrap();
    let maps = "/api/v1/namespaces/default/configmaps";
    let master = k8s_apiserver::User::admin();
    let make = async |name: &str| {
        let answer =
            crate::support::ask_as(&server, &master, "POST", maps, &json!({"metadata": {"name": name}}))
                .await;
        assert_eq!(answer.status, 201);
    };
    make("a").await;
    clock.sleep(std::time::Duration::from_secs(60)).await;
    let request = http::Request::builder()
        .uri(format!("{maps}?watch=1&resourceVersion=0"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let request = request.body(k8s_core::client::body_from_bytes(Vec::new())).unwrap();
    let mut body = server.service_as(master.clone()).handle(request).await.into_body();
    let mut age = async || {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let event: Value = serde_json::from_slice(frame.split(|b| *b == b'\n').next().unwrap()).unwrap();
        let cells = event["object"]["rows"][0]["cells"].clone();
        (cells[0].as_str().unwrap().to_owned(), cells[2].as_str().unwrap().to_owned())
    };
    assert_eq!(age().await, ("a".into(), "60s".into()));
    clock.sleep(std::time::Duration::from_secs(240)).await;
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    crate::support::ask_as(&server, &master, "PATCH", &format!("{maps}/a"), &label).await;
    assert_eq!(age().await, ("a".into(), "5m".into()));
    make("b").await;
    assert_eq!(age().await, ("b".into(), "0s".into()));
}
