//! Objects that every namespace gets: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::BoxFuture;
use k8s_core::{
    api::{
        api::core::v1::{ConfigMap, Namespace, ServiceAccount},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    client::ListParams,
    meta::{Object, ObjectExt, ObjectKey},
};

use super::{Options, batch::is_namespace_terminating};
use k8s_controllers::{Action, Caches, Context, Controller, Environment, Error, Reconcile};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";

fn of_named<T: Object>(name: &'static str) -> impl Fn(&Caches, &T) -> Vec<ObjectKey> + Send + Sync + 'static {
    move |_, object| {
        if object.name() == name { vec![ObjectKey::new("", object.namespace())] } else { Vec::new() }
    }
}

fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    !namespace.is_deleting() && phase != Some("Terminating")
}

fn metadata(namespace: &Namespace, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some(namespace.name().to_owned()),
        ..ObjectMeta::default()
    }
}

async fn create<T: Object>(cx: &Context, object: &T) -> Result<(), Error> {
    match cx.create(object).await {
        Err(Error::Api(e)) if e.is_already_exists() => Ok(()),
        // The namespace is being deleted.
        Err(e) if is_namespace_terminating(&e) => Ok(()),
        Err(Error::Api(e)) if e.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

/// Returns an environment whose cache of `T` has only objects of this name: a cluster may have many others.
fn only_named<T: Object>(mut environment: Environment, name: &str) -> Environment {
    let fields = format!("metadata.name={name}");
    environment.caches = environment.caches.scoped::<T>(ListParams { fields, ..ListParams::default() });
    environment
}

pub(super) fn service_accounts(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<Namespace>::new()
        .named("service-account-controller")
        .watches::<ServiceAccount>(of_named(ACCOUNT))
        .run_in(only_named::<ServiceAccount>(environment, ACCOUNT), DefaultAccount)
}

struct DefaultAccount;

impl Reconcile for DefaultAccount {
    type Kind = Namespace;

    async fn reconcile(&self, cx: &Context, namespace: Arc<Namespace>) -> Result<Action, Error> {
        let live = cx.caches().of::<ServiceAccount>().get(namespace.name(), ACCOUNT);
        if live.is_none() && is_active(&namespace) {
            let account =
                ServiceAccount { metadata: metadata(&namespace, ACCOUNT), ..ServiceAccount::default() };
            create(cx, &account).await?;
        }
        Ok(Action::await_change())
    }
}

pub(super) fn root_ca(environment: Environment, options: Options) -> BoxFuture<'static, ()> {
    if options.root_ca.is_empty() {
        return Box::pin(async {});
    }
    Controller::<Namespace>::new()
        .named("root-ca-cert-publisher")
        .watches::<ConfigMap>(of_named(ROOT_CA))
        .run_in(only_named::<ConfigMap>(environment, ROOT_CA), RootCa { pem: options.root_ca })
}

struct RootCa {
    pem: String,
}

impl Reconcile for RootCa {
    type Kind = Namespace;

    async fn reconcile(&self, cx: &Context, namespace: Arc<Namespace>) -> Result<Action, Error> {
        if !is_active(&namespace) {
            return Ok(Action::await_change());
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.pem.clone())]);
        match cx.caches().of::<ConfigMap>().get(namespace.name(), ROOT_CA) {
            Some(live) if live.data.as_ref() == Some(&data) => {}
            Some(live) => {
                let next = ConfigMap { data: Some(data), ..(*live).clone() };
                cx.replace(&next).await?;
            }
            None => {
                let note = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as \
                            the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
                            Kubernetes clusters.";
                let mut metadata = metadata(&namespace, ROOT_CA);
                metadata.annotations = Some([("kubernetes.io/description".into(), note.into())].into());
                create(cx, &ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }).await?;
            }
        }
        Ok(Action::await_change())
    }
}
