//! Makes the volumes of a driver larger, as upstream's external resizers do.

use std::sync::Arc;

use k8s_controllers::{Action, Context, Controller, Error, EventType, Reconcile, Runnable, predicates};
use k8s_core::{
    api::{
        api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    },
    meta::{ObjectExt, Quantity},
};
use serde_json::json;

use super::{BACKOFF, Failure, Provisioner, Remedy, bound_claim, expansion};
use crate::volumes::{matching, volume_name};

/// A driver that can make its volumes larger.
///
/// ```
/// use k8s_builtin::provisioner::{self, Expander, Failure, Provisioner, Wanted};
/// # use k8s_core::api::api::core::v1::PersistentVolumeSpec;
/// use k8s_controllers::{Context, Manager};
/// use k8s_core::{api::api::core::v1::PersistentVolume, client::Client, meta::Quantity};
/// use std::sync::Arc;
///
/// struct Shares;
/// # impl Provisioner for Shares {
/// #     fn name(&self) -> &str { "shares.example.com" }
/// #     async fn provision(&self, _: &Context, _: &Wanted<'_>) -> Result<PersistentVolumeSpec, Failure> {
/// #         Err(Failure::again(""))
/// #     }
/// #     async fn delete(&self, _: &Context, _: &PersistentVolume) -> Result<(), Failure> { Ok(()) }
/// # }
///
/// impl Expander for Shares {
///     async fn expand(&self, _: &Context, _: &PersistentVolume, size: Quantity) -> Result<Quantity, Failure> {
///         if size > "1Ti".parse().expect("a constant") {
///             return Err(Failure::infeasible("a share has at most 1Ti"));
///         }
///         // Here the quota of the directory is raised.
///         Ok(size)
///     }
/// }
///
/// # async fn f(client: Client) {
/// let (shares, shutdown) = (Arc::new(Shares), tokio_util::sync::CancellationToken::new());
/// let both = provisioner::runnables(shares.clone());
/// Manager::new(client).runnables(both).runnables([provisioner::resizer(shares)]).run(shutdown).await;
/// # }
/// ```
pub trait Expander: Provisioner {
    /// Makes the storage of a volume larger, to at least `size` bytes, and its file system with it. Returns
    /// the size that it now has. May be called again after it succeeded, and with a smaller size after
    /// [`Failure::infeasible`].
    ///
    /// # Errors
    /// [`Failure`]; its message is the text of an event and of a condition.
    fn expand(
        &self,
        cx: &Context,
        volume: &PersistentVolume,
        size: Quantity,
    ) -> impl Future<Output = Result<Quantity, Failure>> + Send;
}

impl<E: Expander> Expander for Arc<E> {
    async fn expand(
        &self,
        cx: &Context,
        volume: &PersistentVolume,
        size: Quantity,
    ) -> Result<Quantity, Failure> {
        (**self).expand(cx, volume, size).await
    }
}

/// Returns the controller that makes a driver's volumes larger, for a [`k8s_controllers::Manager`]. A claim
/// may ask for more only if its class has `allowVolumeExpansion`.
pub fn resizer<E: Expander>(driver: E) -> Runnable {
    Runnable::controller(expansions(driver.name()), Expanding(driver))
}

/// Returns the controller of claims for [`Expanding`]. `name` is the driver's, and that of events.
pub fn expansions(name: &str) -> Controller<PersistentVolumeClaim> {
    Controller::new()
        .named(&format!("{name}-resizer"))
        .backoff(BACKOFF)
        // Not what this controller notes itself: else a failure would be tried again at once.
        .when(predicates::changed(|claim: &PersistentVolumeClaim| {
            let status = claim.status.as_ref().map(|s| (s.phase.clone(), s.capacity.clone()));
            (matching::request(claim), volume_name(claim).to_owned(), status)
        }))
        .watches::<PersistentVolume>(|_, volume| bound_claim(volume))
}

/// Makes the volumes of a driver larger.
#[derive(Debug)]
pub struct Expanding<E>(pub E);

impl<E: Expander> Reconcile for Expanding<E> {
    type Kind = PersistentVolumeClaim;

    async fn reconcile(&self, cx: &Context, claim: Arc<PersistentVolumeClaim>) -> Result<Action, Error> {
        let Some(volume) = cx.caches().of::<PersistentVolume>().get("", volume_name(&claim)) else {
            return Ok(Action::await_change());
        };
        let Some(size) = expansion::wanted(&claim, &volume, self.0.name()) else {
            return Ok(Action::await_change());
        };
        let claim = change(cx, &claim, |status, now| expansion::begin(status, &size, now)).await?;
        let message = format!("External resizer is resizing volume {}", volume.name());
        cx.event(&claim, EventType::Normal, "Resizing", message);
        let done = match self.0.expand(cx, &volume, size).await {
            Ok(got) if got < size => {
                Err(Failure::again(format!("the driver made {got} of the {size} that it was asked for")))
            }
            done => done,
        };
        match done {
            Ok(got) => {
                cx.merge(&*volume, &json!({"spec": {"capacity": {"storage": got.to_api()}}})).await?;
                change(cx, &claim, |status, _| expansion::finish(status, &got)).await?;
                cx.event(&claim, EventType::Normal, "VolumeResizeSuccessful", "Resize volume succeeded");
                Ok(Action::await_change())
            }
            Err(failure) => {
                let (name, driver) = (volume.name(), self.0.name());
                let why = format!("resize volume {name:?} by resizer {driver:?} failed: {failure}");
                cx.event(&claim, EventType::Warning, "VolumeResizeFailed", why.clone());
                let is_final = failure.remedy == Remedy::OtherSize;
                change(cx, &claim, |status, now| expansion::fail(status, &why, is_final, now)).await?;
                Err(Error::invalid(format!("persistentvolumeclaim {}", claim.key()), why))
            }
        }
    }
}

/// Changes the status of a claim; writes only if that makes a difference. Returns the claim as it is then.
async fn change(
    cx: &Context,
    claim: &PersistentVolumeClaim,
    change: impl FnOnce(&mut PersistentVolumeClaimStatus, &Time),
) -> Result<PersistentVolumeClaim, Error> {
    let mut next = claim.clone();
    change(next.status.get_or_insert_default(), &cx.clock().time());
    if next.status == claim.status { Ok(next) } else { cx.replace_status(&next).await }
}
