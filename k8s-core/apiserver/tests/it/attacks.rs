//! Ways around rights, admission and quotas that were tried and are closed.

use k8s_apiserver::User;
use serde_json::{Value, json};

use crate::support::{admin, ask_as, done, grant, server};

const HERE: &str = "/api/v1/namespaces/default";
const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";

/// Expressions show their parameters: nobody has one show what they may not read.
#[tokio::test]
async fn policies_show_no_parameters_that_their_writer_may_not_read() {
    let server = server().await;
    let all = json!({"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]});
    grant(&server, "eve", json!([all])).await;
    let maps = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]});
    grant(&server, "reader", json!([all, maps])).await;
    let (eve, reader) = (User::new("eve", &[]), User::new("reader", &[]));
    let constraints = json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
        "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    let validations = json!([{"expression": "false", "messageExpression": "string(params.data.x)"}]);
    let change = json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]);
    for kind in ["validating", "mutating"] {
        let policies = format!("{POLICIES}/{kind}admissionpolicies");
        let bindings = format!("{POLICIES}/{kind}admissionpolicybindings");
        let policy = |name: &str, of: &str| {
            let mut policy = json!({"metadata": {"name": name}, "spec": {"matchConstraints": constraints,
                "paramKind": {"apiVersion": "v1", "kind": of}}});
            if kind == "validating" {
                policy["spec"]["validations"] = validations.clone();
            } else {
                policy["spec"]["mutations"] = change.clone();
                policy["spec"]["reinvocationPolicy"] = "Never".into();
            }
            policy
        };
        let binding = |policy: &str, reference: Value| {
            let mut binding =
                json!({"metadata": {"name": "b"}, "spec": {"policyName": policy, "paramRef": reference}});
            binding["spec"]["paramRef"]["parameterNotFoundAction"] = "Allow".into();
            if kind == "validating" {
                binding["spec"]["validationActions"] = json!(["Deny"]);
            }
            binding
        };
        let refused = async |user: &User, method: &str, path: &str, body: &Value, why: &str| {
            let answer = ask_as(&server, user, method, path, body).await;
            let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
            assert!(answer.status == 422 && message.ends_with(why), "{path}: {} {message}", answer.status);
        };
        let secrets = "spec.paramKind: Forbidden: user &{reader  [system:authenticated] map[]} must have \"get\" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)";
        refused(&reader, "POST", &policies, &policy("p", "Secret"), secrets).await;
        refused(&reader, "POST", &format!("{policies}?dryRun=All"), &policy("p", "Secret"), secrets).await;
        let maps = "(kind=ConfigMap, apiVersion=v1)";
        refused(&eve, "POST", &policies, &policy("p", "ConfigMap"), maps).await;
        let made = ask_as(&server, &reader, "POST", &policies, &policy("p", "ConfigMap")).await;
        assert_eq!(made.status, 201, "{}", made.json());
        let turned = json!({"spec": {"paramKind": {"kind": "Secret"}}});
        refused(&reader, "PATCH", &format!("{policies}/p"), &turned, secrets).await;
        // What stays needs nothing.
        let labelled = json!({"metadata": {"labels": {"a": "b"}}});
        let kept = ask_as(&server, &eve, "PATCH", &format!("{policies}/p"), &labelled).await;
        assert_eq!(kept.status, 200, "{}", kept.json());

        let one = json!({"name": "m", "namespace": "default"});
        let why = "spec.paramRef: Forbidden: user &{eve  [system:authenticated] map[]} does not have \"get\" permission on the object referenced by paramRef";
        refused(&eve, "POST", &bindings, &binding("p", one.clone()), why).await;
        let many = json!({"selector": {}, "namespace": "default"});
        let why = "does not have \"list\" permission on the object referenced by paramRef";
        refused(&reader, "POST", &bindings, &binding("p", many), why).await;
        let made = ask_as(&server, &reader, "POST", &bindings, &binding("p", one.clone())).await;
        assert_eq!(made.status, 201, "{}", made.json());
        // A policy that is not there yet may turn out to be about anything.
        let why = "does not have \"get\" permission for all groups, versions and resources";
        let turned = json!({"spec": {"policyName": "later"}});
        refused(&reader, "PATCH", &format!("{bindings}/b"), &turned, why).await;
        done(&server, "POST", &policies, &policy("secret", "Secret")).await;
        done(&server, "PATCH", &format!("{bindings}/b"), &json!({"spec": {"policyName": "secret"}})).await;
    }
}

/// `finalize` passes webhooks and policies as every write, and stores nothing but names.
#[tokio::test]
async fn a_namespace_is_finalized_under_policies_and_with_names_only() {
    let server = server().await;
    let policy = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [{"operations": ["UPDATE"],
        "apiGroups": [""], "apiVersions": ["v1"], "resources": ["namespaces/finalize"]}]},
        "validations": [{"expression": "object.spec.?finalizers.orValue([]).exists(f, f == 'kubernetes')", "message": "it is kept"}]}});
    done(&server, "POST", &format!("{POLICIES}/validatingadmissionpolicies"), &policy).await;
    let binding =
        json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    done(&server, "POST", &format!("{POLICIES}/validatingadmissionpolicybindings"), &binding).await;
    done(&server, "POST", "/api/v1/namespaces", &json!({"metadata": {"name": "n"}})).await;
    let rows = [
        (json!({"metadata": {"name": "n"}, "spec": {"finalizers": []}}), 422, "denied request: it is kept"),
        (json!({"spec": {"finalizers": ["kubernetes", {"a": 1}]}}), 400, "of type string"),
        (json!({"spec": {"finalizers": ["kubernetes", "x"]}}), 422, "nor is it fully qualified"),
        (
            json!({"metadata": {"name": "m"}, "spec": {"finalizers": ["kubernetes"]}}),
            400,
            "the name on the URL (n)",
        ),
        (json!({"spec": {"finalizers": ["kubernetes", "a.b/c"]}}), 200, ""),
    ];
    for (body, code, why) in rows {
        let answer = ask_as(&server, &User::admin(), "PUT", "/api/v1/namespaces/n/finalize", &body).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == code && message.ends_with(why), "{body}: {} {message}", answer.status);
    }
    let found = done(&server, "GET", "/api/v1/namespaces/n", &Value::Null).await;
    assert_eq!(found["spec"]["finalizers"], json!(["kubernetes", "a.b/c"]));
}

/// A Binding's labels become the pod's: values that no client can decode would break every list of pods.
#[tokio::test]
async fn a_binding_leaves_a_pod_that_clients_can_read() {
    let server = server().await;
    done(&server, "POST", &format!("{HERE}/serviceaccounts"), &json!({"metadata": {"name": "default"}}))
        .await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    done(&server, "POST", &format!("{HERE}/pods"), &pod).await;
    let target = json!({"kind": "Node", "name": "n"});
    let rows = [
        (json!({"name": "p", "labels": {"a": 5}}), 400, "metadata.labels must be a map of strings"),
        (json!({"name": "p", "annotations": ["a"]}), 400, "metadata.annotations must be a map of strings"),
        (json!({"name": "q"}), 400, "name in URL does not match name in Binding object"),
        (json!({"name": "p", "labels": {"a": "b"}, "annotations": null}), 201, ""),
    ];
    for (metadata, code, why) in rows {
        let body = json!({"metadata": metadata, "target": target});
        let answer = ask_as(&server, &User::admin(), "POST", &format!("{HERE}/pods/p/binding"), &body).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == code && message.ends_with(why), "{body}: {} {message}", answer.status);
    }
    let found = done(&server, "GET", &format!("{HERE}/pods/p"), &Value::Null).await;
    assert_eq!(found["metadata"]["labels"], json!({"a": "b"}));
}

/// The annotation of mirror pods is no way around the account of a pod, and an account may limit secrets.
#[tokio::test]
async fn pods_use_the_secrets_that_their_account_allows() {
    let server = server().await;
    let account = json!({"metadata": {"name": "default", "annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}},
        "secrets": [{"name": "own"}], "imagePullSecrets": [{"name": "pull"}]});
    done(&server, "POST", &format!("{HERE}/serviceaccounts"), &account).await;
    let container = |more: Value| {
        let mut container = json!({"name": "c", "image": "i"});
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        container
    };
    let env = |secret: &str| json!({"env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": secret, "key": "k"}}}]});
    let all = |secret: &str| json!({"envFrom": [{"secretRef": {"name": secret}}]});
    let plain = || json!([container(json!({}))]);
    let not = "is not allowed because service account default does not reference that secret";
    let rows = [
        (json!({"containers": [container(env("own"))], "imagePullSecrets": [{"name": "pull"}]}), String::new()),
        (json!({"containers": [container(env("x"))]}),
            format!("container c with envVar E referencing secret.secretName=\"x\" {not}")),
        (json!({"containers": plain(), "initContainers": [{"name": "d", "image": "i", "envFrom": all("x")["envFrom"]}]}),
            format!("init container d with envFrom referencing secret.secretName=\"x\" {not}")),
        (json!({"containers": plain(), "volumes": [{"name": "v", "secret": {"secretName": "x"}}]}),
            format!("volume with secret.secretName=\"x\" {not}")),
        (json!({"containers": plain(), "imagePullSecrets": [{"name": "x"}]}),
            "imagePullSecrets[0].name=\"x\" is not allowed because service account default does not reference that imagePullSecret".to_owned()),
    ];
    let check = async |method: &str, path: &str, body: &Value, why: &str| {
        let answer = ask_as(&server, &User::admin(), method, path, body).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        let refused = answer.status == 403 && message.ends_with(why);
        assert!(if why.is_empty() { answer.status.is_success() } else { refused }, "{body}: {message}");
    };
    let pods = format!("{HERE}/pods");
    for (spec, why) in rows {
        check("POST", &pods, &json!({"metadata": {"name": "p"}, "spec": spec}), &why).await;
    }
    let debugger = |secret: &str| json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i", "envFrom": all(secret)["envFrom"]}]}});
    let why = format!("ephemeral container e with envFrom referencing secret.secretName=\"x\" {not}");
    check("PATCH", &format!("{pods}/p/ephemeralcontainers"), &debugger("x"), &why).await;
    check("PATCH", &format!("{pods}/p/ephemeralcontainers"), &debugger("own"), "").await;

    let token = json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}});
    let rows = [
        (
            json!({"containers": plain(), "serviceAccountName": "nobody"}),
            "a mirror pod may not reference service accounts",
        ),
        (json!({"containers": [container(env("own"))]}), "a mirror pod may not reference secrets"),
        (
            json!({"containers": plain(), "volumes": [token]}),
            "a mirror pod may not use ServiceAccountToken volume projections",
        ),
        (json!({"containers": plain()}), ""),
    ];
    for (spec, why) in rows {
        let metadata = json!({"name": "m", "annotations": {"kubernetes.io/config.mirror": "x"}});
        check("POST", &pods, &json!({"metadata": metadata, "spec": spec}), why).await;
    }
}

/// The status of a namespace carries labels, too: they must not take the request out of a selector.
#[tokio::test]
async fn a_status_does_not_unselect_its_namespace() {
    let server = server().await;
    let policy = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {
        "namespaceSelector": {"matchLabels": {"guarded": "yes"}},
        "resourceRules": [{"operations": ["UPDATE"], "apiGroups": [""], "apiVersions": ["v1"],
            "resources": ["namespaces/status"]}]},
        "validations": [{"expression": "false", "message": "it is guarded"}]}});
    done(&server, "POST", &format!("{POLICIES}/validatingadmissionpolicies"), &policy).await;
    let binding =
        json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    done(&server, "POST", &format!("{POLICIES}/validatingadmissionpolicybindings"), &binding).await;
    for (name, labels, code) in [("a", json!({"guarded": "yes"}), 422), ("b", json!({}), 200)] {
        done(&server, "POST", "/api/v1/namespaces", &json!({"metadata": {"name": name, "labels": labels}}))
            .await;
        let change = json!({"metadata": {"labels": {"guarded": "no"}}});
        let path = format!("/api/v1/namespaces/{name}/status");
        let answer = ask_as(&server, &User::admin(), "PATCH", &path, &change).await;
        assert_eq!(answer.status, code, "{name}: {}", answer.json());
    }
}

/// A class of pods that preempt nobody is no class to preempt by.
#[tokio::test]
async fn a_pod_has_the_priority_and_preemption_of_its_class() {
    let server = server().await;
    done(&server, "POST", &format!("{HERE}/serviceaccounts"), &json!({"metadata": {"name": "default"}}))
        .await;
    let class = json!({"metadata": {"name": "meek"}, "value": 1000, "preemptionPolicy": "Never"});
    done(&server, "POST", "/apis/scheduling.k8s.io/v1/priorityclasses", &class).await;
    let computed = |of: &str| format!("admission controller computed {of} from the given PriorityClass name");
    let rows = [
        (json!({"preemptionPolicy": "PreemptLowerPriority"}), computed("Never")),
        (json!({"priority": 2000}), computed("1000")),
        (json!({"priority": 1000, "preemptionPolicy": "Never"}), String::new()),
        (json!({"priorityClassName": "", "priority": 5}), computed("0")),
    ];
    for (more, why) in rows {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}], "priorityClassName": "meek"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let pod = json!({"metadata": {"generateName": "p-"}, "spec": spec});
        let answer = ask_as(&server, &User::admin(), "POST", &format!("{HERE}/pods"), &pod).await;
        if why.is_empty() {
            assert_eq!(answer.json()["spec"]["preemptionPolicy"], "Never", "{}", answer.json());
            continue;
        }
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == 403 && message.ends_with(&why), "{more}: {} {message}", answer.status);
    }
}

/// Bodies of a long key with many problems below it: each problem's path would hold the key again.
#[tokio::test]
async fn problems_below_a_long_key_take_no_memory() {
    let server = server().await;
    let key = "A".repeat(1_000_000);
    let twice: String = (0..20_000).map(|i| format!("\"a{i}\":0,\"a{i}\":0,")).collect();
    let body = format!("{{\"spec\":{{}},\"{key}\":{{{}}}}}", twice.trim_end_matches(','));
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = admin(&server, "POST", reviews, "application/json", body).await;
    assert_eq!(answer.status.as_u16(), 422);

    let unknown: String = (0..20_000).map(|i| format!(",\"u{i}\":0")).collect();
    let config = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"p\"}},\"spec\":{{\"containers\":[{{\"name\":\"{key}\"{unknown}}}]}}}}"
    );
    let path = "/api/v1/namespaces/default/pods/p?fieldManager=m";
    let answer = admin(&server, "PATCH", path, "application/apply-patch+yaml", config.clone()).await;
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(
        answer.status == 500 && message.ends_with("more") && message.len() < 1 << 20,
        "{}",
        message.len()
    );
    let created = admin(
        &server,
        "POST",
        "/api/v1/namespaces/default/pods?fieldValidation=Strict",
        "application/json",
        config,
    )
    .await;
    assert_eq!(created.status.as_u16(), 400);
    assert!(created.json().to_string().len() < 1 << 20);
}

/// What a refused patch says is in audit logs, so it has nothing of a Secret.
#[tokio::test]
async fn a_refused_patch_tells_no_secret() {
    let server = server().await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "canary"}});
    done(&server, "POST", &format!("{HERE}/secrets"), &secret).await;
    let patch = r#"{"immutable": "perhaps"}"#.to_owned();
    let path = format!("{HERE}/secrets/s");
    let refused = admin(&server, "PATCH", &path, "application/merge-patch+json", patch).await;
    let answer = refused.json().to_string();
    assert_eq!((refused.status.as_u16(), answer.contains("Y2FuYXJ5")), (422, false), "{answer}");
}
