//! Certificate requests, and the rules of the signers.

use std::collections::BTreeSet;

use k8s_core::api::api::certificates::v1::CertificateSigningRequestSpec;
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    pem::parse_x509_pem,
    prelude::FromDer,
    x509::AttributeTypeAndValue,
};

use super::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY};

/// An alternative name that a certificate takes over from its request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Name {
    Email(String),
    Dns(String),
    Uri(String),
    Ip(Vec<u8>),
}

/// A parsed PKCS #10 request.
#[derive(Debug)]
pub(super) struct Request {
    /// The subject, DER.
    pub(super) subject: Vec<u8>,
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    pub(super) names: Vec<Name>,
    /// The public key with its algorithm, DER.
    pub(super) public_key: Vec<u8>,
    /// The request is signed by its key.
    pub(super) is_own: bool,
}

/// Parses a request in PEM.
///
/// # Errors
/// The part that is not understood.
pub(super) fn parse(pem: &[u8]) -> Result<Request, String> {
    let form = "PEM block type must be CERTIFICATE REQUEST";
    let (_, block) = parse_x509_pem(pem).map_err(|_| form)?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(form.to_owned());
    }
    let (_, request) = X509CertificationRequest::from_der(&block.contents).map_err(|e| e.to_string())?;
    let info = &request.certification_request_info;
    let text = |name: &AttributeTypeAndValue<'_>| {
        name.as_str().map(str::to_owned).map_err(|e| format!("subject: {e}"))
    };
    let mut names = Vec::new();
    for extension in request.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(all) => {
                names.extend(all.general_names.iter().filter_map(name_of));
            }
            ParsedExtension::ParseError { error } => return Err(format!("extension: {error}")),
            _ => {}
        }
    }
    Ok(Request {
        subject: info.subject.as_raw().to_vec(),
        // Of several the last counts, as for the API server that authenticates by it.
        common_name: info.subject.iter_common_name().last().map(text).transpose()?.unwrap_or_default(),
        organizations: info.subject.iter_organization().map(text).collect::<Result<_, _>>()?,
        names,
        public_key: info.subject_pki.raw.to_vec(),
        is_own: request.verify_signature().is_ok(),
    })
}

/// Returns the names that upstream takes over; others are left out.
fn name_of(name: &GeneralName<'_>) -> Option<Name> {
    match name {
        GeneralName::RFC822Name(text) => Some(Name::Email((*text).to_owned())),
        GeneralName::DNSName(text) => Some(Name::Dns((*text).to_owned())),
        GeneralName::URI(text) => Some(Name::Uri((*text).to_owned())),
        GeneralName::IPAddress(bytes) => Some(Name::Ip(bytes.to_vec())),
        _ => None,
    }
}

impl Request {
    /// Checks the rules of a kubelet's client certificate.
    ///
    /// # Errors
    /// Upstream's text of the first rule that is not kept.
    pub(super) fn check_kubelet_client(&self, spec: &CertificateSigningRequestSpec) -> Result<(), String> {
        self.check_organization()?;
        let has = |kind: fn(&Name) -> bool| self.names.iter().any(kind);
        for (found, what) in [
            (has(|name| matches!(name, Name::Dns(_))), "DNS"),
            (has(|name| matches!(name, Name::Email(_))), "Email"),
            (has(|name| matches!(name, Name::Ip(_))), "IP"),
            (has(|name| matches!(name, Name::Uri(_))), "URI"),
        ] {
            if found {
                return Err(format!("{what} subjectAltNames are not allowed"));
            }
        }
        self.check_common_name()?;
        check_usages(spec, "client auth", "[client auth digital signature key encipherment]")
    }

    fn check_kubelet_serving(&self, spec: &CertificateSigningRequestSpec) -> Result<(), String> {
        self.check_organization()?;
        if !self.names.iter().any(|name| matches!(name, Name::Dns(_) | Name::Ip(_))) {
            return Err("DNS or IP subjectAltName is required".to_owned());
        }
        for name in &self.names {
            match name {
                Name::Email(_) => return Err("Email subjectAltNames are not allowed".to_owned()),
                Name::Uri(_) => return Err("URI subjectAltNames are not allowed".to_owned()),
                Name::Dns(_) | Name::Ip(_) => {}
            }
        }
        check_usages(spec, "server auth", "[digital signature key encipherment server auth]")?;
        self.check_common_name()
    }

    fn check_organization(&self) -> Result<(), String> {
        match self.organizations.as_slice() {
            [one] if one == "system:nodes" => Ok(()),
            _ => Err("subject organization is not system:nodes".to_owned()),
        }
    }

    fn check_common_name(&self) -> Result<(), String> {
        match self.common_name.starts_with("system:node:") {
            true => Ok(()),
            false => Err("subject common name does not begin with system:node:".to_owned()),
        }
    }

    /// Checks the rules of the request's signer.
    ///
    /// # Errors
    /// The first rule that is not kept.
    pub(super) fn check(&self, spec: &CertificateSigningRequestSpec) -> Result<(), String> {
        match spec.signer_name.as_str() {
            CLIENT => check_client_usages(spec),
            KUBELET_CLIENT => self.check_kubelet_client(spec),
            KUBELET_SERVING => self.check_kubelet_serving(spec),
            LEGACY => Ok(()),
            other => Err(format!("unrecognized signerName: {other:?}")),
        }?;
        // What an approver saw and what a client certificate says must be the same, whoever signs.
        if spec.signer_name != KUBELET_SERVING && self.organizations.iter().any(|o| o == "system:masters") {
            return Err("subject organization system:masters is not allowed".to_owned());
        }
        match self.is_own {
            true => Ok(()),
            false => Err("the signature of the request is not by its own key".to_owned()),
        }
    }
}

/// The usages of a kubelet's certificates; those for RSA keys may have key encipherment, too.
fn check_usages(spec: &CertificateSigningRequestSpec, purpose: &str, all: &str) -> Result<(), String> {
    let mut usages: BTreeSet<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    usages.remove("key encipherment");
    match usages == BTreeSet::from(["digital signature", purpose]) {
        true => Ok(()),
        false => Err(format!("usages did not match {all}")),
    }
}

fn check_client_usages(spec: &CertificateSigningRequestSpec) -> Result<(), String> {
    let mut is_client = false;
    for usage in spec.usages.iter().flatten() {
        match usage.as_str() {
            "digital signature" | "key encipherment" => {}
            "client auth" => is_client = true,
            other => return Err(format!("invalid usage for client certificate: {other}")),
        }
    }
    match is_client {
        true => Ok(()),
        false => Err("missing required usage for client certificate: client auth".to_owned()),
    }
}
