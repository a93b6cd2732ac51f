//! Health and version, which need no authorization, and single health checks, which do.
//!
//! `/healthz`, `/livez` and `/readyz` run all of their checks. `?verbose` lists them, `?exclude=NAME` leaves
//! one out, and `/readyz/NAME` runs one.

use std::sync::{Arc, atomic::Ordering};

use http::{HeaderValue, Response, StatusCode, header};
use k8s_core::client::Body;
use serde_json::json;

use crate::{
    request::{Query, RequestInfo},
    respond,
    state::State,
};

/// Version that the API says it has.
pub const VERSION: &str = "v1.36.0";

/// Paths of health.
const ENDPOINTS: [&str; 3] = ["healthz", "livez", "readyz"];

/// A health check, with upstream's name where upstream has it.
struct Check {
    name: &'static str,
    run: fn(&State) -> Result<(), Failed>,
    readiness_only: bool,
}

/// A failed check.
enum Failed {
    /// The reason is for everybody who may ask for health.
    Because(String),
    /// The reason is for those who may ask for the single check.
    Withheld(&'static str),
}

/// The checks, in the order of their output.
static CHECKS: [Check; 7] = [
    Check { name: "ping", run: |_| Ok(()), readiness_only: false },
    // A server that only reads lives: restarting it would help nobody.
    Check { name: "store", run: store, readiness_only: true },
    Check {
        name: "poststarthook/start-system-namespaces-controller",
        run: bootstrapped,
        readiness_only: false,
    },
    Check { name: "poststarthook/rbac/bootstrap-roles", run: bootstrapped, readiness_only: false },
    Check {
        name: "poststarthook/scheduling/bootstrap-system-priority-classes",
        run: bootstrapped,
        readiness_only: false,
    },
    Check {
        name: "poststarthook/priority-and-fairness-config-producer",
        run: bootstrapped,
        readiness_only: false,
    },
    Check { name: "shutdown", run: shutdown, readiness_only: true },
];

fn store(state: &State) -> Result<(), Failed> {
    state.store.ailment().map_or(Ok(()), |why| Err(Failed::Because(format!("cannot write: {why}"))))
}

fn bootstrapped(state: &State) -> Result<(), Failed> {
    if state.ready.load(Ordering::Acquire) { Ok(()) } else { Err(Failed::Withheld("not finished")) }
}

fn shutdown(state: &State) -> Result<(), Failed> {
    if state.stopping.load(Ordering::Acquire) {
        Err(Failed::Withheld("process is shutting down"))
    } else {
        Ok(())
    }
}

/// Returns the checks of an endpoint.
fn checks(endpoint: &str) -> impl Iterator<Item = &'static Check> {
    let readiness = endpoint == "readyz";
    CHECKS.iter().filter(move |check| readiness || !check.readiness_only)
}

/// Returns a text that browsers must not take for anything else.
fn text(code: StatusCode, text: String) -> Response<Body> {
    let mut response = respond::text(code, text);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

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
        path => {
            let endpoint = ENDPOINTS.into_iter().find(|name| path.strip_prefix('/') == Some(name))?;
            Some(all(state, endpoint, query))
        }
    }
}

/// Runs all checks of an endpoint.
fn all(state: &State, endpoint: &str, query: &Query) -> Response<Body> {
    let excluded: Vec<&str> = query.all("exclude").collect();
    let (mut lines, mut failed) = (String::new(), Vec::new());
    for check in checks(endpoint) {
        let name = check.name;
        let line = if excluded.contains(&name) {
            format!("[+]{name} excluded: ok")
        } else {
            match (check.run)(state) {
                Ok(()) => format!("[+]{name} ok"),
                Err(why) => {
                    failed.push(name);
                    let why = if let Failed::Because(why) = &why { why } else { "reason withheld" };
                    format!("[-]{name} failed: {why}")
                }
            }
        };
        lines += &line;
        lines.push('\n');
    }
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|name| checks(endpoint).all(|check| check.name != **name))
        .map(|name| format!("{name:?}"))
        .collect();
    if !unknown.is_empty() {
        let unknown = unknown.join(",");
        lines += &format!("warn: some health checks cannot be excluded: no matches for {unknown}\n");
    }
    if !failed.is_empty() {
        tracing::debug!(endpoint, checks = failed.join(","), "health check failed");
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{endpoint} check failed\n"));
    }
    if query.has("verbose") {
        return text(StatusCode::OK, format!("{lines}{endpoint} check passed\n"));
    }
    text(StatusCode::OK, "ok".to_owned())
}

/// Runs the check of a path such as `/livez/ping`; `None` if there is no such check.
pub(crate) fn single(state: &State, path: &str) -> Option<Response<Body>> {
    let (endpoint, name) = path.strip_prefix('/')?.split_once('/')?;
    if !ENDPOINTS.contains(&endpoint) {
        return None;
    }
    let check = checks(endpoint).find(|check| check.name == name)?;
    Some(match (check.run)(state) {
        Ok(()) => text(StatusCode::OK, "ok".to_owned()),
        Err(failed) => {
            let why = match &failed {
                Failed::Because(why) => why,
                Failed::Withheld(why) => *why,
            };
            text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n"))
        }
    })
}

/// Returns the paths of the single checks.
pub(crate) fn paths() -> impl Iterator<Item = String> {
    ENDPOINTS
        .into_iter()
        .flat_map(|endpoint| checks(endpoint).map(move |check| format!("/{endpoint}/{}", check.name)))
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
