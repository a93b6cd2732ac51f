//! `downwardAPI`: fields of the pod as files.

use std::path::PathBuf;

use async_trait::async_trait;

use super::{Setup, Volume, VolumeError, payload};
use crate::types::{self, DownwardAPIVolumeSource};

struct DownwardApi {
    name: String,
    source: DownwardAPIVolumeSource,
}

pub(super) fn plugin(volume: &types::Volume) -> Option<Box<dyn Volume>> {
    let source = volume.downward_api.clone()?;
    Some(Box::new(DownwardApi { name: volume.name.clone(), source }))
}

#[async_trait]
impl Volume for DownwardApi {
    async fn set_up(&self, setup: &Setup<'_>) -> Result<PathBuf, VolumeError> {
        let files = payload::downward_api(setup, self.source.items.as_deref(), self.source.default_mode)?;
        payload::write(setup, "downward-api", &self.name, &files, false)
    }
}
