//! The default seccomp filter: dangerous system calls that containers do not need return `EPERM`.
//!
//! It is a deny list, similar to the default profile of other runtimes. System calls that `CAP_SYS_ADMIN`
//! gates are denied only without that capability. New namespaces are denied in `clone`. A filter cannot see
//! the flags of `clone3`, so it returns `ENOSYS`, and C libraries fall back to `clone`. System calls of
//! another architecture (32-bit, x32) are denied.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, SYS_clone, SYS_clone3, c_long, sock_filter,
};

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// System calls denied to every container.
const DENIED: &[c_long] = &[
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// System calls denied to containers without `CAP_SYS_ADMIN`.
const ADMIN: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_lookup_dcookie,
    libc::SYS_open_by_handle_at,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_syslog,
];

const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

const ALLOW: sock_filter = ret(SECCOMP_RET_ALLOW);

const fn ret(value: u32) -> sock_filter {
    sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: value }
}

const fn load(offset: u32) -> sock_filter {
    sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

const fn jump(condition: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | condition | BPF_K) as u16, jt, jf, k }
}

/// Compiles the filter. `admin`: the container has `CAP_SYS_ADMIN`.
pub(crate) fn filter(admin: bool) -> Vec<sock_filter> {
    const ERRNO: u32 = SECCOMP_RET_ERRNO;
    let eperm = ret(ERRNO | libc::EPERM as u32);
    // Offsets in `struct seccomp_data`: nr 0, arch 4, low half of the first argument 16.
    let mut program = vec![load(4), jump(BPF_JEQ, ARCH, 1, 0), eperm, load(0)];
    if cfg!(target_arch = "x86_64") {
        program.extend([jump(BPF_JGE, 0x4000_0000, 0, 1), eperm]);
    }
    let denied = DENIED.iter().chain(if admin { &[][..] } else { ADMIN });
    for number in denied {
        program.extend([jump(BPF_JEQ, *number as u32, 0, 1), eperm]);
    }
    if !admin {
        program.extend([jump(BPF_JEQ, SYS_clone3 as u32, 0, 1), ret(ERRNO | libc::ENOSYS as u32)]);
        program.extend([
            jump(BPF_JEQ, SYS_clone as u32, 1, 0),
            ALLOW,
            load(16),
            jump(BPF_JSET, NEW_NAMESPACES, 0, 1),
            eperm,
        ]);
    }
    program.push(ALLOW);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of the kernel's interpreter for these instructions.
    fn run(program: &[sock_filter], nr: u32, arch: u32, arg: u32) -> u32 {
        let (mut pc, mut a) = (0, 0);
        loop {
            let i = program[pc];
            pc += 1;
            let jump = |taken: bool| usize::from(if taken { i.jt } else { i.jf });
            match u32::from(i.code) {
                c if c == BPF_RET | BPF_K => return i.k,
                c if c == BPF_LD | BPF_W | BPF_ABS => {
                    a = [nr, arch][..].get((i.k / 4) as usize).copied().unwrap_or(arg)
                }
                c if c == BPF_JMP | BPF_JEQ | BPF_K => pc += jump(a == i.k),
                c if c == BPF_JMP | BPF_JGE | BPF_K => pc += jump(a >= i.k),
                c if c == BPF_JMP | BPF_JSET | BPF_K => pc += jump(a & i.k != 0),
                c => panic!("instruction {c}"),
            }
        }
    }

    #[test]
    fn denies_and_allows() {
        const EPERM: u32 = SECCOMP_RET_ERRNO | libc::EPERM as u32;
        let plain = filter(false);
        let admin = filter(true);
        let call = |p: &[sock_filter], nr: c_long, arg: i32| run(p, nr as u32, ARCH, arg as u32);
        assert_eq!(call(&plain, libc::SYS_read, 0), SECCOMP_RET_ALLOW);
        assert_eq!(call(&plain, libc::SYS_mount, 0), EPERM);
        assert_eq!(call(&admin, libc::SYS_mount, 0), SECCOMP_RET_ALLOW);
        assert_eq!(call(&admin, libc::SYS_reboot, 0), EPERM);
        assert_eq!(call(&plain, SYS_clone, libc::CLONE_NEWUSER), EPERM);
        assert_eq!(call(&plain, SYS_clone, libc::CLONE_VM | libc::CLONE_THREAD), SECCOMP_RET_ALLOW);
        assert_eq!(call(&plain, SYS_clone3, 0), SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        assert_eq!(run(&plain, libc::SYS_read as u32, 0x4000_0003, 0), EPERM);
        assert_eq!(call(&plain, libc::SYS_execve, 0), SECCOMP_RET_ALLOW);
    }
}
