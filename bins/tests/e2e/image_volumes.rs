//! Volumes with the files of an image, by tag and by digest.

use serde_json::{Value, json};

use crate::{
    Outcome,
    harness::{Cluster, IMAGE_2, WAIT, pod},
};

type Test = fn(&Cluster, &str) -> Outcome;

pub const TESTS: &[(&str, Test)] = &[("an_images_files_are_a_volume", volume)];

/// A pod that mounts an image at `/volume`.
fn mounting(name: &str, source: Value, sub_path: &str) -> String {
    let mut pod = pod(name, WAIT);
    pod["spec"]["volumes"] = json!([{"name": "v", "image": source}]);
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "v", "mountPath": "/volume", "subPath": sub_path}]);
    pod.to_string()
}

fn volume(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &mounting("tag", json!({"reference": IMAGE_2, "pullPolicy": "Always"}), ""))?;
    n.ok(&["wait", "pod/tag", "--for=condition=Ready", "--timeout=60s"], "")?;
    n.expect(&["exec", "tag", "--", "ls", "/volume/bin"], "", 0, "busybox")?;
    n.expect(&["exec", "tag", "--", "mkdir", "/volume/x"], "", 1, "Read-only file system")?;
    n.expect(&["exec", "tag", "--", "sh", "-c", "/volume/bin/busybox true"], "", 126, "")?;
    let mut runs = pod("runs", WAIT);
    runs["spec"]["containers"][0]["image"] = IMAGE_2.into();
    n.ok(&["apply", "-f", "-"], &runs.to_string())?;
    n.ok(&["wait", "pod/runs", "--for=condition=Ready", "--timeout=60s"], "")?;
    let digest = n.jsonpath("pod/runs", "{.status.containerStatuses[0].imageID}")?;
    if !digest.contains("@sha256:") {
        return Err(digest.into());
    }
    n.ok(&["apply", "-f", "-"], &mounting("digest", json!({"reference": digest}), "bin"))?;
    n.ok(&["wait", "pod/digest", "--for=condition=Ready", "--timeout=60s"], "")?;
    n.expect(&["exec", "digest", "--", "ls", "/volume"], "", 0, "busybox")?;
    let policy = n.jsonpath("pod/digest", "{.spec.volumes[0].image.pullPolicy}")?;
    if policy != "IfNotPresent" {
        return Err(policy.into());
    }
    let waiting = ["-o", "jsonpath={.status.containerStatuses[0].state.waiting}"];
    let absent = json!({"reference": "test.local/absent:1", "pullPolicy": "Never"});
    n.ok(&["apply", "-f", "-"], &mounting("absent", absent, ""))?;
    n.until(&[&["get", "pod", "absent"], &waiting[..]].concat(), "ErrImageNeverPull", 30)?;
    n.ok(&["apply", "-f", "-"], &mounting("nowhere", json!({"reference": IMAGE_2}), "nowhere"))?;
    n.until(&[&["get", "pod", "nowhere"], &waiting[..]].concat(), "CreateContainerError", 30)?;
    n.until(&["get", "events"], "failed to mount image volume on \"/volume\": \"nowhere\"", 10)?;
    Ok(())
}
