//! Compares responses with those of an upstream 1.36 server to a script of requests
//! (`tests/data/answers.jsonl`).
//!
//! Uids, times, versions and addresses are replaced by placeholders on both sides. Managed fields are ignored
//! (they have tests of their own).

use std::fmt::Write;

use http::Request;
use k8s_apiserver::ApiServer;
use serde_json::Value;

use crate::support::{ask, server};

/// Known differences, with the reason. Everything else must be equal.
const KNOWN: &[(&str, &str)] = &[
    ("cm-wrong-version", "names a Go source file"),
    ("pod-spec-immutable", "shows the difference as Go structs"),
];

/// Column descriptions are documentation.
const IGNORED_KEYS: [&str; 2] = ["managedFields", "description"];

fn is_uid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

fn is_time(text: &str) -> bool {
    text.len() >= 20 && text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok()
}

/// Replaces the varying part of a word.
fn word(word: &str) -> String {
    let core = word.trim_matches(|c: char| "\",()'.:[]".contains(c));
    if core.is_empty() {
        return word.into();
    }
    if is_uid(core) {
        return word.replacen(core, "<uid>", 1);
    }
    if is_time(core) {
        return word.replacen(core, "<time>", 1);
    }
    for prefix in ["gen-", "kube-api-access-"] {
        if core.strip_prefix(prefix).is_some_and(|rest| rest.len() == 5) {
            return word.replacen(core, &format!("{prefix}<rand>"), 1);
        }
    }
    if core.parse::<std::net::Ipv4Addr>().is_ok_and(|a| a.octets()[0] == 10 && a.octets()[1] & 0xf0 == 96) {
        return word.replacen(core, "<clusterIP>", 1);
    }
    word.into()
}

fn normal_text(key: &str, text: &str) -> String {
    if ["resourceVersion", "continue"].contains(&key) {
        return if text.is_empty() { String::new() } else { format!("<{key}>") };
    }
    if text == "<unknown>"
        || text.strip_suffix('s').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    {
        return "<age>".into();
    }
    let mut words: Vec<String> = text.split(' ').map(word).collect();
    for i in 1..words.len() {
        let follows = words[i - 1].ends_with("resourceVersion:") || words[i - 1].ends_with("current:");
        let number: String = words[i].chars().filter(char::is_ascii_digit).collect();
        if follows && !number.is_empty() {
            words[i] = words[i].replace('"', "").replacen(&number, "<rv>", 1);
        }
    }
    words.join(" ")
}

fn normal(key: &str, value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(k, _)| !IGNORED_KEYS.contains(&k.as_str()))
            .map(|(k, v)| {
                let v = normal(&k, v);
                (k, v)
            })
            .collect(),
        Value::Array(items) => items
            .into_iter()
            // Specific to the distribution of the recording, not to Kubernetes.
            .filter(|v| v.pointer("/configMap/name") != Some(&"openshift-service-ca.crt".into()))
            .map(|v| normal("", v))
            .collect(),
        Value::String(text) => normal_text(key, &text).into(),
        other => other,
    }
}

fn differences(want: &Value, got: &Value, path: &str, out: &mut String) {
    match (want, got) {
        (Value::Object(w), Value::Object(g)) => {
            for (key, value) in w {
                let path = format!("{path}.{key}");
                match g.get(key) {
                    Some(other) => differences(value, other, &path, out),
                    None => writeln!(out, "  {path}: missing {value}").unwrap(),
                }
            }
            for (key, value) in g.iter().filter(|(k, _)| !w.contains_key(*k)) {
                writeln!(out, "  {path}.{key}: unexpected {value}").unwrap();
            }
        }
        (Value::Array(w), Value::Array(g)) if w.len() == g.len() => {
            for (i, (w, g)) in w.iter().zip(g).enumerate() {
                differences(w, g, &format!("{path}[{i}]"), out);
            }
        }
        _ if want != got => writeln!(out, "  {path}: want {want}\n  {path}: got  {got}").unwrap(),
        _ => {}
    }
}

/// Returns the request of an exchange, with its placeholders filled in.
fn request(exchange: &Value) -> Request<Vec<u8>> {
    let text = |key: &str| exchange[key].as_str();
    let mut builder = Request::builder()
        .method(text("method").unwrap())
        .uri(text("path").unwrap())
        .header("accept", text("accept").unwrap_or("application/json"))
        .header("user-agent", "Python-urllib/3.11");
    if exchange["anonymous"] != true {
        builder = builder.header("authorization", "Bearer admin");
    }
    for (key, value) in exchange["headers"].as_object().into_iter().flatten() {
        builder = builder.header(key, value.as_str().unwrap());
    }
    let body = match &exchange["body"] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if !exchange["body"].is_null() {
        builder = builder.header("content-type", text("contentType").unwrap_or("application/json"));
    }
    let body = body.replace("<uid>", "11111111-1111-1111-1111-111111111111").replace("<rv>", "1");
    builder.body(body.into_bytes()).unwrap()
}

async fn compare(server: &ApiServer, exchange: &Value) -> String {
    let mut out = String::new();
    let answer = ask(server, request(exchange)).await;
    if exchange["status"].is_null() {
        assert!(answer.status.is_success(), "{exchange}: {}", answer.json());
        return out;
    }
    let status = Value::from(answer.status.as_u16());
    differences(&exchange["status"], &status, "(status)", &mut out);
    let want = exchange.get("warnings").cloned().unwrap_or_else(|| Value::Array(Vec::new()));
    differences(&want, &answer.warnings.clone().into(), "(warnings)", &mut out);
    differences(&normal("", exchange["answer"].clone()), &normal("", answer.json()), "", &mut out);
    out
}

#[tokio::test]
async fn answers_like_upstream() {
    let server = server().await;
    let (mut report, mut total) = (String::new(), 0);
    for line in include_str!("../data/answers.jsonl").lines() {
        let exchange: Value = serde_json::from_str(line).unwrap();
        let id = exchange["id"].as_str().unwrap();
        let found = compare(&server, &exchange).await;
        total += 1;
        let known = KNOWN.iter().find(|(k, _)| *k == id);
        match (found.is_empty(), known) {
            (false, None) => {
                writeln!(report, "{id} {} {}\n{found}", exchange["method"], exchange["path"]).unwrap()
            }
            (true, Some(_)) => writeln!(report, "{id}: listed as different, but is equal now").unwrap(),
            _ => {}
        }
    }
    assert!(total > 120);
    assert!(report.is_empty(), "\n{report}");
}
