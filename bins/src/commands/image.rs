//! `hyperkube image`.

use std::path::PathBuf;

use k8s_runtime::Images;

use super::{DataDir, block_on};
use crate::{
    exit::{Code, Failure},
    open_images,
    paths::Paths,
};

/// Load, list and remove images of this machine's node.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Image {
    /// Load images from archives (OCI layout or `docker save`; plain, gzip or zstd).
    Load {
        /// Archives; `-` is standard input.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
        #[command(flatten)]
        data: DataDir,
    },
    /// List images.
    Ls {
        #[command(flatten)]
        data: DataDir,
        /// Print names only.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove images.
    Rm {
        /// Names.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        data: DataDir,
    },
}

impl Image {
    pub(super) fn run(self) -> Result<(), Failure> {
        let open = |data: &DataDir| open_images(&Paths::new(&data.data_dir)?);
        match self {
            Image::Load { archives, data } => {
                let store = open(&data)?;
                for archive in archives {
                    let loaded = if archive.as_os_str() == "-" {
                        store.import(std::io::stdin().lock())
                    } else {
                        store.import_file(&archive)
                    };
                    let loaded = loaded.map_err(Failure::because(format!("load {}", archive.display())))?;
                    for image in loaded {
                        println!("loaded {} ({})", image.tags.join(", "), image.id);
                    }
                }
                Ok(())
            }
            Image::Ls { data, quiet } => {
                let store = open(&data)?;
                let images = block_on_value(async move { store.list().await })?;
                if !quiet {
                    println!("{:<60} {:<20} {:>10}", "IMAGE", "ID", "SIZE");
                }
                for image in images {
                    for tag in &image.tags {
                        if quiet {
                            println!("{tag}");
                        } else {
                            let id: String =
                                image.id.trim_start_matches("sha256:").chars().take(12).collect();
                            println!("{tag:<60} {id:<20} {:>7.1} MB", image.size as f64 / 1e6);
                        }
                    }
                }
                Ok(())
            }
            Image::Rm { names, data } => {
                let store = open(&data)?;
                block_on(async move {
                    for name in names {
                        if store.find(&name).await.map_err(Failure::because(&name))?.is_none() {
                            return Err(Failure::new(Code::Failed, format!("no image {name:?}")));
                        }
                        store.remove(&name).await.map_err(Failure::because(format!("remove {name}")))?;
                        println!("removed {name}");
                    }
                    Ok(())
                })
            }
        }
    }
}

fn block_on_value<T>(
    future: impl Future<Output = Result<T, k8s_runtime::RuntimeError>>,
) -> Result<T, Failure> {
    let mut value = None;
    block_on(async {
        value = Some(future.await.map_err(Failure::because("list images"))?);
        Ok(())
    })?;
    value.ok_or_else(|| Failure::new(Code::Failed, "list images: no answer"))
}
