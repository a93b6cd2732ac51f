//! The status that a kubelet would write for a pod.

use std::net::IpAddr;

use k8s_core::{
    api::{
        api::core::v1::{Container, Pod, PodCondition},
        apimachinery::pkg::apis::meta::v1::Time,
    },
    meta::ObjectExt,
};
use serde_json::{Map, Value, json};

use crate::life::{Exit, Face};

/// Exit code of a process that was ended by SIGTERM.
pub(crate) const TERMINATED: i32 = 128 + 15;
/// Exit code of a process that was ended by SIGKILL.
pub(crate) const KILLED: i32 = 128 + 9;

/// A pod at the time of a report.
#[derive(Debug)]
pub(crate) struct Moment<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) address: Option<IpAddr>,
    /// Addresses of the node.
    pub(crate) hosts: &'a [String],
    pub(crate) restarts: u32,
    /// Time at which the node saw the pod first.
    pub(crate) started: Time,
    /// Time at which the containers began for the last time.
    pub(crate) began: Time,
    pub(crate) now: Time,
}

/// Returns the phase of a pod; `Pending` if it has none.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).filter(|p| !p.is_empty()).unwrap_or("Pending")
}

/// Returns true for a phase that is final.
pub(crate) fn is_final(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// Returns true if all readiness gates of a pod hold.
pub(crate) fn gates_hold(pod: &Pod) -> bool {
    let gates = pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten());
    gates.into_iter().all(|gate| condition(pod, &gate.condition_type).is_some_and(|c| c.status == "True"))
}

/// Returns a condition of a pod.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Returns a strategic merge patch of the pod's status. The uid is a precondition: a later pod of the same
/// name stays untouched. Conditions of others, such as `DisruptionTarget`, are kept.
pub(crate) fn patch(moment: &Moment<'_>, face: &Face) -> Value {
    json!({"metadata": {"uid": moment.pod.uid()}, "status": status(moment, face)})
}

fn status(moment: &Moment<'_>, face: &Face) -> Value {
    let phase = match face {
        Face::Stuck(_) => "Pending",
        Face::Running { .. } | Face::BackOff(_) => "Running",
        Face::Ended(exit) if exit.code == 0 => "Succeeded",
        Face::Ended(_) => "Failed",
    };
    let mut status = json!({
        "phase": phase,
        "startTime": moment.started,
        "conditions": conditions(moment, face),
        "containerStatuses": containers(moment, face),
    });
    if let Some(generation) = moment.pod.metadata.generation {
        status["observedGeneration"] = generation.into();
    }
    let inits = init_containers(moment, face);
    if !inits.is_empty() {
        status["initContainerStatuses"] = inits.into();
    }
    let ips = |all: &[String]| -> Value { all.iter().map(|ip| json!({"ip": ip})).collect() };
    if let Some(host) = moment.hosts.first() {
        status["hostIP"] = json!(host);
        status["hostIPs"] = ips(moment.hosts);
    }
    // A pod that is deleted before it starts never has an address.
    if let Some(address) = moment.address
        && phase != "Pending"
    {
        let address = address.to_string();
        status["podIPs"] = ips(std::slice::from_ref(&address));
        status["podIP"] = address.into();
    }
    status
}

fn conditions(moment: &Moment<'_>, face: &Face) -> Vec<Value> {
    let pod = moment.pod;
    let ready = matches!(face, Face::Running { ready: true });
    let (reason, message) = match face {
        Face::Running { ready: true } => (None, None),
        Face::Ended(exit) if exit.code == 0 => (Some("PodCompleted"), None),
        Face::Ended(_) => (Some("PodFailed"), None),
        Face::Stuck(_) | Face::Running { .. } | Face::BackOff(_) => {
            let names = pod.spec.iter().flat_map(|s| &s.containers).map(|c| c.name.as_str());
            let names = names.collect::<Vec<_>>().join(" ");
            (Some("ContainersNotReady"), Some(format!("containers with unready status: [{names}]")))
        }
    };
    let gates = gates_hold(pod);
    let (pod_reason, pod_message) = if ready && !gates {
        (Some("ReadinessGatesNotReady"), Some("a readiness gate of the pod is not True".to_owned()))
    } else {
        (reason, message.clone())
    };
    let started = !matches!(face, Face::Stuck(_) | Face::Ended(_));
    let rows = [
        ("PodReadyToStartContainers", started, None, None),
        ("Initialized", true, None, None),
        ("Ready", ready && gates, pod_reason, pod_message),
        ("ContainersReady", ready, reason, message),
        ("PodScheduled", true, None, None),
    ];
    let row = |(kind, holds, reason, message): (&str, bool, Option<&str>, Option<String>)| {
        let status = if holds { "True" } else { "False" };
        let before = condition(pod, kind).filter(|c| c.status == status);
        let since = before.and_then(|c| c.last_transition_time.clone());
        // Null takes away what an earlier report said.
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since.unwrap_or_else(|| moment.now.clone()),
        })
    };
    rows.into_iter().map(row).collect()
}

/// State of a container that exited.
fn terminated(moment: &Moment<'_>, exit: &Exit) -> Value {
    let reason = match (exit.code, &exit.message) {
        (_, Some(_)) => "StartError",
        (0, None) => "Completed",
        _ => "Error",
    };
    let mut state = json!({
        "exitCode": exit.code, "reason": reason, "startedAt": moment.began, "finishedAt": moment.now,
    });
    if let Some(message) = &exit.message {
        state["message"] = json!(message);
    }
    json!({"terminated": state})
}

fn containers(moment: &Moment<'_>, face: &Face) -> Vec<Value> {
    let (state, last) = match face {
        Face::Stuck(reason) => (json!({"waiting": {"reason": reason}}), None),
        Face::Running { .. } => (json!({"running": {"startedAt": moment.began}}), None),
        Face::Ended(exit) => (terminated(moment, exit), None),
        Face::BackOff(exit) => (
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}}),
            Some(terminated(moment, exit)),
        ),
    };
    let ready = matches!(face, Face::Running { ready: true });
    let runs = matches!(face, Face::Running { .. });
    let containers = moment.pod.spec.iter().flat_map(|s| &s.containers);
    let one = |container: &Container| {
        let mut status = said(container, ready, runs, moment.restarts, state.clone());
        if let Some(last) = &last {
            status.insert("lastState".into(), last.clone());
        }
        Value::Object(status)
    };
    containers.map(one).collect()
}

fn init_containers(moment: &Moment<'_>, face: &Face) -> Vec<Value> {
    let one = |container: &Container| {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let done = terminated(moment, &Exit { code: 0, message: None });
        Value::Object(match face {
            Face::Stuck(_) => {
                said(container, false, false, 0, json!({"waiting": {"reason": "PodInitializing"}}))
            }
            Face::Running { .. } | Face::BackOff(_) if sidecar => {
                said(container, true, true, 0, json!({"running": {"startedAt": moment.began}}))
            }
            Face::Running { .. } | Face::BackOff(_) | Face::Ended(_) => {
                said(container, !sidecar, false, 0, done)
            }
        })
    };
    moment.pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten()).map(one).collect()
}

fn said(container: &Container, ready: bool, runs: bool, restarts: u32, state: Value) -> Map<String, Value> {
    let mut status = Map::new();
    status.insert("name".into(), json!(container.name));
    status.insert("image".into(), json!(container.image.as_deref().unwrap_or_default()));
    status.insert("imageID".into(), json!(""));
    status.insert("ready".into(), ready.into());
    status.insert("restartCount".into(), restarts.into());
    status.insert("started".into(), runs.into());
    status.insert("state".into(), state);
    status
}

#[cfg(test)]
mod tests {
    use k8s_core::api::jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).expect("a time"))
    }

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).expect("a pod")
    }

    fn said_of(pod: &Pod, face: &Face) -> Value {
        let address = Some("10.42.0.2".parse().expect("an address"));
        let (started, began, now) = (at(1), at(2), at(9));
        status(&Moment { pod, address, hosts: &["192.0.2.1".into()], restarts: 4, started, began, now }, face)
    }

    fn web() -> Value {
        json!({
            "metadata": {"name": "web", "uid": "u", "generation": 3},
            "spec": {
                "containers": [{"name": "c", "image": "i"}],
                "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}],
            },
        })
    }

    #[test]
    fn a_running_pod_is_ready_and_has_addresses() {
        let said = said_of(&pod(web()), &Face::Running { ready: true });
        assert_eq!((&said["phase"], &said["podIP"]), (&json!("Running"), &json!("10.42.0.2")));
        assert_eq!(
            (&said["hostIPs"], &said["observedGeneration"]),
            (&json!([{"ip": "192.0.2.1"}]), &json!(3))
        );
        assert_eq!(said["containerStatuses"][0]["restartCount"], 4);
        assert!(said["initContainerStatuses"][0]["state"]["running"].is_object());
        assert_eq!(said["initContainerStatuses"][1]["state"]["terminated"]["reason"], "Completed");
        assert!(said["conditions"].as_array().expect("a list").iter().all(|c| c["status"] == "True"));
    }

    #[test]
    fn states_of_containers() {
        let exit = |code, message: Option<&str>| Exit { code, message: message.map(str::to_owned) };
        let of = |face: Face| said_of(&pod(web()), &face);
        let stuck = of(Face::Stuck("ErrImagePull".into()));
        assert_eq!((&stuck["phase"], &stuck["podIP"]), (&json!("Pending"), &Value::Null));
        assert_eq!(stuck["containerStatuses"][0]["state"]["waiting"]["reason"], "ErrImagePull");
        let ended = of(Face::Ended(exit(3, None)));
        assert_eq!(
            (&ended["phase"], &ended["conditions"][2]["reason"]),
            (&json!("Failed"), &json!("PodFailed"))
        );
        let crashed = &of(Face::BackOff(exit(1, Some("no"))))["containerStatuses"][0];
        assert_eq!(crashed["state"]["waiting"]["reason"], "CrashLoopBackOff");
        assert_eq!(crashed["lastState"]["terminated"]["message"], "no");
    }

    #[test]
    fn a_condition_that_stays_keeps_its_time_and_gates_count() {
        let mut value = web();
        value["status"] =
            json!({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(5)}]});
        let said = said_of(&pod(value.clone()), &Face::Running { ready: true });
        assert_eq!(said["conditions"][2]["lastTransitionTime"], json!(at(5)));
        assert_eq!(said["conditions"][3]["lastTransitionTime"], json!(at(9)));
        value["spec"]["readinessGates"] = json!([{"conditionType": "lb"}]);
        let said = said_of(&pod(value), &Face::Running { ready: true });
        assert_eq!(
            (&said["conditions"][2]["status"], &said["conditions"][3]["status"]),
            (&json!("False"), &json!("True"))
        );
    }
}
