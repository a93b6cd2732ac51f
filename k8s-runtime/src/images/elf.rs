//! Dependencies of an ELF program: its dynamic linker and shared libraries.
//!
//! Reads the dynamic section without executing anything, and searches as the dynamic linker does
//! (`DT_RUNPATH` and `DT_RPATH` with `$ORIGIN`, `/etc/ld.so.conf`, the standard directories). Only 64-bit
//! little-endian files, which all supported platforms use.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// Direct dependencies of an ELF file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Path of the dynamic linker. `None`: a static program, or a library.
    pub(crate) interpreter: Option<PathBuf>,
    /// Names of the shared libraries (`DT_NEEDED`).
    pub(crate) libraries: Vec<String>,
    /// Search paths (`DT_RUNPATH`, `DT_RPATH`).
    pub(crate) search: Vec<String>,
    machine: u16,
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// Parses an ELF file. `None`: not ELF, or not supported.
pub(crate) fn parse(bytes: &[u8]) -> Option<Needs> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = number(bytes, 32, 8)?;
    let (entry_size, count) = (number(bytes, 54, 2)?, number(bytes, 56, 2)?);
    let segments: Vec<Segment> = (0..count)
        .map(|index| {
            let at = usize::try_from(table.checked_add(index * entry_size)?).ok()?;
            Some(Segment {
                kind: number(bytes, at, 4)? as u32,
                offset: number(bytes, at.checked_add(8)?, 8)?,
                address: number(bytes, at.checked_add(16)?, 8)?,
                size: number(bytes, at.checked_add(32)?, 8)?,
            })
        })
        .collect::<Option<_>>()?;
    let mut needs = Needs { machine: number(bytes, 18, 2)? as u16, ..Needs::default() };
    if let Some(segment) = segments.iter().find(|s| s.kind == PT_INTERP) {
        needs.interpreter = Some(text(bytes, segment.offset)?.into());
    }
    let Some(dynamic) = segments.iter().find(|s| s.kind == PT_DYNAMIC) else { return Some(needs) };
    let mut tags = Vec::new();
    for index in 0..dynamic.size / 16 {
        let at = usize::try_from(dynamic.offset.checked_add(index * 16)?).ok()?;
        let (tag, value) = (number(bytes, at, 8)?, number(bytes, at.checked_add(8)?, 8)?);
        if tag == 0 {
            break;
        }
        tags.push((tag, value));
    }
    // The string table is given by its address: find the segment loaded there.
    let Some((_, strings)) = tags.iter().find(|(tag, _)| *tag == 5) else { return Some(needs) };
    let load = segments
        .iter()
        .find(|s| s.kind == PT_LOAD && s.address <= *strings && *strings - s.address < s.size)?;
    let strings = (strings - load.address).checked_add(load.offset)?;
    for (tag, value) in &tags {
        match tag {
            1 => needs.libraries.push(text(bytes, strings.checked_add(*value)?)?),
            15 | 29 => {
                needs.search.extend(text(bytes, strings.checked_add(*value)?)?.split(':').map(str::to_owned))
            }
            _ => {}
        }
    }
    Some(needs)
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(length)?)?;
    Some(field.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
}

fn text(bytes: &[u8], at: u64) -> Option<String> {
    let rest = bytes.get(usize::try_from(at).ok()?..)?;
    let end = rest.iter().position(|b| *b == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

/// Returns every file, other than the program, that it needs at the same path.
pub(crate) fn companions(program: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let configured = configured_directories();
    let root = read(program)?;
    found.extend(root.interpreter.clone());
    // For `$ORIGIN`. For a deleted program behind /proc/self/exe, use the given name.
    let home = fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    let mut open = vec![(home, root)];
    let mut seen = BTreeSet::new();
    while let Some((path, needs)) = open.pop() {
        for library in &needs.libraries {
            if !seen.insert(library.clone())
                || found.iter().any(|p| p.file_name().is_some_and(|n| n == library.as_str()))
            {
                continue;
            }
            let origin = path.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
            let own = needs
                .search
                .iter()
                .map(|d| PathBuf::from(d.replace("$ORIGIN", &origin).replace("${ORIGIN}", &origin)));
            let hit = own
                .chain(configured.iter().cloned())
                .map(|directory| directory.join(library))
                .find_map(|candidate| match read(&candidate) {
                    // Skip libraries of another architecture.
                    Ok(found) if found.machine == needs.machine => Some((candidate, found)),
                    _ => None,
                });
            let (candidate, library_needs) = hit.ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("library {library:?}, which {path:?} needs, is nowhere"),
                )
            })?;
            found.insert(candidate.clone());
            open.push((candidate, library_needs));
        }
    }
    Ok(found)
}

fn read(path: &Path) -> io::Result<Needs> {
    let bytes = fs::read(path).map_err(|e| io::Error::new(e.kind(), format!("read {path:?}: {e}")))?;
    parse(&bytes).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{path:?} is no 64-bit ELF program"))
    })
}

fn configured_directories() -> Vec<PathBuf> {
    let mut found = Vec::new();
    configuration(Path::new("/etc/ld.so.conf"), &mut found, 0);
    found.extend(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from));
    found
}

fn configuration(file: &Path, found: &mut Vec<PathBuf>, depth: u32) {
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line.strip_prefix("include ") {
            // Only a directory with `*.conf` is supported as a pattern.
            Some(pattern) if depth < 4 => {
                let pattern = file.parent().unwrap_or(Path::new("/")).join(pattern.trim());
                let directory = pattern.parent().unwrap_or(Path::new("/"));
                let suffix = pattern.extension();
                let mut files: Vec<PathBuf> = fs::read_dir(directory)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|e| e.path())
                    .filter(|p| p == &pattern || p.extension() == suffix)
                    .collect();
                files.sort();
                files.iter().for_each(|f| configuration(f, found, depth + 1));
            }
            None if line.starts_with('/') => found.push(line.into()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_has_an_interpreter_and_libc() {
        let me = std::env::current_exe().expect("path of this test");
        let needs = read(&me).expect("an ELF file");
        assert!(needs.interpreter.is_some());
        let found = companions(&me).expect("all libraries are here");
        assert!(
            found.iter().any(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libc.so"))),
            "{found:?}"
        );
        assert!(found.iter().all(|p| p.exists()));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_harmless(tail in proptest::collection::vec(0u8.., 0..300)) {
            let mut bytes = b"\x7fELF\x02\x01".to_vec();
            bytes.extend(tail);
            let _ = parse(&bytes);
        }
    }
}
