//! Sysctls of the calling thread's network namespace.

use std::{fs, io};

/// Writes a sysctl (`net/ipv4/ip_forward`) if it has another value; returns the old one.
pub(crate) fn set(name: &str, value: &str) -> io::Result<String> {
    let path = format!("/proc/sys/{name}");
    let before = fs::read_to_string(&path)?.trim().to_owned();
    if before != value {
        fs::write(&path, value)?;
    }
    Ok(before)
}
