//! The front-proxy client certificate of the API server, and the ConfigMap that publishes its CA to
//! aggregated API servers.

use k8s_apiserver::ClientIdentity;
use k8s_core::client::Client;
use serde_json::json;

use crate::{
    error::ClusterError,
    paths::Paths,
    pki::{Identity, Pki},
};

/// Common name of the certificate.
const NAME: &str = "front-proxy-client";

/// The front-proxy client certificate. It has its own CA: a holder of the CA for users must not be able to
/// impersonate every user.
#[derive(Debug)]
pub struct FrontProxy {
    pki: Pki,
}

impl FrontProxy {
    /// Opens the front-proxy directory beside the cluster's certificates; creates missing files.
    ///
    /// # Errors
    /// As [`Pki::open`].
    pub fn open(paths: &Paths) -> Result<Self, ClusterError> {
        let pki = Pki::open(&paths.name, &paths.pki().join("front-proxy"))?;
        Ok(FrontProxy { pki })
    }

    /// Returns a new client certificate for the API server.
    ///
    /// # Errors
    /// As [`Pki::open`].
    pub fn identity(&self) -> Result<ClientIdentity, ClusterError> {
        let Identity { certificate, key } = self.pki.client("client", NAME, "")?;
        Ok(ClientIdentity { certificate, key })
    }

    /// Writes the ConfigMap `extension-apiserver-authentication`, from which aggregated API servers read the
    /// front-proxy CA and the CA of client certificates (`client_ca`, PEM).
    ///
    /// # Errors
    /// The API server's error.
    pub async fn publish(&self, client: &Client, client_ca: &str) -> Result<(), k8s_core::client::Error> {
        let name = "extension-apiserver-authentication";
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "kube-system"},
            "data": {
                "client-ca-file": client_ca,
                "requestheader-client-ca-file": self.pki.ca(),
                "requestheader-allowed-names": json!([NAME]).to_string(),
                "requestheader-username-headers": json!(["X-Remote-User"]).to_string(),
                "requestheader-uid-headers": json!(["X-Remote-Uid"]).to_string(),
                "requestheader-group-headers": json!(["X-Remote-Group"]).to_string(),
                "requestheader-extra-headers-prefix": json!(["X-Remote-Extra-"]).to_string(),
            },
        });
        crate::apply::apply(client, &format!("/api/v1/namespaces/kube-system/configmaps/{name}"), &map).await
    }
}
