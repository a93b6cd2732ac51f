//! Handshakes between the clients and servers of this crate, over a pipe.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use k8s_tls::{ClientAuth, Identity, TlsAcceptor, Trust, client, connect, server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn identity(ca: &Ca, names: &[&str]) -> Identity {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, ca).unwrap();
    Identity { certificate: certificate.pem().into_bytes(), key: key.serialize_pem().into_bytes() }
}

/// Makes a handshake for `host` and sends one byte back. An error of either side is an error.
async fn meet(
    (trust, me): (Trust<'_>, Option<&Identity>),
    (identity, clients): (&Identity, ClientAuth<'_>),
    host: &str,
) -> std::io::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(server(identity, &clients, &[b"http/1.1"]).unwrap()));
    let config = Arc::new(client(&trust, me, &[b"h2", b"http/1.1"]).unwrap());
    let (near, far) = tokio::io::duplex(1 << 14);
    let serve = async {
        let mut stream = acceptor.accept(far).await?;
        stream.write_all(b"!").await?;
        stream.shutdown().await
    };
    let ask = async {
        let mut stream = connect(config, host, near).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        stream.read_u8().await.map(drop)
    };
    tokio::try_join!(serve, ask).map(drop)
}

#[tokio::test]
async fn a_server_is_trusted_by_its_ca_and_name_or_not_at_all() {
    let (ours, other) = (ca(), ca());
    let identity = identity(&ours, &["db.default.svc", "127.0.0.1"]);
    let (pem, foreign) = (ours.pem(), other.pem());
    let server = (&identity, ClientAuth::Off);
    meet((Trust::Pem(pem.as_bytes()), None), server, "db.default.svc").await.unwrap();
    meet((Trust::Pem(pem.as_bytes()), None), server, "127.0.0.1").await.unwrap();
    let both = format!("{foreign}\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n{pem}");
    meet((Trust::Bundle(both.as_bytes()), None), server, "db.default.svc").await.unwrap();
    meet((Trust::Anyone, None), server, "[::1]").await.unwrap();
    for (trust, host) in [
        (Trust::Pem(foreign.as_bytes()), "db.default.svc"),
        (Trust::Pem(b""), "db.default.svc"),
        (Trust::Pem(pem.as_bytes()), "elsewhere"),
    ] {
        assert!(meet((trust, None), server, host).await.is_err(), "{trust:?} {host}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_ignored_optional_or_required() {
    let (ours, other) = (ca(), ca());
    let identity_of_server = identity(&ours, &["a"]);
    let (mine, strange) = (identity(&ours, &["me"]), identity(&other, &["me"]));
    let pem = ours.pem();
    let trust = Trust::Pem(pem.as_bytes());
    let optional = (&identity_of_server, ClientAuth::Optional(pem.as_bytes()));
    let required = (&identity_of_server, ClientAuth::Required(pem.as_bytes()));
    meet((trust, None), optional, "a").await.unwrap();
    meet((trust, Some(&mine)), optional, "a").await.unwrap();
    meet((trust, Some(&mine)), required, "a").await.unwrap();
    assert!(meet((trust, Some(&strange)), optional, "a").await.is_err());
    assert!(meet((trust, None), required, "a").await.is_err());
    assert!(meet((trust, Some(&strange)), required, "a").await.is_err());
}

#[tokio::test]
async fn a_replaced_client_certificate_is_presented_from_then_on() {
    let ours = ca();
    let (server_identity, first, second) =
        (identity(&ours, &["a"]), identity(&ours, &["one"]), identity(&ours, &["two"]));
    let pem = ours.pem();
    let mine = k8s_tls::ClientIdentity::new(&first).unwrap();
    let config = Arc::new(k8s_tls::client_of(&Trust::Pem(pem.as_bytes()), &mine, &[]).unwrap());
    // Sessions are not resumed here: the server sees the certificate of each handshake.
    let presented = async || {
        let clients = ClientAuth::Required(pem.as_bytes());
        let acceptor = TlsAcceptor::from(Arc::new(server(&server_identity, &clients, &[]).unwrap()));
        let (near, far) = tokio::io::duplex(1 << 14);
        let (client, server) = tokio::join!(connect(config.clone(), "a", near), acceptor.accept(far));
        client.unwrap();
        server.unwrap().get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = presented().await;
    assert_eq!(presented().await, before);
    mine.replace(&second).unwrap();
    let after = presented().await;
    assert_ne!(after, before);
    let mismatch = Identity { certificate: first.certificate.clone(), key: second.key.clone() };
    assert_eq!(mine.replace(&mismatch).unwrap_err().part, "certificate");
    assert_eq!(presented().await, after, "the former certificate stays");
}

#[test]
fn errors_name_the_part() {
    let bad = Identity { certificate: b"".to_vec(), key: b"no key".to_vec() };
    assert_eq!(client(&Trust::Anyone, Some(&bad), &[]).unwrap_err().part, "private key");
    assert_eq!(server(&bad, &ClientAuth::Off, &[]).unwrap_err().part, "private key");
}

#[tokio::test]
async fn a_servers_own_certificate_may_stand_for_its_ca() {
    let ca = ca();
    let (server, other) = (identity(&ca, &["db.default.svc"]), identity(&ca, &["db.default.svc"]));
    let own = Trust::Pem(&server.certificate);
    meet((own, None), (&server, ClientAuth::Off), "db.default.svc").await.unwrap();
    let refused = async |server: &Identity, host: &str| {
        meet((own, None), (server, ClientAuth::Off), host).await.unwrap_err().to_string()
    };
    // It stands for itself only.
    assert!(refused(&other, "db.default.svc").await.contains("invalid peer certificate"));
    assert!(refused(&server, "web.default.svc").await.contains("not valid for name"), "its names count");
    let key = KeyPair::generate().unwrap();
    for (years, problem) in [((1990, 2000), "Expired"), ((2990, 3000), "NotValidYet")] {
        let mut params = CertificateParams::new(["db.default.svc".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let certificate = params.signed_by(&key, &ca).unwrap();
        let old =
            Identity { certificate: certificate.pem().into_bytes(), key: key.serialize_pem().into_bytes() };
        let trust = Trust::Pem(&old.certificate);
        let error = meet((trust, None), (&old, ClientAuth::Off), "db.default.svc").await.unwrap_err();
        assert!(error.to_string().contains(problem) || error.to_string().contains("valid"), "{error}");
    }
}
