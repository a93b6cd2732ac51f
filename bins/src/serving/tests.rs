use std::sync::Arc;

use k8s_tls::{TlsAcceptor, Trust};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use super::*;

/// A certificate for a name that signed itself.
fn identity(name: &str) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().pem().into_bytes();
    Identity { certificate, key: key.serialize_pem().into_bytes() }
}

/// The settings of flags, and a directory for their files, which is `DIR` in the flags.
fn settings(directory: &Path, flags: &[&str]) -> ServingSettings {
    let flags = flags.iter().map(|flag| flag.replace("DIR", &directory.display().to_string()));
    let command = ServingSettings::augment_args(Command::new("x").no_binary_name(true));
    ServingSettings::from_arg_matches(&command.get_matches_from(flags)).unwrap()
}

fn write(directory: &Path, name: &str, identity: &Identity) {
    fs::write(directory.join(format!("{name}.crt")), &identity.certificate).unwrap();
    fs::write(directory.join(format!("{name}.key")), &identity.key).unwrap();
}

/// The certificate (PEM) that a client gets who asks for a host, with this client certificate.
async fn served(tls: &ServerTls, host: &str, client: Option<&Identity>) -> std::io::Result<Vec<u8>> {
    let config = k8s_tls::client(&Trust::Anyone, client, &[b"h2"]).unwrap();
    let (near, far) = tokio::io::duplex(1 << 15);
    let local = host.parse().ok();
    let accept = TlsAcceptor::from(tls.at(local)).accept(far);
    let (client, server) = tokio::join!(k8s_tls::connect(Arc::new(config), host, near), accept);
    server?;
    let client = client?;
    Ok(client.get_ref().1.peer_certificates().unwrap()[0].to_vec())
}

fn der(identity: &Identity) -> Vec<u8> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(&identity.certificate).unwrap();
    pem.contents
}

#[tokio::test]
async fn changed_files_are_served_and_broken_ones_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let (own, first, second) = (identity("own"), identity("a"), identity("a"));
    write(path, "serving", &first);
    let flags = ["--tls-cert-file=DIR/serving.crt", "--tls-private-key-file=DIR/serving.key"];
    let ca = String::from_utf8(own.certificate.clone()).unwrap();
    let listener = settings(path, &flags).listener(own.clone(), &ca).unwrap();
    let tls = listener.tls();
    assert_eq!(served(&tls, "a", None).await.unwrap(), der(&first));
    assert!(!listener.reload(), "nothing has changed");
    // One of the two files is new: the pair does not fit, and the former one stays.
    fs::write(path.join("serving.crt"), &second.certificate).unwrap();
    assert!(!listener.reload());
    let told = listener.state.lock().unwrap().told.clone();
    assert!(told.starts_with("--tls-cert-file ") && told.contains("serving.crt: certificate: "), "{told}");
    assert_eq!(served(&tls, "a", None).await.unwrap(), der(&first));
    fs::write(path.join("serving.key"), &second.key).unwrap();
    assert!(listener.reload());
    assert_eq!(served(&tls, "a", None).await.unwrap(), der(&second));
    for junk in ["", "junk"] {
        fs::write(path.join("serving.crt"), junk).unwrap();
        assert!(!listener.reload());
    }
    fs::remove_file(path.join("serving.key")).unwrap();
    assert!(!listener.reload());
    assert_eq!(served(&tls, "a", None).await.unwrap(), der(&second));
    // The cluster's own certificate is not in use beside the files.
    listener.renew(identity("own")).unwrap();
    assert_eq!(served(&tls, "a", None).await.unwrap(), der(&second));
}

#[tokio::test]
async fn the_clusters_own_certificate_is_renewed_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let (own, renewed) = (identity("own"), identity("own"));
    let ca = String::from_utf8(own.certificate.clone()).unwrap();
    let listener = settings(directory.path(), &[]).listener(own.clone(), &ca).unwrap();
    assert_eq!(served(&listener.tls(), "own", None).await.unwrap(), der(&own));
    let mismatch = Identity { certificate: renewed.certificate.clone(), key: own.key.clone() };
    assert!(listener.renew(mismatch).is_err());
    assert_eq!(served(&listener.tls(), "own", None).await.unwrap(), der(&own));
    listener.renew(renewed.clone()).unwrap();
    assert!(!listener.reload());
    assert_eq!(served(&listener.tls(), "own", None).await.unwrap(), der(&renewed));
    assert_eq!(listener.given(), None);
}

#[tokio::test]
async fn client_cas_are_reloaded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let (own, old, new) = (identity("own"), identity("old"), identity("new"));
    write(path, "clients", &old);
    let ca = String::from_utf8(own.certificate.clone()).unwrap();
    let listener = settings(path, &["--client-ca-file=DIR/clients.crt"]).listener(own.clone(), &ca).unwrap();
    let tls = listener.tls();
    let client = |ca: &Identity| {
        let key = KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(
            std::str::from_utf8(&ca.certificate).unwrap(),
            KeyPair::from_pem(std::str::from_utf8(&ca.key).unwrap()).unwrap(),
        );
        let params = CertificateParams::new(vec!["me".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer.unwrap()).unwrap().pem().into_bytes();
        Identity { certificate, key: key.serialize_pem().into_bytes() }
    };
    let (of_own, of_old, of_new) = (client(&own), client(&old), client(&new));
    for (of, fine) in [(&of_own, true), (&of_old, true), (&of_new, false)] {
        assert_eq!(served(&tls, "own", Some(of)).await.is_ok(), fine);
    }
    write(path, "clients", &new);
    assert!(listener.reload());
    for (of, fine) in [(&of_own, true), (&of_old, false), (&of_new, true)] {
        assert_eq!(served(&tls, "own", Some(of)).await.is_ok(), fine);
    }
    assert!(listener.client_cas().contains(std::str::from_utf8(&new.certificate).unwrap()));
    fs::write(path.join("clients.crt"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    assert!(!listener.reload());
    let told = listener.state.lock().unwrap().told.clone();
    assert!(told.starts_with("--client-ca-file "), "{told}");
    assert!(served(&tls, "own", Some(&of_new)).await.is_ok(), "the former CAs stay");
}

#[tokio::test]
async fn a_certificate_is_chosen_by_the_name_that_the_client_asks_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let own = identity("own");
    let (shop, wild, explicit, later, address) = (
        identity("shop.example.com"),
        identity("*.example.com"),
        identity("elsewhere"),
        identity("shop.example.com"),
        identity("ten"),
    );
    for (name, of) in
        [("shop", &shop), ("wild", &wild), ("explicit", &explicit), ("later", &later), ("ten", &address)]
    {
        write(path, name, of);
    }
    let ca = String::from_utf8(own.certificate.clone()).unwrap();
    let flags = [
        "--tls-sni-cert-key=DIR/shop.crt,DIR/shop.key",
        "--tls-sni-cert-key=DIR/wild.crt,DIR/wild.key",
        "--tls-sni-cert-key=DIR/later.crt,DIR/later.key",
        "--tls-sni-cert-key=DIR/explicit.crt,DIR/explicit.key:API.example.com,*.shop.example.com",
        "--tls-sni-cert-key=DIR/ten.crt,DIR/ten.key:10.0.0.7",
    ];
    let listener = settings(path, &flags).listener(own.clone(), &ca).unwrap();
    let tls = listener.tls();
    for (host, want) in [
        ("shop.example.com", &shop),
        ("other.example.com", &wild),
        // Names that are given go before a certificate's own.
        ("api.example.com", &explicit),
        ("a.shop.example.com", &explicit),
        // `*` is one label.
        ("a.other.example.com", &own),
        ("elsewhere", &own),
        ("10.0.0.7", &address),
        ("10.0.0.8", &own),
    ] {
        assert_eq!(served(&tls, host, None).await.unwrap(), der(want), "{host}");
    }
    // A renewed file among them is reloaded, too.
    let renewed = identity("*.example.com");
    write(path, "wild", &renewed);
    assert!(listener.reload());
    assert_eq!(served(&tls, "other.example.com", None).await.unwrap(), der(&renewed));
}

#[test]
fn flags_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let (own, other) = (identity("own"), identity("other"));
    write(path, "a", &own);
    write(path, "b", &other);
    let ca = String::from_utf8(own.certificate.clone()).unwrap();
    for (flags, want) in [
        (&["--tls-cert-file=DIR/a.crt"][..], "--tls-private-key-file: the private key of"),
        (&["--tls-private-key-file=DIR/a.key"], "--tls-cert-file: the certificate of"),
        (&["--tls-cert-file=DIR/none", "--tls-private-key-file=DIR/a.key"], "--tls-cert-file "),
        (&["--tls-sni-cert-key=DIR/a.crt,DIR/b.key"], "--tls-sni-cert-key: certificate: SNI certificate 0"),
        (&["--client-ca-file=DIR/none"], "--client-ca-file "),
        (&["--tls-min-version=VersionTLS10"], "--tls-min-version: VersionTLS10 is insecure"),
        (
            &["--tls-cipher-suites=TLS_RSA_WITH_RC4_128_SHA"],
            "--tls-cipher-suites: TLS_RSA_WITH_RC4_128_SHA is",
        ),
    ] {
        let error = settings(path, flags).listener(own.clone(), &ca).err().map(|e| e.to_string());
        assert!(error.as_ref().is_some_and(|e| e.starts_with(want)), "{flags:?}: {error:?}");
    }
    for wrong in ["a.crt", "a.crt,", ",a.key", "a.crt,a.key,b.key", ""] {
        assert!(sni(wrong).is_err(), "{wrong}");
    }
    let parsed = sni("a.crt,a.key:x, *.y").unwrap();
    assert_eq!(parsed.names, ["x", "*.y"]);
}

#[tokio::test]
async fn versions_and_suites_are_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let own = identity("own");
    let ca = String::from_utf8(own.certificate.clone()).unwrap();
    // A client of TLS 1.2 only.
    let old = |tls: ServerTls| async move {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let (near, far) = tokio::io::duplex(1 << 15);
        let accept = TlsAcceptor::from(tls.at(None)).accept(far);
        let (_, server) = tokio::join!(k8s_tls::connect(Arc::new(config), "own", near), accept);
        server.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let of = |flags: &[&str]| settings(directory.path(), flags).listener(own.clone(), &ca).unwrap().tls();
    // The client of the test trusts nobody: it gets as far as the server's certificate.
    let reached = old(of(&[])).await;
    assert!(reached.contains("alert: Certificate"), "{reached}");
    for flags in [&["--tls-min-version=VersionTLS13"][..], &["--tls-cipher-suites=TLS_AES_128_GCM_SHA256"]] {
        let refused = old(of(flags)).await;
        assert!(!refused.contains("alert: Certificate") && !refused.is_empty(), "{flags:?}: {refused}");
        assert!(served(&of(flags), "own", None).await.is_ok());
    }
}
