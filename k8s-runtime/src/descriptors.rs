//! The limit of open files (`RLIMIT_NOFILE`).
//!
//! A server raises its soft limit to the hard limit, as Go programs do. Helper programs are started with the
//! server's original soft limit. Containers get the hard limit (see the shim).

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// Environment variable with the soft limit for a helper program.
const VARIABLE: &str = "K8S_RUNTIME_NOFILE";

static ORIGINAL: OnceLock<rlim_t> = OnceLock::new();

/// Raises the soft limit of open files to the hard limit, and returns it. Only a program's `main` may call
/// it.
pub fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    ORIGINAL.get_or_init(|| soft);
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// Returns the soft limit of open files. Changes nothing.
#[must_use]
pub fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// Returns the environment variable with the original soft limit, for a helper program.
pub(crate) fn told() -> Option<(&'static str, String)> {
    ORIGINAL.get().map(|soft| (VARIABLE, soft.to_string()))
}

/// Restores the soft limit from the environment variable.
pub(crate) fn restore() {
    let told = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
    if let (Some(soft), Ok((_, hard))) = (told, getrlimit(Resource::RLIMIT_NOFILE)) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, rlim_t::min(soft, hard), hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_and_helpers_are_told_the_old_one() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(limit(), soft);
        assert_eq!(raise(), hard);
        assert_eq!(limit(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap().0, hard);
        assert_eq!(told().unwrap().1, soft.to_string());
    }
}
