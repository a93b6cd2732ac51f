//! Measures the memory of one shared cache of pods, apart from the store. Prints figures, asserts none.
//!
//! `cargo bench --workspace --bench caches [-- <pods>]`
#![allow(clippy::unwrap_used)]

use k8s_apiserver::{ApiServer, User};
use k8s_builtin as builtin;
use k8s_controllers::Caches;
use k8s_core::{
    api::api::core::v1::{Pod, ServiceAccount},
    clock::Clock,
};
use k8s_store::Store;
use serde_json::json;

/// As in the programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Resident memory of this process, in bytes.
fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<i64>().unwrap() * 1024
}

fn pod(i: usize) -> Pod {
    let pod = json!({
        "metadata": {
            "name": format!("web-5d4f8c7b9-{i:06}"), "namespace": "default",
            "labels": {"app": "web", "pod-template-hash": "5d4f8c7b9"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8c7b9",
                "uid": "8d1f9c1e-4f0c-4a43-a2d6-2f3f1f6f1c11", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {"containers": [{
            "name": "web", "image": "registry.example.com/shop/web:1.27.3", "ports": [{"containerPort": 8080}],
            "env": [{"name": "MODE", "value": "production"}, {"name": "LOG", "value": "info"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
        }]},
    });
    serde_json::from_value(pod).unwrap()
}

fn main() {
    let count = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(100_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let empty = resident();
        let server = ApiServer::builder(Store::memory()).clock(Clock::system()).build().await.unwrap();
        let client = server.client_as(User::admin());
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
        client.namespaced("default").create(&account).await.unwrap();
        for i in 0..count {
            client.namespaced("default").create(&pod(i)).await.unwrap();
        }
        let mut before = resident();
        let each = |what: &str, bytes: i64| {
            println!(
                "{what}: {} MB, {} bytes a pod",
                bytes >> 20,
                bytes / i64::try_from(count).unwrap().max(1)
            );
        };
        each("store", before - empty);
        let whole = Caches::new(client.clone());
        let trimmed = builtin::trimmed(Caches::new(client.clone()));
        for (what, caches) in
            [("cache as the built-in controllers share it", &trimmed), ("cache of whole pods", &whole)]
        {
            let cache = caches.of::<Pod>();
            cache.synced().await;
            assert_eq!(cache.len(), count);
            let after = resident();
            each(what, after - before);
            let told: usize = caches.usage().iter().map(|u| u.bytes).sum();
            each("  as its metric has it", i64::try_from(told).unwrap());
            before = after;
        }
    });
}
