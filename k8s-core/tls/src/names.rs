//! The names in a certificate.

use rustls::pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// Returns the common name, if it is a DNS name, and the DNS names of a certificate; none of one that cannot
/// be parsed. Addresses are left out: clients never ask for one by name.
pub(crate) fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = parse_x509_certificate(certificate) else { return Vec::new() };
    let common = parsed.subject().iter_common_name().last().and_then(|name| name.as_str().ok());
    let mut names: Vec<String> =
        common.filter(|name| is_domain(name)).map(str::to_owned).into_iter().collect();
    let alternatives = parsed.subject_alternative_name().ok().flatten();
    for name in alternatives.iter().flat_map(|extension| &extension.value.general_names) {
        if let GeneralName::DNSName(name) = name {
            names.push((*name).to_owned());
        }
    }
    names
}

/// True for a DNS name in lower case, `*`, and `*.` with a domain; false for an address.
fn is_domain(name: &str) -> bool {
    let domain = name.strip_prefix("*.").unwrap_or(name);
    let label = |label: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| plain(b) || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    name == "*" || (!is_address && domain.len() <= 253 && domain.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_domains() {
        for (name, want) in [
            ("a", true),
            ("a.example.com", true),
            ("*.example.com", true),
            ("*", true),
            ("10.0.0.1", false),
            ("::1", false),
            ("kubernetes admin", false),
            ("system:node:n1", false),
            ("a.*.com", false),
            ("-a", false),
            ("", false),
        ] {
            assert_eq!(is_domain(name), want, "{name}");
        }
    }

    #[test]
    fn a_certificate_has_its_common_name_and_its_dns_names() {
        let names = ["b.example.com".to_owned(), "10.0.0.1".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "a.example.com");
        let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        assert_eq!(names_of(made.der()), ["a.example.com", "b.example.com"]);
        assert!(names_of(&CertificateDer::from(vec![1, 2])).is_empty());
    }
}
