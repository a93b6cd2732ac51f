//! Content negotiation: the form of objects (whole, metadata only, Table) and the encoding of responses.

use std::cmp::Reverse;

use http::{HeaderMap, header};
use k8s_core::status::{ApiStatus, Reason};

/// Media type of Kubernetes protobuf.
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Media type of YAML.
pub(crate) const YAML: &str = "application/yaml";
/// Maximum number of media types that are examined in a header.
const MOST: usize = 64;

/// Form of the objects in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Complete objects: the client asked for no `as=`.
    Whole,
    /// `as=PartialObjectMetadata`: `metadata` without spec and status.
    Metadata,
    /// `as=Table`: columns for users, as kubectl prints them.
    Table,
}

/// Encoding of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// `application/json`, the default.
    Json,
    /// YAML: converted from JSON when the response leaves the server.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`; built-in types only.
    Protobuf,
}

/// Encodings that a response supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// JSON and YAML: objects of a type without protobuf encoding.
    Text,
    /// JSON, YAML and protobuf.
    All,
    /// JSON, YAML and protobuf; no Table: answers to questions, which are no objects in a list.
    NoTable,
    /// A watch, which has no YAML form.
    Stream {
        /// True if events have a protobuf encoding.
        protobuf: bool,
    },
}

impl Offer {
    fn has(self, encoding: Encoding, form: Form) -> bool {
        match (encoding, form) {
            (_, Form::Table) if self == Offer::NoTable => false,
            (Encoding::Json, _) => true,
            (Encoding::Yaml, _) => !matches!(self, Offer::Stream { .. }),
            // Table rows have no protobuf type; metadata has the same type for all kinds.
            (Encoding::Protobuf, Form::Table) => false,
            (Encoding::Protobuf, Form::Metadata) => true,
            (Encoding::Protobuf, Form::Whole) => {
                matches!(self, Offer::All | Offer::NoTable | Offer::Stream { protobuf: true })
            }
        }
    }

    fn names(self) -> &'static str {
        match self {
            Offer::Text => "application/json, application/yaml",
            Offer::All | Offer::NoTable => {
                "application/json, application/yaml, application/vnd.kubernetes.protobuf"
            }
            Offer::Stream { protobuf: true } => {
                "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
            }
            Offer::Stream { protobuf: false } => "application/json;stream=watch",
        }
    }
}

/// Returns the media types of an `Accept` header, best first: by quality, then by specificity, then in order.
fn choices(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let all = values.flat_map(|v| v.split(',')).map(str::trim).filter(|c| !c.is_empty());
    let mut ranked: Vec<((u16, usize), &str)> = all
        .take(MOST)
        .filter_map(|choice| {
            let quality = choice.split(';').find_map(|p| p.trim().strip_prefix("q="));
            let quality = quality.map_or(Some(1.0), |q| q.trim().parse::<f32>().ok())?.clamp(0.0, 1.0);
            let stars = choice.split(';').next().unwrap_or_default().matches('*').count();
            // In thousandths, the resolution of a quality value.
            (quality > 0.0).then_some((((quality * 1000.0) as u16, 2 - stars.min(2)), choice))
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| Reverse(*rank));
    ranked.into_iter().map(|(_, choice)| choice).collect()
}

/// Parses a media type with its parameters.
fn meaning(choice: &str) -> Option<(Form, Encoding)> {
    let mut parts = choice.split(';').map(str::trim);
    let encoding = match parts.next().unwrap_or_default() {
        PROTOBUF => Encoding::Protobuf,
        YAML => Encoding::Yaml,
        "application/json" | "application/*" | "*/*" => Encoding::Json,
        _ => return None,
    };
    let form = match parts.find_map(|p| p.strip_prefix("as=")) {
        None => Form::Whole,
        Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Form::Metadata,
        Some("Table") => Form::Table,
        Some(_) => return None,
    };
    Some((form, encoding))
}

/// Returns the best supported form and encoding of the `Accept` header.
///
/// # Errors
/// 406 if none is supported.
pub(crate) fn negotiate(headers: &HeaderMap, offer: Offer) -> Result<(Form, Encoding), ApiStatus> {
    if !headers.contains_key(header::ACCEPT) {
        return Ok((Form::Whole, Encoding::Json));
    }
    let choices = choices(headers);
    if choices.is_empty() && headers.get_all(header::ACCEPT).iter().all(|v| v.is_empty()) {
        return Ok((Form::Whole, Encoding::Json));
    }
    let media = |choice: &str| choice.split(';').next().map(str::trim).unwrap_or_default().to_owned();
    let known = choices.iter().any(|choice| meaning(&media(choice)).is_some());
    let best = choices.into_iter().filter_map(meaning).find(|(form, encoding)| offer.has(*encoding, *form));
    best.ok_or_else(|| {
        let names = offer.names();
        // As upstream: its router refuses media types, what is behind it refuses their parameters.
        let message = match known {
            true => format!("only the following media types are accepted: {names}"),
            false => format!("406: Not Acceptable\n\nAvailable representations: {names}"),
        };
        ApiStatus::of(Reason::NotAcceptable, message).about("", "", "")
    })
}

/// Returns the encoding of responses that are produced as JSON and converted when they leave the server.
#[must_use]
pub(crate) fn encoding(headers: &HeaderMap) -> Encoding {
    negotiate(headers, Offer::All).map_or(Encoding::Json, |(_, encoding)| encoding)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(accept: &str, offer: Offer, want: Option<(Form, Encoding)>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
        assert_eq!(negotiate(&headers, offer).ok(), want, "{accept} of {offer:?}");
    }

    #[test]
    fn the_best_that_can_be_given_is_given() {
        use Encoding::{Json, Protobuf, Yaml};
        use Form::{Metadata, Table, Whole};
        check("", Offer::All, Some((Whole, Json)));
        check("*/*", Offer::All, Some((Whole, Json)));
        check("application/yaml", Offer::Text, Some((Whole, Yaml)));
        check("application/vnd.kubernetes.protobuf, application/json", Offer::All, Some((Whole, Protobuf)));
        check("application/vnd.kubernetes.protobuf, application/json", Offer::Text, Some((Whole, Json)));
        check("application/vnd.kubernetes.protobuf", Offer::Text, None);
        check("application/json;q=0.5, application/yaml;q=0.9", Offer::All, Some((Whole, Yaml)));
        check("*/*, application/yaml", Offer::All, Some((Whole, Yaml)));
        check("application/yaml;q=0, application/json", Offer::All, Some((Whole, Json)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io, application/json",
            Offer::All,
            Some((Table, Json)),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata",
            Offer::Text,
            Some((Metadata, Protobuf)),
        );
        check("application/yaml", Offer::Stream { protobuf: true }, None);
        check("application/yaml, application/json", Offer::Stream { protobuf: true }, Some((Whole, Json)));
        check("text/html", Offer::All, None);
        check("application/json;as=Table;v=v1;g=meta.k8s.io", Offer::NoTable, None);
        check("application/json;as=Table;v=v1;g=meta.k8s.io, */*", Offer::NoTable, Some((Whole, Json)));
        check("application/json;q=nonsense", Offer::All, None);
    }
}
