//! CertificateSigningRequests.

use serde_json::{Value, json};

use super::{
    BASE, NameRule, Strategy, View,
    rule::{At, Check, Rule, check},
};
use crate::{
    invalid::{FieldErrors, names},
    user::User,
    value::{array_at, child, set, str_at, take},
};

/// CertificateSigningRequests. The specification never changes.
pub static CERTIFICATE_SIGNING_REQUEST: Strategy = Strategy {
    name: NameRule::Segment,
    created_by: set_requester,
    create: |request| request["status"] = json!({}),
    update: |new, old| set(new, "/spec", old.get("spec").cloned().unwrap_or_default()),
    validate: |request, errors| {
        check(request, RULES, errors);
        check_conditions(request, errors);
    },
    validate_update: check_transition,
    validate_status: |new, old, errors| {
        check_conditions(new, errors);
        check_transition(new, old, errors);
        check_decisions(new, old, errors);
    },
    view: |view, new, errors| {
        date_conditions(view, new);
        match view.part {
            // An approval may change conditions only.
            "approval" => {
                let conditions = new.pointer("/status/conditions").cloned();
                for field in ["spec", "status"] {
                    set(new, &format!("/{field}"), view.old.get(field).cloned().unwrap_or_default());
                }
                match conditions {
                    Some(conditions) => set(new, "/status/conditions", conditions),
                    None => drop(take(new, "/status", "conditions")),
                }
                check_transition(new, view.old, errors);
            }
            "status" => keep_decisions(new, view.old),
            _ => {}
        }
    },
    ..BASE
};

/// Records the sender of a request, whatever the request says.
fn set_requester(user: &User, object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    for field in ["username", "uid", "groups", "extra"] {
        take(spec, "", field);
    }
    spec["username"] = user.name.clone().into();
    if !user.uid.is_empty() {
        spec["uid"] = user.uid.clone().into();
    }
    if !user.groups.is_empty() {
        spec["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
}

/// The conditions of a type.
fn conditions<'a>(request: &'a Value, kind: &str) -> Vec<&'a Value> {
    array_at(request, "/status/conditions").iter().filter(|c| str_at(c, "/type") == kind).collect()
}

/// Sets missing condition times. A condition with unchanged status keeps its transition time.
fn date_conditions(view: &View<'_>, new: &mut Value) {
    let before = array_at(view.old, "/status/conditions").to_vec();
    let conditions = new.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter(|c| c.is_object()) {
        let same = |c: &&Value| c["type"] == condition["type"] && c["status"] == condition["status"];
        let since =
            before.iter().find(same).map(|c| str_at(c, "/lastTransitionTime")).filter(|t| !t.is_empty());
        let since = since.unwrap_or(view.now).to_owned();
        if str_at(condition, "/lastUpdateTime").is_empty() {
            condition["lastUpdateTime"] = view.now.into();
        }
        if str_at(condition, "/lastTransitionTime").is_empty() {
            condition["lastTransitionTime"] = since.into();
        }
    }
}

/// Conditions that only the approval subresource may write.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];

/// Keeps the existing decisions in a status write with the same number of them.
fn keep_decisions(new: &mut Value, old: &Value) {
    for kind in DECISIONS {
        let kept: Vec<Value> = conditions(old, kind).into_iter().cloned().collect();
        if conditions(new, kind).len() == kept.len() {
            let all = new.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
            let same = all.into_iter().flatten().filter(|c| str_at(c, "/type") == kind);
            same.zip(kept).for_each(|(condition, kept)| *condition = kept);
        }
    }
}

/// Rejects decisions added by a status write.
fn check_decisions(new: &Value, old: &Value, errors: &mut FieldErrors) {
    for kind in DECISIONS {
        if conditions(new, kind).len() > conditions(old, kind).len() {
            errors.forbidden(
                "status.conditions",
                &format!("updates may not add a condition of type \"{kind}\""),
            );
        }
    }
}

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

const RULES: &[Rule] = &[
    Rule(
        "spec",
        &[Check::Is(|spec, errors| {
            let request = spec.field("request");
            if let Err(why) = subject(request.as_text()) {
                request.invalid(errors, why);
            }
        })],
    ),
    Rule("spec.usages", &[Check::Required("usages must be specified"), Check::Unique]),
    Rule("spec.usages[*]", &[Check::OneOf(USAGES)]),
    Rule(
        "spec.signerName",
        &[
            Check::Required(""),
            Check::Is(|at, errors| {
                if at.as_text() == "kubernetes.io/legacy-unknown" {
                    at.invalid(errors, "the legacy signerName is not allowed via this API version");
                }
            }),
            Check::Is(check_signer),
        ],
    ),
    Rule(
        "spec.expirationSeconds",
        &[Check::Is(|at, errors| {
            if at.value.as_i64().is_some_and(|n| n < 600) {
                at.invalid(errors, "may not specify a duration less than 600 seconds (10 minutes)");
            }
        })],
    ),
];

/// Names in the subject of a certificate request.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Subject {
    pub(crate) common_name: String,
    pub(crate) organizations: Vec<String>,
}

/// Parses a PKCS #10 certificate request (base64 of PEM, as in JSON).
///
/// # Errors
/// The text is no such request, or a name in its subject is not text.
#[cfg(feature = "tls")]
pub(crate) fn subject(text: &str) -> Result<Subject, String> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use x509_parser::{
        certification_request::X509CertificationRequest, pem::parse_x509_pem, prelude::FromDer,
    };
    const FORM: &str = "PEM block type must be CERTIFICATE REQUEST";
    let pem = STANDARD.decode(text).map_err(|_| FORM)?;
    let (_, block) = parse_x509_pem(&pem).map_err(|_| FORM)?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(FORM.into());
    }
    let (_, request) = X509CertificationRequest::from_der(&block.contents).map_err(|e| e.to_string())?;
    let subject = &request.certification_request_info.subject;
    // What cannot be read must not be passed over: it may be a group.
    let text = |name: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        name.as_str().map(str::to_owned).map_err(|e| format!("subject: {e}"))
    };
    Ok(Subject {
        common_name: subject.iter_common_name().last().map(text).transpose()?.unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect::<Result<_, _>>()?,
    })
}

/// Refuses every request: without the feature `tls` none can be read.
#[cfg(not(feature = "tls"))]
pub(crate) fn subject(_: &str) -> Result<Subject, String> {
    Err("certificate requests need k8s-apiserver's feature \"tls\", which this program is built without"
        .into())
}

/// Validates a signer name: a domain and a path, at most 571 bytes.
pub(super) fn check_signer(at: &At<'_>, errors: &mut FieldErrors) {
    let name = at.as_text();
    match name.split_once('/') {
        None => at.invalid(
            errors,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ),
        Some((domain, path)) => {
            if !names::is_subdomain(domain) {
                at.invalid(errors, format!("validating label \"{domain}\": {}", names::SUBDOMAIN_MESSAGE));
            } else if domain.split('.').count() < 2 {
                at.invalid(errors, "should be a domain with at least two segments separated by dots");
            }
            if !names::is_subdomain(path) {
                at.invalid(errors, format!("validating label \"{path}\": {}", names::SUBDOMAIN_MESSAGE));
            }
            if name.len() > 571 {
                errors.too_long(at, 571);
            }
        }
    }
}

fn check_conditions(request: &Value, errors: &mut FieldErrors) {
    const CONDITIONS: &[Rule] = &[
        Rule("status.conditions", &[Check::UniqueBy(&["type"])]),
        Rule("status.conditions[*].type", &[Check::Required("")]),
        Rule(
            "status.conditions[*].status",
            &[Check::Required(""), Check::OneOf(&["False", "True", "Unknown"])],
        ),
        Rule(
            "status.conditions[*]",
            &[Check::Is(|at, errors| {
                if ["Approved", "Denied", "Failed"].contains(&at.text("type")) && at.text("status") != "True"
                {
                    errors.not_supported(at.field("status"), at.text("status"), &["True"]);
                }
            })],
        ),
    ];
    check(request, CONDITIONS, errors);
    let has = |kind: &str| array_at(request, "/status/conditions").iter().any(|c| str_at(c, "/type") == kind);
    if has("Approved") && has("Denied") {
        errors.invalid(
            "status.conditions",
            array_at(request, "/status/conditions").to_vec(),
            "Approved and Denied conditions are mutually exclusive",
        );
    }
}

/// Rejects removing an approval, or changing an issued certificate.
fn check_transition(new: &Value, old: &Value, errors: &mut FieldErrors) {
    for kind in ["Approved", "Denied", "Failed"] {
        let of = |request: &Value| {
            array_at(request, "/status/conditions").iter().any(|c| str_at(c, "/type") == kind)
        };
        if of(old) && !of(new) {
            errors.forbidden(
                "status.conditions",
                &format!("updates may not remove a condition of type \"{kind}\""),
            );
        }
    }
    let before = str_at(old, "/status/certificate");
    if !before.is_empty() && str_at(new, "/status/certificate") != before {
        errors.forbidden("status.certificate", "updates may not modify a set certificate");
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::*;

    #[test]
    fn requests_are_pem_of_der() {
        let pem = |label: &str, der: &[u8]| {
            STANDARD
                .encode(format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der)))
        };
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let named = subject(&pem("CERTIFICATE REQUEST", request.der())).unwrap();
        assert_eq!(named.common_name, "rcgen self signed cert");
        let broken = pem("CERTIFICATE REQUEST", &[0x30, 5, 0]);
        for bad in ["", "!", "aGk=", &broken, &pem("CERTIFICATE", request.der())] {
            assert!(subject(bad).is_err(), "{bad}");
        }
    }
}
