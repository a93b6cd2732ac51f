//! The images on a node: a content-addressed store of unpacked layers.
//!
//! Flow: [`ImageStore::import`] (an archive) or [`Images::pull`](crate::Images::pull) (a registry) bring
//! manifest, configuration and layers; each layer is unpacked once into a directory named for its content,
//! shared by all images that have it; containers use the directories as overlayfs lower directories through
//! [`ImageStore::resolve`].
//! Guarantees: everything is checked against its digest before it counts; a layer is there wholly or not at
//! all (unpacked beside, then renamed); the index is replaced atomically, so a crash loses at most the image
//! that was being added.
//! Not here: running containers; image signatures.
//!
//! ```text
//! index.json             what is there: Index
//! blobs/sha256/<hex>     manifests and configurations
//! layers/<32 hex>/       one unpacked layer each, named for its diff id
//! tmp/                   work in progress, emptied at open
//! ```

mod archive;
pub mod build;
mod elf;
pub mod reference;
pub mod registry;
mod store;
#[cfg(test)]
mod tests;
mod unpack;

pub use self::{
    build::ImageBuilder,
    reference::Reference,
    registry::Registries,
    store::{ImageStore, ResolvedImage},
};
