//! Annotation of nodes with the time that kubelets may keep ConfigMaps and Secrets without asking again,
//! which grows with the cluster.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use futures::{FutureExt, future::BoxFuture};
use k8s_core::{api::api::core::v1::Node, meta::ObjectExt};
use serde_json::json;

use crate::Options;
use k8s_controllers::{Action, Context, Controller, Environment, Error, Reconcile, predicates};

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

/// The time that the number of nodes asks for.
#[derive(Default)]
struct Step {
    present: Mutex<usize>,
    /// Place of the step that all nodes were last told of.
    told: AtomicUsize,
}

impl Step {
    /// Returns the place of the step for a number of nodes.
    fn advance(&self, nodes: usize) -> usize {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        *present = next(*present, nodes);
        *present
    }

    /// Returns true once after each change of the step.
    fn is_news(&self, nodes: usize) -> bool {
        let step = self.advance(nodes);
        self.told.swap(step, Ordering::SeqCst) != step
    }
}

/// Runs the controller.
pub(crate) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    let step = Arc::new(Step::default());
    let shared = step.clone();
    let number = predicates::changed(|node: &Node| node.metadata.uid.clone());
    Controller::<Node>::new()
        .named("ttl-controller")
        .watches_when::<Node>(number, move |caches, _| {
            let all = caches.of::<Node>();
            if shared.is_news(all.len()) {
                all.list().iter().map(|node| node.key()).collect()
            } else {
                Vec::new()
            }
        })
        .run_in(environment, NodeTtl(step))
        .boxed()
}

/// Writes the annotation.
struct NodeTtl(Arc<Step>);

impl Reconcile for NodeTtl {
    type Kind = Node;

    async fn reconcile(&self, cx: &Context, node: Arc<Node>) -> Result<Action, Error> {
        let seconds = STEPS[self.0.advance(cx.caches().of::<Node>().len())].2.to_string();
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
