//! Handles of started controllers, managers and schedulers.

use std::{any::Any, future::Future};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Work that runs in a task of its own, started by [`Controller::start`](crate::Controller::start),
/// [`Manager::start`](crate::Manager::start) or the scheduler's `start`. Dropping it stops the work without
/// waiting for the end; see [`Handle::shutdown`].
///
/// # Examples
/// ```
/// use k8s_controllers::{Controller, Stopped};
/// # use k8s_controllers::prelude::*;
/// # use k8s_core::{api::ConfigMap, client::Client};
/// # struct Marks;
/// # impl Reconcile for Marks {
/// #     type Kind = ConfigMap;
/// #     async fn reconcile(&self, _: &Context, _: Arc<ConfigMap>) -> Result<Action, Error> {
/// #         Ok(Action::await_change())
/// #     }
/// # }
/// async fn until_ctrl_c(client: Client, ctrl_c: impl Future<Output = ()>) -> Result<(), Stopped> {
///     let mut running = Controller::<ConfigMap>::new().start(client, Marks);
///     tokio::select! {
///         ended = running.ended() => ended, // only after a panic
///         () = ctrl_c => running.shutdown().await,
///     }
/// }
/// ```
#[derive(Debug)]
#[must_use = "dropping the handle stops the work"]
pub struct Handle {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// The work ended before it was told to, by a panic or with its tokio runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped unasked: {reason}")]
pub struct Stopped {
    reason: String,
}

impl Handle {
    /// Starts work in a task. `work` gets the token that tells it to stop, and ends soon after.
    ///
    /// # Panics
    /// Called outside of a tokio runtime.
    ///
    /// # Examples
    /// ```
    /// use k8s_controllers::Handle;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let handle = Handle::start(|stop| async move { stop.cancelled().await });
    /// assert_eq!(handle.shutdown().await, Ok(()));
    /// # });
    /// ```
    #[expect(clippy::disallowed_methods, reason = "the handle stops the task and waits for it")]
    pub fn start<F: Future<Output = ()> + Send + 'static>(work: impl FnOnce(CancellationToken) -> F) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(work(stop.clone()));
        Handle { stop, task: Some(task) }
    }

    /// Waits for the end, as long as it takes. The second call returns at once.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn ended(&mut self) -> Result<(), Stopped> {
        let Some(task) = &mut self.task else { return Ok(()) };
        let ended = task.await;
        self.task = None;
        ended.map_err(|e| match e.try_into_panic() {
            Ok(panic) => Stopped { reason: format!("panicked: {}", text_of(&*panic)) },
            Err(e) => Stopped { reason: e.to_string() },
        })
    }

    /// Tells the work to stop, and waits until it has finished the reconciles in progress.
    ///
    /// # Errors
    /// [`Stopped`], if it had ended before.
    pub async fn shutdown(mut self) -> Result<(), Stopped> {
        self.stop.cancel();
        self.ended().await
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn shutdown_waits_for_the_work() {
        let finished = Arc::new(AtomicBool::new(false));
        let seen = finished.clone();
        let handle = Handle::start(|stop| async move {
            stop.cancelled().await;
            tokio::task::yield_now().await;
            seen.store(true, Ordering::Relaxed);
        });
        assert_eq!(handle.shutdown().await, Ok(()));
        assert!(finished.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_dropped_handle_stops_the_work() {
        let (send, receive) = tokio::sync::oneshot::channel();
        drop(Handle::start(|stop| async move {
            stop.cancelled().await;
            let _ = send.send(());
        }));
        assert_eq!(receive.await, Ok(()));
    }

    #[tokio::test]
    async fn a_panic_is_the_outcome() {
        let mut handle = Handle::start(|_| async { panic!("no {}", "luck") });
        let stopped = handle.ended().await.unwrap_err();
        assert_eq!(stopped.to_string(), "stopped unasked: panicked: no luck");
        assert_eq!(handle.ended().await, Ok(()), "the second call returns at once");
        assert_eq!(handle.shutdown().await, Ok(()));
    }
}
