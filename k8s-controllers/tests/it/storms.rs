//! What holds for built-in controllers whatever fails: see [`crate::faults`].

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_controllers::builtin::{conditions, pods};
use k8s_core::{
    api::{
        api::{
            apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
            batch::v1::{CronJob, Job, JobSpec},
            core::v1::{
                ConfigMap, Endpoints, Namespace, Pod, PodTemplateSpec, ReplicationController,
                ReplicationControllerSpec, Service, ServiceAccount,
            },
            discovery::v1::EndpointSlice,
        },
        apimachinery::pkg::util::intstr::IntOrString,
    },
    client::{DeleteOptions, ListParams},
    meta::{Object, ObjectExt, owner_reference},
};

use crate::{
    cron_job, deployment,
    faults::{Storm, seeds},
    is_rolled_out, job,
    lab::{labels, metadata, selector, template},
    runs, service,
};

/// Pods that a kubelet has to end.
fn on_node(mut template: PodTemplateSpec) -> PodTemplateSpec {
    template.spec.get_or_insert_default().node_name = Some("n0".into());
    template
}

fn active<'a>(all: &'a [Arc<Pod>], app: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
    all.iter().filter(move |p| p.label("app") == Some(app) && pods::is_active(p))
}

/// Something of the same kind that must stay as it is.
fn bystander(app: &str) -> Pod {
    Pod { metadata: metadata(app), spec: template(app, "other").spec, status: None }
}

#[test]
fn deployments_roll_within_their_bounds() {
    seeds(15, async |seed| {
        let storm = Storm::start(seed, &["deployment", "replicaset", "garbagecollector"], runs).await;
        storm.create(&bystander("other")).await;
        let replicas = 3 + i32::try_from(storm.random(5)).unwrap();
        let recreate = storm.random(4) == 0;
        let surge = if recreate { 0 } else { 1 + i32::try_from(storm.random(2)).unwrap() };
        let mut web = deployment("web", replicas);
        let spec = web.spec.as_mut().unwrap();
        spec.template = on_node(template("web", "0"));
        let mut strategy = k8s_core::api::api::apps::v1::DeploymentStrategy::default();
        if recreate {
            strategy.type_ = Some("Recreate".into());
        } else {
            let rolling = strategy.rolling_update.get_or_insert_default();
            rolling.max_surge = Some(IntOrString::Int(surge));
            rolling.max_unavailable = Some(IntOrString::Int(1));
        }
        spec.strategy = Some(strategy);
        spec.revision_history_limit = Some(1);
        storm.create(&web).await;
        let most = usize::try_from(replicas + surge).unwrap();
        let check = |all: &[Arc<Pod>]| {
            let count = active(all, "web").count();
            assert!(count <= most, "{count} pods, {replicas} + {surge} allowed");
            if recreate {
                let live = all.iter().filter(|p| p.label("app") == Some("web") && !pods::is_terminal(p));
                let hashes: HashSet<_> = live.filter_map(|p| p.label("pod-template-hash")).collect();
                assert!(hashes.len() <= 1, "old and new pods at once");
            }
        };
        let mut image = String::new();
        for round in 1..=3 {
            let time = 5 + storm.random(40);
            storm.rage(time, check).await;
            image = round.to_string();
            let next = on_node(template("web", &image));
            storm.edit("web", |d: &mut Deployment| d.spec.as_mut().unwrap().template = next.clone()).await;
        }
        storm.rage(60, check).await;
        storm.calm("rolled out", async || is_rolled_out(&storm.get("web").await)).await;
        let all: Vec<Pod> = storm.list().await;
        let new = all.iter().filter(|p| p.label("app") == Some("web"));
        let images: Vec<_> = new.map(|p| p.spec.clone().unwrap().containers[0].image.clone()).collect();
        assert_eq!(images, vec![Some(image); usize::try_from(replicas).unwrap()]);
        assert!(all.iter().any(|p| p.name() == "other" && !p.is_deleting()));
        let sets: Vec<ReplicaSet> = storm.list().await;
        assert!(sets.len() <= 2, "{} ReplicaSets with a history of one", sets.len());
    });
}

async fn keeps_so_many<K: Object>(
    storm: &Storm,
    make: impl Fn(i32) -> K,
    resize: impl Fn(&mut K, i32),
    done: impl AsyncFn(i32) -> bool,
) {
    let mut orphan = bystander("web");
    orphan.metadata.name = Some("found".into());
    orphan.spec = on_node(template("web", "one")).spec;
    storm.create(&bystander("other")).await;
    storm.create(&orphan).await;
    let mut size = 6;
    storm.create(&make(size)).await;
    let mut most = 6;
    for _ in 0..4 {
        let time = 5 + storm.random(30);
        storm
            .rage(time, |all| {
                let count = active(all, "web").count();
                assert!(count <= most, "{count} pods, {most} allowed");
            })
            .await;
        let next = i32::try_from(storm.random(10)).unwrap();
        storm.edit("web", |object: &mut K| resize(object, next)).await;
        // Those of a larger number before may still be there.
        most = most.max(usize::try_from(next).unwrap());
        size = next;
    }
    storm.calm("as many as wanted", async || done(size).await).await;
    let all: Vec<Pod> = storm.list().await;
    let ours = all.iter().filter(|p| p.label("app") == Some("web"));
    assert!(ours.clone().all(|p| p.controller_ref().is_some()), "the orphan was adopted");
    assert_eq!(ours.count(), usize::try_from(size).unwrap());
    assert!(all.iter().any(|p| p.name() == "other" && p.controller_ref().is_none()));
}

#[test]
fn replica_sets_keep_so_many_pods() {
    seeds(15, async |seed| {
        let storm = Storm::start(seed, &["replicaset"], runs).await;
        let make = |size| ReplicaSet {
            metadata: metadata("web"),
            spec: Some(ReplicaSetSpec {
                replicas: Some(size),
                selector: selector("web"),
                template: Some(on_node(template("web", "one"))),
                ..ReplicaSetSpec::default()
            }),
            status: None,
        };
        let resize = |set: &mut ReplicaSet, size| set.spec.as_mut().unwrap().replicas = Some(size);
        keeps_so_many(&storm, make, resize, async |size| {
            let set: ReplicaSet = storm.get("web").await;
            let status = set.status.unwrap_or_default();
            let counts = (status.replicas, status.ready_replicas.unwrap_or(0), status.terminating_replicas);
            counts == (size, size, Some(0)) && status.observed_generation == set.metadata.generation
        })
        .await;
    });
}

#[test]
fn replication_controllers_keep_so_many_pods() {
    seeds(15, async |seed| {
        let storm = Storm::start(seed, &["replicationcontroller"], runs).await;
        let make = |size| ReplicationController {
            metadata: metadata("web"),
            spec: Some(ReplicationControllerSpec {
                replicas: Some(size),
                selector: Some(labels("web")),
                template: Some(on_node(template("web", "one"))),
                ..ReplicationControllerSpec::default()
            }),
            status: None,
        };
        let resize = |rc: &mut ReplicationController, size| rc.spec.as_mut().unwrap().replicas = Some(size);
        keeps_so_many(&storm, make, resize, async |size| {
            let status = storm.get::<ReplicationController>("web").await.status.unwrap_or_default();
            (status.replicas, status.available_replicas.unwrap_or(0)) == (size, size)
        })
        .await;
    });
}

/// Whether a pod succeeds, from its name: of five about four do.
fn mostly_succeeds(pod: &Pod) -> &'static str {
    let sum = pod.name().bytes().fold(7u32, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
    if sum.is_multiple_of(5) { "Failed" } else { "Succeeded" }
}

#[test]
fn jobs_count_every_pod_once_and_run_no_more_than_asked() {
    seeds(15, async |seed| {
        let storm = Storm::start(seed, &["job"], mostly_succeeds).await;
        let (completions, parallelism) = (2 + storm.random(6), 1 + storm.random(4));
        let (indexed, by_index) = (seed % 2 == 1, seed % 4 == 3);
        let mut work = job(
            "work",
            JobSpec {
                completions: i32::try_from(completions).ok(),
                parallelism: i32::try_from(parallelism).ok(),
                backoff_limit: (!by_index).then(|| i32::try_from(storm.random(4)).unwrap()),
                backoff_limit_per_index: by_index.then_some(1),
                completion_mode: indexed.then(|| "Indexed".into()),
                ..JobSpec::default()
            },
        );
        let spec = work.spec.as_mut().unwrap();
        spec.template = on_node(spec.template.clone());
        storm.create(&work).await;
        let mut ends: HashMap<String, &'static str> = HashMap::new();
        let mut look = |all: &[Arc<Pod>]| {
            for pod in all.iter().filter(|p| pods::is_terminal(p)) {
                let well = if pods::phase(pod) == "Succeeded" { "Succeeded" } else { "Failed" };
                ends.insert(pod.uid().to_owned(), well);
            }
            let running = all.iter().filter(|p| pods::is_active(p)).count() as u64;
            assert!(running <= parallelism, "{running} run, {parallelism} may");
            let good = ends.values().filter(|e| **e == "Succeeded").count() as u64;
            assert!(good + running <= completions || indexed, "{good} of {completions} done, {running} run");
        };
        storm.rage(200, &mut look).await;
        storm
            .calm("finished", async || {
                let status = storm.get::<Job>("work").await.status.unwrap_or_default();
                ["Complete", "Failed"]
                    .iter()
                    .any(|kind| conditions::is_true(status.conditions.as_ref(), kind))
            })
            .await;
        let all: Vec<Pod> = storm.list().await;
        assert!(all.iter().all(|p| p.metadata.finalizers.iter().flatten().next().is_none()));
        storm.rage(1, &mut look).await;
        let status = storm.get::<Job>("work").await.status.unwrap();
        let count = |how: &str| i32::try_from(ends.values().filter(|e| **e == how).count()).unwrap();
        let complete = conditions::is_true(status.conditions.as_ref(), "Complete");
        if indexed {
            assert!(status.succeeded.unwrap_or(0) <= count("Succeeded"));
        } else {
            assert_eq!(status.succeeded.unwrap_or(0), count("Succeeded"), "{status:?}");
        }
        if complete {
            assert_eq!(status.succeeded, i32::try_from(completions).ok());
            assert_eq!(status.failed.unwrap_or(0), count("Failed"), "{status:?}");
        } else {
            // Pods that were running when the Job failed count as failed although they may not say so.
            assert!(status.failed.unwrap_or(0) >= count("Failed"), "{status:?}");
        }
    });
}

#[test]
fn cron_jobs_keep_to_their_policy_and_history() {
    seeds(8, async |seed| {
        let storm = Storm::start(seed, &["cronjob", "job", "garbagecollector"], |_| "Succeeded").await;
        let policy = ["Forbid", "Allow", "Replace"][usize::try_from(seed % 3).unwrap()];
        let mut cron = cron_job("tick", "* * * * *");
        cron.spec.concurrency_policy = Some(policy.into());
        let spec = cron.spec.job_template.spec.as_mut().unwrap();
        spec.template = on_node(spec.template.clone());
        storm.create(&cron).await;
        for _ in 0..40 {
            storm.rage(15, |_| {}).await;
            let jobs: Vec<Job> = storm.list().await;
            let running = jobs.iter().filter(|j| !j.is_deleting() && !crate::is_finished(j)).count();
            assert!(running <= 1 || policy == "Allow", "{running} run with {policy}");
        }
        storm.edit("tick", |c: &mut CronJob| c.spec.suspend = Some(true)).await;
        storm
            .calm("at rest", async || {
                let jobs: Vec<Job> = storm.list().await;
                let status = storm.get::<CronJob>("tick").await.status.unwrap_or_default();
                status.active.is_none() && jobs.len() <= 3 && jobs.iter().all(crate::is_finished)
            })
            .await;
        let status = storm.get::<CronJob>("tick").await.status.unwrap();
        assert!(status.last_schedule_time.is_some() && status.last_successful_time.is_some());
    });
}

#[test]
fn what_is_owned_goes_with_its_owners_and_nothing_else() {
    seeds(15, async |seed| {
        let storm = Storm::start(seed, &["garbagecollector"], runs).await;
        let map = |name: &str, owners: &[&ConfigMap]| {
            let mut map = ConfigMap { metadata: metadata(name), ..ConfigMap::default() };
            let references = owners.iter().map(|o| {
                let mut reference = owner_reference(*o);
                reference.controller = None;
                reference
            });
            map.metadata.owner_references = Some(references.collect());
            map
        };
        let (a, b) = (storm.create(&map("a", &[])).await, storm.create(&map("b", &[])).await);
        for i in 0..4 {
            let child = storm.create(&map(&format!("of-a-{i}"), &[&a])).await;
            storm.create(&map(&format!("of-of-a-{i}"), &[&child])).await;
            storm.create(&map(&format!("of-both-{i}"), &[&a, &b])).await;
        }
        let mut lost = map("lost", &[&a]);
        lost.metadata.owner_references.as_mut().unwrap()[0].uid = "nobody".into();
        storm.create(&lost).await;
        let time = storm.random(20);
        storm.rage(time, |_| {}).await;
        let policy = ["Background", "Foreground", "Orphan"][usize::try_from(seed % 3).unwrap()];
        let options = DeleteOptions { propagation_policy: Some(policy.into()), ..DeleteOptions::default() };
        storm.api::<ConfigMap>().delete("a", &options).await.unwrap();
        storm.rage(60, |_| {}).await;
        let mut want: Vec<String> = (0..4).map(|i| format!("of-both-{i}")).chain(["b".into()]).collect();
        if policy == "Orphan" {
            want.extend((0..4).flat_map(|i| [format!("of-a-{i}"), format!("of-of-a-{i}")]));
        }
        want.sort();
        storm
            .calm("exactly what is owned is left", async || {
                let all: Vec<ConfigMap> = storm.list().await;
                let mut names: Vec<String> = all.iter().map(|m| m.name().to_owned()).collect();
                names.sort();
                // Who was not the only owner is released.
                let of_a =
                    |m: &ConfigMap| m.metadata.owner_references.iter().flatten().any(|o| o.uid == a.uid());
                names == want && !all.iter().any(of_a)
            })
            .await;
    });
}

#[test]
fn namespaces_go_with_all_and_others_stay() {
    seeds(15, async |seed| {
        let storm = Storm::start(seed, &["namespace", "serviceaccount"], runs).await;
        for name in ["shop", "bank"] {
            let mut namespace = Namespace::default();
            namespace.metadata.name = Some(name.into());
            storm.create(&namespace).await;
            storm.account(name).await;
            for i in 0..5 {
                let mut map = ConfigMap { metadata: metadata(&format!("m{i}")), ..ConfigMap::default() };
                map.metadata.namespace = Some(name.into());
                storm.client.namespaced(name).create(&map).await.unwrap();
                let mut pod = bystander(&format!("p{i}"));
                pod.metadata.namespace = Some(name.into());
                pod.spec = on_node(template("p", "x")).spec;
                storm.client.namespaced(name).create(&pod).await.unwrap();
            }
        }
        let time = storm.random(20);
        storm.rage(time, |_| {}).await;
        storm.api::<Namespace>().delete("shop", &DeleteOptions::background()).await.unwrap();
        storm.rage(60, |_| {}).await;
        storm
            .calm("one is gone and the other has its account", async || {
                let gone = storm.api::<Namespace>().get_opt("shop").await.unwrap().is_none();
                let accounts = storm.client.namespaced::<ServiceAccount>("bank");
                gone && accounts.get_opt("default").await.unwrap().is_some()
            })
            .await;
        let left = |namespace: &'static str| {
            let client = storm.client.clone();
            async move {
                let all = ListParams::default();
                let maps = client.namespaced::<ConfigMap>(namespace).list(&all).await.unwrap().len();
                maps + client.namespaced::<Pod>(namespace).list(&all).await.unwrap().len()
            }
        };
        assert_eq!((left("shop").await, left("bank").await), (0, 10));
    });
}

#[test]
fn endpoints_of_all_kinds_show_exactly_the_pods() {
    let controllers =
        ["endpointslice", "endpoint", "endpointslicemirroring", "replicaset", "garbagecollector"];
    seeds(15, async |seed| {
        let storm = Storm::start(seed, &controllers, runs).await;
        storm.create(&service("web")).await;
        let mut manual = service("manual");
        manual.spec.as_mut().unwrap().selector = None;
        manual.spec.as_mut().unwrap().cluster_ip = Some("10.43.0.8".into());
        storm.create(&manual).await;
        let subset = serde_json::json!([{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}]);
        let subsets = serde_json::from_value(subset).unwrap();
        storm.create(&Endpoints { metadata: metadata("manual"), subsets: Some(subsets) }).await;
        let set = ReplicaSet {
            metadata: metadata("web"),
            spec: Some(ReplicaSetSpec {
                replicas: Some(4),
                selector: selector("web"),
                template: Some(on_node(template("web", "one"))),
                ..ReplicaSetSpec::default()
            }),
            status: None,
        };
        storm.create(&set).await;
        for _ in 0..3 {
            storm.rage(20, |_| {}).await;
            let next = i32::try_from(storm.random(8)).unwrap();
            storm.edit("web", |s: &mut ReplicaSet| s.spec.as_mut().unwrap().replicas = Some(next)).await;
        }
        storm.rage(30, |_| {}).await;
        storm
            .calm("shown exactly", async || {
                let ready =
                    |p: &Pod| p.label("app") == Some("web") && pods::is_active(p) && pods::is_ready(p);
                let all: Vec<Pod> = storm.list().await;
                let size = storm.get::<ReplicaSet>("web").await.spec.unwrap().replicas.unwrap();
                let ip = |p: &Pod| p.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default();
                let mut want: Vec<String> = all.iter().filter(|p| ready(p)).map(ip).collect();
                want.sort();
                let mut shown: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for slice in storm.list::<EndpointSlice>().await {
                    let name = slice.label("kubernetes.io/service-name").unwrap_or_default().to_owned();
                    let addresses = slice.endpoints.iter().flatten().flat_map(|e| e.addresses.clone());
                    shown.entry(name).or_default().extend(addresses);
                }
                shown.values_mut().for_each(|list| list.sort());
                let old: Option<Endpoints> = storm.api().get_opt("web").await.unwrap();
                let old = old.map(|o| o.subsets.unwrap_or_default()).unwrap_or_default();
                let mut old: Vec<String> =
                    old.iter().flat_map(|s| s.addresses.iter().flatten()).map(|a| a.ip.clone()).collect();
                old.sort();
                want.len() == usize::try_from(size).unwrap()
                    && shown.get("web") == Some(&want)
                    && old == want
                    && shown.get("manual").is_some_and(|list| *list == ["192.0.2.1"])
            })
            .await;
        // The Services go: so do their slices, and what was written by hand stays.
        for name in ["web", "manual"] {
            storm.api::<Service>().delete(name, &DeleteOptions::background()).await.unwrap();
        }
        storm
            .calm("gone with the Services", async || {
                let slices: Vec<EndpointSlice> = storm.list().await;
                let endpoints: Vec<Endpoints> = storm.list().await;
                slices.is_empty() && endpoints.iter().all(|e| e.name() == "manual") && endpoints.len() == 1
            })
            .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
}
