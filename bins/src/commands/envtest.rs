//! `hyperkube envtest`: an API server for a test suite, in memory and on a loopback port.
//!
//! Suites in any language use its kubeconfig. Go's envtest starts programs of its own: for it there are
//! stand-ins of `etcd` and `kube-apiserver` ([`stand_ins`]), which its variable `KUBEBUILDER_ASSETS` names.
//! As with Go's envtest, no controllers run unless nodes are asked for.

mod etcd;
mod kube_apiserver;
mod stand_ins;

use std::{
    ffi::OsString,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use k8s_core::client::{Client, Kubeconfig};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    exit::{Code, Failure},
    stop_signal,
};
use crate::{
    Cluster, Node,
    apply::apply,
    control_plane::{Api, ApiConfig},
    paths::Paths,
    pki::refresh_private,
};

pub(super) use etcd::Etcd;
pub(super) use kube_apiserver::KubeApiServer;

/// Admission plugins that are off, as in Go's envtest: without controllers nothing makes service accounts.
const PLUGINS_OFF: [&str; 1] = ["ServiceAccount"];

/// Run an API server for a test suite, in memory and on a loopback port.
#[derive(Debug, clap::Args)]
pub(super) struct Envtest {
    /// Listen port of the API on 127.0.0.1; 0 picks a free one.
    #[arg(long, default_value_t = 0)]
    secure_port: u16,
    /// Also write the administrator's kubeconfig to this path.
    #[arg(long, value_name = "FILE")]
    write_kubeconfig: Option<PathBuf>,
    /// Install the CustomResourceDefinitions of a file, or of the YAML and JSON files in a directory; may be
    /// repeated.
    #[arg(long, value_name = "PATH")]
    crds: Vec<PathBuf>,
    /// Number of simulated nodes, with all controllers and the scheduler.
    #[arg(long, default_value_t = 0)]
    nodes: usize,
    /// Duration of the start of the nodes' containers (`2s`, `500ms`).
    #[arg(long, default_value = "0s", value_parser = crate::duration::parse)]
    simulated_start_delay: Duration,
    /// Only write stand-ins of etcd and kube-apiserver for Go's envtest into this directory, print the
    /// variable that names it, and exit.
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["command", "nodes", "crds", "write_kubeconfig"])]
    assets: Option<PathBuf>,
    /// Command of a test suite. It runs with KUBECONFIG and KUBEBUILDER_ASSETS; its exit code is returned.
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// A running server.
enum Serving {
    /// An API server alone.
    Api(Box<Api>),
    /// A cluster with simulated nodes.
    Cluster(Box<Cluster>),
}

impl Serving {
    fn client(&self) -> Client {
        match self {
            Serving::Api(api) => api.client(),
            Serving::Cluster(cluster) => cluster.client(),
        }
    }

    fn kubeconfig(&self) -> Result<Kubeconfig, Failure> {
        Ok(match self {
            Serving::Api(api) => api.admin_kubeconfig()?,
            Serving::Cluster(cluster) => cluster.admin_kubeconfig()?,
        })
    }

    /// Stops it, and removes what nodes have mounted and written.
    async fn down(self) -> Result<(), Failure> {
        match self {
            Serving::Api(api) => api.shutdown().await,
            Serving::Cluster(cluster) => cluster.down().await?,
        }
        Ok(())
    }
}

impl Envtest {
    /// Runs until a signal, or until the suite's command ends.
    pub(super) async fn run(self, name: &str) -> Result<ExitCode, Failure> {
        if let Some(directory) = &self.assets {
            let directory = std::path::absolute(directory).map_err(Failure::io("--assets"))?;
            stand_ins::write(&directory)?;
            println!("export KUBEBUILDER_ASSETS={}", stand_ins::quoted(&directory));
            return Ok(ExitCode::SUCCESS);
        }
        let directory = tempfile::Builder::new()
            .prefix(&format!("{name}-envtest-"))
            .tempdir()
            .map_err(Failure::io("make a temporary directory"))?;
        let serving = self.start(name, &directory).await?;
        let result = self.serve(&serving, directory.path()).await;
        serving.down().await?;
        directory.close().map_err(Failure::io("remove the temporary directory"))?;
        result
    }

    async fn start(&self, name: &str, directory: &TempDir) -> Result<Serving, Failure> {
        let data = directory.path().join("data");
        let listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.secure_port);
        if self.nodes > 0 {
            let cluster = Cluster::builder().name(name).data_dir(data).memory();
            let cluster = cluster.simulated_start_delay(self.simulated_start_delay);
            let cluster = cluster.node(Node::simulated(self.nodes)).listen(listen).start().await?;
            return Ok(Serving::Cluster(Box::new(cluster)));
        }
        let config = ApiConfig {
            listen: Some(listen),
            advertise: crate::network::own_address().unwrap_or(listen.ip()),
            memory: true,
            ..ApiConfig::default()
        };
        let paths = Paths::new(name, &data)?;
        let api = Api::start(&paths, config, vec![Box::new(|server| server.without_plugins(PLUGINS_OFF))]);
        Ok(Serving::Api(Box::new(api.await?)))
    }

    /// Installs the definitions, then runs the command or waits for a signal.
    async fn serve(&self, serving: &Serving, directory: &Path) -> Result<ExitCode, Failure> {
        let client = serving.client();
        for path in &self.crds {
            install(&client, path).await?;
        }
        let kubeconfig = serving.kubeconfig()?.to_yaml();
        let file = directory.join("kubeconfig");
        for file in std::iter::once(&file).chain(&self.write_kubeconfig) {
            refresh_private(file, kubeconfig.as_bytes())
                .map_err(Failure::because(format!("write {}", file.display())))?;
        }
        let [program, arguments @ ..] = self.command.as_slice() else {
            println!("export KUBECONFIG={}", stand_ins::quoted(&file));
            stop_signal().await;
            return Ok(ExitCode::SUCCESS);
        };
        let assets = directory.join("assets");
        stand_ins::write(&assets)?;
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).env("KUBECONFIG", &file).env("KUBEBUILDER_ASSETS", &assets);
        let started = command.kill_on_drop(true).spawn();
        let mut suite = started.map_err(Failure::io(format!("start {}", program.display())))?;
        let ended = tokio::select! {
            ended = suite.wait() => ended,
            () = stop_signal() => {
                // A signal from a terminal goes to the command, too. Another one ends it here.
                if let Some(id) = suite.id().and_then(|id| i32::try_from(id).ok()) {
                    let id = nix::unistd::Pid::from_raw(id);
                    let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM);
                }
                suite.wait().await
            }
        };
        let ended = ended.map_err(Failure::io(format!("wait for {}", program.display())))?;
        Ok(ExitCode::from(
            ended.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Code::Failed as u8),
        ))
    }
}

/// Installs the CustomResourceDefinitions of a file or of a directory's files; other objects are passed over.
async fn install(client: &Client, path: &Path) -> Result<(), Failure> {
    let unread = |path: &Path| Failure::io(format!("--crds {}", path.display()));
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(unread(path))? {
            let file = entry.map_err(unread(path))?.path();
            let wanted = file.extension().and_then(|e| e.to_str());
            if wanted.is_some_and(|e| matches!(e, "yaml" | "yml" | "json")) {
                files.push(file);
            }
        }
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    for file in files {
        let text = fs::read_to_string(&file).map_err(unread(&file))?;
        let refused = |e: String| Failure::new(Code::Usage, format!("--crds {}: {e}", file.display()));
        let all: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|e| refused(e.to_string()))?;
        for object in all.iter().filter(|object| object["kind"] == "CustomResourceDefinition") {
            let (version, name) = (&object["apiVersion"], &object["metadata"]["name"]);
            let (Some(version), Some(name)) = (version.as_str(), name.as_str()) else {
                return Err(refused("a CustomResourceDefinition without apiVersion or metadata.name".into()));
            };
            let target = format!("/apis/{version}/customresourcedefinitions/{name}");
            apply(client, &target, object).await.map_err(|e| refused(e.to_string()))?;
        }
    }
    Ok(())
}
