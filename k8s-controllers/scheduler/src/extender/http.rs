//! Requests to extenders over HTTP.

use std::{error::Error, time::Duration};

use async_trait::async_trait;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::BodyExt;
use k8s_core::client::{Body, Remote, RemoteConfig, Transport, body_from_bytes};

use super::{ExtenderError, Post};

/// Largest answer in bytes: that to a filter of 5,000 nodes of 6 KB each.
const LARGEST: usize = 32 << 20;

/// An extender's URL, with the connections to it.
pub(crate) struct Http {
    remote: Remote,
    /// The URL without a slash at the end.
    url: String,
    timeout: Duration,
}

impl Http {
    /// Checks the settings; opens no connection. `timeout` is for the whole of an exchange.
    ///
    /// # Errors
    /// The part of the settings that cannot be used.
    pub(crate) fn new(config: &RemoteConfig, timeout: Duration) -> Result<Self, String> {
        let url = config.server.trim_end_matches('/').to_owned();
        let parsed: Uri = url.parse().map_err(|e| format!("{url:?}: {e}"))?;
        let host = parsed.host().unwrap_or_default();
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || host.is_empty() {
            return Err(format!("{url:?} is not of the form http://HOST[:PORT]/PATH or https://..."));
        }
        if parsed.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("must not have a user name or password".into());
        }
        if parsed.query().is_some() {
            return Err("must not have a query".into());
        }
        let remote = Remote::new(config).map_err(|e| e.to_string())?;
        Ok(Http { remote, url, timeout })
    }

    /// Returns the URL of a verb.
    ///
    /// # Errors
    /// The verb is no URL path.
    pub(crate) fn url(&self, verb: &str) -> Result<Uri, String> {
        format!("{}/{verb}", self.url).parse().map_err(|e| format!("{verb:?}: {e}"))
    }

    async fn exchange(&self, verb: &str, body: Vec<u8>) -> Result<Result<Vec<u8>, StatusCode>, String> {
        let request: Request<Body> = Request::builder()
            .method(Method::POST)
            .uri(self.url(verb)?)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body_from_bytes(body))
            .map_err(|e| e.to_string())?;
        let response = self.remote.call(request).await.map_err(|e| causes(&*e))?;
        if response.status() != StatusCode::OK {
            return Ok(Err(response.status()));
        }
        let (mut body, mut answer) = (response.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            let data = frame.map_err(|e| causes(&*e))?.into_data().unwrap_or_default();
            if answer.len() + data.len() > LARGEST {
                return Err(format!("the answer is longer than {LARGEST} bytes"));
            }
            answer.extend_from_slice(&data);
        }
        Ok(Ok(answer))
    }
}

/// Returns an error with its causes: that of a connection does not say more than that it failed.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[async_trait]
impl Post for Http {
    async fn post(&self, verb: &str, body: Vec<u8>) -> Result<Vec<u8>, ExtenderError> {
        let url = || format!("{}/{verb}", self.url);
        let failed = |reason: String| ExtenderError::Failed { url: url(), reason };
        let late = |_| failed(format!("no answer within {:?}", self.timeout));
        match tokio::time::timeout(self.timeout, self.exchange(verb, body)).await.map_err(late)? {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(code)) => {
                Err(ExtenderError::Code { verb: verb.to_owned(), url: url(), code: code.as_u16() })
            }
            Err(reason) => Err(failed(reason)),
        }
    }
}
