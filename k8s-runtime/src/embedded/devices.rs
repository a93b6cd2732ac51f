//! Rules for the device files that a container can make and open: those that runc has by default.
//!
//! Flow: [`restrict_pod`] writes the rules to the pod's group and [`restrict`] to the fresh group of each
//! container, in cgroup version 1 through the devices controller, in version 2 as a small program
//! (`BPF_PROG_TYPE_CGROUP_DEVICE`) that the kernel asks on each open and `mknod`.
//! Guarantee: a process in a restricted container opens nothing but [`RULES`], whatever capabilities it has
//! and whatever it mounts. With SYS_ADMIN it can change the rules of its own group: it mounts the hierarchy
//! and writes to `devices.allow`, or detaches the program. Its cgroup namespace hides the groups above, and
//! those forbid what the rules do not allow: the kernel lets no version 1 group allow more than its parent,
//! and asks the programs of all version 2 groups above. Privileged containers are not restricted, and need a
//! pod's group that restricts nothing: [`PodRules::lift`]. That leaves open: beside a privileged container,
//! another container of the same pod that has SYS_ADMIN and no seccomp filter can lift its own rules. The
//! author of such a pod has the host's devices already.

use std::{fs, io, path::PathBuf};

use super::cgroup::Cgroups;
use crate::sys;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Block = 1,
    Char = 2,
}

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// Allows a kind of access to devices. `None` stands for every number.
#[derive(Clone, Copy, Debug)]
struct Rule {
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

const fn char(major: u32, minor: Option<u32>) -> Rule {
    Rule { kind: Kind::Char, major: Some(major), minor, access: ALL }
}

/// Making any device file (opening it is another matter), the pseudo devices, and terminals.
const RULES: [Rule; 10] = [
    Rule { kind: Kind::Char, major: None, minor: None, access: MKNOD },
    Rule { kind: Kind::Block, major: None, minor: None, access: MKNOD },
    char(1, Some(3)),
    char(1, Some(5)),
    char(1, Some(7)),
    char(1, Some(8)),
    char(1, Some(9)),
    char(5, Some(0)),
    char(5, Some(2)),
    char(136, None),
];

/// Restricts a group that has no processes and no children yet.
///
/// # Errors
/// Nothing is restricted: the controller is not there, or the kernel does not take the program.
pub(super) fn restrict(cgroups: &Cgroups, group: &str) -> io::Result<()> {
    let Some(directory) = cgroups.controller("devices", group) else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "no devices controller is mounted"));
    };
    if matches!(cgroups, Cgroups::V2(_)) {
        let program = sys::load_device_program(&program(&RULES))?;
        let cgroup = fs::File::open(&directory)?;
        return sys::attach_device_program(&cgroup, &program);
    }
    fs::write(directory.join("devices.deny"), "a")?;
    allow_rules(&directory)
}

/// The rules of a pod's group, held by the pod's shim.
#[derive(Debug)]
pub(super) enum PodRules {
    /// Version 1: written in this directory.
    Written(PathBuf),
    /// Version 2: a program is attached to this directory. It is no link, which a container with SYS_ADMIN
    /// could find by its number and detach; this takes the directory.
    Attached(PathBuf),
    /// The pod's group restricts nothing: a privileged container was made.
    Lifted,
    /// The pod's group restricts nothing, for this reason.
    Failed(io::Error),
}

/// Restricts the group of a pod before the first container is made in it.
pub(super) fn restrict_pod(cgroups: &Cgroups, group: &str) -> PodRules {
    try_restrict_pod(cgroups, group).unwrap_or_else(PodRules::Failed)
}

fn try_restrict_pod(cgroups: &Cgroups, group: &str) -> io::Result<PodRules> {
    let Some(directory) = cgroups.controller("devices", group) else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "no devices controller is mounted"));
    };
    if matches!(cgroups, Cgroups::V2(_)) {
        restrict(cgroups, group)?;
        return Ok(PodRules::Attached(directory));
    }
    match fs::write(directory.join("devices.deny"), "a") {
        Ok(()) => allow_rules(&directory)?,
        // The group has children: an earlier sandbox of the pod is not removed yet, and restricted it.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
            if fs::read_to_string(directory.join("devices.list"))?.starts_with('a') {
                return Err(e);
            }
        }
        Err(e) => return Err(e),
    }
    Ok(PodRules::Written(directory))
}

impl PodRules {
    /// Allows all devices in the pod's group, for a privileged container that is about to be made. The
    /// containers that are there keep their own rules.
    ///
    /// # Errors
    /// The pod's group is as restricted as before.
    pub(super) fn lift(&mut self) -> io::Result<()> {
        match self {
            // A group that has children does not take the word for everything at once.
            PodRules::Written(directory) => {
                for rule in ["b *:* rwm", "c *:* rwm"] {
                    fs::write(directory.join("devices.allow"), rule)?;
                }
            }
            PodRules::Attached(directory) => sys::detach_device_programs(&fs::File::open(directory)?)?,
            PodRules::Lifted | PodRules::Failed(_) => {}
        }
        *self = PodRules::Lifted;
        Ok(())
    }
}

fn allow_rules(directory: &std::path::Path) -> io::Result<()> {
    for rule in RULES {
        match fs::write(directory.join("devices.allow"), line(&rule)) {
            // A group above does not allow it: this machine's manager has fewer devices for all of us.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
            other => other?,
        }
    }
    Ok(())
}

/// A rule as the devices controller has it.
fn line(rule: &Rule) -> String {
    let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
    let kind = match rule.kind {
        Kind::Block => 'b',
        Kind::Char => 'c',
    };
    let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
    let access: String =
        letters.into_iter().filter(|(bit, _)| rule.access & bit != 0).map(|(_, c)| c).collect();
    format!("{kind} {}:{} {access}", number(rule.major), number(rule.minor))
}

/// One instruction as the kernel's `struct bpf_insn` lies in memory, from its low byte: code, registers,
/// offset, immediate.
const fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: u32) -> u64 {
    code as u64
        | (target as u64 & 0xf) << 8
        | (source as u64 & 0xf) << 12
        | (offset as u16 as u64) << 16
        | (immediate as u64) << 32
}

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xbc;
const SET: u8 = 0xb7;
const JUMP_NOT: u8 = 0x55;
const JUMP_NOT_SAME: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// Registers: the answer, the context, then what was asked about.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program: 1 where a rule covers all of the access that is asked for, else 0.
///
/// The context is `struct bpf_cgroup_dev_ctx`: type in the low half of the first word and access in the high
/// half, then major and minor number.
fn program(rules: &[Rule]) -> Vec<u64> {
    let mut code = vec![
        instruction(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        instruction(AND, TYPE, 0, 0, 0xffff),
        instruction(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        // (code, target, source, immediate) of jumps to the next rule, and what comes between.
        let mut tests = vec![(JUMP_NOT, TYPE, 0, rule.kind as u32)];
        if rule.access != ALL {
            // The context is not needed any more.
            tests.push((MOVE, CONTEXT, ACCESS, 0));
            tests.push((AND, CONTEXT, 0, rule.access));
            tests.push((JUMP_NOT_SAME, CONTEXT, ACCESS, 0));
        }
        tests.extend(rule.major.map(|major| (JUMP_NOT, MAJOR, 0, major)));
        tests.extend(rule.minor.map(|minor| (JUMP_NOT, MINOR, 0, minor)));
        let length = tests.len();
        for (at, (op, target, source, immediate)) in tests.into_iter().enumerate() {
            let jumps = op == JUMP_NOT || op == JUMP_NOT_SAME;
            // Over the rest of the tests and the two instructions that allow. A rule has six tests at most.
            let offset = if jumps { (length - at - 1 + 2) as i16 } else { 0 };
            code.push(instruction(op, target, source, offset, immediate));
        }
        code.extend([instruction(SET, ANSWER, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
    }
    code.extend([instruction(SET, ANSWER, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of the kernel's interpreter for the instructions that are used.
    fn run(code: &[u64], kind: Kind, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind as u32, major, minor];
        let (mut pc, mut registers) = (0, [0_u64; 16]);
        loop {
            let i = code[pc];
            pc += 1;
            let (op, target, source) = (i as u8, (i >> 8 & 0xf) as usize, (i >> 12 & 0xf) as usize);
            let (offset, immediate) = ((i >> 16) as i16, i >> 32);
            let jump = |taken: bool| if taken { usize::try_from(offset).expect("forward") } else { 0 };
            match op {
                LOAD_WORD => registers[target] = context[offset as usize / 4].into(),
                AND => registers[target] &= immediate,
                SHIFT_RIGHT => registers[target] >>= immediate,
                MOVE => registers[target] = registers[source],
                SET => registers[target] = immediate,
                JUMP_NOT => pc += jump(registers[target] != immediate),
                JUMP_NOT_SAME => pc += jump(registers[target] != registers[source]),
                EXIT => return registers[usize::from(ANSWER)] == 1,
                op => panic!("instruction {op:#x}"),
            }
        }
    }

    #[test]
    fn the_program_allows_what_the_rules_do() {
        let code = program(&RULES);
        let check = |kind, access, major, minor, want| {
            assert_eq!(run(&code, kind, access, major, minor), want, "{kind:?} {major}:{minor} {access}");
        };
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0), (136, 77)] {
            check(Kind::Char, READ | WRITE, major, minor, true);
            check(Kind::Block, READ, major, minor, false);
        }
        // Kernel memory, ports, kmsg, the console, fuse, tun, loop-control, kvm.
        for (major, minor) in
            [(1, 1), (1, 2), (1, 4), (1, 11), (5, 1), (10, 229), (10, 200), (10, 237), (10, 232), (137, 0)]
        {
            for access in [READ, WRITE, READ | MKNOD, ALL] {
                check(Kind::Char, access, major, minor, false);
            }
            check(Kind::Char, MKNOD, major, minor, true);
        }
        for (major, minor) in [(8, 0), (7, 0), (259, 1)] {
            check(Kind::Block, READ, major, minor, false);
            check(Kind::Block, MKNOD, major, minor, true);
        }
    }

    #[test]
    fn rules_as_the_devices_controller_has_them() {
        let lines: Vec<String> = RULES.iter().map(line).collect();
        assert_eq!(lines[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(lines[9], "c 136:* rwm");
    }

    /// The kernel's verifier has the last word; where the machine lets nobody load programs, there is nothing
    /// to ask.
    #[test]
    fn the_kernel_takes_the_program() {
        match sys::load_device_program(&program(&RULES)) {
            Ok(_) => {}
            Err(e)
                if e.kind() == io::ErrorKind::PermissionDenied && e.raw_os_error() == Some(libc::EPERM) => {}
            Err(e) => panic!("{e}"),
        }
    }

    /// A version 2 group of the test's own, where the machine has a unified hierarchy and lets us make
    /// groups.
    struct Group {
        cgroups: Cgroups,
        name: String,
        directory: PathBuf,
    }

    impl Group {
        fn new(test: &str) -> Option<Group> {
            let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
            let unified = mounts.lines().find(|l| l.contains(" - cgroup2 "))?;
            let root = PathBuf::from(unified.split(' ').nth(4)?);
            let name = format!("k8s-runtime-devices-{test}-{}", std::process::id());
            let directory = root.join(&name);
            fs::create_dir(&directory).ok()?;
            Some(Group { cgroups: Cgroups::V2(root), name, directory })
        }

        /// Tries to open `/dev/zero` and a device file of its own making in a child group; true where it
        /// could.
        fn opens(&self) -> (bool, bool) {
            let child = self.directory.join("container");
            fs::create_dir(&child).expect("mkdir");
            let files = tempfile::tempdir().expect("tempdir");
            let script = "echo $$ >$0/cgroup.procs && mknod $1/d c 1 11 || exit 9
                n=0; (: </dev/zero) && n=1; (: <$1/d) && n=$((n + 2)); exit $n";
            let status = std::process::Command::new("sh")
                .args(["-c", script])
                .args([&child, files.path()])
                .stderr(std::process::Stdio::null())
                .status()
                .expect("sh");
            remove_empty(&child);
            let code = status.code().expect("a code");
            assert!(code < 4, "{code}");
            (code & 1 != 0, code & 2 != 0)
        }
    }

    fn remove_empty(group: &std::path::Path) {
        let removed = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            fs::remove_dir(group).is_ok()
        });
        assert!(removed, "{group:?}");
    }

    impl Drop for Group {
        fn drop(&mut self) {
            remove_empty(&self.directory);
        }
    }

    fn not_permitted(error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::EPERM)
    }

    #[test]
    fn a_version_2_group_is_restricted() {
        let Some(group) = Group::new("group") else { return };
        match restrict(&group.cgroups, &group.name) {
            Ok(()) => assert_eq!(group.opens(), (true, false)),
            Err(e) => assert!(not_permitted(&e), "{e}"),
        }
    }

    /// After lifting, as much can be opened as before: nothing more where root itself may not.
    #[test]
    fn a_version_2_pod_is_restricted_until_it_is_lifted() {
        let Some(group) = Group::new("pod") else { return };
        let before = group.opens();
        // As an earlier sandbox of the pod did.
        restrict_pod(&group.cgroups, &group.name);
        let mut rules = restrict_pod(&group.cgroups, &group.name);
        if let PodRules::Failed(e) = &rules {
            return assert!(not_permitted(e), "{e}");
        }
        assert_eq!(group.opens(), (true, false));
        rules.lift().expect("lifted");
        assert_eq!(group.opens(), before);
    }
}
