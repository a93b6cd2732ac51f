//! Health by check, and `/debug/pprof`.

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use k8s_apiserver::{ApiServer, User};
use k8s_core::client::Body;
use k8s_store::Store;

async fn ask(server: &ApiServer, user: User, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).body(Body::default()).unwrap();
    let answer = server.service_as(user).handle(request).await;
    let code = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8(body.to_vec()).unwrap())
}

fn jane() -> User {
    User::new("jane", &[])
}

#[tokio::test]
async fn checks_are_listed_left_out_and_asked_alone() {
    let server = ApiServer::builder(Store::memory()).build().await.unwrap();
    assert_eq!(ask(&server, jane(), "/readyz").await, (StatusCode::OK, "ok".to_owned()));
    let verbose = "[+]ping ok
[+]store ok
[+]poststarthook/start-system-namespaces-controller ok
[+]poststarthook/rbac/bootstrap-roles ok
[+]poststarthook/scheduling/bootstrap-system-priority-classes ok
[+]poststarthook/priority-and-fairness-config-producer ok
[+]shutdown ok
readyz check passed
";
    assert_eq!(ask(&server, jane(), "/readyz?verbose").await.1, verbose);
    let (_, live) = ask(&server, jane(), "/livez?verbose").await;
    assert!(!live.contains("shutdown") && live.ends_with("\nlivez check passed\n"), "{live}");
    let (code, some) = ask(&server, jane(), "/readyz?verbose&exclude=ping&exclude=store&exclude=etcd").await;
    assert_eq!(code, StatusCode::OK);
    assert!(some.starts_with("[+]ping excluded: ok\n[+]store excluded: ok\n"), "{some}");
    let warning = "warn: some health checks cannot be excluded: no matches for \"etcd\"\n";
    assert!(some.contains(warning), "{some}");
    // Single checks need a permission, as upstream.
    for path in ["/livez/ping", "/readyz/store", "/healthz/poststarthook/rbac/bootstrap-roles"] {
        assert_eq!(ask(&server, jane(), path).await.0, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(ask(&server, User::admin(), path).await, (StatusCode::OK, "ok".to_owned()), "{path}");
        let monitor = User::new("prometheus", &["system:monitoring"]);
        assert_eq!(ask(&server, monitor, path).await.0, StatusCode::OK, "{path}");
    }
    for path in ["/livez/shutdown", "/livez/nothing", "/healthz/store"] {
        assert_eq!(ask(&server, User::admin(), path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    let (_, paths) = ask(&server, User::admin(), "/").await;
    assert!(paths.contains("\"/readyz/shutdown\"") && paths.contains("\"/livez/ping\""), "{paths}");
}

#[tokio::test]
async fn profiles_are_said_to_be_missing_to_those_who_may_ask() {
    let server = ApiServer::builder(Store::memory()).build().await.unwrap();
    let admin = User::admin;
    assert_eq!(ask(&server, jane(), "/debug/pprof/profile").await.0, StatusCode::FORBIDDEN);
    let (code, why) = ask(&server, admin(), "/debug/pprof/profile?seconds=1").await;
    assert_eq!(code, StatusCode::NOT_IMPLEMENTED);
    assert!(why.contains("no profiler of its own") && why.contains(&std::process::id().to_string()), "{why}");
    let (code, arguments) = ask(&server, admin(), "/debug/pprof/cmdline").await;
    assert_eq!((code, arguments.split('\0').next()), (StatusCode::OK, std::env::args().next().as_deref()));
    assert_eq!(ask(&server, admin(), "/debug/pprof").await.0, StatusCode::FOUND);
    assert!(ask(&server, admin(), "/debug/pprof/").await.1.starts_with("cmdline\n"));
    assert_eq!(ask(&server, admin(), "/debug/pprof/guess").await.0, StatusCode::NOT_FOUND);
    let without = ApiServer::builder(Store::memory()).profiling(false).build().await.unwrap();
    assert_eq!(ask(&without, admin(), "/debug/pprof/cmdline").await.0, StatusCode::NOT_FOUND);
}
