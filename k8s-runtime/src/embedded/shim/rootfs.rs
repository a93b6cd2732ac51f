//! A container's root file system.
//!
//! Flow (in the container's new mount namespace, before any program of the image runs): clone the bind
//! sources as detached mounts while they still receive propagation, make the tree private, mount the overlay,
//! populate `/proc`, `/sys` and `/dev`, attach the binds in order, pivot.
//! Guarantees: no step follows a link out of the root (see [`inroot`]). Nothing is mounted in the host's
//! namespace, so the mounts disappear with the container's processes. In an unprivileged container all mounts
//! are `nodev`, except the bind mounts of the default devices.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, fstat, mknod, umask},
};

use crate::{
    api::Mount,
    beneath::Directory,
    embedded::{
        cgroup::Cgroups,
        protocol::{ContainerRecord, SandboxRecord},
    },
    inroot, sys,
};

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// For `map_err`: an error with the operation as context.
pub(super) fn doing<E: Into<io::Error>>(context: impl AsRef<str>) -> impl FnOnce(E) -> String {
    move |error| format!("{}: {}", context.as_ref(), error.into())
}

const NONE: Option<&str> = None;

/// Builds the root file system and makes it the root of this process.
pub(super) fn enter(
    dir: &Path,
    sandbox: &SandboxRecord,
    container: &ContainerRecord,
    cgroups: &Cgroups,
) -> Result<(), String> {
    let spec = &container.spec;
    umask(Mode::empty());
    let hierarchies = clone_hierarchies(cgroups, &container.cgroup, spec.privileged)?;
    let binds = spec
        .mounts
        .iter()
        .chain(&sandbox_files(dir, sandbox, &spec.mounts))
        .map(|m| {
            let tree = if m.image.is_empty() { Some(clone_source(m, spec.privileged)?) } else { None };
            Ok((m.clone(), tree))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let shm = sandbox
        .shm
        .as_deref()
        .map(|path| sys::open_tree(path, sys::OPEN_TREE_CLONE).map_err(doing(format!("open {path:?}"))))
        .transpose()?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)
        .map_err(doing("cut mount propagation"))?;

    let root_path = dir.join("c").join(&container.id).join("rootfs");
    overlay(&root_path, dir, container)?;
    let root = fs::File::open(&root_path).map_err(doing("open the root file system"))?;
    let root = root.as_fd();
    let at = |path: &str| {
        inroot::make_directory(root, Path::new(path), Mode::from_bits_truncate(0o755)).map_err(doing(path))
    };
    let put = |what: &str, path: &str, flags: MsFlags, options: &str| -> Result<OwnedFd, String> {
        let target = at(path)?;
        mount(Some(what), &proc_path(&target), Some(what), flags, Some(options))
            .map_err(doing(format!("mount {what} on {path}")))?;
        // The descriptor opened before the mount refers to the covered directory: open it again.
        inroot::open(root, Path::new(path)).map_err(doing(path))
    };

    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    put("proc", "/proc", hardened, "")?;
    let sys_flags = if spec.privileged { hardened } else { hardened | MsFlags::MS_RDONLY };
    put("sysfs", "/sys", sys_flags, "")?;
    match cgroups {
        Cgroups::V2(_) => drop(put("cgroup2", "/sys/fs/cgroup", sys_flags, "")?),
        Cgroups::V1(_) => {
            mount_hierarchies(put("tmpfs", "/sys/fs/cgroup", hardened, "mode=755,size=64k")?, &hierarchies)?
        }
    }
    let dev_flags = if spec.privileged { MsFlags::MS_NOSUID } else { MsFlags::MS_NOSUID | MsFlags::MS_NODEV };
    let dev = put("tmpfs", "/dev", dev_flags | MsFlags::MS_STRICTATIME, "mode=755,size=65536k")?;
    devices(&dev, spec.privileged)?;
    put(
        "devpts",
        "/dev/pts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    put("mqueue", "/dev/mqueue", hardened, "")?;
    let shm_target = at("/dev/shm")?;
    match shm {
        Some(tree) => sys::move_mount(tree.as_fd(), shm_target.as_fd()).map_err(doing("mount /dev/shm"))?,
        None => {
            let tree = sys::open_tree(Path::new("/dev/shm"), sys::OPEN_TREE_CLONE);
            if let Ok(tree) = tree {
                sys::move_mount(tree.as_fd(), shm_target.as_fd()).map_err(doing("mount /dev/shm"))?;
            }
        }
    }
    // The host's, opened before the container's volumes are attached.
    let null =
        sys::open_tree(Path::new("/dev/null"), sys::OPEN_TREE_CLONE).map_err(doing("open /dev/null"))?;
    for (n, (bind, tree)) in binds.iter().enumerate() {
        match tree {
            Some((tree, is_dir)) => attach(root, bind, tree, *is_dir)?,
            None => {
                let (tree, is_dir) = image_tree(dir, container, bind, n)?;
                attach(root, bind, &tree, is_dir)?;
            }
        }
    }
    nix::unistd::fchdir(root).map_err(doing("enter the root file system"))?;
    // Stacks the old root on the new one; it is detached without needing a directory for it.
    nix::unistd::pivot_root(".", ".").map_err(doing("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(doing("leave the old root file system"))?;
    nix::unistd::chdir("/").map_err(doing("chdir /"))?;

    if !spec.privileged && !spec.unmasked_proc {
        mask(&null)?;
    }
    umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Makes the root read-only. All mount points must exist by then.
pub(super) fn seal() -> Result<(), String> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    mount(NONE, "/", NONE, flags, NONE).map_err(doing("make the root file system read-only"))
}

fn overlay(root: &Path, dir: &Path, container: &ContainerRecord) -> Result<(), String> {
    let own = dir.join("c").join(&container.id);
    // Relative names: the mount options (one page) then have room for more layers.
    std::env::set_current_dir(&container.layers_dir)
        .map_err(doing(format!("enter {:?}", container.layers_dir)))?;
    let lower: Vec<&str> = container.layers.iter().rev().map(String::as_str).collect();
    let escape =
        |path: PathBuf| path.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:");
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        escape(own.join("upper")),
        escape(own.join("work"))
    );
    let flags = if container.spec.privileged { MsFlags::empty() } else { MsFlags::MS_NODEV };
    mount(Some("overlay"), root, Some("overlay"), flags, Some(options.as_str()))
        .map_err(doing("mount the root file system"))
}

/// Makes a detached, read-only mount of an image's files, or of a path in it. Also returns whether it is a
/// directory. The layers are stacked on a directory of the container, in its mount namespace only.
fn image_tree(
    dir: &Path,
    container: &ContainerRecord,
    bind: &Mount,
    number: usize,
) -> Result<(OwnedFd, bool), String> {
    let context =
        || format!("failed to mount image volume on {:?}: {:?}", bind.container_path, bind.sub_path);
    let layers = container
        .volume_layers
        .get(&bind.image)
        .filter(|layers| !layers.is_empty())
        .ok_or_else(|| format!("{}: image {} has no layers", context(), bind.image))?;
    let base = match layers.as_slice() {
        // A stack has two layers at least.
        [only] => container.layers_dir.join(only),
        all => {
            let point = dir.join("c").join(&container.id).join("volumes").join(number.to_string());
            fs::create_dir_all(&point).map_err(doing(context()))?;
            let lower: Vec<&str> = all.iter().rev().map(String::as_str).collect();
            let options = format!("lowerdir={}", lower.join(":"));
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
            mount(Some("overlay"), &point, Some("overlay"), flags, Some(options.as_str()))
                .map_err(doing(context()))?;
            point
        }
    };
    let from = Mount { host_path: base, sub_path: bind.sub_path.clone(), ..Mount::default() };
    let place = source(&from).map_err(doing(context()))?;
    let is_dir = SFlag::from_bits_truncate(fstat(&place).map_err(doing(context()))?.st_mode) & SFlag::S_IFMT
        == SFlag::S_IFDIR;
    let tree = sys::open_tree_of(place.as_fd(), sys::OPEN_TREE_CLONE).map_err(doing(context()))?;
    let set =
        sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOEXEC;
    sys::mount_setattr(tree.as_fd(), set, libc::MS_PRIVATE).map_err(doing(context()))?;
    Ok((tree, is_dir))
}

/// Returns bind mounts of the runtime's own files (`/etc/hostname`, `/etc/resolv.conf`), unless the kubelet
/// mounts others.
fn sandbox_files(dir: &Path, sandbox: &SandboxRecord, mounts: &[Mount]) -> Vec<Mount> {
    [("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")]
        .into_iter()
        .filter(|(_, target)| !mounts.iter().any(|m| m.container_path == Path::new(target)))
        .map(|(name, target)| Mount {
            host_path: dir.join(name),
            container_path: target.into(),
            ..Mount::default()
        })
        .filter(|m| m.host_path.exists() && !(sandbox.spec.host_network && m.host_path.ends_with("hostname")))
        .collect()
}

/// Describes a mount for error messages.
fn naming(bind: &Mount) -> String {
    format!("mount {:?} on {:?}", bind.host_path.join(&bind.sub_path), bind.container_path)
}

/// Opens the source of a mount. The path is resolved once; all later steps use the descriptor.
fn source(bind: &Mount) -> io::Result<OwnedFd> {
    if bind.sub_path.as_os_str().is_empty() {
        let place = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&bind.host_path);
        return place.map(Into::into);
    }
    Directory::open(&bind.host_path)?.place(&bind.sub_path)
}

/// Clones a mount's source as a detached mount. Also returns whether it is a directory.
fn clone_source(bind: &Mount, privileged: bool) -> Result<(OwnedFd, bool), String> {
    let context = || naming(bind);
    let place = source(bind).map_err(doing(context()))?;
    let is_dir = SFlag::from_bits_truncate(fstat(&place).map_err(doing(context()))?.st_mode) & SFlag::S_IFMT
        == SFlag::S_IFDIR;
    let tree = sys::open_tree_of(place.as_fd(), sys::OPEN_TREE_CLONE | sys::AT_RECURSIVE)
        .map_err(doing(context()))?;
    let propagation = match (bind.propagate_to_host, bind.propagate_to_container) {
        (true, _) => 0,
        (false, true) => libc::MS_SLAVE,
        (false, false) => libc::MS_PRIVATE,
    };
    let mut set = if privileged { 0 } else { sys::MOUNT_ATTR_NODEV };
    if bind.readonly {
        set |= sys::MOUNT_ATTR_RDONLY;
    }
    sys::mount_setattr(tree.as_fd(), set, propagation).map_err(doing(context()))?;
    Ok((tree, is_dir))
}

fn attach(root: BorrowedFd<'_>, bind: &Mount, tree: &OwnedFd, is_dir: bool) -> Result<(), String> {
    let context = || naming(bind);
    let target = if is_dir {
        inroot::make_directory(root, &bind.container_path, Mode::from_bits_truncate(0o755))
    } else {
        inroot::make_file(root, &bind.container_path)
    }
    .map_err(doing(context()))?;
    sys::move_mount(tree.as_fd(), target.as_fd()).map_err(doing(context()))
}

/// Clones the container's own group of each version 1 hierarchy as a detached mount, by the name of the
/// hierarchy's mount point (`cpu,cpuacct`): programs read their limits there. Only a privileged container can
/// write to them. In version 2 the cgroup namespace provides this.
fn clone_hierarchies(
    cgroups: &Cgroups,
    group: &str,
    privileged: bool,
) -> Result<Vec<(OsString, OwnedFd)>, String> {
    let Cgroups::V1(hierarchies) = cgroups else { return Ok(Vec::new()) };
    let mut all: Vec<(OsString, OwnedFd)> = Vec::new();
    for (_, root) in hierarchies {
        let Some(name) = root.file_name() else { continue };
        if all.iter().any(|(known, _)| known == name) {
            continue;
        }
        // As other runtimes: programs that find a unified hierarchy look for their limits there, and it has none.
        let unified = nix::sys::statfs::statfs(root)
            .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC);
        if unified {
            continue;
        }
        let own = root.join(group);
        let tree = sys::open_tree(&own, sys::OPEN_TREE_CLONE).map_err(doing(format!("open {own:?}")))?;
        let hardened = sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NOEXEC | sys::MOUNT_ATTR_NODEV;
        let set = if privileged { hardened } else { hardened | sys::MOUNT_ATTR_RDONLY };
        sys::mount_setattr(tree.as_fd(), set, libc::MS_PRIVATE).map_err(doing(format!("bind {own:?}")))?;
        all.push((name.to_owned(), tree));
    }
    Ok(all)
}

/// Attaches the hierarchies below `at`, a new file system, with a symbolic link for each controller of a
/// joint hierarchy.
fn mount_hierarchies(at: OwnedFd, hierarchies: &[(OsString, OwnedFd)]) -> Result<(), String> {
    for (name, tree) in hierarchies {
        let context = || format!("mount the hierarchy {name:?}");
        let target = inroot::make_directory(at.as_fd(), Path::new(name), Mode::from_bits_truncate(0o755))
            .map_err(doing(context()))?;
        sys::move_mount(tree.as_fd(), target.as_fd()).map_err(doing(context()))?;
        let text = name.to_string_lossy();
        for controller in text.split(',').filter(|part| *part != text) {
            symlink(name, proc_path(&at).join(controller)).map_err(doing(context()))?;
        }
    }
    // A remount replaces all flags.
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount(NONE, &proc_path(&at), NONE, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | hardened, NONE)
        .map_err(doing("make /sys/fs/cgroup read-only"))
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn devices(dev: &OwnedFd, privileged: bool) -> Result<(), String> {
    let dev_path = proc_path(dev);
    for (target, name) in LINKS {
        symlink(target, dev_path.join(name)).map_err(doing(format!("link /dev/{name}")))?;
    }
    if privileged {
        return copy_devices(Path::new("/dev"), &dev_path, 0);
    }
    for name in DEVICES {
        let host = Path::new("/dev").join(name);
        let file = dev_path.join(name);
        fs::File::create_new(&file).map_err(doing(format!("make /dev/{name}")))?;
        let tree = sys::open_tree(&host, sys::OPEN_TREE_CLONE).map_err(doing(format!("open {host:?}")))?;
        let hardened = sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NOEXEC;
        sys::mount_setattr(tree.as_fd(), hardened, libc::MS_PRIVATE)
            .map_err(doing(format!("bind {host:?}")))?;
        let target =
            inroot::open(dev.as_fd(), Path::new(name)).map_err(doing(format!("open /dev/{name}")))?;
        sys::move_mount(tree.as_fd(), target.as_fd()).map_err(doing(format!("bind {host:?}")))?;
    }
    Ok(())
}

/// Copies the host's device files for a privileged container, as of now.
fn copy_devices(from: &Path, to: &Path, depth: u32) -> Result<(), String> {
    const NOT: [&str; 6] = ["pts", "shm", "mqueue", "console", "ptmx", "fd"];
    for entry in fs::read_dir(from).map_err(doing(format!("read {from:?}")))?.flatten() {
        let (name, Ok(kind)) = (entry.file_name(), entry.file_type()) else { continue };
        let target = to.join(&name);
        if depth == 0 && NOT.iter().any(|n| name == *n) {
            continue;
        }
        if kind.is_dir() && depth < 3 {
            fs::create_dir(&target).map_err(doing(format!("make {target:?}")))?;
            copy_devices(&entry.path(), &target, depth + 1)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            let Ok(meta) = entry.metadata() else { continue };
            let format = if kind.is_block_device() { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
            mknod(&target, format, Mode::from_bits_truncate(meta.mode() & 0o777), meta.rdev())
                .map_err(doing(format!("make {:?}", entry.path())))?;
            let _ = nix::unistd::chown(&target, Some(meta.uid().into()), Some(meta.gid().into()));
        }
    }
    Ok(())
}

/// Masks paths of `/proc` and `/sys`. `null` is a detached mount of the host's `/dev/null`. The container's
/// own `/dev/null` may be a link to a writable file below `/proc`, which would be mounted instead.
fn mask(null: &OwnedFd) -> Result<(), String> {
    for path in MASKED {
        let Ok(meta) = fs::symlink_metadata(path) else { continue };
        if meta.is_dir() {
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=0k"))
                .map_err(doing(format!("mask {path}")))?;
            continue;
        }
        let cover =
            sys::open_tree_of(null.as_fd(), sys::OPEN_TREE_CLONE).map_err(doing(format!("mask {path}")))?;
        let target = place(path).map_err(doing(format!("mask {path}")))?;
        sys::move_mount(cover.as_fd(), target.as_fd()).map_err(doing(format!("mask {path}")))?;
    }
    for path in READONLY {
        if !Path::new(path).exists() {
            continue;
        }
        let tree = sys::open_tree(Path::new(path), sys::OPEN_TREE_CLONE | sys::AT_RECURSIVE)
            .map_err(doing(format!("open {path}")))?;
        sys::mount_setattr(tree.as_fd(), sys::MOUNT_ATTR_RDONLY, 0)
            .map_err(doing(format!("protect {path}")))?;
        let target = place(path).map_err(doing(format!("open {path}")))?;
        sys::move_mount(tree.as_fd(), target.as_fd()).map_err(doing(format!("protect {path}")))?;
    }
    Ok(())
}

/// Opens a mount point with `O_PATH`.
fn place(path: &str) -> io::Result<OwnedFd> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    /// Stops the swapping thread at the end of the test, also on failure.
    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Exchanges two directory entries until stopped.
    fn swap(a: &Path, b: &Path, stop: &AtomicBool) -> u64 {
        let mut swaps = 0;
        while !stop.load(Ordering::Relaxed) {
            let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
            nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, a, nix::fcntl::AT_FDCWD, b, flags).expect("exchange");
            swaps += 1;
        }
        swaps
    }

    /// A container exchanges a directory and a link to the outside, while another container mounts it as
    /// `subPath`.
    #[test]
    fn a_swapped_sub_path_never_leaves_the_volume_in_1000_mounts() {
        let (volume, host) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        let (a, b) = (volume.path().join("a"), volume.path().join("b"));
        fs::create_dir_all(a.join("deep")).expect("mkdir");
        fs::create_dir(host.path().join("deep")).expect("mkdir");
        fs::write(a.join("deep/inside"), "").expect("write");
        symlink(host.path(), &b).expect("link");
        let stop = AtomicBool::new(false);
        let (mut inside, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            let swapper = scope.spawn(|| swap(&a, &b, &stop));
            let end = Stop(&stop);
            for n in 0..1000 {
                let sub_path = if n % 2 == 0 { "a".into() } else { "a/deep".into() };
                let bind = Mount { host_path: volume.path().into(), sub_path, ..Mount::default() };
                match clone_source(&bind, false) {
                    Ok((tree, is_dir)) => {
                        let look = if n % 2 == 0 { "deep/inside" } else { "inside" };
                        assert!(is_dir, "mount {n}");
                        inroot::open(tree.as_fd(), Path::new(look)).expect("what is mounted is the volume's");
                        inside += 1;
                    }
                    Err(why) => {
                        assert!(why.contains("cross-device"), "{why}");
                        refused += 1;
                    }
                }
                std::thread::yield_now();
            }
            drop(end);
            assert!(swapper.join().expect("swapper") > 100);
        });
        assert!(inside > 0 && refused > 0, "{inside} mounted, {refused} refused");
    }

    #[test]
    fn a_link_within_the_volume_is_a_fine_sub_path() {
        let volume = tempfile::tempdir().expect("tempdir");
        fs::create_dir(volume.path().join("..2026")).expect("mkdir");
        fs::write(volume.path().join("..2026/key"), "value").expect("write");
        symlink("..2026", volume.path().join("..data")).expect("link");
        symlink("..data/key", volume.path().join("key")).expect("link");
        let bind = Mount { host_path: volume.path().into(), sub_path: "key".into(), ..Mount::default() };
        let (_, is_dir) = clone_source(&bind, false).expect("mounted");
        assert!(!is_dir);
    }
}
