//! Certificate requests from creation to a client that authenticates by the certificate, over TLS.

use std::{path::Path, time::Duration};

use hyperkube::{Cluster, Node};
use k8s_core::{
    api::{
        ByteString,
        api::{
            authentication::v1::SelfSubjectReview,
            certificates::v1::{
                CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
            },
            core::v1::Secret,
            rbac::v1::ClusterRoleBinding,
        },
    },
    client::{Client, Kubeconfig, Remote, RemoteConfig},
    meta::ObjectExt,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::json;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";

/// A further organization; rcgen replaces the first one when another is pushed.
fn also_organization() -> DnType {
    DnType::CustomDnType(vec![2, 5, 4, 10])
}

/// Creates a request as a user of `client`.
async fn request(
    client: &Client,
    name: &str,
    signer: &str,
    usages: &[&str],
    subject: &[(DnType, &str)],
) -> KeyPair {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    subject.iter().for_each(|(kind, value)| params.distinguished_name.push(kind.clone(), *value));
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    let mut csr = CertificateSigningRequest::default();
    csr.metadata.name = Some(name.to_owned());
    csr.spec = CertificateSigningRequestSpec {
        request: ByteString(pem.into_bytes()),
        signer_name: signer.to_owned(),
        usages: Some(usages.iter().map(|usage| (*usage).to_owned()).collect()),
        expiration_seconds: Some(3600),
        ..CertificateSigningRequestSpec::default()
    };
    client.all::<CertificateSigningRequest>().create(&csr).await.unwrap();
    key
}

/// Approves a request. The controller may approve it at the same time: an administrator may have any
/// certificate. A conflict is tried again, as `kubectl certificate approve` does.
async fn approve(admin: &Client, name: &str) {
    let requests = admin.all::<CertificateSigningRequest>();
    loop {
        let mut csr = requests.get(name).await.unwrap();
        let conditions = csr.status.get_or_insert_default().conditions.get_or_insert_default();
        if conditions.iter().any(|condition| condition.type_ == "Approved") {
            return;
        }
        conditions.push(CertificateSigningRequestCondition {
            type_: "Approved".into(),
            status: "True".into(),
            reason: Some("Test".into()),
            ..CertificateSigningRequestCondition::default()
        });
        match requests.replace_subresource(name, "approval", &csr).await {
            Err(error) if error.is_conflict() => {}
            other => return drop(other.unwrap()),
        }
    }
}

/// Waits until a request is signed or has failed.
async fn done(admin: &Client, name: &str) -> CertificateSigningRequest {
    let finished = |csr: &CertificateSigningRequest| {
        csr.status.as_ref().is_some_and(|status| {
            status.certificate.is_some() || status.conditions.iter().flatten().any(|c| c.type_ == "Failed")
        })
    };
    let wait = async {
        loop {
            let csr = admin.all::<CertificateSigningRequest>().get(name).await.unwrap();
            if finished(&csr) {
                return csr;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap()
}

async fn certificate(admin: &Client, name: &str) -> Vec<u8> {
    let csr = done(admin, name).await;
    csr.status.clone().and_then(|status| status.certificate).unwrap_or_else(|| panic!("{:?}", csr.status)).0
}

/// Returns a client that authenticates by a certificate.
fn with_certificate(cluster: &Cluster, certificate: Vec<u8>, key: &KeyPair) -> Client {
    let kubeconfig = Kubeconfig::parse(Path::new("kubeconfig"), &cluster.kubeconfig().unwrap()).unwrap();
    let of_admin = kubeconfig.remote(None).unwrap();
    let config = RemoteConfig {
        server: of_admin.server,
        ca: of_admin.ca,
        certificate: Some(certificate),
        key: Some(key.serialize_pem().into_bytes()),
        ..RemoteConfig::default()
    };
    Client::new(Remote::new(&config).unwrap())
}

async fn who_am_i(client: &Client) -> (String, Vec<String>) {
    let answer = client.all::<SelfSubjectReview>().create(&SelfSubjectReview::default()).await.unwrap();
    let user = answer.status.unwrap().user_info.unwrap();
    (user.username.unwrap(), user.groups.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_becomes_a_certificate_by_which_a_client_authenticates() {
    let directory = tempfile::tempdir().unwrap();
    let listen = "127.0.0.1:0".parse().unwrap();
    let cluster = Cluster::builder().data_dir(directory.path()).memory().node(Node::None).listen(listen);
    let cluster = cluster.start().await.unwrap();
    let admin = cluster.client();
    let subject =
        [(DnType::CommonName, "jane"), (DnType::OrganizationName, "dev"), (also_organization(), "ops")];
    let key = request(&admin, "jane", CLIENT, &["client auth"], &subject).await;
    approve(&admin, "jane").await;
    let pem = certificate(&admin, "jane").await;
    let jane = with_certificate(&cluster, pem, &key);
    assert_eq!(
        who_am_i(&jane).await,
        ("jane".to_owned(), ["dev", "ops", "system:authenticated"].map(str::to_owned).into())
    );
    assert!(jane.namespaced::<Secret>("default").get("x").await.is_err_and(|e| e.is_forbidden()));

    // A kubelet's first certificate is approved by somebody, the next one by its own right.
    let node = [(DnType::CommonName, "system:node:n1"), (DnType::OrganizationName, "system:nodes")];
    let usages = ["digital signature", "client auth"];
    let key = request(&admin, "first", KUBELET, &usages, &node).await;
    approve(&admin, "first").await;
    let kubelet = with_certificate(&cluster, certificate(&admin, "first").await, &key);
    let role = "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient";
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "renewal"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}]});
    admin.all::<ClusterRoleBinding>().apply("renewal", &binding).await.unwrap();
    let key = request(&kubelet, "next", KUBELET, &usages, &node).await;
    let renewed = with_certificate(&cluster, certificate(&admin, "next").await, &key);
    assert_eq!(who_am_i(&renewed).await.0, "system:node:n1");
    let approved = admin.all::<CertificateSigningRequest>().get("next").await.unwrap();
    let conditions = approved.status.unwrap().conditions.unwrap();
    assert_eq!(conditions[0].reason.as_deref(), Some("AutoApproved"));

    // The rules of a signer hold after an approval, too.
    request(&admin, "bad", SERVING, &["digital signature", "server auth"], &node).await;
    approve(&admin, "bad").await;
    let failed = done(&admin, "bad").await;
    let conditions = failed.status.clone().unwrap().conditions.unwrap();
    let failure = conditions.iter().find(|c| c.type_ == "Failed").unwrap();
    assert_eq!(failure.reason.as_deref(), Some("SignerValidationFailure"));
    assert_eq!(failure.message.as_deref(), Some("DNS or IP subjectAltName is required"));
    assert!(failed.status.unwrap().certificate.is_none());

    // Without the right nothing is approved, and without an approval nothing is signed.
    let other = [(DnType::CommonName, "system:node:n2"), (DnType::OrganizationName, "system:nodes")];
    request(&jane_may_ask(&admin, &jane).await, "stolen", KUBELET, &usages, &other).await;
    request(&admin, "open", CLIENT, &["client auth"], &[(DnType::CommonName, "joe")]).await;
    request(&admin, "after", CLIENT, &["client auth"], &[(DnType::CommonName, "joe")]).await;
    approve(&admin, "after").await;
    certificate(&admin, "after").await;
    for name in ["stolen", "open"] {
        let csr = admin.all::<CertificateSigningRequest>().get(name).await.unwrap();
        assert!(
            csr.status.as_ref().is_none_or(|s| s.certificate.is_none() && s.conditions.is_none()),
            "{}",
            csr.name()
        );
    }
    cluster.shutdown().await;
}

/// Lets jane create requests.
async fn jane_may_ask(admin: &Client, jane: &Client) -> Client {
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "jane"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    admin.all::<ClusterRoleBinding>().apply("jane", &binding).await.unwrap();
    jane.clone()
}
