//! Resizes: asking for other resources, and the changes that follow.

use std::time::Duration;

use super::{
    super::resize::{self, Resized, Step, Work, event_message},
    on::after,
    *,
};

/// Time before a failed resize is tried again.
const RETRY: Duration = Duration::from_secs(10);

impl World {
    /// Takes over what an earlier kubelet allocated.
    pub(crate) fn restore(&mut self, allocation: Allocation) {
        self.allocation = allocation;
        self.pod = self.allocation.apply(&self.desired);
        self.take_spec();
    }

    /// Asks for the resources of the specification, if others are allocated.
    pub(super) fn propose_resize(&mut self, effects: &mut Vec<Effect>) {
        if self.ending.is_some() || self.gone {
            return;
        }
        let differs = !self.allocation.same(&Allocation::of(&self.desired));
        if !differs && self.resize.pending.take().is_none() {
            return;
        }
        effects.push(Effect::Propose(differs.then(|| self.desired.clone())));
    }

    pub(super) fn on_verdict(&mut self, now: Timestamp, verdict: Verdict, effects: &mut Vec<Effect>) {
        if self.ending.is_some() {
            return;
        }
        match verdict {
            Verdict::Allocated(asked) => {
                let generation = asked.metadata.generation;
                self.allocation = Allocation::of(&asked);
                self.pod = self.allocation.apply(&self.desired);
                self.take_spec();
                effects.push(Effect::SaveAllocation(self.allocation.clone()));
                self.resize.begin(now, generation);
                let message = event_message("Pod resize started", &asked, generation, "");
                effects.push(PodEvent::normal("ResizeStarted", message));
                // Volumes may contain requests and limits.
                self.refresh_volumes(effects);
                // It may ask for others by now.
                self.propose_resize(effects);
            }
            Verdict::Deferred(asked, refusal) => {
                if !Allocation::of(&asked).same(&Allocation::of(&self.desired)) {
                    return;
                }
                let generation = asked.metadata.generation;
                if self.resize.defer(now, &refusal.message, generation) {
                    let begin = format!("Pod resize {}", refusal.reason);
                    let message = event_message(&begin, &asked, generation, &refusal.message);
                    effects.push(PodEvent::warning(None, "ResizeDeferred", message));
                }
            }
        }
    }

    pub(super) fn begin_resize(&mut self) -> Effect {
        self.resize.work = Work::Busy;
        Effect::Resize(Box::new(resize::plan(self)))
    }

    pub(super) fn on_resized(&mut self, now: Timestamp, resized: Resized, effects: &mut Vec<Effect>) {
        for step in &resized.done {
            match step {
                Step::Pod(resources) => {
                    if let Sandbox::Ready(sandbox) = &mut self.sandbox {
                        Arc::make_mut(sandbox).spec.resources.merge(resources);
                    }
                }
                Step::Container { id, resources, requests } => {
                    let mut records = self.containers.iter_mut().filter_map(|life| life.current.as_mut());
                    if let Some(record) = records.find(|record| record.id.as_ref() == Some(id)) {
                        record.size.requests = *requests;
                        record.size.quota_us = resources.cpu_quota_us.or(record.size.quota_us);
                        record.size.memory_bytes = resources.memory_bytes.or(record.size.memory_bytes);
                    }
                }
            }
        }
        self.resize.work = match &resized.error {
            None => Work::Idle,
            Some(_) => Work::Retry(after(now, RETRY)),
        };
        if let Some(error) = &resized.error
            && self.ending.is_none()
            && let Some(generation) = self.resize.fail(now, error)
        {
            let message = event_message("Pod resize error", &self.pod, generation, error);
            effects.push(PodEvent::warning(None, "ResizeError", message));
        }
    }

    /// Brings the state of the resize up to the sizes that the containers have.
    pub(super) fn follow_resize(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.ending.is_some() {
            (self.resize.pending, self.resize.progress) = (None, None);
            return;
        }
        // A sandbox that is connected again is not compared.
        if matches!(self.sandbox, Sandbox::Busy { .. }) {
            return;
        }
        let is_due = resize::is_due(self);
        match (&self.resize.progress, is_due) {
            // An earlier kubelet did not come to its end.
            (None, true) => {
                let is_running = self.containers.iter().any(Life::is_running);
                if is_running && !self.containers.iter().any(|life| life.replaced) {
                    self.resize.begin(now, self.pod.metadata.generation);
                }
            }
            (Some(note), false) if self.resize.work != Work::Busy => {
                let generation = note.generation;
                let message = event_message("Pod resize completed", &self.pod, generation, "");
                effects.push(PodEvent::normal("ResizeCompleted", message));
                self.resize.progress = None;
                self.resize.work = Work::Idle;
            }
            (None, false) | (Some(_), _) => {}
        }
    }
}
