//! PodCertificateRequests.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    BASE, METADATA_OF_CLIENTS, NameRule, Strategy, View,
    certificates::check_signer,
    rule::{Check, Rule, check},
};
use crate::{
    invalid::{FieldErrors, names},
    value::{array_at, child, default_number, int_at, object_at, set, str_at},
};

/// PodCertificateRequests. The specification never changes, and a status is given once.
pub static POD_CERTIFICATE_REQUEST: Strategy = Strategy {
    allow_unconditional_update: false,
    fixed_by_status: &METADATA_OF_CLIENTS,
    default: |request| {
        if let Some(spec) = child(request, "spec") {
            default_number(spec, "maxExpirationSeconds", 86_400);
        }
    },
    create: |request| request["status"] = json!({}),
    validate: |request, errors| {
        check(request, RULES, errors);
        check_identity(request, errors);
        check_expiration(request, errors);
        check_annotations(request, errors);
        check_key(request, errors);
    },
    fixed: &["/spec"],
    view: |view, new, errors| {
        if view.part == "status" {
            set(new, "/spec", view.old.get("spec").cloned().unwrap_or_default());
            check_status(view, new, errors);
        }
    },
    ..BASE
};

const RULES: &[Rule] = &[Rule("spec.signerName", &[Check::Required(""), Check::Is(check_signer)])];

/// Checks the names and UIDs of the pod, its account and its node; an absent one is checked as an empty one.
fn check_identity(request: &Value, errors: &mut FieldErrors) {
    for of in ["pod", "serviceAccount", "node"] {
        let name = format!("spec.{of}Name");
        NameRule::Subdomain.check(&name, str_at(request, &format!("/spec/{of}Name")), errors);
        let (field, uid) = (format!("spec.{of}UID"), str_at(request, &format!("/spec/{of}UID")));
        if uid.is_empty() {
            errors.invalid(&field, uid, "must not be empty");
        }
        if uid.len() > 128 {
            errors.too_long(&field, 128);
        }
    }
}

/// Shortest and longest life of a certificate, seconds; the last is of the signers of kubernetes.io.
const SHORTEST: i64 = 3600;
const LONGEST: i64 = 91 * 86_400;
const LONGEST_OF_KUBERNETES: i64 = 86_400;

/// Returns the longest life of a signer's certificates, seconds.
pub(super) fn longest_life(signer: &str) -> i64 {
    let domain = signer.split('/').next().unwrap_or_default();
    let of_kubernetes = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    if of_kubernetes { LONGEST_OF_KUBERNETES } else { LONGEST }
}

fn check_expiration(request: &Value, errors: &mut FieldErrors) {
    let longest = longest_life(str_at(request, "/spec/signerName"));
    let seconds = int_at(request, "/spec/maxExpirationSeconds").unwrap_or_default();
    if !(SHORTEST..=longest).contains(&seconds) {
        let why = format!("must be in the range [{SHORTEST}, {longest}]");
        errors.invalid("spec.maxExpirationSeconds", seconds, why);
    }
}

fn check_annotations(request: &Value, errors: &mut FieldErrors) {
    let all = object_at(request, "/spec/unverifiedUserAnnotations").into_iter().flatten();
    for (key, _) in all {
        if !key.contains('/') || !names::is_qualified(&key.to_lowercase()) {
            let why = "must be a domain-prefixed key (such as \"acme.io/foo\")";
            errors.invalid("spec.unverifiedUserAnnotations", key.as_str(), why);
        }
    }
}

/// Maximum size of a stub request, bytes.
const LARGEST_STUB: usize = 10 << 10;
/// Maximum size of a certificate chain, bytes.
const LARGEST_CHAIN: usize = 100 << 10;

const STUB: &str = "spec.stubPKCS10Request";

fn check_key(request: &Value, errors: &mut FieldErrors) {
    let there = |field: &str| !str_at(request, &format!("/spec/{field}")).is_empty();
    let (stub, key, proof) = (there("stubPKCS10Request"), there("pkixPublicKey"), there("proofOfPossession"));
    match (stub, key, proof) {
        (true, false, false) => check_stub(str_at(request, "/spec/stubPKCS10Request"), errors),
        (false, true, true) => {
            let why = "this server takes keys in stubPKCS10Request only";
            errors.forbidden("spec.pkixPublicKey", why);
        }
        _ => {
            let why = "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set";
            errors.invalid_unshown("spec", why);
        }
    }
}

/// Returns the bytes of a field in base64; empty if it is none.
fn bytes(text: &str) -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(text).unwrap_or_default()
}

#[cfg(feature = "tls")]
fn check_stub(text: &str, errors: &mut FieldErrors) {
    use x509_parser::{
        certification_request::X509CertificationRequest, prelude::FromDer, public_key::PublicKey,
    };
    let der = bytes(text);
    if der.len() > LARGEST_STUB {
        return errors.too_long(STUB, LARGEST_STUB);
    }
    let Ok((_, request)) = X509CertificationRequest::from_der(&der) else {
        return errors.invalid_unshown(STUB, "must be a valid PKCS#10 CSR");
    };
    let key = &request.certification_request_info.subject_pki;
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) if !matches!(rsa.key_size(), 3072 | 4096) => {
            let size = format!("{}-bit modulus", rsa.key_size());
            return errors.invalid(STUB, size, "RSA keys must have modulus size 3072 or 4096");
        }
        Ok(PublicKey::RSA(_) | PublicKey::EC(_)) => {}
        Ok(PublicKey::Unknown(_)) if key.algorithm.algorithm.to_id_string() == ED25519 => {}
        _ => {
            let why = "unknown public key type; supported types are Ed25519, ECDSA, and RSA";
            return errors.invalid_unshown(STUB, why);
        }
    }
    // Curves that cannot be verified, such as P-521, are refused here.
    if request.verify_signature().is_err() {
        errors.invalid_unshown(STUB, "invalid signature");
    }
}

#[cfg(feature = "tls")]
const ED25519: &str = "1.3.101.112";

#[cfg(not(feature = "tls"))]
fn check_stub(text: &str, errors: &mut FieldErrors) {
    let why = if bytes(text).len() > LARGEST_STUB {
        "too long"
    } else {
        "this program is built without k8s-apiserver's feature \"tls\", which reads certificate requests"
    };
    errors.invalid_unshown(STUB, why);
}

/// States that end a request.
const ENDS: [&str; 3] = ["Issued", "Denied", "Failed"];

fn is(request: &Value, kind: &str) -> bool {
    let conditions = array_at(request, "/status/conditions");
    conditions.iter().any(|c| str_at(c, "/type") == kind && str_at(c, "/status") == "True")
}

fn check_conditions(request: &Value, errors: &mut FieldErrors) {
    const CONDITIONS: &[Rule] = &[
        Rule("status.conditions", &[Check::UniqueBy(&["type"])]),
        Rule("status.conditions[*].type", &[Check::Required(""), Check::OneOf(&ENDS)]),
        Rule("status.conditions[*].status", &[Check::Required(""), Check::OneOf(&["True"])]),
        Rule("status.conditions[*].reason", &[Check::Required("must be set")]),
        Rule("status.conditions[*].lastTransitionTime", &[Check::Required("must be set")]),
    ];
    check(request, CONDITIONS, errors);
    let ends = array_at(request, "/status/conditions").iter().enumerate();
    for (i, condition) in ends.filter(|(_, c)| ENDS.contains(&str_at(c, "/type"))).skip(1) {
        let why = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
        errors.invalid(format!("status.conditions[{i}].type"), str_at(condition, "/type"), why);
    }
}

/// Returns the status without empty fields.
pub(crate) fn status(request: &Value) -> Value {
    let filled = |(_, value): &(&String, &Value)| {
        !value.is_null() && **value != "" && !value.as_array().is_some_and(Vec::is_empty)
    };
    let all = object_at(request, "/status").into_iter().flatten();
    all.filter(filled)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn check_status(view: &View<'_>, new: &Value, errors: &mut FieldErrors) {
    check_conditions(new, errors);
    if !errors.is_empty() {
        return;
    }
    let (before, after) = (status(view.old), status(new));
    if ENDS.iter().any(|end| is(view.old, end)) {
        if before != after {
            let why = "immutable after PodCertificateRequest is issued, denied, or failed";
            errors.invalid_unshown("status", why);
        }
    } else if is(new, "Denied") || is(new, "Failed") {
        if after.as_object().is_some_and(|fields| fields.keys().any(|field| field != "conditions")) {
            let why =
                "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
            errors.invalid_unshown("status", why);
        }
    } else if is(new, "Issued") {
        check_issued(view, new, errors);
    } else if before != after {
        let why = "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"";
        errors.invalid_unshown("status", why);
    }
}

const CHAIN: &str = "status.certificateChain";

/// The leaf of a chain: its key and its life.
struct Leaf {
    key: Vec<u8>,
    from: Timestamp,
    until: Timestamp,
}

/// Reads a chain of certificates and returns the first one.
#[cfg(feature = "tls")]
fn leaf(chain: &str) -> Result<Leaf, &'static str> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let blocks = k8s_core::pem::blocks(chain);
    if blocks.is_empty() {
        return Err("issued certificate chain must contain at least one certificate");
    }
    if blocks.iter().any(|block| block.label != "CERTIFICATE") {
        return Err("issued certificate chain must consist entirely of CERTIFICATE PEM blocks");
    }
    let mut first = None;
    for block in &blocks {
        let read = X509Certificate::from_der(&block.contents);
        let Ok((_, certificate)) = read else {
            return Err(match first {
                None => "leaf certificate does not parse as valid X.509",
                Some(_) => "intermediate certificate does not parse as valid X.509",
            });
        };
        if first.is_none() {
            let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp());
            let life = certificate.validity();
            let (Ok(from), Ok(until)) = (time(life.not_before), time(life.not_after)) else {
                return Err("leaf certificate does not parse as valid X.509");
            };
            first = Some(Leaf { key: certificate.public_key().raw.to_vec(), from, until });
        }
    }
    first.ok_or("issued certificate chain must contain at least one certificate")
}

#[cfg(not(feature = "tls"))]
fn leaf(_: &str) -> Result<Leaf, &'static str> {
    Err("this program is built without k8s-apiserver's feature \"tls\", which reads certificates")
}

/// Returns the key of a stub request; empty if it cannot be read.
#[cfg(feature = "tls")]
fn requested_key(request: &Value) -> Vec<u8> {
    use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};
    let der = bytes(str_at(request, "/spec/stubPKCS10Request"));
    let read = X509CertificationRequest::from_der(&der);
    read.map(|(_, r)| r.certification_request_info.subject_pki.raw.to_vec()).unwrap_or_default()
}

#[cfg(not(feature = "tls"))]
fn requested_key(_: &Value) -> Vec<u8> {
    Vec::new()
}

fn check_issued(view: &View<'_>, new: &Value, errors: &mut FieldErrors) {
    let chain = str_at(new, "/status/certificateChain");
    if chain.len() > LARGEST_CHAIN {
        return errors.too_long(CHAIN, LARGEST_CHAIN);
    }
    let leaf = match leaf(chain) {
        Ok(leaf) => leaf,
        Err(why) => return errors.invalid(CHAIN, chain, why),
    };
    if leaf.key != requested_key(view.old) {
        return errors.invalid(CHAIN, chain, "leaf certificate was not issued to the requested public key");
    }
    let time = |field: &str| str_at(new, &format!("/status/{field}")).parse::<Timestamp>().ok();
    let (from, until, refresh) = (time("notBefore"), time("notAfter"), time("beginRefreshAt"));
    for (field, value, why) in [
        ("notBefore", from, "must be present and consistent with the issued certificate"),
        ("notAfter", until, "must be present and consistent with the issued certificate"),
        ("beginRefreshAt", refresh, "must be present and in the range [notbefore+10min, notafter-10min]"),
    ] {
        if value.is_none() {
            errors.required(format!("status.{field}"), why);
        }
    }
    let (Some(from), Some(until), Some(refresh)) = (from, until, refresh) else { return };
    let now = view.now.parse::<Timestamp>().unwrap_or(from);
    let minutes = SignedDuration::from_mins;
    let life = until.duration_since(from);
    let longest = int_at(view.old, "/spec/maxExpirationSeconds").unwrap_or_default();
    let too_long = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({longest})");
    let wrong = [
        (from != leaf.from, "notBefore", "must be set to the NotBefore time encoded in the leaf certificate"),
        (
            from.duration_since(now).abs() >= minutes(5),
            "notBefore",
            "must be set to within 5 minutes of kube-apiserver's current time",
        ),
        (until != leaf.until, "notAfter", "must be set to the NotAfter time encoded in the leaf certificate"),
        (life < minutes(60), "certificateChain", "leaf certificate lifetime must be >= 1 hour"),
        (life > SignedDuration::from_secs(longest), "certificateChain", too_long.as_str()),
        (
            refresh < from + minutes(10),
            "beginRefreshAt",
            "must be at least 10 minutes after status.notBefore",
        ),
        (
            refresh > until - minutes(10),
            "beginRefreshAt",
            "must be at least 10 minutes before status.notAfter",
        ),
    ];
    if let Some((_, field, why)) = wrong.iter().find(|(wrong, ..)| *wrong) {
        let value = if *field == "certificateChain" {
            Value::from(life.to_string())
        } else {
            str_at(new, &format!("/status/{field}")).into()
        };
        errors.invalid(format!("status.{field}"), value, why);
    }
}
