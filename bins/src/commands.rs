//! The command line.

mod agents;
mod components;
mod config;
mod demo;
mod envtest;
mod exit;
mod health;
mod image;
mod process;
mod reset;
mod scheduling;
mod text_pages;
mod up;

use std::{ffi::OsString, io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{extensions::Extensions, program::Program};
use config::Refused;
use exit::{Code, Failure};
use process::{block_on, or_at_once, stop_signal};

/// Kubernetes in one binary.
#[derive(Debug, Parser)]
#[command(name = "hyperkube", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log level (error, warn, info, debug) or tracing directives.
    #[arg(long, global = true, default_value = "warn")]
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
    /// Run an API server for a test suite, in memory and on a loopback port.
    Envtest(envtest::Envtest),
    /// Remove everything that a stopped cluster left on this machine.
    Reset(reset::Reset),
    /// Load, list and remove images of the node on this machine.
    #[command(subcommand)]
    Image(image::Image),
    /// Explain the scheduling of a pod: for each node the plugin that refuses it, or its score.
    #[command(name = "explain-scheduling")]
    ExplainScheduling(scheduling::Explain),
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
    /// Stand-in of etcd for Go's envtest.
    #[command(name = "envtest-etcd", hide = true)]
    EnvtestEtcd(envtest::Etcd),
    /// Stand-in of kube-apiserver for Go's envtest.
    #[command(name = "envtest-kube-apiserver", hide = true)]
    EnvtestKubeApiServer(envtest::KubeApiServer),
    /// Entry point of the demo's containers.
    #[command(name = "demo-workload", hide = true)]
    Workload(demo::workload::Workload),
}

/// Data directory of `reset` and `image`.
#[derive(Clone, Debug, clap::Args)]
struct DataDir {
    /// Data directory of the cluster.
    #[arg(long, default_value = "/var/lib/hyperkube")]
    data_dir: PathBuf,
}

/// Parses a program's command line and runs it.
pub(crate) fn run(program: Program, args: Vec<OsString>, extensions: Extensions) -> ExitCode {
    if let Err(e) = crate::paths::check_name(program.name) {
        return Failure::from(e).report();
    }
    let command = config::named(Cli::command(), program.name);
    let parsed = config::parse(command.clone(), &args)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(Refused::File(failure)) => return failure.report(),
        Err(Refused::Line(e)) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(Code::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    if let Some(settings) = config::to_print(&command, &matches) {
        print!("{settings}");
        return ExitCode::SUCCESS;
    }
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log).unwrap_or_else(|_| "warn".into());
    // Colours only on a terminal and without NO_COLOR (https://no-color.org).
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log = tracing_subscriber::fmt().with_ansi(colours).with_env_filter(filter);
    let _ = log.with_writer(std::io::stderr).try_init();
    let name = program.name;
    let mut code = ExitCode::SUCCESS;
    let result = match cli.command {
        Command::Up(up) => block_on(program, up.run(name, extensions)),
        Command::Server(server) => block_on(program, server.run(name, extensions)),
        Command::Demo(demo) => demo.run(program),
        Command::Envtest(envtest) => block_on(program, async {
            code = envtest.run(name).await?;
            Ok(())
        }),
        Command::EnvtestEtcd(etcd) => block_on(program, etcd.run()),
        Command::EnvtestKubeApiServer(server) => block_on(program, server.run()),
        Command::Reset(reset) => reset.run(name),
        Command::Image(image) => image.run(program),
        Command::ExplainScheduling(c) => block_on(program, c.run(extensions)),
        Command::ApiServer(c) => block_on(program, c.run(name, extensions)),
        Command::ControllerManager(c) => block_on(program, c.run(extensions)),
        Command::Scheduler(c) => block_on(program, c.run(extensions)),
        Command::Kubelet(c) => block_on(program, c.run(name, extensions)),
        Command::Proxy(c) => block_on(program, c.run(name)),
        Command::Workload(w) => block_on(program, w.run()),
    };
    match result {
        Ok(()) => code,
        Err(failure) => failure.report(),
    }
}
