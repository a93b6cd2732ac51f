//! Adoption: takes over running containers, and the state that an earlier kubelet wrote to the pod's status.

use super::{super::records, *};

impl World {
    pub(super) fn adopt(
        &mut self,
        now: Timestamp,
        mut seen: Vec<Seen>,
        refusal: Option<Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        if refusal.is_none() {
            self.propose_resize(effects);
        }
        seen.sort_by_key(|s| (s.sandbox.spec.attempt, s.sandbox.created_at));
        let newest = seen.pop();
        self.old_sandboxes = seen.into_iter().map(|s| s.sandbox).collect();
        let status = self.pod.status.clone().unwrap_or_default();
        let statuses = [
            &status.init_container_statuses,
            &status.container_statuses,
            &status.ephemeral_container_statuses,
        ];
        let sandbox = newest.map(|Seen { sandbox, containers }| {
            self.observe_all(containers);
            sandbox
        });
        for status in statuses.into_iter().flatten().flatten() {
            self.remember(now, status);
        }
        let Some(sandbox) = sandbox else {
            self.refusal = refusal;
            return;
        };
        let mains_made = self
            .containers
            .iter()
            .any(|l| l.role == Role::Main && l.current.as_ref().is_some_and(|r| r.in_sandbox));
        self.initialized = sandbox.ready && mains_made;
        for life in self.containers.iter_mut().filter(|l| l.is_running()) {
            let old = statuses.into_iter().flatten().flatten().find(|s| s.name == life.name);
            // The hooks ran at the container's start; the probes start again.
            life.hook_done = true;
            life.started = life.spec.startup_probe.is_none() || old.is_some_and(|s| s.started == Some(true));
            life.ready = life.spec.readiness_probe.is_none() || old.is_some_and(|s| s.ready);
        }
        if !sandbox.ready {
            self.sandbox = Sandbox::Dead(sandbox);
            return;
        }
        if !sandbox.spec.host_network {
            self.pod_ips = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
        }
        self.network_ready = !self.pod_ips.is_empty();
        // Connecting is idempotent and returns the addresses.
        let (attempt, known_ips) = (sandbox.spec.attempt, self.pod_ips.clone());
        self.sandbox = Sandbox::Busy { attempt, failures: 0, old: Some(sandbox.clone()) };
        effects.push(Effect::Connect { sandbox, known_ips });
    }

    /// Takes over a container from the pod's status, if the runtime no longer has it.
    fn remember(&mut self, now: Timestamp, status: &ContainerStatus) {
        let (current, last) = records::from_status(status, now);
        let Some(life) = self.life_mut(&status.name) else { return };
        match &life.current {
            None => (life.current, life.last) = (current, last),
            // The runtime may have removed the previous instance.
            Some(have) if status.container_id.as_ref() == Some(&have.full_id) && life.last.is_none() => {
                life.last = last;
            }
            Some(_) => {}
        }
    }
}
