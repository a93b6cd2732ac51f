//! The identities of components, and their permissions.
//!
//! Each component has upstream's user and role; none is in `system:masters`. Built-in controllers act as
//! service accounts of kube-system (`system:controller:*` roles); shared caches read as
//! `system:kube-controller-manager`.
//!
//! Kubelets have no role: the Node authorizer decides about them. A server without it
//! (`--authorization-mode`) binds all of them to the ClusterRole `system:node`.

#![expect(clippy::disallowed_methods, reason = "the age of a token, in virtual time as well")]

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use k8s_apiserver::auth::AuthorizationMode;
use k8s_core::client::{Body, BoxError, Client, Error, Remote, Transport};
use serde_json::{Value, json};
use tokio::time::Instant;

/// User of the controller manager.
pub const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
/// User of the scheduler.
pub const SCHEDULER: &str = "system:kube-scheduler";
/// User of the service proxy and the cluster DNS.
pub const PROXY: &str = "system:kube-proxy";
/// User as which the API server calls kubelets.
pub const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";
/// Group of all kubelets.
pub const NODES: &str = "system:nodes";

/// Service account of kube-system as which a distribution's controllers act in its controller manager.
pub(crate) const EXTENSIONS: &str = "distribution-controllers";

/// Lifetime of a controller's token, in seconds.
const TOKEN_SECONDS: u64 = 3600;

/// Creates the bindings that upstream leaves to the installer: the API server's kubelet client to
/// `system:kubelet-api-admin`, and without the Node authorizer kubelets to `system:node`. With it, removes
/// the latter, which earlier versions made. The bindings are named `NAME:...` after the distribution.
///
/// # Errors
/// The API server's error.
pub async fn bind(admin: &Client, name: &str, modes: &[AuthorizationMode]) -> Result<(), Error> {
    let group = "rbac.authorization.k8s.io";
    let subject = |kind: &str, name: &str| json!({"apiGroup": group, "kind": kind, "name": name});
    let nodes = format!("{name}:nodes");
    if modes.iter().any(|mode| matches!(mode, AuthorizationMode::Node)) {
        match admin.bytes(Method::DELETE, &path_of(&nodes), "", "").await {
            Err(e) if !e.is_not_found() => return Err(e),
            _ => {}
        }
    } else {
        apply_binding(admin, &nodes, "system:node", subject("Group", NODES)).await?;
    }
    let client = subject("User", KUBELET_CLIENT);
    let binding = format!("{name}:kubelet-api-admin");
    apply_binding(admin, &binding, "system:kubelet-api-admin", client).await
}

fn path_of(cluster_role_binding: &str) -> String {
    format!("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{cluster_role_binding}")
}

/// Makes the controllers that a distribution adds administrators, also in a controller manager of their own.
///
/// # Errors
/// The API server's error.
pub(crate) async fn bind_extensions(admin: &Client, name: &str) -> Result<(), Error> {
    let account = json!({"kind": "ServiceAccount", "name": EXTENSIONS, "namespace": "kube-system"});
    apply_binding(admin, &format!("{name}:{EXTENSIONS}"), "cluster-admin", account).await
}

async fn apply_binding(admin: &Client, name: &str, role: &str, subject: Value) -> Result<(), Error> {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    });
    crate::apply::apply(admin, &path_of(name), &binding).await
}

/// Clients that act as service accounts of kube-system. Tokens are requested on first use and renewed after
/// half of their lifetime (upstream's `--use-service-account-credentials`).
#[derive(Clone, Debug)]
pub struct ServiceAccounts {
    /// Client that may create service accounts and tokens.
    asker: Client,
    /// Transport without credentials.
    plain: Remote,
}

impl ServiceAccounts {
    /// Creates clients over `plain`, which must have no credentials; `asker` requests the tokens.
    #[must_use]
    pub fn new(asker: Client, plain: Remote) -> Self {
        ServiceAccounts { asker, plain }
    }

    /// Returns a client of a service account. The account is created if it is missing.
    /// [`CONTROLLER_MANAGER`] is the user that requests the tokens.
    #[must_use]
    pub fn client(&self, account: &str) -> Client {
        if account == CONTROLLER_MANAGER {
            return self.asker.clone();
        }
        let token =
            Tokens { account: account.to_owned(), asker: self.asker.clone(), known: Mutex::default() };
        Client::new(AsAccount { plain: self.plain.clone(), tokens: Arc::new(token) })
    }
}

/// A token and its renewal time.
#[derive(Clone)]
struct Known {
    header: HeaderValue,
    renew: Instant,
}

struct Tokens {
    account: String,
    asker: Client,
    known: Mutex<Option<Known>>,
}

impl Tokens {
    async fn header(&self) -> Result<HeaderValue, BoxError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(|k| Instant::now() < k.renew) {
            return Ok(known.header);
        }
        let token = match self.ask().await {
            Err(e) if e.is_not_found() => {
                self.make().await?;
                self.ask().await?
            }
            other => other?,
        };
        let mut header = HeaderValue::from_str(&format!("Bearer {token}"))?;
        header.set_sensitive(true);
        let renew = Instant::now() + Duration::from_secs(TOKEN_SECONDS / 2);
        let known = Known { header: header.clone(), renew };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(header)
    }

    async fn ask(&self) -> Result<String, Error> {
        let path = format!("/api/v1/namespaces/kube-system/serviceaccounts/{}/token", self.account);
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": TOKEN_SECONDS},
        });
        let answer: Value =
            self.asker.json(Method::POST, &path, "application/json", request.to_string()).await?;
        let token = answer.pointer("/status/token").and_then(Value::as_str);
        token.map(str::to_owned).ok_or_else(|| Error::Request(format!("{path}: the answer has no token")))
    }

    async fn make(&self) -> Result<(), Error> {
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": self.account}});
        let path = "/api/v1/namespaces/kube-system/serviceaccounts";
        match self.asker.bytes(Method::POST, path, "application/json", account.to_string()).await {
            Err(e) if !e.is_already_exists() => Err(e),
            _ => Ok(()),
        }
    }

    /// Drops a token that the server rejected.
    fn forget(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[derive(Clone)]
struct AsAccount {
    plain: Remote,
    tokens: Arc<Tokens>,
}

impl Transport for AsAccount {
    fn call(&self, mut request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let this = self.clone();
        async move {
            let header = this.tokens.header().await?;
            request.headers_mut().insert(header::AUTHORIZATION, header);
            let response = this.plain.call(request).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                this.tokens.forget();
            }
            Ok(response)
        }
        .boxed()
    }

    fn host(&self) -> &str {
        self.plain.host()
    }
}
