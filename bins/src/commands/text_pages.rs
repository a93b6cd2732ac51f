//! Releases code pages that only the start needed.
//!
//! A start runs much code once: building all schemas, discovery and OpenAPI documents, and keys. Its pages
//! stay resident until the system is short of memory. Code pages are never written, so releasing them loses
//! nothing: code that runs again is mapped again from the page cache.

use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Releases all code pages of the program. Code in use is faulted in again at once, page by page.
#[allow(unsafe_code, reason = "one system call")]
pub(crate) fn release() {
    let (Ok(maps), Ok(program)) =
        (std::fs::read_to_string("/proc/self/maps"), std::fs::read_link("/proc/self/exe"))
    else {
        return;
    };
    for (start, length) in code_of(&maps, &program.to_string_lossy()) {
        let Some(start) = NonNull::new(std::ptr::with_exposed_provenance_mut(start)) else { continue };
        // SAFETY: the range is a readable, executable, non-writable mapping of the running program, so its
        // pages equal the file's, and the kernel maps them again on use. A failure has no effect.
        let _ = unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) };
    }
}

/// Returns start and length in bytes of the program's executable mappings.
fn code_of(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let code = |line: &str| {
        let mut parts = line.split_ascii_whitespace();
        let (range, flags) = (parts.next()?, parts.next()?);
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (flags == "r-xp" && line.ends_with(program)).then_some((start, end.checked_sub(start)?))
    };
    maps.lines().filter_map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_code_is_meant() {
        let maps = "\
5500-5600 r--p 00000000 fe:00 1                          /bin/hyperkube
5600-5800 r-xp 00001000 fe:00 1                          /bin/hyperkube
5800-5900 rw-p 00002000 fe:00 1                          /bin/hyperkube
7f00-7f10 r-xp 00000000 fe:00 2                          /lib/libc.so.6
7ff0-7fff r-xp 00000000 00:00 0                          [vdso]
";
        assert_eq!(code_of(maps, "/bin/hyperkube"), [(0x5600, 0x200)]);
        assert!(code_of("nonsense", "/bin/hyperkube").is_empty());
    }

    #[test]
    fn the_program_goes_on() {
        release();
        assert_eq!((0..100).map(|n: u64| n * n).sum::<u64>(), 328_350);
    }
}
