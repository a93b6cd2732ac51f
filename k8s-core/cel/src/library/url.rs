//! URLs.

use std::{collections::BTreeMap, sync::Arc};

use super::{Cost, Cx, Form, Function, function, global, member, no_overload};
use crate::{
    error::EvalError,
    types::{Opaque, T},
    value::{Entries, Key, Map, Value},
};

/// A parsed URL.
#[derive(Debug, PartialEq, Eq)]
pub struct Url {
    text: String,
    scheme: String,
    /// Host with port.
    host: String,
    hostname: String,
    port: String,
    path: String,
    query: String,
}

const URL: T = T::Op(Opaque::Url);
const PART: &[(&[T], T)] = &[(&[URL], T::Str)];

pub(super) const FUNCTIONS: &[Function] =
    &[
        function("url", Form::Global, Cost::Traverse(1), &[(&[T::Str], URL), (&[URL], URL)], |_, args| {
            match args {
                [Value::Url(url)] => Ok(Value::Url(url.clone())),
                [Value::String(text)] => match Url::parse(text) {
                    Ok(url) => Ok(Value::Url(Arc::new(url))),
                    Err(why) => {
                        EvalError::failed(format!("URL parse error during conversion from string: {why}"))
                    }
                },
                _ => no_overload(),
            }
        }),
        global("isURL", &[(&[T::Str], T::Bool)], |cx, args| match args {
            [Value::String(text)] => {
                cx.meter.work(text.len() as u64)?;
                Ok(Value::Bool(Url::parse(text).is_ok()))
            }
            _ => no_overload(),
        }),
        member("getScheme", PART, |_, args| part(args, |url| &url.scheme)),
        member("getHost", PART, |_, args| part(args, |url| &url.host)),
        member("getHostname", PART, |_, args| part(args, |url| &url.hostname)),
        member("getPort", PART, |_, args| part(args, |url| &url.port)),
        member("getEscapedPath", PART, |_, args| part(args, |url| &url.path)),
        member("getQuery", &[(&[URL], T::Map(&T::Str, &T::List(&T::Str)))], query),
    ];

fn part<'a>(args: &[Value<'a>], get: fn(&Url) -> &String) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Url(url)] => Ok(get(url).clone().into()),
        _ => no_overload(),
    }
}

fn decode(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    is_escaped_well(&text)
        .then(|| percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned())
}

fn query<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let [Value::Url(url)] = args else { return no_overload() };
    cx.meter.work(url.query.len() as u64 * 8)?;
    let mut all: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (decode(key), decode(value)) {
            all.entry(key).or_default().push(value.into());
        }
    }
    let entries = all.into_iter().map(|(key, values)| {
        let key: Arc<str> = key.into();
        (Key::String(key.clone()), (Value::String(crate::value::Text::Shared(key)), values.into()))
    });
    Ok(Value::Map(Map::Made(Arc::new(Entries(entries.collect())))))
}

/// Returns true if a text is a URL.
pub(super) fn is_url(text: &str) -> bool {
    Url::parse(text).is_ok()
}

/// Returns true if each `%` is followed by two hexadecimal digits.
fn is_escaped_well(text: &str) -> bool {
    text.split('%').skip(1).all(|piece| {
        let digits = piece.as_bytes();
        digits.len() >= 2 && digits.iter().take(2).all(u8::is_ascii_hexdigit)
    })
}

impl Url {
    /// Returns the original text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Parses an absolute URI or an absolute path.
    fn parse(text: &str) -> Result<Url, String> {
        let wrong = |why: &str| format!("parse {:?}: {why}", super::convert::short(text));
        if text.is_empty() {
            return Err(wrong("empty url"));
        }
        if text.bytes().any(|b| b < b' ' || b == 0x7f) {
            return Err(wrong("net/url: invalid control character in URL"));
        }
        let (scheme, rest) = scheme_of(text).map_err(wrong)?;
        if !rest.starts_with('/') {
            // `mailto:x` has no path; without a scheme it is not a URI.
            return Err(wrong("invalid URI for request"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) if !scheme.is_empty() || !rest.starts_with('/') => {
                rest.split_at(rest.find('/').unwrap_or(rest.len()))
            }
            _ => ("", rest),
        };
        if !is_escaped_well(path) {
            return Err(wrong("invalid URL escape"));
        }
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (hostname, port) = host_and_port(host).ok_or_else(|| wrong("invalid host or port"))?;
        Ok(Url {
            scheme,
            host: host.to_owned(),
            hostname: hostname.to_owned(),
            port: port.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            text: text.to_owned(),
        })
    }
}

fn scheme_of(text: &str) -> Result<(String, &str), &'static str> {
    for (i, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if i > 0 => {}
            ':' if i == 0 => return Err("missing protocol scheme"),
            ':' => {
                let (scheme, rest) = text.split_at(i);
                return Ok((scheme.to_ascii_lowercase(), rest.get(1..).unwrap_or_default()));
            }
            _ => break,
        }
    }
    Ok((String::new(), text))
}

fn host_and_port(host: &str) -> Option<(&str, &str)> {
    let (name, rest) = match host.strip_prefix('[') {
        Some(inner) => {
            let end = inner.find(']')?;
            (inner.get(..end)?, inner.get(end + 1..)?)
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    if !is_escaped_well(name) || name.contains([' ', '"', '<', '>', '\\', '^', '`', '{', '|', '}']) {
        return None;
    }
    let port = match rest.strip_prefix(':') {
        Some(port) => port,
        None if rest.is_empty() => "",
        None => return None,
    };
    port.bytes().all(|b| b.is_ascii_digit()).then_some((name, port))
}
