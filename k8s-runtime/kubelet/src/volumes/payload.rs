//! Files made from API objects, for ConfigMap, Secret, downward API and projected volumes.

use std::path::PathBuf;

use k8s_core::meta::ObjectExt;

use super::{
    Setup, VolumeError,
    atomic::{self, File, Files},
    empty_dir,
};
use crate::{env, resources, types::*};

const DEFAULT_MODE: i32 = 0o644;

/// Returns the file mode: the item's own, else the volume's default.
fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o777
}

/// Selects keys of an object: all, or those in `items`.
fn pick(
    all: impl Iterator<Item = (String, Vec<u8>)>,
    items: Option<&[KeyToPath]>,
    default: Option<i32>,
    optional: bool,
    kind: &'static str,
) -> Result<Files, VolumeError> {
    let all: std::collections::BTreeMap<String, Vec<u8>> = all.collect();
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        let mode = mode(None, default);
        return Ok(all.into_iter().map(|(key, data)| (key, File { data, mode })).collect());
    };
    let mut files = Files::new();
    for item in items {
        match all.get(&item.key) {
            Some(data) => {
                files.insert(item.path.clone(), File { data: data.clone(), mode: mode(item.mode, default) });
            }
            None if optional => {}
            None => return Err(VolumeError::Key { kind, key: item.key.clone() }),
        }
    }
    Ok(files)
}

/// Returns the files of a ConfigMap.
pub(super) async fn config_map(
    setup: &Setup<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    default: Option<i32>,
    optional: Option<bool>,
) -> Result<Files, VolumeError> {
    let found = setup.cx.sources.config_map(setup.pod.namespace(), name).await;
    let Some(map) = env::optional(found, optional)? else { return Ok(Files::new()) };
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    pick(text.chain(binary), items, default, optional == Some(true), "config")
}

/// Returns the files of a Secret.
pub(super) async fn secret(
    setup: &Setup<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    default: Option<i32>,
    optional: Option<bool>,
) -> Result<Files, VolumeError> {
    let found = setup.cx.sources.secret(setup.pod.namespace(), name).await;
    let Some(secret) = env::optional(found, optional)? else { return Ok(Files::new()) };
    let data = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    pick(data, items, default, optional == Some(true), "secret")
}

/// Returns the files of the downward API.
pub(super) fn downward_api(
    setup: &Setup<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    default: Option<i32>,
) -> Result<Files, VolumeError> {
    let spec = setup.pod.spec.clone().unwrap_or_default();
    let mut files = Files::new();
    for item in items.unwrap_or_default() {
        let text = if let Some(field) = &item.field_ref {
            env::field_value(setup.cx, setup.pod, &[], &field.field_path)?
        } else if let Some(selector) = &item.resource_field_ref {
            let allocatable = setup.cx.facts.allocatable();
            resources::field(&spec, None, selector, &allocatable).map_err(env::ConfigError::from)?
        } else {
            return Err(VolumeError::Other(format!(
                "{:?} has neither fieldRef nor resourceFieldRef",
                item.path
            )));
        };
        files.insert(item.path.clone(), File { data: text.into_bytes(), mode: mode(item.mode, default) });
    }
    Ok(files)
}

/// Returns the file of a service account token.
pub(super) async fn token(
    setup: &Setup<'_>,
    source: &ServiceAccountTokenProjection,
    default: Option<i32>,
) -> Result<Files, VolumeError> {
    let audience = source.audience.as_deref().unwrap_or_default();
    let token = setup.cx.tokens.get(setup.pod, audience, source.expiration_seconds.unwrap_or(3600)).await?;
    setup.refresh_at(token.refresh_at);
    let mut mode = mode(None, default);
    // As upstream: 0600 with `fsGroup`; without it the default, so that containers of any user can read it.
    if setup.fs_group.is_some() {
        mode = 0o600;
    }
    Ok([(source.path.clone(), File { data: token.token.into_bytes(), mode })].into())
}

/// Returns the file of trust anchors.
pub(super) async fn trust_anchors(
    setup: &Setup<'_>,
    source: &ClusterTrustBundleProjection,
    default: Option<i32>,
) -> Result<Files, VolumeError> {
    let text = setup.cx.trust.anchors(source).await?;
    let mode = if setup.fs_group.is_some() { 0o600 } else { mode(None, default) };
    Ok([(source.path.clone(), File { data: text.into_bytes(), mode })].into())
}

/// Returns the files of a pod's certificate; `place` is the volume and the number of the source in it.
pub(super) async fn pod_certificate(
    setup: &Setup<'_>,
    place: (&str, usize),
    source: &PodCertificateProjection,
    default: Option<i32>,
) -> Result<Files, VolumeError> {
    let found = setup.cx.certificates.get(setup.pod, place.0, place.1, source).await?;
    setup.refresh_at(found.refresh_at);
    let mode = if setup.fs_group.is_some() { 0o600 } else { mode(None, default) };
    let bundle = format!("{}{}", found.key, found.chain);
    let parts = [
        (&source.credential_bundle_path, bundle),
        (&source.key_path, found.key),
        (&source.certificate_chain_path, found.chain),
    ];
    let named = parts.into_iter().filter_map(|(path, text)| Some((path.clone()?, text)));
    Ok(named
        .filter(|(path, _)| !path.is_empty())
        .map(|(path, text)| (path, File { data: text.into_bytes(), mode }))
        .collect())
}

/// Writes the files of a volume; secret ones on a tmpfs.
pub(super) fn write(
    setup: &Setup<'_>,
    plugin: &str,
    name: &str,
    files: &Files,
    secret: bool,
) -> Result<PathBuf, VolumeError> {
    let dir = setup.dir(plugin, name);
    if secret && setup.cx.config.tmpfs {
        empty_dir::tmpfs(&dir, None, 0o755)?;
    } else {
        std::fs::create_dir_all(&dir).map_err(VolumeError::io("create", &dir))?;
    }
    atomic::write(&dir, files, setup.fs_group)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items() {
        let all = || [("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())].into_iter();
        assert_eq!(pick(all(), None, Some(0o400), false, "config").unwrap()["a"].mode, 0o400);
        let items = [KeyToPath { key: "b".into(), path: "x/y".into(), mode: Some(0o600) }];
        let files = pick(all(), Some(&items), None, false, "config").unwrap();
        assert_eq!(
            files.into_iter().collect::<Vec<_>>(),
            [("x/y".to_owned(), File { data: b"2".to_vec(), mode: 0o600 })]
        );
        let missing = [KeyToPath { key: "c".into(), path: "c".into(), mode: None }];
        let error = pick(all(), Some(&missing), None, false, "config").unwrap_err();
        assert_eq!(error.to_string(), "references non-existent config key: c");
        assert!(pick(all(), Some(&missing), None, true, "config").unwrap().is_empty());
    }
}
