//! Many writers of one object, on a disk with slow flushes.

use std::time::Duration;

use futures::future::join_all;
use k8s_store::{BackendError, Local, Log, Opaque, Record, Store};
use serde_json::{Value, json};

use crate::support::{done, server_on};

const ONE: &str = "/api/v1/namespaces/default/configmaps/one";

struct Slow;
impl Log for Slow {
    fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
        Ok(0)
    }
    fn commit(&mut self, _: &[Record]) -> Result<(), BackendError> {
        std::thread::sleep(Duration::from_millis(2));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_without_a_revision_and_deletions_do_not_conflict_however_many_there_are() {
    let server = server_on(Store::open(Local::new(Slow), Opaque).unwrap()).await;
    let new = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}});
    done(&server, "POST", "/api/v1/namespaces/default/configmaps", &new).await;

    join_all((0..40).map(|i| {
        let server = server.clone();
        async move {
            let patch = json!({"data": {format!("k{i}"): "1"}});
            tokio::spawn(async move { done(&server, "PATCH", ONE, &patch).await }).await.unwrap();
        }
    }))
    .await;
    let all = done(&server, "GET", ONE, &Value::Null).await;
    assert_eq!(all["data"].as_object().map(serde_json::Map::len), Some(40), "none is lost");

    // A client that writes as fast as responses arrive, like a controller that reports progress.
    let busy = tokio::spawn({
        let server = server.clone();
        async move {
            for i in 0.. {
                let patch = json!({"data": {"k": i.to_string()}}).to_string();
                let kind = "application/merge-patch+json";
                let answer = crate::support::admin(&server, "PATCH", ONE, kind, patch).await;
                if answer.status == 404 {
                    return;
                }
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    done(&server, "DELETE", ONE, &Value::Null).await;
    tokio::time::timeout(Duration::from_secs(10), busy).await.unwrap().unwrap();
}
