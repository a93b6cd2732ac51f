//! `image`: the files of an image. The runtime mounts them when it creates a container; nothing is set up
//! before. The image is pulled by the start of each container that mounts it, with the volume's pull policy.

use std::path::PathBuf;

use async_trait::async_trait;

use super::{Setup, Volume, VolumeError};
use crate::types;

struct Image;

pub(super) fn plugin(volume: &types::Volume) -> Option<Box<dyn Volume>> {
    volume.image.as_ref().map(|_| Box::new(Image) as Box<dyn Volume>)
}

#[async_trait]
impl Volume for Image {
    async fn set_up(&self, _setup: &Setup<'_>) -> Result<PathBuf, VolumeError> {
        Ok(PathBuf::new())
    }
}
