//! The command line.

mod agents;
mod components;
mod demo;
mod health;
mod image;
mod reset;
mod up;

use std::{
    cell::Cell,
    ffi::OsString,
    future::Future,
    io::IsTerminal,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    exit::{Code, Failure},
    extras::Extras,
};

/// Kubernetes in one binary.
#[derive(Debug, Parser)]
#[command(name = "hyperkube", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log level (error, warn, info, debug) or tracing directives.
    #[arg(long, global = true, env = "HYPERKUBE_LOG", default_value = "warn")]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine, in the foreground.
    Up(up::Up),
    /// Run a control plane without a node, in the foreground.
    Server(up::Server),
    /// Demonstrate a cluster: start one, use it, remove it.
    Demo(demo::Demo),
    /// Remove everything that a stopped cluster left on this machine.
    Reset(reset::Reset),
    /// Load, list and remove images of the node on this machine.
    #[command(subcommand)]
    Image(image::Image),
    /// Run the API server alone.
    #[command(name = "kube-apiserver")]
    ApiServer(components::ApiServer),
    /// Run the controllers alone.
    #[command(name = "kube-controller-manager")]
    ControllerManager(components::ControllerManager),
    /// Run the scheduler alone.
    #[command(name = "kube-scheduler")]
    Scheduler(components::KubeScheduler),
    /// Run the node agent and the pod network alone.
    Kubelet(agents::Kubelet),
    /// Run the service proxy and the cluster DNS alone.
    #[command(name = "kube-proxy")]
    Proxy(agents::Proxy),
    /// Entry point of the demo's containers.
    #[command(name = "demo-workload", hide = true)]
    Workload(demo::workload::Workload),
}

/// Name of the context in the kubeconfig.
const CONTEXT: &str = "hyperkube";

/// Data directory of `up`, `server`, `reset` and `image`.
#[derive(Clone, Debug, clap::Args)]
struct DataDir {
    /// Data directory of the cluster.
    #[arg(long, env = "HYPERKUBE_DATA_DIR", default_value = "/var/lib/hyperkube")]
    data_dir: PathBuf,
}

/// Parses a command line and runs it.
#[must_use]
pub fn run(args: Vec<OsString>) -> ExitCode {
    run_as("hyperkube", args, &Extras::default())
}

/// As [`run`], for a program of another name with extensions of the control plane of `up` and `server`.
#[must_use]
pub fn run_as(name: &'static str, args: Vec<OsString>, extras: &Extras) -> ExitCode {
    let command = Cli::command().name(name).bin_name(name);
    let cli = match command.try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(Code::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log).unwrap_or_else(|_| "warn".into());
    // Colours only on a terminal and without NO_COLOR (https://no-color.org).
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log = tracing_subscriber::fmt().with_ansi(colours).with_env_filter(filter);
    let _ = log.with_writer(std::io::stderr).try_init();
    let result = match cli.command {
        Command::Up(up) => block_on(up.run(extras)),
        Command::Server(server) => block_on(server.run(extras)),
        Command::Demo(demo) => demo.run(),
        Command::Reset(reset) => reset.run(),
        Command::Image(image) => image.run(),
        Command::ApiServer(c) => block_on(c.run()),
        Command::ControllerManager(c) => block_on(c.run()),
        Command::Scheduler(c) => block_on(c.run()),
        Command::Kubelet(c) => block_on(c.run()),
        Command::Proxy(c) => block_on(c.run()),
        Command::Workload(w) => block_on(w.run()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Time after which start-up code pages are released.
const STARTED: Duration = Duration::from_secs(3);

/// Minimum interval between two calls of [`crate::when_idle`]'s function by one thread.
const IDLE: Duration = Duration::from_secs(3);

/// Called whenever a thread of the runtime parks, which is often.
fn idle() {
    thread_local! {
        static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    let Some(work) = crate::WHEN_IDLE.get() else { return };
    let now = Instant::now();
    if LAST.get().is_none_or(|last| now - last >= IDLE) {
        LAST.set(Some(now));
        work();
    }
}

/// Runs a future on a new runtime, after raising the open files limit.
fn block_on(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    k8s_runtime::descriptors::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(idle)
        .build()
        .map_err(Failure::because("start the async runtime"))?;
    runtime.spawn(async {
        tokio::time::sleep(STARTED).await;
        crate::text_pages::release();
    });
    runtime.block_on(future)
}

/// Waits for Ctrl-C or SIGTERM.
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
