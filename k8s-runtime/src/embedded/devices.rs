//! Rules for the device files that a container can make and open: those that runc has by default.
//!
//! Flow: [`restrict`] writes the rules to a fresh group, in cgroup version 1 through the devices controller,
//! in version 2 as a small program (`BPF_PROG_TYPE_CGROUP_DEVICE`) that the kernel asks on each open and
//! `mknod`.
//! Guarantee: after it has succeeded, a process in the group opens nothing but [`RULES`], whatever
//! capabilities it has and whatever it mounts. Privileged containers are not restricted.

use std::{fs, io};

use super::{cgroup::Cgroups, sys};

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

    /// Version 2 for real, where the machine has a unified hierarchy and lets us attach programs.
    #[test]
    fn a_version_2_group_is_restricted() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let unified = mounts.lines().find(|l| l.contains(" - cgroup2 ")).and_then(|l| l.split(' ').nth(4));
        let Some(root) = unified.map(std::path::PathBuf::from) else { return };
        let group = format!("k8s-runtime-devices-test-{}", std::process::id());
        let directory = root.join(&group);
        if fs::create_dir(&directory).is_err() {
            return;
        }
        let restricted = restrict(&Cgroups::V2(root), &group);
        let script = "echo $$ >$0/cgroup.procs && (: </dev/zero) && mknod $1/d c 1 11 && ! (: <$1/d)";
        let files = tempfile::tempdir().expect("tempdir");
        let status = std::process::Command::new("sh")
            .args(["-c", script])
            .arg(&directory)
            .arg(files.path())
            .stderr(std::process::Stdio::null())
            .status();
        let removed = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            fs::remove_dir(&directory).is_ok()
        });
        match restricted {
            Ok(()) => assert!(status.expect("sh").success()),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EPERM), "{e}"),
        }
        assert!(removed);
    }
}
