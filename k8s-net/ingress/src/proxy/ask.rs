//! The question to another server whether a request is let in (`auth-url`).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header,
    uri::{Authority, PathAndQuery},
};
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    body::{RequestBody, ResponseBody},
    forward::{plain, redirect},
    pool::{Key, Pool},
};
use crate::{
    access::{Auth, AuthTarget},
    plan::may_be_reached,
    settings::Protocol,
};

/// Time for the answer.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(5);
/// Headers of an answer that say how to log in.
const OF_REFUSALS: [HeaderName; 2] = [header::WWW_AUTHENTICATE, header::SET_COOKIE];

/// Asks about a request with these headers. Returns the headers for the backend, or the client's answer.
pub(crate) async fn ask(
    pool: &Arc<Pool>,
    auth: &Auth,
    headers: &HeaderMap,
    method: &http::Method,
    url: &str,
) -> Result<Vec<(HeaderName, HeaderValue)>, Box<Response<ResponseBody>>> {
    let refused = |status| Err(Box::new(plain(status)));
    let Some(uri) = &auth.uri else { return refused(StatusCode::SERVICE_UNAVAILABLE) };
    let answer = match question(pool, auth, uri, headers, method, url).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(%uri, error, "the server of auth-url does not answer");
            return refused(StatusCode::INTERNAL_SERVER_ERROR);
        }
    };
    match answer.status() {
        status if status.is_success() => {
            let mut passed = Vec::new();
            for name in auth.response_headers.iter().filter(|name| is_plain(name)) {
                passed
                    .extend(answer.headers().get_all(name).iter().map(|value| (name.clone(), value.clone())));
            }
            Ok(passed)
        }
        StatusCode::UNAUTHORIZED if auth.signin.is_some() => {
            let signin = auth.signin.as_deref().unwrap_or_default();
            let escaped = utf8_percent_encode(url, NON_ALPHANUMERIC).to_string();
            let target = match signin.strip_suffix("$escaped_request_uri") {
                Some(start) => format!("{start}{escaped}"),
                None => {
                    let joint = if signin.contains('?') { '&' } else { '?' };
                    format!("{signin}{joint}rd={escaped}")
                }
            };
            Err(Box::new(redirect(StatusCode::FOUND, &target)))
        }
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            let mut response = plain(status);
            for name in &OF_REFUSALS {
                for value in answer.headers().get_all(name) {
                    response.headers_mut().append(name, value.clone());
                }
            }
            Err(Box::new(response))
        }
        _ => refused(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Returns false for headers that would change how a request is read.
pub(crate) fn is_plain(name: &HeaderName) -> bool {
    ![header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE]
        .contains(name)
}

async fn question(
    pool: &Arc<Pool>,
    auth: &Auth,
    uri: &Uri,
    headers: &HeaderMap,
    method: &http::Method,
    url: &str,
) -> Result<Response<Incoming>, String> {
    let endpoint = match &auth.target {
        AuthTarget::Service(backend) => backend.choose(&[]).ok_or("its Service has no ready endpoints")?,
        AuthTarget::Host => resolve(uri).await?,
    };
    let authority = uri.authority().map(Authority::as_str).unwrap_or_default();
    let mut request = Request::new(RequestBody::empty());
    *request.method_mut() = auth.method.clone();
    *request.uri_mut() = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")).into();
    let mut sent = headers.clone();
    for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::EXPECT, header::RANGE] {
        sent.remove(name);
    }
    let value = |text: &str| HeaderValue::try_from(text).map_err(|e| e.to_string());
    sent.insert(header::HOST, value(authority)?);
    sent.insert("x-original-url", value(url)?);
    sent.insert("x-original-method", value(method.as_str())?);
    sent.insert("x-auth-request-redirect", value(url)?);
    *request.headers_mut() = sent;
    let key = Key { endpoint, protocol: Protocol::Http };
    let asking = async {
        // The answer's body is of no interest: a new connection is cheaper than to read it.
        let connection = pool.connect(key, CONNECT, true).await.map_err(|e| e.to_string())?;
        let sent = connection.send(pool, key, request, None).await.map_err(|e| e.error.to_string())?;
        Ok(sent.0)
    };
    tokio::time::timeout(PATIENCE, asking).await.map_err(|_| "no answer in time".to_owned())?
}

/// Looks a name up. Addresses of the machine itself are refused.
async fn resolve(uri: &Uri) -> Result<SocketAddr, String> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let found = tokio::net::lookup_host((host, uri.port_u16().unwrap_or(80))).await;
    let mut found = found.map_err(|e| e.to_string())?;
    found
        .find(|address| may_be_reached(address.ip()))
        .ok_or_else(|| "it has no address that may be asked".into())
}
