//! Validation of CustomResourceDefinitions and ThirdPartyResources. Their resources are in
//! [`crate::resources::custom`].

mod structure;

use std::collections::HashSet;

use k8s_core::legacy::third_party_kind;
use k8s_schema::Schema;
use serde_json::{Value, json};

use super::{BASE, Strategy, immutable};
use crate::{
    invalid::{FieldErrors, names},
    resources::{
        custom::{Rules, from_third_party},
        is_built_in,
    },
    value::{child, default, default_text, list, text, truth},
};

/// Defaults and validation of CustomResourceDefinitions.
pub static CUSTOM_RESOURCE_DEFINITION: Strategy = Strategy {
    generation: true,
    default: |crd| {
        let Some(spec) = child(crd, "spec") else { return };
        if child(spec, "conversion").is_some_and(|c| text(c, "/strategy").is_empty()) {
            spec["conversion"]["strategy"] = "None".into();
        }
        if let Some(names) = child(spec, "names") {
            let kind = text(names, "/kind").to_owned();
            default_text(names, "singular", &kind.to_lowercase());
            if !kind.is_empty() {
                default_text(names, "listKind", &format!("{kind}List"));
            }
        }
        for version in spec.get_mut("versions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(scale) = version.pointer_mut("/subresources/scale") {
                default(scale, "labelSelectorPath", "");
            }
        }
    },
    create: |crd| {
        crd["status"] =
            json!({"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []});
    },
    validate_current: |new, old, errors| {
        let loose = |crd: &Value| truth(crd, "/spec/preserveUnknownFields");
        if loose(new) && !old.is_some_and(loose) {
            errors.invalid(
                "spec.preserveUnknownFields",
                true,
                "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
            );
        }
    },
    validate: check,
    validate_update: |new, old, errors| {
        for pointer in ["/spec/group", "/spec/names/kind", "/spec/names/plural", "/spec/scope"] {
            immutable(new, old, pointer, errors);
        }
        let stored = list(old, "/status/storedVersions");
        for (i, version) in stored.iter().enumerate() {
            if !list(new, "/spec/versions").iter().any(|v| v.get("name") == Some(version)) {
                errors.invalid(
                    format!("status.storedVersions[{i}]"),
                    version.clone(),
                    "missing from spec.versions",
                );
            }
        }
    },
    ..BASE
};

/// Returns the message of the condition NonStructuralSchema; `None` if all schemas are structural.
pub(crate) fn non_structural(crd: &Value) -> Option<String> {
    let lines = structure::violations(crd).lines();
    match lines.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        all => Some(format!("[{}]", all.join(", "))),
    }
}

fn check(crd: &Value, errors: &mut FieldErrors) {
    let (group, plural, kind) =
        (text(crd, "/spec/group"), text(crd, "/spec/names/plural"), text(crd, "/spec/names/kind"));
    if text(crd, "/metadata/name") != format!("{plural}.{group}") {
        errors.invalid(
            "metadata.name",
            text(crd, "/metadata/name"),
            "must be spec.names.plural+\".\"+spec.group",
        );
    }
    if group.is_empty() {
        errors.required("spec.group", "");
    } else if !names::is_subdomain(group) || !group.contains('.') {
        errors.invalid("spec.group", group, "should be a domain with at least one dot");
    }
    for (field, value) in [("plural", plural), ("singular", text(crd, "/spec/names/singular"))] {
        if value.is_empty() {
            errors.required(format!("spec.names.{field}"), "");
        } else if !names::is_label_1035(value) {
            errors.invalid(format!("spec.names.{field}"), value, names::LABEL_1035_MESSAGE);
        }
    }
    if kind.is_empty() {
        errors.required("spec.names.kind", "");
    }
    let scope = text(crd, "/spec/scope");
    if !["Cluster", "Namespaced"].contains(&scope) {
        errors.not_supported("spec.scope", scope, &["Cluster", "Namespaced"]);
    }
    let versions = list(crd, "/spec/versions");
    let mut seen = HashSet::new();
    for (i, version) in versions.iter().enumerate() {
        let at = format!("spec.versions[{i}]");
        let name = text(version, "/name");
        if !names::is_label_1035(name) {
            errors.invalid(format!("{at}.name"), name, names::LABEL_1035_MESSAGE);
        } else if !seen.insert(name) {
            errors.duplicate(format!("{at}.name"), name);
        }
        let loose = truth(crd, "/spec/preserveUnknownFields");
        match version.pointer("/schema/openAPIV3Schema") {
            None if loose => {}
            None => errors.required(format!("{at}.schema.openAPIV3Schema"), "schemas are required"),
            Some(schema) if loose || text(schema, "/type") == "object" => {
                if let Err(e) = Schema::custom(schema) {
                    errors.invalid(format!("{at}.schema.{}", e.path), "", e.message);
                } else {
                    Rules::new(schema, &format!("{at}.schema.openAPIV3Schema"), errors);
                }
            }
            // Reported with the other violations of structural schemas.
            Some(_) => {}
        }
        for (j, column) in list(version, "/additionalPrinterColumns").iter().enumerate() {
            if !text(column, "/jsonPath").starts_with('.') {
                errors.invalid(
                    format!("{at}.additionalPrinterColumns[{j}].jsonPath"),
                    text(column, "/jsonPath"),
                    "must be a simple json path starting with .",
                );
            }
        }
    }
    let stored = versions.iter().filter(|v| truth(v, "/storage")).count();
    if stored != 1 {
        errors.invalid(
            "spec.versions",
            json!(versions),
            "must have exactly one version marked as storage version",
        );
    }
    structure::check(crd, errors);
    let strategy = text(crd, "/spec/conversion/strategy");
    if !["None", "Webhook"].contains(&strategy) {
        errors.not_supported("spec.conversion.strategy", strategy, &["None", "Webhook"]);
    }
}

/// Defaults and validation of ThirdPartyResources.
pub static THIRD_PARTY_RESOURCE: Strategy = Strategy {
    validate: |tpr, errors| {
        let name = text(tpr, "/metadata/name");
        if third_party_kind(name).is_none() {
            errors.invalid(
                "metadata.name",
                name,
                "must be <kind-in-kebab-case>.<domain>, such as rds-database.stable.example.com",
            );
        }
        if from_third_party(tpr).iter().any(|made| is_built_in(&made.storage)) {
            errors.invalid("metadata.name", name, "is the name of a built-in resource");
        }
        if list(tpr, "/versions").is_empty() {
            errors.required("versions", "must specify at least one version");
        }
        for (i, version) in list(tpr, "/versions").iter().enumerate() {
            if !names::is_label_1035(text(version, "/name")) {
                errors.invalid(
                    format!("versions[{i}].name"),
                    text(version, "/name"),
                    names::LABEL_1035_MESSAGE,
                );
            }
        }
    },
    ..BASE
};
