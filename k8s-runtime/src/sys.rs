//! System calls without a safe function in nix, as thin wrappers.
//!
//! Guarantee: the wrappers return `io::Error` and keep no state. Signal handlers and descriptors from
//! messages are `unsafe` where they are used.
//! Not here: policy.
#![allow(unsafe_code)]

use std::{
    ffi::{CString, OsStr},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::unistd::Pid;

/// Clone the mounts as a detached tree.
pub(crate) const OPEN_TREE_CLONE: u32 = 1;
/// Include all mounts below.
pub(crate) const AT_RECURSIVE: u32 = 0x8000;
const AT_EMPTY_PATH: u32 = 0x1000;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
/// `mount_setattr`: read-only mount.
pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// `mount_setattr`: ignore set-user-ID bits.
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// `mount_setattr`: no access to device files.
pub(crate) const MOUNT_ATTR_NODEV: u64 = 0x4;
/// `mount_setattr`: no execution of programs.
pub(crate) const MOUNT_ATTR_NOEXEC: u64 = 0x8;
/// `openat2`: resolve inside the directory; it is `/` for absolute links and for `..`.
pub(crate) const RESOLVE_IN_ROOT: u64 = 0x10;
/// `openat2`: do not cross a mount point.
pub(crate) const RESOLVE_NO_XDEV: u64 = 0x01;
/// `openat2`: do not follow `/proc` magic links.
pub(crate) const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// `openat2`: do not follow symbolic links at all.
pub(crate) const RESOLVE_NO_SYMLINKS: u64 = 0x04;
/// `openat2`: refuse whatever leads out of the directory.
pub(crate) const RESOLVE_BENEATH: u64 = 0x08;

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A path as the kernel wants it.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "path contains a NUL byte"))
}

/// Forks with `clone3`; `None` in the child. `flags` are `CLONE_NEW*`; `cgroup` is a cgroup v2 directory to
/// be born in.
///
/// Only for single-threaded processes (the zygote and its shims): the child goes on with all of its memory
/// usable.
pub(crate) fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Pid>> {
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    let mut args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of the address space and of this
    // (only) thread's stack. `args` is a valid clone_args of the size given.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, std::mem::size_of::<CloneArgs>()) })?;
    Ok((pid != 0).then(|| Pid::from_raw(pid as i32)))
}

/// `openat2` below `root`.
pub(crate) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: i32,
    resolve: u64,
) -> io::Result<OwnedFd> {
    openat2(root, path, flags, 0, resolve)
}

/// `openat2`. `mode` counts with `O_CREAT` only, and must be 0 without.
pub(crate) fn openat2(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: i32,
    mode: u32,
    resolve: u64,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct OpenHow {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let path = c_path(path)?;
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: mode.into(), resolve };
    // SAFETY: path and how live across the call; the size given is how's.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            std::mem::size_of::<OpenHow>(),
        )
    })?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A detached copy of the mount at `path` (with everything below for `AT_RECURSIVE`).
pub(crate) fn open_tree(path: &Path, flags: u32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: path lives across the call.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags | OPEN_TREE_CLOEXEC)
    })?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// As [`open_tree`], of what a descriptor refers to.
pub(crate) fn open_tree_of(place: BorrowedFd<'_>, flags: u32) -> io::Result<OwnedFd> {
    let flags = flags | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH;
    // SAFETY: the path is a static empty string.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, place.as_raw_fd(), c"".as_ptr(), flags) })?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches a detached mount on the file or directory behind `target` (an `O_PATH` descriptor).
pub(crate) fn move_mount(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both paths are static empty strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Changes attributes and propagation (`MS_PRIVATE`, `MS_SLAVE`, ... or 0 to leave it) of a mount tree.
pub(crate) fn mount_setattr(tree: BorrowedFd<'_>, set: u64, propagation: u64) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = MountAttr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    // SAFETY: attr lives across the call and the size given is its own.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            AT_EMPTY_PATH | AT_RECURSIVE,
            &raw const attr,
            std::mem::size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// The kind of attachment of device programs.
const BPF_CGROUP_DEVICE: u32 = 6;

/// Calls `bpf` with a command's own part of the attributes.
///
/// # Safety
/// `attributes` is what `command` takes, and what it points to lives across the call.
unsafe fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<libc::c_long> {
    let size = std::mem::size_of::<T>();
    // SAFETY: by the function's contract; the size given is the attributes' own.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) })
}

/// Has the kernel check a program for `BPF_PROG_TYPE_CGROUP_DEVICE`.
pub(crate) fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: u32 = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u64; 2],
        kernel_version: u32,
        flags: u32,
    }
    let count = u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        log: [0; 2],
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the instructions and the license live across the call, with the count given.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut load) }?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches a device program to a version 2 cgroup, beside those that are there. It stays for as long as the
/// cgroup does.
pub(crate) fn attach_device_program(cgroup: &std::fs::File, program: &OwnedFd) -> io::Result<()> {
    const BPF_PROG_ATTACH: u32 = 8;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    #[repr(C)]
    struct Attach {
        target: RawFd,
        program: RawFd,
        kind: u32,
        flags: u32,
    }
    let (target, program) = (cgroup.as_raw_fd(), program.as_raw_fd());
    let mut attach = Attach { target, program, kind: BPF_CGROUP_DEVICE, flags: BPF_F_ALLOW_MULTI };
    // SAFETY: takes numbers only.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attach) }.map(drop)
}

/// Detaches all device programs from a version 2 cgroup. Those of the groups above stay.
pub(crate) fn detach_device_programs(cgroup: &std::fs::File) -> io::Result<()> {
    const BPF_PROG_DETACH: u32 = 9;
    const BPF_PROG_GET_FD_BY_ID: u32 = 13;
    const BPF_PROG_QUERY: u32 = 16;
    #[repr(C)]
    struct Query {
        target: RawFd,
        kind: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        padding: u32,
    }
    #[repr(C)]
    struct Detach {
        target: RawFd,
        program: RawFd,
        kind: u32,
        flags: u32,
    }
    // The kernel attaches no more than 64 programs to a group.
    let mut ids = [0_u32; 64];
    let mut query = Query {
        target: cgroup.as_raw_fd(),
        kind: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: 64,
        padding: 0,
    };
    // SAFETY: the array lives across the call, with the count given.
    unsafe { bpf(BPF_PROG_QUERY, &mut query) }?;
    for id in ids.iter().take(query.count as usize) {
        // SAFETY: takes numbers only: the id, and zero for the rest.
        let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut [*id, 0, 0]) }?;
        // SAFETY: a fresh descriptor that nobody else owns.
        let program = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        let (target, fd) = (cgroup.as_raw_fd(), program.as_raw_fd());
        let mut detach = Detach { target, program: fd, kind: BPF_CGROUP_DEVICE, flags: 0 };
        // SAFETY: takes numbers only.
        unsafe { bpf(BPF_PROG_DETACH, &mut detach) }?;
    }
    Ok(())
}

/// Marks every descriptor from `first` on close-on-exec.
pub(crate) fn cloexec_from(first: RawFd) {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: changes a flag only; closes nothing now.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
}

/// Closes every descriptor from `first` on.
///
/// Only where no Rust value owns one of them any more (a fresh zygote, the pause process).
pub(crate) fn close_from(first: RawFd) {
    // SAFETY: by the function's contract nobody uses these descriptors again.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Closes a descriptor whose owner is never dropped (in a forked child that will leave by [`exit_now`]).
pub(crate) fn close_raw(fd: &OwnedFd) {
    // SAFETY: by the function's contract the owner does not use or close it again.
    unsafe { libc::close(fd.as_raw_fd()) };
}

/// Takes over standard input as an owned descriptor, leaving `/dev/null` in its place.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    // SAFETY: duplicating descriptor 0 touches no memory; the result is fresh and owned by us alone.
    unsafe {
        let fd = check(libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Makes `target` (0, 1 or 2) a copy of `fd`, inherited over exec.
pub(crate) fn dup_onto(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == target {
        // SAFETY: changes a flag of an open descriptor.
        return check(unsafe { libc::fcntl(target, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: 0, 1 and 2 are never owned by Rust values in this program.
    check(unsafe { libc::dup2(fd.as_raw_fd(), target) }.into()).map(drop)
}

/// Leaves the process at once, running no destructors or exit handlers (for forked children).
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// `prctl` with plain numbers.
pub(crate) fn prctl(option: i32, a: u64, b: u64) -> io::Result<i32> {
    // SAFETY: only options that take numbers are passed in this crate.
    check(unsafe { libc::prctl(option, a, b, 0u64, 0u64) }.into()).map(|v| v as i32)
}

/// Sets this process's permitted, effective and inheritable capabilities, as bit masks.
pub(crate) fn capset(permitted: u64, effective: u64, inheritable: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let data = [half(0), half(32)];
    // SAFETY: header and the two data words of version 3 live across the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// Installs a seccomp filter for this process and its children.
pub(crate) fn seccomp(filter: &[libc::sock_filter]) -> io::Result<()> {
    const SECCOMP_SET_MODE_FILTER: u32 = 1;
    let len = u16::try_from(filter.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "seccomp filter too long"))?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program during the call and does not write to it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0u32, &raw const program) })
        .map(drop)
}

/// Gives this process a session keyring of its own; kernels without keyrings are fine.
pub(crate) fn own_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: u32 = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// Makes the terminal behind `fd` this session's controlling terminal.
pub(crate) fn set_controlling_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY as _, 0) }.into()).map(drop)
}

/// Sets a terminal's size.
pub(crate) fn set_terminal_size(fd: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: size lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) }.into()).map(drop)
}

/// Unlocks the terminal pair of master `fd` and opens its other side.
pub(crate) fn open_terminal_peer(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const TIOCGPTPEER: libc::c_ulong = 0x5441;
    let unlock: libc::c_int = 0;
    // SAFETY: unlock lives across the first call; the second takes open flags and returns a fresh descriptor.
    unsafe {
        check(libc::ioctl(fd.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlock).into())?;
        let peer = check(
            libc::ioctl(fd.as_raw_fd(), TIOCGPTPEER as _, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC)
                .into(),
        )?;
        Ok(OwnedFd::from_raw_fd(peer as RawFd))
    }
}

/// Sets the loopback interface of the current network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero ifreq is valid; it lives across both calls, and flags is the union's active member.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request).into())?;
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request).into())?;
    }
    Ok(())
}

/// Sets an extended attribute on an open file.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
    let name = c_path(Path::new(name))?;
    // SAFETY: name and value live across the call, with value's own length.
    check(
        unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }
            .into(),
    )
    .map(drop)
}

/// Replaces the process image; returns only on failure.
pub(crate) fn exec(program: &CString, args: &[CString], env: &[CString]) -> io::Error {
    match nix::unistd::execve(program, args, env) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// Connects without waiting to `port` on the loopback address; the connection may still be in progress.
pub(crate) fn connect_loopback(port: u16, v6: bool) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, socket};
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    let result = if v6 {
        let address = std::net::SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, port, 0, 0);
        connect(fd.as_raw_fd(), &SockaddrIn6::from(address))
    } else {
        let address = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port);
        connect(fd.as_raw_fd(), &SockaddrIn::from(address))
    };
    match result {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(fd),
        Err(errno) => Err(errno.into()),
    }
}
