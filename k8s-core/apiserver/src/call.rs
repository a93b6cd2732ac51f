//! A request in the pipeline, and the options in its query.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::header;
use k8s_core::status::ApiStatus;
use serde_json::Value;

use crate::{
    invalid::FieldErrors,
    request::{Query, RequestInfo},
    resources::{Registry, Resource},
    user::User,
};

/// A request in the pipeline.
pub(crate) struct Call {
    pub(crate) info: RequestInfo,
    pub(crate) query: Query,
    pub(crate) user: User,
    pub(crate) headers: http::HeaderMap,
    pub(crate) registry: Arc<Registry>,
    pub(crate) warnings: Mutex<Vec<String>>,
    /// Annotations of the request's audit events.
    pub(crate) annotations: Mutex<BTreeMap<String, String>>,
    /// The resource of the request, if it is of a version that a webhook converts: handlers see the stored
    /// version.
    pub(crate) asked: Option<Arc<Resource>>,
    /// Charges of quotas for an object that is not stored yet.
    pub(crate) charges: Mutex<Vec<Charge>>,
    /// Time spent waiting for webhooks, in nanoseconds; shared with inner requests.
    pub(crate) waited: Arc<AtomicU64>,
}

/// A charge of a quota.
pub(crate) struct Charge {
    /// Key of the quota.
    pub(crate) quota: Arc<str>,
    pub(crate) amounts: k8s_quota::Amounts,
    pub(crate) at: jiff::Timestamp,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Headers hold credentials.
        f.debug_struct("Call").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Call {
    pub(crate) fn warn(&self, warning: String) {
        self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(warning);
    }

    /// Warns, unless the same was said already.
    pub(crate) fn warn_once(&self, warning: String) {
        let mut all = self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !all.contains(&warning) {
            all.push(warning);
        }
    }

    /// Notes that the request waited for a webhook.
    pub(crate) fn wait(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Returns the time that the request waited for webhooks.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    /// Adds an annotation to the request's audit events. The first value of a key stays.
    pub(crate) fn annotate(&self, key: String, value: String) {
        let mut all = self.annotations.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.entry(key).or_insert(value);
    }

    /// Takes the annotations of the request's audit events.
    pub(crate) fn annotated(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut *self.annotations.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// The same request, to be changed; its warnings and annotations are its own.
    pub(crate) fn inner(&self) -> Call {
        Call {
            info: self.info.clone(),
            query: self.query.clone(),
            user: self.user.clone(),
            headers: self.headers.clone(),
            registry: self.registry.clone(),
            warnings: Mutex::default(),
            annotations: Mutex::default(),
            asked: self.asked.clone(),
            charges: Mutex::default(),
            waited: self.waited.clone(),
        }
    }

    /// Takes the warnings and audit annotations of an inner request.
    pub(crate) fn take_notes(&self, inner: &Call) {
        inner.warned().into_iter().for_each(|warning| self.warn(warning));
        inner.annotated().into_iter().for_each(|(key, value)| self.annotate(key, value));
    }

    /// Takes the texts of the response's `Warning` headers.
    pub(crate) fn warned(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// The field manager of a write: what the request says, else the client's name.
    pub(crate) fn manager(&self) -> String {
        let named = self.query.get("fieldManager");
        if !named.is_empty() {
            return named.to_owned();
        }
        let agent = self.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
        agent.split('/').next().unwrap_or(agent).chars().take(128).collect()
    }
}

/// Returns true if the query asks for a dry run.
///
/// # Errors
/// 422 for another value than `All`.
pub(crate) fn dry_run(call: &Call, options: &str) -> Result<bool, ApiStatus> {
    match call.query.get("dryRun") {
        "" => Ok(false),
        asked => dry_run_of(&[asked.into()], options),
    }
}

/// Returns true if the `dryRun` of options in a body asks for a dry run.
///
/// # Errors
/// 422 for another value than `All`.
pub(crate) fn dry_run_of(asked: &[Value], options: &str) -> Result<bool, ApiStatus> {
    if asked.iter().all(|value| value == "All") {
        return Ok(!asked.is_empty());
    }
    let mut errors = FieldErrors::default();
    errors.not_supported("dryRun", asked.to_vec(), &["All"]);
    Err(errors.into_status("meta.k8s.io", options, ""))
}
