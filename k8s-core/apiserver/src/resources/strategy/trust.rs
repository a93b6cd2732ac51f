//! ClusterTrustBundles.

use super::{
    BASE, NameRule, Strategy,
    certificates::check_signer,
    rule::{Check, Rule, check},
};
use crate::{
    invalid::FieldErrors,
    value::{str_at, take},
};

/// ClusterTrustBundles. A bundle of a signer is named with the signer's prefix.
pub static CLUSTER_TRUST_BUNDLE: Strategy = Strategy {
    // The rule of the name depends on the signer.
    name: NameRule::Segment,
    allow_unconditional_update: false,
    // A bundle without a signer has the signer "".
    default: |bundle| {
        if bundle.pointer("/spec/signerName").is_some_and(|signer| signer == "") {
            take(bundle, "/spec", "signerName");
        }
    },
    validate: |bundle, errors| {
        check_name(str_at(bundle, "/metadata/name"), str_at(bundle, "/spec/signerName"), errors);
        check(bundle, RULES, errors);
        check_anchors(str_at(bundle, "/spec/trustBundle"), errors);
    },
    fixed: &["/spec/signerName"],
    ..BASE
};

const RULES: &[Rule] = &[Rule(
    "spec.signerName",
    &[Check::Is(|at, errors| {
        if !at.as_text().is_empty() {
            check_signer(at, errors);
        }
    })],
)];

/// Maximum size of `spec.trustBundle` in bytes.
const LARGEST: usize = 1 << 20;

fn check_name(name: &str, signer: &str, errors: &mut FieldErrors) {
    const FIELD: &str = "metadata.name";
    if signer.is_empty() {
        if name.contains(':') {
            let why = "ClusterTrustBundle without signer name must not have \":\" in its name";
            return errors.invalid(FIELD, name, why);
        }
        return NameRule::Subdomain.check(FIELD, name, errors);
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        None => {
            let why =
                format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}");
            errors.invalid(FIELD, name, why);
        }
        Some(rest) => {
            let mut of_rest = FieldErrors::default();
            NameRule::Subdomain.check(FIELD, rest, &mut of_rest);
            if !of_rest.is_empty() {
                errors.invalid(FIELD, name, crate::invalid::names::SUBDOMAIN_MESSAGE);
            }
        }
    }
}

/// Checks that a bundle has certificates of authorities, each once, and nothing else.
fn check_anchors(text: &str, errors: &mut FieldErrors) {
    const FIELD: &str = "spec.trustBundle";
    if text.len() > LARGEST {
        return errors.too_long(FIELD, LARGEST);
    }
    let mut wrong = |why: String| errors.invalid(FIELD, "<value omitted>", why);
    let mut seen: Vec<(Vec<u8>, Vec<usize>)> = Vec::new();
    let mut damaged = false;
    for (i, block) in k8s_core::pem::blocks(text).into_iter().enumerate() {
        let problem = if block.label != "CERTIFICATE" {
            Some(format!("entry {i} has bad block type: {}", block.label))
        } else if block.has_headers {
            Some(format!("entry {i} has PEM block headers"))
        } else {
            authority(&block.contents).err().map(|why| format!("entry {i} {why}"))
        };
        if let Some(problem) = problem {
            damaged = true;
            wrong(problem);
        } else if let Some((_, places)) = seen.iter_mut().find(|(known, _)| *known == block.contents) {
            places.push(i);
        } else {
            seen.push((block.contents, vec![i]));
        }
    }
    if damaged {
        return;
    }
    if seen.is_empty() {
        wrong("at least one trust anchor must be provided".into());
    }
    for (_, places) in seen.iter().filter(|(_, places)| places.len() > 1) {
        let places: Vec<String> = places.iter().map(ToString::to_string).collect();
        wrong(format!("duplicate trust anchor (indices [{}])", places.join(" ")));
    }
}

/// Checks that a certificate is of an authority.
#[cfg(feature = "tls")]
fn authority(der: &[u8]) -> Result<(), &'static str> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let Ok((rest, certificate)) = X509Certificate::from_der(der) else {
        return Err("does not parse as X.509");
    };
    if !rest.is_empty() {
        return Err("does not parse as X.509");
    }
    match certificate.basic_constraints() {
        Ok(Some(constraints)) if constraints.value.ca => Ok(()),
        Ok(_) => Err("does not have the CA bit set"),
        Err(_) => Err("has invalid basic constraints"),
    }
}

/// Refuses every certificate: without the feature `tls` none can be read.
#[cfg(not(feature = "tls"))]
fn authority(_: &[u8]) -> Result<(), &'static str> {
    Err("cannot be read: this program is built without k8s-apiserver's feature \"tls\"")
}

#[cfg(test)]
mod tests {
    use k8s_core::pem;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    fn certificate(ca: bool) -> String {
        let mut params = CertificateParams::default();
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn bundles_are_of_authorities() {
        let (a, b) = (certificate(true), certificate(true));
        let problems = |text: &str| {
            let mut errors = FieldErrors::default();
            check_anchors(text, &mut errors);
            errors
                .lines()
                .iter()
                .map(|l| l.rsplit("<value omitted>\": ").next().unwrap().to_owned())
                .collect()
        };
        let none: Vec<String> = Vec::new();
        assert_eq!(problems(&format!("words\n{a}\nmore\n{b}")), none);
        for (text, want) in [
            (String::new(), "at least one trust anchor must be provided"),
            ("words".into(), "at least one trust anchor must be provided"),
            (certificate(false), "entry 0 does not have the CA bit set"),
            (pem::encode("CERTIFICATE", &[1, 2]), "entry 0 does not parse as X.509"),
            (format!("{a}{}", pem::encode("PRIVATE KEY", &[1])), "entry 1 has bad block type: PRIVATE KEY"),
            (
                a.replace("-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nX: y\n\n"),
                "entry 0 has PEM block headers",
            ),
            (format!("{a}{b}{a}"), "duplicate trust anchor (indices [0 2])"),
        ] {
            let found: Vec<String> = problems(&text);
            assert_eq!(found, [want], "{text}");
        }
        let mut errors = FieldErrors::default();
        check_anchors(&"x".repeat(LARGEST + 1), &mut errors);
        assert_eq!(errors.lines(), ["spec.trustBundle: Too long: may not be more than 1048576 bytes"]);
    }

    #[test]
    fn names_follow_the_signer() {
        for (name, signer, good) in [
            ("a.b", "", true),
            ("a:b", "", false),
            ("A", "", false),
            ("example.com:mine:x", "example.com/mine", true),
            ("example.com:mine:", "example.com/mine", false),
            ("example.com:mine:X", "example.com/mine", false),
            ("x", "example.com/mine", false),
        ] {
            let mut errors = FieldErrors::default();
            check_name(name, signer, &mut errors);
            assert_eq!(errors.is_empty(), good, "{name} of {signer:?}: {:?}", errors.lines());
        }
    }
}
