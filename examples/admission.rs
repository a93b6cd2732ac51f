//! An admission function that sees every write: it labels pods with their creator's team, and rejects images
//! of `nobody/`.

use k8s_apiserver::admission::{Admission, Operation};
use k8s_core::{api::api::core::v1::Pod, status::ApiStatus};
use k8s_testing::TestCluster;
use serde_json::json;

fn team(admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
    if admission.resource.kind != "Pod" || admission.operation != Operation::Create {
        return Ok(());
    }
    let containers = admission.object["spec"]["containers"].as_array().into_iter().flatten();
    if let Some(image) =
        containers.filter_map(|c| c["image"].as_str()).find(|image| image.starts_with("nobody/"))
    {
        return Err(ApiStatus::forbidden("", "pods", "p", &format!("image {image:?} is nobody's")));
    }
    // Groups such as `system:masters` contain a colon, which a label value must not.
    let team = admission.user.groups.first().and_then(|group| group.rsplit(':').next());
    admission.object["metadata"]["labels"]["team"] = json!(team);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cluster = TestCluster::builder().admit(team).start().await?;
    let pod = |image: &str| json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": image}]}});
    match cluster.create::<Pod>("default", &pod("nobody/x")).await {
        Err(e) => println!("refused: {e}"),
        Ok(_) => anyhow::bail!("it was let through"),
    }
    let admitted: Pod = cluster.create("default", &pod("shop/web:1")).await?;
    println!("labels: {}", serde_json::to_string(&admitted.metadata.labels)?);
    Ok(())
}
