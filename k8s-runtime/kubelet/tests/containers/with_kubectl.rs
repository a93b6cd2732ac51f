//! An unmodified kubectl, the real API server, and real containers.

use std::{process::Stdio, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{Request, Response};
use k8s_apiserver::{
    ApiServer, User,
    auth::Authenticator,
    listen::{self, TlsFiles},
    proxy::{LocalKubelets, NodeConnector},
};
use k8s_core::client::{Body, BoxError};
use k8s_kubelet::KubeletApi;
use k8s_store::Store;
use libtest_mimic::Failed;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
};

use crate::{IMAGE, Node};

struct InProcess(KubeletApi);

#[async_trait]
impl NodeConnector for InProcess {
    async fn call(&self, _: &Value, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        Ok(self.0.handle(request).await)
    }
}

/// kubectl with the options for one server.
struct Kubectl(Vec<String>);

impl Kubectl {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", "/dev/null").env("HOME", "/nonexistent");
        command.args(&self.0).args(arguments).kill_on_drop(true).stdin(Stdio::null());
        command
    }

    /// Returns exit code, standard output and standard error.
    async fn run(&self, arguments: &[&str], input: &str) -> Result<(i32, String, String), Failed> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        let out = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await??;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((out.status.code().unwrap_or(-1), text(out.stdout), text(out.stderr)))
    }

    async fn expect(&self, arguments: &[&str], input: &str, code: i32, want: &str) -> Result<String, Failed> {
        let (have, out, err) = self.run(arguments, input).await?;
        if have == code && (out.contains(want) || err.contains(want)) {
            return Ok(out);
        }
        Err(format!("kubectl {arguments:?}: wanted {code} and {want:?}, got {have}\n{out}\n{err}").into())
    }
}

pub async fn kubectl(mut node: Node) -> Result<(), Failed> {
    let kubelets = Arc::new(LocalKubelets::new(None));
    let tokens = [("secret".to_owned(), User::admin())].into();
    let server = ApiServer::builder(Store::memory())
        .authenticator(Authenticator::new(tokens, false))
        .nodes(kubelets.clone())
        .build()
        .await?;
    let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    let files = TlsFiles {
        certificate: key.cert.pem().into_bytes(),
        key: key.signing_key.serialize_pem().into_bytes(),
        client_ca: None,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let stop = tokio_util::sync::CancellationToken::new();
    let tls = Arc::new(listen::tls_config(&files)?);
    let serving = tokio::spawn(listen::serve(server.clone(), listener, tls, stop.clone()));
    node.client = Some(server.client_as(User::new("system:node:n1", &["system:nodes", "system:masters"])));
    // Objects that controllers make in a whole cluster.
    let admin = server.client_as(User::admin());
    let post = async |path: &str, body: Value| {
        admin.bytes(http::Method::POST, path, "application/json", body.to_string()).await
    };
    let base = "/api/v1/namespaces/default";
    // 409 if they exist already.
    let _ = post(&format!("{base}/serviceaccounts"), json!({"metadata": {"name": "default"}})).await;
    let root = json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": key.cert.pem()}});
    let _ = post(&format!("{base}/configmaps"), root).await;
    node.start().await?;
    let api = node.kubelet.as_ref().ok_or("not started")?.api();
    kubelets.add("n1", Arc::new(InProcess(api)));
    let flags = [
        format!("--server=https://127.0.0.1:{port}"),
        "--token=secret".to_owned(),
        "--insecure-skip-tls-verify".to_owned(),
    ];
    let kubectl = Kubectl(flags.to_vec());
    let result = with(&kubectl).await;
    node.stop().await;
    stop.cancel();
    serving.abort();
    result
}

async fn with(kubectl: &Kubectl) -> Result<(), Failed> {
    let script = "trap 'exit 0' TERM; echo ready; cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; echo; \
        busybox mkdir -p /www; echo from the pod > /www/f; busybox httpd -p 127.0.0.1:8080 -h /www; while true; do sleep 0.1; done";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "n1", "terminationGracePeriodSeconds": 5, "containers": [{
            "name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["/bin/sh", "-c", script],
        }]},
    });
    kubectl.expect(&["apply", "-f", "-"], &pod.to_string(), 0, "created").await?;
    kubectl.expect(&["wait", "--for=condition=Ready", "pod/p", "--timeout=20s"], "", 0, "met").await?;
    kubectl.expect(&["get", "nodes"], "", 0, "Ready").await?;
    kubectl.expect(&["logs", "p"], "", 0, "ready\ndefault\n").await?;
    kubectl.expect(&["logs", "p", "--tail=1"], "", 0, "default").await?;
    kubectl.expect(&["exec", "p", "--", "echo", "hello"], "", 0, "hello\n").await?;
    kubectl.expect(&["exec", "p", "--", "sh", "-c", "exit 7"], "", 7, "exit code 7").await?;
    kubectl.expect(&["exec", "-i", "p", "--", "cat"], "through and back", 0, "through and back").await?;
    port_forward(kubectl).await?;
    kubectl.expect(&["describe", "pod", "p"], "", 0, "Started container c").await?;
    kubectl.expect(&["delete", "pod", "p"], "", 0, "deleted").await?;
    kubectl.expect(&["get", "pods"], "", 0, "No resources found").await?;
    Ok(())
}

async fn port_forward(kubectl: &Kubectl) -> Result<(), Failed> {
    let mut command = kubectl.command(&["port-forward", "pod/p", ":8080", "-v=4"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().ok_or("no output")?;
    let mut said = String::new();
    let mut buffer = [0; 1024];
    // "Forwarding from 127.0.0.1:40000 -> 8080"
    let port: u16 = loop {
        let n = tokio::time::timeout(Duration::from_secs(10), stdout.read(&mut buffer)).await??;
        if n == 0 {
            let mut err = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut err).await?;
            }
            return Err(format!("port-forward ended: {said} {err}").into());
        }
        said.push_str(&String::from_utf8_lossy(&buffer[..n]));
        let port =
            said.split("127.0.0.1:").nth(1).and_then(|t| t.split(' ').next()).and_then(|t| t.parse().ok());
        if let Some(port) = port {
            break port;
        }
    };
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /f HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await;
        if !matches!(read, Ok(Ok(_))) || !answer.ends_with("from the pod\n") {
            child.kill().await?;
            let mut err = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut err).await?;
            }
            return Err(format!("port-forward: {read:?} {answer:?}: {err}").into());
        }
    }
    child.kill().await?;
    Ok(())
}
