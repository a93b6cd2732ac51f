//! The port of a single program for its health and metrics.

use std::net::{IpAddr, SocketAddr};

use k8s_controllers::{health, metrics};
use k8s_metrics::Registry;
use tokio_util::sync::CancellationToken;

use super::exit::Failure;
use crate::control_plane::bind;

/// Listen address of a component's health and metrics. Unlike upstream's port of the same name, it is plain
/// HTTP without authentication, and only for this machine by default.
#[derive(Debug, clap::Args)]
pub(super) struct Health {
    /// Listen address of `--secure-port`: /healthz, /livez, /readyz and /metrics, unlike upstream in plain
    /// HTTP without authentication.
    #[arg(long, default_value = "127.0.0.1")]
    bind_address: IpAddr,
}

impl Health {
    /// Serves on `port` until the program stops. 0 disables it.
    pub(super) async fn serve(
        &self,
        port: u16,
        registry: &Registry,
        ready: impl Fn() -> Result<(), String> + Clone + Send + 'static,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        metrics::process::register(registry);
        serve(SocketAddr::new(self.bind_address, port), registry, ready, stop).await
    }
}

/// Serves a registry and the health of a program. Port 0 disables it.
///
/// # Errors
/// Address in use (4), not permitted (7).
#[expect(clippy::disallowed_methods, reason = "the task ends with its cancellation token")]
pub(super) async fn serve(
    address: SocketAddr,
    registry: &Registry,
    ready: impl Fn() -> Result<(), String> + Clone + Send + 'static,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    if address.port() != 0 {
        let listener = bind(address).await?;
        tokio::spawn(health::serve(listener, registry.clone(), ready, stop.clone()));
    }
    Ok(())
}
