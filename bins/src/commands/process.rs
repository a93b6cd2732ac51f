//! Changes of this process that only a program may make: its limits, its signals, its idle work.

use std::{future::Future, time::Duration};

use super::{exit::Failure, text_pages};
use crate::program::{Program, idle, when_idle};

/// Time after which start-up code pages are released.
const STARTED: Duration = Duration::from_secs(3);

/// Turns core dumps off: one of this process would have Secrets and keys in it. The hard limit stays, so that
/// containers may have them.
fn no_core_dumps() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let limited =
        getrlimit(Resource::RLIMIT_CORE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_CORE, 0, hard));
    if let Err(e) = limited {
        eprintln!("warning: core dumps are not turned off: {e}");
    }
}

/// Runs a future on a new runtime, after raising the open files limit and turning core dumps off.
pub(super) fn block_on(
    program: Program,
    future: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    k8s_runtime::descriptors::raise();
    no_core_dumps();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(work) = program.when_idle {
        when_idle(work);
        builder.on_thread_park(idle);
    }
    let runtime = builder.enable_all().build().map_err(Failure::because("start the async runtime"))?;
    runtime.spawn(async {
        tokio::time::sleep(STARTED).await;
        text_pages::release();
    });
    runtime.block_on(future)
}

/// Waits for the end of a shutdown, or for a second Ctrl-C or SIGTERM, which ends it at once.
pub(super) async fn or_at_once(shutdown: impl Future<Output = ()>) {
    tokio::select! {
        () = shutdown => {}
        () = stop_signal() => eprintln!("stopped at once, with requests in flight"),
    }
}

/// Waits for Ctrl-C or SIGTERM.
pub(super) async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
