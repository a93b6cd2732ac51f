//! `hyperkube image`.

mod progress;

use std::{fs::File, io::BufReader, path::PathBuf};

use k8s_runtime::{Images, embedded::images_in_use};
use progress::Progress;

use super::{
    DataDir, block_on,
    exit::{Code, Failure},
};
use crate::{open_images, paths::Paths, program::Program};

/// Load, list and remove images of the node on this machine.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Image {
    /// Load images from archives (OCI layout or `docker save`; plain, gzip or zstd).
    Load {
        /// Archive files; `-` is standard input.
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
    /// Remove images by name.
    Rm {
        /// Image names.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        data: DataDir,
    },
}

impl Image {
    pub(super) fn run(self, program: Program) -> Result<(), Failure> {
        let open = |data: &DataDir| open_images(&Paths::new(program.name, &data.data_dir)?);
        match self {
            Image::Load { archives, data } => {
                let store = open(&data)?;
                for archive in archives {
                    let what = format!("load {}", archive.display());
                    let loaded = if archive.as_os_str() == "-" {
                        let progress = Progress::begin("standard input", None);
                        store.import(progress.reading(std::io::stdin().lock()))
                    } else {
                        let file = File::open(&archive).map_err(Failure::io(&what))?;
                        let size = file.metadata().ok().map(|m| m.len());
                        let progress = Progress::begin(&archive.display().to_string(), size);
                        store.import(progress.reading(BufReader::with_capacity(1 << 16, file)))
                    };
                    let loaded = loaded.map_err(Failure::because(&what))?;
                    for image in loaded {
                        println!("loaded {} ({})", image.tags.join(", "), image.id);
                    }
                }
                Ok(())
            }
            Image::Ls { data, quiet } => {
                let store = open(&data)?;
                let mut images = block_on_value(program, async move { store.list().await })?;
                images.sort_by(|a, b| a.tags.cmp(&b.tags).then(a.id.cmp(&b.id)));
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
                let used = images_in_use(&Paths::new(program.name, &data.data_dir)?.containers())
                    .map_err(Failure::io("look for containers"))?;
                block_on(program, async move {
                    for name in names {
                        let Some(image) = store.find(&name).await.map_err(Failure::because(&name))? else {
                            return Err(Failure::new(Code::Failed, format!("no image {name:?}")));
                        };
                        if let Some(pod) = used.get(&image.id) {
                            let why = format!("image {name:?} is in use by pod {pod}; delete its pods first");
                            return Err(Failure::new(Code::InUse, why));
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
    program: Program,
    future: impl Future<Output = Result<T, k8s_runtime::RuntimeError>>,
) -> Result<T, Failure> {
    let mut value = None;
    block_on(program, async {
        value = Some(future.await.map_err(Failure::because("list images"))?);
        Ok(())
    })?;
    value.ok_or_else(|| Failure::new(Code::Failed, "list images: no answer"))
}
