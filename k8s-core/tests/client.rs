//! The client over the network, against a small server on loopback.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_core::{
    api::api::core::v1::ConfigMap,
    client::{Client, Environment, Impersonation, Proxy, RemoteConfig},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// The heads of the requests that a server got.
type Heads = Arc<Mutex<Vec<String>>>;

/// Starts a server; `respond` gets the head of each request and its number. Returns its address.
async fn serve(respond: impl Fn(&str, usize) -> String + Send + Sync + 'static) -> (String, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (heads, respond) = (Heads::default(), Arc::new(respond));
    let seen = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (seen, respond) = (seen.clone(), respond.clone());
            tokio::spawn(async move {
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    let head = String::from_utf8(head).unwrap().to_lowercase();
                    let number = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(head.clone());
                        seen.len()
                    };
                    // The body is read, so that closing does not reset the connection.
                    let length = head.split("content-length: ").nth(1).and_then(|l| l.split('\r').next());
                    let mut body = vec![0; length.map_or(0, |l| l.parse().unwrap())];
                    stream.read_exact(&mut body).await.unwrap();
                    let response = respond(&head, number);
                    if stream.write_all(response.as_bytes()).await.is_err() || response.contains("close") {
                        return;
                    }
                }
            });
        }
    });
    (address, heads)
}

fn response(code: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {code} X\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn config_map(version: u32, ready: bool) -> String {
    let data = if ready { r#""data":{"ready":"yes"},"# } else { "" };
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap",{data}"metadata":{{"name":"c","resourceVersion":"{version}"}}}}"#
    )
}

fn list(version: u32, items: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMapList","metadata":{{"resourceVersion":"{version}"}},"items":[{items}]}}"#
    )
}

fn to(address: &str) -> RemoteConfig {
    RemoteConfig { server: format!("http://{address}"), ..RemoteConfig::default() }
}

#[tokio::test]
async fn a_busy_server_is_asked_again_as_it_says() {
    let busy = |head: &str, number: usize| match (head.contains("/forever"), head.contains("/long"), number) {
        (true, ..) => response(429, "retry-after: 0\r\n", ""),
        (_, true, _) => response(429, "retry-after: 3600\r\n", ""),
        (_, _, 1 | 2) => response(429, "retry-after: 0\r\n", ""),
        _ => response(200, "", &config_map(1, true)),
    };
    let (address, heads) = serve(busy).await;
    let client = Client::remote(&to(&address)).unwrap();
    let maps = client.namespaced::<ConfigMap>("default");
    maps.create(&ConfigMap::default()).await.unwrap();
    assert_eq!(heads.lock().unwrap().len(), 3);
    for (name, requests) in [("forever", 6), ("long", 1)] {
        heads.lock().unwrap().clear();
        assert_eq!(maps.get(name).await.unwrap_err().status().unwrap().code(), 429);
        assert_eq!(heads.lock().unwrap().len(), requests, "{name}");
    }
    heads.lock().unwrap().clear();
    client.retrying(0).namespaced::<ConfigMap>("default").get("c").await.unwrap_err();
    assert_eq!(heads.lock().unwrap().len(), 1);
}

/// Writes a plugin (a shell script that counts its runs in the file `runs`) and a kubeconfig that runs it
/// with a relative link to the shell.
fn with_plugin(directory: &Path, server: &str, script: &str) -> Environment {
    let plugin = directory.join("plugin");
    std::fs::write(&plugin, format!("cd {}\necho run >> runs\n{script}\n", directory.display())).unwrap();
    std::fs::create_dir(directory.join("bin")).unwrap();
    std::os::unix::fs::symlink("/bin/sh", directory.join("bin/sh")).unwrap();
    let text = format!(
        "current-context: x
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: 'http://{server}'}}}}]
users:
- name: u
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: bin/sh
      args: [{plugin:?}, login]
      env: [{{name: REGION, value: north}}]
      provideClusterInfo: true
"
    );
    let path = directory.join("config");
    std::fs::write(&path, text).unwrap();
    Environment::new(move |name| (name == "KUBECONFIG").then(|| path.clone().into()))
}

#[tokio::test]
async fn a_plugin_runs_again_when_its_credential_is_refused_or_expired() {
    let directory = tempfile::tempdir().unwrap();
    let (address, heads) = serve(|head, _| {
        if head.contains("authorization: bearer t1\r") {
            response(401, "", "")
        } else {
            response(200, "", &config_map(1, true))
        }
    })
    .await;
    let script = r#"test "$1 $REGION" = "login north" || exit 3
echo "$KUBERNETES_EXEC_INFO" > info
n=$(wc -l < runs | tr -d ' ')
end=2999-01-01T00:00:00Z; test $n = 2 && end=2001-01-01T00:00:00Z
echo "{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{\"token\":\"t$n\",\"expirationTimestamp\":\"$end\"}}""#;
    let environment = with_plugin(directory.path(), &address, script);
    let client = Client::remote(&environment.remote().unwrap()).unwrap();
    let maps = client.namespaced::<ConfigMap>("default");
    for _ in 0..3 {
        maps.get("c").await.unwrap();
    }
    let tokens: Vec<String> = heads
        .lock()
        .unwrap()
        .iter()
        .map(|head| head.split("bearer ").nth(1).unwrap().split('\r').next().unwrap().to_owned())
        .collect();
    assert_eq!(tokens, ["t1", "t2", "t3", "t3"]);
    let info = std::fs::read_to_string(directory.path().join("info")).unwrap();
    assert!(info.contains("\"kind\":\"ExecCredential\"") && info.contains(&address), "{info}");
}

#[tokio::test]
async fn a_failing_plugin_is_named_with_its_message() {
    let directory = tempfile::tempdir().unwrap();
    let environment = with_plugin(directory.path(), "127.0.0.1:1", "echo log in first >&2; exit 3");
    let client = Client::remote(&environment.remote().unwrap()).unwrap();
    let error = client.namespaced::<ConfigMap>("default").get("c").await.unwrap_err().to_string();
    for part in ["users[u].user.exec", "/config", "bin/sh", "log in first", "exit status: 3"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn passwords_impersonation_and_proxies_are_used() {
    let (address, heads) = serve(|head, _| {
        if head.starts_with("connect ") {
            "HTTP/1.1 200 OK\r\n\r\n".into()
        } else {
            response(200, "", &config_map(1, true))
        }
    })
    .await;
    let config = RemoteConfig {
        basic: Some(("admin".into(), "secret".into())),
        impersonation: Some(Impersonation {
            user: "jane".into(),
            groups: vec!["dev".into(), "ops".into()],
            extra: [("a/b".to_owned(), vec!["c".to_owned()])].into(),
            ..Impersonation::default()
        }),
        proxy: Some(Proxy::parse(&format!("http://me:p%40ss@{address}")).unwrap()),
        ..to("kubernetes.invalid:80")
    };
    Client::remote(&config).unwrap().namespaced::<ConfigMap>("default").get("c").await.unwrap();
    let heads = heads.lock().unwrap().clone();
    assert!(heads[0].starts_with("connect kubernetes.invalid:80 http/1.1\r\n"), "{heads:?}");
    // me:p@ss
    assert!(heads[0].contains(&"proxy-authorization: Basic bWU6cEBzcw==".to_lowercase()), "{heads:?}");
    let wanted = [
        // admin:secret
        "authorization: Basic YWRtaW46c2VjcmV0",
        "impersonate-user: jane",
        "impersonate-group: dev",
        "impersonate-group: ops",
        "impersonate-extra-a%2Fb: c",
    ];
    for header in wanted {
        assert!(heads[1].contains(&header.to_lowercase()), "{header}: {heads:?}");
    }
}

#[tokio::test]
async fn waiting_lists_again_when_the_watch_ends() {
    let (address, heads) = serve(|head, number| {
        let event = |kind: &str, object: &str| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
        match number {
            1 => response(503, "", ""),
            2 => response(200, "", &list(1, "")),
            3 => response(200, "", &event("ADDED", &config_map(2, false))),
            4 => response(200, "", &list(2, &config_map(2, false))),
            5 => response(410, "", ""),
            6 => response(200, "", &list(9, &config_map(9, false))),
            7 => response(200, "", &event("MODIFIED", &config_map(10, true))),
            8 => response(200, "", &list(10, &config_map(10, true))),
            9 => response(200, "", &event("DELETED", &config_map(11, true))),
            _ => panic!("{head}"),
        }
    })
    .await;
    let maps = Client::remote(&to(&address)).unwrap().namespaced::<ConfigMap>("default");
    let wait = async {
        let map = maps.wait_until("c", |map| map.data.is_some()).await.unwrap();
        assert_eq!(map.metadata.resource_version.as_deref(), Some("10"));
        maps.wait_deleted("c").await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
    let heads = heads.lock().unwrap();
    assert!(heads.iter().all(|head| head.contains("fieldselector=metadata.name%3dc")), "{heads:?}");
    assert!(heads[6].contains("resourceversion=9") && heads[6].contains("watch=1"), "{heads:?}");
}

#[tokio::test]
async fn waiting_ends_with_an_error_that_waiting_does_not_mend() {
    let (address, _) = serve(|_, _| response(403, "", "")).await;
    let maps = Client::remote(&to(&address)).unwrap().namespaced::<ConfigMap>("default");
    assert!(maps.wait_until("c", |_| true).await.unwrap_err().is_forbidden());
}
