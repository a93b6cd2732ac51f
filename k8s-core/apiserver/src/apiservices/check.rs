//! Availability checks of aggregated servers, reported in the APIService's `Available` condition.

#![expect(clippy::disallowed_methods, reason = "the task ends when the server is dropped")]

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use http::Request;
use http_body_util::BodyExt;
use k8s_core::client::empty_body;
use k8s_store::Expect;
use serde_json::{Value, json};

use super::STORAGE;
use crate::{
    aggregate::{Remote, identify},
    state::State,
    storage::{put, timestamp},
    user::User,
    value::{array_at, set, str_at},
    webhook_client::Unreachable,
};

/// Interval of checks of an available server.
const EVERY: Duration = Duration::from_secs(30);
/// Interval of checks of an unavailable server.
const SOON: Duration = Duration::from_secs(1);
/// Timeout of a check.
const PATIENCE: Duration = Duration::from_secs(5);

/// The outcome of a check, as reason and message of the condition.
struct Finding {
    reason: &'static str,
    message: String,
}

/// Starts the checks. They end when the APIService changes or the server is dropped.
pub(super) fn start(state: &Arc<State>, remote: Arc<Remote>) {
    let weak = Arc::downgrade(state);
    tokio::spawn(async move {
        loop {
            let Some(state) = weak.upgrade() else { return };
            if !remote.is_local() && !state.aggregator.all().iter().any(|r| Arc::ptr_eq(r, &remote)) {
                return;
            }
            let finding = ask(&state, &remote).await;
            let good = finding.reason == "Passed";
            if remote.is_local() && good {
                // Its resources are known, and it is as available as this process.
                return;
            }
            remote.available.store(good, Ordering::Release);
            tell(&state, &remote, &finding).await;
            drop(state);
            tokio::time::sleep(if good { EVERY } else { SOON }).await;
        }
    });
}

/// Requests the discovery document of the version.
async fn ask(state: &Arc<State>, remote: &Remote) -> Finding {
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let failed = |why: String| Finding {
        reason: "FailedDiscoveryCheck",
        message: format!("failing or missing response from {path}: {why}"),
    };
    let peer = match &remote.peer {
        Ok(peer) => peer,
        Err(why) => return failed(why.clone()),
    };
    let mut request = Request::new(empty_body());
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    if let Err(why) =
        identify(&User::new("system:kube-aggregator", &["system:masters"]), request.headers_mut())
    {
        return failed(why);
    }
    let answer = async {
        let response = peer.call(&state.store, || (state.own)(state), request).await?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| Unreachable::Failed(e.to_string()))?;
        Ok::<_, Unreachable>((status, body.to_bytes()))
    };
    match tokio::time::timeout(PATIENCE, answer).await {
        Err(_) => failed("no answer in time".into()),
        Ok(Err(Unreachable::Failed(why))) => failed(why),
        Ok(Err(Unreachable::Nowhere(reason, message))) => Finding { reason, message },
        Ok(Ok((status, _))) if !status.is_success() => failed(format!("bad status: {}", status.as_u16())),
        Ok(Ok((_, body))) => {
            let list: Value = serde_json::from_slice(&body).unwrap_or_default();
            let mut known = remote.resources.lock().unwrap_or_else(PoisonError::into_inner);
            *known = list;
            Finding { reason: "Passed", message: "all checks passed".into() }
        }
    }
}

/// Writes the condition if it changed.
async fn tell(state: &Arc<State>, remote: &Remote, finding: &Finding) {
    let registry = state.registry.now();
    let Some(resource) = registry.find("apiregistration.k8s.io", "v1", "apiservices") else { return };
    // Retries after a conflict with another writer.
    for _ in 0..3 {
        let Some(stored) = state.store.get(STORAGE, &remote.name) else { return };
        let Ok(mut service) = serde_json::from_slice::<Value>(&stored.json) else { return };
        let status = if finding.reason == "Passed" { "True" } else { "False" };
        let conditions = array_at(&service, "/status/conditions");
        let before = conditions.iter().find(|c| str_at(c, "/type") == "Available");
        let same = |field: &str, value: &str| before.is_some_and(|c| str_at(c, field) == value);
        if same("/status", status) && same("/reason", finding.reason) && same("/message", &finding.message) {
            return;
        }
        let since = match before {
            Some(condition) if same("/status", status) => str_at(condition, "/lastTransitionTime").to_owned(),
            _ => timestamp(state.clock.now()),
        };
        let mut all: Vec<Value> =
            conditions.iter().filter(|c| str_at(c, "/type") != "Available").cloned().collect();
        all.push(json!({"type": "Available", "status": status, "reason": finding.reason, "message": finding.message, "lastTransitionTime": since}));
        set(&mut service, "/status/conditions", all.into());
        if put(state, resource, &remote.name, Expect::Revision(stored.revision), &service).await.is_ok() {
            return;
        }
    }
}
