//! Credentials of a container's process: user, groups, capabilities.
//!
//! Names are looked up in the image's `/etc/passwd` and `/etc/group`, after the process has entered the root.
//! As in other runtimes, the capability set is bounding, permitted and effective, while inheritable and
//! ambient are empty. A process that is not root has therefore no capabilities except those of its program
//! file.

use std::{fs, io::Read, os::unix::fs::OpenOptionsExt};

use crate::{
    api::{ContainerSpec, User},
    sys,
};

/// A user and groups as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Resolves the user from the specification, the image's user and the image's databases.
pub(crate) fn resolve(user: &User, image_user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let image_user = image_user.trim();
    let (name, image_group) = match image_user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (image_user, None),
    };
    let entries = || passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 6);
    let numeric_name = user.uid.map(|uid| uid.to_string());
    let wanted = numeric_name.as_deref().unwrap_or(if name.is_empty() { "0" } else { name });
    // A number is an id, even if a user of that name exists.
    let number: Option<u32> = wanted.parse().ok();
    let entry = entries().find(|f| match number {
        Some(uid) => f[2] == uid.to_string(),
        None => f[0] == wanted,
    });
    let field = |f: &[&str], index: usize| f[index].parse::<u32>().ok();
    let uid = match (number, &entry) {
        (Some(uid), _) => uid,
        (None, Some(f)) => {
            field(f, 2).ok_or_else(|| format!("user {wanted:?} has no numeric id in /etc/passwd"))?
        }
        (None, None) => {
            return Err(format!("unable to find user {wanted}: no matching entries in passwd file"));
        }
    };
    let group_entries = || group.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 4);
    let gid = match (user.gid, image_group.filter(|g| !g.is_empty() && user.uid.is_none())) {
        (Some(gid), _) => gid,
        (None, Some(text)) => match text.parse() {
            Ok(gid) => gid,
            Err(_) => group_entries()
                .find(|f| f[0] == text)
                .and_then(|f| field(&f, 2))
                .ok_or_else(|| format!("unable to find group {text}: no matching entries in group file"))?,
        },
        (None, None) => entry.as_ref().and_then(|f| field(f, 3)).unwrap_or(0),
    };
    let mut groups = user.supplementary_gids.clone();
    if let Some(f) = &entry {
        let login = f[0];
        groups.extend(
            group_entries().filter(|g| g[3].split(',').any(|m| m == login)).filter_map(|g| field(&g, 2)),
        );
    }
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    let home = entry.map(|f| f[5].to_owned()).filter(|h| !h.is_empty()).unwrap_or_else(|| "/".to_owned());
    Ok(Identity { uid, gid, groups, home })
}

/// Resolves the user of a container. The container's root must be entered.
pub(crate) fn of(spec: &ContainerSpec, image_user: &str) -> Result<Identity, String> {
    resolve(&spec.user, image_user, &read_small("/etc/passwd"), &read_small("/etc/group"))
}

/// Reads a regular file of limited size. Anything else counts as empty; an image may have a FIFO there.
fn read_small(path: &str) -> String {
    let open = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let Ok(file) = open else { return String::new() };
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    let _ = file.take(4 << 20).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Capability names by number.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Bit mask of `CAP_SYS_ADMIN`.
pub(crate) const SYS_ADMIN: u64 = 1 << 21;

fn bit(name: &str) -> Result<u64, String> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    CAPABILITIES
        .iter()
        .position(|known| *known == short)
        .map(|index| 1 << index)
        .ok_or_else(|| format!("unknown capability {name:?}"))
}

const ALL: u64 = (1 << CAPABILITIES.len()) - 1;

/// Returns the capabilities of a specification as a bit mask.
pub(crate) fn capabilities(spec: &ContainerSpec) -> Result<u64, String> {
    if spec.privileged {
        return Ok(ALL);
    }
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let bits = |names: &[String]| {
        names.iter().filter(|n| !is_all(n)).try_fold(0, |all, n| Ok::<_, String>(all | bit(n)?))
    };
    let mut set = DEFAULT.iter().try_fold(0, |all, n| Ok::<_, String>(all | bit(n)?))?;
    if spec.drop_capabilities.iter().any(is_all) {
        set = 0;
    }
    if spec.add_capabilities.iter().any(is_all) {
        set = ALL;
    }
    Ok((set & !bits(&spec.drop_capabilities)?) | bits(&spec.add_capabilities)?)
}

/// Returns the bounding set of this process: the machine's manager may have dropped capabilities.
pub(crate) fn available() -> u64 {
    (0..CAPABILITIES.len() as u64)
        .filter(|capability| sys::prctl(libc::PR_CAPBSET_READ, *capability, 0).is_ok_and(|set| set == 1))
        .fold(0, |all, capability| all | 1 << capability)
}

/// Drops every capability outside of `keep` from the bounding set, irrevocably.
pub(crate) fn bound(keep: u64) -> std::io::Result<()> {
    for capability in 0..64 {
        // The kernel may know more capabilities than this list (drop them) or fewer (it returns an error).
        if keep & (1 << capability) == 0 && sys::prctl(libc::PR_CAPBSET_DROP, capability, 0).is_err() {
            break;
        }
    }
    // Ambient capabilities would survive the change of the user.
    let _ = sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/false\nodd:x:12\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:50:other,web\n";

    fn check(user: User, image: &str, want: Result<(u32, u32, &[u32], &str), &str>) {
        let got = resolve(&user, image, PASSWD, GROUP);
        let got =
            got.as_ref().map(|i| (i.uid, i.gid, &i.groups[..], i.home.as_str())).map_err(String::as_str);
        assert_eq!(got, want, "user {user:?} image {image:?}");
    }

    #[test]
    fn users() {
        let uid = |uid| User { uid: Some(uid), ..User::default() };
        check(User::default(), "", Ok((0, 0, &[0], "/root")));
        check(User::default(), "web", Ok((33, 34, &[34, 50], "/srv")));
        check(User::default(), "33", Ok((33, 34, &[34, 50], "/srv")));
        check(User::default(), "web:logs", Ok((33, 50, &[50], "/srv")));
        check(User::default(), "1000:7", Ok((1000, 7, &[7], "/")));
        check(uid(1000), "web:logs", Ok((1000, 0, &[0], "/")));
        check(uid(33), "root", Ok((33, 34, &[34, 50], "/srv")));
        let user = User { uid: Some(5), gid: Some(6), supplementary_gids: vec![9, 7] };
        check(user, "web", Ok((5, 6, &[6, 7, 9], "/")));
        check(
            User::default(),
            "nobody",
            Err("unable to find user nobody: no matching entries in passwd file"),
        );
    }

    #[test]
    fn capability_sets() {
        let with = |add: &[&str], drop: &[&str]| {
            capabilities(&ContainerSpec {
                add_capabilities: add.iter().map(|s| (*s).to_owned()).collect(),
                drop_capabilities: drop.iter().map(|s| (*s).to_owned()).collect(),
                ..ContainerSpec::default()
            })
        };
        assert_eq!(with(&[], &[]).expect("default"), 0xa80425fb);
        assert_eq!(with(&["NET_BIND_SERVICE"], &["ALL"]).expect("one"), 1 << 10);
        assert_eq!(with(&["ALL"], &["CAP_SYS_ADMIN"]).expect("all but"), ALL & !SYS_ADMIN);
        assert_eq!(with(&["sys_time"], &["all"]).expect("lower case"), 1 << 25);
        assert!(with(&["FLY"], &[]).is_err());
    }
}
