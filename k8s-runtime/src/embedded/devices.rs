//! Device access rules of containers: the same as runc's defaults.
//!
//! Flow: [`restrict_pod`] sets the rules on the pod's group and [`restrict`] on each container's new group.
//! In cgroup version 1 this uses the devices controller, in version 2 a program
//! (`BPF_PROG_TYPE_CGROUP_DEVICE`) that the kernel runs on each open and `mknod`.
//! Guarantee: a process in a restricted container can open only the devices in [`RULES`], whatever its
//! capabilities and mounts. With SYS_ADMIN it can change its own group's rules: it can mount the hierarchy
//! and write to `devices.allow`, or detach the program. The rules of the pod's group still apply: a version 1
//! group cannot allow more than its parent, and version 2 runs the programs of all ancestors. The cgroup
//! namespace hides the ancestors.
//! Privileged containers are not restricted, and their pod's group must not be either ([`PodRules::lift`]).
//! Known gap: in a pod with a privileged container, another container with SYS_ADMIN and without a seccomp
//! filter can lift its own rules. The author of such a pod can access the host's devices anyway.

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

/// Allows access to a device. `None`: any number.
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

/// `mknod` of any device, and access to the pseudo devices and terminals.
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

/// Restricts a new group without processes and children.
///
/// # Errors
/// The group is not restricted: the controller is missing, or the kernel rejects the program.
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

/// State of the rules of a pod's group; owned by the pod's shim.
#[derive(Debug)]
pub(super) enum PodRules {
    /// Version 1: rules are set in this directory.
    Written(PathBuf),
    /// Version 2: a program is attached to this directory. It is attached without a BPF link, since a
    /// container with SYS_ADMIN could find a link by its id and detach it; detaching a program needs the
    /// directory.
    Attached(PathBuf),
    /// Unrestricted, since the pod has a privileged container.
    Lifted,
    /// Unrestricted because of this error.
    Failed(io::Error),
}

/// Restricts the group of a pod, before its first container is created.
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
        // The group has children: the previous sandbox of the pod still exists, and its shim has restricted
        // the group.
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
    /// Allows all devices in the pod's group, before a privileged container is created. Existing containers
    /// keep their own rules.
    ///
    /// # Errors
    /// The restrictions of the pod's group are unchanged.
    pub(super) fn lift(&mut self) -> io::Result<()> {
        match self {
            // `devices.allow` does not accept `a` (all) in a group with children.
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
            // An ancestor does not allow it: the machine's manager restricts devices for this whole process.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
            other => other?,
        }
    }
    Ok(())
}

/// Formats a rule for the devices controller.
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

/// Encodes an instruction as the kernel's `struct bpf_insn`: opcode, registers, offset, immediate, from the
/// low byte up.
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

/// Registers: result, context, then the fields of the access.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Compiles the rules. The program returns 1 if a rule covers the whole access, else 0.
///
/// The context is `struct bpf_cgroup_dev_ctx`: the first word has the type in its low half and the access in
/// its high half; then major and minor number follow.
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
        // Tests as (opcode, target, source, immediate); a failed one jumps to the next rule.
        let mut tests = vec![(JUMP_NOT, TYPE, 0, rule.kind as u32)];
        if rule.access != ALL {
            // The context register is free from here on.
            tests.push((MOVE, CONTEXT, ACCESS, 0));
            tests.push((AND, CONTEXT, 0, rule.access));
            tests.push((JUMP_NOT_SAME, CONTEXT, ACCESS, 0));
        }
        tests.extend(rule.major.map(|major| (JUMP_NOT, MAJOR, 0, major)));
        tests.extend(rule.minor.map(|minor| (JUMP_NOT, MINOR, 0, minor)));
        let length = tests.len();
        for (at, (op, target, source, immediate)) in tests.into_iter().enumerate() {
            let jumps = op == JUMP_NOT || op == JUMP_NOT_SAME;
            // Jump over the remaining tests and the two instructions that allow. A rule has at most six
            // tests.
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

    /// A model of the kernel's interpreter for these instructions.
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
        // Kernel memory, I/O ports, kmsg, console, fuse, tun, loop-control, kvm.
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

    /// Loads the program, so that the kernel's verifier checks it. Skipped if the machine does not permit
    /// loading programs.
    #[test]
    fn the_kernel_takes_the_program() {
        match sys::load_device_program(&program(&RULES)) {
            Ok(_) => {}
            Err(e)
                if e.kind() == io::ErrorKind::PermissionDenied && e.raw_os_error() == Some(libc::EPERM) => {}
            Err(e) => panic!("{e}"),
        }
    }

    /// A version 2 group for a test. Skipped if the machine has no unified hierarchy or does not permit
    /// creating groups.
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

        /// Tries to open `/dev/zero` and a new device file from a child group. Returns `true` for each
        /// success.
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

    /// After lifting, the same devices can be opened as before the restriction.
    #[test]
    fn a_version_2_pod_is_restricted_until_it_is_lifted() {
        let Some(group) = Group::new("pod") else { return };
        let before = group.opens();
        // As the pod's previous sandbox did.
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
