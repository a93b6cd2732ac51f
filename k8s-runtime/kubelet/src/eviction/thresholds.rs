//! Thresholds of eviction: signals, the amounts below which pods are evicted, and their text form.
//!
//! Names, defaults and messages are upstream's (`pkg/kubelet/eviction/helpers.go`, `ParseThresholdConfig`).

use std::{collections::BTreeMap, fmt, time::Duration};

use k8s_core::meta::Quantity;

/// A resource of a node that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// `memory.available`: bytes of memory.
    MemoryAvailable,
    /// `allocatableMemory.available`: bytes of memory that pods do not use.
    AllocatableMemoryAvailable,
    /// `nodefs.available`: bytes of the disk of volumes, logs and writable layers.
    NodeFsAvailable,
    /// `nodefs.inodesFree`: inodes of that disk.
    NodeFsInodesFree,
    /// `imagefs.available`: bytes of the disk of images.
    ImageFsAvailable,
    /// `imagefs.inodesFree`: inodes of that disk.
    ImageFsInodesFree,
    /// `pid.available`: process ids.
    PidAvailable,
}

/// Signals by their names.
const SIGNALS: [(&str, Signal); 7] = [
    ("memory.available", Signal::MemoryAvailable),
    ("allocatableMemory.available", Signal::AllocatableMemoryAvailable),
    ("nodefs.available", Signal::NodeFsAvailable),
    ("nodefs.inodesFree", Signal::NodeFsInodesFree),
    ("imagefs.available", Signal::ImageFsAvailable),
    ("imagefs.inodesFree", Signal::ImageFsInodesFree),
    ("pid.available", Signal::PidAvailable),
];

/// Signals that upstream accepts and replaces by those of `nodefs` or `imagefs`.
const IMPLIED: [&str; 2] = ["containerfs.available", "containerfs.inodesFree"];

impl Signal {
    /// Returns the name, such as `nodefs.available`.
    #[must_use]
    pub fn name(self) -> &'static str {
        SIGNALS.iter().find(|(_, signal)| *signal == self).map_or("", |(name, _)| name)
    }

    /// The resource that is short if a threshold of the signal is met.
    pub(crate) fn resource(self) -> Starved {
        match self {
            Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => Starved::Memory,
            Signal::NodeFsAvailable | Signal::ImageFsAvailable => Starved::EphemeralStorage,
            Signal::NodeFsInodesFree | Signal::ImageFsInodesFree => Starved::Inodes,
            Signal::PidAvailable => Starved::Pids,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A resource that a node is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Starved {
    Memory,
    EphemeralStorage,
    Inodes,
    Pids,
}

impl Starved {
    /// Returns the name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Starved::Memory => "memory",
            Starved::EphemeralStorage => "ephemeral-storage",
            Starved::Inodes => "inodes",
            Starved::Pids => "pids",
        }
    }
}

/// An amount of a resource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Amount {
    Fixed(Quantity),
    /// Share of the capacity, 0 to 1, in the precision of upstream.
    Share(f32),
    /// The smaller one of a share and a number of bytes.
    Capped(f32, i64),
}

impl Amount {
    /// Returns the amount at a capacity, in the format that messages have.
    pub(crate) fn of(&self, capacity: i64) -> Quantity {
        // As upstream, in double precision from here on.
        let share = |share: f32| (capacity as f64 * f64::from(share)) as i64;
        match self {
            Amount::Fixed(quantity) => *quantity,
            Amount::Share(part) => Quantity::from_bytes(share(*part)),
            Amount::Capped(part, most) => Quantity::from_bytes(share(*part).min(*most)),
        }
    }
}

/// A signal below which pods are evicted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Threshold {
    pub(crate) signal: Signal,
    pub(crate) value: Amount,
    /// Time for which the threshold must be met. Zero: it is a hard threshold.
    pub(crate) grace_period: Duration,
    /// Amount above the threshold that is freed once it is met.
    pub(crate) minimum_reclaim: Option<Amount>,
}

impl Threshold {
    pub(crate) fn is_hard(&self) -> bool {
        self.grace_period.is_zero()
    }
}

/// A setting of eviction is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {message}")]
pub struct EvictionError {
    /// Name of the flag, without dashes.
    setting: &'static str,
    message: String,
}

impl EvictionError {
    /// Name of the flag, without dashes.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        self.setting
    }

    /// The problem.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Settings of eviction, as upstream's flags and configuration file have them. Keys are names of signals.
///
/// ```
/// use k8s_kubelet::{Eviction, EvictionSettings};
/// let hard = [("memory.available".into(), "5%".into())].into();
/// assert!(Eviction::new(&EvictionSettings { hard: Some(hard), ..EvictionSettings::default() }).is_ok());
/// let soft = [("memory.free".into(), "1Gi".into())].into();
/// let error = Eviction::new(&EvictionSettings { soft, ..EvictionSettings::default() }).unwrap_err();
/// assert_eq!(error.to_string(), "eviction-soft: unsupported eviction signal memory.free");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct EvictionSettings {
    /// Thresholds at which pods are evicted at once: quantities (`100Mi`) or shares of the capacity (`5%`).
    /// `None`: [`EvictionSettings::DEFAULT_HARD`]. Empty: none. `0%` and `100%` mean none for their signal.
    pub hard: Option<BTreeMap<String, String>>,
    /// Most bytes of a disk that the defaults of `hard` keep free. `None`: the shares alone count.
    pub default_disk_cap: Option<i64>,
    /// Thresholds that must be met for a grace period.
    pub soft: BTreeMap<String, String>,
    /// Grace periods of the soft thresholds. Every soft threshold needs one.
    pub soft_grace_period: BTreeMap<String, Duration>,
    /// Amounts above the thresholds that are freed once they are met.
    pub minimum_reclaim: BTreeMap<String, String>,
    /// Maximum grace period of a pod, seconds, that is evicted for a soft threshold. Default: 0.
    pub max_pod_grace_period: i32,
    /// Time for which a pressure condition stays after its threshold was met. Default: 5 min.
    pub pressure_transition_period: Duration,
}

const TRANSITION: Duration = Duration::from_secs(300);

impl Default for EvictionSettings {
    fn default() -> Self {
        EvictionSettings {
            hard: None,
            default_disk_cap: None,
            soft: BTreeMap::new(),
            soft_grace_period: BTreeMap::new(),
            minimum_reclaim: BTreeMap::new(),
            max_pod_grace_period: 0,
            pressure_transition_period: TRANSITION,
        }
    }
}

impl EvictionSettings {
    /// Hard thresholds that a node has by default.
    pub const DEFAULT_HARD: [(&str, &str); 5] = [
        ("memory.available", "100Mi"),
        ("nodefs.available", "10%"),
        ("nodefs.inodesFree", "5%"),
        ("imagefs.available", "15%"),
        ("imagefs.inodesFree", "5%"),
    ];
}

/// Parses the default hard thresholds.
fn defaults(disk_cap: Option<i64>) -> Vec<(Signal, Amount)> {
    let known = EvictionSettings::DEFAULT_HARD.iter();
    let parsed = known.filter_map(|(name, text)| {
        let (_, signal) = SIGNALS.iter().find(|(known, _)| known == name)?;
        let amount = threshold(*signal, text).ok().flatten()?;
        let is_disk = matches!(signal, Signal::NodeFsAvailable | Signal::ImageFsAvailable);
        let amount = match (amount, disk_cap.filter(|_| is_disk)) {
            (Amount::Share(share), Some(most)) => Amount::Capped(share, most),
            (amount, _) => amount,
        };
        Some((*signal, amount))
    });
    parsed.collect()
}

/// The thresholds of a node, parsed. Default: upstream's.
#[derive(Clone, Debug, PartialEq)]
pub struct Eviction {
    /// Hard ones come first.
    pub(crate) thresholds: Vec<Threshold>,
    /// Number of hard ones.
    pub(crate) hard: usize,
    /// Seconds.
    pub(crate) max_pod_grace_period: i32,
    pub(crate) pressure_transition_period: Duration,
}

impl Default for Eviction {
    fn default() -> Self {
        Eviction {
            thresholds: defaults(None).into_iter().map(hard).collect(),
            hard: EvictionSettings::DEFAULT_HARD.len(),
            max_pod_grace_period: 0,
            pressure_transition_period: TRANSITION,
        }
    }
}

fn hard((signal, value): (Signal, Amount)) -> Threshold {
    Threshold { signal, value, grace_period: Duration::ZERO, minimum_reclaim: None }
}

impl Eviction {
    /// Parses settings.
    ///
    /// # Errors
    /// An unknown signal, a malformed amount, or a soft threshold without a grace period.
    pub fn new(settings: &EvictionSettings) -> Result<Self, EvictionError> {
        const HARD: &str = "eviction-hard";
        const SOFT: &str = "eviction-soft";
        const RECLAIM: &str = "eviction-minimum-reclaim";
        const PERIOD: &str = "eviction-soft-grace-period";
        let mut found = match &settings.hard {
            None => defaults(settings.default_disk_cap),
            Some(own) => thresholds(HARD, own)?,
        };
        found.sort_by_key(|(signal, _)| *signal);
        let mut all: Vec<Threshold> = found.into_iter().map(hard).collect();
        let hard_ones = all.len();
        for (name, period) in &settings.soft_grace_period {
            signal(PERIOD, name)?;
            tracing::trace!(name, ?period, "grace period");
        }
        for (signal, value) in thresholds(SOFT, &settings.soft)? {
            let Some(period) = settings.soft_grace_period.get(signal.name()) else {
                let message =
                    format!("grace period must be specified for the soft eviction threshold {signal}");
                return Err(EvictionError { setting: SOFT, message });
            };
            all.push(Threshold { grace_period: *period, ..hard((signal, value)) });
        }
        for (name, text) in &settings.minimum_reclaim {
            let Some(signal) = signal(RECLAIM, name)? else { continue };
            let reclaim = minimum_reclaim(signal, text)
                .map_err(|message| EvictionError { setting: RECLAIM, message })?;
            for threshold in all.iter_mut().filter(|threshold| threshold.signal == signal) {
                threshold.minimum_reclaim = Some(reclaim.clone());
            }
        }
        Ok(Eviction {
            thresholds: all,
            hard: hard_ones,
            max_pod_grace_period: settings.max_pod_grace_period,
            pressure_transition_period: settings.pressure_transition_period,
        })
    }

    /// Returns thresholds that are never met. Limits of local storage count all the same.
    #[must_use]
    pub fn none() -> Self {
        Eviction { thresholds: Vec::new(), hard: 0, ..Eviction::default() }
    }

    /// Returns what hard thresholds keep free of a capacity.
    pub(crate) fn reserved(&self, signal: Signal, capacity: i64) -> i64 {
        let hard = self.thresholds.iter().take(self.hard).find(|t| t.signal == signal);
        hard.map_or(0, |threshold| threshold.value.of(capacity).units())
    }
}

/// Parses the name of a signal. `None`: it is one that others imply.
fn signal(setting: &'static str, name: &str) -> Result<Option<Signal>, EvictionError> {
    if IMPLIED.contains(&name) {
        let kind = setting.trim_start_matches("eviction-");
        tracing::warn!("found {name} for {kind} eviction, ignoring: its thresholds are those of nodefs");
        return Ok(None);
    }
    match SIGNALS.iter().find(|(known, _)| *known == name) {
        Some((_, signal)) => Ok(Some(*signal)),
        None => Err(EvictionError { setting, message: format!("unsupported eviction signal {name}") }),
    }
}

fn thresholds(
    setting: &'static str,
    texts: &BTreeMap<String, String>,
) -> Result<Vec<(Signal, Amount)>, EvictionError> {
    let mut all = Vec::new();
    for (name, text) in texts {
        let Some(signal) = signal(setting, name)? else { continue };
        let parsed = threshold(signal, text).map_err(|message| EvictionError { setting, message })?;
        all.extend(parsed.map(|value| (signal, value)));
    }
    Ok(all)
}

/// Parses a threshold. `None`: it is one that is never met.
fn threshold(signal: Signal, text: &str) -> Result<Option<Amount>, String> {
    if text.ends_with('%') {
        if matches!(text, "0%" | "100%") {
            return Ok(None);
        }
        let share = share(text)?;
        // Not `share < 0.0`, so that NaN is refused.
        return match share {
            _ if share > 1.0 => {
                Err(format!("eviction percentage threshold {signal} must be <= 100%: {text}"))
            }
            _ if share >= 0.0 => Ok(Some(Amount::Share(share))),
            _ => Err(format!("eviction percentage threshold {signal} must be >= 0%: {text}")),
        };
    }
    let quantity: Quantity = text.parse().map_err(|e| format!("{signal}: {e}"))?;
    if quantity.is_negative() || quantity.is_zero() {
        return Err(format!("eviction threshold {signal} must be positive: {quantity}"));
    }
    Ok(Some(Amount::Fixed(quantity)))
}

fn minimum_reclaim(signal: Signal, text: &str) -> Result<Amount, String> {
    if text.ends_with('%') {
        let share = share(text)?;
        if share > 0.0 && share.is_finite() {
            return Ok(Amount::Share(share));
        }
        return Err(format!("eviction percentage minimum reclaim {signal} must be positive: {text}"));
    }
    let quantity: Quantity = text.parse().map_err(|e| format!("{signal}: {e}"))?;
    if quantity.is_negative() {
        return Err(format!("negative eviction minimum reclaim specified for {signal}"));
    }
    Ok(Amount::Fixed(quantity))
}

fn share(text: &str) -> Result<f32, String> {
    let number = text.trim_end_matches('%');
    let share: f32 = number.parse().map_err(|_| format!("{text:?} is no percentage such as 5%"))?;
    Ok(share / 100.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn shown(eviction: &Eviction, capacity: i64) -> Vec<String> {
        let one = |t: &Threshold| {
            let reclaim = t.minimum_reclaim.as_ref().map(|m| format!("+{}", m.of(capacity)));
            let grace = (!t.is_hard()).then(|| format!(" for {:?}", t.grace_period));
            let (reclaim, grace) = (reclaim.unwrap_or_default(), grace.unwrap_or_default());
            format!("{}<{}{reclaim}{grace}", t.signal, t.value.of(capacity))
        };
        eviction.thresholds.iter().map(one).collect()
    }

    #[test]
    fn defaults_and_what_takes_their_place() {
        let settings = |hard: Option<&[(&str, &str)]>, cap: Option<i64>| {
            let hard = hard.map(map);
            let settings = EvictionSettings { hard, default_disk_cap: cap, ..Default::default() };
            shown(&Eviction::new(&settings).unwrap(), 100 << 30)
        };
        let upstream = [
            "memory.available<100Mi",
            "nodefs.available<10Gi",
            "nodefs.inodesFree<5Gi",
            "imagefs.available<15Gi",
            "imagefs.inodesFree<5Gi",
        ];
        // Shares are not exact, as upstream's.
        let rounded = |all: Vec<String>| -> Vec<String> {
            let near = |text: String| match text.split_once('<') {
                Some((name, amount)) if name.contains("fs") => {
                    let bytes = amount.parse::<Quantity>().unwrap().units();
                    format!("{name}<{}Gi", (bytes + (1 << 20)) >> 30)
                }
                _ => text,
            };
            all.into_iter().map(near).collect()
        };
        assert_eq!(rounded(settings(None, None)), upstream);
        assert_eq!(rounded(shown(&Eviction::default(), 100 << 30)), upstream);
        let capped = rounded(settings(None, Some(1 << 30)));
        assert_eq!((&*capped[1], &*capped[3]), ("nodefs.available<1Gi", "imagefs.available<1Gi"));
        let memory: &[(&str, &str)] = &[("memory.available", "1Gi")];
        assert_eq!(settings(Some(memory), None), ["memory.available<1Gi"]);
        for none in [&[][..], &[("nodefs.available", "0%")], &[("containerfs.available", "5%")]] {
            assert!(settings(Some(none), None).is_empty(), "{none:?}");
        }
    }

    #[test]
    fn soft_thresholds_reserve_nothing() {
        let settings = EvictionSettings {
            soft: map(&[("memory.available", "1Gi"), ("nodefs.available", "2Gi")]),
            soft_grace_period: ["memory.available", "nodefs.available"]
                .map(|name| (name.to_owned(), Duration::ZERO))
                .into(),
            hard: Some(map(&[("memory.available", "10%")])),
            ..EvictionSettings::default()
        };
        let eviction = Eviction::new(&settings).unwrap();
        assert_eq!(eviction.reserved(Signal::MemoryAvailable, 1000), 100);
        assert_eq!(eviction.reserved(Signal::NodeFsAvailable, 1000), 0);
        assert_eq!(Eviction::none().reserved(Signal::MemoryAvailable, 1000), 0);
    }

    #[test]
    fn soft_thresholds_and_minimum_reclaims() {
        let settings = EvictionSettings {
            hard: Some(map(&[("memory.available", "1Gi"), ("pid.available", "10%")])),
            soft: map(&[("memory.available", "50%")]),
            soft_grace_period: [("memory.available".to_owned(), Duration::from_secs(90))].into(),
            minimum_reclaim: map(&[("memory.available", "100Mi"), ("imagefs.available", "1Gi")]),
            ..EvictionSettings::default()
        };
        let all = shown(&Eviction::new(&settings).unwrap(), 4 << 30);
        let tenth = Amount::Share(0.1).of(4 << 30);
        let want = [
            "memory.available<1Gi+100Mi".to_owned(),
            format!("pid.available<{tenth}"),
            "memory.available<2Gi+100Mi for 90s".to_owned(),
        ];
        assert_eq!(all, want);
    }

    #[test]
    fn errors_are_upstreams() {
        let hard = |name: &str, value: &str| EvictionSettings {
            hard: Some(map(&[(name, value)])),
            ..EvictionSettings::default()
        };
        let reclaim = |name: &str, value: &str| EvictionSettings {
            minimum_reclaim: map(&[(name, value)]),
            ..EvictionSettings::default()
        };
        let soft =
            EvictionSettings { soft: map(&[("memory.available", "1Gi")]), ..EvictionSettings::default() };
        let period = EvictionSettings {
            soft_grace_period: [("memory".to_owned(), Duration::ZERO)].into(),
            ..EvictionSettings::default()
        };
        for (settings, want) in [
            (hard("memory", "1Gi"), "eviction-hard: unsupported eviction signal memory"),
            (
                hard("memory.available", "-1Gi"),
                "eviction-hard: eviction threshold memory.available must be positive: -1Gi",
            ),
            (
                hard("memory.available", "0"),
                "eviction-hard: eviction threshold memory.available must be positive: 0",
            ),
            (
                hard("memory.available", "-5%"),
                "eviction-hard: eviction percentage threshold memory.available must be >= 0%: -5%",
            ),
            (
                hard("memory.available", "NaN%"),
                "eviction-hard: eviction percentage threshold memory.available must be >= 0%: NaN%",
            ),
            (
                hard("memory.available", "101%"),
                "eviction-hard: eviction percentage threshold memory.available must be <= 100%: 101%",
            ),
            (hard("memory.available", "x%"), "eviction-hard: \"x%\" is no percentage such as 5%"),
            (reclaim("memory", "1Gi"), "eviction-minimum-reclaim: unsupported eviction signal memory"),
            (
                reclaim("memory.available", "0%"),
                "eviction-minimum-reclaim: eviction percentage minimum reclaim memory.available must be positive: 0%",
            ),
            (
                reclaim("memory.available", "-1"),
                "eviction-minimum-reclaim: negative eviction minimum reclaim specified for memory.available",
            ),
            (
                soft,
                "eviction-soft: grace period must be specified for the soft eviction threshold memory.available",
            ),
            (period, "eviction-soft-grace-period: unsupported eviction signal memory"),
        ] {
            assert_eq!(Eviction::new(&settings).unwrap_err().to_string(), want, "{settings:?}");
        }
        let error = Eviction::new(&hard("memory.available", "much")).unwrap_err().to_string();
        assert!(error.starts_with("eviction-hard: memory.available: quantities must match"), "{error}");
    }

    proptest! {
        /// No text panics, and what is accepted is between nothing and all, or a fixed amount.
        #[test]
        fn any_text_is_judged(text in ".{0,12}|[0-9.eE+-]{1,8}(%|Mi|Gi|)", capacity in 0_i64..i64::MAX) {
            for signal in [Signal::MemoryAvailable, Signal::NodeFsInodesFree] {
                if let Ok(Some(amount)) = threshold(signal, &text) {
                    let free = amount.of(capacity);
                    prop_assert!(!free.is_negative());
                    if matches!(amount, Amount::Share(_)) {
                        prop_assert!(free.units() <= capacity);
                    }
                }
                let _ = minimum_reclaim(signal, &text).map(|amount| amount.of(capacity));
            }
        }
    }
}
