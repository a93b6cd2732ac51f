//! Volumes with the files of an image.

use serde_json::{Value, json};

use crate::{Node, one};

/// A pod that mounts an image.
fn mounting(image: &str, policy: &str, sub: &str) -> Value {
    let mut spec = one(&["run"]);
    spec["volumes"] = json!([{"name": "v", "image": {"reference": image, "pullPolicy": policy}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v", "subPath": sub}]);
    spec
}

#[tokio::test(start_paused = true)]
async fn an_image_is_mounted_and_pulled_by_its_policy() {
    let node = Node::start().await;
    node.runtime.add_image("files:1");
    let pulls = |node: &Node| node.runtime.log().iter().filter(|line| *line == "pull files:1").count();
    for (name, policy, pulled) in [("a", "IfNotPresent", 0), ("b", "Never", 0), ("c", "Always", 1)] {
        node.create(name, mounting("files:1", policy, "etc")).await;
        node.until_phase(name, "Running").await;
        assert_eq!(pulls(&node), pulled, "{policy}");
        let sandboxes = node.runtime.sandboxes();
        let container = &sandboxes.iter().find(|s| s.spec.name == name).unwrap().containers[0];
        let mount = container.spec.mounts.iter().find(|m| m.container_path.ends_with("v")).unwrap();
        assert_eq!((mount.image.as_str(), mount.readonly), ("sha256:files:1", true));
        assert_eq!(mount.sub_path.to_str(), Some("etc"));
    }
    // The event is about the pod, not about a container.
    node.until("event", || node.has_event("a", "Pulled", r#"Container image "files:1" already present"#))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_holds_the_containers_that_mount_it() {
    let node = Node::start().await;
    node.create("never", mounting("absent:1", "Never", "")).await;
    let reason = |pod: &str| node.container(pod, "/state/waiting/reason");
    node.until("held", || reason("never") == "ErrImageNeverPull").await;
    node.create("pull", mounting("absent:1", "IfNotPresent", "")).await;
    node.until("held", || reason("pull") == "ImagePullBackOff").await;
    node.until("event", || node.has_event("pull", "Failed", r#"Failed to pull image "absent:1""#)).await;
    assert!(node.runtime.container("c").is_none());
    // A volume that no container mounts is not needed.
    let mut unused = mounting("absent:1", "IfNotPresent", "");
    unused["containers"][0]["volumeMounts"] = json!([]);
    node.create("unused", unused).await;
    node.until_phase("unused", "Running").await;
    node.runtime.add_image("absent:1");
    node.until_phase("pull", "Running").await;
    node.until_phase("never", "Running").await;
}
