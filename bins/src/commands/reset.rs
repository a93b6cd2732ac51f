//! `hyperkube reset`.

use std::cell::Cell;

use super::{DataDir, exit::Failure};
use crate::{paths::Paths, user_kubeconfig::UserKubeconfig};

/// Remove everything that a stopped cluster left on this machine: containers, mounts, namespaces, cgroups,
/// network, files.
#[derive(Debug, clap::Args)]
pub(super) struct Reset {
    #[command(flatten)]
    data: DataDir,
    /// Only print what would be removed.
    #[arg(long)]
    dry_run: bool,
}

impl Reset {
    pub(super) fn run(self, name: &str) -> Result<(), Failure> {
        let paths = Paths::new(name, &self.data.data_dir)?;
        crate::reset::check(&paths)?;
        if self.dry_run {
            let found = crate::reset::leftovers(&paths)?;
            found.iter().for_each(|line| println!("would remove {line}"));
            if found.is_empty() {
                println!("nothing of {} is on this machine", paths.data.display());
            }
            return Ok(());
        }
        let ca = std::fs::read_to_string(paths.pki().join("ca.crt"));
        let told = Cell::new(false);
        crate::reset::remove_telling(&paths, |line| {
            told.set(true);
            println!("removing {line}");
        })?;
        if !told.get() {
            println!("nothing of {} is on this machine", paths.data.display());
        }
        if let (Ok(ca), Some(user)) = (ca, UserKubeconfig::find()) {
            match user.remove(name, &ca) {
                Ok(Some(file)) => println!("removed context {:?} from {}", name, file.display()),
                Ok(None) => {}
                Err(e) => eprintln!("warning: context {:?} stays in the kubeconfig: {e}", name),
            }
        }
        Ok(())
    }
}
