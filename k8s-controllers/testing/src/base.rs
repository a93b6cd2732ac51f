//! The clusters that runs begin from: made once, then forked.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::Timestamp;
use k8s_apiserver::{ApiServer, Pace, User};
use k8s_core::{
    api::api::core::v1::ServiceAccount, client::Client, clock::Clock, custom::CustomResource, random,
};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::node;

/// Seeds of what every run begins with. No run has them: it would give its objects the uids of objects that are already there.
const OF_EMPTY: u64 = u64::MAX;
const OF_IMAGE: u64 = u64::MAX - 1;

/// What is done to the builder of each API server of a lab.
pub(crate) type Shape = Arc<dyn Fn(k8s_apiserver::Builder) -> k8s_apiserver::Builder + Send + Sync>;

/// Serves a custom resource.
pub(crate) fn serving<T: CustomResource>() -> Shape {
    Arc::new(|server| server.resource::<T>())
}

/// Where the time of every run begins: the same for all, so that they are alike.
pub(crate) fn epoch() -> Timestamp {
    Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(24 * 365 * 50)
}

/// A server in virtual time does little by itself: years may pass.
fn pace() -> Pace {
    let day = 24 * 3600;
    Pace {
        bookmark_every: Duration::from_secs(day),
        watch_seconds: 90 * day..120 * day,
        sweep_every: Duration::from_secs(600),
    }
}

/// A runtime of its own for one run. Virtual: its time stands still while anything can be done.
pub(crate) fn runtime(virtual_time: bool) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    if virtual_time {
        builder.enable_time().start_paused(true);
    } else {
        builder.enable_all();
    }
    builder.build().unwrap_or_else(|e| panic!("start the runtime of a lab: {e}"))
}

/// Runs a future whose randomness follows from a seed, in virtual time.
pub(crate) fn block_on<F: Future>(seed: u64, future: F) -> F::Output {
    let _seeded = random::seeded(seed);
    let runtime = runtime(true);
    runtime.block_on(future)
}

pub(crate) async fn server(store: Store, clock: Clock, shapes: &[Shape]) -> ApiServer {
    let builder = ApiServer::builder(store).clock(clock).pace(pace());
    let builder = shapes.iter().fold(builder, |builder, shape| shape(builder));
    builder.build().await.unwrap_or_else(|e| panic!("start the API server of a lab: {e}"))
}

/// What every cluster has.
fn empty() -> Store {
    static EMPTY: OnceLock<Store> = OnceLock::new();
    let made = EMPTY.get_or_init(|| {
        block_on(OF_EMPTY, async {
            let server = server(Store::memory(), Clock::starting_at(epoch()), &[]).await;
            let client = server.client_as(User::admin());
            // Without it no pod is admitted, and its controller may not be among those chosen.
            let account = ServiceAccount {
                metadata: serde_json::from_value(json!({"name": "default"})).unwrap_or_default(),
                ..ServiceAccount::default()
            };
            let made = client.namespaced::<ServiceAccount>("default").create(&account).await;
            made.unwrap_or_else(|e| panic!("make the default service account: {e}"));
            // What the server does after its start is done when nothing is left to do.
            tokio::time::sleep(Duration::from_millis(1)).await;
            server.store().clone()
        })
    });
    made.fork()
}

/// The cluster that a lab's runs begin from.
pub(crate) fn image(shapes: &[Shape], nodes: usize, manifests: &[Value]) -> Store {
    let store = empty();
    block_on(OF_IMAGE, async {
        let clock = Clock::starting_at(epoch());
        let server = server(store, clock.clone(), shapes).await;
        let client = server.client_as(User::admin());
        for i in 0..nodes {
            let made = node::register(&client, &clock, &format!("node-{i}")).await;
            made.unwrap_or_else(|e| panic!("register a node: {e}"));
        }
        for manifest in manifests {
            crate::objects::apply(&client, manifest).await.unwrap_or_else(|e| panic!("{e}"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        server.store().clone()
    })
}

/// The client of a cluster that exists: the current context of a kubeconfig.
pub(crate) fn existing(path: Option<std::path::PathBuf>) -> Result<Client, String> {
    use k8s_core::client::{Kubeconfig, Remote};
    let path = path
        .or_else(|| std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty()).map(Into::into))
        .or_else(|| std::env::var_os("HOME").map(|home| std::path::Path::new(&home).join(".kube/config")))
        .ok_or("USE_EXISTING_CLUSTER is set, but neither KUBECONFIG nor HOME is")?;
    let config = Kubeconfig::read(&path).map_err(|e| e.to_string())?;
    let config = config.remote(None).map_err(|e| e.to_string())?;
    Ok(Client::new(Remote::new(&config).map_err(|e| e.to_string())?))
}
