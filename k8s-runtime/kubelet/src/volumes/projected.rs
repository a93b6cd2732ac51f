//! `projected`: several sources in one directory, such as the service account token of every pod.

use std::path::PathBuf;

use async_trait::async_trait;

use super::{Reference, Setup, Volume, VolumeError, atomic::Files, payload};
use crate::types::{self, ProjectedVolumeSource};

struct Projected {
    name: String,
    source: ProjectedVolumeSource,
}

pub(super) fn plugin(volume: &types::Volume) -> Option<Box<dyn Volume>> {
    let source = volume.projected.clone()?;
    Some(Box::new(Projected { name: volume.name.clone(), source }))
}

#[async_trait]
impl Volume for Projected {
    async fn set_up(&self, setup: &Setup<'_>) -> Result<PathBuf, VolumeError> {
        let default = self.source.default_mode;
        let mut files = Files::new();
        for (index, source) in self.source.sources.iter().flatten().enumerate() {
            let part = if let Some(s) = &source.config_map {
                payload::config_map(setup, &s.name, s.items.as_deref(), default, s.optional).await?
            } else if let Some(s) = &source.secret {
                payload::secret(setup, &s.name, s.items.as_deref(), default, s.optional).await?
            } else if let Some(s) = &source.downward_api {
                payload::downward_api(setup, s.items.as_deref(), default)?
            } else if let Some(s) = &source.service_account_token {
                payload::token(setup, s, default).await?
            } else if let Some(s) = &source.cluster_trust_bundle {
                payload::trust_anchors(setup, s, default).await?
            } else if let Some(s) = &source.pod_certificate {
                payload::pod_certificate(setup, (&self.name, index), s, default).await?
            } else {
                return Err(VolumeError::Other("a projected source of this kind is not supported".into()));
            };
            files.extend(part);
        }
        payload::write(setup, "projected", &self.name, &files, true)
    }

    fn references(&self) -> Vec<Reference> {
        let sources = self.source.sources.iter().flatten();
        sources
            .flat_map(|s| {
                let map = s.config_map.as_ref().map(|m| Reference::ConfigMap(m.name.clone()));
                let secret = s.secret.as_ref().map(|m| Reference::Secret(m.name.clone()));
                let trust = s.cluster_trust_bundle.as_ref().map(|_| Reference::TrustBundles);
                map.into_iter().chain(secret).chain(trust)
            })
            .collect()
    }
}
