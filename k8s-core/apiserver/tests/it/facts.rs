//! Compares discovery and Table columns with an upstream 1.36 server (`tests/data/upstream-resources.txt`).

use std::collections::BTreeMap;

use k8s_apiserver::ApiServer;
use serde_json::{Value, json};

use crate::support::{ask, done, server};

const FACTS: &str = include_str!("../data/upstream-resources.txt");
const ALL: &str = "create,delete,deletecollection,get,list,patch,update,watch";

/// Returns each resource's line with its columns' lines.
fn resources() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in FACTS.lines().filter(|l| !l.starts_with('#')) {
        match (line.strip_prefix("  "), all.last_mut()) {
            (Some(column), Some((_, columns))) => columns.push(column),
            _ => all.push((line, Vec::new())),
        }
    }
    all
}

fn texts(value: &Value) -> String {
    let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

fn path_of(group_version: &str) -> String {
    if group_version.contains('/') {
        format!("/apis/{group_version}")
    } else {
        format!("/api/{group_version}")
    }
}

/// Formats a discovered resource like a line of the facts.
fn line_of(group_version: &str, resource: &Value, all: &[Value]) -> String {
    let name = resource["name"].as_str().unwrap();
    let kind = resource["kind"].as_str().unwrap();
    let verbs = texts(&resource["verbs"]);
    let scope = if resource["namespaced"] == true { "n" } else { "c" };
    let mut line =
        format!("{group_version} {name} {kind} {scope} {}", if verbs == ALL { "*" } else { &verbs });
    let singular = resource["singularName"].as_str().unwrap();
    if singular != kind.to_lowercase() {
        line.push_str(&format!(" singular={singular}"));
    }
    for (word, field) in [("short", "shortNames"), ("categories", "categories")] {
        let listed = texts(&resource[field]);
        if !listed.is_empty() {
            line.push_str(&format!(" {word}={listed}"));
        }
    }
    let below: BTreeMap<&str, String> = all
        .iter()
        .filter_map(|r| {
            let sub = r["name"].as_str()?.strip_prefix(name)?.strip_prefix('/')?;
            Some((sub, format!("{sub}={}:{}", r["kind"].as_str()?, texts(&r["verbs"]).replace(',', "/"))))
        })
        .collect();
    if !below.is_empty() {
        line.push_str(&format!(" sub={}", below.into_values().collect::<Vec<_>>().join(";")));
    }
    line
}

async fn columns_of(server: &ApiServer, group_version: &str, name: &str) -> Vec<String> {
    let request = http::Request::builder()
        .uri(format!("{}/{name}", path_of(group_version)))
        .header("authorization", "Bearer admin")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new());
    let table = ask(server, request.unwrap()).await.json();
    let text = |c: &Value, f: &str| c[f].as_str().unwrap_or_default().to_owned();
    table["columnDefinitions"]
        .as_array()
        .unwrap_or_else(|| panic!("{group_version} {name}: {table}"))
        .iter()
        .map(|c| {
            format!("{} | {} | {} | {}", text(c, "name"), text(c, "type"), text(c, "format"), c["priority"])
        })
        .collect()
}

/// Returns the collections of all creatable types.
pub(crate) fn collections() -> Vec<String> {
    let of = |fact: &str| {
        let words: Vec<&str> = fact.split(' ').collect();
        let [group_version, plural, _, scope, verbs, ..] = words.as_slice() else { return None };
        let namespace = if *scope == "n" { "/namespaces/default" } else { "" };
        let makes = *verbs == "*" || verbs.contains("create");
        makes.then(|| format!("{}{namespace}/{plural}", path_of(group_version)))
    };
    resources().iter().filter_map(|(fact, _)| of(fact)).collect()
}

#[tokio::test]
async fn discovery_and_columns_are_upstreams() {
    let server = server().await;
    let mut wrong = String::new();
    let mut lists: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (fact, columns) in resources() {
        let mut words = fact.split(' ');
        let (group_version, name) = (words.next().unwrap(), words.next().unwrap());
        if !lists.contains_key(group_version) {
            let list = done(&server, "GET", &path_of(group_version), &Value::Null).await;
            lists.insert(group_version, list["resources"].as_array().cloned().unwrap_or_default());
        }
        let all = &lists[group_version];
        let ours = match all.iter().find(|r| r["name"] == json!(name)) {
            Some(resource) => line_of(group_version, resource, all),
            None => "nothing".to_owned(),
        };
        if ours != fact {
            wrong.push_str(&format!("want {fact}\nhave {ours}\n"));
        }
        if !columns.is_empty() {
            let ours = columns_of(&server, group_version, name).await;
            if ours != columns {
                wrong.push_str(&format!("columns of {fact}:\nwant {columns:#?}\nhave {ours:#?}\n"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
