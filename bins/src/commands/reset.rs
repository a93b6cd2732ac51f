//! `hyperkube reset`.

use super::DataDir;
use crate::{exit::Failure, paths::Paths};

/// Remove what a stopped cluster left on this machine: containers, mounts, namespaces, cgroups, network, files.
#[derive(Debug, clap::Args)]
pub(super) struct Reset {
    #[command(flatten)]
    data: DataDir,
    /// Only show what would be removed.
    #[arg(long)]
    dry_run: bool,
}

impl Reset {
    pub(super) fn run(self) -> Result<(), Failure> {
        let paths = Paths::new(&self.data.data_dir)?;
        let found = crate::reset::leftovers(&paths)?;
        for line in &found {
            println!("{}{line}", if self.dry_run { "would remove " } else { "removing " });
        }
        if found.is_empty() {
            println!("nothing of {} is on this machine", paths.data.display());
        }
        if self.dry_run { Ok(()) } else { crate::reset::remove(&paths) }
    }
}
