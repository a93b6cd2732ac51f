//! The stand-in of etcd for Go's envtest: it is healthy, and holds nothing.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

use crate::{
    commands::{
        exit::{Code, Failure},
        stop_signal,
    },
    control_plane::bind,
};

/// Stand-in of etcd for Go's envtest. The objects are in the memory of the kube-apiserver stand-in.
#[derive(Debug, clap::Args)]
pub(in crate::commands) struct Etcd {
    /// URL to listen on.
    #[arg(long, value_name = "URL")]
    listen_client_urls: String,
    /// No effect.
    #[arg(long, value_name = "URL")]
    advertise_client_urls: Option<String>,
    /// No effect: there are no peers.
    #[arg(long, value_name = "URL")]
    listen_peer_urls: Option<String>,
    /// No effect: nothing is written.
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// No effect: nothing is written.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    unsafe_no_fsync: Option<String>,
}

impl Etcd {
    /// Answers health checks until a signal.
    #[expect(clippy::disallowed_methods, reason = "connections end with the program")]
    pub(in crate::commands) async fn run(self) -> Result<(), Failure> {
        let listener = bind(address(&self.listen_client_urls)?).await?;
        let serve = async {
            loop {
                let Ok((tcp, _)) = listener.accept().await else {
                    // A lack of descriptors passes.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request)) });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(tcp), service));
            }
        };
        tokio::select! {
            () = serve => {}
            () = stop_signal() => {}
        }
        Ok(())
    }
}

/// Returns the socket address of `http://HOST:PORT`.
fn address(url: &str) -> Result<SocketAddr, Failure> {
    let place = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let place = place.map(|place| place.replace("localhost", "127.0.0.1"));
    place.and_then(|place| place.parse().ok()).ok_or_else(|| {
        Failure::new(
            Code::Usage,
            format!("--listen-client-urls {url:?} is not of the form http://ADDRESS:PORT"),
        )
    })
}

fn answer(request: &http::Request<Incoming>) -> Response<Full<Bytes>> {
    let healthy = request.uri().path() == "/health";
    let (code, body) = if healthy {
        (StatusCode::OK, r#"{"health":"true","reason":""}"#)
    } else {
        (StatusCode::NOT_IMPLEMENTED, r#"{"message":"this is a stand-in of etcd that only answers /health"}"#)
    };
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_that_go_passes() {
        assert_eq!(address("http://127.0.0.1:2379").unwrap(), "127.0.0.1:2379".parse().unwrap());
        assert_eq!(address("http://localhost:1/").unwrap(), "127.0.0.1:1".parse().unwrap());
        assert!(address("https://127.0.0.1:1").is_err());
        assert!(address("http://127.0.0.1").is_err());
    }
}
