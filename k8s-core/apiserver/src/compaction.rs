//! Forgets old history: every five minutes what was history five minutes before, as upstream's compactor.

#![expect(clippy::disallowed_methods, reason = "the task ends when the server is dropped")]

use std::sync::Arc;

use crate::state::State;

/// Starts the task. It ends when the server is dropped.
pub(crate) fn start(state: &Arc<State>) {
    let (weak, every) = (Arc::downgrade(state), state.pace.compact_every);
    if every.is_zero() {
        return;
    }
    let mut before = state.store.revision();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            let Some(state) = weak.upgrade() else { return };
            state.store.compact(before);
            before = state.store.revision();
        }
    });
}
