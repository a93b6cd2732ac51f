//! Addresses of Services of type LoadBalancer.

use std::{collections::BTreeMap, time::Duration};

use k8s_core::{
    api::api::core::v1::{Node, Service},
    meta::ObjectExt,
    random,
};
use k8s_testing::controllers::named;
use serde_json::{Value, json};

use super::storm;

/// One or two ports of three.
fn ports() -> Value {
    let first = 80 + random::range(0..3);
    let both = [json!({"name": "a", "port": first}), json!({"name": "b", "port": 80 + (first - 79) % 3})];
    json!(both[..random::range(1..3)])
}

/// The ports of a Service and the addresses in its status.
fn held(service: &Service) -> (Vec<i32>, Vec<String>) {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).map(|port| port.port);
    let status = service.status.iter().flat_map(|status| &status.load_balancer);
    let points = status.flat_map(|status| status.ingress.iter().flatten());
    (ports.collect(), points.filter_map(|point| point.ip.clone()).collect())
}

#[test]
fn each_port_of_an_address_has_one_service_and_none_waits_for_a_free_one() {
    let controllers = [named("service").unwrap()];
    storm(10).controllers(controllers).run(async |lab| {
        let addresses = ["192.0.2.1", "192.0.2.2"];
        for (name, address) in ["a", "b"].into_iter().zip(addresses) {
            let manifest = json!({"metadata": {"name": name}, "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": address}]}});
            lab.create_from::<Node>(manifest.clone()).await;
            let node: Node = serde_json::from_value(manifest).unwrap();
            lab.api::<Node>().replace_status(name, &node).await.unwrap();
        }
        let names = ["s0", "s1", "s2", "s3", "s4"];
        for name in names {
            let spec = json!({"type": "LoadBalancer", "ports": ports()});
            lab.create_from::<Service>(json!({"metadata": {"name": name}, "spec": spec})).await;
        }
        for _ in 0..12 {
            lab.sleep(Duration::from_millis(random::range(0..3000))).await;
            let name = names[random::range(0..names.len())];
            match random::range(0..4) {
                0 if lab.find::<Service>(name).await.is_some() => lab.delete::<Service>(name).await,
                _ if lab.find::<Service>(name).await.is_none() => {
                    let spec = json!({"type": "LoadBalancer", "ports": ports()});
                    lab.create_from::<Service>(json!({"metadata": {"name": name}, "spec": spec})).await;
                }
                1 => {
                    let kind = if random::range(0..2) == 0 { "ClusterIP" } else { "LoadBalancer" };
                    lab.edit(name, |s: &mut Service| {
                        let spec = s.spec.as_mut().unwrap();
                        spec.type_ = Some(kind.into());
                        spec.allocate_load_balancer_node_ports = None;
                        spec.external_traffic_policy = None;
                    })
                    .await;
                }
                _ => {
                    let ports = ports();
                    lab.edit(name, |s: &mut Service| {
                        s.spec.as_mut().unwrap().ports = serde_json::from_value(ports.clone()).unwrap();
                    })
                    .await;
                }
            }
        }
        lab.settle().await;
        let all: Vec<Service> = lab.list().await;
        // A controller that starts gives the same. (It may tell a refusal again.)
        lab.restart_controllers().await;
        lab.settle().await;
        let again: Vec<Service> = lab.list().await;
        assert_eq!(all.iter().map(held).collect::<Vec<_>>(), again.iter().map(held).collect::<Vec<_>>());

        let is_balanced =
            |s: &&Service| s.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
        let mut holders: BTreeMap<(String, i32), String> = BTreeMap::new();
        for service in all.iter().filter(is_balanced) {
            let (ports, addresses) = held(service);
            for place in addresses.iter().flat_map(|a| ports.iter().map(move |port| (a.clone(), *port))) {
                let before = holders.insert(place.clone(), service.name().to_owned());
                assert_eq!(before, None, "{place:?} is also of {}", service.name());
            }
        }
        for service in &all {
            let (ports, has) = held(service);
            if !is_balanced(&service) {
                assert!(has.is_empty(), "{} keeps {has:?}", service.name());
                continue;
            }
            // The lab's own node may have an address, too.
            for address in addresses.iter().filter(|address| !has.iter().any(|a| a == *address)) {
                let blocked = ports.iter().any(|port| holders.contains_key(&((*address).to_owned(), *port)));
                assert!(blocked, "{} waits for {address} with free ports {ports:?}", service.name());
            }
        }
    });
}
