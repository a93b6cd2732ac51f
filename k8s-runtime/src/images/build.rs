//! Building an image from files of this machine, without any other program.
//!
//! ```no_run
//! # fn main() -> Result<(), k8s_runtime::RuntimeError> {
//! use k8s_runtime::images::ImageBuilder;
//! ImageBuilder::new()
//!     .binary_with_libs("/proc/self/exe", "/web")
//!     .entrypoint(["/web"])
//!     .user("65534")
//!     .write_layout("web.tar".as_ref(), "demo.local/web:v1")?;
//! # Ok(()) }
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::{Read, Write},
    path::{Component, Path, PathBuf},
};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{elf, reference::Reference, store::ImageStore, unpack::digest_of};
use crate::api::{ImageInfo, RuntimeError};

#[derive(Clone, Debug)]
enum Content {
    Host(PathBuf),
    Bytes(Vec<u8>),
    Link(PathBuf),
    Directory,
}

#[derive(Clone, Debug)]
struct Item {
    content: Content,
    mode: u32,
}

/// Builds an image; the final methods write an archive or add it to a store. The same input gives the same
/// digests.
#[derive(Clone, Debug, Default)]
pub struct ImageBuilder {
    items: BTreeMap<PathBuf, Item>,
    programs: Vec<PathBuf>,
    config: Map<String, Value>,
    env: Vec<String>,
    labels: Map<String, Value>,
}

impl ImageBuilder {
    /// Starts with an empty image.
    pub fn new() -> ImageBuilder {
        ImageBuilder::default()
    }

    fn put(mut self, path: &Path, content: Content, mode: u32) -> ImageBuilder {
        self.items.insert(clean(path), Item { content, mode });
        self
    }

    /// Adds a file of the host with these permission bits.
    pub fn file(self, host: impl Into<PathBuf>, in_image: impl AsRef<Path>, mode: u32) -> ImageBuilder {
        self.put(in_image.as_ref(), Content::Host(host.into()), mode)
    }

    /// Adds a file with this content.
    pub fn content(self, bytes: impl Into<Vec<u8>>, in_image: impl AsRef<Path>, mode: u32) -> ImageBuilder {
        self.put(in_image.as_ref(), Content::Bytes(bytes.into()), mode)
    }

    /// Adds a symbolic link.
    pub fn link(self, target: impl Into<PathBuf>, in_image: impl AsRef<Path>) -> ImageBuilder {
        self.put(in_image.as_ref(), Content::Link(target.into()), 0o777)
    }

    /// Adds an empty directory with these permission bits (`0o1777` for `/tmp`).
    pub fn directory(self, in_image: impl AsRef<Path>, mode: u32) -> ImageBuilder {
        self.put(in_image.as_ref(), Content::Directory, mode)
    }

    /// Adds a program of the host with its dynamic linker and all its shared libraries.
    pub fn binary_with_libs(mut self, host: impl Into<PathBuf>, in_image: impl AsRef<Path>) -> ImageBuilder {
        let host = host.into();
        self.programs.push(host.clone());
        self.file(host, in_image, 0o755)
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> ImageBuilder {
        self.env.push(format!("{name}={value}"));
        self
    }

    fn set(mut self, key: &str, value: Value) -> ImageBuilder {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// Sets the entrypoint: program and first arguments.
    pub fn entrypoint<S: Into<String>>(self, args: impl IntoIterator<Item = S>) -> ImageBuilder {
        let args: Vec<String> = args.into_iter().map(Into::into).collect();
        self.set("Entrypoint", json!(args))
    }

    /// Sets the default arguments, which a container may replace.
    pub fn cmd<S: Into<String>>(self, args: impl IntoIterator<Item = S>) -> ImageBuilder {
        let args: Vec<String> = args.into_iter().map(Into::into).collect();
        self.set("Cmd", json!(args))
    }

    /// Sets the user as `user[:group]`, by names or numbers.
    pub fn user(self, user: &str) -> ImageBuilder {
        self.set("User", json!(user))
    }

    /// Sets the working directory. Default: `/`.
    pub fn working_dir(self, path: &str) -> ImageBuilder {
        self.set("WorkingDir", json!(path))
    }

    /// Sets the signal that stops a container.
    pub fn stop_signal(self, signal: &str) -> ImageBuilder {
        self.set("StopSignal", json!(signal))
    }

    /// Sets a label of the image's configuration.
    pub fn label(mut self, name: &str, value: &str) -> ImageBuilder {
        self.labels.insert(name.to_owned(), json!(value));
        self
    }

    /// Writes the image as an archive in the OCI layout.
    pub fn write_layout(&self, archive: &Path, name: &str) -> Result<(), RuntimeError> {
        let name = Reference::parse(name)?;
        let layer = archive.with_extension("layer.tmp");
        let result = self.build(&layer).and_then(|built| {
            let file = fs::File::create(archive)?;
            write_layout(io::BufWriter::new(file), &built, &layer, &name)
        });
        let _ = fs::remove_file(&layer);
        result.map_err(RuntimeError::io(format!("write image archive {archive:?}")))
    }

    /// Adds the image to a store under a name.
    pub fn import(&self, store: &ImageStore, name: &str) -> Result<ImageInfo, RuntimeError> {
        let name = Reference::parse(name)?;
        let scratch = store.scratch()?;
        let file = scratch.0.join("layer.tar");
        let built = self.build(&file).map_err(RuntimeError::io(format!("build image {name}")))?;
        let mut layer = |_| -> Result<Box<dyn Read>, RuntimeError> {
            let opened = fs::File::open(&file).map_err(RuntimeError::io("open the built layer"))?;
            Ok(Box::new(io::BufReader::with_capacity(1 << 16, opened)))
        };
        store.add(&[name], &built.manifest, &built.config, &mut layer)
    }

    /// Writes the layer uncompressed, and builds manifest and configuration.
    fn build(&self, layer: &Path) -> io::Result<Built> {
        let mut items = self.items.clone();
        for program in &self.programs {
            for library in elf::companions(program)? {
                items.entry(clean(&library)).or_insert(Item { content: Content::Host(library), mode: 0o755 });
            }
        }
        let mut writer =
            Counting { inner: io::BufWriter::new(fs::File::create(layer)?), hash: Sha256::new(), length: 0 };
        write_layer(&items, &mut writer)?;
        writer.flush()?;
        let (length, diff_id) = (writer.length, digest_of(writer.hash));

        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let mut run = self.config.clone();
        run.insert("Env".to_owned(), json!(self.env));
        run.insert("Labels".to_owned(), Value::Object(self.labels.clone()));
        let config = serde_json::to_vec(&json!({
            "architecture": architecture,
            "os": "linux",
            "config": run,
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            "history": [{ "created_by": "k8s-runtime image builder" }],
        }))?;
        let config_digest = digest_of(Sha256::new().chain_update(&config));
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest,
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": diff_id,
                "size": length,
            }],
        }))?;
        Ok(Built { config, manifest, config_digest, diff_id, length })
    }
}

struct Built {
    config: Vec<u8>,
    manifest: Vec<u8>,
    config_digest: String,
    diff_id: String,
    length: u64,
}

struct Counting<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn write_layer(items: &BTreeMap<PathBuf, Item>, target: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(target);
    // Parents before their children, without duplicates.
    let mut made = BTreeSet::new();
    for (path, item) in items {
        let parents: Vec<&Path> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            if made.insert(parent.to_owned()) && !items.contains_key(parent) {
                append(&mut archive, parent, &Item { content: Content::Directory, mode: 0o755 })?;
            }
        }
        made.insert(path.clone());
        append(&mut archive, path, item)?;
    }
    archive.into_inner()?.flush()
}

fn append(archive: &mut tar::Builder<impl Write>, path: &Path, item: &Item) -> io::Result<()> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{path:?}: {e}"));
    let mut header = tar::Header::new_gnu();
    header.set_mode(item.mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    match &item.content {
        Content::Host(host) => {
            let file =
                fs::File::open(host).map_err(|e| io::Error::new(e.kind(), format!("open {host:?}: {e}")))?;
            let length = file.metadata().map_err(named)?.len();
            header.set_size(length);
            // If the file grows during the read, the archive stays valid.
            archive.append_data(&mut header, path, file.take(length)).map_err(named)
        }
        Content::Bytes(bytes) => {
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, path, bytes.as_slice()).map_err(named)
        }
        Content::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            archive.append_link(&mut header, path, target).map_err(named)
        }
        Content::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            archive.append_data(&mut header, path, io::empty()).map_err(named)
        }
    }
}

fn write_layout(target: impl Write, built: &Built, layer: &Path, name: &Reference) -> io::Result<()> {
    let blob = |digest: &str| Path::new("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let manifest_digest = digest_of(Sha256::new().chain_update(&built.manifest));
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest_digest,
            "size": built.manifest.len(),
            "annotations": {
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": name.version(),
            },
        }],
    }))?;
    let file = |bytes: &[u8]| Item { content: Content::Bytes(bytes.to_vec()), mode: 0o644 };
    let mut archive = tar::Builder::new(target);
    append(&mut archive, Path::new("oci-layout"), &file(br#"{"imageLayoutVersion":"1.0.0"}"#))?;
    append(&mut archive, Path::new("index.json"), &file(&index))?;
    append(&mut archive, &blob(&manifest_digest), &file(&built.manifest))?;
    append(&mut archive, &blob(&built.config_digest), &file(&built.config))?;
    let layer = Item { content: Content::Host(layer.to_owned()), mode: 0o644 };
    append(&mut archive, &blob(&built.diff_id), &layer)?;
    debug_assert!(built.length > 0);
    archive.into_inner()?.flush()
}

/// Path of an archive member: relative, without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    path.components().filter(|c| matches!(c, Component::Normal(_))).collect()
}
