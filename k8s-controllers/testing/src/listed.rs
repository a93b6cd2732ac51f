//! All objects of a type, checked after every change.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use k8s_core::{
    client::{Api, ListParams, WatchEvent},
    meta::{Object, ObjectExt, ObjectKey},
};

/// Delay before a watch is reopened.
const PAUSE: Duration = Duration::from_millis(100);

/// The state of a list and watch.
pub(crate) struct Listed<K> {
    all: BTreeMap<ObjectKey, K>,
    version: String,
}

impl<K: Object> Listed<K> {
    pub(crate) async fn of(api: &Api<K>) -> Self {
        match api.list_with_version(&ListParams::default()).await {
            Ok((all, version)) => Listed { all: all.into_iter().map(|o| (o.key(), o)).collect(), version },
            Err(e) => panic!("list {}: {e}", K::PLURAL),
        }
    }

    pub(crate) fn look(&self, check: &mut impl FnMut(&[&K])) {
        check(&self.all.values().collect::<Vec<&K>>());
    }

    /// Calls `check` after every change, until the watch cannot be resumed from its last revision (410 Gone).
    pub(crate) async fn follow(&mut self, api: &Api<K>, check: &mut impl FnMut(&[&K])) {
        while let Ok(mut events) = api.watch(&ListParams::default().at(&self.version)).await {
            while let Some(Ok(event)) = events.next().await {
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        self.version = object.revision().to_string();
                        self.all.insert(object.key(), object);
                    }
                    WatchEvent::Deleted(object) => {
                        self.version = object.revision().to_string();
                        self.all.remove(&object.key());
                    }
                    WatchEvent::Unreadable(object, _) => {
                        self.version = object.revision.to_string();
                        self.all.remove(&object.key);
                    }
                    WatchEvent::Bookmark(revision, _) => {
                        self.version = revision.to_string();
                        continue;
                    }
                    WatchEvent::Error(_) => return tokio::time::sleep(PAUSE).await,
                }
                self.look(check);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
