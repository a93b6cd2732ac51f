//! Computes the size of each ReplicaSet. Pure.
//!
//! A ReplicaSet's available pods are read from its status and capped at its size: pods that it is about to
//! delete must not be relied on.

use k8s_core::api::{api::apps::v1::Deployment, apimachinery::pkg::util::intstr::IntOrString};

/// Limits of a rollout, resolved from the Deployment's spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) replicas: i32,
    /// Maximum number of pods above `replicas`.
    pub(super) max_surge: i32,
    /// Maximum number of unavailable pods below `replicas`.
    pub(super) max_unavailable: i32,
}

/// The fields of a ReplicaSet that the plan needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SetView {
    pub(super) uid: String,
    pub(super) size: i32,
    pub(super) available: i32,
    /// Upper bound on existing pods. `None`: the ReplicaSet controller has not observed the last resize.
    pub(super) pods: Option<i32>,
    /// The Deployment's `replicas` at the time of sizing.
    pub(super) desired: Option<i32>,
    /// `replicas + maxSurge` at the time of sizing.
    pub(super) max: Option<i32>,
}

#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) new: Option<SetView>,
    /// Sorted by age, oldest first.
    pub(super) old: Vec<SetView>,
}

/// A new size for a ReplicaSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) uid: String,
    pub(super) size: i32,
}

/// Resolves a number or a percentage of `total`.
pub(crate) fn scaled(value: &IntOrString, total: i32, round_up: bool) -> Option<i32> {
    match value {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
            let product = percent * i64::from(total);
            let result = if round_up {
                product.div_euclid(100) + i64::from(product % 100 != 0)
            } else {
                product / 100
            };
            i32::try_from(result).ok()
        }
    }
}

impl Bounds {
    pub(super) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.clone().unwrap_or_default();
        let replicas = spec.replicas.unwrap_or(1).max(0);
        let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.clone());
        if super::is_recreate(deployment) {
            return Bounds { replicas, max_surge: 0, max_unavailable: 0 };
        }
        let quarter = IntOrString::String("25%".into());
        let surge = rolling.as_ref().and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter);
        let unavailable = rolling.as_ref().and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter);
        let max_surge = scaled(surge, replicas, true).unwrap_or(1).max(0);
        let mut max_unavailable = scaled(unavailable, replicas, false).unwrap_or(0).clamp(0, replicas);
        if max_surge == 0 && max_unavailable == 0 {
            // Both round to zero. With neither, the rollout could never progress.
            max_unavailable = 1.min(replicas);
        }
        Bounds { replicas, max_surge, max_unavailable }
    }

    fn most(&self) -> i32 {
        self.replicas.saturating_add(self.max_surge)
    }

    pub(super) fn fewest_available(&self) -> i32 {
        self.replicas - self.max_unavailable
    }
}

impl View {
    fn all(&self) -> impl Iterator<Item = &SetView> {
        self.old.iter().chain(&self.new)
    }

    fn total(&self) -> i32 {
        self.all().map(|s| s.size).sum()
    }

    /// Returns the maximum number of existing pods, including those not yet deleted after a scale-down.
    /// `None` if unknown.
    pub(super) fn pods(&self) -> Option<i32> {
        self.all().map(|s| s.pods.map(|pods| pods.max(s.size))).sum()
    }
}

/// Returns the size of the current ReplicaSet, whose size is `now`, when all pods together are `total`.
pub(super) fn size_of_new(bounds: &Bounds, now: i32, total: i32) -> i32 {
    if now >= bounds.replicas {
        return bounds.replicas;
    }
    now + (bounds.most() - total).clamp(0, bounds.replicas - now)
}

/// Scales up the current ReplicaSet as far as maxSurge allows.
pub(super) fn grow_new(bounds: &Bounds, view: &View) -> Vec<Size> {
    let Some(new) = &view.new else { return Vec::new() };
    let size = match view.pods() {
        Some(total) => size_of_new(bounds, new.size, total),
        // The previous resize was not observed yet: wait for it.
        None => new.size.min(bounds.replicas),
    };
    vec![Size { uid: new.uid.clone(), size }]
}

/// Scales down old ReplicaSets: first their unavailable pods, then as many as maxUnavailable allows.
pub(super) fn shrink_old(bounds: &Bounds, view: &View) -> Vec<Size> {
    let Some(new) = &view.new else { return Vec::new() };
    let unavailable_new = new.size - new.available;
    // Assume that no unavailable pod of the current ReplicaSet becomes available.
    let budget = view.total() - bounds.fewest_available() - unavailable_new;
    if budget <= 0 {
        return Vec::new();
    }
    let mut old = view.old.clone();
    let mut left = budget;
    for set in &mut old {
        let sick = (set.size - set.available).clamp(0, left);
        set.size -= sick;
        left -= sick;
    }
    let available: i32 = old.iter().map(|s| s.available.min(s.size)).sum::<i32>() + new.available;
    let mut left = available - bounds.fewest_available();
    for set in &mut old {
        let healthy = set.size.clamp(0, left.max(0));
        set.size -= healthy;
        left -= healthy;
    }
    old.iter()
        .zip(&view.old)
        .filter(|(after, before)| after.size != before.size)
        .map(|(after, _)| Size { uid: after.uid.clone(), size: after.size })
        .collect()
}

/// Sizes after a change of `replicas`, or while the Deployment is paused.
pub(super) fn scale(bounds: &Bounds, view: &View, recreate: bool) -> Vec<Size> {
    let active: Vec<&SetView> = view.all().filter(|s| s.size > 0).collect();
    let size = |set: &SetView, size: i32| Size { uid: set.uid.clone(), size };
    // A single active ReplicaSet (or none) gets the whole number.
    let only = match active.as_slice() {
        [] => view.new.as_ref().or(view.old.last()),
        [one] => Some(*one),
        _ => None,
    };
    // Scaling up must wait until scaled-down pods are gone.
    let settled = view.pods() == Some(view.total());
    if let Some(only) = only {
        let grows = bounds.replicas > only.size;
        return if grows && !settled { Vec::new() } else { vec![size(only, bounds.replicas)] };
    }
    if active.is_empty() {
        return Vec::new();
    }
    // The current ReplicaSet is complete: scale the old ones to zero.
    if let Some(new) = &view.new
        && new.size == bounds.replicas
        && new.desired == Some(bounds.replicas)
        && new.available == bounds.replicas
    {
        return view.old.iter().filter(|s| s.size > 0).map(|s| size(s, 0)).collect();
    }
    if recreate || (bounds.most() > view.total() && !settled) {
        return Vec::new();
    }
    proportional(bounds, &active)
}

/// Distributes a change of `replicas` over all active ReplicaSets in proportion to their sizes.
fn proportional(bounds: &Bounds, active: &[&SetView]) -> Vec<Size> {
    let total: i32 = active.iter().map(|s| s.size).sum();
    let allowed = if bounds.replicas > 0 { bounds.most() } else { 0 };
    let change = allowed - total;
    // Largest first; among equals the newest first when scaling up, the oldest first when scaling down.
    let newest_first = active.iter().rev().copied();
    let mut order: Vec<&SetView> = if change > 0 { newest_first.collect() } else { active.to_vec() };
    order.sort_by_key(|s| std::cmp::Reverse(s.size));
    let mut left = change;
    let mut sizes: Vec<(String, i32)> = Vec::new();
    for set in order {
        let share = if change == 0 { 0 } else { share(bounds, set, change, left) };
        left -= share;
        sizes.push((set.uid.clone(), set.size + share));
    }
    if let Some((_, first)) = sizes.first_mut() {
        *first = (*first + left).max(0);
    }
    sizes.into_iter().map(|(uid, size)| Size { uid, size }).collect()
}

/// Returns one ReplicaSet's share of a change, in proportion to the total at the time of sizing and limited
/// to `left`.
fn share(bounds: &Bounds, set: &SetView, change: i32, left: i32) -> i32 {
    if set.size == 0 || left == 0 {
        return 0;
    }
    let part = if bounds.replicas == 0 {
        -set.size
    } else {
        let before =
            set.max.filter(|m| *m > 0).unwrap_or_else(|| set.desired.unwrap_or(bounds.replicas).max(1));
        let exact = f64::from(set.size) * f64::from(bounds.most()) / f64::from(before);
        // Sizes are far below 2^31, so the rounded number fits.
        #[allow(clippy::cast_possible_truncation)]
        let rounded = exact.round() as i32;
        rounded - set.size
    };
    if change > 0 { part.clamp(0, left) } else { part.clamp(left.min(0), 0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(uid: &str, size: i32, available: i32) -> SetView {
        SetView { uid: uid.into(), size, available, pods: Some(size), desired: None, max: None }
    }

    #[test]
    fn percentages_round_as_upstream() {
        for (text, total, up, want) in [
            ("25%", 3, true, 1),
            ("25%", 3, false, 0),
            ("50%", 5, true, 3),
            ("0%", 9, true, 0),
            ("100%", 4, false, 4),
        ] {
            assert_eq!(scaled(&IntOrString::String(text.into()), total, up), Some(want), "{text} of {total}");
        }
        assert_eq!(scaled(&IntOrString::String("x".into()), 1, true), None);
    }

    fn sized(all: &mut [(i32, i32)], sizes: &[Size], bounds: &Bounds) {
        for s in sizes {
            let at: usize = s.uid.parse().unwrap();
            assert!(s.size >= 0 && s.size <= bounds.most());
            all[at].0 = s.size;
        }
    }

    proptest! {
        /// Whatever the order in which pods become available, and however stale the statuses are, a rollout
        /// keeps its limits and ends.
        #[test]
        fn rolls_within_bounds(
            replicas in 1..30i32,
            surge in 0..10i32,
            unavailable in 0..10i32,
            olds in proptest::collection::vec(0..15i32, 1..4),
            seeds in proptest::collection::vec(any::<u8>(), 200),
        ) {
            let max_unavailable = if surge == 0 { unavailable.max(1) } else { unavailable }.min(replicas);
            let bounds = Bounds { replicas, max_surge: surge, max_unavailable };
            // (size, available pods); the current one is last. Start: complete, with `replicas` spread over
            // the old ones.
            let mut sets: Vec<(i32, i32)> = Vec::new();
            let mut left = replicas;
            for (i, o) in olds.iter().enumerate() {
                let n = if i + 1 == olds.len() { left } else { (*o).min(left) };
                left -= n;
                sets.push((n, n));
            }
            sets.push((0, 0));
            let new = sets.len() - 1;
            let mut stale = sets.clone(); // what statuses say
            let mut seeds = seeds.into_iter().cycle();
            for round in 0..2000 {
                let view = View {
                    new: Some(set(&new.to_string(), sets[new].0, stale[new].1.min(sets[new].0))),
                    old: (0..new).map(|i| set(&i.to_string(), sets[i].0, stale[i].1.min(sets[i].0))).collect(),
                };
                let grow = grow_new(&bounds, &view);
                if grow.iter().any(|s| s.size != sets[new].0) {
                    sized(&mut sets, &grow, &bounds);
                } else {
                    let shrink = shrink_old(&bounds, &view);
                    sized(&mut sets, &shrink, &bounds);
                }
                prop_assert!(sets.iter().map(|s| s.0).sum::<i32>() <= bounds.most(), "surge");
                // The ReplicaSet controller deletes unavailable pods first.
                for s in &mut sets { s.1 = s.1.min(s.0); }
                prop_assert!(sets.iter().map(|s| s.1).sum::<i32>() >= bounds.fewest_available(), "availability in round {round}");
                let seed = seeds.next().unwrap_or(0);
                if seed & 1 == 1 && sets[new].1 < sets[new].0 { sets[new].1 += 1; }
                if seed & 6 != 0 || round > 1000 { stale = sets.clone(); }
                if round > 1000 && sets[new].1 < sets[new].0 { sets[new].1 += 1; }
            }
            prop_assert_eq!(sets[new], (replicas, replicas));
            prop_assert!(sets[..new].iter().all(|s| s.0 == 0));
        }

        /// Scaling during a rollout keeps the new limits.
        #[test]
        fn scales_in_proportion(before in 2..50i32, after in 0..100i32, surge in 0..10i32, old in 1..50i32, new in 1..50i32) {
            let most = before + surge;
            let old = old.min(most - 1);
            let new = 1 + (new - 1) % (most - old);
            let with = |uid: &str, size| SetView { uid: uid.into(), size, available: 0, pods: Some(size), desired: Some(before), max: Some(most) };
            let bounds = Bounds { replicas: after, max_surge: surge, max_unavailable: 0 };
            let view = View { new: Some(with("new", new)), old: vec![with("old", old)] };
            let sizes = scale(&bounds, &view, false);
            let total: i32 = sizes.iter().map(|s| s.size).sum();
            let allowed = if after == 0 { 0 } else { after + surge };
            prop_assert_eq!(total, allowed, "{:?}", sizes);
            prop_assert!(sizes.iter().all(|s| s.size >= 0));
        }
    }
}
