//! Formats durations as messages of the API do (`10s`, `1m20s`, `5m0s`).

use std::time::Duration;

/// Go's format of a duration, truncated to whole seconds from one second on.
pub(crate) fn go(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m{}s", seconds / 3600, seconds % 3600 / 60, seconds % 60),
    }
}

/// Elapsed time with millisecond precision.
pub(crate) fn took(duration: Duration) -> String {
    if duration.as_secs() == 0 {
        format!("{}ms", duration.as_millis())
    } else {
        format!("{}.{:03}s", duration.as_secs(), duration.subsec_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (ms, want) in
            [(5, "5ms"), (10_000, "10s"), (80_000, "1m20s"), (300_000, "5m0s"), (3_600_000, "1h0m0s")]
        {
            assert_eq!(go(Duration::from_millis(ms)), want);
        }
        assert_eq!(took(Duration::from_millis(1234)), "1.234s");
    }
}
