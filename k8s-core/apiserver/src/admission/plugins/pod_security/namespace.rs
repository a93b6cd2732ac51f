//! Namespaces: their labels, and the pods in them when `enforce` becomes stricter.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use k8s_core::status::ApiStatus;
use serde_json::Value;

use super::{
    PodSecurity,
    controls::{evaluate, reasons},
    pod::Pod,
    policy::{Level, LevelVersion, PREFIX, Policy, WrongLabel},
};
use crate::{
    admission::Admission,
    blocking::run_blocking_if,
    invalid::FieldErrors,
    value::{array_at, object_at, str_at},
};

/// Most pods that are evaluated.
const MOST_PODS: usize = 3000;
/// Longest time that pods are evaluated.
const LONGEST: Duration = Duration::from_secs(1);

impl PodSecurity {
    pub(super) fn namespace(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let of = |object: &Value| self.of_object(object);
        let (policy, wrong) = of(admission.object);
        let before = admission.old.map(of);
        let is_known = before.as_ref().is_some_and(|(_, before)| *before == wrong);
        if !wrong.is_empty() && !is_known {
            let mut errors = FieldErrors::default();
            for label in &wrong {
                errors.invalid(label.field(), label.value.as_str(), label.detail);
            }
            return Err(errors.into_status("", "Namespace", admission.name()));
        }
        let name = admission.name();
        let is_exempt = self.configuration.exempt.namespaces.iter().any(|exempt| exempt == name);
        if let Some((before, _)) = before {
            let (new, old) = (policy.enforce, before.enforce);
            let is_relaxed = new.version == old.version && new.level <= old.level;
            if new == old || new.level == Level::Privileged || is_relaxed {
                return Ok(());
            }
            if !is_exempt {
                run_blocking_if(true, || {
                    self.violations_of_pods(name, new)
                        .into_iter()
                        .for_each(|warning| admission.warn(warning));
                });
                return Ok(());
            }
        }
        if is_exempt && !policy.is_privileged() && !policy.is_same(&self.configuration.defaults) {
            admission.warn(exempt_warning(name, &policy, admission.object));
        }
        Ok(())
    }

    fn of_object(&self, namespace: &Value) -> (Policy, Vec<WrongLabel>) {
        let labels = object_at(namespace, "/metadata/labels");
        let label = |name: &str| labels.and_then(|labels| labels.get(name)).and_then(Value::as_str);
        Policy::of_labels(label, &self.configuration.defaults)
    }

    /// Returns the warnings about the pods of a namespace that a level forbids. One pod of each controller
    /// comes first.
    fn violations_of_pods(&self, namespace: &str, enforce: LevelVersion) -> Vec<String> {
        let started = self.clock.now();
        let prefix = format!("{namespace}/");
        let snapshot = self.store.snapshot("pods");
        let (mut first, mut later, mut controllers) = (Vec::new(), Vec::new(), HashSet::new());
        for stored in snapshot.range(&prefix, "") {
            let Ok(pod) = serde_json::from_slice::<Value>(&stored.json) else { continue };
            let class = str_at(&pod, "/spec/runtimeClassName");
            if self.configuration.exempt.runtime_classes.iter().any(|exempt| exempt == class) {
                continue;
            }
            let mut owners = array_at(&pod, "/metadata/ownerReferences").iter();
            let controller = owners.find(|owner| owner.get("controller") == Some(&Value::Bool(true)));
            let is_new = controller.is_none_or(|owner| controllers.insert(str_at(owner, "/uid").to_owned()));
            if is_new { first.push(pod) } else { later.push(pod) }
        }
        let (total, mut checked) = (first.len() + later.len(), 0);
        // The number of pods and the first name, by violations.
        let mut found = BTreeMap::<String, (usize, String)>::new();
        for pod in first.iter().chain(&later).take(MOST_PODS) {
            checked += 1;
            let violations = Pod::of(pod).map(|pod| evaluate(enforce, &pod)).unwrap_or_default();
            if !violations.is_empty() {
                let name = str_at(pod, "/metadata/name");
                let (count, least) = found.entry(reasons(&violations)).or_insert((0, name.to_owned()));
                *count += 1;
                if name < least.as_str() {
                    *least = name.to_owned();
                }
            }
            if self.clock.now().duration_since(started).unsigned_abs() > LONGEST {
                break;
            }
        }
        let mut warnings = Vec::new();
        if checked < total {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
            ));
        }
        if !found.is_empty() {
            warnings.push(format!(
                "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{enforce}\""
            ));
        }
        let mut lines: Vec<String> = found
            .into_iter()
            .map(|(reasons, (count, name))| match count {
                1 => format!("{name}: {reasons}"),
                2 => format!("{name} (and 1 other pod): {reasons}"),
                _ => format!("{name} (and {} other pods): {reasons}", count - 1),
            })
            .collect();
        lines.sort();
        warnings.append(&mut lines);
        warnings
    }
}

/// Returns the warning that the labels of an exempt namespace have no effect.
fn exempt_warning(name: &str, policy: &Policy, namespace: &Value) -> String {
    let labels = object_at(namespace, "/metadata/labels");
    let has = |label: String| labels.is_some_and(|labels| labels.contains_key(&format!("{PREFIX}{label}")));
    let set = policy.modes().into_iter().filter(|(mode, of)| {
        of.level != Level::Privileged && (has((*mode).to_owned()) || has(format!("{mode}-version")))
    });
    let set: Vec<String> = set.map(|(mode, of)| format!("{mode}={of}")).collect();
    format!(
        "namespace \"{name}\" is exempt from Pod Security, and the policy ({}) will be ignored",
        set.join(", ")
    )
}
