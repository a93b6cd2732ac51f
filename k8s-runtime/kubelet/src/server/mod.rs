//! The kubelet's API.

use std::{net::SocketAddr, sync::Arc};

use http::{Request, Response};
use k8s_core::client::{Body, body_from_bytes};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{config::Config, context::Context, kubelet::KubeletError};

/// The kubelet's API, callable in this process. Cheap to clone.
#[derive(Clone)]
pub struct KubeletApi {
    cx: Arc<Context>,
}

impl KubeletApi {
    pub(crate) fn new(cx: Arc<Context>) -> Self {
        KubeletApi { cx }
    }

    /// Answers a request.
    pub async fn handle<B>(&self, _request: Request<B>) -> Response<Body> {
        let _ = &self.cx;
        Response::new(body_from_bytes("ok"))
    }
}

pub(crate) async fn bind(_config: &Config) -> Result<Option<TcpListener>, KubeletError> {
    Ok(None)
}

pub(crate) async fn serve(_listener: TcpListener, _api: KubeletApi, _stop: CancellationToken) {}

#[allow(dead_code)]
fn _address(_: SocketAddr) {}
