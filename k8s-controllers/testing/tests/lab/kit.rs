//! Tests of the lab's own guarantees.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_core::{
    api::api::{
        apps::v1::Deployment,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Node, Pod},
    },
    meta::ObjectExt,
};
use k8s_testing::{
    Fault, Faults, Lab, Running, Script,
    controllers::{deployment, replica_set},
};

use crate::counters::{Copies, MarksFirst, Spins, WritesTwice, controller, original};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: i}]}
";

pub(crate) fn why(test: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(test)).expect_err("it should have failed");
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

fn ready(deployment: &Deployment) -> i32 {
    deployment.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or_default()
}

#[test]
fn a_deployment_comes_up_whatever_the_api_server_does() {
    let report = Lab::new()
        .controllers([deployment(), replica_set()])
        .nodes(3)
        .seeds(0..40)
        .faults(Faults::all())
        .run(async |lab| {
            lab.apply(WEB).await;
            lab.settle().await;
            assert_eq!(ready(&lab.get("web").await), 3);
            lab.assert_quiet_for(Duration::from_secs(24 * 3600)).await;
            lab.edit("web", |web: &mut Deployment| web.spec.as_mut().unwrap().replicas = Some(5)).await;
            lab.settle().await;
            assert_eq!(lab.pods_in("Running").await, 5);
        });
    assert_eq!(report.runs, 40);
    assert!(report.faults > 100, "{} faults in forty runs", report.faults);
}

#[test]
fn no_two_objects_have_one_uid() {
    Lab::new().nodes(5).seeds(0..3).run(async |lab| {
        let mut uids: Vec<String> = lab.list::<Node>().await.iter().map(|n| n.uid().to_owned()).collect();
        uids.extend(lab.list::<Lease>().await.iter().map(|l| l.uid().to_owned()));
        for i in 0..20 {
            uids.push(lab.create(&original(&format!("c{i}"), "x")).await.uid().to_owned());
        }
        let count = uids.len();
        uids.sort();
        uids.dedup();
        assert_eq!(uids.len(), count);
    });
}

#[test]
fn a_broken_rule_fails_the_run_and_its_trace_is_kept() {
    let path = std::env::temp_dir().join(format!("rule-{}.jsonl", std::process::id()));
    let said = why(|| {
        Lab::new().record(&path).run(async |lab| {
            lab.always(|maps: &[&ConfigMap]| assert!(maps.len() < 3, "{} maps", maps.len())).await;
            for i in 0..4 {
                lab.create(&original(&format!("c{i}"), "x")).await;
            }
            lab.sleep(Duration::from_secs(1)).await;
            unreachable!("the rule was broken");
        });
    });
    assert!(said.contains("3 maps"), "{said}");
    let kept = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(kept.contains("c2"), "{kept}");
}

#[test]
fn a_rule_is_asked_of_all_that_is_there_already_at_once() {
    Lab::new().run(async |lab| {
        for i in 0..3 {
            lab.create(&original(&format!("c{i}"), "x")).await;
        }
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        lab.always(move |maps: &[&ConfigMap]| {
            assert!(maps.len() >= 3, "{} maps", maps.len());
            counted.fetch_add(1, Ordering::Relaxed);
        })
        .await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        lab.create(&original("c3", "x")).await;
        lab.sleep(Duration::from_secs(1)).await;
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn the_same_seed_is_the_same_run_to_the_last_byte() {
    let path = std::env::temp_dir().join(format!("lab-{}.jsonl", std::process::id()));
    let lab = || {
        Lab::new()
            .controllers([deployment(), replica_set()])
            .with(controller(), || Copies)
            .nodes(2)
            .faults(Faults::all())
    };
    let test = async |lab: Running| {
        lab.apply(WEB).await;
        lab.create(&original("a", "x")).await;
        lab.settle().await;
        lab.delete::<Deployment>("web").await;
        lab.settle().await;
    };
    for seed in 0..4 {
        lab().seeds(seed..seed + 1).record(&path).run(test);
        lab().seeds(seed..seed + 1).replays(&path).run(test);
    }
    let other = why(|| {
        lab().seeds(9..10).replays(&path).run(test);
    });
    std::fs::remove_file(&path).unwrap();
    assert!(other.contains("is not what happened"), "{other}");
}

#[test]
fn a_bug_that_needs_a_crash_is_found_shrunk_and_replayed() {
    let lab = || Lab::new().with(controller(), || MarksFirst);
    let test = async |lab: Running| {
        for name in ["a", "b", "c"] {
            lab.create(&original(name, "x")).await;
        }
        lab.settle().await;
        for name in ["a-copy", "b-copy", "c-copy"] {
            assert!(lab.find::<ConfigMap>(name).await.is_some(), "{name} was never made");
        }
    };
    lab().run(test);
    let said = why(|| {
        lab().seeds(0..300).faults(Faults::all()).run(test);
    });
    assert!(said.contains("was never made") && said.contains("with 1 of its"), "{said}");
    let at = said.find("seed:").unwrap();
    let replay = said[at..].split('"').next().unwrap();
    let again = why(|| {
        lab().replay(replay).faults(Faults::all()).run(test);
    });
    assert!(again.contains("was never made") && again.contains(replay), "{again}");
    // Without faults the same seed passes.
    let seed = replay.split(' ').next().unwrap();
    lab().replay(seed).faults(Faults::all()).run(test);
}

#[test]
fn a_controller_that_spins_writes_again_or_reads_stale_is_told_on() {
    let good = Lab::new().with(controller(), || Copies).seeds(0..20).faults(Faults::all()).run(async |lab| {
        lab.create(&original("a", "x")).await;
        lab.settle().await;
        lab.assert_idempotent().await;
        lab.assert_quiet_for(Duration::from_secs(86_400)).await;
        lab.assert_never_stale();
    });
    assert_eq!(good.runs, 20);
    let spins = why(|| {
        Lab::new().with(controller(), || Spins).run(async |lab| {
            lab.create(&original("a", "x")).await;
            lab.assert_quiet_for(Duration::from_secs(3600)).await;
        });
    });
    assert!(spins.contains("although nothing happens") && spins.contains("copier: patch"), "{spins}");
    let again = why(|| {
        Lab::new().with(controller(), || Spins).run(async |lab| {
            lab.create(&original("a", "x")).await;
            lab.assert_idempotent().await;
        });
    });
    assert!(again.contains("a second reconcile wrote again"), "{again}");
    let stale = why(|| {
        Lab::new().with(controller(), || WritesTwice).run(async |lab| {
            lab.create(&original("a", "x")).await;
            lab.settle().await;
            lab.assert_never_stale();
        });
    });
    assert!(stale.contains("after it had written revision"), "{stale}");
}

#[test]
fn a_cluster_that_never_rests_is_told_so() {
    let said = why(|| {
        let restless = Lab::new().with(controller(), || Spins).patience(Duration::from_secs(900));
        restless.pods(|_| Script::runs()).run(async |lab: Running| {
            lab.create(&original("a", "x")).await;
            let mut number = 0;
            let busy = async {
                loop {
                    number += 1;
                    lab.edit("a", |map: &mut ConfigMap| {
                        map.data.get_or_insert_default().insert("n".into(), number.to_string());
                    })
                    .await;
                    lab.sleep(Duration::from_secs(10)).await;
                }
            };
            tokio::select! {
                () = lab.settle() => {}
                () = busy => {}
            }
        });
    });
    assert!(said.contains("does not settle") && said.contains("copier: patch"), "{said}");
}

#[test]
fn every_kind_of_fault_alone_is_survived() {
    for kind in Fault::ALL {
        let report = Lab::new().with(controller(), || Copies).seeds(0..25).faults(Faults::only([kind])).run(
            async |lab| {
                for name in ["a", "b", "c", "d"] {
                    lab.create(&original(name, "x")).await;
                }
                lab.settle().await;
                lab.edit("a", |map: &mut ConfigMap| map.data = None).await;
                lab.settle().await;
                assert_eq!(
                    lab.list::<ConfigMap>()
                        .await
                        .iter()
                        .filter(|m| m.metadata.owner_references.is_some())
                        .count(),
                    4
                );
                assert_eq!(lab.get::<ConfigMap>("a-copy").await.data, None);
            },
        );
        assert!(report.faults > 0, "{kind:?} never struck");
    }
}

#[test]
fn the_needed_role_is_the_smallest() {
    let report = Lab::new().with(controller(), || Copies).seeds(0..10).faults(Faults::all()).run(async |lab| {
        lab.create(&original("a", "x")).await;
        lab.settle().await;
        let role = lab.needed_role().to_string();
        let wanted = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: copier\nrules:\n- apiGroups:\n  - \"\"\n  resources:\n  - configmaps\n  verbs:\n  - list\n  - patch\n  - watch\n";
        assert_eq!(role, wanted);
        let named = lab.needed_role_by_name().to_string();
        assert!(named.contains("a-copy"), "{named}");
    });
    assert_eq!(report.needed_role.rules.len(), 1);
}

#[test]
fn forks_go_their_own_ways_from_one_state() {
    Lab::new().controllers([deployment(), replica_set()]).nodes(2).run(async |lab| {
        lab.apply(WEB).await;
        lab.settle().await;
        for replicas in [0, 1, 4] {
            let fork = lab.fork().await;
            fork.edit("web", |web: &mut Deployment| web.spec.as_mut().unwrap().replicas = Some(replicas))
                .await;
            fork.settle().await;
            assert_eq!(i32::try_from(fork.pods_in("Running").await).unwrap(), replicas);
        }
        assert_eq!(lab.pods_in("Running").await, 3, "the first is as it was");
    });
}

#[test]
fn scripted_pods_start_crash_and_fail_their_probes() {
    let minute = Duration::from_secs(60);
    Lab::new()
        .controllers([deployment(), replica_set()])
        .nodes(1)
        .pods(move |pod| match pod.metadata.labels.as_ref().and_then(|l| l["app"].chars().next()) {
            Some('w') => {
                Script::runs().starts_after(minute * 3).ready_after(minute).then_ready(minute, false)
            }
            _ => Script::exits(minute, 7),
        })
        .run(async |lab| {
            lab.apply(WEB).await;
            lab.sleep(minute * 2).await;
            assert_eq!(lab.pods_in("Pending").await, 3);
            lab.until::<Deployment>("web", |web| ready(web) == 3).await;
            lab.settle().await;
            assert_eq!(ready(&lab.get("web").await), 0, "their probes fail again");
            lab.apply(WEB.replace("web", "other")).await;
            let pod = async || {
                let pods = lab.list::<Pod>().await;
                let other = pods
                    .into_iter()
                    .find(|p| p.metadata.labels.as_ref().is_some_and(|l| l["app"] == "other"));
                other.unwrap().status.unwrap().container_statuses.unwrap()[0].restart_count
            };
            lab.sleep(minute * 30).await;
            let count = pod().await;
            assert!((5..=9).contains(&count), "{count} restarts in half an hour of back-off");
        });
}

#[test]
fn a_panicking_reconciler_and_a_panicking_test_are_told_apart() {
    let tries = AtomicUsize::new(0);
    let said = why(|| {
        Lab::new().seeds(5..9).threads(1).run(async |_| {
            tries.fetch_add(1, Ordering::SeqCst);
            panic!("of its own");
        });
    });
    assert!(said.contains("seed 5 fails") && said.contains("of its own"), "{said}");
    assert!(said.contains("kit.rs"), "it says where: {said}");
    assert_eq!(tries.load(Ordering::SeqCst), 1, "no fault can be to blame");
}
