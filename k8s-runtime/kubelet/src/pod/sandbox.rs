//! Creates and connects a pod's sandbox, and takes a pod down.

use std::{collections::BTreeMap, fs, io, net::IpAddr, path::PathBuf, sync::Arc};

use k8s_core::meta::ObjectExt;
use k8s_net::pod::{HostPort, PodAttachment};
use k8s_runtime::{RuntimeError, SandboxId, SandboxSpec, SandboxStatus, beneath};

use super::{admit, records::keys};
use crate::{cgroups, context::Context, dns, resources, types::*, volumes};

/// Builds the specification of a pod's sandbox.
pub(crate) fn spec(cx: &Context, pod: &Pod, attempt: u32) -> SandboxSpec {
    let spec = pod.spec.clone().unwrap_or_default();
    let security = spec.security_context.clone().unwrap_or_default();
    let labels = pod.metadata.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone()));
    let own = [
        (keys::POD_NAME.to_owned(), pod.name().to_owned()),
        (keys::POD_NAMESPACE.to_owned(), pod.namespace().to_owned()),
        (keys::POD_UID.to_owned(), pod.uid().to_owned()),
    ];
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    SandboxSpec {
        name: pod.name().to_owned(),
        namespace: pod.namespace().to_owned(),
        uid: pod.uid().to_owned(),
        attempt,
        hostname: dns::hostname(pod, &cx.config),
        resolv_conf: dns::resolv_conf(pod, &cx.config),
        host_network: spec.host_network == Some(true),
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        share_process_namespace: spec.share_process_namespace == Some(true),
        sysctls: security.sysctls.iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
        cgroup_parent: resources::cgroup_parent(resources::qos(&spec), pod.uid()),
        resources: cgroups::pod(&spec),
        log_directory: cx.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid()),
        labels: labels.chain(own).collect(),
        annotations: annotations(pod, grace),
    }
}

/// Returns the annotations of a sandbox: the pod's, as upstream gives them to a CRI runtime, and ours.
/// Without `kubectl apply`'s copy of the object, which would be kept once more for each pod.
fn annotations(pod: &Pod, grace: i64) -> BTreeMap<String, String> {
    let mut all = pod.metadata.annotations.clone().unwrap_or_default();
    all.remove("kubectl.kubernetes.io/last-applied-configuration");
    all.insert(keys::GRACE.to_owned(), grace.to_string());
    all
}

/// Returns the host ports of a pod.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let containers =
        pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    let port = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
    ports
        .filter_map(|p| {
            Some(HostPort {
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                host_ip: p.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: port(p.host_port?)?,
                container_port: port(p.container_port)?,
            })
        })
        .collect()
}

fn attachment(sandbox: &SandboxStatus, host_ports: Vec<HostPort>) -> Option<PodAttachment> {
    Some(PodAttachment {
        sandbox: sandbox.id.0.clone(),
        namespace: sandbox.spec.namespace.clone(),
        name: sandbox.spec.name.clone(),
        netns: sandbox.netns.clone()?,
        host_ports,
    })
}

/// Connects a sandbox to the network and returns its addresses. Idempotent.
pub(crate) async fn connect(cx: &Context, pod: &Pod, sandbox: &SandboxStatus) -> Result<Vec<IpAddr>, String> {
    if sandbox.spec.host_network {
        return Ok(cx.node_ips().to_vec());
    }
    if !sandbox.ips.is_empty() {
        return Ok(sandbox.ips.clone());
    }
    let (Some(network), Some(attachment)) = (&cx.network, attachment(sandbox, host_ports(pod))) else {
        return Ok(Vec::new());
    };
    network.attach(&attachment).await.map_err(|e| format!("failed to set up pod network: {e}"))
}

async fn disconnect(cx: &Context, sandbox: &SandboxStatus) -> Result<(), String> {
    let (Some(network), Some(attachment)) = (&cx.network, attachment(sandbox, Vec::new())) else {
        return Ok(());
    };
    network.detach(&attachment).await.map_err(|e| format!("failed to tear down pod network: {e}"))
}

/// Removes `old`, then creates and connects a sandbox.
pub(crate) async fn make(
    cx: &Context,
    pod: &Pod,
    attempt: u32,
    old: Option<&SandboxStatus>,
) -> Result<(SandboxStatus, Vec<IpAddr>), String> {
    if let Some(old) = old {
        disconnect(cx, old).await?;
        gone_is_fine(cx.runtime.remove_sandbox(&old.id).await).map_err(|e| e.to_string())?;
        cx.disown_sandbox(&old.id);
    }
    admit::for_sandbox(cx, pod).await?;
    let spec = spec(cx, pod, attempt);
    fs::create_dir_all(&spec.log_directory).map_err(|e| format!("create {:?}: {e}", spec.log_directory))?;
    let sandbox = cx.runtime.run_sandbox(&spec).await.map_err(|e| e.to_string())?;
    cx.own_sandbox(&sandbox.id, pod.uid());
    match connect(cx, pod, &sandbox).await {
        Ok(ips) => Ok((sandbox, ips)),
        Err(why) => {
            // The sandbox is useless without its network: remove it.
            let removed = cx.runtime.remove_sandbox(&sandbox.id).await;
            cx.disown_sandbox(&sandbox.id);
            match removed {
                Ok(()) => Err(why),
                Err(e) => Err(format!("{why}; then {e}")),
            }
        }
    }
}

pub(crate) fn gone_is_fine(result: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
    match result {
        Err(RuntimeError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

/// Extent of a take-down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Stop the sandbox and unmount; the containers' statuses and logs stay.
    Stop,
    /// Remove everything, logs and directories included.
    Remove,
}

/// Directories of a pod.
pub(crate) struct PodFiles {
    pub(crate) dir: PathBuf,
    pub(crate) logs: PathBuf,
}

/// Takes a pod down: network, sandboxes, volumes, files. Its containers must have exited. Idempotent.
pub(crate) async fn take_down(
    cx: &Context,
    sandboxes: &[Arc<SandboxStatus>],
    files: &PodFiles,
    extent: Extent,
) -> Result<(), String> {
    for sandbox in sandboxes {
        disconnect(cx, sandbox).await?;
        let id: &SandboxId = &sandbox.id;
        let done = match extent {
            Extent::Stop => cx.runtime.stop_sandbox(id).await,
            Extent::Remove => cx.runtime.remove_sandbox(id).await,
        };
        gone_is_fine(done).map_err(|e| format!("failed to stop sandbox {id}: {e}"))?;
        if extent == Extent::Remove {
            cx.disown_sandbox(id);
        }
    }
    let dir = match extent {
        Extent::Stop => files.dir.join("volumes"),
        Extent::Remove => files.dir.clone(),
    };
    volumes::cleanup::remove_pod_dir(&dir).map_err(|e| e.to_string())?;
    if extent == Extent::Remove {
        match beneath::remove_all(&files.logs) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(format!("remove {:?}: {e}", files.logs));
            }
            _ => {}
        }
    }
    Ok(())
}
