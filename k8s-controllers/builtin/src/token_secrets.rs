//! Tokens in Secrets: a Secret of type `kubernetes.io/service-account-token` gets the token of the service
//! account that its annotation names, the cluster's CA certificate and its namespace. It goes with the
//! account.
//!
//! Without a [`TokenSigner`] the controller does not run.

use std::{fmt, sync::Arc};

use super::Options;
use futures::future::BoxFuture;
use k8s_controllers::{Action, Caches, Context, Controller, Environment, Error, Reconcile};
use k8s_core::{
    api::{
        ByteString,
        api::core::v1::{Secret, ServiceAccount},
    },
    client::{DeleteOptions, ListParams},
    meta::{ObjectExt, ObjectKey},
};

const TYPE: &str = "kubernetes.io/service-account-token";
/// Annotation with the name of the service account.
const ACCOUNT: &str = "kubernetes.io/service-account.name";
/// Annotation with the uid of the service account.
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Signs the tokens of Secrets.
pub trait TokenSigner: Send + Sync + 'static {
    /// Returns a token of a service account (namespace, name, uid) that is valid while the Secret holds it.
    ///
    /// # Errors
    /// The reason, without secrets.
    fn sign(&self, namespace: &str, account: &str, uid: &str, secret: &str) -> Result<String, String>;
}

/// A shared [`TokenSigner`], for [`Options`].
#[derive(Clone)]
pub struct Signer(Arc<dyn TokenSigner>);

impl Signer {
    /// Wraps a signer.
    pub fn new(signer: impl TokenSigner) -> Self {
        Signer(Arc::new(signer))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer { <key> }")
    }
}

pub(super) fn start(mut environment: Environment, options: Options) -> BoxFuture<'static, ()> {
    let Some(signer) = options.token_signer else { return Box::pin(async {}) };
    let fields = format!("type={TYPE}");
    environment.caches = environment.caches.scoped::<Secret>(ListParams { fields, ..ListParams::default() });
    Controller::<Secret>::new()
        .named("serviceaccount-token-controller")
        .watches::<ServiceAccount>(secrets_of)
        .run_in(environment, TokenSecrets { signer, root_ca: options.root_ca })
}

/// Returns the Secrets that name a service account.
fn secrets_of(caches: &Caches, account: &ServiceAccount) -> Vec<ObjectKey> {
    let secrets = caches.of::<Secret>().in_namespace(account.namespace());
    secrets.iter().filter(|s| s.annotation(ACCOUNT) == Some(account.name())).map(|s| s.key()).collect()
}

struct TokenSecrets {
    signer: Signer,
    root_ca: String,
}

impl Reconcile for TokenSecrets {
    type Kind = Secret;

    async fn reconcile(&self, cx: &Context, secret: Arc<Secret>) -> Result<Action, Error> {
        if secret.is_deleting() || secret.type_.as_deref() != Some(TYPE) {
            return Ok(Action::await_change());
        }
        let named = secret.annotation(ACCOUNT).unwrap_or_default();
        let wanted = secret.annotation(ACCOUNT_UID).filter(|uid| !uid.is_empty());
        let is_meant = |account: &ServiceAccount| wanted.is_none_or(|uid| account.uid() == uid);
        let cached = cx.caches().of::<ServiceAccount>().get(secret.namespace(), named);
        let account = match cached.filter(|account| is_meant(account)) {
            Some(account) => Some(account),
            // The cache of accounts may be behind that of Secrets.
            None if named.is_empty() => None,
            None => {
                let live = cx.api::<ServiceAccount>(secret.namespace()).get_opt(named).await?;
                live.filter(is_meant).map(Arc::new)
            }
        };
        let Some(account) = account else {
            cx.delete(&*secret, DeleteOptions::default()).await?;
            return Ok(Action::await_change());
        };
        if let Some(filled) = self.filled(&secret, &account)? {
            match cx.replace(&filled).await {
                // Another client changed or deleted it: the change comes as an event.
                Err(Error::Api(e)) if e.is_conflict() || e.is_not_found() => {}
                done => drop(done?),
            }
        }
        Ok(Action::await_change())
    }

    /// Removes the references to a deleted Secret from the service accounts of its namespace.
    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        let (namespace, name) = (&cx.key().namespace, &cx.key().name);
        for account in cx.caches().of::<ServiceAccount>().in_namespace(namespace) {
            let mut kept = ServiceAccount::clone(&account);
            let secrets = kept.secrets.get_or_insert_default();
            let count = secrets.len();
            secrets.retain(|reference| reference.name.as_deref() != Some(name));
            if secrets.len() == count {
                continue;
            }
            match cx.replace(&kept).await {
                Err(Error::Api(e)) if e.is_not_found() => {}
                done => drop(done?),
            }
        }
        Ok(Action::await_change())
    }
}

impl TokenSecrets {
    /// Returns the Secret with all that it needs; `None` if it has all.
    fn filled(&self, secret: &Secret, account: &ServiceAccount) -> Result<Option<Secret>, Error> {
        let mut filled = secret.clone();
        let data = filled.data.get_or_insert_default();
        let mut changed = false;
        let is_missing = |entry: Option<&ByteString>| entry.is_none_or(|value| value.0.is_empty());
        let ca = self.root_ca.as_bytes();
        if !ca.is_empty() && data.get("ca.crt").is_none_or(|have| have.0 != ca) {
            data.insert("ca.crt".into(), ByteString(ca.to_vec()));
            changed = true;
        }
        if is_missing(data.get("namespace")) {
            data.insert("namespace".into(), ByteString(secret.namespace().as_bytes().to_vec()));
            changed = true;
        }
        if is_missing(data.get("token")) {
            let token = self.signer.0.sign(secret.namespace(), account.name(), account.uid(), secret.name());
            let token = token.map_err(|why| Error::Other(format!("sign the token: {why}").into()))?;
            data.insert("token".into(), ByteString(token.into_bytes()));
            changed = true;
        }
        let annotations = filled.metadata.annotations.get_or_insert_default();
        annotations.insert(ACCOUNT.into(), account.name().into());
        annotations.insert(ACCOUNT_UID.into(), account.uid().into());
        Ok(changed.then_some(filled))
    }
}
