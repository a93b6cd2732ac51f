//! Handlers of probes and lifecycle hooks: run a command, ask over HTTP, connect, wait.

use std::{net::IpAddr, time::Duration};

use k8s_runtime::ContainerId;

use super::check;
use crate::{context::Context, types::*};

/// Time limit of a hook without one of its own; the hook ends with its container.
const HOOK_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// The container of a probe or hook.
pub(crate) struct Target<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) id: &'a ContainerId,
    pub(crate) container: &'a Container,
    pub(crate) pod_ips: &'a [IpAddr],
}

impl Target<'_> {
    /// Resolves a port number or name.
    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => match name.parse() {
                Ok(number) => number,
                Err(_) => self
                    .container
                    .ports
                    .iter()
                    .flatten()
                    .find(|p| p.name.as_ref() == Some(name))
                    .map(|p| p.container_port)
                    .ok_or_else(|| {
                        format!("couldn't find port: {name:?} in container {:?}", self.container.name)
                    })?,
            },
        };
        u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
    }

    fn host(&self, host: Option<&str>) -> Result<String, String> {
        match host.filter(|h| !h.is_empty()) {
            Some(host) => Ok(host.to_owned()),
            None => {
                self.pod_ips.first().map(ToString::to_string).ok_or_else(|| "the pod has no address".into())
            }
        }
    }

    async fn http(&self, action: &HTTPGetAction, timeout: Duration) -> Result<(), String> {
        let headers = action.http_headers.iter().flatten();
        let request = check::Get {
            tls: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
            host: self.host(action.host.as_deref())?,
            port: self.port(&action.port)?,
            path: action.path.clone().unwrap_or_default(),
            headers: headers.map(|h| (h.name.clone(), h.value.clone())).collect(),
        };
        check::http(&request, timeout).await
    }

    /// Runs the probe once, within the timeout.
    pub(crate) async fn probe(&self, probe: &Probe, timeout: Duration) -> Result<(), String> {
        if let Some(action) = &probe.exec {
            let command = action.command.clone().unwrap_or_default();
            return check::exec(self.cx, self.id, command, timeout).await;
        }
        if let Some(action) = &probe.http_get {
            return self.http(action, timeout).await;
        }
        if let Some(action) = &probe.tcp_socket {
            let (host, port) = (self.host(action.host.as_deref())?, self.port(&action.port)?);
            return check::tcp(&host, port, timeout).await;
        }
        if let Some(action) = &probe.grpc {
            let port = self.port(&IntOrString::Int(action.port))?;
            let service = action.service.as_deref().unwrap_or_default();
            return check::grpc(&self.host(None)?, port, service, timeout).await;
        }
        Err("missing probe handler".into())
    }

    /// Runs a lifecycle hook to its end.
    pub(crate) async fn run(&self, hook: &LifecycleHandler) -> Result<(), String> {
        if let Some(action) = &hook.exec {
            let command = action.command.clone().unwrap_or_default();
            return check::exec(self.cx, self.id, command, HOOK_LIMIT).await;
        }
        if let Some(action) = &hook.http_get {
            return self.http(action, Duration::from_secs(60)).await;
        }
        if let Some(action) = &hook.sleep {
            self.cx.clock.sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
            return Ok(());
        }
        if let Some(action) = &hook.tcp_socket {
            let (host, port) = (self.host(action.host.as_deref())?, self.port(&action.port)?);
            return check::tcp(&host, port, Duration::from_secs(60)).await;
        }
        Err("invalid handler: no action".into())
    }
}
