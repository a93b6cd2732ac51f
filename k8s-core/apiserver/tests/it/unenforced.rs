//! Warnings about fields and kinds that are stored and not acted on.

use serde_json::{Value, json};

use crate::support::{admin, server, warning_server};

async fn send(
    server: &k8s_apiserver::ApiServer,
    method: &str,
    path: &str,
    body: &Value,
) -> (u16, Vec<String>) {
    let media = if method == "PATCH" { "application/strategic-merge-patch+json" } else { "application/json" };
    let answer = admin(server, method, path, media, body.to_string()).await;
    let said = |w: &String| w.trim_start_matches("299 - ").trim_matches('"').to_owned();
    assert!(answer.status.as_u16() < 500, "{}", answer.json());
    (answer.status.as_u16(), answer.warnings.iter().map(said).collect())
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "hostnameOverride": "h",
        "volumes": [{"name": "a", "emptyDir": {"sizeLimit": "10Mi"}}],
        "containers": [{"name": "c", "image": "x", "securityContext": {"seLinuxOptions": {"level": "s0"}},
            "resources": {"limits": {"ephemeral-storage": "10Mi", "cpu": "1"}}}]}})
}

const NAME: &str = "hostnameOverride: the hostname is not overridden";
const SELINUX: &str = "containers[0].securityContext.seLinuxOptions: SELinux options are not applied";

#[tokio::test]
async fn fields_that_are_not_enforced_are_warned_of_when_they_are_set() {
    let server = warning_server().await;
    let base = "/api/v1/namespaces/default";
    send(&server, "POST", &format!("{base}/serviceaccounts"), &json!({"metadata": {"name": "default"}}))
        .await;
    let pods = format!("{base}/pods");
    let want = vec![format!("spec.{NAME}"), format!("spec.{SELINUX}")];
    assert_eq!(send(&server, "POST", &format!("{pods}?dryRun=All"), &pod("p")).await, (201, want.clone()));
    assert_eq!(send(&server, "POST", &pods, &pod("p")).await, (201, want));
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(send(&server, "PATCH", &format!("{pods}/p"), &label).await, (200, vec![]), "not set anew");
    let debug =
        json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "x", "targetContainerName": "c"}]}});
    let (code, warnings) = send(&server, "PATCH", &format!("{pods}/p/ephemeralcontainers"), &debug).await;
    assert_eq!(code, 200);
    assert!(warnings[0].starts_with("spec.ephemeralContainers[0].targetContainerName: "), "{warnings:?}");
    let mut template = pod("t");
    template["metadata"] = json!({"labels": {"a": "b"}});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let want = vec![format!("spec.template.spec.{NAME}"), format!("spec.template.spec.{SELINUX}")];
    assert_eq!(
        send(&server, "POST", "/apis/apps/v1/namespaces/default/deployments", &deployment).await,
        (201, want)
    );
}

#[tokio::test]
async fn kinds_that_nothing_acts_on_are_warned_of_when_they_are_created() {
    let server = warning_server().await;
    let namespaced = |group: &str, plural: &str| format!("{group}/namespaces/default/{plural}");
    for (path, object) in [
        (
            namespaced("/apis/storage.k8s.io/v1", "csistoragecapacities"),
            json!({"storageClassName": "fast", "capacity": "1Gi"}),
        ),
        ("/apis/storage.k8s.io/v1/csidrivers".to_owned(), json!({"spec": {}})),
    ] {
        let mut object = object;
        object["metadata"] = json!({"name": "x"});
        let (code, warnings) = send(&server, "POST", &path, &object).await;
        assert_eq!((code, warnings.len()), (201, 1), "{path}: {warnings:?}");
        let (code, warnings) =
            send(&server, "PATCH", &format!("{path}/x"), &json!({"metadata": {"labels": {"a": "b"}}})).await;
        assert_eq!((code, warnings.len()), (200, 0), "{path}: {warnings:?}");
    }
}

#[tokio::test]
async fn external_addresses_in_the_ranges_of_the_cluster_are_warned_of() {
    let server = warning_server().await;
    let node =
        json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.42.3.0/24", "podCIDRs": ["10.42.3.0/24"]}});
    assert_eq!(send(&server, "POST", "/api/v1/nodes", &node).await.0, 201);
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, ips: &[&str]| json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "externalIPs": ips}});
    let refused = |i: usize| {
        format!(
            "spec.externalIPs[{i}]: the address is in the cluster's own service or pod range: the Service is not answered on it"
        )
    };
    let ips = ["10.97.0.10", "192.0.2.1", "10.42.3.7", "10.42.4.7"];
    let (code, warnings) = send(&server, "POST", services, &service("a", &ips)).await;
    assert_eq!((code, warnings), (201, vec![refused(0), refused(2)]));
    assert_eq!(send(&server, "POST", services, &service("b", &["192.0.2.2"])).await, (201, vec![]));
    let patch = json!({"spec": {"externalIPs": ["10.111.255.255"]}});
    assert_eq!(send(&server, "PATCH", &format!("{services}/b"), &patch).await, (200, vec![refused(0)]));
}

#[tokio::test]
async fn a_comparison_with_upstream_can_turn_them_off() {
    let server = server().await;
    let driver = json!({"metadata": {"name": "x"}, "spec": {}});
    let (code, warnings) = send(&server, "POST", "/apis/storage.k8s.io/v1/csidrivers", &driver).await;
    assert_eq!(code, 201);
    assert_eq!(warnings, Vec::<String>::new());
}
