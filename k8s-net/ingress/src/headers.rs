//! Headers that a proxy removes, adds and reads.

use std::{borrow::Cow, net::IpAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

/// Headers between two neighbours, which are not passed on.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_SCHEME: HeaderName = HeaderName::from_static("x-forwarded-scheme");
const SCHEME: HeaderName = HeaderName::from_static("x-scheme");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ORIGINAL_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-original-forwarded-for");

/// Header of requests that a proxy of this kind has sent.
const SENT_BY: HeaderName = HeaderName::from_static("x-ingress-sent-by");

/// A client, and how it reached the proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    pub(crate) is_tls: bool,
    /// Headers of a proxy in front are believed.
    pub(crate) trusted: bool,
}

/// Returns true if the proxy with this mark has sent a request.
pub(crate) fn is_loop(headers: &HeaderMap, mark: &HeaderValue) -> bool {
    headers.get_all(SENT_BY).iter().any(|value| value == mark)
}

/// Marks a request as sent by this proxy. Other marks are removed.
pub(crate) fn mark(headers: &mut HeaderMap, mark: &HeaderValue) {
    headers.insert(SENT_BY, mark.clone());
}

/// Removes the headers that are not passed on, those that `Connection` names among them. Returns the protocol
/// that `Upgrade` asks for.
pub(crate) fn strip(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let mut upgrades = false;
    if headers.contains_key(header::CONNECTION) {
        let mut named = Vec::new();
        for value in headers.get_all(header::CONNECTION) {
            for token in value.to_str().unwrap_or_default().split(',').map(str::trim) {
                upgrades |= token.eq_ignore_ascii_case("upgrade");
                named.extend(token.parse::<HeaderName>());
            }
        }
        // Without these a request would be another one.
        for name in named.iter().filter(|name| **name != header::HOST && **name != header::UPGRADE) {
            headers.remove(name);
        }
    }
    let protocol = headers.get(header::UPGRADE).filter(|value| upgrades && may_upgrade(value)).cloned();
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
    protocol
}

/// Returns false for other versions of HTTP: their requests would pass by the routes.
fn may_upgrade(protocols: &HeaderValue) -> bool {
    let all = protocols.to_str().unwrap_or("h2c").to_ascii_lowercase();
    !all.split(',').map(str::trim).any(|one| ["h2", "http", "tls"].iter().any(|bad| one.starts_with(bad)))
}

/// Removes headers with `_` in their name, as nginx does: many programs do not tell `X_User` from `X-User`.
fn strip_look_alikes(headers: &mut HeaderMap) {
    let found: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Puts the client's address and the host that it asked for into the headers of a request. Those that the
/// client has set itself are replaced unless it is trusted.
pub(crate) fn forward(
    headers: &mut HeaderMap,
    client: &Client,
    host: &HeaderValue,
    id: impl FnOnce() -> String,
) {
    strip_look_alikes(headers);
    let address =
        HeaderValue::try_from(client.address.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
    let (scheme, port) = if client.is_tls { ("https", "443") } else { ("http", "80") };
    if client.trusted {
        let before = headers.get(FORWARDED_FOR).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let chain = match before {
            Some(before) => {
                HeaderValue::try_from(format!("{before}, {}", client.address)).unwrap_or(address.clone())
            }
            None => address.clone(),
        };
        headers.insert(FORWARDED_FOR, chain);
        for (name, value) in [
            (REAL_IP, address),
            (FORWARDED_HOST, host.clone()),
            (FORWARDED_PORT, HeaderValue::from_static(port)),
            (FORWARDED_PROTO, HeaderValue::from_static(scheme)),
            (FORWARDED_SCHEME, HeaderValue::from_static(scheme)),
            (SCHEME, HeaderValue::from_static(scheme)),
        ] {
            headers.entry(name).or_insert(value);
        }
    } else {
        headers.remove(header::FORWARDED);
        headers.remove(ORIGINAL_FORWARDED_FOR);
        if let Some(claimed) = headers.insert(FORWARDED_FOR, address.clone()) {
            headers.insert(ORIGINAL_FORWARDED_FOR, claimed);
        }
        headers.insert(REAL_IP, address);
        headers.insert(FORWARDED_HOST, host.clone());
        headers.insert(FORWARDED_PORT, HeaderValue::from_static(port));
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
        headers.insert(FORWARDED_SCHEME, HeaderValue::from_static(scheme));
        headers.insert(SCHEME, HeaderValue::from_static(scheme));
    }
    // Some programs would take this header for a variable of their environment.
    headers.remove("proxy");
    if !headers.contains_key(REQUEST_ID) {
        headers.extend(HeaderValue::try_from(id()).ok().map(|id| (REQUEST_ID, id)));
    }
}

/// Returns the host that a request is for, with its port; `None` if it names none, several, or one with
/// other characters.
pub(crate) fn host_of(uri: &Uri, headers: &HeaderMap) -> Option<HeaderValue> {
    let mut all = headers.get_all(header::HOST).iter();
    let (header, more) = (all.next(), all.next());
    let value = match (uri.authority(), header) {
        _ if more.is_some() => return None,
        (Some(authority), _) => HeaderValue::try_from(authority.as_str()).ok()?,
        (None, header) => header?.clone(),
    };
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    (!value.is_empty() && value.len() <= 262 && value.as_bytes().iter().all(|b| good(*b))).then_some(value)
}

/// Returns a host without its port and its last dot, in lower case.
pub(crate) fn name_of(host: &str) -> Cow<'_, str> {
    let name = match host.rfind(']') {
        Some(end) => host.get(..=end).unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// Returns the value of a cookie.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('"'))
}

/// Joins the cookies of HTTP/2, which come in parts, to one header.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(k, v)| (HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    fn shown(headers: &HeaderMap) -> Vec<String> {
        let mut all: Vec<_> = headers.iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
        all.sort();
        all
    }

    #[test]
    fn what_is_between_neighbours_is_not_passed_on() {
        let mut given = headers(&[
            ("connection", "close, X-Secret"),
            ("connection", "host"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "x"),
            ("host", "a"),
            ("accept", "b"),
        ]);
        assert_eq!(strip(&mut given), None);
        assert_eq!(shown(&given), ["accept: b", "host: a"]);
        let mut upgrade = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(strip(&mut upgrade).unwrap(), "websocket");
        assert!(upgrade.is_empty());
        for protocol in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.0"] {
            let mut other =
                headers(&[("connection", "upgrade"), ("upgrade", protocol), ("http2-settings", "x")]);
            assert_eq!(strip(&mut other), None, "{protocol}");
            assert!(other.is_empty());
        }
    }

    #[test]
    fn a_clients_claims_are_replaced_unless_it_is_trusted() {
        let claims = [
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("proxy", "evil"),
            ("x_forwarded_for", "1.2.3.4"),
            ("x-real_ip", "1.2.3.4"),
            ("x_user", "root"),
        ];
        let of = |trusted| {
            let mut given = headers(&claims);
            let client = Client { address: IpAddr::from([192, 0, 2, 1]), is_tls: false, trusted };
            forward(&mut given, &client, &HeaderValue::from_static("a.org"), || "id".into());
            shown(&given)
        };
        assert_eq!(
            of(false),
            [
                "x-forwarded-for: 192.0.2.1",
                "x-forwarded-host: a.org",
                "x-forwarded-port: 80",
                "x-forwarded-proto: http",
                "x-forwarded-scheme: http",
                "x-original-forwarded-for: 1.2.3.4",
                "x-real-ip: 192.0.2.1",
                "x-request-id: id",
                "x-scheme: http",
            ]
        );
        let trusted = of(true);
        assert!(!trusted.iter().any(|header| header.contains('_')), "{trusted:?}");
        assert!(trusted.contains(&"x-forwarded-for: 1.2.3.4, 192.0.2.1".to_owned()));
        assert!(trusted.contains(&"x-forwarded-proto: https".to_owned()));
    }

    #[test]
    fn hosts() {
        let of = |uri: &str, all: &[(&'static str, &str)]| {
            let host = host_of(&uri.parse().unwrap(), &headers(all))?;
            Some(name_of(host.to_str().unwrap()).into_owned())
        };
        assert_eq!(of("/", &[("host", "A.org:8080")]).as_deref(), Some("a.org"));
        assert_eq!(of("/", &[("host", "a.org.")]).as_deref(), Some("a.org"));
        assert_eq!(of("/", &[("host", "[::1]:80")]).as_deref(), Some("[::1]"));
        assert_eq!(of("http://b.org/x", &[("host", "a.org")]).as_deref(), Some("b.org"));
        for bad in [
            &[][..],
            &[("host", "")],
            &[("host", "a b")],
            &[("host", "a"), ("host", "b")],
            &[("host", "a/b")],
        ] {
            assert_eq!(of("/", bad), None, "{bad:?}");
        }
    }

    #[test]
    fn cookies() {
        let mut given = headers(&[("cookie", "a=1; b=\"2\""), ("cookie", "c=3")]);
        assert_eq!(cookie(&given, "b"), Some("2"));
        assert_eq!((cookie(&given, "c"), cookie(&given, "d")), (Some("3"), None));
        join_cookies(&mut given);
        assert_eq!(shown(&given), ["cookie: a=1; b=\"2\"; c=3"]);
    }
}
