//! Credentials of files, Secrets and tokens at a control plane without a node, with kubectl.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Outcome,
    harness::{Cluster, HYPERKUBE, Process, run, until},
};

pub const TESTS: &[crate::Test] = &[
    ("credentials_of_files_and_secrets_are_accepted", accepted),
    ("a_wrong_authentication_file_is_refused_with_its_field", refused),
];

const CONFIGURATION: &str = "
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer: {url: https://issuer.invalid, audiences: [shop]}
  claimMappings: {username: {claim: sub, prefix: ''}}
anonymous: {enabled: true, conditions: [{path: /readyz}]}
";

fn write(directory: &Path, name: &str, text: &str) -> Result<String, Failed> {
    let path = directory.join(name);
    fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

/// Returns what `kubectl auth whoami` says for other credentials than the administrator's.
fn whoami(cluster: &Cluster, credentials: &[&str]) -> Result<Value, Failed> {
    let config = cluster.dir.path().join("other.kubeconfig");
    fs::copy(&cluster.kubeconfig, &config)?;
    let config = config.to_string_lossy().into_owned();
    let kubectl = |arguments: &[&str]| {
        let mut command = cluster.net.command("kubectl");
        command.args(["--kubeconfig", &config]).args(arguments).env("HOME", cluster.dir.path());
        run(&mut command, "", Duration::from_secs(30))
    };
    let set = [&["config", "set-credentials", "other"], credentials].concat();
    for arguments in [&set[..], &["config", "set-context", "--current", "--user=other"]] {
        let said = kubectl(arguments)?;
        if said.code != 0 {
            return Err(format!("{arguments:?}: {said:?}").into());
        }
    }
    let said = kubectl(&["auth", "whoami", "-o", "json"])?;
    if said.code != 0 {
        return Err(said.err.into());
    }
    Ok(serde_json::from_str::<Value>(&said.out)?["status"]["userInfo"].clone())
}

fn accepted() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    let directory: PathBuf = cluster.dir.path().to_owned();
    let data = cluster.data.to_string_lossy().into_owned();
    let tokens = write(&directory, "tokens.csv", "t0ken,bob,8,\"dev,ops\"\n")?;
    let passwords = write(&directory, "passwords.csv", "\"pass,word\",eve,7,\"shop\"\n")?;
    let configuration = write(&directory, "authentication.yaml", CONFIGURATION)?;
    let mut command = cluster.hyperkube(&[
        "server",
        "--data-dir",
        &data,
        "--no-kubeconfig-merge",
        "--token-auth-file",
        &tokens,
        "--basic-auth-file",
        &passwords,
        "--authentication-config",
        &configuration,
        "--enable-bootstrap-token-auth",
        "--service-account-issuer",
        "https://issuer.example.com",
    ]);
    cluster.processes.push(Process::start(&mut command, directory.join("server.log"))?);
    until("the server answers", Duration::from_secs(30), || {
        let said = cluster.kubectl(&["get", "--raw", "/readyz"]).map_err(|e| format!("{e:?}"))?;
        Ok(said.code == 0)
    })?;
    let is = |who: &Value, name: &str, uid: &str| -> Outcome {
        match (who["username"].as_str(), who["uid"].as_str().unwrap_or_default()) == (Some(name), uid) {
            true => Ok(()),
            false => Err(format!("wanted {name} {uid:?}, got {who}").into()),
        }
    };
    is(&whoami(&cluster, &["--username=eve", "--password=pass,word"])?, "eve", "7")?;
    is(&whoami(&cluster, &["--token=t0ken"])?, "bob", "8")?;
    for wrong in [&["--username=eve", "--password=pass"] as &[&str], &["--token=t1ken"]] {
        if whoami(&cluster, wrong).is_ok() {
            return Err(format!("{wrong:?} was accepted").into());
        }
    }
    // The administrator's certificate is named.
    let admin = cluster.ok(&["auth", "whoami", "-o", "json"], "")?;
    if !admin.contains("X509SHA256=") {
        return Err(format!("no id of the certificate: {admin}").into());
    }
    // A bootstrap token.
    let bootstrap = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"},
    });
    cluster.ok(&["apply", "-f", "-"], &bootstrap.to_string())?;
    is(&whoami(&cluster, &["--token=abcdef.0123456789abcdef"])?, "system:bootstrap:abcdef", "")?;
    // The token of a Secret, until the Secret goes.
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "robot", "annotations": {"kubernetes.io/service-account.name": "robot"}},
    });
    cluster.ok(&["create", "serviceaccount", "robot"], "")?;
    cluster.ok(&["apply", "-f", "-"], &secret.to_string())?;
    let mut token = String::new();
    until("the Secret has a token", Duration::from_secs(20), || {
        let path = "go-template={{.data.token | base64decode}}";
        let said = cluster.kubectl(&["get", "secret", "robot", "-o", path]).map_err(|e| format!("{e:?}"))?;
        token = said.out.trim().to_owned();
        Ok(token.matches('.').count() == 2)
    })?;
    let uid = cluster.ok(&["get", "serviceaccount", "robot", "-o", "jsonpath={.metadata.uid}"], "")?;
    let robot = format!("--token={token}");
    is(&whoami(&cluster, &[&robot])?, "system:serviceaccount:default:robot", &uid)?;
    cluster.ok(&["delete", "secret", "robot"], "")?;
    if whoami(&cluster, &[&robot]).is_ok() {
        return Err("the token of a deleted Secret was accepted".into());
    }
    // The issuer and its keys.
    let document = cluster.ok(&["get", "--raw", "/.well-known/openid-configuration"], "")?;
    let keys = cluster.ok(&["get", "--raw", "/openid/v1/jwks"], "")?;
    if !document.contains("\"issuer\":\"https://issuer.example.com\"") || !keys.contains("\"kid\"") {
        return Err(format!("{document} {keys}").into());
    }
    // No secret is in the log.
    let log = cluster.log();
    if let Some(told) = ["t0ken", "pass,word", "0123456789abcdef", &token].iter().find(|s| log.contains(**s))
    {
        return Err(format!("the log has {told}").into());
    }
    cluster.take_down()
}

fn refused() -> Outcome {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data").to_string_lossy().into_owned();
    let file = |name: &str, text: &str| write(directory.path(), name, text);
    let http = CONFIGURATION.replace("https://issuer", "http://issuer");
    for (flags, words) in [
        (vec!["--authentication-config", &file("a", &http)?], "jwt[0].issuer.url: Invalid value"),
        (
            vec!["--authentication-config", &file("b", CONFIGURATION)?, "--anonymous-auth=false"],
            "leave out --anonymous-auth",
        ),
        (vec!["--authentication-config", "/nowhere"], "/nowhere"),
        (vec!["--oidc-issuer-url", "https://a"], "oidc-client-id must be specified together"),
        (
            vec!["--oidc-issuer-url", "https://a", "--oidc-client-id", "b", "--oidc-signing-algs", "none"],
            "unsupported signing alg",
        ),
        (vec!["--token-auth-file", &file("c", "a,b\n")?], "line 1: want token,user,uid"),
        (vec!["--basic-auth-file", &file("d", "a,b,c\n\n\"x\n")?], "line 3: want password,user,uid"),
        (vec!["--service-account-key-file", &file("e", "no keys")?], "no key in the PEM file"),
        (
            vec!["--authentication-token-webhook-config-file", &file("f", "kind: Config\n")?],
            "webhook-config-file",
        ),
    ] {
        let mut command = Command::new(HYPERKUBE);
        command.args(["server", "--no-kubeconfig-merge", "--https-listen-port", "0", "--data-dir", &data]);
        let said = run(command.args(&flags), "", Duration::from_secs(20))?;
        if said.code != 2 || said.err.trim().lines().count() != 1 || !said.err.contains(words) {
            return Err(format!("{flags:?}: wanted {words:?}, got {said:?}").into());
        }
    }
    Ok(())
}
