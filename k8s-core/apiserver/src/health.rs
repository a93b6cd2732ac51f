//! Health and version, which need no authorization.

use std::sync::Arc;

use http::{Response, StatusCode};
use k8s_core::client::Body;
use serde_json::json;

use crate::{
    request::{Query, RequestInfo},
    respond,
    state::State,
};

/// Version that the API says it has.
pub const VERSION: &str = "v1.36.0";

/// Answers a path that needs no authorization; `None` for other paths.
pub(crate) fn public(state: &Arc<State>, info: &RequestInfo, query: &Query) -> Option<Response<Body>> {
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
            let ready = state.ready.load(std::sync::atomic::Ordering::Acquire);
            let ailment = state.store.ailment();
            let name = &path[1..];
            let readiness = name == "readyz";
            // A server that only reads lives: restarting it would help nobody.
            let failed = readiness && (!ready || ailment.is_some());
            if !failed && !query.has("verbose") {
                return Some(respond::text(StatusCode::OK, "ok"));
            }
            let mark = |fine: bool| if fine { "+" } else { "-" };
            let store = ailment.as_deref().map_or("ok".to_owned(), |why| format!("cannot write: {why}"));
            let store = format!("[{}]store {store}", mark(ailment.is_none() || !readiness));
            let bootstrap = format!("[{}]bootstrap {}", mark(ready), if ready { "ok" } else { "failed" });
            // The objects of priority and fairness are among those of the bootstrap.
            let fairness = format!("[{}]poststarthook/priority-and-fairness-config-producer", mark(ready));
            let bootstrap = format!("{bootstrap}\n{fairness} {}", if ready { "ok" } else { "failed" });
            let end = if failed { "failed" } else { "passed" };
            let code = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
            Some(respond::text(code, format!("[+]ping ok\n{store}\n{bootstrap}\n{name} check {end}\n")))
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
