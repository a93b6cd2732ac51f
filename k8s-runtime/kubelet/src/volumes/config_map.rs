//! `configMap`: the keys of a ConfigMap as files.

use std::path::PathBuf;

use async_trait::async_trait;

use super::{Reference, Setup, Volume, VolumeError, payload};
use crate::types::{self, ConfigMapVolumeSource};

struct ConfigMapVolume {
    name: String,
    source: ConfigMapVolumeSource,
}

pub(super) fn plugin(volume: &types::Volume) -> Option<Box<dyn Volume>> {
    let source = volume.config_map.clone()?;
    Some(Box::new(ConfigMapVolume { name: volume.name.clone(), source }))
}

#[async_trait]
impl Volume for ConfigMapVolume {
    async fn set_up(&self, setup: &Setup<'_>) -> Result<PathBuf, VolumeError> {
        let s = &self.source;
        let files =
            payload::config_map(setup, &s.name, s.items.as_deref(), s.default_mode, s.optional).await?;
        payload::write(setup, "configmap", &self.name, &files, false)
    }

    fn references(&self) -> Vec<Reference> {
        vec![Reference::ConfigMap(self.source.name.clone())]
    }
}
