//! Unchanged manifests of a 2017 introduction, under `tests/manifests`.

use crate::{
    Outcome,
    harness::{Cluster, Namespace},
};

type Test = fn(&Cluster, &str) -> Outcome;

pub const TESTS: &[(&str, Test)] =
    &[("manifests_of_2017_apply", apply), ("manifests_that_are_wrong_are_told_so", wrong)];

/// Manifest, kubectl's output, object to get afterwards and its expected output.
const MANIFESTS: &[(&str, &str, &str, &str)] = &[
    ("01-pod", "pod/redis-django created", "pod redis-django", "0/2"),
    ("02-replication-controller", "replicationcontroller/nginx created", "rc nginx", "3"),
    ("03-deployment", "deployment.extensions/nginx-deployment created", "deployment nginx-deployment", "0/3"),
    ("04-configmap-env", "pod/configured created", "configmap my-config-map", "my-config-map"),
    ("05-persistent-volume", "persistentvolume/mongo-volume created", "pv mongo-volume", "10Gi"),
    (
        "06-storage-class",
        "storageclass.storage.k8s.io/ssd created",
        "storageclass ssd",
        "kubernetes.io/aws-ebs",
    ),
    (
        "07-persistent-volume-claim",
        "persistentvolumeclaim/mongo-storage created",
        "pvc mongo-storage -n database",
        "ssd",
    ),
    ("08-job", "job.batch/pi created", "job pi", "0/1"),
    ("09-ingress", "ingress.extensions/test created", "ingress test", "foo.bar.com"),
    (
        "10-autoscaler",
        "horizontalpodautoscaler.autoscaling/php-apache created",
        "hpa php-apache -n default",
        "Deployment/php-apache",
    ),
    (
        "11-third-party-resource",
        "rds-database.stable.example.com created",
        "thirdpartyresources",
        "rds-database.stable.example.com",
    ),
    (
        "12-third-party-object",
        "rdsdatabase.stable.example.com/orders created",
        "rdsdatabases orders",
        "orders",
    ),
    ("13-service", "service/web created", "service web", "LoadBalancer"),
];

fn apply(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    let mut problems = Vec::new();
    for (file, created, get, shows) in MANIFESTS {
        if let Err(e) = apply_one(&n, file, created, get, shows) {
            problems.push(format!("{file}: {}", e.message().unwrap_or_default()));
        }
    }
    // These two name another namespace, or none.
    for other in ["hpa/php-apache", "pvc/mongo-storage"] {
        let namespace = if other.starts_with("hpa") { "default" } else { "database" };
        let _ = cluster.kubectl(&["delete", other, "-n", namespace, "--wait=false"])?;
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
}

fn apply_one(n: &Namespace<'_>, file: &str, created: &str, get: &str, shows: &str) -> Outcome {
    let path = format!("{}/tests/manifests/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
    // Some manifests name a namespace; the others use the test's.
    let own = std::fs::read_to_string(&path)?.contains("\n  namespace:");
    let said =
        if own { n.cluster.kubectl(&["apply", "-f", &path])? } else { n.run(&["apply", "-f", &path], "")? };
    if said.code != 0 || !said.out.contains(created) {
        return Err(format!("apply: {said:?}").into());
    }
    let arguments: Vec<&str> = std::iter::once("get").chain(get.split(' ')).collect();
    n.until(&arguments, shows, 20)
}

/// Invalid manifests and upstream's messages.
const WRONG: &[(&str, &str)] = &[
    (
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{}}"#,
        "spec.containers: Required value",
    ),
    (
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"A_b"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#,
        "metadata.name: Invalid value: \"A_b\"",
    ),
    (
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i"}],"restartPolicy":"Often"}}"#,
        "spec.restartPolicy: Unsupported value: \"Often\"",
    ),
    (
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i"}],"replicas":1}}"#,
        "unknown field \"spec.replicas\"",
    ),
    (
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":"c"}}"#,
        "spec.containers of type []v1.Container",
    ),
    (
        r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"c"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#,
        "`selector` does not match template `labels`",
    ),
    (
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":70000}]}}"#,
        "must be between 1 and 65535",
    ),
];

fn wrong(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    // A kind without schema: kubectl's own validation must be disabled.
    let nothing = r#"{"apiVersion":"v1","kind":"Nothing","metadata":{"name":"a"}}"#;
    n.expect(
        &["create", "--validate=false", "-f", "-"],
        nothing,
        1,
        "no matches for kind \"Nothing\" in version \"v1\"",
    )?;
    let problems: Vec<String> = WRONG
        .iter()
        .filter_map(|(manifest, want)| n.expect(&["create", "-f", "-"], manifest, 1, want).err())
        .map(|e| e.message().unwrap_or_default().to_owned())
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n\n").into()) }
}
