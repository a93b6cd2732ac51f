//! As whom the API server calls aggregated API servers, and how those learn to believe it.

use k8s_apiserver::ClientIdentity;
use k8s_core::client::Client;
use serde_json::json;

use crate::{
    exit::Failure,
    paths::Paths,
    pki::{Identity, Pki},
};

/// The common name of the certificate.
const NAME: &str = "front-proxy-client";

/// The front proxy's certificate, signed by a CA of its own: who signs users must not be able to sign one that speaks for every user.
#[derive(Debug)]
pub struct FrontProxy {
    identity: Identity,
    ca: String,
}

impl FrontProxy {
    /// Opens it beside the cluster's other certificates, making what is missing.
    ///
    /// # Errors
    /// As [`Pki::open`].
    pub fn open(paths: &Paths) -> Result<Self, Failure> {
        let pki = Pki::open(&paths.pki().join("front-proxy")).map_err(Failure::because("front proxy CA"))?;
        let identity = pki.client("client", NAME, "").map_err(Failure::because("front proxy certificate"))?;
        Ok(FrontProxy { identity, ca: pki.ca().to_owned() })
    }

    /// For the API server.
    #[must_use]
    pub fn identity(&self) -> ClientIdentity {
        ClientIdentity { certificate: self.identity.certificate.clone(), key: self.identity.key.clone() }
    }

    /// Publishes what an aggregated API server needs to know to believe the front proxy, and who signs users (`client_ca`, PEM), where such servers look for it.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn publish(&self, client: &Client, client_ca: &str) -> Result<(), k8s_core::client::Error> {
        let name = "extension-apiserver-authentication";
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "kube-system"},
            "data": {
                "client-ca-file": client_ca,
                "requestheader-client-ca-file": self.ca,
                "requestheader-allowed-names": json!([NAME]).to_string(),
                "requestheader-username-headers": json!(["X-Remote-User"]).to_string(),
                "requestheader-uid-headers": json!(["X-Remote-Uid"]).to_string(),
                "requestheader-group-headers": json!(["X-Remote-Group"]).to_string(),
                "requestheader-extra-headers-prefix": json!(["X-Remote-Extra-"]).to_string(),
            },
        });
        crate::control_plane::apply(
            client,
            &format!("/api/v1/namespaces/kube-system/configmaps/{name}"),
            &map,
        )
        .await
    }
}
