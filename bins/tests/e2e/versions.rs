//! `--runtime-config` at a control plane without a node, with kubectl.

use std::{process::Command, time::Duration};

use libtest_mimic::Failed;

use crate::{
    Outcome,
    harness::{Cluster, HYPERKUBE, Process, run, until},
};

pub const TESTS: &[crate::Test] = &[
    ("versions_are_turned_on_and_off_and_trust_is_published", chosen),
    ("a_wrong_runtime_config_is_refused", refused),
];

fn chosen() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    let data = cluster.data.to_string_lossy().into_owned();
    let mut command = cluster.hyperkube(&[
        "server",
        "--data-dir",
        &data,
        "--no-kubeconfig-merge",
        "--runtime-config=certificates.k8s.io/v1beta1=true,apps/v1beta1=false",
        "--controllers=*,bootstrapsigner,tokencleaner",
    ]);
    let log = cluster.dir.path().join("server.log");
    cluster.processes.push(Process::start(&mut command, log)?);
    until("the server answers", Duration::from_secs(30), || {
        let said = cluster.kubectl(&["get", "--raw", "/readyz"]).map_err(|e| format!("{e:?}"))?;
        Ok(said.code == 0)
    })?;
    // The cluster's CA, by its controller with the rights of its account.
    let bundles = ["get", "clustertrustbundles"];
    until("the CA is published", Duration::from_secs(30), || {
        let said = cluster.kubectl(&bundles).map_err(|e| format!("{e:?}"))?;
        Ok(said.out.contains("kubernetes.io:kube-apiserver-serving:"))
    })?;
    let table = cluster.ok(&bundles, "")?;
    if !table.contains("SIGNERNAME") {
        return Err(format!("no column of signers: {table}").into());
    }
    let resources = cluster.ok(&["api-resources", "--api-group=certificates.k8s.io"], "")?;
    for wanted in ["certificatesigningrequests", "clustertrustbundles", "podcertificaterequests"] {
        if !resources.contains(wanted) {
            return Err(format!("{wanted} is not listed: {resources}").into());
        }
    }
    let versions = cluster.ok(&["api-versions"], "")?;
    if versions.lines().any(|line| line == "apps/v1beta1") || !versions.contains("apps/v1beta2") {
        return Err(format!("apps/v1beta1 is off and apps/v1beta2 is on, but: {versions}").into());
    }
    // A signed cluster-info, and an expired token that goes.
    let token = |id: &str, expiration: &str| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
            "stringData": {"token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true", "expiration": expiration},
        })
        .to_string()
    };
    cluster.ok(&["apply", "-f", "-"], &token("abcdef", "2100-01-01T00:00:00Z"))?;
    cluster.ok(&["apply", "-f", "-"], &token("fedcba", "2020-01-01T00:00:00Z"))?;
    let info = ["create", "configmap", "cluster-info", "-n", "kube-public", "--from-literal=kubeconfig=text"];
    cluster.ok(&info, "")?;
    let has = |arguments: &[&str], wanted: fn(&str) -> bool| {
        let said = cluster.kubectl(arguments).map_err(|e| format!("{e:?}"))?;
        Ok::<bool, String>(wanted(&said.out))
    };
    until("cluster-info is signed", Duration::from_secs(20), || {
        has(&["get", "configmap", "cluster-info", "-n", "kube-public", "-o", "yaml"], |out| {
            out.contains("jws-kubeconfig-abcdef: eyJ") && !out.contains("fedcba")
        })
    })?;
    until("the expired token is gone", Duration::from_secs(20), || {
        has(&["get", "secrets", "-n", "kube-system", "-o", "name"], |out| {
            out.contains("bootstrap-token-abcdef") && !out.contains("fedcba")
        })
    })?;
    cluster.take_down()
}

fn refused() -> Outcome {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data").to_string_lossy().into_owned();
    for (entry, words) in [
        ("zoo/v1=true", "unknown api groups zoo/v1"),
        ("apps/v9=true", "group version apps/v9 that has not been registered"),
        ("api/all=false", "invalid runtime-config with only api/all=false"),
    ] {
        let mut command = Command::new(HYPERKUBE);
        command.args(["server", "--no-kubeconfig-merge", "--https-listen-port", "0", "--data-dir", &data]);
        let said = run(command.args(["--runtime-config", entry]), "", Duration::from_secs(20))?;
        if said.code != 2 || said.err.trim().lines().count() != 1 || !said.err.contains(words) {
            return Err(Failed::from(format!("{entry}: wanted {words:?}, got {said:?}")));
        }
    }
    Ok(())
}
