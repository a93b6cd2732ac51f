//! Supervision of a run's programs: start, crash by a fault, restart.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use k8s_controllers::{Caches, Environment};
use k8s_core::{client::Client, clock::Clock};
use k8s_store::Store;
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    actor::{Kind, Process},
    hub::Hub,
    trace::What,
    wire::Service,
};

/// Time between a crash and the restart.
const AWAY: Duration = Duration::from_secs(1);

/// A program's entry point; called again for each of its lives.
pub(crate) type Main = Arc<dyn Fn(Life) -> BoxFuture<'static, ()> + Send + Sync>;

/// A program of a lab.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// User whose permissions the program has. `None`: a cluster administrator.
    pub(crate) user: Option<String>,
    pub(crate) mains: Vec<Main>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Connection and environment of one life of a program.
#[derive(Clone, Debug)]
pub struct Life {
    pub(crate) service: Service,
    pub(crate) environment: Environment,
}

impl Life {
    /// Returns the API server as a `tower::Service`: `kube::Client::new(life.service(), "default")`.
    #[must_use]
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// Returns a client, for a program that does not use the framework.
    #[must_use]
    pub fn client(&self) -> Client {
        self.environment.client.clone()
    }

    /// Returns the environment of controllers: a client, the caches of this life, the clock, the seed.
    #[must_use]
    pub fn environment(&self) -> Environment {
        self.environment.clone()
    }

    /// As [`Life::environment`], with the trimmed pod caches of the built-in controllers and the permissions
    /// of `user`, so that a forbidden request fails as in a real cluster.
    pub(crate) fn built_in(&self, user: &str) -> Environment {
        let mut environment = self.environment();
        environment.client = self.service.acting_as(user).client().named(environment.client.name());
        environment.caches = k8s_builtin::trimmed(environment.caches);
        environment
    }
}

/// Shared parts of a run that its programs use.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) upstream: Client,
    pub(crate) store: Option<Store>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: Clock,
    pub(crate) seed: u64,
    pub(crate) stop: CancellationToken,
}

impl World {
    pub(crate) fn service(&self, process: &Arc<Process>) -> Service {
        Service::new(self.upstream.clone(), self.store.clone(), self.hub.clone(), process.clone())
    }
}

/// A running program and its restart signals.
#[derive(Debug)]
pub(crate) struct Supervised {
    pub(crate) process: Arc<Process>,
    restart: Arc<Notify>,
    ready: Arc<Notify>,
}

impl Supervised {
    /// Kills the program, as a crash does, and waits until it runs again.
    pub(crate) async fn restart(&self) {
        self.restart.notify_one();
        self.ready.notified().await;
    }
}

/// Starts a program and restarts it after crashes.
pub(crate) fn supervise(program: &Program, world: &World, tasks: &mut JoinSet<()>) -> Supervised {
    let process = Arc::new(Process::new(&program.name, program.kind, program.user.clone()));
    let (restart, ready) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let supervised = Supervised { process: process.clone(), restart: restart.clone(), ready: ready.clone() };
    let (program, world) = (program.clone(), world.clone());
    tasks.spawn(async move {
        let mut first = true;
        loop {
            let (mut running, ends) = begin(&program, &world, &process);
            if !std::mem::take(&mut first) {
                ready.notify_one();
            }
            let told = tokio::select! {
                biased;
                () = world.stop.cancelled() => true,
                () = process.crashed.notified() => false,
                () = restart.notified() => {
                    process.crash();
                    process.crashed.notified().await;
                    false
                }
                () = panics(&mut running) => unreachable!("it does not return"),
            };
            ends.cancel();
            running.shutdown().await;
            world.hub.ended(&process);
            if told {
                return;
            }
            tokio::time::sleep(AWAY).await;
        }
    });
    supervised
}

fn begin(program: &Program, world: &World, process: &Arc<Process>) -> (JoinSet<()>, CancellationToken) {
    let life = process.life.load(Ordering::Relaxed);
    world.hub.note(process, What::Start(life));
    let service = world.service(process);
    let client = service.client().named(&program.name);
    let shutdown = CancellationToken::new();
    let environment = Environment {
        caches: Caches::new(client.clone()),
        client,
        clock: world.clock.clone(),
        seed: world.seed.wrapping_add(life),
        shutdown: shutdown.clone(),
        metrics: k8s_controllers::metrics::Metrics::default(),
    };
    let life = Life { service, environment };
    let mut running = JoinSet::new();
    for main in &program.mains {
        running.spawn(main(life.clone()));
    }
    (running, shutdown)
}

/// Waits for a task of a program to panic, and resumes that panic. Other ends are ignored.
async fn panics(running: &mut JoinSet<()>) {
    loop {
        match running.join_next().await {
            Some(Err(e)) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// Turns an async function of a life into an entry point.
pub(crate) fn main_of<F: Future<Output = ()> + Send + 'static>(
    make: impl Fn(Life) -> F + Send + Sync + 'static,
) -> Main {
    Arc::new(move |life| make(life).boxed())
}
