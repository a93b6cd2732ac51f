//! Resources of a whole pod (`spec.resources`): names, amounts, and their relation to the containers'.
//!
//! Rules and messages are upstream's (`pkg/apis/core/validation`, `validatePodResources`).

use k8s_core::meta::Quantity;
use k8s_quota::pod::{of_container, of_containers};
use serde_json::Value;

use super::is_of_pods;
use crate::{
    invalid::{FieldErrors, names},
    value::{array_at, object_at, str_at},
};

/// Names that are listed in the message about another one.
const SUPPORTED: [&str; 3] = ["cpu", "hugepages-", "memory"];

/// Checks the resources of the pod itself. `at` is the path of the spec.
pub(super) fn check(spec: &Value, at: &str, errors: &mut FieldErrors) {
    if object_at(spec, "/resources").is_none() {
        return;
    }
    let at = format!("{at}.resources");
    if str_at(spec, "/os/name") == "windows" {
        return errors.forbidden(at, "may not be set for a windows pod");
    }
    if spec.pointer("/resources/claims").is_some_and(|claims| !claims.is_null()) {
        errors.forbidden(format!("{at}.claims"), "claims may not be set for Resources at pod-level");
    }
    for list in ["limits", "requests"] {
        for name in object_at(spec, &format!("/resources/{list}")).into_iter().flatten().map(|(name, _)| name)
        {
            if names::is_qualified(name) && !is_of_pods(name) {
                errors.not_supported(format!("{at}.{list}[{name}]"), name.as_str(), &SUPPORTED);
            }
        }
    }
    let (requests, limits) = (of_container(spec, "requests"), of_container(spec, "limits"));
    for (name, wanted) in of_containers(spec, "requests").iter() {
        if let Some(own) = requests.get(name).filter(|own| wanted > *own) {
            let detail = format!("must be greater than or equal to aggregate container requests of {wanted}");
            errors.invalid(format!("{at}.requests[{name}]"), own.to_string(), detail);
        }
    }
    for (name, wanted) in of_containers(spec, "limits").iter().filter(|(name, _)| name.starts_with("huge")) {
        if let Some(own) = limits.get(name).filter(|own| wanted > *own) {
            let detail = format!("must be greater than or equal to aggregate container limits of {wanted}");
            errors.invalid(format!("{at}.limits[{name}]"), own.to_string(), detail);
        }
    }
    for (i, container) in array_at(spec, "/containers").iter().enumerate() {
        for (name, limit) in of_container(container, "limits").iter() {
            let own: Option<Quantity> = limits.get(name).filter(|own| limit > *own);
            if let Some(own) = own {
                let detail = format!("must be less than or equal to pod limits of {own}");
                errors.invalid(format!("{at}.containers[{i}][{name}].limits"), limit.to_string(), detail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_asks_for_at_least_what_its_containers_do() {
        let spec = |resources: Value| {
            let container =
                json!({"name": "c", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "3"}}});
            json!({"containers": [container], "resources": resources})
        };
        for (resources, want) in [
            (json!({}), vec![]),
            (json!({"requests": {"cpu": "2"}, "limits": {"cpu": "3"}}), vec![]),
            (
                json!({"requests": {"cpu": "1"}}),
                vec![
                    "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 2",
                ],
            ),
            (
                json!({"limits": {"cpu": "2"}}),
                vec![
                    "spec.resources.containers[0][cpu].limits: Invalid value: \"3\": must be less than or equal to pod limits of 2",
                ],
            ),
            (
                json!({"requests": {"ephemeral-storage": "1"}}),
                vec![
                    "spec.resources.requests[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \"cpu\", \"hugepages-\", \"memory\"",
                ],
            ),
            (
                json!({"claims": [{"name": "c"}]}),
                vec!["spec.resources.claims: Forbidden: claims may not be set for Resources at pod-level"],
            ),
        ] {
            let mut errors = FieldErrors::default();
            check(&spec(resources.clone()), "spec", &mut errors);
            assert_eq!(errors.lines(), want, "{resources}");
        }
    }
}
