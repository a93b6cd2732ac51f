//! Validation tables of pod specs: rules for single fields and structures. [`super::rules`] has those that
//! span several.

use serde_json::Value;

use super::volumes::{check_field_path, check_resource_field};
use crate::{
    invalid::{FieldErrors, names},
    resources::strategy::{
        NameRule,
        rule::{At, Check, QUALIFIED, Rule, quantity},
    },
};

/// A user or group id.
const ID: &[Check] = &[Check::Between(0, 2_147_483_647)];
/// A preference weight, 1 to 100.
const WEIGHT: &[Check] = &[Check::Is(|at, errors| {
    let weight = at.value.as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(at, weight, "must be in the range 1-100");
    }
})];

/// Rules of a pod spec.
pub(super) const SPEC: &[Rule] = &[
    Rule("tolerations[*]", &[Check::Has(TOLERATION)]),
    Rule(
        "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution",
        &[Check::Has(NODE_SELECTOR)],
    ),
    Rule("affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].weight", WEIGHT),
    Rule(
        "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].preference",
        &[Check::Has(NODE_TERM)],
    ),
    Rule("affinity.podAffinity", &[Check::Has(POD_AFFINITY)]),
    Rule("affinity.podAntiAffinity", &[Check::Has(POD_AFFINITY)]),
    Rule("topologySpreadConstraints[*]", &[Check::Has(SPREAD)]),
    Rule("topologySpreadConstraints", &[Check::Is(check_spread)]),
    Rule("hostAliases[*].ip", &[Check::Required(""), Check::Ip]),
    Rule("hostAliases[*].hostnames[*]", &[Check::Name(NameRule::Subdomain)]),
    Rule(
        "dnsConfig.nameservers",
        &[Check::Is(|at, errors| {
            if at.items().count() > 3 {
                at.invalid(errors, "must not have more than 3 nameservers");
            }
        })],
    ),
    Rule("dnsConfig.nameservers[*]", &[Check::Ip]),
    Rule(
        "dnsConfig.searches",
        &[Check::Is(|at, errors| {
            if at.items().count() > 32 {
                at.invalid(errors, "must not have more than 32 search paths");
            }
        })],
    ),
    Rule(
        "dnsConfig.searches[*]",
        &[Check::Is(|at, errors| {
            let name = at.as_text().trim_end_matches('.').replace('_', "-");
            if at.as_text() != "." && !names::is_subdomain(&name) {
                at.invalid(errors, names::SUBDOMAIN_MESSAGE);
            }
        })],
    ),
    Rule("dnsConfig.options[*].name", &[Check::Required("must not be empty")]),
    Rule("", &[Check::Is(check_dns)]),
    Rule("readinessGates[*].conditionType", &[Check::Required(""), Check::Qualified]),
    Rule("schedulingGates", &[Check::UniqueBy(&["name"])]),
    Rule("schedulingGates[*].name", &[Check::Required(""), Check::Qualified]),
    Rule("priorityClassName", &[Check::Name(NameRule::Subdomain)]),
    Rule("runtimeClassName", &[Check::Name(NameRule::Subdomain)]),
    Rule("nodeName", &[Check::Name(NameRule::Subdomain)]),
    Rule("preemptionPolicy", &[Check::OneOf(&["Never", "PreemptLowerPriority"])]),
    Rule("overhead", &[Check::NotNegative]),
    Rule("os.name", &[Check::Required(""), Check::OneOf(&["linux", "windows"])]),
    Rule("resourceClaims", &[Check::UniqueBy(&["name"])]),
    Rule("resourceClaims[*].name", &[Check::Required(""), Check::Name(NameRule::Label)]),
    Rule(
        "resourceClaims[*]",
        &[Check::Is(|at, errors| {
            let set = |name| !at.text(name).is_empty();
            let (name, template) = ("resourceClaimName", "resourceClaimTemplateName");
            if set(name) && set(template) {
                at.invalid(
                    errors,
                    "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
                );
            } else if !set(name) && !set(template) {
                at.invalid(errors, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`");
            }
        })],
    ),
    Rule("securityContext", &[Check::Has(POD_SECURITY)]),
    Rule("containers[*]", &[Check::Has(CONTAINER)]),
    Rule("initContainers[*]", &[Check::Has(CONTAINER), Check::Has(INIT)]),
    Rule("ephemeralContainers", &[Check::UniqueBy(&["name"])]),
    Rule("ephemeralContainers[*]", &[Check::Has(CONTAINER), Check::Has(EPHEMERAL)]),
];

/// A toleration of a taint.
pub(in crate::resources::strategy) const TOLERATION: &[Rule] = &[
    Rule("key", &[Check::Qualified]),
    Rule(
        "",
        &[Check::Is(|at, errors| {
            let (key, operator, value) = (at.text("key"), at.text("operator"), at.text("value"));
            let field = at.field("operator");
            if key.is_empty() && operator != "Exists" {
                errors.invalid(field, operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"");
            }
            if at.integer("tolerationSeconds").is_some() && at.text("effect") != "NoExecute" {
                errors.invalid(
                    at.field("effect"),
                    at.text("effect"),
                    "effect must be 'NoExecute' when `tolerationSeconds` is set",
                );
            }
            match operator {
                "" | "Equal" if !names::is_label_value(value) => {
                    errors.invalid(field, value, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')");
                }
                "Exists" if !value.is_empty() => {
                    errors.invalid(field, value, "value must be empty when `operator` is 'Exists'");
                }
                "" | "Equal" | "Exists" => {}
                "Lt" | "Gt" => {
                    if value.parse::<i64>().is_err() {
                        errors.invalid(
                            at.field("value"),
                            value,
                            "value must be a valid integer when `operator` is 'Lt' or 'Gt'",
                        );
                    }
                }
                other => errors.not_supported(field, other, &["Equal", "Exists"]),
            }
        })],
    ),
    Rule("effect", &[Check::OneOf(&["NoExecute", "NoSchedule", "PreferNoSchedule"])]),
];

/// A node selector: at least one term must match.
pub(in crate::resources::strategy) const NODE_SELECTOR: &[Rule] = &[
    Rule("nodeSelectorTerms", &[Check::Required("must have at least one node selector term")]),
    Rule("nodeSelectorTerms[*]", &[Check::Has(NODE_TERM)]),
];

const NODE_TERM: &[Rule] = &[
    Rule("matchExpressions[*]", &[Check::Is(check_node_expression)]),
    Rule("matchFields[*]", &[Check::Is(check_node_field)]),
];

fn check_node_expression(at: &At<'_>, errors: &mut FieldErrors) {
    let (values, operator) = (at.field("values"), at.field("operator"));
    let count = values.items().count();
    match operator.as_text() {
        "In" | "NotIn" if count == 0 => {
            errors.required(values, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if count > 0 => {
            errors.forbidden(values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Gt" | "Lt" if count != 1 => {
            errors.required(values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => operator.invalid(errors, "not a valid selector operator"),
    }
    let key = at.field("key");
    if !names::is_qualified(key.as_text()) {
        errors.invalid(key, key.as_text(), QUALIFIED);
    }
}

fn check_node_field(at: &At<'_>, errors: &mut FieldErrors) {
    let (values, operator) = (at.field("values"), at.field("operator"));
    match operator.as_text() {
        "In" | "NotIn" if values.items().count() != 1 => {
            errors.required(
                values,
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            );
        }
        "In" | "NotIn" => {}
        _ => operator.invalid(errors, "not a valid selector operator"),
    }
    match at.text("key") {
        "metadata.name" => {
            for value in values.items() {
                NameRule::Subdomain.check(&value.to_string(), value.as_text(), errors);
            }
        }
        _ => at.field("key").invalid(errors, "not a valid field selector key"),
    }
}

const POD_AFFINITY: &[Rule] = &[
    Rule("requiredDuringSchedulingIgnoredDuringExecution[*]", &[Check::Has(POD_TERM)]),
    Rule("preferredDuringSchedulingIgnoredDuringExecution[*].weight", WEIGHT),
    Rule("preferredDuringSchedulingIgnoredDuringExecution[*].podAffinityTerm", &[Check::Has(POD_TERM)]),
];

const POD_TERM: &[Rule] = &[
    Rule("labelSelector", &[Check::Selector]),
    Rule("namespaceSelector", &[Check::Selector]),
    Rule("namespaces[*]", &[Check::Name(NameRule::Label)]),
    Rule("topologyKey", &[Check::Required("can not be empty"), Check::Qualified]),
    Rule(
        "",
        &[Check::Is(|at, errors| {
            let (some, none) = (at.field("matchLabelKeys"), at.field("mismatchLabelKeys"));
            for keys in [&some, &none] {
                if keys.is_set() && at.field("labelSelector").value.is_null() {
                    errors.forbidden(keys, "must not be specified when labelSelector is not set");
                }
            }
            for key in some.items().filter(|k| none.items().any(|n| n.value == k.value)) {
                key.invalid(errors, "exists in both matchLabelKeys and mismatchLabelKeys");
            }
        })],
    ),
];

const SPREAD: &[Rule] = &[
    Rule(
        "",
        &[Check::Is(|at, errors| {
            let skew = at.integer("maxSkew").unwrap_or(0);
            if skew <= 0 {
                errors.invalid(at.field("maxSkew"), skew, "must be greater than zero");
            }
            let least = at.field("minDomains");
            let when = at.text("whenUnsatisfiable");
            if let Some(n) = least.value.as_i64() {
                if n <= 0 {
                    least.invalid(errors, "must be greater than zero");
                }
                if when != "DoNotSchedule" {
                    least.invalid(
                        errors,
                        format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}"),
                    );
                }
            }
        })],
    ),
    Rule("topologyKey", &[Check::Required("can not be empty"), Check::Qualified]),
    Rule("whenUnsatisfiable", &[Check::OneOf(&["DoNotSchedule", "ScheduleAnyway"])]),
    Rule("nodeAffinityPolicy", &[Check::OneOf(&["Honor", "Ignore"])]),
    Rule("nodeTaintsPolicy", &[Check::OneOf(&["Honor", "Ignore"])]),
    Rule("labelSelector", &[Check::Selector]),
    Rule("matchLabelKeys[*]", &[Check::Qualified]),
];

/// Requires unique pairs of topology key and `whenUnsatisfiable`.
fn check_spread(at: &At<'_>, errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    for constraint in at.items() {
        let pair = (constraint.text("topologyKey"), constraint.text("whenUnsatisfiable"));
        if seen.contains(&pair) {
            let told = format!("{{{}, {}}}", pair.0, pair.1);
            errors.duplicate(format!("{constraint}.{{topologyKey, whenUnsatisfiable}}"), told);
        }
        seen.push(pair);
    }
}

fn check_dns(spec: &At<'_>, errors: &mut FieldErrors) {
    let config = spec.field("dnsConfig");
    if spec.text("dnsPolicy") == "None" {
        if config.value.is_null() {
            errors.required(config, "must provide `dnsConfig` when `dnsPolicy` is None");
        } else if !config.field("nameservers").is_set() {
            errors.required(
                config.field("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
        }
    }
    let gates = spec.field("schedulingGates");
    if gates.is_set() && !spec.text("nodeName").is_empty() {
        errors.forbidden(spec.field("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    if spec.truth("hostPID") && spec.truth("shareProcessNamespace") {
        let field = spec.field("securityContext");
        errors.invalid(
            field.field("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
}

const PROFILES: &[(&str, &str)] = &[("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")];

/// Requires `localhostProfile` exactly for the type Localhost (seccomp, AppArmor).
fn check_profiles(context: &At<'_>, errors: &mut FieldErrors) {
    for (field, what) in PROFILES {
        let profile = context.field(field);
        if profile.value.is_null() {
            continue;
        }
        let (kind, file) = (profile.field("type"), profile.field("localhostProfile"));
        match kind.as_text() {
            "" => errors.required(kind, "type is required when profile is set"),
            "Localhost" if !file.is_set() => {
                errors.required(file, &format!("must be set when {what} type is Localhost"));
            }
            "Localhost" if *what == "seccomp" && file.as_text().starts_with('/') => {
                file.invalid(errors, "must be a relative path");
            }
            "Localhost" => {}
            "RuntimeDefault" | "Unconfined" if file.is_set() => {
                file.invalid(errors, format!("can only be set when {what} type is Localhost"));
            }
            "RuntimeDefault" | "Unconfined" => {}
            other => errors.not_supported(kind, other, &["Localhost", "RuntimeDefault", "Unconfined"]),
        }
    }
}

const POD_SECURITY: &[Rule] = &[
    Rule("runAsUser", ID),
    Rule("runAsGroup", ID),
    Rule("fsGroup", ID),
    Rule("supplementalGroups[*]", ID),
    Rule("fsGroupChangePolicy", &[Check::OneOf(&["Always", "OnRootMismatch"])]),
    Rule("supplementalGroupsPolicy", &[Check::OneOf(&["Merge", "Strict"])]),
    Rule("sysctls", &[Check::UniqueBy(&["name"])]),
    Rule(
        "sysctls[*].name",
        &[
            Check::Required(""),
            Check::Is(|at, errors| {
                let good = at.as_text().len() <= 253
                    && at.as_text().split(['.', '/']).all(|part| {
                        let b = part.as_bytes();
                        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
                        b.first().is_some_and(plain)
                            && b.last().is_some_and(plain)
                            && b.iter().all(|b| plain(b) || b"-_".contains(b))
                    });
                if !good {
                    at.invalid(errors, "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
                }
            }),
        ],
    ),
    Rule("", &[Check::Is(check_profiles)]),
];

/// Rules of all kinds of containers.
const CONTAINER: &[Rule] = &[
    Rule(
        "securityContext",
        &[Check::Has(&[
            Rule("runAsUser", ID),
            Rule("runAsGroup", ID),
            Rule("procMount", &[Check::OneOf(&["Default", "Unmasked"])]),
            Rule("", &[Check::Is(check_profiles), Check::Is(check_privileges)]),
        ])],
    ),
    Rule("env[*].valueFrom.fieldRef", &[Check::Is(check_env_field)]),
    Rule(
        "env[*].valueFrom.resourceFieldRef.resource",
        &[Check::Required(""), Check::Is(check_resource_field)],
    ),
    Rule("env[*].valueFrom.configMapKeyRef.name", &[Check::Required("")]),
    Rule("env[*].valueFrom.secretKeyRef.name", &[Check::Required("")]),
    Rule("env[*].valueFrom.configMapKeyRef.key", &[Check::Is(check_key)]),
    Rule("env[*].valueFrom.secretKeyRef.key", &[Check::Is(check_key)]),
    Rule(
        "envFrom[*]",
        &[Check::Is(|at, errors| {
            match (at.field("configMapRef").value.is_null(), at.field("secretRef").value.is_null()) {
                (true, true) => at.invalid(errors, "must specify one of: `configMapRef` or `secretRef`"),
                (false, false) => at.invalid(errors, "may not have more than one field specified at a time"),
                _ => {}
            }
        })],
    ),
    Rule("envFrom[*].configMapRef.name", &[Check::Required("")]),
    Rule("envFrom[*].secretRef.name", &[Check::Required("")]),
    Rule("volumeMounts[*].mountPropagation", &[Check::OneOf(&["Bidirectional", "HostToContainer", "None"])]),
    Rule(
        "volumeMounts[*].subPathExpr",
        &[
            Check::Is(|at, errors| {
                if at.as_text().starts_with('/') {
                    at.invalid(errors, "must be a relative path");
                }
            }),
            Check::NoDots,
        ],
    ),
    Rule("", &[Check::Is(check_mounts)]),
    Rule("volumeDevices", &[Check::UniqueBy(&["devicePath"])]),
    Rule("volumeDevices[*].name", &[Check::Required("")]),
    Rule("volumeDevices[*].devicePath", &[Check::Required(""), Check::NoDots]),
    Rule("livenessProbe", &[Check::Has(PROBE), Check::Has(GRACE)]),
    Rule("startupProbe", &[Check::Has(PROBE), Check::Has(GRACE)]),
    Rule("readinessProbe", &[Check::Has(PROBE)]),
    Rule(
        "readinessProbe.terminationGracePeriodSeconds",
        &[Check::Is(|at, errors| {
            if !at.value.is_null() {
                at.invalid(errors, "must not be set for readinessProbes");
            }
        })],
    ),
    Rule("lifecycle.postStart", &[Check::Has(HANDLER)]),
    Rule("lifecycle.preStop", &[Check::Has(HANDLER)]),
    Rule("resources", &[Check::Is(check_resource_names)]),
    Rule("resizePolicy", &[Check::UniqueBy(&["resourceName"])]),
    Rule("resizePolicy[*].resourceName", &[Check::Required(""), Check::OneOf(&["cpu", "memory"])]),
    Rule(
        "resizePolicy[*].restartPolicy",
        &[Check::Required(""), Check::OneOf(&["NotRequired", "RestartContainer"])],
    ),
];

fn check_key(at: &At<'_>, errors: &mut FieldErrors) {
    if !at.as_text().is_empty() && !names::is_config_key(at.as_text()) {
        at.invalid(errors, names::KEY_MESSAGE);
    }
}

fn check_privileges(at: &At<'_>, errors: &mut FieldErrors) {
    let denied = at.field("allowPrivilegeEscalation").value == &Value::Bool(false);
    if denied && at.truth("privileged") {
        at.invalid(errors, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
    }
    let capabilities = at.field("capabilities");
    if denied
        && capabilities.field("add").items().any(|c| ["CAP_SYS_ADMIN", "SYS_ADMIN"].contains(&c.as_text()))
    {
        at.invalid(
            errors,
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
        );
    }
}

fn check_env_field(at: &At<'_>, errors: &mut FieldErrors) {
    const PATHS: &[&str] = &[
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let path = at.field("fieldPath");
    if path.is_set() {
        check_field_path(&path, PATHS, errors);
    } else {
        errors.required(path, "");
    }
}

fn check_mounts(container: &At<'_>, errors: &mut FieldErrors) {
    let context = container.field("securityContext");
    for mount in container.field("volumeMounts").items() {
        if mount.text("mountPropagation") == "Bidirectional" && !context.truth("privileged") {
            errors.forbidden(
                mount.field("mountPropagation"),
                "Bidirectional mount propagation is available only to privileged containers",
            );
        }
        if !mount.text("subPath").is_empty() && !mount.text("subPathExpr").is_empty() {
            mount.field("subPathExpr").invalid(errors, "subPathExpr and subPath are mutually exclusive");
        }
    }
}

const GRACE: &[Rule] = &[Rule(
    "terminationGracePeriodSeconds",
    &[Check::Is(|at, errors| {
        if at.value.as_i64().is_some_and(|n| n <= 0) {
            at.invalid(errors, "must be greater than 0");
        }
    })],
)];

const PROBE: &[Rule] = &[Rule("successThreshold", &[Check::AtLeast(0)]), Rule("", &[Check::Has(HANDLER)])];

/// Handlers of probes and hooks.
const HANDLER: &[Rule] = &[
    Rule("httpGet.scheme", &[Check::OneOf(&["HTTP", "HTTPS"])]),
    Rule("httpGet.port", &[Check::Port]),
    Rule(
        "httpGet.httpHeaders[*].name",
        &[
            Check::Required(""),
            Check::Is(|at, errors| {
                if !at.as_text().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
                    at.invalid(errors, "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')");
                }
            }),
        ],
    ),
    Rule("tcpSocket.port", &[Check::Port]),
    Rule("grpc.port", &[Check::Within(1, 65535)]),
];

/// Container resources known to the system.
const KNOWN: &[&str] = &["cpu", "memory", "ephemeral-storage", "storage"];

fn check_resource_names(resources: &At<'_>, errors: &mut FieldErrors) {
    for list in ["limits", "requests"] {
        let amounts = resources.field(list);
        for (name, amount) in amounts.entries() {
            if !names::is_qualified(name) {
                errors.invalid(amount, name, QUALIFIED);
                continue;
            }
            let native =
                !name.contains('/') || name.split('/').next().is_some_and(|d| d.ends_with("kubernetes.io"));
            let pages = name.starts_with("hugepages-");
            if !name.contains('/') && !pages && !KNOWN.contains(&name) {
                errors.invalid(amount, name, "must be a standard resource type or fully qualified");
                errors.invalid(amount, name, "must be a standard resource for containers");
                continue;
            }
            if native && !pages {
                continue;
            }
            // Extended resources and huge pages must be integers and cannot be overcommitted.
            if !pages && quantity(amount.value).is_some_and(|q| q.milli() % 1000 != 0) {
                amount.invalid(errors, "must be an integer");
            }
            let other = if list == "requests" { "limits" } else { "requests" };
            let side = resources.field(other);
            let (this, that) = (quantity(amount.value), quantity(side.field(name).value));
            match (list, that) {
                ("requests", None) => {
                    errors.required(
                        resources.field("limits"),
                        "Limit must be set for non overcommitable resources",
                    );
                }
                ("requests", that) if this != that => {
                    let limit = that.map(|q| q.to_string()).unwrap_or_default();
                    amounts.invalid(errors, format!("must be equal to {name} limit of {limit}"));
                }
                _ => {}
            }
        }
    }
}

/// Init containers: only sidecars may have probes and hooks.
const INIT: &[Rule] = &[Rule(
    "",
    &[Check::Is(|at, errors| {
        if at.text("restartPolicy") == "Always" {
            return;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if !at.field(field).value.is_null() {
                errors.forbidden(
                    at.field(field),
                    "may not be set for init containers without restartPolicy=Always",
                );
            }
        }
    })],
)];

const NOT_EPHEMERAL: &str = "cannot be set for an Ephemeral Container";

/// Rules of `ephemeralContainers`, which must not have ports, probes and resources.
const EPHEMERAL: &[Rule] = &[
    Rule("name", &[Check::Required(""), Check::Name(NameRule::Label)]),
    Rule("image", &[Check::Required("")]),
    Rule("ports", &[Check::Never(NOT_EPHEMERAL)]),
    Rule("livenessProbe", &[Check::Never(NOT_EPHEMERAL)]),
    Rule("readinessProbe", &[Check::Never(NOT_EPHEMERAL)]),
    Rule("startupProbe", &[Check::Never(NOT_EPHEMERAL)]),
    Rule("lifecycle", &[Check::Never(NOT_EPHEMERAL)]),
    Rule(
        "resources",
        &[Check::Is(|at, errors| {
            if at.is_set() {
                errors.forbidden(at, NOT_EPHEMERAL);
            }
        })],
    ),
    Rule(
        "volumeMounts[*]",
        &[Check::Is(|at, errors| {
            for field in ["subPath", "subPathExpr"] {
                if at.field(field).is_set() {
                    errors.forbidden(at.field(field), NOT_EPHEMERAL);
                }
            }
        })],
    ),
];
