//! Imports archives: OCI layouts and the format of `docker save`.
//!
//! The members of an archive may have any order. They are written to a scratch directory (under generated
//! names; blobs are verified against their digests), and the image is then assembled from it.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use oci_spec::image::{Arch, Descriptor, ImageIndex, MediaType};
use serde::Deserialize;

use super::{
    reference::{Reference, digest_hex},
    store::{ImageStore, Scratch, parse_manifest},
    unpack::{Hashing, decompress},
};
use crate::{
    api::{ImageInfo, RuntimeError},
    inroot,
};

/// Maximum size of a JSON document, bytes.
const MAX_DOCUMENT: u64 = 8 << 20;

struct Members {
    scratch: Scratch,
    files: BTreeMap<PathBuf, PathBuf>,
    links: HashMap<PathBuf, PathBuf>,
}

fn invalid(text: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::Invalid(format!("image archive: {text}"))
}

/// Returns the first line of a message without control characters.
fn printable(message: &str) -> String {
    let clean = message.chars().take_while(|c| *c != '\0' && *c != '\n');
    let text: String = clean.filter(|c| c.is_ascii_graphic() || *c == ' ').take(160).collect();
    if text.contains("did not have utf-8 text") || text.contains("numeric field") {
        return "this is neither a tar archive nor a compressed one".into();
    }
    text
}

pub(super) fn import(store: &ImageStore, source: impl Read) -> Result<Vec<ImageInfo>, RuntimeError> {
    let members = Members::read(store.scratch()?, source)?;
    if members.files.contains_key(Path::new("index.json")) {
        return import_layout(store, &members);
    }
    if members.files.contains_key(Path::new("manifest.json")) {
        return import_docker(store, &members);
    }
    Err(invalid("neither index.json (OCI layout) nor manifest.json (docker save) is in it"))
}

impl Members {
    fn read(scratch: Scratch, source: impl Read) -> Result<Members, RuntimeError> {
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::StorageFull => RuntimeError::io("read image archive")(e),
            // For a file that is not an archive, the message contains bytes of the file.
            _ => invalid(printable(&e.to_string())),
        };
        let mut members = Members { scratch, files: BTreeMap::new(), links: HashMap::new() };
        let mut archive = tar::Archive::new(decompress(source).map_err(failed)?);
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            let name = inroot::relative(&entry.path().map_err(failed)?);
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let file = members.scratch.0.join(members.files.len().to_string());
                    let mut target = fs::File::create_new(&file).map_err(failed)?;
                    let mut hashing = Hashing::new(&mut entry);
                    io::copy(&mut hashing, &mut target).map_err(failed)?;
                    let digest = hashing.finish().map_err(failed)?;
                    check_blob(&name, &digest)?;
                    members.files.insert(name, file);
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    if let Some(target) = entry.link_name().map_err(failed)? {
                        let base = match entry.header().entry_type() {
                            tar::EntryType::Symlink => name.parent().unwrap_or(Path::new("")).join(target),
                            _ => target.into_owned(),
                        };
                        members.links.insert(name, inroot::relative(&base));
                    }
                }
                _ => {}
            }
        }
        Ok(members)
    }

    fn path(&self, name: &Path) -> Result<&Path, RuntimeError> {
        let name = inroot::relative(name);
        let target = self.links.get(&name).unwrap_or(&name);
        self.files
            .get(target)
            .map(PathBuf::as_path)
            .ok_or_else(|| invalid(format_args!("{name:?} is not in it")))
    }

    fn document(&self, name: &Path) -> Result<Vec<u8>, RuntimeError> {
        let path = self.path(name)?;
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            fs::File::open(path)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(RuntimeError::io(format!("read {name:?} of an image archive")))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(invalid(format_args!("{name:?} is too long")));
        }
        Ok(bytes)
    }

    fn blob(&self, digest: &str) -> Result<PathBuf, RuntimeError> {
        let hex = digest_hex(digest).ok_or_else(|| invalid(format_args!("unsupported digest {digest:?}")))?;
        Ok(Path::new("blobs/sha256").join(hex))
    }

    fn open(&self, name: &Path) -> Result<Box<dyn Read>, RuntimeError> {
        let path = self.path(name)?;
        let file = fs::File::open(path).map_err(RuntimeError::io(format!("open {path:?}")))?;
        Ok(Box::new(io::BufReader::with_capacity(1 << 16, file)))
    }
}

fn check_blob(name: &Path, digest: &str) -> Result<(), RuntimeError> {
    let Ok(hex) = name.strip_prefix("blobs/sha256") else { return Ok(()) };
    if digest.strip_prefix("sha256:") == hex.to_str() {
        return Ok(());
    }
    Err(invalid(format_args!("blob {hex:?} has digest {digest}")))
}

/// Returns the manifest for this machine's platform. The caller resolves nested indexes.
pub(super) fn choose(index: &ImageIndex) -> Option<&Descriptor> {
    let wanted = if cfg!(target_arch = "aarch64") { Arch::ARM64 } else { Arch::Amd64 };
    let fits = |d: &&Descriptor| {
        d.platform().as_ref().is_some_and(|p| *p.architecture() == wanted && p.os().to_string() == "linux")
    };
    let manifests = index.manifests();
    manifests.iter().find(fits).or_else(|| manifests.iter().find(|d| d.platform().is_none()))
}

pub(super) fn is_index(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageIndex)
        || media_type.to_string() == "application/vnd.docker.distribution.manifest.list.v2+json"
}

fn import_layout(store: &ImageStore, members: &Members) -> Result<Vec<ImageInfo>, RuntimeError> {
    let bytes = members.document(Path::new("index.json"))?;
    let index: ImageIndex = serde_json::from_slice(&bytes).map_err(invalid)?;
    let mut added = Vec::new();
    for top in index.manifests() {
        let names = names(top)?;
        let mut descriptor = top.clone();
        let mut depth = 0;
        let manifest_bytes = loop {
            let bytes = members.document(&members.blob(descriptor.digest().as_ref())?)?;
            if !is_index(descriptor.media_type()) {
                break bytes;
            }
            let nested: ImageIndex = serde_json::from_slice(&bytes).map_err(invalid)?;
            depth += 1;
            descriptor = choose(&nested)
                .filter(|_| depth < 4)
                .cloned()
                .ok_or_else(|| invalid("no manifest for this machine's platform"))?;
        };
        let manifest = parse_manifest(&manifest_bytes)?;
        let config = members.document(&members.blob(manifest.config().digest().as_ref())?)?;
        let mut layer = |index: usize| {
            let digest =
                manifest.layers().get(index).ok_or_else(|| invalid("fewer layers than diff ids"))?.digest();
            members.open(&members.blob(digest.as_ref())?)
        };
        added.push(store.add(&names, &manifest_bytes, &config, &mut layer)?);
    }
    if added.is_empty() {
        return Err(invalid("no image is in it"));
    }
    Ok(added)
}

fn names(descriptor: &Descriptor) -> Result<Vec<Reference>, RuntimeError> {
    let annotations = descriptor.annotations().clone().unwrap_or_default();
    let full = annotations.get("io.containerd.image.name").or_else(|| {
        // A tag without a repository is no image reference.
        annotations.get("org.opencontainers.image.ref.name").filter(|n| n.contains(['/', ':']))
    });
    full.map(|name| Reference::parse(name)).transpose().map(|name| name.into_iter().collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: PathBuf,
    repo_tags: Option<Vec<String>>,
    layers: Vec<PathBuf>,
}

fn import_docker(store: &ImageStore, members: &Members) -> Result<Vec<ImageInfo>, RuntimeError> {
    let bytes = members.document(Path::new("manifest.json"))?;
    let images: Vec<DockerImage> = serde_json::from_slice(&bytes).map_err(invalid)?;
    let mut added = Vec::new();
    for image in images {
        let names = image
            .repo_tags
            .unwrap_or_default()
            .iter()
            .map(|name| Reference::parse(name))
            .collect::<Result<Vec<_>, _>>()?;
        let config = members.document(&image.config)?;
        // `docker save` has no OCI manifest; the list of layer files replaces it.
        let manifest = serde_json::to_vec(&image.layers).map_err(invalid)?;
        let mut layer = |index: usize| {
            members.open(image.layers.get(index).ok_or_else(|| invalid("fewer layers than diff ids"))?)
        };
        added.push(store.add(&names, &manifest, &config, &mut layer)?);
    }
    if added.is_empty() {
        return Err(invalid("no image is in it"));
    }
    Ok(added)
}
