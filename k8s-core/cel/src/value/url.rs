//! URLs.

/// An absolute URL, or an absolute path, as Go's `url.ParseRequestURI` takes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Url {
    text: String,
    pub(crate) scheme: String,
    /// Host with its port, if there is one; IPv6 addresses in brackets.
    pub(crate) host: String,
    pub(crate) hostname: String,
    pub(crate) port: String,
    pub(crate) path: String,
    pub(crate) query: String,
}

/// Returns true if each `%` is followed by two hexadecimal digits.
pub(crate) fn is_escaped_well(text: &str) -> bool {
    text.split('%').skip(1).all(|piece| {
        let digits = piece.as_bytes();
        digits.len() >= 2 && digits.iter().take(2).all(u8::is_ascii_hexdigit)
    })
}

impl Url {
    /// Returns the original text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Parses an absolute URI or an absolute path.
    pub(crate) fn parse(text: &str) -> Result<Url, String> {
        let wrong = |why: &str| format!("parse {:?}: {why}", crate::error::short(text));
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
