//! Places where a fault can be injected, named so that they stay the same when other faults are left out.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

/// The n-th request of a kind by a program, or the n-th event of a watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Name of the program.
    pub(crate) who: Arc<str>,
    /// Verb of the request; `event` for an event of a watch.
    pub(crate) verb: String,
    /// Path of the request without its query. The random part of a generated name is `*`.
    pub(crate) path: String,
    /// Number among the program's requests with this verb and path, from 1.
    pub(crate) n: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { who, verb, path, n } = self;
        write!(f, "{who} {verb} {path} #{n}")
    }
}

impl Place {
    /// Parses what is displayed.
    fn parse(text: &str) -> Option<Self> {
        let (rest, n) = text.trim().rsplit_once(" #")?;
        let (rest, path) = rest.rsplit_once(' ')?;
        let (who, verb) = rest.rsplit_once(' ')?;
        path.starts_with('/').then_some(())?;
        Some(Place { who: who.into(), verb: verb.to_owned(), path: path.to_owned(), n: n.parse().ok()? })
    }

    /// Returns a hash that is the same in every process (FNV-1a).
    pub(crate) fn hash(&self) -> u64 {
        let texts = [self.who.as_bytes(), self.verb.as_bytes(), self.path.as_bytes(), &self.n.to_le_bytes()];
        let bytes = texts.iter().flat_map(|text| text.iter().chain(&[0xff]));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

/// A seed with the places of its faults, as `seed:3 | copier patch /api/v1/nodes/a #2 | ...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replay {
    pub(crate) seed: u64,
    pub(crate) places: BTreeSet<Place>,
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed:{}", self.seed)?;
        self.places.iter().try_for_each(|place| write!(f, " | {place}"))
    }
}

impl Replay {
    /// Parses what is displayed.
    ///
    /// # Panics
    /// The text is not of that form.
    pub(crate) fn parse(text: &str) -> Self {
        let mut parts = text.split(" | ");
        let seed = parts.next().and_then(|first| first.trim().strip_prefix("seed:")?.parse().ok());
        let places: Option<_> = parts.map(Place::parse).collect();
        match (seed, places) {
            (Some(seed), Some(places)) => Replay { seed, places },
            _ => panic!("{text:?} is not of the form \"seed:3 | PROGRAM VERB PATH #N | ...\""),
        }
    }
}

/// Counts requests by program, verb and path.
#[derive(Debug, Default)]
pub(crate) struct Counts(HashMap<(Arc<str>, String, String), u32>);

impl Counts {
    /// Counts a request, and returns its place.
    pub(crate) fn place(&mut self, who: &Arc<str>, verb: &str, path: String) -> Place {
        let n = self.0.entry((who.clone(), verb.to_owned(), path.clone())).or_default();
        *n += 1;
        Place { who: who.clone(), verb: verb.to_owned(), path, n: *n }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_replay_is_read_as_it_is_printed(
            seed: u64,
            places in proptest::collection::btree_set(("[a-z]([a-z #|-]{0,9}[a-z])?", "[a-z]{3,9}", "/[a-z/*%0-9-]{0,20}", 1u32..9), 0..4),
        ) {
            let place = |(who, verb, path, n): (String, String, String, u32)| Place { who: who.replace(" | ", " ").into(), verb, path, n };
            let replay = Replay { seed, places: places.into_iter().map(place).collect() };
            prop_assert_eq!(Replay::parse(&replay.to_string()), replay);
        }
    }

    #[test]
    fn what_is_no_replay_is_refused() {
        assert_eq!(Replay::parse("seed:9").places.len(), 0);
        for wrong in
            ["", "seed:x", "seed:1 faults:3", "seed:1 | a get #1", "seed:1 | a get /x", "a get /x #1"]
        {
            assert!(std::panic::catch_unwind(|| Replay::parse(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn places_are_numbered_by_program_verb_and_path() {
        let mut counts = Counts::default();
        let mut place =
            |who: &str, verb: &str, path: &str| counts.place(&who.into(), verb, path.to_owned()).n;
        assert_eq!(place("a", "get", "/x"), 1);
        assert_eq!(place("a", "get", "/x"), 2);
        assert_eq!(place("a", "get", "/y"), 1);
        assert_eq!(place("a", "patch", "/x"), 1);
        assert_eq!(place("b", "get", "/x"), 1);
        let hashes: BTreeSet<u64> = ["a b /c #1", "a b /c #2", "ab c /d #1", "a bc /d #1"]
            .iter()
            .filter_map(|text| Some(Place::parse(text)?.hash()))
            .collect();
        assert_eq!(hashes.len(), 4);
    }
}
