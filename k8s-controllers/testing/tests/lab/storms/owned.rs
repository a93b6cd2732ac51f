//! The garbage collector and namespaces.

use std::time::Duration;

use k8s_core::{
    api::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount},
    client::DeleteOptions,
    meta::{ObjectExt, owner_reference},
};
use k8s_testing::{
    Running,
    controllers::{garbage_collector, namespace, service_account},
};
use serde_json::json;

use super::{pod, seconds, storm};

async fn map(lab: &Running, name: &str, owners: &[&ConfigMap]) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.into());
    let references = owners.iter().map(|o| {
        let mut reference = owner_reference(*o);
        reference.controller = None;
        reference
    });
    map.metadata.owner_references = Some(references.collect());
    lab.create(&map).await
}

#[test]
fn what_is_owned_goes_with_its_owners_and_nothing_else() {
    storm(15).controllers([garbage_collector()]).run(async |lab| {
        let (a, b) = (map(&lab, "a", &[]).await, map(&lab, "b", &[]).await);
        for i in 0..4 {
            let child = map(&lab, &format!("of-a-{i}"), &[&a]).await;
            map(&lab, &format!("of-of-a-{i}"), &[&child]).await;
            map(&lab, &format!("of-both-{i}"), &[&a, &b]).await;
        }
        let mut nobody = a.clone();
        nobody.metadata.uid = Some("nobody".into());
        map(&lab, "lost", &[&nobody]).await;
        lab.sleep(seconds(0..20)).await;
        let policy = ["Background", "Foreground", "Orphan"][usize::try_from(lab.seed() % 3).unwrap()];
        let options = DeleteOptions { propagation_policy: Some(policy.into()), ..DeleteOptions::default() };
        lab.api::<ConfigMap>().delete("a", &options).await.unwrap();
        lab.sleep(Duration::from_secs(60)).await;
        lab.assert_idempotent().await;

        let mut want: Vec<String> = (0..4).map(|i| format!("of-both-{i}")).chain(["b".into()]).collect();
        if policy == "Orphan" {
            want.extend((0..4).flat_map(|i| [format!("of-a-{i}"), format!("of-of-a-{i}")]));
        }
        want.sort();
        let all: Vec<ConfigMap> = lab.list().await;
        let mut names: Vec<String> = all.iter().map(|m| m.name().to_owned()).collect();
        names.sort();
        assert_eq!(names, want, "{policy}: exactly what is owned goes");
        let of_a = |m: &ConfigMap| m.metadata.owner_references.iter().flatten().any(|o| o.uid == a.uid());
        assert!(!all.iter().any(of_a), "who was not the only owner is released");
    });
}

/// Owners in a circle, with dependents of their own, go with the first one that is deleted.
#[test]
fn a_circle_of_owners_goes() {
    storm(15).controllers([garbage_collector()]).run(async |lab| {
        let first = map(&lab, "a", &[]).await;
        let second = map(&lab, "b", &[&first]).await;
        let third = map(&lab, "c", &[&second]).await;
        map(&lab, "leaf", &[&second]).await;
        let other = map(&lab, "other", &[]).await;
        map(&lab, "of-both", &[&third, &other]).await;
        lab.edit("a", |map: &mut ConfigMap| {
            let mut reference = owner_reference(&third);
            reference.controller = None;
            map.metadata.owner_references = Some(vec![reference]);
        })
        .await;
        lab.sleep(seconds(0..20)).await;
        let options = DeleteOptions { propagation_policy: Some("Foreground".into()), ..Default::default() };
        for name in ["a", "b", "c"].iter().take(1 + usize::try_from(lab.seed() % 3).unwrap()) {
            match lab.api::<ConfigMap>().delete(name, &options).await {
                Err(e) if e.is_not_found() => {}
                done => done.unwrap(),
            }
        }
        lab.sleep(Duration::from_secs(60)).await;
        lab.assert_idempotent().await;
        let all: Vec<ConfigMap> = lab.list().await;
        let names: Vec<&str> = all.iter().map(|map| map.name()).collect();
        assert_eq!(names, ["of-both", "other"]);
    });
}

#[test]
fn namespaces_go_with_all_and_others_stay() {
    storm(15).controllers([namespace(), service_account()]).run(async |lab| {
        for name in ["shop", "bank"] {
            lab.create_from::<Namespace>(json!({"metadata": {"name": name}})).await;
            lab.until::<ServiceAccount>(&format!("{name}/default"), |_| true).await;
            for i in 0..5 {
                let place = json!({"name": format!("m{i}"), "namespace": name});
                lab.create_from::<ConfigMap>(json!({"metadata": place})).await;
                let mut pod = pod(&format!("p{i}"), "p");
                pod["metadata"]["namespace"] = json!(name);
                lab.create_from::<Pod>(pod).await;
            }
        }
        lab.sleep(seconds(0..20)).await;
        lab.delete::<Namespace>("shop").await;
        lab.sleep(Duration::from_secs(60)).await;
        lab.assert_idempotent().await;

        assert!(lab.find::<Namespace>("shop").await.is_none());
        assert!(lab.find::<ServiceAccount>("bank/default").await.is_some());
        let (maps, pods): (Vec<ConfigMap>, Vec<Pod>) = (lab.list().await, lab.list().await);
        let all = maps.iter().map(ObjectExt::namespace).chain(pods.iter().map(ObjectExt::namespace));
        let places: Vec<&str> = all.collect();
        assert_eq!(places, ["bank"; 10]);
    });
}
