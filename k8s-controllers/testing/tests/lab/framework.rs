//! Properties of the controller framework, tested in the lab.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_apiserver::{ApiServer, User};
use k8s_controllers::{
    Action, Context, Controller, Environment, Error, EventType, Manager, MetadataOnly, Reconcile, predicates,
};
use k8s_core::{
    api::api::core::v1::{ConfigMap, Event, Secret},
    client::ListParams,
    meta::{ObjectExt, ObjectKey},
};
use k8s_store::Store;
use k8s_testing::{Fault, Faults, Lab};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use crate::counters::original;

fn maps() -> Controller<ConfigMap> {
    Controller::<ConfigMap>::new().named("maps")
}

fn text(map: &ConfigMap) -> &str {
    map.data.as_ref().and_then(|d| d.get("text")).map_or("", String::as_str)
}

/// Marks healthy objects; for broken ones it blocks for a second and fails, and panics for one.
struct Marks;

impl Reconcile for Marks {
    type Kind = ConfigMap;

    async fn reconcile(&self, cx: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
        match text(&map) {
            "broken" => {
                cx.clock().sleep(Duration::from_secs(1)).await;
                Err(Error::invalid(map.name(), "it is broken"))
            }
            "panics" => panic!("on purpose"),
            "healthy" if map.annotation("marked").is_none() => {
                cx.merge(&*map, &serde_json::json!({"metadata": {"annotations": {"marked": "yes"}}})).await?;
                Ok(Action::await_change())
            }
            _ => Ok(Action::await_change()),
        }
    }
}

#[test]
fn a_thousand_broken_objects_do_not_slow_the_healthy_ones() {
    Lab::new().with(maps(), || Marks).run(async |lab| {
        for i in 0..1000 {
            lab.create(&original(&format!("broken-{i}"), "broken")).await;
        }
        lab.sleep(Duration::from_secs(600)).await;
        let begun = lab.clock().now();
        for i in 0..20 {
            lab.create(&original(&format!("healthy-{i}"), "healthy")).await;
        }
        for i in 0..20 {
            lab.until::<ConfigMap>(&format!("healthy-{i}"), |m| m.annotation("marked").is_some()).await;
        }
        let took = lab.clock().since(begun);
        println!("twenty healthy objects among a thousand broken ones: {took:?}");
        assert!(took < Duration::from_secs(3), "{took:?}");
    });
}

#[test]
fn a_panic_is_isolated_counted_and_reported() {
    let seen = Arc::new(std::sync::Mutex::new(String::new()));
    let told = seen.clone();
    Lab::new()
        .allow_panics()
        .program("maps", move |life| {
            let environment: Environment = life.environment();
            *told.lock().unwrap() = String::new();
            let (metrics, told) = (environment.metrics.clone(), told.clone());
            let running = maps().run_in(environment, Marks);
            async move {
                let tell = async {
                    loop {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        *told.lock().unwrap() = metrics.render();
                    }
                };
                tokio::join!(running, tell);
            }
        })
        .run(async |lab| {
            lab.create(&original("bad", "panics")).await;
            lab.create(&original("good", "healthy")).await;
            lab.sleep(Duration::from_secs(10)).await;
            assert!(lab.get::<ConfigMap>("good").await.annotation("marked").is_some());
        });
    let seen = seen.lock().unwrap();
    let value = |name: &str| -> f64 {
        let line =
            seen.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {seen}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("controller_runtime_reconcile_panics_total{controller=\"maps\"}") >= 8.0);
    assert!(value("controller_runtime_reconcile_total{controller=\"maps\",result=\"error\"}") >= 8.0);
    assert!(value("controller_runtime_reconcile_total{controller=\"maps\",result=\"success\"}") >= 1.0);
    assert!(value("workqueue_retries_total{name=\"maps\"}") >= 8.0);
    assert!(value("workqueue_adds_total{name=\"maps\"}") >= 10.0);
    for name in ["depth", "unfinished_work_seconds", "longest_running_processor_seconds"] {
        assert!(value(&format!("workqueue_{name}{{name=\"maps\"}}")) >= 0.0);
    }
    assert!(value("workqueue_queue_duration_seconds_count{name=\"maps\"}") >= 10.0);
    assert!(value("workqueue_work_duration_seconds_count{name=\"maps\"}") >= 10.0);
}

/// Maintains an external resource for each object: here a counter.
struct Outside(Arc<AtomicUsize>);

impl Reconcile for Outside {
    type Kind = ConfigMap;
    const FINALIZER: Option<&'static str> = Some("example.com/outside");

    async fn reconcile(&self, _: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
        assert!(map.metadata.finalizers.iter().flatten().any(|f| f == "example.com/outside"));
        self.0.store(1, Ordering::SeqCst);
        Ok(Action::await_change())
    }

    async fn cleanup(&self, _: &Context, _: Arc<ConfigMap>) -> Result<Action, Error> {
        self.0.store(0, Ordering::SeqCst);
        Ok(Action::await_change())
    }
}

#[test]
fn what_is_outside_is_cleaned_up_before_its_object_goes() {
    thread_local!(static OUTSIDE: Arc<AtomicUsize> = Arc::default());
    Lab::new()
        .with(maps().when(predicates::only(|m: &ConfigMap| m.label("copy").is_some())), || {
            Outside(OUTSIDE.with(Clone::clone))
        })
        .seeds(0..20)
        .faults(Faults::all())
        .run(async |lab| {
            lab.create(&original("a", "x")).await;
            lab.settle().await;
            assert_eq!(OUTSIDE.with(|n| n.load(Ordering::SeqCst)), 1);
            lab.delete::<ConfigMap>("a").await;
            lab.settle().await;
            assert!(lab.find::<ConfigMap>("a").await.is_none());
            assert_eq!(OUTSIDE.with(|n| n.load(Ordering::SeqCst)), 0, "it was cleaned up first");
        });
}

/// Counts the Secrets in its namespace from metadata-only objects.
struct Counts;

impl Reconcile for Counts {
    type Kind = ConfigMap;

    async fn reconcile(&self, cx: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
        if map.label("copy").is_some() {
            let count =
                cx.caches().of::<MetadataOnly<Secret>>().in_namespace(map.namespace()).len().to_string();
            if map.annotation("count") != Some(&count) {
                cx.merge(&*map, &serde_json::json!({"metadata": {"annotations": {"count": count}}})).await?;
                for i in 0..15 {
                    cx.event(&*map, EventType::Normal, "Counted", format!("secret {i} of {count}"));
                }
            }
        }
        Ok(Action::await_change())
    }
}

#[test]
fn metadata_alone_wakes_and_similar_events_are_combined() {
    Lab::new()
        .with(
            maps().watches::<MetadataOnly<Secret>>(|_, secret| vec![ObjectKey::new(secret.namespace(), "a")]),
            || Counts,
        )
        .faults(Faults::only([Fault::WatchBroken]))
        .seeds(0..5)
        .run(async |lab| {
            lab.create(&original("a", "x")).await;
            lab.create_from::<Secret>(
                serde_json::json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}}),
            )
            .await;
            lab.settle().await;
            assert_eq!(lab.get::<ConfigMap>("a").await.annotation("count"), Some("1"));
            let events: Vec<Event> = lab.list().await;
            let combined: Vec<&Event> = events
                .iter()
                .filter(|e| {
                    e.message.as_ref().is_some_and(|m| m.starts_with("(combined from similar events): "))
                })
                .collect();
            assert_eq!((events.len(), combined.len()), (11, 1));
            assert!(combined[0].count >= Some(5));
        });
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_manager_says_how_it_is() {
    let server = ApiServer::builder(Store::memory()).build().await.unwrap();
    let large = ConfigMap { data: Some([("x".into(), "y".repeat(10_000))].into()), ..original("large", "") };
    server.client_as(User::admin()).namespaced("default").create(&large).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let manager = Manager::new(server.client_as(User::admin())).controller(maps(), Marks).serve(listener);
    let stop = CancellationToken::new();
    let running = tokio::spawn(manager.run(stop.clone()));
    while !get(address, "/readyz").await.starts_with("HTTP/1.1 200") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(get(address, "/healthz").await.ends_with("ok"));
    assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404"));
    let metrics = get(address, "/metrics").await;
    assert!(
        metrics.contains("# TYPE workqueue_depth gauge") && metrics.contains("name=\"maps\""),
        "{metrics}"
    );
    let of_maps = |name: &str| -> usize {
        let begin = format!("{name}{{group=\"\",version=\"v1\",kind=\"ConfigMap\",trimmed=\"false\"}} ");
        metrics.lines().find_map(|l| l.strip_prefix(&begin)).unwrap().parse().unwrap()
    };
    let stored =
        server.client_as(User::admin()).all::<ConfigMap>().list(&ListParams::default()).await.unwrap();
    assert_eq!(of_maps("shared_cache_objects"), stored.len());
    assert!((10_000..30_000).contains(&of_maps("shared_cache_memory_bytes")), "{metrics}");
    stop.cancel();
    running.await.unwrap();
}
