//! Lists: selection, revision, paging.

use std::collections::BTreeMap;

use k8s_apiserver::ApiServer;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{admin, done, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

async fn get(server: &ApiServer, path: &str) -> Value {
    done(server, "GET", path, &Value::Null).await
}

async fn make(server: &ApiServer, name: &str, app: &str) -> String {
    let object = json!({"metadata": {"name": name, "labels": {"app": app, "all": "yes"}}});
    let made = done(server, "POST", MAPS, &object).await;
    made["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn pages_show_one_moment() {
    let server = server().await;
    for i in 0..10 {
        make(&server, &format!("m{i}"), "a").await;
    }
    let first = get(&server, &format!("{MAPS}?limit=4")).await;
    assert_eq!(names(&first), ["m0", "m1", "m2", "m3"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 6);
    done(&server, "DELETE", &format!("{MAPS}/m5"), &Value::Null).await;
    make(&server, "m45", "a").await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = get(&server, &format!("{MAPS}?limit=4&continue={token}")).await;
    assert_eq!(names(&second), ["m4", "m5", "m6", "m7"]);
    assert_eq!(second["metadata"]["remainingItemCount"], 2);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = get(&server, &format!("{MAPS}?limit=4&continue={token}")).await;
    assert_eq!(names(&third), ["m8", "m9"]);
    assert!(third["metadata"].get("continue").is_none());
    // Every type has its own revision, but pages over all namespaces count as well.
    let all = get(&server, "/api/v1/configmaps?limit=4").await;
    assert_eq!(all["metadata"]["remainingItemCount"], 6);
    let selected = get(&server, &format!("{MAPS}?limit=4&labelSelector=app%3Da")).await;
    assert!(selected["metadata"].get("continue").is_some());
    assert!(selected["metadata"].get("remainingItemCount").is_none(), "unknown for a selection");
}

/// History is forgotten after a while; a list goes on with what is there then.
#[tokio::test]
async fn a_list_goes_on_after_its_moment_is_forgotten() {
    let store = k8s_store::Store::memory();
    let server = crate::support::server_on(store.clone()).await;
    for i in 0..6 {
        make(&server, &format!("m{i}"), "a").await;
    }
    let first = get(&server, &format!("{MAPS}?limit=2")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    store.compact(store.revision());
    get(&server, &format!("{MAPS}?limit=2&continue={token}")).await;
    done(&server, "DELETE", &format!("{MAPS}/m0"), &Value::Null).await;
    done(&server, "DELETE", &format!("{MAPS}/m3"), &Value::Null).await;
    store.compact(store.revision());
    let gone = admin(&server, "GET", &format!("{MAPS}?limit=2&continue={token}"), "", "").await;
    assert_eq!((gone.status.as_u16(), &gone.json()["reason"]), (410, &json!("Expired")));
    let token = gone.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let second = get(&server, &format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(
        (names(&second), &second["metadata"]["remainingItemCount"]),
        (vec!["m2".into(), "m4".into()], &json!(1))
    );
    assert_ne!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    assert_eq!(names(&get(&server, &format!("{MAPS}?limit=2&continue={token}")).await), ["m5"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_five_minutes_old_is_forgotten_at_the_next_turn() {
    let server = server().await;
    make(&server, "a", "a").await;
    make(&server, "b", "a").await;
    let token = get(&server, &format!("{MAPS}?limit=1")).await["metadata"]["continue"].clone();
    let page = format!("{MAPS}?limit=1&continue={}", token.as_str().unwrap());
    make(&server, "c", "a").await;
    let mut expired = Vec::new();
    // Half a minute before and after the turns.
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    for minute in 1..=11 {
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        if admin(&server, "GET", &page, "", "").await.status == 410 {
            expired.push(minute);
        }
    }
    assert_eq!(expired, [10, 11]);
}

#[tokio::test]
async fn versions_and_how_they_match() {
    let server = server().await;
    let old = make(&server, "a", "x").await;
    let new = make(&server, "b", "x").await;
    // Query, expected status, expected names.
    let table: &[(String, u16, &[&str])] = &[
        (String::new(), 200, &["a", "b"]),
        ("resourceVersion=0".into(), 200, &["a", "b"]),
        (format!("resourceVersion={old}"), 200, &["a", "b"]),
        (format!("resourceVersion={old}&limit=5"), 200, &["a"]),
        (format!("resourceVersion={old}&resourceVersionMatch=NotOlderThan"), 200, &["a", "b"]),
        (format!("resourceVersion={old}&resourceVersionMatch=NotOlderThan&limit=5"), 200, &["a", "b"]),
        (format!("resourceVersion={old}&resourceVersionMatch=Exact"), 200, &["a"]),
        (format!("resourceVersion={new}&resourceVersionMatch=Exact&limit=1"), 200, &["a"]),
        ("resourceVersion=0&resourceVersionMatch=NotOlderThan".into(), 200, &["a", "b"]),
        ("resourceVersion=0&resourceVersionMatch=Exact".into(), 422, &[]),
        ("resourceVersionMatch=Exact".into(), 422, &[]),
        (format!("resourceVersion={new}&resourceVersionMatch=Near"), 422, &[]),
        ("resourceVersion=x".into(), 422, &[]),
        ("resourceVersion=99999".into(), 504, &[]),
        ("sendInitialEvents=true".into(), 422, &[]),
        ("continue=rubbish".into(), 400, &[]),
    ];
    for (query, status, want) in table {
        let answer = admin(&server, "GET", &format!("{MAPS}?{query}"), "", "").await;
        assert_eq!(answer.status.as_u16(), *status, "{query}: {}", answer.json());
        if *status == 200 {
            assert_eq!(names(&answer.json()), *want, "{query}");
        }
    }
    let token = get(&server, &format!("{MAPS}?limit=1")).await["metadata"]["continue"].clone();
    let token = token.as_str().unwrap();
    let both = admin(&server, "GET", &format!("{MAPS}?continue={token}&resourceVersion={new}"), "", "").await;
    assert_eq!(both.status, 400);
}

#[tokio::test]
async fn forms_of_a_long_list() {
    let server = server().await;
    for i in 0..200 {
        let object = json!({"metadata": {"name": format!("m{i:03}")}, "data": {"d": "x".repeat(2000)}});
        done(&server, "POST", MAPS, &object).await;
    }
    let whole = get(&server, MAPS).await;
    assert_eq!((names(&whole).len(), &whole["kind"]), (200, &json!("ConfigMapList")));
    assert!(whole["items"][0].get("kind").is_none(), "elements of built-in lists do not name their kind");
    for (accept, kind, items) in [
        ("application/json;as=Table;v=v1;g=meta.k8s.io", "Table", "rows"),
        (
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
            "PartialObjectMetadataList",
            "items",
        ),
    ] {
        let request = http::Request::builder()
            .uri(MAPS)
            .header("authorization", "Bearer admin")
            .header("accept", accept)
            .body(Vec::new())
            .unwrap();
        let answer = crate::support::ask(&server, request).await.json();
        assert_eq!(answer["kind"], kind);
        assert_eq!(answer[items].as_array().unwrap().len(), 200);
        assert_eq!(answer["metadata"]["resourceVersion"], whole["metadata"]["resourceVersion"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Pages read during other writes equal the list at the first page's revision, with and without
    /// selectors.
    #[test]
    fn pages_under_concurrent_writes(
        before in proptest::collection::vec((0u8..60, 0u8..3), 1..60),
        between in proptest::collection::vec((0u8..60, 0u8..3, any::<bool>()), 0..60),
        limit in 1usize..9,
        selected in proptest::option::of(0u8..3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = server().await;
            let mut model = BTreeMap::new();
            for (key, app) in before {
                if model.insert(format!("m{key:02}"), app).is_none() {
                    make(&server, &format!("m{key:02}"), &app.to_string()).await;
                } else {
                    let label = json!({"metadata": {"labels": {"app": app.to_string()}}});
                    done(&server, "PATCH", &format!("{MAPS}/m{key:02}"), &label).await;
                }
            }
            let selector = selected.map_or(String::new(), |s| format!("&labelSelector=app%3D{s}"));
            let want: Vec<String> = model.iter()
                .filter(|(_, app)| selected.is_none_or(|s| s == **app))
                .map(|(name, _)| name.clone()).collect();
            let mut writes = between.into_iter();
            let mut seen = Vec::new();
            let mut token = String::new();
            loop {
                let page = get(&server, &format!("{MAPS}?limit={limit}{selector}&continue={token}")).await;
                seen.extend(names(&page));
                if let Some(remaining) = page["metadata"].get("remainingItemCount") {
                    assert_eq!(remaining.as_u64().unwrap() as usize, want.len() - seen.len());
                }
                for (key, app, delete) in writes.by_ref().take(5) {
                    let name = format!("m{key:02}");
                    if delete {
                        admin(&server, "DELETE", &format!("{MAPS}/{name}"), "", "").await;
                    } else {
                        let object = json!({"metadata": {"name": name, "labels": {"app": app.to_string()}}});
                        admin(&server, "POST", MAPS, "application/json", object.to_string()).await;
                        let label = json!({"metadata": {"labels": {"app": app.to_string()}}}).to_string();
                        admin(&server, "PATCH", &format!("{MAPS}/{name}"), "application/merge-patch+json", label).await;
                    }
                }
                match page["metadata"]["continue"].as_str() {
                    Some(next) => token = next.to_owned(),
                    None => break,
                }
            }
            assert_eq!(seen, want);
        });
    }
}
