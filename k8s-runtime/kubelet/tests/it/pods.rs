use std::time::Duration;

use serde_json::{Value, json};

use crate::{Node, one};

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_says_so() {
    let node = Node::start().await;
    node.create("p", one(&["run"])).await;
    node.until_phase("p", "Running").await;
    let pod = node.pod("p").unwrap();
    let status = &pod["status"];
    assert_eq!(status["podIP"], "10.42.0.1");
    assert_eq!(status["hostIP"], "192.168.0.1");
    assert_eq!(status["qosClass"], "BestEffort");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["containerID"], "fake://c2");
    assert_eq!(container["imageID"], "sha256:1");
    assert_eq!((&container["ready"], &container["started"]), (&json!(true), &json!(true)));
    for type_ in ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
        assert_eq!(node.condition("p", type_), "True", "{type_}");
    }
    node.until("events", || node.has_event("p", "Started", "Started container c")).await;
    let seen = node.runtime.log();
    assert_eq!(seen, ["sandbox p 0", "attach p", "create c 0", "start c"]);
    let nodes = node.api.list("nodes");
    let ready =
        nodes[0]["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(ready["status"], "True");
    node.until("lease", || !node.api.list("leases.coordination.k8s.io").is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn crashes_back_off_and_keep_their_last_state() {
    let node = Node::start().await;
    node.create("p", one(&["exit", "3"])).await;
    let waiting = |node: &Node| node.container("p", "/state/waiting/reason") == "CrashLoopBackOff";
    let mut seen = Vec::new();
    for restarts in [1, 2, 3] {
        node.until("restart", || node.container("p", "/restartCount") == restarts && waiting(&node)).await;
        assert_eq!(node.container("p", "/lastState/terminated/exitCode"), 3);
        seen.push(node.seconds());
    }
    // The first restart is immediate; then the back-off is 10 s, 20 s.
    assert!((9..13).contains(&(seen[1] - seen[0])), "{seen:?}");
    assert!((19..23).contains(&(seen[2] - seen[1])), "{seen:?}");
    let message = node.container("p", "/state/waiting/message");
    assert!(
        message.as_str().unwrap().starts_with("back-off 40s restarting failed container=c pod=p_ns("),
        "{message}"
    );
    assert_eq!(node.phase("p"), "Running");
    assert!(node.has_event("p", "BackOff", "Back-off restarting failed container c in pod p_ns("));
    // One exited container is kept beside the newest.
    assert_eq!(node.runtime.sandboxes()[0].containers.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn restart_policies() {
    let node = Node::start().await;
    for (name, policy, command, want) in [
        ("a", "Never", ["exit", "0"], "Succeeded"),
        ("b", "Never", ["exit", "1"], "Failed"),
        ("c", "OnFailure", ["exit", "0"], "Succeeded"),
    ] {
        let mut spec = one(&command);
        spec["restartPolicy"] = json!(policy);
        node.create(name, spec).await;
        node.until_phase(name, want).await;
        assert_eq!(node.container(name, "/restartCount"), 0);
    }
    // A pod that has ended is taken down, but its containers can still be asked about.
    node.until("sandboxes stopped", || node.runtime.sandboxes().iter().all(|s| !s.ready)).await;
    assert_eq!(node.runtime.sandboxes().len(), 3);
    node.delete("a", None).await;
    node.until("deleted", || node.pod("a").is_none()).await;
    node.until("removed", || node.runtime.sandboxes().len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn deletion_honours_the_grace_period() {
    let node = Node::start().await;
    let mut spec = one(&["stubborn"]);
    spec["terminationGracePeriodSeconds"] = json!(20);
    node.create("p", spec).await;
    node.until_phase("p", "Running").await;
    let begun = node.seconds();
    node.delete("p", None).await;
    node.until("deleted", || node.pod("p").is_none()).await;
    assert!((19..23).contains(&(node.seconds() - begun)), "{}", node.seconds() - begun);
    let log = node.runtime.log();
    assert_eq!(&log[4..], ["stop c 20", "detach p", "remove-sandbox s1"]);
    // The last status contains the exit code.
    let last = node.api.statuses().pop().unwrap();
    assert_eq!(last["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    assert_eq!(last["status"]["phase"], "Failed");
    assert!(node.has_event("p", "Killing", "Stopping container c"));
    let left = std::fs::read_dir(node.dir.path().join("kubelet/pods")).unwrap().count();
    assert_eq!(left, 0);
    assert_eq!(std::fs::read_dir(node.dir.path().join("logs")).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_shorter_grace_period_counts_at_once() {
    let node = Node::start().await;
    let mut spec = one(&["stubborn"]);
    spec["terminationGracePeriodSeconds"] = json!(300);
    node.create("p", spec).await;
    node.until_phase("p", "Running").await;
    node.delete("p", None).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(node.pod("p").is_some());
    let begun = node.seconds();
    node.delete("p", Some(3)).await;
    node.until("deleted", || node.pod("p").is_none()).await;
    assert!(node.seconds() - begun < 8);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_vanishes_is_stopped() {
    let node = Node::start().await;
    node.create("p", one(&["run"])).await;
    node.until_phase("p", "Running").await;
    node.api.vanish("p").await;
    node.until("gone", || node.runtime.sandboxes().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn pre_stop_runs_first() {
    let node = Node::start().await;
    let mut spec = one(&["run"]);
    spec["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["bye"]}}});
    node.create("p", spec).await;
    node.until_phase("p", "Running").await;
    node.delete("p", None).await;
    node.until("deleted", || node.pod("p").is_none()).await;
    let log = node.runtime.log();
    let at = |text: &str| {
        log.iter().position(|l| l.starts_with(text)).unwrap_or_else(|| panic!("{text}: {log:?}"))
    };
    assert!(at("exec bye") < at("stop c"));
}

#[tokio::test(start_paused = true)]
async fn init_containers_then_the_rest() {
    let node = Node::start().await;
    let mut spec = one(&["run"]);
    spec["initContainers"] = json!([
        {"name": "i1", "image": "here:1", "command": ["after", "2", "0"]},
        {"name": "side", "image": "here:1", "command": ["run"], "restartPolicy": "Always"},
        {"name": "i2", "image": "here:1", "command": ["exit", "0"]},
    ]);
    node.create("p", spec).await;
    node.until("i1 runs", || node.runtime.log().contains(&"start i1".to_owned())).await;
    assert_eq!(node.condition("p", "Initialized"), "False");
    assert_eq!(node.container("p", "/state/waiting/reason"), "PodInitializing");
    node.until_phase("p", "Running").await;
    let starts: Vec<String> = node.runtime.log().into_iter().filter(|l| l.starts_with("start")).collect();
    assert_eq!(starts, ["start i1", "start side", "start i2", "start c"]);
    node.until("initialized", || node.condition("p", "Initialized") == "True").await;
    node.delete("p", None).await;
    node.until("deleted", || node.pod("p").is_none()).await;
    let stops: Vec<String> = node.runtime.log().into_iter().filter(|l| l.starts_with("stop ")).collect();
    assert!(stops[0].starts_with("stop c") && stops[1].starts_with("stop side"), "{stops:?}");
}

#[tokio::test(start_paused = true)]
async fn failing_init_container() {
    let node = Node::start().await;
    let mut spec = one(&["run"]);
    spec["restartPolicy"] = json!("Never");
    spec["initContainers"] = json!([{"name": "i", "image": "here:1", "command": ["exit", "1"]}]);
    node.create("p", spec).await;
    node.until_phase("p", "Failed").await;
    assert!(!node.runtime.log().contains(&"start c".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn images_that_are_not_there() {
    let node = Node::start().await;
    let mut spec = one(&["run"]);
    spec["containers"][0]["image"] = json!("nowhere:1");
    node.create("p", spec).await;
    let reason = |want: &'static str| {
        let node = &node;
        move || node.container("p", "/state/waiting/reason") == want
    };
    node.until("ErrImagePull", reason("ErrImagePull")).await;
    node.until("ImagePullBackOff", reason("ImagePullBackOff")).await;
    let message = node.container("p", "/state/waiting/message");
    assert!(
        message.as_str().unwrap().starts_with("Back-off pulling image \"nowhere:1\": ErrImagePull: "),
        "{message}"
    );
    node.runtime.add_image("nowhere:1");
    node.until_phase("p", "Running").await;
    for (reason, message) in [
        ("Pulling", "Pulling image \"nowhere:1\""),
        ("Failed", "Failed to pull image \"nowhere:1\": nowhere:1: not found"),
        ("Failed", "Error: ErrImagePull"),
        ("BackOff", "Back-off pulling image \"nowhere:1\""),
        ("Failed", "Error: ImagePullBackOff"),
    ] {
        node.until(message, || node.has_event("p", reason, message)).await;
    }
    for (name, image, policy, want) in
        [("q", "absent:1", "Never", "ErrImageNeverPull"), ("r", "a..b", "IfNotPresent", "InvalidImageName")]
    {
        let mut spec = one(&["run"]);
        spec["containers"][0]["image"] = json!(image);
        spec["containers"][0]["imagePullPolicy"] = json!(policy);
        node.create(name, spec).await;
        node.until(want, || node.container(name, "/state/waiting/reason") == want).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_cannot_start() {
    let node = Node::start().await;
    let mut spec = one(&["bad"]);
    spec["restartPolicy"] = json!("Never");
    node.create("p", spec).await;
    node.until_phase("p", "Failed").await;
    assert_eq!(node.container("p", "/state/terminated/reason"), "StartError");
    assert!(node.container("p", "/state/terminated/message").as_str().unwrap().contains("not executable"));
}

#[tokio::test(start_paused = true)]
async fn environment_waits_for_its_sources() {
    let node = Node::start().await;
    let mut spec = one(&["run", "$(A)-$(B)"]);
    spec["containers"][0]["env"] = json!([
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
        {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "C", "value": "$(A)/$(MISSING)"},
    ]);
    spec["containers"][0]["envFrom"] = json!([{"prefix": "S_", "secretRef": {"name": "s"}}]);
    node.create("p", spec).await;
    node.until("config error", || {
        node.container("p", "/state/waiting/reason") == "CreateContainerConfigError"
    })
    .await;
    assert_eq!(node.container("p", "/state/waiting/message"), "secret \"s\" not found");
    let begun = node.seconds();
    node.object("secrets", "s", json!({"data": {"x": "eQ=="}})).await;
    node.until("next", || node.container("p", "/state/waiting/message") == "configmap \"m\" not found").await;
    node.object("configmaps", "m", json!({"data": {"k": "v"}})).await;
    node.until_phase("p", "Running").await;
    assert!(node.seconds() - begun <= 1, "it is tried again when they appear, not after a while");
    let spec = node.runtime.container("c").unwrap().spec;
    assert_eq!(spec.command, ["run", "v-10.42.0.1"]);
    let value = |name: &str| spec.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!(value("S_x"), Some("y"));
    assert_eq!(value("C"), Some("v/$(MISSING)"));
}

#[tokio::test(start_paused = true)]
async fn config_volumes_follow_their_objects() {
    let node = Node::start().await;
    let mut spec = one(&["run"]);
    spec["volumes"] = json!([
        {"name": "v", "configMap": {"name": "m"}},
        {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        {"name": "d", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "e", "emptyDir": {}},
    ]);
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/{name}")});
    spec["containers"][0]["volumeMounts"] = json!(["v", "t", "d", "e"].map(mount));
    node.create("p", spec).await;
    node.until("mount fails", || {
        node.has_event(
            "p",
            "FailedMount",
            "MountVolume.SetUp failed for volume \"v\" : configmap \"m\" not found",
        )
    })
    .await;
    assert_eq!(node.container("p", "/state/waiting/reason"), "ContainerCreating");
    node.object("configmaps", "m", json!({"data": {"k": "one"}})).await;
    node.until_phase("p", "Running").await;
    let mounts = node.runtime.container("c").unwrap().spec.mounts;
    let path =
        |at: &str| mounts.iter().find(|m| m.container_path.to_str() == Some(at)).unwrap().host_path.clone();
    let read = |at: &str, file: &str| std::fs::read_to_string(path(at).join(file)).unwrap_or_default();
    assert_eq!(read("/v", "k"), "one");
    assert_eq!(read("/t", "token").split('.').count(), 3, "a JSON web token");
    assert_eq!(read("/d", "labels"), "app=\"x\"");
    assert!(path("/e").is_dir());
    assert!(std::fs::read_to_string(path("/etc/hosts")).unwrap().contains("10.42.0.1\tp\n"));
    node.object("configmaps", "m", json!({"data": {"k": "two"}})).await;
    node.until("update", || read("/v", "k") == "two").await;
    assert_eq!(node.container("p", "/restartCount"), 0);
}

#[tokio::test(start_paused = true)]
async fn probes() {
    let node = Node::start().await;
    node.runtime.set_exec("ready", 1);
    node.runtime.set_exec("live", 0);
    node.runtime.set_exec("started", 1);
    let probe =
        |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 2, "failureThreshold": 3});
    let mut spec = one(&["run"]);
    spec["containers"][0]["readinessProbe"] = probe("ready");
    spec["containers"][0]["livenessProbe"] = probe("live");
    spec["containers"][0]["startupProbe"] = probe("started");
    spec["containers"][0]["startupProbe"]["failureThreshold"] = json!(100);
    node.create("p", spec).await;
    node.until_phase("p", "Running").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(node.container("p", "/started"), false);
    assert!(!node.runtime.log().contains(&"exec live".to_owned()), "startup comes first");
    node.runtime.set_exec("started", 0);
    node.until("started", || node.container("p", "/started") == true).await;
    assert_eq!(node.container("p", "/ready"), false);
    node.runtime.set_exec("ready", 0);
    node.until("ready", || node.condition("p", "Ready") == "True").await;
    node.runtime.set_exec("ready", 1);
    node.until("unready", || node.condition("p", "Ready") == "False").await;
    node.runtime.set_exec("ready", 0);
    node.runtime.set_exec("live", 1);
    node.until("restarted", || node.container("p", "/restartCount") == 1).await;
    node.runtime.set_exec("live", 0);
    assert!(node.has_event("p", "Unhealthy", "Liveness probe failed: live"));
    assert!(node.has_event("p", "Killing", "Container c failed liveness probe, will be restarted"));
    node.until("ready again", || node.condition("p", "Ready") == "True").await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_adopts_what_runs() {
    let mut node = Node::start().await;
    node.create("p", one(&["run"])).await;
    node.create("q", one(&["run"])).await;
    node.until_phase("p", "Running").await;
    node.until_phase("q", "Running").await;
    node.stop_kubelet().await;
    assert_eq!(node.runtime.sandboxes().len(), 2);
    let before = node.container("p", "");
    node.api.vanish("q").await;
    node.start_kubelet().await;
    node.until("orphan removed", || node.runtime.sandboxes().len() == 1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(node.container("p", ""), before);
    assert_eq!(node.runtime.log().iter().filter(|l| l.starts_with("start ")).count(), 2);
    let running = node.runtime.sandboxes()[0].containers[0].id.clone();
    node.runtime.end(&running, 1);
    node.until("restart counted", || node.container("p", "/restartCount") == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_sandbox_is_made_anew() {
    let node = Node::start().await;
    node.create("p", one(&["run"])).await;
    node.until_phase("p", "Running").await;
    node.runtime.kill_sandbox(&node.runtime.sandboxes()[0].id.clone());
    node.until("restarted", || {
        node.container("p", "/restartCount") == 1 && node.condition("p", "Ready") == "True"
    })
    .await;
    assert!(node.runtime.log().contains(&"sandbox p 1".to_owned()));
    assert_eq!(node.runtime.sandboxes().len(), 1);
    assert!(node.has_event("p", "SandboxChanged", "Pod sandbox changed"));
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again() {
    let node = Node::start().await;
    node.runtime.fail_sandboxes(2);
    node.api.fail_status_writes(3);
    node.create("p", one(&["run"])).await;
    node.until_phase("p", "Running").await;
    assert!(node.has_event("p", "FailedCreatePodSandBox", "Failed to create pod sandbox: no luck"));
}

#[tokio::test(start_paused = true)]
async fn deadline() {
    let node = Node::start().await;
    let mut spec = one(&["run"]);
    spec["activeDeadlineSeconds"] = json!(30);
    node.create("p", spec).await;
    node.until_phase("p", "Running").await;
    node.until_phase("p", "Failed").await;
    assert!((29..33).contains(&node.seconds()), "{}", node.seconds());
    assert_eq!(node.pod("p").unwrap()["status"]["reason"], "DeadlineExceeded");
    node.until("stopped", || node.runtime.log().iter().any(|l| l.starts_with("stop c"))).await;
}

#[tokio::test(start_paused = true)]
async fn post_start_failure_restarts() {
    let node = Node::start().await;
    node.runtime.set_exec("hello", 1);
    let mut spec = one(&["run"]);
    spec["containers"][0]["lifecycle"] = json!({"postStart": {"exec": {"command": ["hello"]}}});
    node.create("p", spec).await;
    node.until("restarted", || node.container("p", "/restartCount") == 1).await;
    assert!(node.has_event("p", "FailedPostStartHook", "PostStartHook failed"));
    let ready: Value = node.container("p", "/ready");
    assert_eq!(ready, false);
}

#[tokio::test(start_paused = true)]
async fn many_pods_at_once() {
    let node = Node::start().await;
    for n in 0..50 {
        node.create(&format!("p{n}"), one(&["run"])).await;
    }
    for n in 0..50 {
        node.until_phase(&format!("p{n}"), "Running").await;
    }
    assert!(node.seconds() < 5, "{}", node.seconds());
}

#[tokio::test(start_paused = true)]
async fn a_new_image_restarts_the_container() {
    let node = Node::start().await;
    node.create("p", one(&["run"])).await;
    node.until_phase("p", "Running").await;
    node.runtime.add_image("here:2");
    let patch = json!({"spec": {"containers": [{"name": "c", "image": "here:2", "command": ["run"]}]}});
    let path = "/api/v1/namespaces/ns/pods/p";
    let kind = "application/merge-patch+json";
    node.api.client().bytes(http::Method::PATCH, path, kind, patch.to_string()).await.unwrap();
    node.until("restarted", || node.container("p", "/restartCount") == 1).await;
    assert_eq!(node.container("p", "/image"), "here:2");
    assert!(node.has_event("p", "Killing", "Container c definition changed, will be restarted"));
}

#[tokio::test(start_paused = true)]
async fn few_status_writes_on_the_way_to_running() {
    let node = Node::start().await;
    node.create("p", one(&["run"])).await;
    node.until_phase("p", "Running").await;
    assert_eq!(node.api.statuses().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn ephemeral_containers_join_a_running_pod() {
    let node = Node::start().await;
    node.create("p", one(&["run"])).await;
    node.until_phase("p", "Running").await;
    let debugger =
        json!({"name": "d", "image": "here:1", "command": ["exit", "0"], "targetContainerName": "c"});
    let patch = json!({"spec": {"ephemeralContainers": [debugger]}});
    let (path, kind) = ("/api/v1/namespaces/ns/pods/p/ephemeralcontainers", "application/merge-patch+json");
    node.api.client().bytes(http::Method::PATCH, path, kind, patch.to_string()).await.unwrap();
    let state = || node.pod("p").unwrap()["status"]["ephemeralContainerStatuses"][0]["state"].clone();
    node.until("it ended", || state()["terminated"]["exitCode"] == 0).await;
    assert_eq!(node.phase("p"), "Running");
    assert_eq!(node.condition("p", "Ready"), "True");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_never_started_can_be_deleted() {
    let node = Node::start().await;
    let mut spec = one(&["run"]);
    spec["volumes"] = json!([{"name": "n", "nfs": {"server": "s", "path": "/"}}]);
    node.create("p", spec).await;
    let message = "volume plugin \"kubernetes.io/nfs\" is not supported by this kubelet";
    node.until("event", || node.has_event("p", "FailedMount", message)).await;
    node.delete("p", None).await;
    node.until("deleted", || node.pod("p").is_none()).await;
    assert!(node.runtime.log().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_forbidden_sysctl_fails_the_pod_and_nothing_is_made() {
    let mut node = Node::start().await;
    for (name, sysctl, host_network, why) in [
        ("vm", "vm.swappiness", false, "forbidden sysctl: \"vm.swappiness\" not allowlisted"),
        (
            "net",
            "net.ipv4.ip_local_port_range",
            true,
            "forbidden sysctl: \"net.ipv4.ip_local_port_range\" not allowed with host Net enabled",
        ),
        ("unsafe", "net.core.somaxconn", false, "forbidden sysctl: \"net.core.somaxconn\" not allowlisted"),
    ] {
        let mut spec = one(&["run"]);
        spec["hostNetwork"] = json!(host_network);
        spec["securityContext"] = json!({"sysctls": [{"name": sysctl, "value": "1"}]});
        node.create(name, spec).await;
        node.until_phase(name, "Failed").await;
        let status = node.pod(name).unwrap()["status"].clone();
        assert_eq!(status["reason"], "SysctlForbidden");
        assert_eq!(status["message"], format!("Pod was rejected: {why}"));
        assert_eq!(status["containerStatuses"], json!(null));
        node.until("event", || node.has_event(name, "SysctlForbidden", why)).await;
    }
    let before = node.pod("vm").unwrap()["status"].clone();
    node.stop_kubelet().await;
    node.start_kubelet().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(node.pod("vm").unwrap()["status"], before);
    assert!(node.runtime.sandboxes().is_empty());
    node.delete("vm", None).await;
    node.until("deleted", || node.pod("vm").is_none()).await;
    let mut safe = one(&["run"]);
    safe["securityContext"] =
        json!({"sysctls": [{"name": "net.ipv4.ip_local_port_range", "value": "20000 21000"}]});
    node.create("safe", safe).await;
    node.until_phase("safe", "Running").await;
}

#[tokio::test(start_paused = true)]
async fn isolation_that_is_not_there_is_refused() {
    let mut node = Node::start().await;
    let mut apparmor = one(&["run"]);
    apparmor["containers"][0]["securityContext"] = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
    node.create("apparmor", apparmor).await;
    node.until_phase("apparmor", "Failed").await;
    assert_eq!(node.pod("apparmor").unwrap()["status"]["reason"], "AppArmor");

    let mut userns = one(&["run"]);
    userns["hostUsers"] = json!(false);
    let mut unmasked = one(&["run"]);
    unmasked["containers"][0]["securityContext"] = json!({"procMount": "Unmasked"});
    let mut handler = one(&["run"]);
    handler["runtimeClassName"] = json!("sandboxed");
    let object = json!({"metadata": {"name": "sandboxed"}, "handler": "kata"});
    node.api.create("/apis/node.k8s.io/v1/runtimeclasses", object).await;
    for (name, spec, why) in [
        ("userns", userns, "can't set `spec.hostUsers: false`, runtime does not support user namespaces"),
        ("unmasked", unmasked, "`hostUsers` must be false to use `Unmasked`"),
        ("handler", handler, "no runtime for \"kata\" is configured"),
    ] {
        node.create(name, spec).await;
        node.until(name, || node.has_event(name, "FailedCreatePodSandBox", why)).await;
        assert_eq!(node.phase(name), "Pending");
    }
    // The API server lets in no pod of a class that is not there; but a class can go before its pod starts.
    let classes = "/apis/node.k8s.io/v1/runtimeclasses";
    node.api.create(classes, json!({"metadata": {"name": "brief"}, "handler": "runc"})).await;
    node.stop_kubelet().await;
    let mut class = one(&["run"]);
    class["runtimeClassName"] = json!("brief");
    node.create("class", class).await;
    let path = format!("{classes}/brief");
    node.api.client().bytes(http::Method::DELETE, &path, "application/json", String::new()).await.unwrap();
    node.start_kubelet().await;
    let why = "failed to lookup RuntimeClass brief";
    node.until("class", || node.has_event("class", "FailedCreatePodSandBox", why)).await;
    assert!(node.runtime.sandboxes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_made_unknown_says_that_it_is_ready_within_10_seconds() {
    let node = Node::start().await;
    let object = || node.api.node().unwrap_or_default();
    let ready = || {
        let conditions = object()["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    node.until("registered", ready).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let revision = object()["metadata"]["resourceVersion"].clone();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(object()["metadata"]["resourceVersion"], revision, "nothing changed, nothing is written");
    // As the node controller does to a node that it does not hear from.
    let mut unknown = object();
    for condition in unknown["status"]["conditions"].as_array_mut().unwrap() {
        condition["status"] = json!("Unknown");
        condition["reason"] = json!("NodeStatusUnknown");
    }
    let body = unknown.to_string();
    let path = "/api/v1/nodes/n1/status";
    node.api.client().bytes(http::Method::PUT, path, "application/json", body).await.unwrap();
    assert!(!ready());
    let begun = node.seconds();
    node.until("ready", ready).await;
    assert!(node.seconds() - begun <= 10, "{} s", node.seconds() - begun);
}

/// A forged status (by a user with `pods/status`) is restored within a moment.
#[tokio::test(start_paused = true)]
async fn a_status_that_somebody_else_wrote_is_put_right() {
    use k8s_core::client::Patch;
    let node = Node::start().await;
    node.create("p", one(&["run"])).await;
    node.until("ready", || node.phase("p") == "Running" && node.condition("p", "Ready") == "True").await;
    let api = node.api.client().namespaced::<k8s_core::api::api::core::v1::Pod>("ns");
    for lie in [
        json!({"podIP": "10.42.0.77", "podIPs": [{"ip": "10.42.0.77"}], "containerStatuses": null}),
        json!({"conditions": null, "phase": "Pending"}),
    ] {
        api.patch_status("p", &Patch::Merge(json!({"status": lie}))).await.unwrap();
        node.until("the truth again", || {
            let pod = node.pod("p").unwrap();
            pod["status"]["podIP"] == "10.42.0.1"
                && node.phase("p") == "Running"
                && node.condition("p", "Ready") == "True"
                && node.container("p", "/restartCount") == 0
        })
        .await;
    }
}

/// As upstream, which stops and starts the container in one step.
#[tokio::test(start_paused = true)]
async fn a_new_image_does_not_make_the_pod_unready_on_the_way() {
    use k8s_core::client::Patch;
    let node = Node::start().await;
    node.runtime.add_image("here:2");
    node.create("p", one(&["run"])).await;
    node.until("ready", || node.condition("p", "Ready") == "True").await;
    let before = node.api.statuses().len();
    let api = node.api.client().namespaced::<k8s_core::api::api::core::v1::Pod>("ns");
    let image = |image: &str| json!({"spec": {"containers": [{"name": "c", "image": image}]}});
    api.patch("p", &Patch::Strategic(image("here:2"))).await.unwrap();
    let renewed = || node.container("p", "/restartCount") == 1 && node.container("p", "/image") == "here:2";
    node.until("the new image", || renewed() && node.condition("p", "Ready") == "True").await;
    for status in &node.api.statuses()[before..] {
        let conditions = status["status"]["conditions"].as_array().unwrap();
        let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
        assert_eq!(ready["status"], "True", "{status}");
    }
    // An image that is not there is told within moments.
    api.patch("p", &Patch::Strategic(image("gone:1"))).await.unwrap();
    let begun = node.seconds();
    node.until("unready", || node.condition("p", "Ready") == "False").await;
    assert!(node.seconds() - begun <= 5, "{} s", node.seconds() - begun);
}
