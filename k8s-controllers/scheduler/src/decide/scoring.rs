//! The choice of one of the feasible nodes by its scores.

use rand::{Rng, rngs::StdRng};

use super::{
    Profile, Trace,
    memo::{Memo, NOT},
};
use crate::{Cycle, NodeInfo, PodInfo, Points, feasible::Feasible};

/// Scores that are known before plugins are asked.
pub(super) struct Known<'m> {
    /// The kept scores of all feasible nodes, if they are there.
    pub(super) memo: Option<&'m Memo>,
    /// The extenders' part of the scores in the order of the feasible nodes, if there are any.
    pub(super) added: &'m [i64],
}

/// One choice. `totals` stays empty while the sums of the memo are all that counts.
struct Scoring<'s, 'a, T> {
    feasible: &'s Feasible<'a>,
    pod: &'s PodInfo,
    trace: &'s mut T,
    totals: Vec<i64>,
    scores: Vec<i64>,
    nodes: Vec<&'a NodeInfo>,
}

impl Profile {
    /// Returns true if a memo keeps the scores of a row.
    pub(super) fn keeps_score(&self, row: usize) -> bool {
        let row = &self.rows[row];
        // The other plugins' preparation may depend on all nodes.
        row.score.is_some()
            && row.per_node.as_ref().is_some_and(|plugin| row.pre_score.is_none() || !plugin.reads_all())
    }

    /// Returns the index of the node with the highest score; one of several is chosen by chance, with equal
    /// probability.
    pub(super) fn best<'a, T: Trace>(
        &self,
        cx: &mut Cycle<'a>,
        pod: &PodInfo,
        feasible: &Feasible<'a>,
        known: &Known<'_>,
        rng: &mut StdRng,
        trace: &mut T,
    ) -> usize {
        if feasible.len() == 1 && !T::FULL {
            return feasible.slots().first().map_or(0, |slot| *slot as usize);
        }
        let (totals, scores, nodes) = (Vec::new(), Vec::new(), Vec::new());
        let mut scoring = Scoring { feasible, pod, trace, totals, scores, nodes };
        // An explanation shows each score.
        let memo = known.memo.filter(|_| !T::FULL);
        if !known.added.is_empty() {
            scoring.begin(memo);
            scoring
                .totals
                .iter_mut()
                .zip(known.added)
                .for_each(|(total, score)| *total = total.saturating_add(*score));
        }
        for (at, row) in self.rows.iter().enumerate().filter(|(_, row)| row.score.is_some()) {
            let kept = self.keeps_score(at);
            if kept && memo.is_some() && row.normalize.is_none() {
                continue;
            }
            scoring.row(cx, row, memo, memo.filter(|_| kept).and_then(|memo| memo.raw(at)));
        }
        if scoring.totals.is_empty()
            && let Some(memo) = memo
            && feasible.by_verdicts()
        {
            return highest(memo.fixed(), rng);
        }
        scoring.begin(memo);
        let best = highest(&scoring.totals, rng);
        feasible.slots().get(best).map_or(0, |slot| *slot as usize)
    }
}

impl<'a, T: Trace> Scoring<'_, 'a, T> {
    /// Starts the totals of the nodes with the sums that the memo has.
    fn begin(&mut self, memo: Option<&Memo>) {
        if !self.totals.is_empty() {
            return;
        }
        let slots = self.feasible.slots();
        self.scores = vec![0; slots.len()];
        self.totals = match memo {
            None => vec![0; slots.len()],
            Some(memo) => {
                slots.iter().map(|slot| memo.fixed().get(*slot as usize).copied().unwrap_or(NOT)).collect()
            }
        };
    }

    /// Adds the scores of a row. `raw` has the raw ones of all nodes if they are known.
    fn row(&mut self, cx: &mut Cycle<'a>, row: &Points, memo: Option<&Memo>, raw: Option<&[i64]>) {
        let (feasible, pod) = (self.feasible, self.pod);
        let Some(score) = &row.score else { return };
        let needs_nodes = raw.is_none() && row.at_once.is_none() && row.per_node.is_none();
        if (needs_nodes || T::FULL) && self.nodes.is_empty() {
            self.nodes = feasible.nodes(cx.cluster());
        }
        let wanted = match (&row.at_once, &row.pre_score) {
            (Some(plugin), Some(_)) => plugin.pre_score(cx, pod, feasible),
            (None, Some(plugin)) => plugin.pre_score(cx, pod, &self.nodes),
            (_, None) => true,
        };
        if !wanted {
            return;
        }
        self.begin(memo);
        let slots = feasible.slots();
        match (raw, &row.at_once) {
            (Some(raw), _) => {
                for (to, slot) in self.scores.iter_mut().zip(slots) {
                    *to = raw.get(*slot as usize).copied().unwrap_or(0);
                }
            }
            (None, Some(plugin)) => plugin.score(cx, pod, slots, &mut self.scores),
            (None, None) => {
                let nodes = cx.cluster().nodes();
                for (to, slot) in self.scores.iter_mut().zip(slots) {
                    *to = nodes.get(*slot as usize).map_or(0, |node| score.score(cx, pod, node));
                }
            }
        }
        let before = if T::FULL { self.scores.clone() } else { Vec::new() };
        match (&row.normalize, &row.at_once) {
            (None, _) => {}
            (Some(_), Some(plugin)) => plugin.normalize(cx, slots, &mut self.scores),
            (Some(plugin), None) => plugin.normalize(cx, pod, &self.nodes, &mut self.scores),
        }
        self.trace.scored(&row.name, row.weight, &self.nodes, &before, &self.scores);
        for (total, score) in self.totals.iter_mut().zip(&self.scores) {
            *total = total.saturating_add(row.weight.saturating_mul(*score));
        }
    }
}

/// Returns the index of the largest value; one of several by chance.
fn highest(values: &[i64], rng: &mut StdRng) -> usize {
    let (mut most, mut ties) = (NOT, 0);
    for value in values {
        if *value > most {
            (most, ties) = (*value, 1);
        } else {
            ties += usize::from(*value == most);
        }
    }
    let chosen = if ties > 1 { rng.random_range(0..ties) } else { 0 };
    let mut tied = values.iter().enumerate().filter(|(_, value)| **value == most);
    tied.nth(chosen).map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn the_highest_is_chosen_and_equal_ones_by_chance() {
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!((highest(&[3], &mut rng), highest(&[NOT, -5, NOT], &mut rng)), (0, 1));
        let mut counts = [0; 5];
        for _ in 0..3000 {
            counts[highest(&[7, 9, NOT, 9, 9], &mut rng)] += 1;
        }
        assert_eq!((counts[0], counts[2]), (0, 0));
        assert!([1, 3, 4].iter().all(|at| (900..1100).contains(&counts[*at])), "{counts:?}");
    }
}
