//! A typed admission function: it sees every write of a pod, labels the pod with its creator's team, and
//! rejects images of `nobody/`.
//!
//! Run it: `cargo run -p k8s-examples --bin admission`

use k8s_apiserver::admission::Request;
use k8s_core::{api::api::core::v1::Pod, meta::ObjectExt, status::ApiStatus};
use k8s_testing::TestCluster;
use serde_json::json;

fn images(pod: &Pod) -> impl Iterator<Item = &str> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.filter_map(|container| container.image.as_deref())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cluster = TestCluster::builder()
        .admit(|r: &mut Request<Pod>| {
            if let Some(image) = images(&r.object).find(|image| image.starts_with("nobody/")) {
                let why = format!("image {image:?} is nobody's");
                return Err(ApiStatus::forbidden("", "pods", r.object.name(), &why));
            }
            r.object.set_label("team", r.user.group_or("shared"));
            Ok(())
        })
        .start()
        .await?;

    let pod = |image: &str| json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": image}]}});
    match cluster.create::<Pod>("default", &pod("nobody/x")).await {
        Err(e) => println!("refused: {e}"),
        Ok(_) => anyhow::bail!("a pod with an image of nobody/ was created"),
    }
    let admitted: Pod = cluster.create("default", &pod("shop/web:1")).await?;
    println!("labels: {}", serde_json::to_string(&admitted.metadata.labels)?);
    cluster.shutdown().await;
    Ok(())
}
