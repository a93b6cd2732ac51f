//! Whether a server that answers for a version does, told as the APIService's condition `Available`.

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
    value::{list, set, text},
    webhook_client::Unreachable,
};

/// How often a server that answers is asked again.
const EVERY: Duration = Duration::from_secs(30);
/// How often one that does not answer is asked again.
const SOON: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was found.
struct Finding {
    reason: &'static str,
    message: String,
}

/// Starts to ask, until the APIService is another one or the server is gone.
pub(super) fn start(state: &Arc<State>, remote: Arc<Remote>) {
    let weak = Arc::downgrade(state);
    tokio::spawn(async move {
        loop {
            let Some(state) = weak.upgrade() else { return };
            if !state.aggregator.all().iter().any(|r| Arc::ptr_eq(r, &remote)) {
                return;
            }
            let finding = ask(&state, &remote).await;
            let good = finding.reason == "Passed";
            remote.available.store(good, Ordering::Release);
            tell(&state, &remote, &finding).await;
            drop(state);
            tokio::time::sleep(if good { EVERY } else { SOON }).await;
        }
    });
}

/// Asks for the resources of the version.
async fn ask(state: &Arc<State>, remote: &Remote) -> Finding {
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let failed = |why: String| Finding {
        reason: "FailedDiscoveryCheck",
        message: format!("failing or missing response from {path}: {why}"),
    };
    let callee = match &remote.callee {
        Ok(callee) => callee,
        Err(why) => return failed(why.clone()),
    };
    let mut request = Request::new(empty_body());
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    identify(&User::new("system:kube-aggregator", &["system:masters"]), request.headers_mut());
    let answer = async {
        let response = callee.call(&state.store, request).await?;
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

/// Writes the condition where it changed.
async fn tell(state: &Arc<State>, remote: &Remote, finding: &Finding) {
    let registry = state.registry.now();
    let Some(resource) = registry.find("apiregistration.k8s.io", "v1", "apiservices") else { return };
    // Somebody else may write at the same time.
    for _ in 0..3 {
        let Some(stored) = state.store.get(STORAGE, &remote.name) else { return };
        let Ok(mut service) = serde_json::from_slice::<Value>(&stored.json) else { return };
        let status = if finding.reason == "Passed" { "True" } else { "False" };
        let conditions = list(&service, "/status/conditions");
        let before = conditions.iter().find(|c| text(c, "/type") == "Available");
        let same = |field: &str, value: &str| before.is_some_and(|c| text(c, field) == value);
        if same("/status", status) && same("/reason", finding.reason) && same("/message", &finding.message) {
            return;
        }
        let since = match before {
            Some(condition) if same("/status", status) => text(condition, "/lastTransitionTime").to_owned(),
            _ => timestamp(state.clock.now()),
        };
        let mut all: Vec<Value> =
            conditions.iter().filter(|c| text(c, "/type") != "Available").cloned().collect();
        all.push(json!({"type": "Available", "status": status, "reason": finding.reason, "message": finding.message, "lastTransitionTime": since}));
        set(&mut service, "/status/conditions", all.into());
        if put(state, resource, &remote.name, Expect::Revision(stored.revision), &service).await.is_ok() {
            return;
        }
    }
}
