//! Decides on resizes: whether the node has room for what pods ask for anew.
//!
//! Flow: a pod's worker calls [`push`] when its pod asks for other resources than it has. The decision comes
//! back as [`Message::Resize`]. Whatever frees room calls [`retry`]: the end of a pod, another resize, and a
//! timer. Order and reasons are upstream's (`pkg/kubelet/allocation`).
//! Guarantees:
//! 1. A resize is allocated only if it fits beside what all other pods hold; check and allocation are one
//!    step ([`crate::ledger`]).
//! 2. Nothing is decided before the pods that the node had are counted.
//! 3. A critical pod preempts others for its resize, and gets the room once they have ended.
//!
//! Not here: `Infeasible`, which upstream says of nodes with swap, or with static CPU or memory managers.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::{
    admit::{self, Obstacle},
    worker::Mailbox,
    world::{Message, Verdict},
};
use crate::{context::Context, node, types::*};

/// Longest time between two attempts, as upstream.
const PERIOD: Duration = Duration::from_secs(180);

/// Tries the waiting resizes again from time to time. Runs until it is dropped.
pub(crate) async fn run(cx: Arc<Context>) {
    loop {
        cx.clock.sleep(PERIOD).await;
        retry(&cx);
    }
}

/// Begins to decide.
pub(crate) fn open(cx: &Context) {
    cx.resizes.open();
    retry(cx);
}

/// Adds the resize of a pod, and decides on all that wait.
pub(crate) fn push(cx: &Arc<Context>, pod: Arc<Pod>, mailbox: Mailbox) {
    let weak: Weak<Context> = Arc::downgrade(cx);
    let decide = move |pod: &Arc<Pod>| weak.upgrade().is_some_and(|cx| decide(&cx, pod, &mailbox));
    cx.resizes.push(pod, Box::new(decide));
    retry(cx);
}

/// Frees what a pod holds, and gives the room to resizes that wait for it.
pub(crate) fn release(cx: &Context, uid: &str) {
    cx.resizes.forget(uid);
    if cx.ledger.release(uid) {
        retry(cx);
    }
}

fn retry(cx: &Context) {
    cx.resizes.retry(|uid| cx.ledger.requests(uid));
}

/// Decides on one resize. Returns `true` if it goes on waiting.
fn decide(cx: &Context, pod: &Arc<Pod>, mailbox: &Mailbox) -> bool {
    let (node, pressure) = (node::cached(cx), cx.pressure.names());
    let decided = cx.ledger.resize(pod, |others| admit::resize(pod, &node, others, &pressure));
    // A pod without an entry is over.
    let Some(decided) = decided else { return false };
    let (verdict, waits) = match decided {
        Ok(()) => (Verdict::Allocated(pod.clone()), false),
        Err(Obstacle::Refused(refusal)) => (Verdict::Deferred(pod.clone(), refusal), true),
        Err(Obstacle::Victims(victims)) => {
            // Their end frees the room, and the decision is taken again.
            admit::preempt(cx, pod, &victims);
            return true;
        }
    };
    mailbox.send(Message::Resize(verdict));
    waits
}
