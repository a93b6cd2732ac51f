//! Controllers under test, correct and faulty ones: each maintains a ConfigMap `<name>-copy` for a ConfigMap
//! that asks for it.

use std::sync::Arc;

use k8s_controllers::{Action, Context, Controller, Error, Reconcile};
use k8s_core::{
    api::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta},
    meta::ObjectExt,
};

pub(crate) const ASKS: &str = "copy";

/// A ConfigMap that asks for a copy.
pub(crate) fn original(name: &str, text: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            labels: Some([(ASKS.to_owned(), "yes".to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some([("text".to_owned(), text.to_owned())].into()),
        ..ConfigMap::default()
    }
}

fn copy_of(object: &ConfigMap) -> ConfigMap {
    let name = format!("{}-copy", object.name());
    let metadata = ObjectMeta { name: Some(name), ..ObjectMeta::default() };
    ConfigMap { metadata, data: object.data.clone(), ..ConfigMap::default() }
}

pub(crate) fn controller() -> Controller<ConfigMap> {
    Controller::<ConfigMap>::new().named("copier").owns::<ConfigMap>()
}

/// Correct.
pub(crate) struct Copies;

impl Reconcile for Copies {
    type Kind = ConfigMap;

    async fn reconcile(&self, cx: &Context, object: Arc<ConfigMap>) -> Result<Action, Error> {
        if object.label(ASKS).is_some() {
            cx.apply(&object, &copy_of(&object)).await?;
        }
        Ok(Action::await_change())
    }
}

/// Hot loop: writes every second.
pub(crate) struct Spins;

impl Reconcile for Spins {
    type Kind = ConfigMap;

    async fn reconcile(&self, cx: &Context, object: Arc<ConfigMap>) -> Result<Action, Error> {
        if object.label(ASKS).is_some() {
            let mut copy = copy_of(&object);
            let now = cx.clock().now().to_string();
            copy.data.get_or_insert_default().insert("seen".into(), now);
            cx.apply(&object, &copy).await?;
            return Ok(Action::requeue_after(std::time::Duration::from_secs(100)));
        }
        Ok(Action::await_change())
    }
}

/// Marks the original before it creates the copy: a crash or an error in between loses the copy for ever.
pub(crate) struct MarksFirst;

impl Reconcile for MarksFirst {
    type Kind = ConfigMap;

    async fn reconcile(&self, cx: &Context, object: Arc<ConfigMap>) -> Result<Action, Error> {
        if object.label(ASKS).is_some() && object.annotation("done").is_none() {
            cx.merge(&*object, &serde_json::json!({"metadata": {"annotations": {"done": "yes"}}})).await?;
            cx.apply(&object, &copy_of(&object)).await?;
        }
        Ok(Action::await_change())
    }
}

/// Writes twice from the same cached object: the second write is based on a stale revision.
pub(crate) struct WritesTwice;

impl Reconcile for WritesTwice {
    type Kind = ConfigMap;

    async fn reconcile(&self, cx: &Context, object: Arc<ConfigMap>) -> Result<Action, Error> {
        for key in ["one", "two"] {
            if object.label(ASKS).is_some() && !object.data.as_ref().is_some_and(|d| d.contains_key(key)) {
                let mut next = (*object).clone();
                next.data.get_or_insert_default().insert(key.into(), "yes".into());
                cx.replace(&next).await?;
            }
        }
        Ok(Action::await_change())
    }
}
