//! Provides the images of containers and volumes: pull policy, pull secrets, and back-off after failed pulls.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use base64::Engine;
use k8s_core::{
    clock::Clock,
    events::{Recorder, involved_container},
    meta::ObjectExt,
};
use k8s_runtime::{ImageInfo, Images, RuntimeError};
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::{backoff::Backoff, duration, sources::Sources, types::*};

/// An image that a pod needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted<'a> {
    pub(crate) image: &'a str,
    /// Pull policy. Empty: by the tag.
    policy: &'a str,
    /// The container that runs it. `None`: it is a volume of the pod.
    container: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    /// The image that a container runs.
    pub(crate) fn by_container(container: &'a Container) -> Self {
        Wanted {
            image: container.image.as_deref().unwrap_or_default(),
            policy: container.image_pull_policy.as_deref().unwrap_or_default(),
            container: Some(&container.name),
        }
    }

    /// The image of a volume. `None`: the volume is of another type.
    pub(crate) fn by_volume(volume: &'a Volume) -> Option<Self> {
        let source = volume.image.as_ref()?;
        let image = source.reference.as_deref().unwrap_or_default();
        Some(Wanted { image, policy: source.pull_policy.as_deref().unwrap_or_default(), container: None })
    }
}

/// Maximum number of parallel pulls.
const PULLS: usize = 4;

/// A container's image is not available: the reason of its waiting state, and the time of the next attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageError {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) retry_at: Timestamp,
}

#[derive(Debug, Default)]
struct Failure {
    backoff: Backoff,
    at: Option<Timestamp>,
    message: String,
}

/// Pulls images, with a back-off per pod and image.
pub(crate) struct Puller {
    store: Arc<dyn Images>,
    clock: Clock,
    events: Recorder,
    slots: Semaphore,
    failures: Mutex<HashMap<(String, String), Failure>>,
}

impl Puller {
    pub(crate) fn new(store: Arc<dyn Images>, clock: Clock, events: Recorder) -> Self {
        Puller { store, clock, events, slots: Semaphore::new(PULLS), failures: Mutex::default() }
    }

    /// Returns the image store.
    pub(crate) fn store(&self) -> &dyn Images {
        &*self.store
    }

    /// Removes the back-off of a pod's images.
    pub(crate) fn forget(&self, pod_uid: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).retain(|(uid, _), _| uid != pod_uid);
    }

    /// Returns an image, and pulls it if its pull policy asks for that.
    pub(crate) async fn ensure(
        &self,
        sources: &Sources,
        pod: &Pod,
        wanted: Wanted<'_>,
    ) -> Result<ImageInfo, ImageError> {
        let (image, name) = (wanted.image, wanted.container);
        let now = self.clock.now();
        let later =
            |seconds: i64| now.saturating_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(now);
        let present = match self.store.find(image).await {
            Ok(found) => found,
            Err(RuntimeError::Invalid(why)) => {
                let message = format!(
                    "Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}"
                );
                self.events.warning(involved_container(pod, name), "InspectFailed", &message);
                return Err(ImageError { reason: "InvalidImageName", message, retry_at: later(60) });
            }
            Err(e) => {
                let message = format!("Failed to inspect image {image:?}: {e}");
                self.events.warning(involved_container(pod, name), "InspectFailed", &message);
                return Err(ImageError { reason: "ImageInspectError", message, retry_at: later(5) });
            }
        };
        match (present, policy(wanted)) {
            (Some(found), "IfNotPresent" | "Never") => {
                let message = format!("Container image {image:?} already present on machine");
                self.events.normal(involved_container(pod, name), "Pulled", message);
                Ok(found)
            }
            (None, "Never") => {
                let message = format!("Container image {image:?} is not present with pull policy of Never");
                self.events.warning(involved_container(pod, name), "ErrImageNeverPull", &message);
                self.events.warning(involved_container(pod, name), "Failed", "Error: ErrImageNeverPull");
                Err(ImageError { reason: "ErrImageNeverPull", message, retry_at: later(10) })
            }
            (None, _) => self.pull(sources, pod, wanted).await,
            (Some(found), _) => match self.pull(sources, pod, wanted).await {
                // Unlike upstream: where no registry answers, an image that was loaded by hand is as new as
                // any can be. Clusters without a registry then run manifests that name no tag, which means
                // `Always`.
                Err(e) => {
                    let message = format!("Using image {image:?} that is on the node: {}", e.message);
                    self.events.warning(involved_container(pod, name), "Pulled", message);
                    Ok(found)
                }
                pulled => pulled,
            },
        }
    }

    async fn pull(
        &self,
        sources: &Sources,
        pod: &Pod,
        Wanted { image, container: name, .. }: Wanted<'_>,
    ) -> Result<ImageInfo, ImageError> {
        let key = (pod.uid().to_owned(), image.to_owned());
        if let Some((until, last)) = self.blocked(&key) {
            let message = format!("Back-off pulling image {image:?}");
            self.events.normal(involved_container(pod, name), "BackOff", &message);
            self.events.warning(involved_container(pod, name), "Failed", "Error: ImagePullBackOff");
            let message = format!("{message}: ErrImagePull: {last}");
            return Err(ImageError { reason: "ImagePullBackOff", message, retry_at: until });
        }
        let asked = self.clock.now();
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await.ok();
        let begun = self.clock.now();
        self.events.normal(involved_container(pod, name), "Pulling", format!("Pulling image {image:?}"));
        let credentials = credentials(sources, pod, image).await;
        match self.store.pull(image, credentials).await {
            Ok(info) => {
                self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                let message = format!(
                    "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {} bytes.",
                    duration::took(self.clock.since(begun)),
                    duration::took(self.clock.since(asked)),
                    info.size
                );
                self.events.normal(involved_container(pod, name), "Pulled", message);
                Ok(info)
            }
            Err(e) => {
                let now = self.clock.now();
                self.events.warning(
                    involved_container(pod, name),
                    "Failed",
                    format!("Failed to pull image {image:?}: {e}"),
                );
                self.events.warning(involved_container(pod, name), "Failed", "Error: ErrImagePull");
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                let failure = failures.entry(key).or_default();
                failure.backoff.advance(now, now);
                failure.at = Some(now);
                failure.message = e.to_string();
                // The next attempt follows soon; it is refused by the back-off, and the container then shows
                // `ImagePullBackOff`.
                let retry_at = now.saturating_add(jiff::SignedDuration::from_secs(2)).unwrap_or(now);
                Err(ImageError { reason: "ErrImagePull", message: e.to_string(), retry_at })
            }
        }
    }

    fn blocked(&self, key: &(String, String)) -> Option<(Timestamp, String)> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = failures.get(key)?;
        let until = failure.backoff.blocked_until(failure.at?, self.clock.now())?;
        Some((until, failure.message.clone()))
    }
}

/// Returns the pull policy. The default depends on the tag: `Always` for `latest`, else `IfNotPresent`.
fn policy(wanted: Wanted<'_>) -> &str {
    if !wanted.policy.is_empty() {
        return wanted.policy;
    }
    let image = wanted.image;
    let last = image.rsplit('/').next().unwrap_or_default();
    let tag = last.split_once(':').map(|(_, tag)| tag);
    if image.contains('@') || tag.is_some_and(|t| t != "latest") { "IfNotPresent" } else { "Always" }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerAuth {
    username: String,
    password: String,
    auth: String,
}

impl DockerAuth {
    fn pair(&self) -> Option<(String, String)> {
        if !self.username.is_empty() {
            return Some((self.username.clone(), self.password.clone()));
        }
        let plain = base64::engine::general_purpose::STANDARD.decode(&self.auth).ok()?;
        let plain = String::from_utf8(plain).ok()?;
        let (user, password) = plain.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    }
}

/// Returns the registry host of an image reference.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// Returns user and password from the pod's `imagePullSecrets`. Missing and malformed secrets are ignored, as
/// upstream does.
async fn credentials(sources: &Sources, pod: &Pod, image: &str) -> Option<(String, String)> {
    let registry = registry(image);
    for reference in pod.spec.as_ref()?.image_pull_secrets.iter().flatten() {
        let Ok(secret) = sources.secret(pod.namespace(), &reference.name).await else { continue };
        let data = secret.data.iter().flatten();
        for (key, value) in data {
            let config = match key.as_str() {
                ".dockerconfigjson" => serde_json::from_slice(&value.0).ok(),
                ".dockercfg" => serde_json::from_slice(&value.0).ok().map(|auths| DockerConfig { auths }),
                _ => None,
            };
            let Some(DockerConfig { auths }) = config else { continue };
            let found = auths.iter().find(|(host, _)| {
                let host = host.trim_start_matches("https://").trim_start_matches("http://");
                let host = host.split('/').next().unwrap_or_default();
                host == registry || (registry == "docker.io" && host == "index.docker.io")
            });
            if let Some(pair) = found.and_then(|(_, auth)| auth.pair()) {
                return Some(pair);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_policy() {
        for (image, want) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.7", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("nginx@sha256:abc", "IfNotPresent"),
        ] {
            let container = Container { image: Some(image.into()), ..Container::default() };
            assert_eq!(policy(Wanted::by_container(&container)), want, "{image}");
        }
        assert_eq!(registry("nginx"), "docker.io");
        assert_eq!(registry("library/nginx"), "docker.io");
        assert_eq!(registry("localhost:5000/a/b"), "localhost:5000");
    }

    #[test]
    fn docker_auth() {
        let auth = DockerAuth {
            auth: base64::engine::general_purpose::STANDARD.encode("u:p:q"),
            ..Default::default()
        };
        assert_eq!(auth.pair(), Some(("u".into(), "p:q".into())));
    }
}
