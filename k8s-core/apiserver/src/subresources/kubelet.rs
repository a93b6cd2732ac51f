//! Subresources forwarded to a kubelet or pod: `log`, `exec`, `attach`, `portforward`, `proxy`.

mod connect_options;
mod log_options;
mod target;

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_core::{
    client::{Body, BoxError, empty_body},
    status::{ApiStatus, Reason},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::{
    admission::Connection,
    call::Call,
    proxy::{GlobalOnly, Links, NotAllowed, exchange, forwarded},
    request::RequestInfo,
    resources::{Resource, strategy::Proxied},
    state::State,
    storage::current,
    value::{array_at, object_at, str_at},
};
use target::Target;

fn encode(value: &str) -> String {
    utf8_percent_encode(value, NON_ALPHANUMERIC).to_string()
}

/// Answers `log`, `exec`, `attach`, `portforward` and `proxy`.
pub(crate) async fn handle(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let info = &call.info;
    if info.subresource != "log" && info.subresource != "proxy" {
        // A WebSocket begins with a GET: a user who may only read must not run commands.
        state.authorization.may_create(&call.user, &call.info).await?;
    }
    if info.subresource != "log" {
        let options = connect_options::of(resource, info, k8s_core::client::LongQuery::of(request));
        let (user, request) = (&call.user, &call.info);
        let connection = Connection { user, resource, request, options: &options, call };
        state.admission.connect(&connection).await?;
    }
    if info.subresource == "proxy" {
        if let Some(redirect) = to_root(info, request) {
            return Ok(redirect);
        }
        let target = match resource.strategy.proxied {
            None => return Err(ApiStatus::method_not_allowed()),
            Some(Proxied::Pod) => target::of_pod(state, call, resource)?,
            Some(Proxied::Service) => target::of_service(state, call)?,
            Some(Proxied::Node) => match target::of_node(state, call, resource).await? {
                target::Node::Kubelet(node) => {
                    let path = with_query(if info.rest.is_empty() { "/" } else { &info.rest }, request);
                    // The proxy reaches any path: it must not lead to the server's own machine.
                    request.extensions_mut().insert(GlobalOnly);
                    let links = Links::new(proxy_path(info), "", request.headers());
                    links.announce(&info.rest, request.headers_mut());
                    let response = to_node(state, &node, &path, request).await?;
                    return links.rewrite(response).await.map_err(unreachable);
                }
                target::Node::Port(target) => target,
            },
        };
        return to_address(call, &target, request).await;
    }
    let (_, pod) = current(state, resource, &resource.key(&info.namespace, &info.name), &info.name)?;
    to_pod(state, call, &pod, request).await
}

/// Returns the path of the proxy that a request is for, without the path at its target.
fn proxy_path(info: &RequestInfo) -> &str {
    info.path.strip_suffix(&*info.rest).unwrap_or(&info.path)
}

fn unreachable(error: BoxError) -> ApiStatus {
    ApiStatus::of(Reason::ServiceUnavailable, format!("error trying to reach service: {error}"))
}

/// Redirects a proxied request without a path to the root, so that relative links in the response work.
fn to_root(info: &RequestInfo, request: &Request<Body>) -> Option<Response<Body>> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !info.rest.is_empty() || !reads || request.headers().contains_key(header::UPGRADE) {
        return None;
    }
    let location = HeaderValue::from_str(&with_query(&format!("{}/", info.path), request)).ok()?;
    let mut response = Response::new(empty_body());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, location);
    Some(response)
}

fn with_query(path: &str, request: &Request<Body>) -> String {
    match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// Returns the container that a request is for.
fn container(call: &Call, pod: &Value) -> Result<String, ApiStatus> {
    let names = |field: &str| -> Vec<String> {
        array_at(pod, &format!("/spec/{field}")).iter().map(|c| str_at(c, "/name").to_owned()).collect()
    };
    let (mains, inits) = (names("containers"), names("initContainers"));
    let asked = call.query.get("container");
    let all = mains.iter().chain(&inits).cloned().collect::<Vec<_>>();
    if !asked.is_empty() {
        if all.iter().chain(&names("ephemeralContainers")).any(|n| n == asked) {
            return Ok(asked.to_owned());
        }
        return Err(ApiStatus::bad_request(format!(
            "container {asked} is not valid for pod {}",
            call.info.name
        )));
    }
    if let Some(named) = object_at(pod, "/metadata/annotations")
        .and_then(|a| a.get("kubectl.kubernetes.io/default-container"))
        .and_then(Value::as_str)
        .filter(|n| all.iter().any(|a| a == n))
    {
        return Ok(named.to_owned());
    }
    match mains.as_slice() {
        [one] => Ok(one.clone()),
        _ => {
            let choices = mains.join(" ");
            let mut message = format!(
                "a container name must be specified for pod {}, choose one of: [{choices}]",
                call.info.name
            );
            if !inits.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", inits.join(" ")));
            }
            Err(ApiStatus::bad_request(message))
        }
    }
}

async fn to_pod(
    state: &Arc<State>,
    call: &Call,
    pod: &Value,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let info = &call.info;
    let (namespace, name) = (encode(&info.namespace), encode(&info.name));
    let target = match info.subresource.as_str() {
        "portforward" => format!("/portForward/{namespace}/{name}"),
        part => {
            if part == "log" {
                log_options::check(&call.query, &info.name)?;
            }
            let container = container(call, pod)?;
            let path = match part {
                "log" => format!("/containerLogs/{namespace}/{name}/{}", encode(&container)),
                other => format!("/{other}/{namespace}/{name}/{}", encode(&container)),
            };
            if part == "log" && str_at(pod, "/spec/nodeName").is_empty() {
                // A pod without a node has no log.
                return Ok(crate::respond::text(StatusCode::OK, ""));
            }
            path
        }
    };
    let node_name = str_at(pod, "/spec/nodeName");
    if node_name.is_empty() {
        return Err(ApiStatus::bad_request(format!("pod {} does not have a host assigned", info.name)));
    }
    let stored =
        state.store.get("nodes", node_name).ok_or_else(|| ApiStatus::not_found("", "nodes", node_name))?;
    let node: Value = serde_json::from_slice(&stored.json).map_err(ApiStatus::internal)?;
    let target = with_query(&target, request);
    to_node(state, &node, &target, request).await
}

async fn to_node(
    state: &Arc<State>,
    node: &Value,
    target: &str,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let Some(nodes) = state.nodes.clone() else {
        return Err(ApiStatus::of(Reason::ServiceUnavailable, "this server has no way to reach kubelets"));
    };
    let mut out = forwarded(target, request)?;
    out.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("kubelet"));
    nodes.call(node, out).await.map_err(|e| {
        if e.is::<NotAllowed>() {
            return ApiStatus::bad_request(e.to_string());
        }
        let name = str_at(node, "/metadata/name");
        ApiStatus::internal(format!("error dialing the kubelet of node {name}: {e}"))
    })
}

async fn to_address(
    call: &Call,
    target: &Target,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let path = with_query(if call.info.rest.is_empty() { "/" } else { &call.info.rest }, request);
    let mut out = forwarded(&path, request)?;
    let address = target.address.to_string();
    let links = Links::new(proxy_path(&call.info), &address, out.headers());
    links.announce(&call.info.rest, out.headers_mut());
    if let Ok(host) = HeaderValue::from_str(&address) {
        out.headers_mut().insert(header::HOST, host);
    }
    let response = connect_and_send(target, out).await?;
    links.rewrite(response).await.map_err(unreachable)
}

async fn connect_and_send(target: &Target, out: Request<Body>) -> Result<Response<Body>, ApiStatus> {
    let connect =
        tokio::time::timeout(std::time::Duration::from_secs(10), TcpStream::connect(target.address));
    let tcp = match connect.await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(e)) => return Err(unreachable(e.into())),
        Err(_) => return Err(unreachable(format!("dial tcp {}: i/o timeout", target.address).into())),
    };
    if !target.tls {
        return exchange(TokioIo::new(tcp), out).await.map_err(unreachable);
    }
    // As upstream: the certificate of a pod is not verified.
    let tls = crate::webhook_client::unverified().map_err(|e| unreachable(e.into()))?;
    let host = target.address.ip().to_string();
    let connecting = tls.connect(&host, tcp);
    match tokio::time::timeout(std::time::Duration::from_secs(10), connecting).await {
        Ok(Ok(tls)) => exchange(TokioIo::new(tls), out).await.map_err(unreachable),
        Ok(Err(e)) => Err(unreachable(e.into())),
        Err(_) => Err(unreachable("net/http: TLS handshake timeout".into())),
    }
}
