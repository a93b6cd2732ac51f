//! A decision with extenders: the same steps as one without, with requests between them.

use rand::rngs::StdRng;

use super::{Extenders, Failing};
use crate::{
    Cluster, PodInfo,
    decide::{Decision, Filtering, Fit, Kept, Profile, Trace},
    feasible::Feasible,
};

/// Decides for one pod, as [`Profile::decide`]. While the extenders refuse all nodes that were found, the
/// search goes on; each time twice as many nodes are sought, so that a few requests are enough for any
/// cluster.
///
/// # Errors
/// An extender that is not ignorable fails.
pub(crate) async fn decide<T: Trace + Send>(
    profile: &Profile,
    extenders: &Extenders,
    cluster: &Cluster,
    pod: &PodInfo,
    kept: &mut Kept,
    rng: &mut StdRng,
    trace: &mut T,
) -> Result<Decision, Failing> {
    if extenders.is_empty() {
        return Ok(profile.decide(cluster, pod, kept, rng, trace));
    }
    let mut filtering = match Filtering::start(profile, cluster, pod, kept, trace) {
        Ok(filtering) => filtering,
        Err(why) => return Ok(Decision::Nowhere(why)),
    };
    if !T::FULL
        && let Some(node) = filtering.nominated()
    {
        // An error is no end here: the search comes to the same extender.
        let passed = extenders.filter(pod, vec![node], &mut Vec::new()).await.unwrap_or_default();
        if !passed.is_empty() {
            return Ok(Decision::Fits(Fit { node: node.name().to_owned(), evaluated: 1, feasible: 1 }));
        }
    }
    let mut enough = if T::FULL { usize::MAX } else { profile.enough.of(cluster.nodes().len(), true) };
    let feasible = loop {
        let found = filtering.next(enough, trace);
        if found.is_empty() {
            return Ok(Decision::Nowhere(filtering.nowhere()));
        }
        let mut refused = Vec::new();
        let passed = extenders.filter(pod, found.nodes(cluster), &mut refused).await?;
        for refusal in refused {
            trace.refused(Some(refusal.node), refusal.by, &refusal.reject);
            filtering.refuse(refusal.node, refusal.reject);
        }
        if !passed.is_empty() {
            break passed;
        }
        enough = enough.saturating_mul(2);
    };
    let mut added = Vec::new();
    if feasible.len() > 1 || T::FULL {
        added = extenders.prioritize(pod, &feasible, trace).await;
    }
    let feasible = Feasible::of_nodes(&feasible);
    Ok(Decision::Fits(filtering.choose(&feasible, &added, rng, trace)))
}
