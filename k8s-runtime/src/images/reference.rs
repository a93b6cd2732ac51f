//! Image references: `[registry/]repository[:tag][@digest]`.

use std::fmt;

use crate::api::RuntimeError;

/// A normalized reference. The defaults are Docker's: `nginx` is `docker.io/library/nginx:latest`.
///
/// ```
/// use k8s_runtime::images::Reference;
/// let short = Reference::parse("nginx")?;
/// assert_eq!(short.to_string(), "docker.io/library/nginx:latest");
/// let own = Reference::parse("registry.example.com:5000/shop/web:1.2")?;
/// assert_eq!((own.name().as_str(), own.version()), ("registry.example.com:5000/shop/web", "1.2"));
/// assert!(Reference::parse("Not Valid").is_err());
/// # Ok::<(), k8s_runtime::RuntimeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// Host of the registry, with an optional port.
    pub registry: String,
    /// Repository in the registry.
    pub repository: String,
    /// Tag. `None`: only with a digest.
    pub tag: Option<String>,
    /// Digest, `sha256:<hex>`. `None`: by tag only.
    pub digest: Option<String>,
}

/// Returns `true` for a host name or a bracketed IPv6 address, with an optional port.
fn is_registry(text: &str) -> bool {
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        let port_fine = rest.is_empty() || rest.strip_prefix(':').is_some_and(digits);
        return port_fine
            && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
            && !address.is_empty();
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let label_fine = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    port.is_none_or(digits) && host.split('.').all(label_fine)
}

impl Reference {
    /// Parses and normalizes a reference.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] with upstream's message.
    pub fn parse(text: &str) -> Result<Reference, RuntimeError> {
        let invalid =
            || RuntimeError::Invalid(format!("couldn't parse image name {text:?}: invalid reference format"));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let (registry, repository) = match rest.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            Some(_) => ("docker.io", rest.to_owned()),
            None => ("docker.io", format!("library/{rest}")),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let host_fine = is_registry(registry);
        let component_fine = |part: &str| {
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            // Separators: a dot, one or two underscores, or any number of dashes.
            let separators =
                part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).filter(|s| !s.is_empty());
            edge(part.chars().next())
                && edge(part.chars().next_back())
                && separators
                    .into_iter()
                    .all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
        };
        let tag_fine = |tag: &str| {
            let first = tag.chars().next();
            tag.len() <= 128
                && first.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
                && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if rest.is_empty()
            || !host_fine
            || repository.len() > 255
            || !repository.split('/').all(component_fine)
            || !tag.is_none_or(tag_fine)
            || digest.is_some_and(|d| digest_hex(d).is_none())
        {
            return Err(invalid());
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Reference { registry: registry.to_owned(), repository, tag, digest: digest.map(str::to_owned) })
    }

    /// Returns registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Returns the version for registry requests: the digest, else the tag.
    pub fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Returns the hexadecimal part of a valid `sha256:` digest.
pub(crate) fn digest_hex(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let fine = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    fine.then_some(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |text: &str, want: &str| {
            assert_eq!(Reference::parse(text).map(|r| r.to_string()).ok().as_deref(), Some(want), "{text}");
        };
        let digest = format!("sha256:{}", "a".repeat(64));
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.7.9", "docker.io/library/nginx:1.7.9");
        check("me/app", "docker.io/me/app:latest");
        check("gcr.io/google/x:v1", "gcr.io/google/x:v1");
        check("localhost/x", "localhost/x:latest");
        check("localhost:5000/a/b:t", "localhost:5000/a/b:t");
        check(&format!("busybox@{digest}"), &format!("docker.io/library/busybox@{digest}"));
        check(&format!("r.io/b:1@{digest}"), &format!("r.io/b:1@{digest}"));
        for bad in [
            "",
            ":",
            "UPPER",
            "a//b",
            "a:b:c",
            "nginx:",
            "nginx@sha256:12",
            "a b",
            "-x",
            "x/",
            "../x",
            "nginx:-t",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} parsed");
        }
    }
}
