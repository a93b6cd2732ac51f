//! Trust: publishes the API server's CA as a ClusterTrustBundle, and deletes old PodCertificateRequests.
//!
//! Both controllers end at once where the API server does not serve their kind.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use k8s_core::{
    api::api::{
        certificates::v1beta1::{ClusterTrustBundle, ClusterTrustBundleSpec, PodCertificateRequest},
        core::v1::Namespace,
    },
    client::{DeleteOptions, ListParams},
    meta::{ObjectExt, ObjectKey},
};
use ring::digest::{SHA256, digest};

use super::{Options, served::is_served};
use k8s_controllers::{Action, Context, Controller, Environment, Error, Reconcile, predicates::only};

/// Signer of the API server's serving certificates.
const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";

/// The object whose reconcile stands for the whole cluster.
const CLUSTER: &str = "kube-system";

pub(super) fn publishing(mut environment: Environment, options: Options) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if options.root_ca.is_empty() || !is_served::<ClusterTrustBundle>(&environment).await {
            return;
        }
        let fields = format!("spec.signerName={SIGNER}");
        environment.caches =
            environment.caches.scoped::<ClusterTrustBundle>(ListParams { fields, ..ListParams::default() });
        Controller::<Namespace>::new()
            .named("kube-apiserver-serving-clustertrustbundle-publisher")
            .when(only(|namespace: &Namespace| namespace.name() == CLUSTER))
            .watches::<ClusterTrustBundle>(|_, _| vec![ObjectKey::new("", CLUSTER)])
            .run_in(environment, Publishing { pem: options.root_ca })
            .await;
    })
}

struct Publishing {
    pem: String,
}

/// Returns the name of a bundle, which changes with its contents.
fn bundle_name(pem: &str) -> String {
    let hash = digest(&SHA256, pem.as_bytes());
    let hash: String = hash.as_ref()[..12].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}:{hash}", SIGNER.replace('/', ":"))
}

impl Reconcile for Publishing {
    type Kind = Namespace;

    async fn reconcile(&self, cx: &Context, _: Arc<Namespace>) -> Result<Action, Error> {
        let name = bundle_name(&self.pem);
        let bundles = cx.caches().of::<ClusterTrustBundle>();
        let live = bundles.get("", &name);
        let mut wanted = ClusterTrustBundle {
            spec: ClusterTrustBundleSpec { signer_name: Some(SIGNER.into()), trust_bundle: self.pem.clone() },
            ..ClusterTrustBundle::default()
        };
        match live {
            Some(live) if live.spec.trust_bundle == self.pem => {}
            Some(live) => {
                wanted.metadata = live.metadata.clone();
                cx.replace(&wanted).await?;
            }
            None => {
                wanted.metadata.name = Some(name.clone());
                match cx.create(&wanted).await {
                    // Another controller manager was faster; the cache will show it.
                    Err(Error::Api(e)) if e.is_already_exists() => {}
                    made => drop(made?),
                }
            }
        }
        // Those of earlier CAs, once the present one is there.
        for old in bundles.list().iter().filter(|bundle| bundle.name() != name) {
            match cx.delete(&**old, DeleteOptions::default()).await {
                Err(Error::Api(e)) if e.is_not_found() => {}
                done => done?,
            }
        }
        Ok(Action::await_change())
    }
}

pub(super) fn cleaning(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if is_served::<PodCertificateRequest>(&environment).await {
            Controller::<PodCertificateRequest>::new()
                .named("podcertificaterequestcleaner")
                .run_in(environment, Cleaning)
                .await;
        }
    })
}

/// Deletes requests that are older than any flow takes.
struct Cleaning;

/// Age at which a request is deleted.
const OLD: Duration = Duration::from_secs(15 * 60);

impl Reconcile for Cleaning {
    type Kind = PodCertificateRequest;

    async fn reconcile(&self, cx: &Context, request: Arc<PodCertificateRequest>) -> Result<Action, Error> {
        let created = request.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let due = created.and_then(|created| created.checked_add(OLD).ok());
        let left = due.map_or(Duration::ZERO, |due| cx.clock().until(due));
        if !left.is_zero() {
            return Ok(Action::requeue_after(left));
        }
        cx.delete(&*request, DeleteOptions::default().with_uid(request.uid())).await?;
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_contents() {
        let (a, b) = (bundle_name("a"), bundle_name("b"));
        assert_eq!(a, "kubernetes.io:kube-apiserver-serving:ca978112ca1bbdcafac231b3");
        assert_ne!(a, b);
    }
}
