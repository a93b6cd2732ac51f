//! Built-in controllers in a storm: a client that fails as networks, servers and processes do, all from one seed.
//!
//! What can happen to a call: a conflict, a server error, an answer that is lost although the write happened, a late answer, and the end of the
//! controllers before or after a write (they start again, with empty caches). Watches break and come late. What the test itself does, and the
//! kubelet, goes by a client without faults. (The general kit for this is `k8s-testing`'s; this will move onto it.)

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use jiff::Timestamp;
use k8s_apiserver::{ApiServer, User};
use k8s_controllers::{
    Manager,
    builtin::{Options, Selection},
};
use k8s_core::{
    api::api::core::v1::{Pod, ServiceAccount},
    cache::{Cache, Reflector, reflect},
    client::{Api, Body, BoxError, Client, ListParams, body_from_bytes},
    clock::Clock,
    meta::Object,
    store::Store,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::lab::{Fate, kubelet};

/// What happens to one call.
enum Fault {
    None,
    Conflict,
    Broken,
    Lost,
    CrashBefore,
    CrashAfter,
}

pub(crate) struct Faults {
    on: AtomicBool,
    rng: Mutex<StdRng>,
    crash: Notify,
    /// How often the controllers were started; calls of earlier ones come to nothing.
    generation: AtomicU64,
    /// What was written: methods and paths.
    writes: Mutex<Vec<String>>,
}

impl Faults {
    fn rng(&self) -> MutexGuard<'_, StdRng> {
        self.rng.lock().unwrap()
    }

    fn chance(&self, percent: u32) -> bool {
        self.on.load(Ordering::SeqCst) && self.rng().random_range(0..100) < percent
    }

    fn of_call(&self, method: &Method) -> Fault {
        if !self.on.load(Ordering::SeqCst) {
            return Fault::None;
        }
        let dice = self.rng().random_range(0..100);
        if *method == Method::GET {
            return if dice < 5 { Fault::Broken } else { Fault::None };
        }
        match dice {
            // Nobody conflicts with an object that is not there yet.
            0..6 if matches!(*method, Method::PUT | Method::PATCH) => Fault::Conflict,
            6..10 => Fault::Broken,
            10..14 => Fault::Lost,
            14..16 => Fault::CrashBefore,
            16..18 => Fault::CrashAfter,
            _ => Fault::None,
        }
    }
}

fn status(code: StatusCode, reason: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "reason": reason, "message": "on purpose"});
    let mut response = Response::new(body_from_bytes(status.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

async fn call(
    faults: Arc<Faults>,
    admin: Client,
    generation: u64,
    request: Request<Body>,
) -> Result<Response<Body>, BoxError> {
    let is_event = request.uri().path().contains("/events");
    let is_watch = request.uri().query().is_some_and(|q| q.contains("watch="));
    let is_write = *request.method() != Method::GET;
    let fault = if is_event { Fault::None } else { faults.of_call(request.method()) };
    if generation != faults.generation.load(Ordering::SeqCst) {
        return std::future::pending().await;
    }
    match fault {
        Fault::Conflict => return Ok(status(StatusCode::CONFLICT, "Conflict")),
        Fault::Broken => return Ok(status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
        Fault::CrashBefore => {
            faults.crash.notify_one();
            return std::future::pending().await;
        }
        Fault::None | Fault::Lost | Fault::CrashAfter => {}
    }
    if is_write && !is_event {
        let write = format!("{} {}", request.method(), request.uri().path());
        faults.writes.lock().unwrap().push(write);
    }
    let answer = admin.send(request).await.map_err(|e| Box::new(e) as BoxError);
    match fault {
        Fault::Lost => return Err("connection reset on purpose".into()),
        Fault::CrashAfter => {
            faults.crash.notify_one();
            return std::future::pending().await;
        }
        _ => {}
    }
    if is_watch { answer.map(|answer| answer.map(|body| shaky(body, faults, generation))) } else { answer }
}

/// A watch that ends at any moment, and whose events come late.
fn shaky(body: Body, faults: Arc<Faults>, generation: u64) -> Body {
    let frames = futures::stream::unfold(BodyStream::new(body), move |mut frames| {
        let faults = faults.clone();
        async move {
            let frame = frames.next().await?;
            if generation != faults.generation.load(Ordering::SeqCst) || faults.chance(4) {
                return None;
            }
            if faults.chance(20) {
                let delay = faults.rng().random_range(0..1000);
                tokio::time::sleep(Duration::from_millis(delay)).await;
            }
            Some((frame, frames))
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A control plane in a storm.
pub(crate) struct Storm {
    pub(crate) seed: u64,
    pub(crate) client: Client,
    pub(crate) clock: Clock,
    faults: Arc<Faults>,
    stop: CancellationToken,
    pods: Cache<Pod>,
    _pods: Reflector,
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Storm {
    pub(crate) async fn start(seed: u64, controllers: &[&str], fate: Fate) -> Storm {
        let clock = Clock::starting_at(Timestamp::from_second(1_700_000_000).unwrap());
        let server = ApiServer::builder(Store::memory()).clock(clock.clone()).build().await.unwrap();
        let client = server.client_as(User::admin());
        let faults = Arc::new(Faults {
            on: AtomicBool::new(true),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            crash: Notify::new(),
            generation: AtomicU64::new(0),
            writes: Mutex::default(),
        });
        let pods = Cache::new();
        let reflector = reflect(client.all::<Pod>(), ListParams::default(), pods.clone());
        let stop = CancellationToken::new();
        let selection = Selection::parse(controllers.iter().copied()).unwrap();
        let storm = Storm { seed, client, clock, faults, stop, pods, _pods: reflector };
        storm.account("default").await;
        tokio::spawn(kubelet(storm.client.clone(), storm.clock.clone(), storm.stop.clone(), fate));
        tokio::spawn(keep_running(
            storm.faults.clone(),
            storm.client.clone(),
            storm.clock.clone(),
            storm.stop.clone(),
            selection,
        ));
        storm
    }

    pub(crate) fn api<K: Object>(&self) -> Api<K> {
        let namespaced = k8s_core::client::Resource::of::<K>().namespaced;
        self.client.namespaced(if namespaced { "default" } else { "" })
    }

    /// Without its account a namespace takes no pods. The controller that makes it may have been faster.
    pub(crate) async fn account(&self, namespace: &str) {
        let mut account = ServiceAccount::default();
        account.metadata.name = Some("default".into());
        match self.client.namespaced(namespace).create(&account).await {
            Err(e) if !e.is_already_exists() => panic!("seed {}: {e}", self.seed),
            _ => {}
        }
    }

    pub(crate) async fn create<K: Object>(&self, object: &K) -> K {
        self.api::<K>().create(object).await.unwrap()
    }

    pub(crate) async fn get<K: Object>(&self, name: &str) -> K {
        self.api::<K>().get(name).await.unwrap()
    }

    pub(crate) async fn list<K: Object>(&self) -> Vec<K> {
        self.api::<K>().list(&ListParams::default()).await.unwrap()
    }

    pub(crate) async fn edit<K: Object>(&self, name: &str, change: impl Fn(&mut K)) {
        loop {
            let mut live: K = self.get(name).await;
            change(&mut live);
            match self.api::<K>().replace(name, &live).await {
                Ok(_) => return,
                Err(e) if e.is_conflict() => {}
                Err(e) => panic!("seed {}: {e}", self.seed),
            }
        }
    }

    pub(crate) fn random(&self, below: u64) -> u64 {
        self.faults.rng().random_range(0..below)
    }

    /// Lets the storm go on for so long and looks at the pods after every change of one.
    pub(crate) async fn rage(&self, seconds: u64, mut check: impl FnMut(&[Arc<Pod>])) {
        let mut changes = self.pods.subscribe();
        let over = tokio::time::sleep(Duration::from_secs(seconds));
        tokio::pin!(over);
        loop {
            check(&self.pods.list());
            tokio::select! {
                () = &mut over => return,
                change = changes.next() => drop(change),
            }
        }
    }

    /// Ends the storm; fails where `done` does not come true within an hour, or where anything is written after that.
    pub(crate) async fn calm(&self, what: &str, done: impl AsyncFn() -> bool) {
        self.faults.on.store(false, Ordering::SeqCst);
        let mut came_true = false;
        for _ in 0..3600 {
            if done().await {
                came_true = true;
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(came_true, "seed {}: never {what}", self.seed);
        // Back-off that a storm has left ends in this time, and so do the last deletions.
        tokio::time::sleep(Duration::from_secs(60)).await;
        self.faults.writes.lock().unwrap().clear();
        // Everything is looked at once more, by controllers that know nothing.
        self.faults.crash.notify_one();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let writes = self.faults.writes.lock().unwrap().clone();
        assert!(writes.is_empty(), "seed {}: a second look writes {writes:?}", self.seed);
        assert!(done().await, "seed {}: no longer {what}", self.seed);
    }
}

/// Starts the controllers whenever they end.
async fn keep_running(
    faults: Arc<Faults>,
    admin: Client,
    clock: Clock,
    stop: CancellationToken,
    selection: Selection,
) {
    while !stop.is_cancelled() {
        let generation = faults.generation.fetch_add(1, Ordering::SeqCst) + 1;
        let (shared, behind) = (faults.clone(), admin.clone());
        let client = Client::new(tower::service_fn(move |request: Request<Body>| {
            call(shared.clone(), behind.clone(), generation, request)
        }));
        let life = stop.child_token();
        let manager = Manager::new(client)
            .clock(clock.clone())
            .seed(generation)
            .options(Options::default())
            .controllers(selection.clone());
        let running = tokio::spawn(manager.run(life.clone()));
        tokio::select! {
            () = faults.crash.notified() => {}
            () = stop.cancelled() => {}
        }
        // Nothing of them goes on: what they asked for last is not answered.
        faults.generation.fetch_add(1, Ordering::SeqCst);
        running.abort();
        life.cancel();
        let pause = faults.rng().random_range(0..3000);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// Runs a scenario for every seed: as many as the environment variable `SEEDS` says, or `usual`; `SEED` names a single one.
pub(crate) fn seeds(usual: u64, scenario: impl AsyncFn(u64)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let all = match number("SEED") {
        Some(one) => one..one + 1,
        None => 0..number("SEEDS").unwrap_or(usual),
    };
    for seed in all {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(scenario(seed))));
        if let Err(panic) = result {
            println!("seed {seed} fails; SEED={seed} runs it alone");
            std::panic::resume_unwind(panic);
        }
    }
}
