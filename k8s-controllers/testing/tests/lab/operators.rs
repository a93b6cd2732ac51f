//! Operators as people write them: with kube-rs, the standard library's clock, and habits of their own.

use std::{
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::StreamExt;
use k8s_core::api::{
    ConfigMap, Lease,
    api::events::v1::Event,
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use k8s_testing::{Fault, Faults, Lab, Life, Running};
use kube::{
    Api, Client, CustomResource, CustomResourceExt, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    runtime::{
        Controller,
        controller::Action,
        events::{Event as News, EventType, Recorder},
        watcher,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::kit::why;

/// A custom resource as the template of most operators has it.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(group = "kube.rs", version = "v1", kind = "Document", namespaced, status = "DocumentStatus")]
#[kube(crates(k8s_openapi = "k8s_core::api"))]
struct DocumentSpec {
    hide: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
struct DocumentStatus {
    hidden: bool,
}

async fn hide(document: Arc<Document>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let documents: Api<Document> = Api::default_namespaced((*client).clone());
    let status = json!({
        "apiVersion": "kube.rs/v1", "kind": "Document", "status": {"hidden": document.spec.hide},
    });
    let apply = PatchParams::apply("documents").force();
    documents.patch_status(&document.name_any(), &apply, &Patch::Apply(status)).await?;
    Ok(Action::await_change())
}

fn five_minutes(_: Arc<Document>, _: &kube::Error, _: Arc<Client>) -> Action {
    Action::requeue(Duration::from_secs(300))
}

/// The whole operator, as its `main` has it.
async fn documents(life: Life) {
    let client = Client::new(life.service(), "default");
    let documents: Api<Document> = Api::default_namespaced(client.clone());
    if documents.list(&ListParams::default().limit(1)).await.is_err() {
        std::process::exit(1);
    }
    Controller::new(documents, watcher::Config::default())
        .shutdown_on_signal()
        .run(hide, five_minutes, Arc::new(client))
        .for_each(|_| async {})
        .await;
}

fn lab() -> Lab {
    Lab::new().manifest(Document::crd()).program("documents", documents)
}

fn document(name: &str) -> Document {
    Document::new(name, DocumentSpec { hide: true })
}

/// Creates a document with the test's own `kube::Client`, as an operator's author does.
async fn write(lab: &Running, name: &str) -> Api<Document> {
    let documents: Api<Document> = Api::default_namespaced(Client::new(lab.service(), "default"));
    documents.create(&PostParams::default(), &document(name)).await.unwrap();
    documents
}

fn hidden(document: &Document) -> bool {
    document.status.as_ref().is_some_and(|status| status.hidden)
}

#[test]
fn an_unmodified_operator_is_green_under_all_faults() {
    let report = lab().seeds(0..60).faults(Faults::all()).run(async |lab| {
        let documents = write(&lab, "samuel").await;
        // It waits for the error policy's five minutes where that is needed.
        lab.settle().await;
        assert!(hidden(&documents.get("samuel").await.unwrap()));
        assert!(hidden(&lab.get_as::<Document>("documents.kube.rs/v1", "samuel").await));
    });
    assert!(
        report.faults > 10,
        "faults strike what a kube::Client of the test's leads to: {}",
        report.faults
    );
}

#[test]
fn a_run_without_the_faults_that_were_asked_for_is_not_green() {
    let said = why(|| {
        lab().seeds(0..3).faults(Faults::all()).run(async |lab| lab.settle().await);
    });
    assert!(said.contains("none struck in 3 runs") && said.contains("the test's first write"), "{said}");
    // A program whose client does not come from the lab.
    let elsewhere = |_: Life| std::future::pending();
    let said = why(|| {
        Lab::new().program("elsewhere", elsewhere).faults(Faults::all()).run(async |lab| {
            lab.create_any(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})).await;
            lab.settle().await;
        });
    });
    assert!(said.contains("none struck"), "{said}");
}

#[test]
fn a_failure_that_was_found_is_kept_as_a_test() {
    let status = "/documents/*/status";
    let test = async |lab: Running| {
        let documents = write(&lab, "samuel").await;
        lab.settle().await;
        assert!(hidden(&documents.get("samuel").await.unwrap()), "not hidden");
    };
    // The error policy of five minutes is waited for, but not longer than asked.
    lab().fail("patch", status, Fault::TimeoutBefore).run(test);
    let said = why(|| {
        lab().fail("patch", status, Fault::TimeoutBefore).retries(Duration::from_secs(100)).run(test);
    });
    let line = r#".fail("patch", "/apis/kube.rs/v1/namespaces/default/documents/samuel/status", Fault::TimeoutBefore)"#;
    assert!(said.contains("not hidden") && said.contains(line), "{said}");
    // With `calm` the settling is the author's own choice.
    let patient = lab().fail("patch", status, Fault::TimeoutBefore).retries(Duration::ZERO);
    patient.calm(Duration::from_secs(400)).run(test);
    let said = why(|| {
        lab().fail_nth(9, "patch", status, Fault::Conflict).run(test);
    });
    assert!(
        said.contains("no such request") && said.contains("Conflict at patch /documents/*/status #9"),
        "{said}"
    );
    for (verb, fault) in [("get", Fault::Conflict), ("pat", Fault::Crash), ("event", Fault::TimeoutAfter)] {
        let said = why(|| drop(lab().fail(verb, status, fault)));
        assert!(said.contains(verb), "{said}");
    }
}

#[test]
fn a_minimal_failure_names_one_request() {
    // Without a retry after a lost status patch.
    let forgetful = |_: Arc<Document>, _: &kube::Error, _: Arc<Client>| Action::await_change();
    let program = move |life: Life| async move {
        let client = Client::new(life.service(), "default");
        let documents: Api<Document> = Api::default_namespaced(client.clone());
        Controller::new(documents, watcher::Config::default())
            .run(hide, forgetful, Arc::new(client))
            .for_each(|_| async {})
            .await;
    };
    let lab = || Lab::new().manifest(Document::crd()).program("forgetful", program);
    let test = async |lab: Running| {
        for name in ["a", "b", "c"] {
            write(&lab, name).await;
        }
        lab.settle().await;
        for name in ["a", "b", "c"] {
            assert!(
                hidden(&lab.get_as::<Document>("documents.kube.rs/v1", name).await),
                "{name} is not hidden"
            );
        }
    };
    let said = why(|| {
        lab().seeds(0..200).faults(Faults::all()).run(test);
    });
    assert!(said.contains("with 1 of its") && said.contains("/status #1 of forgetful"), "{said}");
    let replay = said.split(".replay(\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let again = why(|| {
        lab().replay(replay).faults(Faults::all()).run(test);
    });
    assert!(again.contains(replay), "{again}");
}

#[test]
fn a_role_that_is_too_small_fails_with_the_rule_that_is_missing() {
    let role = |verbs: &str| {
        format!(
            "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: documents}}
rules:
- {{apiGroups: [kube.rs], resources: [documents], verbs: [get, list, watch]}}
- {{apiGroups: [kube.rs], resources: [documents/status], verbs: [{verbs}]}}
"
        )
    };
    let test = async |lab: Running| {
        let documents = write(&lab, "samuel").await;
        lab.settle().await;
        assert!(hidden(&documents.get("samuel").await.unwrap()));
    };
    lab().role(&role("patch")).run(test);
    let said = why(|| {
        lab().role(&role("get")).run(test);
    });
    for wanted in ["the role of documents does not allow patch", "kube.rs", "documents/status", "- patch"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    assert!(why(|| drop(Lab::new().role(&role("get")))).contains("follows the program"));
}

/// A leader election with the standard library's clock.
async fn lead(client: Client, id: String, led: Arc<Mutex<Vec<(String, SystemTime)>>>) {
    let leases: Api<Lease> = Api::default_namespaced(client);
    let valid = Duration::from_secs(15);
    loop {
        let now = SystemTime::now();
        let stamp = MicroTime(now.try_into().unwrap());
        let found = leases.get_opt("leader").await;
        if let Ok(found) = found {
            let spec = found.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
            let renewed = spec.renew_time.map_or(UNIX_EPOCH, |time| SystemTime::from(time.0));
            let mine = spec.holder_identity.as_deref() == Some(&id);
            if mine || renewed + valid < now {
                let mut lease = found.clone().unwrap_or_else(|| Lease {
                    metadata: ObjectMeta { name: Some("leader".into()), ..ObjectMeta::default() },
                    ..Lease::default()
                });
                let spec = lease.spec.get_or_insert_default();
                (spec.holder_identity, spec.renew_time) = (Some(id.clone()), Some(stamp));
                let written = match found {
                    Some(_) => leases.replace("leader", &PostParams::default(), &lease).await,
                    None => leases.create(&PostParams::default(), &lease).await,
                };
                if written.is_ok() {
                    led.lock().unwrap().push((id.clone(), now));
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

#[test]
fn leases_by_the_wall_clock_expire_in_virtual_time() {
    let led: Arc<Mutex<Vec<(String, SystemTime)>>> = Arc::default();
    let seen = led.clone();
    let mut lab = Lab::new();
    for id in ["alice", "bob"] {
        let led = led.clone();
        lab = lab.program(id, move |life: Life| {
            lead(Client::new(life.service(), "default"), id.to_owned(), led.clone())
        });
    }
    lab.seeds(0..20).threads(1).faults(Faults::all().before_first_list()).run(async move |lab| {
        seen.lock().unwrap().clear();
        lab.create_any(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})).await;
        lab.sleep(Duration::from_secs(400)).await;
        let led = std::mem::take(&mut *seen.lock().unwrap());
        assert!(led.len() > 20, "somebody leads nearly always: {}", led.len());
        for pair in led.windows(2) {
            let ((one, at), (two, then)) = (&pair[0], &pair[1]);
            let apart = then.duration_since(*at).unwrap();
            assert!(one == two || apart >= Duration::from_secs(15), "two leaders: {pair:?}");
        }
    });
}

#[test]
fn every_clock_of_a_program_is_the_labs() {
    let real = SystemTime::now();
    Lab::new().run(async |lab| {
        let year = 365 * 24 * 3600;
        assert!(SystemTime::now() + Duration::from_secs(year) < real, "the lab begins years ago");
        let apart = |now: jiff::Timestamp| lab.clock().now().duration_since(now).as_millis().abs();
        let all = || {
            let system = jiff::Timestamp::try_from(SystemTime::now()).unwrap();
            [apart(system), apart(jiff::Timestamp::now())]
        };
        assert!(all().iter().all(|apart| *apart < 100), "{:?}", all());
        lab.sleep(Duration::from_secs(year)).await;
        assert!(all().iter().all(|apart| *apart < 100), "{:?}", all());
        let blocking = tokio::task::spawn_blocking(SystemTime::now).await.unwrap();
        assert!(apart(blocking.try_into().unwrap()) < 100, "threads of the runtime have it, too");
        // A recorder takes its time from there.
        let client = Client::new(lab.service(), "default");
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some("a".into()),
                uid: Some("u".into()),
                namespace: Some("default".into()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        let news = News {
            type_: EventType::Normal,
            reason: "Told".into(),
            note: None,
            action: "Telling".into(),
            secondary: None,
        };
        Recorder::new(client, "teller".into()).publish(&news, &map.object_ref(&())).await.unwrap();
        let told = lab.list::<Event>().await;
        let when = told[0].event_time.as_ref().unwrap().0;
        assert!(apart(when) < 1000, "{when}");
    });
    assert!(SystemTime::now() >= real, "the time of the wall is back");
}

#[test]
fn a_program_that_ends_its_process_fails_the_test() {
    const AGAIN: &str = "LAB_TEST_OF_AN_EXIT";
    if std::env::var_os(AGAIN).is_some() {
        // As an operator does that cannot list at its start; with exit code 0 all would look well.
        Lab::new()
            .manifest(Document::crd())
            .program("quits", async |life: Life| {
                let documents: Api<Document> =
                    Api::default_namespaced(Client::new(life.service(), "default"));
                if documents.list(&ListParams::default()).await.is_err() {
                    std::process::exit(0);
                }
                std::future::pending().await
            })
            .fail("list", "/documents", Fault::ServerError)
            .run(async |lab| lab.settle().await);
        return;
    }
    let program = std::env::current_exe().unwrap();
    let name = "operators::a_program_that_ends_its_process_fails_the_test";
    let output =
        Command::new(program).args(["--exact", name, "--nocapture"]).env(AGAIN, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(101), "{said}");
    for wanted in [
        "calls std::process::exit",
        "quits: list /apis/kube.rs/v1/namespaces/default/documents",
        "seed:0 | quits list",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}

#[test]
fn a_panic_in_a_task_of_a_programs_own_fails_the_test() {
    let said = why(|| {
        Lab::new()
            .program("spawns", async |_: Life| {
                tokio::spawn(async { panic!("in the background") });
                std::future::pending().await
            })
            .run(async |lab| lab.settle().await);
    });
    assert!(said.contains("in the background") && said.contains("operators.rs"), "{said}");
}

#[test]
fn a_program_is_spared_until_it_has_listed_unless_asked_otherwise() {
    // Each life lists first, and would end the process if that failed.
    let faults = || Faults::only([Fault::ServerError, Fault::TooManyRequests, Fault::Crash]);
    let strict = |ends: bool| {
        move |life: Life| async move {
            let maps = life.client().namespaced::<ConfigMap>("default");
            let listed = maps.list(&Default::default()).await;
            assert!(listed.is_ok() || !ends, "its first list failed");
            loop {
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}});
                let _ = maps.apply("mine", &map).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    let test = async |lab: Running| {
        lab.create_any(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})).await;
        lab.sleep(Duration::from_secs(200)).await;
    };
    Lab::new().program("strict", strict(true)).seeds(0..40).faults(faults()).run(test);
    let said = why(|| {
        let asked = faults().before_first_list();
        Lab::new().program("strict", strict(true)).seeds(0..40).faults(asked).run(test);
    });
    assert!(said.contains("its first list failed"), "{said}");
    Lab::new().program("lax", strict(false)).seeds(0..5).faults(faults().before_first_list()).run(test);
}

#[test]
fn two_programs_that_undo_each_other_do_not_stop_the_clock() {
    // One makes a map whenever it is gone, the other deletes it at once: as a stale cache and the garbage
    // collector do, until a late event arrives.
    let quarrel = |makes: bool| {
        move |life: Life| async move {
            let maps = life.client().namespaced::<ConfigMap>("default");
            let end = tokio::time::Instant::now() + Duration::from_secs(20);
            while tokio::time::Instant::now() < end {
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}});
                let _ = match makes {
                    true => maps.apply("mine", &map).await.map(drop),
                    false => maps.delete("mine", &Default::default()).await.map(drop),
                };
                tokio::task::yield_now().await;
            }
            std::future::pending().await
        }
    };
    let lab = Lab::new().program("maker", quarrel(true)).program("deleter", quarrel(false));
    lab.run(async |lab| {
        let begun = lab.clock().now();
        lab.settle().await;
        assert!(lab.clock().since(begun) > Duration::from_secs(20));
    });
}
