//! Guarantees of the controller framework.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use k8s_controllers::{
    Action, Context, Controller, Environment, Error, EventType, Manager, Reconcile, leader::Candidate,
};
use k8s_core::{
    api::{
        api::core::v1::{ConfigMap, Endpoints, Event},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    client::ListParams,
    clock::Clock,
    meta::ObjectExt,
};
use k8s_testing::TestCluster;
use tokio_util::sync::CancellationToken;

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() }
}

/// Panics for one key, fails for another, and creates a ConfigMap for each Secret, which it counts through
/// its cache.
struct Difficult {
    attempts: Arc<AtomicUsize>,
}

impl Reconcile for Difficult {
    type Kind = ConfigMap;

    async fn reconcile(&self, cx: &Context, object: Arc<ConfigMap>) -> Result<Action, Error> {
        match object.name() {
            "panics" => {
                self.attempts.fetch_add(1, Ordering::SeqCst);
                panic!("on purpose");
            }
            "fails" => Err(Error::invalid("x", "on purpose")),
            _ if object.controller_ref().is_some() => Ok(Action::await_change()),
            _ => {
                // Without the guarantee that the cache has the last write there would be more than three.
                let mine = cx.owned::<ConfigMap>(&*object);
                if mine.len() < 3 {
                    let mut next = ConfigMap { metadata: metadata(""), ..ConfigMap::default() };
                    next.metadata.name = None;
                    next.metadata.generate_name = Some("made-".into());
                    next.metadata.owner_references = Some(vec![k8s_core::meta::owner_reference(&*object)]);
                    cx.create(&next).await?;
                    cx.event(&*object, EventType::Normal, "Made", "made one");
                    return Ok(Action::requeue_after(Duration::from_nanos(1)));
                }
                Ok(Action::await_change())
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failures_stay_with_their_keys_and_writes_are_seen_before_the_next_look() {
    let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
    let cluster = TestCluster::bare().clock(clock.clone()).start().await.unwrap();
    let client = cluster.client();
    let api = client.namespaced::<ConfigMap>("default");
    for name in ["panics", "fails", "fine"] {
        api.create(&ConfigMap { metadata: metadata(name), ..ConfigMap::default() }).await.unwrap();
    }
    let attempts = Arc::new(AtomicUsize::new(0));
    let environment = Environment { clock, seed: 1, ..Environment::new(client.clone()) };
    let stop = environment.shutdown.clone();
    let running = tokio::spawn(
        Controller::<ConfigMap>::new()
            .owns::<ConfigMap>()
            .workers(1)
            .run_in(environment, Difficult { attempts: attempts.clone() }),
    );
    tokio::time::sleep(Duration::from_secs(20)).await;
    let all = api.list(&ListParams::default()).await.unwrap();
    let made = all.iter().filter(|c| c.controller_ref().is_some()).count();
    assert_eq!(made, 3);
    let tried = attempts.load(Ordering::SeqCst);
    assert!((10..=14).contains(&tried), "{tried} attempts in 20 s with doubling delays");
    let events = client.namespaced::<Event>("default").list(&ListParams::default()).await.unwrap();
    assert_eq!(events.len(), 1, "the same thing said three times is one event");
    assert_eq!(events[0].count, Some(3));
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(1), running).await.expect("it ends").unwrap();
}

/// Creates Endpoints for every ConfigMap, and counts its reconciles.
struct Beside(Arc<Mutex<BTreeMap<String, usize>>>);

impl Reconcile for Beside {
    type Kind = ConfigMap;

    async fn reconcile(&self, cx: &Context, object: Arc<ConfigMap>) -> Result<Action, Error> {
        *self.0.lock().unwrap().entry(object.name().to_owned()).or_default() += 1;
        if cx.cached::<Endpoints>(object.name()).is_none() {
            cx.create(&Endpoints { metadata: metadata(object.name()), ..Endpoints::default() }).await?;
        }
        Ok(Action::await_change())
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_wait_for_a_late_cache_hold_no_worker() {
    let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
    let cluster = TestCluster::bare().clock(clock.clone()).start().await.unwrap();
    let connection = cluster.connection();
    connection.delay("watch", "endpoints", Duration::from_secs(60));
    let api = cluster.client().namespaced::<ConfigMap>("default");
    for name in ["a", "b", "c"] {
        api.create(&ConfigMap { metadata: metadata(name), ..ConfigMap::default() }).await.unwrap();
    }
    let looks = Arc::<Mutex<BTreeMap<String, usize>>>::default();
    let environment = Environment { clock, seed: 1, ..Environment::new(connection.client()) };
    let stop = environment.shutdown.clone();
    let controller = Controller::<ConfigMap>::new().owns::<Endpoints>().workers(1);
    let running = tokio::spawn(controller.run_in(environment, Beside(looks.clone())));
    let seen = |a: usize, others: usize| {
        let want = [("a".to_owned(), a), ("b".to_owned(), others), ("c".to_owned(), others)].into();
        assert_eq!(*looks.lock().unwrap(), want);
    };
    // The cache of Endpoints is synced after a minute.
    tokio::time::sleep(Duration::from_secs(61)).await;
    seen(1, 1);
    let mut changed = api.get("a").await.unwrap();
    changed.data = Some([("x".to_owned(), "y".to_owned())].into());
    api.replace("a", &changed).await.unwrap();
    tokio::time::sleep(Duration::from_secs(50)).await;
    seen(1, 1);
    tokio::time::sleep(Duration::from_secs(200)).await;
    seen(2, 1);
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(1), running).await.expect("it ends").unwrap();
}

/// Takes ten seconds for each object, and counts them.
struct Slow(Arc<AtomicUsize>);

impl Reconcile for Slow {
    type Kind = ConfigMap;

    async fn reconcile(&self, _: &Context, _: Arc<ConfigMap>) -> Result<Action, Error> {
        tokio::time::sleep(Duration::from_secs(10)).await;
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Action::await_change())
    }
}

#[tokio::test(start_paused = true)]
async fn a_handle_waits_for_the_reconcile_in_progress() {
    let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
    let cluster = TestCluster::bare().clock(clock).start().await.unwrap();
    let client = cluster.client();
    let map = ConfigMap { metadata: metadata("a"), ..ConfigMap::default() };
    client.namespaced("default").create(&map).await.unwrap();
    let finished = Arc::new(AtomicUsize::new(0));
    let controller = Controller::<ConfigMap>::new;
    let started = controller().start(client.clone(), Slow(finished.clone()));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(finished.load(Ordering::SeqCst), 0);
    assert_eq!(started.shutdown().await, Ok(()));
    assert_eq!(finished.load(Ordering::SeqCst), 1);

    // The same for a manager, which counts its client's requests.
    let manager = Manager::new(client).controller(controller(), Slow(finished.clone()));
    let metrics = manager.metrics();
    let mut started = manager.start();
    let early = tokio::time::timeout(Duration::from_secs(5), started.ended()).await;
    assert!(early.is_err(), "a manager does not end by itself");
    assert_eq!(started.shutdown().await, Ok(()));
    assert_eq!(finished.load(Ordering::SeqCst), 2);
    let requests = "rest_client_requests_total{code=\"200\",method=\"GET\",host=\"in-process\"}";
    assert!(metrics.render().contains(requests), "{}", metrics.render());
}

#[tokio::test(start_paused = true)]
async fn one_leads_at_a_time_and_another_follows() {
    let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
    let cluster = TestCluster::bare().clock(clock.clone()).start().await.unwrap();
    let leading = Arc::new(AtomicUsize::new(0));
    let terms = Arc::new(AtomicUsize::new(0));
    let mut stops = Vec::new();
    let mut tasks = Vec::new();
    for id in ["a", "b", "c"] {
        let candidate = Candidate::new(&cluster.client(), clock.clone(), "kube-system", "controllers", id);
        let (stop, leading, terms) = (CancellationToken::new(), leading.clone(), terms.clone());
        stops.push(stop.clone());
        tasks.push(tokio::spawn(candidate.run(stop, move |stop| async move {
            assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0, "two leaders");
            terms.fetch_add(1, Ordering::SeqCst);
            stop.cancelled().await;
            leading.fetch_sub(1, Ordering::SeqCst);
        })));
    }
    for round in 1..=3 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(leading.load(Ordering::SeqCst), 1);
        assert_eq!(terms.load(Ordering::SeqCst), round);
        // The leader is either killed, which lets its lease expire, or shut down, which releases it.
        let lease: k8s_core::api::api::coordination::v1::Lease =
            cluster.client().namespaced("kube-system").get("controllers").await.unwrap();
        let holder = lease.spec.unwrap().holder_identity.unwrap();
        let at = ["a", "b", "c"].iter().position(|id| *id == holder).unwrap();
        if round == 1 {
            tasks[at].abort();
            leading.store(0, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(leading.load(Ordering::SeqCst), 0, "nobody takes over before the lease has run out");
        } else {
            stops[at].cancel();
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(
                leading.load(Ordering::SeqCst),
                usize::from(round < 3),
                "a lease that is given up is taken at once"
            );
        }
    }
}
