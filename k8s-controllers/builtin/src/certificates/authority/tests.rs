use k8s_core::api::{ByteString, api::certificates::v1::CertificateSigningRequestSpec};
use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, SanType, string::Ia5String};
use x509_parser::prelude::*;

use super::{super::request, *};

fn ca() -> (Authority, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "test-ca");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    let pem = params.self_signed(&key).unwrap().pem();
    (Authority::from_pem(&pem, &key.serialize_pem()).unwrap(), pem)
}

fn now() -> Timestamp {
    "2026-11-28T14:00:00Z".parse().unwrap()
}

fn params(names: &[(DnType, &str)], alternatives: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    names.iter().for_each(|(kind, value)| params.distinguished_name.push(kind.clone(), *value));
    params.subject_alt_names = alternatives;
    params
}

fn parsed(params: &CertificateParams, key: &KeyPair) -> Request {
    let pem = params.serialize_request(key).unwrap().pem().unwrap();
    request::parse(pem.as_bytes()).unwrap()
}

fn spec(signer: &str, usages: &[&str]) -> CertificateSigningRequestSpec {
    CertificateSigningRequestSpec {
        request: ByteString(Vec::new()),
        signer_name: signer.into(),
        usages: Some(usages.iter().map(|usage| (*usage).to_owned()).collect()),
        ..CertificateSigningRequestSpec::default()
    }
}

fn usages(all: &[&str]) -> Vec<String> {
    all.iter().map(|usage| (*usage).to_owned()).collect()
}

#[test]
fn certificates_have_the_names_of_their_request_and_no_more() {
    let (authority, ca_pem) = ca();
    let key = KeyPair::generate().unwrap();
    let alternatives = vec![
        SanType::DnsName(Ia5String::try_from("node.example.com").unwrap()),
        SanType::IpAddress([10, 0, 0, 7].into()),
        SanType::URI(Ia5String::try_from("spiffe://x").unwrap()),
        SanType::Rfc822Name(Ia5String::try_from("a@example.com").unwrap()),
    ];
    let mut asked = params(&[(DnType::CommonName, "jane"), (DnType::OrganizationName, "dev")], alternatives);
    asked.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    asked.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let request = parsed(&asked, &key);
    let all = usages(&["digital signature", "key encipherment", "client auth", "client auth"]);
    let pem = authority.sign(&request, &all, Duration::from_secs(86400), now()).unwrap();
    let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
    let certificate = block.parse_x509().unwrap();
    let (_, ca_block) = parse_x509_pem(ca_pem.as_bytes()).unwrap();
    let issuer = ca_block.parse_x509().unwrap();
    certificate.verify_signature(Some(issuer.public_key())).unwrap();
    assert_eq!(certificate.issuer(), issuer.subject());
    assert_eq!(certificate.subject().to_string(), "CN=jane, O=dev");
    assert_eq!(*certificate.public_key().subject_public_key.data, *key.der_bytes());
    assert!(!certificate.is_ca());
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert_eq!(
        (usage.digital_signature(), usage.key_encipherment(), usage.key_cert_sign()),
        (true, true, false)
    );
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert_eq!((extended.client_auth, extended.server_auth, extended.any), (true, false, false));
    let names = certificate.subject_alternative_name().unwrap().unwrap().value;
    assert_eq!(names.general_names.len(), 4);
    let at = |text: &str| text.parse::<Timestamp>().unwrap().as_second();
    assert_eq!(certificate.validity().not_before.timestamp(), at("2026-11-28T13:55:00Z"));
    assert_eq!(certificate.validity().not_after.timestamp(), at("2026-11-29T13:55:00Z"));
    assert_eq!(certificate.version(), X509Version::V3);
    let again = authority.sign(&request, &all, Duration::from_secs(86400), now()).unwrap();
    assert_ne!(pem, again, "another serial number");
}

#[test]
fn lifetimes_are_bounded_by_request_flag_and_ca() {
    let (authority, _) = ca();
    let key = KeyPair::generate().unwrap();
    let request = parsed(&params(&[(DnType::CommonName, "jane")], Vec::new()), &key);
    let end = |lifetime, now: Timestamp| {
        let pem = authority.sign(&request, &usages(&["client auth"]), lifetime, now)?;
        let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
        let seconds = block.parse_x509().unwrap().validity().not_after.timestamp();
        Ok::<_, String>(Timestamp::from_second(seconds).unwrap().to_string())
    };
    assert_eq!(
        end(Duration::from_secs(3600), now()).unwrap(),
        "2026-11-28T15:00:00Z",
        "short: not backdated"
    );
    assert_eq!(end(Duration::from_secs(20 * 365 * 86400), now()).unwrap(), "2030-01-01T00:00:00Z");
    let late = "2030-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(end(Duration::from_secs(3600), late).unwrap_err(), "the signer has expired");
    let signing = Signing { duration: Duration::from_secs(7200), ..Signing::default() };
    let lifetime = |asked| signing.lifetime(asked).as_secs();
    assert_eq!((lifetime(None), lifetime(Some(3600)), lifetime(Some(9000))), (7200, 3600, 7200));
    assert_eq!((lifetime(Some(1)), lifetime(Some(-1))), (600, 600));
}

#[test]
fn each_signer_has_its_rules() {
    let key = KeyPair::generate().unwrap();
    let dns = || vec![SanType::DnsName(Ia5String::try_from("n").unwrap())];
    let node = [(DnType::CommonName, "system:node:n"), (DnType::OrganizationName, "system:nodes")];
    let (client, serving) =
        (["digital signature", "client auth"], ["digital signature", "server auth", "key encipherment"]);
    for (signer, names, alternatives, usages, problem) in [
        (KUBELET_CLIENT, &node[..], Vec::new(), &client[..], ""),
        (KUBELET_CLIENT, &node, dns(), &client, "DNS subjectAltNames are not allowed"),
        (
            KUBELET_CLIENT,
            &node,
            vec![SanType::IpAddress([1, 2, 3, 4].into())],
            &client,
            "IP subjectAltNames are not allowed",
        ),
        (KUBELET_CLIENT, &node[..1], Vec::new(), &client, "subject organization is not system:nodes"),
        (
            KUBELET_CLIENT,
            &node,
            Vec::new(),
            &serving,
            "usages did not match [client auth digital signature key encipherment]",
        ),
        (
            KUBELET_CLIENT,
            &[(DnType::CommonName, "n"), (DnType::OrganizationName, "system:nodes")],
            Vec::new(),
            &client,
            "subject common name does not begin with system:node:",
        ),
        (KUBELET_SERVING, &node, dns(), &serving, ""),
        (KUBELET_SERVING, &node, Vec::new(), &serving, "DNS or IP subjectAltName is required"),
        (
            KUBELET_SERVING,
            &node,
            dns(),
            &client,
            "usages did not match [digital signature key encipherment server auth]",
        ),
        (CLIENT, &[(DnType::CommonName, "jane")], Vec::new(), &client, ""),
        (
            CLIENT,
            &[(DnType::CommonName, "jane")],
            Vec::new(),
            &serving,
            "invalid usage for client certificate: server auth",
        ),
        (
            CLIENT,
            &[(DnType::CommonName, "jane")],
            Vec::new(),
            &["digital signature"],
            "missing required usage for client certificate: client auth",
        ),
        (
            CLIENT,
            &[(DnType::CommonName, "jane"), (DnType::OrganizationName, "system:masters")],
            Vec::new(),
            &client,
            "subject organization system:masters is not allowed",
        ),
        (
            LEGACY,
            &[(DnType::OrganizationName, "system:masters")],
            Vec::new(),
            &client,
            "subject organization system:masters is not allowed",
        ),
        (LEGACY, &[], dns(), &["cert sign"], ""),
        ("example.com/x", &[], Vec::new(), &client, "unrecognized signerName: \"example.com/x\""),
    ] {
        let request = parsed(&params(names, alternatives), &key);
        let told = request.check(&spec(signer, usages)).err().unwrap_or_default();
        assert_eq!(told, problem, "{signer} {names:?} {usages:?}");
    }
    // A request with a foreign key: the signature does not match.
    let pem = params(&node, Vec::new()).serialize_request(&key).unwrap().pem().unwrap();
    let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
    let mut der = block.contents;
    let place = der.windows(key.der_bytes().len()).position(|window| window == key.der_bytes()).unwrap();
    der[place + 10] ^= 1;
    let forged = STANDARD.encode(&der);
    let forged =
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{forged}\n-----END CERTIFICATE REQUEST-----\n");
    let forged = request::parse(forged.as_bytes()).unwrap();
    let told = forged.check(&spec(KUBELET_CLIENT, &client)).unwrap_err();
    assert_eq!(told, "the signature of the request is not by its own key");
}

#[test]
fn other_keys_sign_too() {
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let pem = CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem();
        let authority = Authority::from_pem(&pem, &key.serialize_pem()).unwrap();
        let request =
            parsed(&params(&[(DnType::CommonName, "jane")], Vec::new()), &KeyPair::generate().unwrap());
        let signed = authority.sign(&request, &usages(&["client auth"]), SHORT, now()).unwrap();
        let (_, block) = parse_x509_pem(signed.as_bytes()).unwrap();
        let (_, ca) = parse_x509_pem(pem.as_bytes()).unwrap();
        let ca = ca.parse_x509().unwrap();
        block.parse_x509().unwrap().verify_signature(Some(ca.public_key())).unwrap();
    }
}
