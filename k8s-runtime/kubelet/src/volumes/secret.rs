//! `secret`: the keys of a Secret as files on a tmpfs, never on disk.

use std::path::PathBuf;

use async_trait::async_trait;

use super::{Reference, Setup, Volume, VolumeError, payload};
use crate::types::{self, SecretVolumeSource};

struct SecretVolume {
    name: String,
    source: SecretVolumeSource,
}

pub(super) fn plugin(volume: &types::Volume) -> Option<Box<dyn Volume>> {
    let source = volume.secret.clone()?;
    Some(Box::new(SecretVolume { name: volume.name.clone(), source }))
}

impl SecretVolume {
    fn secret_name(&self) -> &str {
        self.source.secret_name.as_deref().unwrap_or_default()
    }
}

#[async_trait]
impl Volume for SecretVolume {
    async fn set_up(&self, setup: &Setup<'_>) -> Result<PathBuf, VolumeError> {
        let s = &self.source;
        let files =
            payload::secret(setup, self.secret_name(), s.items.as_deref(), s.default_mode, s.optional)
                .await?;
        payload::write(setup, "secret", &self.name, &files, true)
    }

    fn references(&self) -> Vec<Reference> {
        vec![Reference::Secret(self.secret_name().to_owned())]
    }
}
