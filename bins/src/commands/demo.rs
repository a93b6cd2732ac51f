//! `hyperkube demo`: a cluster at work, step by step; every step is verified or the demo fails.
//!
//! It runs in its own network and mount namespaces, with its own data directory and port, so it does not
//! disturb other programs. If the demo is killed with KILL its containers keep running, as with any node
//! agent: `hyperkube reset --data-dir <its directory>` removes them.

mod steps;
pub(super) mod workload;

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{
    block_on,
    exit::{Code, Failure},
    stop_signal,
};
use crate::{Cluster, paths::Paths, program::Program};

/// Demonstrate a cluster: start one, use it, remove it.
#[derive(Debug, clap::Args)]
pub(super) struct Demo {
    /// Data directory of the demo's cluster (default: a new directory in /var/tmp).
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Keep containers and files on the machine if a step fails.
    #[arg(long)]
    keep: bool,
}

/// Prints steps as they happen.
pub(super) struct Report {
    started: Instant,
    step: Instant,
    terminal: bool,
}

impl Report {
    #[expect(clippy::disallowed_methods, reason = "steps are timed in real seconds")]
    fn new() -> Self {
        Report { started: Instant::now(), step: Instant::now(), terminal: std::io::stdout().is_terminal() }
    }

    /// Prints the step's name, on a terminal only, while it runs.
    #[expect(clippy::disallowed_methods, reason = "steps are timed in real seconds")]
    fn begin(&mut self, what: &str) {
        self.step = Instant::now();
        if self.terminal {
            print!("  … {what}\r");
            let _ = std::io::stdout().flush();
        }
    }

    /// Prints the completed step.
    fn done(&self, what: &str) {
        let clear = if self.terminal { "\x1b[2K" } else { "" };
        let (total, step) = (self.started.elapsed().as_secs_f64(), self.step.elapsed().as_secs_f64());
        println!("{clear}{total:>8.3} s  +{step:.3} s  {what}");
    }
}

impl Demo {
    pub(super) fn run(self, program: Program) -> Result<(), Failure> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Failure::new(
                Code::Permission,
                "the demo runs real containers and needs root; run it as root (sudo)",
            ));
        }
        isolate()?;
        let directory = match &self.data_dir {
            Some(directory) => directory.clone(),
            None => PathBuf::from(format!("/var/tmp/{}-demo-{}", program.name, std::process::id())),
        };
        let paths = Paths::new(program.name, &directory)?;
        let result = block_on(program, async {
            tokio::select! {
                result = play(&paths) => result,
                () = stop_signal() => Err(Failure::new(Code::Failed, "interrupted")),
            }
        });
        if result.is_err() && !self.keep {
            // Removes whatever the cluster has created so far.
            crate::reset::remove(&paths)?;
        }
        result
    }
}

/// Moves this process into its own namespaces. It must have one thread only.
fn isolate() -> Result<(), Failure> {
    let failed =
        |e: nix::Error| Failure::new(Code::Preflight, format!("make namespaces of the demo's own: {e}"));
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(failed)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(failed)?;
    k8s_net::loopback_up().map_err(Failure::because("bring up the loopback device"))
}

async fn play(paths: &Paths) -> Result<(), Failure> {
    let mut report = Report::new();
    report.begin("starting a cluster");
    let listen = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
    let builder = Cluster::builder().name(&paths.name).data_dir(&paths.data);
    let cluster = builder.listen(listen).node_name("demo").start().await?;
    report.done("API server ready: embedded store, TLS, RBAC, controllers, scheduler");
    report.begin("waiting for the node");
    cluster.ready(Duration::from_secs(30)).await?;
    report.done("node ready: container runtime, pod network, service proxy, DNS");
    let played = steps::play(&cluster, &mut report).await;
    match played {
        Ok(()) => {
            report.begin("tearing everything down");
            cluster.down().await?;
            let left = crate::reset::leftovers(paths)?;
            if !left.is_empty() {
                return Err(Failure::new(Code::Failed, format!("left behind: {}", left.join("; "))));
            }
            report.done(
                "torn down; nothing is left: no process, mount, namespace, cgroup, firewall table or file",
            );
            Ok(())
        }
        Err(e) => {
            cluster.shutdown().await;
            Err(e)
        }
    }
}
