//! Validation of volume sources, for pods and persistent volumes.

use serde_json::Value;

use crate::{
    invalid::{FieldErrors, names},
    resources::strategy::{
        certificates::check_signer,
        csi,
        pod_certificates::longest_life,
        rule::{At, Check, Rule},
    },
    value::{array_at, child, default, default_text, str_at},
};

/// Validates that a volume has exactly one source, and that source. `others` are the fields that are not
/// sources.
pub(in crate::resources::strategy) fn check_sources(
    volume: &Value,
    at: &str,
    others: &[&str],
    errors: &mut FieldErrors,
) {
    let root = At::root(volume, at);
    let mut sources = root.entries().map(|(k, _)| k).filter(|k| !others.contains(k));
    match sources.next() {
        None => errors.required(at, "must specify a volume type"),
        Some(source) => {
            if let Some((_, rules)) = SOURCES.iter().find(|(name, _)| *name == source) {
                root.field(source).check(rules, errors);
            }
        }
    }
    for extra in sources {
        errors.forbidden(root.field(extra), "may not specify more than 1 volume type");
    }
}

const fn needed(field: &'static str) -> Rule {
    Rule(field, &[Check::Required("")])
}

/// A Secret reference with optional namespace.
const SECRET: Rule = Rule("secretRef", &[Check::Has(&[needed("name")])]);
const ABSOLUTE_OR_RELATIVE: Rule = Rule("path", &[Check::Required(""), Check::NoDots]);

/// Volume sources and their rules.
const SOURCES: &[(&str, &[Rule])] = &[
    (
        "emptyDir",
        &[Rule(
            "sizeLimit",
            &[Check::Is(|at, errors| {
                if at.as_text().starts_with('-') {
                    errors.forbidden(at, "SizeLimit field must be a valid resource quantity");
                }
            })],
        )],
    ),
    ("hostPath", &[ABSOLUTE_OR_RELATIVE, Rule("type", &[Check::OneOf(HOST_TYPES)])]),
    ("gitRepo", &[needed("repository"), Rule("directory", &[Check::Is(relative)])]),
    ("gcePersistentDisk", &[needed("pdName"), Rule("partition", &[Check::Between(0, 255)])]),
    ("awsElasticBlockStore", &[needed("volumeID"), Rule("partition", &[Check::Between(0, 255)])]),
    ("secret", &[needed("secretName"), MODE, Rule("items[*]", &[Check::Has(KEY_TO_PATH)])]),
    ("configMap", &[needed("name"), MODE, Rule("items[*]", &[Check::Has(KEY_TO_PATH)])]),
    ("nfs", &[needed("server"), Rule("path", &[Check::Required(""), Check::Is(absolute)])]),
    (
        "iscsi",
        &[
            needed("targetPortal"),
            Rule(
                "iqn",
                &[
                    Check::Required(""),
                    Check::Is(|at, errors| {
                        if !["iqn.", "eui.", "naa."].iter().any(|p| at.as_text().starts_with(p)) {
                            at.invalid(errors, "must be valid format starting with iqn, eui, or naa");
                        }
                    }),
                ],
            ),
            Rule("lun", &[Check::Between(0, 255)]),
            Rule(
                "",
                &[Check::Is(|at, errors| {
                    let chap = at.truth("chapAuthDiscovery") || at.truth("chapAuthSession");
                    if chap && at.field("secretRef").value.is_null() {
                        errors.required(at.field("secretRef"), "");
                    }
                })],
            ),
        ],
    ),
    ("glusterfs", &[needed("endpoints"), ABSOLUTE_OR_RELATIVE]),
    (
        "flocker",
        &[
            Rule(
                "",
                &[Check::Is(|at, errors| match (at.text("datasetName"), at.text("datasetUUID")) {
                    ("", "") => errors.required(at, "one of datasetName and datasetUUID is required"),
                    ("", _) | (_, "") => {}
                    _ => at.invalid(errors, "resource can not specify both datasetName and datasetUUID"),
                })],
            ),
            Rule(
                "datasetName",
                &[Check::Is(|at, errors| {
                    if at.as_text().contains('/') {
                        at.invalid(errors, "must not contain '/'");
                    }
                })],
            ),
        ],
    ),
    ("rbd", &[needed("monitors"), needed("image")]),
    ("cinder", &[needed("volumeID"), SECRET]),
    ("cephfs", &[needed("monitors")]),
    (
        "quobyte",
        &[
            Rule(
                "registry",
                &[Check::Required("must be a host:port pair or multiple pairs separated by commas")],
            ),
            needed("volume"),
        ],
    ),
    ("downwardAPI", &[MODE, Rule("items[*]", &[Check::Has(DOWNWARD_FILE)])]),
    (
        "fc",
        &[Rule(
            "",
            &[Check::Is(|at, errors| {
                let set = |name| at.field(name).is_set();
                match (set("targetWWNs"), set("wwids")) {
                    (false, false) => errors.required(
                        at.field("targetWWNs"),
                        "must specify either targetWWNs or wwids, but not both",
                    ),
                    (true, true) => at
                        .field("targetWWNs")
                        .invalid(errors, "targetWWNs and wwids can not be specified simultaneously"),
                    (true, false) if !(0..=255).contains(&at.integer("lun").unwrap_or(-1)) => {
                        if at.field("lun").value.is_null() {
                            errors.required(at.field("lun"), "lun is required if targetWWNs is specified");
                        } else {
                            at.field("lun").invalid(errors, "must be between 0 and 255, inclusive");
                        }
                    }
                    _ => {}
                }
            })],
        )],
    ),
    ("flexVolume", &[needed("driver")]),
    ("azureFile", &[needed("secretName"), needed("shareName")]),
    (
        "azureDisk",
        &[
            needed("diskName"),
            needed("diskURI"),
            Rule("cachingMode", &[Check::OneOf(&["None", "ReadOnly", "ReadWrite"])]),
            Rule("kind", &[Check::OneOf(&["Dedicated", "Managed", "Shared"])]),
        ],
    ),
    ("vsphereVolume", &[needed("volumePath")]),
    ("photonPersistentDisk", &[needed("pdID")]),
    ("portworxVolume", &[needed("volumeID")]),
    ("scaleIO", &[needed("gateway"), needed("system"), needed("volumeName")]),
    ("storageos", &[needed("volumeName")]),
    ("local", &[Rule("path", &[Check::Required(""), Check::NoDots])]),
    (
        "csi",
        &[
            Rule("driver", csi::DRIVER),
            Rule("nodePublishSecretRef", &[Check::Has(&[needed("name")])]),
            Rule("controllerPublishSecretRef", SECRET_OF_NAMESPACE),
            Rule("nodeStageSecretRef", SECRET_OF_NAMESPACE),
            Rule("controllerExpandSecretRef", SECRET_OF_NAMESPACE),
            Rule("nodeExpandSecretRef", SECRET_OF_NAMESPACE),
        ],
    ),
    ("persistentVolumeClaim", &[needed("claimName")]),
    (
        "projected",
        &[MODE, Rule("sources[*]", &[Check::Has(PROJECTION)]), Rule("", &[Check::Is(check_paths)])],
    ),
    (
        "ephemeral",
        &[Rule(
            "volumeClaimTemplate",
            &[
                Check::Required(""),
                Check::Is(|at, errors| {
                    let spec = at.field("spec");
                    if spec.value.is_null() {
                        errors.required(spec, "");
                    } else {
                        super::super::storage::check_claim(spec.value, &spec.to_string(), errors);
                    }
                }),
            ],
        )],
    ),
    (
        "image",
        &[needed("reference"), Rule("pullPolicy", &[Check::OneOf(&["Always", "IfNotPresent", "Never"])])],
    ),
];

const SECRET_OF_NAMESPACE: &[Check] = &[Check::Has(&[needed("name"), needed("namespace")])];

const HOST_TYPES: &[&str] =
    &["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

const OUT_OF_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

fn check_mode(at: &At<'_>, errors: &mut FieldErrors) {
    if at.value.as_i64().is_some_and(|m| !(0..=0o777).contains(&m)) {
        at.invalid(errors, OUT_OF_MODE);
    }
}

/// File mode of a volume: 0 to 0777.
const MODE: Rule = Rule("defaultMode", &[Check::Is(check_mode)]);

fn absolute(at: &At<'_>, errors: &mut FieldErrors) {
    if !at.as_text().starts_with('/') {
        at.invalid(errors, "must be an absolute path");
    }
}

fn relative(at: &At<'_>, errors: &mut FieldErrors) {
    let path = at.as_text();
    if path.starts_with('/') {
        at.invalid(errors, "must be a relative path");
    }
    if path.split('/').any(|p| p == "..") {
        at.invalid(errors, "must not contain '..'");
    }
}

/// A relative path whose first element does not start with `..`, which is reserved.
fn local_path(at: &At<'_>, errors: &mut FieldErrors) {
    relative(at, errors);
    if at.as_text().starts_with("..") && !at.as_text().starts_with("../") && at.as_text() != ".." {
        at.invalid(errors, "must not start with '..'");
    }
}

const KEY_TO_PATH: &[Rule] = &[
    needed("key"),
    Rule("path", &[Check::Required(""), Check::Is(local_path)]),
    Rule("mode", &[Check::Is(check_mode)]),
];

const DOWNWARD_FILE: &[Rule] = &[
    Rule("path", &[Check::Required(""), Check::Is(local_path)]),
    Rule("mode", &[Check::Is(check_mode)]),
    Rule(
        "",
        &[Check::Is(|at, errors| {
            let there = |name| !at.field(name).value.is_null();
            match (there("fieldRef"), there("resourceFieldRef")) {
                (true, true) => {
                    at.invalid(errors, "fieldRef and resourceFieldRef can not be specified simultaneously")
                }
                (false, false) => errors.required(at, "one of fieldRef and resourceFieldRef is required"),
                _ => {}
            }
        })],
    ),
    Rule("fieldRef.fieldPath", &[Check::Required(""), Check::Is(check_volume_field)]),
    Rule("resourceFieldRef.containerName", &[Check::Required("")]),
    Rule("resourceFieldRef.resource", &[Check::Required(""), Check::Is(check_resource_field)]),
];

fn check_volume_field(at: &At<'_>, errors: &mut FieldErrors) {
    check_field_path(
        at,
        &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"],
        errors,
    );
}

/// Validates a downward API field path: one of `paths`, or a key of labels or annotations.
pub(super) fn check_field_path(at: &At<'_>, paths: &[&str], errors: &mut FieldErrors) {
    let path = at.as_text();
    let key = path.strip_suffix("']").and_then(|p| p.split_once("['"));
    match key {
        Some(("metadata.labels" | "metadata.annotations", key))
            if names::is_qualified(&key.to_lowercase()) => {}
        Some(("metadata.labels" | "metadata.annotations", key)) => {
            at.invalid(errors, format!("{key}: {}", super::super::rule::QUALIFIED));
        }
        Some((path, _)) => at.invalid(errors, format!("\"{path}\" does not support subscript")),
        None if paths.contains(&path) => {}
        None => errors.not_supported(at, path, paths),
    }
}

/// Validates a container resource for the downward API.
pub(super) fn check_resource_field(at: &At<'_>, errors: &mut FieldErrors) {
    const KNOWN: &[&str] = &[
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let pages = ["limits.hugepages-", "requests.hugepages-"].iter().any(|p| at.as_text().starts_with(p));
    if !pages && !KNOWN.contains(&at.as_text()) {
        errors.not_supported(at, at.as_text(), KNOWN);
    }
}

const PROJECTION: &[Rule] = &[
    Rule(
        "",
        &[Check::Is(|at, errors| {
            let mut kinds = at.entries().map(|(k, _)| k);
            if kinds.next().is_none() {
                errors.required(at, "must specify a projected volume source");
            }
            for extra in kinds {
                errors.forbidden(at.field(extra), "may not specify more than 1 volume type per source");
            }
        })],
    ),
    Rule("secret.name", &[Check::Required("")]),
    Rule("secret.items[*]", &[Check::Has(KEY_TO_PATH)]),
    Rule("configMap.name", &[Check::Required("")]),
    Rule("configMap.items[*]", &[Check::Has(KEY_TO_PATH)]),
    Rule("downwardAPI.items[*]", &[Check::Has(DOWNWARD_FILE)]),
    Rule("serviceAccountToken.path", &[Check::Required(""), Check::Is(local_path)]),
    Rule("serviceAccountToken.expirationSeconds", &[Check::Is(csi::check_expiration)]),
    Rule("clusterTrustBundle.path", &[Check::Required(""), Check::Is(local_path)]),
    Rule("clusterTrustBundle.labelSelector", &[Check::Selector]),
    Rule(
        "clusterTrustBundle",
        &[Check::Is(|at, errors| {
            let set = |field: &str| at.value.get(field).is_some_and(|v| !v.is_null());
            match (set("name"), set("signerName")) {
                (true, true) => at.invalid(errors, "only one of name and signerName may be used"),
                (false, false) => errors.required(at, "either name or signerName must be specified"),
                (true, false) if at.text("name").is_empty() => {
                    errors.required(at.field("name"), "must be a valid object name");
                }
                (true, false) if set("labelSelector") => {
                    at.field("labelSelector")
                        .invalid(errors, "labelSelector must be unset if name is specified");
                }
                _ => {}
            }
        })],
    ),
    Rule("clusterTrustBundle.signerName", &[Check::Is(check_signer)]),
    Rule("podCertificate.signerName", &[Check::Required(""), Check::Is(check_signer)]),
    Rule("podCertificate.keyType", &[Check::Required(""), Check::OneOf(KEY_TYPES)]),
    Rule(
        "podCertificate.maxExpirationSeconds",
        &[Check::Is(|at, errors| {
            if at.value.as_i64().is_some_and(|seconds| seconds < 3600) {
                at.invalid(errors, "if provided, maxExpirationSeconds must be >= 3600");
            }
        })],
    ),
    Rule("podCertificate.credentialBundlePath", &[Check::Is(local_path)]),
    Rule("podCertificate.keyPath", &[Check::Is(local_path)]),
    Rule("podCertificate.certificateChainPath", &[Check::Is(local_path)]),
    Rule(
        "podCertificate",
        &[Check::Is(|at, errors| {
            let longest = longest_life(at.text("signerName"));
            if at.integer("maxExpirationSeconds").is_some_and(|seconds| seconds > longest) {
                let why = format!("if provided, maxExpirationSeconds must be <= {longest}");
                at.field("maxExpirationSeconds").invalid(errors, why);
            }
            if CERTIFICATE_PATHS.iter().all(|path| at.text(path).is_empty()) {
                let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
                errors.required(at, why);
            }
        })],
    ),
];

const KEY_TYPES: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
const CERTIFICATE_PATHS: [&str; 3] = ["credentialBundlePath", "keyPath", "certificateChainPath"];

/// Reports files of a projected volume with the same path.
fn check_paths(projected: &At<'_>, errors: &mut FieldErrors) {
    let mut seen = std::collections::HashSet::new();
    for source in projected.field("sources").items() {
        for (_, kind) in source.entries() {
            let mut paths: Vec<&str> =
                array_at(kind.value, "/items").iter().map(|item| str_at(item, "/path")).collect();
            paths.push(kind.text("path"));
            paths.extend(CERTIFICATE_PATHS.iter().map(|path| kind.text(path)));
            for path in paths.into_iter().filter(|p| !p.is_empty()) {
                if !seen.insert(path.to_owned()) {
                    errors.invalid(kind, path, "conflicting duplicate paths");
                }
            }
        }
    }
}

/// Sets defaults of legacy volume plugins, in a pod's volume or a persistent volume.
pub(in crate::resources::strategy) fn default_old_sources(volume: &mut Value) {
    let filled: [(&str, &[(&str, Value)]); 4] = [
        ("iscsi", &[("iscsiInterface", "default".into())]),
        ("rbd", &[("pool", "rbd".into()), ("user", "admin".into()), ("keyring", "/etc/ceph/keyring".into())]),
        ("scaleIO", &[("storageMode", "ThinProvisioned".into()), ("fsType", "xfs".into())]),
        (
            "azureDisk",
            &[
                ("cachingMode", "ReadWrite".into()),
                ("fsType", "ext4".into()),
                ("readOnly", false.into()),
                ("kind", "Shared".into()),
            ],
        ),
    ];
    for (name, fields) in filled {
        if let Some(source) = volume.get_mut(name).filter(|s| s.is_object()) {
            for (field, value) in fields {
                default(source, field, value.clone());
            }
        }
    }
}

/// Sets defaults of a generic ephemeral volume's claim template.
pub(super) fn default_ephemeral(volume: &mut Value) {
    let template = volume.pointer_mut("/ephemeral/volumeClaimTemplate").filter(|t| t.is_object());
    if let Some(spec) = template.and_then(|t| child(t, "spec")) {
        default_text(spec, "volumeMode", "Filesystem");
    }
}
