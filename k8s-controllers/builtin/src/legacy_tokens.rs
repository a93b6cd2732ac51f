//! Cleaner of legacy tokens: Secrets with tokens that were made for an account on their own, and that nobody
//! has used for a long time.
//!
//! The API server labels a Secret with the day on which its token was last used, and records in a ConfigMap
//! since when it does so. A Secret that its account lists, that no pod mentions and that was not used for the
//! clean-up period is first labelled as invalid, and deleted after another period. Days are of UTC.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use k8s_controllers::{Action, Context, Controller, Environment, Error, Reconcile};
use k8s_core::{
    api::{
        api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount},
        apimachinery::pkg::apis::meta::v1::Preconditions,
    },
    client::{DeleteOptions, ListParams},
    meta::ObjectExt,
};
use serde_json::{Value, json};
use tracing::warn;

use super::Options;

const TYPE: &str = "kubernetes.io/service-account-token";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// The ConfigMap of kube-system that tells since when the use of tokens is recorded.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
/// Time between two looks at a Secret, as upstream's between two passes.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

pub(super) fn start(mut environment: Environment, options: Options) -> BoxFuture<'static, ()> {
    let fields = format!("type={TYPE}");
    environment.caches = environment.caches.scoped::<Secret>(ListParams { fields, ..ListParams::default() });
    Controller::<Secret>::new()
        .named("legacy-service-account-token-cleaner")
        .reads::<ServiceAccount>()
        .run_in(environment, Cleaner { period: options.legacy_token_clean_up_period })
}

struct Cleaner {
    period: Duration,
}

/// The fate of a Secret, as far as it alone decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Keep,
    Mark,
    Delete,
}

fn day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

/// Decides about a Secret that nothing uses; `since` is the day when recording began.
fn fate(secret: &Secret, now: Timestamp, since: Date, period: Duration) -> Fate {
    let period = SignedDuration::try_from(period).unwrap_or(SignedDuration::MAX);
    let Ok(border) = now.checked_sub(period) else { return Fate::Keep };
    // The first day may be recorded in part.
    let recorded = since.tomorrow().is_ok_and(|first| first <= day(border));
    let created = secret.metadata.creation_timestamp.as_ref().map(|time| time.0);
    if !recorded || created.is_none_or(|created| created >= border) || secret.is_deleting() {
        return Fate::Keep;
    }
    match secret.label(LAST_USED).map(str::parse::<Date>) {
        Some(Ok(used)) if used < day(border) => {}
        // Without a label it was not used since recording began.
        None => {}
        Some(_) => return Fate::Keep,
    }
    match secret.label(INVALID_SINCE).and_then(|since| since.parse::<Date>().ok()) {
        None => Fate::Mark,
        Some(since) if since >= day(border) => Fate::Keep,
        Some(_) => Fate::Delete,
    }
}

/// Returns true if a text of the value is this name. Names of other things keep a Secret, too.
fn mentions(value: &Value, name: &str) -> bool {
    match value {
        Value::String(text) => text == name,
        Value::Array(items) => items.iter().any(|item| mentions(item, name)),
        Value::Object(fields) => fields.values().any(|field| mentions(field, name)),
        _ => false,
    }
}

impl Reconcile for Cleaner {
    type Kind = Secret;

    async fn reconcile(&self, cx: &Context, secret: Arc<Secret>) -> Result<Action, Error> {
        if secret.type_.as_deref() != Some(TYPE) || secret.is_deleting() || !is_listed(cx, &secret) {
            return Ok(Action::requeue_after(AGAIN));
        }
        let now = cx.clock().now();
        let day_one = Date::constant(1970, 1, 1);
        if fate(&secret, now, day_one, self.period) == Fate::Keep {
            return Ok(Action::requeue_after(AGAIN));
        }
        let tracking = cx.api::<ConfigMap>("kube-system").get_opt(TRACKING).await?;
        let since =
            tracking.and_then(|map| map.data).and_then(|data| data.get("since")?.parse::<Date>().ok());
        let Some(since) = since else {
            warn!("the ConfigMap kube-system/{TRACKING} has no day: no unused token is cleaned");
            return Ok(Action::requeue_after(AGAIN));
        };
        let fate = fate(&secret, now, since, self.period);
        if fate == Fate::Keep || is_mentioned(cx, &secret).await {
            return Ok(Action::requeue_after(AGAIN));
        }
        if fate == Fate::Mark {
            let labels = json!({INVALID_SINCE: day(now).to_string()});
            cx.merge(&*secret, &json!({"metadata": {"uid": secret.uid(), "labels": labels}})).await?;
            return Ok(Action::requeue_after(AGAIN));
        }
        // Not if it was used since it was read.
        let resource_version = secret.metadata.resource_version.clone();
        let options = DeleteOptions {
            preconditions: Some(Preconditions { resource_version, ..Preconditions::default() }),
            ..DeleteOptions::default()
        };
        match cx.delete(&*secret, options).await {
            Err(Error::Api(e)) if e.is_not_found() || e.is_conflict() => {}
            done => done?,
        }
        Ok(Action::await_change())
    }
}

/// Returns true if the Secret's account lists it: that of one who made it by hand does not.
fn is_listed(cx: &Context, secret: &Secret) -> bool {
    let name = secret.annotation(ACCOUNT).unwrap_or_default();
    let uid = secret.annotation(ACCOUNT_UID).unwrap_or_default();
    let account = cx.caches().of::<ServiceAccount>().get(secret.namespace(), name);
    account.filter(|account| uid.is_empty() || account.uid() == uid).is_some_and(|account| {
        account.secrets.iter().flatten().any(|listed| listed.name.as_deref() == Some(secret.name()))
    })
}

/// Returns true if a pod of the namespace mentions the Secret. The shared cache has no volumes of pods, and
/// few Secrets come so far.
async fn is_mentioned(cx: &Context, secret: &Secret) -> bool {
    let fields = format!("metadata.namespace={}", secret.namespace());
    let whole = cx.caches().clone().trimmed::<Pod>(|_| {});
    // They fill the cache while they live.
    let scoped = whole.scoped::<Pod>(ListParams { fields, ..ListParams::default() });
    let pods = scoped.of::<Pod>();
    pods.synced().await;
    let specs = pods.list();
    let mut specs = specs.iter().filter_map(|pod| serde_json::to_value(&pod.spec).ok());
    specs.any(|spec| mentions(&spec, secret.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_marked_and_later_deleted() {
        const DAY: u64 = 24 * 3600;
        let now: Timestamp = "2026-06-30T12:00:00Z".parse().unwrap();
        let secret = |created: &str, used: &str, invalid: &str| {
            let mut labels = serde_json::Map::new();
            for (key, value) in [(LAST_USED, used), (INVALID_SINCE, invalid)] {
                if !value.is_empty() {
                    labels.insert(key.into(), value.into());
                }
            }
            let metadata = json!({"name": "s", "creationTimestamp": created, "labels": labels});
            serde_json::from_value::<Secret>(json!({"metadata": metadata})).unwrap()
        };
        let old = "2020-01-01T00:00:00Z";
        for (created, used, invalid, since, want) in [
            (old, "", "", "2026-01-01", Fate::Mark),
            (old, "2026-05-30", "", "2026-01-01", Fate::Mark),
            (old, "2026-05-31", "", "2026-01-01", Fate::Keep),
            (old, "yesterday", "", "2026-01-01", Fate::Keep),
            (old, "", "", "2026-05-30", Fate::Mark),
            (old, "", "", "2026-05-31", Fate::Keep),
            ("2026-06-01T00:00:00Z", "", "", "2026-01-01", Fate::Keep),
            (old, "", "2026-05-30", "2026-01-01", Fate::Delete),
            (old, "", "2026-06-29", "2026-01-01", Fate::Keep),
            (old, "", "soon", "2026-01-01", Fate::Mark),
            // A token that was tried after it was marked.
            (old, "2026-06-29", "2026-05-01", "2026-01-01", Fate::Keep),
        ] {
            let found = fate(
                &secret(created, used, invalid),
                now,
                since.parse().unwrap(),
                Duration::from_secs(30 * DAY),
            );
            assert_eq!(found, want, "{created} {used} {invalid} {since}");
        }
    }

    #[test]
    fn a_name_anywhere_in_a_pod_counts() {
        let spec = json!({"volumes": [{"projected": {"sources": [{"secret": {"name": "s"}}]}}]});
        assert!(mentions(&spec, "s") && !mentions(&spec, "t"));
    }
}
