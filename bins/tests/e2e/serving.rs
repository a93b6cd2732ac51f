//! TLS of the API's listener and its end, at a control plane without a node, with kubectl.

use std::{fs, path::Path, process::Stdio, time::Duration};

use libtest_mimic::Failed;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::{
    Outcome,
    harness::{Cluster, Process, run, until},
};

pub const TESTS: &[crate::Test] = &[
    ("certificates_of_files_are_served_by_name_and_reloaded", files),
    ("a_server_that_stops_is_not_ready_first_and_cuts_nothing", stops),
    ("a_slow_request_is_logged_with_its_id_and_stages", slow),
    ("tls_flags_that_cannot_be_used_are_refused", refused),
];

/// A CA of the test.
struct Ca {
    pem: String,
    key: KeyPair,
}

impl Ca {
    fn new() -> Result<Self, Failed> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        Ok(Ca { pem: params.self_signed(&key)?.pem(), key })
    }

    /// Writes a certificate for a name with its chain, and the key. Returns both paths.
    fn write(&self, directory: &Path, file: &str, name: &str) -> Result<[String; 2], Failed> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![name.to_owned()])?;
        let issuer = Issuer::from_ca_cert_pem(&self.pem, &self.key)?;
        let chain = format!("{}{}", params.signed_by(&key, &issuer)?.pem(), self.pem);
        let paths = ["crt", "key"].map(|kind| directory.join(format!("{file}.{kind}")));
        fs::write(&paths[0], chain)?;
        fs::write(&paths[1], key.serialize_pem())?;
        Ok(paths.map(|path| path.to_string_lossy().into_owned()))
    }
}

fn start(cluster: &mut Cluster, flags: &[&str]) -> Outcome {
    let data = cluster.data.to_string_lossy().into_owned();
    let mut command = cluster.hyperkube(&["server", "--data-dir", &data, "--no-kubeconfig-merge"]);
    command.args(flags);
    let log = cluster.dir.path().join("server.log");
    cluster.processes.push(Process::start(&mut command, log)?);
    until("the server answers", Duration::from_secs(30), || {
        let said = cluster.kubectl(&["get", "--raw", "/readyz"]).map_err(|e| format!("{e:?}"))?;
        Ok(said.code == 0)
    })
}

fn files() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    let directory = cluster.dir.path().to_owned();
    let ca = Ca::new()?;
    let [certificate, key] = ca.write(&directory, "serving", "127.0.0.1")?;
    let [shop, shop_key] = ca.write(&directory, "shop", "shop.example.com")?;
    let sni = format!("{shop},{shop_key}:*.example.com,10.9.9.9");
    let configuration = |name: &str, kind: &str, rest: &str| -> Result<String, Failed> {
        let path = directory.join(name);
        fs::write(&path, format!("apiVersion: apiserver.config.k8s.io/v1\nkind: {kind}\n{rest}\n"))?;
        Ok(path.to_string_lossy().into_owned())
    };
    let authorizers = |rest: &str| configuration("authorization.yaml", "AuthorizationConfiguration", rest);
    let issuer = |url: &str| {
        let jwt = format!(
            "jwt: [{{issuer: {{url: '{url}', audiences: [a]}}, claimMappings: {{username: {{claim: sub, prefix: ''}}}}}}]"
        );
        configuration("authentication.yaml", "AuthenticationConfiguration", &jwt)
    };
    let authorization = authorizers("authorizers: [{type: Node, name: node}, {type: RBAC, name: rbac}]")?;
    let authentication = issuer("https://one.invalid")?;
    start(
        &mut cluster,
        &[
            "--tls-cert-file",
            &certificate,
            "--tls-private-key-file",
            &key,
            "--tls-sni-cert-key",
            &sni,
            "--tls-min-version",
            "VersionTLS13",
            "--authorization-config",
            &authorization,
            "--authentication-config",
            &authentication,
        ],
    )?;
    // The kubeconfig trusts the file's chain, and the address is in the certificate.
    cluster.ok(&["get", "namespaces"], "")?;
    let named = |name: &str| cluster.kubectl(&["--tls-server-name", name, "get", "--raw", "/version"]);
    if named("shop.example.com")?.code != 0 {
        return Err("the certificate for a name is not served".into());
    }
    let other = named("other.example.com")?;
    if !other.err.contains("certificate is valid for shop.example.com, not other.example.com") {
        return Err(format!("`*.example.com` has another certificate: {other:?}").into());
    }
    let foreign = named("renewed")?;
    if !foreign.err.contains("not valid for any names, but wanted to match renewed") {
        return Err(format!("an unknown name does not get the default certificate: {foreign:?}").into());
    }
    let as_node =
        ["--as", "system:node:n1", "--as-group", "system:nodes", "auth", "can-i", "create", "nodes"];
    cluster.ok(&as_node, "")?;
    authorizers("authorizers: [{type: RBAC, name: rbac}]")?;
    issuer("https://two.invalid")?;
    // A broken file changes nothing; a new pair is served after a minute at most.
    fs::write(&certificate, "junk")?;
    cluster.ok(&["get", "namespaces"], "")?;
    ca.write(&directory, "serving", "renewed")?;
    until("the renewed certificate is served", Duration::from_secs(75), || {
        Ok(named("renewed").map_err(|e| format!("{e:?}"))?.code == 0)
    })?;
    // The other files are read within the same minute.
    until("the configurations are reloaded", Duration::from_secs(20), || {
        let said = named_metrics(&cluster)?;
        let reloaded = |what: &str| {
            let name =
                format!("apiserver_{what}_config_controller_automatic_reloads_total{{status=\"success\"");
            said.lines().any(|line| line.starts_with(&name) && line.ends_with(" 1"))
        };
        Ok(reloaded("authorization") && reloaded("authentication"))
    })?;
    let arguments = [&["--tls-server-name", "renewed"][..], &as_node].concat();
    let refused = cluster.kubectl(&arguments)?;
    if refused.code == 0 || refused.out.trim() != "no" {
        return Err(format!("the former authorizers decide: {refused:?}").into());
    }
    cluster.take_down()
}

/// Returns the metrics of a server whose certificate is for `renewed`.
fn named_metrics(cluster: &Cluster) -> Result<String, String> {
    let said = cluster.kubectl(&["--tls-server-name", "renewed", "get", "--raw", "/metrics"]);
    said.map(|said| said.out).map_err(|e| format!("{e:?}"))
}

fn stops() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    start(&mut cluster, &["--shutdown-delay-duration", "4s"])?;
    for path in ["/livez/ping", "/readyz/shutdown", "/debug/pprof/cmdline"] {
        cluster.ok(&["get", "--raw", path], "")?;
    }
    let profile = cluster.kubectl(&["get", "--raw", "/debug/pprof/profile"])?;
    if profile.code == 0 || !profile.err.contains("no profiler of its own") {
        return Err(format!("a profile: {profile:?}").into());
    }
    let mut watch = cluster
        .kubectl_command(&["get", "configmaps", "--watch-only", "-o", "name"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_secs(1));
    let id = i32::try_from(cluster.processes[0].id())?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM)?;
    until("it is not ready", Duration::from_secs(2), || {
        let said = cluster.kubectl(&["get", "--raw", "/readyz"]).map_err(|e| format!("{e:?}"))?;
        Ok(said.err.contains("[-]shutdown failed: reason withheld"))
    })?;
    // It serves until the delay ends.
    cluster.ok(&["get", "--raw", "/livez"], "")?;
    cluster.ok(&["create", "configmap", "late"], "")?;
    // A second signal would end it at once.
    let mut code = None;
    until("it ends", Duration::from_secs(20), || {
        code = cluster.processes[0].has_ended();
        Ok(code.is_some())
    })?;
    if code != Some(0) {
        return Err(format!("the server ended with {code:?}: {}", cluster.processes[0].said()).into());
    }
    let _ = watch.kill();
    let watched = watch.wait_with_output()?;
    let (out, err) = (String::from_utf8_lossy(&watched.stdout), String::from_utf8_lossy(&watched.stderr));
    if !out.contains("configmap/late") || err.contains("unexpected EOF") {
        return Err(format!("the watch was cut: {out:?} {err:?}").into());
    }
    cluster.take_down()
}

/// The authorization webhook does not answer, so requests that no role allows take seconds.
fn slow() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    let webhook = cluster.dir.path().join("webhook.kubeconfig");
    let nobody = "apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1/authorize'}}]
users: [{name: a, user: {token: s3cret}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
";
    fs::write(&webhook, nobody)?;
    let webhook = webhook.to_string_lossy().into_owned();
    start(
        &mut cluster,
        &["--authorization-mode", "Node,RBAC,Webhook", "--authorization-webhook-config-file", &webhook],
    )?;
    let said = cluster.kubectl(&[
        "--as",
        "bob",
        "get",
        "--raw",
        "/api/v1/namespaces/shop/secrets?labelSelector=canary",
    ])?;
    if said.code == 0 {
        return Err(format!("bob may read Secrets: {said:?}").into());
    }
    let log = cluster.processes[0].said();
    let line = log.lines().find(|line| line.contains("slow request")).ok_or_else(|| log.clone())?;
    let parts = [
        "request{id=\"",
        "verb=\"GET\" path=\"/api/v1/namespaces/shop/secrets\" user=\"bob\"}",
        "code=403",
        "authorize ",
    ];
    if let Some(missing) = parts.iter().find(|part| !line.contains(**part)) {
        return Err(format!("no {missing} in {line}").into());
    }
    if log.contains("canary") || log.contains("s3cret") {
        return Err(format!("the log has a query or a token: {log}").into());
    }
    cluster.take_down()
}

fn refused() -> Outcome {
    let cluster = Cluster::prepare()?;
    let data = cluster.data.to_string_lossy().into_owned();
    for (flags, want) in [
        (
            &["--tls-cipher-suites", "TLS_RSA_WITH_RC4_128_SHA"][..],
            "--tls-cipher-suites: TLS_RSA_WITH_RC4_128_SHA is insecure and not supported: choose from TLS_AES_128_GCM_SHA256",
        ),
        (&["--tls-min-version", "VersionTLS11"], "choose VersionTLS12 or VersionTLS13"),
        (&["--tls-cert-file", "/no/such/file"], "--tls-private-key-file: the private key of"),
        (&["--tls-sni-cert-key", "one"], "CERTIFICATE,KEY"),
        (&["--client-ca-file", "/no/such/file"], "--client-ca-file /no/such/file: No such file"),
    ] {
        for program in ["server", "kube-apiserver"] {
            let mut command = cluster.hyperkube(&[program, "--data-dir", &data]);
            let said = run(command.args(flags), "", Duration::from_secs(30))?;
            if said.code != 2 || !said.err.contains(want) {
                return Err(format!("{program} {flags:?}: {said:?}").into());
            }
        }
    }
    Ok(())
}
