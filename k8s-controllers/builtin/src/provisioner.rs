//! Provisioning of volumes: a driver implements [`Provisioner`], and this module runs it as upstream's
//! external provisioners run.
//!
//! ```
//! use k8s_builtin::provisioner::{self, Failure, Provisioner, Wanted};
//! use k8s_controllers::{Context, Manager};
//! use k8s_core::{
//!     api::api::core::v1::{NFSVolumeSource, PersistentVolume, PersistentVolumeSpec},
//!     client::Client,
//! };
//!
//! /// Volumes are directories of an NFS server.
//! struct Shares;
//!
//! impl Provisioner for Shares {
//!     fn name(&self) -> &str {
//!         "shares.example.com" // the field `provisioner` of its storage classes
//!     }
//!
//!     async fn provision(&self, _: &Context, wanted: &Wanted<'_>) -> Result<PersistentVolumeSpec, Failure> {
//!         let server = wanted.parameter("server");
//!         let server = server.ok_or_else(|| Failure::again("parameter server is missing"))?;
//!         // Here the directory is made.
//!         let path = format!("/export/{}", wanted.volume);
//!         let nfs = Some(NFSVolumeSource { server: server.into(), path, read_only: None });
//!         Ok(PersistentVolumeSpec { nfs, ..Default::default() })
//!     }
//!
//!     async fn delete(&self, _: &Context, volume: &PersistentVolume) -> Result<(), Failure> {
//!         // Here the directory is removed; it is no error if it is gone already.
//!         let _ = volume;
//!         Ok(())
//!     }
//! }
//!
//! # async fn f(client: Client) {
//! let shutdown = tokio_util::sync::CancellationToken::new();
//! Manager::new(client).runnables(provisioner::runnables(Shares)).run(shutdown).await;
//! # }
//! ```
//!
//! Flow: the binder writes the provisioner's name into a claim's annotations; the scheduler, the node of the
//! claim's first pod. The claim then wants a volume: [`Provisioner::provision`] makes it, and a
//! PersistentVolume `pvc-<uid of the claim>` is created for the claim. When that volume is released and its
//! policy is `Delete`, [`Provisioner::delete`] removes the storage, and the object goes after it.
//!
//! Invariants:
//! 1. A claim gets one volume, because the volume's name is its uid.
//! 2. A volume whose storage a driver made is not gone before that storage is (its finalizer), unless its
//!    policy is `Retain`.
//! 3. Storage is removed only after the API server has said that its volume is released and has the policy
//!    `Delete`.
//! 4. A claim whose driver or node does not work is told so by events, and is tried again with back-off.
//! 5. A claim's `status.capacity` is a size that its driver said the storage has.
//! 6. While a driver is asked for a size it is asked for no other one, unless it said that it will never have
//!    that size.
//!
//! A driver that is an [`Expander`] makes volumes larger, too: [`resizer`].
//!
//! Not here: binding (the volume binder), mounting (the kubelet), a file system that a node must make larger,
//! snapshots.

mod expansion;
mod local_path;
mod plan;
mod resizer;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_controllers::{Action, Backoff, Context, Controller, Error, EventType, Reconcile, Runnable};
use k8s_core::{
    api::api::{
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec},
        storage::v1::StorageClass,
    },
    client::DeleteOptions,
    meta::{ObjectExt, ObjectKey},
};

use self::plan::Fate;
pub use self::{
    local_path::{DRIVER as LOCAL_PATH, LocalPath},
    resizer::{Expander, Expanding, expansions, resizer},
};
use crate::volumes::{SELECTED_NODE, matching};

/// Back-off of what failed.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(1000) };

/// A claim that waits for a volume.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Name of the PersistentVolume: `pvc-<uid of the claim>`.
    pub volume: &'a str,
    /// The claim.
    pub claim: &'a PersistentVolumeClaim,
    /// Class of the claim.
    pub class: &'a StorageClass,
    /// The node of the claim's first pod. `None`: the class binds immediately.
    pub node: Option<&'a Node>,
}

impl Wanted<'_> {
    /// Returns a parameter of the class.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.class.parameters.as_ref()?.get(name).map(String::as_str)
    }
}

/// The reason for which a driver has not made or removed a volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    remedy: Remedy,
}

/// Remedy after a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    Again,
    Elsewhere,
    OtherSize,
}

impl Failure {
    /// The same is tried again, with back-off.
    pub fn again(message: impl Into<String>) -> Self {
        Failure { message: message.into(), remedy: Remedy::Again }
    }

    /// Not on this node: the scheduler chooses again. As [`Failure::again`] for all but
    /// [`Provisioner::provision`].
    pub fn elsewhere(message: impl Into<String>) -> Self {
        Failure { message: message.into(), remedy: Remedy::Elsewhere }
    }

    /// Never of this size; the claim may ask for less. As [`Failure::again`] for all but
    /// [`Expander::expand`].
    pub fn infeasible(message: impl Into<String>) -> Self {
        Failure { message: message.into(), remedy: Remedy::OtherSize }
    }
}

/// A driver that makes volumes for claims.
///
/// Both methods may be called again after they succeeded, and must then do nothing. Storage that was made for
/// a claim is left over if the claim is deleted before its PersistentVolume could be created, for example
/// after a crash; the volume's name tells the claim's uid.
pub trait Provisioner: Send + Sync + 'static {
    /// Returns the name that the field `provisioner` of its storage classes has.
    fn name(&self) -> &str;

    /// Makes storage for a claim. Returns a spec with the volume's source, and a node affinity if not all
    /// nodes reach it. The capacity is the claim's request unless set; all other fields are overwritten with
    /// those of claim and class.
    ///
    /// # Errors
    /// [`Failure`]; its message is the text of an event.
    fn provision(
        &self,
        cx: &Context,
        wanted: &Wanted<'_>,
    ) -> impl Future<Output = Result<PersistentVolumeSpec, Failure>> + Send;

    /// Removes the storage of a volume. It is no error if there is none.
    ///
    /// # Errors
    /// [`Failure`]; its message is the text of an event.
    fn delete(
        &self,
        cx: &Context,
        volume: &PersistentVolume,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

impl<P: Provisioner> Provisioner for Arc<P> {
    fn name(&self) -> &str {
        (**self).name()
    }

    async fn provision(&self, cx: &Context, wanted: &Wanted<'_>) -> Result<PersistentVolumeSpec, Failure> {
        (**self).provision(cx, wanted).await
    }

    async fn delete(&self, cx: &Context, volume: &PersistentVolume) -> Result<(), Failure> {
        (**self).delete(cx, volume).await
    }
}

/// Returns the two controllers of a driver, for a [`k8s_controllers::Manager`].
pub fn runnables<P: Provisioner>(driver: P) -> [Runnable; 2] {
    let driver = Arc::new(driver);
    let (name, deleter) = (driver.name().to_owned(), driver.clone());
    [
        Runnable::controller(claims(&name), Provisioning(driver)),
        Runnable::controller(volumes(&name), Reclaiming(deleter)),
    ]
}

/// Returns the controller of claims for [`Provisioning`]. `name` is the driver's, and that of events.
pub fn claims(name: &str) -> Controller<PersistentVolumeClaim> {
    Controller::new()
        .named(name)
        .backoff(BACKOFF)
        .watches::<StorageClass>(|caches, class| {
            let all = caches.of::<PersistentVolumeClaim>().list();
            let of = |claim: &&Arc<PersistentVolumeClaim>| matching::class_of_claim(claim) == class.name();
            all.iter().filter(of).map(|claim| claim.key()).collect()
        })
        // A volume that was deleted while its claim waited for the binding is made again.
        .watches::<PersistentVolume>(|_, volume| bound_claim(volume))
        .reads::<Node>()
}

/// Returns the claim that a volume is bound to.
fn bound_claim(volume: &PersistentVolume) -> Vec<ObjectKey> {
    match matching::claim_of(volume) {
        Some((namespace, name, Some(_))) => vec![ObjectKey::new(namespace, name)],
        _ => Vec::new(),
    }
}

/// Returns the controller of volumes for [`Reclaiming`]. `name` is the driver's.
pub fn volumes(name: &str) -> Controller<PersistentVolume> {
    Controller::new().named(&format!("{name}-volumes")).backoff(BACKOFF)
}

/// Makes the volumes of a driver.
#[derive(Debug)]
pub struct Provisioning<P>(pub P);

impl<P: Provisioner> Reconcile for Provisioning<P> {
    type Kind = PersistentVolumeClaim;

    async fn reconcile(&self, cx: &Context, claim: Arc<PersistentVolumeClaim>) -> Result<Action, Error> {
        let class = cx.caches().of::<StorageClass>().get("", matching::class_of_claim(&claim));
        let Some(class) = class.filter(|class| plan::is_wanted(&claim, class, self.0.name())) else {
            return Ok(Action::await_change());
        };
        let volume = plan::volume_name(&claim);
        if cx.caches().of::<PersistentVolume>().get("", &volume).is_some() {
            return Ok(Action::await_change());
        }
        let node = match claim.annotation(SELECTED_NODE) {
            None => None,
            Some(name) => match cx.caches().of::<Node>().get("", name) {
                Some(node) => Some(node),
                None => return self.without_node(cx, &claim, name).await,
            },
        };
        // Storage that is made for a claim that is gone stays behind, so the newest version decides.
        let live = cx.api::<PersistentVolumeClaim>(claim.namespace()).get_opt(claim.name()).await?;
        let same = |live: &PersistentVolumeClaim| {
            live.uid() == claim.uid() && plan::is_wanted(live, &class, self.0.name())
        };
        if !live.as_ref().is_some_and(same) {
            return Ok(Action::await_change());
        }
        let message = format!(
            "External provisioner is provisioning volume for claim \"{}/{}\"",
            claim.namespace(),
            claim.name()
        );
        cx.event(&*claim, EventType::Normal, "Provisioning", message);
        let wanted = Wanted { volume: &volume, claim: &claim, class: &class, node: node.as_deref() };
        let spec = match plan::refused(&wanted) {
            Some(why) => Err(Failure::again(why)),
            None => self.0.provision(cx, &wanted).await,
        };
        match spec {
            Ok(spec) => {
                match cx.create(&plan::volume(&wanted, spec, self.0.name())).await {
                    Err(Error::Api(e)) if e.is_already_exists() => {}
                    other => drop(other?),
                }
                let message = format!("Successfully provisioned volume {volume}");
                cx.event(&*claim, EventType::Normal, "ProvisioningSucceeded", message);
                Ok(Action::await_change())
            }
            Err(failure) => {
                let why =
                    format!("failed to provision volume with StorageClass {:?}: {failure}", class.name());
                cx.event(&*claim, EventType::Warning, "ProvisioningFailed", why.clone());
                if failure.remedy == Remedy::Elsewhere {
                    choose_again(cx, &claim).await?;
                    return Ok(Action::await_change());
                }
                Err(Error::invalid(format!("persistentvolumeclaim {}", claim.key()), why))
            }
        }
    }
}

impl<P: Provisioner> Provisioning<P> {
    /// The cache has no node of this name. One that is gone is chosen anew.
    async fn without_node(
        &self,
        cx: &Context,
        claim: &PersistentVolumeClaim,
        name: &str,
    ) -> Result<Action, Error> {
        if cx.api::<Node>("").get_opt(name).await?.is_some() {
            // The cache is behind.
            return Ok(Action::requeue_after(Duration::from_secs(1)));
        }
        let why = format!("failed to get target node: nodes {name:?} not found");
        cx.event(claim, EventType::Warning, "ProvisioningFailed", why);
        choose_again(cx, claim).await?;
        Ok(Action::await_change())
    }
}

/// Takes the chosen node from a claim. The scheduler then tries again.
async fn choose_again(cx: &Context, claim: &PersistentVolumeClaim) -> Result<(), Error> {
    let mut next = claim.clone();
    if let Some(annotations) = &mut next.metadata.annotations {
        annotations.remove(SELECTED_NODE);
    }
    cx.replace(&next).await.map(drop)
}

/// Removes the released volumes of a driver.
#[derive(Debug)]
pub struct Reclaiming<P>(pub P);

impl<P: Provisioner> Reconcile for Reclaiming<P> {
    type Kind = PersistentVolume;

    async fn reconcile(&self, cx: &Context, volume: Arc<PersistentVolume>) -> Result<Action, Error> {
        match plan::fate(&volume, self.0.name()) {
            Fate::Leave => {}
            Fate::Hold => drop(cx.add_finalizer(&*volume, plan::FINALIZER).await?),
            Fate::LetGo => cx.remove_finalizer(&*volume, plan::FINALIZER).await?,
            Fate::Remove => {
                // Data is lost here, so the newest version decides.
                let live = cx.api::<PersistentVolume>("").get_opt(volume.name()).await?;
                let Some(live) = live.filter(|live| live.uid() == volume.uid()) else {
                    return Ok(Action::await_change());
                };
                if plan::fate(&live, self.0.name()) != Fate::Remove {
                    return Ok(Action::await_change());
                }
                if let Err(failure) = self.0.delete(cx, &live).await {
                    let why = failure.to_string();
                    cx.event(&live, EventType::Warning, "VolumeFailedDelete", why.clone());
                    return Err(Error::invalid(format!("persistentvolume {}", live.name()), why));
                }
                if !live.is_deleting() {
                    cx.delete(&live, DeleteOptions::default()).await?;
                }
                if let Some(live) = cx.api::<PersistentVolume>("").get_opt(live.name()).await?
                    && live.uid() == volume.uid()
                {
                    cx.remove_finalizer(&live, plan::FINALIZER).await?;
                }
            }
        }
        Ok(Action::await_change())
    }
}

/// Returns the annotations of a volume that a driver made.
fn annotations(driver: &str) -> BTreeMap<String, String> {
    [(crate::volumes::PROVISIONED_BY.to_owned(), driver.to_owned())].into()
}
