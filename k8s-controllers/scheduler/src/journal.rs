//! The order in which nodes changed, so that what was computed from them is brought up to date by changes.

use std::collections::VecDeque;

/// Limit of the changes that are known.
const MOST: usize = 8192;

/// The indexes of changed nodes, in order; the oldest are forgotten.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    forgotten: u64,
    changed: VecDeque<usize>,
}

impl Journal {
    /// Takes in that a node changed, came or left.
    pub(crate) fn note(&mut self, at: usize) {
        if self.changed.len() == MOST {
            self.changed.pop_front();
            self.forgotten += 1;
        }
        self.changed.push_back(at);
    }

    /// Returns the number of changes so far.
    pub(crate) fn now(&self) -> u64 {
        self.forgotten + self.changed.len() as u64
    }

    /// Returns the nodes that changed after the first `then` changes, some more than once. `None`: this is
    /// forgotten.
    pub(crate) fn since(&self, then: u64) -> Option<impl ExactSizeIterator<Item = usize>> {
        let known = usize::try_from(then.checked_sub(self.forgotten)?).ok()?;
        (known <= self.changed.len()).then(|| self.changed.range(known..).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_known_until_they_are_too_many() {
        let mut journal = Journal::default();
        let since = |journal: &Journal, then| journal.since(then).map(|all| all.collect::<Vec<_>>());
        assert_eq!(since(&journal, 0), Some(vec![]));
        for at in 0..MOST {
            journal.note(at);
        }
        assert_eq!(since(&journal, MOST as u64 - 2), Some(vec![MOST - 2, MOST - 1]));
        assert_eq!(journal.since(0).map(|all| all.len()), Some(MOST));
        journal.note(7);
        assert_eq!((since(&journal, 0), since(&journal, MOST as u64)), (None, Some(vec![7])));
        assert_eq!((journal.now(), since(&journal, MOST as u64 + 2)), (MOST as u64 + 1, None));
    }
}
