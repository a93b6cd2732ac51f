//! Settings of an Ingress: its annotations, as ingress-nginx spells them.
//!
//! A value that cannot be used is a [`Problem`], and the annotation has its default; but a limit on who may
//! come in stays closed. Snippets of configuration are refused. Other annotations of ingress-nginx are told
//! to have no effect.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnet::IpNet;

use crate::{
    access::{Auth, CanaryRule, auth, canary},
    annotations::{PREFIXES, Problem, Reader},
    patterns::Patterns,
};

/// Annotations that would add text to nginx' configuration.
const SNIPPETS: [&str; 5] =
    ["configuration-snippet", "server-snippet", "auth-snippet", "stream-snippet", "modsecurity-snippet"];

/// Protocol of connections to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/1.1 over TLS; the certificate is not verified, as in ingress-nginx.
    Https,
    /// HTTP/2 without TLS, for gRPC.
    Grpc,
    /// HTTP/2 over TLS, for gRPC.
    Grpcs,
}

impl Protocol {
    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Protocol::Grpc | Protocol::Grpcs)
    }

    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Protocol::Https | Protocol::Grpcs)
    }
}

/// A cookie that leads a client to the same endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Name of the cookie. Default: `INGRESSCOOKIE`.
    pub name: String,
    /// Attributes behind its value, such as `; Path=/; HttpOnly`.
    pub attributes: String,
    /// Sets `Secure` over plain HTTP, too.
    pub secure: bool,
}

/// Limits on the requests of one client address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second.
    pub per_second: Option<u32>,
    /// Requests a minute.
    pub per_minute: Option<u32>,
    /// Requests at once beyond the rate, as a multiple of it. Default: 5.
    pub burst: u32,
    /// Requests in flight.
    pub connections: Option<u32>,
}

/// Settings of an Ingress.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Path that replaces that of the request; `$1` to `$9` are groups of the pattern. Default: none.
    pub rewrite: Option<String>,
    /// Paths are patterns.
    pub patterns: bool,
    /// Leads requests without TLS to https if the host has a certificate. Default: true.
    pub ssl_redirect: bool,
    /// Leads them there without a certificate, too.
    pub force_ssl_redirect: bool,
    /// Bytes of a request's body at most. Default: no limit.
    pub body_size: Option<u64>,
    /// Time in which a connection to an endpoint opens. Default: 5 s.
    pub connect_timeout: Duration,
    /// Time between two reads of the request's body. Default: 60 s.
    pub send_timeout: Duration,
    /// Time until the response begins, and between two of its parts. Default: 60 s.
    pub read_timeout: Duration,
    /// Protocol of the backend.
    pub protocol: Protocol,
    /// Clients that are let in. `None`: all.
    pub allowed: Option<Vec<IpNet>>,
    /// Cookie that leads a client to the same endpoint.
    pub affinity: Option<Affinity>,
    /// Server that is asked about each request.
    pub auth: Option<Auth>,
    /// The Ingress is a canary.
    pub canary: Option<CanaryRule>,
    /// Limits on each client.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            rewrite: None,
            patterns: false,
            ssl_redirect: true,
            force_ssl_redirect: false,
            body_size: None,
            connect_timeout: Duration::from_secs(5),
            send_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            protocol: Protocol::Http,
            allowed: None,
            affinity: None,
            auth: None,
            canary: None,
            limits: Limits { burst: 5, ..Limits::default() },
        }
    }
}

/// Reads the annotations of an Ingress.
#[must_use]
pub fn read(annotations: &BTreeMap<String, String>) -> (Settings, Vec<Problem>) {
    read_with(annotations, &Patterns::default())
}

/// As [`read`], with patterns that are kept.
pub(crate) fn read_with(
    annotations: &BTreeMap<String, String>,
    patterns: &Patterns,
) -> (Settings, Vec<Problem>) {
    let mut from = Reader::new(annotations, patterns);
    let defaults = Settings::default();
    let rewrite = from.parsed("rewrite-target", "a path with $1 to $9 for groups of the pattern", rewrite);
    let patterns = from.flag("use-regex").unwrap_or(false) || rewrite.is_some();
    let settings = Settings {
        rewrite,
        patterns,
        ssl_redirect: from.flag("ssl-redirect").unwrap_or(defaults.ssl_redirect),
        force_ssl_redirect: from.flag("force-ssl-redirect").unwrap_or(false),
        body_size: from.parsed("proxy-body-size", "a size such as 8m", size).filter(|size| *size > 0),
        connect_timeout: from.seconds("proxy-connect-timeout").unwrap_or(defaults.connect_timeout),
        send_timeout: from.seconds("proxy-send-timeout").unwrap_or(defaults.send_timeout),
        read_timeout: from.seconds("proxy-read-timeout").unwrap_or(defaults.read_timeout),
        protocol: protocol(&mut from),
        allowed: allowed(&mut from),
        affinity: affinity(&mut from),
        auth: auth(&mut from),
        canary: canary(&mut from),
        limits: Limits {
            per_second: from.number("limit-rps").filter(|n| *n > 0),
            per_minute: from.number("limit-rpm").filter(|n| *n > 0),
            burst: from.number("limit-burst-multiplier").filter(|n| *n > 0).unwrap_or(5),
            connections: from.number("limit-connections").filter(|n| *n > 0),
        },
    };
    let Reader { values, mut problems, read, .. } = from;
    for name in values.keys().filter(|name| !read.contains(name)) {
        problems.push(if SNIPPETS.contains(name) {
            let message = format!("annotation {}{name}: snippets are not supported", PREFIXES[0]);
            Problem::new("SnippetRefused", message)
        } else {
            let name: String = name.chars().take(63).collect();
            Problem::new("UnknownAnnotation", format!("annotation {}{name} has no effect", PREFIXES[0]))
        });
    }
    (settings, problems)
}

fn rewrite(value: &str) -> Option<String> {
    let groups = value.split('$').skip(1).all(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let plain = value.bytes().all(|b| b.is_ascii_graphic()) && !value.contains(['"', '\\', '{', '}', ';']);
    (value.starts_with(['/', '$']) && groups && plain).then(|| value.to_owned())
}

/// Parses a size: bytes, or `k`, `m` and `g` of them; 0 means no limit.
fn size(value: &str) -> Option<u64> {
    let unit = match value.chars().last()?.to_ascii_lowercase() {
        'k' => 1 << 10,
        'm' => 1 << 20,
        'g' => 1 << 30,
        _ => return value.parse().ok(),
    };
    value.get(..value.len() - 1)?.parse::<u64>().ok()?.checked_mul(unit)
}

fn protocol(from: &mut Reader<'_>) -> Protocol {
    let known = "HTTP, HTTPS, GRPC or GRPCS";
    let parsed = from.parsed("backend-protocol", known, |value| match &*value.to_ascii_uppercase() {
        "HTTP" | "AUTO_HTTP" => Some(Protocol::Http),
        "HTTPS" => Some(Protocol::Https),
        "GRPC" => Some(Protocol::Grpc),
        "GRPCS" => Some(Protocol::Grpcs),
        _ => None,
    });
    parsed.unwrap_or_default()
}

/// Reads the ranges of clients that are let in. A range that cannot be read lets nobody in.
fn allowed(from: &mut Reader<'_>) -> Option<Vec<IpNet>> {
    let mut lists = Vec::new();
    for name in ["whitelist-source-range", "allowlist-source-range"] {
        let Some(text) = from.text(name) else { continue };
        let mut list = Vec::new();
        for range in text.split(',').map(str::trim).filter(|range| !range.is_empty()) {
            match range.parse::<IpNet>().or_else(|_| range.parse::<IpAddr>().map(IpNet::from)) {
                Ok(range) => list.push(range),
                Err(_) => from.wrong(name, &format!("{range:?} is no address or range; it lets nobody in")),
            }
        }
        lists.push(list);
    }
    (!lists.is_empty()).then(|| lists.concat())
}

fn affinity(from: &mut Reader<'_>) -> Option<Affinity> {
    let on = from.parsed("affinity", "cookie", |value| (value == "cookie").then_some(())).is_some();
    let token = |value: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        (value.len() <= 128 && value.bytes().all(good)).then(|| value.to_owned())
    };
    let name = from.parsed("session-cookie-name", "letters, digits, - _ and .", token);
    let path = from.parsed("session-cookie-path", "a path", |value| {
        let good = |b: u8| b.is_ascii_graphic() && !b"\"\\;,".contains(&b);
        (value.starts_with('/') && value.bytes().all(good)).then(|| value.to_owned())
    });
    let age = from.number("session-cookie-max-age");
    let expires = from.number("session-cookie-expires");
    let same_site = from.parsed("session-cookie-samesite", "None, Lax or Strict", |value| {
        ["None", "Lax", "Strict"].into_iter().find(|known| known.eq_ignore_ascii_case(value))
    });
    let secure = from.flag("session-cookie-secure").unwrap_or(false);
    let mut attributes = format!("; Path={}; HttpOnly", path.as_deref().unwrap_or("/"));
    if let Some(age) = age.or(expires) {
        attributes += &format!("; Max-Age={age}");
    }
    if let Some(same_site) = same_site {
        attributes += &format!("; SameSite={same_site}");
    }
    on.then(|| Affinity { name: name.unwrap_or_else(|| "INGRESSCOOKIE".to_owned()), attributes, secure })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(annotations: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let all = annotations.iter().map(|(k, v)| (format!("{}{k}", PREFIXES[0]), (*v).to_owned()));
        let (settings, problems) = read(&all.collect());
        (settings, problems.into_iter().map(|p| format!("{}: {}", p.reason, p.message)).collect())
    }

    #[test]
    fn annotations_have_their_values() {
        let (settings, problems) = read_all(&[
            ("rewrite-target", "/$2"),
            ("ssl-redirect", "false"),
            ("force-ssl-redirect", "true"),
            ("proxy-body-size", "8m"),
            ("proxy-read-timeout", "3600"),
            ("backend-protocol", "grpc"),
            ("whitelist-source-range", "10.0.0.0/8, 192.0.2.1"),
            ("affinity", "cookie"),
            ("session-cookie-name", "route"),
            ("session-cookie-max-age", "60"),
            ("limit-rps", "10"),
        ]);
        assert_eq!(problems, Vec::<String>::new());
        assert!(settings.patterns && !settings.ssl_redirect && settings.force_ssl_redirect);
        assert_eq!(settings.rewrite.as_deref(), Some("/$2"));
        assert_eq!((settings.body_size, settings.read_timeout.as_secs()), (Some(8 << 20), 3600));
        assert_eq!(settings.protocol, Protocol::Grpc);
        assert_eq!(settings.allowed.map(|list| list.len()), Some(2));
        let affinity = settings.affinity.unwrap();
        assert_eq!((&*affinity.name, &*affinity.attributes), ("route", "; Path=/; HttpOnly; Max-Age=60"));
        assert_eq!(settings.limits.per_second, Some(10));
    }

    #[test]
    fn what_cannot_be_used_is_told_and_the_rest_goes_on() {
        for (name, value, want) in [
            ("rewrite-target", "/$host", "InvalidAnnotation"),
            ("rewrite-target", "/a\" ;", "InvalidAnnotation"),
            ("proxy-body-size", "8 apples", "InvalidAnnotation"),
            ("proxy-body-size", "99999999999g", "InvalidAnnotation"),
            ("proxy-read-timeout", "0", "InvalidAnnotation"),
            ("backend-protocol", "FCGI", "InvalidAnnotation"),
            ("use-regex", "maybe", "InvalidAnnotation"),
            ("session-cookie-name", "a; Domain=x", "InvalidAnnotation"),
            ("configuration-snippet", "return 200;", "SnippetRefused"),
            ("server-snippet", "", "SnippetRefused"),
            ("enable-modsecurity", "true", "UnknownAnnotation"),
        ] {
            let (settings, problems) = read_all(&[(name, value), ("limit-rpm", "7")]);
            assert!(problems.len() == 1 && problems[0].starts_with(want), "{name} {value}: {problems:?}");
            assert!(problems[0].contains(name));
            assert_eq!(settings.limits.per_minute, Some(7));
        }
    }

    #[test]
    fn a_range_that_cannot_be_read_lets_nobody_in() {
        let (settings, problems) = read_all(&[("whitelist-source-range", "everybody")]);
        assert_eq!((settings.allowed, problems.len()), (Some(Vec::new()), 1));
    }

    #[test]
    fn annotations_of_before_count_too_and_those_of_others_do_not() {
        let of = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let (settings, problems) = read(&BTreeMap::from([
            of("ingress.kubernetes.io/rewrite-target", "/"),
            of("cert-manager.io/issuer", "x"),
            of("kubernetes.io/ingress.class", "nginx"),
        ]));
        assert_eq!((settings.rewrite.as_deref(), problems), (Some("/"), Vec::new()));
    }
}
