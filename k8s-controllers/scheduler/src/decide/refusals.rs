//! Refusals of nodes, each different one kept once.

use std::collections::HashMap;

use crate::Reject;

/// Refusals with the rows that gave them, by number from 1; 0 is a node that passed.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    list: Vec<(usize, Reject)>,
    numbers: HashMap<(usize, Reject), u32>,
}

/// The row of a refusal by an extender.
pub(super) const EXTENDER: usize = usize::MAX;

impl Refusals {
    /// Returns the number of a refusal.
    pub(super) fn number(&mut self, row: usize, reject: Reject) -> u32 {
        // Most nodes are refused for the reason of the one before.
        if let Some((last, known)) = self.list.last()
            && *last == row
            && *known == reject
        {
            return u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        }
        let next = u32::try_from(self.list.len() + 1).unwrap_or(u32::MAX);
        let key = (row, reject);
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        self.list.push(key.clone());
        self.numbers.insert(key, next);
        next
    }

    /// Returns a refusal and its row.
    pub(super) fn get(&self, number: u32) -> Option<&(usize, Reject)> {
        self.list.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }
}
