//! Free resources of a node, as a test sets them.

use std::sync::Mutex;

use k8s_kubelet::{Observation, Observations, Signal, Signals};

const CAPACITY: i64 = 100 << 30;

type Free = Box<dyn Fn(Signal) -> i64 + Send>;

/// Everything has a capacity of 100 Gi.
pub struct FakeSignals(Mutex<Free>);

impl Default for FakeSignals {
    /// Everything is free.
    fn default() -> Self {
        FakeSignals(Mutex::new(Box::new(|_| CAPACITY)))
    }
}

impl FakeSignals {
    /// Sets what is free of a resource.
    pub fn set(&self, free: impl Fn(Signal) -> i64 + Send + 'static) {
        *self.0.lock().unwrap() = Box::new(free);
    }

    /// Sets what is free of one resource while `low` returns `true`.
    pub fn low_while(&self, of: Signal, free: i64, low: impl Fn() -> bool + Send + 'static) {
        self.set(move |signal| if signal == of && low() { free } else { CAPACITY });
    }
}

impl Signals for FakeSignals {
    fn observe(&self) -> Observations {
        let free = self.0.lock().unwrap();
        let all = [
            Signal::MemoryAvailable,
            Signal::NodeFsAvailable,
            Signal::NodeFsInodesFree,
            Signal::ImageFsAvailable,
            Signal::ImageFsInodesFree,
            Signal::PidAvailable,
        ];
        all.map(|signal| (signal, Observation { available: free(signal), capacity: CAPACITY })).into()
    }
}
