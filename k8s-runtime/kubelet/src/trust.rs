//! ClusterTrustBundles, read by all pods of this node while one of them projects trust anchors.
//!
//! Flow: the first user starts a list and a watch of all bundles, later ones read its cache, and the last
//! user's handle ends it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use k8s_core::{
    cache::{Cache, Reflector, Subscription, reflect},
    client::{Client, Error, ListParams},
    meta::{LabelSelector, ObjectExt},
    pem,
};

use crate::types::{ClusterTrustBundle, ClusterTrustBundleProjection};

/// The time that a user waits for the first list.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason for which trust anchors cannot be projected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    #[error(
        "ClusterTrustBundle projection is not supported: the API server does not serve certificates.k8s.io/v1beta1 clustertrustbundles"
    )]
    NotServed,
    #[error("ClusterTrustBundle informer has not yet synced")]
    NotSynced,
    #[error("while getting ClusterTrustBundle: {0}")]
    Api(#[from] Error),
    #[error("while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {0:?} not found")]
    Missing(String),
    #[error("combination of signerName and labelSelector matched zero ClusterTrustBundles")]
    NoneMatched,
    #[error("while parsing label selector: {0}")]
    Selector(String),
    #[error("ClusterTrustBundle projection requires either name or signerName to be set")]
    Unnamed,
}

/// All bundles, watched while somebody holds this.
#[derive(Debug)]
pub(crate) struct Watched {
    cache: Cache<ClusterTrustBundle>,
    _reflector: Reflector,
}

impl Watched {
    pub(crate) fn subscribe(&self) -> Subscription<ClusterTrustBundle> {
        self.cache.subscribe()
    }
}

/// The bundles of the cluster.
#[derive(Debug)]
pub(crate) struct TrustBundles {
    client: Client,
    watched: Mutex<Weak<Watched>>,
}

impl TrustBundles {
    pub(crate) fn new(client: Client) -> Self {
        TrustBundles { client, watched: Mutex::default() }
    }

    /// Keeps the bundles watched while the handle lives.
    pub(crate) fn watch(&self) -> Arc<Watched> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = watched.upgrade() {
            return there;
        }
        let cache = Cache::new();
        let api = self.client.all::<ClusterTrustBundle>();
        let reflector = reflect(api, ListParams::default(), cache.clone());
        let new = Arc::new(Watched { cache, _reflector: reflector });
        *watched = Arc::downgrade(&new);
        new
    }

    /// Returns the trust anchors that a projection selects, in PEM, each once.
    pub(crate) async fn anchors(&self, source: &ClusterTrustBundleProjection) -> Result<String, TrustError> {
        let watched = self.watch();
        if !watched.cache.is_synced() {
            // A watch of what is not served would be tried again without an answer.
            let one = ListParams { limit: 1, ..ListParams::default() };
            match self.client.all::<ClusterTrustBundle>().list(&one).await {
                Err(e) if e.is_not_found() => return Err(TrustError::NotServed),
                answer => drop(answer?),
            }
            let synced = tokio::time::timeout(FIRST_ANSWER_TIMEOUT, watched.cache.synced()).await;
            synced.map_err(|_| TrustError::NotSynced)?;
        }
        let found = select(source, &watched.cache.list())?;
        Ok(anchors(found.iter().map(|bundle| bundle.spec.trust_bundle.as_str())))
    }
}

/// Returns the bundles that a projection selects; none for an optional one that selects nothing.
fn select(
    source: &ClusterTrustBundleProjection,
    all: &[Arc<ClusterTrustBundle>],
) -> Result<Vec<Arc<ClusterTrustBundle>>, TrustError> {
    let (found, none): (Vec<_>, _) = if let Some(name) = &source.name {
        let named = all.iter().filter(|bundle| bundle.name() == name.as_str());
        (named.cloned().collect(), TrustError::Missing(name.clone()))
    } else if let Some(signer) = source.signer_name.as_deref() {
        // An absent selector selects nothing, an empty one everything.
        let selector = source.label_selector.as_ref().map(LabelSelector::from_api).transpose();
        let selector = selector.map_err(|e| TrustError::Selector(e.to_string()))?;
        let matches = |bundle: &&Arc<ClusterTrustBundle>| {
            bundle.spec.signer_name.as_deref() == Some(signer)
                && selector.as_ref().is_some_and(|s| s.matches_with(|key| bundle.label(key)))
        };
        (all.iter().filter(matches).cloned().collect(), TrustError::NoneMatched)
    } else {
        return Err(TrustError::Unnamed);
    };
    if found.is_empty() && source.optional != Some(true) { Err(none) } else { Ok(found) }
}

/// Returns the certificates of all bundles without their comments and headers, each once, in a stable order.
fn anchors<'a>(bundles: impl Iterator<Item = &'a str>) -> String {
    let all: BTreeSet<Vec<u8>> = bundles.flat_map(pem::blocks).map(|block| block.contents).collect();
    all.iter().map(|der| pem::encode("CERTIFICATE", der)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bundle(name: &str, signer: &str, color: &str, certificates: &[u8]) -> Arc<ClusterTrustBundle> {
        let text: String =
            certificates.iter().map(|c| format!("words\n{}", pem::encode("CERTIFICATE", &[*c]))).collect();
        let signer = (!signer.is_empty()).then_some(signer);
        let object = json!({"metadata": {"name": name, "labels": {"color": color}}, "spec": {"signerName": signer, "trustBundle": text}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn projections_select_by_name_or_by_signer_and_labels() {
        let all = [
            bundle("plain", "", "red", &[1]),
            bundle("e.com:s:a", "e.com/s", "red", &[2]),
            bundle("e.com:s:b", "e.com/s", "blue", &[3]),
            bundle("e.com:t:c", "e.com/t", "red", &[4]),
        ];
        let names = |source: serde_json::Value| {
            let mut source = source;
            source["path"] = "ca.pem".into();
            let source: ClusterTrustBundleProjection = serde_json::from_value(source).unwrap();
            let found = select(&source, &all).map_err(|e| e.to_string())?;
            Ok::<_, String>(found.iter().map(|b| b.name().to_owned()).collect::<Vec<_>>())
        };
        for (source, want) in [
            (json!({"name": "plain"}), Ok(&["plain"][..])),
            (json!({"name": "absent", "optional": true}), Ok(&[])),
            (
                json!({"name": "absent"}),
                Err(
                    "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"absent\" not found",
                ),
            ),
            (json!({"signerName": "e.com/s", "labelSelector": {}}), Ok(&["e.com:s:a", "e.com:s:b"])),
            (
                json!({"signerName": "e.com/s", "labelSelector": {"matchLabels": {"color": "red"}}}),
                Ok(&["e.com:s:a"]),
            ),
            (
                json!({"signerName": "e.com/s"}),
                Err("combination of signerName and labelSelector matched zero ClusterTrustBundles"),
            ),
            (json!({"signerName": "e.com/s", "optional": true}), Ok(&[])),
            (json!({}), Err("ClusterTrustBundle projection requires either name or signerName to be set")),
        ] {
            let want =
                want.map(|names| names.iter().map(|n| (*n).to_owned()).collect()).map_err(str::to_owned);
            assert_eq!(names(source.clone()), want, "{source}");
        }
    }

    #[test]
    fn anchors_are_normal_and_unique() {
        let (a, b) = (bundle("a", "", "", &[9, 1, 9]), bundle("b", "", "", &[1, 5]));
        let text = anchors([&a, &b].iter().map(|b| b.spec.trust_bundle.as_str()));
        let wanted: String = [1, 5, 9].iter().map(|c| pem::encode("CERTIFICATE", &[*c])).collect();
        assert_eq!(text, wanted);
    }
}
