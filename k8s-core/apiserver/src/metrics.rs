//! `/metrics`, in Prometheus' text format.

use std::sync::Arc;

use crate::state::State;

/// Returns all metrics: the number of stored objects of each kind.
pub(crate) fn text(state: &Arc<State>) -> String {
    let mut out = String::from(
        "# HELP apiserver_storage_objects Number of stored objects by kind.\n# TYPE apiserver_storage_objects gauge\n",
    );
    let mut seen = Vec::new();
    for resource in state.registry.now().all() {
        if seen.contains(&resource.storage) {
            continue;
        }
        seen.push(resource.storage.clone());
        let count = state.store.snapshot(&resource.storage).len();
        out.push_str(&format!("apiserver_storage_objects{{resource=\"{}\"}} {count}\n", resource.storage));
    }
    out
}
