//! The Ingresses that this controller serves.

use std::{collections::BTreeSet, sync::Arc};

use k8s_core::{
    api::api::networking::v1::{Ingress, IngressClass},
    meta::ObjectExt,
};

/// `spec.controller` of the IngressClasses of this controller.
pub const CONTROLLER: &str = "hyperkube.dev/ingress";
/// Annotation with the class of before `spec.ingressClassName`.
const ANNOTATION: &str = "kubernetes.io/ingress.class";
/// Annotation of the class of Ingresses that name none.
const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// Class that is served, too, while no IngressClass of this name is of another controller.
const NGINX: &str = "nginx";

/// The classes of a controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    ours: BTreeSet<String>,
    /// Ingresses without a class are ours.
    is_default: bool,
}

impl Classes {
    /// Reads the IngressClasses. `name` is a class that is always served (`hyperkube`), unless it is of
    /// another controller.
    #[must_use]
    pub fn read(name: &str, classes: &[Arc<IngressClass>]) -> Self {
        let controller = |class: &IngressClass| class.spec.as_ref().and_then(|spec| spec.controller.clone());
        let is_ours = |class: &IngressClass| controller(class).as_deref() == Some(CONTROLLER);
        let is_default = |class: &IngressClass| class.annotation(IS_DEFAULT) == Some("true");
        let mut ours: BTreeSet<String> =
            classes.iter().filter(|class| is_ours(class)).map(|class| class.name().to_owned()).collect();
        for known in [name, NGINX] {
            if !classes.iter().any(|class| class.name() == known) {
                ours.insert(known.to_owned());
            }
        }
        let mut defaults = classes.iter().filter(|class| is_default(class)).peekable();
        let is_default = defaults.peek().is_some() && defaults.all(|class| is_ours(class));
        Classes { ours, is_default }
    }

    /// Returns true if an Ingress is of one of the classes. The annotation goes before the field, as in
    /// ingress-nginx.
    #[must_use]
    pub fn has(&self, ingress: &Ingress) -> bool {
        let field = || ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
        match ingress.annotation(ANNOTATION).filter(|class| !class.is_empty()).or_else(field) {
            Some(class) => self.ours.contains(class),
            None => self.is_default,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn classes_by_field_annotation_and_default() {
        let class = |name: &str, controller: &str, default: bool| -> Arc<IngressClass> {
            let annotations = json!({IS_DEFAULT: default.to_string()});
            let object = json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"controller": controller}});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let ours = |default| class("hyperkube", CONTROLLER, default);
        let theirs = |default| class("nginx", "k8s.io/ingress-nginx", default);
        let (none, by_field) = (json!({}), |name: &str| json!({"spec": {"ingressClassName": name}}));
        let by_note = |name: &str| json!({"metadata": {"annotations": {ANNOTATION: name}}});
        let cases: &[(&[Arc<IngressClass>], Value, bool)] = &[
            (&[ours(true)], none.clone(), true),
            (&[ours(false)], none.clone(), false),
            (&[], none.clone(), false),
            (&[ours(true), theirs(true)], none.clone(), false),
            (&[ours(false)], by_field("hyperkube"), true),
            (&[], by_field("hyperkube"), true),
            (&[class("hyperkube", "example.com/other", false)], by_field("hyperkube"), false),
            (&[class("mine", CONTROLLER, false)], by_field("mine"), true),
            (&[], by_field("mine"), false),
            (&[], by_field("nginx"), true),
            (&[], by_note("nginx"), true),
            (&[theirs(false)], by_field("nginx"), false),
            (&[theirs(false)], by_note("nginx"), false),
            (&[], by_note("traefik"), false),
            (&[ours(true)], by_note(""), true),
        ];
        for (classes, ingress, want) in cases {
            let ingress: Ingress = serde_json::from_value(ingress.clone()).unwrap();
            assert_eq!(Classes::read("hyperkube", classes).has(&ingress), *want, "{classes:?} {ingress:?}");
        }
    }
}
