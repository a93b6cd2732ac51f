//! gzip compression of large responses to reads, but not watches.
//!
//! Responses below [`LEAST`] (upstream's limit) are not compressed, because it would cost more than it saves.
//! Lists are compressed in a streaming way.

use std::io::Write;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::stream;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use k8s_core::client::{Body, BoxError};

use crate::request::RequestInfo;

/// Minimum size of compressed responses, in bytes.
const LEAST: usize = 128 << 10;

/// Returns true if the response may be compressed.
pub(crate) fn is_wanted(headers: &HeaderMap, info: &RequestInfo) -> bool {
    let reads = matches!(info.verb.as_str(), "get" | "list") && info.subresource.is_empty();
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    reads
        && accepted.flat_map(|v| v.split(',')).any(|choice| {
            let mut parts = choice.split(';').map(str::trim);
            parts.next() == Some("gzip") && !parts.any(|p| p == "q=0")
        })
}

/// Compresses a response with gzip if it has at least [`LEAST`] bytes.
pub(crate) async fn gzip(response: Response<Body>) -> Response<Body> {
    let (mut parts, mut body) = response.into_parts();
    let mut begin = Vec::new();
    while begin.len() < LEAST {
        match body.frame().await {
            Some(Ok(frame)) => begin.extend_from_slice(&frame.into_data().unwrap_or_default()),
            // Forward the bytes read so far, then the body error.
            Some(Err(e)) => {
                let rest = stream::iter([Ok(Frame::data(Bytes::from(begin))), Err(e)]);
                return Response::from_parts(parts, StreamBody::new(rest).boxed_unsync());
            }
            None => return Response::from_parts(parts, k8s_core::client::body_from_bytes(begin)),
        }
    }
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    parts.headers.remove(header::CONTENT_LENGTH);
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let writing = (Some(encoder), body, Some(Bytes::from(begin)));
    let frames = stream::try_unfold(writing, |(encoder, mut body, begin)| async move {
        let Some(mut encoder) = encoder else { return Ok(None) };
        let next = match begin {
            Some(begin) => Some(begin),
            None => body.frame().await.transpose()?.map(|frame| frame.into_data().unwrap_or_default()),
        };
        match next {
            Some(bytes) => {
                encoder.write_all(&bytes)?;
                let out = Bytes::from(std::mem::take(encoder.get_mut()));
                Ok::<_, BoxError>(Some((Frame::data(out), (Some(encoder), body, None))))
            }
            None => Ok(Some((Frame::data(Bytes::from(encoder.finish()?)), (None, body, None)))),
        }
    });
    Response::from_parts(parts, StreamBody::new(frames).boxed_unsync())
}
