//! Certificates of pods: a key made on the node, a PodCertificateRequest, and the chain that its signer
//! gives.
//!
//! Flow: the first set-up of a volume makes a key, asks for a certificate and waits for the answer; a request
//! without an answer is waited for again at the next set-up. At `beginRefreshAt` a set-up makes another key
//! and request; the old certificate is used until the new one is there. A denied or failed request is final
//! for the pod. Keys are in memory and in the pod's tmpfs only.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_core::{
    cache::{Cache, reflect},
    client::{Client, Error, ListParams},
    clock::Clock,
    meta::ObjectExt,
    pem,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SignatureAlgorithm};

use crate::types::*;

/// The time that a set-up waits for a signer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time until a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// The reason for which a pod has no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("{0}")]
    Api(#[from] Error),
    #[error(
        "key type {0:?} is not supported by this kubelet: choose ECDSAP256, ECDSAP384 or ED25519 in podCertificate.keyType"
    )]
    KeyType(String),
    #[error("make a key: {0}")]
    Key(#[from] rcgen::Error),
    #[error("PodCertificateRequest {0} has no answer of its signer yet")]
    Pending(String),
    #[error("PodCertificateRequest {0} was deleted before its signer answered")]
    Deleted(String),
    #[error("{0}")]
    Refused(String),
}

/// A source of a projected volume: uid of the pod, volume, number of the source.
type Key = (String, String, usize);

/// A key and its certificate.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    /// Private key, PEM of PKCS #8.
    pub(crate) key: String,
    /// Certificates, PEM, the leaf first.
    pub(crate) chain: String,
    /// The time to renew them.
    pub(crate) refresh_at: Timestamp,
    not_after: Timestamp,
}

/// A request without an answer.
#[derive(Clone)]
struct Pending {
    name: String,
    key: String,
}

#[derive(Default)]
struct Known {
    issued: HashMap<Key, Credentials>,
    pending: HashMap<Key, Pending>,
    refused: HashMap<Key, String>,
}

/// The certificates of this node's pods.
pub(crate) struct PodCertificates {
    client: Client,
    clock: Clock,
    node: String,
    known: Mutex<Known>,
}

impl PodCertificates {
    pub(crate) fn new(client: Client, clock: Clock, node: String) -> Self {
        PodCertificates { client, clock, node, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the key and the certificate of a source, which are asked for or renewed where needed.
    pub(crate) async fn get(
        &self,
        pod: &Pod,
        volume: &str,
        index: usize,
        source: &PodCertificateProjection,
    ) -> Result<Credentials, CertificateError> {
        let key: Key = (pod.uid().to_owned(), volume.to_owned(), index);
        let now = self.clock.now();
        let (old, refused) = {
            let known = self.known();
            (known.issued.get(&key).cloned(), known.refused.get(&key).cloned())
        };
        if let Some(why) = refused {
            return Err(CertificateError::Refused(why));
        }
        if let Some(fresh) = old.as_ref().filter(|old| now < old.refresh_at) {
            return Ok(fresh.clone());
        }
        match (self.obtain(&key, pod, source).await, old) {
            (Ok(new), _) => {
                self.known().issued.insert(key, new.clone());
                Ok(new)
            }
            (Err(why), Some(old)) if now < old.not_after && !matches!(why, CertificateError::Refused(_)) => {
                tracing::warn!(pod = pod.name(), volume, error = %why, "a pod's certificate is not renewed yet");
                Ok(Credentials { refresh_at: now.saturating_add(AGAIN).unwrap_or(now), ..old })
            }
            (Err(why), _) => Err(why),
        }
    }

    /// Removes a pod's keys from memory.
    pub(crate) fn forget(&self, pod_uid: &str) {
        let mut known = self.known();
        known.issued.retain(|(uid, ..), _| uid != pod_uid);
        known.pending.retain(|(uid, ..), _| uid != pod_uid);
        known.refused.retain(|(uid, ..), _| uid != pod_uid);
    }

    /// Asks for a certificate, or goes on waiting for the answer.
    async fn obtain(
        &self,
        key: &Key,
        pod: &Pod,
        source: &PodCertificateProjection,
    ) -> Result<Credentials, CertificateError> {
        let waiting = self.known().pending.get(key).cloned();
        let pending = match waiting {
            Some(pending) => pending,
            None => {
                let asked = self.ask(pod, source).await?;
                self.known().pending.insert(key.clone(), asked.clone());
                asked
            }
        };
        let request = match self.answer(pod.namespace(), &pending.name).await {
            Err(why @ CertificateError::Deleted(_)) => {
                self.known().pending.remove(key);
                return Err(why);
            }
            answer => answer?,
        };
        let mut known = self.known();
        known.pending.remove(key);
        match outcome(&request) {
            Outcome::Issued(chain, refresh_at, not_after) => {
                Ok(Credentials { key: pending.key, chain, refresh_at, not_after })
            }
            Outcome::Refused(why) => {
                known.refused.insert(key.clone(), why.clone());
                Err(CertificateError::Refused(why))
            }
            Outcome::None => Err(CertificateError::Pending(pending.name)),
        }
    }

    /// Makes a key and a request for it.
    async fn ask(&self, pod: &Pod, source: &PodCertificateProjection) -> Result<Pending, CertificateError> {
        let key = KeyPair::generate_for(algorithm(&source.key_type)?)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let stub = params.serialize_request(&key)?;
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
        let live_account = self.client.namespaced::<ServiceAccount>(pod.namespace()).get(account).await?;
        let live_node = self.client.all::<Node>().get(&self.node).await?;
        let request = PodCertificateRequest {
            metadata: ObjectMeta { generate_name: Some("req-".into()), ..ObjectMeta::default() },
            spec: PodCertificateRequestSpec {
                signer_name: source.signer_name.clone(),
                pod_name: pod.name().to_owned(),
                pod_uid: pod.uid().to_owned(),
                service_account_name: account.to_owned(),
                service_account_uid: live_account.uid().to_owned(),
                node_name: self.node.clone(),
                node_uid: live_node.uid().to_owned(),
                max_expiration_seconds: source.max_expiration_seconds,
                stub_pkc_s10_request: ByteString(stub.der().to_vec()),
                unverified_user_annotations: source.user_annotations.clone(),
                ..PodCertificateRequestSpec::default()
            },
            status: None,
        };
        let api = self.client.namespaced::<PodCertificateRequest>(pod.namespace());
        let made = api.create(&request).await?;
        Ok(Pending { name: made.name().to_owned(), key: key.serialize_pem() })
    }

    /// Waits for the end of a request.
    async fn answer(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<std::sync::Arc<PodCertificateRequest>, CertificateError> {
        let cache = Cache::new();
        let fields = format!("metadata.name={name},spec.nodeName={}", self.node);
        let api = self.client.namespaced::<PodCertificateRequest>(namespace);
        let _watch = reflect(api, ListParams { fields, ..ListParams::default() }, cache.clone());
        let shown = format!("{namespace}/{name}");
        let ended = async {
            cache.synced().await;
            cache
                .until(|| cache.get(namespace, name).is_none_or(|r| !matches!(outcome(&r), Outcome::None)))
                .await;
        };
        if tokio::time::timeout(PATIENCE, ended).await.is_err() {
            return Err(CertificateError::Pending(shown));
        }
        cache.get(namespace, name).ok_or(CertificateError::Deleted(shown))
    }
}

fn algorithm(key_type: &str) -> Result<&'static SignatureAlgorithm, CertificateError> {
    match key_type {
        "ECDSAP256" => Ok(&rcgen::PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => Ok(&rcgen::PKCS_ECDSA_P384_SHA384),
        "ED25519" => Ok(&rcgen::PKCS_ED25519),
        other => Err(CertificateError::KeyType(other.to_owned())),
    }
}

/// The answer of a signer.
enum Outcome {
    /// Chain, time of renewal, end of the certificate.
    Issued(String, Timestamp, Timestamp),
    Refused(String),
    None,
}

fn outcome(request: &PodCertificateRequest) -> Outcome {
    let Some(status) = &request.status else { return Outcome::None };
    for condition in status.conditions.iter().flatten().filter(|c| c.status == "True") {
        let (reason, message) = (&condition.reason, &condition.message);
        let why = |what: &str| {
            let name = format!("{}/{}", request.namespace(), request.name());
            Outcome::Refused(format!(
                "PodCertificateRequest {name} {what}, reason={reason:?}, message={message:?}"
            ))
        };
        match condition.type_.as_str() {
            "Denied" => return why("was denied"),
            "Failed" => return why("failed"),
            "Issued" => {
                let chain = status.certificate_chain.as_deref().unwrap_or_default();
                // Without comments and headers, as trust anchors.
                let chain =
                    pem::blocks(chain).iter().map(|b| pem::encode("CERTIFICATE", &b.contents)).collect();
                let (Some(refresh), Some(end)) = (&status.begin_refresh_at, &status.not_after) else {
                    return Outcome::None;
                };
                return Outcome::Issued(chain, refresh.0, end.0);
            }
            _ => {}
        }
    }
    Outcome::None
}
