//! What anybody may ask: health and version.

use http::{Response, StatusCode};
use k8s_core::client::Body;
use serde_json::json;

use crate::{
    request::{Query, RequestInfo},
    respond,
    server::ApiServer,
};

/// Version that the API says it has.
pub const VERSION: &str = "v1.36.0";

/// Answers a path that needs no authorization; `None` for other paths.
pub(crate) fn public(server: &ApiServer, info: &RequestInfo, query: &Query) -> Option<Response<Body>> {
    if info.verb != "get" {
        return None;
    }
    match info.path.trim_end_matches('/') {
        "/version" => Some(respond::json_value(
            StatusCode::OK,
            &json!({
                "major": "1", "minor": "36", "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean",
                "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
                "platform": format!("linux/{}", arch()),
            }),
        )),
        path @ ("/healthz" | "/livez" | "/readyz") => {
            let ready = server.inner.ready.load(std::sync::atomic::Ordering::Acquire);
            if !ready && path == "/readyz" {
                return Some(respond::text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "[-]bootstrap failed\nreadyz check failed\n",
                ));
            }
            if query.has("verbose") {
                let name = &path[1..];
                return Some(respond::text(
                    StatusCode::OK,
                    format!("[+]ping ok\n[+]store ok\n[+]bootstrap ok\n{name} check passed\n"),
                ));
            }
            Some(respond::text(StatusCode::OK, "ok"))
        }
        _ => None,
    }
}

/// The machine's architecture as Go names it.
#[must_use]
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
