//! The built-in controllers and the scheduler together, in virtual time.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]
#![allow(clippy::unwrap_used, missing_docs)]

mod bootstrap_tokens;
mod certificates;
mod cron_jobs;
mod daemons;
mod deployments;
mod garbage;
mod jobs;
mod lab;
mod load_balancers;
mod node_ranges;
mod provisioning;
mod quotas;
mod replication;
mod resource_claims;
mod service_cidrs;
mod slices;
mod token_secrets;
mod volumes;

use k8s_builtin::{conditions, pods};
use k8s_core::{
    api::{
        api::{
            apps::v1::{
                ControllerRevision, DaemonSet, DaemonSetSpec, Deployment, DeploymentSpec, ReplicaSet,
            },
            batch::v1::{CronJob, CronJobSpec, Job, JobSpec, JobTemplateSpec},
            core::v1::{
                ConfigMap, Endpoints, Event, HostPathVolumeSource, Namespace, Node, PersistentVolume,
                PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource,
                PersistentVolumeSpec, Pod, Service, ServiceAccount, ServicePort, ServiceSpec, Volume,
                VolumeResourceRequirements,
            },
            discovery::v1::EndpointSlice,
        },
        apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
    },
    meta::ObjectExt,
};
use lab::*;

fn runs(_: &Pod) -> &'static str {
    "Running"
}

fn deployment(name: &str, replicas: i32) -> Deployment {
    Deployment {
        metadata: metadata(name),
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: selector(name),
            template: template(name, "one"),
            progress_deadline_seconds: Some(600),
            revision_history_limit: Some(10),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn is_rolled_out(d: &Deployment) -> bool {
    let replicas = d.spec.as_ref().unwrap().replicas;
    let status = d.status.clone().unwrap_or_default();
    status.observed_generation == d.metadata.generation
        && status.updated_replicas == replicas
        && status.available_replicas == replicas
        && status.replicas == replicas
}

#[tokio::test(start_paused = true)]
async fn a_deployment_comes_up_rolls_within_bounds_rolls_back_and_goes() {
    let lab = Lab::start(3, runs).await;
    lab.create(&deployment("web", 10)).await;
    lab.until("rolled out", async || is_rolled_out(&lab.get("web").await)).await;
    let live: Deployment = lab.get("web").await;
    assert_eq!(live.annotation("deployment.kubernetes.io/revision"), Some("1"));
    let all = live.status.as_ref().unwrap().conditions.as_ref();
    assert!(conditions::is_true(all, "Available"));
    let progressing = conditions::find(all, "Progressing").unwrap();
    assert_eq!(progressing.reason.as_deref(), Some("NewReplicaSetAvailable"));
    lab.is_quiet().await;

    // 10 replicas: at most 13 pods, at least 8 available, at every moment.
    lab.edit("web", |d: &mut Deployment| d.spec.as_mut().unwrap().template = template("web", "two")).await;
    lab.until("rolled to two", async || {
        let all: Vec<Pod> = lab.list().await;
        let active = all.iter().filter(|p| pods::is_active(p)).count();
        let ready = all.iter().filter(|p| pods::is_active(p) && pods::is_ready(p)).count();
        assert!(active <= 13, "surge: {active}");
        assert!(ready >= 8, "available: {ready}");
        is_rolled_out(&lab.get("web").await)
    })
    .await;
    let sets: Vec<ReplicaSet> = lab.list().await;
    assert_eq!(sets.len(), 2);
    assert_eq!(lab.get::<Deployment>("web").await.annotation("deployment.kubernetes.io/revision"), Some("2"));

    lab.edit("web", |d: &mut Deployment| d.spec.as_mut().unwrap().template = template("web", "one")).await;
    lab.until("rolled back", async || is_rolled_out(&lab.get("web").await)).await;
    assert_eq!(lab.get::<Deployment>("web").await.annotation("deployment.kubernetes.io/revision"), Some("3"));
    assert_eq!(lab.list::<ReplicaSet>().await.len(), 2, "the old ReplicaSet is used again");
    lab.is_quiet().await;

    lab.edit("web", |d: &mut Deployment| d.spec.as_mut().unwrap().replicas = Some(4)).await;
    lab.until("scaled", async || is_rolled_out(&lab.get("web").await)).await;
    lab.delete::<Deployment>("web", "Background").await;
    lab.until("cascade", async || {
        lab.list::<Pod>().await.is_empty() && lab.list::<ReplicaSet>().await.is_empty()
    })
    .await;
    let events: Vec<Event> = lab.list().await;
    assert!(events.iter().any(|e| {
        e.message
            .as_deref()
            .is_some_and(|m| m.starts_with("Scaled up replica set web-") && m.ends_with(" from 0 to 10"))
    }));
}

#[tokio::test(start_paused = true)]
async fn five_hundred_replicas_and_no_more() {
    let lab = Lab::start(10, runs).await;
    lab.create(&deployment("big", 700)).await;
    lab.until("rolled out", async || {
        let all: Vec<Pod> = lab.list().await;
        assert!(all.len() <= 700, "{}", all.len());
        is_rolled_out(&lab.get("big").await)
    })
    .await;
    let all: Vec<Pod> = lab.list().await;
    for i in 0..10 {
        let here = all.iter().filter(|p| pods::node_name(p) == format!("n{i}")).count();
        assert!((60..=80).contains(&here), "{here} on n{i}");
    }
    lab.delete::<Deployment>("big", "Foreground").await;
    lab.until("cascade", async || {
        lab.list::<Pod>().await.is_empty() && lab.list::<Deployment>().await.is_empty()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn orphans_stay_and_are_adopted() {
    let lab = Lab::start(1, runs).await;
    lab.create(&deployment("web", 2)).await;
    lab.until("rolled out", async || is_rolled_out(&lab.get("web").await)).await;
    lab.delete::<Deployment>("web", "Orphan").await;
    lab.until("gone", async || lab.list::<Deployment>().await.is_empty()).await;
    lab.is_quiet().await;
    let sets: Vec<ReplicaSet> = lab.list().await;
    assert!(sets.len() == 1 && sets[0].controller_ref().is_none());
    let pods_before: Vec<String> = lab.list::<Pod>().await.iter().map(|p| p.name().to_owned()).collect();
    assert_eq!(pods_before.len(), 2);
    lab.create(&deployment("web", 2)).await;
    lab.until("adopted", async || is_rolled_out(&lab.get("web").await)).await;
    let pods_after: Vec<String> = lab.list::<Pod>().await.iter().map(|p| p.name().to_owned()).collect();
    assert_eq!(pods_before, pods_after);
}

fn service(name: &str) -> Service {
    Service {
        metadata: metadata(name),
        spec: Some(ServiceSpec {
            selector: Some(labels(name)),
            cluster_ip: Some("10.43.0.7".into()),
            ports: Some(vec![ServicePort {
                port: 80,
                target_port: Some(IntOrString::Int(8080)),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_follow_pods_and_go_with_the_service() {
    let lab = Lab::start(2, runs).await;
    lab.create(&service("web")).await;
    lab.create(&deployment("web", 3)).await;
    let ready = async || {
        let slices: Vec<EndpointSlice> = lab.list().await;
        let of = |s: &EndpointSlice| {
            s.endpoints
                .iter()
                .flatten()
                .filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)))
                .count()
        };
        slices.iter().map(of).sum::<usize>()
    };
    lab.until("three ready", async || ready().await == 3).await;
    let slices: Vec<EndpointSlice> = lab.list().await;
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0].label("kubernetes.io/service-name"), Some("web"));
    let old: Endpoints = lab.get("web").await;
    let subset = &old.subsets.as_ref().unwrap()[0];
    assert_eq!(subset.addresses.as_ref().unwrap().len(), 3);
    assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);
    lab.edit("web", |d: &mut Deployment| d.spec.as_mut().unwrap().replicas = Some(1)).await;
    lab.until("one ready", async || ready().await == 1).await;
    lab.is_quiet().await;
    lab.delete::<Service>("web", "Background").await;
    lab.until("gone", async || {
        lab.list::<EndpointSlice>().await.is_empty() && lab.list::<Endpoints>().await.is_empty()
    })
    .await;
}

fn job(name: &str, spec: JobSpec) -> Job {
    let mut template = template(name, "work");
    template.spec.get_or_insert_default().restart_policy = Some("Never".into());
    Job { metadata: metadata(name), spec: Some(JobSpec { template, ..spec }), status: None }
}

#[tokio::test(start_paused = true)]
async fn jobs_complete_fail_and_expire() {
    let fate = |pod: &Pod| if pod.label("app") == Some("bad") { "Failed" } else { "Succeeded" };
    let lab = Lab::start(2, fate).await;
    lab.create(&job("good", JobSpec { completions: Some(5), parallelism: Some(2), ..JobSpec::default() }))
        .await;
    lab.create(&job(
        "indexed",
        JobSpec {
            completions: Some(4),
            parallelism: Some(4),
            completion_mode: Some("Indexed".into()),
            ttl_seconds_after_finished: Some(60),
            ..JobSpec::default()
        },
    ))
    .await;
    lab.create(&job(
        "bad",
        JobSpec { completions: Some(1), parallelism: Some(1), backoff_limit: Some(2), ..JobSpec::default() },
    ))
    .await;
    let is = async |name: &str, condition: &str| {
        let job: Job = lab.get(name).await;
        conditions::is_true(job.status.as_ref().and_then(|s| s.conditions.as_ref()), condition)
    };
    lab.until("indexed completes", async || is("indexed", "Complete").await).await;
    let indexed: Job = lab.get("indexed").await;
    assert_eq!(indexed.status.unwrap().completed_indexes.as_deref(), Some("0-3"));
    lab.until("good completes", async || is("good", "Complete").await).await;
    let good: Job = lab.get("good").await;
    let status = good.status.unwrap();
    assert_eq!((status.succeeded, status.failed, status.active), (Some(5), None, None));
    assert!(status.completion_time.is_some());
    lab.until("bad fails", async || is("bad", "Failed").await).await;
    let bad: Job = lab.get("bad").await;
    assert_eq!(bad.status.unwrap().failed, Some(3));
    for pod in lab.list::<Pod>().await {
        assert!(pod.metadata.finalizers.iter().flatten().next().is_none(), "{} is held", pod.name());
    }
    lab.until("expires", async || lab.api::<Job>().get_opt("indexed").await.unwrap().is_none()).await;
    lab.is_quiet().await;
}

fn cron_job(name: &str, schedule: &str) -> CronJob {
    CronJob {
        metadata: metadata(name),
        spec: CronJobSpec {
            schedule: schedule.into(),
            job_template: JobTemplateSpec {
                metadata: None,
                spec: job(name, JobSpec { completions: Some(1), ..JobSpec::default() }).spec,
            },
            ..CronJobSpec::default()
        },
        status: None,
    }
}

fn is_finished(job: &Job) -> bool {
    let all = job.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions::is_true(all, "Complete") || conditions::is_true(all, "Failed")
}

#[tokio::test(start_paused = true)]
async fn a_cron_job_makes_a_job_every_five_minutes_and_keeps_three() {
    let lab = Lab::start(1, |_| "Succeeded").await;
    lab.create(&cron_job("tick", "*/5 * * * *")).await;
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    let jobs: Vec<Job> = lab.list().await;
    assert_eq!(jobs.len(), 3, "history limit");
    let made: Vec<Event> = lab.list().await;
    let made = made.iter().filter(|e| {
        e.reason.as_deref() == Some("SuccessfulCreate")
            && e.involved_object.kind.as_deref() == Some("CronJob")
    });
    let made: i32 = made.map(|e| e.count.unwrap_or(1)).sum();
    assert!((11..=12).contains(&made), "{made} in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let lab = Lab::start(1, runs).await;
    let mut shop = Namespace::default();
    shop.metadata.name = Some("shop".into());
    lab.create(&shop).await;
    lab.until("defaults", async || {
        let accounts: Vec<ServiceAccount> = lab.list_in("shop").await;
        let maps: Vec<ConfigMap> = lab.list_in("shop").await;
        accounts.iter().any(|a| a.name() == "default") && maps.iter().any(|m| m.name() == "kube-root-ca.crt")
    })
    .await;
    let (mut web, mut front) = (deployment("web", 3), service("web"));
    web.metadata.namespace = Some("shop".into());
    front.metadata.namespace = Some("shop".into());
    lab.client.namespaced("shop").create(&web).await.unwrap();
    lab.client.namespaced("shop").create(&front).await.unwrap();
    lab.until("rolled out", async || lab.list_in::<Deployment>("shop").await.iter().all(is_rolled_out)).await;
    lab.delete::<Namespace>("shop", "Background").await;
    lab.until("gone", async || lab.list::<Namespace>().await.iter().all(|n| n.name() != "shop")).await;
    assert!(lab.list_in::<Pod>("shop").await.is_empty());
    assert!(lab.list_in::<ReplicaSet>("shop").await.is_empty());
    assert!(lab.list_in::<ConfigMap>("shop").await.is_empty());
    assert!(lab.list_in::<Event>("shop").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fits_nowhere_says_why_and_runs_when_there_is_room() {
    let lab = Lab::start(1, runs).await;
    let mut pod = Pod { metadata: metadata("big"), ..Pod::default() };
    pod.spec = template("big", "x").spec;
    let requests = [("cpu".to_owned(), Quantity("100".into()))];
    let container = &mut pod.spec.as_mut().unwrap().containers[0];
    container.resources.get_or_insert_default().requests = Some(requests.into());
    lab.create(&pod).await;
    let want = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    lab.until("says why", async || {
        let pod: Pod = lab.get("big").await;
        pods::condition(&pod, "PodScheduled")
            .is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(want))
    })
    .await;
    let mut node: Node = lab.get("n0").await;
    node.status.as_mut().unwrap().allocatable.as_mut().unwrap().insert("cpu".into(), Quantity("128".into()));
    lab.api::<Node>().replace_status("n0", &node).await.unwrap();
    lab.until("runs", async || pods::is_ready(&lab.get::<Pod>("big").await)).await;
    assert_eq!(node.spec.and_then(|s| s.pod_cidr).as_deref(), Some("10.42.0.0/24"));
}

#[tokio::test(start_paused = true)]
async fn a_daemon_runs_on_every_node_and_is_updated_one_by_one() {
    let lab = Lab::start(4, runs).await;
    let daemon = DaemonSet {
        metadata: metadata("agent"),
        spec: Some(DaemonSetSpec {
            selector: selector("agent"),
            template: template("agent", "one"),
            ..DaemonSetSpec::default()
        }),
        status: None,
    };
    lab.create(&daemon).await;
    let is_done = async || {
        let live: DaemonSet = lab.get("agent").await;
        let status = live.status.unwrap_or_default();
        status.observed_generation == live.metadata.generation
            && (status.desired_number_scheduled, status.number_available, status.updated_number_scheduled)
                == (4, Some(4), Some(4))
    };
    lab.until("on all nodes", is_done).await;
    let mut nodes: Vec<String> =
        lab.list::<Pod>().await.iter().map(|p| pods::node_name(p).to_owned()).collect();
    nodes.sort();
    assert_eq!(nodes, ["n0", "n1", "n2", "n3"]);
    lab.is_quiet().await;
    lab.edit("agent", |d: &mut DaemonSet| d.spec.as_mut().unwrap().template = template("agent", "two")).await;
    lab.until("updated", async || {
        let all: Vec<Pod> = lab.list().await;
        let ready = all.iter().filter(|p| pods::is_active(p) && pods::is_ready(p)).count();
        assert!(ready >= 3, "only one at a time");
        is_done().await
    })
    .await;
    assert_eq!(lab.list::<ControllerRevision>().await.len(), 2);
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_gets_the_smallest_volume_of_its_class_and_its_pod_runs() {
    let lab = Lab::start(1, runs).await;
    let amount = |text: &str| [("storage".to_owned(), Quantity(text.to_owned()))].into();
    for (name, size, class) in [
        ("large", "10Gi", "slow"),
        ("right", "2Gi", "slow"),
        ("small", "1Gi", "slow"),
        ("other", "2Gi", "fast"),
    ] {
        lab.create(&PersistentVolume {
            metadata: k8s_core::api::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                namespace: None,
                ..metadata(name)
            },
            spec: Some(PersistentVolumeSpec {
                capacity: Some(amount(size)),
                access_modes: Some(vec!["ReadWriteOnce".into()]),
                storage_class_name: Some(class.into()),
                host_path: Some(HostPathVolumeSource { path: "/data".into(), type_: None }),
                ..PersistentVolumeSpec::default()
            }),
            status: None,
        })
        .await;
    }
    let mut claim = PersistentVolumeClaim { metadata: metadata("data"), ..PersistentVolumeClaim::default() };
    // The class as claims named it before there was a field.
    claim.metadata.annotations =
        Some([("volume.beta.kubernetes.io/storage-class".to_owned(), "slow".to_owned())].into());
    claim.spec = Some(PersistentVolumeClaimSpec {
        access_modes: Some(vec!["ReadWriteOnce".into()]),
        resources: Some(VolumeResourceRequirements {
            requests: Some(amount("1500Mi")),
            ..VolumeResourceRequirements::default()
        }),
        ..PersistentVolumeClaimSpec::default()
    });
    let mut pod = Pod { metadata: metadata("db"), ..Pod::default() };
    pod.spec = template("db", "x").spec;
    pod.spec.as_mut().unwrap().volumes = Some(vec![Volume {
        name: "data".into(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: "data".into(),
            ..Default::default()
        }),
        ..Volume::default()
    }]);
    lab.create(&pod).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(pods::node_name(&lab.get::<Pod>("db").await).is_empty(), "it waits for its claim");
    lab.create(&claim).await;
    lab.until("runs", async || pods::is_ready(&lab.get::<Pod>("db").await)).await;
    let live: PersistentVolumeClaim = lab.get("data").await;
    assert_eq!(live.spec.unwrap().volume_name.as_deref(), Some("right"));
    assert_eq!(lab.get::<PersistentVolume>("right").await.status.unwrap().phase.as_deref(), Some("Bound"));
    lab.is_quiet().await;
    lab.delete::<PersistentVolumeClaim>("data", "Background").await;
    lab.delete::<PersistentVolume>("right", "Background").await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(lab.get::<PersistentVolumeClaim>("data").await.is_deleting(), "its pod keeps it");
    assert!(lab.get::<PersistentVolume>("right").await.is_deleting(), "its claim keeps it");
    lab.delete::<PersistentVolume>("other", "Background").await;
    lab.until("goes", async || lab.list::<PersistentVolume>().await.iter().all(|v| v.name() != "other"))
        .await;
    lab.delete::<Pod>("db", "Background").await;
    lab.until("both go", async || {
        let volumes = lab.list::<PersistentVolume>().await;
        lab.list::<PersistentVolumeClaim>().await.is_empty() && volumes.iter().all(|v| v.name() != "right")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_released_with_its_claim() {
    let lab = Lab::start(1, runs).await;
    let volume = serde_json::json!({"metadata": {"name": "right"}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/data"}}});
    lab.create::<PersistentVolume>(&serde_json::from_value(volume).unwrap()).await;
    let claim = serde_json::json!({"metadata": {"name": "data", "namespace": "default"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    lab.create::<PersistentVolumeClaim>(&serde_json::from_value(claim).unwrap()).await;
    lab.until("bound", async || {
        let volume: PersistentVolume = lab.get("right").await;
        volume.status.unwrap().phase.as_deref() == Some("Bound")
    })
    .await;
    lab.delete::<PersistentVolumeClaim>("data", "Background").await;
    lab.until("released", async || {
        let volume: PersistentVolume = lab.get("right").await;
        volume.status.unwrap().phase.as_deref() == Some("Released")
    })
    .await;
}
