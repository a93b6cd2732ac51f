//! PodSecurity as a client sees it.

use k8s_apiserver::{ApiServer, User, admission::Configuration};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::support::{Answer, ask_as};

async fn server(configuration: &str) -> ApiServer {
    let builder = ApiServer::builder(Store::memory()).without_plugins(["ServiceAccount", "RuntimeClass"]);
    let builder = match configuration {
        "" => builder,
        text => {
            let indented = text.replace('\n', "\n    ");
            builder.plugin_configuration(
                Configuration::parse(&format!(
                    "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n- name: PodSecurity\n  configuration:\n    apiVersion: pod-security.admission.config.k8s.io/v1\n    kind: PodSecurityConfiguration\n    {indented}"
                ))
                .unwrap(),
            )
        }
    };
    builder.build().await.unwrap()
}

async fn send(server: &ApiServer, method: &str, path: &str, body: &Value) -> Answer {
    ask_as(server, &User::admin(), method, &format!("/api/v1/namespaces{path}"), body).await
}

/// Sends a request, and returns its code, its message and the texts of its warnings.
async fn told(server: &ApiServer, method: &str, path: &str, body: &Value) -> (u16, String, Vec<String>) {
    let answer = send(server, method, path, body).await;
    let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
    let text = |warning: &String| {
        let quoted = warning.strip_prefix("299 - \"").and_then(|w| w.strip_suffix('"')).unwrap_or(warning);
        quoted.replace("\\\"", "\"")
    };
    (answer.status.as_u16(), message, answer.warnings.iter().map(text).collect())
}

fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    let labels: Value =
        labels.iter().map(|(k, v)| (format!("pod-security.kubernetes.io/{k}"), Value::from(*v))).collect();
    json!({"metadata": {"name": name, "labels": labels}})
}

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (field, value) in spec.as_object().cloned().unwrap_or_default() {
        pod["spec"][field] = value;
    }
    pod
}

const PLAIN: &str = r#"allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#;

#[tokio::test]
async fn levels_refuse_and_warn() {
    let server = server("").await;
    told(&server, "POST", "", &namespace("b", &[("enforce", "baseline"), ("warn", "restricted")])).await;
    let (code, message, _) = told(&server, "POST", "/b/pods", &pod("p", json!({"hostPID": true}))).await;
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            r#"pods "p" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostPID=true)"#
        )
    );
    let (code, _, warnings) = told(&server, "POST", "/b/pods", &pod("p", json!({}))).await;
    assert_eq!(
        (code, warnings),
        (201, vec![format!("would violate PodSecurity \"restricted:latest\": {PLAIN}")])
    );
    // Other namespaces are free.
    let (code, _, warnings) =
        told(&server, "POST", "/default/pods", &pod("p", json!({"hostPID": true}))).await;
    assert_eq!((code, warnings), (201, vec![]));
    told(&server, "POST", "", &namespace("r", &[("enforce", "restricted")])).await;
    let hardened = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "image": "i", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
    assert_eq!(told(&server, "POST", "/r/pods", &pod("p", hardened)).await.0, 201);
    let dry = told(&server, "POST", "/r/pods?dryRun=All", &pod("q", json!({}))).await;
    assert_eq!(
        (dry.0, dry.1),
        (403, format!("pods \"q\" is forbidden: violates PodSecurity \"restricted:latest\": {PLAIN}"))
    );
    let generated =
        json!({"metadata": {"generateName": "web-"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (_, message, _) = told(&server, "POST", "/r/pods", &generated).await;
    assert!(message.starts_with("pods \"web-") && !message.starts_with("pods \"web-\""), "{message}");
}

#[tokio::test]
async fn templates_are_warned_about_and_let_through() {
    let server = server("").await;
    told(&server, "POST", "", &namespace("r", &[("enforce", "restricted"), ("warn-version", "v1.7")])).await;
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let job = json!({"metadata": {"name": "x"}, "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}}});
    let cron = json!({"metadata": {"name": "x"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": job["spec"]}}});
    let with = |kind: &str| {
        let selector = if kind == "replicationcontrollers" {
            json!({"a": "b"})
        } else {
            json!({"matchLabels": {"a": "b"}})
        };
        json!({"metadata": {"name": "x"}, "spec": {"selector": selector, "serviceName": "s", "template": template}})
    };
    // Version 1.7 knows no control of privilege escalation, capabilities and seccomp.
    let expected = r#"would violate PodSecurity "restricted:v1.7": runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true)"#;
    for (group, kind, object) in [
        ("/api/v1", "replicationcontrollers", with("replicationcontrollers")),
        ("/api/v1", "podtemplates", json!({"metadata": {"name": "x"}, "template": template})),
        ("/apis/apps/v1", "replicasets", with("replicasets")),
        ("/apis/apps/v1", "deployments", with("deployments")),
        ("/apis/apps/v1", "statefulsets", with("statefulsets")),
        ("/apis/apps/v1", "daemonsets", with("daemonsets")),
        ("/apis/batch/v1", "jobs", job),
        ("/apis/batch/v1", "cronjobs", cron),
    ] {
        let path = format!("{group}/namespaces/r/{kind}");
        let mut object = object;
        if kind == "daemonsets" {
            object["spec"].as_object_mut().unwrap().remove("serviceName");
        }
        let answer = ask_as(&server, &User::admin(), "POST", &path, &object).await;
        assert_eq!(answer.status, 201, "{kind}: {}", answer.json());
        let texts: Vec<String> = answer.warnings.iter().map(|w| w.replace("\\\"", "\"")).collect();
        assert!(texts.iter().any(|text| text.contains(expected)), "{kind}: {texts:?}");
    }
}

#[tokio::test]
async fn updates_that_change_no_image_pass_and_debuggers_are_evaluated() {
    let server = server("").await;
    told(&server, "POST", "", &namespace("n", &[])).await;
    assert_eq!(told(&server, "POST", "/n/pods", &pod("p", json!({"hostIPC": true}))).await.0, 201);
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    assert_eq!(told(&server, "PATCH", "/n", &labels).await.0, 200);
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(told(&server, "PATCH", "/n/pods/p", &label).await.0, 200);
    let status = json!({"status": {"phase": "Running"}});
    assert_eq!(told(&server, "PATCH", "/n/pods/p/status", &status).await.0, 200);
    let image = json!({"spec": {"containers": [{"name": "c", "image": "other"}]}});
    let (code, message, _) = told(&server, "PATCH", "/n/pods/p", &image).await;
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            r#"pods "p" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostIPC=true)"#
        )
    );
    assert_eq!(told(&server, "POST", "/n/pods", &pod("q", json!({}))).await.0, 201);
    let debugger = |privileged: bool| json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i", "securityContext": {"privileged": privileged}}]}});
    let (code, message, _) = told(&server, "PATCH", "/n/pods/q/ephemeralcontainers", &debugger(true)).await;
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            r#"pods "q" is forbidden: violates PodSecurity "baseline:latest": privileged (container "d" must not set securityContext.privileged=true)"#
        )
    );
    assert_eq!(told(&server, "PATCH", "/n/pods/q/ephemeralcontainers", &debugger(false)).await.0, 200);
}

#[tokio::test]
async fn namespaces_have_valid_labels_and_a_stricter_one_is_warned_about() {
    let server = server("").await;
    let (code, message, _) =
        told(&server, "POST", "", &namespace("n", &[("enforce", "strict"), ("warn-version", "1.2")])).await;
    assert_eq!(
        (code, message.as_str()),
        (
            422,
            r#"Namespace "n" is invalid: [metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "strict": must be one of privileged, baseline, restricted, metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: "1.2": must be "latest" or "v1.x"]"#
        )
    );
    told(&server, "POST", "", &namespace("n", &[])).await;
    for name in ["c", "a", "b"] {
        told(&server, "POST", "/n/pods", &pod(name, json!({"hostPID": true}))).await;
    }
    told(&server, "POST", "/n/pods", &pod("plain", json!({}))).await;
    let level = |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let (code, _, warnings) = told(&server, "PATCH", "/n", &level("baseline")).await;
    assert_eq!((code, warnings), (200, vec![
        r#"existing pods in namespace "n" violate the new PodSecurity enforce level "baseline:latest""#.to_owned(),
        "a (and 2 other pods): host namespaces".to_owned(),
    ]));
    let (_, _, warnings) = told(&server, "PATCH", "/n", &level("restricted")).await;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(
        warnings[2].starts_with("plain: allowPrivilegeEscalation != false, unrestricted capabilities"),
        "{warnings:?}"
    );
    assert_eq!(
        told(&server, "PATCH", "/n", &level("baseline")).await.2,
        Vec::<String>::new(),
        "it is relaxed"
    );
    assert_eq!(told(&server, "PATCH", "/n", &level("odd")).await.0, 422);
}

#[tokio::test]
async fn a_configuration_has_defaults_and_exemptions() {
    let server = server("defaults: {enforce: baseline, enforce-version: v1.30}\nexemptions: {usernames: [ann], namespaces: [free], runtimeClasses: [vm]}").await;
    for name in ["n", "free"] {
        assert_eq!(told(&server, "POST", "", &namespace(name, &[])).await.0, 201);
    }
    let bad = pod("p", json!({"hostPID": true}));
    let (code, message, _) = told(&server, "POST", "/n/pods", &bad).await;
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            r#"pods "p" is forbidden: violates PodSecurity "baseline:v1.30": host namespaces (hostPID=true)"#
        )
    );
    assert_eq!(told(&server, "POST", "/free/pods", &bad).await.0, 201);
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let (code, _, warnings) = told(&server, "PATCH", "/free", &labels).await;
    assert_eq!((code, warnings), (200, vec![r#"namespace "free" is exempt from Pod Security, and the policy (enforce=restricted:v1.30) will be ignored"#.to_owned()]));
    let mut other = bad.clone();
    other["metadata"]["name"] = "q".into();
    let ann = User::new("ann", &["system:masters"]);
    assert_eq!(ask_as(&server, &ann, "POST", "/api/v1/namespaces/n/pods", &other).await.status, 201);
    let sandboxed = pod("s", json!({"hostPID": true, "runtimeClassName": "vm"}));
    assert_eq!(told(&server, "POST", "/n/pods", &sandboxed).await.0, 201);
    let wrong = Configuration::parse("apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n- name: PodSecurity\n  configuration: {apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration, defaults: {warn: high}}").unwrap();
    let error =
        ApiServer::builder(Store::memory()).plugin_configuration(wrong).build().await.map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "configuration of the admission plugin PodSecurity: defaults.warn: Invalid value: \"high\": must be one of privileged, baseline, restricted"
    );
}
