//! `/debug/pprof`: what this process can tell of itself, for those who may read these paths.
//!
//! Not here: profiles. Go's runtime samples itself; this program has no profiler, so the paths of profiles
//! answer 501 and name a tool that takes them from outside.

use http::{HeaderValue, Response, StatusCode, header};
use k8s_core::client::Body;

use crate::{respond, state::State};

/// Profiles of upstream that need Go's runtime.
const MISSING: [&str; 9] =
    ["allocs", "block", "goroutine", "heap", "mutex", "profile", "symbol", "threadcreate", "trace"];

/// Answers a path below `/debug/pprof`; `None` for other paths, and if profiling is off.
pub(crate) fn answer(state: &State, path: &str) -> Option<Response<Body>> {
    let name = path.strip_prefix("/debug/pprof").filter(|_| state.profiling)?;
    match name {
        "" => {
            let mut response = respond::text(StatusCode::FOUND, "");
            response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/debug/pprof/"));
            Some(response)
        }
        "/" => Some(respond::text(
            StatusCode::OK,
            format!("cmdline\n{}\n", MISSING.map(|name| format!("{name}: not available (501)")).join("\n")),
        )),
        "/cmdline" => {
            let arguments: Vec<String> =
                std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
            Some(respond::text(StatusCode::OK, arguments.join("\0")))
        }
        name => {
            let name = name.strip_prefix('/').filter(|name| MISSING.contains(name))?;
            let why = format!(
                "{name}: this server has no profiler of its own; take a profile of process {} from outside, such as with perf record -g -p {0}\n",
                std::process::id()
            );
            Some(respond::text(StatusCode::NOT_IMPLEMENTED, why))
        }
    }
}
