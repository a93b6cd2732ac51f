//! Certificate requests over time.

use std::time::Duration;

use k8s_core::api::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
    },
};

use crate::{lab::Lab, runs};

async fn hours(count: u64) {
    tokio::time::sleep(Duration::from_secs(count * 3600)).await;
}

#[tokio::test(start_paused = true)]
async fn requests_are_deleted_after_upstreams_times() {
    let lab = Lab::start(1, runs).await;
    let requests = lab.client.all::<CertificateSigningRequest>();
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    for name in ["pending", "denied", "failed", "approved", "issued"] {
        let mut csr = CertificateSigningRequest::default();
        csr.metadata.name = Some(name.into());
        csr.spec = CertificateSigningRequestSpec {
            request: ByteString(pem.clone().into_bytes()),
            signer_name: "example.com/of-nobody".into(),
            usages: Some(vec!["client auth".into()]),
            ..CertificateSigningRequestSpec::default()
        };
        let mut made = requests.create(&csr).await.unwrap();
        let (kind, subresource) = match name {
            "denied" => ("Denied", "approval"),
            "failed" => ("Failed", "status"),
            "approved" | "issued" => ("Approved", "approval"),
            _ => continue,
        };
        let condition = CertificateSigningRequestCondition {
            type_: kind.into(),
            status: "True".into(),
            reason: Some("Test".into()),
            ..CertificateSigningRequestCondition::default()
        };
        made.status.get_or_insert_default().conditions = Some(vec![condition]);
        let mut made = requests.replace_subresource(name, subresource, &made).await.unwrap();
        if name == "issued" {
            // Valid for the next years.
            let mut params = rcgen::CertificateParams::default();
            params.not_after = rcgen::date_time_ymd(2040, 1, 1);
            let pem = params.self_signed(&key).unwrap().pem();
            made.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
            requests.replace_status(name, &made).await.unwrap();
        }
    }
    let left = async || {
        let all = requests.list(&Default::default()).await.unwrap();
        all.into_iter().filter_map(|csr| csr.metadata.name).collect::<Vec<_>>()
    };
    tokio::time::sleep(Duration::from_secs(3500)).await;
    assert_eq!(left().await.len(), 5);
    hours(1).await;
    assert_eq!(left().await, ["approved", "pending"]);
    hours(22).await;
    assert_eq!(left().await, ["approved", "pending"]);
    hours(1).await;
    assert_eq!(left().await, [""; 0]);
}
