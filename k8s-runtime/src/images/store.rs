//! [`ImageStore`]: the index, the blobs and the layers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use nix::fcntl::{Flock, FlockArg};
use oci_spec::image::{ImageConfiguration, ImageManifest};
use serde::{Deserialize, Serialize};

use super::{
    archive,
    reference::{Reference, digest_hex},
    registry::{self, Registries},
    unpack::{self, Hashing},
};
use crate::{
    api::{ImageInfo, Images, RuntimeError},
    beneath, json, private_directory,
};

/// Scratch directories older than this were left by a crash.
const STALE: Duration = Duration::from_secs(3600);

/// An image, resolved for running a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Digest of the image's configuration.
    pub id: String,
    /// Entrypoint: program and first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments (`CMD`); without an entrypoint also the program.
    pub cmd: Vec<String>,
    /// Environment variables as `NAME=value`, in order.
    pub env: Vec<(String, String)>,
    /// User as `name[:group]` or numbers. Empty: root.
    pub user: String,
    /// Working directory. Empty: `/`.
    pub working_dir: String,
    /// Signal that stops a container. `None`: SIGTERM.
    pub stop_signal: Option<String>,
    /// Directory of the unpacked layers.
    pub layers_dir: PathBuf,
    /// Names of the layers in `layers_dir`, lowest first.
    pub layers: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    info: ImageInfo,
    manifest: String,
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    images: BTreeMap<String, Record>,
    /// Size in bytes of every unpacked layer, by diff id.
    layers: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct State {
    index: Index,
    resolved: BTreeMap<String, Arc<ResolvedImage>>,
    /// Layers of images being added; the garbage collection skips them.
    pinned: BTreeMap<String, usize>,
    /// Inode and modification time (ns) of the index file that `index` corresponds to.
    stamp: Option<(u64, i128)>,
}

/// The images on a node, in a directory. Several processes may use it: writers lock each other out, and
/// readers see all completed writes.
///
/// ```
/// use k8s_runtime::{Images, images::{ImageBuilder, ImageStore}};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let directory = tempfile::tempdir()?;
/// let archive = directory.path().join("web.tar");
/// let image = ImageBuilder::new().content("hello", "/index.html", 0o644).cmd(["/web"]);
/// image.write_layout(&archive, "demo.local/web:1")?;
/// let store = ImageStore::open(directory.path().join("images"))?;
/// let loaded = store.import_file(&archive)?;
/// assert_eq!(loaded[0].tags, ["demo.local/web:1"]);
/// let image = store.resolve("demo.local/web:1")?;
/// assert_eq!((image.cmd[0].as_str(), image.layers.len()), ("/web", 1));
/// store.remove("demo.local/web:1").await?;
/// assert!(store.find("demo.local/web:1").await?.is_none());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ImageStore {
    dir: PathBuf,
    registries: Registries,
    user_agent: String,
    state: Mutex<State>,
}

/// Default of the `User-Agent` header of requests to registries.
const USER_AGENT: &str = concat!("k8s-runtime/", env!("CARGO_PKG_VERSION"));

/// Opens a layer of an image being added, by its index; the layer may be compressed.
pub(super) type LayerSource<'a> = &'a mut dyn FnMut(usize) -> Result<Box<dyn Read>, RuntimeError>;

impl ImageStore {
    /// Opens the store in a directory; creates it if missing.
    pub fn open(dir: impl Into<PathBuf>) -> Result<ImageStore, RuntimeError> {
        let dir = dir.into();
        let tmp = dir.join("tmp");
        let shown = format!("open the image store {dir:?}");
        let context = || shown.clone();
        private_directory(&dir).map_err(RuntimeError::io(context()))?;
        for directory in [&dir.join("blobs/sha256"), &dir.join("layers"), &tmp] {
            fs::create_dir_all(directory).map_err(RuntimeError::io(context()))?;
        }
        // Left by a crash. Younger files may belong to another process.
        for entry in fs::read_dir(&tmp).map_err(RuntimeError::io(context()))?.flatten() {
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if age.is_some_and(|age| age > STALE) {
                let _ = beneath::remove_all(&entry.path()).or_else(|_| fs::remove_file(entry.path()));
            }
        }
        let (registries, user_agent) = (Registries::default(), USER_AGENT.to_owned());
        let store = ImageStore { dir, registries, user_agent, state: Mutex::default() };
        store
            .refresh(&mut store.state.lock().unwrap_or_else(PoisonError::into_inner))
            .map_err(RuntimeError::io(context()))?;
        Ok(store)
    }

    /// Reloads the index if another process has written it.
    fn refresh(&self, state: &mut State) -> io::Result<()> {
        let path = self.dir.join("index.json");
        let stamp = match fs::metadata(&path) {
            Ok(meta) => stamp_of(&meta),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        if state.stamp == Some(stamp) {
            return Ok(());
        }
        state.index = json::read_json(&path)?;
        state.resolved.clear();
        state.stamp = Some(stamp);
        Ok(())
    }

    /// Locks out the other writers of this process and of others.
    fn exclusive(&self) -> Result<Flock<fs::File>, RuntimeError> {
        lock(&self.dir).map_err(RuntimeError::io(format!("lock {:?}", self.dir)))
    }

    /// Sets mirrors and credentials from a `registries.yaml`.
    pub fn with_registries(mut self, registries: Registries) -> ImageStore {
        self.registries = registries;
        self
    }

    /// Sets the `User-Agent` header of requests to registries, such as `shopkube/1.0`. Characters that a
    /// header cannot have are left out. Default: this crate's name and version.
    ///
    /// ```
    /// # fn example() -> Result<(), k8s_runtime::RuntimeError> {
    /// use k8s_runtime::images::ImageStore;
    /// let store = ImageStore::open("/var/lib/shop/images")?.with_user_agent("shopkube/1.0");
    /// # Ok(()) }
    /// ```
    pub fn with_user_agent(mut self, user_agent: &str) -> ImageStore {
        self.user_agent = user_agent.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // While this process adds an image, it holds the lock, and the index in memory is newer than the
        // file.
        if state.pinned.is_empty()
            && let Err(error) = self.refresh(&mut state)
        {
            tracing::warn!(%error, dir = ?self.dir, "read the index of images");
        }
        state
    }

    pub(super) fn blob(&self, hex: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(hex)
    }

    /// Creates an empty scratch directory.
    pub(super) fn scratch(&self) -> Result<Scratch, RuntimeError> {
        let path = self.dir.join("tmp").join(uuid::Uuid::new_v4().simple().to_string());
        fs::create_dir_all(&path).map_err(RuntimeError::io(format!("make {path:?}")))?;
        Ok(Scratch(path))
    }

    /// Imports every image of an archive: an OCI layout or a `docker save`, optionally compressed with gzip
    /// or zstd.
    pub fn import_file(&self, path: &Path) -> Result<Vec<ImageInfo>, RuntimeError> {
        let file = fs::File::open(path).map_err(RuntimeError::io(format!("open {path:?}")))?;
        self.import(io::BufReader::with_capacity(1 << 16, file))
    }

    /// Imports from a stream; otherwise the same as [`ImageStore::import_file`].
    pub fn import(&self, source: impl Read) -> Result<Vec<ImageInfo>, RuntimeError> {
        archive::import(self, source)
    }

    /// Returns `true` if a layer is unpacked.
    pub(super) fn has_layer(&self, diff_id: &str) -> bool {
        self.state().index.layers.contains_key(diff_id)
    }

    /// Calls [`ImageStore::add`] from an async task without blocking its worker.
    pub(super) fn add_blocking(
        &self,
        names: &[Reference],
        manifest: &[u8],
        config: &[u8],
        layers: LayerSource<'_>,
    ) -> Result<ImageInfo, RuntimeError> {
        off_worker(|| self.add(names, manifest, config, layers))
    }

    /// Adds an image. Only missing layers are requested from the source.
    pub(super) fn add(
        &self,
        names: &[Reference],
        manifest: &[u8],
        config: &[u8],
        layers: LayerSource<'_>,
    ) -> Result<ImageInfo, RuntimeError> {
        let parsed: ImageConfiguration = serde_json::from_slice(config)
            .map_err(|e| RuntimeError::Invalid(format!("image configuration: {e}")))?;
        let diff_ids = parsed.rootfs().diff_ids().clone();
        diff_ids.iter().try_for_each(|d| layer_name(d).map(drop))?;
        let _guard = self.exclusive()?;
        for diff_id in &diff_ids {
            *self.state().pinned.entry(diff_id.clone()).or_default() += 1;
        }
        let result = self.add_pinned(names, manifest, config, &parsed, &diff_ids, layers);
        let mut state = self.state();
        for diff_id in &diff_ids {
            if let Some(count) = state.pinned.get_mut(diff_id) {
                *count -= 1;
                if *count == 0 {
                    state.pinned.remove(diff_id);
                }
            }
        }
        result
    }

    fn add_pinned(
        &self,
        names: &[Reference],
        manifest: &[u8],
        config: &[u8],
        parsed: &ImageConfiguration,
        diff_ids: &[String],
        layers: LayerSource<'_>,
    ) -> Result<ImageInfo, RuntimeError> {
        for (index, diff_id) in diff_ids.iter().enumerate() {
            if self.state().index.layers.contains_key(diff_id) {
                continue;
            }
            let source = layers(index)?;
            let size = self.add_layer(diff_id, source)?;
            self.state().index.layers.insert(diff_id.clone(), size);
        }
        let manifest_digest = self.add_blob(manifest)?;
        let id = self.add_blob(config)?;
        let mut state = self.state();
        let size =
            diff_ids.iter().filter_map(|d| state.index.layers.get(d)).sum::<u64>() + config.len() as u64;
        let user = parsed.config().as_ref().and_then(|c| c.user().clone()).unwrap_or_default();
        for name in names {
            let tag = tag_name(name);
            for record in state.index.images.values_mut() {
                record.info.tags.retain(|t| Some(t) != tag.as_ref());
            }
        }
        let record = state.index.images.entry(id.clone()).or_insert_with(|| Record {
            info: ImageInfo { id: id.clone(), size, user, ..ImageInfo::default() },
            manifest: manifest_digest.clone(),
            diff_ids: diff_ids.to_vec(),
        });
        for name in names {
            let digest = format!("{}@{}", name.name(), name.digest.as_deref().unwrap_or(&manifest_digest));
            for (list, new) in
                [(&mut record.info.tags, tag_name(name)), (&mut record.info.digests, Some(digest))]
            {
                if let Some(new) = new.filter(|n| !list.contains(n)) {
                    list.push(new);
                }
            }
        }
        let info = record.info.clone();
        self.save(&mut state)?;
        Ok(info)
    }

    fn save(&self, state: &mut State) -> Result<(), RuntimeError> {
        let file = self.dir.join("index.json");
        json::write_json(&file, &state.index).map_err(RuntimeError::io(format!("write {file:?}")))?;
        state.stamp = fs::metadata(&file).ok().map(|meta| stamp_of(&meta));
        Ok(())
    }

    fn add_blob(&self, bytes: &[u8]) -> Result<String, RuntimeError> {
        let digest = Hashing::new(bytes).finish().map_err(RuntimeError::io("hash"))?;
        let path = self.blob(&digest["sha256:".len()..]);
        let temporary = self.dir.join("tmp").join(uuid::Uuid::new_v4().simple().to_string());
        fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(RuntimeError::io(format!("write {path:?}")))?;
        Ok(digest)
    }

    fn add_layer(&self, diff_id: &str, source: Box<dyn Read>) -> Result<u64, RuntimeError> {
        let target = self.dir.join("layers").join(layer_name(diff_id)?);
        let scratch = self.scratch()?;
        let context = || format!("unpack layer {diff_id}");
        let plain = unpack::decompress(source).map_err(RuntimeError::io(context()))?;
        let (found, size) = unpack::unpack(plain, &scratch.0).map_err(RuntimeError::io(context()))?;
        if found != diff_id {
            return Err(RuntimeError::Invalid(format!("layer has digest {found}, its image says {diff_id}")));
        }
        // The target exists after a crash before the index was written, or by a concurrent import; the
        // content is the same.
        match fs::rename(&scratch.0, &target) {
            Err(_) if target.is_dir() => Ok(size),
            other => other.map(|()| size).map_err(RuntimeError::io(format!("rename to {target:?}"))),
        }
    }

    fn id_of(state: &State, reference: &str) -> Result<Option<String>, RuntimeError> {
        if state.index.images.contains_key(reference) {
            return Ok(Some(reference.to_owned()));
        }
        let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
        if hex.len() >= 12 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let wanted = format!("sha256:{hex}");
            let mut ids = state.index.images.keys().filter(|id| id.starts_with(&wanted));
            if let (Some(id), None) = (ids.next(), ids.next()) {
                return Ok(Some(id.clone()));
            }
        }
        let name = Reference::parse(reference)?;
        let (tag, digest) = (tag_name(&name), name.digest.as_ref().map(|d| format!("{}@{d}", name.name())));
        Ok(state
            .index
            .images
            .iter()
            .find(|(_, record)| match &digest {
                Some(digest) => record.info.digests.contains(digest),
                None => tag.as_ref().is_some_and(|t| record.info.tags.contains(t)),
            })
            .map(|(id, _)| id.clone()))
    }

    /// Resolves an image by reference or id.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] if the image is not in the store.
    pub fn resolve(&self, reference: &str) -> Result<Arc<ResolvedImage>, RuntimeError> {
        let mut state = self.state();
        let missing = || RuntimeError::NotFound { what: "image", id: reference.to_owned() };
        let id = Self::id_of(&state, reference)?.ok_or_else(missing)?;
        if let Some(known) = state.resolved.get(&id) {
            return Ok(Arc::clone(known));
        }
        let record = state.index.images.get(&id).ok_or_else(missing)?;
        let path = self.blob(digest_hex(&id).ok_or_else(missing)?);
        let config: ImageConfiguration =
            json::read_json(&path).map_err(RuntimeError::io(format!("read {path:?}")))?;
        let run = config.config().clone().unwrap_or_default();
        let env = run.env().clone().unwrap_or_default();
        let resolved = Arc::new(ResolvedImage {
            id: id.clone(),
            entrypoint: run.entrypoint().clone().unwrap_or_default(),
            cmd: run.cmd().clone().unwrap_or_default(),
            env: env
                .iter()
                .filter_map(|e| e.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            user: run.user().clone().unwrap_or_default(),
            working_dir: run.working_dir().clone().unwrap_or_default(),
            stop_signal: run.stop_signal().clone(),
            layers_dir: self.dir.join("layers"),
            layers: record.diff_ids.iter().map(|d| layer_name(d)).collect::<Result<_, _>>()?,
        });
        state.resolved.insert(id, Arc::clone(&resolved));
        Ok(resolved)
    }

    /// Removes layers and blobs that no image uses.
    fn collect(&self, state: &mut State) {
        let used: BTreeSet<String> = state
            .index
            .images
            .values()
            .flat_map(|r| r.diff_ids.iter().cloned())
            .chain(state.pinned.keys().cloned())
            .collect();
        let unused: Vec<String> = state.index.layers.keys().filter(|l| !used.contains(*l)).cloned().collect();
        for diff_id in unused {
            state.index.layers.remove(&diff_id);
            if let Ok(name) = layer_name(&diff_id)
                && let Err(error) = beneath::remove_all(&self.dir.join("layers").join(name))
            {
                tracing::warn!(%error, diff_id, "remove an unused layer");
            }
        }
    }

    fn remove_now(&self, reference: &str) -> Result<(), RuntimeError> {
        let _guard = self.exclusive()?;
        let mut state = self.state();
        let Some(id) = Self::id_of(&state, reference)? else { return Ok(()) };
        let by_id =
            digest_hex(&id).is_some_and(|hex| hex.starts_with(reference.trim_start_matches("sha256:")));
        let whole = match Reference::parse(reference) {
            Ok(name) if !by_id => {
                let tag = tag_name(&name);
                let digest = name.digest.as_ref().map(|d| format!("{}@{d}", name.name()));
                state.index.images.get_mut(&id).is_some_and(|record| {
                    record.info.tags.retain(|t| Some(t) != tag.as_ref());
                    record.info.digests.retain(|d| Some(d) != digest.as_ref());
                    // The digest reference of a repository is removed with its last tag.
                    let tags = &record.info.tags;
                    let has_tag = |d: &String| {
                        d.split_once('@')
                            .is_some_and(|(n, _)| tags.iter().any(|t| t.starts_with(&format!("{n}:"))))
                    };
                    if tag.is_some() {
                        record.info.digests.retain(has_tag);
                    }
                    tags.is_empty() && record.info.digests.is_empty()
                })
            }
            _ => true,
        };
        if whole && let Some(record) = state.index.images.remove(&id) {
            state.resolved.remove(&id);
            for digest in [&id, &record.manifest] {
                if let Some(hex) = digest_hex(digest) {
                    let _ = fs::remove_file(self.blob(hex));
                }
            }
            self.collect(&mut state);
        }
        self.save(&mut state)
    }
}

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch(pub(super) PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = beneath::remove_all(&self.0);
    }
}

/// Takes the directory's lock; blocks until it is free.
fn lock(dir: &Path) -> io::Result<Flock<fs::File>> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(dir.join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e.into())
}

fn stamp_of(meta: &fs::Metadata) -> (u64, i128) {
    (meta.ino(), i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()))
}

fn tag_name(name: &Reference) -> Option<String> {
    name.tag.as_ref().map(|tag| format!("{}:{tag}", name.name()))
}

/// Directory name of a layer: 128 bits of the digest. It is short, so that more layers fit into overlayfs's
/// mount options.
fn layer_name(diff_id: &str) -> Result<String, RuntimeError> {
    digest_hex(diff_id)
        .map(|hex| hex[..32].to_owned())
        .ok_or_else(|| RuntimeError::Invalid(format!("unsupported layer digest {diff_id:?}")))
}

/// Runs blocking work off the async worker, if the tokio runtime has several threads.
fn off_worker<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|h| h.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Parses an image manifest.
pub(super) fn parse_manifest(bytes: &[u8]) -> Result<ImageManifest, RuntimeError> {
    serde_json::from_slice(bytes).map_err(|e| RuntimeError::Invalid(format!("image manifest: {e}")))
}

#[async_trait]
impl Images for ImageStore {
    async fn find(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        let state = self.state();
        let id = Self::id_of(&state, reference)?;
        Ok(id.and_then(|id| state.index.images.get(&id)).map(|r| r.info.clone()))
    }

    async fn pull(&self, reference: &str, auth: Option<(String, String)>) -> Result<ImageInfo, RuntimeError> {
        let reference = Reference::parse(reference)?;
        registry::pull(self, &self.registries, &self.user_agent, &reference, auth).await
    }

    async fn list(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        Ok(self.state().index.images.values().map(|r| r.info.clone()).collect())
    }

    async fn remove(&self, reference: &str) -> Result<(), RuntimeError> {
        off_worker(|| self.remove_now(reference))
    }
}
