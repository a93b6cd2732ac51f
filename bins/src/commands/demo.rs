//! `hyperkube demo`: a cluster at work, step by step; every step is seen to happen or the demo fails.
//!
//! It runs in a network and a mount namespace of its own, with a data directory and a port of its own, so it runs beside anything else. A demo that is
//! killed with KILL leaves its containers running, as any node agent does: `hyperkube reset --data-dir <its directory>` removes them.

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

use super::{block_on, told_to_stop};
use crate::{
    Cluster,
    exit::{Code, Failure},
    paths::Paths,
};

/// Show a cluster at work: start one, use it, remove it.
#[derive(Debug, clap::Args)]
pub(super) struct Demo {
    /// Where the cluster's state is kept while the demo runs (default: a new directory below /var/tmp).
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Leave the cluster's things on the machine when a step fails.
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
    fn new() -> Self {
        Report { started: Instant::now(), step: Instant::now(), terminal: std::io::stdout().is_terminal() }
    }

    /// A step begins. On a terminal it shows while it runs.
    fn begin(&mut self, what: &str) {
        self.step = Instant::now();
        if self.terminal {
            print!("  … {what}\r");
            let _ = std::io::stdout().flush();
        }
    }

    /// The step was seen to happen.
    fn done(&self, what: &str) {
        let clear = if self.terminal { "\x1b[2K" } else { "" };
        let (total, step) = (self.started.elapsed().as_secs_f64(), self.step.elapsed().as_secs_f64());
        println!("{clear}{total:>8.3} s  +{step:.3} s  {what}");
    }
}

impl Demo {
    pub(super) fn run(self) -> Result<(), Failure> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Failure::new(
                Code::Permission,
                "the demo runs real containers and needs root; run it as root (sudo)",
            ));
        }
        isolate()?;
        let directory = match &self.data_dir {
            Some(directory) => directory.clone(),
            None => PathBuf::from(format!("/var/tmp/hyperkube-demo-{}", std::process::id())),
        };
        let paths = Paths::new(&directory)?;
        let result = block_on(async {
            tokio::select! {
                result = play(&paths) => result,
                () = told_to_stop() => Err(Failure::new(Code::Failed, "interrupted")),
            }
        });
        if result.is_err() && !self.keep {
            // Whatever is left of the cluster goes, however far it came.
            crate::reset::remove(&paths)?;
        }
        result
    }
}

/// Moves this process (which has one thread still) into namespaces of its own.
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
    let cluster = Cluster::builder().data_dir(&paths.data).listen(listen).node_name("demo").start().await?;
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
