//! The directory of `KUBEBUILDER_ASSETS`: scripts that start this program as etcd and kube-apiserver.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use crate::commands::exit::Failure;

/// Programs that Go's envtest starts, and this program's subcommands for them.
const STAND_INS: [(&str, &str); 2] = [("etcd", "envtest-etcd"), ("kube-apiserver", "envtest-kube-apiserver")];

/// Writes the scripts, and a link to the machine's kubectl if there is one.
pub(super) fn write(directory: &Path) -> Result<(), Failure> {
    let failed = |path: &Path| Failure::io(format!("write {}", path.display()));
    let program = std::env::current_exe().map_err(Failure::io("find this program's file"))?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(failed(directory))?;
    for (name, command) in STAND_INS {
        let script = format!("#!/bin/sh\nexec {} {command} \"$@\"\n", quoted(&program));
        put(&directory.join(name), &script).map_err(failed(&directory.join(name)))?;
    }
    let found = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|p| p.join("kubectl")).find(|file| file.is_file()));
    let link = directory.join("kubectl");
    if let Some(kubectl) = found.filter(|found| *found != link)
        && !link.exists()
    {
        std::os::unix::fs::symlink(kubectl, &link).map_err(failed(&link))?;
    }
    Ok(())
}

/// Replaces a file: one that is running cannot be written.
fn put(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
    file.write_all(text.as_bytes())
}

/// Quotes a path for a shell.
pub(super) fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn any_path_survives_the_shell() {
        for path in ["/a b/c", "/it's/$HOME", "/\"x\"\\"] {
            let script = format!("printf %s {}", quoted(Path::new(path)));
            let echoed = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(echoed.stdout).unwrap(), path);
        }
    }
}
