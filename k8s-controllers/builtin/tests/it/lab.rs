//! A [`TestCluster`] with all controllers, nodes in zones, and pods of a given fate.

use std::time::Duration;

use jiff::Timestamp;
use k8s_builtin as builtin;
use k8s_builtin::pods;
use k8s_core::{
    api::{
        api::core::v1::{
            Container, ContainerState, ContainerStateTerminated, ContainerStatus, Event, Node, NodeCondition,
            NodeStatus, Pod, PodCondition, PodIP, PodSpec, PodStatus, PodTemplateSpec,
        },
        apimachinery::pkg::{
            api::resource::Quantity,
            apis::meta::v1::{LabelSelector, ObjectMeta, Time},
        },
    },
    cache::{Cache, Change, reflect},
    client::{Api, Client, DeleteOptions, ListParams},
    clock::Clock,
    meta::{Object, ObjectExt},
};
use k8s_testing::TestCluster;
use tokio_util::sync::CancellationToken;

pub(crate) struct Lab {
    cluster: TestCluster,
    pub(crate) client: Client,
    stop: CancellationToken,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn labels(app: &str) -> std::collections::BTreeMap<String, String> {
    [("app".to_owned(), app.to_owned())].into()
}

pub(crate) fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() }
}

pub(crate) fn selector(app: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(labels(app)), ..LabelSelector::default() }
}

pub(crate) fn template(app: &str, image: &str) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels(app)), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "c".into(),
                image: Some(image.into()),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
    }
}

/// Outcome of a pod: its final phase, with an optional exit code (`Failed:42`) or condition
/// (`Failed!DisruptionTarget`).
pub(crate) type Fate = fn(&Pod) -> &'static str;

fn status_of(pod: &Pod, fate: &str, ip: String, now: Time) -> PodStatus {
    let (phase, exit) = fate.split_once(':').map_or((fate, None), |(phase, code)| (phase, code.parse().ok()));
    let (phase, extra) = phase.split_once('!').map_or((phase, None), |(phase, kind)| (phase, Some(kind)));
    let condition = |kind: &str, status: &str| PodCondition {
        type_: kind.into(),
        status: status.into(),
        last_transition_time: Some(now.clone()),
        ..PodCondition::default()
    };
    let mut conditions = vec![condition("Ready", if phase == "Running" { "True" } else { "False" })];
    conditions.extend(extra.map(|kind| condition(kind, "True")));
    let ended = exit.map(|exit_code| ContainerStateTerminated {
        exit_code,
        finished_at: Some(now.clone()),
        ..ContainerStateTerminated::default()
    });
    let container = ended.map(|ended| ContainerStatus {
        name: pod
            .spec
            .as_ref()
            .and_then(|s| s.containers.first())
            .map(|c| c.name.clone())
            .unwrap_or_default(),
        state: Some(ContainerState { terminated: Some(ended), ..ContainerState::default() }),
        ..ContainerStatus::default()
    });
    PodStatus {
        phase: Some(phase.into()),
        pod_ip: Some(ip.clone()),
        pod_ips: Some(vec![PodIP { ip }]),
        conditions: Some(conditions),
        container_statuses: container.map(|c| vec![c]),
        ..PodStatus::default()
    }
}

impl Lab {
    /// Starts with `nodes` nodes, all controllers and the scheduler.
    pub(crate) async fn start(nodes: usize, fate: Fate) -> Lab {
        let _ = tracing_subscriber::fmt()
            .with_test_writer()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .try_init();
        let clock = Clock::starting_at(Timestamp::from_second(1_700_000_000).unwrap());
        let options = builtin::Options {
            root_ca: "PEM".into(),
            cluster_cidr: "10.42.0.0/16".parse().ok(),
            // These nodes have no heartbeat.
            node_monitor_grace: Duration::from_secs(1_000_000),
            ..builtin::Options::default()
        };
        let cluster = TestCluster::builder().nodes(0).options(options).clock(clock.clone()).seed(1);
        let cluster = cluster.start().await.unwrap();
        let client = cluster.client();
        let lab = Lab { cluster, client: client.clone(), stop: CancellationToken::new() };
        for i in 0..nodes {
            let amounts = [("cpu", "64"), ("memory", "64Gi"), ("pods", "110")];
            let ready =
                NodeCondition { type_: "Ready".into(), status: "True".into(), ..NodeCondition::default() };
            let node = Node {
                metadata: ObjectMeta {
                    name: Some(format!("n{i}")),
                    labels: Some([("topology.kubernetes.io/zone".into(), format!("z{i}"))].into()),
                    ..ObjectMeta::default()
                },
                spec: None,
                status: Some(NodeStatus {
                    allocatable: Some(amounts.map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into()),
                    conditions: Some(vec![ready]),
                    ..NodeStatus::default()
                }),
            };
            lab.create(&node).await;
            lab.api::<Node>().replace_status(node.name(), &node).await.unwrap();
        }
        tokio::spawn(kubelet(client, clock, lab.stop.clone(), fate));
        lab
    }

    pub(crate) fn api<K: Object>(&self) -> Api<K> {
        let namespaced = k8s_core::client::Resource::of::<K>().namespaced;
        self.client.namespaced(if namespaced { "default" } else { "" })
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

    pub(crate) async fn list_in<K: Object>(&self, namespace: &str) -> Vec<K> {
        self.client.namespaced::<K>(namespace).list(&ListParams::default()).await.unwrap()
    }

    pub(crate) async fn edit<K: Object>(&self, name: &str, change: impl Fn(&mut K)) {
        loop {
            let mut live: K = self.get(name).await;
            change(&mut live);
            match self.api::<K>().replace(name, &live).await {
                Ok(_) => return,
                Err(e) if e.is_conflict() => {}
                Err(e) => panic!("{e}"),
            }
        }
    }

    pub(crate) async fn delete<K: Object>(&self, name: &str, policy: &str) {
        let options = DeleteOptions { propagation_policy: Some(policy.into()), ..DeleteOptions::default() };
        self.api::<K>().delete(name, &options).await.unwrap();
    }

    /// Returns true if there is an event for a kind with this reason and a part of its message.
    pub(crate) async fn heard(&self, kind: &str, reason: &str, part: &str) -> bool {
        let all: Vec<Event> = self.list_in("").await;
        all.iter().any(|e| {
            e.involved_object.kind.as_deref() == Some(kind)
                && e.reason.as_deref() == Some(reason)
                && e.message.as_deref().is_some_and(|m| m.contains(part))
        })
    }

    /// Polls until `done`; fails after ten minutes of virtual time.
    pub(crate) async fn until(&self, what: &str, done: impl AsyncFn() -> bool) {
        for _ in 0..6000 {
            if done().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for event in self.list::<Event>().await {
            let about = event.involved_object;
            println!("{:?} {:?}: {:?} {:?}", about.kind, about.name, event.reason, event.message);
        }
        for pod in self.list::<Pod>().await {
            println!("{} {:?} {:?}", pod.name(), pod.spec.as_ref().map(|s| &s.node_name), pod.status);
        }
        panic!("never: {what}");
    }

    /// Fails if anything is written although nothing changes.
    pub(crate) async fn is_quiet(&self) {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let before = self.cluster.writes();
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(self.cluster.writes(), before, "somebody spins");
    }
}

/// Runs pods a second after they appear, ends those that should end, and removes deleted ones after a second.
pub(crate) async fn kubelet(client: Client, clock: Clock, stop: CancellationToken, fate: Fate) {
    let cache = Cache::<Pod>::new();
    let mut changes = cache.subscribe();
    let _reflector = reflect(client.all::<Pod>(), ListParams::default(), cache.clone());
    let mut number = 0u32;
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = stop.cancelled() => return,
        };
        let (Some(Change::Added(pod)) | Some(Change::Modified(_, pod))) = change else { continue };
        if pod.spec.as_ref().is_none_or(|s| s.node_name.is_none()) {
            continue;
        }
        number += 1;
        let (api, clock) = (client.namespaced::<Pod>(pod.namespace()), clock.clone());
        let ip = format!("10.42.{}.{}", number >> 8 & 255, number & 255);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if pod.is_deleting() {
                if !pods::is_terminal(&pod) {
                    // The holder of a finalizer must see that the pod has ended.
                    let mut ended = (*pod).clone();
                    ended.metadata.resource_version = None;
                    ended.status.get_or_insert_default().phase = Some("Failed".into());
                    let _ = api.replace_status(pod.name(), &ended).await;
                }
                let _ = api.delete(pod.name(), &DeleteOptions::default().grace(0).with_uid(pod.uid())).await;
                return;
            }
            if pod.status.as_ref().is_some_and(|s| s.pod_ip.is_some()) {
                return;
            }
            let mut next = (*pod).clone();
            next.metadata.resource_version = None;
            next.status = Some(status_of(&pod, fate(&pod), ip, clock.time()));
            let _ = api.replace_status(pod.name(), &next).await;
        });
    }
}
