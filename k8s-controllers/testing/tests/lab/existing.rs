//! The same test in an existing cluster: here a server of ours behind a socket, in its own process.

use std::{net::SocketAddr, process::Command, sync::mpsc};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use k8s_apiserver::{ApiServer, User};
use k8s_core::api::api::core::v1::ConfigMap;
use k8s_store::Store;
use k8s_testing::{Faults, Lab};

use crate::counters::{Copies, controller, original};

/// Serves a cluster until the process ends.
fn serve() -> (SocketAddr, ApiServer) {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = ApiServer::builder(Store::memory()).build().await.unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send((listener.local_addr().unwrap(), server.clone())).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = TowerToHyperService::new(server.service_as(User::admin()));
                tokio::spawn(async move {
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    });
    told.recv().unwrap()
}

#[test]
fn the_same_test_runs_in_a_cluster_that_exists() {
    if std::env::var_os("USE_EXISTING_CLUSTER").is_none() {
        let (address, server) = serve();
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
        );
        let path = std::env::temp_dir().join(format!("lab-{}.kubeconfig", std::process::id()));
        std::fs::write(&path, kubeconfig).unwrap();
        let again = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "existing::the_same_test_runs_in_a_cluster_that_exists", "--nocapture"])
            .env("USE_EXISTING_CLUSTER", "true")
            .env("KUBECONFIG", &path)
            .output()
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        let said = String::from_utf8_lossy(&again.stdout) + String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success(), "{said}");
        assert!(server.store().get("configmaps", "default/real-copy").is_some(), "{said}");
    }
    let report =
        Lab::new().with(controller(), || Copies).seeds(0..3).faults(Faults::all()).run(async |lab| {
            lab.create(&original("real", "x")).await;
            lab.settle().await;
            let copy: ConfigMap = lab.get("real-copy").await;
            assert!(copy.data.is_some());
            assert_eq!(lab.writes_since_settled(), 0);
        });
    let once = std::env::var_os("USE_EXISTING_CLUSTER").is_some();
    assert_eq!(report.runs, if once { 1 } else { 3 });
}
