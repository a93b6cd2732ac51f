//! Names, labels, host names and volumes of the pods of a StatefulSet.

use k8s_core::{
    api::api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume},
    },
    meta::ObjectExt,
};

use crate::pods;

/// Label with the name of the pod's revision.
pub(super) const REVISION: &str = "controller-revision-hash";
/// Label with the pod's own name.
pub(super) const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label with the pod's ordinal.
pub(super) const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// Returns the ordinal of a pod by its name; `None` if the name is none of the set's.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let digits = pod.name().strip_prefix(set.name())?.strip_prefix('-')?;
    let ordinal: u32 = digits.parse().ok()?;
    if digits == ordinal.to_string() { i32::try_from(ordinal).ok() } else { None }
}

/// Returns the name of the pod with an ordinal.
pub(super) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name())
}

/// Returns the claim templates of a set.
pub(super) fn claim_templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default()
}

/// Returns the name of the claim that a template makes for an ordinal.
pub(super) fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", template.name(), set.name())
}

/// Builds the pod with an ordinal from the template of a revision.
pub(super) fn build(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = pods::from_template(set, template);
    let name = pod_name(set, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.into(), name.clone());
    labels.insert(POD_INDEX.into(), ordinal.to_string());
    labels.insert(REVISION.into(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain =
        set.spec.as_ref().and_then(|s| s.service_name.clone()).filter(|service| !service.is_empty());
    let templates = claim_templates(set);
    if !templates.is_empty() {
        // A claim takes the place of the template's volume of its name.
        let mut volumes: Vec<Volume> = templates.iter().map(|one| volume(set, one, ordinal)).collect();
        let others = spec.volumes.take().unwrap_or_default().into_iter();
        volumes.extend(others.filter(|other| !templates.iter().any(|one| one.name() == other.name)));
        spec.volumes = Some(volumes);
    }
    pod
}

fn volume(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> Volume {
    Volume {
        name: template.name().to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(set, template, ordinal),
            read_only: None,
        }),
        ..Volume::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set() -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "a", "uid": "u"},
            "spec": {"serviceName": "db-all", "selector": {}, "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [], "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]},
        }))
        .unwrap()
    }

    #[test]
    fn ordinals_are_those_of_the_sets_own_names() {
        let named = |name: &str| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            ordinal(&set(), &pod)
        };
        assert_eq!((named("db-0"), named("db-12")), (Some(0), Some(12)));
        for other in ["db", "db-", "db-x", "db-01", "db--1", "db-+1", "other-0", "db-1-0", "db-99999999999"] {
            assert_eq!(named(other), None, "{other}");
        }
    }

    #[test]
    fn a_pod_has_its_name_host_and_claims() {
        let set = set();
        let pod = build(&set, &set.spec.as_ref().unwrap().template, "db-abc", 3);
        let pod = serde_json::to_value(pod).unwrap();
        let name = json!({"app": "db", POD_NAME: "db-3", POD_INDEX: "3", REVISION: "db-abc"});
        assert_eq!((&pod["metadata"]["name"], &pod["metadata"]["labels"]), (&json!("db-3"), &name));
        assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("db-3"), &json!("db-all")));
        let volumes = json!([
            {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-3"}}, {"name": "tmp", "emptyDir": {}},
        ]);
        assert_eq!(pod["spec"]["volumes"], volumes);
    }
}
