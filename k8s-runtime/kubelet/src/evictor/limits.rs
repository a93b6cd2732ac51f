//! Evicts pods that exceed their limits of local storage.
//!
//! Unlike upstream, which measures every pod once a minute, only pods with limits are measured, every ten
//! seconds; large trees less often, so that reading them takes a twentieth of the time at most.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt, stream};
use k8s_core::meta::ObjectExt;

use super::{AT_ONCE, EVERY, PODS_AT_ONCE, candidates, evict, measure};
use crate::{
    context::Context,
    eviction::{local::Limits, rank::Usage},
    ledger::Entry,
    types::Timestamp,
};

/// The pause after a measurement, in multiples of the time that it took.
const REST: u32 = 20;

/// Evicts pods beyond their limits. Runs until it is dropped.
pub(crate) async fn run(cx: Arc<Context>) {
    cx.pods.synced().await;
    // Time before which a pod is not measured again, by uid.
    let mut rests: HashMap<String, Timestamp> = HashMap::new();
    loop {
        let now = cx.clock.now();
        rests.retain(|_, until| now < *until);
        let due: Vec<(Entry, Limits)> = candidates(&cx)
            .filter(|entry| !rests.contains_key(entry.pod.uid()))
            .filter_map(|entry| Some((Limits::of(entry.pod.spec.as_ref()?)?, entry)))
            .map(|(limits, entry)| (entry, limits))
            .collect();
        let mut checks =
            stream::iter(due).map(|(entry, limits)| check(&cx, entry, limits)).buffer_unordered(PODS_AT_ONCE);
        while let Some((uid, until)) = checks.next().await {
            rests.insert(uid, until);
        }
        drop(checks);
        cx.clock.sleep(EVERY).await;
    }
}

/// Measures a pod, and evicts it if it exceeds a limit. Returns its uid, and the time before which it is not
/// measured again.
async fn check(cx: &Context, entry: Entry, limits: Limits) -> (String, Timestamp) {
    let begun = cx.clock.now();
    let enough = limits.largest();
    let usage = if limits.is_of_volumes() {
        Usage { volumes: measure::volumes(cx, &entry.pod, enough).await, ..Usage::default() }
    } else {
        measure::disk(cx, &entry.pod, enough).await
    };
    if let Some(excess) = limits.exceeded(&usage) {
        evict(cx, &entry, excess.signal, AT_ONCE, (excess.message, None));
    }
    let pause = cx.clock.since(begun).saturating_mul(REST);
    (entry.pod.uid().to_owned(), cx.clock.now().saturating_add(pause).unwrap_or(begun))
}
