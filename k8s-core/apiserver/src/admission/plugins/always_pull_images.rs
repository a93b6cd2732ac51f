//! AlwaysPullImages: every container pulls its image, so that an image on a node is for those only who may
//! pull it.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use serde_json::Value;

use super::pods::{CONTAINERS, handles_pods};
use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, str_at},
};

pub(super) struct AlwaysPullImages;

#[async_trait]
impl Admit for AlwaysPullImages {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        handles_pods(operation, resource, part)
            || (resource.storage.as_ref() == "pods" && part == "ephemeralcontainers")
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        if !changes_images(admission) {
            return Ok(());
        }
        for kind in CONTAINERS {
            let containers =
                admission.object.pointer_mut(&format!("/spec/{kind}")).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten().filter(|c| c.is_object()) {
                container["imagePullPolicy"] = "Always".into();
            }
        }
        for volume in
            admission.object.pointer_mut("/spec/volumes").and_then(Value::as_array_mut).into_iter().flatten()
        {
            if let Some(image) =
                volume.get_mut("image").filter(|image| !str_at(image, "/reference").is_empty())
            {
                image["pullPolicy"] = "Always".into();
            }
        }
        Ok(())
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        if !changes_images(admission) {
            return Ok(());
        }
        for kind in CONTAINERS {
            for (i, container) in array_at(admission.object, &format!("/spec/{kind}")).iter().enumerate() {
                let policy = str_at(container, "/imagePullPolicy");
                if policy != "Always" {
                    let why = format!(
                        "spec.{kind}[{i}].imagePullPolicy: Unsupported value: {policy:?}: supported values: \"Always\""
                    );
                    return Err(admission.forbidden(&why));
                }
            }
        }
        Ok(())
    }
}

/// Returns false for an update that adds no image: a policy of before the plugin may stay.
fn changes_images(admission: &Admission<'_>) -> bool {
    let images = |pod: &Value| -> Vec<String> {
        let all = CONTAINERS.iter().flat_map(|kind| array_at(pod, &format!("/spec/{kind}")));
        all.map(|container| str_at(container, "/image").to_owned()).collect()
    };
    let Some(old) = admission.old else { return true };
    let before = images(old);
    images(admission.object).iter().any(|image| !before.contains(image))
}
