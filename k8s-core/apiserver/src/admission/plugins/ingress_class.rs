//! DefaultIngressClass: the class of an Ingress that names none.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::Value;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{child, object_at, str_at},
};

pub(super) struct DefaultIngressClass {
    pub(super) store: Store,
}

fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object_at(object, "/metadata/annotations")?.get(key)?.as_str()
}

#[async_trait]
impl Admit for DefaultIngressClass {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Create
            && part.is_empty()
            && resource.storage.as_ref() == "ingresses.networking.k8s.io"
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let ingress = &*admission.object;
        let named = ingress.pointer("/spec/ingressClassName").is_some_and(|class| !class.is_null())
            || annotation(ingress, "kubernetes.io/ingress.class").is_some();
        if named {
            return Ok(());
        }
        let all = self.store.snapshot("ingressclasses.networking.k8s.io");
        let mut classes: Vec<Value> = all
            .range("", "")
            .filter_map(|stored| serde_json::from_slice(&stored.json).ok())
            .filter(|class| annotation(class, "ingressclass.kubernetes.io/is-default-class") == Some("true"))
            .collect();
        // The newest; of equally old ones, the first by name.
        classes.sort_by(|a, b| {
            let created = |class: &Value| str_at(class, "/metadata/creationTimestamp").to_owned();
            created(b).cmp(&created(a)).then_with(|| crate::value::name(a).cmp(crate::value::name(b)))
        });
        if let (Some(class), Some(spec)) = (classes.first(), child(admission.object, "spec")) {
            spec["ingressClassName"] = crate::value::name(class).into();
        }
        Ok(())
    }
}
