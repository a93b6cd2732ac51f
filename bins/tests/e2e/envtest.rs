//! `hyperkube envtest`, and its stand-ins as Go's envtest starts them.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::{
    Outcome,
    harness::{HYPERKUBE, NetworkNamespace, Process, run, until},
};

pub const TESTS: &[crate::Test] = &[
    ("envtest_runs_a_suite_and_returns_its_exit_code", suite),
    ("envtest_serves_until_a_signal_and_leaves_nothing", signal),
    ("envtest_refuses_wrong_definitions", wrong),
    ("envtest_without_root_runs_pods_on_simulated_nodes", without_root),
    ("simulated_pods_take_as_long_as_asked", delays),
    ("stand_ins_serve_gos_envtest", stand_ins),
];

const SHOPS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: not-installed}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: shops.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: shops, singular: shop, kind: Shop, listKind: ShopList}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

/// A directory that every user can enter.
fn open_directory() -> std::io::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

fn suite() -> Outcome {
    let (net, dir) = (NetworkNamespace::new()?, open_directory()?);
    let temporary = dir.path().join("tmp");
    fs::create_dir(&temporary)?;
    fs::write(dir.path().join("shops.yaml"), SHOPS)?;
    let script = "set -e
        kubectl get crd -o name; kubectl get ns not-installed 2>&1 || true
        kubectl create ns mine
        kubectl -n mine run a --image=i -o name; kubectl -n mine get pod a -o jsonpath='{.status.conditions}'
        test -x $KUBEBUILDER_ASSETS/etcd -a -x $KUBEBUILDER_ASSETS/kube-apiserver -a -x $KUBEBUILDER_ASSETS/kubectl
        exit 42";
    let mut command = net.command(HYPERKUBE);
    command.env("TMPDIR", &temporary).args(["envtest", "--crds"]).arg(dir.path());
    let said = run(command.args(["--", "sh", "-c", script]), "", Duration::from_secs(60))?;
    let wanted = [
        "customresourcedefinition.apiextensions.k8s.io/shops.example.com",
        "namespaces \"not-installed\" not found",
        "pod/a",
    ];
    if said.code != 42 || !wanted.iter().all(|text| said.out.contains(text)) {
        return Err(format!("{said:?}").into());
    }
    if said.out.contains("PodScheduled") {
        return Err(format!("no scheduler runs beside it: {said:?}").into());
    }
    match fs::read_dir(&temporary)?.next() {
        None => Ok(()),
        Some(left) => Err(format!("left {:?}", left?.path()).into()),
    }
}

fn signal() -> Outcome {
    let (net, dir) = (NetworkNamespace::new()?, open_directory()?);
    let temporary = dir.path().join("tmp");
    fs::create_dir(&temporary)?;
    let mut command = net.command(HYPERKUBE);
    let mut server =
        Process::start(command.arg("envtest").env("TMPDIR", &temporary), dir.path().join("log"))?;
    until("the line for a shell", Duration::from_secs(20), || {
        Ok(server.said().lines().any(|line| line.starts_with("export KUBECONFIG=")))
    })?;
    let get = format!("{}; kubectl get ns -o name", server.said().lines().last().unwrap_or_default());
    let said = run(net.command("sh").args(["-c", &get]), "", Duration::from_secs(20))?;
    if !said.out.contains("namespace/kube-system") {
        return Err(format!("{said:?}").into());
    }
    let code = server.stop()?;
    if code != 0 || fs::read_dir(&temporary)?.next().is_some() {
        return Err(format!("exit code {code}, {}", server.said()).into());
    }
    Ok(())
}

fn wrong() -> Outcome {
    let (net, dir) = (NetworkNamespace::new()?, open_directory()?);
    let file = dir.path().join("wrong.yaml");
    fs::write(&file, SHOPS.replace("shops.example.com", "other.example.com"))?;
    for (path, word) in [(file.as_path(), "must match"), (Path::new("/no/such"), "No such file")] {
        let mut command = net.command(HYPERKUBE);
        let said = run(command.args(["envtest", "--crds"]).arg(path), "", Duration::from_secs(30))?;
        let named = said.err.contains(&format!("--crds {}", path.display()));
        if said.code == 0 || !named || (path.exists() && said.code != 2) {
            return Err(format!("{word}: {said:?}").into());
        }
    }
    Ok(())
}

fn without_root() -> Outcome {
    let (net, dir) = (NetworkNamespace::new()?, open_directory()?);
    // A copy of the program that unprivileged users can execute.
    let program = dir.path().join("hyperkube");
    fs::copy(HYPERKUBE, &program)?;
    let script = "kubectl create deployment web --image=i --replicas=2 &&
        kubectl wait --for=condition=Available --timeout=60s deployment/web && kubectl get nodes -o name";
    let mut command = net.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&program);
    command.args(["envtest", "--nodes", "2", "--", "sh", "-c", script]).env("HOME", "/nonexistent");
    let said = run(&mut command, "", Duration::from_secs(90))?;
    if said.code == 0 && said.out.matches("node/").count() == 2 {
        return Ok(());
    }
    Err(format!("{said:?}").into())
}

fn delays() -> Outcome {
    let net = NetworkNamespace::new()?;
    let script = "kubectl create deployment slow --image=i && sleep 1 &&
        kubectl get deployment slow -o jsonpath='ready={.status.readyReplicas};' &&
        kubectl run quick --image=i --annotations=k8s-testing/start-after=0s &&
        kubectl wait --for=condition=Ready --timeout=1s pod/quick &&
        kubectl wait --for=condition=Available --timeout=60s deployment/slow &&
        kubectl run once --image=i --restart=Never --annotations=k8s-testing/exit-code=3 &&
        kubectl wait --for=jsonpath='{.status.phase}'=Failed --timeout=60s pod/once &&
        kubectl run wrong --image=i --restart=Never --annotations=k8s-testing/exit-code=x &&
        kubectl wait --for=jsonpath='{.status.phase}'=Failed --timeout=60s pod/wrong &&
        kubectl get pod wrong -o jsonpath='{.status.containerStatuses[0].state.terminated.message}'";
    let mut command = net.command(HYPERKUBE);
    command.args(["envtest", "--nodes=1", "--simulated-start-delay=3s", "--", "sh", "-c", script]);
    let said = run(&mut command, "", Duration::from_secs(120))?;
    let told = said.out.contains("annotation k8s-testing/exit-code is no exit code");
    if said.code == 0 && said.out.contains("ready=;") && told {
        return Ok(());
    }
    Err(format!("{said:?}").into())
}

/// A CA and a certificate that it signed, as Go's envtest makes them.
struct Signed {
    ca: String,
    certificate: String,
    key: String,
}

fn sign(mut params: CertificateParams) -> Result<Signed, rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "envtest-environment");
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    let key = KeyPair::generate()?;
    params.distinguished_name.push(DnType::CommonName, "admin");
    let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key))?.pem();
    Ok(Signed { ca: ca_pem, certificate, key: key.serialize_pem() })
}

/// What Go's envtest does: it reads the flags from `--help`, starts both programs with a directory of
/// certificates, and waits for their health.
fn stand_ins() -> Outcome {
    let (net, dir) = (NetworkNamespace::new()?, open_directory()?);
    let (assets, certs) = (dir.path().join("assets"), dir.path().join("certs"));
    fs::create_dir(&certs)?;
    let said =
        run(net.command(HYPERKUBE).args(["envtest", "--assets"]).arg(&assets), "", Duration::from_secs(20))?;
    if said.out != format!("export KUBEBUILDER_ASSETS='{}'\n", assets.display()) {
        return Err(format!("{said:?}").into());
    }
    let program = |name: &str| assets.join(name).display().to_string();
    for (name, flag, listed) in
        [("etcd", "--unsafe-no-fsync", true), ("kube-apiserver", "--insecure-port", false)]
    {
        let said = run(net.command(&program(name)).arg("--help"), "", Duration::from_secs(20))?;
        let has = said.out.lines().any(|line| line.trim_start().starts_with(flag));
        if said.code != 0 || has != listed {
            return Err(format!("{name} --help: {said:?}").into());
        }
    }
    let server = sign(CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?)?;
    let mut user = CertificateParams::new(Vec::new())?;
    user.distinguished_name.push(DnType::OrganizationName, "system:masters");
    let user = sign(user)?;
    let accounts = KeyPair::generate()?;
    let of_accounts = CertificateParams::new(Vec::new())?.self_signed(&accounts)?.pem();
    for (file, text) in [
        ("apiserver.crt", &server.certificate),
        ("apiserver.key", &server.key),
        ("ca.crt", &server.ca),
        ("client-cert-auth-ca.crt", &user.ca),
        ("user.crt", &user.certificate),
        ("user.key", &user.key),
        ("sa-signer.key", &accounts.serialize_pem()),
        ("sa-signer.crt", &of_accounts),
    ] {
        fs::write(certs.join(file), text)?;
    }
    let mut etcd = net.command(&program("etcd"));
    etcd.args([
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-client-urls=http://127.0.0.1:2379",
    ]);
    etcd.args(["--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync=true"]);
    etcd.arg(format!("--data-dir={}", dir.path().display()));
    let mut etcd = Process::start(&mut etcd, dir.path().join("etcd.log"))?;
    let in_certs = |file: &str| certs.join(file).display().to_string();
    let mut api = net.command(&program("kube-apiserver"));
    api.args([
        "--allow-privileged=true",
        "--authorization-mode=RBAC",
        "--bind-address=127.0.0.1",
        &format!("--cert-dir={}", certs.display()),
        &format!("--client-ca-file={}", in_certs("client-cert-auth-ca.crt")),
        "--disable-admission-plugins=ServiceAccount",
        "--etcd-servers=http://127.0.0.1:2379",
        "--secure-port=6443",
        "--service-account-issuer=https://127.0.0.1:6443/",
        &format!("--service-account-key-file={}", in_certs("sa-signer.crt")),
        &format!("--service-account-signing-key-file={}", in_certs("sa-signer.key")),
        "--service-cluster-ip-range=10.0.0.0/24",
    ]);
    let mut api = Process::start(&mut api, dir.path().join("api.log"))?;
    for url in ["http://127.0.0.1:2379/health", "https://127.0.0.1:6443/healthz"] {
        until(url, Duration::from_secs(30), || {
            let said = run(net.command("curl").args(["-skf", url]), "", Duration::from_secs(5));
            said.map(|said| said.code == 0).map_err(|e| format!("{e:?}"))
        })?;
    }
    let mut kubectl = net.command("kubectl");
    kubectl.env("KUBECONFIG", "/dev/null").args(["--server=https://127.0.0.1:6443"]);
    for (flag, file) in
        [("certificate-authority", "ca.crt"), ("client-certificate", "user.crt"), ("client-key", "user.key")]
    {
        kubectl.arg(format!("--{flag}={}", in_certs(file)));
    }
    let service = kubectl.args([
        "create",
        "service",
        "clusterip",
        "web",
        "--tcp=80",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ]);
    let said = run(service, "", Duration::from_secs(20))?;
    if said.code != 0 || !said.out.starts_with("10.0.0.") {
        return Err(format!("{said:?} {}", api.said()).into());
    }
    match (api.stop()?, etcd.stop()?) {
        (0, 0) => Ok(()),
        other => Err(format!("{other:?}: {} {}", api.said(), etcd.said()).into()),
    }
}
