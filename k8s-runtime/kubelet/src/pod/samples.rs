//! Values for the tests of this folder.

use std::sync::Arc;

use k8s_runtime::{ContainerId, SandboxId, SandboxSpec, SandboxStatus};

use super::life::*;
use crate::{cgroups::Size, types::*};

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(super) fn container(name: &str) -> Container {
    Container { name: name.into(), ..Container::default() }
}

pub(super) fn sandbox(id: &str, attempt: u32) -> Arc<SandboxStatus> {
    Arc::new(SandboxStatus {
        id: SandboxId(id.into()),
        created_at: std::time::SystemTime::UNIX_EPOCH,
        ready: true,
        netns: None,
        ips: Vec::new(),
        spec: SandboxSpec { attempt, ..SandboxSpec::default() },
        containers: Vec::new(),
    })
}

pub(super) fn record(id: &str, attempt: u32, phase: Phase) -> Record {
    Record {
        id: Some(ContainerId(id.into())),
        full_id: format!("x://{id}"),
        attempt,
        phase,
        image_id: String::new(),
        log: Default::default(),
        in_sandbox: true,
        size: Size::default(),
    }
}

pub(super) fn running() -> Phase {
    Phase::Running { started_at: at(0) }
}

pub(super) fn exited(code: i32, second: i64) -> Phase {
    Phase::Exited(Exit {
        code,
        reason: "Error".into(),
        message: String::new(),
        started_at: Some(at(0)),
        finished_at: at(second),
    })
}
