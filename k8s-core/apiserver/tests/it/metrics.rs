//! `/metrics`: requests and objects are counted, and a program's other metrics are served with them.

use futures::StreamExt;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use k8s_apiserver::{ApiServer, User};
use k8s_core::{
    api::{ObjectMeta, api::core::v1::ConfigMap},
    client::{Body, ListParams},
};
use k8s_metrics::{Counter, Registry};
use k8s_store::Store;

async fn metrics(server: &ApiServer, user: User) -> (StatusCode, String) {
    let request = Request::get("/metrics").body(Body::default()).unwrap();
    let answer = server.service_as(user).handle(request).await;
    let (code, body) = (answer.status(), answer.into_body().collect().await.unwrap().to_bytes());
    (code, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn requests_are_counted_in_the_programs_registry() {
    let registry = Registry::default();
    let other: Counter = registry.register("shop_orders_total", "Number of orders.", Counter::default());
    other.inc_by(3);
    let server = ApiServer::builder(Store::memory()).metrics(registry).build().await.unwrap();
    let maps = server.client_as(User::admin()).namespaced::<ConfigMap>("default");
    assert!(maps.get("a").await.is_err());
    for _ in 0..2 {
        maps.list(&ListParams::default()).await.unwrap();
    }
    let mut watch = maps.watch(&ListParams::default()).await.unwrap();
    let map = ConfigMap {
        metadata: ObjectMeta { name: Some("a".into()), ..Default::default() },
        ..Default::default()
    };
    maps.create(&map).await.unwrap();
    watch.next().await.unwrap().unwrap();
    let nowhere = server.client_as(User::admin()).namespaced::<ConfigMap>("nowhere");
    assert!(nowhere.create(&map).await.is_err());
    let guest = server.client_as(User::new("guest@example.com", &[])).namespaced::<ConfigMap>("default");
    assert!(guest.get("a").await.is_err());
    let bare = Request::get("/api").body(Body::default()).unwrap();
    assert_eq!(server.handle(bare).await.status(), StatusCode::UNAUTHORIZED);
    let (code, text) = metrics(&server, User::admin()).await;
    assert_eq!(code, StatusCode::OK);
    let maps = r#"dry_run="",group="",version="v1",resource="configmaps",subresource="""#;
    for line in [
        "shop_orders_total 3".to_owned(),
        "# TYPE apiserver_request_total counter".to_owned(),
        format!(
            r#"apiserver_request_total{{verb="LIST",{maps},scope="namespace",component="apiserver",code="200"}} 2"#
        ),
        format!(
            r#"apiserver_request_total{{verb="GET",{maps},scope="resource",component="apiserver",code="404"}} 1"#
        ),
        format!(
            r#"apiserver_request_duration_seconds_count{{verb="LIST",{maps},scope="namespace",component="apiserver"}} 2"#
        ),
        r#"apiserver_current_inflight_requests{request_kind="readOnly"} 1"#.to_owned(),
        r#"apiserver_watch_events_total{group="",version="v1",resource="configmaps"} 1"#.to_owned(),
        r#"apiserver_watch_events_sizes_count{group="",version="v1",resource="configmaps"} 1"#.to_owned(),
        r#"apiserver_longrunning_requests{verb="WATCH",group="",version="v1",resource="configmaps",subresource="",scope="namespace",component="apiserver"} 1"#.to_owned(),
        r#"apiserver_response_sizes_count{verb="LIST",group="",version="v1",resource="configmaps",subresource="",scope="namespace",component="apiserver"} 2"#.to_owned(),
        r#"apiserver_admission_step_admission_duration_seconds_count{type="admit",operation="CREATE",rejected="true"} 1"#.to_owned(),
        r#"apiserver_admission_controller_admission_duration_seconds_count{name="NamespaceLifecycle",type="admit",operation="CREATE",rejected="true"} 1"#.to_owned(),
        r#"authenticated_user_requests{username="email_id"} 1"#.to_owned(),
        r#"authentication_attempts{result="failure"} 1"#.to_owned(),
        r#"authorization_attempts_total{result="no-opinion"} 1"#.to_owned(),
        r#"authorization_duration_seconds_count{result="no-opinion"} 1"#.to_owned(),
        "apiserver_tls_handshake_errors_total 0".to_owned(),
        r#"apiserver_storage_objects{resource="namespaces"} 4"#.to_owned(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    drop(watch);
    tokio::task::yield_now().await;
    let (_, later) = metrics(&server, User::admin()).await;
    assert!(
        later
            .lines()
            .any(|l| l.starts_with("apiserver_longrunning_requests{verb=\"WATCH\"") && l.ends_with(" 0")),
        "{later}"
    );
    assert!(text.contains("\nprocess_resident_memory_bytes "));
    let (code, _) = metrics(&server, User::new("jane", &["system:authenticated"])).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
}
