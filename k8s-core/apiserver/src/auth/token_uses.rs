//! Uses of tokens in Secrets, to be recorded in a label of the Secret.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use tokio::sync::mpsc;

/// Number of uses that wait to be recorded. Further ones are recorded at a later use.
const WAITING: usize = 1000;

/// Secrets whose label is not that of today, each once until it was written.
pub(crate) struct TokenUses {
    found: mpsc::Sender<String>,
    waiting: Mutex<HashSet<String>>,
}

impl TokenUses {
    /// Returns the collection, and the end at which its Secrets (`namespace/name`) come out.
    pub(crate) fn new() -> (Self, mpsc::Receiver<String>) {
        let (found, used) = mpsc::channel(WAITING);
        (TokenUses { found, waiting: Mutex::default() }, used)
    }

    /// Asks for the record of a use.
    pub(super) fn note(&self, secret: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.contains(secret) && self.found.try_send(secret.to_owned()).is_ok() {
            waiting.insert(secret.to_owned());
        }
    }

    /// Lets a Secret be noted again.
    pub(crate) fn recorded(&self, secret: &str) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(secret);
    }
}
