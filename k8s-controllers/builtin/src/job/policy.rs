//! Evaluates a Job's `podFailurePolicy` and `successPolicy`. Pure.

use std::collections::BTreeSet;

use k8s_core::{
    api::api::{
        batch::v1::{
            JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
        },
        core::v1::{ContainerStatus, Pod, PodCondition},
    },
    meta::ObjectExt,
};

use super::indexes;

/// Action of the pod failure policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The failure counts. Default if no rule matches.
    Count,
    /// The failure does not count; the pod is replaced.
    Ignore,
    /// The index fails.
    FailIndex,
    /// The Job fails, with this message.
    FailJob(String),
}

/// Returns the action of the first rule that matches a failed pod.
pub(super) fn verdict(spec: &JobSpec, pod: &Pod) -> Verdict {
    let rules = spec.pod_failure_policy.as_ref().map(|p| p.rules.as_slice()).unwrap_or_default();
    for (at, rule) in rules.iter().enumerate() {
        let name = || format!("{}/{}", pod.namespace(), pod.name());
        let why = match (&rule.on_exit_codes, &rule.on_pod_conditions) {
            (Some(codes), _) => exited_with(codes, pod).map(|(container, code)| {
                format!(
                    "Container {container} for pod {} failed with exit code {code} matching {} rule at index {at}",
                    name(),
                    rule.action
                )
            }),
            (None, Some(patterns)) => has_condition(patterns, pod).map(|condition| {
                format!(
                    "Pod {} has condition {} matching {} rule at index {at}",
                    name(),
                    condition.type_,
                    rule.action
                )
            }),
            (None, None) => None,
        };
        let Some(why) = why else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" if spec.backoff_limit_per_index.is_some() => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(why),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// Returns the first container whose exit code matches the rule. Exit code 0 never matches.
fn exited_with<'a>(rule: &PodFailurePolicyOnExitCodesRequirement, pod: &'a Pod) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    all.filter_map(|container: &ContainerStatus| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        let named = rule.container_name.as_ref().is_none_or(|name| *name == container.name);
        let listed = rule.values.contains(&code);
        let fits = if rule.operator == "NotIn" { !listed } else { listed };
        (named && code != 0 && fits).then_some((container.name.as_str(), code))
    })
    .next()
}

fn has_condition<'a>(
    patterns: &[PodFailurePolicyOnPodConditionsPattern],
    pod: &'a Pod,
) -> Option<&'a PodCondition> {
    let fits = |condition: &&PodCondition| {
        patterns.iter().any(|pattern| {
            pattern.type_ == condition.type_
                && pattern.status.as_deref().unwrap_or("True") == condition.status
        })
    };
    pod.status.as_ref()?.conditions.iter().flatten().find(fits)
}

/// Returns the message of the first success policy rule that is satisfied.
pub(super) fn success(spec: &JobSpec, succeeded: &BTreeSet<i32>) -> Option<String> {
    let rules = spec.success_policy.as_ref().map(|p| p.rules.as_slice()).unwrap_or_default();
    let completions = spec.completions.unwrap_or(0);
    let holds = |rule: &k8s_core::api::api::batch::v1::SuccessPolicyRule| {
        let count = rule.succeeded_count.and_then(|n| usize::try_from(n).ok());
        match &rule.succeeded_indexes {
            Some(text) => {
                let wanted = indexes::parse_below(text, completions);
                let done = wanted.intersection(succeeded).count();
                done >= count.unwrap_or(wanted.len())
            }
            None => count.is_some_and(|count| succeeded.len() >= count),
        }
    };
    let at = rules.iter().position(holds)?;
    Some(format!("Matched rules at index {at}"))
}

#[cfg(test)]
mod tests {
    use k8s_core::api::api::batch::v1::PodFailurePolicy;
    use serde_json::{Value, json};

    use super::*;

    fn pod(code: i32, condition: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "status": {
                "phase": "Failed",
                "conditions": [{"type": condition, "status": "True"}],
                "containerStatuses": [
                    {"name": "side", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}},
                    {"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code}}},
                ],
            },
        }))
        .unwrap()
    }

    fn spec(rules: Value) -> JobSpec {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": rules})).unwrap();
        JobSpec { pod_failure_policy: Some(policy), backoff_limit_per_index: Some(1), ..JobSpec::default() }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let codes = |action: &str, operator: &str, container: Option<&str>| json!({"action": action, "onExitCodes": {"containerName": container, "operator": operator, "values": [3, 42]}});
        let disrupted = json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]});
        let fail = |rule: &str| {
            Verdict::FailJob(format!("Container main for pod n/p failed with exit code 42 matching {rule}"))
        };
        for (rules, code, condition, want) in [
            (json!([codes("FailJob", "In", None)]), 42, "", fail("FailJob rule at index 0")),
            (
                json!([disrupted, codes("FailJob", "In", Some("main"))]),
                42,
                "",
                fail("FailJob rule at index 1"),
            ),
            (json!([disrupted, codes("FailJob", "In", None)]), 42, "DisruptionTarget", Verdict::Ignore),
            (json!([codes("FailIndex", "In", Some("side"))]), 42, "", Verdict::Count),
            (json!([codes("FailIndex", "NotIn", None)]), 42, "", Verdict::Count),
            (json!([codes("FailIndex", "NotIn", None)]), 1, "", Verdict::FailIndex),
            (json!([codes("Count", "In", None), codes("FailJob", "In", None)]), 3, "", Verdict::Count),
            (json!([codes("FailJob", "NotIn", None)]), 0, "", Verdict::Count),
        ] {
            assert_eq!(
                verdict(&spec(rules.clone()), &pod(code, condition)),
                want,
                "{rules} of {code} {condition}"
            );
        }
        let without_index_limit =
            JobSpec { backoff_limit_per_index: None, ..spec(json!([codes("FailIndex", "In", None)])) };
        assert_eq!(verdict(&without_index_limit, &pod(42, "")), Verdict::Count);
    }

    #[test]
    fn success_by_indexes_and_counts() {
        let spec = |rules: Value| -> JobSpec {
            JobSpec {
                completions: Some(6),
                success_policy: Some(serde_json::from_value(json!({"rules": rules})).unwrap()),
                ..JobSpec::default()
            }
        };
        for (rules, succeeded, want) in [
            (json!([{"succeededIndexes": "0,2"}]), vec![0], None),
            (json!([{"succeededIndexes": "0,2"}]), vec![0, 2], Some(0)),
            (json!([{"succeededIndexes": "0-3", "succeededCount": 2}]), vec![1, 3], Some(0)),
            (json!([{"succeededIndexes": "0-3", "succeededCount": 2}]), vec![1, 4], None),
            (json!([{"succeededIndexes": "5"}, {"succeededCount": 1}]), vec![1], Some(1)),
            (json!([]), vec![1], None),
        ] {
            let found = success(&spec(rules.clone()), &succeeded.iter().copied().collect());
            assert_eq!(
                found,
                want.map(|at| format!("Matched rules at index {at}")),
                "{rules} of {succeeded:?}"
            );
        }
    }
}
