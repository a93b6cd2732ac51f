//! Kernel settings of the calling thread's network namespace.

use std::{fs, io};

/// Writes a setting (`net/ipv4/ip_forward`) if it has another value; says what it was.
pub(crate) fn set(name: &str, value: &str) -> io::Result<String> {
    let path = format!("/proc/sys/{name}");
    let before = fs::read_to_string(&path)?.trim().to_owned();
    if before != value {
        fs::write(&path, value)?;
    }
    Ok(before)
}
