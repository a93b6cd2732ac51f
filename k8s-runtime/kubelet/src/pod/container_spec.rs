//! Builds the runtime's `ContainerSpec` from the pod.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use k8s_core::meta::ObjectExt;
use k8s_runtime::{ContainerSpec, ImageInfo, Mount, User, beneath::Directory};

use super::{admit, records::keys};
use crate::{
    cgroups,
    context::Context,
    dns,
    env::{self, ConfigError, EnvSource},
    resources,
    types::*,
    volumes::Mounted,
};

/// Inputs of a container's specification.
pub(crate) struct Input<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) attempt: u32,
    pub(crate) image: &'a ImageInfo,
    /// Ids of the images that are mounted, by volume.
    pub(crate) volume_images: &'a HashMap<String, String>,
    pub(crate) mounted: &'a Mounted,
    pub(crate) pod_ips: &'a [IpAddr],
}

/// Path of a container's log file.
pub(crate) fn log_path(cx: &Context, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
    let dir = cx.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid());
    dir.join(container).join(format!("{attempt}.log"))
}

/// Builds the specification of a container, and creates the files that it mounts.
pub(crate) async fn build(cx: &Context, input: &Input<'_>) -> Result<ContainerSpec, ConfigError> {
    let Input { pod, container, .. } = input;
    let spec = pod.spec.clone().unwrap_or_default();
    check_user(pod, &spec, container, input.image)?;
    let source = EnvSource { pod, spec: &spec, container, pod_ips: input.pod_ips };
    let env = env::make(cx, &source).await?;
    let lookup = |name: &str| env.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expand = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|text| env::expand(text, &lookup)).collect::<Vec<_>>()
    };
    let security = container.security_context.clone().unwrap_or_default();
    admit::container(&security).map_err(ConfigError::Invalid)?;
    let privileged = security.privileged == Some(true);
    let capabilities = security.capabilities.clone().unwrap_or_default();
    let bare = |list: Option<Vec<String>>| {
        let names = list.into_iter().flatten();
        names.map(|c| c.trim_start_matches("CAP_").to_owned()).collect::<Vec<_>>()
    };
    let (message_file, message_mount) = message_file(cx, pod, container, input.attempt)?;
    let mut mounts = volume_mounts(&spec, input, &lookup)?;
    mounts.extend(hosts_mount(cx, pod, container, input.pod_ips)?);
    mounts.push(message_mount);
    let log_path = log_path(cx, pod, &container.name, input.attempt);
    make_dir(log_path.parent().unwrap_or(Path::new("/")))?;
    let mut annotations: BTreeMap<String, String> = BTreeMap::new();
    annotations.insert(keys::RESTART_COUNT.into(), input.attempt.to_string());
    annotations.insert(keys::MESSAGE_FILE.into(), message_file.to_string_lossy().into_owned());
    let policy = container.termination_message_policy.clone().unwrap_or_else(|| "File".into());
    annotations.insert(keys::MESSAGE_POLICY.into(), policy);
    if let Some(digest) = input.image.digests.first() {
        annotations.insert(keys::IMAGE_REF.into(), digest.clone());
    }
    Ok(ContainerSpec {
        name: container.name.clone(),
        attempt: input.attempt,
        image: input.image.id.clone(),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().filter(|d| !d.is_empty()),
        mounts,
        user: user(&spec, &security),
        privileged,
        add_capabilities: bare(capabilities.add),
        drop_capabilities: bare(capabilities.drop),
        no_new_privileges: security.allow_privilege_escalation == Some(false) && !privileged,
        readonly_rootfs: security.read_only_root_filesystem == Some(true),
        seccomp_unconfined: privileged || seccomp_unconfined(&spec, &security)?,
        unmasked_proc: false,
        resources: cgroups::container(&spec, container, cx.facts.memory),
        requests: resources::requested(container),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        log_path,
        log_max_bytes: cx.config.log_max_size,
        log_max_files: cx.config.log_max_files,
        stop_signal: container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
        labels: [
            (keys::POD_NAME.to_owned(), pod.name().to_owned()),
            (keys::POD_NAMESPACE.to_owned(), pod.namespace().to_owned()),
            (keys::POD_UID.to_owned(), pod.uid().to_owned()),
            (keys::CONTAINER_NAME.to_owned(), container.name.clone()),
        ]
        .into(),
        annotations,
        env,
    })
}

fn make_dir(dir: &Path) -> Result<(), ConfigError> {
    fs::create_dir_all(dir).map_err(|e| ConfigError::Invalid(format!("create {dir:?}: {e}")))
}

/// Enforces `runAsNonRoot`: the user must be numeric and other than 0.
fn check_user(
    pod: &Pod,
    spec: &PodSpec,
    container: &Container,
    image: &ImageInfo,
) -> Result<(), ConfigError> {
    let own = container.security_context.as_ref();
    let whole = spec.security_context.as_ref();
    let non_root = own.and_then(|s| s.run_as_non_root).or(whole.and_then(|s| s.run_as_non_root));
    if non_root != Some(true) {
        return Ok(());
    }
    let place = || {
        let (pod_name, namespace, uid) = (pod.name(), pod.namespace(), pod.uid());
        format!("(pod: \"{pod_name}_{namespace}({uid})\", container: {})", container.name)
    };
    match own.and_then(|s| s.run_as_user).or(whole.and_then(|s| s.run_as_user)) {
        Some(0) => {
            return Err(ConfigError::Invalid(format!(
                "container's runAsUser breaks non-root policy {}",
                place()
            )));
        }
        Some(_) => return Ok(()),
        None => {}
    }
    let user = image.user.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(0) => {}
        Ok(_) => return Ok(()),
        Err(_) if user.is_empty() => {}
        Err(_) => {
            return Err(ConfigError::Invalid(format!(
                "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root {}",
                place()
            )));
        }
    }
    Err(ConfigError::Invalid(format!("container has runAsNonRoot and image will run as root {}", place())))
}

fn user(spec: &PodSpec, security: &SecurityContext) -> User {
    let whole = spec.security_context.clone().unwrap_or_default();
    let id = |value: Option<i64>| value.and_then(|v| u32::try_from(v).ok());
    let groups = whole.supplemental_groups.iter().flatten().copied().chain(whole.fs_group);
    User {
        uid: id(security.run_as_user.or(whole.run_as_user)),
        gid: id(security.run_as_group.or(whole.run_as_group)),
        supplementary_gids: groups.filter_map(|g| id(Some(g))).collect(),
    }
}

fn seccomp_unconfined(spec: &PodSpec, security: &SecurityContext) -> Result<bool, ConfigError> {
    let whole = spec.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
    match security.seccomp_profile.as_ref().or(whole).map(|p| p.type_.as_str()) {
        None | Some("RuntimeDefault") => Ok(false),
        Some("Unconfined") => Ok(true),
        Some(other) => Err(ConfigError::Invalid(format!("seccomp profile type {other:?} is not supported"))),
    }
}

fn volume_mounts(
    spec: &PodSpec,
    Input { container, mounted, volume_images, .. }: &Input<'_>,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Mount>, ConfigError> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let base = mounted.paths.get(&mount.name).ok_or_else(|| {
            ConfigError::Invalid(format!(
                "cannot find volume {:?} to mount into container {:?}",
                mount.name, container.name
            ))
        })?;
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => path.clone(),
            (_, Some(expression)) => env::expand(expression, lookup),
            _ => String::new(),
        };
        let sub_path = PathBuf::from(sub);
        let image = volume_images.get(&mount.name).cloned().unwrap_or_default();
        if !sub_path.as_os_str().is_empty() && image.is_empty() {
            make_sub_path(base, &sub_path)?;
        }
        let volume = spec.volumes.iter().flatten().find(|v| v.name == mount.name);
        let propagation = mount.mount_propagation.as_deref().unwrap_or("None");
        mounts.push(Mount {
            host_path: base.clone(),
            sub_path,
            container_path: absolute(&mount.mount_path),
            readonly: mount.read_only == Some(true) || volume.is_some_and(is_read_only) || !image.is_empty(),
            image,
            propagate_to_container: matches!(propagation, "HostToContainer" | "Bidirectional"),
            propagate_to_host: propagation == "Bidirectional",
        });
    }
    Ok(mounts)
}

/// Returns `true` for volumes that are always mounted read-only: ConfigMap, Secret, downward API, projected.
fn is_read_only(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
        || volume.persistent_volume_claim.as_ref().is_some_and(|c| c.read_only == Some(true))
}

fn absolute(path: &str) -> PathBuf {
    if path.starts_with('/') { path.into() } else { Path::new("/").join(path) }
}

/// Creates a missing `subPath` as a directory with the volume's mode. Symbolic links that lead out of the
/// volume are refused here, and again by the runtime when it mounts, in case the pod changed them in between.
fn make_sub_path(base: &Path, sub: &Path) -> Result<(), ConfigError> {
    let refuse = |why: &str| ConfigError::Invalid(format!("failed to prepare subPath {sub:?}: {why}"));
    if !sub.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(refuse("must be relative and without '..'"));
    }
    let make = || {
        let volume = Directory::open(base)?;
        volume.make_directories(sub, volume.metadata()?.permissions().mode() & 0o7777)
    };
    make().map_err(|e| match e.kind() {
        io::ErrorKind::CrossesDevices => refuse("leads out of the volume"),
        _ => refuse(&e.to_string()),
    })
}

/// Mounts the generated `/etc/hosts`, unless the container mounts its own.
fn hosts_mount(
    cx: &Context,
    pod: &Pod,
    container: &Container,
    pod_ips: &[IpAddr],
) -> Result<Option<Mount>, ConfigError> {
    if container.volume_mounts.iter().flatten().any(|m| m.mount_path.trim_end_matches('/') == "/etc/hosts") {
        return Ok(None);
    }
    let dir = cx.config.pod_dir(pod.uid());
    make_dir(&dir)?;
    let file = dir.join("etc-hosts");
    // Written once per sandbox address: a running container keeps the inode that it has mounted.
    let text = dns::hosts_file(pod, &cx.config, pod_ips);
    // The container can write to this file: compare the length before reading it.
    let length = fs::metadata(&file).map(|m| m.len()).ok();
    let same = length == Some(text.len() as u64) && fs::read_to_string(&file).is_ok_and(|have| have == text);
    if !same {
        fs::write(&file, text).map_err(|e| ConfigError::Invalid(format!("write {file:?}: {e}")))?;
        let mode = fs::Permissions::from_mode(0o644);
        fs::set_permissions(&file, mode).map_err(|e| ConfigError::Invalid(format!("chmod {file:?}: {e}")))?;
    }
    Ok(Some(Mount { host_path: file, container_path: "/etc/hosts".into(), ..Mount::default() }))
}

/// Creates the termination message file and its mount.
fn message_file(
    cx: &Context,
    pod: &Pod,
    container: &Container,
    attempt: u32,
) -> Result<(PathBuf, Mount), ConfigError> {
    let dir = cx.config.pod_dir(pod.uid()).join("containers").join(&container.name);
    make_dir(&dir)?;
    let name = format!("{attempt}-termination-log");
    let file = dir.join(&name);
    let make = || {
        let dir = Directory::open(&dir)?.without_links();
        let made = dir.append(Path::new(&name), 0o666)?;
        made.set_len(0)?;
        // The container may run as any user.
        made.set_permissions(fs::Permissions::from_mode(0o666))
    };
    make().map_err(|e: io::Error| ConfigError::Invalid(format!("make {file:?}: {e}")))?;
    let path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    let mount = Mount { host_path: file.clone(), container_path: absolute(path), ..Mount::default() };
    Ok((file, mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        let made = |sub: &str| make_sub_path(base, Path::new(sub));
        made("a/b").unwrap();
        assert!(base.join("a/b").is_dir());
        fs::write(base.join("f"), "x").unwrap();
        made("f").unwrap();
        assert!(made("../x").is_err());
        assert!(made("/etc").is_err());
        std::os::unix::fs::symlink("/etc", base.join("out")).unwrap();
        assert!(made("out/passwd").unwrap_err().to_string().ends_with("leads out of the volume"));
        std::os::unix::fs::symlink("/nonexistent", base.join("dangling")).unwrap();
        assert!(made("dangling/x").is_err());
        std::os::unix::fs::symlink("a", base.join("in")).unwrap();
        made("in/b").unwrap();
    }

    #[test]
    fn non_root() {
        let pod = Pod::default();
        let spec = PodSpec {
            security_context: Some(PodSecurityContext { run_as_non_root: Some(true), ..Default::default() }),
            ..PodSpec::default()
        };
        let with_user = |user: &str| ImageInfo { user: user.into(), ..ImageInfo::default() };
        let check = |run_as: Option<i64>, image: &str| {
            let container = Container {
                security_context: Some(SecurityContext { run_as_user: run_as, ..Default::default() }),
                ..Container::default()
            };
            check_user(&pod, &spec, &container, &with_user(image)).is_ok()
        };
        for (run_as, image, want) in [
            (None, "", false),
            (None, "0", false),
            (None, "root", false),
            (None, "1000:1000", true),
            (None, "nginx", false),
            (Some(0), "1000", false),
            (Some(5), "", true),
        ] {
            assert_eq!(check(run_as, image), want, "{run_as:?} {image:?}");
        }
    }
}
