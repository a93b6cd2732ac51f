//! Rules about who gets where: servers that are asked about requests, and canaries.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method, Uri};
use regex::bytes::Regex;

use crate::{annotations::Reader, backend::Backend};

/// A server that is asked about each request (`auth-url`).
#[derive(Clone, Debug)]
pub struct Auth {
    /// Its address. `None`: it cannot be used, and no request is let in.
    pub uri: Option<Uri>,
    /// Endpoints of the Service that `uri` names.
    pub target: AuthTarget,
    /// Method of the question. Default: GET.
    pub method: Method,
    /// Headers of its answer that the backend gets.
    pub response_headers: Vec<HeaderName>,
    /// Address to which a client that is not known is led.
    pub signin: Option<String>,
}

/// Endpoints of a server that is asked.
#[derive(Clone, Debug)]
pub enum AuthTarget {
    /// A name that the machine's resolver knows, or an address.
    Host,
    /// A Service of the Ingress' namespace.
    Service(Arc<Backend>),
}

impl Auth {
    /// Returns name and namespace of the Service in its address: `NAME.NAMESPACE.svc`, with any domain.
    pub(crate) fn service(&self) -> Option<(&str, &str, u16)> {
        let uri = self.uri.as_ref()?;
        let mut labels = uri.host()?.split('.');
        let (name, namespace, svc) = (labels.next()?, labels.next()?, labels.next()?);
        svc.eq_ignore_ascii_case("svc").then_some((name, namespace, uri.port_u16().unwrap_or(80)))
    }
}

/// Reads the annotations about a server that is asked. One that cannot be used lets nobody in.
pub(crate) fn auth(from: &mut Reader<'_>) -> Option<Auth> {
    let method = from.parsed("auth-method", "a method of HTTP", |value| {
        ["GET", "HEAD", "POST", "PUT", "OPTIONS"].contains(&value).then(|| value.parse().ok())?
    });
    let response_headers = from.parsed("auth-response-headers", "names of headers", |value| {
        value.split(',').map(|name| name.trim().parse::<HeaderName>().ok()).collect::<Option<Vec<_>>>()
    });
    let signin = from.parsed("auth-signin", "an address that begins with http:// or https://", |value| {
        let web = value.starts_with("http://") || value.starts_with("https://");
        let graphic = value.bytes().all(|b| b.is_ascii_graphic());
        (web && graphic && (!value.contains('$') || value.ends_with("$escaped_request_uri")))
            .then(|| value.to_owned())
    });
    let name = "auth-url";
    from.text(name)?;
    let uri = from.parsed(name, "an address that begins with http://, without variables", |value| {
        let uri: Uri = value.parse().ok()?;
        let plain = uri.scheme_str() == Some("http") && !value.contains(['$', '@']);
        (plain && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
    });
    Some(Auth {
        uri,
        target: AuthTarget::Host,
        method: method.unwrap_or(Method::GET),
        response_headers: response_headers.unwrap_or_default(),
        signin,
    })
}

/// The part of requests that a canary gets. A header decides, else a cookie, else the weight.
#[derive(Clone, Debug, Default)]
pub struct CanaryRule {
    /// Name of a header: `always` or `never`, or what the next two say.
    pub header: Option<HeaderName>,
    /// Value with which the header leads to the canary.
    pub header_value: Option<String>,
    /// Pattern of values with which it does.
    pub header_pattern: Option<Arc<Regex>>,
    /// Name of a cookie: `always` or `never`.
    pub cookie: Option<String>,
    /// Weight out of `total`.
    pub weight: u32,
    /// Sum of the weights. Default: 100.
    pub total: u32,
}

/// Reads the annotations of a canary.
pub(crate) fn canary(from: &mut Reader<'_>) -> Option<CanaryRule> {
    let on = from.flag("canary").unwrap_or(false);
    let header = from.parsed("canary-by-header", "the name of a header", |value| value.parse().ok());
    let header_value = from.text("canary-by-header-value").map(str::to_owned);
    let mut header_pattern = None;
    if let Some(text) = from.text("canary-by-header-pattern") {
        match from.patterns.get(text) {
            Ok(good) => header_pattern = Some(good),
            Err(why) => from.wrong("canary-by-header-pattern", &why),
        }
    }
    let cookie = from.text("canary-by-cookie").map(str::to_owned);
    let total = from.number("canary-weight-total").filter(|n| *n > 0).unwrap_or(100);
    let weight = from.number("canary-weight").unwrap_or(0).min(total);
    on.then_some(CanaryRule { header, header_value, header_pattern, cookie, weight, total })
}

impl CanaryRule {
    /// Returns true if a request goes to the canary. `draw` returns a number below its argument.
    pub(crate) fn takes(&self, headers: &HeaderMap, draw: impl FnOnce(u32) -> u32) -> bool {
        let by_word = |word: &[u8]| match word {
            b"always" => Some(true),
            b"never" => Some(false),
            _ => None,
        };
        let value = self.header.as_ref().and_then(|name| headers.get(name)).map(|value| value.as_bytes());
        let by_header = value.and_then(|value| match (&self.header_value, &self.header_pattern) {
            (Some(wanted), _) => (value == wanted.as_bytes()).then_some(true),
            (None, Some(pattern)) => pattern.is_match(value).then_some(true),
            (None, None) => by_word(value),
        });
        let cookie = || by_word(crate::headers::cookie(headers, self.cookie.as_deref()?)?.as_bytes());
        by_header.or_else(cookie).unwrap_or_else(|| self.weight > 0 && draw(self.total) < self.weight)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::settings::{Settings, read};

    fn settings(annotations: &[(&str, &str)]) -> (Settings, usize) {
        let all = annotations.iter().map(|(k, v)| (format!("nginx.ingress.kubernetes.io/{k}"), (*v).into()));
        let (settings, problems) = read(&all.collect::<BTreeMap<_, _>>());
        (settings, problems.len())
    }

    #[test]
    fn canaries_by_header_cookie_and_weight() {
        let rule = |annotations: &[(&str, &str)]| {
            let (settings, problems) = settings(&[&[("canary", "true")], annotations].concat());
            assert_eq!(problems, 0);
            settings.canary.unwrap()
        };
        let headers = |name: &'static str, value: &str| -> HeaderMap {
            [(HeaderName::from_static(name), value.parse().unwrap())].into_iter().collect()
        };
        let none = HeaderMap::new();
        let by_header = rule(&[("canary-by-header", "X-Canary"), ("canary-weight", "100")]);
        assert!(by_header.takes(&headers("x-canary", "always"), |_| 99));
        assert!(!by_header.takes(&headers("x-canary", "never"), |_| 0));
        assert!(by_header.takes(&headers("x-canary", "perhaps"), |_| 99) && by_header.takes(&none, |_| 0));
        let by_value = rule(&[("canary-by-header", "X-Canary"), ("canary-by-header-value", "blue")]);
        assert!(by_value.takes(&headers("x-canary", "blue"), |_| 0));
        assert!(!by_value.takes(&headers("x-canary", "always"), |_| 0));
        let by_pattern = rule(&[("canary-by-header", "X-Canary"), ("canary-by-header-pattern", "^bl")]);
        assert!(by_pattern.takes(&headers("x-canary", "black"), |_| 0));
        let by_cookie = rule(&[("canary-by-cookie", "try"), ("canary-weight", "30")]);
        assert!(by_cookie.takes(&headers("cookie", "a=b; try=always"), |_| 99));
        assert!(!by_cookie.takes(&headers("cookie", "try=never"), |_| 0));
        assert!(by_cookie.takes(&none, |_| 29) && !by_cookie.takes(&none, |_| 30));
        assert!(settings(&[("canary-weight", "30")]).0.canary.is_none());
    }

    #[test]
    fn a_server_that_cannot_be_asked_lets_nobody_in() {
        let (good, problems) = settings(&[("auth-url", "http://auth.shop.svc.cluster.local:8080/check?a=b")]);
        let good = good.auth.unwrap();
        assert_eq!((problems, good.service()), (0, Some(("auth", "shop", 8080))));
        for bad in ["https://auth.example.com", "http://$host/", "ftp://a", "auth", "http://"] {
            let (settings, problems) = settings(&[("auth-url", bad)]);
            assert!(problems == 1 && settings.auth.unwrap().uri.is_none(), "{bad}");
        }
        assert!(settings(&[("auth-signin", "http://a")]).0.auth.is_none());
    }
}
