//! Links in proxied responses, so that a page's links lead through the proxy again.
//!
//! A link to an absolute path of the same host gets the proxy's path in front, as upstream's proxies do it:
//! in the header `Location`, and in the attributes of `text/html` that hold a URL. Other links stay as they
//! are. A page that is larger than [`LARGEST`] or has another encoding than gzip goes through unchanged.

use std::io::{Read, Write};

use bytes::{Bytes, BytesMut};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use futures::stream;
use html5gum::{DefaultEmitter, StartTag, Token, Tokenizer};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use k8s_core::client::{Body, BoxError, body_from_bytes};

use crate::blocking::run_blocking_if;

/// Size of the largest page whose links are changed, in bytes, without compression.
const LARGEST: usize = 4 << 20;

/// Size of a page that is not read on an asynchronous thread, in bytes.
const HEAVY: usize = 64 << 10;

/// Header with the path by which the client reached the proxy.
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Attributes that hold a URL, by element.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// The places of a proxied request.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    /// Path of the proxy, for example `/api/v1/namespaces/shop/services/web/proxy`.
    prefix: String,
    /// Host and port that the request went to.
    target: String,
    /// Host header of the client.
    host: String,
}

impl Links {
    pub(crate) fn new(prefix: &str, target: &str, headers: &HeaderMap) -> Self {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        Links {
            prefix: prefix.trim_end_matches('/').to_owned(),
            target: target.to_owned(),
            host: host.unwrap_or_default().to_owned(),
        }
    }

    /// Tells the target by which path the client reached it.
    pub(crate) fn announce(&self, rest: &str, headers: &mut HeaderMap) {
        let rest = if rest.is_empty() { "/" } else { rest };
        if let Ok(uri) = HeaderValue::from_str(&format!("{}{rest}", self.prefix)) {
            headers.insert(FORWARDED_URI, uri);
        }
    }

    /// Returns the URL that leads through the proxy; `None` if the URL stays as it is.
    fn url(&self, url: &str) -> Option<String> {
        let (place, tail) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
        let scheme = place.find(':').filter(|end| {
            place.starts_with(|c: char| c.is_ascii_alphabetic())
                && place[..*end].chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        });
        let place = scheme.map_or(place, |end| &place[end + 1..]);
        let (host, path) = match place.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", place),
        };
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let elsewhere = !host.is_empty() && host != self.target && host != self.host;
        if elsewhere || !path.starts_with('/') {
            return None;
        }
        // A path below the proxy's own is not put below it twice.
        let below =
            path.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let prefix = if below { "" } else { &*self.prefix };
        Some(match !host.is_empty() && host == self.host {
            // The client's own name for the proxy stays.
            true => format!("{}{prefix}{path}{tail}", &url[..url.len() - path.len() - tail.len()]),
            false => format!("{prefix}{path}{tail}"),
        })
        .filter(|new| new != url)
    }

    /// Returns the page with its links through the proxy; `None` if none changes.
    fn html(&self, page: &[u8]) -> Option<Vec<u8>> {
        let mut emitter = DefaultEmitter::<usize>::new_with_span();
        // Text in scripts and styles has no tags.
        emitter.naively_switch_states(true);
        let mut out = Vec::new();
        let mut copied = 0;
        for token in Tokenizer::new_with_emitter(page, emitter) {
            let Ok(Token::StartTag(mut tag)) = token else { continue };
            let span = tag.span.start..tag.span.end;
            let whole =
                page.get(span.clone()).is_some_and(|text| text.starts_with(b"<") && text.ends_with(b">"));
            if whole && span.start >= copied && self.tag(&mut tag) {
                out.extend_from_slice(&page[copied..span.start]);
                write_tag(&mut out, &tag);
                copied = span.end;
            }
        }
        (copied > 0).then(|| [&out, &page[copied..]].concat())
    }

    /// Changes the links of a tag; returns true if there was one.
    fn tag(&self, tag: &mut StartTag<usize>) -> bool {
        let links = LINKS.iter().find(|(name, _)| name.as_bytes() == &**tag.name);
        let mut changed = false;
        for name in links.into_iter().flat_map(|(_, names)| *names) {
            let Some(value) = tag.attributes.get_mut(name.as_bytes()) else { continue };
            if let Some(url) = std::str::from_utf8(value).ok().and_then(|url| self.url(url)) {
                value.value = url.into_bytes().into();
                changed = true;
            }
        }
        changed
    }

    /// Rewrites the links of a response.
    ///
    /// # Errors
    /// The error of the body.
    pub(crate) async fn rewrite(self, mut response: Response<Body>) -> Result<Response<Body>, BoxError> {
        if let Some(location) = response.headers().get(header::LOCATION) {
            let new = location.to_str().ok().and_then(|url| self.url(url));
            if let Some(new) = new.and_then(|url| HeaderValue::from_str(&url).ok()) {
                response.headers_mut().insert(header::LOCATION, new);
            }
            return Ok(response);
        }
        let Some(gzip) = is_page(response.headers()) else { return Ok(response) };
        let (mut parts, mut body) = response.into_parts();
        let mut page = BytesMut::new();
        while let Some(frame) = body.frame().await {
            page.extend_from_slice(&frame?.into_data().unwrap_or_default());
            if page.len() > LARGEST {
                let begin = stream::iter([Ok(Frame::data(page.freeze()))]);
                let rest = stream::unfold(body, |mut body| async { body.frame().await.map(|f| (f, body)) });
                let body = StreamBody::new(futures::StreamExt::chain(begin, rest)).boxed_unsync();
                return Ok(Response::from_parts(parts, body));
            }
        }
        let page = page.freeze();
        let mut changed = None;
        let heavy = gzip || page.len() > HEAVY;
        run_blocking_if(heavy, || changed = if gzip { self.gzip(&page) } else { self.html(&page) });
        if changed.is_some() {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        let body = changed.map_or(page, Bytes::from);
        Ok(Response::from_parts(parts, body_from_bytes(body)))
    }

    /// As [`Links::html`], of a compressed page.
    fn gzip(&self, page: &[u8]) -> Option<Vec<u8>> {
        let mut plain = Vec::new();
        let limit = u64::try_from(LARGEST).unwrap_or(u64::MAX);
        GzDecoder::new(page).take(limit + 1).read_to_end(&mut plain).ok()?;
        if plain.len() > LARGEST {
            return None;
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&self.html(&plain)?).ok()?;
        encoder.finish().ok()
    }
}

/// Returns whether a page is compressed; `None` for what is no page that can be read here.
fn is_page(headers: &HeaderMap) -> Option<bool> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let kind = text(header::CONTENT_TYPE)?.split(';').next()?.trim();
    match text(header::CONTENT_ENCODING) {
        _ if kind != "text/html" => None,
        None | Some("") => Some(false),
        Some("gzip") => Some(true),
        Some(_) => None,
    }
}

fn write_tag(out: &mut Vec<u8>, tag: &StartTag<usize>) {
    out.push(b'<');
    out.extend_from_slice(&tag.name);
    for (name, value) in &tag.attributes {
        out.push(b' ');
        out.extend_from_slice(name);
        out.extend_from_slice(b"=\"");
        for byte in &***value {
            match byte {
                b'&' => out.extend_from_slice(b"&amp;"),
                b'"' => out.extend_from_slice(b"&#34;"),
                b'<' => out.extend_from_slice(b"&lt;"),
                b'>' => out.extend_from_slice(b"&gt;"),
                other => out.push(*other),
            }
        }
        out.push(b'"');
    }
    out.extend_from_slice(if tag.self_closing { b"/>" } else { b">" });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn links() -> Links {
        Links { prefix: "/proxy".into(), target: "10.42.0.5:80".into(), host: "localhost:8001".into() }
    }

    #[test]
    fn links_to_the_same_host_lead_through_the_proxy() {
        for (url, expected) in [
            ("/", "/proxy/"),
            ("/a/b?c=/d#/e", "/proxy/a/b?c=/d#/e"),
            ("http://10.42.0.5:80/a", "/proxy/a"),
            ("//10.42.0.5:80/a/", "/proxy/a/"),
            ("http://localhost:8001/a", "http://localhost:8001/proxy/a"),
            ("http://localhost:8001/proxy/a", "http://localhost:8001/proxy/a"),
            ("/proxy/a", "/proxy/a"),
            ("/proxy-b", "/proxy/proxy-b"),
            ("http://example.com/a", "http://example.com/a"),
            ("//example.com/a", "//example.com/a"),
            ("http://10.42.0.5:80", "http://10.42.0.5:80"),
            ("a/b", "a/b"),
            ("../a", "../a"),
            ("#top", "#top"),
            ("?q=/a", "?q=/a"),
            ("mailto:a@b.c", "mailto:a@b.c"),
            ("javascript:go('/a')", "javascript:go('/a')"),
            ("", ""),
        ] {
            assert_eq!(links().url(url).as_deref().unwrap_or(url), expected, "{url}");
        }
    }

    #[test]
    fn only_links_in_a_page_change() {
        let page = "<!doctype html><HTML><a class=x HREF=/a?b&amp;c>/a</a>\r\n<img src='/i'/><a href=b>\
            <script>let t = '<a href=\"/s\">';</script><!-- <a href=\"/c\"> --><p title=\"/t\">é\0<form action=\"/f\">";
        let expected = "<!doctype html><HTML><a class=\"x\" href=\"/proxy/a?b&amp;c\">/a</a>\r\n<img src=\"/proxy/i\"/><a href=b>\
            <script>let t = '<a href=\"/s\">';</script><!-- <a href=\"/c\"> --><p title=\"/t\">é\0<form action=\"/proxy/f\">";
        let out = links().html(page.as_bytes()).expect("links");
        assert_eq!(String::from_utf8_lossy(&out), expected);
        assert_eq!(links().html(b"<a href=\"b\">/a</a>"), None);
    }

    #[tokio::test]
    async fn pages_are_rewritten_and_the_rest_is_left_alone() {
        let zipped = |text: &str| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(text.as_bytes()).expect("memory");
            encoder.finish().expect("memory")
        };
        let large = format!("<a href=\"/a\">{}", " ".repeat(LARGEST));
        let (page, new) = ("<a href=\"/a\">", "<a href=\"/proxy/a\">");
        let cases = [
            ("text/html; charset=utf-8", "", page.as_bytes().to_vec(), new.as_bytes().to_vec()),
            ("text/html", "gzip", zipped(page), zipped(new)),
            ("text/html", "gzip", zipped(&large), zipped(&large)),
            ("text/html", "gzip", b"no gzip".to_vec(), b"no gzip".to_vec()),
            ("text/html", "br", page.as_bytes().to_vec(), page.as_bytes().to_vec()),
            ("text/plain", "", page.as_bytes().to_vec(), page.as_bytes().to_vec()),
            ("text/html", "", large.clone().into_bytes(), large.into_bytes()),
        ];
        for (kind, encoding, body, expected) in cases {
            let response = Response::builder().header(header::CONTENT_TYPE, kind);
            let response = response.header(header::CONTENT_ENCODING, encoding);
            let response = response.header(header::CONTENT_LENGTH, body.len());
            let response = response.body(body_from_bytes(body.clone())).expect("valid");
            let got = links().rewrite(response).await.expect("memory");
            let length = got.headers().get(header::CONTENT_LENGTH).cloned();
            let got = got.into_body().collect().await.expect("memory").to_bytes();
            assert!(got == expected, "{kind} {encoding}");
            assert!(length.is_none_or(|length| length == body.len().to_string() && body == got), "{kind}");
        }
    }

    proptest! {
        /// Nothing but the tags with a changed link is touched, whatever stands around them.
        #[test]
        fn the_rest_of_a_page_stays(before in ".{0,40}", after in any::<Vec<u8>>()) {
            let before = before.replace(['<', '&'], "");
            let page = [before.as_bytes(), b"<a href='/x'>", &after].concat();
            let out = links().html(&page).expect("a link");
            let begin = [before.as_bytes(), b"<a href=\"/proxy/x\">"].concat();
            prop_assert!(out.starts_with(&begin), "{}", String::from_utf8_lossy(&out));
            if !after.contains(&b'<') {
                prop_assert_eq!(&out[begin.len()..], &after[..]);
            }
        }

        #[test]
        fn nonsense_is_no_danger(url in ".{0,30}", page in any::<Vec<u8>>()) {
            let _ = (links().url(&url), links().html(&page));
        }
    }
}
