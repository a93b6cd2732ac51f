//! Storage drivers: CSIDrivers, CSINodes, CSIStorageCapacities, VolumeAttachments, VolumeAttributesClasses.

use serde_json::json;

use super::{
    BASE, NameRule, Strategy,
    rule::{At, Check, Rule, check, frozen},
};
use crate::{
    invalid::FieldErrors,
    value::{child, default, default_text, list, text},
};

/// A driver name: a subdomain of at most 63 bytes.
pub(super) const DRIVER: &[Check] = &[
    Check::Required(""),
    Check::Longest(63),
    Check::Is(|at, errors| {
        let lower = at.as_text().to_ascii_lowercase();
        if !crate::invalid::names::is_subdomain(&lower) {
            at.invalid(errors, crate::invalid::names::SUBDOMAIN_MESSAGE);
        }
    }),
];

/// Defaults and validation of CSIDrivers.
pub static CSI_DRIVER: Strategy = Strategy {
    generation: true,
    default: |driver| {
        let Some(spec) = child(driver, "spec") else { return };
        for (field, value) in [
            ("attachRequired", true),
            ("podInfoOnMount", false),
            ("storageCapacity", false),
            ("requiresRepublish", false),
            ("seLinuxMount", false),
        ] {
            default(spec, field, value);
        }
        default_text(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if list(spec, "/volumeLifecycleModes").is_empty() {
            spec["volumeLifecycleModes"] = json!(["Persistent"]);
        }
    },
    validate: |driver, errors| {
        const RULES: &[Rule] = &[
            Rule("metadata.name", DRIVER),
            Rule("spec.volumeLifecycleModes[*]", &[Check::OneOf(&["Ephemeral", "Persistent"])]),
            Rule("spec.fsGroupPolicy", &[Check::OneOf(&["File", "None", "ReadWriteOnceWithFSType"])]),
            Rule("spec.nodeAllocatableUpdatePeriodSeconds", &[Check::AtLeast(10)]),
            Rule("spec.tokenRequests", &[Check::UniqueBy(&["audience"])]),
            Rule("spec.tokenRequests[*].expirationSeconds", &[Check::Is(check_expiration)]),
        ];
        check(driver, RULES, errors);
    },
    validate_update: |new, old, errors| {
        frozen(new, old, &["/spec/attachRequired", "/spec/volumeLifecycleModes"], errors);
    },
    ..BASE
};

/// Validates a token's expiration in seconds.
pub(super) fn check_expiration(at: &At<'_>, errors: &mut FieldErrors) {
    match at.value.as_i64() {
        Some(n) if n < 600 => at.invalid(errors, "may not specify a duration less than 10 minutes"),
        Some(n) if n > 1 << 32 => at.invalid(errors, "may not specify a duration larger than 2^32 seconds"),
        _ => {}
    }
}

/// Defaults and validation of CSINodes.
pub static CSI_NODE: Strategy = Strategy {
    validate: |node, errors| {
        const RULES: &[Rule] = &[
            Rule("spec.drivers", &[Check::UniqueBy(&["name"])]),
            Rule("spec.drivers[*].name", DRIVER),
            Rule("spec.drivers[*].nodeID", &[Check::Required(""), Check::Longest(256)]),
            Rule("spec.drivers[*].allocatable.count", &[Check::AtLeast(0)]),
            Rule("spec.drivers[*].topologyKeys", &[Check::Unique]),
            Rule("spec.drivers[*].topologyKeys[*]", &[Check::Required(""), Check::Qualified]),
        ];
        check(node, RULES, errors);
    },
    validate_update: |new, old, errors| {
        let (new, old) = (At::root(new, ""), At::root(old, ""));
        let (now, before) = (new.field("spec"), old.field("spec"));
        let (now, before) = (now.field("drivers"), before.field("drivers"));
        for driver in now.items() {
            let same = before.items().find(|d| d.text("name") == driver.text("name"));
            let Some(same) = same else { continue };
            let (mut one, mut other) = (driver.value.clone(), same.value.clone());
            for side in [&mut one, &mut other] {
                side.as_object_mut().map(|d| d.remove("allocatable"));
            }
            if one != other {
                driver.invalid(errors, "field is immutable");
            }
        }
    },
    ..BASE
};

/// Defaults and validation of CSIStorageCapacities.
pub static CSI_STORAGE_CAPACITY: Strategy = Strategy {
    validate: |capacity, errors| {
        const RULES: &[Rule] = &[
            Rule("nodeTopology", &[Check::Selector]),
            Rule("storageClassName", &[Check::Required(""), Check::Name(NameRule::Subdomain)]),
            Rule("capacity", &[Check::NotNegative]),
            Rule("maximumVolumeSize", &[Check::NotNegative]),
        ];
        check(capacity, RULES, errors);
    },
    validate_update: |new, old, errors| frozen(new, old, &["/nodeTopology", "/storageClassName"], errors),
    ..BASE
};

/// Defaults and validation of VolumeAttachments.
pub static VOLUME_ATTACHMENT: Strategy = Strategy {
    create: |attachment| attachment["status"] = json!({"attached": false}),
    validate: |attachment, errors| {
        const SOURCES: &[&str] = &["inlineVolumeSpec", "persistentVolumeName"];
        const RULES: &[Rule] = &[
            Rule("spec.attacher", &[Check::Required(""), Check::Qualified]),
            Rule(
                "spec.source",
                &[Check::Is(|at, errors| {
                    match SOURCES.iter().filter(|f| !at.field(f).value.is_null()).count() {
                        0 => errors.required(
                            at,
                            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                        ),
                        1 => {}
                        _ => errors.invalid(
                            at,
                            "",
                            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                        ),
                    }
                })],
            ),
            Rule("spec.source.persistentVolumeName", &[Check::Name(NameRule::Subdomain)]),
            Rule("spec.nodeName", &[Check::Required(""), Check::Name(NameRule::Subdomain)]),
        ];
        check(attachment, RULES, errors);
    },
    validate_update: |new, old, errors| frozen(new, old, &["/spec"], errors),
    validate_status: |new, _, errors| {
        const RULES: &[Rule] = &[
            Rule(
                "status.attachmentMetadata",
                &[Check::Is(|at, errors| {
                    for (_, value) in at.entries().filter(|(_, v)| v.as_text().len() > 512) {
                        errors.too_long(value, 512);
                    }
                })],
            ),
            Rule("status.attachError.message", &[Check::Longest(1024)]),
            Rule("status.detachError.message", &[Check::Longest(1024)]),
        ];
        check(new, RULES, errors);
    },
    ..BASE
};

/// Defaults and validation of VolumeAttributesClasses.
pub static VOLUME_ATTRIBUTES_CLASS: Strategy = Strategy {
    validate: |class, errors| {
        const RULES: &[Rule] = &[
            Rule("driverName", &[Check::Required(""), Check::Qualified]),
            Rule(
                "parameters",
                &[
                    Check::Required("must contain at least one key/value pair"),
                    Check::Is(check_class_parameters),
                ],
            ),
        ];
        check(class, RULES, errors);
    },
    validate_update: |new, old, errors| {
        if text(new, "/driverName") != text(old, "/driverName") {
            errors.forbidden("driverName", "updates to driverName are forbidden.");
        }
        if new.get("parameters") != old.get("parameters") {
            errors.forbidden("parameters", "updates to parameters are forbidden.");
        }
    },
    ..BASE
};

/// Validates class parameters: at most 512, no empty names, limited total size.
pub(super) fn check_class_parameters(at: &At<'_>, errors: &mut FieldErrors) {
    const MOST: u64 = 512;
    const LARGEST: usize = 256 << 10;
    let entries = at.entries().count() as u64;
    if entries > MOST {
        errors.too_many(at, entries, MOST);
    }
    let mut size = 0;
    for (key, value) in at.entries() {
        if key.is_empty() {
            errors.invalid(at, key, "field can not be empty.");
        }
        size += key.len() + value.as_text().len();
    }
    if size > LARGEST {
        errors.too_long(at, LARGEST);
    }
}
