//! Progress bar of an image load: on a terminal only, after half a second.

use std::{
    io::Read,
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Loads that end sooner show no bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// A progress bar on standard error. Dropping it removes it.
pub(super) struct Progress {
    bar: ProgressBar,
    /// Dropping it cancels the delayed display.
    _done: Sender<()>,
}

impl Progress {
    /// Starts the bar for `name` with `size` bytes, if known.
    pub(super) fn begin(name: &str, size: Option<u64>) -> Self {
        let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::hidden());
        let template = if size.is_some() {
            "{spinner} loading {msg} {bar:30} {bytes}/{total_bytes}"
        } else {
            "{spinner} loading {msg} {bytes}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        let (done, ended) = channel::<()>();
        let shown = bar.clone();
        std::thread::spawn(move || {
            if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(Duration::from_millis(100));
            }
        });
        Progress { bar, _done: done }
    }

    /// Wraps a reader and counts its bytes.
    pub(super) fn reading<R: Read>(&self, source: R) -> impl Read + use<R> {
        self.bar.wrap_read(source)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
