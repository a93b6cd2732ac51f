//! ResourceQuotas: the controller and the admission plugin together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use k8s_apiserver::{ApiServer, User};
use k8s_builtin::{Options, Selection};
use k8s_controllers::Manager;
use k8s_core::{
    api::api::core::v1::{ConfigMap, Pod, ResourceQuota, Secret, Service},
    client::{Client, DeleteOptions, ListParams},
    meta::ObjectExt,
};
use k8s_store::{BackendError, Local, Log, Opaque, Record, Store};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::lab::{Lab, metadata};

fn quota(hard: Value) -> ResourceQuota {
    serde_json::from_value(json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).unwrap()
}

fn used(quota: &ResourceQuota) -> Value {
    let status = quota.status.clone().unwrap_or_default();
    serde_json::to_value(status.used).unwrap()
}

impl Lab {
    /// Waits until the usage is as wanted. Returns the time it took.
    async fn until_used(&self, want: Value) -> Duration {
        let begun = tokio::time::Instant::now();
        self.until(&want.to_string(), async || used(&self.get::<ResourceQuota>("q").await) == want).await;
        begun.elapsed()
    }
}

fn fate(pod: &Pod) -> &'static str {
    if pod.name().starts_with("done") { "Succeeded" } else { "Running" }
}

#[tokio::test(start_paused = true)]
async fn usage_follows_objects_of_every_kind() {
    let lab = Lab::start(1, fate).await;
    let hard = json!({"pods": "3", "count/pods": "9", "requests.memory": "1Gi", "services": "5", "services.nodeports": "5",
        "secrets": "4", "count/deployments.apps": "1", "resourcequotas": "1", "persistentvolumeclaims": "1"});
    lab.create(&quota(hard.clone())).await;
    let nothing = json!({"pods": "0", "count/pods": "0", "requests.memory": "0", "services": "1", "services.nodeports": "0",
        "secrets": "0", "count/deployments.apps": "0", "resourcequotas": "1", "persistentvolumeclaims": "0"});
    let mut nothing = nothing;
    nothing["services"] = lab.list::<Service>().await.len().to_string().into();
    assert!(lab.until_used(nothing.clone()).await < Duration::from_secs(1), "promptly");
    let status = lab.get::<ResourceQuota>("q").await.status.unwrap();
    assert_eq!(serde_json::to_value(status.hard).unwrap(), hard);

    let pod = |name: &str, memory: &str| -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": name}, "spec": {"restartPolicy": "Never", "containers": [
            {"name": "c", "image": "i", "resources": {"requests": {"memory": memory}}}]}}),
        )
        .unwrap()
    };
    lab.create(&pod("a", "256Mi")).await;
    lab.create(&pod("done", "512Mi")).await;
    lab.create(&Secret { metadata: metadata("s"), ..Secret::default() }).await;
    let after = |pods: [&str; 3], secrets: &str| {
        let mut after = nothing.clone();
        for (name, value) in ["pods", "count/pods", "requests.memory"].into_iter().zip(pods) {
            after[name] = value.into();
        }
        after["secrets"] = secrets.into();
        after
    };
    // The pod that has succeeded uses no memory.
    lab.until_used(after(["1", "2", "256Mi"], "1")).await;
    let refused = lab.api::<Pod>().create(&pod("b", "769Mi")).await.unwrap_err();
    assert!(refused.to_string().contains("exceeded quota: q, requested: requests.memory=769Mi, used: requests.memory=256Mi, limited: requests.memory=1Gi"), "{refused}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    lab.api::<Secret>().delete("s", &DeleteOptions::default()).await.unwrap();
    let took = lab.until_used(after(["1", "2", "256Mi"], "0")).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    lab.delete::<Pod>("done", "Background").await;
    lab.until_used(after(["1", "1", "256Mi"], "0")).await;
    lab.edit("q", |q: &mut ResourceQuota| {
        q.spec.as_mut().unwrap().hard = serde_json::from_value(json!({"pods": "7"})).unwrap();
    })
    .await;
    lab.until_used(json!({"pods": "1"})).await;
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn scopes_choose_the_pods_that_are_counted() {
    let lab = Lab::start(1, fate).await;
    let mut scoped = quota(json!({"pods": "5"}));
    scoped.spec.as_mut().unwrap().scopes = Some(vec!["BestEffort".into(), "NotTerminating".into()]);
    lab.create(&scoped).await;
    lab.until_used(json!({"pods": "0"})).await;
    for (name, spec) in [
        ("plain", json!({"containers": [{"name": "c", "image": "i"}]})),
        (
            "burst",
            json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1m"}}}]}),
        ),
        ("timed", json!({"activeDeadlineSeconds": 9999, "containers": [{"name": "c", "image": "i"}]})),
    ] {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        lab.create(&pod).await;
    }
    lab.until_used(json!({"pods": "1"})).await;
    // A pod that gets a deadline leaves the scope.
    lab.edit("plain", |pod: &mut Pod| pod.spec.as_mut().unwrap().active_deadline_seconds = Some(99)).await;
    lab.until_used(json!({"pods": "0"})).await;
}

/// A log whose flushes take a while, and fail now and then.
struct Flaky {
    fails: Arc<AtomicBool>,
    state: u64,
}

impl Log for Flaky {
    fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
        Ok(0)
    }
    fn commit(&mut self, _: &[Record]) -> Result<(), BackendError> {
        std::thread::sleep(Duration::from_micros(300));
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match self.fails.load(Ordering::Relaxed) && (self.state >> 33).is_multiple_of(8) {
            true => Err(BackendError("no luck".into())),
            false => Ok(()),
        }
    }
}

/// Creates and deletes a hundred times; returns the number of objects that it leaves.
async fn writer(client: Client, store: Store, id: usize, hard: usize, refused: Arc<AtomicUsize>) -> usize {
    let maps = client.namespaced::<ConfigMap>("default");
    let mut state = id as u64 + 1;
    let mut mine: Vec<String> = Vec::new();
    for step in 0..30 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if !(state >> 33).is_multiple_of(3) {
            let name = format!("w{id}-{step}");
            let map = ConfigMap { metadata: metadata(&name), ..ConfigMap::default() };
            match maps.create(&map).await {
                Ok(_) => mine.push(name),
                Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
            }
            let now = store.snapshot("configmaps").range("default/", "").count();
            assert!(now <= hard, "{now} of {hard}");
        } else if let Some(name) = mine.pop()
            && maps.delete(&name, &DeleteOptions::default()).await.is_err()
        {
            mine.push(name);
        }
    }
    mine.len()
}

/// Two API servers over one store with failing writes, a hundred writers and the controller: at no time are
/// there more objects than the quota allows, and in the end the usage is exact.
async fn storm(seed: u64) {
    const HARD: usize = 40;
    let fails = Arc::new(AtomicBool::new(false));
    let store = Store::open(Local::new(Flaky { fails: fails.clone(), state: seed }), Opaque).unwrap();
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(ApiServer::builder(store.clone()).build().await.unwrap());
    }
    let clients: Vec<Client> = servers.iter().map(|server| server.client_as(User::admin())).collect();
    let stop = CancellationToken::new();
    let manager = Manager::new(clients[0].named("manager"))
        .runnables(Selection::none().with("resourcequota").runnables(&Options::default()));
    let running = tokio::spawn(manager.run(stop.clone()));
    let quotas = clients[0].namespaced::<ResourceQuota>("default");
    quotas.create(&quota(json!({"configmaps": HARD.to_string()}))).await.unwrap();
    let wait = async |want: String| {
        for _ in 0..400 {
            if used(&quotas.get("q").await.unwrap()) == json!({"configmaps": want}) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("seed {seed}: want {want}, have {}", used(&quotas.get("q").await.unwrap()));
    };
    wait("0".into()).await;
    fails.store(true, Ordering::Relaxed);
    let refused = Arc::new(AtomicUsize::new(0));
    let writers = (0..100).map(|id| {
        let (client, store) = (clients[id % 2].clone(), store.clone());
        tokio::spawn(writer(client, store, id, HARD, refused.clone()))
    });
    let left: usize = join_all(writers).await.into_iter().map(Result::unwrap).sum();
    fails.store(false, Ordering::Relaxed);
    assert!(refused.load(Ordering::Relaxed) > 100, "the quota was never full");
    let params = ListParams::default();
    let stored = clients[1].namespaced::<ConfigMap>("default").list(&params).await.unwrap().len();
    // A deletion whose answer was an error may have happened, not the other way round.
    assert!(stored <= left, "{stored} of {left}");
    wait(stored.to_string()).await;
    // Every place that is left can be taken, and no more.
    let maps = clients[1].namespaced::<ConfigMap>("default");
    for place in stored..HARD {
        let map = ConfigMap { metadata: metadata(&format!("last-{place}")), ..ConfigMap::default() };
        maps.create(&map).await.unwrap();
    }
    let map = ConfigMap { metadata: metadata("too-much"), ..ConfigMap::default() };
    assert!(maps.create(&map).await.unwrap_err().is_forbidden());
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_writers_never_exceed_a_quota_and_lose_no_usage() {
    static SEED: AtomicU64 = AtomicU64::new(1);
    for _ in 0..3 {
        storm(SEED.fetch_add(1, Ordering::Relaxed)).await;
    }
}

/// A log that does not flush the object `slow` before it may.
struct Gate(Arc<AtomicBool>);

impl Log for Gate {
    fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
        Ok(0)
    }
    fn commit(&mut self, records: &[Record]) -> Result<(), BackendError> {
        let is_slow = records.iter().any(|record| &*record.key == "default/slow");
        while is_slow && !self.0.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_between_charge_and_store_does_not_take_the_charge_back() {
    let open = Arc::new(AtomicBool::new(false));
    let store = Store::open(Local::new(Gate(open.clone())), Opaque).unwrap();
    let server = ApiServer::builder(store.clone()).build().await.unwrap();
    let client = server.client_as(User::admin());
    let stop = CancellationToken::new();
    let manager = Manager::new(client.named("manager"))
        .runnables(Selection::none().with("resourcequota").runnables(&Options::default()));
    let running = tokio::spawn(manager.run(stop.clone()));
    let quotas = client.namespaced::<ResourceQuota>("default");
    quotas.create(&quota(json!({"configmaps": "3"}))).await.unwrap();
    let until = async |want: &str| {
        while used(&quotas.get("q").await.unwrap()) != json!({"configmaps": want}) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until("0").await;
    let maps = client.namespaced::<ConfigMap>("default");
    let create = |name: &str| {
        let (maps, map) = (maps.clone(), ConfigMap { metadata: metadata(name), ..ConfigMap::default() });
        async move { maps.create(&map).await }
    };
    create("a").await.unwrap();
    create("b").await.unwrap();
    until("2").await;
    // The charges so far are settled.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    maps.delete("b", &DeleteOptions::default()).await.unwrap();
    let slow = tokio::spawn(create("slow"));
    until("3").await;
    // The pass after the deletion sees one object, and may take one of the three charges back.
    tokio::time::sleep(Duration::from_millis(400)).await;
    open.store(true, Ordering::Relaxed);
    slow.await.unwrap().unwrap();
    let shown = async || used(&quotas.get("q").await.unwrap());
    while shown().await == json!({"configmaps": "3"}) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        shown().await,
        json!({"configmaps": "2"}),
        "the charge of the object that was not stored yet is kept"
    );
    create("c").await.unwrap();
    assert!(create("d").await.unwrap_err().is_forbidden());
    assert_eq!(store.snapshot("configmaps").range("default/", "").count(), 3);
    stop.cancel();
    running.await.unwrap();
}
