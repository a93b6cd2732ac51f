//! Waiting for the state of an object.

use std::time::Duration;

use futures::StreamExt;
use serde::{Serialize, de::DeserializeOwned};

use super::{Api, Error, ListParams, WatchEvent};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

impl<K: Serialize + DeserializeOwned + 'static> Api<K> {
    /// Waits until the object exists and `predicate` is true for it, and returns it. It watches, and lists
    /// again when the watch ends; there is no limit, so the caller sets one with `tokio::time::timeout`. The
    /// client must be for one namespace, or for a cluster-scoped resource.
    ///
    /// ```
    /// # use k8s_core::{api::api::core::v1::Pod, client::{Client, Error}};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let pods = client.namespaced::<Pod>("default");
    /// let running = pods.wait_until("web", |pod| pod.status.as_ref().is_some_and(|s| s.pod_ip.is_some()));
    /// let pod = tokio::time::timeout(std::time::Duration::from_secs(60), running).await??;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those that waiting does not mend, such as 403. Broken connections, 410, 429 and server errors are
    /// retried.
    pub async fn wait_until(&self, name: &str, predicate: impl Fn(&K) -> bool) -> Result<K, Error> {
        self.wait(name, |object| object.filter(&predicate)).await
    }

    /// Waits until the object does not exist, as [`Api::wait_until`] does.
    ///
    /// # Errors
    /// As [`Api::wait_until`].
    pub async fn wait_deleted(&self, name: &str) -> Result<(), Error> {
        self.wait(name, |object| object.is_none().then_some(())).await
    }

    /// Calls `done` with each state of the object until it returns a value.
    async fn wait<T>(&self, name: &str, done: impl Fn(Option<K>) -> Option<T>) -> Result<T, Error> {
        let params = ListParams::default().fields(format!("metadata.name={name}"));
        let mut pause = FIRST;
        loop {
            match self.wait_once(&params, &done, &mut pause).await {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, name, "list again");
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST.min(pause * 2);
        }
    }

    /// Lists and watches until the watch ends. An event resets the pause.
    async fn wait_once<T>(
        &self,
        params: &ListParams,
        done: &impl Fn(Option<K>) -> Option<T>,
        pause: &mut Duration,
    ) -> Result<Option<T>, Error> {
        let page = self.page(params).await?;
        // An object that exists and cannot be read is not absent.
        if page.unreadable.is_empty()
            && let Some(value) = done(page.items.into_iter().next())
        {
            return Ok(Some(value));
        }
        let mut events = self.watch(&params.clone().at(page.version)).await?;
        while let Some(event) = events.next().await {
            let state = match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => Some(object),
                WatchEvent::Deleted(_) | WatchEvent::Unreadable(_, true) => None,
                WatchEvent::Unreadable(_, false) | WatchEvent::Bookmark(..) => continue,
                WatchEvent::Error(status) => return Err(status.into()),
            };
            *pause = FIRST;
            if let Some(value) = done(state) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}
