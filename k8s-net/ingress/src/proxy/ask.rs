//! The question to another server whether a request is let in (`auth-url`).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header,
    uri::{Authority, PathAndQuery},
};
use hyper::body::Incoming;
use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
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

/// Asks about a request with these headers, but no server in `ranges`. Returns the headers for the backend,
/// or the client's answer.
pub(crate) async fn ask(
    pool: &Arc<Pool>,
    ranges: &[IpNet],
    auth: &Auth,
    headers: &HeaderMap,
    method: &http::Method,
    url: &str,
) -> Result<Vec<(HeaderName, HeaderValue)>, Box<Response<ResponseBody>>> {
    let refused = |status| Err(Box::new(plain(status)));
    let Some(uri) = &auth.uri else { return refused(StatusCode::SERVICE_UNAVAILABLE) };
    let answer = match question(pool, ranges, auth, uri, headers, method, url).await {
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
    ranges: &[IpNet],
    auth: &Auth,
    uri: &Uri,
    headers: &HeaderMap,
    method: &http::Method,
    url: &str,
) -> Result<Response<Incoming>, String> {
    let endpoint = match &auth.target {
        AuthTarget::Service(backend) => backend.choose(&[]).ok_or("its Service has no ready endpoints")?,
        AuthTarget::Host => resolve(uri, ranges).await?,
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

/// Looks a name up. Addresses of the machine itself and those in `ranges` are refused: NetworkPolicies do not
/// filter what the machine sends.
async fn resolve(uri: &Uri, ranges: &[IpNet]) -> Result<SocketAddr, String> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let found = tokio::net::lookup_host((host, uri.port_u16().unwrap_or(80))).await;
    let mut found = found.map_err(|e| e.to_string())?;
    let own = own_addresses().map_err(|e| e.to_string())?;
    found
        .find(|address| may_be_asked(address.ip(), ranges, &own))
        .ok_or_else(|| "it has no address that may be asked".into())
}

/// Returns false for addresses in the ranges, or of the machine itself.
fn may_be_asked(address: IpAddr, ranges: &[IpNet], own: &[IpAddr]) -> bool {
    let address = address.to_canonical();
    may_be_reached(address) && !own.contains(&address) && !ranges.iter().any(|range| range.contains(&address))
}

/// Returns the addresses of the machine's interfaces.
fn own_addresses() -> nix::Result<Vec<IpAddr>> {
    let ip = |address: SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    };
    Ok(getifaddrs()?.filter_map(|interface| interface.address.and_then(ip)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_cluster_and_of_the_machine_are_not_asked() {
        let ranges: Vec<IpNet> = ["10.42.0.0/16", "10.43.0.0/16", "fd00::/64", "198.51.100.9/32"]
            .map(|range| range.parse().unwrap())
            .to_vec();
        let own = [IpAddr::from([192, 0, 2, 7])];
        for (address, want) in [
            ("10.42.3.4", false),
            ("10.43.0.1", false),
            ("::ffff:10.42.3.4", false),
            ("fd00::7", false),
            ("198.51.100.9", false),
            ("192.0.2.7", false),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("10.44.0.1", true),
            ("192.0.2.8", true),
            ("2001:db8::1", true),
        ] {
            assert_eq!(may_be_asked(address.parse().unwrap(), &ranges, &own), want, "{address}");
        }
        assert!(own_addresses().unwrap().contains(&IpAddr::from([127, 0, 0, 1])));
    }

    #[tokio::test]
    async fn names_in_refused_ranges_have_no_address() {
        let asked = |uri: &'static str, ranges: &'static str| async move {
            resolve(&Uri::from_static(uri), &[ranges.parse().unwrap()]).await
        };
        assert!(asked("http://10.42.0.9:8080/", "10.42.0.0/16").await.is_err());
        let outside = SocketAddr::from(([10, 44, 0, 9], 8080));
        assert_eq!(asked("http://10.44.0.9:8080/", "10.42.0.0/16").await, Ok(outside));
    }
}
