//! All objects of a type, looked at after every single change.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use k8s_core::{
    client::{Api, ListParams, WatchEvent},
    meta::{Object, ObjectExt, ObjectKey},
};

/// Before a watch is opened again.
const PAUSE: Duration = Duration::from_millis(100);

/// What a list and a watch have told so far.
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

    /// Looks after every change, for as long as a watch that ended can be opened again where it was.
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
