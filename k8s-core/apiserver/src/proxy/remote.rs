//! Kubelets of other machines.

use std::net::SocketAddr;

use async_trait::async_trait;
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use k8s_core::client::{Body, BoxError, LongQuery};
use serde_json::Value;
use tokio::net::TcpStream;

use super::{GlobalOnly, NodeConnector, NotAllowed, exchange, is_global_unicast};
use crate::{
    tls::Tls,
    value::{array_at, int_at, str_at},
};

/// Reaches kubelets over TLS, with a client certificate that they trust.
#[derive(Clone)]
pub struct RemoteKubelets {
    tls: Tls,
}

impl std::fmt::Debug for RemoteKubelets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RemoteKubelets")
    }
}

impl RemoteKubelets {
    /// Takes the TLS settings of the connections.
    #[must_use]
    pub fn new(tls: k8s_tls::ClientConfig) -> Self {
        RemoteKubelets { tls: Tls::of(tls) }
    }
}

#[async_trait]
impl NodeConnector for RemoteKubelets {
    async fn call(&self, node: &Value, mut request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let addresses = array_at(node, "/status/addresses");
        let address = ["InternalIP", "ExternalIP", "Hostname"]
            .iter()
            .find_map(|kind| addresses.iter().find(|a| str_at(a, "/type") == *kind))
            .map(|a| str_at(a, "/address"))
            .ok_or("the node has no address")?;
        let port = int_at(node, "/status/daemonEndpoints/kubeletEndpoint/Port").unwrap_or(10250);
        let all: Vec<SocketAddr> = tokio::net::lookup_host((address, u16::try_from(port)?)).await?.collect();
        // Connects to the addresses that were checked: the name may resolve differently the next time.
        let refused = all.iter().any(|a| !is_global_unicast(a.ip()));
        if refused && request.extensions().get::<GlobalOnly>().is_some() {
            return Err(NotAllowed.into());
        }
        let tcp = TcpStream::connect(all.as_slice()).await?;
        tcp.set_nodelay(true)?;
        let tls = self.tls.connect(address, tcp).await?;
        if let Some(query) = request.extensions().get::<LongQuery>().and_then(LongQuery::header) {
            request.headers_mut().insert(LongQuery::HEADER, query);
        }
        exchange(TokioIo::new(tls), request).await
    }
}
