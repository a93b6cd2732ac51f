//! Options of a connection, as the object that admission plugins see.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use crate::{request::RequestInfo, resources::Resource};

/// The shape of an option in the query.
#[derive(Clone, Copy)]
enum Shape {
    Flag,
    Text,
    Texts,
    Numbers,
}

const STREAMS: [(&str, Shape); 5] = [
    ("stdin", Shape::Flag),
    ("stdout", Shape::Flag),
    ("stderr", Shape::Flag),
    ("tty", Shape::Flag),
    ("container", Shape::Text),
];

/// Returns the options of a request with this query: a PodExecOptions and so on, by the subresource's kind.
pub(super) fn of(resource: &Resource, info: &RequestInfo, query: &str) -> Value {
    let kind = resource.subresource(&info.subresource).map_or("", |part| part.kind.as_str());
    let mut options =
        Map::from_iter([("kind".to_owned(), json!(kind)), ("apiVersion".to_owned(), json!("v1"))]);
    let fields: &[(&str, Shape)] = match info.subresource.as_str() {
        "exec" | "attach" => &STREAMS,
        _ => &[],
    };
    let own: &[(&str, Shape)] = match info.subresource.as_str() {
        "exec" => &[("command", Shape::Texts)],
        "portforward" => &[("ports", Shape::Numbers)],
        _ => &[],
    };
    for (name, shape) in fields.iter().chain(own) {
        let mut values = values(query, name);
        let value = match shape {
            Shape::Flag => match values.next_back().as_deref() {
                Some("1" | "t" | "T" | "true" | "True" | "TRUE") => Value::Bool(true),
                _ => continue,
            },
            Shape::Text => match values.next_back() {
                Some(text) => text.into(),
                None => continue,
            },
            Shape::Texts => values.collect(),
            Shape::Numbers => values.filter_map(|text| text.parse::<i32>().ok()).collect(),
        };
        options.insert((*name).to_owned(), value);
    }
    if info.subresource == "proxy" && !info.rest.is_empty() {
        options.insert("path".into(), info.rest.trim_start_matches('/').into());
    }
    Value::Object(options)
}

/// Returns the values of a parameter, in their order.
fn values<'a>(query: &'a str, name: &'a str) -> impl DoubleEndedIterator<Item = String> + 'a {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(move |(key, _)| *key == name).map(move |(_, value)| decode(value))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::{request::Query, resources::Registry};

    #[test]
    fn commands_keep_their_words_and_order() {
        let registry = Registry::new(&[]);
        let pods = registry.find("", "v1", "pods").unwrap();
        let of = |part: &str, query: &str| {
            let path = format!("/api/v1/namespaces/a/pods/b/{part}");
            of(pods, &RequestInfo::parse(&Method::POST, &path, &Query::parse(query)), query)
        };
        assert_eq!(
            of("exec", "command=sh&command=-c&command=a+b%26&stdin=true&tty=0&container=c"),
            json!({"kind": "PodExecOptions", "apiVersion": "v1", "command": ["sh", "-c", "a b&"],
                "stdin": true, "container": "c"})
        );
        assert_eq!(of("portforward", "ports=80&ports=x&ports=81")["ports"], json!([80, 81]));
        assert_eq!(of("proxy/a/b", "")["path"], "a/b");
    }
}
