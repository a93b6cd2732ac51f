//! Typed admission functions: they receive decoded objects of one type.

use std::{marker::PhantomData, sync::Arc};

use async_trait::async_trait;
use k8s_core::{meta::Object, status::ApiStatus};
use k8s_schema::patch;
use serde_json::Value;

use super::{Admission, Admit, Operation};
use crate::{resources::Resource, user::User};

/// A create or update of a `K` under admission, or a change of its scale. Other subresources are not seen.
///
/// ```
/// use k8s_apiserver::admission::Request;
/// use k8s_core::{api::api::core::v1::Pod, meta::ObjectExt};
///
/// # fn of(server: k8s_apiserver::Builder) -> k8s_apiserver::Builder {
/// server.admit(|r: &mut Request<Pod>| r.object.set_label("team", r.user.group_or("shared")))
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Request<K> {
    /// Operation of the request.
    pub operation: Operation,
    /// Authenticated user of the request, after impersonation.
    pub user: User,
    /// Object in its stored version; may be changed.
    pub object: K,
    /// Object before an update.
    pub old: Option<K>,
}

/// Return type of admission functions: `()` for one that never rejects, or a `Result`.
pub trait Verdict {
    /// Returns the outcome.
    ///
    /// # Errors
    /// The status for the client, if the write is rejected.
    fn verdict(self) -> Result<(), ApiStatus>;
}

impl Verdict for () {
    fn verdict(self) -> Result<(), ApiStatus> {
        Ok(())
    }
}

impl Verdict for Result<(), ApiStatus> {
    fn verdict(self) -> Result<(), ApiStatus> {
        self
    }
}

/// Types that can be an admission function: an [`Admit`], a closure over an [`Admission`], a closure over a
/// [`Request`]. The type parameter only distinguishes the implementations.
pub trait IntoAdmit<Marker> {
    /// Converts to an admission function.
    fn into_admit(self) -> Arc<dyn Admit>;
}

/// Marker of functions that see every write.
#[derive(Debug)]
pub struct Every;

impl<A: Admit> IntoAdmit<Every> for A {
    fn into_admit(self) -> Arc<dyn Admit> {
        Arc::new(self)
    }
}

impl<F, K, V> IntoAdmit<(K, V)> for F
where
    F: Fn(&mut Request<K>) -> V + Send + Sync + 'static,
    K: Object,
    V: Verdict,
{
    fn into_admit(self) -> Arc<dyn Admit> {
        Arc::new(Typed { function: self, kind: PhantomData::<fn(K)> })
    }
}

struct Typed<F, K> {
    function: F,
    kind: PhantomData<fn(K)>,
}

#[async_trait]
impl<F, K, V> Admit for Typed<F, K>
where
    F: Fn(&mut Request<K>) -> V + Send + Sync + 'static,
    K: Object,
    V: Verdict,
{
    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && matches!(subresource, "" | "scale")
            && resource.kind == K::KIND
            && resource.storage_version == K::API_VERSION
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let typed = |object: &Value| K::deserialize(object).map_err(ApiStatus::internal);
        let object = typed(admission.object)?;
        let before = serde_json::to_value(&object).map_err(ApiStatus::internal)?;
        let old = admission.old.map(typed).transpose()?;
        let mut request =
            Request { operation: admission.operation, user: admission.user.clone(), object, old };
        (self.function)(&mut request).verdict()?;
        // Apply the difference only: fields that the Rust type does not have must be kept.
        let after = serde_json::to_value(&request.object).map_err(ApiStatus::internal)?;
        if after != before {
            patch::merge(admission.object, &patch::merge_diff(&before, &after));
        }
        Ok(())
    }
}
