//! [`Lab`]: what a test's clusters are made of, and how often it is run.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use k8s_apiserver::admission::IntoAdmit;
use k8s_builtin::{BuiltIn, Options};
use k8s_controllers::{Controller, Reconcile};
use k8s_core::{api::api::core::v1::Pod, custom::CustomResource};
use k8s_scheduler::Scheduler;

use crate::{
    base,
    faults::Faults,
    objects,
    process::{Life, Program, main_of},
    role::NeededRole,
    running::Running,
    script::Script,
    seeds::{self, Job},
    setup::Setup,
    wire::Kind,
};

/// A test of controllers: what is in its cluster, and with which seeds and faults it runs. See the crate's page.
#[must_use]
pub struct Lab {
    setup: Setup,
    controllers: Vec<&'static BuiltIn>,
    options: Options,
    scheduler: bool,
    seeds: Range<u64>,
    faults: Faults,
    replay: Option<(u64, BTreeSet<u64>)>,
    expected: Option<PathBuf>,
    existing: Option<Option<PathBuf>>,
    threads: usize,
}

impl std::fmt::Debug for Lab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lab").field("setup", &self.setup).field("seeds", &self.seeds).finish_non_exhaustive()
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

/// What came of all runs of a lab.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// How many runs there were.
    pub runs: usize,
    /// How many faults struck in all of them.
    pub faults: usize,
    /// The smallest role that suffices for all of them, rare paths that only faults lead to included.
    pub needed_role: NeededRole,
}

impl Lab {
    /// An API server without controllers and nodes, run once, without faults.
    pub fn new() -> Self {
        let existing = std::env::var_os("USE_EXISTING_CLUSTER")
            .filter(|v| !matches!(v.to_str(), Some("" | "0" | "false")));
        let record = std::env::var_os("RECORD").map(PathBuf::from);
        Lab {
            setup: Setup { record, ..Setup::default() },
            controllers: Vec::new(),
            options: Options { cluster_cidr: "10.42.0.0/16".into(), ..Options::default() },
            scheduler: true,
            seeds: 0..1,
            faults: Faults::none(),
            replay: std::env::var("REPLAY").ok().map(|text| parse(&text)),
            expected: None,
            existing: existing.map(|_| None),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Serves a custom resource.
    pub fn crd<T: CustomResource>(mut self) -> Self {
        self.setup.shapes.push(base::serving::<T>());
        self.setup.definitions.push(T::definition());
        self
    }

    /// Objects that are there from the beginning, as YAML: definitions of custom resources made elsewhere, for one.
    ///
    /// # Panics
    /// When it is not YAML.
    pub fn manifests(mut self, yaml: &str) -> Self {
        self.setup.manifests.extend(objects::documents(yaml).unwrap_or_else(|e| panic!("{e}")));
        self
    }

    /// Built-in controllers: see [`crate::controllers`].
    pub fn controllers(mut self, controllers: impl IntoIterator<Item = &'static BuiltIn>) -> Self {
        self.controllers.extend(controllers);
        self
    }

    /// With these options for the built-in controllers.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// So many nodes, `node-0` and on, and a scheduler.
    pub fn nodes(mut self, count: usize) -> Self {
        self.setup.nodes = count;
        self
    }

    /// Pods are bound by hand.
    pub fn without_scheduler(mut self) -> Self {
        self.scheduler = false;
        self
    }

    /// What becomes of pods on nodes. Default: what their annotations say ([`crate::node`]).
    pub fn pods(mut self, script: impl Fn(&Pod) -> Script + Send + Sync + 'static) -> Self {
        self.setup.director = Arc::new(script);
        self
    }

    /// A controller under test. `make` makes the reconciler, anew after each crash.
    pub fn with<R: Reconcile>(
        self,
        controller: Controller<R::Kind>,
        make: impl Fn() -> R + Send + Sync + 'static,
    ) -> Self {
        let name = controller.name().to_owned();
        self.add(name, move |life: Life| controller.clone().start(life.environment(), make()))
    }

    /// Any program under test: a kube-rs controller on `kube::Client::new(life.service(), "default")`, for one. It is made anew after each crash;
    /// what it spawned must end when its future is dropped.
    pub fn program<F: Future<Output = ()> + Send + 'static>(
        self,
        name: &str,
        make: impl Fn(Life) -> F + Send + Sync + 'static,
    ) -> Self {
        self.add(name.to_owned(), make)
    }

    fn add<F: Future<Output = ()> + Send + 'static>(
        mut self,
        name: String,
        make: impl Fn(Life) -> F + Send + Sync + 'static,
    ) -> Self {
        self.setup.programs.push(Program { name, kind: Kind::Tested, mains: vec![main_of(make)] });
        self
    }

    /// An admission function.
    pub fn admit<M>(mut self, admit: impl IntoAdmit<M>) -> Self {
        let admit = admit.into_admit();
        self.setup.shapes.push(Arc::new(move |server| server.admit_shared(admit.clone())));
        self
    }

    /// Runs once with each of these seeds. `SEEDS=n` in the environment runs so many.
    pub fn seeds(mut self, seeds: Range<u64>) -> Self {
        self.seeds = seeds;
        self
    }

    /// What goes wrong between the controllers and the API server.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Runs once, with a seed and only those of its faults that are named, as a failure printed it. `REPLAY` in the environment does the same.
    ///
    /// # Panics
    /// When it is not of the form `seed:3 faults:12,57`.
    pub fn replay(mut self, what: &str) -> Self {
        self.replay = Some(parse(what));
        self
    }

    /// How long a cluster may take to settle. Default: three hours of its time.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.setup.patience = patience;
        self
    }

    /// On so many threads. Default: as many as there are processors.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Writes everything that happens under the first seed to a file, as JSON lines. `RECORD` in the environment does the same.
    pub fn record(mut self, path: impl AsRef<Path>) -> Self {
        self.setup.record = Some(path.as_ref().to_owned());
        self
    }

    /// Keeps whole traces ([`Running::trace`]): bodies and watch events too.
    pub fn whole_trace(mut self) -> Self {
        self.setup.whole_trace = true;
        self
    }

    /// Everything that happens under the first seed must be as it was recorded.
    pub fn replays(mut self, path: impl AsRef<Path>) -> Self {
        self.expected = Some(path.as_ref().to_owned());
        self.setup.whole_trace = true;
        self
    }

    /// Runs against the cluster of a kubeconfig's current context, in real time, once and without faults. `USE_EXISTING_CLUSTER` in the environment does
    /// so with `KUBECONFIG`.
    pub fn existing_cluster(mut self, kubeconfig: impl AsRef<Path>) -> Self {
        self.existing = Some(Some(kubeconfig.as_ref().to_owned()));
        self
    }

    /// Runs the test in a cluster of its own for each seed.
    ///
    /// # Panics
    /// When a run fails. The message has the seed, the faults without which it would not have failed, what happened last, and the call that
    /// replays it.
    #[allow(clippy::needless_pass_by_value)]
    pub fn run(mut self, test: impl AsyncFn(Running) + Sync) -> Report {
        assert!(
            tokio::runtime::Handle::try_current().is_err(),
            "a lab makes runtimes of its own: run it in a plain #[test]"
        );
        if let Some(count) = std::env::var("SEEDS").ok().and_then(|n| n.parse::<u64>().ok()) {
            self.seeds.end = self.seeds.start.saturating_add(count);
        }
        if let Some((seed, _)) = &self.replay {
            self.seeds = *seed..seed.saturating_add(1);
        }
        self.complete();
        if let Some(path) = self.existing.take() {
            return seeds::run_existing(path, self.setup, self.seeds.start, &test);
        }
        let image = base::image(&self.setup.shapes, self.setup.nodes, &self.setup.manifests);
        let job = Job {
            setup: Arc::new(self.setup),
            image,
            faults: self.faults,
            only: self.replay.map(|(_, only)| only),
            expected: self.expected,
        };
        seeds::run(&job, self.seeds, self.threads, &test)
    }

    /// Adds the programs that were chosen in other words.
    fn complete(&mut self) {
        self.setup.heartbeats = self.controllers.iter().any(|row| row.alias == "nodelifecycle");
        let mains: Vec<_> = self
            .controllers
            .iter()
            .map(|row| {
                let (start, options) = (row.start, self.options.clone());
                let user = format!("system:serviceaccount:kube-system:{}", row.account);
                main_of(move |life: Life| start(life.built_in(&user), options.clone()))
            })
            .collect();
        if !mains.is_empty() {
            let name = "kube-controller-manager".to_owned();
            self.setup.programs.push(Program { name, kind: Kind::BuiltIn, mains });
        }
        if self.scheduler && self.setup.nodes > 0 {
            let main = main_of(|life: Life| {
                Scheduler::builder().start(life.built_in("system:kube-scheduler")).boxed()
            });
            let name = "kube-scheduler".to_owned();
            self.setup.programs.push(Program { name, kind: Kind::Part, mains: vec![main] });
        }
    }
}

/// `seed:3 faults:12,57`.
fn parse(text: &str) -> (u64, BTreeSet<u64>) {
    fn read(text: &str) -> Option<(u64, BTreeSet<u64>)> {
        let (mut seed, mut faults) = (None, BTreeSet::new());
        for word in text.split_whitespace() {
            match word.split_once(':')? {
                ("seed", number) => seed = Some(number.parse().ok()?),
                ("faults", numbers) => {
                    for number in numbers.split(',').filter(|n| !n.is_empty()) {
                        faults.insert(number.parse().ok()?);
                    }
                }
                _ => return None,
            }
        }
        Some((seed?, faults))
    }
    read(text).unwrap_or_else(|| panic!("{text:?} is not of the form \"seed:3 faults:12,57\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_is_read_as_it_is_printed() {
        assert_eq!(parse("seed:3 faults:12,57"), (3, [12, 57].into()));
        assert_eq!(parse("seed:9 faults:"), (9, BTreeSet::new()));
        for wrong in ["", "faults:1", "seed:x", "seed:1 faults:y", "seed:1 more"] {
            assert!(std::panic::catch_unwind(|| parse(wrong)).is_err(), "{wrong}");
        }
    }
}
