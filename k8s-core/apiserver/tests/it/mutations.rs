//! Thousands of invalid bodies: each gets a response, and never a server error.

use k8s_apiserver::ApiServer;
use serde_json::{Value, json};

use crate::support::{admin, done, server};

/// A deterministic random number generator (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(n.max(1)).unwrap()).unwrap()
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Returns a value that is probably of the wrong type, or out of range.
fn junk(numbers: &mut Numbers) -> Value {
    let deep =
        (0..60).fold(json!(1), |inner, i| if i % 2 == 0 { json!([inner]) } else { json!({"a": inner}) });
    numbers
        .pick(&[
            Value::Null,
            json!(5),
            json!(-1),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(1.5e300),
            json!(true),
            json!(""),
            json!("é/%\u{0}~1\n"),
            json!("9".repeat(400)),
            json!("-999999999999999999999Ei"),
            json!([]),
            json!([[]]),
            json!([null]),
            json!([5, "x", {}]),
            json!({}),
            json!({"": {}}),
            json!({"name": []}),
            json!({"metadata": []}),
            json!({"$patch": "delete"}),
            json!({"$patch": 5, "$retainKeys": {}}),
            json!({"$setElementOrder/containers": 5, "$deleteFromPrimitiveList/finalizers": {}}),
            json!("0.0.0.0"),
            json!("255.255.255.255/33"),
            json!("*/0 * * * *"),
            json!("2026-13-45T99:00:00Z"),
            deep,
        ])
        .clone()
}

fn places(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(places).sum(),
        Value::Array(items) => items.iter().map(places).sum(),
        _ => 0,
    }
}

/// Replaces value number `at` in depth-first order.
fn change(value: &mut Value, at: &mut usize, numbers: &mut Numbers) -> bool {
    if *at == 0 {
        match value {
            Value::Object(map) if numbers.below(3) == 0 => {
                map.insert(
                    (*numbers.pick(&["name", "x", "", "metadata", "spec", "status", "type"])).into(),
                    junk(numbers),
                );
            }
            Value::Array(items) if numbers.below(2) == 0 => match items.first().cloned() {
                Some(first) => items.push(first),
                None => items.push(junk(numbers)),
            },
            other => *other = junk(numbers),
        }
        return true;
    }
    *at -= 1;
    match value {
        Value::Object(map) => map.values_mut().any(|v| change(v, at, numbers)),
        Value::Array(items) => items.iter_mut().any(|v| change(v, at, numbers)),
        _ => false,
    }
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "a"}, "annotations": {"n": "1"}}, "spec": {"restartPolicy": "Always", "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}],
        "securityContext": {"runAsUser": 1, "sysctls": [{"name": "a", "value": "b"}]},
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "z", "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}}]}},
        "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "c", "configMap": {"name": "c", "items": [{"key": "k", "path": "p"}]}}],
        "initContainers": [{"name": "i", "image": "x", "restartPolicy": "Always"}],
        "containers": [{"name": "c", "image": "busybox:1", "command": ["a"], "ports": [{"containerPort": 80, "hostPort": 80, "name": "http"}],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3}, "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}]}})
}

/// Returns collections with a valid object for each.
fn seeds() -> Vec<(&'static str, Value)> {
    let meta = json!({"name": "m", "labels": {"a": "b"}, "annotations": {"k": "v"}, "finalizers": ["x.io/f"],
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]});
    let mut pod = template();
    pod["metadata"] = meta.clone();
    let selected = json!({"metadata": meta, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "a"}}, "template": template()}});
    let mut job = template();
    job["spec"]["restartPolicy"] = "Never".into();
    let with = |key: &str, value: Value| {
        let mut object = json!({"metadata": meta});
        object[key] = value;
        object
    };
    vec![
        ("/api/v1/namespaces/default/pods", pod),
        ("/api/v1/namespaces/default/configmaps", with("data", json!({"a": "b"}))),
        ("/api/v1/namespaces/default/secrets", with("stringData", json!({"a": "b"}))),
        (
            "/api/v1/namespaces/default/services",
            with(
                "spec",
                json!({"type": "NodePort", "selector": {"a": "b"}, "externalIPs": ["1.2.3.4"], "ipFamilies": ["IPv4"],
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 3}}, "ports": [{"name": "a", "port": 80, "targetPort": "http", "protocol": "TCP"}, {"name": "b", "port": 81}]}),
            ),
        ),
        ("/api/v1/namespaces/default/serviceaccounts", with("imagePullSecrets", json!([{"name": "a"}]))),
        (
            "/api/v1/namespaces/default/resourcequotas",
            with("spec", json!({"hard": {"pods": "3", "requests.cpu": "1"}, "scopes": ["BestEffort"]})),
        ),
        (
            "/api/v1/namespaces/default/limitranges",
            with(
                "spec",
                json!({"limits": [{"type": "Container", "default": {"cpu": "1"}, "max": {"cpu": "2"}}]}),
            ),
        ),
        (
            "/api/v1/namespaces/default/persistentvolumeclaims",
            with(
                "spec",
                json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}),
            ),
        ),
        (
            "/api/v1/namespaces/default/replicationcontrollers",
            with("spec", json!({"replicas": 1, "selector": {"app": "a"}, "template": template()})),
        ),
        (
            "/api/v1/namespaces/default/endpoints",
            with("subsets", json!([{"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 80}]}])),
        ),
        (
            "/api/v1/namespaces/default/events",
            json!({"metadata": {"name": "m"}, "involvedObject": {"namespace": "default", "name": "x"}, "count": 1}),
        ),
        ("/api/v1/namespaces", json!({"metadata": {"name": "m"}, "spec": {"finalizers": ["kubernetes"]}})),
        (
            "/api/v1/nodes",
            with("spec", json!({"podCIDR": "10.0.0.0/24", "taints": [{"key": "a", "effect": "NoSchedule"}]})),
        ),
        (
            "/api/v1/persistentvolumes",
            with(
                "spec",
                json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}, "claimRef": {"name": "a"}}),
            ),
        ),
        ("/apis/apps/v1/namespaces/default/deployments", selected.clone()),
        ("/apis/apps/v1/namespaces/default/replicasets", selected.clone()),
        ("/apis/apps/v1/namespaces/default/daemonsets", selected.clone()),
        (
            "/apis/apps/v1/namespaces/default/statefulsets",
            with(
                "spec",
                json!({"serviceName": "s", "selector": {"matchLabels": {"app": "a"}}, "template": template(),
            "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1"}}}}]}),
            ),
        ),
        ("/apis/extensions/v1beta1/namespaces/default/deployments", selected),
        (
            "/apis/extensions/v1beta1/namespaces/default/ingresses",
            with(
                "spec",
                json!({"backend": {"serviceName": "s", "servicePort": 80},
            "rules": [{"host": "a.b", "http": {"paths": [{"path": "/", "backend": {"serviceName": "s", "servicePort": "x"}}]}}]}),
            ),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
            with(
                "spec",
                json!({"tls": [{"hosts": ["a"], "secretName": "s"}],
            "rules": [{"host": "a.b", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}),
            ),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            with(
                "spec",
                json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": 80, "endPort": 90}]}]}),
            ),
        ),
        (
            "/apis/batch/v1/namespaces/default/jobs",
            with("spec", json!({"parallelism": 1, "completions": 2, "backoffLimit": 3, "template": job})),
        ),
        (
            "/apis/batch/v1/namespaces/default/cronjobs",
            with(
                "spec",
                json!({"schedule": "*/5 * * * *", "timeZone": "Etc/UTC", "jobTemplate": {"spec": {"template": job}}}),
            ),
        ),
        (
            "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers",
            with(
                "spec",
                json!({"minReplicas": 1, "maxReplicas": 3, "targetCPUUtilizationPercentage": 50, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "a"}}),
            ),
        ),
        (
            "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
            with(
                "spec",
                json!({"maxReplicas": 3, "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}],
            "behavior": {"scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}}, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "a"}}),
            ),
        ),
        (
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            with("spec", json!({"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}})),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            with("rules", json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}])),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            json!({"metadata": meta, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]}),
        ),
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            json!({"metadata": meta, "provisioner": "a/b", "parameters": {"a": "b"}}),
        ),
        ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd("m", "Gadget")),
        (
            "/apis/extensions/v1beta1/thirdpartyresources",
            json!({"metadata": {"name": "cron-tab.stable.example.com"}, "versions": [{"name": "v1"}], "description": "x"}),
        ),
        (
            "/apis/example.com/v1/namespaces/default/widgets",
            with("spec", json!({"size": 12, "list": ["a"], "any": {"x": [1]}})),
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            with("spec", json!({"holderIdentity": "a", "leaseDurationSeconds": 3})),
        ),
        (
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            json!({"metadata": meta, "addressType": "IPv4", "endpoints": [{"addresses": ["1.2.3.4"]}], "ports": [{"port": 80}]}),
        ),
        (
            "/api/v1/namespaces/default/pods/base/binding",
            json!({"metadata": {"name": "base"}, "target": {"kind": "Node", "name": "n"}}),
        ),
        (
            "/api/v1/namespaces/default/pods/base/eviction",
            json!({"metadata": {"name": "base"}, "deleteOptions": {"gracePeriodSeconds": 1, "preconditions": {"uid": "u"}}}),
        ),
        (
            "/api/v1/namespaces/default/serviceaccounts/base/token",
            json!({"spec": {"audiences": ["a"], "expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "name": "base"}}}),
        ),
        (
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            json!({"metadata": {}, "spec": {"user": "u", "groups": ["g"], "resourceAttributes": {"verb": "get", "resource": "pods"}}}),
        ),
        ("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", json!({"spec": {"namespace": "default"}})),
        ("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": "x"}})),
    ]
}

fn crd(plural: &str, kind: &str) -> Value {
    json!({"metadata": {"name": format!("{plural}.example.com")}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": plural, "singular": plural, "kind": kind, "listKind": format!("{kind}List"), "shortNames": [format!("{plural}x")]},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
            "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "required": ["size"], "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 99, "default": 3}, "list": {"type": "array", "maxItems": 3, "items": {"type": "string", "pattern": "^[a-z]+$"}},
                "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}})
}

async fn check(server: &ApiServer, method: &str, path: &str, media: &str, body: &[u8]) {
    let answer = admin(server, method, path, media, body.to_vec()).await;
    let code = answer.status.as_u16();
    // Upstream's code for a configuration of a type that it does not fit.
    let untyped = code == 500
        && answer.json()["message"]
            .as_str()
            .is_some_and(|m| m.starts_with("failed to create typed patch object"));
    assert!(
        (200..300).contains(&code) || (400..500).contains(&code) || untyped,
        "{method} {path} {media}\n{}\n{code} {}",
        String::from_utf8_lossy(body),
        answer.json()
    );
}

const PATCHES: [&str; 4] = [
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/json-patch+json",
];

async fn round(server: &ApiServer, collection: &str, seed: &Value, numbers: &mut Numbers, n: usize) {
    let mut body = seed.clone();
    for _ in 0..=numbers.below(2) {
        let mut at = numbers.below(places(&body));
        change(&mut body, &mut at, numbers);
    }
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut)
        && n.is_multiple_of(3)
    {
        metadata.insert("name".into(), format!("m{n}").into());
    }
    let text = body.to_string();
    let strict = *numbers.pick(&["", "?fieldValidation=Strict", "?dryRun=All"]);
    check(server, "POST", &format!("{collection}{strict}"), "application/json", text.as_bytes()).await;
    if collection.contains("/base/") || collection.contains("review") {
        return;
    }
    let part = *numbers.pick(&[
        "",
        "",
        "",
        "/status",
        "/scale",
        "/finalize",
        "/approval",
        "/ephemeralcontainers",
        "/resize",
    ]);
    let one = format!("{collection}/base{part}");
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut)
        && metadata.contains_key("name")
    {
        metadata.insert("name".into(), "base".into());
    }
    check(server, "PUT", &one, "application/json", body.to_string().as_bytes()).await;
    let media = *numbers.pick(&PATCHES);
    let mut query = "?fieldManager=t&force=true";
    let text = if media.contains("json-patch") {
        query = "";
        let path = numbers.pick(&[
            "/metadata",
            "/metadata/labels",
            "/metadata/name",
            "/spec",
            "/spec/template/spec/containers/0",
            "",
            "/status",
            "/metadata/managedFields",
            "/metadata/finalizers/-",
            "/a/b/c",
            "x",
        ]);
        let op = numbers.pick(&["add", "replace", "remove", "test", "move", "copy", "what"]);
        json!([{"op": op, "path": path, "from": "/metadata/labels", "value": junk(numbers)}]).to_string()
    } else {
        if media.contains("apply") && body.is_object() {
            let kind = server_kind(server, collection).await;
            body["apiVersion"] = kind.0.into();
            body["kind"] = kind.1.into();
        }
        body.to_string()
    };
    check(server, "PATCH", &format!("{one}{query}"), media, text.as_bytes()).await;
    if numbers.below(6) == 0 {
        check(
            server,
            "DELETE",
            &format!("{collection}/m{n}"),
            "application/json",
            junk(numbers).to_string().as_bytes(),
        )
        .await;
    }
    if numbers.below(20) == 0 {
        let list = *numbers.pick(&[
            "?limit=3",
            "?labelSelector=a%3Db",
            "?fieldSelector=metadata.name%3Dbase",
            "?limit=-1",
            "?continue=e30",
            "?labelSelector=a+in+(",
            "?resourceVersion=x",
        ]);
        check(server, "GET", &format!("{collection}{list}"), "", b"").await;
    }
}

/// Returns apiVersion and kind of a collection, from its list.
async fn server_kind(server: &ApiServer, collection: &str) -> (String, String) {
    let list = admin(server, "GET", &format!("{collection}?limit=1"), "", "").await.json();
    let text = |key: &str| list[key].as_str().unwrap_or_default().to_owned();
    (text("apiVersion"), text("kind").trim_end_matches("List").to_owned())
}

#[tokio::test]
async fn mutated_objects_are_never_a_server_error() {
    let server = server().await;
    done(
        &server,
        "POST",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &crd("widgets", "Widget"),
    )
    .await;
    done(
        &server,
        "POST",
        "/api/v1/namespaces/default/serviceaccounts",
        &json!({"metadata": {"name": "default"}}),
    )
    .await;
    let seeds = seeds();
    for (collection, seed) in &seeds {
        if collection.contains("/base/")
            || collection.contains("review")
            || collection.contains("definitions")
        {
            continue;
        }
        let mut base = seed.clone();
        base["metadata"]["name"] = "base".into();
        if collection.ends_with("thirdpartyresources") {
            base["metadata"]["name"] = "base-line.example.org".into();
        }
        if collection.contains("extensions/v1beta1/namespaces/default/deployments")
            || collection.contains("autoscaling/v2")
            || collection.contains("extensions/v1beta1/namespaces/default/ingresses")
        {
            continue;
        }
        done(&server, "POST", collection, &base).await;
    }
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for n in 0..10_000 {
        let (collection, seed) = numbers.pick(&seeds);
        round(&server, collection, seed, &mut numbers, n).await;
    }
}

/// Every type, legacy ones included, accepts or rejects nearly empty and nonsensical objects without a server
/// error.
#[tokio::test]
async fn every_type_takes_or_refuses_nonsense() {
    let server = server().await;
    let mut collections = crate::facts::collections();
    for (group, plurals) in [
        ("extensions/v1beta1", "deployments daemonsets replicasets ingresses networkpolicies"),
        ("apps/v1beta1", "deployments statefulsets controllerrevisions"),
        ("apps/v1beta2", "deployments daemonsets replicasets statefulsets"),
        ("batch/v1beta1", "cronjobs"),
        ("autoscaling/v2beta1", "horizontalpodautoscalers"),
        ("policy/v1beta1", "poddisruptionbudgets"),
        ("events.k8s.io/v1beta1", "events"),
    ] {
        collections.extend(plurals.split(' ').map(|p| format!("/apis/{group}/namespaces/default/{p}")));
    }
    collections.push("/apis/apiextensions.k8s.io/v1beta1/customresourcedefinitions".into());
    let parts = [
        "spec",
        "status",
        "data",
        "rules",
        "subjects",
        "roleRef",
        "webhooks",
        "subsets",
        "endpoints",
        "ports",
        "template",
        "provisioner",
        "value",
        "handler",
        "involvedObject",
        "regarding",
        "eventTime",
        "target",
        "addressType",
    ];
    for (n, collection) in collections.iter().enumerate() {
        for (i, part) in parts.iter().enumerate() {
            let junk = [
                json!({}),
                json!([]),
                json!(null),
                json!("x"),
                json!(-1),
                json!([{}]),
                json!([null]),
                json!({"a": {"b": []}}),
                json!({"selector": {}, "template": {"spec": {}}, "versions": [{}], "metrics": [{}], "names": {}, "rules": [{"http": {"paths": [{}]}}], "ports": [{}]}),
            ];
            for (j, junk) in junk.into_iter().enumerate() {
                let mut object = json!({"metadata": {"name": format!("n{n}-{i}-{j}")}});
                object[*part] = junk;
                check(&server, "POST", collection, "application/json", object.to_string().as_bytes()).await;
            }
        }
    }
}

#[tokio::test]
async fn bodies_that_are_no_objects() {
    let server = server().await;
    let collection = "/api/v1/namespaces/default/configmaps";
    let bomb = format!(
        "a: &a [x,x,x,x,x,x,x,x,x]\n{}",
        (b'b'..=b'k')
            .map(|c| {
                let before = char::from(c - 1);
                format!("{0}: &{0} [{1}]\n", char::from(c), vec![format!("*{before}"); 9].join(","))
            })
            .collect::<String>()
    );
    let deep = "[".repeat(200_000);
    let deep_yaml = (0..2000).map(|i| format!("{}a:\n", " ".repeat(i))).collect::<String>();
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("application/json", b"".to_vec()),
        ("application/json", b"null".to_vec()),
        ("application/json", b"[]".to_vec()),
        ("application/json", b"5".to_vec()),
        ("application/json", b"\"x\"".to_vec()),
        ("application/json", b"{} {}".to_vec()),
        ("application/json", b"\xff\xfe{}".to_vec()),
        ("application/json", b"{\"metadata\":{\"name\":\"\\ud800\"}}".to_vec()),
        ("application/json", deep.clone().into_bytes()),
        ("application/json", "{\"a\":".repeat(100_000).into_bytes()),
        ("application/json", vec![b' '; (3 << 20) + 1]),
        ("application/yaml", bomb.into_bytes()),
        ("application/yaml", deep.into_bytes()),
        ("application/yaml", deep_yaml.into_bytes()),
        ("application/yaml", b"a: *nowhere".to_vec()),
        ("application/yaml", b"a: &a\n  b: *a".to_vec()),
        ("application/yaml", b"? [x]\n: 1".to_vec()),
        ("application/yaml", b"metadata: [".to_vec()),
        ("application/yaml", b"\xff".to_vec()),
        ("text/plain", b"x".to_vec()),
        ("application/vnd.kubernetes.protobuf", b"k8s\0".to_vec()),
    ];
    for (media, body) in bodies {
        let shown: String = String::from_utf8_lossy(&body).chars().take(60).collect();
        for (method, path) in [("POST", collection.to_owned()), ("PUT", format!("{collection}/base"))] {
            let answer = admin(&server, method, &path, media, body.clone()).await;
            assert!(
                answer.status.is_client_error(),
                "{method} {media} {shown}: {} {}",
                answer.status,
                answer.json()
            );
        }
        for patch in PATCHES {
            let path = format!("{collection}/kube-root-ca.crt?fieldManager=m");
            let answer = admin(&server, "PATCH", &path, patch, body.clone()).await;
            assert!(
                answer.status.is_client_error(),
                "PATCH {patch} {shown}: {} {}",
                answer.status,
                answer.json()
            );
        }
        let answer = admin(&server, "DELETE", &format!("{collection}/none"), media, body.clone()).await;
        assert!(answer.status.is_client_error(), "DELETE {shown}: {}", answer.status);
    }
}
