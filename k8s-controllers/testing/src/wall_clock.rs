//! Virtual time in `SystemTime`, and so in chrono, jiff and every other crate over the C library's clock.
//!
//! This file defines `clock_gettime`, which the program's linker takes instead of the C library's. On threads
//! of a lab's run it answers the wall clock from the lab; all else goes to the C library. Monotonic clocks
//! are never changed: tokio has its own virtual time.

#![expect(unsafe_code, reason = "a function of the C library is replaced, and called")]

use std::{
    cell::RefCell,
    ffi::{CStr, c_int, c_void},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

use k8s_core::clock::Clock;
use libc::{clockid_t, timespec};

/// The clock of a runtime's threads: set when the run begins.
type Shared = Arc<OnceLock<Clock>>;

thread_local! {
    static LAB: RefCell<Option<Shared>> = const { RefCell::new(None) };
}

/// Gives this thread the real time again when it is dropped.
pub(crate) struct Shares(());

impl Drop for Shares {
    fn drop(&mut self) {
        LAB.take();
    }
}

/// Gives the threads of a runtime a clock in common with this thread.
pub(crate) fn share(builder: &mut tokio::runtime::Builder) -> Shares {
    let shared = Shared::default();
    LAB.replace(Some(shared.clone()));
    builder.on_thread_start(move || drop(LAB.replace(Some(shared.clone()))));
    Shares(())
}

/// Sets the clock of this thread's runtime.
pub(crate) fn follow(clock: &Clock) {
    LAB.with_borrow(|lab| {
        if let Some(shared) = lab {
            // A runtime has one run, and so one clock.
            let _ = shared.set(clock.clone());
        }
    });
}

/// Returns the lab's time, on threads of a run.
fn virtual_now() -> Option<timespec> {
    // No clock while a thread ends, and none while one is set.
    let shared = LAB.try_with(|lab| lab.try_borrow().ok()?.clone()).ok()??;
    let now = shared.get()?.now();
    let mut seconds = now.as_second();
    let mut nanoseconds = now.subsec_nanosecond();
    if nanoseconds < 0 {
        // A timespec counts forwards from its second, before 1970 too.
        seconds -= 1;
        nanoseconds += 1_000_000_000;
    }
    Some(timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() })
}

type GetTime = unsafe extern "C" fn(clockid_t, *mut timespec) -> c_int;

/// Calls the C library's function.
fn real(clock: clockid_t, into: *mut timespec) -> c_int {
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    const NAME: &CStr = c"clock_gettime";
    let mut function = REAL.load(Ordering::Relaxed);
    if function.is_null() {
        // SAFETY: the name is a C string, and the handle asks for the next definition after this program's.
        function = unsafe { libc::dlsym(libc::RTLD_NEXT, NAME.as_ptr()) };
        REAL.store(function, Ordering::Relaxed);
    }
    if function.is_null() {
        // A statically linked program has no other definition.
        // SAFETY: the arguments are those of the system call; the kernel checks the pointer.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, into) } as c_int;
    }
    // SAFETY: the C library's function of this name has this type.
    let function: GetTime = unsafe { std::mem::transmute(function) };
    // SAFETY: the caller of `clock_gettime` promises a valid pointer.
    unsafe { function(clock, into) }
}

/// POSIX `clock_gettime`: see the module's page.
///
/// # Safety
/// As of the C library's function: `into` is valid for a write.
// SAFETY: the name is that of a function of the C library, and so is what it does.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, into: *mut timespec) -> c_int {
    if matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE)
        && let Some(now) = virtual_now()
    {
        // SAFETY: the caller promises a valid pointer.
        unsafe { into.write(now) };
        return 0;
    }
    real(clock, into)
}
