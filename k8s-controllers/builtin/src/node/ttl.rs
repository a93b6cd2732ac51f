//! Annotation of nodes with the time that kubelets may keep ConfigMaps and Secrets without asking again,
//! which grows with the cluster.

use std::sync::{Arc, Mutex, PoisonError};

use k8s_core::{api::api::core::v1::Node, meta::ObjectExt};
use serde_json::json;

use k8s_controllers::{Action, Context, Error, Reconcile};

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// Least and greatest number of nodes, and seconds. The steps overlap, so that a node more or less does not
/// change all annotations.
const STEPS: [(usize, usize, u32); 5] =
    [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

/// Returns the step for a number of nodes, from the present one.
fn next(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

/// Writes the annotation.
#[derive(Default)]
pub(super) struct NodeTtl {
    step: Mutex<usize>,
}

impl Reconcile for NodeTtl {
    type Kind = Node;

    async fn reconcile(&self, cx: &Context, node: Arc<Node>) -> Result<Action, Error> {
        let seconds = {
            let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
            *step = next(*step, cx.caches().of::<Node>().len());
            STEPS[*step].2.to_string()
        };
        if node.annotation(ANNOTATION) != Some(&seconds) {
            let annotations = json!({ANNOTATION: seconds});
            cx.merge(&*node, &json!({"metadata": {"uid": node.uid(), "annotations": annotations}})).await?;
        }
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_overlap() {
        let mut step = 0;
        let mut seconds = Vec::new();
        for nodes in [1, 100, 101, 90, 89, 501, 450, 449, 5000, 1800, 1799, 0] {
            step = next(step, nodes);
            seconds.push(STEPS[step].2);
        }
        assert_eq!(seconds, [0, 0, 15, 15, 0, 30, 30, 15, 300, 300, 60, 0]);
    }
}
