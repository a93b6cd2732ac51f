//! Limits of a proposed replica count: what was proposed lately, how fast the count may change, and the
//! autoscaler's bounds.

use std::time::Duration;

use jiff::Timestamp;
use k8s_core::api::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// The longest stabilization window that the API accepts; older proposals are forgotten.
const LONGEST_WINDOW: Duration = Duration::from_secs(3_600);
/// The longest period of a policy that the API accepts; older changes are forgotten.
const LONGEST_PERIOD: Duration = Duration::from_secs(1_800);

/// What an autoscaler proposed and did, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History {
    proposals: Vec<(Timestamp, i32)>,
    /// Numbers of pods added.
    added: Vec<(Timestamp, i32)>,
    /// Numbers of pods removed.
    removed: Vec<(Timestamp, i32)>,
}

/// Reason and message of a condition.
pub(super) type Why = (&'static str, &'static str);

/// A count within all limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limited {
    pub replicas: i32,
    /// For the condition `AbleToScale`.
    pub able: Why,
    /// For the condition `ScalingLimited`: its status, and why.
    pub limited: (bool, Why),
}

/// Bounds of an autoscaler, and its present count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds<'a> {
    pub least: i32,
    pub most: i32,
    pub current: i32,
    pub behavior: Option<&'a HorizontalPodAutoscalerBehavior>,
    /// Stabilization window for fewer pods where the autoscaler names none.
    pub down_window: Duration,
}

const READY: Why = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Why = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Why = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: Why = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: Why = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: Why = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const UP_LIMIT: Why =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Why =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

/// Rules of one direction, with upstream's defaults.
struct Rules {
    window: Duration,
    /// `Max`, `Min` or `Disabled`.
    select: String,
    /// Type, value and period.
    policies: Vec<(String, i32, Duration)>,
}

fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

impl Rules {
    fn of(rules: Option<&HPAScalingRules>, window: Duration, default: &[(&str, i32)]) -> Self {
        let named = rules.and_then(|r| r.policies.as_ref()).filter(|policies| !policies.is_empty());
        let default =
            || default.iter().map(|(kind, value)| ((*kind).to_owned(), *value, seconds(15))).collect();
        let all = |policies: &Vec<k8s_core::api::api::autoscaling::v2::HPAScalingPolicy>| {
            policies.iter().map(|p| (p.type_.clone(), p.value, seconds(p.period_seconds))).collect()
        };
        Rules {
            window: rules.and_then(|r| r.stabilization_window_seconds).map_or(window, seconds),
            select: rules.and_then(|r| r.select_policy.clone()).unwrap_or_else(|| "Max".to_owned()),
            policies: named.map_or_else(default, all),
        }
    }

    fn up(behavior: &HorizontalPodAutoscalerBehavior) -> Self {
        Rules::of(behavior.scale_up.as_ref(), Duration::ZERO, &[("Pods", 4), ("Percent", 100)])
    }

    fn down(behavior: &HorizontalPodAutoscalerBehavior, window: Duration) -> Self {
        Rules::of(behavior.scale_down.as_ref(), window, &[("Percent", 100)])
    }
}

fn before(now: Timestamp, ago: Duration) -> Timestamp {
    now.checked_sub(ago).unwrap_or(Timestamp::MIN)
}

/// Sum of the changes that are younger than `period`.
fn changed(events: &[(Timestamp, i32)], period: Duration, now: Timestamp) -> i32 {
    let young = events.iter().filter(|(at, _)| *at > before(now, period));
    young.fold(0, |sum: i32, (_, change)| sum.saturating_add(*change))
}

impl History {
    /// Remembers the count of an autoscaler that is new to this process: it is not reduced before a whole
    /// window has passed.
    pub(super) fn begin(&mut self, current: i32, now: Timestamp) {
        if self.proposals.is_empty() {
            self.proposals.push((now, current));
        }
    }

    /// Remembers a change of the count, for the policies of a behavior.
    pub(super) fn scaled(&mut self, from: i32, to: i32, now: Timestamp) {
        let (events, change) =
            if to > from { (&mut self.added, to - from) } else { (&mut self.removed, from - to) };
        events.retain(|(at, _)| *at > before(now, LONGEST_PERIOD));
        events.push((now, change));
    }

    /// Brings a proposed count within the limits, and remembers the proposal.
    pub(super) fn limit(&mut self, proposed: i32, bounds: &Bounds<'_>, now: Timestamp) -> Limited {
        let stabilized = match bounds.behavior {
            None => self.recent(bounds.down_window, now).fold(proposed, i32::max),
            Some(behavior) => {
                let (up, down) = (Rules::up(behavior), Rules::down(behavior, bounds.down_window));
                let floor = self.younger(up.window, now).fold(proposed, i32::min);
                let ceiling = self.younger(down.window, now).fold(proposed, i32::max);
                bounds.current.max(floor).min(ceiling)
            }
        };
        let keep = LONGEST_WINDOW.max(bounds.down_window);
        self.proposals.retain(|(at, _)| *at >= before(now, keep));
        self.proposals.push((now, proposed));
        let able = if stabilized == proposed {
            READY
        } else if bounds.behavior.is_some() && proposed >= bounds.current {
            UP_STABILIZED
        } else {
            DOWN_STABILIZED
        };
        let (replicas, why) = match bounds.behavior {
            None => bounds.plain(stabilized),
            Some(behavior) => self.at_rate(stabilized, bounds, behavior, now),
        };
        Limited { replicas, able, limited: (replicas != stabilized, why) }
    }

    /// Proposals that are not older than `window`.
    fn recent(&self, window: Duration, now: Timestamp) -> impl Iterator<Item = i32> {
        let cutoff = before(now, window);
        self.proposals.iter().filter(move |(at, _)| *at >= cutoff).map(|(_, count)| *count)
    }

    /// Proposals that are younger than `window`.
    fn younger(&self, window: Duration, now: Timestamp) -> impl Iterator<Item = i32> {
        let cutoff = before(now, window);
        self.proposals.iter().filter(move |(at, _)| *at > cutoff).map(|(_, count)| *count)
    }

    fn at_rate(
        &self,
        desired: i32,
        bounds: &Bounds<'_>,
        behavior: &HorizontalPodAutoscalerBehavior,
        now: Timestamp,
    ) -> (i32, Why) {
        let current = bounds.current;
        if desired > current {
            let limit = self.rate(current, &Rules::up(behavior), true, now).max(current);
            let (most, why) = if bounds.most > limit { (limit, UP_LIMIT) } else { (bounds.most, TOO_MANY) };
            if desired > most {
                return (most, why);
            }
        } else if desired < current {
            let rules = Rules::down(behavior, bounds.down_window);
            let limit = self.rate(current, &rules, false, now).min(current);
            let (least, why) =
                if bounds.least < limit { (limit, DOWN_LIMIT) } else { (bounds.least, TOO_FEW) };
            if desired < least {
                return (least, why);
            }
        }
        (desired, WITHIN)
    }

    /// Returns the count that the policies of one direction allow now.
    fn rate(&self, current: i32, rules: &Rules, up: bool, now: Timestamp) -> i32 {
        let allowed = rules.policies.iter().map(|(kind, value, period)| {
            let added = changed(&self.added, *period, now);
            let removed = changed(&self.removed, *period, now);
            let start = current.saturating_sub(added).saturating_add(removed);
            let share = f64::from(start) * f64::from(*value) / 100.0;
            match (kind == "Percent", up) {
                // Rounded up: 10 % of 3 pods is one more.
                (true, true) => (f64::from(start) + share).ceil() as i32,
                (true, false) => (f64::from(start) - share) as i32,
                (false, true) => start.saturating_add(*value),
                (false, false) => start.saturating_sub(*value),
            }
        });
        let farthest = (rules.select != "Min") == up;
        match rules.select.as_str() {
            "Disabled" => None,
            _ if farthest => allowed.max(),
            _ => allowed.min(),
        }
        .unwrap_or(current)
    }
}

impl Bounds<'_> {
    /// Limits without a behavior: at most twice the count, and always up to four.
    fn plain(&self, desired: i32) -> (i32, Why) {
        let limit = self.current.saturating_mul(2).max(4);
        let (most, why) = if self.most > limit { (limit, UP_LIMIT) } else { (self.most, TOO_MANY) };
        if desired < self.least {
            (self.least, TOO_FEW)
        } else if desired > most {
            (most, why)
        } else {
            (desired, WITHIN)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn behavior(value: Value) -> HorizontalPodAutoscalerBehavior {
        serde_json::from_value(value).unwrap()
    }

    /// Seconds of a made-up day.
    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + seconds).unwrap()
    }

    fn bounds(current: i32, behavior: Option<&HorizontalPodAutoscalerBehavior>) -> Bounds<'_> {
        Bounds { least: 1, most: 100, current, behavior, down_window: Duration::from_secs(300) }
    }

    #[test]
    fn without_a_behavior_a_count_falls_after_five_minutes_and_doubles_at_most() {
        let mut history = History::default();
        history.begin(10, at(0));
        let held = history.limit(2, &bounds(10, None), at(15));
        assert_eq!(held, Limited { replicas: 10, able: DOWN_STABILIZED, limited: (false, WITHIN) });
        assert_eq!(history.limit(2, &bounds(10, None), at(300)).replicas, 10, "not yet older");
        assert_eq!(history.limit(2, &bounds(10, None), at(301)).replicas, 2);
        let doubled = history.limit(9, &bounds(3, None), at(400));
        assert_eq!(doubled, Limited { replicas: 6, able: READY, limited: (true, UP_LIMIT) });
        assert_eq!(history.limit(9, &bounds(1, None), at(415)).replicas, 4, "up to four at once");
        assert_eq!(history.limit(500, &bounds(60, None), at(430)).limited, (true, TOO_MANY));
        let few = Bounds { least: 3, ..bounds(3, None) };
        assert_eq!(
            History::default().limit(0, &few, at(0)),
            Limited { replicas: 3, able: READY, limited: (true, TOO_FEW) }
        );
    }

    #[test]
    fn policies_limit_each_period_and_the_selected_one_decides() {
        let up = |select: &str| {
            behavior(
                json!({"scaleUp": {"selectPolicy": select, "stabilizationWindowSeconds": 0, "policies": [
                {"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]}}),
            )
        };
        let (max, min, off) = (up("Max"), up("Min"), up("Disabled"));
        for (behavior, wanted) in [(&max, 15), (&min, 12), (&off, 10)] {
            let limited = History::default().limit(50, &bounds(10, Some(behavior)), at(0));
            assert_eq!((limited.replicas, limited.limited), (wanted, (true, UP_LIMIT)));
        }
        // The change of this period counts from where it began.
        let mut history = History::default();
        history.scaled(10, 15, at(0));
        assert_eq!(history.limit(50, &bounds(15, Some(&max)), at(59)).replicas, 15);
        assert_eq!(history.limit(50, &bounds(15, Some(&max)), at(61)).replicas, 23, "15 and a half of it");
        let down = behavior(
            json!({"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
            {"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]}}),
        );
        let mut history = History::default();
        let limited = history.limit(1, &bounds(10, Some(&down)), at(0));
        assert_eq!((limited.replicas, limited.limited), (8, (true, DOWN_LIMIT)));
        history.scaled(10, 8, at(0));
        assert_eq!(history.limit(1, &bounds(8, Some(&down)), at(30)).replicas, 8);
        assert_eq!(history.limit(1, &bounds(8, Some(&down)), at(61)).replicas, 6);
    }

    #[test]
    fn windows_hold_both_directions() {
        let both = behavior(
            json!({"scaleUp": {"stabilizationWindowSeconds": 60}, "scaleDown": {"stabilizationWindowSeconds": 120}}),
        );
        let mut history = History::default();
        history.begin(4, at(0));
        let held = history.limit(8, &bounds(4, Some(&both)), at(15));
        assert_eq!((held.replicas, held.able), (4, UP_STABILIZED));
        let risen = history.limit(8, &bounds(4, Some(&both)), at(61));
        assert_eq!((risen.replicas, risen.able), (8, READY), "the lowest of the last minute");
        let held = history.limit(2, &bounds(8, Some(&both)), at(70));
        assert_eq!((held.replicas, held.able), (8, DOWN_STABILIZED));
        // Without a window of its own: that of the controller.
        let none = behavior(
            json!({"scaleDown": {"policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}}),
        );
        let mut history = History::default();
        history.begin(8, at(0));
        assert_eq!(history.limit(2, &bounds(8, Some(&none)), at(299)).replicas, 8);
        assert_eq!(history.limit(2, &bounds(8, Some(&none)), at(301)).replicas, 2);
    }

    proptest! {
        #[test]
        fn a_count_stays_within_its_bounds_and_never_passes_the_proposals(
            proposals in prop::collection::vec((0_i32..200, 1_i64..400), 1..30),
            (least, span) in (1_i32..10, 0_i32..50),
            with_behavior in any::<bool>(), value in 1_i32..200, window in 0_i32..600,
        ) {
            let rules = json!({"stabilizationWindowSeconds": window,
                "policies": [{"type": "Percent", "value": value, "periodSeconds": 30}]});
            let behavior = behavior(json!({"scaleUp": rules, "scaleDown": rules}));
            let (mut history, mut now, mut current) = (History::default(), 0, least);
            history.begin(current, at(0));
            let mut seen = vec![current];
            for (proposed, pause) in proposals {
                now += pause;
                seen.push(proposed);
                let bounds = Bounds { least, most: least + span, current,
                    behavior: with_behavior.then_some(&behavior), down_window: Duration::from_secs(300) };
                let limited = history.limit(proposed, &bounds, at(now));
                prop_assert!((least..=least + span).contains(&limited.replicas), "{limited:?}");
                // A change goes no farther than something that was proposed.
                let most = seen.iter().copied().max().unwrap_or(0);
                prop_assert!(limited.replicas <= most.max(current).max(least));
                if limited.replicas != current {
                    history.scaled(current, limited.replicas, at(now));
                }
                current = limited.replicas;
            }
        }
    }
}
