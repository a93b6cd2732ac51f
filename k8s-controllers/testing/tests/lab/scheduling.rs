//! Decisions that come to nothing, and the changes that wake their pods, in virtual time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use k8s_apiserver::User;
use k8s_controllers::Handle;
use k8s_core::{
    api::api::{
        core::v1::{Event, PersistentVolumeClaim, Pod, PodCondition},
        resource::v1::{DeviceClass, ResourceClaim, ResourceSlice},
        storage::v1::{CSIStorageCapacity, StorageClass},
    },
    client::{Client, DeleteOptions, Error, ListParams, Patch},
};
use k8s_scheduler::{
    Bind, Builder, Cycle, Filter, NodeInfo, Permit, Placement, PodInfo, Points, PreFilter, Reject, Scheduler,
    plugins::DefaultBinder,
};
use k8s_testing::TestCluster;
use serde_json::{Value, json};

type Outcome = Result<(), Box<dyn std::error::Error>>;

async fn start(shape: impl FnOnce(Builder) -> Builder) -> Result<(TestCluster, Handle), k8s_testing::Error> {
    let cluster = TestCluster::builder().nodes(2).without_scheduler().start().await?;
    let client = cluster.client_as(User::new("system:kube-scheduler", &[])).named("kube-scheduler");
    Ok((cluster, shape(Scheduler::builder()).start(client)))
}

fn pod(name: &str, more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn scheduled(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().find(|condition| condition.type_ == "PodScheduled")
}

/// Returns the message once the pod's condition has the reason.
async fn refused(cluster: &TestCluster, name: &str, reason: &str) -> Result<String, k8s_testing::Error> {
    let says = |pod: &Pod| scheduled(pod).is_some_and(|c| c.reason.as_deref() == Some(reason));
    let pod = cluster.until::<Pod>("default", name, says).await?;
    Ok(scheduled(&pod).and_then(|condition| condition.message.clone()).unwrap_or_default())
}

async fn events(client: &Client) -> Result<Vec<String>, Error> {
    let all = client.namespaced::<Event>("default").list(&ListParams::default()).await?;
    let failed = all.iter().filter(|event| event.reason.as_deref() == Some("FailedScheduling"));
    Ok(failed.filter_map(|event| event.message.clone()).collect())
}

/// A binder that fails for pods that want it.
struct Fragile;

#[async_trait]
impl Bind for Fragile {
    async fn bind(&self, placement: &Placement) -> Result<bool, Error> {
        if placement.pod.annotation("fragile").is_some() {
            tokio::time::sleep(Duration::from_secs(3)).await;
            return Err(Error::Request("the disk is full".into()));
        }
        DefaultBinder.bind(placement).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_binding_is_in_the_condition_and_the_pod_is_tried_as_it_is_then() -> Outcome {
    let fragile = Points::of(Fragile).named("DefaultBinder").binds();
    let (cluster, running) = start(|builder| builder.plugin(fragile)).await?;
    let mut fragile = pod("a", json!({}));
    fragile["metadata"]["annotations"] = json!({"fragile": "yes"});
    cluster.create::<Pod>("default", &fragile).await?;
    let want = "running Bind plugin \"DefaultBinder\": invalid request: the disk is full";
    assert_eq!(refused(&cluster, "a", "SchedulerError").await?, want);
    // While the second attempt binds, the pod is changed; the third one must know it.
    cluster.clock().sleep(Duration::from_secs(2)).await;
    let mended = json!({"metadata": {"annotations": {"fragile": null}}});
    cluster.client().namespaced::<Pod>("default").patch("a", &Patch::Merge(mended)).await?;
    let placed = cluster.until::<Pod>("default", "a", |pod| node_of(pod).is_some()).await?;
    let condition = scheduled(&placed).expect("it is scheduled");
    assert_eq!((condition.status.as_str(), &condition.reason), ("True", &None));
    assert!(events(&cluster.client()).await?.iter().any(|message| message == want));
    running.shutdown().await?;
    Ok(())
}

/// Lets a pod wait for ten seconds, and then refuses it, if it wants that.
struct Late;

#[async_trait]
impl Permit for Late {
    async fn permit(&self, placement: &Placement) -> Result<(), Reject> {
        if placement.pod.annotation("late").is_none() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        Err(Reject::full("too late"))
    }
}

/// Counts the decisions about pods with devices.
struct Counting(Arc<AtomicUsize>);

impl PreFilter for Counting {
    fn pre_filter(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let with = pod.pod.spec.as_ref().is_some_and(|spec| spec.resource_claims.is_some());
        self.0.fetch_add(usize::from(with), Ordering::Relaxed);
        Ok(false)
    }
}

impl Filter for Counting {
    fn filter(&self, _: &Cycle<'_>, _: &PodInfo, _: &NodeInfo) -> Result<(), Reject> {
        Ok(())
    }
}

/// Makes one device for all nodes, and claims of it.
async fn devices(cluster: &TestCluster, claims: &[&str]) -> Outcome {
    let client = cluster.client();
    let class = json!({"metadata": {"name": "any"}, "spec": {}});
    client.all::<DeviceClass>().create(&serde_json::from_value(class)?).await?;
    let slice = json!({"metadata": {"name": "s"}, "spec": {
        "driver": "d.example.com", "allNodes": true, "devices": [{"name": "only"}],
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
    }});
    client.all::<ResourceSlice>().create(&serde_json::from_value(slice)?).await?;
    for name in claims {
        claim(cluster, name).await?;
    }
    Ok(())
}

async fn claim(cluster: &TestCluster, name: &str) -> Outcome {
    let requests = json!([{"name": "r", "exactly": {"deviceClassName": "any"}}]);
    let claim = json!({"metadata": {"name": name}, "spec": {"devices": {"requests": requests}}});
    cluster.create::<ResourceClaim>("default", &claim).await?;
    Ok(())
}

fn with_claim(name: &str) -> Value {
    pod(name, json!({"resourceClaims": [{"name": "d", "resourceClaimName": name}]}))
}

/// Two pods want the only device. The first is refused after the decision; `gone`: it is deleted meanwhile.
async fn a_promise_is_dropped(gone: bool) -> Outcome {
    let late = Points::of(Late).permits();
    let (cluster, running) = start(|builder| builder.plugin(late)).await?;
    devices(&cluster, &["first", "second"]).await?;
    let mut first = with_claim("first");
    first["metadata"]["annotations"] = json!({"late": "yes"});
    cluster.create::<Pod>("default", &first).await?;
    cluster.clock().sleep(Duration::from_secs(1)).await;
    cluster.create::<Pod>("default", &with_claim("second")).await?;
    assert!(refused(&cluster, "second", "Unschedulable").await?.contains("2 cannot allocate all claims"));
    if gone {
        let pods = cluster.client().namespaced::<Pod>("default");
        pods.delete("first", &DeleteOptions::default()).await?;
    } else {
        let message = refused(&cluster, "first", "Unschedulable").await?;
        assert_eq!(message, "0/1 nodes are available: 1 too late.");
    }
    let begun = cluster.clock().now();
    cluster.until::<Pod>("default", "second", |pod| node_of(pod).is_some()).await?;
    let waited = cluster.clock().since(begun);
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    running.shutdown().await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_device_whose_promise_is_dropped_goes_to_the_next_pod_at_once() -> Outcome {
    a_promise_is_dropped(false).await?;
    a_promise_is_dropped(true).await
}

#[tokio::test(start_paused = true)]
async fn claims_of_others_wake_no_pod_that_waits_for_devices() -> Outcome {
    let tries = Arc::new(AtomicUsize::new(0));
    let counting = Points::of(Counting(tries.clone())).pre_filters().filters();
    let (cluster, running) = start(|builder| builder.plugin(counting)).await?;
    devices(&cluster, &["first", "second"]).await?;
    for name in ["first", "second"] {
        cluster.create::<Pod>("default", &with_claim(name)).await?;
        cluster.clock().sleep(Duration::from_secs(30)).await;
    }
    let tried = tries.load(Ordering::Relaxed);
    for at in 0..20 {
        claim(&cluster, &format!("other-{at}")).await?;
        cluster.clock().sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(tries.load(Ordering::Relaxed), tried);
    // A device that comes free does.
    cluster.client().namespaced::<Pod>("default").delete("first", &DeleteOptions::default()).await?;
    cluster.until::<Pod>("default", "second", |pod| node_of(pod).is_some()).await?;
    running.shutdown().await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_made_where_its_driver_has_room() -> Outcome {
    let (cluster, running) = start(|builder| builder).await?;
    cluster
        .apply("{apiVersion: storage.k8s.io/v1, kind: CSIDriver, metadata: {name: d.example.com}, spec: {storageCapacity: true}}")
        .await?;
    let class = json!({"metadata": {"name": "late"}, "provisioner": "d.example.com",
        "volumeBindingMode": "WaitForFirstConsumer"});
    cluster.client().all::<StorageClass>().create(&serde_json::from_value(class)?).await?;
    let room = json!({"metadata": {"name": "room"}, "storageClassName": "late", "capacity": "1Gi",
        "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": "node-1"}}});
    cluster.create::<CSIStorageCapacity>("default", &room).await?;
    let claim = json!({"metadata": {"name": "data"}, "spec": {"storageClassName": "late",
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}});
    cluster.create::<PersistentVolumeClaim>("default", &claim).await?;
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    cluster.create::<Pod>("default", &pod("a", json!({"volumes": volumes}))).await?;
    let message = refused(&cluster, "a", "Unschedulable").await?;
    assert!(
        message.starts_with("0/2 nodes are available: 2 node(s) did not have enough free storage."),
        "{message}"
    );
    let capacities = cluster.client().namespaced::<CSIStorageCapacity>("default");
    let begun = cluster.clock().now();
    capacities.patch("room", &Patch::Merge(json!({"capacity": "3Gi"}))).await?;
    let told = |claim: &PersistentVolumeClaim| {
        let annotations = claim.metadata.annotations.as_ref();
        annotations
            .is_some_and(|all| all.get("volume.kubernetes.io/selected-node").is_some_and(|n| n == "node-1"))
    };
    cluster.until("default", "data", told).await?;
    let waited = cluster.clock().since(begun);
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    running.shutdown().await?;
    Ok(())
}
